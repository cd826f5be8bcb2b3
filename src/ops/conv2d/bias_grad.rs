//! Sums of the columns of a matrix on a CUDA device: the gradient of a bias.

use crate::base::DType;
use crate::error::Result;
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// `ColumnSumParams` of `kernels/tile/column_sum.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Params {
    pub input: u64,
    pub output: u64,
    pub rows: i32,
    pub columns: i32,
}

/// Threads of a block, and how many of them lie side by side.
pub(super) const THREADS: usize = 256;
const LANES: usize = 8;
/// Rows that are worth a block of their own: 8 turns of its 32 slots.
const ROWS_OF_PART: usize = 256;
/// How far beyond the last row the kernel counts.
const MOST_ROWS_AHEAD: usize = 1 << 16;

/// Whether rows of `columns` elements can be read 16 bytes at a time.
pub(super) fn is_wide(dtype: DType, columns: usize) -> bool {
    columns.is_multiple_of(16 / dtype.size())
}

/// Blocks across `columns` columns.
pub(super) fn blocks(dtype: DType, columns: usize) -> usize {
    let each = if is_wide(dtype, columns) { 16 / dtype.size() } else { 1 };
    columns.div_ceil(LANES * each)
}

/// Parts that the rows are cut into: enough for four blocks on every multiprocessor, if there are that many rows.
fn parts(dtype: DType, rows: usize, columns: usize, multiprocessors: usize) -> usize {
    let enough = (4 * multiprocessors).div_ceil(blocks(dtype, columns));
    enough.min(rows.div_ceil(ROWS_OF_PART)).max(1)
}

fn call(dtype: DType, wide: bool) -> Call {
    Call::new("conv2d_bias_grad.cu", "conv2d_bias_grad_sum").dtype(dtype).set("VEC", u8::from(wide))
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let all = [(DType::F32, true), (DType::F32, false), (DType::Bf16, true), (DType::Bf16, false)];
    all.into_iter().map(|(dtype, wide)| call(dtype, wide).variant::<Params>()).collect()
}

/// The sums of the columns of `[rows, columns]`, in two passes over memory of the caller's: parts of the rows, then the parts.
/// The order of additions is a function of the sizes, the type and the number of multiprocessors.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSum {
    dtype: DType,
    rows: usize,
    columns: usize,
    parts: usize,
}

impl ColumnSum {
    /// For a matrix of bf16 or f32 with at least one row and one column.
    pub fn new(dtype: DType, rows: usize, columns: usize, multiprocessors: usize) -> Self {
        ColumnSum { dtype, rows, columns, parts: parts(dtype, rows, columns, multiprocessors) }
    }

    /// Parts of the rows. With one there is no second pass, and no memory for the parts.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Launches the passes on the compute stream. `input` is the matrix, `partial` f32 `[parts, columns]` (not used if there
    /// is one part), `output` f32 `[columns]`: device addresses, aligned to 16 bytes.
    ///
    /// # Errors
    /// More rows or columns than the kernel counts to, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu, input: u64, partial: u64, output: u64) -> Result<()> {
        let pass = |dtype: DType, rows: usize, parts: usize, input: u64, output: u64| {
            let columns = self.columns;
            let p = Params {
                input,
                output,
                rows: int("conv2d", "rows", rows + MOST_ROWS_AHEAD)? - MOST_ROWS_AHEAD as i32,
                columns: int("conv2d", "channels", columns)?,
            };
            let grid = Grid {
                grid: [blocks(dtype, columns) as u32, parts as u32, 1],
                block: THREADS as u32,
                shared_bytes: 0,
            };
            call(dtype, is_wide(dtype, columns)).launch(gpu, grid, &p)
        };
        if self.parts == 1 {
            return pass(self.dtype, self.rows, 1, input, output);
        }
        pass(self.dtype, self.rows, self.parts, input, partial)?;
        pass(DType::F32, self.parts, 1, partial, output)
    }
}

/// `db [c]` f32: the sum of `gy [.., c]`, bf16 or f32, over all axes but the last.
///
/// # Errors
/// Another dtype, more rows than the kernel counts to, no memory, or a failed compilation or launch.
pub(in crate::ops) fn bias_gradient(gpu: &Gpu, gy: &Tensor) -> Result<Tensor> {
    let dtype = operand_dtype("conv2d", &[gy])?;
    let columns = gy.shape().last();
    let sum = ColumnSum::new(dtype, gy.elems() / columns, columns, gpu.info().multiprocessors as usize);
    let db = Tensor::empty_gpu([columns], DType::F32, gpu, "bias gradient")?;
    let parts = match sum.parts() {
        1 => db.clone(),
        parts => Tensor::empty_gpu([parts, columns], DType::F32, gpu, "bias gradient parts")?,
    };
    sum.run(gpu, gy.cuda_ptr()?, parts.cuda_ptr()?, db.cuda_ptr()?)?;
    Ok(db)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_device_and_never_outnumber_the_rows() {
        assert_eq!(parts(DType::F32, 64 * 56 * 56, 96, 132), 176);
        assert_eq!(parts(DType::Bf16, 64 * 56 * 56, 1536, 132), 22);
        assert_eq!(parts(DType::F32, 257, 8, 132), 2);
        assert_eq!(parts(DType::Bf16, 1, 1, 132), 1);
    }

    #[test]
    fn odd_columns_are_read_one_by_one() {
        assert_eq!((is_wide(DType::F32, 12), is_wide(DType::Bf16, 12)), (true, false));
        assert_eq!((blocks(DType::F32, 96), blocks(DType::Bf16, 96), blocks(DType::F32, 37)), (3, 2, 5));
    }
}
