//! Rows of channels: `[segments, rows, columns]`, where a segment holds the rows of one sample, or all rows.

use super::{DTYPES, THREADS, chunk};
use crate::base::DType;
use crate::error::Result;
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::int;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// Most chunks of columns of a block that goes down the rows: a warp.
const MOST_LANES: usize = 32;
/// Least and most rows that a thread goes through for one reading of what belongs to its columns.
const TURNS: [usize; 2] = [16, 32];
/// Blocks that are wanted on every multiprocessor before threads are given more rows than the least.
const BLOCKS_EACH: usize = 8;
/// Chunks across, and slots down, of a block that sums rows (`kernels/tile/column_sum.cuh`).
const SUM_LANES: usize = 8;
/// Rows of a part that is worth a block of its own when rows are summed.
const ROWS_OF_PART: usize = 512;
/// Most parts: what the second axis of a grid takes.
const MOST_PARTS: usize = 1 << 15;

/// The sizes of `[segments, rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Rows {
    pub segments: usize,
    pub rows: usize,
    pub columns: usize,
}

/// `RowLayout` of `kernels/tile/rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(in crate::ops) struct Layout {
    rows: i64,
    length: i64,
    columns: i32,
    lanes: i32,
    slots: i32,
    across: i32,
    parts: i32,
    pad: i32,
}

/// `RowMapParams` of `kernels/tile/rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(in crate::ops) struct RowMapParams {
    pub input: u64,
    pub row: u64,
    pub output: u64,
    pub at: Layout,
}

/// `RowSumParams` of `kernels/tile/row_sum.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(in crate::ops) struct RowSumParams {
    input: u64,
    output: u64,
    rows: i32,
    columns: i32,
    across: i32,
    scale: f32,
}

/// Whether rows of `columns` elements can be read 16 bytes at a time.
pub(in crate::ops) fn is_wide(dtype: DType, columns: usize) -> bool {
    columns.is_multiple_of(chunk(dtype))
}

/// The variant of a kernel that goes down rows of `dtype`.
pub(in crate::ops) fn map_call(call: Call, dtype: DType, wide: bool) -> Call {
    call.dtype(dtype).set("VEC", u8::from(wide))
}

/// Every variant of [`map_call`] with a parameter of type `P`.
pub(in crate::ops) fn map_variants<P: Pod>(call: &Call) -> Vec<Variant> {
    let of = |dtype| [false, true].map(|wide| map_call(call.clone(), dtype, wide).variant::<P>());
    DTYPES.into_iter().flat_map(of).collect()
}

