//! Barriers of the block (`bar`, `barrier`), of the warp (`bar.warp.sync`).
//!
//! Warps arrive one by one; lanes of a warp may arrive apart. A barrier without a thread count is complete when every
//! warp that still has lanes has arrived with all of them.

use super::cx::Cx;
use super::inst::{Class, Flow, Inst, Slot};
use super::lanes::FULL;
use super::lower::{Decoded, Lower};
use super::warp::{State, WaitFor, Waiting};
use crate::check::Kind;
use crate::mem::order::Token;
use crate::ptx::ast::{self, Operand, Ty};
use std::collections::BTreeMap;

/// Barriers of a block.
pub const BARRIERS: usize = 16;

/// One barrier between two completions.
#[derive(Clone, Default)]
struct Barrier {
    /// Threads expected; `None` before the first arrival, 0 for all.
    expected: Option<u32>,
    /// Warps that wait here with all their live lanes.
    waiting: u32,
    /// Warps of `bar.arrive`, which do not wait; each counts once an arrival.
    arrived: u32,
    /// Lanes of warps of which not all have arrived yet.
    arriving: BTreeMap<usize, u32>,
    /// What those warps did before.
    tokens: Vec<Token>,
    popc: u32,
    and: bool,
    or: bool,
}

/// The barriers of a block.
#[derive(Clone, Default)]
pub struct Barriers {
    all: [Barrier; BARRIERS],
}

/// `Inst::aux`
const SYNC: u32 = 0;
const ARRIVE: u32 = 1;
const POPC: u32 = 2;
const AND: u32 = 3;
const OR: u32 = 4;
/// Flag in `Inst::aux`: every lane of the warp must take part.
const ALIGNED: u32 = 16;

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    if i.opcode == "bar" && mods == ["warp", "sync"] {
        let [mask] = i.operands.as_slice() else { return Err("one member mask is needed".into()) };
        let mask = lower.src(mask, Ty::B32)?;
        return Ok((Inst::with(warp_sync, &[Slot::NONE, mask]), Class::Barrier));
    }
    if mods.first() == Some(&"cta") {
        mods.remove(0);
    }
    let mut aligned = i.opcode == "bar";
    if let Some(at) = mods.iter().position(|m| *m == "aligned") {
        mods.remove(at);
        aligned = true;
    }
    let kind = match mods.as_slice() {
        ["sync"] => SYNC,
        ["arrive"] => ARRIVE,
        ["red", "popc", "u32"] => POPC,
        ["red", "and", "pred"] => AND,
        ["red", "or", "pred"] => OR,
        _ => return Err("this form of barrier is not implemented".into()),
    };
    let mut inst = Inst::new(barrier);
    inst.aux = kind | if aligned { ALIGNED } else { 0 };
    let mut operands = i.operands.as_slice();
    if kind >= POPC {
        let (Some((dst, rest)), Some(value)) = (operands.split_first(), operands.last()) else {
            return Err("a result and a predicate are needed".into());
        };
        if rest.len() < 2 {
            return Err("a result, a barrier and a predicate are needed".into());
        }
        if kind == POPC {
            inst.r[0] = lower.dst(dst, Ty::U32)?;
        } else {
            inst.p[0] = lower.pred_dst(dst)?;
        }
        let (p, xor) = lower.pred_src(value)?;
        inst.p[1] = p;
        inst.imm = i64::from(xor);
        operands = &rest[..rest.len() - 1];
    }
    let (id, count) = match operands {
        [id] => (id, None),
        [id, count] => (id, Some(count)),
        _ => return Err("a barrier number and at most a thread count are needed".into()),
    };
    if kind == ARRIVE && count.is_none() {
        return Err("bar.arrive needs a thread count".into());
    }
    // Barrier 0 for the whole block orders everything before it; anything else orders some warps only.
    if count.is_some() || kind == ARRIVE || !matches!(id, Operand::Int(_)) {
        lower.features.partial_barriers = true;
    }
    inst.r[1] = lower.src(id, Ty::U32)?;
    if let Some(count) = count {
        inst.r[2] = lower.src(count, Ty::U32)?;
    }
    Ok((inst, Class::Barrier))
}

