//! A device, its context, and what hangs on it.

use super::arch::Arch;
use super::cache::KernelCache;
use super::driver::{Driver, Simulator};
use super::error::check;
use super::kernels::Kernels;
use super::memory::{Memory, Policy};
use super::stream::Stream;
use super::trace::Trace;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The most device memory that may be allocated; all that there is by default.
    pub memory_limit_bytes: Option<u64>,
    /// Where compiled kernels are kept, in a folder `kernels` of this one; by default `DTK_CACHE_DIR`, `$XDG_CACHE_HOME/dtk`
    /// or `~/.cache/dtk`.
    pub cache_dir: Option<PathBuf>,
    /// The driver's library, such as the simulator; by default `DTK_CUDA_DRIVER` or the system's. A process uses one.
    pub driver: Option<PathBuf>,
    /// The least bytes that are taken from the driver at once, to cut buffers from; 64 MiB by default.
    pub chunk_bytes: Option<u64>,
    /// Whether buffers are cut from larger pieces. By default they are on a card and are not on the simulator: there each
    /// buffer is an allocation of its own, since the simulator finds reads of memory that nobody wrote, uses after the end
    /// and accesses out of bounds by allocation. In a larger piece a buffer's neighbours, and what an earlier buffer at its
    /// place held, would hide them.
    pub suballocate: Option<bool>,
}

/// The least bytes of a chunk where the options say nothing.
pub(super) const CHUNK_BYTES: u64 = 64 << 20;

/// What a device says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory.
    pub total_memory_bytes: u64,
    /// The most shared memory that a block can have.
    pub shared_per_block_optin_bytes: u32,
    /// Second-level cache.
    pub l2_bytes: u32,
    /// Clock of the multiprocessors at its highest.
    pub clock_khz: u32,
    /// Clock of the memory at its highest.
    pub memory_clock_khz: u32,
    /// Width of the memory's bus.
    pub memory_bus_bits: u32,
    /// Whether this is the simulator, whose times mean nothing.
    pub simulated: bool,
    /// The highest version of CUDA that the driver knows.
    pub driver_version: (u32, u32),
}

/// Whose a context is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The device's primary context, which is shared with every other user of the device in the process.
    Primary(sys::CUdevice),
    /// The host program's: never released, and the program's own current context is put back after every call.
    Host,
}

/// A context of a device.
pub(super) struct Context {
    /// `None` on a planning device, which has neither driver nor context.
    driver: Option<&'static Driver>,
    owner: Owner,
    handle: sys::CUcontext,
    trace: Trace,
}

/// The calling thread's current context is dtk's for as long as this lives; drops are in reverse order, so the thread's stack
/// of contexts ends as it began.
#[must_use = "the context is current only while this lives"]
pub(super) struct Current {
    pushed: bool,
    /// It belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: the pointer is to a live handle; what is popped was pushed when this was made.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}

// SAFETY: the handle of a context may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn retain(driver: &'static Driver, device: sys::CUdevice) -> Result<Arc<Context>> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) };
        check(code, "cuDevicePrimaryCtxRetain")?;
        let (driver, owner) = (Some(driver), Owner::Primary(device));
        Ok(Arc::new(Context { driver, owner, handle, trace: Trace::default() }))
    }

    /// The context of a host program, which outlives this value.
    pub(super) fn of_host(driver: &'static Driver, handle: sys::CUcontext) -> Arc<Context> {
        Arc::new(Context { driver: Some(driver), owner: Owner::Host, handle, trace: Trace::default() })
    }

    /// What stands for a context on a planning device.
    pub(super) fn planning() -> Arc<Context> {
        let handle = ptr::null_mut();
        Arc::new(Context { driver: None, owner: Owner::Host, handle, trace: Trace::default() })
    }

    /// Whether this is no context.
    pub(super) fn is_planning(&self) -> bool {
        self.driver.is_none()
    }

    /// Makes this the context of the calling thread: before every call that needs one, whatever thread it is on and whatever
    /// another user of CUDA has left there. Costs some nanoseconds.
    ///
    /// The primary context stays current. A host program's context does so only as long as the result lives: where it is
    /// current already, which costs one question, nothing changes; else it is pushed, and popped in the end.
    ///
    /// # Errors
    /// The driver refuses; or this is a planning device, so that whatever would need the driver is told there.
    pub(super) fn make_current(&self) -> Result<Current> {
        if self.is_planning() {
            return Err(Error::device("a planning device works out what would be done, and does nothing")
                .with_remedy("open a device for results"));
        }
        let current = |pushed| Current { pushed, _thread: PhantomData };
        if self.owner != Owner::Host {
            // SAFETY: the context is retained as long as this value lives.
            check(unsafe { sys::cuCtxSetCurrent(self.handle) }, "cuCtxSetCurrent")?;
            return Ok(current(false));
        }
        let mut now = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check(unsafe { sys::cuCtxGetCurrent(&mut now) }, "cuCtxGetCurrent")?;
        if now == self.handle {
            return Ok(current(false));
        }
        // SAFETY: the host program keeps the context as long as this value lives.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.handle) }, "cuCtxPushCurrent")?;
        Ok(current(true))
    }

    /// Whether it is the context of this handle.
    pub(super) fn is(&self, handle: sys::CUcontext) -> bool {
        self.handle == handle
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The driver; `None` on a planning device.
    pub(super) fn driver(&self) -> Option<&'static Driver> {
        self.driver
    }

    /// The simulator's own functions, if this is the simulator.
    pub(super) fn simulator(&self) -> Option<&'static Simulator> {
        self.driver.and_then(Driver::simulator)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Owner::Primary(device) = self.owner {
            // SAFETY: retained once in `retain`, released once here. A failure leaves nothing to be done.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) };
        }
    }
}