impl Rows {
    /// Threads for the rows, each with `each` columns, and the grid of them.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to.
    pub fn layout(&self, op: &str, each: usize, multiprocessors: usize) -> Result<(Layout, Grid)> {
        let chunks = self.columns.div_ceil(each);
        let across = chunks.div_ceil(MOST_LANES);
        let lanes = chunks.div_ceil(across);
        let slots = THREADS / lanes;
        let enough = (multiprocessors * BLOCKS_EACH).div_ceil(across * self.segments);
        let turns = self.rows.div_ceil(slots * enough).clamp(TURNS[0], TURNS[1]);
        let length = slots * turns;
        let parts = self.rows.div_ceil(length);
        let blocks = int(op, "blocks of rows", self.segments * parts * across)?;
        let layout = Layout {
            rows: self.rows as i64,
            length: length as i64,
            columns: int(op, "channels", self.columns)?,
            lanes: lanes as i32,
            slots: slots as i32,
            across: int(op, "blocks of a row", across)?,
            parts: int(op, "parts of the rows", parts)?,
            pad: 0,
        };
        Ok((layout, Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 }))
    }

    /// [`Rows::layout`] for threads that read chunks of `dtype` where rows are made of them, else elements.
    ///
    /// # Errors
    /// As [`Rows::layout`].
    pub fn layout_for(&self, gpu: &Gpu, op: &str, dtype: DType) -> Result<(Layout, Grid)> {
        let each = if is_wide(dtype, self.columns) { chunk(dtype) } else { 1 };
        self.layout(op, each, gpu.info().multiprocessors as usize)
    }

    /// Launches `call` on `x` `[segments, rows, columns]` and `own` `[segments, columns]`; gives a result like `x`. The
    /// kernel's element type and `VEC` are set here.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to, no memory, or a failed compilation or launch.
    pub fn map(&self, gpu: &Gpu, op: &'static str, call: Call, x: &Tensor, own: &Tensor) -> Result<Tensor> {
        let y = Tensor::empty_gpu(x.shape(), x.dtype(), gpu, op)?;
        if x.elems() > 0 {
            let (at, grid) = self.layout_for(gpu, op, x.dtype())?;
            let p = RowMapParams { input: x.cuda_ptr()?, row: own.cuda_ptr()?, output: y.cuda_ptr()?, at };
            map_call(call, x.dtype(), is_wide(x.dtype(), self.columns)).launch(gpu, grid, &p)?;
        }
        Ok(y)
    }

    /// Blocks across the columns of a sum, and parts of the rows: enough for four blocks on every multiprocessor, if
    /// there are that many rows.
    pub fn sum_blocks(&self, dtype: DType, multiprocessors: usize) -> (usize, usize) {
        let each = if is_wide(dtype, self.columns) { chunk(dtype) } else { 1 };
        let across = self.columns.div_ceil(SUM_LANES * each);
        let enough = (4 * multiprocessors).div_ceil(across * self.segments);
        (across, enough.min(self.rows.div_ceil(ROWS_OF_PART)).clamp(1, MOST_PARTS))
    }

    /// One launch of a sum: `parts` of the rows of `dtype` at `input` to `out` (its type) at `output`.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to, or a failed compilation or launch.
    pub fn sum_part(&self, gpu: &Gpu, op: &'static str, call: Call, pass: SumPass) -> Result<()> {
        let SumPass { input, output, dtype, out, parts, scale } = pass;
        let (across, _) = self.sum_blocks(dtype, 1);
        let p = RowSumParams {
            input,
            output,
            rows: int(op, "rows", self.rows + self.rows.div_ceil(parts))? - self.rows.div_ceil(parts) as i32,
            columns: int(op, "channels", self.columns)?,
            across: int(op, "blocks of a row", across)?,
            scale,
        };
        let blocks = int(op, "blocks of rows", across * self.segments)?;
        let grid = Grid { grid: [blocks as u32, parts as u32, 1], block: THREADS as u32, shared_bytes: 0 };
        sum_call(call, dtype, out, is_wide(dtype, self.columns)).launch(gpu, grid, &p)
    }

    /// Sums of the rows of each segment of `x`, times `scale`: `y` `[segments, columns]` of `x`'s type or f32. With more than
    /// one part the kernel runs again over the parts, which are f32.
    ///
    /// # Errors
    /// As [`Rows::map`].
    pub fn sum(
        &self,
        gpu: &Gpu,
        op: &'static str,
        call: Call,
        x: &Tensor,
        y: &Tensor,
        scale: f32,
    ) -> Result<()> {
        let (_, parts) = self.sum_blocks(x.dtype(), gpu.info().multiprocessors as usize);
        let first = SumPass {
            input: x.cuda_ptr()?,
            output: y.cuda_ptr()?,
            dtype: x.dtype(),
            out: y.dtype(),
            parts,
            scale,
        };
        if parts == 1 {
            return self.sum_part(gpu, op, call, first);
        }
        let partial = Tensor::empty_gpu([self.segments, parts, self.columns], DType::F32, gpu, op)?;
        let first = SumPass { output: partial.cuda_ptr()?, out: DType::F32, scale: 1.0, ..first };
        self.sum_part(gpu, op, call.clone(), first)?;
        self.sum_parts(gpu, op, call, &partial, y, scale)
    }

    /// The second launch of a sum: `partial` f32 `[segments, parts, columns]` to `y`.
    ///
    /// # Errors
    /// As [`Rows::map`].
    pub fn sum_parts(
        &self,
        gpu: &Gpu,
        op: &'static str,
        call: Call,
        partial: &Tensor,
        y: &Tensor,
        scale: f32,
    ) -> Result<()> {
        let rows = Rows { rows: partial.shape()[1], ..*self };
        let (input, output) = (partial.cuda_ptr()?, y.cuda_ptr()?);
        let pass = SumPass { input, output, dtype: DType::F32, out: y.dtype(), parts: 1, scale };
        rows.sum_part(gpu, op, call, pass)
    }
}

/// One launch of a sum: addresses and types of what is read and written, and into how many parts.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct SumPass {
    pub input: u64,
    pub output: u64,
    pub dtype: DType,
    pub out: DType,
    pub parts: usize,
    pub scale: f32,
}

/// The variant of a kernel that sums rows of `dtype` to `out`.
pub(in crate::ops) fn sum_call(call: Call, dtype: DType, out: DType, wide: bool) -> Call {
    call.dtype(dtype).set("OUT_BF16", u8::from(out == DType::Bf16)).set("VEC", u8::from(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_has_a_thread() {
        for (segments, rows, columns, each) in [
            (1, 1, 1, 1),
            (3, 7, 96, 8),
            (1, 200_704, 96, 8),
            (64, 3136, 2048, 8),
            (2, 5, 37, 1),
            (1, 9, 264, 8),
        ] {
            let (l, grid) = Rows { segments, rows, columns }.layout("t", each, 132).unwrap();
            assert!(
                l.lanes * l.slots <= THREADS as i32 && l.lanes * l.across * each as i32 >= columns as i32
            );
            assert!(
                l.length * i64::from(l.parts) >= rows as i64
                    && l.length * i64::from(l.parts - 1) < rows as i64
            );
            assert_eq!(grid.grid[0] as usize, segments * (l.parts * l.across) as usize);
        }
        let large = Rows { segments: 1, rows: 64 * 56 * 56, columns: 96 };
        let (l, grid) = large.layout("t", 8, 132).unwrap();
        assert!(grid.grid[0] >= 2 * 132 && l.length >= 8 * i64::from(l.slots), "{l:?} {grid}");
    }

    #[test]
    fn sums_fill_the_device_and_no_part_is_empty() {
        let parts = |segments, rows, columns| Rows { segments, rows, columns }.sum_blocks(DType::Bf16, 132);
        assert_eq!(parts(1, 64 * 56 * 56, 96), (2, 264));
        assert_eq!(parts(64, 49, 2048), (32, 1));
        assert_eq!(parts(1, 1, 3), (1, 1));
    }
}
