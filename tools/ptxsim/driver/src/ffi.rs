//! What crosses the C boundary: pointers that a caller hands in, and the structures of the driver's interface.
//!
//! The wrappers have the layout of the pointers they stand for, so that an exported symbol takes them as its arguments
//! and everything behind it is safe code. Their contract is that of the C interface: a pointer that is not null points
//! to as many values as the function's description says. They are made by C callers only.

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// Where a result goes.
#[repr(transparent)]
pub struct Out<T>(*mut T);

/// What a caller describes.
#[repr(transparent)]
pub struct In<T>(*const T);

/// A text that ends with NUL.
#[repr(transparent)]
pub struct Text(*const c_char);

/// An opaque handle: a number of the handle table (see [`crate::handles`]), never an address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Handle(pub usize);

impl Handle {
    /// No object.
    pub const NULL: Handle = Handle(0);

    /// Whether it is no object.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T> Out<T> {
    /// For a result that nobody asked for.
    pub const fn nowhere() -> Self {
        Out(std::ptr::null_mut())
    }

    /// Whether the caller does not want it.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Refuses a null pointer, before anything is done.
    pub fn needed(self) -> Result<Self> {
        if self.is_null() { Err(Error::INVALID_VALUE) } else { Ok(self) }
    }

    /// Stores a result that the caller must take.
    pub fn set(self, value: T) -> Result {
        self.needed()?.set_if(value);
        Ok(())
    }

    /// Stores a result that the caller may refuse with a null pointer.
    pub fn set_if(self, value: T) {
        if !self.is_null() {
            // SAFETY: not null, so it is valid for a write by the contract of this module.
            unsafe { self.0.write_unaligned(value) }
        }
    }

    /// Stores several, from the given place on.
    pub fn set_at(self, index: usize, value: T) {
        if !self.is_null() {
            // SAFETY: not null, and the caller announced room for more than `index` values.
            unsafe { self.0.add(index).write_unaligned(value) }
        }
    }

    /// Reads what the caller left there.
    pub fn get(self) -> Result<T>
    where
        T: Copy,
    {
        self.needed()?;
        // SAFETY: not null, so it is valid for a read by the contract of this module.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Reads one of several that the caller left there; the pointer was checked before.
    pub fn get_at(self, index: usize) -> T
    where
        T: Copy + Default,
    {
        if self.is_null() {
            return T::default();
        }
        // SAFETY: not null, and the caller announced more than `index` values.
        unsafe { self.0.add(index).read_unaligned() }
    }

    /// The same place, for a value of another type.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// The address.
    pub fn address(self) -> usize {
        self.0 as usize
    }

    /// Where a caller's structure says a result goes.
    ///
    /// # Safety
    /// The address is null or valid for a write of `T`.
    pub unsafe fn at(address: usize) -> Self {
        Out(address as *mut T)
    }
}

impl<T: Copy> In<T> {
    /// Nothing described.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    pub fn get(self) -> Result<T> {
        if self.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, so it is valid for a read by the contract of this module.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// So many values; none need no pointer.
    pub fn list(self, count: usize) -> Result<Vec<T>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller announced `count` values.
        Ok((0..count).map(|i| unsafe { self.0.add(i).read_unaligned() }).collect())
    }

    /// What a caller's structure points to.
    ///
    /// # Safety
    /// The address is null or valid for reads of as many values as will be asked for.
    pub unsafe fn at(address: usize) -> Self {
        In(address as *const T)
    }
}

