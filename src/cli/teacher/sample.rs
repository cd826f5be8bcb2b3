//! `dtk teacher sample`.

use crate::diffusion::Sampler;
use crate::distill::TeacherModel;
use crate::error::{Error, Result};
use crate::train::{Drawing, TeacherFile, parse_size, write_png};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Draw pictures.
#[derive(Args)]
pub struct Sample {
    /// The network: a checkpoint with guided-diffusion's keys (safetensors or PyTorch).
    #[arg(long, value_name = "FILE")]
    teacher: PathBuf,
    /// The picture to write, a grid.
    #[arg(long, value_name = "PNG", default_value = "samples.png")]
    out: PathBuf,
    /// Number of pictures.
    #[arg(long, default_value_t = 16, value_name = "N")]
    count: usize,
    /// Steps of the sampler.
    #[arg(long, default_value_t = 50, value_name = "K")]
    steps: usize,
    /// The sampler: ddim or ancestral.
    #[arg(long, default_value = "ddim", value_name = "KIND")]
    kind: String,
    /// Root of the noise.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,
    /// Height and width, where the file does not say them.
    #[arg(long, value_name = "HxW")]
    size: Option<String>,
    /// The class of all pictures, for a class-conditional network.
    #[arg(long, value_name = "CLASS")]
    label: Option<usize>,
    /// The architecture (a name of `dtk models`), where the file does not say it.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

impl Sample {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let usage =
            |key: &str, what: String, remedy: &str| Error::usage(what).with_key(key).with_remedy(remedy);
        let sampler = match self.kind.as_str() {
            "ddim" => Sampler::Ddim,
            "ancestral" => Sampler::Ancestral,
            other => {
                return Err(usage(
                    "--kind",
                    format!("unknown sampler `{other}`"),
                    "choose ddim or ancestral",
                ));
            }
        };
        let given = match &self.size {
            Some(text) => Some(parse_size(text).ok_or_else(|| {
                usage("--size", format!("`{text}` is no size"), "write height x width, e.g. --size 32x32")
            })?),
            None => None,
        };
        let model = self.model.clone().map(TeacherModel::Name);
        let file = TeacherFile::open(&self.teacher, model.as_ref())?;
        let size = given.or(file.size()).ok_or_else(|| {
            let what = "the file does not say how large its pictures are".to_string();
            usage("--size", what, "give height and width, e.g. --size 256x256")
        })?;
        let drawing = Drawing {
            count: self.count,
            steps: self.steps,
            sampler,
            seed: self.seed,
            size,
            label: self.label,
        };
        let start = Instant::now();
        let image = file.draw(&drawing, &mut |_| Ok(()))?;
        write_png(&image, &self.out)?;
        println!(
            "{} pictures of {}x{} pixels in {} steps, {:.1} s; wrote {}",
            self.count,
            size[0],
            size[1],
            self.steps,
            start.elapsed().as_secs_f64(),
            self.out.display()
        );
        Ok(())
    }
}
