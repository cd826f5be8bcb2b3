//! Events.

use crate::capture::{self, Capture};
use crate::context::{Context, current, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, Out};
use crate::graph::NodeId;
use crate::handles;
use crate::op::Op;
use crate::order::Clock;
use crate::state::{self, lock};
use crate::stream::{self, Ticket};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

/// What an event recorded last.
enum Recorded {
    Nothing,
    Work { clock: Clock, at: Instant, pending: Vec<Arc<Ticket>> },
    Captured { capture: Arc<Capture>, nodes: Vec<NodeId> },
}

/// An event.
pub struct Event {
    timing: bool,
    /// Its context.
    pub context: Weak<Context>,
    recorded: Mutex<Recorded>,
}

impl Event {
    /// Records work that was enqueued now.
    pub fn record(&self, clock: Clock, pending: Vec<Arc<Ticket>>) {
        *lock(&self.recorded) = Recorded::Work { clock, at: Instant::now(), pending };
    }

    /// Records a place in a capture.
    pub fn record_captured(&self, capture: Arc<Capture>, nodes: Vec<NodeId>) {
        *lock(&self.recorded) = Recorded::Captured { capture, nodes };
    }

    /// The place in a capture, if that was recorded last.
    pub fn captured(&self) -> Option<(Arc<Capture>, Vec<NodeId>)> {
        match &*lock(&self.recorded) {
            Recorded::Captured { capture, nodes } => Some((capture.clone(), nodes.clone())),
            _ => None,
        }
    }

    /// The work recorded; nothing if none was.
    pub fn recorded(&self) -> (Clock, Vec<Arc<Ticket>>) {
        match &*lock(&self.recorded) {
            Recorded::Work { clock, pending, .. } => (clock.clone(), pending.clone()),
            _ => (Clock::default(), Vec::new()),
        }
    }

    /// When the recorded work was done.
    fn time(&self) -> Result<Instant> {
        match &*lock(&self.recorded) {
            Recorded::Nothing => Err(Error::INVALID_HANDLE),
            Recorded::Captured { .. } => Err(Error::CAPTURED_EVENT),
            Recorded::Work { at, pending, .. } => {
                pending.iter().try_fold(*at, |latest, t| Ok(latest.max(t.ended().ok_or(Error::NOT_READY)?)))
            }
        }
    }
}

fn event(handle: Handle) -> Result<Arc<Event>> {
    initialised()?;
    let event: Arc<Event> = handles::get(handle)?;
    event.context.upgrade().ok_or(Error::CONTEXT_IS_DESTROYED)?.check()?;
    Ok(event)
}

/// `cuEventCreate`.
pub fn create(out: Out<Handle>, flags: u32) -> Result {
    let context = current()?;
    out.needed()?;
    if flags & !(BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS) != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if flags & INTERPROCESS != 0 {
        return Err(if flags & DISABLE_TIMING == 0 { Error::INVALID_VALUE } else { Error::NOT_SUPPORTED });
    }
    let event = Event {
        timing: flags & DISABLE_TIMING == 0,
        context: Arc::downgrade(&context),
        recorded: Mutex::new(Recorded::Nothing),
    };
    out.set(context.own(Arc::new(event)))
}

/// `cuEventDestroy_v2`.
pub fn destroy(handle: Handle) -> Result {
    let event = event(handle)?;
    handles::take::<Event>(handle)?;
    if let Some(context) = event.context.upgrade() {
        context.disown(handle);
    }
    Ok(())
}

/// `cuEventRecord`.
pub fn record(handle: Handle, stream: Handle) -> Result {
    record_with_flags(handle, stream, 0)
}

/// `cuEventRecordWithFlags`: with the flag for external events a capture gets a node that records.
pub fn record_with_flags(handle: Handle, stream: Handle, flags: u32) -> Result {
    let event = event(handle)?;
    let stream = stream::resolve(stream)?;
    if flags > 1 {
        return Err(Error::INVALID_VALUE);
    }
    if !Weak::ptr_eq(&event.context, &stream.context) {
        return Err(Error::INVALID_HANDLE);
    }
    if flags == 0 && capture::record_event(&stream, &event)? {
        return Ok(());
    }
    crate::op::enqueue(&stream, Op::RecordEvent(event)).map(|_| ())
}

/// `cuEventQuery`.
pub fn query(handle: Handle) -> Result {
    let event = event(handle)?;
    capture::unsafe_call()?;
    if event.captured().is_some() {
        return Err(Error::CAPTURED_EVENT);
    }
    let (clock, pending) = event.recorded();
    if pending.iter().any(|t| t.ended().is_none()) {
        return Err(Error::NOT_READY);
    }
    lock(&state::driver()?.order).host_waited(&clock);
    Ok(())
}

/// `cuEventSynchronize`.
pub fn synchronize(handle: Handle) -> Result {
    let event = event(handle)?;
    if let Some((capture, _)) = event.captured() {
        capture.invalidate();
        return Err(Error::CAPTURED_EVENT);
    }
    capture::unsafe_call()?;
    let (clock, pending) = event.recorded();
    for ticket in pending {
        ticket.wait();
    }
    lock(&state::driver()?.order).host_waited(&clock);
    event.context.upgrade().map_or(Ok(()), |c| c.check())
}

/// `cuEventElapsedTime` and `_v2`: the time the simulator took, which says nothing about a card.
pub fn elapsed(out: Out<f32>, start: Handle, end: Handle) -> Result {
    let (start, end) = (event(start)?, event(end)?);
    out.needed()?;
    if !start.timing || !end.timing || !Weak::ptr_eq(&start.context, &end.context) {
        return Err(Error::INVALID_HANDLE);
    }
    let (from, to) = (start.time()?, end.time()?);
    let seconds = match to.checked_duration_since(from) {
        Some(forward) => forward.as_secs_f64(),
        None => -from.duration_since(to).as_secs_f64(),
    };
    out.set((seconds * 1e3) as f32)
}
