//! Moves: copies, vectors packed into a register and taken apart, clocks.

use super::super::cx::Cx;
use super::super::inst::{Class, Exec, Flow, Inst, Slot};
use super::super::lanes::{LANES, Value, each};
use super::super::lower::{Decoded, Lower};
use super::{Form, map1, map2, of_class, with_operands};
use crate::ptx::ast::{self, Operand, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut form = Form::new(i);
    let ty = form.ty()?;
    form.end()?;
    let [d, a] = i.operands.as_slice() else { return Err("two operands are needed".into()) };
    match (d, a) {
        _ if ty == Ty::Pred => of_class(Class::Predicate, predicate(d, a, lower)),
        (Operand::Vector(parts), a) => of_class(Class::Move, unpack(ty, parts, a, lower)),
        (d, Operand::Vector(parts)) => of_class(Class::Move, pack(ty, d, parts, lower)),
        (d, Operand::Name(name)) if clock_part(name).is_some() => {
            of_class(Class::Special, clock(ty, d, name, lower))
        }
        _ => {
            let exec = match ty.bytes() {
                1 => map1!(|a: u8| a),
                2 => map1!(|a: u16| a),
                4 => map1!(|a: u32| a),
                8 => map1!(|a: u64| a),
                _ => map1!(|a: u128| a),
            };
            of_class(Class::Move, with_operands(i, lower, exec, ty, &[ty]))
        }
    }
}

fn predicate(d: &Operand, a: &Operand, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let mut inst = Inst::new(|c, i, m| {
        let value = c.pred(i.p[1]) ^ i.aux;
        c.set_pred(i.p[0], m, value);
        Flow::Next
    });
    (inst.p[1], inst.aux) = lower.pred_src(a)?;
    inst.p[0] = lower.pred_dst(d)?;
    Ok(inst)
}

/// The type of each of `n` parts of a value.
fn part(ty: Ty, n: usize) -> Result<Ty, String> {
    match (ty.bytes() as usize).checked_div(n).filter(|b| b * n == ty.bytes() as usize) {
        _ if n < 2 => Err("a vector has at least two elements".into()),
        Some(1) => Ok(Ty::B8),
        Some(2) => Ok(Ty::B16),
        Some(4) => Ok(Ty::B32),
        Some(8) => Ok(Ty::B64),
        _ => Err(format!("{ty:?} does not have {n} parts")),
    }
}

