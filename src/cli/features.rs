//! `dtk features`.

use super::{RecipeArgs, plan};
use crate::base::{DType, Philox};
use crate::error::{Error, Result};
use crate::ops::{Op, conv2d::Conv2d};
use crate::tensor::Tensor;
use crate::train::{FeatureJob, extract_features};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Write feature maps to a safetensors file.
#[derive(Args)]
pub struct Features {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE", default_value = "features.safetensors")]
    out: PathBuf,
    /// The student's backbone instead of the teacher (weights: --set student.weights=...).
    #[arg(long)]
    student: bool,
    /// At most this many images.
    #[arg(long, default_value_t = 16, value_name = "N")]
    limit: usize,
    /// Images per pass.
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Element type in the file: f32, f16 or bf16.
    #[arg(long, default_value = "f32", value_name = "DTYPE")]
    dtype: String,
    /// Type of the operands of products on a device: bf16 or f32.
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    precision: String,
    /// Print the plan (parameters, FLOPs, memory, time), and do nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Features {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let dtype = among(&self.dtype, "--dtype", &[DType::F32, DType::F16, DType::Bf16])?;
        let precision = among(&self.precision, "--precision", &[DType::Bf16, DType::F32])?;
        let recipe = self.recipe.recipe()?;
        if self.dry_run && self.recipe.device.cuda()?.is_some() {
            return Err(Error::usage("the plan of feature extraction is that of the CPU")
                .with_key("--device")
                .with_remedy(
                    "leave --device out; `dtk train --dry-run --device cuda` plans a step on a device",
                ));
        }
        if self.dry_run && self.student {
            return plan::print_training(&recipe);
        }
        if self.dry_run {
            return plan::print_teacher(&recipe, self.batch.max(1), measure_gflops()?);
        }
        let job = FeatureJob {
            out: self.out.clone(),
            student: self.student,
            limit: self.limit,
            batch: self.batch,
            dtype,
            device: self.recipe.device.gpu()?.map(|gpu| (gpu, precision)),
        };
        let report = extract_features(&recipe, &job, &mut |done, total| println!("{done}/{total} images"))?;
        for (name, reason) in &report.skipped {
            println!("skipped unreadable image {name}: {reason}");
        }
        for (name, stride, channels) in &report.levels {
            println!("{name}: stride {stride}, {channels} channels");
        }
        println!(
            "{} images in {:.2} s; wrote {}",
            report.images.len(),
            report.time.as_secs_f64(),
            self.out.display()
        );
        Ok(())
    }
}

/// The element type of a name, out of those that an option takes.
pub(super) fn among(name: &str, option: &str, types: &[DType]) -> Result<DType> {
    types.iter().copied().find(|t| t.to_string() == name).ok_or_else(|| {
        let names: Vec<String> = types.iter().map(DType::to_string).collect();
        Error::usage(format!("unknown element type `{name}`"))
            .with_key(option)
            .with_remedy(format!("choose one of {}", names.join(", ")))
    })
}

/// Speed of a 3x3 convolution typical of a teacher, median of five.
fn measure_gflops() -> Result<f64> {
    let op = Conv2d::square(1, 1);
    let filled = |shape: [usize; 4], seed| {
        let mut v = vec![0.0; shape.iter().product()];
        Philox::new(seed).fill_normal(&mut v);
        Tensor::from_vec(shape, v)
    };
    let (x, w) = (filled([1, 64, 64, 256], 1)?, filled([256, 3, 3, 256], 2)?);
    let flops = op.flops(&[x.shape(), w.shape()]) as f64;
    let mut times = Vec::new();
    for _ in 0..6 {
        let start = Instant::now();
        op.forward(&[&x, &w])?;
        times.push(start.elapsed().as_secs_f64());
    }
    // The first one warms caches and memory up.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(flops / times[times.len() / 2] / 1e9)
}
