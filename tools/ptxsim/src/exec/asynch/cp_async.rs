//! `cp.async`: 4, 8 or 16 bytes a lane from global to shared memory.

use super::space::{SharedAddress, WIDE, address_of};
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{ALWAYS, Class, Exec, Flow, Inst, Slot};
use crate::exec::lanes::{FULL, LANES, lane_mask};
use crate::exec::lower::{Decoded, Lower};
use crate::exec::program::SHARED_BASE;
use crate::mem::access::{Does, Manner, Miss, Request, offsets64};
use crate::mem::data::{B32, B64, B128, Element, U8};
use crate::mem::order::bits;
use crate::ptx::ast::{self, Operand, Ty};

/// Bit of `Inst::aux`: the predicate that ignores the source is negated.
const NEGATED: u32 = 1;

/// `cp.async.{ca,cg}.shared.global{.hints} [dst], [src], size{, src_size | ignore_src}{, policy}`, `commit_group`,
/// `wait_group`, `wait_all`
pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let inst = match (mods.as_slice(), i.operands.as_slice()) {
        (["async", "commit_group"], []) => Inst::new(commit),
        (["async", "wait_all"], []) => Inst::new(wait_all),
        (["async", "wait_group"], [Operand::Int(n)]) => {
            let mut inst = Inst::new(wait_group);
            inst.aux = u32::try_from(*n).map_err(|_| "a number of groups is needed")?;
            inst
        }
        (["async", cache @ ("ca" | "cg"), "shared" | "shared::cta", "global", hints @ ..], operands) => {
            copy_decode(cache, hints, operands, lower)?
        }
        _ => return Err("this form of cp.async is not implemented".into()),
    };
    Ok((inst, Class::AsyncCopy))
}

fn copy_decode(
    cache: &str,
    hints: &[&str],
    operands: &[Operand],
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
            "L2::64B" | "L2::128B" | "L2::256B" => {}
            _ => return Err(format!("the modifier .{hint} is not implemented")),
        }
    }
    let (dst, src, size, rest) = match operands {
        [dst, src, Operand::Int(size), rest @ ..] => (dst, src, *size, rest),
        _ => return Err("two addresses and a size are needed".into()),
    };
    let exec: Exec = match (cache, size) {
        (_, 16) => copy::<B128>,
        ("ca", 8) => copy::<B64>,
        ("ca", 4) => copy::<B32>,
        _ => return Err(format!("cp.async.{cache} does not copy {size} bytes")),
    };
    let mut inst = Inst::new(exec);
    let (dst, src) = (SharedAddress::decode(dst, true, lower)?, lower.address(src)?);
    (inst.r[1], inst.r[2]) = (dst.base, src.base);
    if src.rows != 2 {
        return Err("an address in global memory has 64 bits".into());
    }
    let offset = |x: i64| i32::try_from(x).map_err(|_| "the offset is too large");
    inst.imm = i64::from(offset(dst.offset)? as u32) | i64::from(offset(src.offset)?) << 32;
    inst.aux = dst.flags & WIDE;
    match rest {
        [] => {}
        [ignore] if lower.is_predicate(ignore) || matches!(ignore, Operand::Not(_)) => {
            let (p, xor) = lower.pred_src(ignore)?;
            inst.p[1] = p;
            inst.aux |= xor & NEGATED;
        }
        [size] => inst.r[3] = lower.src(size, Ty::U32)?,
        _ => return Err("too many operands".into()),
    }
    inst.site = lower.site();
    Ok(inst)
}

fn copy<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow
where
    E::Lane: Bytes,
{
    // Lanes that read all of their bytes, and those that read a part.
    let (whole, part) = match sources(cx, i, mask, E::BYTES) {
        Ok(lanes) => lanes,
        Err(flow) => return flow,
    };
    let mut values = [E::Lane::ZERO; LANES];
    if whole != 0 {
        let (base, offsets, near) = offsets64(&cx.get(i.r[2]), whole);
        let base = base.wrapping_add_signed(i.imm >> 32);
        let request = Request {
            site: i.site,
            width: E::BYTES,
            mask: whole,
            base,
            offsets: &offsets,
            manner: Manner::default(),
        };
        let found = if near { cx.global_access(&request, Does::Read) } else { Err(Miss::Split) };
        match found {
            Ok(place) => {
                for (lane, value) in values.iter_mut().enumerate() {
                    if whole == FULL || whole >> lane & 1 != 0 {
                        // SAFETY: the access was found to lie inside an allocation, aligned.
                        *value = unsafe { E::load::<true>(place.pointer.offset(offsets[lane] as isize)) };
                    }
                }
            }
            Err(Miss::Fault) => return Flow::Stop,
            Err(Miss::Split) => {
                let addresses = cx.get::<u64>(i.r[2]).map(|a| a.wrapping_add_signed(i.imm >> 32));
                let rest = mask & !whole;
                if rest != 0 && copy::<E>(cx, i, rest) == Flow::Stop {
                    return Flow::Stop;
                }
                return cx.split(i, whole, &addresses, E::BYTES, false);
            }
        }
    }
    for lane in bits(part) {
        match read_part::<E>(cx, i, lane) {
            Ok(value) => values[lane] = value,
            Err(flow) => return flow,
        }
    }
    if whole | part == 0 {
        cx.mem.site_mut(i.site).requests += 1;
    }
    write::<E>(cx, i, mask, &values)
}

