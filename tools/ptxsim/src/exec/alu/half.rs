//! f16 and bf16, single and in pairs: add, sub, mul, fma, neg, abs, min, max, ex2.approx, tanh.approx.
//!
//! Results are rounded once, to nearest even. Sums of f16 and of bf16 are computed in f32, whose 24 bits are enough for the
//! second rounding to do no harm (2 p + 2, Figueroa 1995); `half_bits` says how products and fused operations are made.
//! NaN results are canonical (0x7fff).

use super::half_bits::{Bf16, Bits, F16, narrow_odd};
use super::{Form, approx, map1, map2, map3, of_class, with_operands};
use crate::exec::inst::{Class, Exec, Inst};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let class = if matches!(i.opcode.as_str(), "ex2" | "tanh") { Class::Special } else { Class::Half };
    of_class(class, instruction(i, lower))
}

fn instruction(i: &ast::Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let mut form = Form::new(i);
    let ty = form.ty()?;
    let (bf, x2) = match ty {
        Ty::F16 => (false, false),
        Ty::F16x2 => (false, true),
        Ty::Bf16 => (true, false),
        Ty::Bf16x2 => (true, true),
        other => return Err(format!("the type {other:?} does not fit this instruction")),
    };
    let approximate = matches!(i.opcode.as_str(), "ex2" | "tanh");
    if approximate && !form.flag("approx") {
        return Err("only .approx exists for this type".into());
    }
    let fused = i.opcode == "fma";
    if matches!(i.opcode.as_str(), "add" | "sub" | "mul" | "fma") && !form.flag("rn") && fused {
        return Err(".rn is needed".into());
    }
    let flags = Flags {
        ftz: form.flag("ftz"),
        nan: form.flag("NaN"),
        xorsign: form.flag("xorsign") && form.flag("abs"),
        clamp: match form.one_of(&["sat", "relu"]) {
            Some("sat") => Clamp::Sat,
            Some(_) => Clamp::Relu,
            None => Clamp::None,
        },
    };
    form.end()?;
    if bf && (flags.ftz && !approximate || flags.clamp == Clamp::Sat) {
        return Err("bf16 has no .ftz and no .sat".into());
    }
    if flags.clamp == Clamp::Relu && !fused {
        return Err(".relu belongs to fma".into());
    }
    let exec = if bf { choose::<Bf16>(&i.opcode, x2, flags) } else { choose::<F16>(&i.opcode, x2, flags) };
    let exec = exec.ok_or("this form is not implemented")?;
    let sources = match i.opcode.as_str() {
        "neg" | "abs" | "ex2" | "tanh" => 1,
        "fma" => 3,
        _ => 2,
    };
    with_operands(i, lower, exec, ty, &[ty; 3][..sources])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clamp {
    None,
    Sat,
    Relu,
}

#[derive(Clone, Copy)]
struct Flags {
    ftz: bool,
    nan: bool,
    xorsign: bool,
    clamp: Clamp,
}

/// What is done to results: `CLAMP` 0 nothing, 1 `.sat`, 2 `.relu`.
#[inline(always)]
fn finish<H: Bits, const FTZ: bool, const CLAMP: u8>(x: u16) -> u16 {
    let x = flush::<H, FTZ>(x);
    let negative = x & 0x8000 != 0;
    let nan = is_nan::<H>(x);
    match CLAMP {
        1 => {
            let low = if negative || nan { 0 } else { x };
            if low > H::ONE { H::ONE } else { low }
        }
        2 => {
            let low = if negative { 0 } else { x };
            if nan { H::NAN } else { low }
        }
        _ => x,
    }
}

#[inline(always)]
fn flush<H: Bits, const FTZ: bool>(x: u16) -> u16 {
    if FTZ && x & 0x7fff < H::NORMAL { x & 0x8000 } else { x }
}

#[inline(always)]
fn is_nan<H: Bits>(x: u16) -> bool {
    // The exponent's top value follows that of 1.0 and all above it: NORMAL is the exponent's unit.
    let infinity = 0x7fff & !(H::NORMAL - 1);
    x & 0x7fff > infinity
}

#[inline(always)]
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// One function for single values, one for pairs.
macro_rules! both {
    (1, $x2:expr, $f:expr) => {
        if $x2 { map1!(|a: u32| pair($f(a as u16), $f((a >> 16) as u16))) } else { map1!(|a: u16| $f(a)) }
    };
    (2, $x2:expr, $f:expr) => {
        if $x2 {
            map2!(|a: u32, b: u32| pair($f(a as u16, b as u16), $f((a >> 16) as u16, (b >> 16) as u16)))
        } else {
            map2!(|a: u16, b: u16| $f(a, b))
        }
    };
    (3, $x2:expr, $f:expr) => {
        if $x2 {
            map3!(|a: u32, b: u32, c: u32| pair(
                $f(a as u16, b as u16, c as u16),
                $f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)
            ))
        } else {
            map3!(|a: u16, b: u16, c: u16| $f(a, b, c))
        }
    };
}

