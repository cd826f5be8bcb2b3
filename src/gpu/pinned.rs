//! Page-locked host memory, and copying the next batch while the device works on this one.

use super::buffer::Buffer;
use super::device::{Context, Gpu};
use super::error::check;
use super::event::Event;
use super::graph::outside_capture;
use super::stream::Stream;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

/// Host memory that stays where it is, so that the device copies from it by itself while the host goes on. Begins as
/// zeros.
pub struct PinnedBuffer {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
    /// Copies that may still be reading, at most one for each stream that was used.
    reading: Mutex<Vec<Event>>,
}

// SAFETY: it owns its memory, and every method makes the context current first.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared access only reads the memory; the list of events has a lock.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _current = context.make_current()?;
        let mut start = ptr::null_mut();
        let size = bytes.max(1);
        // SAFETY: the pointer is to a live pointer, and a context is current.
        let code = outside_capture(|| unsafe { sys::cuMemHostAlloc(&mut start, size, 0) });
        check(code, "cuMemHostAlloc").map_err(|e| {
            e.with_remedy(format!("page-locked memory of {size} bytes is not to be had: reduce the batch"))
        })?;
        let start =
            NonNull::new(start.cast::<u8>()).ok_or_else(|| Error::device("cuMemHostAlloc gave no memory"))?;
        // SAFETY: the driver has just given so many bytes, and nobody else knows of them.
        unsafe { start.write_bytes(0, size) };
        Ok(PinnedBuffer { context: Arc::clone(context), start, bytes, reading: Mutex::default() })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated and initialised; the device only reads them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes for writing. Waits for copies that still read them.
    ///
    /// # Errors
    /// Such a copy, or work before it, has failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [u8]> {
        self.finish()?;
        // SAFETY: as in `as_slice`; nothing else has access.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) })
    }

    /// Enqueues a copy of all bytes to a buffer of the same size. The host does not wait.
    ///
    /// # Errors
    /// The sizes differ, or earlier work has failed.
    pub fn upload(&self, stream: &Stream, to: &Buffer) -> Result<()> {
        to.same_size(self.bytes)?;
        if self.bytes == 0 {
            return Ok(());
        }
        stream.expect_no_capture("a copy from pinned memory")?;
        let _current = self.context.make_current()?;
        // SAFETY: both sides have as many bytes as is said. The event below keeps the host's bytes unchanged and alive until
        // the copy is done, `used_on` keeps the device's.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.ptr(), self.start.as_ptr().cast(), self.bytes, stream.handle())
        };
        check(code, "cuMemcpyHtoDAsync")?;
        let copied = stream.record()?;
        to.used_on(stream)?;
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.retain(|e| !e.is_done().unwrap_or(true));
        reading.push(copied);
        Ok(())
    }

    /// Waits for the copies.
    fn finish(&mut self) -> Result<()> {
        let reading = self.reading.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(reading).iter().try_for_each(Event::synchronize)
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // A copy that failed reads no more.
        let _ = self.finish();
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: allocated by `cuMemHostAlloc`, freed here and nowhere else, and nothing reads it any more.
            let _ = outside_capture(|| unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) });
        }
    }
}

impl Gpu {
    /// Page-locked host memory.
    ///
    /// # Errors
    /// The system has not enough that it may lock.
    pub fn pinned(&self, bytes: usize) -> Result<PinnedBuffer> {
        PinnedBuffer::new(self.context(), bytes)
    }
}

/// Two pairs of host and device memory that take turns: while the device works on one batch, the next is copied on a
/// stream of its own.
///
/// ```text
///  host      fill 0   fill 1            fill 0              fill 1
///  copies      '-copy 0 '-copy 1          '-copy 0            '-copy 1
///                    \        \_____________     \_________________
///  compute            '- work on 0 ......   '- work on 1 .....     '- work on 0
///                                     \____ copy 0 waits      \____ copy 1 waits
/// ```
///
/// The compute stream waits for a copy before it works on it, a copy waits for the work on what it overwrites, and the host
/// waits, in [`Prefetch::push`], until a copy has read what it overwrites.
pub struct Prefetch {
    gpu: Gpu,
    stream: Stream,
    slots: [Slot; 2],
    /// Batches pushed and consumed since the beginning.
    pushed: usize,
    consumed: usize,
}

struct Slot {
    host: PinnedBuffer,
    device: Buffer,
    copied: Option<Event>,
    consumed: Option<Event>,
}

impl Prefetch {
    /// Room for batches of `bytes`. `tag` names the device's part in the ledger.
    ///
    /// # Errors
    /// The host or the device is out of memory.
    pub fn new(gpu: &Gpu, bytes: usize, tag: &'static str) -> Result<Self> {
        let slot = || -> Result<Slot> {
            Ok(Slot {
                host: gpu.pinned(bytes)?,
                device: gpu.alloc(bytes, tag)?,
                copied: None,
                consumed: None,
            })
        };
        let slots = [slot()?, slot()?];
        let stream = gpu.new_stream()?;
        // The memory may have been another buffer's, which enqueued work still uses.
        stream.wait(&gpu.stream().record()?)?;
        Ok(Prefetch { gpu: gpu.clone(), stream, slots, pushed: 0, consumed: 0 })
    }

    /// Batches that are on their way or there: 0, 1 or 2.
    pub fn ready(&self) -> usize {
        self.pushed - self.consumed
    }

    /// Lets `fill` write the next batch and begins to copy it. The bytes are those of an earlier batch before.
    ///
    /// # Errors
    /// Those of `fill`, which leave everything as it was; two batches are waiting already; earlier work has failed.
    pub fn push(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        if self.ready() == self.slots.len() {
            return Err(Error::usage("two batches wait to be consumed; there is no room for a third"));
        }
        let slot = &mut self.slots[self.pushed % 2];
        fill(slot.host.as_mut_slice()?)?;
        if let Some(consumed) = slot.consumed.take() {
            self.stream.wait(&consumed)?;
        }
        slot.host.upload(&self.stream, &slot.device)?;
        slot.copied = Some(self.stream.record()?);
        self.pushed += 1;
        Ok(())
    }

    /// Hands the oldest batch to `work`, which enqueues on the compute stream whatever uses it. What it enqueues later, it
    /// must not use the batch for: its memory is then the next one's.
    ///
    /// # Errors
    /// Those of `work`; no batch was pushed; earlier work has failed.
    pub fn consume<T>(&mut self, work: impl FnOnce(&Buffer) -> Result<T>) -> Result<T> {
        if self.ready() == 0 {
            return Err(Error::usage("no batch was pushed that could be consumed"));
        }
        let slot = &mut self.slots[self.consumed % 2];
        if let Some(copied) = slot.copied.take() {
            self.gpu.stream().wait(&copied)?;
        }
        self.consumed += 1;
        let done = work(&slot.device);
        // Also after an error: part of the work may be enqueued.
        slot.consumed = Some(self.gpu.stream().record()?);
        done
    }
}
