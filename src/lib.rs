//! dtk
pub mod base;
pub mod checkpoint;
pub mod error;
pub mod tensor;
pub use error::{Error, Result};
