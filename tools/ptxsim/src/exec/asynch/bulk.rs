//! `cp.async.bulk`: a lane copies a stretch of memory.

use super::mbarrier;
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Exec, Flow, Inst, Slot};
use crate::exec::lanes::{FULL, LANES};
use crate::exec::lower::{Decoded, Lower};
use crate::exec::program::SHARED_BASE;
use crate::mem::access::{Does, Manner, Miss, Request};
use crate::mem::data::{B128, Element};
use crate::mem::order::bits;
use crate::mem::pattern::{By, Offsets};
use crate::mem::shared::Flight;
use crate::ptx::ast::{self, Operand, Ty};

/// Sizes and addresses are multiples of this.
pub(super) const UNIT: u32 = 16;
/// Bytes that are checked and copied at a time.
const PIECE: u32 = UNIT * LANES as u32;

/// Slots in `Inst::v`: base and offset of each address, and the size.
const DST: usize = 0;
const SRC: usize = 2;
const BARRIER: usize = 4;
const SIZE: usize = 6;

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().skip(2).map(String::as_str).collect();
    let inst = match (mods.as_slice(), i.operands.as_slice()) {
        (["commit_group"], []) => Inst::new(commit),
        (["wait_group"] | ["wait_group", "read"], [Operand::Int(n)]) => {
            let mut inst = Inst::new(wait_group);
            inst.aux = u32::try_from(*n).map_err(|_| "a number of groups is needed")?;
            inst
        }
        // Caches are not modelled.
        (["prefetch", "L2", "global", ..], [_, _, ..]) => Inst::new(super::nothing),
        (
            ["shared::cluster" | "shared::cta", "global", "mbarrier::complete_tx::bytes", hints @ ..],
            operands,
        ) => copy_decode(into_shared, hints, operands, true, lower)?,
        (["shared::cluster", "shared::cta", "mbarrier::complete_tx::bytes", hints @ ..], operands) => {
            copy_decode(across_shared, hints, operands, true, lower)?
        }
        (["global", "shared::cta", "bulk_group", hints @ ..], operands) => {
            copy_decode(into_global, hints, operands, false, lower)?
        }
        _ => return Err("this form of cp.async.bulk is not implemented".into()),
    };
    Ok((inst, Class::AsyncCopy))
}

/// `[dst], [src], size{, [mbar]}{, policy}`
pub(super) fn copy_decode(
    exec: Exec,
    hints: &[&str],
    operands: &[Operand],
    barrier: bool,
    lower: &mut Lower<'_>,
) -> Result<Inst, String> {
    let mut operands = operands;
    for hint in hints {
        match *hint {
            "L2::cache_hint" => {
                let (policy, rest) = operands.split_last().ok_or("a cache policy is needed")?;
                lower.src(policy, Ty::B64)?;
                operands = rest;
            }
            _ => return Err(format!("the modifier .{hint} is not implemented")),
        }
    }
    let (dst, src, size, at) = match operands {
        [dst, src, size, at] if barrier => (dst, src, size, Some(at)),
        [dst, src, size] if !barrier => (dst, src, size, None),
        _ => return Err("this form has other operands".into()),
    };
    let mut inst = Inst::new(exec);
    let mut slots = vec![Slot::NONE; SIZE + 1];
    for (n, operand) in [(DST, Some(dst)), (SRC, Some(src)), (BARRIER, at)] {
        let Some(operand) = operand else { continue };
        let address = lower.address(operand)?;
        slots[n] = address.base;
        slots[n + 1] = lower.constant(u128::from(address.offset as u64), 2);
        // A bit of `aux` for each wide address.
        inst.aux |= u32::from(address.rows == 2) << n;
    }
    slots[SIZE] = lower.src(size, Ty::U32)?;
    inst.v = slots.into();
    inst.site = lower.site();
    Ok(inst)
}

/// One lane's copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) lane: usize,
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) bytes: u32,
    pub(super) barrier: u64,
}

