//! `dtk train`.

use super::progress::Progress;
use super::{RecipeArgs, device_plan, plan};
use crate::error::{Error, Result};
use crate::train::{Options, Resume, Trainer};
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Distil a teacher into a backbone.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The run folder; runs/<recipe name> if left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue: `auto` from the last checkpoint of the run folder (or from the beginning), or a checkpoint's folder.
    #[arg(long, value_name = "auto|DIR", conflicts_with = "overwrite")]
    resume: Option<String>,
    /// Start again in a folder that holds a run; that run is removed.
    #[arg(long)]
    overwrite: bool,
    /// Print the resolved recipe and the plan, and do nothing: parameters, FLOPs and memory; with --device cuda every operation
    /// of the captured step, of an H100 where there is no card.
    #[arg(long)]
    dry_run: bool,
}

impl Train {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let recipe = self.recipe.recipe()?;
        if self.dry_run {
            return match self.recipe.device.planned()? {
                None => plan::print_training(&recipe),
                Some((device, there)) => device_plan::print(&recipe, &device, there),
            };
        }
        let device = self.recipe.device.gpu()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        ctrlc::set_handler(move || {
            // A second Ctrl-C means now.
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nstopping after this step; press Ctrl-C again to stop at once");
        })
        .map_err(|e| Error::device("cannot watch for Ctrl-C").with_source(e))?;
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
        let resume = match (&self.resume, self.overwrite) {
            (_, true) => Resume::Overwrite,
            (None, _) => Resume::No,
            (Some(r), _) if r == "auto" => Resume::Auto,
            (Some(r), _) => Resume::From(r.into()),
        };
        let mut progress = Progress::new(recipe.run.log_every);
        let mut trainer =
            Trainer::new(recipe, Options { out: out.clone(), resume, stop, device: device.clone() })?;
        println!("device {}", device.map_or("cpu".to_string(), |gpu| format!("{gpu:?}")));
        println!("run folder {}", out.display());
        let summary = trainer.run(&mut progress)?;
        println!(
            "done: {} steps; the backbone (timm's keys) is {}",
            summary.step,
            summary.backbone.display()
        );
        if !summary.skipped.is_empty() {
            println!("{} unreadable images were replaced", summary.skipped.len());
        }
        Ok(())
    }
}
