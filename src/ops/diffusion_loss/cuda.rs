//! The kernels of the diffusion loss: `kernels/diffusion_loss.cu`.

use super::DiffusionLoss;
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "diffusion_loss";
const SOURCE: &str = "diffusion_loss.cu";
/// `THREADS` of the kernel.
const THREADS: usize = 256;
/// Elements of a block.
const RUN: usize = 8 * THREADS;

/// `Params` of `kernels/diffusion_loss.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    prediction: u64,
    noise: u64,
    images: u64,
    steps: u64,
    tables: u64,
    gradient: u64,
    parts: u64,
    samples: u64,
    y: u64,
    gy: u64,
    count: i32,
    size: i32,
    channels: i32,
    run: i32,
    runs: i32,
    rows: i32,
    weight: f32,
    half_bin: f32,
}

fn call(entry: &'static str, dtype: DType, sigma: bool) -> Call {
    Call::new(SOURCE, entry).dtype(dtype).set("SIGMA", u8::from(sigma))
}

/// The last pass, which reads what the first one leaves.
fn total() -> Call {
    Call::new(SOURCE, "diffusion_loss_total")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut calls = vec![total()];
    for dtype in [DType::F32, DType::Bf16] {
        for sigma in [true, false] {
            calls.extend(["diffusion_loss_fwd", "diffusion_loss_bwd"].map(|entry| call(entry, dtype, sigma)));
        }
    }
    calls.iter().map(Call::variant::<Params>).collect()
}

/// Dtype of the prediction, and the parameters that both passes share.
fn params(op: &DiffusionLoss, inputs: &[&Tensor]) -> Result<(DType, Params)> {
    let dtype = operand_dtype(OP, &inputs[..1])?;
    let wanted = [DType::F32, DType::F32, DType::I64, DType::F32];
    if let Some((t, want)) = inputs[1..].iter().zip(wanted).find(|(t, want)| t.dtype() != *want) {
        return Err(Error::dtype(OP, format!("takes {want} beside the prediction on a device, not {t:?}")));
    }
    let (count, size) = (inputs[1].shape()[0], inputs[1].elems() / inputs[1].shape()[0]);
    let runs = size.div_ceil(RUN);
    // Elements are counted up to a block beyond the last, and those of the prediction are twice as many.
    int(OP, "elements of a sample", 2 * (size + RUN))?;
    int(OP, "blocks", count * runs)?;
    let pointer = |i: usize| inputs.get(i).map_or(Ok(0), |t| t.cuda_ptr());
    let p = Params {
        prediction: pointer(0)?,
        noise: pointer(1)?,
        images: pointer(2)?,
        steps: pointer(3)?,
        tables: pointer(4)?,
        count: int(OP, "samples", count)?,
        size: int(OP, "elements of a sample", size)?,
        channels: int(OP, "channels", inputs[1].shape().last())?,
        run: RUN as i32,
        runs: int(OP, "blocks of a sample", runs)?,
        rows: int(OP, "steps", inputs.get(4).map_or(0, |t| t.shape()[0]))?,
        weight: op.vlb_weight,
        half_bin: op.half_bin,
        ..Params::zeroed()
    };
    Ok((dtype, p))
}

fn grid(blocks: i32) -> Grid {
    Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 }
}

/// The loss, and the two parts of every sample.
pub(super) fn forward(op: &DiffusionLoss, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
    let (dtype, mut p) = params(op, inputs)?;
    let (count, runs) = (p.count as usize, p.runs as usize);
    let parts = Tensor::empty_gpu([count, runs, 2], DType::F64, gpu, "sums of runs")?;
    let samples = Tensor::empty_gpu([count, 2], DType::F32, gpu, "parts of the loss")?;
    let y = Tensor::empty_gpu(Shape::SCALAR, DType::F32, gpu, "loss")?;
    (p.parts, p.samples, p.y) = (parts.cuda_ptr()?, samples.cuda_ptr()?, y.cuda_ptr()?);
    call("diffusion_loss_fwd", dtype, inputs.len() > 2).launch(gpu, grid(p.count * p.runs), &p)?;
    total().launch(gpu, grid(1), &p)?;
    Ok(Forward { y, extra: Vec::new(), aux: vec![samples] })
}

/// The gradient of the prediction.
pub(super) fn backward(op: &DiffusionLoss, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Tensor> {
    let inputs: Vec<&Tensor> = ctx.saved.iter().collect();
    let (dtype, mut p) = params(op, &inputs)?;
    if ctx.gy.dtype() != DType::F32 {
        return Err(Error::dtype(OP, format!("the gradient of a loss is f32, not {:?}", ctx.gy)));
    }
    let g = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient")?;
    (p.gy, p.gradient) = (ctx.gy.cuda_ptr()?, g.cuda_ptr()?);
    call("diffusion_loss_bwd", dtype, inputs.len() > 2).launch(gpu, grid(p.count * p.runs), &p)?;
    Ok(g)
}
