//! f32 and f64 against `rustc_apfloat`, in every rounding mode.

use super::{Random, refused, verify};
use rustc_apfloat::ieee::{Double, Quad, Single};
use rustc_apfloat::{Float, FloatConvert, Round};

pub(super) const MODES: [(&str, Round); 4] = [
    ("rn", Round::NearestTiesToEven),
    ("rz", Round::TowardZero),
    ("rm", Round::TowardNegative),
    ("rp", Round::TowardPositive),
];

pub(super) fn to<F: Float>(bits: u64) -> F {
    F::from_bits(bits.into())
}

/// The sum, product, ... of the sources, rounded once.
pub(super) fn arithmetic<F: Float>(op: &str, [a, b, c]: [F; 3], round: Round) -> F {
    match op {
        "add" => a.add_r(b, round).value,
        "sub" => a.sub_r(b, round).value,
        "mul" => a.mul_r(b, round).value,
        "div" => a.div_r(b, round).value,
        "rcp" => F::from_u128(1).value.div_r(a, round).value,
        _ => a.mul_add_r(b, c, round).value,
    }
}

fn flushed(bits: u64) -> u64 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// What an f32 instruction makes of a rounded result.
fn finished(x: Single, ftz: bool, sat: bool) -> u64 {
    let bits = x.to_bits() as u64;
    let bits = if ftz { flushed(bits) } else { bits };
    match (x.is_nan(), sat) {
        (true, true) => 0,
        (true, false) => 0x7fff_ffff,
        (false, true) => u64::from(f32::from_bits(bits as u32).clamp(0.0, 1.0).abs().to_bits()),
        (false, false) => bits,
    }
}

/// Three numbers; at times the last is nearly the negative product of the others, or the second nearly the negative first.
pub(super) fn related<F: Float>(r: &mut Random, bits: u32, fraction: u32) -> [u64; 3] {
    let a = r.number(bits, fraction);
    let mut b = r.number(bits, fraction);
    let mut c = r.number(bits, fraction);
    let near = |r: &mut Random, x: F| (-x).to_bits() as u64 ^ r.below(4);
    match r.below(8) {
        0 => b = near(r, to::<F>(a)),
        1 | 2 => c = near(r, to::<F>(a).mul_r(to(b), Round::NearestTiesToEven).value),
        _ => {}
    }
    [a, b, c]
}

#[test]
fn single_precision() {
    for op in ["add", "sub", "mul", "fma", "mad", "div", "rcp"] {
        for (mode, round) in MODES {
            for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                if sat && matches!(op, "div" | "rcp") {
                    continue;
                }
                let (f, s) = (if ftz { ".ftz" } else { "" }, if sat { ".sat" } else { "" });
                let sources = match op {
                    "rcp" => "%r1",
                    "fma" | "mad" => "%r1, %r2, %r3",
                    _ => "%r1, %r2",
                };
                let expect = |x: [u64; 3]| {
                    let x = if ftz { x.map(flushed) } else { x };
                    finished(arithmetic::<Single>(op, x.map(to), round), ftz, sat)
                };
                let named = |x: [u64; 3]| {
                    let x = x.map(|x| x & 0xffff_ffff);
                    expect(x)
                };
                match op {
                    "rcp" => verify(
                        &format!("{op}.{mode}{f}.f32 %r0, %r1"),
                        32,
                        |r| [r.number(32, 23)],
                        |[a]| named([a, 0, 0]),
                    ),
                    "fma" | "mad" => verify(
                        &format!("{op}.{mode}{f}{s}.f32 %r0, {sources}"),
                        32,
                        |r| related::<Single>(r, 32, 23),
                        named,
                    ),
                    _ => verify(
                        &format!("{op}.{mode}{f}{s}.f32 %r0, {sources}"),
                        32,
                        |r| {
                            let [a, b, _] = related::<Single>(r, 32, 23);
                            [a, b]
                        },
                        |[a, b]| named([a, b, 0]),
                    ),
                }
            }
        }
    }
    refused("fma.f32 %r0, %r1, %r2, %r3", "rounding");
    refused("div.f32 %r0, %r1, %r2", "rounding");
    refused("div.rn.sat.f32 %r0, %r1, %r2", "sat");
    refused("add.rn.f16x2.f32 %r0, %r1, %r2", "not known");
}

