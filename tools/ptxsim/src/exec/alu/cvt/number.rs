//! Any number, exactly, and its one rounding to a format.

use super::super::half_bits::{Bf16, Bits, F16, narrow_odd};
use crate::ptx::ast::Ty;

/// Rounding modes: of the result's last place, or to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in super::super) enum Round {
    Nearest = 1,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero: tf32 only.
    Away,
    IntNearest,
    IntZero,
    IntDown,
    IntUp,
}

impl Round {
    const ALL: [Round; 9] = [
        Round::Nearest,
        Round::Zero,
        Round::Down,
        Round::Up,
        Round::Away,
        Round::IntNearest,
        Round::IntZero,
        Round::IntDown,
        Round::IntUp,
    ];

    pub(super) fn parse(word: &str) -> Option<Round> {
        let words = ["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"];
        words.iter().position(|w| *w == word).map(|at| Round::ALL[at])
    }

    /// To an integer.
    pub(super) fn integral(self) -> bool {
        self as u8 >= Round::IntNearest as u8
    }
}

/// Modifiers of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Options {
    pub(super) round: Option<Round>,
    pub(super) ftz: bool,
    pub(super) sat: bool,
    pub(super) relu: bool,
    pub(super) satfinite: bool,
}

const TYPES: [Ty; 13] = [
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F16,
    Ty::Bf16,
    Ty::F32,
    Ty::F64,
    Ty::Tf32,
];

/// Types and options as the immediate of an instruction.
pub(super) fn encode(from: Ty, to: Ty, o: &Options) -> i64 {
    let index = |ty: Ty| TYPES.iter().position(|t| *t == ty).unwrap_or(0) as i64;
    let flags =
        [o.ftz, o.sat, o.relu, o.satfinite].iter().enumerate().fold(0, |f, (n, &b)| f | i64::from(b) << n);
    index(from) | index(to) << 8 | o.round.map_or(0, |r| r as i64) << 16 | flags << 24
}

/// What `encode` made.
pub(super) fn decode(bits: i64) -> (Ty, Ty, Options) {
    let byte = |n: u32| (bits >> (8 * n) & 0xff) as usize;
    let flag = |n: usize| byte(3) >> n & 1 != 0;
    let round = byte(2).checked_sub(1).map(|at| Round::ALL[at]);
    let options = Options { round, ftz: flag(0), sat: flag(1), relu: flag(2), satfinite: flag(3) };
    (TYPES[byte(0)], TYPES[byte(1)], options)
}

/// A source value.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

/// An f32 NaN as f64: quiet, its payload kept.
pub(super) fn nan64(x: f32) -> f64 {
    let bits = u64::from(x.to_bits());
    f64::from_bits((bits & 0x8000_0000) << 32 | 0x7ff8_0000_0000_0000 | (bits & 0x003f_ffff) << 29)
}

/// The conversion of one lane. Narrow integers come extended by their sign to 32 bits.
pub(in super::super) fn convert(x: u64, from: Ty, to: Ty, o: &Options) -> u64 {
    let number = match from {
        Ty::U8 => Number::Int(i128::from(x as u8)),
        Ty::U16 => Number::Int(i128::from(x as u16)),
        Ty::U32 => Number::Int(i128::from(x as u32)),
        Ty::U64 => Number::Int(i128::from(x)),
        Ty::S8 => Number::Int(i128::from(x as i8)),
        Ty::S16 => Number::Int(i128::from(x as i16)),
        Ty::S32 => Number::Int(i128::from(x as i32)),
        Ty::S64 => Number::Int(i128::from(x as i64)),
        Ty::F16 => Number::Float(f64::from(F16::widen(x as u16))),
        Ty::Bf16 => Number::Float(f64::from(Bf16::widen(x as u16))),
        Ty::F32 => Number::Float(f64::from(flush32(f32::from_bits(x as u32), o.ftz))),
        _ => Number::Float(f64::from_bits(x)),
    };
    match (number, to) {
        (Number::Int(v), Ty::F64) => to_float(round64(v, o.round), to, o),
        (Number::Int(v), Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::Tf32) => to_float(odd(v), to, o),
        (Number::Int(v), _) => to_int(v, to, o.sat),
        (Number::Float(v), Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64 | Ty::Tf32) => {
            let rounded = if o.round.is_some_and(Round::integral) { integral(v, o.round) } else { v };
            if to == Ty::F64 && v.is_nan() && from == Ty::F32 && !o.sat {
                return nan64(f32::from_bits(x as u32)).to_bits();
            }
            to_float(rounded, to, o)
        }
        (Number::Float(v), _) => {
            if v.is_nan() {
                // 0 unless 64 bits are concerned; then the lowest integer of the width.
                let wide = from == Ty::F64 || to.bytes() == 8;
                let lowest = 1u64 << (8 * to.bytes() - 1);
                return if wide { to_int_bits(lowest, to) } else { 0 };
            }
            // Casts to i128 saturate beyond every 64-bit type.
            to_int(integral(v, o.round) as i128, to, true)
        }
    }
}

