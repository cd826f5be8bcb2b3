//! `dtk check --teacher`.

use super::super::DeviceArgs;
use crate::base::DType;
use crate::data::transform::{center_crop, to_tensor};
use crate::distill::{DeviceTeacher, MapError, Teacher};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::Offload;
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use crate::train::{fill_teacher, open_images};
use std::time::Instant;

/// The most that the whitened maps of an f32 evaluation may be off, in the L2 norm.
const F32_LIMIT: f64 = 1e-3;
/// What a bf16 evaluation on a device may be off, as a multiple of one on the host that rounds at the same places.
const BF16_LIMIT: f64 = 2.0;

/// Compares the teacher's whitened feature maps in f32 and bf16 on a device, or without one with operands rounded to bf16
/// on the host, with those of the CPU in f32.
pub(super) fn run(recipe: &Recipe, images: usize, device: &DeviceArgs) -> Result<()> {
    recipe.validate()?;
    let gpu = device.gpu()?;
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, recipe.seed, |s| {
        fill_teacher(s, &recipe.teacher, recipe.seed).map(drop)
    })?;
    let clean = first_images(recipe, images)?;
    let positions: Vec<u64> = (0..images as u64).collect();
    let noisy = teacher.encode(&clean, 0, &positions)?;
    let pass = |name: &str, maps: &mut dyn FnMut() -> Result<Vec<Tensor>>| {
        let start = Instant::now();
        let maps = maps()?;
        println!("{name}: {} ms", start.elapsed().as_millis());
        Ok::<_, Error>(maps)
    };
    let reference = pass("cpu f32", &mut || teacher.features_of_noisy(&noisy))?;
    let errors = |maps: &[Tensor]| -> Result<Vec<MapError>> {
        maps.iter().zip(&reference).map(|(m, r)| MapError::between(m, r, &recipe.loss)).collect()
    };
    let rounded = errors(&pass("cpu, operands rounded to bf16", &mut || {
        teacher.features_offloaded(&noisy, Offload::rounding(DType::Bf16))
    })?)?;
    let mut columns = vec![("bf16 on the cpu".to_string(), rounded.clone())];
    if let Some(gpu) = &gpu {
        for dtype in [DType::F32, DType::Bf16] {
            let maps = pass(&format!("{gpu:?} {dtype}"), &mut || on_device(&teacher, gpu, dtype, &noisy))?;
            columns.push((format!("{dtype} on the device"), errors(&maps)?));
        }
    }

    println!("\nerrors of whitened maps relative to the CPU's in f32: L2 norm, largest element");
    let headings: String = columns.iter().map(|(name, _)| format!("  {name:>20}")).collect();
    println!("{:28} {:>6} {:>8}{headings}", "tap", "stride", "channels");
    for (i, info) in teacher.taps().iter().enumerate() {
        let cells: String = columns
            .iter()
            .map(|(_, e)| format!("  {:>20}", format!("{:.2e} {:.2e}", e[i].whitened, e[i].worst)))
            .collect();
        println!("{:28} {:>6} {:>8}{cells}", info.tap.to_string(), info.stride, info.channels);
    }
    let largest = |e: &[MapError]| {
        // Not `max`: a NaN has to show.
        e.iter().map(|e| e.whitened).fold(0.0, |a: f64, b| if b.is_nan() || b > a { b } else { a })
    };
    let limits = [f64::INFINITY, F32_LIMIT, BF16_LIMIT * largest(&rounded)];
    for ((name, errors), limit) in columns.iter().zip(limits) {
        let error = largest(errors);
        if error.is_nan() || error > limit {
            return Err(Error::numeric(
                "check",
                format!("{name}, whitened maps are off by {error:.2e}; {limit:.2e} is allowed"),
            )
            .with_remedy("`dtk check --device cuda` tells which operation is wrong"));
        }
    }
    println!("the teacher's features are right");
    Ok(())
}

/// The maps of a device, in f32 on the host.
fn on_device(teacher: &Teacher, gpu: &Gpu, dtype: DType, noisy: &Tensor) -> Result<Vec<Tensor>> {
    let there = DeviceTeacher::new(teacher, gpu, dtype)?;
    let maps = there.features_of_noisy(&noisy.to_dtype(dtype)?.to_gpu(gpu)?)?;
    maps.iter().map(|m| m.to_cpu()?.to_dtype(DType::F32)).collect()
}

/// The first readable images of the recipe, cropped at the centre.
fn first_images(recipe: &Recipe, count: usize) -> Result<Tensor> {
    let source = open_images(&recipe.data)?;
    let load = |i| source.load(i, recipe.data.background);
    let readable = (0..source.len()).filter_map(|i| load(i).ok());
    let crop = |im| center_crop(&im, recipe.data.height, recipe.data.width);
    let chosen = readable.take(count).map(crop).collect::<Result<Vec<_>>>()?;
    if chosen.len() < count || count == 0 {
        return Err(Error::usage(format!("{count} images are asked for, {} can be read", chosen.len()))
            .with_key("--images")
            .with_remedy("give at least 1, and no more than data.path has"));
    }
    to_tensor(&chosen)
}
