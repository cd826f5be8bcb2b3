//! Conversions: `cvt` between all types, packing forms included.
//!
//! The forms that kernels execute often are maps over lanes; all others go lane by lane through a number that holds every
//! source exactly (`Number`) and one rounding to the result's format.

use super::half_bits::{Bf16, Bits, F16};
use super::{Form, map2, of_class, with_operands};
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Exec, Flow, Inst};
use crate::exec::lanes::{LANES, each};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

mod fast;
mod number;
mod small;

use number::{Options, Round, convert};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    of_class(Class::Convert, instruction(i, lower))
}

fn instruction(i: &ast::Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let mut form = Form::new(i);
    if form.flag("pack") {
        return small::pack(i, lower, form);
    }
    if form.mods.iter().any(|m| m.starts_with("e4m3") || m.starts_with("e5m2")) {
        return small::eight_bit(i, lower, form);
    }
    let from = form.ty()?;
    let to = form.ty()?;
    let options = Options {
        round: match form.one_of(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]) {
            None => None,
            Some(word) => Round::parse(word),
        },
        ftz: form.flag("ftz"),
        sat: form.flag("sat"),
        relu: form.flag("relu"),
        satfinite: form.flag("satfinite"),
    };
    form.end()?;
    check(from, to, &options)?;
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        return pair(i, lower, to, &options);
    }
    let result = if to == Ty::Tf32 { Ty::B32 } else { to };
    if let Some(exec) = fast::pick(from, to, &options) {
        return with_operands(i, lower, exec, result, &[from]);
    }
    let mut inst = with_operands(i, lower, slow, result, &[from])?;
    inst.imm = number::encode(from, to, &options);
    Ok(inst)
}

fn float(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64 | Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2)
}

fn integer(ty: Ty) -> bool {
    matches!(ty, Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64 | Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
}

/// Mantissa bits, to see which conversions lose some.
fn precision(ty: Ty) -> u32 {
    match ty {
        Ty::F16 | Ty::F16x2 | Ty::Tf32 => 11,
        Ty::Bf16 | Ty::Bf16x2 => 8,
        Ty::F32 => 24,
        _ => 53,
    }
}

/// Refuses what the manual does not have.
fn check(from: Ty, to: Ty, o: &Options) -> Result<(), String> {
    if !(float(from) || integer(from))
        || !(float(to) || integer(to))
        || matches!(from, Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32)
    {
        return Err(format!("there is no conversion from {from:?} to {to:?}"));
    }
    let integral = o.round.is_some_and(Round::integral);
    match (float(from), float(to)) {
        (true, false) if !integral => Err("a conversion to an integer needs .rni, .rzi, .rmi or .rpi".into()),
        (false, true) if integral || o.round.is_none() => {
            Err("a conversion from an integer needs .rn, .rz, .rm or .rp".into())
        }
        (false, false) if o.round.is_some() => Err("a conversion between integers takes no rounding".into()),
        (true, true) if precision(to) < precision(from) && (integral || o.round.is_none()) => {
            Err("a conversion that loses bits needs a rounding mode".into())
        }
        _ if (o.relu || o.satfinite)
            && !matches!(to, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32) =>
        {
            Err(".relu and .satfinite belong to results of 16 bits and tf32".into())
        }
        _ if (o.round == Some(Round::Away)) != (to == Ty::Tf32 && o.round == Some(Round::Away)) => {
            Err(".rna belongs to tf32".into())
        }
        _ => Ok(()),
    }
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a to the upper half, b to the lower.
fn pair(i: &ast::Inst, lower: &mut Lower<'_>, to: Ty, o: &Options) -> Result<Inst, String> {
    let bf = to == Ty::Bf16x2;
    let nearest = *o == Options { round: Some(Round::Nearest), ..Options::default() };
    if nearest {
        let exec: Exec = if bf {
            map2!(|a: f32, b: f32| u32::from(Bf16::round(a)) << 16 | u32::from(Bf16::round(b)))
        } else {
            map2!(|a: f32, b: f32| u32::from(F16::round(a)) << 16 | u32::from(F16::round(b)))
        };
        return with_operands(i, lower, exec, to, &[Ty::F32, Ty::F32]);
    }
    let mut inst = with_operands(i, lower, slow_pair, to, &[Ty::F32, Ty::F32])?;
    inst.imm = number::encode(Ty::F32, if bf { Ty::Bf16 } else { Ty::F16 }, o);
    Ok(inst)
}

fn slow_pair(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (from, to, options) = number::decode(i.imm);
    let high = cx.get::<u32>(i.r[1]);
    let low = cx.get::<u32>(i.r[2]);
    let one = |x: u32| convert(u64::from(x), from, to, &options) as u32 & 0xffff;
    let out: [u32; LANES] = each(|l| one(high[l]) << 16 | one(low[l]));
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

fn slow(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (from, to, options) = number::decode(i.imm);
    let source: [u64; LANES] =
        if from.bytes() == 8 { cx.get::<u64>(i.r[1]) } else { cx.get::<u32>(i.r[1]).map(u64::from) };
    let out = source.map(|x| convert(x, from, to, &options));
    if to.bytes() == 8 {
        cx.put(i.r[0], mask, &out);
    } else {
        cx.put(i.r[0], mask, &out.map(|x| x as u32));
    }
    Flow::Next
}