/// Lanes whose source is read whole, and in part.
#[inline(always)]
fn sources(cx: &mut Cx<'_>, i: &Inst, mask: u32, width: u32) -> Result<(u32, u32), Flow> {
    if i.p[1] != ALWAYS {
        let ignored = cx.pred(i.p[1]) ^ if i.aux & NEGATED != 0 { FULL } else { 0 };
        return Ok((mask & !ignored, 0));
    }
    if i.r[3] == Slot::NONE {
        return Ok((mask, 0));
    }
    let sizes = cx.get::<u32>(i.r[3]);
    let whole = mask & lane_mask(|l| sizes[l] == width);
    if whole == mask {
        return Ok((whole, 0));
    }
    let large = mask & lane_mask(|l| sizes[l] > width);
    if large != 0 {
        let lane = large.trailing_zeros();
        return Err(cx.fault(Kind::Unsupported, lane, None, || {
            format!(
                "a source of {} bytes for a copy of {width}: the result is undefined",
                sizes[lane as usize]
            )
        }));
    }
    Ok((whole, mask & !whole & lane_mask(|l| sizes[l] != 0)))
}

/// The first bytes of one lane's source, zeros behind them.
#[cold]
fn read_part<E: Element>(cx: &mut Cx<'_>, i: &Inst, lane: usize) -> Result<E::Lane, Flow>
where
    E::Lane: Bytes,
{
    let size = cx.get::<u32>(i.r[3])[lane];
    let base = cx.get::<u64>(i.r[2])[lane].wrapping_add_signed(i.imm >> 32);
    if !base.is_multiple_of(u64::from(E::BYTES)) {
        return Err(cx.fault(Kind::Misaligned, lane as u32, Some(base), || {
            format!("address {base:#x} is not a multiple of {}", E::BYTES)
        }));
    }
    let mut value = E::Lane::ZERO;
    let requests = cx.mem.site_mut(i.site).requests;
    for byte in 0..size {
        let request = Request {
            site: i.site,
            width: 1,
            mask: 1 << lane,
            base: base + u64::from(byte),
            offsets: &[0; LANES],
            manner: Manner::default(),
        };
        match cx.global_access(&request, Does::Read) {
            // SAFETY: the byte was found to lie inside an allocation.
            Ok(place) => value.set(byte, unsafe { U8::load::<true>(place.pointer) } as u8),
            Err(Miss::Fault) => return Err(Flow::Stop),
            Err(Miss::Split) => return Err(cx.outside_global(lane, base, u64::from(size))),
        }
    }
    cx.mem.site_mut(i.site).requests = requests + 1;
    Ok(value)
}

#[inline(always)]
fn write<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32, values: &[E::Lane; LANES]) -> Flow {
    let offset = i64::from(i.imm as i32);
    let Some((base, offsets)) = address_of(cx, i.r[1], offset, i.aux, mask, E::BYTES) else {
        return Flow::Stop;
    };
    let request =
        Request { site: i.site, width: E::BYTES, mask, base, offsets: &offsets, manner: Manner::default() };
    let Ok(place) = cx.shared_access(request, Does::Copy) else { return Flow::Stop };
    for (lane, &value) in values.iter().enumerate() {
        if mask == FULL || mask >> lane & 1 != 0 {
            // SAFETY: the access was found to lie inside the block's shared memory, aligned.
            unsafe { E::store::<false>(place.pointer.offset(offsets[lane] as isize), value) };
        }
    }
    let (warp, pc) = (cx.warp, cx.pc);
    cx.block.asynch.copies[warp].begin(pc, mask, (base as u32).wrapping_sub(SHARED_BASE), E::BYTES, &offsets);
    Flow::Next
}

/// A lane's bytes.
trait Bytes: Copy {
    const ZERO: Self;
    fn set(&mut self, at: u32, byte: u8);
}

macro_rules! bytes {
    ($($t:ty)*) => {$(
        impl Bytes for $t {
            const ZERO: Self = 0;
            fn set(&mut self, at: u32, byte: u8) {
                *self |= Self::from(byte) << (8 * at);
            }
        }
    )*};
}
bytes!(u32 u64 u128);

fn commit(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    let warp = cx.warp;
    cx.block.asynch.copies[warp].commit(mask);
    Flow::Next
}

fn wait_group(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    finish(cx, |copies, flights| copies.wait(mask, i.aux, flights))
}

fn wait_all(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    finish(cx, |copies, flights| copies.take(mask, flights))
}

#[inline(always)]
fn finish(cx: &mut Cx<'_>, f: impl FnOnce(&mut super::Copies, &mut Vec<super::Flight>)) -> Flow {
    let warp = cx.warp;
    let block = &mut cx.block;
    let flights = &mut block.asynch.flights;
    flights.clear();
    f(&mut block.asynch.copies[warp], flights);
    block.shared.async_complete(block.order.now(), flights);
    Flow::Next
}

#[cfg(test)]
mod tests;
