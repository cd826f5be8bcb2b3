//! The kernels of the feature loss, which are those of its terms alone too: `kernels/tile/feature_loss.cuh`.

use super::MAX_LEVELS;
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::attention_transfer::AtDistance;
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::ops::whiten_mse::Whiten;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// `THREADS`, `MAX_RUN` and `PARTS` of `kernels/tile/feature_loss.cuh`.
const THREADS: usize = 256;
const MAX_RUN: usize = 512;
const PARTS: usize = 8;
/// Bytes of both maps that a block reads: enough for the merging of its threads to be cheap beside them.
const BYTES_OF_RUN: usize = 256 * 1024;

/// The kernels of an operation, and what they compute.
#[derive(Debug)]
pub(in crate::ops) struct Kernels {
    pub op: &'static str,
    pub source: &'static str,
    pub fwd: &'static str,
    pub samples: &'static str,
    pub total: &'static str,
    pub bwd: &'static str,
    /// MSE and cosine.
    pub moments: bool,
    /// Attention transfer.
    pub energy: bool,
}

impl Kernels {
    /// The pass over maps that are read 16 bytes at a time (`wide`) or one by one.
    fn forward(&self, dtype: DType, wide: bool, per_pixel: bool, power: u8) -> Call {
        let call = Call::new(self.source, self.fwd).dtype(dtype).set("VEC", u8::from(wide));
        let call = if self.moments { call.set("PER_PIXEL", u8::from(per_pixel)) } else { call };
        if self.energy { call.set("POWER", power) } else { call }
    }

    fn samples(&self, per_pixel: bool) -> Call {
        let call = Call::new(self.source, self.samples);
        if self.moments { call.set("PER_PIXEL", u8::from(per_pixel)) } else { call }
    }

    fn total(&self) -> Call {
        Call::new(self.source, self.total)
    }

    fn backward(&self, dtype: DType, wide: bool, power: u8) -> Call {
        let call = Call::new(self.source, self.bwd).dtype(dtype).set("VEC", u8::from(wide));
        if self.energy { call.set("POWER", power) } else { call }
    }

    /// Every variant that may be launched.
    pub fn variants(&self) -> Vec<Variant> {
        let powers: &[u8] = if self.energy { &[2, 0] } else { &[2] };
        let groups: &[bool] = if self.moments { &[false, true] } else { &[false] };
        let mut calls = vec![self.total()];
        calls.extend(groups.iter().map(|&per_pixel| self.samples(per_pixel)));
        for dtype in [DType::F32, DType::Bf16] {
            for wide in [true, false] {
                for &power in powers {
                    calls.extend(groups.iter().map(|&g| self.forward(dtype, wide, g, power)));
                    calls.push(self.backward(dtype, wide, power));
                }
            }
        }
        calls.iter().map(Call::variant::<Params>).collect()
    }
}

/// A loss over levels: the fields of [`super::FeatureLoss`].
#[derive(Debug)]
pub(in crate::ops) struct Loss {
    pub kernels: &'static Kernels,
    pub whiten: Whiten,
    pub eps: f32,
    pub mse_weight: f32,
    pub at_weight: f32,
    pub p: f32,
    pub distance: AtDistance,
}

/// `Level` of `kernels/tile/feature_loss.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Level {
    s: u64,
    t: u64,
    gs: u64,
    first_pixel: i64,
    first_group: i64,
    pixels: i32,
    channels: i32,
    teacher_channels: i32,
    lanes: i32,
    run: i32,
    runs: i32,
    first_block: i32,
    pad: i32,
}

/// `Params` of `kernels/tile/feature_loss.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    parts: u64,
    student: u64,
    teacher: u64,
    slopes: u64,
    whitening: u64,
    results: u64,
    y: u64,
    levels_out: u64,
    gy: u64,
    levels: i32,
    images: i32,
    whiten: i32,
    distance: i32,
    eps: f32,
    p: f32,
    mse_weight: f32,
    at_weight: f32,
    level: [Level; MAX_LEVELS],
}

/// What the forward pass leaves on the device, all f32.
#[derive(Debug)]
pub(in crate::ops) struct Results {
    /// The loss, a scalar.
    pub y: Tensor,
    /// MSE, distance and cosine `[levels, 3]`.
    pub levels: Tensor,
    /// Mean of the teacher and factor for every group of every level `[groups, 2]`; one row that nobody reads where nothing is
    /// whitened.
    pub whitening: Tensor,
    /// Slope of the distance at every pixel of every level; one number that nobody reads without attention transfer.
    pub slopes: Tensor,
}

/// A level in the backward pass.
#[derive(Debug)]
pub(in crate::ops) struct Pair<'a> {
    pub student: &'a Tensor,
    /// Wanted for the MSE only.
    pub teacher: Option<&'a Tensor>,
    /// Whether there is to be a gradient.
    pub wanted: bool,
}

