//! Arithmetic of `.f32` and `.f64`: what is rounded exactly. Approximations are in `approx`.

use super::super::inst::{Class, Exec};
use super::super::lower::{Decoded, Lower};
use super::fp::{self, RM, RN, RP, RZ, canonical, flush, input, nan_of, output, sqrt_64};
use super::{Form, map1, map2, map3, of_class, soft, with_operands};
use crate::ptx::ast::{self, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut form = Form::new(i);
    let ty = form.ty()?;
    let class = match ty {
        Ty::F32 => Class::F32,
        Ty::F64 => Class::F64,
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    let sources = match i.opcode.as_str() {
        "fma" | "mad" => 3,
        "abs" | "neg" | "rcp" | "sqrt" => 1,
        _ => 2,
    };
    let exec = match (i.opcode.as_str(), ty) {
        ("copysign", Ty::F32) => map2!(|a: f32, b: f32| b.copysign(a)),
        ("copysign", _) => map2!(|a: f64, b: f64| b.copysign(a)),
        ("abs" | "neg", _) => sign(i.opcode == "abs", ty, &mut form)?,
        ("min" | "max", Ty::F32) => min_max(i.opcode == "min", &mut form),
        ("min", _) => map2!(|a: f64, b: f64| extreme_64::<true>(a, b)),
        ("max", _) => map2!(|a: f64, b: f64| extreme_64::<false>(a, b)),
        (opcode, Ty::F32) => single(opcode, &mut form)?,
        (opcode, _) => double(opcode, &mut form)?,
    };
    form.end()?;
    of_class(class, with_operands(i, lower, exec, ty, &[ty; 3][..sources]))
}

/// The rounding mode, or the default.
fn rounding(form: &mut Form<'_>, default: Option<u8>) -> Result<u8, String> {
    match form.one_of(&["rn", "rz", "rm", "rp"]) {
        Some("rn") => Ok(RN),
        Some("rz") => Ok(RZ),
        Some("rm") => Ok(RM),
        Some(_) => Ok(RP),
        None => default.ok_or_else(|| "a rounding mode is needed".into()),
    }
}

/// The function of a rounding mode, with or without `.ftz` and `.sat`.
macro_rules! by_mode {
    ($r:expr, $ftz:expr, $sat:expr, |$($x:ident),*| $f:ident, $map:ident) => {{
        macro_rules! one {
            ($mode:expr, $flush:expr, $saturate:expr) => {
                $map!(|$($x: f32),*| output::<$flush, $saturate>(fp::$f::<$mode>($(input::<$flush>($x)),*)))
            };
        }
        macro_rules! modes {
            ($flush:expr, $saturate:expr) => {
                match $r {
                    RN => one!(RN, $flush, $saturate),
                    RZ => one!(RZ, $flush, $saturate),
                    RM => one!(RM, $flush, $saturate),
                    _ => one!(RP, $flush, $saturate),
                }
            };
        }
        match ($ftz, $sat) {
            (false, false) => modes!(false, false),
            (true, false) => modes!(true, false),
            (false, true) => modes!(false, true),
            (true, true) => modes!(true, true),
        }
    }};
}

fn single(opcode: &str, form: &mut Form<'_>) -> Result<Exec, String> {
    let ftz = form.flag("ftz");
    if let "div" | "rcp" | "sqrt" = opcode
        && let Some(kind) = form.one_of(&["approx", "full"])
    {
        return approximate(opcode, kind, ftz);
    }
    let sat = matches!(opcode, "add" | "sub" | "mul" | "fma" | "mad") && form.flag("sat");
    let default = matches!(opcode, "add" | "sub" | "mul").then_some(RN);
    let r = rounding(form, default)?;
    Ok(match opcode {
        "add" => by_mode!(r, ftz, sat, |a, b| add, map2),
        "sub" => by_mode!(r, ftz, sat, |a, b| sub, map2),
        "mul" => by_mode!(r, ftz, sat, |a, b| mul, map2),
        "fma" | "mad" => by_mode!(r, ftz, sat, |a, b, c| fma, map3),
        "div" => by_mode!(r, ftz, false, |a, b| div, map2),
        "rcp" => by_mode!(r, ftz, false, |a| rcp, map1),
        "sqrt" => by_mode!(r, ftz, false, |a| sqrt, map1),
        _ => return Err("this form is not known".into()),
    })
}

/// Rounded correctly, which is within the bounds that the manual gives.
fn approximate(opcode: &str, kind: &str, ftz: bool) -> Result<Exec, String> {
    Ok(match (opcode, kind) {
        ("div", "approx") => by_mode!(RN, ftz, false, |a, b| div_approx, map2),
        ("div", _) => by_mode!(RN, ftz, false, |a, b| div, map2),
        ("rcp", "approx") => by_mode!(RN, ftz, false, |a| rcp, map1),
        ("sqrt", "approx") => by_mode!(RN, ftz, false, |a| sqrt, map1),
        _ => return Err(format!(".{kind} is not known here")),
    })
}

fn double(opcode: &str, form: &mut Form<'_>) -> Result<Exec, String> {
    if opcode == "rcp" && form.flag("approx") {
        return if form.flag("ftz") { Ok(map1!(reciprocal_high)) } else { Err(".ftz is needed".into()) };
    }
    let default = matches!(opcode, "add" | "sub" | "mul").then_some(RN);
    macro_rules! directed {
        ($r:expr) => {
            match opcode {
                "add" => map2!(|a: f64, b: f64| nan_of(soft::fma::<$r>(a, 1.0, b), [a, b])),
                "sub" => map2!(|a: f64, b: f64| nan_of(soft::fma::<$r>(a, 1.0, -b), [a, b])),
                // The zero with the sign of the product changes nothing.
                "mul" => map2!(|a: f64, b: f64| nan_of(
                    soft::fma::<$r>(a, b, 0f64.copysign(a) * b.signum()),
                    [a, b]
                )),
                "fma" | "mad" => map3!(|a: f64, b: f64, c: f64| nan_of(soft::fma::<$r>(a, b, c), [a, b, c])),
                "div" => map2!(|a: f64, b: f64| nan_of(soft::div::<$r>(a, b), [a, b])),
                "rcp" => map1!(|a: f64| nan_of(soft::div::<$r>(1.0, a), [a])),
                "sqrt" => map1!(|a: f64| if a < 0.0 { sqrt_64(a) } else { nan_of(soft::sqrt::<$r>(a), [a]) }),
                _ => return Err("this form is not known".into()),
            }
        };
    }
    Ok(match rounding(form, default)? {
        RZ => directed!(RZ),
        RM => directed!(RM),
        RP => directed!(RP),
        _ => match opcode {
            "add" => map2!(|a: f64, b: f64| nan_of(a + b, [a, b])),
            "sub" => map2!(|a: f64, b: f64| nan_of(a - b, [a, b])),
            "mul" => map2!(|a: f64, b: f64| nan_of(a * b, [a, b])),
            "fma" | "mad" => map3!(|a: f64, b: f64, c: f64| nan_of(a.mul_add(b, c), [a, b, c])),
            "div" => map2!(|a: f64, b: f64| nan_of(a / b, [a, b])),
            "rcp" => map1!(|a: f64| nan_of(1.0 / a, [a])),
            "sqrt" => map1!(sqrt_64),
            _ => return Err("this form is not known".into()),
        },
    })
}

/// `rcp.approx.ftz.f64`: the upper half of the reciprocal of the source's upper half, the lower 32 bits zero; subnormal
/// sources and results are flushed. A NaN whose payload is in the lower half alone counts as an infinity.
#[inline(always)]
fn reciprocal_high(a: f64) -> f64 {
    let high = |x: f64| f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000);
    let flushed = |x: f64| if x.is_subnormal() { 0f64.copysign(x) } else { x };
    let y = high(flushed(1.0 / flushed(high(a))));
    if y.is_nan() { f64::from_bits(0x7fff_ffff_0000_0000) } else { y }
}

