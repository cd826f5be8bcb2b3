//! Device memory of one [`super::Gpu`]: the arenas, the ledger and the limit behind `alloc`, `memory` and `trim`.
//!
//! Reuse follows the compute stream: a block that is dropped may be handed out at once, since whatever is enqueued on
//! that stream later runs later. Work on other streams is guarded by events ([`Buffer::used_on`]): the block waits until
//! they have happened.

use super::arena::{ALIGNMENT, Arena, Lot, Span, block_bytes};
use super::buffer::{Block, Buffer};
use super::device::Context;
use super::error::check;
use super::event::Event;
use super::graph::outside_capture;
use super::ledger::{Ledger, MemoryReport};
use super::planning;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// What the driver hands out large allocations in.
const PAGE: u64 = 2 << 20;
/// Chunks grow with what is reserved already, up to this size, so that a large job has few of them.
const LARGEST_CHUNK: u64 = 1 << 30;
/// A block is small if it takes less than this part of a chunk. Small blocks (parameters of norms, statistics) live
/// long and would cut the room of the activations to pieces, so they have chunks of their own.
const SMALL: u64 = 64;
/// Chunks of small blocks are this part of the others.
const SMALL_CHUNK: u64 = 8;

/// How memory is taken from the driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The most bytes to take.
    pub limit: Option<u64>,
    /// The least bytes of a chunk.
    pub chunk_bytes: u64,
    /// Whether blocks are cut from chunks, or each is an allocation of the driver's.
    pub suballocate: bool,
}

/// Where a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// One of the arenas.
    Arena(usize),
    /// An allocation of its own.
    Driver,
    /// The host program, which frees it.
    Host,
}

/// The memory that a captured graph keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lots([Lot; 2]);

struct Capture {
    lots: Lots,
    thread: ThreadId,
}

#[derive(Default)]
struct State {
    arenas: [Arena; 2],
    ledger: Ledger,
    /// Bytes in allocations of their own.
    alone: u64,
    /// Dropped blocks that another stream may still use.
    waiting: Vec<(Block, Vec<Event>)>,
    capture: Option<Capture>,
    /// Allocations of their own that graphs keep.
    kept: Vec<(Lots, Block)>,
    /// The bytes of each planned chunk that were ever reached.
    reached: [u64; 2],
}

impl State {
    fn reserved(&self) -> u64 {
        self.alone + self.arenas.iter().map(Arena::reserved).sum::<u64>()
    }

    /// Whether the graph of these lots is alive.
    fn is_open(&self, lots: Lots) -> bool {
        self.arenas[0].has_lot(lots.0[0])
    }

    /// The lots to serve this thread from: it is capturing.
    fn capturing(&self) -> Option<Lots> {
        self.capture.as_ref().filter(|c| c.thread == std::thread::current().id()).map(|c| c.lots)
    }
}

/// The memory of one device.
pub(super) struct Memory {
    context: Arc<Context>,
    policy: Policy,
    state: Mutex<State>,
}

