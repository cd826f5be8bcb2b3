//! `cvt.pack` and the 8-bit floating-point formats e4m3 and e5m2.

use super::super::half_bits::{Bits, F16};
use super::super::{Form, with_operands};
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst};
use crate::exec::lanes::{LANES, each};
use crate::exec::lower::Lower;
use crate::ptx::ast::{self, Ty};

/// `cvt.pack.sat.u8.s32.b32 d, a, b, c`: a and b saturated to the small type, side by side, b lower; c shifted up above
/// them (for 16 bits there is no c).
pub(super) fn pack(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    if !form.flag("sat") {
        return Err("cvt.pack needs .sat".into());
    }
    let third = form.flag("b32");
    if !form.flag("s32") {
        return Err("cvt.pack takes .s32".into());
    }
    let small =
        form.one_of(&["u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"]).ok_or("a small type is needed")?;
    form.end()?;
    let bits: i64 = small[1..].parse().map_err(|_| "a small type is needed".to_string())?;
    if (bits == 16) == third {
        return Err("16-bit types take two sources, smaller ones three".into());
    }
    let sources: &[Ty] = if third { &[Ty::S32, Ty::S32, Ty::B32] } else { &[Ty::S32, Ty::S32] };
    let mut inst = with_operands(i, lower, packed, Ty::B32, sources)?;
    inst.imm = bits;
    inst.aux = u32::from(small.starts_with('s')) | u32::from(third) << 1;
    Ok(inst)
}