fn sign(abs: bool, ty: Ty, form: &mut Form<'_>) -> Result<Exec, String> {
    let ftz = ty == Ty::F32 && form.flag("ftz");
    Ok(match (abs, ty, ftz) {
        (true, Ty::F32, false) => map1!(|a: f32| canonical(a.abs())),
        (true, Ty::F32, true) => map1!(|a: f32| canonical(flush(a).abs())),
        (false, Ty::F32, false) => map1!(|a: f32| canonical(-a)),
        (false, Ty::F32, true) => map1!(|a: f32| canonical(-flush(a))),
        (true, ..) => map1!(|a: f64| a.abs()),
        (false, ..) => map1!(|a: f64| -a),
    })
}

/// The smaller (or larger) of two, -0 below +0. A NaN gives way to a number unless `NAN` says that it wins.
#[inline(always)]
pub(super) fn extreme<const MIN: bool, const NAN: bool>(a: f32, b: f32) -> f32 {
    let first = if MIN { a < b } else { a > b };
    let x = if first { a } else { b };
    // Equal numbers have equal bits, but for zeros.
    let (p, q) = (a.to_bits(), b.to_bits());
    let x = if a == b { f32::from_bits(if MIN { p | q } else { p & q }) } else { x };
    let x = if b.is_nan() { if NAN { b } else { a } } else { x };
    canonical(if NAN && a.is_nan() { a } else { x })
}

#[inline(always)]
fn extreme_64<const MIN: bool>(a: f64, b: f64) -> f64 {
    let first = if MIN { a < b } else { a > b };
    let x = if first { a } else { b };
    let (p, q) = (a.to_bits(), b.to_bits());
    let x = if a == b { f64::from_bits(if MIN { p | q } else { p & q }) } else { x };
    let x = if b.is_nan() { a } else { x };
    nan_of(x, [a, b])
}

/// The extreme of the magnitudes, negative if just one of the two is.
#[inline(always)]
pub(super) fn extreme_xorsign<const MIN: bool, const NAN: bool>(a: f32, b: f32) -> f32 {
    let x = extreme::<MIN, NAN>(a.abs(), b.abs());
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    canonical(f32::from_bits(x.to_bits() | sign))
}

fn min_max(min: bool, form: &mut Form<'_>) -> Exec {
    let ftz = form.flag("ftz");
    let nan = form.flag("NaN");
    // `.xorsign.abs`: one is not there without the other.
    let xorsign = form.mods.ends_with(&["xorsign", "abs"]);
    if xorsign {
        form.mods.truncate(form.mods.len() - 2);
    }
    macro_rules! pick {
        ($min:expr, $nan:expr) => {
            match (ftz, xorsign) {
                (false, false) => map2!(|a: f32, b: f32| extreme::<$min, $nan>(a, b)),
                (true, false) => map2!(|a: f32, b: f32| extreme::<$min, $nan>(flush(a), flush(b))),
                (false, true) => map2!(|a: f32, b: f32| extreme_xorsign::<$min, $nan>(a, b)),
                (true, true) => map2!(|a: f32, b: f32| extreme_xorsign::<$min, $nan>(flush(a), flush(b))),
            }
        };
    }
    match (min, nan) {
        (true, false) => pick!(true, false),
        (true, true) => pick!(true, true),
        (false, false) => pick!(false, false),
        (false, true) => pick!(false, true),
    }
}
