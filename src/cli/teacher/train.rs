//! `dtk teacher train`.

use crate::cli::progress::Progress;
use crate::cli::train::RunArgs;
use crate::cli::{DeviceArgs, count, device_plan};
use crate::error::Result;
use crate::models::adm::AdmUnet;
use crate::nn::ParamStore;
use crate::recipe::{TeacherRecipe, teacher};
use crate::train::{TeacherTrainer, plan_teacher};
use clap::Args;

/// Train a diffusion network.
#[derive(Args)]
pub struct Train {
    /// A teacher's recipe: a TOML file or a built-in name (quickstart_teacher).
    #[arg(long, default_value = "quickstart_teacher", value_name = "FILE|NAME")]
    recipe: String,
    /// Change one value of the recipe, e.g. --set train.batch=64. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The images: a folder, a list of files, or an IDX file. Short for --set data.path=...
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Element type of the weights in teacher.safetensors: f32, bf16 or f16. Short for --set output.dtype=...
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Print the resolved recipe and the size of the network, and do nothing; with --device cuda every operation of the captured
    /// step, of an H100 where there is no card.
    #[arg(long)]
    dry_run: bool,
}

impl Train {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let recipe = self.recipe()?;
        if self.dry_run {
            let mut store = ParamStore::new();
            AdmUnet::new(&mut store.builder(), &recipe.model()?)?;
            println!("# resolved recipe\n{}", recipe.to_toml());
            println!("# parameters: {}", count(store.parameter_count() as u64));
            if let Some((device, there)) = self.device.planned()? {
                let (plan, precision) = (plan_teacher(&recipe, &device)?, recipe.train.precision);
                device_plan::print(&plan, precision, there, "use a smaller train.batch");
            }
            return Ok(());
        }
        let device = self.device.gpu()?;
        let options = self.run.options(&recipe.name, device.clone())?;
        let out = options.out.clone();
        let mut progress = Progress::new(recipe.run.log_every);
        let mut trainer = TeacherTrainer::new(recipe, options)?;
        println!("device {}", device.map_or("cpu".to_string(), |gpu| format!("{gpu:?}")));
        println!("run folder {}", out.display());
        let summary = trainer.run(&mut progress)?;
        println!(
            "done: {} steps; the teacher (guided-diffusion's keys) is {}",
            summary.step,
            summary.teacher.display()
        );
        if !summary.skipped.is_empty() {
            println!("{} unreadable images were replaced", summary.skipped.len());
        }
        Ok(())
    }

    fn recipe(&self) -> Result<TeacherRecipe> {
        let mut set = self.set.clone();
        // A TOML literal, so that any path stays a string.
        let literal = |key: &str, v: &str| format!("{key}={}", toml::Value::String(v.to_string()));
        set.extend(self.data.iter().map(|d| literal("data.path", d)));
        set.extend(self.dtype.iter().map(|d| literal("output.dtype", d)));
        teacher::resolve(&self.recipe, &set)
    }
}
