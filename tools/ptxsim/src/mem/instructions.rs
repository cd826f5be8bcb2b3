//! Instructions that touch memory.

mod atomic;
mod load;
mod misc;
pub(crate) mod ops;
mod store;

use super::access::{Manner, Window};
use super::pattern::By;
use crate::exec::inst::{Class, Inst};
use crate::exec::lower::{Address, Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

/// Lowers one of them.
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    match i.opcode.as_str() {
        "ld" | "ldu" => load::decode(i, lower),
        "st" => store::decode(i, lower),
        "atom" | "red" => atomic::decode(i, lower),
        _ => misc::decode(i, lower),
    }
}

/// Opcodes that [`decode`] takes.
pub(crate) const OPCODES: [&str; 13] = [
    "ld",
    "ldu",
    "st",
    "atom",
    "red",
    "fence",
    "membar",
    "prefetch",
    "prefetchu",
    "isspacep",
    "cvta",
    "createpolicy",
    "applypriority",
];

/// Space of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
    Const,
}

/// Modifiers of loads, stores and atomics.
#[derive(Clone, Copy, Debug)]
struct Modifiers {
    space: Space,
    volatile: bool,
    relaxed: bool,
    acquire: bool,
    release: bool,
    /// Scope beyond the block.
    device: bool,
    non_coherent: bool,
    /// Elements.
    count: usize,
    ty: Option<Ty>,
    cache_hint: bool,
}

impl Modifiers {
    /// Those that loads, stores and atomics share; what `other` takes, and nothing else, is skipped.
    fn parse(i: &ast::Inst, mut other: impl FnMut(&str) -> bool) -> Result<Modifiers, String> {
        let mut m = Modifiers {
            space: Space::Generic,
            volatile: false,
            relaxed: false,
            acquire: false,
            release: false,
            device: false,
            non_coherent: false,
            count: 1,
            ty: None,
            cache_hint: false,
        };
        let atomic = matches!(i.opcode.as_str(), "atom" | "red");
        for word in &i.mods {
            match word.as_str() {
                "global" => m.space = Space::Global,
                "shared" | "shared::cta" => m.space = Space::Shared,
                "local" => m.space = Space::Local,
                "const" => m.space = Space::Const,
                "param" | "param::entry" | "param::func" => m.space = Space::Param,
                "weak" => {}
                "volatile" => m.volatile = true,
                "relaxed" => m.relaxed = true,
                "acquire" if i.opcode != "st" => m.acquire = true,
                "release" if i.opcode != "ld" => m.release = true,
                "acq_rel" if atomic => (m.acquire, m.release) = (true, true),
                "cta" => {}
                "cluster" | "gpu" | "sys" => m.device = true,
                "nc" if i.opcode == "ld" => m.non_coherent = true,
                "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" if !atomic => {}
                "v2" => m.count = 2,
                "v4" => m.count = 4,
                "v8" => m.count = 8,
                "L2::cache_hint" => m.cache_hint = true,
                "L1::evict_normal"
                | "L1::evict_unchanged"
                | "L1::evict_first"
                | "L1::evict_last"
                | "L1::no_allocate"
                | "L2::evict_normal"
                | "L2::evict_first"
                | "L2::evict_last"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B" => {}
                _ if other(word) => {}
                _ => match Ty::parse(word) {
                    Some(Ty::Pred) | None => return Err(format!("the modifier .{word} is not implemented")),
                    Some(ty) => m.ty = Some(ty),
                },
            }
        }
        if m.non_coherent && m.space != Space::Global {
            return Err(".nc is for global memory".into());
        }
        Ok(m)
    }

    fn manner(&self) -> Manner {
        Manner {
            volatile: self.volatile,
            strong: self.relaxed || self.acquire || self.release,
            constant: self.space == Space::Const,
            by: By::Lane,
        }
    }

    /// The bits of `Inst::aux`; flags and fences exist for accesses that may synchronise.
    fn aux(&self, address: &Address, lower: &mut Lower<'_>) -> u32 {
        if self.acquire || self.release {
            lower.features.partial_barriers = true;
            lower.features.fences = true;
        }
        let m = self.manner();
        [
            (address.rows == 2, WIDE),
            (m.volatile, VOLATILE),
            (m.strong, STRONG),
            (m.constant, CONSTANT),
            (self.acquire, ACQUIRE),
            (self.release, RELEASE),
            (self.device, DEVICE),
        ]
        .into_iter()
        .filter(|f| f.0)
        .fold(0, |bits, f| bits | f.1)
    }
}

/// Bits of `Inst::aux`: the address is 64 bits wide.
const WIDE: u32 = 1;
const VOLATILE: u32 = 2;
const STRONG: u32 = 4;
const CONSTANT: u32 = 8;
const ACQUIRE: u32 = 16;
const RELEASE: u32 = 32;
/// Of acquire and release: beyond the block.
const DEVICE: u32 = 64;
/// Position of what else an instruction keeps in `Inst::aux`.
const AUX_SHIFT: u32 = 8;

#[inline(always)]
fn manner(aux: u32) -> Manner {
    Manner {
        volatile: aux & VOLATILE != 0,
        strong: aux & STRONG != 0,
        constant: aux & CONSTANT != 0,
        by: By::Lane,
    }
}

/// The elements of `{a, b}`, or the one operand.
fn elements(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(list) => list,
        one => std::slice::from_ref(one),
    }
}

/// Without the cache policy that `.L2::cache_hint` adds.
fn without_policy<'a>(i: &'a ast::Inst, m: &Modifiers) -> &'a [Operand] {
    match (m.cache_hint, i.operands.as_slice()) {
        (true, [rest @ .., _]) => rest,
        (_, all) => all,
    }
}

/// Puts the address into an instruction: base into `r[1]`, offset into `imm`.
fn place_address(inst: &mut Inst, address: &Address) {
    inst.r[1] = address.base;
    inst.imm = address.offset;
}

/// Class in the counters.
fn class(space: Space, load: bool) -> Class {
    match (space, load) {
        (Space::Shared, true) => Class::LoadShared,
        (Space::Shared, false) => Class::StoreShared,
        (Space::Local, true) => Class::LoadLocal,
        (Space::Local, false) => Class::StoreLocal,
        (Space::Param | Space::Const, true) => Class::LoadConstant,
        (Space::Param, false) => Class::Move,
        (_, true) => Class::LoadGlobal,
        (_, false) => Class::StoreGlobal,
    }
}

/// The window that an instruction's space is, if it is one for all lanes.
fn window(space: Space) -> Option<Window> {
    match space {
        Space::Generic => None,
        Space::Global | Space::Const => Some(Window::Global),
        Space::Shared => Some(Window::Shared),
        Space::Local => Some(Window::Local),
        Space::Param => Some(Window::Param),
    }
}

#[cfg(test)]
mod tests;
