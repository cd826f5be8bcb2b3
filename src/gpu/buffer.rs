//! Buffers: shared handles of device memory, and copies between them and the host.

use super::arena::Span;
use super::device::Gpu;
use super::error::check;
use super::event::Event;
use super::ledger::MemoryReport;
use super::memory::{Lots, Memory, Origin};
use super::stream::Stream;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What [`Memory`] knows of a piece of memory.
pub(super) struct Block {
    /// Where it lies; its bytes are those it takes, not those that were asked for.
    pub span: Span,
    /// What it is for.
    pub tag: &'static str,
    /// Where it came from.
    pub origin: Origin,
    /// The graph it belongs to, if it was taken during a capture.
    pub lots: Option<Lots>,
}

/// Device memory from [`super::Gpu::alloc`]. Cloning shares it; when the last clone goes it is free for what is
/// enqueued later on the compute stream.
///
/// Work on any other stream must be made known with [`Buffer::used_on`] before the buffer is dropped.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    memory: Arc<Memory>,
    /// Present until it is dropped.
    block: Option<Block>,
    bytes: usize,
    uses: Mutex<Vec<Event>>,
}

impl Buffer {
    pub(super) fn new(memory: Arc<Memory>, block: Block, bytes: usize) -> Self {
        Buffer(Arc::new(Inner { memory, block: Some(block), bytes, uses: Mutex::default() }))
    }

    fn block(&self) -> &Block {
        self.0.block.as_ref().expect("present until it is dropped")
    }

    /// The address, for a kernel's parameters; a multiple of 256 bytes. Valid for work that is enqueued while the buffer
    /// lives.
    pub fn ptr(&self) -> u64 {
        self.block().span.start
    }

