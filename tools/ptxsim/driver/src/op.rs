//! Pieces of work: what a stream takes and a graph keeps.

use crate::capture;
use crate::context::{self, Context};
use crate::copy::{Copy, Fill};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::HostFn;
use crate::graph::Graph;
use crate::launch::KernelLaunch;
use crate::order::Moment;
use crate::report::StreamFinding;
use crate::state::{self, Driver, lock};
use crate::stream::{self, Stream};
use ptxsim::mem::touched::Use;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// A function of the program, to be called in a stream's order.
#[derive(Clone, Copy)]
pub struct HostCall {
    /// The function.
    pub function: HostFn,
    /// Its argument.
    pub data: usize,
}

impl HostCall {
    /// Calls it.
    pub fn call(self) {
        // SAFETY: the program gave this function and this argument for exactly this call.
        context::in_callback(|| unsafe { (self.function)(self.data as *mut c_void) });
    }
}

/// A piece of work.
#[derive(Clone)]
pub enum Op {
    /// A kernel.
    Kernel(Arc<KernelLaunch>),
    /// A copy.
    Copy(Copy),
    /// A memset.
    Fill(Fill),
    /// A host function.
    Host(HostCall),
    /// Nothing but an order.
    Empty,
    /// Records an event.
    RecordEvent(Arc<Event>),
    /// Waits for an event that is recorded outside the graph.
    WaitEvent(Arc<Event>),
    /// A graph within a graph.
    Child(Arc<Graph>),
    /// A stream-ordered allocation.
    Alloc(Range<u64>),
    /// A stream-ordered free.
    Free(u64),
}

impl Op {
    /// What messages call it.
    pub fn what(&self) -> String {
        match self {
            Op::Kernel(launch) => format!("kernel {}", launch.function.name),
            Op::Copy(copy) => copy.what.to_string(),
            Op::Fill(_) => "memset".to_string(),
            Op::Host(_) => "host function".to_string(),
            Op::Empty => "empty node".to_string(),
            Op::RecordEvent(_) => "event record".to_string(),
            Op::WaitEvent(_) => "event wait".to_string(),
            Op::Child(_) => "child graph".to_string(),
            Op::Alloc(_) => "cuMemAllocAsync".to_string(),
            Op::Free(_) => "cuMemFreeAsync".to_string(),
        }
    }

    /// Its `CUgraphNodeType`.
    pub fn node_type(&self) -> u32 {
        match self {
            Op::Kernel(_) => 0,
            Op::Copy(_) => 1,
            Op::Fill(_) => 2,
            Op::Host(_) => 3,
            Op::Child(_) => 4,
            Op::Empty => 5,
            Op::WaitEvent(_) => 6,
            Op::RecordEvent(_) => 7,
            Op::Alloc(_) => 10,
            Op::Free(_) => 11,
        }
    }
}

/// Enqueues work: captures it, or does it. Tells whether it was captured.
pub fn enqueue(stream: &Arc<Stream>, op: Op) -> Result<bool> {
    let context = stream.context()?;
    if capture::admit(stream, &op)? {
        return Ok(true);
    }
    if let Op::Host(call) = op {
        stream::beside(stream, &context, "host function", move |context| {
            if context.check().is_ok() {
                call.call();
            }
        })?;
        return Ok(false);
    }
    let driver = state::driver()?;
    if let Op::RecordEvent(event) = &op {
        // Recording does not wait: an event behind a host function is simply not reached yet.
        let pending = stream.blockers(&context);
        let moment = stream.moment(driver, &context, "event record");
        event.record(moment.clock().clone(), pending);
        return Ok(false);
    }
    for ticket in stream.blockers(&context) {
        ticket.wait();
    }
    let moment = stream.moment(driver, &context, &op.what());
    perform(driver, &context, &op, &moment)?;
    Ok(false)
}

/// Does a piece of work whose turn it is.
pub fn perform(driver: &'static Driver, context: &Arc<Context>, op: &Op, moment: &Moment) -> Result {
    context.check()?;
    if let Op::Host(call) = op {
        // Without the turn: it may take as long as it likes.
        call.call();
        return Ok(());
    }
    let _turn = context.turn();
    match op {
        Op::Kernel(launch) => launch.perform(driver, context, moment),
        Op::Copy(copy) => copy.perform(driver, context, moment),
        Op::Fill(fill) => fill.perform(driver, context, moment),
        Op::RecordEvent(event) => {
            event.record(moment.clock().clone(), Vec::new());
            Ok(())
        }
        Op::Alloc(range) => uses(driver, context, moment, &[(range.clone(), Use::Write)]),
        Op::Free(address) => crate::memory::free_in_order(driver, context, *address, moment),
        Op::Empty | Op::WaitEvent(_) | Op::Child(_) | Op::Host(_) => Ok(()),
    }
}

/// Notes which memory a piece of work uses. A use that nothing orders after another one is a finding.
pub fn uses(
    driver: &Driver,
    context: &Arc<Context>,
    moment: &Moment,
    ranges: &[(Range<u64>, Use)],
) -> Result {
    let mut first = None;
    {
        let mut order = lock(&driver.order);
        for (range, usage) in ranges {
            let conflict = order.access(moment, range.clone(), *usage);
            first = first.or_else(|| conflict.map(|c| (c, *usage)));
        }
    }
    let Some((conflict, usage)) = first else { return Ok(()) };
    let verb = |usage: Use| match usage {
        Use::Read => "reads",
        Use::Write => "writes",
        Use::Strong => "updates",
    };
    let base = driver.memory.find(conflict.range.start).map_or(conflict.range.start, |a| a.base);
    let message = format!(
        "{} {} bytes {}..{} of the allocation at {base:#x}, which {} {} in another stream, and no event, \
         synchronisation or NULL-stream rule orders the two",
        moment.what(),
        verb(usage),
        conflict.range.start - base,
        conflict.range.end - base,
        conflict.other,
        verb(conflict.other_use),
    );
    let finding =
        StreamFinding { what: moment.what().to_string(), other: conflict.other.to_string(), message };
    let fails = lock(&context.report).add_stream_finding(&driver.settings, finding);
    if fails { Err(context.fail(Error::LAUNCH_FAILED)) } else { Ok(()) }
}
