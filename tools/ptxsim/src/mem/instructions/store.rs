//! `st`.

use super::load::{addresses, all_addresses};
use super::{DEVICE, Modifiers, RELEASE, Space, class, elements, manner, place_address, without_policy};
use crate::exec::cx::Cx;
use crate::exec::inst::{Exec, Flow, Inst};
use crate::exec::lanes::LANES;
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::{Does, Miss, Request, Window};
use crate::mem::data::{B32, B64, B128, Element, Registers, U8, U16};
use crate::mem::pattern::{Offsets, Shape};
use crate::ptx::ast::{self, Operand};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut m = Modifiers::parse(i, |_| false)?;
    let [address, src] = without_policy(i, &m) else {
        return Err("an address and a value are needed".into());
    };
    let ty = m.ty.ok_or("a type is needed")?;
    let srcs = elements(src);
    if srcs.len() != m.count || m.count as u32 * ty.bytes() > 32 {
        return Err("a vector is at most 32 bytes, one value for each element".into());
    }
    let address = lower.address(address)?;
    match m.space {
        Space::Const => return Err("constants cannot be written".into()),
        Space::Param if !address.frame && lower.in_kernel() => {
            return Err("parameters of a kernel cannot be written".into());
        }
        Space::Param => m.space = Space::Local,
        _ => {}
    }
    if address.rows != 2 && m.space == Space::Generic {
        return Err("a generic address has 64 bits".into());
    }
    let mut inst = Inst::new(exec(m.space, ty.bytes(), address.rows == 2));
    inst.v = srcs.iter().map(|o: &Operand| lower.src(o, ty)).collect::<Result<_, _>>()?;
    inst.aux = m.aux(&address, lower);
    place_address(&mut inst, &address);
    inst.site = lower.site();
    Ok((inst, class(m.space, false)))
}

fn exec(space: Space, bytes: u32, wide: bool) -> Exec {
    fn by_space<E: Element>(space: Space, wide: bool) -> Exec {
        match (space, wide) {
            (Space::Global, true) => global::<E, true>,
            (Space::Global, false) => global::<E, false>,
            (Space::Shared, true) => shared::<E, true>,
            (Space::Shared, false) => shared::<E, false>,
            (Space::Local, _) => local::<E>,
            _ => generic::<E>,
        }
    }
    let f = match bytes {
        1 => by_space::<U8>,
        2 => by_space::<U16>,
        4 => by_space::<B32>,
        8 => by_space::<B64>,
        _ => by_space::<B128>,
    };
    f(space, wide)
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
    store_global::<E>(cx, i, mask, base, &offsets, near, false)
}

#[inline(always)]
fn store_global<E: Element>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    base: u64,
    offsets: &Offsets,
    near: bool,
    generic: bool,
) -> Flow {
    let request = Request { site: i.site, width: width::<E>(i), mask, base, offsets, manner: manner(i.aux) };
    let registers = registers(cx, i, mask);
    // SAFETY: the file is the running warp's, and the slots were made for this element.
    let value = |lane: usize, byte: usize| Some(unsafe { registers.byte::<E>(lane, byte) });
    if i.aux & RELEASE != 0 {
        cx.release(i.aux & DEVICE != 0);
    }
    let found = if near { cx.global_access(&request, Does::Write(&value)) } else { Err(Miss::Split) };
    match found {
        Ok(place) => {
            // SAFETY: as above; the access was found to lie inside an allocation, aligned, which the launch's table keeps
            // alive.
            unsafe { registers.store::<E, true>(place.pointer, offsets, place.shape) };
            synchronise(cx, &request, Window::Global);
            Flow::Next
        }
        Err(Miss::Fault) => Flow::Stop,
        Err(Miss::Split) => {
            let all = all_addresses(cx, i);
            cx.split(i, mask, &all, request.width, generic)
        }
    }
}

/// After a store that may be a flag.
#[inline(always)]
fn synchronise(cx: &mut Cx<'_>, request: &Request<'_>, window: Window) {
    if cx.block.fences.enabled() && (request.manner.volatile || request.manner.strong) {
        cx.flags_written(request, window);
    }
}

fn shared<E: Element, const WIDE: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<WIDE>(cx, i, mask);
    store_shared::<E>(cx, i, mask, base, &offsets, near)
}

#[inline(always)]
fn store_shared<E: Element>(
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
    let registers = registers(cx, i, mask);
    // SAFETY: as for global memory.
    let value = |lane: usize, byte: usize| Some(unsafe { registers.byte::<E>(lane, byte) });
    if i.aux & RELEASE != 0 {
        cx.release(i.aux & DEVICE != 0);
    }
    match cx.shared_access(request, Does::Write(&value)) {
        Ok(place) => {
            // SAFETY: as for global memory; the block's shared memory is this thread's own.
            unsafe { registers.store::<E, false>(place.pointer, offsets, place.shape) };
            synchronise(cx, &request, Window::Shared);
            Flow::Next
        }
        Err(_) => Flow::Stop,
    }
}

fn local<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let all = all_addresses(cx, i);
    store_local::<E>(cx, i, mask, &all)
}

fn store_local<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32, addresses: &[u64; LANES]) -> Flow {
    match cx.local_access(i.site, width::<E>(i), mask, addresses) {
        Ok((base, offsets)) => {
            // SAFETY: as for shared memory: every lane's bytes lie in its part of the warp's local memory.
            unsafe { registers(cx, i, mask).store::<E, false>(base, &offsets, Shape::Scattered) };
            Flow::Next
        }
        Err(_) => Flow::Stop,
    }
}

fn generic<E: Element>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = addresses::<true>(cx, i, mask);
    let window = Window::of(base);
    if window == Window::Global {
        return store_global::<E>(cx, i, mask, base, &offsets, near, true);
    }
    let all = all_addresses(cx, i);
    if !cx.all_in(window, mask, &all) {
        return cx.split(i, mask, &all, width::<E>(i), true);
    }
    match window {
        Window::Shared => store_shared::<E>(cx, i, mask, base - window.base(), &offsets, near),
        Window::Local => store_local::<E>(cx, i, mask, &all.map(|a| a.wrapping_sub(window.base()))),
        _ => cx.param_written(mask, base),
    }
}