    /// Bytes that were asked for.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// What it is for, as given to [`super::Gpu::alloc`].
    pub fn tag(&self) -> &'static str {
        self.block().tag
    }

    /// Says that the work enqueued on `stream` until now uses the buffer. Needless for the compute stream.
    ///
    /// # Errors
    /// The event that marks this point cannot be recorded, or the stream is being captured: it would happen at every launch.
    pub fn used_on(&self, stream: &Stream) -> Result<()> {
        if stream.is_capturing()? {
            return Err(Error::device(format!(
                "the use of {self:?} cannot be noted while its stream is captured"
            ))
            .with_remedy("hand the buffer to `Graph::keep` instead"));
        }
        let event = stream.record()?;
        let mut uses = self.0.uses.lock().unwrap_or_else(PoisonError::into_inner);
        // What has happened needs no guard.
        uses.retain(|e| !e.is_done().unwrap_or(false));
        uses.push(event);
        Ok(())
    }

    /// Checks that a copy from or to `host` bytes fits.
    pub(super) fn same_size(&self, host: usize) -> Result<()> {
        if host == self.bytes() {
            return Ok(());
        }
        Err(Error::device(format!("sizes of a copy differ: {host} bytes on one side, {self:?} on the other")))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let uses = std::mem::take(self.uses.get_mut().unwrap_or_else(PoisonError::into_inner));
        // The host program's memory is given back to nobody.
        if let Some(block) = self.block.take_if(|b| b.origin != Origin::Host) {
            self.memory.give(block, uses);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer `{}` of {} bytes at {:#x}", self.tag(), self.bytes(), self.ptr())
    }
}

impl Gpu {
    /// Takes uninitialised memory. `tag` says what for; the ledger counts by it. It is ordered on the compute stream: another
    /// stream that uses it waits for an event of that stream first. No bytes are something too: every buffer has an address of
    /// its own.
    ///
    /// # Errors
    /// The device, or the limit that was set for it, has not enough left.
    pub fn alloc(&self, bytes: usize, tag: &'static str) -> Result<Buffer> {
        self.mem().alloc(bytes, tag)
    }

    /// Copies from the host, in the order of the compute stream; the host's memory may be used again at once.
    ///
    /// # Errors
    /// The sizes differ, or earlier work has failed.
    pub fn upload(&self, host: &[u8], to: &Buffer) -> Result<()> {
        to.same_size(host.len())?;
        if host.is_empty() {
            return Ok(());
        }
        if self.is_planning() {
            return Ok(());
        }
        let stream = self.stream();
        stream.expect_no_capture("an upload")?;
        let _current = self.context().make_current()?;
        // SAFETY: both sides have as many bytes as is said, and the host's outlive the wait below.
        let code =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.ptr(), host.as_ptr().cast(), host.len(), stream.handle()) };
        check(code, "cuMemcpyHtoD")?;
        stream.synchronize()
    }

    /// Copies to the host, in the order of the compute stream, and waits.
    ///
    /// # Errors
    /// The sizes differ, or earlier work has failed.
    pub fn download(&self, from: &Buffer, host: &mut [u8]) -> Result<()> {
        from.same_size(host.len())?;
        if host.is_empty() {
            return Ok(());
        }
        let stream = self.stream();
        stream.expect_no_capture("a download")?;
        let _current = self.context().make_current()?;
        // SAFETY: both sides have as many bytes as is said, and the host's are borrowed until the wait is over.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), from.ptr(), host.len(), stream.handle())
        };
        check(code, "cuMemcpyDtoH")?;
        stream.synchronize()
    }

    /// Sets every byte, in the order of the compute stream.
    ///
    /// # Errors
    /// Earlier work has failed.
    pub fn fill_byte(&self, buffer: &Buffer, value: u8) -> Result<()> {
        if buffer.bytes() == 0 || self.is_planning() {
            return Ok(());
        }
        let _current = self.context().make_current()?;
        // SAFETY: the buffer has as many bytes as is said.
        let code =
            unsafe { sys::cuMemsetD8Async(buffer.ptr(), value, buffer.bytes(), self.stream().handle()) };
        check(code, "cuMemsetD8Async")
    }

    /// Sets every 32-bit word of a buffer that is made of such, in the order of the compute stream.
    ///
    /// # Errors
    /// The bytes are no whole words, or earlier work has failed.
    pub fn fill_word(&self, buffer: &Buffer, value: u32) -> Result<()> {
        if !buffer.bytes().is_multiple_of(size_of::<u32>()) {
            return Err(Error::device(format!("{buffer:?} is not made of whole words")));
        }
        if buffer.bytes() == 0 || self.is_planning() {
            return Ok(());
        }
        let _current = self.context().make_current()?;
        let (words, stream) = (buffer.bytes() / size_of::<u32>(), self.stream().handle());
        // SAFETY: the buffer has as many words as is said, and begins at a multiple of 16 bytes.
        check(unsafe { sys::cuMemsetD32Async(buffer.ptr(), value, words, stream) }, "cuMemsetD32Async")
    }

    /// Copies one buffer to another of the same size, in the order of the compute stream.
    ///
    /// # Errors
    /// The sizes differ, or earlier work has failed.
    pub fn copy(&self, from: &Buffer, to: &Buffer) -> Result<()> {
        to.same_size(from.bytes())?;
        self.copy_part(from, 0, to)
    }

    /// Fills a buffer with what lies `offset` bytes into another one, in the order of the compute stream.
    ///
    /// # Errors
    /// There are not so many bytes, or earlier work has failed.
    pub fn copy_part(&self, from: &Buffer, offset: usize, to: &Buffer) -> Result<()> {
        if offset.checked_add(to.bytes()).is_none_or(|end| end > from.bytes()) {
            return Err(Error::device(format!("{from:?} has no {} bytes from {offset} on", to.bytes())));
        }
        if to.bytes() == 0 || self.is_planning() {
            return Ok(());
        }
        let _current = self.context().make_current()?;
        let (source, stream) = (from.ptr() + offset as u64, self.stream().handle());
        // SAFETY: both sides have as many bytes as is said, which was checked above.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to.ptr(), source, to.bytes(), stream) };
        check(code, "cuMemcpyDtoD")
    }

    /// A further stream.
    ///
    /// # Errors
    /// The driver makes none.
    pub fn new_stream(&self) -> Result<Stream> {
        Stream::new(self.mem())
    }

    /// What the device's memory is used for, and was at most.
    pub fn memory(&self) -> MemoryReport {
        self.mem().report()
    }

    /// Begins the peaks of [`Gpu::memory`] anew.
    pub fn reset_peaks(&self) {
        self.mem().reset_peaks();
    }

    /// Gives memory that nobody uses back to the driver, for other programs; waits for the device. Gives the bytes.
    ///
    /// # Errors
    /// Earlier work has failed.
    pub fn trim(&self) -> Result<u64> {
        self.mem().trim()
    }
}
