//! `cp.reduce.async.bulk`: a lane combines a stretch of shared memory with memory, element by element.

use super::bulk::{Job, UNIT, copy_decode, global_piece, jobs, pieces, reads, shared_piece};
use super::mbarrier;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst};
use crate::exec::lower::{Decoded, Lower};
use crate::exec::program::SHARED_BASE;
use crate::mem::access::Does;
use crate::mem::ops::{self, Op};
use crate::mem::shared::Flight;
use crate::ptx::ast::{self, Ty};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Operations and types, in the order in which `Inst::imm` numbers them.
const OPERATIONS: [(&str, Ty); 27] = [
    ("and", Ty::B32),
    ("or", Ty::B32),
    ("xor", Ty::B32),
    ("add", Ty::U32),
    ("add", Ty::S32),
    ("min", Ty::U32),
    ("min", Ty::S32),
    ("max", Ty::U32),
    ("max", Ty::S32),
    ("inc", Ty::U32),
    ("dec", Ty::U32),
    ("add", Ty::U64),
    // From here on for global memory only.
    ("and", Ty::B64),
    ("or", Ty::B64),
    ("xor", Ty::B64),
    ("min", Ty::U64),
    ("min", Ty::S64),
    ("max", Ty::U64),
    ("max", Ty::S64),
    ("add", Ty::F32),
    ("add", Ty::F64),
    ("add", Ty::F16),
    ("add", Ty::Bf16),
    ("min", Ty::F16),
    ("max", Ty::F16),
    ("min", Ty::Bf16),
    ("max", Ty::Bf16),
];
const SHARED_OPERATIONS: usize = 12;

/// `cp.reduce.async.bulk.dst.src.completion{.L2::cache_hint}.op{.noftz}.type [dst], [src], size{, [mbar]}{, policy}`
pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().skip(3).map(String::as_str).collect();
    let refused = || "this form of cp.reduce.async.bulk is not implemented".to_string();
    let [dst, "shared::cta", how, rest @ .., ty] = mods.as_slice() else { return Err(refused()) };
    let ty = Ty::parse(ty).ok_or_else(refused)?;
    let (rest, half) = match rest {
        [rest @ .., "noftz"] => (rest, true),
        rest => (rest, false),
    };
    let [hints @ .., op] = rest else { return Err(refused()) };
    let number = OPERATIONS.iter().position(|o| *o == (*op, ty)).ok_or_else(refused)?;
    if half != (*op == "add" && matches!(ty, Ty::F16 | Ty::Bf16)) {
        return Err(refused());
    }
    let mut inst = match (*dst, *how) {
        ("global", "bulk_group") => copy_decode(into_global, hints, &i.operands, false, lower)?,
        ("shared::cluster", "mbarrier::complete_tx::bytes") if number < SHARED_OPERATIONS => {
            copy_decode(into_shared, hints, &i.operands, true, lower)?
        }
        _ => return Err(refused()),
    };
    inst.imm = number as i64;
    Ok((inst, Class::AsyncCopy))
}

/// The operation, and the bytes of an element.
fn operation(i: &Inst, global: bool) -> Option<(Op, usize)> {
    let (name, ty) = OPERATIONS[i.imm as usize];
    Some((ops::find(name, ty, global)?, ty.bytes() as usize))
}

/// Combines the elements of a piece, each atomically.
fn combine(from: *const u8, to: *mut u8, mask: u32, (op, width): (Op, usize)) {
    for at in (0..(mask.count_ones() * UNIT) as usize).step_by(width) {
        macro_rules! element {
            ($atomic:ty, $bits:ty) => {{
                // SAFETY: the source was found to lie inside shared memory, aligned to 16 bytes.
                let x = unsafe { &*from.add(at).cast::<$atomic>() }.load(Relaxed);
                // SAFETY: as the source, in the destination's memory; other host threads use atomics, too.
                let cell = unsafe { &*to.add(at).cast::<$atomic>() };
                let mut old = cell.load(Relaxed);
                loop {
                    let new = op(u64::from(old), u64::from(x), 0) as $bits;
                    match cell.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                        Ok(_) => break,
                        Err(now) => old = now,
                    }
                }
            }};
        }
        match width {
            2 => element!(AtomicU16, u16),
            4 => element!(AtomicU32, u32),
            _ => element!(AtomicU64, u64),
        }
    }
}

fn into_global(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    jobs(cx, i, mask, |cx, job: Job| {
        let operation = operation(i, true)?;
        for (at, mask) in pieces(job.bytes) {
            let from = shared_piece(cx, i.site, job.src + u64::from(at), mask, Does::Read)?;
            let to = global_piece(cx, i.site, job.lane, job.dst + u64::from(at), mask, Does::Atomic)?;
            combine(from, to, mask, operation);
        }
        reads(cx, &job);
        Some(())
    })
}

fn into_shared(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    jobs(cx, i, mask, |cx, job: Job| {
        let operation = operation(i, false)?;
        for (at, mask) in pieces(job.bytes) {
            let from = shared_piece(cx, i.site, job.src + u64::from(at), mask, Does::Read)?;
            let to = shared_piece(cx, i.site, job.dst + u64::from(at), mask, Does::Atomic)?;
            combine(from, to, mask, operation);
        }
        let word = (job.dst as u32).wrapping_sub(SHARED_BASE) / 4;
        mbarrier::landed(cx, i.site, job.lane, job.barrier, Flight { word, count: job.bytes / 4 })
    })
}
