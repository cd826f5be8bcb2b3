//! Kernels and their attributes.

use crate::context::{Context, current, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, Out};
use crate::handles;
use crate::module::Loaded;
use crate::state;
use ptxsim::card::Card;
use ptxsim::exec::program::Kernel;
use std::ffi::{CString, c_char};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

/// A kernel of a module or library.
pub struct Function {
    /// Its name.
    pub name: String,
    /// The same, for C.
    c_name: CString,
    /// The program it is in.
    pub loaded: Arc<Loaded>,
    module: Handle,
    /// The context of its module; libraries have none.
    context: Option<Weak<Context>>,
    /// Dynamic shared memory that a launch may ask for; `None` until set: what is left of the limit without opting in.
    max_dynamic: AtomicI32,
    carve_out: AtomicI32,
    /// Required cluster, where set.
    cluster: [AtomicU32; 3],
    non_portable: AtomicU32,
    cluster_policy: AtomicU32,
}

impl Function {
    /// A kernel that the program has.
    pub fn new(name: &str, loaded: Arc<Loaded>, module: Handle, context: Option<Weak<Context>>) -> Self {
        Self {
            name: name.to_string(),
            c_name: CString::new(name).unwrap_or_default(),
            loaded,
            module,
            context,
            max_dynamic: AtomicI32::new(-1),
            carve_out: AtomicI32::new(-1),
            cluster: Default::default(),
            non_portable: AtomicU32::new(0),
            cluster_policy: AtomicU32::new(0),
        }
    }

    /// The kernel; `INVALID_HANDLE` once its module is unloaded.
    pub fn kernel(&self) -> Result<&Kernel> {
        self.loaded.check()?;
        self.loaded.program.kernel(&self.name).ok_or(Error::INVALID_HANDLE)
    }

    /// The context it runs in: its module's, or for a library's kernel the current one.
    pub fn context(&self) -> Result<Arc<Context>> {
        match &self.context {
            Some(context) => context.upgrade().ok_or(Error::CONTEXT_IS_DESTROYED),
            None => current(),
        }
    }

    /// The handle of that context; NULL where there is none.
    pub fn context_handle(&self) -> Handle {
        self.context().map_or(Handle::NULL, |c| c.handle)
    }

    /// Dynamic shared memory that a launch may ask for.
    pub fn max_dynamic_shared(&self, card: &Card) -> Result<u32> {
        let fixed = self.kernel()?.static_shared_bytes();
        match u32::try_from(self.max_dynamic.load(Ordering::Relaxed)) {
            Ok(set) => Ok(set),
            Err(_) => Ok(card.shared_per_block_bytes.saturating_sub(fixed)),
        }
    }

    /// Threads that a block of it may have: as it was compiled for. What its registers allow is not asked, since their
    /// number is an estimate, and a launch that a card would take must not be refused.
    pub fn max_threads(&self, card: &Card) -> Result<u32> {
        Ok(self.kernel()?.max_threads().min(card.threads_per_block))
    }

    /// Registers of a thread: an estimate, within what the launch bounds leave.
    pub fn registers(&self, card: &Card) -> Result<u32> {
        let kernel = self.kernel()?;
        let warps = kernel.max_threads().div_ceil(32) * kernel.min_blocks().unwrap_or(1).max(1);
        // Handed out in units of 8 for each thread.
        let bound = card.registers_per_multiprocessor / (warps * 32) / 8 * 8;
        Ok(kernel.registers().clamp(1, card.registers_per_thread).min(bound.max(16)))
    }

    /// The cluster that it was compiled for or that was set as required; zeros where there is none.
    pub fn required_cluster(&self) -> [u32; 3] {
        let compiled = self.kernel().ok().and_then(|k| k.cluster());
        compiled.unwrap_or_else(|| [0, 1, 2].map(|i| self.cluster[i].load(Ordering::Relaxed)))
    }

    /// Whether clusters beyond the portable size are allowed.
    pub fn non_portable(&self) -> bool {
        self.non_portable.load(Ordering::Relaxed) != 0
    }
}

/// The kernel of a handle.
pub fn function(handle: Handle) -> Result<Arc<Function>> {
    initialised()?;
    let function: Arc<Function> = handles::get(handle)?;
    function.kernel()?;
    Ok(function)
}

fn card(function: &Function) -> Result<&'static Card> {
    let ordinal = function.context().map_or(0, |c| c.ordinal);
    Ok(&state::driver()?.devices.get(ordinal).ok_or(Error::INVALID_DEVICE)?.card)
}

/// `cuFuncGetAttribute`.
pub fn get_attribute(out: Out<i32>, id: u32, handle: Handle) -> Result {
    current()?;
    out.needed()?;
    out.set(attribute(&*function(handle)?, id)?)
}

