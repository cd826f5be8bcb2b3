//! f32 and f64 arithmetic, PTX ISA 9.7.3, by soft floats.

use super::super::case::Target;
use super::super::elementwise::{Out, Suite};
use super::super::softfloat::{Format, ROUNDINGS};
use super::super::values::{Width, floats};
use rustc_apfloat::Round;
use std::cmp::Ordering;

/// Family `float`.
pub fn cases(s: &mut Suite) {
    s.room(1600);
    for f in [Format::F32, Format::F64] {
        for (rounding, round) in ROUNDINGS {
            rounded(s, f, &format!(".{rounding}"), round);
        }
        divisions(s, f);
        signs(s, f);
        extremes(s, f);
    }
    rounded(s, Format::F32, "", Round::NearestTiesToEven);
    rounded(s, Format::F64, "", Round::NearestTiesToEven);
    immediates(s);
    s.room(512);
}

/// Modifiers after the rounding.
fn modifiers(f: Format) -> &'static [&'static str] {
    match f {
        Format::F32 => &["", ".ftz", ".sat", ".ftz.sat"],
        _ => &[""],
    }
}

/// Applies `.ftz` to the operands and the result, `.sat` to the result.
fn modified(f: Format, modifier: &str, x: &[u64], op: impl Fn(&[u64]) -> u64) -> u64 {
    let ftz = modifier.contains("ftz");
    let operands: Vec<u64> = x.iter().map(|&v| if ftz { f.flush(v) } else { v }).collect();
    let mut d = op(&operands);
    if ftz {
        d = f.flush(d);
    }
    if modifier.contains("sat") { f.saturate(d) } else { d }
}

fn rounded(s: &mut Suite, f: Format, rounding: &str, round: Round) {
    let name = f.name();
    for m in modifiers(f) {
        let two = [floats(f), floats(f)];
        let out = Out::Float(f);
        s.op(&format!("add{rounding}{m}.{name} d, a, b"), out, &two, |x| {
            modified(f, m, x, |v| f.add(round, v[0], v[1]))
        });
        s.op(&format!("sub{rounding}{m}.{name} d, a, b"), out, &two, |x| {
            modified(f, m, x, |v| f.sub(round, v[0], v[1]))
        });
        s.op(&format!("mul{rounding}{m}.{name} d, a, b"), out, &two, |x| {
            modified(f, m, x, |v| f.mul(round, v[0], v[1]))
        });
        if rounding.is_empty() {
            continue;
        }
        let three = [floats(f), floats(f), floats(f)];
        for op in ["fma", "mad"] {
            s.op(&format!("{op}{rounding}{m}.{name} d, a, b, c"), out, &three, |x| {
                modified(f, m, x, |v| f.fma(round, v[0], v[1], v[2]))
            });
        }
    }
}

fn divisions(s: &mut Suite, f: Format) {
    let name = f.name();
    let out = Out::Float(f);
    for (rounding, round) in ROUNDINGS {
        for m in if f == Format::F32 { &["", ".ftz"][..] } else { &[""] } {
            s.op(&format!("div.{rounding}{m}.{name} d, a, b"), out, &[floats(f), floats(f)], |x| {
                modified(f, m, x, |v| f.div(round, v[0], v[1]))
            });
            s.op(&format!("rcp.{rounding}{m}.{name} d, a"), out, &[floats(f)], |x| {
                modified(f, m, x, |v| f.div(round, f.one(), v[0]))
            });
            s.op(&format!("sqrt.{rounding}{m}.{name} d, a"), out, &[floats(f)], |x| {
                modified(f, m, x, |v| f.sqrt(round, v[0]))
            });
        }
    }
}

