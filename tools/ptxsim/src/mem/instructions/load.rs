//! `ld`, `ldu`.

use super::{
    ACQUIRE, DEVICE, Modifiers, Space, WIDE, class, elements, manner, place_address, without_policy,
};
use crate::exec::cx::Cx;
use crate::exec::inst::{Exec, Flow, Inst};
use crate::exec::lanes::LANES;
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::{Does, Miss, Request, Window, offsets32, offsets64};
use crate::mem::data::{B32, B64, B128, Element, Registers, S8, S8In16, S16, U8, U16};
use crate::mem::pattern::{Offsets, Shape};
use crate::ptx::ast::{self, Operand, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut m = Modifiers::parse(i, |_| false)?;
    let [dst, address] = without_policy(i, &m) else {
        return Err("a result and an address are needed".into());
    };
    let ty = m.ty.ok_or("a type is needed")?;
    if i.opcode == "ldu" {
        if !matches!(m.space, Space::Global | Space::Generic) {
            return Err("ldu is for global memory".into());
        }
    } else if m.count > 1 && elements(dst).len() != m.count {
        return Err(format!("{} results are needed", m.count));
    }
    let dsts = elements(dst);
    if dsts.len() != m.count || m.count as u32 * ty.bytes() > 32 {
        return Err("a vector is at most 32 bytes, one result for each element".into());
    }
    let address = lower.address(address)?;
    if m.space == Space::Param && (address.frame || !lower.in_kernel()) {
        // Parameters and results of device functions lie in the lane's frame.
        m.space = Space::Local;
    }
    if address.rows != 2 && matches!(m.space, Space::Generic | Space::Param) {
        return Err("a generic address has 64 bits".into());
    }
    let narrow = dsts.iter().any(|o| lower.register_type(o).is_some_and(|t| t.bytes() <= 2));
    let mut inst = Inst::new(exec(m.space, ty, narrow, address.rows == 2));
    inst.v = dsts.iter().map(|o: &Operand| lower.dst(o, ty)).collect::<Result<_, _>>()?;
    inst.aux = m.aux(&address, lower);
    place_address(&mut inst, &address);
    inst.site = lower.site();
    Ok((inst, class(m.space, true)))
}

/// The function for a space and a type; `narrow` where the result's register has 16 bits.
fn exec(space: Space, ty: Ty, narrow: bool, wide: bool) -> Exec {
    fn by_space<E: Element>(space: Space, wide: bool) -> Exec {
        match (space, wide) {
            (Space::Global | Space::Const, true) => global::<E, true>,
            (Space::Global | Space::Const, false) => global::<E, false>,
            (Space::Shared, true) => shared::<E, true>,
            (Space::Shared, false) => shared::<E, false>,
            (Space::Local, _) => local::<E>,
            (Space::Param, _) => param::<E>,
            (Space::Generic, _) => generic::<E>,
        }
    }
    let f = match (ty.bytes(), ty) {
        (1, Ty::S8) if narrow => by_space::<S8In16>,
        (1, Ty::S8) => by_space::<S8>,
        (1, _) => by_space::<U8>,
        (2, Ty::S16) if !narrow => by_space::<S16>,
        (2, _) => by_space::<U16>,
        (4, _) => by_space::<B32>,
        (8, _) => by_space::<B64>,
        _ => by_space::<B128>,
    };
    f(space, wide)
}

/// Address of the lowest active lane, distances of the others; no distances if one is too far away.
#[inline(always)]
pub(super) fn addresses<const WIDE: bool>(cx: &Cx<'_>, i: &Inst, mask: u32) -> (u64, Offsets, bool) {
    if WIDE {
        let (first, offsets, near) = offsets64(&cx.get::<u64>(i.r[1]), mask);
        (first.wrapping_add_signed(i.imm), offsets, near)
    } else {
        let (first, offsets) = offsets32(&cx.get::<u32>(i.r[1]), mask);
        (u64::from(first.wrapping_add_signed(i.imm as i32)), offsets, true)
    }
}

/// Every lane's address, for accesses in parts.
#[cold]
#[inline(never)]
pub(super) fn all_addresses(cx: &Cx<'_>, i: &Inst) -> [u64; LANES] {
    if i.aux & WIDE != 0 {
        cx.get::<u64>(i.r[1]).map(|a| a.wrapping_add_signed(i.imm))
    } else {
        cx.get::<u32>(i.r[1]).map(|a| u64::from(a.wrapping_add_signed(i.imm as i32)))
    }
}

#[inline(always)]
fn width<E: Element>(i: &Inst) -> u32 {
    E::BYTES * i.v.len() as u32
}