impl Text {
    /// The text.
    pub fn get(&self) -> Result<String> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, so it ends with NUL by the contract of this module.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// Copies from the program's memory.
///
/// # Safety
/// `address` is valid for reads of `into.len()` bytes.
pub unsafe fn read_host(address: usize, into: &mut [u8]) {
    if !into.is_empty() {
        // SAFETY: by this function's contract; `into` is our own memory, so the two do not overlap.
        unsafe { std::ptr::copy(address as *const u8, into.as_mut_ptr(), into.len()) }
    }
}

/// Copies to the program's memory.
///
/// # Safety
/// `address` is valid for writes of `from.len()` bytes.
pub unsafe fn write_host(address: usize, from: &[u8]) {
    if !from.is_empty() {
        // SAFETY: by this function's contract; `from` is our own memory, so the two do not overlap.
        unsafe { std::ptr::copy(from.as_ptr(), address as *mut u8, from.len()) }
    }
}

/// `CUhostFn`.
pub type HostFn = unsafe extern "C" fn(*mut c_void);
/// `CUstreamCallback`.
pub type StreamCallback = unsafe extern "C" fn(Handle, u32, *mut c_void);
/// `CUoccupancyB2DSize`.
pub type BlockToShared = unsafe extern "C" fn(c_int) -> usize;

/// `CUuuid`.
pub type Uuid = [u8; 16];

/// `CUdevprop`, of the long deprecated `cuDeviceGetProperties`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceProperties {
    /// `maxThreadsPerBlock`
    pub threads_per_block: c_int,
    /// `maxThreadsDim`
    pub threads: [c_int; 3],
    /// `maxGridSize`
    pub grid: [c_int; 3],
    /// `sharedMemPerBlock`
    pub shared_per_block: c_int,
    /// `totalConstantMemory`
    pub constant: c_int,
    /// `SIMDWidth`
    pub warp: c_int,
    /// `memPitch`
    pub pitch: c_int,
    /// `regsPerBlock`
    pub registers_per_block: c_int,
    /// `clockRate`
    pub clock_khz: c_int,
    /// `textureAlign`
    pub texture_alignment: c_int,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy2d {
    /// `src…`
    pub src: Side2d,
    /// `dst…`
    pub dst: Side2d,
    /// `WidthInBytes`
    pub width: usize,
    /// `Height`
    pub height: usize,
}

/// One side of [`Memcpy2d`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Side2d {
    /// `XInBytes`
    pub x: usize,
    /// `Y`
    pub y: usize,
    /// `MemoryType`
    pub memory: c_uint,
    /// `Host`
    pub host: usize,
    /// `Device`
    pub device: u64,
    /// `Array`
    pub array: Handle,
    /// `Pitch`
    pub pitch: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy3d {
    /// `src…`
    pub src: Side3d,
    /// `dst…`
    pub dst: Side3d,
    /// `WidthInBytes`
    pub width: usize,
    /// `Height`
    pub height: usize,
    /// `Depth`
    pub depth: usize,
}

/// One side of [`Memcpy3d`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Side3d {
    /// `XInBytes`
    pub x: usize,
    /// `Y`
    pub y: usize,
    /// `Z`
    pub z: usize,
    /// `LOD`
    pub lod: usize,
    /// `MemoryType`
    pub memory: c_uint,
    /// `Host`
    pub host: usize,
    /// `Device`
    pub device: u64,
    /// `Array`
    pub array: Handle,
    /// `reserved`
    pub reserved: usize,
    /// `Pitch`
    pub pitch: usize,
    /// `Height`
    pub rows: usize,
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// `type`: 0 none, 1 device, 2 host and its NUMA forms above.
    pub kind: c_uint,
    /// `id`
    pub id: c_int,
}

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProperties {
    /// `allocType`: 1 is pinned, the only one there is.
    pub allocation: c_uint,
    /// `handleTypes`
    pub handles: c_uint,
    /// `location`
    pub location: Location,
    /// `win32SecurityAttributes`
    pub security: usize,
    /// `maxSize`
    pub max_bytes: usize,
    /// `usage`
    pub usage: u16,
    /// `reserved`
    pub reserved: [u8; 54],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AccessDescription {
    /// `location`
    pub location: Location,
    /// `flags`: 0 none, 1 read, 3 read and write.
    pub flags: c_uint,
}

/// `CUctxCreateParams`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ContextParams {
    /// `execAffinityParams`
    pub affinity: usize,
    /// `numExecAffinityParams`
    pub affinity_count: c_int,
    /// `cigParams`
    pub graphics: usize,
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfigC {
    /// `gridDim`
    pub grid: [c_uint; 3],
    /// `blockDim`
    pub block: [c_uint; 3],
    /// `sharedMemBytes`
    pub shared: c_uint,
    /// `hStream`
    pub stream: Handle,
    /// `attrs`
    pub attributes: In<LaunchAttribute>,
    /// `numAttrs`
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    /// `id`
    pub id: c_uint,
    /// Padding.
    pub pad: c_uint,
    /// `value`: a union of 64 bytes.
    pub value: [u64; 8],
}

/// `CUDA_KERNEL_NODE_PARAMS_v1`, and the beginning of `_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeParams {
    /// `func`
    pub function: Handle,
    /// `gridDim`
    pub grid: [c_uint; 3],
    /// `blockDim`
    pub block: [c_uint; 3],
    /// `sharedMemBytes`
    pub shared: c_uint,
    /// `kernelParams`
    pub params: usize,
    /// `extra`
    pub extra: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeParams2 {
    /// What v1 has.
    pub base: KernelNodeParams,
    /// `kern`
    pub kernel: Handle,
    /// `ctx`
    pub context: Handle,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HostNodeParams {
    /// `fn`
    pub function: Option<HostFn>,
    /// `userData`
    pub data: usize,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemsetNodeParams {
    /// `dst`
    pub dst: u64,
    /// `pitch`
    pub pitch: usize,
    /// `value`
    pub value: c_uint,
    /// `elementSize`
    pub element: c_uint,
    /// `width`, in elements
    pub width: usize,
    /// `height`
    pub height: usize,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InstantiateParams {
    /// `flags`
    pub flags: u64,
    /// `hUploadStream`
    pub stream: Handle,
    /// `hErrNode_out`
    pub error_node: Handle,
    /// `result_out`
    pub result: c_uint,
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateResult {
    /// `result`
    pub result: c_uint,
    /// `errorNode`
    pub node: Handle,
    /// `errorFromNode`
    pub from: Handle,
}

/// `CUtensorMap`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

const _: () = {
    assert!(size_of::<Memcpy2d>() == 128);
    assert!(size_of::<Memcpy3d>() == 200);
    assert!(size_of::<PoolProperties>() == 88);
    assert!(size_of::<LaunchConfigC>() == 56);
    assert!(size_of::<LaunchAttribute>() == 72);
    assert!(size_of::<KernelNodeParams>() == 56);
    assert!(size_of::<KernelNodeParams2>() == 72);
    assert!(size_of::<MemsetNodeParams>() == 40);
    assert!(size_of::<InstantiateParams>() == 32);
    assert!(size_of::<UpdateResult>() == 24);
    assert!(size_of::<TensorMap>() == 128);
};
