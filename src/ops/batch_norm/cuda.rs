//! Batch normalisation on a CUDA device: `kernels/batch_norm.cu`.

use super::{BatchNorm, BatchNormMode};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::norm::{Cover, Work, address, floats, floats_at, is_wide, line, pass};
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "batch_norm";
const SOURCE: &str = "batch_norm.cu";
/// Threads of a block that only sees statistics, and its channels where they are merged.
const THREADS: usize = 256;
const LANES: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Stats {
    cover: Cover,
    x: u64,
    out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Moments {
    stats: u64,
    w: u64,
    b: u64,
    affine: u64,
    moments: u64,
    mean: u64,
    variance: u64,
    rows: i64,
    channels: i32,
    parts: i32,
    rows_of_part: i32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Frozen {
    mean: u64,
    variance: u64,
    w: u64,
    b: u64,
    affine: u64,
    moments: u64,
    channels: i32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ForwardParams {
    cover: Cover,
    x: u64,
    residual: u64,
    affine: u64,
    y: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sums {
    cover: Cover,
    x: u64,
    gy: u64,
    y: u64,
    affine: u64,
    gz: u64,
    out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardMoments {
    sums: u64,
    w: u64,
    moments: u64,
    tangent: u64,
    gw: u64,
    gb: u64,
    rows: i64,
    channels: i32,
    parts: i32,
    frozen: i32,
    pad: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Map {
    cover: Cover,
    x: u64,
    gy: u64,
    affine: u64,
    tangent: u64,
    gx: u64,
}

/// What follows the affine map: the define `FOLLOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    Nothing = 0,
    Relu = 1,
    /// A ReLU whose mask is read from its result.
    ReluOfY = 3,
}

fn stats_call(dtype: DType, wide: bool) -> Call {
    pass(SOURCE, "batch_norm_stats", "PASS_STATS", dtype, wide)
}

/// `own`: the statistics are those of the stats pass, not those that a convolution leaves.
fn moments_call(own: bool) -> Call {
    Call::new(SOURCE, "batch_norm_moments").set("PASS_MOMENTS", 1).set("QUADS", u8::from(own))
}

fn frozen_call() -> Call {
    Call::new(SOURCE, "batch_norm_frozen").set("PASS_FROZEN", 1)
}

fn forward_call(dtype: DType, wide: bool, relu: bool, residual: bool) -> Call {
    let follow = if relu { Follow::Relu } else { Follow::Nothing };
    let call = pass(SOURCE, "batch_norm_fwd", "PASS_FWD", dtype, wide);
    call.set("FOLLOW", follow as u8).set("RESIDUAL", u8::from(residual))
}

fn sums_call(dtype: DType, wide: bool, follow: Follow) -> Call {
    pass(SOURCE, "batch_norm_bwd_sums", "PASS_BWD_SUMS", dtype, wide).set("FOLLOW", follow as u8)
}

fn backward_moments_call() -> Call {
    Call::new(SOURCE, "batch_norm_bwd_moments").set("PASS_BWD_MOMENTS", 1)
}

fn map_call(dtype: DType, wide: bool, follow: Follow) -> Call {
    pass(SOURCE, "batch_norm_bwd_apply", "PASS_BWD_APPLY", dtype, wide).set("FOLLOW", follow as u8)
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut all = vec![
        moments_call(false).variant::<Moments>(),
        moments_call(true).variant::<Moments>(),
        frozen_call().variant::<Frozen>(),
        backward_moments_call().variant::<BackwardMoments>(),
    ];
    for (dtype, wide) in [DType::F32, DType::Bf16].into_iter().flat_map(|d| [(d, true), (d, false)]) {
        all.push(stats_call(dtype, wide).variant::<Stats>());
        for relu in [false, true] {
            let forward = |residual| forward_call(dtype, wide, relu, residual).variant::<ForwardParams>();
            all.extend([false, true].map(forward));
        }
        let follows = [Follow::Nothing, Follow::Relu, Follow::ReluOfY];
        all.extend(follows.map(|follow| sums_call(dtype, wide, follow).variant::<Sums>()));
        all.extend(follows[..2].iter().map(|&follow| map_call(dtype, wide, follow).variant::<Map>()));
    }
    all
}

/// What a pass over x needs to know.
#[derive(Clone, Copy)]
struct Sizes {
    dtype: DType,
    wide: bool,
    rows: usize,
    channels: usize,
}

impl Sizes {
    fn of(x: &Tensor, others: &[&Tensor]) -> Result<Sizes> {
        let mut all = vec![x];
        all.extend(others);
        let dtype = operand_dtype(OP, &all)?;
        let channels = x.shape().last();
        Ok(Sizes { dtype, wide: is_wide(dtype, &[channels]), rows: x.shape().rows(), channels })
    }

    fn cover(&self, work: Work) -> Result<Cover> {
        Cover::new(OP, self.dtype, self.wide, [1, self.rows, self.channels], work)
    }
}

impl BatchNorm {
    /// Forward pass. Keeps the moments `[c, 4]` and the coefficients `[3, c]`.
    pub(super) fn forward_cuda(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let (x, w, b) = (inputs[0], inputs[1], inputs[2]);
        let residual = self.residual_of(inputs);
        let sizes = Sizes::of(x, residual.as_slice())?;
        let c = sizes.channels;
        let y = Tensor::empty_gpu(x.shape(), sizes.dtype, gpu, "batch norm")?;
        let affine = floats(gpu, &[3, c], "norm coefficients")?;
        let moments = floats(gpu, &[c, 4], "norm moments")?;
        let aux = match self.mode {
            BatchNormMode::Train => self.batch_moments_cuda(gpu, sizes, [x, w, b, &affine, &moments])?,
            BatchNormMode::Eval => {
                let p = Frozen {
                    mean: floats_at(OP, "running_mean", inputs[3], &[c])?,
                    variance: floats_at(OP, "running_var", inputs[4], &[c])?,
                    w: floats_at(OP, "w", w, &[c])?,
                    b: floats_at(OP, "b", b, &[c])?,
                    affine: affine.cuda_ptr()?,
                    moments: moments.cuda_ptr()?,
                    channels: int(OP, "channels", c)?,
                    eps: self.eps,
                };
                frozen_call().launch(gpu, line(OP, c.div_ceil(THREADS), THREADS)?, &p)?;
                Vec::new()
            }
        };
        if sizes.rows > 0 {
            let cover = sizes.cover(Work::Map)?;
            let p = ForwardParams {
                cover,
                x: x.cuda_ptr()?,
                residual: address(residual)?,
                affine: affine.cuda_ptr()?,
                y: y.cuda_ptr()?,
            };
            let call = forward_call(sizes.dtype, sizes.wide, self.relu, self.residual);
            call.launch(gpu, cover.grid(OP, 1)?, &p)?;
        }
        Ok(Forward { y, extra: vec![moments, affine], aux })
    }

    /// Moments of the batch and coefficients from them; gives the batch mean and the unbiased batch variance. `x` is read only
    /// if nobody has left its statistics.
    fn batch_moments_cuda(
        &self,
        gpu: &Gpu,
        sizes: Sizes,
        [x, w, b, affine, moments]: [&Tensor; 5],
    ) -> Result<Vec<Tensor>> {
        let c = sizes.channels;
        // Those of another device serve nobody here: a pass that is offloaded copies its inputs, not its options.
        let given = self.stats.as_ref().filter(|s| s.gpu().is_some());
        let (stats, parts, rows_of_part) = match given {
            Some(stats) => {
                let n = x.shape()[0];
                floats_at(OP, "the statistics of x", stats, &[n, c, 2])?;
                (stats.clone(), int(OP, "images", n)?, int(OP, "pixels", sizes.rows / n)?)
            }
            None => {
                let cover = sizes.cover(Work::sum(gpu))?;
                let stats = floats(gpu, &[cover.parts(), c, 4], "norm statistics")?;
                let p = Stats { cover, x: x.cuda_ptr()?, out: stats.cuda_ptr()? };
                stats_call(sizes.dtype, sizes.wide).launch(gpu, cover.grid(OP, 1)?, &p)?;
                (stats, cover.parts, cover.rows_of_part)
            }
        };
        let (mean, variance) = (floats(gpu, &[c], "batch mean")?, floats(gpu, &[c], "batch variance")?);
        let p = Moments {
            stats: stats.cuda_ptr()?,
            w: floats_at(OP, "w", w, &[c])?,
            b: floats_at(OP, "b", b, &[c])?,
            affine: affine.cuda_ptr()?,
            moments: moments.cuda_ptr()?,
            mean: mean.cuda_ptr()?,
            variance: variance.cuda_ptr()?,
            rows: sizes.rows as i64,
            channels: int(OP, "channels", c)?,
            parts,
            rows_of_part,
            eps: self.eps,
        };
        moments_call(given.is_none()).launch(gpu, line(OP, c.div_ceil(LANES), THREADS)?, &p)?;
        Ok(vec![mean, variance])
    }

    /// Backward pass: sums, then the gradient of x. The first pass writes the gradient of a residual behind a ReLU, from
    /// which the second goes on; without a ReLU it is the upstream gradient itself.
    pub(super) fn backward_cuda(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (x, w) = (&ctx.saved[0], &ctx.saved[1]);
        let y = self.keeps_y().then(|| &ctx.saved[3]);
        let [.., moments, affine] = ctx.saved else {
            return Err(Error::shape(OP, "the backward pass needs what the forward pass kept"));
        };
        let sizes = Sizes::of(x, &[ctx.gy])?;
        let (c, frozen) = (sizes.channels, self.mode == BatchNormMode::Eval);
        let masked = y.map(|_| Tensor::empty_gpu(ctx.inputs[0], sizes.dtype, gpu, "gradient")).transpose()?;
        let follow = match (self.relu, y) {
            (false, _) => Follow::Nothing,
            (true, None) => Follow::Relu,
            (true, Some(_)) => Follow::ReluOfY,
        };
        // With given moments the gradient of x needs no sums.
        let summed = !frozen || ctx.needs[1] || ctx.needs[2] || masked.is_some();
        let cover = sizes.cover(Work::sum(gpu))?;
        let sums = floats(gpu, &[cover.parts().max(1), c, 2], "norm gradient sums")?;
        if summed && sizes.rows > 0 {
            let p = Sums {
                cover,
                x: x.cuda_ptr()?,
                gy: ctx.gy.cuda_ptr()?,
                y: address(y)?,
                affine: affine.cuda_ptr()?,
                gz: address(masked.as_ref())?,
                out: sums.cuda_ptr()?,
            };
            sums_call(sizes.dtype, sizes.wide, follow).launch(gpu, cover.grid(OP, 1)?, &p)?;
        }
        let (gw, gb) = (floats(gpu, &[c], "gradient")?, floats(gpu, &[c], "gradient")?);
        let tangent = floats(gpu, &[3, c], "norm coefficients")?;
        let p = BackwardMoments {
            sums: sums.cuda_ptr()?,
            w: w.cuda_ptr()?,
            moments: moments.cuda_ptr()?,
            tangent: tangent.cuda_ptr()?,
            gw: gw.cuda_ptr()?,
            gb: gb.cuda_ptr()?,
            rows: sizes.rows as i64,
            channels: int(OP, "channels", c)?,
            parts: if summed { cover.parts } else { 0 },
            frozen: i32::from(frozen),
            pad: 0,
        };
        backward_moments_call().launch(gpu, line(OP, c.div_ceil(LANES), THREADS)?, &p)?;

        let mut gx = None;
        if ctx.needs[0] {
            let to = Tensor::empty_gpu(ctx.inputs[0], sizes.dtype, gpu, "gradient")?;
            if sizes.rows > 0 {
                let cover = sizes.cover(Work::Map)?;
                let p = Map {
                    cover,
                    x: x.cuda_ptr()?,
                    gy: masked.as_ref().unwrap_or(ctx.gy).cuda_ptr()?,
                    affine: affine.cuda_ptr()?,
                    tangent: tangent.cuda_ptr()?,
                    gx: to.cuda_ptr()?,
                };
                let follow = if masked.is_some() { Follow::Nothing } else { follow };
                map_call(sizes.dtype, sizes.wide, follow).launch(gpu, cover.grid(OP, 1)?, &p)?;
            }
            gx = Some(to);
        }
        let mut grads = vec![gx, ctx.needs[1].then_some(gw), ctx.needs[2].then_some(gb)];
        grads.resize(ctx.inputs.len(), None);
        if let Some(g) = grads.last_mut().filter(|_| self.residual && ctx.needs[ctx.inputs.len() - 1]) {
            *g = Some(masked.unwrap_or_else(|| ctx.gy.clone()));
        }
        Ok(grads)
    }
}
