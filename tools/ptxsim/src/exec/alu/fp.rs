//! Floating-point pieces: flushing, canonical NaNs, directed rounding, 16-bit formats. All without branches.
//!
//! What the manual leaves open is decided here. A subnormal result is flushed by `.ftz` after rounding: what rounds up to
//! the smallest normal number stays. NaN results of `.f32` and narrower types are canonical (0x7fffffff, 0x7fff), as the
//! hardware makes them. NaN results of `.f64` are the first NaN among the sources, made quiet, or 0xfff8000000000000 if
//! there was none.

/// To nearest, ties to even.
pub(super) const RN: u8 = 0;
/// Toward zero.
pub(super) const RZ: u8 = 1;
/// Down.
pub(super) const RM: u8 = 2;
/// Up.
pub(super) const RP: u8 = 3;

/// NaN of `.f32` instructions.
const NAN_32: u32 = 0x7fff_ffff;
const QUIET_64: u64 = 0x0008_0000_0000_0000;
/// NaN of `.f64` instructions without a NaN among their sources.
const DEFAULT_NAN_64: u64 = 0xfff8_0000_0000_0000;

/// Subnormal numbers become zeros of the same sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// The same for the bits of a `.f16`.
#[inline(always)]
pub(super) fn flush_f16(bits: u16) -> u16 {
    if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

/// A source of an instruction that flushes or not.
#[inline(always)]
pub(super) fn input<const FTZ: bool>(x: f32) -> f32 {
    if FTZ { flush(x) } else { x }
}

/// A result: flushed, saturated, NaN made canonical.
#[inline(always)]
pub(super) fn output<const FTZ: bool, const SAT: bool>(x: f32) -> f32 {
    let x = if FTZ { flush(x) } else { x };
    if SAT { saturate(x) } else { canonical(x) }
}

/// The canonical NaN for any.
#[inline(always)]
pub(super) fn canonical(x: f32) -> f32 {
    f32::from_bits(if x.is_nan() { NAN_32 } else { x.to_bits() })
}

/// To [0, 1]; NaN and -0 give +0.
#[inline(always)]
pub(super) fn saturate(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < 1.0 { x } else { 1.0 }
}

/// A `.f64` result whose NaN is that of the sources, in order.
#[inline(always)]
pub(super) fn nan_of<const N: usize>(x: f64, sources: [f64; N]) -> f64 {
    let mut bits = DEFAULT_NAN_64;
    for source in sources.into_iter().rev() {
        bits = if source.is_nan() { source.to_bits() | QUIET_64 } else { bits };
    }
    f64::from_bits(if x.is_nan() { bits } else { x.to_bits() })
}

/// The next number in the direction of zero, of a number that is not zero.
#[inline(always)]
fn smaller(x: f32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_sub(1))
}

#[inline(always)]
fn larger(x: f32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(1))
}

/// To `.f32` by the rounding mode.
#[inline(always)]
pub(super) fn narrow<const R: u8>(x: f64) -> f32 {
    let n = x as f32;
    let back = f64::from(n);
    match R {
        RN => n,
        RZ if back.abs() > x.abs() => smaller(n),
        // -0 goes down to the negative number next to it, and so on.
        RM if back > x => {
            if n.is_sign_negative() {
                larger(n)
            } else {
                smaller(n)
            }
        }
        RP if back < x => {
            if n.is_sign_negative() {
                smaller(n)
            } else {
                larger(n)
            }
        }
        _ => n,
    }
}

/// The sum rounded to odd: if it is not exact, the neighbour with an odd last place. A second rounding to two places less
/// or fewer then gives what one rounding of the exact sum gives, in every mode.
#[inline(always)]
pub(super) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let b_part = s - a;
    let error = (a - (s - b_part)) + (b - b_part);
    odd(s, error)
}

/// `s` moved to odd, given the sign of what is missing from it. No error is taken from NaN or infinity.
#[inline(always)]
fn odd(s: f64, error: f64) -> f64 {
    let bits = s.to_bits();
    let inexact_even = (error.abs() > 0.0) & (bits & 1 == 0);
    let outward = (error.to_bits() ^ bits) >> 63 == 0;
    let moved = if outward { bits | 1 } else { bits.wrapping_sub(1) };
    f64::from_bits(if inexact_even { moved } else { bits })
}

/// `a + b` of `.f32` sources, by the rounding mode.
#[inline(always)]
pub(super) fn add<const R: u8>(a: f32, b: f32) -> f32 {
    if R == RN { a + b } else { sum::<R>(a.into(), b.into()) }
}

#[inline(always)]
pub(super) fn sub<const R: u8>(a: f32, b: f32) -> f32 {
    add::<R>(a, -b)
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub(super) fn fma<const R: u8>(a: f32, b: f32, c: f32) -> f32 {
    // The product of two 24-bit significands is exact in 53 bits.
    if R == RN { a.mul_add(b, c) } else { sum::<R>(f64::from(a) * f64::from(b), c.into()) }
}

#[inline(always)]
fn sum<const R: u8>(a: f64, b: f64) -> f32 {
    let s = narrow::<R>(add_odd(a, b));
    // An exact zero is negative when rounding down, unless both terms are +0.
    if R == RM && a + b == 0.0 { if (a.to_bits() | b.to_bits()) >> 63 == 0 { 0.0 } else { -0.0 } } else { s }
}

#[inline(always)]
pub(super) fn mul<const R: u8>(a: f32, b: f32) -> f32 {
    if R == RN { a * b } else { narrow::<R>(f64::from(a) * f64::from(b)) }
}

/// A quotient of 24-bit numbers that is none itself is at least 2^-48 away from each, so its 53-bit rounding is on the
/// same side.
#[inline(always)]
pub(super) fn div<const R: u8>(a: f32, b: f32) -> f32 {
    if R == RN { a / b } else { narrow::<R>(f64::from(a) / f64::from(b)) }
}

#[inline(always)]
pub(super) fn rcp<const R: u8>(a: f32) -> f32 {
    div::<R>(1.0, a)
}

/// `div.approx`: as the manual has it, divisors beyond 2^126 give 0, or NaN for an infinite dividend.
#[inline(always)]
pub(super) fn div_approx<const R: u8>(a: f32, b: f32) -> f32 {
    let big = f32::from_bits((127 + 126) << 23);
    let zero = f32::from_bits(b.to_bits() & 0x8000_0000);
    if b.abs() > big { a * zero } else { a / b }
}

/// As for quotients. What is asked about a NaN is asked of the argument: of a root, the optimiser takes a NaN to come from
/// a NaN only, and lets those of negative numbers through as the host makes them.
#[inline(always)]
pub(super) fn sqrt<const R: u8>(a: f32) -> f32 {
    let root = if R == RN { a.sqrt() } else { narrow::<R>(f64::from(a).sqrt()) };
    f32::from_bits(if a >= 0.0 { root.to_bits() } else { NAN_32 })
}

/// A root of f64; that of a negative number is the default NaN.
#[inline(always)]
pub(super) fn sqrt_64(a: f64) -> f64 {
    let root = nan_of(a.sqrt(), [a]);
    f64::from_bits(if a < 0.0 { DEFAULT_NAN_64 } else { root.to_bits() })
}
