//! Devices and their attributes.

use crate::context::initialised;
use crate::error::{Error, Result};
use crate::ffi::{DeviceProperties, Handle, Out, Text, Uuid};
use crate::handles;
use crate::pool::Pool;
use crate::state::{Device, lock};
use ptxsim::card::Card;
use std::ffi::c_char;
use std::sync::Arc;

/// What `cuDriverGetVersion` answers: CUDA 13.0.
pub const VERSION: i32 = 13000;
/// PCI bus of the first device; one each.
const FIRST_BUS: i32 = 0x19;
/// Largest extents of a grid.
pub const GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Largest extents of a block.
pub const BLOCK: [u32; 3] = [1024, 1024, 64];

/// `cuDriverGetVersion`.
pub fn version(out: Out<i32>) -> Result {
    out.set(VERSION)
}

/// `cuDeviceGetCount`.
pub fn count(out: Out<i32>) -> Result {
    out.set(initialised()?.devices.len() as i32)
}

/// `cuDeviceGet`.
pub fn get(out: Out<i32>, ordinal: i32) -> Result {
    let driver = initialised()?;
    out.needed()?;
    driver.device(ordinal)?;
    out.set(ordinal)
}

/// Writes a text with its NUL into a caller's buffer, cut to fit.
fn put_text(out: Out<c_char>, room: i32, text: &str) -> Result {
    out.needed()?;
    let room = usize::try_from(room).ok().filter(|&n| n > 0).ok_or(Error::INVALID_VALUE)?;
    let bytes = &text.as_bytes()[..text.len().min(room - 1)];
    for (i, &byte) in bytes.iter().chain(&[0]).enumerate() {
        out.set_at(i, byte as c_char);
    }
    Ok(())
}

/// `cuDeviceGetName`.
pub fn name(out: Out<c_char>, room: i32, ordinal: i32) -> Result {
    put_text(out, room, &initialised()?.device(ordinal)?.card.name)
}

/// `cuDeviceGetUuid` and `_v2`: the same in every process.
pub fn uuid(out: Out<Uuid>, ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    let mut uuid = *b"ptxsim\0\0\x80\0\0\0\0\0\0\0";
    uuid[6] = 0x40;
    uuid[15] = device.ordinal as u8;
    out.set(uuid)
}

/// `cuDeviceTotalMem_v2`.
pub fn total_memory(out: Out<usize>, ordinal: i32) -> Result {
    out.set(initialised()?.device(ordinal)?.card.total_memory_bytes as usize)
}

/// `cuDeviceComputeCapability`.
pub fn compute_capability(major: Out<i32>, minor: Out<i32>, ordinal: i32) -> Result {
    let (a, b) = initialised()?.device(ordinal)?.card.compute_capability;
    major.set(a as i32)?;
    minor.set(b as i32)
}

/// `cuDeviceGetProperties`.
pub fn properties(out: Out<DeviceProperties>, ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    let of = |id| attribute_of(device, id).unwrap_or(0);
    out.set(DeviceProperties {
        threads_per_block: of(1),
        threads: [of(2), of(3), of(4)],
        grid: [of(5), of(6), of(7)],
        shared_per_block: of(8),
        constant: of(9),
        warp: of(10),
        pitch: of(11),
        registers_per_block: of(12),
        clock_khz: of(13),
        texture_alignment: of(14),
    })
}

/// `cuDeviceGetAttribute`.
pub fn attribute(out: Out<i32>, id: u32, ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    out.needed()?;
    out.set(attribute_of(device, id).ok_or(Error::INVALID_VALUE)?)
}

