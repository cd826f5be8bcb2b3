//! `cvt`, `mov` of vectors, `cvt.pack`: PTX ISA 9.7.9.

use super::super::case::Target;
use super::super::elementwise::{Out, Suite};
use super::super::softfloat::{Format, ROUNDINGS, Tf32};
use super::super::values::{Values, Width, floats, integers, ones};
use rustc_apfloat::ieee::{Float8E4M3FN, Float8E5M2, Single};
use rustc_apfloat::{Float, FloatConvert, Round};

const RN: Round = Round::NearestTiesToEven;
const FORMATS: [Format; 4] = [Format::F16, Format::Bf16, Format::F32, Format::F64];
/// `.rni .rzi .rmi .rpi`
const INTEGER_ROUNDINGS: [(&str, Round); 4] = [
    ("rni", Round::NearestTiesToEven),
    ("rzi", Round::TowardZero),
    ("rmi", Round::TowardNegative),
    ("rpi", Round::TowardPositive),
];

/// An integer type of `cvt`.
#[derive(Clone, Copy)]
struct Integer {
    signed: bool,
    bits: u32,
}

impl Integer {
    fn all() -> impl Iterator<Item = Integer> {
        [8, 16, 32, 64].into_iter().flat_map(|bits| [false, true].map(|signed| Integer { signed, bits }))
    }

    fn name(self) -> String {
        format!("{}{}", if self.signed { 's' } else { 'u' }, self.bits)
    }

    fn range(self) -> (i128, i128) {
        match self.signed {
            true => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
            false => (0, (1 << self.bits) - 1),
        }
    }

    /// The value in the low bits of a register.
    fn value(self, v: u64) -> i128 {
        let v = i128::from(v & ones(self.bits));
        if v > self.range().1 { v - (1 << self.bits) } else { v }
    }

    /// A register of so many bits that holds the value: extended as its type says.
    fn register(self, width: Width, v: i128) -> u64 {
        self.value(v as u64) as u64 & ones(8 * width.bytes() as u32)
    }
}

/// Family `convert`.
pub fn cases(s: &mut Suite) {
    between_integers(s);
    to_integers(s);
    from_integers(s);
    between_floats(s);
    to_integral(s);
    narrow(s);
    tf32(s);
    eight_bits(s);
    vectors(s);
}

fn between_integers(s: &mut Suite) {
    for from in Integer::all() {
        for to in Integer::all() {
            let mut widths = vec![Width::of_bits(to.bits)];
            if to.bits < 32 {
                widths.push(Width::B32);
            }
            for width in widths {
                let (t, f) = (to.name(), from.name());
                // A second case tells the register's width apart.
                let wide = if width == Width::of_bits(to.bits) { "" } else { "; and.b32 d, d, 0xffffffff" };
                let one = [integers(from.bits)];
                s.op(&format!("cvt.{t}.{f} d, a{wide}"), Out::Bits(width), &one, |x| {
                    to.register(width, from.value(x[0]))
                });
                let (low, high) = to.range();
                if from.range().0 < low || from.range().1 > high {
                    s.op(&format!("cvt.sat.{t}.{f} d, a{wide}"), Out::Bits(width), &one, |x| {
                        to.register(width, from.value(x[0]).clamp(low, high))
                    });
                }
            }
        }
    }
}

/// Needed for conversions of bf16 other than from f32.
fn target(s: &mut Suite, f: Format) {
    s.target(if f == Format::Bf16 { Target::Sm90 } else { Target::Sm80 });
}

fn to_integers(s: &mut Suite) {
    for f in FORMATS {
        target(s, f);
        // bf16 converts to and from 16 bits and more.
        for to in Integer::all().filter(|t| f != Format::Bf16 || t.bits > 8) {
            for (rounding, round) in INTEGER_ROUNDINGS {
                for ftz in if f == Format::F32 { &["", ".ftz"][..] } else { &[""] } {
                    let width = Width::of_bits(to.bits);
                    let (low, high) = to.range();
                    // The value of a NaN, by the manual's two rules.
                    let nan = if f != Format::F64 && to.bits != 64 { 0 } else { 1 << (to.bits - 1) };
                    let text = format!("cvt.{rounding}{ftz}.{}.{} d, a", to.name(), f.name());
                    s.op(&text, Out::Bits(width), &[near_integers(f)], |x| {
                        let v = if ftz.is_empty() { x[0] } else { f.flush(x[0]) };
                        to.register(width, f.to_integer(round, v, low, high).unwrap_or(nan))
                    });
                }
            }
        }
    }
    s.target(Target::Sm80);
    let i32s = Integer { signed: true, bits: 32 };
    s.op("cvt.rzi.sat.s32.f32 d, a", Out::Bits(Width::B32), &[near_integers(Format::F32)], |x| {
        let v = Format::F32.to_integer(Round::TowardZero, x[0], i32::MIN.into(), i32::MAX.into());
        i32s.register(Width::B32, v.unwrap_or(0))
    });
}

