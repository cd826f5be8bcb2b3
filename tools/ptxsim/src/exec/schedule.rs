//! Scheduling: blocks to host threads, turns to the warps of a block.

use super::barrier::Barriers;
use super::cx::{Block, Cx};
use super::inst::Flow;
use super::lanes::LANES;
use super::launch::LaunchState;
use super::special::Facts;
use super::warp::{AlignedRow, Split, State, Warp};
use crate::check::{Findings, Kind};
use crate::counters::Tally;
use crate::mem::fence::Fences;
use crate::mem::order::OrderState;
use crate::mem::shared::SharedMemory;
use crate::mem::touched::Touched;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Blocks that may have begun and not ended, beyond which no new one begins because others spin.
const MAX_RESIDENT: u64 = 4096;
/// Rounds in which every warp only polled before that is called a deadlock.
const IDLE_ROUNDS: u32 = 2000;

/// How a turn of a block ended.
enum Turn {
    Finished,
    Spinning,
    Stopped,
}

/// What a host thread does next.
enum Next {
    Run,
    /// Another host thread has the rest; one of its blocks may be parked yet.
    Wait,
    End,
}

/// Makes a block the one that `cx` runs: a new one; one that waits for others if there is none or too many have begun.
fn take_block(cx: &mut Cx<'_>, spare: &mut Option<Block>) -> Next {
    let state = cx.launch;
    let begun = state.next.load(Ordering::Relaxed).saturating_sub(state.finished.load(Ordering::Relaxed));
    let parked = || state.parked.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
    let mut resumed = if begun > MAX_RESIDENT { parked() } else { None };
    if resumed.is_none() {
        let linear = state.next.fetch_add(1, Ordering::Relaxed);
        if linear < state.blocks {
            begin(cx, linear);
            return Next::Run;
        }
        resumed = parked();
    }
    match resumed {
        Some(block) => {
            *spare = Some(std::mem::replace(&mut cx.block, block));
            Next::Run
        }
        None if state.finished.load(Ordering::Acquire) < state.blocks => Next::Wait,
        None => Next::End,
    }
}

/// One host thread: takes blocks until there are none.
pub(super) fn work<'l>(state: &'l LaunchState<'l>) -> (Tally, Findings, Vec<Touched>) {
    let code = &state.kernel.code;
    let mut cx = Cx::new(state, code, new_block(state));
    let mut spare: Option<Block> = None;
    while !state.stop.load(Ordering::Relaxed) {
        match take_block(&mut cx, &mut spare) {
            Next::Run => {}
            Next::Wait => {
                std::thread::yield_now();
                continue;
            }
            Next::End => break,
        }
        match turn(&mut cx) {
            Turn::Finished => {
                state.finished.fetch_add(1, Ordering::Release);
            }
            Turn::Spinning => {
                let replacement = spare.take().unwrap_or_else(|| new_block(state));
                let block = std::mem::replace(&mut cx.block, replacement);
                state.parked.lock().unwrap_or_else(|e| e.into_inner()).push_back(block);
            }
            Turn::Stopped => break,
        }
    }
    cx.tally.traffic = cx.mem.traffic().copied().collect();
    (cx.tally, cx.findings, cx.mem.take_touched())
}

/// Space for a block: registers with their constants.
pub(super) fn new_block(state: &LaunchState<'_>) -> Block {
    let code = &state.kernel.code;
    let threads: u32 = state.facts.block_dim.iter().product();
    let count = threads.div_ceil(LANES as u32);
    let mut regs = vec![AlignedRow([0; LANES]); code.rows as usize];
    for &(row, bits, rows) in &code.constants {
        fill(&mut regs, row, rows, |_| bits);
    }
    let mut preds = vec![0; code.predicates as usize];
    preds[0] = u32::MAX;
    let warp = Warp {
        regs,
        preds,
        current: Split::default(),
        splits: Vec::new(),
        benched: Vec::new(),
        waiting: Vec::new(),
        live: 0,
        state: State::Done,
        executed: 0,
        local: vec![0; code.local_bytes as usize * LANES],
    };
    Block {
        linear: 0,
        index: [0; 3],
        warps: vec![warp; count as usize],
        barriers: Barriers::default(),
        order: OrderState::new(),
        fences: Fences::default(),
        shared: SharedMemory::new(
            state.facts.shared_bytes,
            count as usize,
            code.features.partial_barriers || code.features.fences,
        ),
        asynch: super::asynch::State::default(),
        progress: 0,
    }
}

