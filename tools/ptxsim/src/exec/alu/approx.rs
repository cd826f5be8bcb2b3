//! The approximate functions of f32: ex2, lg2, sin, cos, tanh, rsqrt (`.approx`).
//!
//! Hardware gives results within a documented error of some units in the last place (2 for ex2 and rsqrt, 2^-22 absolute
//! around 1 for lg2, 2^-20.5 absolute for sin and cos, 2^-11 relative for tanh). Here each is evaluated in f64 with an
//! error far below half a unit of f32 and rounded once, so results lie within those bounds; a card's last bits differ.

use super::{Form, map1, of_class, with_operands};
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Exec, Flow, Inst};
use crate::exec::lanes::lane_mask;
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    of_class(Class::Special, instruction(i, lower))
}

fn instruction(i: &ast::Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let mut form = Form::new(i);
    let ty = form.ty()?;
    if !form.flag("approx") {
        return Err("only .approx exists".into());
    }
    let ftz = form.flag("ftz");
    form.end()?;
    if ty == Ty::F64 && i.opcode == "rsqrt" {
        let exec: Exec = if ftz { map1!(rsqrt_f64_ftz) } else { map1!(rsqrt_f64) };
        return with_operands(i, lower, exec, ty, &[ty]);
    }
    if ty != Ty::F32 {
        return Err(format!("the type {ty:?} does not fit this instruction"));
    }
    let exec: Exec = match (i.opcode.as_str(), ftz) {
        ("ex2", false) => map1!(|x: f32| function::<false>(x, ex2)),
        ("ex2", true) => map1!(|x: f32| function::<true>(x, ex2)),
        ("lg2", false) => map1!(|x: f32| function::<false>(x, lg2)),
        ("lg2", true) => map1!(|x: f32| function::<true>(x, lg2)),
        ("rsqrt", false) => map1!(|x: f32| function::<false>(x, rsqrt)),
        ("rsqrt", true) => map1!(|x: f32| function::<true>(x, rsqrt)),
        ("sin", false) => |c, i, m| circular::<false, 0>(c, i, m),
        ("sin", true) => |c, i, m| circular::<true, 0>(c, i, m),
        ("cos", false) => |c, i, m| circular::<false, 1>(c, i, m),
        ("cos", true) => |c, i, m| circular::<true, 1>(c, i, m),
        ("tanh", false) => map1!(|x: f32| function::<false>(x, tanh)),
        _ => return Err("this form is not implemented".into()),
    };
    with_operands(i, lower, exec, ty, &[ty])
}

