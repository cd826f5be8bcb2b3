//! The forms worth a loop of their own: maps over lanes without branches.

use super::super::fp::{canonical, flush, saturate};
use super::super::half_bits::{Bf16, Bits, F16, narrow_odd};
use super::super::map1;
use super::number::{Options, Round, nan64, tf32_away};
use super::{float, integer};
use crate::exec::inst::Exec;
use crate::ptx::ast::Ty;

/// The function of a form that has one.
pub(super) fn pick(from: Ty, to: Ty, o: &Options) -> Option<Exec> {
    if o.relu || o.satfinite || o.sat && float(from) != float(to) {
        return None;
    }
    match (integer(from), integer(to), o.round) {
        (true, true, None) if o.sat => saturated(from, to),
        (true, true, None) => integers(from, to),
        (true, false, Some(Round::Nearest)) if !o.ftz => from_integer(from, to),
        (false, true, Some(round)) => to_integer(from, to, round, o.ftz),
        (false, false, None) if o.sat && from == Ty::F32 && to == Ty::F32 => {
            Some(if o.ftz { map1!(|x: f32| saturate(flush(x))) } else { map1!(saturate) })
        }
        (false, false, round) if !o.sat => floats(from, to, round, o.ftz),
        _ => None,
    }
}

/// Integers: the source is read in its own width, and the result is extended to its register by its sign.
fn integers(from: Ty, to: Ty) -> Option<Exec> {
    macro_rules! to {
        ($from:ty) => {
            match to {
                Ty::U8 => map1!(|x: $from| u32::from(x as u8)),
                Ty::U16 => map1!(|x: $from| u32::from(x as u16)),
                Ty::U32 => map1!(|x: $from| x as u32),
                Ty::U64 => map1!(|x: $from| x as u64),
                Ty::S8 => map1!(|x: $from| i32::from(x as i8)),
                Ty::S16 => map1!(|x: $from| i32::from(x as i16)),
                Ty::S32 => map1!(|x: $from| x as i32),
                Ty::S64 => map1!(|x: $from| x as i64),
                _ => return None,
            }
        };
    }
    Some(match from {
        Ty::U8 => to!(u8),
        Ty::U16 => to!(u16),
        Ty::U32 => to!(u32),
        Ty::U64 => to!(u64),
        Ty::S8 => to!(i8),
        Ty::S16 => to!(i16),
        Ty::S32 => to!(i32),
        Ty::S64 => to!(i64),
        _ => return None,
    })
}

/// `.sat` of 32-bit sources to fewer bits.
fn saturated(from: Ty, to: Ty) -> Option<Exec> {
    Some(match (from, to) {
        (Ty::S32, Ty::U8) => map1!(|x: i32| x.clamp(0, 0xff)),
        (Ty::S32, Ty::S8) => map1!(|x: i32| x.clamp(-0x80, 0x7f)),
        (Ty::S32, Ty::U16) => map1!(|x: i32| x.clamp(0, 0xffff)),
        (Ty::S32, Ty::S16) => map1!(|x: i32| x.clamp(-0x8000, 0x7fff)),
        (Ty::U32, Ty::U8) => map1!(|x: u32| x.min(0xff)),
        (Ty::U32, Ty::S8) => map1!(|x: u32| x.min(0x7f)),
        (Ty::U32, Ty::U16) => map1!(|x: u32| x.min(0xffff)),
        (Ty::U32, Ty::S16) => map1!(|x: u32| x.min(0x7fff)),
        _ => return None,
    })
}

/// To nearest: Rust's casts round that way, and integers of 32 bits are exact in f64.
fn from_integer(from: Ty, to: Ty) -> Option<Exec> {
    macro_rules! of {
        ($to:ty) => {
            match from {
                Ty::U8 => map1!(|x: u8| x as $to),
                Ty::U16 => map1!(|x: u16| x as $to),
                Ty::U32 => map1!(|x: u32| x as $to),
                Ty::U64 => map1!(|x: u64| x as $to),
                Ty::S8 => map1!(|x: i8| x as $to),
                Ty::S16 => map1!(|x: i16| x as $to),
                Ty::S32 => map1!(|x: i32| x as $to),
                Ty::S64 => map1!(|x: i64| x as $to),
                _ => return None,
            }
        };
    }
    macro_rules! of_16 {
        ($to:ty) => {
            match from {
                Ty::U8 => map1!(|x: u8| <$to>::round(f32::from(x))),
                Ty::U16 => map1!(|x: u16| <$to>::round(f32::from(x))),
                Ty::U32 => map1!(|x: u32| <$to>::round(narrow_odd(f64::from(x)))),
                Ty::S8 => map1!(|x: i8| <$to>::round(f32::from(x))),
                Ty::S16 => map1!(|x: i16| <$to>::round(f32::from(x))),
                Ty::S32 => map1!(|x: i32| <$to>::round(narrow_odd(f64::from(x)))),
                _ => return None,
            }
        };
    }
    Some(match to {
        Ty::F32 => of!(f32),
        Ty::F64 => of!(f64),
        Ty::F16 => of_16!(F16),
        Ty::Bf16 => of_16!(Bf16),
        _ => return None,
    })
}

/// 2^52 + 2^51: adding it leaves an integer below 2^51 in the low bits.
const INTEGER: f64 = 6_755_399_441_055_744.0;

