//! `atom`, `red`: lanes one after the other.

use super::load::{addresses, all_addresses};
use super::ops::{self, Op};
use super::{
    ACQUIRE, AUX_SHIFT, DEVICE, Modifiers, RELEASE, STRONG, Space, elements, manner, place_address, window,
    without_policy,
};
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Exec, Flow, Inst};
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::{Does, Miss, Place, Request, Window};
use crate::mem::data::{B32, B64, Element, Registers, U16};
use crate::mem::order::bits;
use crate::mem::pattern::Offsets;
use crate::ptx::ast::{self, Operand, Ty};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Number of operations in [`TABLE`] of one space.
const NAMES: [&str; 10] = ["exch", "cas", "and", "or", "xor", "add", "inc", "dec", "min", "max"];

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut name = None;
    let m = Modifiers::parse(i, |word| {
        if let Some(op) = NAMES.iter().position(|n| *n == word) {
            name = Some(op);
            return true;
        }
        word == "noftz"
    })?;
    let (op, ty) = (name.ok_or("an operation is needed")?, m.ty.ok_or("a type is needed")?);
    let cas = NAMES[op] == "cas";
    let returns = i.opcode == "atom";
    let vector = m.count > 1;
    let half = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2);
    if vector
        && !(m.space != Space::Shared && (half || (ty == Ty::F32 && m.count <= 4 && NAMES[op] == "add")))
    {
        return Err("vector forms are .add.f32 and those of halves, in global memory".into());
    }
    if half && !vector && NAMES[op] != "add" {
        return Err("only .add has halves without a vector".into());
    }
    if !matches!(m.space, Space::Global | Space::Shared | Space::Generic) {
        return Err("atomics are for global and shared memory".into());
    }
    ops::find(NAMES[op], ty, true).ok_or_else(|| format!("{} does not exist for this type", NAMES[op]))?;
    let operands = without_policy(i, &m);
    let (dst, rest) = if returns {
        let (dst, rest) = operands.split_first().ok_or("a result is needed")?;
        (Some(dst), rest)
    } else {
        (None, operands)
    };
    let (address, values): (&Operand, &[Operand]) = match (rest, cas) {
        ([address, values], false) => (address, elements(values)),
        ([address, values @ ..], true) if values.len() == 2 && returns => (address, values),
        _ => return Err("the operands do not fit the operation".into()),
    };
    if !cas && values.len() != m.count || dst.is_some_and(|d| elements(d).len() != m.count) {
        return Err(format!("{} elements are needed", m.count));
    }
    let address = lower.address(address)?;
    if address.rows != 2 && m.space == Space::Generic {
        return Err("a generic address has 64 bits".into());
    }
    let mut slots = Vec::new();
    for value in values {
        slots.push(lower.src(value, ty)?);
    }
    for dst in dst.map_or(&[][..], elements) {
        slots.push(lower.dst(dst, ty)?);
    }
    let mut inst = Inst::new(exec(ty.bytes(), cas, returns)?);
    inst.v = slots.into();
    let space = window(m.space).map_or(0, |w| if w == Window::Shared { 2 } else { 1 });
    inst.aux = m.aux(&address, lower) | STRONG | (space | (op as u32) << 2 | ty_code(ty) << 6) << AUX_SHIFT;
    place_address(&mut inst, &address);
    inst.site = lower.site();
    Ok((inst, Class::Atomic))
}

const TYPES: [Ty; 14] = [
    Ty::B16,
    Ty::B32,
    Ty::U32,
    Ty::S32,
    Ty::F32,
    Ty::B64,
    Ty::U64,
    Ty::S64,
    Ty::F64,
    Ty::F16,
    Ty::Bf16,
    Ty::F16x2,
    Ty::Bf16x2,
    Ty::Tf32,
];

fn ty_code(ty: Ty) -> u32 {
    TYPES.iter().position(|t| *t == ty).unwrap_or(TYPES.len() - 1) as u32
}

fn exec(bytes: u32, cas: bool, returns: bool) -> Result<Exec, String> {
    fn by_form<E: Cell>(cas: bool, returns: bool) -> Exec {
        match (cas, returns) {
            (true, _) => run::<E, true, true>,
            (false, true) => run::<E, false, true>,
            (false, false) => run::<E, false, false>,
        }
    }
    Ok(match bytes {
        2 => by_form::<U16>(cas, returns),
        4 => by_form::<B32>(cas, returns),
        8 => by_form::<B64>(cas, returns),
        _ => return Err("atomics have 16, 32 or 64 bits".into()),
    })
}

/// An element that can be exchanged atomically.
trait Cell: Element {
    fn bits(value: Self::Lane) -> u64;
    fn lane(bits: u64) -> Self::Lane;

