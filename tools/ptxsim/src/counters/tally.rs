//! What is counted while a launch runs.

use crate::exec::program::Code;
use crate::mem::stats::Traffic;

/// Executions of one instruction; together, because both change with each.
#[derive(Clone, Copy, Debug, Default)]
struct Executions {
    issued: u64,
    lanes: u64,
}

/// Executions by instruction, and traffic by memory site; one per host thread. Plain sums: merging them in any order
/// gives the same.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    executions: Vec<Executions>,
    parted: Vec<u64>,
    /// By memory site, see `Code::site_pc`.
    pub traffic: Vec<Traffic>,
    active_lanes: u64,
    diverged: u64,
}

impl Tally {
    /// For the instructions and memory sites of a kernel.
    pub fn new(code: &Code) -> Tally {
        Tally {
            executions: vec![Executions::default(); code.insts.len()],
            parted: vec![0; code.insts.len()],
            traffic: vec![Traffic::default(); code.sites as usize],
            active_lanes: 0,
            diverged: 0,
        }
    }

    /// Counts one warp instruction for the lanes of the mask.
    #[inline(always)]
    pub fn count(&mut self, pc: u32, mask: u32) {
        let e = &mut self.executions[pc as usize];
        e.issued += 1;
        e.lanes += u64::from(mask.count_ones());
    }

    /// Counts a stretch of warp instructions that the lanes of `active` went through together, while `live` existed.
    #[inline(always)]
    pub fn stretch(&mut self, instructions: u64, active: u32, live: u32) {
        self.active_lanes += instructions * u64::from(active.count_ones());
        if active != live {
            self.diverged += instructions;
        }
    }

    /// Counts a branch at which lanes went different ways.
    #[inline(always)]
    pub fn parted(&mut self, pc: u32) {
        self.parted[pc as usize] += 1;
    }

    /// Adds what another host thread counted.
    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.executions.iter_mut().zip(&other.executions) {
            mine.issued += theirs.issued;
            mine.lanes += theirs.lanes;
        }
        for (mine, theirs) in self.parted.iter_mut().zip(&other.parted) {
            *mine += theirs;
        }
        for (mine, theirs) in self.traffic.iter_mut().zip(&other.traffic) {
            *mine += theirs;
        }
        self.active_lanes += other.active_lanes;
        self.diverged += other.diverged;
    }

    /// Warp instructions at an instruction.
    pub fn issued(&self, pc: usize) -> u64 {
        self.executions[pc].issued
    }

    /// Lane instructions at an instruction.
    pub fn lanes(&self, pc: usize) -> u64 {
        self.executions[pc].lanes
    }

    /// Executions of a branch at which lanes went different ways.
    pub fn divergent(&self, pc: usize) -> u64 {
        self.parted[pc]
    }

    /// Lanes that were together, summed over warp instructions; before guards.
    pub fn active_lanes(&self) -> u64 {
        self.active_lanes
    }

    /// Warp instructions that lanes which had not ended were absent from.
    pub fn diverged(&self) -> u64 {
        self.diverged
    }
}