/// The value of a `CUdevice_attribute`. Features of the hardware that the simulator has no counterpart of (arrays,
/// imports, virtual memory management, stream memory operations) are absent, so that a program that asks goes another
/// way.
fn attribute_of(device: &Device, id: u32) -> Option<i32> {
    let Card { compute_capability: (major, minor), .. } = device.card;
    let card = &device.card;
    let hopper = i32::from(major >= 9);
    let value = match id {
        1 => card.threads_per_block as i32,
        2 => BLOCK[0] as i32,
        3 => BLOCK[1] as i32,
        4 => BLOCK[2] as i32,
        5 => GRID[0] as i32,
        6 => GRID[1] as i32,
        7 => GRID[2] as i32,
        8 => card.shared_per_block_bytes as i32,
        9 => card.constant_bytes as i32,
        10 => 32,
        11 => i32::MAX, // largest pitch
        12 => card.registers_per_block as i32,
        13 => card.clock_khz as i32,
        14 => 512, // alignment of textures
        15 => 1,   // copies overlap with kernels
        16 => card.multiprocessors as i32,
        17 | 18 => 0, // a run-time limit; integrated
        19 => 1,      // maps host memory
        20 => 0,      // compute mode: default
        21..=29 => texture_limit(id),
        30 => 512, // alignment of surfaces
        31 => 1,   // kernels run side by side
        32 => 1,   // ECC
        33 => FIRST_BUS + device.ordinal as i32,
        34 | 35 => 0, // PCI device; TCC driver
        36 => card.memory_clock_khz as i32,
        37 => card.memory_bus_bits as i32,
        38 => card.l2_bytes as i32,
        39 => card.threads_per_multiprocessor as i32,
        40 => card.async_engines as i32,
        41 => 1, // unified addressing
        42..=49 => texture_limit(id),
        50 => 0,  // PCI domain
        51 => 32, // alignment of texture pitches
        52..=74 | 77 => texture_limit(id),
        75 => major as i32,
        76 => minor as i32,
        78..=80 => 1, // stream priorities; global and local accesses through the first-level cache
        81 => card.shared_per_multiprocessor_bytes as i32,
        82 => card.registers_per_multiprocessor as i32,
        83 => 1,                     // managed memory
        84 => 0,                     // several devices on the board
        85 => device.ordinal as i32, // board
        86 => 0,                     // native atomics to the host
        87 => card.single_to_double_ratio as i32,
        88 => 0,      // pageable memory is not accessible
        89..=91 => 1, // concurrent managed access; pre-emption; host pointers of registered memory
        92..=94 => 0, // stream memory operations, first version
        95 => 1,      // cooperative launch
        96 => 0,      // cooperative launch on several devices
        97 => card.shared_per_block_optin_bytes as i32,
        98 => 0,        // flushes of remote writes
        99 => 1,        // host memory can be registered
        100..=105 => 0, // page tables of the host; virtual memory management and its handle types
        106 => card.blocks_per_multiprocessor as i32,
        107 => 0, // compressible memory
        108 => card.l2_persisting_bytes as i32,
        109 => 134_213_632, // largest access policy window
        110 => 0,           // RDMA
        111 => card.reserved_shared_per_block_bytes as i32,
        112 => 0,       // sparse arrays
        113 => 1,       // read-only registration
        114 => 0,       // timeline semaphores
        115 => 1,       // memory pools
        116..=119 => 0, // RDMA; shareable pool handles
        120 => i32::from(card.cluster_blocks > 1),
        121..=125 => 0, // deferred mapping; stream memory operations; dma_buf; events between processes
        126 => {
            if hopper == 1 {
                4
            } else {
                1
            }
        } // memory synchronisation domains
        127 => hopper,  // tensor maps
        128 => 0,       // fabric handles
        129 => 1,       // unified function pointers
        130 => 0,       // NUMA of the device
        131 => -1,      // its NUMA node
        132 | 133 => 0, // multicast; MPS
        134 => 0,       // NUMA node of the host
        135..=138 => 0, // graphics; decompression
        139 => {
            if hopper == 1 {
                0x2330_10de
            } else {
                0x20b2_10de
            }
        }
        140 => 0,
        141..=147 => 0, // host NUMA forms of memory management
        _ => return None,
    };
    Some(value)
}

