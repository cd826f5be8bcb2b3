//! Directed rounding of `.f64`: exact integer arithmetic, then one rounding. Slow, and rare in kernels.

use super::fp::{RM, RP};

/// A finite number that is not zero: (-1)^negative * significand * 2^exponent, 53 bits in the significand.
#[derive(Clone, Copy)]
struct Parts {
    negative: bool,
    significand: u64,
    exponent: i32,
}

fn parts(x: f64) -> Parts {
    let bits = x.to_bits();
    let field = (bits >> 52 & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    let shift = significand.leading_zeros() - 11;
    Parts {
        negative: x.is_sign_negative(),
        significand: significand << shift,
        exponent: exponent - shift as i32,
    }
}

/// Rounds (significand + a fraction if `more`) * 2^exponent. With `more` the significand has at least 54 bits.
fn round<const R: u8>(negative: bool, significand: u128, exponent: i32, more: bool) -> f64 {
    let bits = 128 - significand.leading_zeros() as i32;
    let last = (exponent + bits - 53).max(-1074);
    let shift = last - exponent;
    let (kept, inexact) = match shift {
        ..=0 => (significand << -shift, more),
        1..128 => (significand >> shift, more || significand & ((1 << shift) - 1) != 0),
        _ => (0, true),
    };
    let outward = match R {
        RM => negative,
        RP => !negative,
        _ => false,
    };
    let kept = kept as u64 + u64::from(inexact && outward);
    // The significand's highest bit raises the exponent field by one; below it lie the subnormal numbers.
    let field = i64::from(last + 1074);
    let magnitude = ((field as u64) << 52) + kept;
    let infinite = 0x7ff0_0000_0000_0000;
    let magnitude = match magnitude {
        m if field < 2046 && m < infinite => m,
        _ if outward => infinite,
        _ => infinite - 1,
    };
    f64::from_bits(magnitude | u64::from(negative) << 63)
}

/// The sign of an exact zero.
fn zero<const R: u8>() -> f64 {
    if R == RM { -0.0 } else { 0.0 }
}

/// `a * b + c`
pub(super) fn fma<const R: u8>(a: f64, b: f64, c: f64) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    if a == 0.0 || b == 0.0 {
        let product = a * b;
        return match (c == 0.0, product.is_sign_negative() == c.is_sign_negative()) {
            (false, _) | (true, true) => c,
            (true, false) => zero::<R>(),
        };
    }
    let (x, y) = (parts(a), parts(b));
    let negative = x.negative != y.negative;
    let product = u128::from(x.significand) * u128::from(y.significand);
    let exponent = x.exponent + y.exponent;
    if c == 0.0 {
        return round::<R>(negative, product, exponent, false);
    }
    let z = parts(c);
    add::<R>((negative, product, exponent), (z.negative, z.significand.into(), z.exponent))
}

/// Adds two numbers that are not zero: sign, significand of at most 106 bits, exponent.
fn add<const R: u8>(x: (bool, u128, i32), y: (bool, u128, i32)) -> f64 {
    // Both with their highest bit at 125: room for a carry.
    let aligned = |(negative, significand, exponent): (bool, u128, i32)| {
        let shift = significand.leading_zeros() - 2;
        (negative, significand << shift, exponent - shift as i32)
    };
    let (x, y) = (aligned(x), aligned(y));
    let (big, small) = if (x.2, x.1) >= (y.2, y.1) { (x, y) } else { (y, x) };
    let down = (big.2 - small.2) as u32;
    let (part, more) = match down {
        0..128 => (small.1 >> down, small.1 & ((1 << down) - 1) != 0),
        _ => (0, true),
    };
    let (sum, more) = if big.0 == small.0 {
        (big.1 + part, more)
    } else {
        // What was cut off the smaller one is taken from one unit of it.
        (big.1 - part - u128::from(more), more)
    };
    if sum == 0 { zero::<R>() } else { round::<R>(big.0, sum, big.2, more) }
}

/// `a / b`
pub(super) fn div<const R: u8>(a: f64, b: f64) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let (x, y) = (parts(a), parts(b));
    let dividend = u128::from(x.significand) << 66;
    let divisor = u128::from(y.significand);
    let more = dividend % divisor != 0;
    round::<R>(x.negative != y.negative, dividend / divisor, x.exponent - y.exponent - 66, more)
}

/// The square root.
pub(super) fn sqrt<const R: u8>(a: f64) -> f64 {
    if !(a > 0.0 && a.is_finite()) {
        return a.sqrt();
    }
    let x = parts(a);
    // 125 or 126 bits, and an even exponent.
    let shift = 72 + (x.exponent & 1);
    let square = u128::from(x.significand) << shift;
    let root = square.isqrt();
    round::<R>(false, root, (x.exponent - shift) / 2, root * root != square)
}