/// Subnormal numbers to zeros of their sign.
#[inline(always)]
fn flush<const FTZ: bool>(x: f32) -> f32 {
    if FTZ && x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

#[inline(always)]
fn function<const FTZ: bool>(x: f32, f: impl Fn(f64) -> f64) -> f32 {
    let y = flush::<FTZ>(f(f64::from(flush::<FTZ>(x))) as f32);
    if y.is_nan() { f32::from_bits(0x7fff_ffff) } else { y }
}

/// 1.5 * 2^52: adding it rounds to an integer, which then is in the low bits.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// 2^x for x from f32; relative error below 1e-11.
#[inline(always)]
pub(super) fn ex2(x: f64) -> f64 {
    let clamped = if x < -400.0 { -400.0 } else { x };
    let clamped = if clamped > 400.0 { 400.0 } else { clamped };
    let shifted = clamped + MAGIC;
    let r = (clamped - (shifted - MAGIC)) * std::f64::consts::LN_2;
    let p = 1.0 / 362_880.0;
    let p = r.mul_add(p, 1.0 / 40_320.0);
    let p = r.mul_add(p, 1.0 / 5_040.0);
    let p = r.mul_add(p, 1.0 / 720.0);
    let p = r.mul_add(p, 1.0 / 120.0);
    let p = r.mul_add(p, 1.0 / 24.0);
    let p = r.mul_add(p, 1.0 / 6.0);
    let p = r.mul_add(p, 0.5);
    let p = r.mul_add(p, 1.0);
    let p = r.mul_add(p, 1.0);
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x.is_nan() { x } else { p * scale }
}

/// log2 x for x from f32; relative error below 1e-13.
#[inline(always)]
fn lg2(x: f64) -> f64 {
    let bits = x.to_bits();
    let mantissa = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let exponent =
        f64::from_bits(0x4330_0000_0000_0000 | (bits >> 52 & 0x7ff)) - (4_503_599_627_370_496.0 + 1023.0);
    let high = mantissa > std::f64::consts::SQRT_2;
    let m = if high { mantissa * 0.5 } else { mantissa };
    let e = if high { exponent + 1.0 } else { exponent };
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let p = 1.0 / 17.0;
    let p = q.mul_add(p, 1.0 / 15.0);
    let p = q.mul_add(p, 1.0 / 13.0);
    let p = q.mul_add(p, 1.0 / 11.0);
    let p = q.mul_add(p, 1.0 / 9.0);
    let p = q.mul_add(p, 1.0 / 7.0);
    let p = q.mul_add(p, 0.2);
    let p = q.mul_add(p, 1.0 / 3.0);
    let p = q.mul_add(p, 1.0);
    let value = (2.0 * std::f64::consts::LOG2_E * s).mul_add(p, e);
    let value = if x == f64::INFINITY { x } else { value };
    let value = if x == 0.0 { f64::NEG_INFINITY } else { value };
    if x < 0.0 || x.is_nan() { f64::NAN } else { value }
}

/// Arguments to which the reduction in two parts of pi/2 is good.
const REDUCED: f32 = (1u64 << 40) as f32;

/// Sine (`QUADRANT` 0) or cosine (1).
#[inline(always)]
fn circular<const FTZ: bool, const QUADRANT: u64>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let x = cx.get::<f32>(i.r[1]);
    if mask & lane_mask(|l| x[l].is_finite() & (x[l].abs() >= REDUCED)) == 0 {
        cx.map1(i, mask, |x: f32| function::<FTZ>(x, sine::<QUADRANT>))
    } else {
        let f = if QUADRANT == 0 { f64::sin } else { f64::cos };
        cx.map1(i, mask, |x: f32| function::<FTZ>(x, f))
    }
}

/// sin(x + QUADRANT * pi/2); relative error below 1e-13.
#[inline(always)]
fn sine<const QUADRANT: u64>(x: f64) -> f64 {
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, MAGIC);
    let n = shifted - MAGIC;
    // pi/2 to 106 bits; each step is rounded once.
    let r = (-n).mul_add(std::f64::consts::FRAC_PI_2, x);
    let r = (-n).mul_add(6.123_233_995_736_766e-17, r);
    let q = r * r;
    let s = -1.0 / 1_307_674_368_000.0;
    let s = q.mul_add(s, 1.0 / 6_227_020_800.0);
    let s = q.mul_add(s, -1.0 / 39_916_800.0);
    let s = q.mul_add(s, 1.0 / 362_880.0);
    let s = q.mul_add(s, -1.0 / 5_040.0);
    let s = q.mul_add(s, 1.0 / 120.0);
    let s = q.mul_add(s, -1.0 / 6.0);
    // A zero keeps its sign.
    let s = if r == 0.0 { r } else { (r * q).mul_add(s, r) };
    let c = 1.0 / 20_922_789_888_000.0;
    let c = q.mul_add(c, -1.0 / 87_178_291_200.0);
    let c = q.mul_add(c, 1.0 / 479_001_600.0);
    let c = q.mul_add(c, -1.0 / 3_628_800.0);
    let c = q.mul_add(c, 1.0 / 40_320.0);
    let c = q.mul_add(c, -1.0 / 720.0);
    let c = q.mul_add(c, 1.0 / 24.0);
    let c = q.mul_add(c, -0.5);
    let c = q.mul_add(c, 1.0);
    let quadrant = shifted.to_bits().wrapping_add(QUADRANT);
    let y = if quadrant & 1 == 0 { s } else { c };
    f64::from_bits(y.to_bits() ^ (quadrant & 2) << 62)
}

