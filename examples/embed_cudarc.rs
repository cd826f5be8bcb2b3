//! dtk inside a program that uses CUDA through cudarc: on the program's context, its stream and its memory, without a copy.
//!
//! ```text
//! cargo run --release --example embed_cudarc
//! ```
//!
//! Without a card: `docs/gpu.md` says how to put the simulator in the driver's place; for cudarc it has to be found as
//! `libcuda.so`.

use cudarc::driver::{CudaContext, DevicePtr, result};
use dtk::base::{DType, Philox};
use dtk::gpu::{Gpu, Options};
use dtk::prelude::*;
use dtk::train::{DirectDistiller, fill_backbone, fill_teacher};

/// Pixels of an image's side.
pub const SIDE: usize = 32;
/// Images of a step.
pub const BATCH: usize = 4;
/// Learning rate.
pub const LR: f64 = 1e-3;
const STEPS: u64 = 3;

/// What was computed on the device.
pub struct Seen {
    /// Every value of every map of the teacher, as the program has copied them.
    pub maps: Vec<Vec<f32>>,
    /// The losses.
    pub losses: Vec<f32>,
}

/// A small teacher and student.
pub fn recipe() -> Result<Recipe> {
    let overrides = [
        "data.height=32",
        "data.width=32",
        "train.batch=4",
        "train.precision=f32",
        "student.regressor.channels=16",
        "student.backbone={ name = \"resnet_small\", channels = [8, 8, 16, 16], stem_width = 8, layers = [1, 1, 1, 1] }",
        "teacher.model={ model_channels = 32, learn_sigma = true, num_res_blocks = 1, channel_mult = [1.0, 1.0, 1.0, 1.0], \
         attention_ds = [8], num_head_channels = 32, use_scale_shift_norm = true, resblock_updown = true }",
    ];
    dtk::recipe::resolve("benchmark", &overrides.map(String::from))
}

/// Teacher, student and loss, with random weights.
pub fn distiller(recipe: &Recipe) -> Result<Distiller> {
    let seed = recipe.seed;
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |p| {
        fill_teacher(p, &recipe.teacher, seed).map(drop)
    })?;
    let student = Student::new(&recipe.student, teacher.taps(), [SIDE; 2], |p| {
        fill_backbone(p, &recipe.student, seed).map(drop)
    })?;
    Distiller::new(teacher, student, recipe.loss.clone(), seed)
}

/// The program's images: u8 `[BATCH, SIDE, SIDE, 3]`.
pub fn pixels() -> Vec<u8> {
    let mut values = vec![0.0; BATCH * SIDE * SIDE * 3];
    Philox::new(7).fill_uniform(&mut values);
    values.iter().map(|v| (v * 255.0) as u8).collect()
}

/// The whole program.
pub fn run(options: Options) -> Result<Seen, Box<dyn std::error::Error>> {
    // The program's own: context, stream, images that some kernel or copy of its own has put there.
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let images = stream.clone_htod(&pixels())?;

    // SAFETY: context and stream are dropped behind everything of dtk's.
    let gpu = unsafe { Gpu::from_raw(context.cu_ctx().cast(), stream.cu_stream().cast(), options) }?;
    let recipe = recipe()?;
    let mut distiller =
        DirectDistiller::new((&recipe).into(), distiller(&recipe)?, &gpu, [BATCH, SIDE, SIDE])?;

    // cudarc orders other streams with this one for as long as `_reading` lives.
    let (address, _reading) = images.device_ptr(&stream);
    // SAFETY: so many bytes lie there, and they stay until the stream has done what follows.
    let images = unsafe { Tensor::from_cuda_ptr(&gpu, address, [BATCH, SIDE, SIDE, 3], DType::U8) }?;

    let mut seen = Seen { maps: Vec::new(), losses: Vec::new() };
    for map in distiller.teacher_features(&images, 0, 0)? {
        // Here the program would launch its own kernel on the same stream, with this address. It copies instead.
        let mut values = vec![0.0f32; map.elems()];
        // SAFETY: the map has as many values, and the copy is waited for.
        unsafe { result::memcpy_dtoh_async(&mut values, map.cuda_ptr()?, stream.cu_stream()) }?;
        stream.synchronize()?;
        println!("teacher map {map:?} at {:#x}", map.cuda_ptr()?);
        seen.maps.push(values);
    }
    for step in 0..STEPS {
        distiller.step(&images, step, 0, LR)?;
        let out = distiller.outcome()?;
        println!("step {}: loss {:.4}, gradient norm {:.3}", step + 1, out.loss, out.grad_norm);
        seen.losses.push(out.loss);
    }
    // For an evaluation or a checkpoint on the host.
    distiller.download()?;
    Ok(seen)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(Options::default()).map(drop)
}
