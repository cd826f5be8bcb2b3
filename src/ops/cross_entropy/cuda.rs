//! The kernels of the cross-entropy: `kernels/cross_entropy.cu`.

use super::{CrossEntropy, Target};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const SOURCE: &str = "cross_entropy.cu";
/// `THREADS` of the kernel.
const THREADS: usize = 256;
/// Bytes of logits that a block reads.
const BYTES_OF_RUN: usize = 64 * 1024;
/// Classes of a lane that reads them one by one, unless there are more than a warp has lanes for.
const CLASSES_OF_LANE: usize = 4;
/// How far beyond the last class the kernel counts.
const MOST_CLASSES_AHEAD: usize = 512;

/// `Params` of `kernels/cross_entropy.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    z: u64,
    t: u64,
    labels: u64,
    gz: u64,
    stats: u64,
    parts: u64,
    y: u64,
    scale: u64,
    gy: u64,
    rows: i64,
    ignore: i64,
    classes: i32,
    lanes: i32,
    run: i32,
    blocks: i32,
    has_ignore: i32,
    inverse_tau: f32,
    factor: f32,
    grad_factor: f32,
    smoothing: f32,
    pad: i32,
}

/// A pass over the logits.
fn pass(entry: &'static str, dtype: DType, wide: bool, soft: bool) -> Call {
    Call::new(SOURCE, entry).dtype(dtype).set("SOFT", u8::from(soft)).set("VEC", u8::from(wide))
}

fn total() -> Call {
    Call::new(SOURCE, "cross_entropy_total")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut calls = vec![total()];
    for dtype in [DType::F32, DType::Bf16] {
        for wide in [true, false] {
            for soft in [false, true] {
                calls.push(pass("cross_entropy_fwd", dtype, wide, soft));
                calls.push(pass("cross_entropy_bwd", dtype, wide, soft));
            }
        }
    }
    calls.iter().map(Call::variant::<Params>).collect()
}

/// How rows are spread over blocks and lanes: a function of shape and element type alone.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    wide: bool,
    rows: usize,
    classes: usize,
    lanes: usize,
    run: usize,
    blocks: usize,
}

impl Layout {
    fn new(shape: Shape, dtype: DType) -> Layout {
        let (classes, chunk) = (shape.last(), 16 / dtype.size());
        let wide = classes.is_multiple_of(chunk);
        let pieces = classes.div_ceil(if wide { chunk } else { CLASSES_OF_LANE });
        let lanes = pieces.next_power_of_two().min(32);
        let (rows, at_once) = (shape.elems() / classes, THREADS / lanes);
        let run = (BYTES_OF_RUN / (classes * dtype.size())).max(at_once) / at_once * at_once;
        Layout { wide, rows, classes, lanes, run, blocks: rows.div_ceil(run) }
    }

