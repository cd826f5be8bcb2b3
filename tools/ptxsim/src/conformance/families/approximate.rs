//! Approximate functions, with the errors that PTX ISA 9.7.3 and 9.7.4 allow. The exact value is computed in f64, whose own
//! error is far below the bounds.

use super::super::case::Target;
use super::super::elementwise::{Out, Suite};
use super::super::softfloat::Format;
use super::super::values::{floats, packed_floats};

const F: Format = Format::F32;

/// Exact value and allowed error: `ulp` units in the last place of the correctly rounded result.
fn ulps(f: Format, exact: f64, ulp: f64) -> (f64, f64) {
    if exact == 0.0 || !exact.is_finite() {
        return (exact, 0.0);
    }
    let rounded = f.from_f64(exact);
    if rounded & !f.sign() >= f.infinity() {
        return (f.to_f64(rounded), 0.0);
    }
    let exponent = ((rounded & !f.sign()) >> f.mantissa_bits()).max(1) as i32;
    let bias = (f.one() >> f.mantissa_bits()) as i32;
    // The result itself may be rounded by half a unit more than the exact value is.
    (exact, (ulp + 0.5) * 2f64.powi(exponent - bias - f.mantissa_bits() as i32))
}

/// Exact value and an error relative to it; below the normal range half a unit, the rounding, comes on top.
fn relative(f: Format, exact: f64, bound: f64) -> (f64, f64) {
    let (_, half) = ulps(f, exact, 0.0);
    if exact == 0.0 || !exact.is_finite() || half == 0.0 {
        return ulps(f, exact, 0.0);
    }
    let subnormal = exact.abs() < f.to_f64(f.smallest_normal());
    (exact, exact.abs() * bound + if subnormal { half } else { 0.0 })
}

fn flushed(ftz: bool, v: u64) -> f64 {
    F.to_f64(if ftz { F.flush(v) } else { v })
}

/// `.ftz` of a result: a subnormal becomes zero; one that the error may carry over the edge may be either.
fn flush_result(ftz: bool, (exact, error): (f64, f64)) -> (f64, f64) {
    let edge = F.to_f64(F.smallest_normal());
    if !ftz || exact == 0.0 || exact.is_nan() || exact.abs() - error >= edge {
        (exact, error)
    } else if exact.abs() + error < edge {
        (0f64.copysign(exact), 0.0)
    } else {
        (exact, exact.abs())
    }
}

/// Family `approximate`.
pub fn cases(s: &mut Suite) {
    for ftz in [false, true] {
        let m = if ftz { ".ftz" } else { "" };
        reciprocals(s, ftz, m);
        exponentials(s, ftz, m);
        angles(s, ftz, m);
        division(s, ftz, m);
    }
    doubles(s);
    tanh(s);
    halves(s);
}

fn reciprocals(s: &mut Suite, ftz: bool, m: &str) {
    let one = [floats(F)];
    s.near(&format!("rcp.approx{m}.f32 d, a"), Out::Float(F), &one, |x| {
        flush_result(ftz, ulps(F, 1.0 / flushed(ftz, x[0]), 1.0))
    });
    s.near(&format!("sqrt.approx{m}.f32 d, a"), Out::Float(F), &one, |x| {
        relative(F, flushed(ftz, x[0]).sqrt(), 2f64.powi(-23))
    });
    s.near(&format!("rsqrt.approx{m}.f32 d, a"), Out::Float(F), &one, |x| {
        relative(F, 1.0 / flushed(ftz, x[0]).sqrt(), 2f64.powf(-22.9))
    });
}

fn exponentials(s: &mut Suite, ftz: bool, m: &str) {
    s.near(&format!("ex2.approx{m}.f32 d, a"), Out::Float(F), &[floats(F)], |x| {
        flush_result(ftz, ulps(F, flushed(ftz, x[0]).exp2(), 2.0))
    });
    s.near(&format!("lg2.approx{m}.f32 d, a"), Out::Float(F), &[floats(F)], |x| {
        let a = flushed(ftz, x[0]);
        let exact = a.log2();
        if a > 0.5 && a < 2.0 { (exact, 2f64.powi(-22)) } else { relative(F, exact, 2f64.powi(-22)) }
    });
}

fn angles(s: &mut Suite, ftz: bool, m: &str) {
    // Bounds exist up to 100 pi.
    let small = |rng: &mut super::super::values::Rng| {
        let fraction = rng.below(1 << 24) as f64 / f64::from(1 << 24) * 2.0 - 1.0;
        let range = if rng.below(2) == 0 { 2.0 } else { 100.0 };
        F.from_f64(fraction * range * std::f64::consts::PI)
    };
    let mut angle = floats(F);
    angle.special.retain(|&v| {
        let a = F.to_f64(v).abs();
        !(a > 314.0 && a < f64::INFINITY)
    });
    angle.random = Some(small);
    let bound = |a: f64| {
        let near = a.abs() <= 2.0 * std::f64::consts::PI;
        2f64.powf(if near { -20.5 } else { -14.7 })
    };
    for (name, function) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
        s.near(&format!("{name}.approx{m}.f32 d, a"), Out::Float(F), &[angle.clone()], |x| {
            let a = flushed(ftz, x[0]);
            match a {
                // The table of special inputs.
                _ if a == 0.0 => (function(a), 0.0),
                _ => (function(a), bound(a)),
            }
        });
    }
}