fn choose<H: Bits>(opcode: &str, x2: bool, flags: Flags) -> Option<Exec> {
    Some(match (flags.ftz, flags.clamp) {
        (false, Clamp::None) => arithmetic::<H, false, 0>(opcode, x2, flags)?,
        (true, Clamp::None) => arithmetic::<H, true, 0>(opcode, x2, flags)?,
        (false, Clamp::Sat) => arithmetic::<H, false, 1>(opcode, x2, flags)?,
        (true, Clamp::Sat) => arithmetic::<H, true, 1>(opcode, x2, flags)?,
        (false, Clamp::Relu) => arithmetic::<H, false, 2>(opcode, x2, flags)?,
        (true, Clamp::Relu) => arithmetic::<H, true, 2>(opcode, x2, flags)?,
    })
}

fn arithmetic<H: Bits, const FTZ: bool, const CLAMP: u8>(
    opcode: &str,
    x2: bool,
    flags: Flags,
) -> Option<Exec> {
    let plain = !flags.nan && !flags.xorsign;
    Some(match opcode {
        "add" if plain => both!(2, x2, add::<H, FTZ, CLAMP>),
        "sub" if plain => both!(2, x2, sub::<H, FTZ, CLAMP>),
        "mul" if plain => both!(2, x2, mul::<H, FTZ, CLAMP>),
        "fma" if plain => both!(3, x2, fma::<H, FTZ, CLAMP>),
        "neg" if plain && CLAMP == 0 => both!(1, x2, |a| flush::<H, FTZ>(a) ^ 0x8000),
        "abs" if plain && CLAMP == 0 => both!(1, x2, |a| flush::<H, FTZ>(a) & 0x7fff),
        "ex2" if plain && CLAMP == 0 => both!(1, x2, ex2::<H, FTZ>),
        "tanh" if plain && CLAMP == 0 => both!(1, x2, tanh::<H>),
        "min" | "max" if CLAMP == 0 => {
            let max = opcode == "max";
            match (max, flags.nan, flags.xorsign) {
                (false, false, false) => both!(2, x2, extreme::<H, FTZ, false, false, false>),
                (false, true, false) => both!(2, x2, extreme::<H, FTZ, false, true, false>),
                (false, false, true) => both!(2, x2, extreme::<H, FTZ, false, false, true>),
                (false, true, true) => both!(2, x2, extreme::<H, FTZ, false, true, true>),
                (true, false, false) => both!(2, x2, extreme::<H, FTZ, true, false, false>),
                (true, true, false) => both!(2, x2, extreme::<H, FTZ, true, true, false>),
                (true, false, true) => both!(2, x2, extreme::<H, FTZ, true, false, true>),
                (true, true, true) => both!(2, x2, extreme::<H, FTZ, true, true, true>),
            }
        }
        _ => return None,
    })
}

#[inline(always)]
fn add<H: Bits, const FTZ: bool, const CLAMP: u8>(a: u16, b: u16) -> u16 {
    let (a, b) = (flush::<H, FTZ>(a), flush::<H, FTZ>(b));
    finish::<H, FTZ, CLAMP>(H::round(H::widen(a) + H::widen(b)))
}

#[inline(always)]
fn sub<H: Bits, const FTZ: bool, const CLAMP: u8>(a: u16, b: u16) -> u16 {
    let (a, b) = (flush::<H, FTZ>(a), flush::<H, FTZ>(b));
    finish::<H, FTZ, CLAMP>(H::round(H::widen(a) - H::widen(b)))
}

#[inline(always)]
fn mul<H: Bits, const FTZ: bool, const CLAMP: u8>(a: u16, b: u16) -> u16 {
    finish::<H, FTZ, CLAMP>(H::mul(flush::<H, FTZ>(a), flush::<H, FTZ>(b)))
}

#[inline(always)]
fn fma<H: Bits, const FTZ: bool, const CLAMP: u8>(a: u16, b: u16, c: u16) -> u16 {
    let [a, b, c] = [a, b, c].map(flush::<H, FTZ>);
    finish::<H, FTZ, CLAMP>(H::fma(a, b, c))
}

/// `min` and `max`: a NaN gives way to a number unless `NAN`; -0 is less than +0; `XOR`: of the magnitudes, with the
/// product of the signs.
#[inline(always)]
fn extreme<H: Bits, const FTZ: bool, const MAX: bool, const NAN: bool, const XOR: bool>(
    a: u16,
    b: u16,
) -> u16 {
    let (a, b) = (flush::<H, FTZ>(a), flush::<H, FTZ>(b));
    let sign = (a ^ b) & 0x8000;
    let (x, y) = if XOR { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    // Sign and magnitude as a number that compares like the value.
    let key = |v: u16| if v & 0x8000 != 0 { -i32::from(v & 0x7fff) - 1 } else { i32::from(v) };
    let first = if MAX { key(x) >= key(y) } else { key(x) <= key(y) };
    let chosen = if first { x } else { y };
    let (nan_a, nan_b) = (is_nan::<H>(a), is_nan::<H>(b));
    let chosen = if nan_a { y } else { chosen };
    let chosen = if nan_b { x } else { chosen };
    let chosen = if XOR { chosen | sign } else { chosen };
    if nan_a & nan_b | (nan_a | nan_b) & NAN { H::NAN } else { chosen }
}

#[inline(always)]
fn ex2<H: Bits, const FTZ: bool>(a: u16) -> u16 {
    let x = f64::from(H::widen(flush::<H, FTZ>(a)));
    finish::<H, FTZ, 0>(H::round(narrow_odd(approx::ex2(x))))
}

#[inline(always)]
fn tanh<H: Bits>(a: u16) -> u16 {
    H::round(narrow_odd(approx::tanh(f64::from(H::widen(a)))))
}
