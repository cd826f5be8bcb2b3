//! Composites: real cut-outs pasted on real backgrounds, with exact masks.

mod cutout;
mod paste;
#[cfg(test)]
mod tests;

use super::decode::{MAX_SIDE, decode_file};
use super::files::{find_files, is_image, key};
use super::open::Split;
use super::tables::BACKGROUND;
use super::transform::center_crop;
use super::write::{Progress, staged, write_examples, write_text};
use crate::base::Philox;
use crate::error::{Error, Result};
use cutout::{Cutout, Listed, stem};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What to compose of what, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComposeConfig {
    /// Cut-outs with alpha: a folder with a sub-folder per class, or a list (`.json`, or CSV with the header `file,class`).
    pub cutouts: PathBuf,
    /// A folder of photographs to paste them on.
    pub backgrounds: PathBuf,
    /// Number of images to train on.
    pub train: usize,
    /// Number of held-out images.
    pub test: usize,
    /// Height of the images in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
    /// Root of all randomness.
    pub seed: u64,
    /// About which share of the concepts is held out, between 0 and 1.
    pub test_fraction: f32,
    /// How many cut-outs an image shows, from and to.
    pub objects: (u32, u32),
    /// The longer side of a cut-out, relative to the shorter side of the image, from and to; every ratio is equally likely.
    pub scale: (f32, f32),
    /// The largest rotation to either side, in degrees.
    pub rotation: f32,
    /// Mirror half of the cut-outs.
    pub flip: bool,
    /// Leave out cut-outs that are opaque, empty or damaged, in place of an error.
    pub skip_unusable: bool,
}

impl ComposeConfig {
    /// 1000 and 200 images of 64x64 pixels with one to four cut-outs.
    pub fn new(cutouts: impl Into<PathBuf>, backgrounds: impl Into<PathBuf>) -> Self {
        ComposeConfig {
            cutouts: cutouts.into(),
            backgrounds: backgrounds.into(),
            train: 1000,
            test: 200,
            height: 64,
            width: 64,
            seed: 0,
            test_fraction: 0.25,
            objects: (1, 4),
            scale: (0.25, 0.75),
            rotation: 30.0,
            flip: true,
            skip_unusable: false,
        }
    }

    fn validate(&self) -> Result<()> {
        let fail =
            |key: &str, m: String, remedy: &str| Err(Error::usage(m).with_key(key).with_remedy(remedy));
        let sides = 8..=MAX_SIDE;
        if !sides.contains(&self.height) || !sides.contains(&self.width) {
            let m = format!("images of {}x{} pixels cannot be composed", self.height, self.width);
            return fail("size", m, "choose sides of 8 to 16384 pixels");
        }
        if self.train == 0 || self.test == 0 {
            return fail("train", "each split needs images".into(), "ask for at least one image in each");
        }
        if !(self.test_fraction > 0.0 && self.test_fraction < 1.0) {
            let m = format!("{} of the concepts cannot be held out", self.test_fraction);
            return fail("test_fraction", m, "choose a number between 0 and 1");
        }
        if self.objects.0 == 0 || self.objects.0 > self.objects.1 || self.objects.1 > 64 {
            let m = format!("{} to {} cut-outs an image", self.objects.0, self.objects.1);
            return fail("objects", m, "choose 1 <= from <= to <= 64");
        }
        let (least, most) = self.scale;
        if !(least > 0.0 && least <= most && most <= 2.0) {
            return fail(
                "scale",
                format!("cut-outs of the size {least} to {most}"),
                "choose 0 < from <= to <= 2",
            );
        }
        if !(0.0..=180.0).contains(&self.rotation) {
            return fail("rotation", format!("{} degrees", self.rotation), "choose 0 to 180");
        }
        Ok(())
    }
}

/// What [`compose`] found and did.
#[derive(Clone, Debug, Serialize)]
pub struct Composed {
    /// The version of the rules by which a seed gives pixels.
    pub version: u32,
    /// What was asked for.
    pub config: ComposeConfig,
    /// The classes, and what stands for them in each split.
    pub classes: Vec<ComposedClass>,
    /// The backgrounds of each split: file names. They are shared where there is only one.
    pub backgrounds: [Vec<String>; 2],
    /// Cut-outs that were left out, with the reason.
    pub skipped: Vec<String>,
}

