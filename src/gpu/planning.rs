//! Planning: a device that does nothing and notes everything.
//!
//! Whatever runs on a device runs on a planning device too: memory is cut from chunks without an end, by the same rules as on
//! a card; kernels are neither compiled nor launched, only noted. What comes out is the plan of the work: which kernels, on
//! what, where their results lie, and how much memory it takes, to the byte.

use super::arch::Arch;
use super::arena::Span;
use super::cache::KernelCache;
use super::device::{Context, DeviceInfo, Gpu};
use super::kernels::Kernels;
use super::memory::{Memory, Policy};
use super::stream::Stream;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Addresses of a planned chunk: far more than any device has.
const CHUNK_BITS: u32 = 44;

/// The planned chunk of a class of blocks. Chunks do not touch, and none begins at address 0.
pub(super) fn chunk(class: usize) -> Span {
    Span { start: (2 * class as u64 + 1) << CHUNK_BITS, bytes: 1 << CHUNK_BITS }
}

/// How far into its chunk an address lies; a chunk's end too.
pub(super) fn offset(address: u64) -> u64 {
    let chunk = (address - 1) >> CHUNK_BITS;
    address - (chunk << CHUNK_BITS)
}

/// A place in the memory of a planned step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Whether it lies among the small blocks, which have a chunk of their own.
    pub small: bool,
    /// Bytes from the beginning of the chunk.
    pub offset: u64,
}

/// The memory that a planned step takes: what [`Gpu::reserve`] is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the chunk of small blocks.
    pub small_bytes: u64,
    /// Bytes of the chunk of all others.
    pub large_bytes: u64,
}

impl Extent {
    /// Bytes of both.
    pub fn bytes(&self) -> u64 {
        self.small_bytes + self.large_bytes
    }
}

impl DeviceInfo {
    /// An H100 SXM with 80 GB: what plans are made for where no card is at hand. Numbers of NVIDIA's data sheet and of the CUDA
    /// programming guide.
    pub fn h100() -> DeviceInfo {
        DeviceInfo {
            ordinal: 0,
            name: "NVIDIA H100 80GB HBM3".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            total_memory_bytes: 80 << 30,
            shared_per_block_optin_bytes: 227 << 10,
            l2_bytes: 50 << 20,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
            memory_bus_bits: 5120,
            simulated: false,
            driver_version: (13, 0),
        }
    }
}

impl Gpu {
    /// A planning device that pretends to be the one described. Copies to it do nothing, copies from it are errors.
    ///
    /// # Errors
    /// A device older than compute capability 8.0.
    pub fn planning(info: DeviceInfo) -> Result<Gpu> {
        let arch = Arch::of(info.compute_capability)?;
        let policy = Policy { limit: None, chunk_bytes: super::device::CHUNK_BYTES, suballocate: true };
        let memory = Arc::new(Memory::new(Context::planning(), policy));
        Gpu::from_parts(info, arch, Kernels::new(KernelCache::at(None)), memory, Stream::new)
    }

    /// Whether this is a planning device.
    pub fn is_planning(&self) -> bool {
        self.context().is_planning()
    }

    /// The memory that the work on this planning device took at most. A device that reserves it before anything else gives the
    /// same work the same places.
    ///
    /// # Errors
    /// This is no planning device.
    pub fn extent(&self) -> Result<Extent> {
        if !self.is_planning() {
            return Err(Error::device("only a planning device knows how much memory work will take"));
        }
        let [small_bytes, large_bytes] = self.mem().reached();
        Ok(Extent { small_bytes, large_bytes })
    }

    /// Takes the memory of a planned step from the driver, in one piece for each class of blocks: the step then never waits for
    /// the driver, and finds its places as planned. On the simulator, where each buffer is an allocation of its own, nothing.
    ///
    /// # Errors
    /// The device has not that much left.
    pub fn reserve(&self, extent: Extent) -> Result<()> {
        self.mem().reserve([extent.small_bytes, extent.large_bytes])
    }

    /// Where an address of a planning device lies.
    pub fn place(&self, address: u64) -> Place {
        Place { small: address < chunk(1).start, offset: offset(address + 1) - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_extents() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        assert!(gpu.is_planning() && gpu.extent().unwrap() == Extent::default());
        let small = gpu.alloc(100, "a").unwrap();
        let large = gpu.alloc(8 << 20, "b").unwrap();
        let second = gpu.alloc(3 << 20, "b").unwrap();
        assert_eq!(gpu.place(small.ptr()), Place { small: true, offset: 0 });
        assert_eq!(gpu.place(large.ptr()), Place { small: false, offset: 0 });
        assert_eq!(gpu.place(second.ptr()), Place { small: false, offset: 8 << 20 });
        drop(large);
        let third = gpu.alloc(5 << 20, "b").unwrap();
        assert_eq!(gpu.place(third.ptr()).offset, 0, "what was given back is used again");
        assert_eq!(gpu.extent().unwrap(), Extent { small_bytes: 512, large_bytes: 11 << 20 });
        assert_eq!(gpu.extent().unwrap().bytes(), 512 + (11 << 20));
    }

    #[test]
    fn copies_do_nothing_and_results_are_refused() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let b = gpu.alloc(8, "a").unwrap();
        gpu.upload(&[1; 8], &b).unwrap();
        gpu.fill_byte(&b, 3).unwrap();
        gpu.copy(&b, &gpu.alloc(8, "b").unwrap()).unwrap();
        assert!(gpu.download(&b, &mut [0; 8]).unwrap_err().is_device());
        assert!(gpu.stream().synchronize().is_err() && gpu.pinned(8).is_err());
        assert!(gpu.report_json().is_none());
    }

    #[test]
    fn captures_take_memory_as_on_a_card() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let graph = gpu.stream().capture(|| {
            let x = gpu.alloc(2 << 20, "x")?;
            drop(x);
            gpu.alloc(1 << 20, "y").map(drop)
        });
        let graph = graph.unwrap();
        let outside = gpu.alloc(1 << 20, "z").unwrap();
        assert_eq!(gpu.place(outside.ptr()).offset, 2 << 20, "the graph keeps its memory");
        drop(graph);
        assert_eq!(gpu.place(gpu.alloc(2 << 20, "z").unwrap().ptr()).offset, 0);
        assert!(gpu.stream().capture(|| Err(Error::device("no"))).is_err());
        assert!(gpu.stream().capture(|| Ok(())).is_ok(), "a capture that failed has ended");
    }
}