#[inline(always)]
fn rsqrt(x: f64) -> f64 {
    // 1 / sqrt(-0) = -inf, as the manual's table has it.
    1.0 / x.sqrt()
}

/// tanh for x from f32: by exponentials, and by the series where those cancel.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    let a = x.abs();
    let large = 1.0 - 2.0 / (ex2(a * (2.0 * std::f64::consts::LOG2_E)) + 1.0);
    let q = a * a;
    let small = a * q.mul_add(q.mul_add(2.0 / 15.0, -1.0 / 3.0), 1.0);
    let y = if a < 1e-3 { small } else { large };
    if x.is_nan() { x } else { y.copysign(x) }
}

fn rsqrt_f64(x: f64) -> f64 {
    let y = rsqrt(x);
    if y.is_nan() { f64::from_bits(0x7fff_ffff_ffff_ffff) } else { y }
}

/// The upper half of the result of the source's upper half; the lower 32 bits are zero. A NaN whose payload is in the
/// lower half alone counts as an infinity.
fn rsqrt_f64_ftz(x: f64) -> f64 {
    let high = |v: f64| f64::from_bits(v.to_bits() & 0xffff_ffff_0000_0000);
    let flush = |v: f64| if v.abs() < f64::MIN_POSITIVE { 0f64.copysign(v) } else { v };
    high(flush(rsqrt_f64(flush(high(x)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 997th f32.
    fn samples() -> impl Iterator<Item = f32> {
        (0..=u32::MAX).step_by(99_991).map(f32::from_bits)
    }

    fn agree(name: &str, ours: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64) {
        for x in samples() {
            let want = reference(f64::from(x)) as f32;
            let have = ours(x);
            if want.is_nan() {
                assert_eq!(have.to_bits(), 0x7fff_ffff, "{name}({x:e})");
                continue;
            }
            let apart = (have.to_bits() as i64 - want.to_bits() as i64).abs();
            assert!(have == want || apart <= 1, "{name}({x:e}) = {have:e}, not {want:e}");
        }
    }

    #[test]
    fn functions_agree_with_libm_to_the_last_place() {
        agree("ex2", |x| function::<false>(x, ex2), f64::exp2);
        agree("lg2", |x| function::<false>(x, lg2), |x| if x == 0.0 { f64::NEG_INFINITY } else { x.log2() });
        agree(
            "sin",
            |x| function::<false>(x, if x.abs() < REDUCED { sine::<0> } else { f64::sin }),
            f64::sin,
        );
        agree(
            "cos",
            |x| function::<false>(x, if x.abs() < REDUCED { sine::<1> } else { f64::cos }),
            f64::cos,
        );
        agree("tanh", |x| function::<false>(x, tanh), f64::tanh);
        agree("rsqrt", |x| function::<false>(x, rsqrt), |x| x.sqrt().recip());
    }

    #[test]
    fn special_values_are_those_of_the_manual() {
        let f = |g: fn(f64) -> f64, x: f32| function::<true>(x, g);
        assert_eq!(f(ex2, f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(f(ex2, f32::INFINITY), f32::INFINITY);
        assert_eq!(f(ex2, -0.0), 1.0);
        assert_eq!(f(ex2, -127.0).to_bits(), 0, "a subnormal result is flushed");
        assert_eq!(function::<false>(-127.0, ex2), 2f32.powi(-127));
        assert_eq!(f(lg2, -0.0), f32::NEG_INFINITY);
        assert_eq!(f(lg2, 1e-40), f32::NEG_INFINITY, "a subnormal argument is flushed");
        assert_eq!(f(lg2, 1.0).to_bits(), 0);
        assert!(f(lg2, -1.0).is_nan());
        assert_eq!(f(rsqrt, -0.0), f32::NEG_INFINITY);
        assert_eq!(f(rsqrt, 0.0), f32::INFINITY);
        assert_eq!(f(rsqrt, f32::INFINITY), 0.0);
        assert!(f(f64::sin, f32::INFINITY).is_nan());
        assert_eq!(f(tanh, f32::NEG_INFINITY), -1.0);
        assert_eq!(f(tanh, -0.0).to_bits(), 0x8000_0000);
    }
}