fn pack(ty: Ty, d: &Operand, parts: &[Operand], lower: &mut Lower<'_>) -> Result<Inst, String> {
    let element = part(ty, parts.len())?;
    let exec: Exec = match (ty.bytes(), element) {
        (4, Ty::B16) => map2!(|a: u16, b: u16| u32::from(a) | u32::from(b) << 16),
        (8, Ty::B32) => map2!(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        (2, _) => |c, i, m| pack_any::<u8, u16>(c, i, m),
        (4, _) => |c, i, m| pack_any::<u8, u32>(c, i, m),
        (8, Ty::B16) => |c, i, m| pack_any::<u16, u64>(c, i, m),
        (8, _) => |c, i, m| pack_any::<u8, u64>(c, i, m),
        (_, Ty::B64) => |c, i, m| pack_any::<u64, u128>(c, i, m),
        (_, Ty::B32) => |c, i, m| pack_any::<u32, u128>(c, i, m),
        (_, Ty::B16) => |c, i, m| pack_any::<u16, u128>(c, i, m),
        _ => |c, i, m| pack_any::<u8, u128>(c, i, m),
    };
    let slots: Vec<Slot> = parts.iter().map(|p| lower.src(p, element)).collect::<Result<_, _>>()?;
    let mut inst = Inst::new(exec);
    inst.r[0] = lower.dst(d, ty)?;
    inst.r[1] = slots[0];
    inst.r[2] = slots[1];
    inst.v = slots.into();
    Ok(inst)
}

fn unpack(ty: Ty, parts: &[Operand], a: &Operand, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let element = part(ty, parts.len())?;
    let exec: Exec = match (ty.bytes(), element) {
        (4, Ty::B16) => |c, i, m| unpack_any::<u32, u16>(c, i, m),
        (8, Ty::B32) => |c, i, m| unpack_any::<u64, u32>(c, i, m),
        (2, _) => |c, i, m| unpack_any::<u16, u8>(c, i, m),
        (4, _) => |c, i, m| unpack_any::<u32, u8>(c, i, m),
        (8, Ty::B16) => |c, i, m| unpack_any::<u64, u16>(c, i, m),
        (8, _) => |c, i, m| unpack_any::<u64, u8>(c, i, m),
        (_, Ty::B64) => |c, i, m| unpack_any::<u128, u64>(c, i, m),
        (_, Ty::B32) => |c, i, m| unpack_any::<u128, u32>(c, i, m),
        (_, Ty::B16) => |c, i, m| unpack_any::<u128, u16>(c, i, m),
        _ => |c, i, m| unpack_any::<u128, u8>(c, i, m),
    };
    let mut inst = Inst::new(exec);
    inst.r[1] = lower.src(a, ty)?;
    inst.v = parts.iter().map(|p| lower.dst(p, element)).collect::<Result<_, _>>()?;
    Ok(inst)
}

/// An unsigned integer with narrower and wider neighbours.
trait Word: Value + Default {
    const BITS: u32;
    fn wide(self) -> u128;
    fn cut(wide: u128) -> Self;
    fn shifted(self, bits: u32) -> Self;
    fn or_shifted(self, low: u128, bits: u32) -> Self;
}

macro_rules! word {
    ($($t:ty),*) => {$(
        impl Word for $t {
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn wide(self) -> u128 {
                self.into()
            }
            #[inline(always)]
            fn cut(wide: u128) -> $t {
                wide as $t
            }
            #[inline(always)]
            fn shifted(self, bits: u32) -> $t {
                self >> bits
            }
            #[inline(always)]
            fn or_shifted(self, low: u128, bits: u32) -> $t {
                self | (low as $t) << bits
            }
        }
    )*};
}
word!(u8, u16, u32, u64, u128);

#[inline(always)]
fn pack_any<E: Word, T: Word>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let mut out = [T::default(); LANES];
    for (n, &slot) in i.v.iter().enumerate() {
        let part = cx.get::<E>(slot);
        for lane in 0..LANES {
            out[lane] = out[lane].or_shifted(part[lane].wide(), n as u32 * E::BITS);
        }
    }
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

#[inline(always)]
fn unpack_any<T: Word, E: Word>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let a = cx.get::<T>(i.r[1]);
    for (n, &slot) in i.v.iter().enumerate() {
        let part: [E; LANES] = each(|l| E::cut(a[l].shifted(n as u32 * E::BITS).wide()));
        cx.put(slot, mask, &part);
    }
    Flow::Next
}

/// First bit and width of the clock that the register shows.
fn clock_part(name: &str) -> Option<(u32, u32)> {
    Some(match name {
        "%clock" | "%globaltimer_lo" => (0, 32),
        "%clock_hi" | "%globaltimer_hi" => (32, 32),
        "%clock64" | "%globaltimer" => (0, 64),
        _ => return None,
    })
}

/// Clocks count the instructions that the warp has executed, and the timer says the same in nanoseconds: both go on, are
/// the same from run to run, and measure nothing.
fn clock(ty: Ty, d: &Operand, name: &str, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let (first, bits) = clock_part(name).ok_or("not a clock")?;
    if ty.bytes() * 8 > bits {
        return Err(format!("{name} has {bits} bits"));
    }
    let exec: Exec = if ty.bytes() == 8 {
        |c, i, m| {
            let now = c.clock();
            c.put(i.r[0], m, &[now; LANES]);
            Flow::Next
        }
    } else {
        |c, i, m| {
            let now = (c.clock() >> i.imm) as u32;
            c.put(i.r[0], m, &[now; LANES]);
            Flow::Next
        }
    };
    let mut inst = Inst::new(exec);
    inst.r[0] = lower.dst(d, if ty.bytes() == 8 { Ty::U64 } else { Ty::U32 })?;
    inst.imm = i64::from(first);
    Ok(inst)
}