impl Memory {
    pub fn new(context: Arc<Context>, policy: Policy) -> Self {
        Memory { context, policy, state: Mutex::default() }
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic, so the state behind a poisoned lock is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a block.
    pub fn alloc(self: &Arc<Self>, bytes: usize, tag: &'static str) -> Result<Buffer> {
        let wanted = block_bytes(bytes as u64).ok_or_else(|| self.out_of_memory(bytes as u64, tag))?;
        let mut state = self.lock();
        self.collect(&mut state, false);
        let found = match self.place(&mut state, bytes as u64, wanted)? {
            Some(found) => Some(found),
            None => {
                // The last resorts: what other streams still use, then what the arenas hold and nobody uses.
                self.collect(&mut state, true);
                self.release_unused(&mut state)?;
                self.place(&mut state, bytes as u64, wanted)?
            }
        };
        let Some((ptr, origin)) = found else {
            drop(state);
            return Err(self.out_of_memory(wanted, tag));
        };
        state.ledger.add(tag, wanted);
        let lots = state.capturing();
        drop(state);
        let block = Block { span: Span { start: ptr, bytes: wanted }, tag, origin, lots };
        Ok(Buffer::new(Arc::clone(self), block, bytes))
    }

    fn place(&self, state: &mut State, bytes: u64, wanted: u64) -> Result<Option<(u64, Origin)>> {
        if !self.policy.suballocate {
            let room = self.policy.limit.is_none_or(|limit| state.reserved().saturating_add(wanted) <= limit);
            let got = if room { self.driver_alloc(bytes.max(1))? } else { None };
            state.alone += got.map_or(0, |_| wanted);
            return Ok(got.map(|ptr| (ptr, Origin::Driver)));
        }
        let class = usize::from(wanted >= self.policy.chunk_bytes / SMALL);
        let lots = state.capturing();
        let take = |state: &mut State| match lots {
            Some(Lots(lots)) => state.arenas[class].take_in(lots[class], wanted),
            None => state.arenas[class].take(wanted),
        };
        let mut span = take(state);
        if span.is_none() && self.grow(state, class, wanted)? {
            span = take(state);
        }
        if let Some(span) = span.filter(|_| self.context.is_planning()) {
            state.reached[class] = state.reached[class].max(planning::offset(span.end()));
        }
        Ok(span.map(|s| (s.start, Origin::Arena(class))))
    }

    /// Adds a chunk in which `wanted` bytes have room; `false` if there is none to be had.
    fn grow(&self, state: &mut State, class: usize, wanted: u64) -> Result<bool> {
        if self.context.is_planning() {
            // One chunk without an end for each class.
            let first = state.arenas[class].reserved() == 0;
            if first {
                state.arenas[class].add_chunk(planning::chunk(class));
            }
            return Ok(first);
        }
        let Policy { limit, chunk_bytes, .. } = self.policy;
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(state.reserved()));
        let usual = match class {
            0 => chunk_bytes / SMALL_CHUNK,
            _ => (state.reserved() / 8).min(LARGEST_CHUNK).max(chunk_bytes),
        };
        let page = if chunk_bytes >= PAGE { PAGE } else { ALIGNMENT };
        let round = |bytes: u64| bytes.checked_next_multiple_of(page).unwrap_or(bytes);
        // Where a whole chunk has no room, one that just holds the request may have it.
        for bytes in [round(wanted.max(usual)), round(wanted), wanted] {
            if bytes <= left
                && let Some(start) = self.driver_alloc(bytes)?
            {
                state.arenas[class].add_chunk(Span { start, bytes });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Memory from the driver; `None` if it has none left.
    fn driver_alloc(&self, bytes: u64) -> Result<Option<u64>> {
        let Ok(size) = usize::try_from(bytes) else { return Ok(None) };
        let _current = self.context.make_current()?;
        let mut ptr = 0;
        // SAFETY: the pointer is to a live address, and a context is current.
        match outside_capture(|| unsafe { sys::cuMemAlloc_v2(&mut ptr, size) }) {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            code => check(code, "cuMemAlloc").map(|()| Some(ptr)),
        }
    }

    /// Gives memory back to the driver, which waits for all work that uses it. A failure means that the context is
    /// gone or broken, and its memory with it.
    fn driver_free(&self, ptr: u64) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: the address came from `cuMemAlloc` and is given back once.
            let _ = outside_capture(|| unsafe { sys::cuMemFree_v2(ptr) });
        }
    }

    /// Takes a block back whose last handle was dropped. `uses` are events of other streams that used it.
    pub fn give(&self, block: Block, uses: Vec<Event>) {
        let mut state = self.lock();
        state.ledger.remove(block.tag, block.span.bytes);
        if uses.is_empty() {
            self.put_back(&mut state, block);
        } else {
            state.waiting.push((block, uses));
        }
    }

    fn put_back(&self, state: &mut State, block: Block) {
        let capturing = state.capturing();
        match (block.origin, block.lots, capturing) {
            (Origin::Arena(i), Some(Lots(lots)), _) => state.arenas[i].give_in(lots[i], block.span),
            // The capture may have recorded work on it, which must find it untouched at every launch.
            (Origin::Arena(i), None, Some(Lots(lots))) => state.arenas[i].keep_in(lots[i], block.span),
            (Origin::Arena(i), None, None) => state.arenas[i].give(block.span),
            (Origin::Driver, Some(lots), _) | (Origin::Driver, None, Some(lots)) if state.is_open(lots) => {
                state.kept.push((lots, block));
            }
            (Origin::Host, ..) => {}
            (Origin::Driver, ..) => {
                state.alone -= block.span.bytes;
                self.driver_free(block.span.start);
            }
        }
    }

    /// Puts back the blocks whose events have happened; waits for them if `wait`.
    fn collect(&self, state: &mut State, wait: bool) {
        if state.waiting.is_empty() || state.capture.is_some() {
            return;
        }
        for (block, uses) in std::mem::take(&mut state.waiting) {
            // An event that cannot be asked belongs to a broken context, whose work has ended.
            let over = |e: &Event| if wait { e.synchronize().is_ok() } else { e.is_done().unwrap_or(true) };
            if uses.iter().all(over) || wait {
                self.put_back(state, block);
            } else {
                state.waiting.push((block, uses));
            }
        }
    }

    /// Gives chunks of which nothing is used back to the driver; the bytes that were.
    fn release_unused(&self, state: &mut State) -> Result<u64> {
        if state.capture.is_some() {
            return Ok(0);
        }
        // Blocks are handed out again in the order of the compute stream; the driver knows no such order.
        self.synchronize()?;
        let chunks: Vec<Span> = state.arenas.iter_mut().flat_map(Arena::take_unused_chunks).collect();
        chunks.iter().for_each(|c| self.driver_free(c.start));
        Ok(chunks.iter().map(|c| c.bytes).sum())
    }

    /// Gives unused memory back to the driver; the bytes that were.
    pub fn trim(&self) -> Result<u64> {
        let mut state = self.lock();
        self.collect(&mut state, true);
        self.release_unused(&mut state)
    }

    /// Waits until the device has nothing to do.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.context.make_current()?;
        // SAFETY: a context is current.
        check(unsafe { sys::cuCtxSynchronize() }, "cuCtxSynchronize")
    }