/// The special values, and the ends of the ranges of integers with their neighbours.
fn near_integers(f: Format) -> Values {
    let mut v = floats(f);
    for bits in [7, 8, 15, 16, 31, 32, 63, 64] {
        let end = f.from_integer(RN, 1 << bits);
        if end < f.infinity() {
            v.special.extend([
                end,
                end - 1,
                end + 1,
                end | f.sign(),
                (end - 1) | f.sign(),
                (end + 1) | f.sign(),
            ]);
        }
    }
    for x in [0.5, 0.75, 1.25, 3.5, 4.5, 126.5, 127.5, 254.5, 255.5] {
        v.special.extend([f.from_f64(x), f.from_f64(-x)]);
    }
    v
}

fn from_integers(s: &mut Suite) {
    for f in FORMATS {
        target(s, f);
        for from in Integer::all().filter(|t| f != Format::Bf16 || t.bits > 8) {
            for (rounding, round) in ROUNDINGS {
                let text = format!("cvt.{rounding}.{}.{} d, a", f.name(), from.name());
                s.op(&text, Out::Float(f), &[integers(from.bits)], |x| {
                    f.from_integer(round, from.value(x[0]))
                });
            }
            if f != Format::Bf16 {
                let text = format!("cvt.rn.sat.{}.{} d, a", f.name(), from.name());
                s.op(&text, Out::Float(f), &[integers(from.bits)], |x| {
                    f.saturate(f.from_integer(RN, from.value(x[0])))
                });
            }
        }
    }
    s.target(Target::Sm80);
}

/// Values of `from` at which a conversion to `to` rounds, overflows or underflows.
fn near_edges(from: Format, to: Format) -> Values {
    let mut v = floats(from);
    if from.mantissa_bits() > to.mantissa_bits() {
        let edges = [to.smallest_normal(), 1, 2, to.largest(), to.one(), to.smallest_normal() - 1];
        for edge in edges {
            let e = to.convert(from, RN, edge);
            let half = 1 << (from.mantissa_bits() - to.mantissa_bits() - 1);
            for x in [e, e + 1, e - 1, e + half, e + half - 1, e + half + 1, e - half] {
                v.special.extend([x, x | from.sign()]);
            }
        }
    }
    v
}

fn between_floats(s: &mut Suite) {
    for from in FORMATS {
        for to in FORMATS {
            if from == to {
                continue;
            }
            let bf = from == Format::Bf16 || to == Format::Bf16;
            s.target(if bf { Target::Sm90 } else { Target::Sm80 });
            let exact = from == Format::F16 && to.bits() > 16
                || to == Format::F64
                || (from, to) == (Format::Bf16, Format::F32);
            let (t, f) = (to.name(), from.name());
            let f32s = from == Format::F32 || to == Format::F32;
            for (rounding, round) in if exact { &[("", RN)][..] } else { &ROUNDINGS[..] } {
                let dot = if exact { "" } else { "." };
                for m in ["", ".ftz", ".sat", ".ftz.sat"] {
                    if m.contains("ftz") && (!f32s || bf) || m.contains("sat") && bf {
                        continue;
                    }
                    let flush = |g: Format, v: u64| {
                        if m.contains("ftz") && g == Format::F32 { g.flush(v) } else { v }
                    };
                    let text = format!("cvt{dot}{rounding}{m}.{t}.{f} d, a");
                    s.op(&text, Out::Float(to), &[near_edges(from, to)], |x| {
                        let d = flush(to, from.convert(to, *round, flush(from, x[0])));
                        if m.contains("sat") { to.saturate(d) } else { d }
                    });
                }
            }
        }
    }
    s.target(Target::Sm80);
}

fn to_integral(s: &mut Suite) {
    for f in FORMATS {
        target(s, f);
        for (rounding, round) in INTEGER_ROUNDINGS {
            for m in ["", ".ftz", ".sat", ".ftz.sat"] {
                if m.contains("ftz") && f != Format::F32 || m.contains("sat") && f == Format::Bf16 {
                    continue;
                }
                let text = format!("cvt.{rounding}{m}.{0}.{0} d, a", f.name());
                s.op(&text, Out::Float(f), &[near_integers(f)], |x| {
                    let v = if m.contains("ftz") { f.flush(x[0]) } else { x[0] };
                    let d = f.round_to_integral(round, v);
                    if m.contains("sat") { f.saturate(d) } else { d }
                });
            }
        }
    }
    s.target(Target::Sm80);
    for f in [Format::F16, Format::F32, Format::F64] {
        s.op(&format!("cvt.sat.{0}.{0} d, a", f.name()), Out::Float(f), &[floats(f)], |x| f.saturate(x[0]));
    }
    let f = Format::F32;
    s.op("cvt.ftz.f32.f32 d, a", Out::Float(f), &[floats(f)], |x| f.flush(x[0]));
}

