//! f16 and bf16, single and in pairs, against `rustc_apfloat`.

use super::float::{arithmetic, related, to};
use super::{Random, refused, verify};
use rustc_apfloat::ieee::{BFloat, Double, Half};
use rustc_apfloat::{Float, FloatConvert, Round};

/// A format: its name, bits of its significand, bits of 1.0.
const F16: (&str, u32, u64) = ("f16", 10, 0x3c00);
const BF16: (&str, u32, u64) = ("bf16", 7, 0x3f80);

/// What instructions make of a rounded result: `clamp` is `""`, `".sat"` or `".relu"`.
fn finished<F: Float>(x: F, one: u64, clamp: &str, flush: impl Fn(u64) -> u64) -> u64 {
    let bits = flush(x.to_bits() as u64);
    let negative = bits & 0x8000 != 0;
    match clamp {
        ".sat" if x.is_nan() || negative => 0,
        ".sat" => bits.min(one),
        _ if x.is_nan() => 0x7fff,
        ".relu" if negative => 0,
        _ => bits,
    }
}

fn family<F: Float>((name, fraction, one): (&str, u32, u64)) {
    let brain = name == "bf16";
    for op in ["add", "sub", "mul", "fma"] {
        for ftz in [false, true] {
            for clamp in ["", ".sat", ".relu"] {
                if brain && (ftz || clamp == ".sat") || clamp == ".relu" && op != "fma" {
                    continue;
                }
                let flush = |x: u64| if ftz && x & 0x7c00 == 0 { x & 0x8000 } else { x };
                let value = |x: [u64; 3]| {
                    let x = x.map(|x| to::<F>(flush(x & 0xffff)));
                    finished(arithmetic(op, x, Round::NearestTiesToEven), one, clamp, flush)
                };
                let f = if ftz { ".ftz" } else { "" };
                let text = format!("{op}.rn{f}{clamp}.{name}");
                let one_lane = |r: &mut Random| related::<F>(r, 16, fraction);
                let pair = |r: &mut Random| {
                    let (low, high) = (related::<F>(r, 16, fraction), related::<F>(r, 16, fraction));
                    [0, 1, 2].map(|n| low[n] & 0xffff | high[n] << 16)
                };
                let both = |x: [u64; 3]| value(x) | value(x.map(|x| x >> 16)) << 16;
                if op == "fma" {
                    verify(&format!("{text} %r0, %r1, %r2, %r3"), 16, one_lane, value);
                    verify(&format!("{text}x2 %r0, %r1, %r2, %r3"), 32, pair, both);
                } else {
                    let two = |x: [u64; 3]| [x[0], x[1]];
                    verify(
                        &format!("{text} %r0, %r1, %r2"),
                        16,
                        |r| two(one_lane(r)),
                        |[a, b]| value([a, b, 0]),
                    );
                    verify(
                        &format!("{text}x2 %r0, %r1, %r2"),
                        32,
                        |r| two(pair(r)),
                        |[a, b]| both([a, b, 0]),
                    );
                }
            }
        }
    }
}

#[test]
fn arithmetic_of_f16() {
    family::<Half>(F16);
    refused("fma.rn.sat.relu.f16 %r0, %r1, %r2, %r3", "relu");
    refused("fma.rz.f16 %r0, %r1, %r2, %r3", ".rn");
    refused("add.relu.f16 %r0, %r1, %r2", "relu");
}

#[test]
fn arithmetic_of_bf16() {
    family::<BFloat>(BF16);
    refused("fma.rn.ftz.bf16 %r0, %r1, %r2, %r3", ".ftz");
    refused("add.sat.bf16 %r0, %r1, %r2", ".sat");
}

/// Ties that a sum of few bits makes with a product: the addend decides, from far below.
#[test]
fn fused_operations_are_rounded_once() {
    let tie = |r: &mut Random| {
        // (1 + 2^-5)^2 = 1 + 2^-4 + 2^-10: with 2^-11 added, a tie of f16; the sign of a tiny rest decides.
        let sign = r.below(2) << 15;
        [0x3c20, 0x3c20 ^ sign, (0x1000 + r.below(3)) ^ (r.below(2) << 15)]
    };
    let expect =
        |x: [u64; 3]| arithmetic("fma", x.map(to::<Half>), Round::NearestTiesToEven).to_bits() as u64;
    verify("fma.rn.f16 %r0, %r1, %r2, %r3", 16, tie, expect);
    let far = |r: &mut Random| [r.number(16, 7), 0x3f80, r.number(16, 7) & 0x80ff];
    let expect = |x: [u64; 3]| {
        let x = arithmetic("fma", x.map(to::<BFloat>), Round::NearestTiesToEven);
        if x.is_nan() { 0x7fff } else { x.to_bits() as u64 }
    };
    verify("fma.rn.bf16 %r0, %r1, %r2, %r3", 16, far, expect);
}