#[test]
fn the_default_is_to_nearest() {
    for (op, f) in
        [("add", (|a, b| a + b) as fn(f32, f32) -> f32), ("sub", |a, b| a - b), ("mul", |a, b| a * b)]
    {
        let make = |r: &mut Random| [r.number(32, 23), r.number(32, 23)];
        verify(&format!("{op}.f32 %r0, %r1, %r2"), 32, make, |[a, b]| {
            let x = f(f32::from_bits(a as u32), f32::from_bits(b as u32));
            if x.is_nan() { 0x7fff_ffff } else { x.to_bits().into() }
        });
    }
}

/// A NaN result of f64: that of the first source that is one, made quiet; the default if there is none.
fn nan_of(x: Double, sources: &[u64]) -> u64 {
    if !x.is_nan() {
        return x.to_bits() as u64;
    }
    let nan = sources.iter().find(|&&s| f64::from_bits(s).is_nan());
    nan.map_or(0xfff8_0000_0000_0000, |s| s | 1 << 51)
}

#[test]
fn double_precision() {
    for op in ["add", "sub", "mul", "fma", "mad", "div", "rcp"] {
        for (mode, round) in MODES {
            let result = |x: [u64; 3], n: usize| nan_of(arithmetic::<Double>(op, x.map(to), round), &x[..n]);
            let op = format!("{op}.{mode}.f64");
            match op.as_bytes()[0] {
                b'r' => verify(
                    &format!("{op} %rd0, %rd1"),
                    64,
                    |r| [r.number(64, 52)],
                    |[a]| result([a, 0, 0], 1),
                ),
                b'f' => verify(
                    &format!("{op} %rd0, %rd1, %rd2, %rd3"),
                    64,
                    |r| related::<Double>(r, 64, 52),
                    |x| result(x, 3),
                ),
                b'm' if op.starts_with("mad") => verify(
                    &format!("{op} %rd0, %rd1, %rd2, %rd3"),
                    64,
                    |r| related::<Double>(r, 64, 52),
                    |x| result(x, 3),
                ),
                _ => verify(
                    &format!("{op} %rd0, %rd1, %rd2"),
                    64,
                    |r| {
                        let [a, b, _] = related::<Double>(r, 64, 52);
                        [a, b]
                    },
                    |[a, b]| result([a, b, 0], 2),
                ),
            }
        }
    }
    refused("add.ftz.f64 %rd0, %rd1, %rd2", "ftz");
    refused("fma.rn.sat.f64 %rd0, %rd1, %rd2, %rd3", "sat");
}

/// Whether `root` is the square root of `x`, rounded: by squares that are exact in 113 bits.
fn is_root<F: Float + FloatConvert<Quad>>(x: F, root: F, round: Round) -> bool {
    if x.is_nan() || x.is_negative() && !x.is_zero() {
        return root.is_nan();
    }
    if x.is_zero() || x.is_infinite() {
        return root.bitwise_eq(x);
    }
    let wide = |f: F| FloatConvert::<Quad>::convert(f, &mut false).value;
    let square = |f: F| wide(f).mul_r(wide(f), Round::NearestTiesToEven).value;
    let (below, above) = (root.next_down().value, root.next_up().value);
    // Half way to a neighbour: its square has 2 * 54 bits, which are exact too.
    let half = |a: F, b: F| {
        let sum = wide(a).add_r(wide(b), Round::NearestTiesToEven).value;
        let middle = sum.scalbn(-1);
        middle.mul_r(middle, Round::NearestTiesToEven).value
    };
    let x = wide(x);
    match round {
        Round::NearestTiesToEven => half(below, root) <= x && x <= half(root, above),
        Round::TowardPositive => square(below) < x && x <= square(root),
        _ => square(root) <= x && x < square(above),
    }
}

