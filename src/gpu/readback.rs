//! Reading small results without waiting for them.

use super::buffer::Buffer;
use super::device::Gpu;
use super::error::check;
use super::event::Event;
use super::pinned::PinnedBuffer;
use super::stream::Stream;
use crate::error::{Error, Result};
use cudarc::driver::sys;

/// Page-locked host memory that a copy from the device goes to while the host does something else.
pub struct Readback {
    host: PinnedBuffer,
    copied: Option<Event>,
}

impl Readback {
    /// Room for `bytes`.
    ///
    /// # Errors
    /// The system has not enough that it may lock.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        Ok(Readback { host: gpu.pinned(bytes)?, copied: None })
    }

    /// Whether a copy was begun and not taken.
    pub fn is_pending(&self) -> bool {
        self.copied.is_some()
    }

    /// Enqueues a copy of a buffer of this size. The host does not wait.
    ///
    /// # Errors
    /// The sizes differ, the last copy was not taken, or earlier work has failed.
    pub fn begin(&mut self, stream: &Stream, from: &Buffer) -> Result<()> {
        if self.is_pending() {
            return Err(Error::usage("the last copy to this memory was not taken yet"));
        }
        let to = self.host.as_mut_slice()?;
        from.same_size(to.len())?;
        stream.expect_no_capture("a copy to the host")?;
        // SAFETY: both sides have as many bytes as is said. The host's are not looked at before the event below has happened,
        // and live until then: `drop` waits. `used_on` keeps the device's.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.ptr(), to.len(), stream.handle())
        };
        check(code, "cuMemcpyDtoHAsync")?;
        self.copied = Some(stream.record()?);
        from.used_on(stream)
    }

    /// What the last copy brought, if it is there.
    ///
    /// # Errors
    /// The copy, or work before it, has failed.
    pub fn poll(&mut self) -> Result<Option<&[u8]>> {
        match &self.copied {
            Some(event) if event.is_done()? => self.take().map(Some),
            _ => Ok(None),
        }
    }

    /// What the last copy brought; waits for it.
    ///
    /// # Errors
    /// No copy was begun, or it or work before it has failed.
    pub fn take(&mut self) -> Result<&[u8]> {
        let Some(event) = self.copied.take() else {
            return Err(Error::usage("no copy was begun that could be taken"));
        };
        event.synchronize()?;
        Ok(self.host.as_slice())
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // A copy that failed writes no more.
        let _ = self.copied.take().map(|event| event.synchronize());
    }
}
