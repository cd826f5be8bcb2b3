//! Stream capture: instead of being done, the work of a stream becomes the nodes of a graph.

use crate::context::{Context, initialised};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::{Handle, In, Out};
use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::state::lock;
use crate::stream::{self, Kind, Stream};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;

const GLOBAL: u32 = 0;
const RELAXED: u32 = 2;

/// Captures that have begun and not ended.
static ACTIVE: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());
static SERIAL: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// A capture sequence.
pub struct Capture {
    id: u64,
    mode: u32,
    thread: ThreadId,
    context: Weak<Context>,
    /// Where the nodes go.
    pub graph: Arc<Graph>,
    /// Whether the graph was there before.
    into_existing: bool,
    invalid: AtomicBool,
    streams: Mutex<Vec<Weak<Stream>>>,
}

/// A stream's part in a capture.
pub struct Capturing {
    /// The capture.
    pub capture: Arc<Capture>,
    /// Whether it began on this stream.
    origin: bool,
    /// Nodes that the next one depends on.
    tail: Vec<NodeId>,
}

impl Capture {
    /// A rule was violated; nothing will come of it.
    pub fn invalidate(&self) {
        self.invalid.store(true, Ordering::Release);
    }

    fn is_invalid(&self) -> bool {
        self.invalid.load(Ordering::Acquire)
    }

    fn check(&self) -> Result {
        if self.is_invalid() { Err(Error::STREAM_CAPTURE_INVALIDATED) } else { Ok(()) }
    }

    fn has_blocking_stream(&self) -> bool {
        lock(&self.streams).iter().filter_map(Weak::upgrade).any(|s| s.kind == Kind::Blocking)
    }

    fn join(self: &Arc<Self>, stream: &Arc<Stream>, origin: bool, tail: Vec<NodeId>) {
        lock(&self.streams).push(Arc::downgrade(stream));
        *lock(&stream.capture) = Some(Capturing { capture: self.clone(), origin, tail });
    }

    /// Takes every stream out of it.
    fn end(self: &Arc<Self>) {
        for stream in lock(&self.streams).drain(..).filter_map(|s| s.upgrade()) {
            *lock(&stream.capture) = None;
        }
        lock(&ACTIVE).retain(|c| c.id != self.id);
    }
}

fn capture_of(stream: &Stream) -> Option<Arc<Capture>> {
    lock(&stream.capture).as_ref().map(|c| c.capture.clone())
}

/// Whether the stream takes part in a capture.
pub fn is_active(stream: &Stream) -> bool {
    lock(&stream.capture).is_some()
}

/// The graph that the stream's capture fills, if it captures.
pub fn graph_of(stream: &Stream) -> Result<Option<Arc<Graph>>> {
    match capture_of(stream) {
        None => Ok(None),
        Some(capture) => capture.check().map(|()| Some(capture.graph.clone())),
    }
}

/// Invalidates the stream's capture, if there is one.
pub fn invalidate(stream: &Stream) {
    if let Some(capture) = capture_of(stream) {
        capture.invalidate();
    }
}

