//! Streams: work in order.

use super::device::Context;
use super::error::check;
use super::event::Event;
use super::memory::Memory;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// A queue of work on a device. What is enqueued runs in order; between two streams only events order. Cloning shares
/// the stream.
///
/// Never the NULL stream and not tied to it: other parts of a program that use the NULL stream neither wait for this one
/// nor make it wait.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    memory: Arc<Memory>,
    handle: sys::CUstream,
    /// Whether it goes with this value, or stays the host program's.
    owned: bool,
}

// SAFETY: the driver's functions on streams may be called from any thread; every method makes the context current first.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver locks a stream while work is enqueued.
unsafe impl Sync for Inner {}

impl Stream {
    pub(super) fn new(memory: &Arc<Memory>) -> Result<Self> {
        let mut handle = ptr::null_mut();
        if memory.context().is_planning() {
            return Ok(Stream(Arc::new(Inner { memory: Arc::clone(memory), handle, owned: false })));
        }
        let _current = memory.context().make_current()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a live handle, and a context is current.
        check(unsafe { sys::cuStreamCreate(&mut handle, flags) }, "cuStreamCreate")?;
        Ok(Stream(Arc::new(Inner { memory: Arc::clone(memory), handle, owned: true })))
    }

    /// A stream of the host program, which outlives this value.
    pub(super) fn of_host(memory: &Arc<Memory>, handle: sys::CUstream) -> Self {
        Stream(Arc::new(Inner { memory: Arc::clone(memory), handle, owned: false }))
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        self.0.memory.context()
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    /// The driver's handle, for programs that share the stream with other CUDA code. It lives as long as this stream.
    pub fn handle(&self) -> sys::CUstream {
        self.0.handle
    }

    /// A mark behind everything enqueued until now.
    ///
    /// # Errors
    /// The driver refuses, or earlier work has failed.
    pub fn record(&self) -> Result<Event> {
        self.record_new(false)
    }

    /// Like [`Stream::record`], for [`Event::elapsed_ms`].
    ///
    /// # Errors
    /// As [`Stream::record`].
    pub fn record_timed(&self) -> Result<Event> {
        self.record_new(true)
    }

    fn record_new(&self, timing: bool) -> Result<Event> {
        let _current = self.context().make_current()?;
        let event = Event::new(self.context(), timing)?;
        // SAFETY: both are alive and of one context, which is current.
        check(unsafe { sys::cuEventRecord(event.handle(), self.0.handle) }, "cuEventRecord")?;
        Ok(event)
    }

    /// Lets what is enqueued from now on wait for an event of another stream. The host does not wait.
    ///
    /// # Errors
    /// The driver refuses, or earlier work has failed.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let _current = self.context().make_current()?;
        // SAFETY: both are alive.
        check(unsafe { sys::cuStreamWaitEvent(self.0.handle, event.handle(), 0) }, "cuStreamWaitEvent")
    }

    /// Whether what is enqueued is recorded instead of done.
    pub(super) fn is_capturing(&self) -> Result<bool> {
        let _current = self.context().make_current()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the pointer is to a live value, and the stream is alive.
        check(unsafe { sys::cuStreamIsCapturing(self.0.handle, &mut status) }, "cuStreamIsCapturing")?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Refuses what cannot be part of a captured graph: copies that use host memory.
    pub(super) fn expect_no_capture(&self, what: &str) -> Result<()> {
        if !self.is_capturing()? {
            return Ok(());
        }
        Err(Error::device(format!("{what} cannot be captured: host memory does not stay as it is"))
            .with_remedy("copy before the capture or between launches of the graph"))
    }

    /// Waits until everything enqueued is done.
    ///
    /// # Errors
    /// Some of it has failed; the device is then of no more use to this process.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.context().make_current()?;
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamSynchronize(self.0.handle) }, "cuStreamSynchronize")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Ok(_current) = self.memory.context().make_current() {
            // SAFETY: made in `new`, destroyed here and nowhere else; the driver finishes its work first. After a fault this
            // fails and nothing is left to do.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:p}", self.0.handle)
    }
}
