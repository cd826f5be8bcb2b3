//! What atomics compute: new bits from old bits and operands.

use crate::ptx::ast::Ty;
use half::{bf16, f16};

/// Bits of the new value from those of the old one and of the operands (the second for `cas` only).
pub(crate) type Op = fn(u64, u64, u64) -> u64;

/// The function of an operation on a type; `global` because global memory flushes subnormal results of `.add.f32`.
pub(crate) fn find(name: &str, ty: Ty, global: bool) -> Option<Op> {
    Some(match (name, ty) {
        ("exch", Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64) => {
            |_, b, _| b
        }
        ("cas", Ty::B16 | Ty::B32 | Ty::U32 | Ty::S32 | Ty::B64 | Ty::U64 | Ty::S64) => {
            |a, b, c| if a == b { c } else { a }
        }
        ("and", Ty::B32 | Ty::B64) => |a, b, _| a & b,
        ("or", Ty::B32 | Ty::B64) => |a, b, _| a | b,
        ("xor", Ty::B32 | Ty::B64) => |a, b, _| a ^ b,
        ("add", Ty::U32 | Ty::S32) => |a, b, _| u64::from((a as u32).wrapping_add(b as u32)),
        ("add", Ty::U64 | Ty::S64) => |a, b, _| a.wrapping_add(b),
        ("add", Ty::F32) if global => |a, b, _| add_f32(flush(a as u32), flush(b as u32), true),
        ("add", Ty::F32) => |a, b, _| add_f32(a as u32, b as u32, false),
        ("add", Ty::F64) => |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        ("add", Ty::F16) => |a, b, _| u64::from(add_f16(a as u16, b as u16)),
        ("add", Ty::Bf16) => |a, b, _| u64::from(add_bf16(a as u16, b as u16)),
        ("add", Ty::F16x2) => |a, b, _| halves(a, b, add_f16),
        ("add", Ty::Bf16x2) => |a, b, _| halves(a, b, add_bf16),
        ("min", Ty::F16) => |a, b, _| u64::from(min_f16(a as u16, b as u16)),
        ("max", Ty::F16) => |a, b, _| u64::from(max_f16(a as u16, b as u16)),
        ("min", Ty::Bf16) => |a, b, _| u64::from(min_bf16(a as u16, b as u16)),
        ("max", Ty::Bf16) => |a, b, _| u64::from(max_bf16(a as u16, b as u16)),
        ("min", Ty::F16x2) => |a, b, _| halves(a, b, min_f16),
        ("max", Ty::F16x2) => |a, b, _| halves(a, b, max_f16),
        ("min", Ty::Bf16x2) => |a, b, _| halves(a, b, min_bf16),
        ("max", Ty::Bf16x2) => |a, b, _| halves(a, b, max_bf16),
        ("inc", Ty::U32) => |a, b, _| if a >= b { 0 } else { a + 1 },
        ("dec", Ty::U32) => |a, b, _| if a == 0 || a > b { b } else { a - 1 },
        ("min", Ty::U32 | Ty::U64) => |a, b, _| a.min(b),
        ("max", Ty::U32 | Ty::U64) => |a, b, _| a.max(b),
        ("min", Ty::S32) => |a, b, _| u64::from((a as i32).min(b as i32) as u32),
        ("max", Ty::S32) => |a, b, _| u64::from((a as i32).max(b as i32) as u32),
        ("min", Ty::S64) => |a, b, _| (a as i64).min(b as i64) as u64,
        ("max", Ty::S64) => |a, b, _| (a as i64).max(b as i64) as u64,
        _ => return None,
    })
}

fn flush(bits: u32) -> u32 {
    if f32::from_bits(bits).is_subnormal() { bits & 0x8000_0000 } else { bits }
}

fn add_f32(a: u32, b: u32, flushed: bool) -> u64 {
    let sum = (f32::from_bits(a) + f32::from_bits(b)).to_bits();
    u64::from(if flushed { flush(sum) } else { sum })
}

/// Sums of halves are exact enough in `f32` that rounding twice gives what rounding once does.
fn add_f16(a: u16, b: u16) -> u16 {
    f16::from_f32(f16::from_bits(a).to_f32() + f16::from_bits(b).to_f32()).to_bits()
}