fn attribute(f: &Function, id: u32) -> Result<i32> {
    let kernel = f.kernel()?;
    let card = card(f)?;
    let target = f.loaded.program.target().trim_start_matches("sm_");
    let number = target.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse().unwrap_or(0);
    let (major, minor) = card.compute_capability;
    Ok(match id {
        0 => f.max_threads(card)? as i32,
        1 => kernel.static_shared_bytes() as i32,
        2 => 0, // constants are counted with the module's variables
        3 => kernel.local_bytes() as i32,
        4 => f.registers(card)? as i32,
        5 => number,
        6 => (major * 10 + minor) as i32,
        7 => 0,
        8 => f.max_dynamic_shared(card)? as i32,
        9 => f.carve_out.load(Ordering::Relaxed),
        10 => i32::from(f.required_cluster() != [0; 3]),
        11..=13 => f.required_cluster()[id as usize - 11] as i32,
        14 => f.non_portable.load(Ordering::Relaxed) as i32,
        15 => f.cluster_policy.load(Ordering::Relaxed) as i32,
        _ => return Err(Error::INVALID_VALUE),
    })
}

/// `cuFuncSetAttribute`.
pub fn set_attribute(handle: Handle, id: u32, value: i32) -> Result {
    current()?;
    set(&*function(handle)?, id, value)
}

fn set(f: &Function, id: u32, value: i32) -> Result {
    let card = card(f)?;
    let positive = u32::try_from(value).map_err(|_| Error::INVALID_VALUE);
    match id {
        8 => {
            let most = card.shared_per_block_optin_bytes.saturating_sub(f.kernel()?.static_shared_bytes());
            if positive? > most {
                return Err(Error::INVALID_VALUE);
            }
            f.max_dynamic.store(value, Ordering::Relaxed);
        }
        9 if (-1..=100).contains(&value) => f.carve_out.store(value, Ordering::Relaxed),
        11..=13 => f.cluster[id as usize - 11].store(positive?, Ordering::Relaxed),
        14 if matches!(value, 0 | 1) => f.non_portable.store(positive?, Ordering::Relaxed),
        15 if matches!(value, 0..=2) => f.cluster_policy.store(positive?, Ordering::Relaxed),
        _ => return Err(Error::INVALID_VALUE),
    }
    Ok(())
}

/// `cuFuncSetCacheConfig`: a preference, of no consequence.
pub fn set_cache_config(handle: Handle, config: u32) -> Result {
    current()?;
    function(handle)?;
    if config > 3 { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

/// `cuFuncSetSharedMemConfig`: likewise.
pub fn set_shared_config(handle: Handle, config: u32) -> Result {
    current()?;
    function(handle)?;
    if config > 2 { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

/// `cuFuncGetModule`, and `cuKernelGetLibrary` for kernels of a library.
pub fn get_module(out: Out<Handle>, handle: Handle) -> Result {
    out.set(function(handle)?.module)
}

/// `cuFuncGetName` and `cuKernelGetName`.
pub fn get_name(out: Out<*const c_char>, handle: Handle) -> Result {
    // The text lives as long as the kernel's handle.
    out.set(function(handle)?.c_name.as_ptr())
}

/// `cuFuncGetParamInfo` and `cuKernelGetParamInfo`.
pub fn param_info(handle: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) -> Result {
    let function = function(handle)?;
    let kernel = function.kernel()?;
    let param = kernel.params().get(index).ok_or(Error::INVALID_VALUE)?;
    offset.set(param.offset as usize)?;
    bytes.set_if(param.bytes as usize);
    Ok(())
}

/// `cuFuncGetParamCount` and `cuKernelGetParamCount`.
pub fn param_count(handle: Handle, out: Out<usize>) -> Result {
    out.set(function(handle)?.kernel()?.params().len())
}

/// `cuFuncIsLoaded`: always.
pub fn is_loaded(out: Out<u32>, handle: Handle) -> Result {
    function(handle)?;
    out.set(1)
}

/// `cuFuncLoad`: it is.
pub fn load(handle: Handle) -> Result {
    function(handle).map(|_| ())
}

/// `cuKernelGetFunction`: the same handle serves for both.
pub fn kernel_function(out: Out<Handle>, handle: Handle) -> Result {
    current()?;
    function(handle)?;
    out.set(handle)
}

/// `cuKernelGetAttribute`.
pub fn kernel_get_attribute(out: Out<i32>, id: u32, handle: Handle, ordinal: i32) -> Result {
    initialised()?.device(ordinal)?;
    out.set(attribute(&*function(handle)?, id)?)
}

/// `cuKernelSetAttribute`.
pub fn kernel_set_attribute(id: u32, value: i32, handle: Handle, ordinal: i32) -> Result {
    initialised()?.device(ordinal)?;
    set(&*function(handle)?, id, value)
}

/// `cuKernelSetCacheConfig`.
pub fn kernel_set_cache_config(handle: Handle, config: u32, ordinal: i32) -> Result {
    initialised()?.device(ordinal)?;
    function(handle)?;
    if config > 3 { Err(Error::INVALID_VALUE) } else { Ok(()) }
}