fn signs(s: &mut Suite, f: Format) {
    let name = f.name();
    let one = [floats(f)];
    let two = [floats(f), floats(f)];
    for m in if f == Format::F32 { &["", ".ftz"][..] } else { &[""] } {
        let out = Out::Float(f);
        s.op(&format!("neg{m}.{name} d, a"), out, &one, |x| modified(f, m, x, |v| v[0] ^ f.sign()));
        s.op(&format!("abs{m}.{name} d, a"), out, &one, |x| modified(f, m, x, |v| v[0] & !f.sign()));
    }
    // The sign of a on the value of b, NaNs included: no arithmetic takes place.
    s.op(&format!("copysign.{name} d, a, b"), Out::Float(f), &two, |x| x[0] & f.sign() | x[1] & !f.sign());
    s.op(&format!("mov.{name} d, a"), Out::Bits(Width::of_bits(f.bits())), &one, |x| x[0]);
}

/// `min` and `max` of numbers, -0 below +0.
fn pick(f: Format, max: bool, a: u64, b: u64) -> u64 {
    let first = match f.compare(a, b) {
        Some(Ordering::Less) => !max,
        Some(Ordering::Greater) => max,
        // Equal values differ at most in the sign of a zero.
        _ => (a & f.sign() != 0) != max,
    };
    if first { a } else { b }
}

/// The manual's pseudo-code of `min` and `max`.
pub fn extreme(f: Format, max: bool, nan: bool, xorsign_abs: bool, a: u64, b: u64) -> u64 {
    let sign = (a ^ b) & f.sign();
    let (a, b) = if xorsign_abs { (a & !f.sign(), b & !f.sign()) } else { (a, b) };
    let d = match (f.is_nan(a), f.is_nan(b)) {
        (true, true) => f.nan(),
        (true, false) => {
            if nan {
                f.nan()
            } else {
                b
            }
        }
        (false, true) => {
            if nan {
                f.nan()
            } else {
                a
            }
        }
        (false, false) => pick(f, max, a, b),
    };
    if xorsign_abs && !f.is_nan(d) { d & !f.sign() | sign } else { d }
}

fn extremes(s: &mut Suite, f: Format) {
    let name = f.name();
    for (op, max) in [("min", false), ("max", true)] {
        let flushes = if f == Format::F32 { &["", ".ftz"][..] } else { &[""] };
        for ftz in flushes {
            let kinds =
                if f == Format::F32 { &["", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"][..] } else { &[""] };
            for kind in kinds {
                let text = format!("{op}{ftz}{kind}.{name} d, a, b");
                // `.xorsign.abs` needs compute capability 8.6.
                s.target(if kind.contains("xorsign") { Target::Sm86 } else { Target::Sm80 });
                s.op(&text, Out::Float(f), &[floats(f), floats(f)], |x| {
                    modified(f, ftz, x, |v| {
                        extreme(f, max, kind.contains("NaN"), kind.contains("xorsign"), v[0], v[1])
                    })
                });
            }
        }
    }
    s.target(Target::Sm80);
}

/// Immediates in both notations.
fn immediates(s: &mut Suite) {
    let (f, g) = (Format::F32, Format::F64);
    let rn = Round::NearestTiesToEven;
    s.op("add.rn.f32 d, a, 0fC0490FDB", Out::Float(f), &[floats(f)], |x| f.add(rn, x[0], 0xc049_0fdb));
    s.op("mul.rn.f32 d, a, 0.1", Out::Float(f), &[floats(f)], |x| f.mul(rn, x[0], f.from_f64(0.1)));
    s.op("mul.rn.f64 d, a, 0d3FB999999999999A", Out::Float(g), &[floats(g)], |x| {
        g.mul(rn, x[0], 0x3fb9_9999_9999_999a)
    });
    s.op("sub.rn.f64 d, -2.5e3, a", Out::Float(g), &[floats(g)], |x| g.sub(rn, g.from_f64(-2500.0), x[0]));
    s.op("fma.rn.f32 d, a, b, 0f3F800000", Out::Float(f), &[floats(f), floats(f)], |x| {
        f.fma(rn, x[0], x[1], f.one())
    });
}
