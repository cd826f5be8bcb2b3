//! The state of one host thread that executes blocks: the running warp, its block, statistics, findings.

use super::barrier::Barriers;
use super::inst::Flow;
use super::lanes::Row;
use super::launch::LaunchState;
use super::program::Code;
use super::warp::{State, Warp};
use crate::check::{Findings, Kind, Who};
use crate::counters::Tally;
use crate::mem::access::Memory;
use crate::mem::fence::Fences;
use crate::mem::order::OrderState;
use crate::mem::shared::SharedMemory;

/// Warp instructions after which it is looked at whether a warp waits in a loop.
const LOOK: u64 = 1024;
/// A loop of at most so many instructions around an atomic or a volatile load may be one that waits.
const WAITING_LOOP: u64 = 64;
/// Warp instructions after which a warp's turn ends whatever it does.
const SLICE: u64 = 200_000;

/// A block in execution.
pub struct Block {
    /// Linear index in the grid.
    pub linear: u64,
    /// `blockIdx`
    pub index: [u32; 3],
    /// Its warps.
    pub warps: Vec<Warp>,
    /// Barriers 0..15.
    pub barriers: Barriers,
    /// Which accesses happened before which.
    pub order: OrderState,
    /// What its warps published and acquired by flags in memory.
    pub fences: Fences,
    /// Shared memory.
    pub shared: SharedMemory,
    /// Copies beside the program, `mbarrier` objects.
    pub asynch: super::asynch::State,
    /// Counts everything that lets a waiting warp go on; polling without any of it is a deadlock.
    pub progress: u64,
}

/// Warp instructions that the same lanes went through together.
struct Stretch {
    begun: u64,
    active: u32,
    live: u32,
}

/// One host thread of a launch.
pub struct Cx<'l> {
    /// Register file of the running warp.
    pub(super) regs: *mut Row,
    /// Rows in it.
    pub(super) rows: usize,
    /// Predicates of the running warp.
    pub(super) preds: *mut u32,
    /// How many.
    pub(super) pred_count: usize,
    /// Instruction of the running warp.
    pub pc: u32,
    /// Lanes that are together now, before the guard.
    pub active: u32,
    /// Where the lanes may meet others, or have to let them go first.
    pub(super) change_pc: u32,
    /// Running warp of the block.
    pub warp: usize,
    /// Instructions that the running warp has executed since it was entered.
    pub(super) executed: u64,
    /// The block.
    pub block: Block,
    /// The kernel's instructions.
    pub code: &'l Code,
    /// What all host threads share.
    pub launch: &'l LaunchState<'l>,
    /// Device memory as this host thread sees it.
    pub mem: Memory,
    /// What was executed.
    pub tally: Tally,
    /// What was found.
    pub findings: Findings,
}

