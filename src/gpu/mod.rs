//! The CUDA floor: devices, streams, memory, kernels compiled at run time. Knows no tensors and no operations.
//!
//! ```no_run
//! use dtk::gpu::{Defines, Gpu, Grid};
//! # #[repr(C)]
//! # #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
//! # struct Params { x: u64, n: u64 }
//! # fn main() -> dtk::Result<()> {
//! let gpu = Gpu::open(0)?;
//! let x = gpu.alloc(4096, "example")?;
//! let kernel = gpu.kernel("relu.cu", "relu_fwd", &Defines::new().set("BF16", 1))?;
//! let grid = Grid { grid: [4, 1, 1], block: 256, shared_bytes: 0 };
//! kernel.launch(gpu.stream(), grid, &Params { x: x.ptr(), n: 1024 })?;
//! # Ok(())
//! # }
//! ```
//!
//! Nothing of CUDA is needed to build, and a machine without it runs everything that asks for no device: driver and NVRTC are
//! looked for at run time, and [`status`] says what is there. `docs/gpu.md` tells more.

mod arch;
mod arena;
mod buffer;
mod cache;
mod defines;
mod device;
mod driver;
mod entry;
mod error;
mod event;
mod graph;
mod kernels;
mod launch;
mod ledger;
mod library;
mod memory;
mod module;
pub mod nvrtc;
mod pinned;
mod planning;
mod ptx;
mod raw;
mod readback;
mod source;
mod status;
mod stream;
mod trace;
mod warm;

pub use arch::Arch;
pub use buffer::Buffer;
pub use cache::{CacheReport, KernelCache, Origin};
pub use defines::Defines;
pub use device::{DeviceInfo, Gpu, Options};
pub use event::Event;
pub use graph::Graph;
pub use launch::{Grid, Kernel};
pub use ledger::{MemoryReport, TagUse};
pub use nvrtc::Resources;
pub use pinned::{PinnedBuffer, Prefetch};
pub use planning::{Extent, Place};
pub use readback::Readback;
pub use source::Source;
pub use status::{CacheStatus, DriverStatus, NvrtcStatus, Status, status};
pub use stream::Stream;
pub use trace::{Identity, Launch, Work};
pub use warm::{Unit, warm};
