//! The 16-bit formats as bits, without branches: conversions to and from f32, and the two-step rounding that makes a
//! result computed in f64 right to the last bit.

/// A 16-bit floating-point format.
pub(super) trait Bits {
    /// Canonical NaN.
    const NAN: u16 = 0x7fff;
    /// Bits of 1.0.
    const ONE: u16;
    /// Smallest normal number.
    const NORMAL: u16;
    /// Exact.
    fn widen(x: u16) -> f32;
    /// To nearest, ties to even; NaN becomes canonical.
    fn round(x: f32) -> u16;
    /// `a * b`, rounded once.
    fn mul(a: u16, b: u16) -> u16;
    /// `a * b + c`, rounded once.
    fn fma(a: u16, b: u16, c: u16) -> u16;
}

/// IEEE binary16.
pub(super) struct F16;
/// bfloat16.
pub(super) struct Bf16;

impl Bits for F16 {
    const ONE: u16 = 0x3c00;
    const NORMAL: u16 = 0x0400;

    #[inline(always)]
    fn widen(x: u16) -> f32 {
        let x = u32::from(x);
        let magnitude = x & 0x7fff;
        // The exponents differ by 112; infinity and NaN have the highest of either format.
        let normal = (magnitude << 13) + (112 << 23);
        let normal = if magnitude >= 0x7c00 { normal + (112 << 23) } else { normal };
        // Subnormal numbers are multiples of 2^-24. By way of an integer: f32's own subnormal numbers are slow.
        let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
        f32::from_bits((x & 0x8000) << 16 | if magnitude < 0x0400 { subnormal } else { normal })
    }

    #[inline(always)]
    fn round(x: f32) -> u16 {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let normal = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
        // The last place of numbers around 0.5 is that of subnormal results: the addition rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let small = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let finite = if magnitude >= 0x4780_0000 { 0x7c00 } else { small };
        let signed = finite | bits >> 16 & 0x8000;
        (if magnitude > 0x7f80_0000 { u32::from(Self::NAN) } else { signed }) as u16
    }

    /// The product of two has 22 bits and an exponent well inside that of f32: exact.
    #[inline(always)]
    fn mul(a: u16, b: u16) -> u16 {
        Self::round(Self::widen(a) * Self::widen(b))
    }

    #[inline(always)]
    fn fma(a: u16, b: u16, c: u16) -> u16 {
        Self::round(add_odd_32(Self::widen(a) * Self::widen(b), Self::widen(c)))
    }
}

impl Bits for Bf16 {
    const ONE: u16 = 0x3f80;
    const NORMAL: u16 = 0x0080;

    #[inline(always)]
    fn widen(x: u16) -> f32 {
        f32::from_bits(u32::from(x) << 16)
    }

    #[inline(always)]
    fn round(x: f32) -> u16 {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        if bits & 0x7fff_ffff > 0x7f80_0000 { Self::NAN } else { rounded }
    }

    /// Products reach beyond the exponents of f32.
    #[inline(always)]
    fn mul(a: u16, b: u16) -> u16 {
        Self::round(narrow_odd(f64::from(Self::widen(a)) * f64::from(Self::widen(b))))
    }

    #[inline(always)]
    fn fma(a: u16, b: u16, c: u16) -> u16 {
        let [a, b, c] = [a, b, c].map(|x| f64::from(Self::widen(x)));
        Self::round(narrow_odd(add_odd(a * b, c)))
    }
}

/// The sum of two f32 rounded to odd; see `add_odd`.
#[inline(always)]
fn add_odd_32(a: f32, b: f32) -> f32 {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    let bits = sum.to_bits();
    let outward = (error.to_bits() ^ bits) >> 31 == 0;
    let moved = if outward { bits | 1 } else { bits.wrapping_sub(1) };
    // Infinities and NaN leave a NaN as the error.
    f32::from_bits(if (error.abs() > 0.0) & (bits & 1 == 0) { moved } else { bits })
}

/// The sum of two f64 rounded to odd: of the two neighbours of an inexact sum, the one with an odd last bit. Rounding it
/// again to a format with at least two bits less is as good as rounding the exact sum once.
#[inline(always)]
pub(super) fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    let bits = sum.to_bits();
    let toward = if (error > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let change = error != 0.0 && bits & 1 == 0 && sum.is_finite();
    f64::from_bits(if change { toward } else { bits })
}

/// An f64 rounded to odd in f32.
#[inline(always)]
pub(super) fn narrow_odd(x: f64) -> f32 {
    let near = x as f32;
    let bits = near.to_bits();
    let back = f64::from(near);
    let toward = if back.abs() > x.abs() { bits.wrapping_sub(1) } else { bits.wrapping_add(1) };
    let change = back != x && bits & 1 == 0 && !x.is_nan();
    f32::from_bits(if change { toward } else { bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sixteen_bit_numbers_convert_as_in_the_half_crate() {
        for x in 0..=u16::MAX {
            let (f, b) = (half::f16::from_bits(x), half::bf16::from_bits(x));
            if f.is_nan() {
                assert!(F16::widen(x).is_nan());
            } else {
                assert_eq!(F16::widen(x).to_bits(), f.to_f32().to_bits(), "f16 {x:#x}");
                assert_eq!(F16::round(F16::widen(x)), x);
            }
            if b.is_nan() {
                assert!(Bf16::widen(x).is_nan());
            } else {
                assert_eq!(Bf16::widen(x).to_bits(), b.to_f32().to_bits(), "bf16 {x:#x}");
                assert_eq!(Bf16::round(Bf16::widen(x)), x);
            }
        }
    }

    #[test]
    fn rounding_agrees_with_the_half_crate() {
        // Every exponent with the mantissas around ties.
        for top in 0..=0xffffu32 {
            for low in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(top << 16 | low);
                if x.is_nan() {
                    assert_eq!((F16::round(x), Bf16::round(x)), (0x7fff, 0x7fff));
                } else {
                    assert_eq!(F16::round(x), half::f16::from_f32(x).to_bits(), "{x:e}");
                    assert_eq!(Bf16::round(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
                }
            }
        }
    }

    #[test]
    fn rounding_to_odd_keeps_what_the_second_rounding_needs() {
        // 1 + 2^-11 is a tie in f16; a little more must round up, a little less down.
        let tie = 1.0 + 2f64.powi(-11);
        for (tiny, want) in [(2f64.powi(-200), 0x3c01), (-2f64.powi(-200), 0x3c00), (0.0, 0x3c00)] {
            assert_eq!(F16::round(narrow_odd(add_odd(tie, tiny))), want, "{tiny:e}");
        }
        assert_eq!(narrow_odd(1e300), f32::MAX);
        assert_eq!(narrow_odd(-1e-300).to_bits(), 0x8000_0001);
        assert_eq!(add_odd(f64::INFINITY, 1.0), f64::INFINITY);
    }
}
