//! The interpreter: lowering of the tree to decoded instructions, warps, blocks, launches.

pub mod alloc;
mod alu;
mod asynch;
pub mod barrier;
mod build;
pub mod builtin;
pub mod control;
pub mod cx;
pub mod format;
pub mod inst;
pub mod lanes;
pub mod launch;
pub mod lower;
mod place;
pub mod program;
mod schedule;
pub mod special;
mod tensor;
#[cfg(test)]
pub(crate) mod test_bench;
pub mod warp;
mod warp_ops;
