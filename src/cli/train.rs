//! `dtk train`.

use super::eval::Lines;
use super::progress::Progress;
use super::{RecipeArgs, device_plan, plan};
use crate::error::{Error, Result};
use crate::eval::Report;
use crate::gpu::Gpu;
use crate::recipe::Recipe;
use crate::train::{
    Options, Resume, RunDir, Summary, Trainer, evaluate_run, illustrate_run, plan_device, report,
};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Distil a teacher into a backbone.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Print the resolved recipe and the plan, and do nothing: parameters, FLOPs and memory; with --device cuda every operation
    /// of the captured step, of an H100 where there is no card.
    #[arg(long)]
    dry_run: bool,
    /// Leave out what follows the training: the evaluation by the recipe's section [eval], pictures, report.html.
    #[arg(long)]
    no_report: bool,
}

/// Where a run is, and whether it goes on.
#[derive(Args)]
pub(super) struct RunArgs {
    /// The run folder; runs/<recipe name> if left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue: `auto` from the last checkpoint of the run folder (or from the beginning), or a checkpoint's folder.
    #[arg(long, value_name = "auto|DIR", conflicts_with = "overwrite")]
    resume: Option<String>,
    /// Start again in a folder that holds a run; that run is removed.
    #[arg(long)]
    overwrite: bool,
}

impl RunArgs {
    /// How the run of a recipe is carried out. From here on Ctrl-C stops it after a step.
    pub(super) fn options(&self, recipe: &str, device: Option<Gpu>) -> Result<Options> {
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
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(recipe));
        let resume = match (&self.resume, self.overwrite) {
            (_, true) => Resume::Overwrite,
            (None, _) => Resume::No,
            (Some(r), _) if r == "auto" => Resume::Auto,
            (Some(r), _) => Resume::From(r.into()),
        };
        Ok(Options { out, resume, stop, device })
    }
}

impl Train {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let recipe = self.recipe.recipe()?;
        if self.dry_run {
            return match self.recipe.device.planned()? {
                None => plan::print_training(&recipe),
                Some((device, there)) => {
                    let plan = plan_device(&recipe, &device)?;
                    println!("# resolved recipe\n{}", recipe.to_toml());
                    device_plan::print(&plan, recipe.train.precision, there, "raise train.accumulate");
                    Ok(())
                }
            };
        }
        let device = self.recipe.device.gpu()?;
        let options = self.run.options(&recipe.name, device.clone())?;
        let (out, stop) = (options.out.clone(), Arc::clone(&options.stop));
        let mut progress = Progress::new(recipe.run.log_every);
        let mut trainer = Trainer::new(recipe.clone(), options)?;
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
        if !self.no_report {
            self.conclude(&recipe, &out, &summary, &stop)?;
        }
        Ok(())
    }

    /// Measures and illustrates the run, unless that was done before, and says where everything is.
    fn conclude(&self, recipe: &Recipe, out: &Path, summary: &Summary, stop: &AtomicBool) -> Result<()> {
        let run = RunDir::new(out);
        let measured = summary.last.is_none() && run.file(report::EVALUATION).is_file();
        if recipe.eval.is_some() && !measured {
            println!("measuring the backbone, and beside it the same from scratch");
            let mut lines = Lines::new();
            evaluate_run(&run, recipe, &mut |p| lines.show(p), stop)?;
        }
        let page = match recipe.run.pictures {
            0 => report::write(out)?,
            _ => illustrate_run(out, recipe, &mut |what| println!("drawing {what}"))?,
        };
        if recipe.eval.is_some() {
            println!("{}", Report::read(run.file(report::EVALUATION))?.to_text().trim_end());
        }
        println!("report: {} (for a browser)", page.display());
        println!(
            "next: your images with `--data PATH`; a teacher for them with `dtk teacher train --data PATH`; `dtk export`"
        );
        Ok(())
    }
}