fn extremes<F: Float>((name, fraction, _): (&str, u32, u64)) {
    let key = |x: u64| if x & 0x8000 != 0 { -((x & 0x7fff) as i32) - 1 } else { x as i32 };
    for (op, min) in [("min", true), ("max", false)] {
        for (n, nan) in [("", false), (".NaN", true)] {
            for (s, xorsign) in [("", false), (".xorsign.abs", true)] {
                let value = |[a, b]: [u64; 2]| {
                    let (a, b) = (a & 0xffff, b & 0xffff);
                    let (x, y) = if xorsign { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
                    let pick = match (to::<F>(a).is_nan(), to::<F>(b).is_nan()) {
                        (true, true) => return 0x7fff,
                        (true, _) | (_, true) if nan => return 0x7fff,
                        (true, _) => y,
                        (_, true) => x,
                        _ => {
                            if (key(x) < key(y)) == min {
                                x
                            } else {
                                y
                            }
                        }
                    };
                    if xorsign { pick & 0x7fff | (a ^ b) & 0x8000 } else { pick }
                };
                let make = |r: &mut Random| [r.number(16, fraction), r.number(16, fraction)];
                verify(&format!("{op}{n}{s}.{name} %r0, %r1, %r2"), 16, make, value);
                let pair = |r: &mut Random| {
                    [0; 2].map(|_: u64| r.number(16, fraction) | r.number(16, fraction) << 16)
                };
                verify(&format!("{op}{n}{s}.{name}x2 %r0, %r1, %r2"), 32, pair, |x| {
                    value(x) | value(x.map(|x| x >> 16)) << 16
                });
            }
        }
    }
}

#[test]
fn extremes_and_signs() {
    extremes::<Half>(F16);
    extremes::<BFloat>(BF16);
    for (name, fraction, _) in [F16, BF16] {
        let make = |r: &mut Random| [r.number(16, fraction) | r.number(16, fraction) << 16];
        verify(&format!("neg.{name}x2 %r0, %r1"), 32, make, |[a]| a ^ 0x8000_8000);
        verify(&format!("abs.{name}x2 %r0, %r1"), 32, make, |[a]| a & 0x7fff_7fff);
        verify(&format!("neg.{name} %r0, %r1"), 16, make, |[a]| a ^ 0x8000);
        verify(&format!("abs.{name} %r0, %r1"), 16, make, |[a]| a & 0x7fff);
    }
}

/// The host's function, rounded to 16 bits once.
fn approximate<F: FloatConvert<Double>>(
    (name, fraction, _): (&str, u32, u64),
    op: &str,
    f: impl Fn(f64) -> f64,
) where
    Double: FloatConvert<F>,
{
    let exponent = 0x7fff >> fraction << fraction;
    let flush = |x: u64| if op.ends_with("ftz") && x & exponent == 0 { x & 0x8000 } else { x };
    let value = |bits: u64| {
        let x: Double = to::<F>(flush(bits & 0xffff)).convert(&mut false).value;
        let y = f(f64::from_bits(x.to_bits() as u64));
        let y: F = to::<Double>(y.to_bits()).convert(&mut false).value;
        if y.is_nan() { 0x7fff } else { flush(y.to_bits() as u64) }
    };
    verify(&format!("{op}.{name} %r0, %r1"), 16, |r| [r.number(16, fraction)], |[a]| value(a));
}

#[test]
fn approximate_functions() {
    approximate::<Half>(F16, "ex2.approx", f64::exp2);
    approximate::<Half>(F16, "ex2.approx.ftz", f64::exp2);
    approximate::<Half>(F16, "tanh.approx", f64::tanh);
    approximate::<BFloat>(BF16, "ex2.approx.ftz", f64::exp2);
    approximate::<BFloat>(BF16, "tanh.approx", f64::tanh);
}
