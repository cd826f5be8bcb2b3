//! Compiled code, loaded into a context.

use super::device::Context;
use super::error::explain;
use super::nvrtc::{Image, Resources};
use super::ptx;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;

/// The kernels of one compiled source.
pub(super) struct Module {
    context: Arc<Context>,
    handle: sys::CUmodule,
    /// Of each entry, the sizes of its parameters and what it takes.
    entries: BTreeMap<String, (Vec<usize>, Resources)>,
}

// SAFETY: the handle of a module may be used from any thread whose current context is its own.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads the machine code; on the simulator, which has none to run, the PTX. `name` is for messages.
    pub(super) fn load(context: &Arc<Context>, image: &Image, name: &str) -> Result<Module> {
        let _current = context.make_current()?;
        let text;
        let bytes = if context.simulator().is_some() {
            text = CString::new(image.ptx.as_str())
                .map_err(|_| Error::device("the PTX has a NUL character").with_op(name))?;
            text.as_bytes_with_nul()
        } else {
            image.cubin.as_slice()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the image is a cubin, which says itself how long it is, or text ended by NUL; the driver copies it. A
        // cubin is as NVRTC made it: what the cache gives has passed its checksum.
        let code = unsafe { sys::cuModuleLoadData(&mut handle, bytes.as_ptr().cast()) };
        if code != sys::CUresult::CUDA_SUCCESS {
            return Err(explain(code, "loading a kernel").with_op(name));
        }
        let resources =
            |entry: &str| image.resources.iter().find(|r| r.kernel == entry).cloned().unwrap_or_default();
        let entries = ptx::entries(&image.ptx).into_iter().filter_map(|entry| {
            Some((entry.to_string(), (ptx::param_bytes(&image.ptx, entry)?, resources(entry))))
        });
        Ok(Module { context: context.clone(), handle, entries: entries.collect() })
    }

    /// A kernel of the module: its handle, the size of its parameter, what it takes.
    pub(super) fn entry(&self, entry: &str, name: &str) -> Result<(sys::CUfunction, usize, Resources)> {
        let Some((params, resources)) = self.entries.get(entry) else {
            let have: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            return Err(Error::device(format!("there is no kernel `{entry}`, only: {}", have.join(", ")))
                .with_op(name)
                .with_remedy("declare it `extern \"C\" __global__`, or correct the name"));
        };
        let &[bytes] = params.as_slice() else {
            return Err(Error::device(format!("`{entry}` has {} parameters", params.len()))
                .with_op(name)
                .with_remedy("give it one: a struct, `const __grid_constant__ Params p`"));
        };
        let c_name = CString::new(entry).map_err(|_| Error::device("a NUL in a kernel's name"))?;
        let _current = self.context.make_current()?;
        let mut function = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, the module is loaded, and the name ends with NUL.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, self.handle, c_name.as_ptr()) };
        if code != sys::CUresult::CUDA_SUCCESS {
            return Err(explain(code, "cuModuleGetFunction").with_op(name));
        }
        Ok((function, bytes, resources.clone()))
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: loaded in `load`, unloaded here and nowhere else; the driver waits for launches of its kernels. A
            // failure leaves nothing to be done.
            let _ = unsafe { sys::cuModuleUnload(self.handle) };
        }
    }
}