fn add_bf16(a: u16, b: u16) -> u16 {
    bf16::from_f32(bf16::from_bits(a).to_f32() + bf16::from_bits(b).to_f32()).to_bits()
}

/// A number wins over NaN; -0 is below +0; two NaNs give the canonical one.
fn least(a: f32, b: f32, (x, y): (u16, u16)) -> u16 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => 0x7FFF,
        (true, false) => y,
        (false, true) => x,
        _ if a < b || (a == b && a.is_sign_negative()) => x,
        _ => y,
    }
}

fn min_f16(a: u16, b: u16) -> u16 {
    least(f16::from_bits(a).to_f32(), f16::from_bits(b).to_f32(), (a, b))
}

fn max_f16(a: u16, b: u16) -> u16 {
    least(-f16::from_bits(a).to_f32(), -f16::from_bits(b).to_f32(), (a, b))
}

fn min_bf16(a: u16, b: u16) -> u16 {
    least(bf16::from_bits(a).to_f32(), bf16::from_bits(b).to_f32(), (a, b))
}

fn max_bf16(a: u16, b: u16) -> u16 {
    least(-bf16::from_bits(a).to_f32(), -bf16::from_bits(b).to_f32(), (a, b))
}

fn halves(a: u64, b: u64, f: fn(u16, u16) -> u16) -> u64 {
    u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, ty: Ty, a: u64, b: u64) -> u64 {
        find(name, ty, true).expect("an operation")(a, b, 99)
    }

    #[test]
    fn integers() {
        let minus = u64::from(-3i32 as u32);
        assert_eq!(run("add", Ty::S32, minus, 5), 2);
        assert_eq!(run("add", Ty::U32, u64::from(u32::MAX), 1), 0);
        assert_eq!(run("min", Ty::S32, minus, 5), minus);
        assert_eq!(run("min", Ty::U32, minus, 5), 5);
        assert_eq!(run("max", Ty::S64, -3i64 as u64, 5), 5);
        assert_eq!(
            (run("inc", Ty::U32, 4, 5), run("inc", Ty::U32, 5, 5), run("inc", Ty::U32, 9, 5)),
            (5, 0, 0)
        );
        assert_eq!(
            (run("dec", Ty::U32, 4, 5), run("dec", Ty::U32, 0, 5), run("dec", Ty::U32, 9, 5)),
            (3, 5, 5)
        );
        assert_eq!((run("cas", Ty::B32, 7, 7), run("cas", Ty::B32, 7, 8)), (99, 7));
        assert_eq!((run("exch", Ty::B64, 7, 8), run("xor", Ty::B32, 6, 3)), (8, 5));
        assert!(find("add", Ty::B32, true).is_none() && find("and", Ty::U32, true).is_none());
    }

    #[test]
    fn floats() {
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(run("add", Ty::F32, bits(1.5), bits(2.25)), bits(3.75));
        let tiny = u64::from(1u32);
        assert_eq!(run("add", Ty::F32, tiny, tiny), 0, "global memory flushes");
        assert_eq!(find("add", Ty::F32, false).expect("add")(tiny, tiny, 0), 2, "shared memory does not");
        assert_eq!(run("add", Ty::F64, 1.5f64.to_bits(), 2.0f64.to_bits()), 3.5f64.to_bits());
    }

    #[test]
    fn halves_go_by_themselves() {
        let h = |x: f32| u64::from(f16::from_f32(x).to_bits());
        let b = |x: f32| u64::from(bf16::from_f32(x).to_bits());
        assert_eq!(
            run("add", Ty::F16x2, h(1.0) | h(2.0) << 16, h(0.5) | h(-4.0) << 16),
            h(1.5) | h(-2.0) << 16
        );
        assert_eq!(run("add", Ty::Bf16, b(1.0), b(3.0)), b(4.0));
        assert_eq!(run("min", Ty::F16, h(-0.0), h(0.0)), h(-0.0));
        assert_eq!(run("max", Ty::F16, h(-0.0), h(0.0)), h(0.0));
        assert_eq!(run("min", Ty::Bf16, b(f32::NAN), b(3.0)), b(3.0));
        assert_eq!(
            run("max", Ty::Bf16x2, b(1.0) | b(2.0) << 16, b(3.0) | b(-1.0) << 16),
            b(3.0) | b(2.0) << 16
        );
    }
}
