//! The command line: one file per subcommand. The only layer that prints.

/// Prints a line. The standard macros panic where nobody reads on (`dtk models | head -1`, a closed terminal); a run
/// must go on then. They are shadowed so that no command uses them by mistake.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($text)*).ok();
    }};
}

/// As `println!`, to standard error.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stderr(), $($text)*).ok();
    }};
}

mod bench;
mod check;
mod data;
mod device_plan;
mod eval;
mod export;
mod features;
mod info;
mod models;
mod plan;
mod progress;
mod teacher;
mod train;
mod viz;
mod warm;

use crate::error::{Error, Result};
use crate::gpu::nvrtc::Nvrtc;
use crate::gpu::{DeviceInfo, Gpu};
use crate::recipe::{self, Recipe};
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// DreamTeacher pretraining: distil a frozen generative network into an image backbone.
#[derive(Parser)]
#[command(name = "dtk", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Distil a teacher into a backbone (the main job).
    Train(train::Train),
    /// Train a diffusion network of one's own, draw pictures with it, convert checkpoints of others.
    #[command(subcommand)]
    Teacher(teacher::Teacher),
    /// Write feature maps of teacher or student to a safetensors file.
    Features(features::Features),
    /// Measure a backbone: nearest neighbours, linear classifier, segmentation, fine-tuning; beside others.
    Eval(eval::Eval),
    /// Write a backbone for timm, torchvision, Detectron2, OpenMMLab or the official ConvNeXt.
    Export(export::Export),
    /// List the networks dtk knows, their parameters, levels and where public weights are.
    Models(models::Models),
    /// Make and examine sets of images: render scenes, compose cut-outs, inspect.
    Data(data::Data),
    /// Run every operation against its f64 reference on this machine.
    Check(check::Check),
    /// Time the operations on this machine; report and merge such measurements.
    Bench(bench::Bench),
    /// Say what this machine offers: processor, threads, memory, devices.
    Info(info::Info),
    /// Pictures of features, segments and masks; the report of a run.
    Viz(viz::Viz),
    /// Compile all kernels now, so that no run waits for the compiler.
    Warm(warm::Warm),
}

/// Where a command gets its recipe from, and where it computes.
#[derive(Args, Clone, Debug)]
struct RecipeArgs {
    /// A recipe: a TOML file or a built-in name (quickstart, benchmark, imagenet, imagenet_convnext, lsun, ffhq, bdd100k).
    #[arg(long, default_value = "quickstart", value_name = "FILE|NAME")]
    recipe: String,
    /// Change one value of the recipe, e.g. --set train.batch=64. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The images: a folder (of images, with masks, in IDX files or splits), a list, or an IDX file. Short for --set data.path=...
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// The teacher's checkpoint (safetensors or PyTorch). Short for --set teacher.weights=...
    #[arg(long, value_name = "FILE|random")]
    teacher: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Args, Clone, Debug)]
struct DeviceArgs {
    /// Where to compute: auto, cpu or cuda[:N].
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
}

impl DeviceArgs {
    /// The number of the CUDA device that was asked for; `None` for the CPU, which `auto` still means.
    fn cuda(&self) -> Result<Option<usize>> {
        let unknown = || {
            Error::usage(format!("unknown device `{}`", self.device))
                .with_key("--device")
                .with_remedy("choose auto, cpu or cuda[:N]")
        };
        match self.device.as_str() {
            "auto" | "cpu" => Ok(None),
            "cuda" => Ok(Some(0)),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(Some).ok_or_else(unknown)
            }
        }
    }

    /// The device to compute on, open; `None` for the CPU. `auto` takes the first card that works.
    fn gpu(&self) -> Result<Option<Gpu>> {
        match self.cuda()? {
            Some(ordinal) => Self::open(ordinal).map(Some),
            None if self.device == "auto" => Ok(Self::first_card()),
            None => Ok(None),
        }
    }

    /// A card that can be opened, and NVRTC to compile for it. The simulator is no card.
    fn first_card() -> Option<Gpu> {
        Nvrtc::find().ok()?;
        Gpu::open(0).ok().filter(|gpu| !gpu.info().simulated)
    }

    /// The device to plan for, and whether it is there: an H100 stands in for one that was asked for and is not there. `None`
    /// for the CPU.
    fn planned(&self) -> Result<Option<(DeviceInfo, bool)>> {
        match self.gpu() {
            Ok(gpu) => Ok(gpu.map(|gpu| (gpu.info().clone(), true))),
            Err(_) if self.cuda()?.is_some() => Ok(Some((DeviceInfo::h100(), false))),
            Err(e) => Err(e),
        }
    }

    /// Opens a device that was asked for.
    fn open(ordinal: usize) -> Result<Gpu> {
        Gpu::open(ordinal).map_err(|e| match e.remedy() {
            Some(_) => e,
            None => e.with_remedy("use --device cpu, or leave --device out"),
        })
    }
}

impl RecipeArgs {
    /// The recipe.
    fn recipe(&self) -> Result<Recipe> {
        let mut set = self.set.clone();
        // A TOML literal, so that any path stays a string.
        let literal = |key: &str, v: &str| format!("{key}={}", toml::Value::String(v.to_string()));
        set.extend(self.data.iter().map(|d| literal("data.path", d)));
        set.extend(self.teacher.iter().map(|t| literal("teacher.weights", t)));
        recipe::resolve(&self.recipe, &set)
    }
}

/// Parses the arguments, runs the command, prints an error if there is one. Exit codes: 0 success, 1 failure, 2 wrong
/// usage, 130 stopped by Ctrl-C.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Train(c) => c.run(),
        Command::Teacher(c) => c.run(),
        Command::Features(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Export(c) => c.run(),
        Command::Models(c) => c.run(),
        Command::Data(c) => c.run(),
        Command::Check(c) => c.run(),
        Command::Bench(c) => c.run(),
        Command::Info(c) => c.run(),
        Command::Viz(c) => c.run(),
        Command::Warm(c) => c.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", if e.is_interrupted() { "interrupted" } else { "error" });
            ExitCode::from(e.exit_code())
        }
    }
}

/// Bytes for people: 1.5 GiB.
fn bytes(n: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = (n.max(1).ilog2() as usize / 10).min(units.len() - 1);
    if i == 0 {
        format!("{n} B")
    } else {
        format!("{:.2} {}", n as f64 / (1u64 << (10 * i)) as f64, units[i])
    }
}

/// Large counts for people: 552.8 M.
fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.1} G", n as f64 / 1e9),
        _ => format!("{:.2} T", n as f64 / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.50 KiB".into()));
        assert_eq!((count(999), count(552_814_086)), ("999".into(), "552.8 M".into()));
    }

    #[test]
    fn devices() {
        let cuda = |d: &str| DeviceArgs { device: d.into() }.cuda();
        assert_eq!((cuda("auto").unwrap(), cuda("cpu").unwrap()), (None, None));
        assert_eq!((cuda("cuda").unwrap(), cuda("cuda:1").unwrap()), (Some(0), Some(1)));
        for wrong in ["cuda:x", "cuda:", "cuda1", "tpu", ""] {
            assert!(cuda(wrong).unwrap_err().is_usage(), "{wrong}");
        }
    }
}