/// The concepts of a class.
#[derive(Clone, Debug, Serialize)]
pub struct ComposedClass {
    /// Its name.
    pub name: String,
    /// The concepts that training images show.
    pub train: Vec<String>,
    /// The concepts that are held out.
    pub test: Vec<String>,
}

/// Writes `out/train` and `out/test`, each with `images/`, `masks/`, `instances/`, `labels.csv` and `classes.txt`, and
/// `out/compose.json`, which lists what each split is made of. [`super::open_path`] opens the folder.
///
/// A concept (what a cut-out shows: its file name without the extension) is in one split only. Which one follows from the
/// seed and its name alone, so that sets of the same concepts in other drawing styles split alike. Every image has its own
/// random numbers: classes are equally likely, then concepts of the class, then its cut-outs; the label is the class that
/// covers the most pixels. The bytes depend on the configuration and the files, not on the number of threads.
///
/// # Errors
/// [`Error::usage`]: a value out of range, or `out` is not empty. [`Error::data`]: no cut-outs or backgrounds; a class
/// without cut-outs, or with concepts in one split only; a cut-out that is opaque, empty or damaged (unless these are to be
/// left out). [`Error::format`], [`Error::io`].
pub fn compose(config: &ComposeConfig, out: &Path, progress: Progress) -> Result<Composed> {
    let composer = Composer::open(config)?;
    let report = composer.report();
    staged(out, |dir| {
        let (train, test) = (config.train, config.test);
        for (name, split, count, before) in
            [("train", Split::Train, train, 0), ("test", Split::Test, test, train)]
        {
            let render = |i: usize| composer.render(split, i);
            let advance = |n: usize| progress(before + n);
            let mask_classes: Vec<String> =
                std::iter::once(BACKGROUND.to_string()).chain(composer.classes.iter().cloned()).collect();
            write_examples(&dir.join(name), count, &composer.classes, &mask_classes, &render, &advance)?;
        }
        let text = serde_json::to_string_pretty(&report)
            .map_err(|e| Error::data("cannot describe the set").with_source(e))?;
        write_text(&dir.join("compose.json"), &(text + "\n"))
    })?;
    Ok(report)
}

/// The pictures of one concept.
struct Concept {
    name: String,
    cutouts: Vec<Cutout>,
}

struct Background {
    name: String,
    image: RgbImage,
}

/// What the images of one split are made of.
#[derive(Default)]
struct Stock {
    /// Of every class.
    concepts: Vec<Vec<Concept>>,
    backgrounds: Vec<usize>,
}

/// Everything that is needed to render composites, in memory.
struct Composer {
    config: ComposeConfig,
    classes: Vec<String>,
    backgrounds: Vec<Background>,
    train: Stock,
    test: Stock,
    skipped: Vec<String>,
}