/// An open device: its compute stream, its memory, its kernels. Clones are the same device.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    info: DeviceInfo,
    arch: Arch,
    kernels: Kernels,
    stream: Stream,
    memory: Arc<Memory>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.info().ordinal, self.info().name)
    }
}

impl Gpu {
    /// Opens a device with the default options.
    ///
    /// # Errors
    /// Those of [`Gpu::open_with`].
    pub fn open(ordinal: usize) -> Result<Gpu> {
        Self::open_with(ordinal, Options::default())
    }

    /// Opens a device. Nothing is compiled yet, and NVRTC is not looked for.
    ///
    /// # Errors
    /// There is no driver, no such device, or one older than compute capability 8.0.
    pub fn open_with(ordinal: usize, options: Options) -> Result<Gpu> {
        let driver = Driver::load(options.driver.as_deref())?;
        driver.init()?;
        let count = device_count()?;
        if ordinal >= count {
            let have = match count {
                0 => "there is none".to_string(),
                1 => "there is only device 0".to_string(),
                n => format!("there are devices 0 to {}", n - 1),
            };
            return Err(Error::device(format!("there is no CUDA device {ordinal}: {have}"))
                .with_remedy("choose another --device; `dtk info` lists them"));
        }
        let (device, info) = describe(driver, ordinal)?;
        let arch = Arch::of(info.compute_capability).map_err(|e| e.with_op(info.name.clone()))?;
        let context = Context::retain(driver, device)?;
        Self::assemble(info, arch, context, options, Stream::new)
    }

    /// A device from its parts; `stream` makes the compute stream.
    pub(super) fn assemble(
        info: DeviceInfo,
        arch: Arch,
        context: Arc<Context>,
        options: Options,
        stream: impl FnOnce(&Arc<Memory>) -> Result<Stream>,
    ) -> Result<Gpu> {
        let policy = Policy {
            limit: options.memory_limit_bytes,
            chunk_bytes: options.chunk_bytes.unwrap_or(CHUNK_BYTES).max(64 << 10),
            suballocate: options.suballocate.unwrap_or(!info.simulated),
        };
        let memory = Arc::new(Memory::new(context, policy));
        let kernels = Kernels::new(KernelCache::at(options.cache_dir.as_deref()));
        Self::from_parts(info, arch, kernels, memory, stream)
    }

    /// Puts a device together; only its compute stream is new.
    pub(super) fn from_parts(
        info: DeviceInfo,
        arch: Arch,
        kernels: Kernels,
        memory: Arc<Memory>,
        stream: impl FnOnce(&Arc<Memory>) -> Result<Stream>,
    ) -> Result<Gpu> {
        let stream = stream(&memory)?;
        Ok(Gpu(Arc::new(Inner { info, arch, kernels, stream, memory })))
    }

    /// Whether both are the same opening of a device, with the same memory. Two openings of one device share nothing.
    pub fn is(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the device says about itself.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// What kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.0.arch
    }

    /// The stream on which kernels run unless another one is named. Never the NULL stream.
    pub fn stream(&self) -> &Stream {
        &self.0.stream
    }

    /// The simulator's report on its launches, as JSON: counters and findings. `None` on a card.
    pub fn report_json(&self) -> Option<String> {
        let simulator = self.context().simulator()?;
        // After a fault the context is still there, but says so at every call.
        let _current = self.context().make_current();
        Some(simulator.report())
    }

    /// Makes the simulator forget its launches and findings. Does nothing on a card.
    pub fn report_clear(&self) {
        if let Some(simulator) = self.context().simulator() {
            let _current = self.context().make_current();
            simulator.clear();
        }
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        self.0.memory.context()
    }

    pub(super) fn mem(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.0.kernels
    }
}

/// How many devices there are.
pub(super) fn device_count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the pointer is to a live integer.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "cuDeviceGetCount")?;
    Ok(count.max(0) as usize)
}

/// The handle of a device, and what it says about itself. Needs no context.
pub(super) fn describe(driver: &Driver, ordinal: usize) -> Result<(sys::CUdevice, DeviceInfo)> {
    let mut device = 0;
    // SAFETY: the pointer is to a live handle.
    check(unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) }, "cuDeviceGet")?;
    let mut name = [0 as c_char; 256];
    // SAFETY: the buffer has as much room as is said.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device) };
    check(code, "cuDeviceGetName")?;
    // SAFETY: the driver ends the name with NUL within the buffer, which began as zeros.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut total = 0;
    // SAFETY: the pointer is to a live number.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut total, device) }, "cuDeviceTotalMem")?;
    let ask = |what: Attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, what, device) }, "cuDeviceGetAttribute")?;
        Ok(value.max(0) as u32)
    };
    let info = DeviceInfo {
        ordinal,
        name,
        compute_capability: (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_memory_bytes: total as u64,
        shared_per_block_optin_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        clock_khz: ask(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_khz: ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus_bits: ask(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        simulated: driver.simulator().is_some(),
        driver_version: driver.version(),
    };
    Ok((device, info))
}