/// Bits of an integer of the type, extended to 32 bits by its sign.
fn to_int_bits(bits: u64, to: Ty) -> u64 {
    match to {
        Ty::S8 => bits as i8 as i32 as u32 as u64,
        Ty::S16 => bits as i16 as i32 as u32 as u64,
        Ty::U8 => u64::from(bits as u8),
        Ty::U16 => u64::from(bits as u16),
        Ty::U32 | Ty::S32 => u64::from(bits as u32),
        _ => bits,
    }
}

fn to_int(v: i128, to: Ty, saturate: bool) -> u64 {
    let bits = 8 * to.bytes();
    let signed = matches!(to, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64);
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    to_int_bits(if saturate { v.clamp(low, high) } else { v } as u64, to)
}

fn integral(v: f64, round: Option<Round>) -> f64 {
    match round {
        Some(Round::IntNearest) => v.round_ties_even(),
        Some(Round::IntDown) => v.floor(),
        Some(Round::IntUp) => v.ceil(),
        _ => v.trunc(),
    }
}

/// An integer of at most 64 bits in f64, in a rounding mode. Such results are never subnormal or infinite: the neighbour
/// of the nearest one is one step of the bits away.
fn round64(v: i128, round: Option<Round>) -> f64 {
    let near = v as f64;
    let back = near as i128;
    match round {
        Some(Round::Zero) if back.abs() > v.abs() => f64::from_bits(near.to_bits() - 1),
        Some(Round::Down) if back > v => near.next_down(),
        Some(Round::Up) if back < v => near.next_up(),
        _ => near,
    }
}

/// An integer of at most 64 bits in f64, rounded to odd where it does not fit.
fn odd(v: i128) -> f64 {
    let near = v as f64;
    let back = near as i128;
    if back == v || near.to_bits() & 1 == 1 {
        near
    } else if back.abs() > v.abs() {
        f64::from_bits(near.to_bits() - 1)
    } else {
        f64::from_bits(near.to_bits() + 1)
    }
}

fn flush32(x: f32, ftz: bool) -> f32 {
    if ftz && x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// Rounds a number that is exact, or rounded to odd, to the format.
fn to_float(v: f64, to: Ty, o: &Options) -> u64 {
    let v = if o.sat { if v > 0.0 { v.min(1.0) } else { 0.0 } } else { v };
    let v = if o.relu && v <= 0.0 { 0.0 } else { v };
    match to {
        // A NaN keeps its payload and becomes quiet.
        Ty::F64 => v.to_bits() | u64::from(v.is_nan()) << 51,
        Ty::F32 => {
            let y = flush32(round32(v, o.round), o.ftz);
            u64::from(if y.is_nan() { 0x7fff_ffff } else { y.to_bits() })
        }
        Ty::Tf32 => u64::from(tf32(v, o).to_bits()),
        Ty::Bf16 => u64::from(round16::<Bf16>(v, o, 0x7f7f)),
        _ => u64::from(round16::<F16>(v, o, 0x7bff)),
    }
}

/// f64 to f32 in a rounding mode.
fn round32(v: f64, round: Option<Round>) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    match round {
        Some(Round::Zero) if back.abs() > v.abs() => f32::from_bits(near.to_bits() - 1),
        Some(Round::Down) if back > v => near.next_down(),
        Some(Round::Up) if back < v => near.next_up(),
        _ => near,
    }
}

/// f64 to a 16-bit format in a rounding mode; `largest` is its largest finite number.
fn round16<H: Bits>(v: f64, o: &Options, largest: u16) -> u16 {
    let odd = narrow_odd(v);
    let near = H::round(odd);
    if odd.is_nan() {
        return H::NAN;
    }
    let back = H::widen(near);
    let stepped = match o.round {
        Some(Round::Zero) if back.abs() > odd.abs() => near - 1,
        Some(Round::Down) if back > odd => step(near, false),
        Some(Round::Up) if back < odd => step(near, true),
        _ => near,
    };
    if o.satfinite && stepped & 0x7fff > largest { stepped & 0x8000 | largest } else { stepped }
}

/// The next number up or down, as bits with a sign.
fn step(x: u16, up: bool) -> u16 {
    match (x & 0x8000 != 0, up) {
        (false, true) | (true, false) => x + 1,
        (false, false) if x == 0 => 0x8001,
        (true, true) if x == 0x8000 => 0x0001,
        _ => x - 1,
    }
}

/// f32 to tf32, ties away from zero; the 13 low bits are zero.
#[inline(always)]
pub(super) fn tf32_away(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x1000) & !0x1fff;
    let special = bits & 0x7f80_0000 == 0x7f80_0000;
    let kept = if x.is_nan() { 0x7fff_ffff } else { bits };
    f32::from_bits(if special { kept } else { rounded })
}

fn tf32(v: f64, o: &Options) -> f32 {
    let x = v as f32; // sources are f32: exact
    if x.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    let bits = x.to_bits();
    let y = match o.round {
        Some(Round::Away) => tf32_away(x),
        Some(Round::Nearest) if x.is_finite() => f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff),
        _ => f32::from_bits(bits & !0x1fff),
    };
    let largest = f32::from_bits(0x7f7f_e000);
    if o.satfinite && y.is_infinite() { largest.copysign(y) } else { y }
}
