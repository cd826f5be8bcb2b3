//! Decoded instructions: a function to call and the register slots it works on.

use super::cx::Cx;

/// Index of one `[u32; 32]` in a warp's register file, or `NONE`. 64-bit values take two neighbouring slots, seen as
/// one `[u64; 32]`; 128-bit values four, seen as `[u128; 32]`. 8- and 16-bit values sit in the low bits of a 32-bit lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// No register.
    pub const NONE: Slot = Slot(u32::MAX);
}

/// What the warp does after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// Goes on with the next instruction.
    Next,
    /// `Cx::pc` and `Cx::active` were set.
    Jump,
    /// The warp cannot go on now (barrier, failed wait, end); its state says why. The scheduler takes another warp.
    Park,
    /// The launch is over (a fault was recorded).
    Stop,
}

/// Executes one instruction for the lanes in the mask, which is never 0.
pub type Exec = fn(&mut Cx<'_>, &Inst, u32) -> Flow;

/// Predicate that is always true: index 0 of every predicate file.
pub const ALWAYS: u32 = 0;

/// One decoded instruction.
#[derive(Clone)]
pub struct Inst {
    /// What to do.
    pub exec: Exec,
    /// Predicate index of the guard; `ALWAYS` where there is none.
    pub guard: u32,
    /// All ones for `@!p`.
    pub guard_xor: u32,
    /// Results first, then sources; meaning by instruction.
    pub r: [Slot; 5],
    /// Predicate results and sources; meaning by instruction.
    pub p: [u32; 2],
    /// Immediate: address offset, constant, ...
    pub imm: i64,
    /// Branch target, table index, flags; meaning by instruction.
    pub aux: u32,
    /// Number of the memory site (statistics and pattern cache), for instructions that touch memory.
    pub site: u32,
    /// More slots: vector operands.
    pub v: Box<[Slot]>,
}

impl Inst {
    /// An instruction with nothing but its function.
    pub fn new(exec: Exec) -> Inst {
        Inst {
            exec,
            guard: ALWAYS,
            guard_xor: 0,
            r: [Slot::NONE; 5],
            p: [ALWAYS; 2],
            imm: 0,
            aux: 0,
            site: u32::MAX,
            v: Box::default(),
        }
    }

    /// With result and sources in `r`.
    pub fn with(exec: Exec, r: &[Slot]) -> Inst {
        let mut inst = Inst::new(exec);
        inst.r[..r.len()].copy_from_slice(r);
        inst
    }
}

/// Class of an instruction in the counters.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Integer,
    F32,
    F64,
    Half,
    Convert,
    Special,
    Move,
    Predicate,
    Control,
    Barrier,
    Warp,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    LoadLocal,
    StoreLocal,
    LoadConstant,
    Atomic,
    AsyncCopy,
    Matrix,
    MatrixMove,
    Other,
}