fn barrier(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let lane = mask.trailing_zeros();
    let id = cx.get::<u32>(i.r[1])[lane as usize];
    let count = if i.r[2] == Slot::NONE { 0 } else { cx.get::<u32>(i.r[2])[lane as usize] };
    if id as usize >= BARRIERS {
        return cx.fault(Kind::BarrierDivergence, lane, None, || {
            format!("barrier {id} does not exist: 0 to 15 do")
        });
    }
    if count % 32 != 0 || (i.r[2] != Slot::NONE && count == 0) {
        return cx.fault(Kind::BarrierDivergence, lane, None, || {
            format!("barrier {id} counts {count} threads; it must be a multiple of 32")
        });
    }
    let live = cx.live();
    let aligned = i.aux & ALIGNED != 0;
    if aligned && mask != live {
        cx.find(Kind::BarrierDivergence, (live & !mask).trailing_zeros(), None, || {
            format!(
                "lanes {mask:#010x} of the warp reached barrier {id} without lanes {:#010x}",
                live & !mask
            )
        });
    }
    let expected = cx.block.barriers.all[id as usize].expected;
    if let Some(expected) = expected
        && expected != count
    {
        let of = |n: u32| if n == 0 { "all threads".to_string() } else { format!("{n} threads") };
        cx.find(Kind::BarrierDivergence, lane, None, || {
            format!("barrier {id} is waited for with {} here and with {} elsewhere", of(count), of(expected))
        });
    }
    let kind = i.aux & 15;
    let value = if kind >= POPC { (cx.pred(i.p[1]) ^ i.imm as u32) & mask } else { 0 };
    let warp = cx.warp;
    let token = (kind == ARRIVE).then(|| cx.block.order.release(warp));
    let b = &mut cx.block.barriers.all[id as usize];
    if b.expected.is_none() {
        (b.popc, b.and, b.or) = (0, true, false);
    }
    b.expected = Some(count);
    b.popc += value.count_ones();
    b.and &= value == mask;
    b.or |= value != 0;
    if let Some(token) = token {
        b.tokens.push(token);
        cx.arrive(warp, id, mask);
        cx.pc += 1;
        cx.leave();
        cx.complete(id);
        return cx.choose();
    }
    // These lanes wait; the rest of the warp, if any, goes on.
    let at = cx.pc;
    cx.pc += 1;
    let rest = cx.active & !mask;
    cx.active = mask;
    cx.leave();
    let w = &mut cx.block.warps[warp];
    let mut split = std::mem::take(&mut w.current);
    if rest != 0 {
        w.splits.push(super::warp::Split { mask: rest, ..split.clone() });
    }
    split.mask = mask;
    w.waiting.push(Waiting { split, on: WaitFor::Barrier(id), at });
    cx.active = 0;
    cx.arrived(warp, id);
    cx.complete(id);
    cx.choose()
}