/// Clamps an integral number to bounds of at most 32 bits, as bits; `nan` is the result for NaN.
#[inline(always)]
fn clamped(x: f64, low: f64, high: f64, nan: u32) -> u32 {
    let y = if x > low { x } else { low };
    let y = if y < high { y } else { high };
    let bits = (y + INTEGER).to_bits() as u32;
    if x.is_nan() { nan } else { bits }
}

/// Out of range is clamped. NaN is 0, or the highest bit alone where 64 bits are concerned.
fn to_integer(from: Ty, to: Ty, round: Round, ftz: bool) -> Option<Exec> {
    macro_rules! by {
        ($t:ty, $f:expr) => {
            match round {
                Round::IntNearest => map1!(|x: $t| $f(x, |y| y.round_ties_even())),
                Round::IntZero => map1!(|x: $t| $f(x, |y| y.trunc())),
                Round::IntDown => map1!(|x: $t| $f(x, |y| y.floor())),
                Round::IntUp => map1!(|x: $t| $f(x, |y| y.ceil())),
                _ => return None,
            }
        };
    }
    macro_rules! from_single {
        ($flush:expr, $low:expr, $high:expr) => {
            by!(f32, |x: f32, round: fn(f32) -> f32| clamped(f64::from(round($flush(x))), $low, $high, 0))
        };
    }
    macro_rules! narrow {
        ($low:expr, $high:expr, $nan:expr) => {
            match (from, ftz) {
                (Ty::F32, false) => from_single!(|x: f32| x, $low, $high),
                (Ty::F32, true) => from_single!(flush, $low, $high),
                (Ty::F64, false) => {
                    by!(f64, |x: f64, round: fn(f64) -> f64| clamped(round(x), $low, $high, $nan))
                }
                _ => return None,
            }
        };
    }
    macro_rules! wide {
        ($t:ty) => {
            match (from, ftz) {
                (Ty::F32, false) => by!(f32, |x: f32, round: fn(f32) -> f32| {
                    if x.is_nan() { (1u64 << 63) as $t } else { round(x) as $t }
                }),
                (Ty::F32, true) => by!(f32, |x: f32, round: fn(f32) -> f32| {
                    if x.is_nan() { (1u64 << 63) as $t } else { round(flush(x)) as $t }
                }),
                (Ty::F64, false) => by!(f64, |x: f64, round: fn(f64) -> f64| {
                    if x.is_nan() { (1u64 << 63) as $t } else { round(x) as $t }
                }),
                _ => return None,
            }
        };
    }
    Some(match to {
        Ty::U8 => narrow!(0.0, 255.0, 0x80),
        Ty::S8 => narrow!(-128.0, 127.0, i32::from(i8::MIN) as u32),
        Ty::U16 => narrow!(0.0, 65_535.0, 0x8000),
        Ty::S16 => narrow!(-32_768.0, 32_767.0, i32::from(i16::MIN) as u32),
        Ty::U32 => narrow!(0.0, 4_294_967_295.0, 1 << 31),
        Ty::S32 => narrow!(-2_147_483_648.0, 2_147_483_647.0, 1 << 31),
        Ty::U64 => wide!(u64),
        Ty::S64 => wide!(i64),
        _ => return None,
    })
}

/// Between floating-point types. `.ftz` is about f32 sources and results; to nearest, a flushed source and a kept one
/// give the same zero of 16 bits.
fn floats(from: Ty, to: Ty, round: Option<Round>, ftz: bool) -> Option<Exec> {
    macro_rules! single {
        ($f:expr) => {
            if ftz { map1!(|x: f32| canonical($f(flush(x)))) } else { map1!(|x: f32| canonical($f(x))) }
        };
    }
    Some(match (from, to, round) {
        (Ty::F32, Ty::F32, None) => single!(|x: f32| x),
        (Ty::F32, Ty::F32, Some(Round::IntNearest)) => single!(|x: f32| x.round_ties_even()),
        (Ty::F32, Ty::F32, Some(Round::IntZero)) => single!(|x: f32| x.trunc()),
        (Ty::F32, Ty::F32, Some(Round::IntDown)) => single!(|x: f32| x.floor()),
        (Ty::F32, Ty::F32, Some(Round::IntUp)) => single!(|x: f32| x.ceil()),
        (Ty::F16, Ty::F32, None) => map1!(|x: u16| canonical(F16::widen(x))),
        (Ty::Bf16, Ty::F32, None) if ftz => map1!(|x: u16| canonical(flush(Bf16::widen(x)))),
        (Ty::Bf16, Ty::F32, None) => map1!(|x: u16| canonical(Bf16::widen(x))),
        (Ty::F32, Ty::F16, Some(Round::Nearest)) => map1!(|x: f32| u32::from(F16::round(x))),
        (Ty::F32, Ty::Bf16, Some(Round::Nearest)) if !ftz => map1!(|x: f32| u32::from(Bf16::round(x))),
        (Ty::F64, Ty::F32, Some(Round::Nearest)) if ftz => map1!(|x: f64| canonical(flush(x as f32))),
        (Ty::F64, Ty::F32, Some(Round::Nearest)) => map1!(|x: f64| canonical(x as f32)),
        (Ty::F32, Ty::F64, None) if !ftz => map1!(|x: f32| if x.is_nan() { nan64(x) } else { f64::from(x) }),
        (Ty::F32, Ty::Tf32, Some(Round::Away)) => map1!(tf32_away),
        _ => return None,
    })
}