/// Extents of textures and surfaces. The simulator has neither, but a program may print them.
fn texture_limit(id: u32) -> i32 {
    match id {
        21 | 22 => 131_072,
        23 => 65_536,
        24..=26 => 16_384,
        27 | 28 | 42 => 32_768,
        29 | 43 => 2048,
        44 => 1, // gathering
        45 | 46 => 32_768,
        47 | 48 => 8192,
        49 => 32_768,
        52 | 53 => 32_768,
        54 => 2046,
        55 | 61 | 63 | 64 | 66 | 67 => 32_768,
        56 => 131_072,
        57 => 65_536,
        58..=60 => 16_384,
        62 | 65 => 2048,
        68 => 2046,
        69 => 268_435_456,
        70 => 131_072,
        71 => 65_000,
        72 => 2_097_120,
        73 | 74 | 77 => 32_768,
        _ => 0,
    }
}

/// `cuDeviceCanAccessPeer`.
pub fn can_access_peer(out: Out<i32>, ordinal: i32, peer: i32) -> Result {
    let driver = initialised()?;
    let different = driver.device(ordinal)?.ordinal != driver.device(peer)?.ordinal;
    out.set(i32::from(different))
}

/// `cuDeviceGetP2PAttribute`: rank, access, native atomics, arrays; in that order from 1 on.
pub fn peer_attribute(out: Out<i32>, id: u32, ordinal: i32, peer: i32) -> Result {
    let driver = initialised()?;
    if driver.device(ordinal)?.ordinal == driver.device(peer)?.ordinal {
        return Err(Error::INVALID_DEVICE);
    }
    match id {
        1..=3 => out.set(i32::from(id != 1)),
        4 | 5 => out.set(0),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuDeviceGetPCIBusId`.
pub fn pci_bus_id(out: Out<c_char>, room: i32, ordinal: i32) -> Result {
    put_text(out, room, &bus_text(initialised()?.device(ordinal)?))
}

fn bus_text(device: &Device) -> String {
    format!("0000:{:02X}:00.0", FIRST_BUS as usize + device.ordinal)
}

/// `cuDeviceGetByPCIBusId`: with or without the domain and the function.
pub fn by_pci_bus_id(out: Out<i32>, text: Text) -> Result {
    let driver = initialised()?;
    out.needed()?;
    let wanted = text.get()?.to_ascii_uppercase();
    let found = driver.devices.iter().find(|device| {
        let full = bus_text(device);
        let forms = [&full[..], &full[5..], &full[..10], &full[5..10]];
        forms.contains(&wanted.as_str())
    });
    out.set(found.ok_or(Error::INVALID_VALUE)?.ordinal as i32)
}

/// `cuDeviceGetExecAffinitySupport`: none.
pub fn affinity_support(out: Out<i32>, kind: i32, ordinal: i32) -> Result {
    initialised()?.device(ordinal)?;
    if kind != 0 {
        return Err(Error::INVALID_VALUE);
    }
    out.set(0)
}

/// `cuDeviceGetDefaultMemPool`.
pub fn default_pool(out: Out<Handle>, ordinal: i32) -> Result {
    out.set(initialised()?.device(ordinal)?.default_pool.handle)
}

/// `cuDeviceGetMemPool`.
pub fn get_pool(out: Out<Handle>, ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    out.set(lock(&device.current_pool).handle)
}

/// `cuDeviceSetMemPool`.
pub fn set_pool(ordinal: i32, pool: Handle) -> Result {
    let device = initialised()?.device(ordinal)?;
    let pool: Arc<Pool> = handles::find(pool).ok_or(Error::INVALID_VALUE)?;
    if pool.ordinal != device.ordinal {
        return Err(Error::INVALID_VALUE);
    }
    *lock(&device.current_pool) = pool;
    Ok(())
}