#[test]
fn square_roots() {
    for (mode, round) in MODES {
        // The expectation is the host's root; whether that is right is asked first, and moved by a place if not.
        let single = |bits: u64| {
            let x: Single = to(bits & 0xffff_ffff);
            let near = f32::from_bits(bits as u32).sqrt();
            [near, near.next_down(), near.next_up()]
                .into_iter()
                .find(|r| is_root(x, to::<Single>(r.to_bits().into()), round))
                .map_or(u64::MAX, |r| if r.is_nan() { 0x7fff_ffff } else { r.to_bits().into() })
        };
        verify(&format!("sqrt.{mode}.f32 %r0, %r1"), 32, |r| [r.number(32, 23)], |[a]| single(a));
        verify(
            &format!("sqrt.{mode}.ftz.f32 %r0, %r1"),
            32,
            |r| [r.number(32, 23)],
            |[a]| single(flushed(a & 0xffff_ffff)),
        );
        let squares = |r: &mut Random| [r.number(64, 52) & !(u64::MAX >> r.below(64)) & !(1 << 63)];
        let double = |[bits]: [u64; 1]| {
            let x: Double = to(bits);
            let near = f64::from_bits(bits).sqrt();
            [near, near.next_down(), near.next_up()]
                .into_iter()
                .find(|r| is_root(x, to::<Double>(r.to_bits()), round))
                .map_or(u64::MAX, |r| nan_of(to(r.to_bits()), &[bits]))
        };
        verify(&format!("sqrt.{mode}.f64 %rd0, %rd1"), 64, |r| [r.number(64, 52)], double);
        verify(&format!("sqrt.{mode}.f64 %rd0, %rd1"), 64, squares, double);
    }
}

#[test]
fn approximate_division() {
    let single = |x: u64| f32::from_bits(x as u32);
    let bits = |x: f32| if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) };
    let two = |r: &mut Random| [r.number(32, 23), r.number(32, 23)];
    for ftz in [false, true] {
        let f = if ftz { ".ftz" } else { "" };
        let kept = |x: u64| single(if ftz { flushed(x & 0xffff_ffff) } else { x });
        let out = |x: f32| if ftz { flushed(bits(x)) } else { bits(x) };
        verify(&format!("div.full{f}.f32 %r0, %r1, %r2"), 32, two, |[a, b]| out(kept(a) / kept(b)));
        verify(&format!("div.approx{f}.f32 %r0, %r1, %r2"), 32, two, |[a, b]| {
            let (a, b) = (kept(a), kept(b));
            let beyond = b.is_finite() && b.abs() > 2f32.powi(126);
            match (beyond, a.is_finite()) {
                (true, false) => 0x7fff_ffff,
                (true, true) => bits(0f32.copysign(a) * b.signum()),
                _ => out(a / b),
            }
        });
        let one = |r: &mut Random| [r.number(32, 23)];
        verify(&format!("rcp.approx{f}.f32 %r0, %r1"), 32, one, |[a]| out(1.0 / kept(a)));
        verify(&format!("sqrt.approx{f}.f32 %r0, %r1"), 32, one, |[a]| out(kept(a).sqrt()));
    }
    verify(
        "rcp.approx.ftz.f64 %rd0, %rd1",
        64,
        |r| [r.number(64, 52)],
        |[a]| {
            // The lower word of the source is not read.
            let x = f64::from_bits(a >> 32 << 32);
            let kept = if x.is_subnormal() { 0f64.copysign(x) } else { x };
            let y = 1.0 / kept;
            let high = y.to_bits() >> 32 << 32;
            if x.is_nan() {
                0x7fff_ffff_0000_0000
            } else if y.is_subnormal() {
                0f64.copysign(x).to_bits()
            } else {
                high
            }
        },
    );
    refused("rcp.approx.f64 %rd0, %rd1", ".ftz");
    refused("sqrt.full.f32 %r0, %r1", "full");
}

