//! Where a tensor lives.

use std::fmt;

/// Where a tensor lives and where operations on it run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// Host memory and host threads.
    Cpu,
    /// Nowhere: the tensor has a shape and a dtype but no data. Used to plan shapes, FLOPs and memory.
    Meta,
    /// The CUDA device of this ordinal.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Meta => f.write_str("meta"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}
