//! `dtk viz`.

use super::RecipeArgs;
use crate::error::{Error, Result};
use crate::eval::{Evaluation, Protocol, Weights};
use crate::recipe::{self, Recipe};
use crate::train::{Looks, StudentFrom, View, predictions, report};
use crate::viz::{KMeans, gallery};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Look at features and runs.
#[derive(Args)]
pub struct Viz {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Feature and attention maps of teacher and student, side by side.
    Features(Features),
    /// Segments: pixels grouped by their features, with the same colours in all images.
    Kmeans(Segments),
    /// Predicted masks over test images, of the run's backbone beside one from scratch.
    Masks(Masks),
    /// Write report.html into a run folder: curves, pictures, results, on one page that works anywhere.
    Report(Report),
}

/// Whose features of which images.
#[derive(Args)]
struct Place {
    /// A run folder: its recipe, its last checkpoint, and viz/ in it for the pictures.
    #[arg(value_name = "RUN_DIR", conflicts_with = "recipe")]
    run: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The student's backbone (any known layout), instead of that of the run.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// Strides of the levels to show, e.g. 4,8; all if left out.
    #[arg(long, value_delimiter = ',', value_name = "STRIDES")]
    levels: Vec<usize>,
    /// Number of images.
    #[arg(long, default_value_t = 6, value_name = "N")]
    images: usize,
    /// Width of a tile in the pictures, in pixels.
    #[arg(long, default_value_t = 80, value_name = "PIXELS")]
    tile: u32,
    /// The folder of the pictures; RUN_DIR/viz, or viz without a run.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Feature maps.
#[derive(Args)]
struct Features {
    #[command(flatten)]
    place: Place,
    /// Further times at which the teacher looks, e.g. 50,150,250.
    #[arg(long, value_delimiter = ',', value_name = "TIMES")]
    t: Vec<usize>,
}

/// Segments.
#[derive(Args)]
struct Segments {
    #[command(flatten)]
    place: Place,
    /// Number of groups.
    #[arg(long, default_value_t = 6, value_name = "K")]
    k: usize,
    /// Root of the first centres.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,
}

/// Predicted masks.
#[derive(Args)]
struct Masks {
    /// The run folder; the pictures go to viz/ in it.
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    /// Change one value of the run's recipe, e.g. --set eval.data.scenes=400. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// seg_frozen (a readout on the frozen backbone) or seg_finetune.
    #[arg(long, default_value = "seg_frozen", value_name = "PROTOCOL")]
    protocol: String,
    /// Number of labelled images, or their share, e.g. 40 or 10%; what the recipe names first if left out.
    #[arg(long, value_name = "N|N%")]
    labels: Option<String>,
    /// Number of test images to show.
    #[arg(long, default_value_t = 6, value_name = "N")]
    images: usize,
    /// Width of a tile in the pictures, in pixels.
    #[arg(long, default_value_t = 80, value_name = "PIXELS")]
    tile: u32,
}

impl Masks {
    /// Trains the readouts with one seed and draws what they say.
    fn run(&self) -> Result<()> {
        let recipe = recipe::resolve(&self.run.join("recipe.toml").to_string_lossy(), &self.set)?;
        let protocol: Protocol = self.protocol.parse()?;
        if !protocol.segments() || self.images == 0 || !(1..=4096).contains(&self.tile) {
            return Err(Error::usage(format!(
                "no masks to draw: {} images of `{protocol}`, {} pixels wide",
                self.images, self.tile
            ))
            .with_remedy("choose seg_frozen or seg_finetune, 1 image or more, and 1 to 4096 pixels"));
        }
        let mut config = recipe.evaluation();
        (config.protocols, config.seeds) = (vec![protocol], 1);
        match &self.labels {
            Some(n) => config.labels = vec![n.parse()?],
            None => config.labels.truncate(1),
        }
        let (evaluation, backbone) = (Evaluation::new(&config)?, &recipe.student.backbone);
        let candidates = [
            ("pretrained", Weights::File(self.run.join("backbone.safetensors"))),
            ("scratch", Weights::Scratch),
        ];
        let mut pictures = Vec::new();
        for (name, weights) in &candidates {
            println!("training the readout: {name}");
            let never = AtomicBool::new(false);
            let all =
                evaluation.run_with_pictures(name, backbone, weights, self.images, &mut |_| {}, &never)?;
            pictures.extend(all.1);
        }
        let folder = self.run.join(gallery::FOLDER);
        for file in predictions(&folder, &pictures, self.tile)? {
            println!("wrote {}", folder.join(file).display());
        }
        Ok(())
    }
}

/// Write a run's report.
#[derive(Args)]
struct Report {
    /// The run folder.
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
}

impl Place {
    /// The recipe, and where the student comes from.
    fn open(&self) -> Result<(Recipe, StudentFrom)> {
        if self.recipe.device.cuda()?.is_some() {
            return Err(Error::usage("pictures are computed on the CPU")
                .with_key("--device")
                .with_remedy("leave --device out"));
        }
        let mut args = self.recipe.clone();
        if let Some(run) = &self.run {
            args.recipe = run.join("recipe.toml").to_string_lossy().into_owned();
        }
        let mut recipe = args.recipe()?;
        let from = match (&self.backbone, &self.run) {
            (Some(file), _) => {
                recipe.student.weights = Some(file.to_string_lossy().into_owned());
                StudentFrom::Recipe
            }
            (None, Some(run)) => StudentFrom::run(run, &mut recipe)?,
            (None, None) => StudentFrom::Recipe,
        };
        Ok((recipe, from))
    }

    /// The maps.
    fn looks(&self, times: &[usize]) -> Result<Looks> {
        let (recipe, from) = self.open()?;
        let view = View {
            out: self.folder(),
            images: self.images,
            levels: self.levels.clone(),
            times: times.to_vec(),
            tile: self.tile,
        };
        Looks::new(&recipe, &from, view, &mut |what| println!("computing {what}"))
    }

    fn folder(&self) -> PathBuf {
        let beside = || self.run.clone().unwrap_or_default().join(gallery::FOLDER);
        self.out.clone().unwrap_or_else(beside)
    }

    fn say(&self, files: &[String]) {
        for file in files {
            println!("wrote {}", self.folder().join(file).display());
        }
    }
}

impl Viz {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match &self.what {
            What::Features(f) => f.place.say(&f.place.looks(&f.t)?.features()?),
            What::Kmeans(s) => {
                let kmeans = KMeans { k: s.k, seed: s.seed, ..KMeans::default() };
                s.place.say(&s.place.looks(&[])?.segments(&kmeans)?);
            }
            What::Masks(m) => m.run()?,
            What::Report(r) => println!("wrote {}", report::write(&r.run)?.display()),
        }
        Ok(())
    }
}