    /// What is used for what.
    pub fn report(&self) -> MemoryReport {
        let (mut free, mut total) = (0, 0);
        let asked = self.context.make_current().and_then(|_current| {
            let ask = || {
                // SAFETY: the pointers are to live numbers, and a context is current.
                unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }
            };
            check(outside_capture(ask), "cuMemGetInfo")
        });
        let device_bytes = asked.ok().map(|()| (free as u64, total as u64));
        let state = self.lock();
        MemoryReport {
            live_bytes: state.ledger.live(),
            peak_bytes: state.ledger.peak(),
            reserved_bytes: state.reserved(),
            free_bytes: state.arenas.iter().map(Arena::free).sum(),
            largest_free_bytes: state.arenas.iter().map(Arena::largest_free).max().unwrap_or(0),
            limit_bytes: self.policy.limit,
            device_bytes,
            tags: state.ledger.tags(),
        }
    }

    /// Begins the peaks of the report anew.
    pub fn reset_peaks(&self) {
        self.lock().ledger.reset_peaks();
    }

    fn out_of_memory(&self, wanted: u64, tag: &str) -> Error {
        self.report().out_of_memory(wanted, tag)
    }

    /// Takes two chunks of so many bytes from the driver at once, for small blocks and for the others. Where each block is an
    /// allocation of its own there is nothing to do.
    pub fn reserve(&self, bytes: [u64; 2]) -> Result<()> {
        if !self.policy.suballocate || self.context.is_planning() {
            return Ok(());
        }
        let mut state = self.lock();
        for (class, bytes) in bytes.into_iter().enumerate().filter(|(_, bytes)| *bytes > 0) {
            let Some(wanted) = block_bytes(bytes) else {
                return Err(Error::device("too many bytes to reserve"));
            };
            let room = self.policy.limit.is_none_or(|l| state.reserved().saturating_add(wanted) <= l);
            let Some(start) = (if room { self.driver_alloc(wanted)? } else { None }) else {
                drop(state);
                return Err(self.out_of_memory(wanted, "step"));
            };
            state.arenas[class].add_chunk(Span { start, bytes: wanted });
        }
        Ok(())
    }

    /// The bytes of small blocks and of the others that [`Memory::reserve`] must take for the same calls to give the same
    /// blocks. Of a planning device.
    pub fn reached(&self) -> [u64; 2] {
        self.lock().reached
    }

    /// From now on, until [`Memory::end_capture`], this thread's allocations belong to a graph.
    pub fn begin_capture(&self) -> Result<Lots> {
        let mut state = self.lock();
        if state.capture.is_some() {
            return Err(Error::device("another capture is under way on this device")
                .with_remedy("capture one graph after the other"));
        }
        let lots = Lots([0, 1].map(|i| state.arenas[i].open_lot()));
        state.capture = Some(Capture { lots, thread: std::thread::current().id() });
        Ok(lots)
    }

    /// Ends what [`Memory::begin_capture`] began. The lots stay until [`Memory::close`].
    pub fn end_capture(&self) {
        self.lock().capture = None;
    }

    /// The graph is gone: its memory is anybody's.
    pub fn close(&self, lots: Lots) {
        let mut state = self.lock();
        for (arena, lot) in state.arenas.iter_mut().zip(lots.0) {
            arena.close_lot(lot);
        }
        let (mine, others) = std::mem::take(&mut state.kept).into_iter().partition(|(l, _)| *l == lots);
        state.kept = others;
        let mine: Vec<(Lots, Block)> = mine;
        for (_, block) in mine {
            state.alone -= block.span.bytes;
            self.driver_free(block.span.start);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut state.waiting).into_iter().map(|(block, _)| block);
        let kept = std::mem::take(&mut state.kept).into_iter().map(|(_, block)| block);
        let alone = waiting.chain(kept).filter(|b| b.origin == Origin::Driver).map(|b| b.span);
        let all: Vec<Span> = state.arenas.iter_mut().flat_map(Arena::take_all_chunks).chain(alone).collect();
        all.iter().for_each(|span| self.driver_free(span.start));
    }
}