/// How the levels are cut into blocks: a function of shapes and element type alone.
struct Layout {
    levels: Vec<Level>,
    wide: bool,
    blocks: usize,
    /// Rounded up to multiples of four for every level.
    pixels: usize,
    groups: usize,
}

impl Layout {
    /// `levels` are the student's shape, the teacher's channels, and whether the level takes part.
    fn new(loss: &Loss, dtype: DType, levels: &[(Shape, usize, bool)]) -> Result<Layout> {
        let op = loss.kernels.op;
        let chunk = 16 / dtype.size();
        let wide = levels.iter().all(|(s, t, _)| s.last().is_multiple_of(chunk) && t.is_multiple_of(chunk));
        let each = if wide { chunk } else { 1 };
        let mut all = Layout { levels: Vec::new(), wide, blocks: 0, pixels: 0, groups: 0 };
        for &(shape, teacher_channels, takes_part) in levels {
            let (images, pixels, channels) = (shape[0], shape[1] * shape[2], shape.last());
            let lanes = channels.max(teacher_channels).div_ceil(each).next_power_of_two().min(32);
            let at_once = THREADS / lanes;
            let bytes = (channels + teacher_channels) * dtype.size();
            // A multiple of the pixels that a block reads at a time, which are at least 8.
            let run = (BYTES_OF_RUN / bytes).clamp(at_once, MAX_RUN) / at_once * at_once;
            let runs = pixels.div_ceil(run);
            all.levels.push(Level {
                first_pixel: all.pixels as i64,
                first_group: all.groups as i64,
                pixels: int(op, "pixels", pixels + MAX_RUN)? - MAX_RUN as i32,
                channels: int(op, "channels", channels + 32 * each)? - (32 * each) as i32,
                teacher_channels: int(op, "channels", teacher_channels + 32 * each)? - (32 * each) as i32,
                lanes: lanes as i32,
                run: run as i32,
                runs: int(op, "runs", runs)?,
                first_block: int(op, "blocks", all.blocks)?,
                ..Level::zeroed()
            });
            all.blocks += if takes_part { images * runs } else { 0 };
            all.pixels += (images * pixels).next_multiple_of(4);
            all.groups += match loss.whiten {
                Whiten::Sample => images,
                Whiten::Channel => (images * pixels).next_multiple_of(2),
                Whiten::None => 0,
            };
        }
        int(op, "blocks", all.blocks)?;
        Ok(all)
    }

    fn params(&self, loss: &Loss, images: usize) -> Result<Params> {
        let mut level = [Level::zeroed(); MAX_LEVELS];
        level[..self.levels.len()].copy_from_slice(&self.levels);
        Ok(Params {
            levels: self.levels.len() as i32,
            images: int(loss.kernels.op, "images", images)?,
            whiten: match loss.whiten {
                Whiten::None => 0,
                Whiten::Sample => 1,
                Whiten::Channel => 2,
            },
            distance: match loss.distance {
                AtDistance::L2 => 0,
                AtDistance::MeanSquare => 1,
            },
            eps: loss.eps,
            p: loss.p,
            mse_weight: loss.mse_weight,
            at_weight: loss.at_weight,
            level,
            ..Params::zeroed()
        })
    }
}

/// The define `POWER` of an exponent.
fn power(p: f32) -> u8 {
    if p == 2.0 { 2 } else { 0 }
}

fn grid(blocks: usize) -> Grid {
    Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 }
}

/// Launches the forward passes.
///
/// # Errors
/// Maps that are not all bf16 or all f32, sizes beyond what the kernels count to, no memory, or a failed launch.
pub(in crate::ops) fn forward(
    gpu: &Gpu,
    loss: &Loss,
    students: &[&Tensor],
    teachers: &[&Tensor],
) -> Result<Results> {
    let kernels = loss.kernels;
    let dtype = operand_dtype(kernels.op, &[students, teachers].concat())?;
    let shapes: Vec<_> =
        students.iter().zip(teachers).map(|(s, t)| (s.shape(), t.shape().last(), true)).collect();
    let layout = Layout::new(loss, dtype, &shapes)?;
    let (levels, images) = (students.len(), students[0].shape()[0]);
    let empty = |shape: Shape, tag| Tensor::empty_gpu(shape, DType::F32, gpu, tag);
    let pixels = if kernels.energy { layout.pixels } else { 1 };
    let whitens = kernels.moments && layout.groups > 0;
    let energy = kernels.energy.then(|| empty([2, pixels].into(), "power sums")).transpose()?;
    let blocks = if kernels.moments { layout.blocks } else { 1 };
    let parts = empty([blocks, PARTS].into(), "moments of runs")?;
    let results = empty([levels, images, 4].into(), "losses of images")?;
    let out = Results {
        y: empty(Shape::SCALAR, "loss")?,
        levels: empty([levels, 3].into(), "losses of levels")?,
        whitening: empty([if whitens { layout.groups } else { 1 }, 2].into(), "whitening")?,
        slopes: empty([pixels].into(), "slopes of maps")?,
    };
    let mut p = layout.params(loss, images)?;
    for (level, (s, t)) in p.level.iter_mut().zip(students.iter().zip(teachers)) {
        (level.s, level.t) = (s.cuda_ptr()?, t.cuda_ptr()?);
    }
    p.parts = parts.cuda_ptr()?;
    if let Some(energy) = &energy {
        p.student = energy.cuda_ptr()?;
        p.teacher = p.student + (pixels * DType::F32.size()) as u64;
    }
    p.slopes = out.slopes.cuda_ptr()?;
    p.whitening = if whitens { out.whitening.cuda_ptr()? } else { 0 };
    (p.results, p.y, p.levels_out) = (results.cuda_ptr()?, out.y.cuda_ptr()?, out.levels.cuda_ptr()?);
    let per_pixel = loss.whiten == Whiten::Channel;
    kernels.forward(dtype, layout.wide, per_pixel, power(loss.p)).launch(gpu, grid(layout.blocks), &p)?;
    kernels.samples(per_pixel).launch(gpu, grid(levels * images), &p)?;
    kernels.total().launch(gpu, grid(1), &p)?;
    Ok(out)
}