/// The manual's `min` and `max`; -0 is below +0.
fn extreme(min: bool, nan: bool, xorsign: bool, a: f32, b: f32) -> u64 {
    let (x, y) = if xorsign { (a.abs(), b.abs()) } else { (a, b) };
    let pick = match (x.is_nan(), y.is_nan()) {
        (true, true) => return 0x7fff_ffff,
        (true, false) | (false, true) if nan => return 0x7fff_ffff,
        (true, false) => y,
        (false, true) => x,
        _ => {
            let less = x.total_cmp(&y).is_lt();
            if less == min { x } else { y }
        }
    };
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    u64::from(if xorsign { pick.abs().to_bits() | sign } else { pick.to_bits() })
}

#[test]
fn extremes_and_signs() {
    let single = |x: u64| f32::from_bits(x as u32);
    let kept = |x: u64| single(flushed(x & 0xffff_ffff));
    let two = |r: &mut Random| {
        let [a, b, _] = related::<Single>(r, 32, 23);
        [a, b]
    };
    for (op, min) in [("min", true), ("max", false)] {
        for (n, nan) in [("", false), (".NaN", true)] {
            for (s, xorsign) in [("", false), (".xorsign.abs", true)] {
                verify(&format!("{op}{n}{s}.f32 %r0, %r1, %r2"), 32, two, |[a, b]| {
                    extreme(min, nan, xorsign, single(a), single(b))
                });
                verify(&format!("{op}.ftz{n}{s}.f32 %r0, %r1, %r2"), 32, two, |[a, b]| {
                    extreme(min, nan, xorsign, kept(a), kept(b))
                });
            }
        }
        let doubles = |r: &mut Random| {
            let [a, b, _] = related::<Double>(r, 64, 52);
            [a, b]
        };
        verify(&format!("{op}.f64 %rd0, %rd1, %rd2"), 64, doubles, |[a, b]| {
            let (x, y) = (f64::from_bits(a), f64::from_bits(b));
            match (x.is_nan(), y.is_nan()) {
                (true, true) => a | 1 << 51,
                (true, false) => b,
                (false, true) => a,
                _ => {
                    if x.total_cmp(&y).is_lt() == min {
                        a
                    } else {
                        b
                    }
                }
            }
        });
    }
    let one = |r: &mut Random| [r.number(32, 23)];
    let canonical = |x: f32| if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) };
    verify("abs.f32 %r0, %r1", 32, one, |[a]| canonical(single(a).abs()));
    verify("abs.ftz.f32 %r0, %r1", 32, one, |[a]| canonical(kept(a).abs()));
    verify("neg.f32 %r0, %r1", 32, one, |[a]| canonical(-single(a)));
    verify("neg.ftz.f32 %r0, %r1", 32, one, |[a]| canonical(-kept(a)));
    verify("abs.f64 %rd0, %rd1", 64, |r| [r.number(64, 52)], |[a]| a & !(1 << 63));
    verify("neg.f64 %rd0, %rd1", 64, |r| [r.number(64, 52)], |[a]| a ^ 1 << 63);
    verify("copysign.f32 %r0, %r1, %r2", 32, two, |[a, b]| a & 0x8000_0000 | b & 0x7fff_ffff);
    verify(
        "copysign.f64 %rd0, %rd1, %rd2",
        64,
        |r| [r.next(), r.next()],
        |[a, b]| a & 1 << 63 | b & !(1 << 63),
    );
    refused("min.xorsign.f32 %r0, %r1, %r2", "xorsign");
}