/// The legacy stream waits for blocking streams; while one of them captures, it cannot be used.
pub fn refuse_implicit(stream: &Stream) -> Result {
    if stream.kind != Kind::Legacy {
        return Ok(());
    }
    let mut found = false;
    for capture in lock(&ACTIVE).iter() {
        if Weak::ptr_eq(&capture.context, &stream.context) && capture.has_blocking_stream() {
            capture.invalidate();
            found = true;
        }
    }
    if found { Err(Error::STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
}

/// Captures work; tells whether the stream is capturing.
pub fn admit(stream: &Stream, op: &Op) -> Result<bool> {
    refuse_implicit(stream)?;
    let mut capturing = lock(&stream.capture);
    let Some(part) = capturing.as_mut() else { return Ok(false) };
    part.capture.check()?;
    let node = part.capture.graph.add(op.clone(), &part.tail);
    part.tail = vec![node];
    Ok(true)
}

/// The stream cannot be waited for while it captures.
pub fn refuse_on(stream: &Stream) -> Result {
    refuse_implicit(stream)?;
    match capture_of(stream) {
        None => Ok(()),
        Some(capture) => {
            capture.check()?;
            capture.invalidate();
            Err(Error::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

/// Neither can its context.
pub fn refuse_in(context: &Arc<Context>) -> Result {
    let mut found = false;
    for capture in lock(&ACTIVE).iter() {
        if capture.context.as_ptr() == Arc::as_ptr(context) {
            capture.invalidate();
            found = true;
        }
    }
    if found { Err(Error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// A call that a capture would not see, such as an allocation. The mode of the captures and of the thread decide whether
/// it is prohibited.
pub fn unsafe_call() -> Result {
    let mode = MODE.get();
    if mode == RELAXED {
        return Ok(());
    }
    let me = std::thread::current().id();
    let mut found = false;
    for capture in lock(&ACTIVE).iter() {
        let mine = capture.thread == me && capture.mode != RELAXED;
        let global = mode == GLOBAL && capture.mode == GLOBAL;
        if mine || global {
            capture.invalidate();
            found = true;
        }
    }
    if found { Err(Error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Records an event in a capture; tells whether the stream is capturing.
pub fn record_event(stream: &Stream, event: &Event) -> Result<bool> {
    refuse_implicit(stream)?;
    let capturing = lock(&stream.capture);
    let Some(part) = capturing.as_ref() else { return Ok(false) };
    part.capture.check()?;
    event.record_captured(part.capture.clone(), part.tail.clone());
    Ok(true)
}

/// Makes a stream wait for an event where a capture is involved on either side; tells whether one is.
pub fn wait_event(stream: &Arc<Stream>, event: &Event) -> Result<bool> {
    refuse_implicit(stream)?;
    let mine = capture_of(stream);
    if let Some(capture) = &mine {
        capture.check()?;
    }
    match (mine, event.captured()) {
        (None, None) => Ok(false),
        (Some(capture), None) => {
            capture.invalidate();
            Err(Error::STREAM_CAPTURE_ISOLATION)
        }
        (None, Some((capture, nodes))) => {
            if !lock(&ACTIVE).iter().any(|c| c.id == capture.id) {
                return Err(Error::CAPTURED_EVENT);
            }
            capture.check()?;
            if stream.kind == Kind::Legacy {
                capture.invalidate();
                return Err(Error::STREAM_CAPTURE_IMPLICIT);
            }
            capture.join(stream, false, nodes);
            Ok(true)
        }
        (Some(capture), Some((other, nodes))) => {
            if capture.id != other.id {
                capture.invalidate();
                other.invalidate();
                return Err(Error::STREAM_CAPTURE_MERGE);
            }
            if let Some(part) = lock(&stream.capture).as_mut() {
                for node in nodes {
                    if !part.tail.contains(&node) {
                        part.tail.push(node);
                    }
                }
            }
            Ok(true)
        }
    }
}

/// The stream is being destroyed.
pub fn abandon(stream: &Arc<Stream>) {
    let part = lock(&stream.capture).take();
    if let Some(part) = part {
        part.capture.invalidate();
        if part.origin {
            part.capture.end();
        }
    }
}

fn begin_with(handle: Handle, mode: u32, graph: Option<Arc<Graph>>, tail: Vec<NodeId>) -> Result {
    let stream = stream::resolve(handle)?;
    if mode > RELAXED {
        return Err(Error::INVALID_VALUE);
    }
    if stream.kind == Kind::Legacy {
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    if is_active(&stream) {
        return Err(Error::ILLEGAL_STATE);
    }
    let capture = Arc::new(Capture {
        id: SERIAL.fetch_add(1, Ordering::Relaxed),
        mode,
        thread: std::thread::current().id(),
        context: stream.context.clone(),
        into_existing: graph.is_some(),
        graph: graph.unwrap_or_else(Graph::new),
        invalid: AtomicBool::new(false),
        streams: Mutex::default(),
    });
    capture.join(&stream, true, tail);
    lock(&ACTIVE).push(capture);
    Ok(())
}

/// `cuStreamBeginCapture_v2`.
pub fn begin(handle: Handle, mode: u32) -> Result {
    begin_with(handle, mode, None, Vec::new())
}

/// `cuStreamBeginCaptureToGraph`.
pub fn begin_to_graph(
    handle: Handle,
    graph: Handle,
    after: In<Handle>,
    edges: usize,
    count: usize,
    mode: u32,
) -> Result {
    initialised()?;
    let graph = Graph::find(graph)?;
    if edges != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    let tail = graph.nodes_of(&after.list(count)?)?;
    begin_with(handle, mode, Some(graph), tail)
}

/// `cuStreamEndCapture`. Whatever is wrong, the capture is over, unless the call came from the wrong thread.
pub fn end(handle: Handle, out: Out<Handle>) -> Result {
    let stream = stream::resolve(handle)?;
    out.needed()?;
    let (capture, origin, tail) = match &*lock(&stream.capture) {
        Some(part) => (part.capture.clone(), part.origin, part.tail.clone()),
        None => return Err(Error::ILLEGAL_STATE),
    };
    if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
        return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
    }
    out.set(Handle::NULL)?;
    if !origin {
        capture.invalidate();
        return Err(Error::STREAM_CAPTURE_UNMATCHED);
    }
    capture.end();
    capture.check()?;
    let loose = capture.graph.leaves().into_iter().any(|node| !tail.contains(&node));
    if loose && !capture.into_existing {
        return Err(Error::STREAM_CAPTURE_UNJOINED);
    }
    out.set(capture.graph.publish())
}

/// `cuStreamIsCapturing`: 0 no, 1 yes, 2 in vain.
pub fn is_capturing(handle: Handle, out: Out<u32>) -> Result {
    let stream = stream::resolve(handle)?;
    refuse_query(&stream)?;
    out.set(status(&stream))
}

fn status(stream: &Stream) -> u32 {
    match capture_of(stream) {
        None => 0,
        Some(capture) if capture.is_invalid() => 2,
        Some(_) => 1,
    }
}

/// A question does not invalidate, but the legacy stream gives no answer while a blocking stream captures.
fn refuse_query(stream: &Stream) -> Result {
    let clash = |c: &Arc<Capture>| Weak::ptr_eq(&c.context, &stream.context) && c.has_blocking_stream();
    if stream.kind == Kind::Legacy && lock(&ACTIVE).iter().any(clash) {
        return Err(Error::STREAM_CAPTURE_IMPLICIT);
    }
    Ok(())
}

/// `cuStreamGetCaptureInfo` (first form).
pub fn info(handle: Handle, state: Out<u32>, id: Out<u64>) -> Result {
    info_v2(handle, state, id, Out::nowhere(), Out::nowhere(), Out::nowhere())
}

/// `cuStreamGetCaptureInfo_v2`.
pub fn info_v2(
    handle: Handle,
    state: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    tail: Out<usize>,
    count: Out<usize>,
) -> Result {
    info_v3(handle, state, id, graph, tail, Out::nowhere(), count)
}

/// `cuStreamGetCaptureInfo_v3`. The array of dependencies lives until the thread asks again.
pub fn info_v3(
    handle: Handle,
    state: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    tail: Out<usize>,
    edges: Out<usize>,
    count: Out<usize>,
) -> Result {
    thread_local! {
        static TAIL: std::cell::RefCell<Vec<Handle>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let stream = stream::resolve(handle)?;
    refuse_query(&stream)?;
    state.set(status(&stream))?;
    let capturing = lock(&stream.capture);
    let Some(part) = capturing.as_ref().filter(|p| !p.capture.is_invalid()) else { return Ok(()) };
    id.set_if(part.capture.id);
    graph.set_if(part.capture.graph.publish());
    edges.set_if(0);
    count.set_if(part.tail.len());
    TAIL.with_borrow_mut(|kept| {
        *kept = part.tail.iter().map(|&n| part.capture.graph.handle_of(n)).collect();
        tail.set_if(kept.as_ptr() as usize);
    });
    Ok(())
}

/// `cuStreamUpdateCaptureDependencies`: 0 adds, 1 replaces.
pub fn update(handle: Handle, nodes: In<Handle>, count: usize, flags: u32) -> Result {
    let stream = stream::resolve(handle)?;
    let mut capturing = lock(&stream.capture);
    let part = capturing.as_mut().ok_or(Error::ILLEGAL_STATE)?;
    part.capture.check()?;
    let nodes = part.capture.graph.nodes_of(&nodes.list(count)?)?;
    match flags {
        0 => part.tail.extend(nodes),
        1 => part.tail = nodes,
        _ => return Err(Error::INVALID_VALUE),
    }
    Ok(())
}

/// `cuStreamUpdateCaptureDependencies_v2`.
pub fn update_v2(handle: Handle, nodes: In<Handle>, edges: usize, count: usize, flags: u32) -> Result {
    if edges != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    update(handle, nodes, count, flags)
}

/// `cuThreadExchangeStreamCaptureMode`.
pub fn exchange_mode(mode: Out<u32>) -> Result {
    initialised()?;
    let new = mode.get()?;
    if new > RELAXED {
        return Err(Error::INVALID_VALUE);
    }
    mode.set(MODE.replace(new))
}

/// The graph of a handle that a capture still fills cannot be destroyed; this tells.
pub fn fills(graph: &Arc<Graph>) -> bool {
    lock(&ACTIVE).iter().any(|c| Arc::ptr_eq(&c.graph, graph))
}