/// `.f16`, `.bf16` and their pairs from f32, with `.relu` and `.satfinite`.
fn narrow(s: &mut Suite) {
    let from = Format::F32;
    for to in [Format::F16, Format::Bf16] {
        for (rounding, round) in &ROUNDINGS[..2] {
            for m in ["", ".relu", ".satfinite", ".relu.satfinite"] {
                let convert = |v: u64| {
                    let mut d = from.convert(to, *round, v);
                    if m.contains("satfinite") && d & !to.sign() == to.infinity() {
                        d = d & to.sign() | to.largest();
                    }
                    if m.contains("relu") { to.relu(d) } else { d }
                };
                let values = near_edges(from, to);
                if !m.is_empty() {
                    let text = format!("cvt.{rounding}{m}.{}.f32 d, a", to.name());
                    s.op(&text, Out::Float(to), std::slice::from_ref(&values), |x| convert(x[0]));
                }
                // The first source becomes the upper half.
                let text = format!("cvt.{rounding}{m}.{}x2.f32 d, a, b", to.name());
                s.op(&text, Out::Packed(to), &[values.clone(), values], |x| {
                    convert(x[0]) << 16 | convert(x[1])
                });
            }
        }
    }
}

fn tf32(s: &mut Suite) {
    let round = |round: Round, v: u64| -> u64 {
        let mut lost = false;
        let d: Tf32 = Single::from_bits(v.into()).convert_r(round, &mut lost).value;
        (d.to_bits() as u64) << 13
    };
    let f = Format::F32;
    let mut values = floats(f);
    for v in [
        0x3f80_1000,
        0x3f80_0fff,
        0x3f80_1001,
        0x3f80_3000,
        0x7f7f_efff,
        0x7f7f_f000,
        0x0000_1000,
        0x007f_f000,
    ] {
        values.special.extend([v, v | f.sign()]);
    }
    // The 13 bits below the format are not defined.
    let clear = "; and.b32 d, d, 0xffffe000";
    for (m, r, target) in [
        ("rna", Round::NearestTiesToAway, Target::Sm80),
        ("rn", RN, Target::Sm90),
        ("rz", Round::TowardZero, Target::Sm90),
        ("rn.relu", RN, Target::Sm90),
        ("rz.relu", Round::TowardZero, Target::Sm90),
    ] {
        s.target(target);
        s.op(&format!("cvt.{m}.tf32.f32 d, a{clear}"), Out::Float(f), std::slice::from_ref(&values), |x| {
            let d = round(r, x[0]);
            if m.contains("relu") { f.relu(d) } else { d }
        });
    }
    s.target(Target::Sm80);
}