#[inline(always)]
fn registers<'a>(cx: &Cx<'_>, i: &'a Inst, mask: u32) -> Registers<'a> {
    Registers { file: cx.register_file(), slots: &i.v, mask }
}

fn global<E: Element, const WIDE: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<WIDE>(cx, i, mask);
    load_global::<E>(cx, i, mask, base, &offsets, near, false)
}

#[inline(always)]
fn load_global<E: Element>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    base: u64,
    offsets: &Offsets,
    near: bool,
    generic: bool,
) -> Flow {
    let request = Request { site: i.site, width: width::<E>(i), mask, base, offsets, manner: manner(i.aux) };
    let found = if near { cx.global_access(&request, Does::Read) } else { Err(Miss::Split) };
    match found {
        Ok(place) => {
            // SAFETY: the file is the running warp's; the slots were made for this element; the access was found to lie
            // inside an allocation, aligned, which the launch's table keeps alive.
            unsafe { registers(cx, i, mask).load::<E, true>(place.pointer, offsets, place.shape) };
            synchronise(cx, i, &request, Window::Global);
            Flow::Next
        }
        Err(Miss::Fault) => Flow::Stop,
        Err(Miss::Split) => {
            let all = all_addresses(cx, i);
            cx.split(i, mask, &all, request.width, generic)
        }
    }
}

/// After a load that may have read a flag.
#[inline(always)]
fn synchronise(cx: &mut Cx<'_>, i: &Inst, request: &Request<'_>, window: Window) {
    if cx.block.fences.enabled() && (request.manner.volatile || request.manner.strong) {
        cx.flags_read(request, window);
        if i.aux & ACQUIRE != 0 {
            cx.acquire(i.aux & DEVICE != 0);
        }
    }
}

fn shared<E: Element, const WIDE: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<WIDE>(cx, i, mask);
    load_shared::<E>(cx, i, mask, base, &offsets, near)
}

#[inline(always)]
fn load_shared<E: Element>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    base: u64,
    offsets: &Offsets,
    near: bool,
) -> Flow {
    let request = Request { site: i.site, width: width::<E>(i), mask, base, offsets, manner: manner(i.aux) };
    if !near || base > u64::from(u32::MAX) {
        return cx.far_from_shared(&request);
    }
    match cx.shared_access(request, Does::Read) {
        Ok(place) => {
            // SAFETY: as for global memory; the block's shared memory is this thread's own.
            unsafe { registers(cx, i, mask).load::<E, false>(place.pointer, offsets, place.shape) };
            synchronise(cx, i, &request, Window::Shared);
            Flow::Next
        }
        Err(_) => Flow::Stop,
    }
}

fn local<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let all = all_addresses(cx, i);
    load_local::<E>(cx, i, mask, &all)
}

fn load_local<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32, addresses: &[u64; LANES]) -> Flow {
    match cx.local_access(i.site, width::<E>(i), mask, addresses) {
        Ok((base, offsets)) => {
            // SAFETY: as for shared memory: every lane's bytes lie in its part of the warp's local memory.
            unsafe { registers(cx, i, mask).load::<E, false>(base, &offsets, Shape::Scattered) };
            Flow::Next
        }
        Err(_) => Flow::Stop,
    }
}

fn param<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<true>(cx, i, mask);
    load_param::<E>(cx, i, mask, base, &offsets, near)
}

#[inline(always)]
fn load_param<E: Element>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    base: u64,
    offsets: &Offsets,
    near: bool,
) -> Flow {
    let request = Request { site: i.site, width: width::<E>(i), mask, base, offsets, manner: manner(i.aux) };
    match cx.param_access(&request, near) {
        Ok(place) => {
            // SAFETY: every lane's bytes lie inside the parameter block, which nobody writes during a launch.
            unsafe { registers(cx, i, mask).load::<E, false>(place.pointer, offsets, place.shape) };
            Flow::Next
        }
        Err(_) => Flow::Stop,
    }
}

fn generic<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<true>(cx, i, mask);
    let window = Window::of(base);
    if window == Window::Global {
        return load_global::<E>(cx, i, mask, base, &offsets, near, true);
    }
    let all = all_addresses(cx, i);
    if !cx.all_in(window, mask, &all) {
        return cx.split(i, mask, &all, width::<E>(i), true);
    }
    let inside = base - window.base();
    match window {
        Window::Shared => load_shared::<E>(cx, i, mask, inside, &offsets, near),
        Window::Param => load_param::<E>(cx, i, mask, inside, &offsets, near),
        _ => load_local::<E>(cx, i, mask, &all.map(|a| a.wrapping_sub(window.base()))),
    }
}
