//! Group normalisation on a CUDA device: the kernels of `kernels/group_norm.cu`, one by one, and what the op makes of them.

use super::{GroupNorm, size};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{self, Gpu};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::norm::{Cover, Work, address, floats, floats_at, is_wide, line, pass};
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward, cast};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "group_norm";
const SOURCE: &str = "group_norm.cu";
const THREADS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Stats {
    cover: Cover,
    x: u64,
    out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Merge {
    parts: u64,
    out: u64,
    channels: i32,
    count: i32,
    rows: i32,
    rows_of_part: i32,
    all: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Source {
    stats: u64,
    channels: i32,
    parts: i32,
    rows: i32,
    rows_of_part: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Coefficients {
    source: [Source; 2],
    w: u64,
    b: u64,
    scale_shift: u64,
    affine: u64,
    moments: u64,
    channels: i32,
    groups: i32,
    eps: f32,
    pad: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Apply {
    cover: Cover,
    x: [u64; 2],
    affine: u64,
    y: u64,
    split: i32,
    width: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sums {
    cover: Cover,
    x: u64,
    gy: u64,
    affine: u64,
    out: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardCoefficients {
    sums: u64,
    w: u64,
    b: u64,
    scale_shift: u64,
    moments: u64,
    tangent: u64,
    totals: u64,
    scale_shift_gradient: u64,
    channels: i32,
    groups: i32,
    parts: i32,
    rows: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Affine {
    totals: u64,
    scale_shift: u64,
    gw: u64,
    gb: u64,
    samples: i32,
    channels: i32,
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

fn stats_call(dtype: DType, wide: bool) -> Call {
    pass(SOURCE, "group_norm_stats", "PASS_STATS", dtype, wide)
}

/// Passes over statistics know no elements.
fn plain(entry: &'static str, define: &str) -> Call {
    Call::new(SOURCE, entry).set(define, 1)
}

fn merge_call() -> Call {
    plain("group_norm_merge", "PASS_MERGE")
}

/// `own`: the statistics are those of [`part_stats`], not those that convolutions leave.
fn coefficients_call(own: bool) -> Call {
    plain("group_norm_coefficients", "PASS_COEFFICIENTS").set("QUADS", u8::from(own))
}

/// The define of what follows the affine map.
fn follow(silu: bool) -> u8 {
    if silu { 2 } else { 0 }
}

fn apply_call(dtype: DType, wide: bool, silu: bool, pool: bool) -> Call {
    let call = pass(SOURCE, "group_norm_apply", "PASS_APPLY", dtype, wide);
    call.set("FOLLOW", follow(silu)).set("POOL", u8::from(pool))
}

fn sums_call(dtype: DType, wide: bool, silu: bool) -> Call {
    pass(SOURCE, "group_norm_bwd_sums", "PASS_BWD_SUMS", dtype, wide).set("FOLLOW", follow(silu))
}

fn backward_coefficients_call() -> Call {
    plain("group_norm_bwd_coefficients", "PASS_BWD_COEFFICIENTS")
}

fn affine_call() -> Call {
    plain("group_norm_bwd_affine", "PASS_BWD_AFFINE")
}

fn map_call(dtype: DType, wide: bool, silu: bool) -> Call {
    pass(SOURCE, "group_norm_bwd_apply", "PASS_BWD_APPLY", dtype, wide).set("FOLLOW", follow(silu))
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut all = vec![
        merge_call().variant::<Merge>(),
        coefficients_call(false).variant::<Coefficients>(),
        coefficients_call(true).variant::<Coefficients>(),
        backward_coefficients_call().variant::<BackwardCoefficients>(),
        affine_call().variant::<Affine>(),
    ];
    for (dtype, wide) in [DType::F32, DType::Bf16].into_iter().flat_map(|d| [(d, true), (d, false)]) {
        all.push(stats_call(dtype, wide).variant::<Stats>());
        for silu in [false, true] {
            all.extend([false, true].map(|pool| apply_call(dtype, wide, silu, pool).variant::<Apply>()));
            all.push(sums_call(dtype, wide, silu).variant::<Sums>());
            all.push(map_call(dtype, wide, silu).variant::<Map>());
        }
    }
    all
}

/// Statistics of parts of the rows of every sample, f32 `[n, parts, c, 4]` (the mean in two parts, the sum of squared
/// deviations, 0), and how the rows were cut.
struct Parts {
    stats: Tensor,
    cover: Cover,
}

fn part_stats(gpu: &Gpu, x: &Tensor) -> Result<Parts> {
    let dtype = operand_dtype(OP, &[x])?;
    let size @ [n, _, c] = nonempty(x)?;
    let wide = is_wide(dtype, &[c]);
    let cover = Cover::new(OP, dtype, wide, size, Work::sum(gpu))?;
    let stats = floats(gpu, &[n, cover.parts(), c, 4], "norm statistics")?;
    let p = Stats { cover, x: x.cuda_ptr()?, out: stats.cuda_ptr()? };
    stats_call(dtype, wide).launch(gpu, cover.grid(OP, n)?, &p)?;
    Ok(Parts { stats, cover })
}

/// Samples, pixels and channels of a tensor with at least one element.
fn nonempty(x: &Tensor) -> Result<[usize; 3]> {
    let shape = x.shape();
    if shape.len() < 2 || shape.elems() == 0 {
        return Err(Error::shape(OP, format!("expects x [N, .., C] with at least one element, got {shape}")));
    }
    Ok(size(&shape))
}

/// Mean, and sum of squared deviations from it, of every sample and channel of `x [n, .., c]`, bf16 or f32: f32 `[n, c, 2]`.
/// The same that [`FusedOutput::stats`](crate::ops::conv2d::FusedOutput::stats) tells of what a convolution made.
///
/// # Errors
/// No elements, another dtype, no memory, or a failed compilation or launch.
pub fn channel_stats(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let note = |y: &Tensor| note("stats", x, 3 * x.elems(), x.bytes(), y);
    gpu.traced(|| merged_stats(gpu, x), note)
}

fn merged_stats(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let Parts { stats, cover } = part_stats(gpu, x)?;
    let [n, _, c] = size(&x.shape());
    let merged = floats(gpu, &[n, c, 2], "norm statistics")?;
    let all = n * c;
    let p = Merge {
        parts: stats.cuda_ptr()?,
        out: merged.cuda_ptr()?,
        channels: cover.channels,
        count: cover.parts,
        rows: cover.rows,
        rows_of_part: cover.rows_of_part,
        all: all as i64,
    };
    merge_call().launch(gpu, line(OP, all.div_ceil(THREADS), THREADS)?, &p)?;
    Ok(merged)
}

/// Statistics of a map whose channels are normalised together with those of others.
#[derive(Clone, Copy)]
pub struct StatsPart<'a> {
    /// f32 `[n, c, 2]`: mean and sum of squared deviations, from [`channel_stats`] or a convolution.
    pub stats: &'a Tensor,
    /// Numbers behind each.
    pub pixels: usize,
}

/// What [`apply`] needs to normalise the channels of all `parts`, one after the other, in `groups` groups (which may begin in
/// one part and end in the next), with gain `w [C]`, shift `b [C]`, both f32, and optionally `scale_shift [n, 2C]` f32, whose
/// first half is the scale.
///
/// The result is f32 `[n, 3, C]`: what is subtracted from x (the mean, rounded), the slope, and the offset, so that a large
/// mean costs no digits.
///
/// # Errors
/// No part or more than two, shapes that do not fit, no memory, or a failed compilation or launch.
pub fn coefficients(
    gpu: &Gpu,
    parts: &[StatsPart<'_>],
    groups: usize,
    eps: f32,
    w: &Tensor,
    b: &Tensor,
    scale_shift: Option<&Tensor>,
) -> Result<Tensor> {
    let Some(first) = parts.first().filter(|_| parts.len() <= 2) else {
        return Err(Error::shape(OP, format!("normalises one or two maps together, not {}", parts.len())));
    };
    let n = first.stats.shape()[0];
    let mut source = [Source::default(); 2];
    let mut channels = 0;
    for (part, source) in parts.iter().zip(&mut source) {
        let shape = part.stats.shape();
        if shape.len() != 3 || shape[0] != n || shape[2] != 2 || part.pixels == 0 {
            return Err(Error::shape(OP, format!("statistics are [{n}, c, 2] of at least one pixel"))
                .with_tensor("statistics", part.stats));
        }
        let rows = int(OP, "pixels", part.pixels)?;
        *source = Source {
            stats: floats_at(OP, "statistics", part.stats, &shape)?,
            channels: int(OP, "channels", shape[1])?,
            parts: 1,
            rows,
            rows_of_part: rows,
        };
        channels += shape[1];
    }
    let terms = Terms { groups, eps, w, b, scale_shift };
    let read = parts.iter().map(|p| p.stats.bytes()).sum::<usize>() + w.bytes() + b.bytes();
    let note = |y: &Tensor| note("coefficients", w, 10 * y.elems(), read, y);
    gpu.traced(|| Ok(terms.coefficients(gpu, source, [n, channels], false)?.0), note)
}

/// What is noted of launches that read `x` and others, `read` bytes in all, and make `y`.
fn note(pass: &'static str, x: &Tensor, flops: usize, read: usize, y: &Tensor) -> gpu::Work {
    gpu::Work {
        op: OP.into(),
        pass,
        shape: y.shape(),
        dtype: x.dtype(),
        flops: flops as u64,
        bytes: (read + y.bytes()) as u64,
        result: y.cuda_ptr().unwrap_or(0),
        launches: Vec::new(),
    }
}

/// What the statistics are made into coefficients with.
struct Terms<'a> {
    groups: usize,
    eps: f32,
    w: &'a Tensor,
    b: &'a Tensor,
    scale_shift: Option<&'a Tensor>,
}

impl Terms<'_> {
    /// Coefficients `[n, 3, c]`. From `own` statistics also the moments of the groups, `[n, groups, 4]`.
    fn coefficients(
        &self,
        gpu: &Gpu,
        source: [Source; 2],
        [n, c]: [usize; 2],
        own: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if self.groups == 0 || !c.is_multiple_of(self.groups) {
            return Err(Error::shape(OP, format!("{} groups do not divide {c} channels", self.groups)));
        }
        let affine = floats(gpu, &[n, 3, c], "norm coefficients")?;
        let moments = own.then(|| floats(gpu, &[n, self.groups, 4], "norm moments")).transpose()?;
        let p = Coefficients {
            source,
            w: floats_at(OP, "w", self.w, &[c])?,
            b: floats_at(OP, "b", self.b, &[c])?,
            scale_shift: self.scale_shift.map_or(Ok(0), |s| floats_at(OP, "scale_shift", s, &[n, 2 * c]))?,
            affine: affine.cuda_ptr()?,
            moments: address(moments.as_ref())?,
            channels: int(OP, "channels", c)?,
            groups: self.groups as i32,
            eps: self.eps,
            pad: 0,
        };
        coefficients_call(own).launch(gpu, line(OP, n * self.groups, THREADS)?, &p)?;
        Ok((affine, moments))
    }
}

/// Normalises one or two maps `[n, h, w, c_i]` (without `pool` any `[n, .., c_i]`), which are read where they lie, with the
/// `coefficients` of their channels one after the other; then SiLU, then the mean of every 2x2 pixels, if asked. The result
/// is one tensor `[n, h, w, C]`, or `[n, h/2, w/2, C]`, of the inputs' dtype.
///
/// # Errors
/// No input or more than two, shapes or dtypes that do not fit, odd sizes to pool, no memory, or a failed compilation or
/// launch.
pub fn apply(gpu: &Gpu, inputs: &[&Tensor], coefficients: &Tensor, silu: bool, pool: bool) -> Result<Tensor> {
    let Some(first) = inputs.first().filter(|_| inputs.len() <= 2) else {
        return Err(Error::shape(OP, format!("normalises one or two maps together, not {}", inputs.len())));
    };
    let dtype = operand_dtype(OP, inputs)?;
    let [n, pixels, _] = nonempty(first)?;
    let channels: Vec<usize> = inputs.iter().map(|x| x.shape().last()).collect();
    let all: usize = channels.iter().sum();
    let mut shape = first.shape().to_vec();
    let space = |x: &Tensor| x.shape()[..x.shape().len() - 1].to_vec();
    if let Some(other) = inputs.iter().find(|x| space(x) != space(first)) {
        return Err(Error::shape(OP, "maps that are normalised together differ in size")
            .with_tensor("first", first)
            .with_tensor("other", other));
    }
    *shape.last_mut().expect("two axes at least") = all;
    let (mut rows, mut width) = (pixels, 0);
    if pool {
        let (_, h, w, _) = first.shape().nhwc(OP)?;
        if h % 2 != 0 || w % 2 != 0 {
            return Err(Error::shape(OP, format!("{h} x {w} pixels cannot be averaged two by two")));
        }
        (shape[1], shape[2], rows, width) = (h / 2, w / 2, pixels / 4, w / 2);
    }
    let wide = is_wide(dtype, &channels);
    let cover = Cover::new(OP, dtype, wide, [n, rows, all], Work::Map)?;
    let y = Tensor::empty_gpu(Shape::from_slice(&shape)?, dtype, gpu, "group norm")?;
    let p = Apply {
        cover,
        x: [first.cuda_ptr()?, address(inputs.get(1).copied())?],
        affine: floats_at(OP, "coefficients", coefficients, &[n, 3, all])?,
        y: y.cuda_ptr()?,
        split: int(OP, "channels", channels[0])?,
        width: int(OP, "width", width)?,
    };
    let read = inputs.iter().map(|x| x.bytes()).sum::<usize>() + coefficients.bytes();
    let flops = n * pixels * all * if silu { 6 } else { 2 };
    let launch = || apply_call(dtype, wide, silu, pool).launch(gpu, cover.grid(OP, n)?, &p);
    gpu.traced(launch, |()| note("apply", first, flops, read, &y))?;
    Ok(y)
}

impl GroupNorm {
    /// Forward pass. Keeps the moments of the groups and the coefficients.
    pub(super) fn forward_cuda(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let x = inputs[0];
        let [n, _, c] = size(&x.shape());
        let Parts { stats, cover } = part_stats(gpu, x)?;
        let source = Source {
            stats: stats.cuda_ptr()?,
            channels: cover.channels,
            parts: cover.parts,
            rows: cover.rows,
            rows_of_part: cover.rows_of_part,
        };
        // Where it comes from a product with narrow operands, it is as narrow.
        let wide = inputs.get(3).map(|s| cast(gpu, s, DType::F32)).transpose()?;
        let scale_shift = wide.as_ref();
        let terms = Terms { groups: self.groups, eps: self.eps, w: inputs[1], b: inputs[2], scale_shift };
        let (affine, moments) = terms.coefficients(gpu, [source, Source::default()], [n, c], true)?;
        let y = apply(gpu, &[x], &affine, self.silu, false)?;
        Ok(Forward { y, extra: moments.into_iter().chain([affine]).collect(), aux: Vec::new() })
    }

    /// Backward pass: sums by part, then by group, then the gradients.
    pub(super) fn backward_cuda(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let inputs = ctx.inputs.len();
        let [x, w, b, ..] = ctx.saved else {
            return Err(Error::shape(OP, "the backward pass needs the inputs and the moments"));
        };
        let (moments, affine) = (&ctx.saved[inputs], &ctx.saved[inputs + 1]);
        let narrow = (inputs == 4).then(|| &ctx.saved[3]);
        let scale_shift = narrow.map(|s| cast(gpu, s, DType::F32)).transpose()?;
        let dtype = operand_dtype(OP, &[x, ctx.gy])?;
        let size @ [n, _, c] = size(&ctx.inputs[0]);
        let wide = is_wide(dtype, &[c]);
        let cover = Cover::new(OP, dtype, wide, size, Work::sum(gpu))?;
        let sums = floats(gpu, &[n, cover.parts(), c, 2], "norm gradient sums")?;
        let p = Sums {
            cover,
            x: x.cuda_ptr()?,
            gy: ctx.gy.cuda_ptr()?,
            affine: affine.cuda_ptr()?,
            out: sums.cuda_ptr()?,
        };
        sums_call(dtype, wide, self.silu).launch(gpu, cover.grid(OP, n)?, &p)?;

        let tangent = floats(gpu, &[n, 3, c], "norm coefficients")?;
        let totals = floats(gpu, &[n, c, 2], "norm gradient sums")?;
        let wants = |i: usize| ctx.needs.get(i).copied().unwrap_or(false);
        let mut modulation = wants(3).then(|| floats(gpu, &[n, 2 * c], "gradient")).transpose()?;
        let p = BackwardCoefficients {
            sums: sums.cuda_ptr()?,
            w: w.cuda_ptr()?,
            b: b.cuda_ptr()?,
            scale_shift: address(scale_shift.as_ref())?,
            moments: moments.cuda_ptr()?,
            tangent: tangent.cuda_ptr()?,
            totals: totals.cuda_ptr()?,
            scale_shift_gradient: address(modulation.as_ref())?,
            channels: cover.channels,
            groups: self.groups as i32,
            parts: cover.parts,
            rows: cover.rows,
        };
        backward_coefficients_call().launch(gpu, line(OP, n * self.groups, THREADS)?, &p)?;

        let (mut gw, mut gb) = (None, None);
        if wants(1) || wants(2) {
            let both = [floats(gpu, &[c], "gradient")?, floats(gpu, &[c], "gradient")?];
            let p = Affine {
                totals: totals.cuda_ptr()?,
                scale_shift: address(scale_shift.as_ref())?,
                gw: both[0].cuda_ptr()?,
                gb: both[1].cuda_ptr()?,
                samples: int(OP, "samples", n)?,
                channels: cover.channels,
            };
            affine_call().launch(gpu, line(OP, c.div_ceil(THREADS), THREADS)?, &p)?;
            let [w, b] = both;
            (gw, gb) = (wants(1).then_some(w), wants(2).then_some(b));
        }
        let mut gx = None;
        if wants(0) {
            let cover = Cover::new(OP, dtype, wide, size, Work::Map)?;
            let to = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient")?;
            let p = Map {
                cover,
                x: x.cuda_ptr()?,
                gy: ctx.gy.cuda_ptr()?,
                affine: affine.cuda_ptr()?,
                tangent: tangent.cuda_ptr()?,
                gx: to.cuda_ptr()?,
            };
            map_call(dtype, wide, self.silu).launch(gpu, cover.grid(OP, n)?, &p)?;
            gx = Some(to);
        }
        if let (Some(gradient), Some(of)) = (&mut modulation, narrow) {
            *gradient = cast(gpu, gradient, of.dtype())?;
        }
        let mut grads = vec![gx, gw, gb, modulation];
        grads.truncate(inputs);
        Ok(grads)
    }
}