    /// Replaces a value by a function of itself; gives the old one.
    ///
    /// # Safety
    /// `at` is inside live memory, aligned.
    unsafe fn update(at: *mut u8, f: impl Fn(u64) -> u64) -> u64;
}

macro_rules! cell {
    ($($element:ty: $atomic:ty, $mem:ty, $lane:ty);* $(;)?) => {$(
        impl Cell for $element {
            #[inline(always)]
            fn bits(value: $lane) -> u64 {
                u64::from(value as $mem)
            }
            #[inline(always)]
            fn lane(bits: u64) -> $lane {
                bits as $lane
            }
            #[inline(always)]
            unsafe fn update(at: *mut u8, f: impl Fn(u64) -> u64) -> u64 {
                // SAFETY: the caller gives an aligned address of live bytes.
                let cell = unsafe { &*at.cast::<$atomic>() };
                let mut old = cell.load(Ordering::Relaxed);
                loop {
                    let new = f(u64::from(old)) as $mem;
                    match cell.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(_) => return u64::from(old),
                        Err(now) => old = now,
                    }
                }
            }
        }
    )*};
}
cell! {
    U16: AtomicU16, u16, u32;
    B32: AtomicU32, u32, u32;
    B64: AtomicU64, u64, u64;
}

fn run<E: Cell, const CAS: bool, const RETURNS: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (base, offsets, near) = if i.aux & super::WIDE != 0 {
        addresses::<true>(cx, i, mask)
    } else {
        addresses::<false>(cx, i, mask)
    };
    let form = i.aux >> AUX_SHIFT;
    let generic = form & 3 == 0;
    let window = match form & 3 {
        0 => Window::of(base),
        1 => Window::Global,
        _ => Window::Shared,
    };
    let values = if CAS {
        1
    } else if RETURNS {
        i.v.len() / 2
    } else {
        i.v.len()
    };
    let mut request = Request {
        site: i.site,
        width: E::BYTES * values as u32,
        mask,
        base,
        offsets: &offsets,
        manner: manner(i.aux),
    };
    if i.aux & RELEASE != 0 {
        cx.release(i.aux & DEVICE != 0);
    }
    let found = match window {
        Window::Global if near => cx.global_access(&request, Does::Atomic),
        Window::Global => Err(Miss::Split),
        Window::Shared => {
            if generic {
                if !cx.all_in(window, mask, &all_addresses(cx, i)) {
                    let all = all_addresses(cx, i);
                    return cx.split(i, mask, &all, request.width, true);
                }
                request.base -= window.base();
            }
            if !near || request.base > u64::from(u32::MAX) {
                return cx.far_from_shared(&request);
            }
            cx.shared_access(request, Does::Atomic)
        }
        _ => return cx.no_atomics(mask, base),
    };
    match found {
        Ok(place) => {
            let name = NAMES[(form >> 2 & 15) as usize];
            let ty = TYPES[(form >> 6 & 15) as usize];
            // The lowering looked the operation up before.
            let Some(op) = ops::find(name, ty, window == Window::Global) else { return Flow::Next };
            if cx.block.fences.enabled() {
                if RETURNS {
                    cx.flags_read(&request, window);
                }
                if i.aux & ACQUIRE != 0 {
                    cx.acquire(i.aux & DEVICE != 0);
                }
                cx.flags_written(&request, window);
            }
            let registers = Registers { file: cx.register_file(), slots: &i.v, mask };
            // SAFETY: the file is the running warp's; the slots were made for this element; the access was found to be
            // inside live memory, aligned.
            unsafe { update::<E, CAS, RETURNS>(registers, place, &offsets, values, op) };
            Flow::Next
        }
        Err(Miss::Fault) => Flow::Stop,
        Err(Miss::Split) => {
            let all = all_addresses(cx, i);
            cx.split(i, mask, &all, request.width, generic)
        }
    }
}

/// # Safety
/// As for [`Registers::load`].
#[inline(always)]
unsafe fn update<E: Cell, const CAS: bool, const RETURNS: bool>(
    registers: Registers<'_>,
    place: Place,
    offsets: &Offsets,
    count: usize,
    op: Op,
) {
    for k in 0..count {
        // SAFETY: the caller answers for the registers and for each active lane's address.
        unsafe {
            let b = registers.get::<E::Lane>(k);
            let c = if CAS { registers.get::<E::Lane>(1) } else { b };
            let mut old = b;
            for lane in bits(registers.mask) {
                let at = place.pointer.offset(offsets[lane] as isize).add(k * E::BYTES as usize);
                let (b, c) = (E::bits(b[lane]), E::bits(c[lane]));
                old[lane] = E::lane(E::update(at, |a| op(a, b, c)));
            }
            if RETURNS {
                registers.put(if CAS { 2 } else { count + k }, &old);
            }
        }
    }
}
