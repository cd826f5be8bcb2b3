//! `dtk data synth`.

use super::{Counter, size};
use crate::data::{ImageSource, SceneConfig, Scenes};
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Render scenes into a folder: images/, masks/, instances/, labels.csv, classes.txt.
#[derive(Args)]
pub struct Synth {
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of scenes.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    count: usize,
    /// Size in pixels, or one number for both sides.
    #[arg(long, default_value = "64x64", value_name = "HxW")]
    size: String,
    /// Number of the first scene; `held_out` and `test` are where those begin that are never pretrained on.
    #[arg(long, default_value = "0", value_name = "K|held_out|test")]
    first: String,
}

impl Synth {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let (height, width) = size(&self.size)?;
        let first = match self.first.as_str() {
            "held_out" => Scenes::HELD_OUT,
            "test" => Scenes::TEST,
            k => k.parse().map_err(|_| {
                Error::usage(format!("`{k}` is no number of a scene"))
                    .with_key("--first")
                    .with_remedy("give a number from 0 on, held_out or test")
            })?,
        };
        let scenes = Scenes::new(SceneConfig { count: self.count, first, height, width })?;
        let start = Instant::now();
        let counter = Counter::new(self.count);
        scenes.write(&self.out, &|done| counter.report(done))?;
        println!(
            "{} scenes of {height}x{width} pixels with masks of {} classes in {:.1} s; wrote {}",
            self.count,
            scenes.mask_classes().len(),
            start.elapsed().as_secs_f64(),
            self.out.display()
        );
        Ok(())
    }
}