impl Composer {
    fn open(config: &ComposeConfig) -> Result<Self> {
        config.validate()?;
        let listed = cutout::list(&config.cutouts)?;
        let classes: Vec<String> =
            listed.iter().map(|c| c.class.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        // Id 255 is to be ignored by most readers of masks.
        if classes.len() > 254 {
            return Err(Error::data(format!("{} classes do not fit into 8-bit masks", classes.len()))
                .with_file(&config.cutouts)
                .with_remedy("join classes until there are at most 254"));
        }
        let side = config.scale.1 * config.width.min(config.height) as f32;
        let read: Vec<Result<Cutout>> = listed.par_iter().map(|c| Cutout::read(&c.file, side)).collect();
        let mut usable = Vec::new();
        let mut skipped = Vec::new();
        for (entry, cutout) in listed.into_iter().zip(read) {
            match cutout {
                Ok(cutout) => usable.push((entry, cutout)),
                Err(e) if config.skip_unusable => {
                    skipped.push(e.to_string().lines().next().unwrap_or_default().to_string());
                }
                Err(e) => return Err(e),
            }
        }
        let backgrounds = open_backgrounds(config)?;
        let (train_backgrounds, test_backgrounds) = split_backgrounds(config, &backgrounds);
        let mut train = Stock { concepts: Vec::new(), backgrounds: train_backgrounds };
        let mut test = Stock { concepts: Vec::new(), backgrounds: test_backgrounds };
        for class in &classes {
            let mut sides: [Vec<Concept>; 2] = [Vec::new(), Vec::new()];
            // Sorted by concept, so that the pictures of one follow one another.
            for (entry, cutout) in usable.iter().filter(|(e, _)| e.class == *class) {
                let side = &mut sides[usize::from(held_out(config, entry))];
                match side.last_mut().filter(|c| c.name == entry.concept) {
                    Some(concept) => concept.cutouts.push(cutout.clone()),
                    None => {
                        side.push(Concept { name: entry.concept.clone(), cutouts: vec![cutout.clone()] });
                    }
                }
            }
            let [a, b] = sides;
            if a.is_empty() || b.is_empty() {
                let m = format!(
                    "the class `{class}` has {} concepts to train on and {} held out; each split needs one",
                    a.len(),
                    b.len()
                );
                return Err(Error::data(m)
                    .with_file(&config.cutouts)
                    .with_remedy("add cut-outs to this class, or try another seed or test fraction"));
            }
            train.concepts.push(a);
            test.concepts.push(b);
        }
        Ok(Composer { config: config.clone(), classes, backgrounds, train, test, skipped })
    }

    fn stock(&self, split: Split) -> &Stock {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }

    fn report(&self) -> Composed {
        let names = |c: &[Concept]| c.iter().map(|c| c.name.clone()).collect();
        let concepts = self.train.concepts.iter().zip(&self.test.concepts);
        let classes = self.classes.iter().zip(concepts);
        let files = |s: &Stock| s.backgrounds.iter().map(|&i| self.backgrounds[i].name.clone()).collect();
        Composed {
            version: 1,
            config: self.config.clone(),
            classes: classes
                .map(|(name, (a, b))| ComposedClass { name: name.clone(), train: names(a), test: names(b) })
                .collect(),
            backgrounds: [files(&self.train), files(&self.test)],
            skipped: self.skipped.clone(),
        }
    }
}

/// Whether the concept of a cut-out is held out: a matter of the seed and its name.
fn held_out(config: &ComposeConfig, entry: &Listed) -> bool {
    let stream = Philox::new(config.seed).fold_str("split").fold_str(&entry.concept);
    stream.uniform_at(0) < config.test_fraction
}

/// All backgrounds, no larger than their crops need.
fn open_backgrounds(config: &ComposeConfig) -> Result<Vec<Background>> {
    let root = &config.backgrounds;
    let fail = |m: &str| {
        Error::data(m).with_file(root).with_remedy("give a folder of photographs (JPEG, PNG, WebP or BMP)")
    };
    if !root.is_dir() {
        return Err(fail("is no folder of backgrounds"));
    }
    let files = find_files(root, &is_image)?;
    if files.is_empty() {
        return Err(fail("no backgrounds found"));
    }
    let most = 4 * config.height.max(config.width);
    let read = |file: &PathBuf| -> Result<Background> {
        let image = decode_file(root.join(file), [255; 3])?;
        let (w, h) = image.dimensions();
        let shrink = f64::from(most) / f64::from(w.min(h));
        let name = String::from_utf8_lossy(&key(file)).into_owned();
        if shrink >= 1.0 {
            return Ok(Background { name, image });
        }
        let side = |v: u32| ((f64::from(v) * shrink).round() as u32).clamp(1, MAX_SIDE);
        Ok(Background { name, image: center_crop(&image, side(h), side(w))? })
    };
    files.par_iter().map(read).collect()
}

/// Which backgrounds each split takes: the held-out share is chosen by the seed and the names; a single one serves both.
fn split_backgrounds(config: &ComposeConfig, all: &[Background]) -> (Vec<usize>, Vec<usize>) {
    if all.len() == 1 {
        return (vec![0], vec![0]);
    }
    let rank = |b: &Background| {
        let stream = Philox::new(config.seed).fold_str("backgrounds").fold_str(&stem(Path::new(&b.name)));
        stream.block(0)
    };
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| (rank(&all[i]), i));
    let held_out = (all.len() as f32 * config.test_fraction).round() as usize;
    let mut train = order.split_off(held_out.clamp(1, all.len() - 1));
    train.sort_unstable();
    order.sort_unstable();
    (train, order)
}