fn division(s: &mut Suite, ftz: bool, m: &str) {
    s.room(1600);
    let two = [floats(F), floats(F)];
    s.near(&format!("div.full{m}.f32 d, a, b"), Out::Float(F), &two, |x| {
        flush_result(ftz, ulps(F, flushed(ftz, x[0]) / flushed(ftz, x[1]), 2.0))
    });
    // Bounded for divisors of at most 2^126; beyond, a sign-preserving zero, or NaN for an infinite dividend.
    let limit = 2f64.powi(126);
    s.near(&format!("div.approx{m}.f32 d, a, b"), Out::Float(F), &two, |x| {
        let (a, b) = (flushed(ftz, x[0]), flushed(ftz, x[1]));
        let size = b.abs();
        if size > limit && size.is_finite() {
            return match a {
                _ if a.is_infinite() || a.is_nan() => (f64::NAN, 0.0),
                _ => (0f64.copysign(a) * 1f64.copysign(b), 0.0),
            };
        }
        let (exact, error) = flush_result(ftz, ulps(F, a / b, 2.0));
        // Divisors below 2^-126 have no bound: their reciprocal may overflow. Only the class is asked for.
        if size < 2f64.powi(-126) && size > 0.0 && a.is_finite() && a != 0.0 {
            return (exact, f64::INFINITY);
        }
        (exact, error)
    });
    s.room(512);
}

/// The 64-bit forms work on the upper words; the manual bounds only their table of special inputs and the format: the
/// low word of the result is zero. An error of 2^-19 is what the 20 bits of the significand can promise.
fn doubles(s: &mut Suite) {
    let f = Format::F64;
    let upper = |v: u64| f.to_f64(f.flush(v & 0xffff_ffff_0000_0000));
    let bound = |exact: f64| {
        let edge = f64::MIN_POSITIVE;
        match exact {
            _ if exact == 0.0 || !exact.is_finite() => (exact, 0.0),
            _ if exact.abs() < edge => (0f64.copysign(exact), 0.0),
            _ => (exact, exact.abs() * 2f64.powi(-19)),
        }
    };
    s.near("rcp.approx.ftz.f64 d, a", Out::Float(f), &[floats(f)], |x| bound(1.0 / upper(x[0])));
    s.near("rsqrt.approx.ftz.f64 d, a", Out::Float(f), &[floats(f)], |x| bound(1.0 / upper(x[0]).sqrt()));
}

fn tanh(s: &mut Suite) {
    s.near("tanh.approx.f32 d, a", Out::Float(F), &[floats(F)], |x| {
        let a = F.to_f64(x[0]);
        if a.is_infinite() { (a.signum(), 0.0) } else { relative(F, a.tanh(), 2f64.powi(-11)) }
    });
}

fn halves(s: &mut Suite) {
    type Bounds = fn(Format, f64) -> (f64, f64);
    let tanh: Bounds = |f, a| {
        let bound = 2f64.powf(if f == Format::F16 { -10.987 } else { -8.0 });
        if a == 0.0 || a.is_infinite() { (a.tanh(), 0.0) } else { (a.tanh(), bound) }
    };
    let ex2: Bounds = |f, a| {
        let bound = 2f64.powf(if f == Format::F16 { -9.9 } else { -7.0 });
        relative(f, a.exp2(), bound)
    };
    for f in [Format::F16, Format::Bf16] {
        s.target(if f == Format::F16 { Target::Sm80 } else { Target::Sm90 });
        let (mut single, mut pair) = (floats(f), packed_floats(f));
        single.special.extend((0..1 << 16).step_by(37));
        pair.special.extend((0..1 << 16).step_by(53).map(|v| v | ((v * 13 + 5) % (1 << 16)) << 16));
        s.room(2048);
        let flush = f == Format::Bf16;
        let ftz = if flush { ".ftz" } else { "" };
        let edge = f.to_f64(f.smallest_normal());
        let ex2 = |x: &[u64]| {
            let a = f.to_f64(if flush { f.flush(x[0]) } else { x[0] });
            let (exact, error) = ex2(f, a);
            match exact {
                // Flushed results: zero, or close to the edge either.
                _ if !flush || exact == 0.0 || exact.abs() - error >= edge => (exact, error),
                _ if exact.abs() + error < edge => (0.0, 0.0),
                _ => (exact, exact.abs()),
            }
        };
        let tanh = |x: &[u64]| tanh(f, f.to_f64(x[0]));
        let name = f.name();
        s.near(&format!("tanh.approx.{name} d, a"), Out::Float(f), &[single.clone()], tanh);
        s.near(&format!("ex2.approx{ftz}.{name} d, a"), Out::Float(f), &[single], ex2);
        s.near(&format!("tanh.approx.{name}x2 d, a"), Out::Packed(f), &[pair.clone()], tanh);
        s.near(&format!("ex2.approx{ftz}.{name}x2 d, a"), Out::Packed(f), &[pair], ex2);
        s.room(512);
    }
    s.target(Target::Sm80);
}
