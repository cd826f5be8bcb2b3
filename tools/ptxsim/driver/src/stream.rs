//! Streams. Work runs at the moment it is enqueued, so a stream is never behind; only host functions run beside the
//! program, and what is enqueued behind one waits for it. What is ordered after what, [`crate::order`] keeps.

use crate::capture::{self, Capturing};
use crate::context::{self, Context, current, initialised};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::{Handle, HostFn, Out, StreamCallback};
use crate::handles;
use crate::op::{HostCall, Op};
use crate::order::{Clock, Moment, Timeline};
use crate::state::{self, Driver, lock};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

/// Greatest and least priority; smaller numbers go first.
pub const PRIORITIES: (i32, i32) = (-5, 0);
/// `CU_STREAM_LEGACY`
const LEGACY: Handle = Handle(1);
/// `CU_STREAM_PER_THREAD`
const PER_THREAD: Handle = Handle(2);
/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: u32 = 1;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// How a stream behaves towards the legacy NULL stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is that stream.
    Legacy,
    /// Each waits for the other.
    Blocking,
    /// Neither waits.
    NonBlocking,
}

/// A host function that runs, or has run, beside the program.
#[derive(Default)]
pub struct Ticket {
    done: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Ticket {
    /// When it ended; `None` while it runs.
    pub fn ended(&self) -> Option<Instant> {
        *lock(&self.done)
    }

    /// Waits until it ended.
    pub fn wait(&self) {
        let mut done = lock(&self.done);
        while done.is_none() {
            done = self.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that it ended.
    pub fn finish(&self) {
        *lock(&self.done) = Some(Instant::now());
        self.changed.notify_all();
    }
}

/// A stream.
pub struct Stream {
    /// How it behaves towards the NULL stream.
    pub kind: Kind,
    /// Its context.
    pub context: Weak<Context>,
    /// Its timeline.
    pub timeline: Timeline,
    /// A number that no other stream of the process has.
    pub id: u64,
    priority: i32,
    handle: OnceLock<Handle>,
    pending: Mutex<Vec<Arc<Ticket>>>,
    /// The capture it takes part in.
    pub capture: Mutex<Option<Capturing>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(driver) = state::driver() {
            lock(&driver.order).retire(self.timeline);
        }
    }
}

impl Stream {
    /// A stream without a handle.
    pub fn new(driver: &Driver, context: Weak<Context>, kind: Kind, priority: i32) -> Arc<Self> {
        Arc::new(Self {
            kind,
            context,
            timeline: lock(&driver.order).timeline(),
            id: SERIAL.fetch_add(1, Ordering::Relaxed),
            priority,
            handle: OnceLock::new(),
            pending: Mutex::default(),
            capture: Mutex::new(None),
        })
    }

    /// Its context, which must not have faulted.
    pub fn context(&self) -> Result<Arc<Context>> {
        let context = self.context.upgrade().ok_or(Error::CONTEXT_IS_DESTROYED)?;
        context.check()?;
        Ok(context)
    }

    /// Host functions that still run in it.
    pub fn pending(&self) -> Vec<Arc<Ticket>> {
        let mut pending = lock(&self.pending);
        pending.retain(|t| t.ended().is_none());
        pending.clone()
    }

    /// What comes later waits for this too.
    pub fn add_pending(&self, tickets: &[Arc<Ticket>]) {
        lock(&self.pending).extend(tickets.iter().cloned());
    }

    /// Waits for the host functions in it.
    pub fn drain(&self) {
        for ticket in self.pending() {
            ticket.wait();
        }
    }

    /// The streams that work enqueued here waits for, besides this one.
    fn predecessors(&self, context: &Context) -> Vec<Arc<Stream>> {
        match self.kind {
            Kind::NonBlocking => Vec::new(),
            Kind::Blocking => vec![context.null.clone()],
            Kind::Legacy => context.streams().into_iter().filter(|s| s.kind == Kind::Blocking).collect(),
        }
    }

    /// Host functions that work enqueued now has to wait for.
    pub fn blockers(&self, context: &Context) -> Vec<Arc<Ticket>> {
        let mut all = self.pending();
        for stream in self.predecessors(context) {
            all.extend(stream.pending());
        }
        all
    }

    /// Enqueues a piece of work in the order of things.
    pub fn moment(&self, driver: &Driver, context: &Context, what: &str) -> Moment {
        let before = self.predecessors(context);
        let mut order = lock(&driver.order);
        let mut after: Vec<Clock> = before.iter().map(|s| order.clock(s.timeline)).collect();
        if self.kind == Kind::Legacy {
            after.push(context.destroyed_streams());
        }
        order.enqueue(self.timeline, &after, Arc::from(what))
    }

    /// Host functions that the host waits for when it waits for the stream.
    fn unfinished(&self, context: &Context) -> Vec<Arc<Ticket>> {
        if self.kind == Kind::Legacy { self.blockers(context) } else { self.pending() }
    }

    /// The host waits for everything in it; in the legacy stream's case for what that waits for as well.
    pub fn wait(&self) -> Result {
        let context = self.context()?;
        for ticket in self.unfinished(&context) {
            ticket.wait();
        }
        let driver = state::driver()?;
        let clock = match self.kind {
            Kind::Legacy => self.moment(driver, &context, "synchronisation").clock().clone(),
            _ => lock(&driver.order).clock(self.timeline),
        };
        lock(&driver.order).host_waited(&clock);
        Ok(())
    }
}

/// The stream of a handle, in the current context or in its own.
pub fn resolve(handle: Handle) -> Result<Arc<Stream>> {
    initialised()?;
    if handle.is_null() || handle == LEGACY {
        return Ok(current()?.null.clone());
    }
    if handle == PER_THREAD {
        return current()?.per_thread();
    }
    let stream: Arc<Stream> = handles::get(handle)?;
    stream.context()?;
    Ok(stream)
}

/// `cuStreamCreate`.
pub fn create(out: Out<Handle>, flags: u32) -> Result {
    create_with_priority(out, flags, 0)
}

/// `cuStreamCreateWithPriority`: a priority outside the range is moved into it.
pub fn create_with_priority(out: Out<Handle>, flags: u32, priority: i32) -> Result {
    let context = current()?;
    out.needed()?;
    let kind = match flags {
        0 => Kind::Blocking,
        NON_BLOCKING => Kind::NonBlocking,
        _ => return Err(Error::INVALID_VALUE),
    };
    let priority = priority.clamp(PRIORITIES.0, PRIORITIES.1);
    let stream = Stream::new(state::driver()?, Arc::downgrade(&context), kind, priority);
    let handle = context.own(stream.clone());
    let _ = stream.handle.set(handle);
    context.add_stream(&stream);
    out.set(handle)
}

/// `cuStreamDestroy_v2`: what it still has to do is done.
pub fn destroy(handle: Handle) -> Result {
    initialised()?;
    if handle == LEGACY || handle == PER_THREAD || handle.is_null() {
        return Err(Error::INVALID_HANDLE);
    }
    let stream: Arc<Stream> = handles::get(handle)?;
    let context = stream.context()?;
    capture::abandon(&stream);
    handles::take::<Stream>(handle)?;
    context.disown(handle);
    for ticket in stream.pending() {
        context.null.add_pending(&[ticket]);
    }
    let clock = lock(&state::driver()?.order).clock(stream.timeline);
    context.add_destroyed_stream(&clock);
    Ok(())
}

/// `cuStreamSynchronize`.
pub fn synchronize(handle: Handle) -> Result {
    let stream = resolve(handle)?;
    capture::refuse_on(&stream)?;
    stream.wait()?;
    stream.context().map(|_| ())
}

/// `cuStreamQuery`.
pub fn query(handle: Handle) -> Result {
    let stream = resolve(handle)?;
    capture::refuse_on(&stream)?;
    if !stream.unfinished(&*stream.context()?).is_empty() {
        return Err(Error::NOT_READY);
    }
    stream.wait()
}

/// `cuStreamWaitEvent`: waits for what the event recorded last, or for nothing.
pub fn wait_event(handle: Handle, event: Handle, flags: u32) -> Result {
    let stream = resolve(handle)?;
    let event: Arc<Event> = handles::get(event)?;
    if flags > 1 {
        return Err(Error::INVALID_VALUE);
    }
    if flags == 1 && capture::is_active(&stream) {
        return crate::op::enqueue(&stream, Op::WaitEvent(event)).map(|_| ());
    }
    if capture::wait_event(&stream, &event)? {
        return Ok(());
    }
    let (clock, pending) = event.recorded();
    stream.add_pending(&pending);
    lock(&state::driver()?.order).wait(stream.timeline, &[clock]);
    Ok(())
}

/// `cuStreamGetPriority`.
pub fn priority(handle: Handle, out: Out<i32>) -> Result {
    out.set(resolve(handle)?.priority)
}

/// `cuStreamGetFlags`.
pub fn flags(handle: Handle, out: Out<u32>) -> Result {
    let kind = resolve(handle)?.kind;
    out.set(if kind == Kind::NonBlocking { NON_BLOCKING } else { 0 })
}

/// `cuStreamGetId`.
pub fn id(handle: Handle, out: Out<u64>) -> Result {
    out.set(resolve(handle)?.id)
}

/// `cuStreamGetCtx`.
pub fn get_context(handle: Handle, out: Out<Handle>) -> Result {
    out.set(resolve(handle)?.context()?.handle)
}

/// `cuStreamGetCtx_v2`: there are no green contexts.
pub fn get_context_v2(handle: Handle, out: Out<Handle>, green: Out<Handle>) -> Result {
    green.needed()?.set(Handle::NULL)?;
    get_context(handle, out)
}

/// `cuStreamGetDevice`.
pub fn get_device(handle: Handle, out: Out<i32>) -> Result {
    out.set(resolve(handle)?.context()?.ordinal as i32)
}

/// `cuStreamGetGreenCtx`: there are none.
pub fn get_green_context(handle: Handle, out: Out<Handle>) -> Result {
    resolve(handle)?;
    out.set(Handle::NULL)
}

/// `cuStreamAttachMemAsync`: managed memory is reachable from everywhere, so this only orders.
pub fn attach_memory(handle: Handle, address: u64, _bytes: usize, flags: u32) -> Result {
    let stream = resolve(handle)?;
    if !matches!(flags, 1 | 2 | 4) || !crate::memory::is_managed(address)? {
        return Err(Error::INVALID_VALUE);
    }
    crate::op::enqueue(&stream, Op::Empty).map(|_| ())
}

/// `cuLaunchHostFunc`.
pub fn host_function(handle: Handle, function: Option<HostFn>, data: usize) -> Result {
    let stream = resolve(handle)?;
    let function = function.ok_or(Error::INVALID_VALUE)?;
    crate::op::enqueue(&stream, Op::Host(HostCall { function, data })).map(|_| ())
}

/// `cuStreamAddCallback`: called after an error too, which the callback is told.
pub fn add_callback(handle: Handle, callback: Option<StreamCallback>, data: usize, flags: u32) -> Result {
    let stream = resolve(handle)?;
    let callback = callback.ok_or(Error::INVALID_VALUE)?;
    if flags != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if capture::is_active(&stream) {
        capture::invalidate(&stream);
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    let context = stream.context()?;
    beside(&stream, &context, "stream callback", move |context| {
        let status = context.check().err().map_or(0, |e| e.0);
        // SAFETY: the program gave this function and this argument for exactly this call.
        context::in_callback(|| unsafe { callback(handle, status, data as *mut c_void) });
    })
}

/// Runs something of the program's beside it, in the stream's order.
pub fn beside(
    stream: &Arc<Stream>,
    context: &Arc<Context>,
    what: &str,
    run: impl FnOnce(&Arc<Context>) + Send + 'static,
) -> Result {
    let driver = state::driver()?;
    let before = stream.blockers(context);
    let moment = stream.moment(driver, context, what);
    let context = context.clone();
    spawn(stream, before, move || {
        // It starts as if the program had waited for everything before it.
        lock(&driver.order).host_waited(moment.clock());
        run(&context);
    })
}

/// Starts a thread that runs after the given tickets; the stream's later work waits for it.
pub fn spawn(stream: &Stream, before: Vec<Arc<Ticket>>, run: impl FnOnce() + Send + 'static) -> Result {
    let ticket = Arc::new(Ticket::default());
    stream.add_pending(std::slice::from_ref(&ticket));
    let spawned = std::thread::Builder::new().name("ptxsim host function".to_string()).spawn({
        let ticket = ticket.clone();
        move || {
            for earlier in before {
                earlier.wait();
            }
            run();
            ticket.finish();
        }
    });
    if spawned.is_err() {
        ticket.finish();
        return Err(Error::OPERATING_SYSTEM);
    }
    Ok(())
}
