//! What a launch did: counts, the same from run to run and for any number of host threads.
//!
//! They are proxies, read off the PTX as it was interpreted. None of them is a time, and no sum of them is a speed:
//! `ptxas` schedules, fuses and spills as it likes, and caches, latencies and clocks are not modelled. They serve to
//! compare two versions of one kernel and to see access patterns that waste sectors or bank passes. (A launch whose
//! threads wait for one another by polling counts its polls, and these may differ from run to run.)

mod flops;
mod lines;
mod memory;
mod tally;
mod text;

pub use flops::Flops;
pub use lines::{Chain, Line};
pub use memory::{AsyncTraffic, AtomicTraffic, GlobalTraffic, Memory, PlainTraffic, SharedTraffic};
pub use tally::Tally;
pub use text::{details, table};

use crate::card::{Card, Limit};
use crate::exec::inst::Class;
use crate::exec::launch::LaunchConfig;
use crate::exec::program::Kernel;
use serde::Serialize;
use std::collections::BTreeMap;

/// Executions of a class of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Warp instructions.
    pub warp: u64,
    /// Lane instructions: lanes whose guard was true, summed.
    pub lanes: u64,
}

/// How far the lanes of warps stayed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// Warp instructions from which lanes that had not ended were absent.
    pub instructions: u64,
    /// Of all warp instructions.
    pub percent: f64,
    /// Lanes that were together, on average over warp instructions; guards are not considered.
    pub mean_active_lanes: f64,
}

/// Branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Branches {
    /// Executed by a warp, or a part of one.
    pub executed: u64,
    /// At which lanes went different ways.
    pub divergent: u64,
}

/// Barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Barriers {
    /// Warp instructions that arrived at barriers of the block.
    pub block: u64,
    /// Warp instructions that synchronised the lanes of a warp.
    pub warp: u64,
}

/// What a block takes of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread, estimated: the most 32-bit values live at one time in the PTX.
    pub estimated_registers: u32,
    /// Statically declared shared memory.
    pub static_shared_bytes: u32,
    /// Shared memory given by the launch.
    pub dynamic_shared_bytes: u32,
    /// `.local` memory of a thread as declared in the PTX; `ptxas` may keep it in registers, or add spills.
    pub local_bytes: u32,
}

/// Resident blocks of a multiprocessor: an upper limit from sizes alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// The card it is for.
    pub card: String,
    /// Registers of a thread it was worked out with.
    pub registers: u32,
    /// Whether these are estimated, not told by `ptxas`.
    pub registers_estimated: bool,
    /// Resident blocks of a multiprocessor.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// Of the warps that a multiprocessor can hold.
    pub percent: f64,
    /// What allows no more.
    pub limit: Limit,
    /// Blocks of the grid for each block that the card holds at once; below 1 some of the card has no work.
    pub waves: Option<f64>,
}

/// Counters of one launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Warp instructions.
    pub warp_instructions: u64,
    /// Lane instructions: lanes whose guard was true, summed.
    pub lane_instructions: u64,
    /// By class; classes that were not executed are left out.
    pub classes: BTreeMap<Class, Count>,
    /// How far lanes stayed together.
    pub divergence: Divergence,
    /// Branches.
    pub branches: Branches,
    /// Barriers.
    pub barriers: Barriers,
    /// Floating-point operations.
    pub flops: Flops,
    /// Memory traffic.
    pub memory: Memory,
    /// What a block takes.
    pub resources: Resources,
    /// Once [`Counters::estimate_occupancy`] was called.
    pub occupancy: Option<Occupancy>,
    /// By source line, in order; by PTX line where the PTX has no source lines.
    pub lines: Vec<Line>,
    /// By the source files that inlined code came through, in order.
    pub chains: Vec<Chain>,
}

impl Counters {
    /// Sums a launch up.
    pub fn collect(kernel: &Kernel, config: &LaunchConfig, tally: &Tally) -> Counters {
        let code = kernel.code();
        let mut c = Counters {
            resources: Resources {
                threads: config.block.iter().product(),
                estimated_registers: kernel.registers(),
                static_shared_bytes: kernel.static_shared_bytes(),
                dynamic_shared_bytes: config.dynamic_shared_bytes,
                local_bytes: kernel.local_bytes(),
            },
            ..Counters::default()
        };
        for (pc, origin) in code.origins.iter().enumerate() {
            let (issued, lanes) = (tally.issued(pc), tally.lanes(pc));
            if issued == 0 {
                continue;
            }
            c.warp_instructions += issued;
            c.lane_instructions += lanes;
            let class = c.classes.entry(origin.class).or_default();
            class.warp += issued;
            class.lanes += lanes;
            let opcode = origin.opcode();
            c.flops.add(opcode, origin.flops, issued, lanes);
            match opcode.split('.').next() {
                Some("bra" | "brx") => {
                    c.branches.executed += issued;
                    c.branches.divergent += tally.divergent(pc);
                }
                Some("bar" | "barrier") if opcode == "bar.warp.sync" => c.barriers.warp += issued,
                Some("bar" | "barrier") => c.barriers.block += issued,
                _ => {}
            }
        }
        for (site, &pc) in code.site_pc.iter().enumerate() {
            let origin = &code.origins[pc as usize];
            c.memory.add(origin.class, origin.opcode(), &tally.traffic[site]);
        }
        if c.warp_instructions != 0 {
            let all = c.warp_instructions as f64;
            c.divergence = Divergence {
                instructions: tally.diverged(),
                percent: 100.0 * tally.diverged() as f64 / all,
                mean_active_lanes: tally.active_lanes() as f64 / all,
            };
        }
        c.lines = lines::collect(kernel, tally);
        c.chains = lines::chains(kernel, tally);
        c
    }

    /// Works out how many blocks are resident on a multiprocessor of the card at once. `registers` is what `ptxas` says;
    /// without it the estimate is taken. `grid` is the launch's.
    pub fn estimate_occupancy(&mut self, card: &Card, registers: Option<u32>, grid: [u32; 3]) {
        let r = &self.resources;
        let used = registers.unwrap_or(r.estimated_registers).min(card.registers_per_thread);
        let o = card.occupancy(r.threads, used, r.static_shared_bytes + r.dynamic_shared_bytes);
        let held = f64::from(o.blocks) * f64::from(card.multiprocessors);
        let blocks: f64 = grid.iter().map(|&n| f64::from(n)).product();
        self.occupancy = Some(Occupancy {
            card: card.name.clone(),
            registers: used,
            registers_estimated: registers.is_none(),
            blocks: o.blocks,
            warps: o.warps,
            percent: 100.0 * f64::from(o.warps) / f64::from(o.warps_possible.max(1)),
            limit: o.limit,
            waves: (held > 0.0).then(|| blocks / held),
        });
    }
}
