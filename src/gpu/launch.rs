//! Kernels and their launches.

use super::device::Context;
use super::error::{check, explain};
use super::module::Module;
use super::nvrtc::Resources;
use super::stream::Stream;
use super::trace::Identity;
use crate::error::{Error, Result};
use bytemuck::Pod;
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many blocks of how many threads, and the shared memory that each block gets beside what the source declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, in one dimension.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.grid;
        let Grid { block, shared_bytes, .. } = self;
        write!(
            f,
            "{x} x {y} x {z} blocks of {block} threads with {shared_bytes} bytes of dynamic shared memory"
        )
    }
}

/// Shared memory that a block can have without asking.
const SHARED_UNASKED: u32 = 48 * 1024;
/// The most threads of a block.
const MOST_THREADS: u32 = 1024;
/// The most blocks in x.
const MOST_BLOCKS_X: u32 = i32::MAX as u32;
/// The most blocks in y and z.
const MOST_BLOCKS_YZ: u32 = 65_535;

impl Grid {
    /// Whether every device can launch it; if not, why.
    fn check(&self, static_shared: u32, most_shared: u32) -> Result<(), String> {
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 || self.block == 0 {
            return Err("there is nothing to launch".into());
        }
        if self.block > MOST_THREADS {
            return Err(format!("a block has at most {MOST_THREADS} threads"));
        }
        if x > MOST_BLOCKS_X || y > MOST_BLOCKS_YZ || z > MOST_BLOCKS_YZ {
            return Err(format!(
                "there are at most {MOST_BLOCKS_X} x {MOST_BLOCKS_YZ} x {MOST_BLOCKS_YZ} blocks"
            ));
        }
        if u64::from(static_shared) + u64::from(self.shared_bytes) > u64::from(most_shared) {
            return Err(format!(
                "with {static_shared} bytes of its own it wants more shared memory than the {most_shared} bytes that a \
                 block of this device can have"
            ));
        }
        Ok(())
    }
}

/// The code of a kernel.
struct Loaded {
    /// Keeps the code where it is.
    _module: Arc<Module>,
    function: sys::CUfunction,
    param_bytes: usize,
}

/// One variant of a kernel, loaded. Clones are the same kernel.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

struct Inner {
    /// `None` on a planning device.
    loaded: Option<Loaded>,
    context: Arc<Context>,
    identity: Identity,
    name: String,
    resources: Resources,
    most_shared: u32,
    /// What the driver was last told that a block may have of dynamic shared memory.
    allowed_shared: AtomicU32,
}

// SAFETY: the handle of a function may be used from any thread whose current context is its own, which `launch` sees to.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kernel {
    /// A kernel of a loaded module. `most_shared` is what a block of the device can have.
    pub(super) fn of(module: Arc<Module>, identity: Identity, most_shared: u32) -> Result<Kernel> {
        let name = identity.to_string();
        let (function, param_bytes, resources) = module.entry(&identity.entry, &name)?;
        let allowed_shared = AtomicU32::new(SHARED_UNASKED.saturating_sub(resources.static_shared_bytes));
        let context = module.context().clone();
        let loaded = Some(Loaded { _module: module, function, param_bytes });
        let inner = Inner { loaded, context, identity, name, resources, most_shared, allowed_shared };
        Ok(Kernel(Arc::new(inner)))
    }

    /// A kernel whose launches are only noted.
    pub(super) fn planned(context: &Arc<Context>, identity: Identity, most_shared: u32) -> Kernel {
        Kernel(Arc::new(Inner {
            loaded: None,
            context: context.clone(),
            name: identity.to_string(),
            identity,
            resources: Resources::default(),
            most_shared,
            allowed_shared: AtomicU32::new(0),
        }))
    }

    /// Source, entry and defines: `conv2d.cu: conv2d_fwd -DBF16=1 -DBM=128`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Registers, spills and static shared memory.
    pub fn resources(&self) -> &Resources {
        &self.0.resources
    }

    /// Gives the kernel to a stream. `params` becomes its parameter, byte for byte; addresses in it are those of
    /// [`Buffer::ptr`](super::Buffer::ptr), and the buffers may be dropped as soon as this returns.
    ///
    /// # Errors
    /// A grid that the device does not take, a parameter of another size than the kernel's, a stream of another device; on
    /// the simulator, what it found while the kernel ran.
    pub fn launch<P: Pod>(&self, stream: &Stream, grid: Grid, params: &P) -> Result<()> {
        let k = &*self.0;
        let wrong = |why: String| Error::device(format!("cannot launch {grid}: {why}")).with_op(self.name());
        grid.check(k.resources.static_shared_bytes, k.most_shared).map_err(wrong)?;
        if !Arc::ptr_eq(stream.context(), &k.context) {
            return Err(wrong(
                "the stream belongs to another device, or to another opening of this one".into(),
            ));
        }
        let Some(loaded) = &k.loaded else {
            k.context.trace().note(&k.identity, grid, &k.resources);
            return Ok(());
        };
        if size_of::<P>() != loaded.param_bytes {
            let (given, taken) = (size_of::<P>(), loaded.param_bytes);
            return Err(wrong(format!("the parameter has {given} bytes, the kernel takes {taken}")));
        }
        let _current = k.context.make_current()?;
        if grid.shared_bytes > k.allowed_shared.load(Ordering::Relaxed) {
            // All that there is, so that another thread that wants less cannot lower it again.
            let most = k.most_shared - k.resources.static_shared_bytes;
            let what = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded.
            let code = unsafe { sys::cuFuncSetAttribute(loaded.function, what, most as i32) };
            check(code, "cuFuncSetAttribute").map_err(|e| e.with_op(self.name()))?;
            k.allowed_shared.store(most, Ordering::Relaxed);
        }
        let [x, y, z] = grid.grid;
        let mut params = [ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the function's module is loaded, the stream lives and belongs to its context, and there is one parameter
        // with as many bytes as the driver will read, which it does before it returns.
        let code = unsafe {
            sys::cuLaunchKernel(
                loaded.function,
                x,
                y,
                z,
                grid.block,
                1,
                1,
                grid.shared_bytes,
                stream.handle(),
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        if code == sys::CUresult::CUDA_SUCCESS {
            k.context.trace().note(&k.identity, grid, &k.resources);
            return Ok(());
        }
        let mut what = format!("launching {grid}");
        if code == sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES {
            what.push_str(&format!(", each with {} registers,", k.resources.registers));
        }
        Err(explain(code, &what).with_op(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_that_no_device_takes() {
        let grid = |grid, block, shared_bytes| Grid { grid, block, shared_bytes };
        let check = |g: Grid| g.check(1024, 232_448);
        assert_eq!(check(grid([1, 1, 1], 256, 231_424)), Ok(()));
        assert_eq!(check(grid([MOST_BLOCKS_X, MOST_BLOCKS_YZ, MOST_BLOCKS_YZ], 1024, 0)), Ok(()));
        for (wrong, needle) in [
            (grid([0, 1, 1], 256, 0), "nothing"),
            (grid([1, 1, 1], 0, 0), "nothing"),
            (grid([1, 1, 1], 1025, 0), "1024 threads"),
            (grid([1, 65_536, 1], 32, 0), "65535"),
            (grid([u32::MAX, 1, 1], 32, 0), "2147483647"),
            (grid([1, 1, 1], 256, 231_425), "232448 bytes"),
            (grid([1, 1, 1], 256, u32::MAX), "shared memory"),
        ] {
            assert!(check(wrong).unwrap_err().contains(needle), "{wrong}");
        }
    }
}
