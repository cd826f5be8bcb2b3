//! dtk
pub mod base;
pub mod checkpoint;
pub mod cpu;
pub mod data;
pub mod diffusion;
pub mod distill;
pub mod error;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod tape;
pub mod tensor;
pub use error::{Error, Result};
