//! On a host program's own context, stream and memory.
//!
//! ```text
//!  host program   CUcontext, CUstream            device memory              its next kernel reads
//!                      |     |                     |        ^                     ^
//!  dtk            Gpu::from_raw(..)          Gpu::borrow    |                     |
//!                      '---- kernels, in the order of that stream --- results: Buffer::ptr
//! ```
//!
//! Nothing is copied and nobody waits: what dtk enqueues runs behind what the program has enqueued on its stream, and before
//! what it enqueues later.

use super::arch::Arch;
use super::arena::Span;
use super::buffer::{Block, Buffer};
use super::device::{Context, Gpu, Options, describe, device_count};
use super::driver::Driver;
use super::error::check;
use super::memory::Origin;
use super::stream::Stream;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;

/// Handles up to this one are no streams but names: NULL, legacy, per thread.
const NAMED_STREAMS: usize = 2;

/// What addresses are a multiple of: the widest load of a kernel.
const ALIGNMENT: u64 = 16;

impl Gpu {
    /// A device on the context and the stream of a host program: a `CUcontext` and a `CUstream` of the driver's, however the
    /// program came by them. All work goes to that stream. dtk takes its own memory and loads its own kernels in the context;
    /// both go when the last handle (of the device, a tensor, a kernel, a graph) is dropped. Context and stream themselves are
    /// never destroyed or reset. Dropping a graph and [`Gpu::trim`] wait for everything in the context, the program's part too.
    ///
    /// The context that is current on the calling thread is the same before and after every call. Where it is this one, a call
    /// costs one question to the driver more than with [`Gpu::open`], else a push and a pop.
    ///
    /// # Errors
    /// There is no driver, a handle is null, the stream is the NULL stream or a per-thread one (neither can be captured), it
    /// belongs to another context, or the device is older than compute capability 8.0.
    ///
    /// # Safety
    /// Both are live handles of the driver library that dtk uses, which is the process's `libcuda.so.1` unless `options` or
    /// `DTK_CUDA_DRIVER` says otherwise. They stay alive until every handle that comes from this device is dropped.
    pub unsafe fn from_raw(context: *mut c_void, stream: *mut c_void, options: Options) -> Result<Gpu> {
        let remedy = "make one with cuStreamCreate(.., CU_STREAM_NON_BLOCKING) or your library's word for it";
        if context.is_null() {
            return Err(Error::device("the context that was handed over is null").with_remedy(
                "hand over the CUcontext that your memory belongs to (cuCtxGetCurrent tells it)",
            ));
        }
        if stream as usize <= NAMED_STREAMS {
            return Err(Error::device(
                "the stream that was handed over is the NULL stream or a per-thread one, which cannot be captured",
            )
            .with_remedy(remedy));
        }
        let driver = Driver::load(options.driver.as_deref())?;
        driver.init()?;
        let context = Context::of_host(driver, context.cast());
        let stream: sys::CUstream = stream.cast();
        let _current = context.make_current()?;
        let mut device = 0;
        // SAFETY: the pointer is to a live handle, and a context is current.
        check(unsafe { sys::cuCtxGetDevice(&mut device) }, "cuCtxGetDevice")?;
        let mut owner = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, and the caller promises that the stream is one.
        check(unsafe { sys::cuStreamGetCtx(stream, &mut owner) }, "cuStreamGetCtx")?;
        if !context.is(owner) {
            return Err(Error::device(
                "the stream that was handed over belongs to another context than the one beside it",
            )
            .with_remedy("make the stream while that context is current"));
        }
        let mut found = None;
        for ordinal in 0..device_count()? {
            let (handle, info) = describe(driver, ordinal)?;
            if handle == device {
                found = Some(info);
            }
        }
        let info = found.ok_or_else(|| Error::device("the context's device is not among the driver's"))?;
        let arch = Arch::of(info.compute_capability).map_err(|e| e.with_op(info.name.clone()))?;
        Gpu::assemble(info, arch, context.clone(), options, |memory| Ok(Stream::of_host(memory, stream)))
    }

    /// Device memory of the host program as a buffer. It does not count in [`Gpu::memory`], and dtk never frees it.
    ///
    /// # Errors
    /// The address is null or no multiple of 16 bytes, the widest access of a kernel.
    ///
    /// # Safety
    /// `ptr` is the address of at least `bytes` bytes of device memory that the device's context can use. The memory stays
    /// allocated until the last clone of the buffer is dropped and the work that was enqueued with it is done. Whatever else
    /// uses it is ordered with that work by the stream or by events.
    pub unsafe fn borrow(&self, ptr: u64, bytes: usize, tag: &'static str) -> Result<Buffer> {
        if ptr == 0 || !ptr.is_multiple_of(ALIGNMENT) {
            let what = if ptr == 0 { "null".into() } else { format!("{ptr:#x}, no multiple of {ALIGNMENT}") };
            return Err(Error::device(format!("the device address that was handed over is {what}"))
                .with_remedy("hand over what cuMemAlloc gave, or an offset into it of whole 16 bytes"));
        }
        let span = Span { start: ptr, bytes: bytes as u64 };
        let block = Block { span, tag, origin: Origin::Host, lots: None };
        Ok(Buffer::new(self.mem().clone(), block, bytes))
    }
}