fn packed(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let bits = i.imm as u32;
    let (low, high) =
        if i.aux & 1 != 0 { (-(1i32 << (bits - 1)), (1i32 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    let (a, b) = (cx.get::<i32>(i.r[1]), cx.get::<i32>(i.r[2]));
    let c = if i.aux & 2 != 0 { cx.get::<u32>(i.r[3]) } else { [0; LANES] };
    let small = |x: i32| x.clamp(low, high) as u32 & ((1u32 << bits) - 1);
    let out: [u32; LANES] =
        each(|l| c[l].checked_shl(2 * bits).unwrap_or(0) | small(a[l]) << bits | small(b[l]));
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

/// An 8-bit format: exponent bias, mantissa bits, largest finite number.
#[derive(Clone, Copy)]
struct Format {
    bias: i32,
    mantissa: i32,
    largest: u8,
}

/// 4 exponent bits, 3 mantissa bits, no infinity.
const E4M3: Format = Format { bias: 7, mantissa: 3, largest: 0x7e };
/// 5 exponent bits, 2 mantissa bits: the upper half of f16.
const E5M2: Format = Format { bias: 15, mantissa: 2, largest: 0x7b };

impl Format {
    /// To nearest, ties to even; beyond the largest number the largest; NaN is 0x7f.
    fn round(self, x: f32) -> u8 {
        if x.is_nan() {
            return 0x7f;
        }
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let a = f64::from(x.abs());
        // The last place: that of the number's own exponent, not below that of subnormal numbers.
        let exponent = if a == 0.0 { 1 - self.bias } else { (a.to_bits() >> 52) as i32 - 1023 };
        let place = exponent.max(1 - self.bias) - self.mantissa;
        let steps = (a * 2f64.powi(-place)).round_ties_even();
        let value = steps * 2f64.powi(place);
        let largest = f64::from(self.widen(self.largest));
        if value >= largest {
            return sign | self.largest;
        }
        if value < 2f64.powi(1 - self.bias) {
            return sign | (value * 2f64.powi(self.bias - 1 + self.mantissa)) as u8;
        }
        let exponent = (value.to_bits() >> 52) as i32 - 1023;
        let fraction = ((value * 2f64.powi(-exponent) - 1.0) * f64::from(1 << self.mantissa)) as u8;
        sign | ((exponent + self.bias) as u8) << self.mantissa | fraction
    }

    /// Exact.
    fn widen(self, x: u8) -> f32 {
        let sign = if x & 0x80 != 0 { -1.0 } else { 1.0 };
        let magnitude = x & 0x7f;
        if magnitude > self.largest {
            let infinite = self.mantissa == 2 && magnitude == 0x7c;
            return if infinite { sign * f32::INFINITY } else { f32::NAN };
        }
        let fraction = f32::from(magnitude & ((1 << self.mantissa) - 1)) / f32::from(1u8 << self.mantissa);
        let exponent = i32::from(magnitude >> self.mantissa);
        if exponent == 0 {
            sign * fraction * 2f32.powi(1 - self.bias)
        } else {
            sign * (1.0 + fraction) * 2f32.powi(exponent - self.bias)
        }
    }
}

/// `Inst::aux` flags.
const FIVE: u32 = 1;
const RELU: u32 = 2;

pub(super) fn eight_bit(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    if !form.flag("rn") {
        return Err(".rn is needed".into());
    }
    let (relu, satfinite) = (form.flag("relu"), form.flag("satfinite"));
    let (mut inst, five) = match form.mods.as_slice() {
        [small @ ("e4m3x2" | "e5m2x2"), "f32"] if satfinite => {
            (with_operands(i, lower, from_f32, Ty::B16, &[Ty::F32, Ty::F32])?, *small == "e5m2x2")
        }
        [small @ ("e4m3x2" | "e5m2x2"), "f16x2"] if satfinite => {
            (with_operands(i, lower, from_f16x2, Ty::B16, &[Ty::F16x2])?, *small == "e5m2x2")
        }
        ["f16x2", small @ ("e4m3x2" | "e5m2x2")] if !satfinite => {
            (with_operands(i, lower, to_f16x2, Ty::F16x2, &[Ty::B16])?, *small == "e5m2x2")
        }
        _ => return Err("this form is not implemented".into()),
    };
    inst.aux = if five { FIVE } else { 0 } | if relu { RELU } else { 0 };
    Ok(inst)
}

fn format(i: &Inst) -> Format {
    if i.aux & FIVE != 0 { E5M2 } else { E4M3 }
}

fn rectify(i: &Inst, x: f32) -> f32 {
    if i.aux & RELU != 0 && x <= 0.0 { 0.0 } else { x }
}

fn from_f32(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let f = format(i);
    cx.map2(i, mask, |a: f32, b: f32| {
        u32::from(f.round(rectify(i, a))) << 8 | u32::from(f.round(rectify(i, b)))
    })
}

fn from_f16x2(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let f = format(i);
    let one = |x: u16| u32::from(f.round(rectify(i, F16::widen(x))));
    cx.map1(i, mask, |x: u32| one((x >> 16) as u16) << 8 | one(x as u16))
}

fn to_f16x2(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let f = format(i);
    let one = |x: u8| u32::from(F16::round(rectify(i, f.widen(x))));
    cx.map1(i, mask, |x: u32| one((x >> 8) as u8) << 16 | one(x as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_numbers_come_back() {
        for (f, name) in [(E4M3, "e4m3"), (E5M2, "e5m2")] {
            for x in 0..=255u8 {
                let wide = f.widen(x);
                if wide.is_finite() {
                    assert_eq!(f.round(wide), x, "{name} {x:#x}");
                }
            }
        }
        assert_eq!((E4M3.widen(0x7e), E5M2.widen(0x7b)), (448.0, 57344.0));
        assert_eq!((E4M3.widen(0x01), E5M2.widen(0x01)), (2f32.powi(-9), 2f32.powi(-16)));
        for x in 0..=255u8 {
            let half = F16::widen(u16::from(x) << 8);
            assert!(
                E5M2.widen(x) == half || half.is_nan() && E5M2.widen(x).is_nan(),
                "e5m2 is half of f16: {x:#x}"
            );
        }
    }

    #[test]
    fn eight_bit_rounding_is_to_the_nearest() {
        for f in [E4M3, E5M2] {
            let finite: Vec<u8> = (0..=f.largest).collect();
            for k in 0..40_000u32 {
                let x = f32::from_bits(0x2f80_0000 + k * 8191);
                let have = f.widen(f.round(x));
                let best = finite.iter().map(|&y| (f.widen(y) - x).abs()).fold(f32::INFINITY, f32::min);
                assert!((have - x).abs() <= best, "{x:e} to {have:e}");
            }
        }
        assert_eq!(E4M3.round(464.0), 0x7e);
        assert_eq!(E4M3.round(-1e9), 0xfe);
        assert_eq!(E5M2.round(f32::INFINITY), 0x7b);
        assert_eq!(E4M3.round(f32::NAN), 0x7f);
        assert_eq!(E4M3.round(1.0625), E4M3.round(1.0), "a tie goes to the even neighbour");
    }
}