    fn grid(&self) -> Grid {
        Grid { grid: [self.blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 }
    }

    fn params(&self, op: &CrossEntropy) -> Result<Params> {
        let name = "cross_entropy";
        let (inverse_tau, factor, grad_factor) = match op.target {
            Target::Hard => (1.0, 1.0, 1.0),
            Target::Soft { tau, tau_squared: false } => (1.0 / tau, 1.0, 1.0 / tau),
            Target::Soft { tau, tau_squared: true } => (1.0 / tau, tau * tau, tau),
        };
        Ok(Params {
            rows: self.rows as i64,
            ignore: op.ignore_index.unwrap_or(0),
            classes: int(name, "classes", self.classes + MOST_CLASSES_AHEAD)? - MOST_CLASSES_AHEAD as i32,
            lanes: self.lanes as i32,
            run: int(name, "rows of a block", self.run)?,
            blocks: int(name, "blocks", self.blocks)?,
            has_ignore: i32::from(op.ignore_index.is_some()),
            inverse_tau,
            factor,
            grad_factor,
            smoothing: op.label_smoothing,
            ..Params::zeroed()
        })
    }
}

/// The dtype of the logits, where the second input fits them.
fn check(op: &CrossEntropy, z: &Tensor, second: &Tensor) -> Result<DType> {
    if op.target != Target::Hard {
        return operand_dtype("cross_entropy", &[z, second]);
    }
    if second.dtype() != DType::I64 {
        return Err(Error::dtype("cross_entropy", format!("labels are i64, not {second:?}")));
    }
    operand_dtype("cross_entropy", &[z])
}

/// Sets the addresses of logits and second input.
fn inputs(p: &mut Params, op: &CrossEntropy, z: &Tensor, second: &Tensor) -> Result<()> {
    p.z = z.cuda_ptr()?;
    let to = if op.target == Target::Hard { &mut p.labels } else { &mut p.t };
    *to = second.cuda_ptr()?;
    Ok(())
}

/// The loss. What the backward pass needs beside the inputs: of every row (soft: student and teacher in turn) the largest logit
/// and the inverse of the sum of exponentials, f32 `[rows or 2 rows, 2]`; and the factor of the gradient, f32.
pub(super) fn forward(op: &CrossEntropy, gpu: &Gpu, z: &Tensor, second: &Tensor) -> Result<Forward> {
    let dtype = check(op, z, second)?;
    let (layout, soft) = (Layout::new(z.shape(), dtype), op.target != Target::Hard);
    let empty = |shape: Shape, tag| Tensor::empty_gpu(shape, DType::F32, gpu, tag);
    let stats = empty([layout.rows * if soft { 2 } else { 1 }, 2].into(), "softmax of rows")?;
    let parts = empty([layout.blocks, 2].into(), "losses of blocks")?;
    let (y, scale) = (empty(Shape::SCALAR, "loss")?, empty(Shape::SCALAR, "scale of the gradient")?);
    let mut p = layout.params(op)?;
    inputs(&mut p, op, z, second)?;
    (p.stats, p.parts) = (stats.cuda_ptr()?, parts.cuda_ptr()?);
    (p.y, p.scale) = (y.cuda_ptr()?, scale.cuda_ptr()?);
    pass("cross_entropy_fwd", dtype, layout.wide, soft).launch(gpu, layout.grid(), &p)?;
    total().launch(gpu, Grid { grid: [1; 3], ..layout.grid() }, &p)?;
    Ok(Forward { y, extra: vec![stats, scale], aux: Vec::new() })
}

/// The gradient of the logits.
pub(super) fn backward(op: &CrossEntropy, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Tensor> {
    let [z, second, stats, scale] = ctx.saved else {
        return Err(Error::shape("cross_entropy", "the backward pass lacks what the forward pass kept"));
    };
    let dtype = check(op, z, second)?;
    if ctx.gy.dtype() != DType::F32 {
        let text = format!("the gradient of a loss is f32, not {:?}", ctx.gy);
        return Err(Error::dtype("cross_entropy", text));
    }
    let (layout, soft) = (Layout::new(z.shape(), dtype), op.target != Target::Hard);
    let gz = Tensor::empty_gpu(z.shape(), dtype, gpu, "gradient")?;
    let mut p = layout.params(op)?;
    inputs(&mut p, op, z, second)?;
    (p.stats, p.scale) = (stats.cuda_ptr()?, scale.cuda_ptr()?);
    (p.gy, p.gz) = (ctx.gy.cuda_ptr()?, gz.cuda_ptr()?);
    pass("cross_entropy_bwd", dtype, layout.wide, soft).launch(gpu, layout.grid(), &p)?;
    Ok(gz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_blocks_and_lanes() {
        let of = |shape: &[usize], dtype| {
            let l = Layout::new(Shape::from_slice(shape).unwrap(), dtype);
            (l.wide, l.lanes, l.run, l.blocks)
        };
        assert_eq!(of(&[64, 128, 128, 19], DType::F32), (false, 8, 832, 1261));
        assert_eq!(of(&[64, 128, 128, 152], DType::Bf16), (true, 32, 208, 5042));
        assert_eq!(of(&[7, 2], DType::F32), (false, 1, 8192, 1));
        assert_eq!(of(&[2, 17_000], DType::F32), (true, 32, 8, 1));
    }
}