/// Runs `f` for each lane; the bytes count once for each, where they lie in global memory.
pub(super) fn jobs(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    mut f: impl FnMut(&mut Cx<'_>, Job) -> Option<()>,
) -> Flow {
    for lane in bits(mask) {
        let address = |n: usize| {
            if i.v[n] == Slot::NONE {
                return 0;
            }
            let offset = cx.get::<u64>(i.v[n + 1])[lane];
            if i.aux >> n & 1 != 0 {
                cx.get::<u64>(i.v[n])[lane].wrapping_add(offset)
            } else {
                u64::from(cx.get::<u32>(i.v[n])[lane].wrapping_add(offset as u32))
            }
        };
        let (dst, src, barrier) = (address(DST), address(SRC), address(BARRIER));
        let bytes = cx.get::<u32>(i.v[SIZE])[lane];
        for (what, value) in [("destination", dst), ("source", src), ("size", u64::from(bytes))] {
            if !value.is_multiple_of(u64::from(UNIT)) {
                return cx.fault(Kind::Misaligned, lane as u32, Some(value), || {
                    format!("the {what} of a bulk copy, {value:#x}, is not a multiple of {UNIT}")
                });
            }
        }
        let before = *cx.mem.site_mut(i.site);
        if f(cx, Job { lane, dst, src, bytes, barrier }).is_none() {
            return Flow::Stop;
        }
        let traffic = cx.mem.site_mut(i.site);
        (traffic.requests, traffic.lanes) = (before.requests + 1, before.lanes + 1);
        traffic.bytes = before.bytes + u64::from(bytes);
        traffic.unique_bytes = before.unique_bytes + u64::from(bytes);
    }
    Flow::Next
}

/// The pieces of a copy: first byte, and the lanes of a request of 16 bytes each that make it up.
pub(super) fn pieces(bytes: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..bytes.div_ceil(PIECE)).map(move |n| {
        let left = (bytes - n * PIECE).min(PIECE) / UNIT;
        (n * PIECE, FULL >> (32 - left))
    })
}

/// Distances of the lanes of a piece.
fn offsets(mask: u32) -> Offsets {
    std::array::from_fn(|l| if mask >> l & 1 != 0 { (l as u32 * UNIT) as i32 } else { 0 })
}

fn manner() -> Manner {
    Manner { by: By::Nobody, ..Manner::default() }
}

/// A piece in the block's shared memory.
pub(super) fn shared_piece(
    cx: &mut Cx<'_>,
    site: u32,
    at: u64,
    mask: u32,
    does: Does<'_>,
) -> Option<*mut u8> {
    if at > u64::from(u32::MAX) {
        cx.fault(Kind::OutOfBounds, 0, Some(at), || {
            "a bulk copy at an address that is not in shared memory".into()
        });
        return None;
    }
    let request = Request { site, width: UNIT, mask, base: at, offsets: &offsets(mask), manner: manner() };
    cx.shared_access(request, does).ok().map(|place| place.pointer)
}

/// A piece in global memory.
pub(super) fn global_piece(
    cx: &mut Cx<'_>,
    site: u32,
    lane: usize,
    at: u64,
    mask: u32,
    does: Does<'_>,
) -> Option<*mut u8> {
    let request = Request { site, width: UNIT, mask, base: at, offsets: &offsets(mask), manner: manner() };
    match cx.global_access(&request, does) {
        Ok(place) => Some(place.pointer),
        Err(Miss::Fault) => None,
        Err(Miss::Split) => {
            cx.outside_global(lane, at, u64::from(mask.count_ones() * UNIT));
            None
        }
    }
}

/// Copies the units of a piece.
fn move_piece(from: *const u8, to: *mut u8, mask: u32) {
    for unit in 0..mask.count_ones() as usize {
        let at = unit * UNIT as usize;
        // SAFETY: both pieces were found to lie inside their memory, aligned.
        unsafe { B128::store::<true>(to.add(at), B128::load::<true>(from.add(at))) };
    }
}

fn flight(job: &Job) -> Flight {
    Flight { word: (job.dst as u32).wrapping_sub(SHARED_BASE) / 4, count: job.bytes / 4 }
}

fn into_shared(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    jobs(cx, i, mask, |cx, job| {
        for (at, mask) in pieces(job.bytes) {
            let from = global_piece(cx, i.site, job.lane, job.src + u64::from(at), mask, Does::Read)?;
            let to = shared_piece(cx, i.site, job.dst + u64::from(at), mask, Does::Copy)?;
            move_piece(from, to, mask);
        }
        mbarrier::landed(cx, i.site, job.lane, job.barrier, flight(&job))
    })
}

