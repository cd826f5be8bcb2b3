//! dtk
pub mod base;
pub mod data;
pub mod error;
pub mod tensor;
pub use error::{Error, Result};
