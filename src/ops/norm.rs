//! What the device sides of the norms over pixels share: how a block covers rows and channels. `kernels/tile/by_channel.cuh`.

use super::implicit_gemm::int;
use super::kernel::Call;
use crate::base::DType;
use crate::error::Result;
use crate::gpu::{Gpu, Grid};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// Threads of a block, and the most of them that lie side by side.
const THREADS: usize = 256;
const MOST_LANES: usize = 32;
/// Rows of a thread: in passes that map elements, and at least in passes that sum them.
const ROWS_OF_MAP: usize = 8;
const LEAST_ROWS_OF_SUM: usize = 16;

/// `[samples, rows, channels]`.
pub(super) type Size = [usize; 3];

/// What a pass does with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Every element becomes another.
    Map,
    /// The rows are summed, part by part: few parts, but enough to fill this many multiprocessors.
    Sum {
        /// Of the device.
        multiprocessors: usize,
    },
}

impl Work {
    /// Sums on a device.
    pub fn sum(gpu: &Gpu) -> Work {
        Work::Sum { multiprocessors: gpu.info().multiprocessors as usize }
    }
}

/// `by_channel::Cover` of `kernels/tile/by_channel.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Cover {
    pub channels: i32,
    pub lanes: i32,
    pub slots: i32,
    pub blocks: i32,
    pub parts: i32,
    pub rows: i32,
    pub rows_of_part: i32,
    pad: i32,
}

/// Whether all of these channel counts fill chunks of 16 bytes.
pub(super) fn is_wide(dtype: DType, channels: &[usize]) -> bool {
    channels.iter().all(|c| c.is_multiple_of(16 / dtype.size()))
}

impl Cover {
    /// For `size`, none of which is 0. With `wide` a thread has a chunk of 16 bytes, else one channel. A function of its
    /// arguments alone, and so is the order of all sums.
    ///
    /// # Errors
    /// More rows or channels than the kernels count to.
    pub fn new(
        op: &str,
        dtype: DType,
        wide: bool,
        [samples, rows, channels]: Size,
        work: Work,
    ) -> Result<Self> {
        let chunks = if wide { channels / (16 / dtype.size()) } else { channels };
        let blocks = chunks.div_ceil(MOST_LANES);
        let lanes = chunks.div_ceil(blocks);
        let slots = THREADS / lanes;
        let rows_of_part = match work {
            Work::Map => ROWS_OF_MAP * slots,
            Work::Sum { multiprocessors } => {
                let enough = (4 * multiprocessors).div_ceil(blocks * samples);
                let parts = enough.min(rows.div_ceil(LEAST_ROWS_OF_SUM * slots)).max(1);
                rows.div_ceil(parts).max(1)
            }
        };
        let count = |what: &str, v: usize| int(op, what, v);
        Ok(Cover {
            channels: count("channels", channels)?,
            lanes: lanes as i32,
            slots: slots as i32,
            blocks: count("blocks", blocks)?,
            parts: count("parts", rows.div_ceil(rows_of_part))?,
            // The kernels look a few turns of all slots ahead of a row.
            rows: count("rows", rows + 8 * THREADS)? - 8 * THREADS as i32,
            rows_of_part: rows_of_part as i32,
            pad: 0,
        })
    }

    /// Parts of a sample.
    pub fn parts(&self) -> usize {
        self.parts as usize
    }

    /// The grid for as many samples.
    ///
    /// # Errors
    /// More blocks than a grid has.
    pub fn grid(&self, op: &str, samples: usize) -> Result<Grid> {
        let blocks = int(op, "blocks", samples * self.parts() * self.blocks as usize)?;
        Ok(Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 })
    }
}

/// A one-dimensional grid.
///
/// # Errors
/// More blocks than a grid has.
pub(super) fn line(op: &str, blocks: usize, threads: usize) -> Result<Grid> {
    Ok(Grid { grid: [int(op, "blocks", blocks)? as u32, 1, 1], block: threads as u32, shared_bytes: 0 })
}

/// A kernel entry `<op>_<pass>`, told by the define `PASS_<PASS>`.
pub(super) fn pass(
    source: &'static str,
    entry: &'static str,
    define: &str,
    dtype: DType,
    wide: bool,
) -> Call {
    Call::new(source, entry).set(define, 1).dtype(dtype).set("VEC", u8::from(wide))
}

/// An f32 result on the device.
///
/// # Errors
/// No memory.
pub(super) fn floats(gpu: &Gpu, shape: &[usize], tag: &'static str) -> Result<Tensor> {
    Tensor::empty_gpu(crate::base::Shape::from_slice(shape)?, DType::F32, gpu, tag)
}

/// The address of a tensor that may be absent, 0 then.
///
/// # Errors
/// It does not lie on a device.
pub(super) fn address(t: Option<&Tensor>) -> Result<u64> {
    t.map_or(Ok(0), Tensor::cuda_ptr)
}

/// The address of an f32 tensor of this shape.
///
/// # Errors
/// Another dtype or shape, or it does not lie on a device.
pub(super) fn floats_at(op: &str, name: &str, t: &Tensor, shape: &[usize]) -> Result<u64> {
    if t.dtype() == DType::F32 && *t.shape() == *shape {
        return t.cuda_ptr();
    }
    Err(crate::error::Error::shape(op, format!("{name} has to be f32 {shape:?} on a device"))
        .with_tensor(name, t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(dtype: DType, size: Size, work: Work) -> Cover {
        Cover::new("t", dtype, is_wide(dtype, &[size[2]]), size, work).unwrap()
    }

    #[test]
    fn lanes_are_even_and_parts_cover_the_rows() {
        let sum = Work::Sum { multiprocessors: 132 };
        for (dtype, size) in [
            (DType::Bf16, [64, 3136, 256]),
            (DType::F32, [1, 65_536, 96]),
            (DType::Bf16, [1, 64 * 112 * 112, 64]),
            (DType::F32, [2, 15, 33]),
            (DType::Bf16, [1, 2, 2048]),
            (DType::F32, [3, 1, 1]),
        ] {
            for work in [Work::Map, sum] {
                let c = cover(dtype, size, work);
                let each = if is_wide(dtype, &[size[2]]) { 16 / dtype.size() } else { 1 };
                assert!(c.lanes as usize * c.blocks as usize * each >= size[2], "{size:?} {c:?}");
                assert!((c.lanes * c.slots) as usize <= THREADS && c.lanes as usize <= MOST_LANES);
                assert!(c.parts() * c.rows_of_part as usize >= size[1], "{size:?} {c:?}");
                assert!((c.parts() - 1) * (c.rows_of_part as usize) < size[1], "{size:?} {c:?}");
            }
        }
    }

    #[test]
    fn sums_fill_the_device_without_many_parts() {
        let sum = Work::Sum { multiprocessors: 132 };
        // Four blocks on each of 132 multiprocessors, less one: parts are of equal length.
        assert_eq!(cover(DType::Bf16, [1, 64 * 3136, 256], sum).parts(), 527);
        assert_eq!(cover(DType::Bf16, [64, 3136, 256], sum).parts(), 9);
        assert_eq!(cover(DType::Bf16, [64, 64, 1024], sum).parts(), 1);
    }
}
