//! dtk
pub mod base;
pub mod cpu;
pub mod diffusion;
pub mod error;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod tape;
pub mod tensor;
pub use error::{Error, Result};
