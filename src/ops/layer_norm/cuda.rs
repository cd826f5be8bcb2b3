//! Layer normalisation on a CUDA device: `kernels/layer_norm.cu`.

use super::LayerNorm;
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::norm::{address, floats, floats_at, is_wide, line};
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "layer_norm";
const SOURCE: &str = "layer_norm.cu";
const THREADS: usize = 256;
/// Channels of a block that sums over the blocks before.
const LANES: usize = 16;
/// Chunks of 16 bytes of a thread, and of a row.
const MOST_CHUNKS: usize = 3;
const MOST_CHUNKS_OF_ROW: usize = 512;
/// Rows of a block: at least so many, for what a block reads and leaves beside them.
const LEAST_ROWS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ForwardParams {
    x: u64,
    w: u64,
    b: u64,
    y: u64,
    moments: u64,
    rows: i64,
    channels: i32,
    lanes: i32,
    rows_of_block: i32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardParams {
    x: u64,
    gy: u64,
    w: u64,
    moments: u64,
    gx: u64,
    sums: u64,
    rows: i64,
    channels: i32,
    lanes: i32,
    rows_of_block: i32,
    pad: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Affine {
    sums: u64,
    gw: u64,
    gb: u64,
    parts: i32,
    channels: i32,
}

fn call(entry: &'static str, define: &str, dtype: DType, chunks: usize) -> Call {
    Call::new(SOURCE, entry).set(define, 1).dtype(dtype).set("CHUNKS", chunks)
}

fn forward_call(dtype: DType, chunks: usize) -> Call {
    call("layer_norm_fwd", "PASS_FWD", dtype, chunks)
}

fn backward_call(dtype: DType, chunks: usize) -> Call {
    call("layer_norm_bwd", "PASS_BWD", dtype, chunks)
}

fn sums_call(dtype: DType) -> Call {
    call("layer_norm_bwd_sums", "PASS_BWD_SUMS", dtype, 0)
}

fn affine_call() -> Call {
    Call::new(SOURCE, "layer_norm_bwd_affine").set("PASS_BWD_AFFINE", 1)
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut all = vec![affine_call().variant::<Affine>()];
    for dtype in [DType::F32, DType::Bf16] {
        all.push(sums_call(dtype).variant::<BackwardParams>());
        for chunks in 0..=MOST_CHUNKS {
            all.push(forward_call(dtype, chunks).variant::<ForwardParams>());
            all.push(backward_call(dtype, chunks).variant::<BackwardParams>());
        }
    }
    all
}

/// How blocks cover the rows. A function of the sizes, the type and the number of multiprocessors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Chunks of a thread; 0 where a warp takes a row channel by channel.
    chunks: usize,
    /// Threads of a row.
    lanes: usize,
    rows_of_block: usize,
    blocks: usize,
}

impl Plan {
    fn new(dtype: DType, rows: usize, channels: usize, multiprocessors: usize) -> Plan {
        let row = channels / (16 / dtype.size());
        let fits = is_wide(dtype, &[channels]) && row <= MOST_CHUNKS_OF_ROW;
        let lanes = if fits { row.div_ceil(MOST_CHUNKS).next_power_of_two().max(4) } else { 32 };
        let chunks = if fits { row.div_ceil(lanes) } else { 0 };
        let slots = THREADS / lanes;
        let even = rows.div_ceil(4 * multiprocessors).max(LEAST_ROWS);
        let rows_of_block = even.next_multiple_of(slots);
        Plan { chunks, lanes, rows_of_block, blocks: rows.div_ceil(rows_of_block) }
    }
}

fn plan(gpu: &Gpu, dtype: DType, x: &Tensor) -> Plan {
    Plan::new(dtype, x.shape().rows(), x.shape().last(), gpu.info().multiprocessors as usize)
}

impl LayerNorm {
    /// Forward pass. Keeps the moments of the rows, `[rows, 4]`.
    pub(super) fn forward_cuda(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let [x, w, b] = inputs else { return Err(Error::shape(OP, "takes x, w and b")) };
        let dtype = operand_dtype(OP, &[x])?;
        let (rows, c) = (x.shape().rows(), x.shape().last());
        let y = Tensor::empty_gpu(x.shape(), dtype, gpu, "layer norm")?;
        let moments = floats(gpu, &[rows, 4], "norm moments")?;
        let plan = plan(gpu, dtype, x);
        if rows > 0 {
            let p = ForwardParams {
                x: x.cuda_ptr()?,
                w: floats_at(OP, "w", w, &[c])?,
                b: floats_at(OP, "b", b, &[c])?,
                y: y.cuda_ptr()?,
                moments: moments.cuda_ptr()?,
                rows: rows as i64,
                channels: int(OP, "channels", c)?,
                lanes: plan.lanes as i32,
                rows_of_block: int(OP, "rows of a block", plan.rows_of_block)?,
                eps: self.eps,
            };
            forward_call(dtype, plan.chunks).launch(gpu, line(OP, plan.blocks, THREADS)?, &p)?;
        }
        Ok(Forward { y, extra: vec![moments], aux: Vec::new() })
    }

    /// Backward pass: the gradient of x and sums of the blocks' rows in one pass, then the sums of those.
    pub(super) fn backward_cuda(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let [x, w, moments] = ctx.saved else {
            return Err(Error::shape(OP, "the backward pass needs x, w and the moments"));
        };
        let dtype = operand_dtype(OP, &[x, ctx.gy])?;
        let (rows, c) = (x.shape().rows(), x.shape().last());
        let plan = plan(gpu, dtype, x);
        let wants_sums = ctx.needs[1] || ctx.needs[2];
        let gx = ctx.needs[0].then(|| Tensor::empty_gpu(x.shape(), dtype, gpu, "gradient")).transpose()?;
        let sums = floats(gpu, &[plan.blocks.max(1), 2, c], "norm gradient sums")?;
        let p = BackwardParams {
            x: x.cuda_ptr()?,
            gy: ctx.gy.cuda_ptr()?,
            w: floats_at(OP, "w", w, &[c])?,
            moments: moments.cuda_ptr()?,
            gx: address(gx.as_ref())?,
            sums: if wants_sums { sums.cuda_ptr()? } else { 0 },
            rows: rows as i64,
            channels: int(OP, "channels", c)?,
            lanes: plan.lanes as i32,
            rows_of_block: int(OP, "rows of a block", plan.rows_of_block)?,
            pad: 0,
        };
        if rows > 0 && (plan.chunks > 0 || gx.is_some()) {
            backward_call(dtype, plan.chunks).launch(gpu, line(OP, plan.blocks, THREADS)?, &p)?;
        }
        if rows > 0 && plan.chunks == 0 && wants_sums {
            let blocks = plan.blocks * c.div_ceil(THREADS);
            sums_call(dtype).launch(gpu, line(OP, blocks, THREADS)?, &p)?;
        }
        let (mut gw, mut gb) = (None, None);
        if wants_sums {
            let both = [floats(gpu, &[c], "gradient")?, floats(gpu, &[c], "gradient")?];
            let p = Affine {
                sums: sums.cuda_ptr()?,
                gw: both[0].cuda_ptr()?,
                gb: both[1].cuda_ptr()?,
                parts: int(OP, "blocks", plan.blocks)?,
                channels: p.channels,
            };
            affine_call().launch(gpu, line(OP, c.div_ceil(LANES), THREADS)?, &p)?;
            let [w, b] = both;
            (gw, gb) = (ctx.needs[1].then_some(w), ctx.needs[2].then_some(b));
        }
        Ok(vec![gx, gw, gb])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_their_lanes() {
        let of = |dtype, channels| {
            let p = Plan::new(dtype, 64 * 56 * 56, channels, 132);
            (p.lanes, p.chunks)
        };
        assert_eq!(of(DType::Bf16, 96), (4, 3));
        assert_eq!(of(DType::Bf16, 768), (32, 3));
        assert_eq!(of(DType::Bf16, 2048), (128, 2));
        assert_eq!(of(DType::F32, 768), (64, 3));
        assert_eq!(of(DType::F32, 2048), (256, 2));
        assert_eq!(of(DType::Bf16, 8), (4, 1));
        assert_eq!(of(DType::Bf16, 97), (32, 0));
        assert_eq!(of(DType::F32, 4096), (32, 0));
    }

    #[test]
    fn blocks_fill_the_device_where_there_are_rows() {
        let p = Plan::new(DType::Bf16, 64 * 56 * 56, 96, 132);
        assert_eq!((p.rows_of_block, p.blocks), (384, 523));
        assert_eq!(Plan::new(DType::F32, 3, 96, 132).blocks, 1);
    }
}
