//! `dtk data compose`.

use super::{Counter, range, size};
use crate::data::{ComposeConfig, compose};
use crate::error::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Paste cut-outs with alpha on backgrounds. Makes train/ and test/, each with images/, masks/, instances/, labels.csv and
/// classes.txt, and compose.json. What a cut-out shows (its file name without the extension) is in one split only.
#[derive(Args)]
pub struct Compose {
    /// Cut-outs (PNG or WebP with alpha): a folder with a sub-folder per class, a CSV list with the header `file,class`, or a
    /// JSON list of objects with file, class and perhaps concept.
    #[arg(long, value_name = "DIR|LIST")]
    cutouts: PathBuf,
    /// A folder of photographs to paste on.
    #[arg(long, value_name = "DIR")]
    backgrounds: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Images to train on.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    train: usize,
    /// Held-out images.
    #[arg(long, default_value_t = 200, value_name = "N")]
    test: usize,
    /// Size in pixels, or one number for both sides.
    #[arg(long, default_value = "64x64", value_name = "HxW")]
    size: String,
    /// Root of all randomness, the split of the concepts included.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// About which share of the concepts is held out.
    #[arg(long, default_value_t = 0.25, value_name = "SHARE")]
    test_fraction: f32,
    /// Cut-outs an image.
    #[arg(long, default_value = "1-4", value_name = "FROM-TO")]
    objects: String,
    /// The longer side of a cut-out, relative to the shorter side of the image.
    #[arg(long, default_value = "0.25-0.75", value_name = "FROM-TO")]
    scale: String,
    /// The largest rotation to either side, in degrees.
    #[arg(long, default_value_t = 30.0, value_name = "DEGREES")]
    rotation: f32,
    /// Mirror no cut-out.
    #[arg(long)]
    no_flip: bool,
    /// Leave out cut-outs that are opaque, empty or damaged, and say which.
    #[arg(long)]
    skip_unusable: bool,
}

impl Compose {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let (height, width) = size(&self.size)?;
        let config = ComposeConfig {
            cutouts: self.cutouts.clone(),
            backgrounds: self.backgrounds.clone(),
            train: self.train,
            test: self.test,
            height,
            width,
            seed: self.seed,
            test_fraction: self.test_fraction,
            objects: range(&self.objects, "--objects")?,
            scale: range(&self.scale, "--scale")?,
            rotation: self.rotation,
            flip: !self.no_flip,
            skip_unusable: self.skip_unusable,
        };
        let start = Instant::now();
        let counter = Counter::new(self.train.saturating_add(self.test));
        let report = compose(&config, &self.out, &|done| counter.report(done))?;
        for line in &report.skipped {
            println!("left out: {line}");
        }
        println!("{:24} {:>8} {:>8}", "concepts of", "train", "test");
        for c in &report.classes {
            println!("{:24} {:>8} {:>8}", c.name, c.train.len(), c.test.len());
        }
        let [train, test] = &report.backgrounds;
        let shared = if train == test { " (shared: there is only one)" } else { "" };
        println!("{:24} {:>8} {:>8}{shared}", "backgrounds", train.len(), test.len());
        println!(
            "{} + {} images of {height}x{width} pixels in {:.1} s; wrote {}",
            self.train,
            self.test,
            start.elapsed().as_secs_f64(),
            self.out.display()
        );
        Ok(())
    }
}