/// Writes one value per lane to the rows of a register.
fn fill(regs: &mut [AlignedRow], row: u32, rows: u32, value: impl Fn(u32) -> u128) {
    let row = row as usize;
    let bytes = 4 * rows as usize;
    for lane in 0..LANES {
        for (k, chunk) in value(lane as u32).to_le_bytes()[..bytes].chunks_exact(4).enumerate() {
            // Lane l of a register of n rows is bytes l*4n .. (l+1)*4n of those rows.
            let word = lane * rows as usize + k;
            regs[row + word / LANES].0[word % LANES] =
                u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
    }
}

/// Makes the block of `cx` block number `linear`, before its first instruction.
pub(super) fn begin(cx: &mut Cx<'_>, linear: u64) {
    let state = cx.launch;
    let code = cx.code;
    let index = state.index(linear);
    let facts = Facts { block: index, ..state.facts };
    let threads: u32 = facts.block_dim.iter().product();
    let block = &mut cx.block;
    (block.linear, block.index, block.progress) = (linear, index, 0);
    block.barriers = Barriers::default();
    for (n, warp) in block.warps.iter_mut().enumerate() {
        let lanes = (threads - n as u32 * LANES as u32).min(LANES as u32);
        let live = u32::MAX >> (32 - lanes);
        warp.current = Split { pc: 0, mask: live, stack: Vec::new() };
        warp.splits.clear();
        warp.benched.clear();
        warp.waiting.clear();
        warp.executed = 0;
        (warp.live, warp.state) = (live, State::Ready);
        // What a block finds in registers that it never wrote must not depend on the blocks before it.
        for &(row, rows) in &code.undefined {
            fill(&mut warp.regs, row, rows, |_| 0);
        }
        warp.preds[1..].fill(0);
        warp.local.fill(0);
        for &(row, special) in &code.specials {
            fill(&mut warp.regs, row, special.rows(), |lane| {
                u128::from(special.value(&facts, n as u32, lane))
            });
        }
    }
    let wrapped = block.order.new_block(block.warps.len());
    cx.begin_block(wrapped);
}

/// Runs the block until it ends or only spins.
fn turn(cx: &mut Cx<'_>) -> Turn {
    let state = cx.launch;
    let mut idle = 0;
    loop {
        let before = cx.block.progress;
        let (mut ran, mut polled, mut spun) = (0, 0, 0);
        for warp in 0..cx.block.warps.len() {
            if !matches!(cx.block.warps[warp].state, State::Ready | State::Yield { .. }) {
                continue;
            }
            ran += 1;
            let (flow, executed) = cx.run_warp(warp);
            let total = state.executed.fetch_add(executed, Ordering::Relaxed) + executed;
            if flow == Flow::Stop || state.stop.load(Ordering::Relaxed) {
                return Turn::Stopped;
            }
            if total > state.limit {
                cx.fault(Kind::Timeout, 0, None, || format!("more than {} warp instructions", state.limit));
                return Turn::Stopped;
            }
            match cx.block.warps[warp].state {
                State::Yield { polling: Some(_) } => polled += 1,
                State::Yield { polling: None } => spun += 1,
                _ => {}
            }
        }
        if cx.block.warps.iter().all(|w| w.state == State::Done) {
            cx.end_block();
            return Turn::Finished;
        }
        idle = if ran == polled && before == cx.block.progress { idle + 1 } else { 0 };
        if ran == 0 || idle > IDLE_ROUNDS {
            deadlock(cx);
            return Turn::Stopped;
        }
        if spun != 0 && spun + polled == ran && state.blocks > 1 {
            return Turn::Spinning;
        }
    }
}

/// Tells where everybody waits.
fn deadlock(cx: &mut Cx<'_>) {
    let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (n, w) in cx.block.warps.iter().enumerate() {
        for x in &w.waiting {
            places.entry(x.at).or_default().push(n);
        }
        if let State::Yield { polling: Some(at) } = w.state {
            places.entry(at).or_default().push(n);
        }
    }
    let code = cx.code;
    let text: Vec<String> = places
        .iter()
        .map(|(&pc, warps)| {
            let o = &code.origins[pc as usize];
            format!("warps {warps:?} wait at line {} ({})", o.loc.line, o.text)
        })
        .collect();
    if let Some((&pc, warps)) = places.iter().next() {
        (cx.pc, cx.warp) = (pc, warps[0]);
    }
    cx.fault(Kind::Deadlock, 0, None, || format!("no warp of the block can go on: {}", text.join("; ")));
}