impl<'l> Cx<'l> {
    /// For one host thread; no block has begun.
    pub(super) fn new(launch: &'l LaunchState<'l>, code: &'l Code, block: Block) -> Cx<'l> {
        Cx {
            regs: std::ptr::null_mut(),
            rows: 0,
            preds: std::ptr::null_mut(),
            pred_count: 0,
            pc: 0,
            active: 0,
            change_pc: u32::MAX,
            warp: 0,
            executed: 0,
            block,
            code,
            launch,
            mem: Memory::new(launch, code.sites as usize),
            tally: Tally::new(code),
            findings: Findings::default(),
        }
    }

    /// Before the first instruction of a block; `wrapped` says that the clock of its order began anew.
    pub(super) fn begin_block(&mut self, wrapped: bool) {
        self.block.shared.new_block(wrapped);
        self.block.fences.new_block(self.block.warps.len(), self.code.features.fences);
        self.block.asynch.new_block(self.block.warps.len());
    }

    /// After the last instruction of a block.
    pub(super) fn end_block(&mut self) {}

    /// Before the lanes of the mask end.
    pub(super) fn exiting(&mut self, mask: u32) {
        self.exiting_with_copies(mask);
    }

    /// Register file of the running warp.
    #[inline(always)]
    pub fn register_file(&self) -> *mut Row {
        self.regs
    }

    /// Lanes of the running warp that have not exited.
    #[inline(always)]
    pub fn live(&self) -> u32 {
        self.block.warps[self.warp].live
    }

    /// Instructions that the running warp has executed.
    pub fn clock(&self) -> u64 {
        self.block.warps[self.warp].executed + self.executed
    }

    /// Records a finding at the running instruction; `lane` is the first lane concerned.
    #[cold]
    pub fn find(&mut self, kind: Kind, lane: u32, address: Option<u64>, message: impl FnOnce() -> String) {
        let who = Who { block: self.block.index, warp: self.warp as u32, lane };
        self.findings.add(kind, self.pc, self.block.linear, who, address, message);
    }

    /// Records a finding that ends the launch.
    #[cold]
    pub fn fault(
        &mut self,
        kind: Kind,
        lane: u32,
        address: Option<u64>,
        message: impl FnOnce() -> String,
    ) -> Flow {
        self.find(kind, lane, address, message);
        self.launch.stop();
        Flow::Stop
    }

    /// Ends the turn of the running warp, which polls; it goes on with the next instruction.
    pub fn poll(&mut self) -> Flow {
        let at = self.pc;
        self.pc += 1;
        self.block.warps[self.warp].state = State::Yield { polling: Some(at) };
        Flow::Park
    }

    /// Whether lanes of the mask are absent only because they gave up their turn.
    pub fn come_later(&self, mask: u32) -> bool {
        self.block.warps[self.warp].benched.iter().any(|s| s.mask & mask != 0)
    }

    /// Ends the turn of the running warp; it executes this instruction again.
    pub fn again(&mut self) -> Flow {
        self.block.warps[self.warp].state = State::Yield { polling: None };
        Flow::Park
    }

    /// Executions of instructions that show what others did.
    fn looks(&self) -> u64 {
        self.code.observers.iter().map(|&pc| self.tally.issued(pc as usize)).sum()
    }

    /// Makes a warp the running one.
    pub(super) fn enter(&mut self, warp: usize) {
        self.warp = warp;
        let w = &mut self.block.warps[warp];
        if matches!(w.state, State::Yield { .. }) {
            w.rotate();
        }
        self.regs = w.regs.as_mut_ptr().cast();
        self.rows = w.regs.len();
        self.preds = w.preds.as_mut_ptr();
        self.pred_count = w.preds.len();
        w.state = State::Ready;
        self.pc = w.current.pc;
        self.active = w.current.mask;
        self.change_pc = w.next_change();
    }

    /// Writes the running warp's place back.
    pub(super) fn leave(&mut self) {
        let w = &mut self.block.warps[self.warp];
        w.current.pc = self.pc;
        w.current.mask = self.active;
    }

    /// After the running lanes, or the others, changed: chooses who runs. `Park` when nobody can.
    pub(super) fn choose(&mut self) -> Flow {
        let w = &mut self.block.warps[self.warp];
        match w.reschedule() {
            Some(change) => {
                self.pc = w.current.pc;
                self.active = w.current.mask;
                self.change_pc = change;
                Flow::Jump
            }
            None => {
                self.active = 0;
                w.state = if w.live == 0 { State::Done } else { State::Waiting };
                Flow::Park
            }
        }
    }

    /// Begins a stretch after so many instructions.
    fn stretch(&self, begun: u64) -> Stretch {
        Stretch { begun, active: self.active, live: self.live() }
    }

    /// Counts a stretch that is over.
    fn counted(&mut self, stretch: &Stretch, executed: u64) {
        self.tally.stretch(executed - stretch.begun, stretch.active, stretch.live);
    }

    /// Runs a warp until it waits, ends or polls, or for long enough. Returns the instructions executed.
    pub(super) fn run_warp(&mut self, warp: usize) -> (Flow, u64) {
        self.enter(warp);
        let code = self.code.insts.as_ptr();
        self.executed = 0;
        let (mut look, mut looks) = (if self.code.observers.is_empty() { SLICE } else { LOOK }, self.looks());
        let mut stretch = self.stretch(self.executed);
        let flow = loop {
            if self.pc >= self.change_pc {
                self.leave();
                self.choose();
                self.counted(&stretch, self.executed);
                stretch = self.stretch(self.executed);
            }
            debug_assert!((self.pc as usize) < self.code.insts.len());
            // SAFETY: every path ends in an instruction that leaves (the lowering appends one), and targets are checked
            // when a kernel is lowered, so `pc` is inside `insts`, which lives as long as `self.code`.
            let inst = unsafe { &*code.add(self.pc as usize) };
            let mask = self.active & (self.pred(inst.guard) ^ inst.guard_xor);
            self.tally.count(self.pc, mask);
            self.executed += 1;
            if mask == 0 {
                self.pc += 1;
                continue;
            }
            match (inst.exec)(self, inst, mask) {
                Flow::Next => self.pc += 1,
                Flow::Jump => {
                    if self.active != stretch.active {
                        self.counted(&stretch, self.executed);
                        stretch = self.stretch(self.executed);
                    }
                    if self.executed >= look {
                        let before = std::mem::replace(&mut looks, self.looks());
                        let over = self.executed >= SLICE;
                        if (looks - before) * WAITING_LOOP >= LOOK || (over && looks != before) {
                            break self.again();
                        }
                        if over {
                            break Flow::Park;
                        }
                        look += LOOK;
                    }
                }
                other => break other,
            }
        };
        self.counted(&stretch, self.executed);
        if flow == Flow::Park {
            self.leave();
        }
        self.block.warps[warp].executed += self.executed;
        (flow, self.executed)
    }
}
