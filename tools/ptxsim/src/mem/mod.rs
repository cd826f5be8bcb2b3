//! Memory and its checker: allocations, shared memory, what happened before what, access patterns and their cost.

pub mod access;
pub mod allocation;
pub mod data;
pub mod fence;
pub mod global;
mod instructions;
pub mod lanes;
#[cfg(test)]
mod model;
pub mod order;
pub mod pattern;
mod racy;
pub mod report;
pub mod shadow;
pub mod shared;
pub mod spaces;
pub mod stats;
pub mod touched;
pub mod who;
pub mod zeroed;

pub(crate) use instructions::{OPCODES, decode, ops};

pub use allocation::{AllocInfo, AllocKind};
pub use global::{GlobalMemory, MemError};
