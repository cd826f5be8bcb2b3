//! Events: marks in a stream that other streams and the host can wait for.

use super::device::Context;
use super::error::check;
use super::graph::outside_capture;
use crate::error::Result;
use cudarc::driver::sys;
use std::ptr;
use std::sync::Arc;

/// A point in a stream's work, made by [`super::Stream::record`]. It has happened when all work enqueued on the stream
/// before it is done.
pub struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: the driver's functions on events may be called from any thread; every method makes the context current first.
unsafe impl Send for Event {}
// SAFETY: as above; once made, the event is only asked and waited for.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is not recorded yet. One that keeps the time costs a little more.
    pub(super) fn new(context: &Arc<Context>, timing: bool) -> Result<Self> {
        let _current = context.make_current()?;
        let flags = match timing {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, and a context is current.
        check(unsafe { sys::cuEventCreate(&mut handle, flags as u32) }, "cuEventCreate")?;
        Ok(Event { context: Arc::clone(context), handle })
    }

    pub(super) fn handle(&self) -> sys::CUevent {
        self.handle
    }

    /// Whether it has happened.
    ///
    /// # Errors
    /// Work before it has failed.
    pub fn is_done(&self) -> Result<bool> {
        let _current = self.context.make_current()?;
        // SAFETY: the event is alive.
        match outside_capture(|| unsafe { sys::cuEventQuery(self.handle) }) {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code, "cuEventQuery").map(|()| true),
        }
    }

    /// Waits until it has happened.
    ///
    /// # Errors
    /// Work before it has failed.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.context.make_current()?;
        // SAFETY: the event is alive.
        check(unsafe { sys::cuEventSynchronize(self.handle) }, "cuEventSynchronize")
    }

    /// Milliseconds from `start` to this event; waits for both. The resolution is about half a microsecond.
    ///
    /// # Errors
    /// One of them was not made by [`super::Stream::record_timed`], or work before them has failed.
    pub fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        start.synchronize()?;
        self.synchronize()?;
        let _current = self.context.make_current()?;
        let mut elapsed = 0.0;
        // SAFETY: the pointer is to a live number, and both events are alive.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut elapsed, start.handle, self.handle) };
        check(code, "cuEventElapsedTime")
            .map_err(|e| e.with_remedy("make both events with `Stream::record_timed`"))?;
        Ok(elapsed)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: made in `new`, destroyed here and nowhere else. After a fault this fails and nothing is left to do.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