fn across_shared(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    jobs(cx, i, mask, |cx, job| {
        for (at, mask) in pieces(job.bytes) {
            let from = shared_piece(cx, i.site, job.src + u64::from(at), mask, Does::Read)?;
            let to = shared_piece(cx, i.site, job.dst + u64::from(at), mask, Does::Copy)?;
            move_piece(from, to, mask);
        }
        mbarrier::landed(cx, i.site, job.lane, job.barrier, flight(&job))
    })
}

fn into_global(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    jobs(cx, i, mask, |cx, job| {
        for (at, mask) in pieces(job.bytes) {
            let from = shared_piece(cx, i.site, job.src + u64::from(at), mask, Does::Read)?;
            let to = global_piece(cx, i.site, job.lane, job.dst + u64::from(at), mask, Does::Copy)?;
            move_piece(from, to, mask);
        }
        reads(cx, &job);
        Some(())
    })
}

/// A copy that a bulk group waits for begins to read shared memory.
pub(super) fn reads(cx: &mut Cx<'_>, job: &Job) {
    let word = (job.src as u32).wrapping_sub(SHARED_BASE) / 4;
    let data = words(cx, word, job.bytes / 4);
    let (warp, pc) = (cx.warp, cx.pc);
    cx.block.asynch.bulk[warp].begin(pc, job.lane, word, data);
}

/// Words of shared memory.
fn words(cx: &Cx<'_>, word: u32, count: u32) -> Vec<u32> {
    let data = cx.block.shared.data().cast::<u32>();
    // SAFETY: the copy was found to lie inside the block's shared memory, which is 16-byte aligned.
    (0..count).map(|k| unsafe { data.add((word + k) as usize).read() }).collect()
}

/// A copy that may still be reading.
#[derive(Clone, Debug)]
struct Reading {
    /// Instruction.
    pc: u32,
    lane: usize,
    group: u32,
    word: u32,
    /// What was there when it began.
    data: Vec<u32>,
}

/// Bulk groups of a warp's lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pending: Vec<Reading>,
    closed: [u32; LANES],
}

impl Groups {
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.closed = [0; LANES];
    }

    fn begin(&mut self, pc: u32, lane: usize, word: u32, data: Vec<u32>) {
        self.pending.push(Reading { pc, lane, group: self.closed[lane], word, data });
    }

    /// Takes the copies of these lanes that are in groups before the last `keep` closed ones.
    fn wait(&mut self, lanes: u32, keep: u32) -> Vec<Reading> {
        let closed = self.closed;
        let over = |r: &Reading| {
            lanes >> r.lane & 1 != 0 && u64::from(closed[r.lane]) > u64::from(r.group) + u64::from(keep)
        };
        let (done, pending) = std::mem::take(&mut self.pending).into_iter().partition(over);
        self.pending = pending;
        done
    }

    /// Forgets the copies of these lanes; gives the instruction and the lanes of each.
    pub(super) fn drop(&mut self, lanes: u32) -> Vec<(u32, u32)> {
        let (dropped, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|r| lanes >> r.lane & 1 != 0);
        self.pending = pending;
        let dropped: Vec<Reading> = dropped;
        dropped.iter().map(|r| (r.pc, 1 << r.lane)).collect()
    }
}

fn commit(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    let warp = cx.warp;
    for (lane, closed) in cx.block.asynch.bulk[warp].closed.iter_mut().enumerate() {
        *closed += mask >> lane & 1;
    }
    Flow::Next
}

fn wait_group(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let warp = cx.warp;
    for r in cx.block.asynch.bulk[warp].wait(mask, i.aux) {
        let now = words(cx, r.word, r.data.len() as u32);
        if let Some(k) = now.iter().zip(&r.data).position(|(a, b)| a != b) {
            let address = u64::from(4 * (r.word + k as u32));
            cx.find(Kind::AsyncInFlight, r.lane as u32, Some(address), || {
                format!(
                    "shared address {address:#x} was written before this wait, while a bulk copy may still have been \
                     reading it"
                )
            });
        }
    }
    Flow::Next
}

#[cfg(test)]
mod tests;
