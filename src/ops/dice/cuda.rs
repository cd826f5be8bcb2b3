//! The kernels of the dice losses: `kernels/dice.cu`.

use super::Dice;
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const SOURCE: &str = "dice.cu";
/// `THREADS` of the kernel: the most.
const THREADS: usize = 256;
/// Most sums of a kind in shared memory: three kinds in f32 are 48 KiB, which every device has.
const MOST_SLOTS: usize = 4096;
/// Bytes of logits that a block reads, but no fewer pixels than make its sums small beside them.
const BYTES_OF_RUN: usize = 128 * 1024;
const LEAST_RUN: usize = 256;
/// Classes of a lane that reads them one by one, unless there are more than a warp has lanes for.
const CLASSES_OF_LANE: usize = 4;

/// `Params` of `kernels/dice.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    z: u64,
    labels: u64,
    gz: u64,
    parts: u64,
    sums: u64,
    slopes: u64,
    losses: u64,
    y: u64,
    gy: u64,
    ignore: i64,
    images: i32,
    pixels: i32,
    classes: i32,
    lanes: i32,
    slots: i32,
    run: i32,
    runs: i32,
    groups: i32,
    generalized: i32,
    has_ignore: i32,
}

/// A pass over the logits.
fn pass(entry: &'static str, dtype: DType, wide: bool) -> Call {
    Call::new(SOURCE, entry).dtype(dtype).set("VEC", u8::from(wide))
}

/// The passes over what the first one leaves, in order.
const REST: [&str; 3] = ["dice_sums", "dice_groups", "dice_total"];

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut calls: Vec<Call> = REST.iter().map(|entry| Call::new(SOURCE, entry)).collect();
    for dtype in [DType::F32, DType::Bf16] {
        for wide in [true, false] {
            calls.extend(["dice_fwd", "dice_bwd"].map(|entry| pass(entry, dtype, wide)));
        }
    }
    calls.iter().map(Call::variant::<Params>).collect()
}

/// How pixels are spread over blocks and lanes: a function of shape and element type alone.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    wide: bool,
    images: usize,
    pixels: usize,
    classes: usize,
    lanes: usize,
    slots: usize,
    /// Pixels of a block at a time.
    at_once: usize,
    run: usize,
    runs: usize,
}

impl Layout {
    fn new(shape: Shape, dtype: DType) -> Result<Layout> {
        let (classes, chunk) = (shape.last(), 16 / dtype.size());
        let wide = classes.is_multiple_of(chunk);
        let each = if wide { chunk } else { 1 };
        let pieces = classes.div_ceil(if wide { chunk } else { CLASSES_OF_LANE });
        let lanes = pieces.next_power_of_two().min(32);
        let slots = classes.next_multiple_of(lanes * each);
        if slots > MOST_SLOTS {
            return Err(Error::shape(
                "dice",
                format!("{classes} classes are more than the kernel sums over"),
            )
            .with_remedy(format!("use at most {MOST_SLOTS} classes, or compute on the host")));
        }
        // Whole warps.
        let warp = 32 / lanes;
        let at_once = (THREADS / lanes).min((MOST_SLOTS / slots) / warp * warp).max(warp);
        let (images, pixels) = (shape[0], shape[1] * shape[2]);
        let run = (BYTES_OF_RUN / (classes * dtype.size())).max(LEAST_RUN).next_multiple_of(at_once);
        Ok(Layout { wide, images, pixels, classes, lanes, slots, at_once, run, runs: pixels.div_ceil(run) })
    }

    fn params(&self, op: &Dice) -> Result<Params> {
        let count = |what, n| int("dice", what, n);
        count("blocks", self.images * self.runs)?;
        Ok(Params {
            ignore: op.ignore_index.unwrap_or(0),
            images: count("images", self.images)?,
            pixels: count("pixels", self.pixels + self.run)? - self.run as i32,
            classes: count("classes", self.classes)?,
            lanes: self.lanes as i32,
            slots: self.slots as i32,
            run: count("pixels of a block", self.run)?,
            runs: count("blocks of an image", self.runs)?,
            groups: count("groups", op.groups(self.images))?,
            generalized: i32::from(op.generalized),
            has_ignore: i32::from(op.ignore_index.is_some()),
            ..Params::zeroed()
        })
    }

