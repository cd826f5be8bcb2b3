//! Captured graphs: work that is enqueued once and launched many times, for the price of one launch.

use super::buffer::Buffer;
use super::error::check;
use super::memory::{Lots, Memory};
use super::stream::Stream;
use crate::error::Result;
use cudarc::driver::sys;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// Work that [`Stream::capture`] recorded. It runs with the addresses and parameters it was captured with.
///
/// Memory that was allocated during the capture belongs to the graph until it is dropped. Buffers from before that its
/// work uses must live as long: hand them to [`Graph::keep`].
pub struct Graph {
    exec: sys::CUgraphExec,
    kept: Vec<Buffer>,
    memory: Arc<Memory>,
    lots: Lots,
}

// SAFETY: the driver's functions on executable graphs may be called from any thread, one at a time for each graph:
// launching takes `&mut self`.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `enqueue` puts on this stream, instead of doing it. Other streams that wait for events of this one
    /// inside, and are waited for before the end, are recorded too. Copies from and to the host are refused.
    ///
    /// Run the same work once before: kernels are then compiled and loaded.
    ///
    /// # Errors
    /// Those of `enqueue`; something inside cannot be captured (waiting for the device, copies from pageable memory);
    /// another capture is under way. The stream is as before in any case.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let memory = self.memory();
        if memory.context().is_planning() {
            let lots = memory.begin_capture()?;
            // Ends the capture on every way out, and gives the memory back but for the last.
            let mut capture =
                Capture { stream: self, lots: Some(lots), graph: ptr::null_mut(), begun: false };
            enqueue()?;
            capture.lots = None;
            return Ok(Graph { exec: ptr::null_mut(), kept: Vec::new(), memory: Arc::clone(memory), lots });
        }
        let mut capture = Capture {
            stream: self,
            lots: Some(memory.begin_capture()?),
            graph: ptr::null_mut(),
            begun: false,
        };
        capture.begin()?;
        enqueue()?;
        capture.end().map_err(|e| {
            e.with_remedy("inside a capture do not wait for the device; run the same work once before")
        })?;
        let _current = memory.context().make_current()?;
        let mut exec = ptr::null_mut();
        // SAFETY: the pointer is to a live handle; the capture has ended and given this graph.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, capture.graph, 0) };
        check(code, "cuGraphInstantiate")?;
        let lots = capture.lots.take().expect("only taken here");
        Ok(Graph { exec, kept: Vec::new(), memory: Arc::clone(memory), lots })
    }
}

/// Calls a driver function that a capture of this thread would not allow although it enqueues nothing: taking and giving
/// memory, asking an event.
pub(super) fn outside_capture<T>(call: impl FnOnce() -> T) -> T {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the pointer is to a live mode, which is exchanged with the thread's.
    let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    let result = call();
    // SAFETY: as above; this puts the thread's own mode back.
    let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    result
}

/// A capture under way; dropping it restores the stream, also when the captured code panics.
struct Capture<'a> {
    stream: &'a Stream,
    lots: Option<Lots>,
    /// Null until the capture has ended well.
    graph: sys::CUgraph,
    begun: bool,
}

impl Capture<'_> {
    fn begin(&mut self) -> Result<()> {
        let _current = self.stream.memory().context().make_current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and its context is current.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream.handle(), mode) }, "cuStreamBeginCapture")?;
        self.begun = true;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.begun) {
            return Ok(());
        }
        let _current = self.stream.memory().context().make_current()?;
        // SAFETY: the pointer is to a live handle, and the stream is alive and capturing. A capture that was spoilt gives no
        // graph and ends all the same.
        check(unsafe { sys::cuStreamEndCapture(self.stream.handle(), &mut self.graph) }, "cuStreamEndCapture")
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // On the way out of an error the first one is told, not this.
        let _ = self.end();
        let memory = self.stream.memory();
        memory.end_capture();
        if !self.graph.is_null() {
            let _current = memory.context().make_current();
            // SAFETY: the graph is destroyed once; what was instantiated from it stays.
            let _ = unsafe { sys::cuGraphDestroy(self.graph) };
        }
        if let Some(lots) = self.lots.take() {
            memory.close(lots);
        }
    }
}

impl Graph {
    /// Enqueues the whole work on a stream.
    ///
    /// # Errors
    /// The driver refuses, or earlier work has failed.
    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        let _current = self.memory.context().make_current()?;
        // SAFETY: both are alive, and `&mut self` keeps launches of one graph apart.
        check(unsafe { sys::cuGraphLaunch(self.exec, stream.handle()) }, "cuGraphLaunch")
    }

    /// Keeps a buffer that the captured work uses for as long as the graph lives.
    pub fn keep(&mut self, buffer: &Buffer) {
        self.kept.push(buffer.clone());
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Its launches may still run, on any stream, in the memory that goes with it.
        let _current = self.memory.context().make_current();
        if self.memory.synchronize().is_ok() {
            // SAFETY: the executable graph is destroyed once, and nothing of it runs.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
        self.memory.close(self.lots);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph {:p} with {} kept buffers", self.exec, self.kept.len())
    }
}
