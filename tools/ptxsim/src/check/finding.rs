//! Findings and their collection.

use crate::ptx::ast::Loc;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What went wrong. The names are those of the JSON report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An address outside every allocation, the block's shared memory, the local frame or the parameters.
    OutOfBounds,
    /// An address that is not a multiple of the access width.
    Misaligned,
    /// An address inside an allocation that was freed.
    UseAfterFree,
    /// A read of global memory that nobody wrote.
    UninitialisedGlobal,
    /// A read of shared memory that nobody wrote in this block.
    UninitialisedShared,
    /// Two warps of a block, one writing, no barrier between.
    SharedRace,
    /// Two warps or two blocks, one writing global memory, nothing ordering them.
    GlobalRace,
    /// Two lanes of a warp, one writing, no `__syncwarp` between.
    LaneHazard,
    /// A barrier that part of a warp, or a changing set of warps, reaches.
    BarrierDivergence,
    /// Every warp that still lives waits.
    Deadlock,
    /// A read or write of memory that a `cp.async` or bulk copy may still be writing.
    AsyncInFlight,
    /// A thread ended with copies it never waited for.
    ExitWithPendingCopies,
    /// A shuffle, vote or match names lanes that are not there, or reads from one.
    AbsentLane,
    /// A warp-wide instruction (`mma`, `ldmatrix`, ...) executed by a part of the warp.
    PartialWarp,
    /// An `mbarrier` used before `init`, twice initialised, or overrun.
    MbarrierMisuse,
    /// `trap`, `brkpt` or a failed device `assert`.
    Trap,
    /// An instruction outside what is implemented, met at run time.
    Unsupported,
    /// More warp instructions than the launch's limit.
    Timeout,
}

/// How a finding ends the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Hardware would stop here too; the launch stops.
    Fault,
    /// A mistake that hardware may not notice; the launch goes on.
    Error,
}

impl Kind {
    /// The rule of the table above.
    pub fn severity(self) -> Severity {
        match self {
            Kind::OutOfBounds
            | Kind::Misaligned
            | Kind::UseAfterFree
            | Kind::Deadlock
            | Kind::Trap
            | Kind::Unsupported
            | Kind::Timeout => Severity::Fault,
            _ => Severity::Error,
        }
    }

    /// The word in reports: `out_of_bounds`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out_of_bounds",
            Kind::Misaligned => "misaligned",
            Kind::UseAfterFree => "use_after_free",
            Kind::UninitialisedGlobal => "uninitialised_global",
            Kind::UninitialisedShared => "uninitialised_shared",
            Kind::SharedRace => "shared_race",
            Kind::GlobalRace => "global_race",
            Kind::LaneHazard => "lane_hazard",
            Kind::BarrierDivergence => "barrier_divergence",
            Kind::Deadlock => "deadlock",
            Kind::AsyncInFlight => "async_in_flight",
            Kind::ExitWithPendingCopies => "exit_with_pending_copies",
            Kind::AbsentLane => "absent_lane",
            Kind::PartialWarp => "partial_warp",
            Kind::MbarrierMisuse => "mbarrier_misuse",
            Kind::Trap => "trap",
            Kind::Unsupported => "unsupported",
            Kind::Timeout => "timeout",
        }
    }
}

/// Who did it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// `blockIdx`
    pub block: [u32; 3],
    /// Warp of the block.
    pub warp: u32,
    /// First lane concerned.
    pub lane: u32,
}

/// One kind of mistake at one instruction; repetitions are counted, the first in block order is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Whether the launch stopped.
    pub severity: Severity,
    /// Kernel that was launched.
    pub kernel: String,
    /// `.cu` file; empty without `-lineinfo`.
    pub file: String,
    /// `.cu` line; 0 without `-lineinfo`.
    pub line: u32,
    /// Line in the PTX text.
    pub ptx_line: u32,
    /// The instruction.
    pub instruction: String,
    /// The first one.
    pub who: Who,
    /// Address in its own space, where one is concerned.
    pub address: Option<u64>,
    /// One sentence with the facts: sizes, the other party and its line.
    pub message: String,
    /// How often.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.file, self.line)?;
        } else {
            write!(f, "PTX line {}: ", self.ptx_line)?;
        }
        let [x, y, z] = self.who.block;
        write!(
            f,
            "{} in {}: {} [block ({x}, {y}, {z}), warp {}, lane {}; PTX line {}: {}]",
            self.kind.name(),
            self.kernel,
            self.message,
            self.who.warp,
            self.who.lane,
            self.ptx_line,
            self.instruction
        )?;
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        Ok(())
    }
}

/// Key of a finding while a launch runs: kind and instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    pc: u32,
}

#[derive(Clone, Debug)]
struct Raw {
    block: u64,
    who: Who,
    address: Option<u64>,
    message: String,
    count: u64,
}

/// Collects while a launch runs; one per host thread, merged at the end so that the result does not depend on scheduling.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    map: BTreeMap<Key, Raw>,
}

impl Findings {
    /// Adds one; `message` is made only for the first of its kind at its instruction, or for one in an earlier block.
    pub fn add(
        &mut self,
        kind: Kind,
        pc: u32,
        block: u64,
        who: Who,
        address: Option<u64>,
        message: impl FnOnce() -> String,
    ) {
        let key = Key { kind, pc };
        match self.map.get_mut(&key) {
            Some(raw) => {
                raw.count += 1;
                if block < raw.block {
                    (raw.block, raw.who, raw.address, raw.message) = (block, who, address, message());
                }
            }
            None => {
                self.map.insert(key, Raw { block, who, address, message: message(), count: 1 });
            }
        }
    }

    /// Nothing found.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Takes over what another host thread found.
    pub fn merge(&mut self, other: Findings) {
        for (key, raw) in other.map {
            match self.map.get_mut(&key) {
                Some(mine) => {
                    let count = mine.count + raw.count;
                    if raw.block < mine.block {
                        *mine = raw;
                    }
                    mine.count = count;
                }
                None => {
                    self.map.insert(key, raw);
                }
            }
        }
    }

    /// Resolves instructions to source lines; faults first, then by line.
    pub fn resolve(self, kernel: &str, place: impl Fn(u32) -> (Loc, String, u32, String)) -> Vec<Finding> {
        let mut all: Vec<Finding> = self
            .map
            .into_iter()
            .map(|(key, raw)| {
                let (loc, file, ptx_line, instruction) = place(key.pc);
                Finding {
                    kind: key.kind,
                    severity: key.kind.severity(),
                    kernel: kernel.to_string(),
                    file,
                    line: loc.line,
                    ptx_line,
                    instruction,
                    who: raw.who,
                    address: raw.address,
                    message: raw.message,
                    count: raw.count,
                }
            })
            .collect();
        all.sort_by_key(|f| (f.severity, f.line, f.ptx_line, f.kind));
        all
    }
}