    /// Of a pass over the logits.
    fn grid(&self, shared_bytes: usize) -> Grid {
        Grid {
            grid: [(self.images * self.runs) as u32, 1, 1],
            block: (self.at_once * self.lanes) as u32,
            shared_bytes: shared_bytes as u32,
        }
    }
}

/// The dtype of the logits.
fn check(z: &Tensor, labels: &Tensor) -> Result<DType> {
    if labels.dtype() != DType::I64 {
        return Err(Error::dtype("dice", format!("labels are i64, not {labels:?}")));
    }
    operand_dtype("dice", &[z])
}

/// The loss. The backward pass needs the slopes beside the inputs: f32 `[groups, 2, K]`, of `P` and of `I`.
pub(super) fn forward(op: &Dice, gpu: &Gpu, z: &Tensor, labels: &Tensor) -> Result<Forward> {
    let dtype = check(z, labels)?;
    let layout = Layout::new(z.shape(), dtype)?;
    let (images, classes, groups) = (layout.images, layout.classes, op.groups(layout.images));
    let empty = |shape: Shape, tag| Tensor::empty_gpu(shape, DType::F32, gpu, tag);
    let parts = empty([images * layout.runs, 3, classes].into(), "sums of runs")?;
    let sums = empty([images, 3, classes].into(), "sums of images")?;
    let (slopes, losses) =
        (empty([groups, 2, classes].into(), "slopes")?, empty([groups, 2].into(), "losses of groups")?);
    let y = empty(Shape::SCALAR, "loss")?;
    let mut p = layout.params(op)?;
    (p.z, p.labels) = (z.cuda_ptr()?, labels.cuda_ptr()?);
    (p.parts, p.sums) = (parts.cuda_ptr()?, sums.cuda_ptr()?);
    (p.slopes, p.losses, p.y) = (slopes.cuda_ptr()?, losses.cuda_ptr()?, y.cuda_ptr()?);
    let shared = layout.at_once * 3 * layout.slots * DType::F32.size();
    pass("dice_fwd", dtype, layout.wide).launch(gpu, layout.grid(shared), &p)?;
    for (entry, blocks) in REST.into_iter().zip([images, groups, 1]) {
        let grid = Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 };
        Call::new(SOURCE, entry).launch(gpu, grid, &p)?;
    }
    Ok(Forward { y, extra: vec![slopes], aux: Vec::new() })
}

/// The gradient of the logits.
pub(super) fn backward(op: &Dice, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Tensor> {
    let [z, labels, slopes] = ctx.saved else {
        return Err(Error::shape("dice", "the backward pass lacks what the forward pass kept"));
    };
    let dtype = check(z, labels)?;
    if ctx.gy.dtype() != DType::F32 {
        return Err(Error::dtype("dice", format!("the gradient of a loss is f32, not {:?}", ctx.gy)));
    }
    let layout = Layout::new(z.shape(), dtype)?;
    let gz = Tensor::empty_gpu(z.shape(), dtype, gpu, "gradient")?;
    let mut p = layout.params(op)?;
    (p.z, p.labels, p.slopes) = (z.cuda_ptr()?, labels.cuda_ptr()?, slopes.cuda_ptr()?);
    (p.gy, p.gz) = (ctx.gy.cuda_ptr()?, gz.cuda_ptr()?);
    pass("dice_bwd", dtype, layout.wide).launch(gpu, layout.grid(0), &p)?;
    Ok(gz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_fill_blocks_and_shared_memory() {
        let of = |shape: [usize; 4], dtype| {
            let l = Layout::new(shape.into(), dtype).unwrap();
            assert!(l.at_once * 3 * l.slots * 4 <= 48 * 1024 && (l.at_once * l.lanes).is_multiple_of(32));
            (l.wide, l.lanes, l.slots, l.at_once, l.run, l.runs)
        };
        assert_eq!(of([8, 128, 128, 19], DType::F32), (false, 8, 24, 32, 1728, 10));
        assert_eq!(of([8, 128, 128, 152], DType::Bf16), (true, 32, 256, 8, 432, 38));
        assert_eq!(of([1, 4, 4, 1000], DType::Bf16), (true, 32, 1024, 4, 256, 1));
        assert_eq!(of([1, 4, 4, 1], DType::F32), (false, 1, 1, 256, 32768, 1));
    }

    #[test]
    fn too_many_classes_are_an_error() {
        assert!(Layout::new([1, 1, 1, 5000].into(), DType::F32).unwrap_err().is_shape());
    }
}
