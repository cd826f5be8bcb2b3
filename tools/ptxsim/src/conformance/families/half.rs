//! f16 and bf16, scalar and in pairs: PTX ISA 9.7.4, by soft floats.

use super::super::case::Target;
use super::super::elementwise::{Out, Suite};
use super::super::softfloat::Format;
use super::super::values::{Values, floats, packed_floats};
use super::float::extreme;
use rustc_apfloat::Round;

const RN: Round = Round::NearestTiesToEven;

/// Family `half`.
pub fn cases(s: &mut Suite) {
    for f in [Format::F16, Format::Bf16] {
        arithmetic(s, f);
        fused(s, f);
        signs(s, f);
        extremes(s, f);
    }
    mixed(s);
}

/// Adds the scalar instruction and the packed one.
fn both(s: &mut Suite, f: Format, head: &str, sources: usize, expect: impl Fn(&[u64]) -> u64) {
    let operands = &["a", "b", "c"][..sources];
    let list = operands.join(", ");
    let scalar: Vec<Values> = (0..sources).map(|_| floats(f)).collect();
    s.room(1600);
    s.op(&format!("{head}.{} d, {list}", f.name()), Out::Float(f), &scalar, &expect);
    s.room(512);
    let packed: Vec<Values> = (0..sources).map(|_| packed_floats(f)).collect();
    s.op(&format!("{head}.{}x2 d, {list}", f.name()), Out::Packed(f), &packed, |x| {
        let half = |i: u32| -> u64 {
            let part: Vec<u64> = x.iter().map(|v| v >> (16 * i) & 0xffff).collect();
            expect(&part)
        };
        half(0) | half(1) << 16
    });
}

fn modified(f: Format, modifier: &str, x: &[u64], op: impl Fn(&[u64]) -> u64) -> u64 {
    let ftz = modifier.contains("ftz");
    let operands: Vec<u64> = x.iter().map(|&v| if ftz { f.flush(v) } else { v }).collect();
    let d = op(&operands);
    let d = if ftz { f.flush(d) } else { d };
    let d = if modifier.contains("sat") { f.saturate(d) } else { d };
    if modifier.contains("relu") { f.relu(d) } else { d }
}

fn arithmetic(s: &mut Suite, f: Format) {
    // add, sub and mul of bf16 need compute capability 9.0.
    s.target(if f == Format::F16 { Target::Sm80 } else { Target::Sm90 });
    let modifiers = if f == Format::F16 { &["", ".ftz", ".sat", ".ftz.sat"][..] } else { &[""] };
    for rounding in ["", ".rn"] {
        for m in modifiers {
            both(s, f, &format!("add{rounding}{m}"), 2, |x| modified(f, m, x, |v| f.add(RN, v[0], v[1])));
            both(s, f, &format!("sub{rounding}{m}"), 2, |x| modified(f, m, x, |v| f.sub(RN, v[0], v[1])));
            both(s, f, &format!("mul{rounding}{m}"), 2, |x| modified(f, m, x, |v| f.mul(RN, v[0], v[1])));
        }
    }
    s.target(Target::Sm80);
}

fn fused(s: &mut Suite, f: Format) {
    let modifiers = if f == Format::F16 {
        &["", ".ftz", ".sat", ".ftz.sat", ".relu", ".ftz.relu"][..]
    } else {
        &["", ".relu"]
    };
    for m in modifiers {
        both(s, f, &format!("fma.rn{m}"), 3, |x| modified(f, m, x, |v| f.fma(RN, v[0], v[1], v[2])));
    }
}

fn signs(s: &mut Suite, f: Format) {
    for m in if f == Format::F16 { &["", ".ftz"][..] } else { &[""] } {
        both(s, f, &format!("neg{m}"), 1, |x| modified(f, m, x, |v| v[0] ^ f.sign()));
        both(s, f, &format!("abs{m}"), 1, |x| modified(f, m, x, |v| v[0] & !f.sign()));
    }
}

fn extremes(s: &mut Suite, f: Format) {
    for (op, max) in [("min", false), ("max", true)] {
        for ftz in if f == Format::F16 { &["", ".ftz"][..] } else { &[""] } {
            for kind in ["", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"] {
                let (nan, xorsign) = (kind.contains("NaN"), kind.contains("xorsign"));
                // `.xorsign.abs` needs compute capability 8.6.
                s.target(if xorsign { Target::Sm86 } else { Target::Sm80 });
                both(s, f, &format!("{op}{ftz}{kind}"), 2, |x| {
                    modified(f, ftz, x, |v| extreme(f, max, nan, xorsign, v[0], v[1]))
                });
            }
        }
    }
    s.target(Target::Sm80);
}

/// What NVRTC makes of `__hfma2` chains and of conversions in between: several instructions, rounded at each.
fn mixed(s: &mut Suite) {
    let f = Format::F16;
    s.op("mul.rn.f16 d, a, b; add.rn.f16 d, d, c", Out::Float(f), &[floats(f), floats(f), floats(f)], |x| {
        f.add(RN, f.mul(RN, x[0], x[1]), x[2])
    });
}
