//! Host compute on slices: threads and matrix products. Knows no tensors.

mod gemm;
mod threads;

pub use gemm::{MatMut, MatRef, gemm};
pub use threads::{column_sums, for_each_chunk, for_each_chunk2, map_ordered, sum_ordered, threads};