impl Cx<'_> {
    /// Notes a warp at a barrier if all its live lanes wait there.
    fn arrived(&mut self, warp: usize, id: u32) {
        let w = &self.block.warps[warp];
        let here = w.waiting.iter().filter(|x| x.on == WaitFor::Barrier(id)).fold(0, |m, x| m | x.split.mask);
        if here != 0 && here == w.live {
            self.block.barriers.all[id as usize].waiting |= 1 << warp;
        }
    }

    /// Counts the arrival of a warp once none of its live lanes is missing.
    fn arrive(&mut self, warp: usize, id: u32, lanes: u32) {
        let live = self.block.warps[warp].live;
        let b = &mut self.block.barriers.all[id as usize];
        let so_far = b.arriving.entry(warp).or_default();
        *so_far |= lanes;
        if live & !*so_far == 0 {
            b.arriving.remove(&warp);
            b.arrived += 1;
        }
    }

    /// After lanes ended: barriers and warp barriers that waited for them only may be complete.
    pub(super) fn barriers_after_exit(&mut self) {
        let warp = self.warp;
        for id in 0..BARRIERS as u32 {
            if self.block.barriers.all[id as usize].expected.is_some() {
                if self.block.barriers.all[id as usize].arriving.contains_key(&warp) {
                    self.arrive(warp, id, 0);
                }
                self.arrived(warp, id);
                self.complete(id);
            }
        }
        self.complete_warp_sync();
    }

    /// Lets everybody go on if the barrier is complete.
    fn complete(&mut self, id: u32) {
        let b = &self.block.barriers.all[id as usize];
        let Some(expected) = b.expected else { return };
        let living = self
            .block
            .warps
            .iter()
            .enumerate()
            .filter(|(_, w)| w.live != 0)
            .fold(0u32, |m, (n, _)| m | 1 << n);
        let complete = if expected == 0 {
            living & !b.waiting == 0
        } else {
            (b.waiting.count_ones() + b.arrived) * 32 >= expected
        };
        if !complete {
            return;
        }
        let b = std::mem::take(&mut self.block.barriers.all[id as usize]);
        if b.arrived == 0 && b.waiting == living {
            self.block.order.full_barrier();
        } else {
            self.block.order.barrier_among(b.waiting);
            for (token, warp) in b.tokens.iter().flat_map(|t| warps(b.waiting).map(move |w| (t, w))) {
                self.block.order.acquire(warp, token);
            }
        }
        self.block.progress += 1;
        for warp in warps(b.waiting) {
            let w = &mut self.block.warps[warp];
            let (go, stay): (Vec<_>, Vec<_>) =
                std::mem::take(&mut w.waiting).into_iter().partition(|x| x.on == WaitFor::Barrier(id));
            w.waiting = stay;
            for x in go {
                let inst = &self.code.insts[x.at as usize];
                match inst.aux & 15 {
                    POPC => w.set_row(inst.r[0], x.split.mask, b.popc),
                    AND => w.set_pred(inst.p[0], x.split.mask, b.and),
                    OR => w.set_pred(inst.p[0], x.split.mask, b.or),
                    _ => {}
                }
                w.splits.push(x.split);
            }
            if w.state == State::Waiting {
                w.state = State::Ready;
                w.reschedule();
            }
        }
    }

    /// Lets lanes go on that wait for lanes which are all there now.
    fn complete_warp_sync(&mut self) {
        let warp = self.warp;
        loop {
            let w = &mut self.block.warps[warp];
            let ready = w.waiting.iter().find_map(|x| match x.on {
                WaitFor::WarpSync(members) => {
                    let here = w
                        .waiting
                        .iter()
                        .filter(|y| y.on == WaitFor::WarpSync(members))
                        .fold(0, |m, y| m | y.split.mask);
                    (members & w.live & !here == 0).then_some((members, here))
                }
                WaitFor::Barrier(_) => None,
            });
            let Some((members, here)) = ready else { return };
            let (go, stay): (Vec<_>, Vec<_>) =
                std::mem::take(&mut w.waiting).into_iter().partition(|x| x.on == WaitFor::WarpSync(members));
            w.waiting = stay;
            w.splits.extend(go.into_iter().map(|x| x.split));
            self.block.order.syncwarp(warp, here);
            self.block.progress += 1;
        }
    }
}

/// Indices of a mask.
fn warps(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |w| mask >> w & 1 != 0)
}

fn warp_sync(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let members = cx.get::<u32>(i.r[1]);
    let lane = mask.trailing_zeros();
    let wanted = members[lane as usize];
    let live = cx.live();
    // The usual case: all members are here together.
    let same = super::lanes::lane_mask(|l| members[l] == wanted) & mask;
    if same == mask && wanted & live & !mask == 0 && mask & !wanted == 0 {
        let warp = cx.warp;
        cx.block.order.syncwarp(warp, if mask == live { FULL } else { mask });
        return Flow::Next;
    }
    let mut left = mask;
    let at = cx.pc;
    cx.pc += 1;
    let rest = cx.active & !mask;
    cx.leave();
    let stack = cx.block.warps[cx.warp].current.stack.clone();
    while left != 0 {
        let lane = left.trailing_zeros();
        let wanted = members[lane as usize];
        let same = super::lanes::lane_mask(|l| members[l] == wanted) & left;
        if same & !wanted != 0 {
            let pc = std::mem::replace(&mut cx.pc, at);
            cx.find(Kind::AbsentLane, (same & !wanted).trailing_zeros(), None, || {
                format!(
                    "lanes {:#010x} execute bar.warp.sync with member mask {wanted:#010x}, which lacks them",
                    same & !wanted
                )
            });
            cx.pc = pc;
        }
        let split = super::warp::Split { pc: cx.pc, mask: same, stack: stack.clone() };
        cx.block.warps[cx.warp].waiting.push(Waiting { split, on: WaitFor::WarpSync(wanted), at });
        left &= !same;
    }
    cx.active = rest;
    cx.leave();
    cx.complete_warp_sync();
    cx.choose()
}