/// Launches the backward pass: the gradients of the students, `None` where none is wanted. `whitening` and `slopes` are those
/// of [`forward`], for the terms of which there are any.
///
/// # Errors
/// As [`forward`].
pub(in crate::ops) fn backward(
    gpu: &Gpu,
    loss: &Loss,
    pairs: &[Pair<'_>],
    whitening: Option<&Tensor>,
    slopes: Option<&Tensor>,
    gy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let kernels = loss.kernels;
    let maps: Vec<&Tensor> = pairs.iter().flat_map(|p| [Some(p.student), p.teacher]).flatten().collect();
    let dtype = operand_dtype(kernels.op, &maps)?;
    if gy.dtype() != DType::F32 {
        return Err(Error::dtype(kernels.op, format!("the gradient of a loss is f32, not {gy:?}")));
    }
    let shapes: Vec<_> =
        pairs.iter().map(|p| (p.student.shape(), p.student.shape().last(), p.wanted)).collect();
    let layout = Layout::new(loss, dtype, &shapes)?;
    let gradient = |pair: &Pair<'_>| {
        let new = || Tensor::empty_gpu(pair.student.shape(), dtype, gpu, "gradient");
        pair.wanted.then(new).transpose()
    };
    let grads = pairs.iter().map(gradient).collect::<Result<Vec<Option<Tensor>>>>()?;
    if layout.blocks == 0 {
        return Ok(grads);
    }
    let mut p = layout.params(loss, pairs[0].student.shape()[0])?;
    let address = |t: Option<&Tensor>| t.map_or(Ok(0), Tensor::cuda_ptr);
    for (level, (pair, gs)) in p.level.iter_mut().zip(pairs.iter().zip(&grads)) {
        (level.s, level.t, level.gs) =
            (pair.student.cuda_ptr()?, address(pair.teacher)?, address(gs.as_ref())?);
    }
    p.whitening = if loss.whiten == Whiten::None { 0 } else { address(whitening)? };
    (p.slopes, p.gy) = (address(slopes)?, gy.cuda_ptr()?);
    kernels.backward(dtype, layout.wide, power(loss.p)).launch(gpu, grid(layout.blocks), &p)?;
    Ok(grads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dtype: DType, whiten: Whiten, shapes: &[[usize; 4]]) -> Layout {
        let loss = Loss { whiten, ..super::super::FeatureLoss::default().loss() };
        let levels: Vec<_> = shapes.iter().map(|&s| (s.into(), s[3], true)).collect();
        Layout::new(&loss, dtype, &levels).unwrap()
    }

    #[test]
    fn runs_are_as_long_as_their_bytes_allow() {
        let real = [[64, 64, 64, 512], [64, 32, 32, 512], [64, 16, 16, 1024], [64, 8, 8, 1024]];
        let all = layout(DType::Bf16, Whiten::Sample, &real);
        let of = |l: &Level| (l.lanes, l.run, l.runs, l.first_block);
        let got: Vec<_> = all.levels.iter().map(of).collect();
        assert_eq!(got, [(32, 128, 32, 0), (32, 128, 8, 2048), (32, 64, 4, 2560), (32, 64, 1, 2816)]);
        assert_eq!((all.wide, all.blocks, all.groups), (true, 2880, 256));
    }

    #[test]
    fn odd_channels_are_read_one_by_one() {
        let all = layout(DType::F32, Whiten::Channel, &[[1, 3, 3, 5]]);
        let level = all.levels[0];
        assert_eq!((all.wide, level.lanes, level.run, level.runs), (false, 8, 512, 1));
        // Rounded up, so that what is known of the next level's pixels is aligned.
        assert_eq!((all.pixels, all.groups), (12, 10));
    }
}
