//! dtk inside a program that uses CUDA through cust: on the program's context, its stream and its memory, without a copy.
//! `run.sh` builds and runs it on the simulator; with a driver, `cargo run --release` in this folder does.

use cust::context::Context;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use cust::{CudaFlags, device::Device};
use dtk::base::DType;
use dtk::gpu::{Gpu, Options};
use dtk::prelude::{Distiller, Recipe, Student, Teacher, Tensor};
use dtk::train::{DirectDistiller, fill_backbone, fill_teacher};
use std::error::Error;

/// Pixels of an image's side.
const SIDE: usize = 32;
/// Images of a step.
const BATCH: usize = 4;
const STEPS: u64 = 4;

/// A small teacher and student.
fn recipe() -> dtk::Result<Recipe> {
    let overrides = [
        "data.height=32",
        "data.width=32",
        "train.batch=4",
        "student.regressor.channels=16",
        "student.backbone={ name = \"resnet_small\", channels = [8, 8, 16, 16], stem_width = 8, layers = [1, 1, 1, 1] }",
        "teacher.model={ model_channels = 32, learn_sigma = true, num_res_blocks = 1, channel_mult = [1.0, 1.0, 1.0, 1.0], \
         attention_ds = [8], num_head_channels = 32, use_scale_shift_norm = true, resblock_updown = true }",
    ];
    dtk::recipe::resolve("benchmark", &overrides.map(String::from))
}

fn distiller(recipe: &Recipe) -> dtk::Result<Distiller> {
    let seed = recipe.seed;
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |p| {
        fill_teacher(p, &recipe.teacher, seed).map(drop)
    })?;
    let student = Student::new(&recipe.student, teacher.taps(), [SIDE; 2], |p| {
        fill_backbone(p, &recipe.student, seed).map(drop)
    })?;
    Distiller::new(teacher, student, recipe.loss.clone(), seed)
}

fn main() -> Result<(), Box<dyn Error>> {
    // The program's own: context, stream, images that some kernel or copy of its own has put there.
    cust::init(CudaFlags::empty())?;
    let device = Device::get_device(0)?;
    println!("device: {}", device.name()?);
    let context = Context::new(device)?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let pixels: Vec<u8> = (0..BATCH * SIDE * SIDE * 3).map(|i| (i * i / 7 % 251) as u8).collect();
    let images = DeviceBuffer::from_slice(&pixels)?;

    // SAFETY: context and stream are dropped behind everything of dtk's.
    let gpu =
        unsafe { Gpu::from_raw(context.as_raw().cast(), stream.as_inner().cast(), Options::default()) }?;
    let recipe = recipe()?;
    let mut distiller =
        DirectDistiller::new((&recipe).into(), distiller(&recipe)?, &gpu, [BATCH, SIDE, SIDE])?;
    let address = images.as_device_ptr().as_raw();
    // SAFETY: so many bytes lie there, and they stay until the stream has done what follows.
    let there = unsafe { Tensor::from_cuda_ptr(&gpu, address, [BATCH, SIDE, SIDE, 3], DType::U8) }?;

    for map in distiller.teacher_features(&there, 0, 0)? {
        println!("teacher map {map:?} at {:#x}", map.cuda_ptr()?);
    }
    let mut losses = Vec::new();
    for step in 0..STEPS {
        distiller.step(&there, step, 0, 2e-3)?;
        let out = distiller.outcome()?;
        println!("step {}: loss {:.4}, gradient norm {:.3}", step + 1, out.loss, out.grad_norm);
        losses.push(out.loss);
    }
    drop((there, distiller, gpu));

    // The program goes on with what is its own.
    if images.as_host_vec()? != pixels {
        return Err("the program's images have changed".into());
    }
    stream.synchronize()?;
    match losses.as_slice() {
        [first, .., last] if last < first => {
            println!("OK");
            Ok(())
        }
        _ => Err(format!("the loss does not go down: {losses:?}").into()),
    }
}
