//! The vocabulary every layer shares: shapes, dtypes and the counter-based random generator.

mod dtype;
mod rng;
mod shape;

pub use dtype::DType;
pub use rng::{Philox, Sequence};
pub use shape::{MAX_RANK, Shape};