/// `.e4m3x2` and `.e5m2x2`, compute capability 8.9.
fn eight_bits(s: &mut Suite) {
    fn to_eight(e4m3: bool, v: u64, relu: bool) -> u64 {
        if Format::F32.is_nan(v) {
            return 0x7f;
        }
        let mut lost = false;
        let single = Single::from_bits(v.into());
        let (bits, largest) = match e4m3 {
            true => {
                // No infinity: what is above the largest value, 448, saturates.
                let limit = Single::from_u128(448).value;
                let clamped = if single.abs() > limit { limit.copy_sign(single) } else { single };
                let d: Float8E4M3FN = clamped.convert_r(RN, &mut lost).value;
                (d.to_bits() as u64, 0x7e)
            }
            false => {
                let d: Float8E5M2 = single.convert_r(RN, &mut lost).value;
                (d.to_bits() as u64, 0x7b)
            }
        };
        let bits = if bits & 0x7f > largest { bits & 0x80 | largest } else { bits };
        if relu && bits & 0x80 != 0 { 0 } else { bits }
    }
    fn from_eight(e4m3: bool, v: u64) -> u64 {
        let mut lost = false;
        let v = u128::from(v & 0xff);
        let half: rustc_apfloat::ieee::Half = match e4m3 {
            true => Float8E4M3FN::from_bits(v).convert_r(RN, &mut lost).value,
            false => Float8E5M2::from_bits(v).convert_r(RN, &mut lost).value,
        };
        half.to_bits() as u64
    }
    s.target(Target::Sm89);
    let f = Format::F32;
    let mut values = floats(f);
    for x in [
        448.0,
        449.0,
        464.0,
        463.9,
        57344.0,
        61440.0,
        61439.0,
        0.001953125,
        0.0009765625,
        1.0625,
        1.1875,
        17.0,
        9.5,
        1.5e-5,
    ] {
        values.special.extend([f.from_f64(x), f.from_f64(-x)]);
    }
    let all: Vec<u64> = (0..256u64).map(|v| v | ((v * 31 + 7) % 256) << 8).collect();
    for (e4m3, name) in [(true, "e4m3"), (false, "e5m2")] {
        for (relu, m) in [(false, ""), (true, ".relu")] {
            // A NaN becomes the format's, 0x7f; e5m2 has three, of either sign.
            let two = [values.clone(), values.clone()];
            s.partial(
                &format!("cvt.rn.satfinite{m}.{name}x2.f32 d, a, b"),
                Out::Bits(Width::B16),
                &two,
                |x| {
                    let open = !e4m3 && (f.is_nan(x[0]) || f.is_nan(x[1]));
                    (!open).then(|| to_eight(e4m3, x[0], relu) << 8 | to_eight(e4m3, x[1], relu))
                },
            );
            let halves = super::super::values::packed_floats(Format::F16);
            s.partial(
                &format!("cvt.rn.satfinite{m}.{name}x2.f16x2 d, a"),
                Out::Bits(Width::B16),
                &[halves],
                |x| {
                    let wide = [16, 0].map(|k| Format::F16.convert(f, RN, x[0] >> k & 0xffff));
                    let open = !e4m3 && wide.iter().any(|&v| f.is_nan(v));
                    (!open).then(|| to_eight(e4m3, wide[0], relu) << 8 | to_eight(e4m3, wide[1], relu))
                },
            );
            s.op(
                &format!("cvt.rn{m}.f16x2.{name}x2 d, a"),
                Out::Packed(Format::F16),
                &[Values::only(Width::B16, &all)],
                |x| {
                    let half = |v: u64| {
                        let d = from_eight(e4m3, v);
                        if relu { Format::F16.relu(d) } else { d }
                    };
                    half(x[0]) | half(x[0] >> 8) << 16
                },
            );
        }
    }
    s.target(Target::Sm80);
}

/// Packing and unpacking by `mov`, and `cvt.pack`.
fn vectors(s: &mut Suite) {
    let (h, w, l) = (integers(16), integers(32), integers(64));
    s.op("mov.b32 d, {a, b}", Out::Bits(Width::B32), &[h.clone(), h.clone()], |x| x[0] | x[1] << 16);
    s.op("mov.b64 d, {a, b}", Out::Bits(Width::B64), &[w.clone(), w.clone()], |x| x[0] | x[1] << 32);
    s.op("mov.b64 d, {a, b, c, e}", Out::Bits(Width::B64), &[h.clone(), h.clone(), h.clone(), h], |x| {
        x[0] | x[1] << 16 | x[2] << 32 | x[3] << 48
    });
    let halves = [Out::Bits(Width::B16), Out::Bits(Width::B16)];
    s.ops("mov.b32 {d, g}, a", &halves, std::slice::from_ref(&w), |x, d| {
        d[0] = Some(x[0] & 0xffff);
        d[1] = Some(x[0] >> 16);
    });
    s.ops("mov.b64 {_, d, g, _}, a", &halves, std::slice::from_ref(&l), |x, d| {
        d[0] = Some(x[0] >> 16 & 0xffff);
        d[1] = Some(x[0] >> 32 & 0xffff);
    });
    let words = [Out::Bits(Width::B32), Out::Bits(Width::B32)];
    s.ops("mov.b64 {d, g}, a", &words, &[l], |x, d| {
        d[0] = Some(x[0] & ones(32));
        d[1] = Some(x[0] >> 32);
    });
    for to in Integer::all().filter(|t| t.bits == 16) {
        let (low, high) = to.range();
        let two = [w.clone(), w.clone()];
        let part = move |v: u64| i128::from(v as i32).clamp(low, high) as u64 & 0xffff;
        s.op(&format!("cvt.pack.sat.{}.s32 d, a, b", to.name()), Out::Bits(Width::B32), &two, |x| {
            part(x[0]) << 16 | part(x[1])
        });
    }
    for to in Integer::all().filter(|t| t.bits == 8) {
        let (low, high) = to.range();
        let three = [w.clone(), w.clone(), w.clone()];
        let part = move |v: u64| i128::from(v as i32).clamp(low, high) as u64 & 0xff;
        s.op(&format!("cvt.pack.sat.{}.s32.b32 d, a, b, c", to.name()), Out::Bits(Width::B32), &three, |x| {
            (x[2] & 0xffff) << 16 | part(x[0]) << 8 | part(x[1])
        });
    }
}
