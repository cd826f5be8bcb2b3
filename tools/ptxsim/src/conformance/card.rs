//! Cases on a card, through the CUDA driver: the driver's own compiler makes the machine code out of the PTX text.

use super::backend::Backend;
use super::case::Case;
use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

/// Shared memory beyond this must be asked for.
const SHARED_WITHOUT_ASKING: u32 = 48 * 1024;

/// The first device of the CUDA driver.
pub struct Card {
    /// Made again after a launch that spoils it.
    context: RefCell<Option<Arc<CudaContext>>>,
    /// As the driver tells it.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// CUDA version of the driver.
    pub driver: (u32, u32),
    /// This crate's driver library, not NVIDIA's.
    pub simulated: bool,
}

impl Card {
    /// Opens the driver library (a file, or the system's) and its first device.
    pub fn open(library: Option<&Path>) -> Result<Card, String> {
        if let Some(path) = library {
            preload(path)?;
        }
        // SAFETY: probing opens the library, whose initialisers are those of a CUDA driver and ask nothing of the caller.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no CUDA driver (libcuda.so) on this machine; cases can be recorded only where there is \
                        a card. `--driver FILE` names another driver library."
                .into());
        }
        // SAFETY: the library was just found; nobody unloads it.
        let library = unsafe { sys::culib() };
        // SAFETY: the symbol is only looked for, never called.
        let marked = unsafe { library.get::<*const ()>(b"ptxsim_version\0") }.is_ok();
        let context = CudaContext::new(0).map_err(|e| format!("no device: {e}"))?;
        let name = context.name().map_err(|e| e.to_string())?;
        let (major, minor) = context.compute_capability().map_err(|e| e.to_string())?;
        let mut version = 0;
        // SAFETY: the pointer is to a live integer of the type that the call writes.
        let code = unsafe { sys::cuDriverGetVersion(&mut version) };
        let driver = match code {
            sys::CUresult::CUDA_SUCCESS => (version as u32 / 1000, version as u32 % 1000 / 10),
            _ => (0, 0),
        };
        let simulated = marked || name.contains("ptxsim");
        let capability = (major as u32, minor as u32);
        Ok(Card { context: RefCell::new(Some(context)), name, capability, driver, simulated })
    }

    fn context(&self) -> Result<Arc<CudaContext>, String> {
        let mut slot = self.context.borrow_mut();
        if let Some(context) = &*slot {
            return Ok(context.clone());
        }
        let context = CudaContext::new(0).map_err(|e| e.to_string())?;
        *slot = Some(context.clone());
        Ok(context)
    }
}

/// Loads a driver library under its own name, before anybody looks for one.
fn preload(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
    // SAFETY: the file is one that the user names as a CUDA driver; its initialisers ask nothing of the caller.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|e| format!("{}: {e}", path.display()))?;
    // Never unloaded: the driver's functions are called until the process ends.
    std::mem::forget(library);
    Ok(())
}

impl Backend for Card {
    fn run(&self, case: &Case) -> Result<Vec<u8>, String> {
        let context = self.context()?;
        let outcome = launch(&context, case);
        if outcome.is_err() && context.synchronize().is_err() {
            // A kernel that faulted leaves a context in which nothing works any more.
            self.context.borrow_mut().take();
        }
        outcome
    }
}

fn launch(context: &Arc<CudaContext>, case: &Case) -> Result<Vec<u8>, String> {
    let told = |what: &'static str| move |e: cudarc::driver::DriverError| format!("{what}: {e}");
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(case.ptx.as_str())).map_err(told("loading the PTX"))?;
    let kernel = module.load_function("k").map_err(told("looking for k"))?;
    if case.dynamic_shared > SHARED_WITHOUT_ASKING {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel
            .set_attribute(attribute, case.dynamic_shared as i32)
            .map_err(told("asking for shared memory"))?;
    }
    let inputs: Vec<_> = case
        .inputs
        .iter()
        .map(|input| stream.clone_htod(input))
        .collect::<Result<_, _>>()
        .map_err(told("copying the inputs"))?;
    let mut output = stream.clone_htod(&case.before).map_err(told("copying the output"))?;
    let mut builder = stream.launch_builder(&kernel);
    for input in &inputs {
        builder.arg(input);
    }
    builder.arg(&mut output);
    let config = LaunchConfig {
        grid_dim: (case.grid, 1, 1),
        block_dim: (case.block, 1, 1),
        shared_mem_bytes: case.dynamic_shared,
    };
    // SAFETY: k takes one pointer for each input and one to the output, as the case declares, and stays within buffers of
    // the sizes just allocated; a case that did not would fault on the card, not here.
    unsafe { builder.launch(config) }.map_err(told("launching"))?;
    stream.synchronize().map_err(told("running"))?;
    stream.clone_dtoh(&output).map_err(told("copying back"))
}
