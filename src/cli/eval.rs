//! `dtk eval`.

use super::DeviceArgs;
use crate::error::{Error, Result};
use crate::eval::{EvalConfig, EvalProgress, Evaluation, Protocol, Report, Weights, supervise};
use crate::recipe::{self, Recipe};
use crate::train::{open_images, save_params};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two lines about one part.
const QUIET: Duration = Duration::from_secs(5);

/// Measure what a backbone is worth.
#[derive(Args)]
pub struct Eval {
    /// What to measure: knn, linear, seg (the frozen readout), seg_finetune, finetune; several with commas. All that the
    /// recipe names if left out.
    #[arg(value_name = "PROTOCOLS", value_delimiter = ',')]
    protocols: Vec<String>,
    /// The backbone's weights, in any known layout: a file, a run folder, or `scratch`.
    #[arg(long, value_name = "FILE|DIR|scratch")]
    backbone: String,
    /// Measure others beside it: `scratch`; NAME=FILE; `supervised`, which is trained now, on the labels of the recipe's
    /// own images. Several with commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    against: Vec<String>,
    /// A recipe with the architecture (student.backbone) and perhaps a section [eval]: a TOML file or a built-in name. The
    /// recipe of the run folder if left out and --backbone lies in one.
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<String>,
    /// Change one value of the recipe, e.g. --set eval.linear.fit.lr=0.1. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The labelled images (the test images in a part of their own, or under --test). Short for --set eval.data.path=...
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The test images. Short for --set eval.data.test_path=...
    #[arg(long, value_name = "PATH")]
    test: Option<PathBuf>,
    /// How many labelled images: counts or shares, e.g. 40,400 or 1%,10%,100%.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    labels: Vec<String>,
    /// How many seeds.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Keep the supervised backbone that was trained, under timm's names, to be given as supervised=FILE.
    #[arg(long, value_name = "FILE")]
    save_supervised: Option<PathBuf>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Eval {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let weights = Path::new(&self.backbone);
        // A run folder stands for its backbone and its recipe.
        let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
        let in_run =
            folder.map(|f| f.join("recipe.toml")).filter(|f| self.backbone != SCRATCH && f.is_file());
        let recipe = match (&self.recipe, in_run) {
            (Some(name), _) => recipe::resolve(name, &self.set)?,
            (None, Some(file)) => recipe::resolve(&file.to_string_lossy(), &self.set)?,
            (None, None) => recipe::resolve("quickstart", &self.set)?,
        };
        let config = self.config(&recipe)?;
        let mut candidates = vec![candidate(&self.backbone, None)];
        for other in &self.against {
            candidates.push(match other.split_once('=') {
                Some((name, file)) => candidate(file, Some(name)),
                None if other == SCRATCH => candidate(other, None),
                None if other == SUPERVISED => Candidate::Supervised,
                None => {
                    return Err(Error::usage(format!("`{other}` is no backbone to compare with"))
                        .with_key("--against")
                        .with_remedy("write scratch, supervised, or NAME=FILE"));
                }
            });
        }
        if self.save_supervised.is_some() && !self.against.iter().any(|a| a == SUPERVISED) {
            return Err(Error::usage("there is no supervised backbone to keep")
                .with_key("--save-supervised")
                .with_remedy("add --against supervised"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })
        .map_err(|e| Error::device("cannot watch for Ctrl-C").with_source(e))?;
        let report = self.measure(&config, &recipe, &candidates, &stop)?;
        println!("{}", report.to_text().trim_end());
        if let Some(out) = &self.out {
            report.write(out)?;
            println!("wrote {}", out.display());
        }
        Ok(())
    }

    /// Measures one backbone after another.
    fn measure(
        &self,
        config: &EvalConfig,
        recipe: &Recipe,
        candidates: &[Candidate],
        stop: &AtomicBool,
    ) -> Result<Report> {
        let (evaluation, backbone) = (Evaluation::new(config)?, &recipe.student.backbone);
        let device = self.device.gpu()?;
        let device = device.as_ref().map(|gpu| (gpu, recipe.train.precision.dtype()));
        let evaluation = match device {
            Some((gpu, dtype)) => evaluation.on_device(gpu, dtype),
            None => evaluation,
        };
        let mut report = Report::new(evaluation.title());
        let mut lines = Lines::new();
        for one in candidates {
            let mut show = |p: &EvalProgress| lines.show(p);
            let rows = match one {
                Candidate::Given(name, weights) => {
                    evaluation.run(name, backbone, weights, &mut show, stop)?
                }
                Candidate::Supervised => {
                    let images = open_images(&recipe.data)?;
                    let store = supervise(config, backbone, images, recipe.seed, device, &mut show, stop)?;
                    if let Some(path) = &self.save_supervised {
                        let metadata = [("backbone".to_string(), backbone.name().to_string())].into();
                        save_params(&store, "backbone.", path, &metadata)?;
                    }
                    evaluation.run(SUPERVISED, backbone, &Weights::Params(store), &mut show, stop)?
                }
            };
            report.merge(rows);
        }
        Ok(report)
    }

    /// The recipe's evaluation with what the arguments say.
    fn config(&self, recipe: &Recipe) -> Result<EvalConfig> {
        let mut config = recipe.evaluation();
        if !self.protocols.is_empty() {
            let read = |name: &String| match name.as_str() {
                "seg" => Ok(Protocol::SegFrozen),
                other => other.parse(),
            };
            config.protocols = self.protocols.iter().map(read).collect::<Result<_>>()?;
        }
        if !self.labels.is_empty() {
            config.labels = self.labels.iter().map(|l| l.parse()).collect::<Result<_>>()?;
        }
        config.seeds = self.seeds.unwrap_or(config.seeds);
        if self.data.is_some() {
            config.data.path.clone_from(&self.data);
            config.data.test_path = None;
            config.data.test_limit = 0;
        }
        if self.test.is_some() {
            config.data.test_path.clone_from(&self.test);
        }
        Ok(config)
    }
}

/// The name of a backbone with random weights.
const SCRATCH: &str = "scratch";

/// The name of the backbone that labels teach.
const SUPERVISED: &str = "supervised";

/// What is measured.
enum Candidate {
    /// A name for the report, and the weights.
    Given(String, Weights),
    /// Trained with labels first.
    Supervised,
}

/// `scratch`, a checkpoint, or a run folder.
fn candidate(weights: &str, name: Option<&str>) -> Candidate {
    if weights == SCRATCH {
        return Candidate::Given(name.unwrap_or(SCRATCH).to_string(), Weights::Scratch);
    }
    let path = Path::new(weights);
    let inside = path.join("backbone.safetensors");
    let file = if inside.is_file() { inside } else { path.to_path_buf() };
    Candidate::Given(name.unwrap_or("pretrained").to_string(), Weights::File(file))
}

/// Says how far an evaluation is: a line for every result, and one every few seconds.
pub(super) struct Lines(Instant);

impl Lines {
    pub(super) fn new() -> Self {
        Lines(Instant::now())
    }

    pub(super) fn show(&mut self, p: &EvalProgress) {
        let what = p.protocol.map_or("backbone".to_string(), |p| p.to_string());
        let part = format!("{}: {what}, {} labels, seed {}", p.backbone, p.labels, p.seed);
        match p.value {
            Some(v) => println!("{part}: {:.1} %", 100.0 * v),
            None if self.0.elapsed() > QUIET => println!("{part}: {}/{}", p.done, p.total),
            None => return,
        }
        self.0 = Instant::now();
    }
}
