//! dtk
pub mod base;
pub mod diffusion;
pub mod error;
pub mod optim;
pub mod tensor;
pub use error::{Error, Result};
