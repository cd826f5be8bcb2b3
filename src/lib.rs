//! dtk
pub mod base;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cpu;
pub mod data;
pub mod diffusion;
pub mod distill;
pub mod error;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recipe;
pub mod tape;
pub mod tensor;
pub mod train;
pub use error::{Error, Result};
