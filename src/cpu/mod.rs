//! Host compute on slices: threads, matrix products, sums and elementary functions. Knows no tensors.

mod gemm;
pub mod math;
pub mod rows;
mod threads;

pub use gemm::{MatMut, MatRef, gemm};
pub use threads::{column_sums, for_each_chunk, for_each_chunk2, map_ordered, sum_ordered, threads};
