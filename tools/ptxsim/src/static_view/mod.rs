//! What can be said of a kernel's machine code without running it: the instructions of a cubin, as nvdisasm prints them,
//! their mix in the whole kernel and in its hottest loop, registers, spills and shared memory.
//!
//! These are counts of instructions that stand there. None of them is a time.

pub mod class;
pub mod flow;
pub mod nvdisasm;
pub mod profile;
pub mod sass;

pub use class::Class;
pub use flow::{Flow, Loop};
pub use nvdisasm::{Nvdisasm, NvdisasmError};
pub use profile::{Mix, Profile};
pub use sass::{Instruction, Sass};
