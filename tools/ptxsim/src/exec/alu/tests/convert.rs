//! Conversions: integers against 128-bit integers, floating point against `rustc_apfloat`.

use super::float::{MODES, to};
use super::{Random, number, refused, verify};
use crate::exec::test_bench::Bench;
use rustc_apfloat::ieee::{BFloat, Double, Half, Single};
use rustc_apfloat::{Float, FloatConvert, Round};

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

const INTEGRAL: [(&str, Round); 4] = [
    ("rni", Round::NearestTiesToEven),
    ("rzi", Round::TowardZero),
    ("rmi", Round::TowardNegative),
    ("rpi", Round::TowardPositive),
];

fn name(bits: u32) -> &'static str {
    if bits == 64 { "%rd" } else { "%r" }
}

/// A value of the width, extended to its register by its sign.
fn extended(x: i128, bits: u32, signed: bool) -> u64 {
    let x = number(x as u64, bits, signed) as u64;
    if bits == 64 { x } else { x & 0xffff_ffff }
}

#[test]
fn between_integers() {
    for (from, w, s) in INTEGERS {
        for (into, v, t) in INTEGERS {
            let wide = if v == 64 { 64 } else { 32 };
            let text = |sat: &str| format!("cvt{sat}.{into}.{from} {}0, {}1", name(v), name(w));
            verify(&text(""), wide, |r| [r.integer()], |[a]| extended(number(a, w, s), v, t));
            let (low, high) =
                if t { (-(1i128 << (v - 1)), (1i128 << (v - 1)) - 1) } else { (0, (1i128 << v) - 1) };
            verify(
                &text(".sat"),
                wide,
                |r| [r.integer()],
                |[a]| extended(number(a, w, s).clamp(low, high), v, t),
            );
        }
    }
    refused("cvt.rn.s32.s64 %r0, %rd1", "no rounding");
    refused("cvt.s32.b32 %r0, %r1", "no conversion");
}

/// Registers wider and narrower than the type.
#[test]
fn results_are_extended_to_their_registers() {
    let mut b =
        Bench::new("cvt.s8.s32 %rs0, %r1; cvt.s8.s32 %rd0, %r1; cvt.u8.s32 %rd1, %r1; cvt.s16.s8 %r2, %r1;")
            .expect("lowers");
    b.set("%r1", [0x1234_5680u32; 32]);
    b.run(u32::MAX);
    assert_eq!(b.get::<u16>("%rs0"), [0xff80; 32]);
    assert_eq!(b.get::<u64>("%rd0"), [0xffff_ffff_ffff_ff80; 32]);
    assert_eq!(b.get::<u64>("%rd1"), [0x80; 32]);
    assert_eq!(b.get::<u32>("%r2"), [0xffff_ff80; 32]);
    // A source register may be wider than the type.
    let mut b =
        Bench::new("cvt.u32.u8 %r0, %rd1; cvt.s32.s16 %r1, %rd1; cvt.f32.f16 %r2, %rd1;").expect("lowers");
    b.set("%rd1", [0x1111_2222_3333_c0ffu64; 32]);
    b.run(u32::MAX);
    assert_eq!(b.get::<u32>("%r0"), [0xff; 32]);
    assert_eq!(b.get::<i32>("%r1"), [-0x3f01; 32]);
    assert_eq!(b.get::<f32>("%r2"), [half::f16::from_bits(0xc0ff).to_f32(); 32]);
}

/// Name, bits, bits of the significand.
type Format = (&'static str, u32, u32);
const F16: Format = ("f16", 16, 10);
const BF16: Format = ("bf16", 16, 7);
const F32: Format = ("f32", 32, 23);
const F64: Format = ("f64", 64, 52);

fn flushed(x: u64) -> u64 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x & 0xffff_ffff }
}

fn to_integers<F: Float>((from, bits, fraction): Format) {
    for (into, w, signed) in INTEGERS {
        for (mode, round) in INTEGRAL {
            for ftz in [false, true] {
                if ftz && from != "f32" {
                    continue;
                }
                let f = if ftz { ".ftz" } else { "" };
                let part = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                let make = |r: &mut Random| {
                    // Numbers around the ends of the integers' ranges are the interesting ones.
                    if r.below(3) > 0 {
                        return [r.number(bits, fraction)];
                    }
                    let near = F::from_i128_r(number(r.integer(), 64, true), Round::TowardZero).value;
                    [(near.to_bits() as u64).wrapping_add(r.below(5)).wrapping_sub(2) & part]
                };
                verify(
                    &format!("cvt.{mode}{f}.{into}.{from} {}0, {}1", name(w), name(bits)),
                    if w == 64 { 64 } else { 32 },
                    make,
                    |[a]| {
                        let x: F = to(if ftz { flushed(a) } else { a & part });
                        if x.is_nan() {
                            let lowest = if from == "f64" || w == 64 { 1i128 << (w - 1) } else { 0 };
                            return extended(lowest, w, signed);
                        }
                        let mut exact = false;
                        let value = if signed {
                            x.to_i128_r(w as usize, round, &mut exact).value
                        } else {
                            x.to_u128_r(w as usize, round, &mut exact).value as i128
                        };
                        extended(value, w, signed)
                    },
                );
            }
        }
    }
}

#[test]
fn floating_point_to_integers() {
    to_integers::<Half>(F16);
    to_integers::<BFloat>(BF16);
    to_integers::<Single>(F32);
    to_integers::<Double>(F64);
    refused("cvt.s32.f32 %r0, %r1", ".rzi");
    refused("cvt.rn.s32.f32 %r0, %r1", ".rzi");
}

fn from_integers<F: Float>((into, bits, _): Format, one: u64) {
    for (from, w, signed) in INTEGERS {
        for (mode, round) in MODES {
            let value = |a: u64| {
                let x = number(a, w, signed);
                if signed { F::from_i128_r(x, round).value } else { F::from_u128_r(x as u128, round).value }
            };
            let text = |sat: &str| format!("cvt.{mode}{sat}.{into}.{from} {}0, {}1", name(bits), name(w));
            verify(&text(""), bits, |r| [r.integer()], |[a]| value(a).to_bits() as u64);
            verify(
                &text(".sat"),
                bits,
                |r| [r.integer()],
                |[a]| if number(a, w, signed) > 0 { one } else { 0 },
            );
        }
    }
}

#[test]
fn integers_to_floating_point() {
    from_integers::<Half>(F16, 0x3c00);
    from_integers::<BFloat>(BF16, 0x3f80);
    from_integers::<Single>(F32, 0x3f80_0000);
    from_integers::<Double>(F64, 1f64.to_bits());
    refused("cvt.f32.s32 %r0, %r1", ".rn");
    refused("cvt.rni.f32.s32 %r0, %r1", ".rn");
}

/// The canonical NaN of each format; f64 keeps what it can of the source's.
fn nan(into: Format, from: Format, a: u64) -> u64 {
    match (into.0, from.0) {
        ("f64", "f64") => a | 1 << 51,
        ("f64", "f32") => (a & 0x8000_0000) << 32 | 0x7ff8 << 48 | (a & 0x3f_ffff) << 29,
        ("f64", "f16") => (a & 0x8000) << 48 | 0x7ff8 << 48 | (a & 0x3ff) << 42,
        ("f64", _) => (a & 0x8000) << 48 | 0x7ff8 << 48 | (a & 0x7f) << 45,
        ("f32", _) => 0x7fff_ffff,
        _ => 0x7fff,
    }
}

fn convert<F: FloatConvert<G>, G: Float>(from: Format, into: Format, one: u64) {
    let widens = from.2 <= into.2 && (from.0, into.0) != ("bf16", "f16");
    let same = from.0 == into.0;
    let integral = if same { &INTEGRAL[..] } else { &[] };
    let modes = if widens { &[] } else { &MODES[..] };
    let none = if widens { &[("", Round::NearestTiesToEven)][..] } else { &[] };
    for &(mode, round) in integral.iter().chain(modes).chain(none) {
        for (ftz, clamp) in [
            (false, ""),
            (true, ""),
            (false, ".sat"),
            (true, ".sat"),
            (false, ".relu"),
            (false, ".satfinite"),
            (false, ".relu.satfinite"),
        ] {
            if ftz && from.0 != "f32" && into.0 != "f32"
                || clamp.contains("r") && !(from.0 == "f32" && into.1 == 16)
                || clamp == ".satfinite" && !(from.0 == "f32" && into.1 == 16)
            {
                continue;
            }
            let dot = if mode.is_empty() { "" } else { "." };
            let f = if ftz { ".ftz" } else { "" };
            let part = if from.1 == 64 { u64::MAX } else { (1 << from.1) - 1 };
            verify(
                &format!(
                    "cvt{dot}{mode}{f}{clamp}.{}.{} {}0, {}1",
                    into.0,
                    from.0,
                    name(into.1),
                    name(from.1)
                ),
                into.1,
                |r| {
                    // Significands with few bits make ties.
                    let fraction = r.below(2);
                    let x = r.number(from.1, from.2);
                    [if fraction == 0 { x } else { x & part & !(((1 << from.2) - 1) >> (into.2 + 1)) }]
                },
                |[a]| {
                    let a = if ftz && from.0 == "f32" { flushed(a) } else { a & part };
                    let x: F = to(a);
                    if x.is_nan() {
                        return if clamp == ".sat" { 0 } else { nan(into, from, a) };
                    }
                    let x = if same && mode.ends_with('i') { x.round_to_integral(round).value } else { x };
                    let y: G = x.convert_r(round, &mut false).value;
                    let negative = y.is_negative();
                    let bits = y.to_bits() as u64;
                    let bits = if ftz && into.0 == "f32" { flushed(bits) } else { bits };
                    match clamp {
                        ".sat" if negative => 0,
                        ".sat" => bits.min(one),
                        c if c.contains("relu") && negative => 0,
                        c if c.contains("satfinite") && y.is_infinite() => bits - 1,
                        _ => bits,
                    }
                },
            );
        }
    }
}

#[test]
fn between_floating_point_formats() {
    convert::<Half, Half>(F16, F16, 0x3c00);
    convert::<Half, Single>(F16, F32, 0x3f80_0000);
    convert::<Half, Double>(F16, F64, 1f64.to_bits());
    convert::<BFloat, BFloat>(BF16, BF16, 0x3f80);
    convert::<BFloat, Single>(BF16, F32, 0x3f80_0000);
    convert::<BFloat, Double>(BF16, F64, 1f64.to_bits());
    convert::<Single, Single>(F32, F32, 0x3f80_0000);
    convert::<Single, Double>(F32, F64, 1f64.to_bits());
    convert::<Double, Double>(F64, F64, 1f64.to_bits());
    convert::<Half, BFloat>(F16, BF16, 0x3f80);
    convert::<BFloat, Half>(BF16, F16, 0x3c00);
    convert::<Single, Half>(F32, F16, 0x3c00);
    convert::<Single, BFloat>(F32, BF16, 0x3f80);
    convert::<Double, Half>(F64, F16, 0x3c00);
    convert::<Double, BFloat>(F64, BF16, 0x3f80);
    convert::<Double, Single>(F64, F32, 0x3f80_0000);
    refused("cvt.f16.f32 %r0, %r1", "rounding");
    refused("cvt.f32.f64 %r0, %rd1", "rounding");
    refused("cvt.rni.f16.f32 %r0, %r1", "rounding");
    refused("cvt.rna.f16.f32 %r0, %r1", "tf32");
    refused("cvt.relu.f32.f16 %r0, %r1", ".relu");
}

#[test]
fn packed_results_have_the_first_source_on_top() {
    let two = |r: &mut Random| [r.number(32, 23), r.number(32, 23)];
    for (mode, round) in &MODES[..2] {
        for clamp in ["", ".relu", ".satfinite", ".relu.satfinite"] {
            let half = |x: u64, brain: bool| {
                let x: Single = to(x & 0xffff_ffff);
                let bits = if brain {
                    FloatConvert::<BFloat>::convert_r(x, *round, &mut false).value.to_bits() as u64
                } else {
                    FloatConvert::<Half>::convert_r(x, *round, &mut false).value.to_bits() as u64
                };
                let infinite = if brain { 0x7f80 } else { 0x7c00 };
                match bits & 0x7fff > infinite {
                    true => 0x7fff,
                    _ if clamp.contains("relu") && bits & 0x8000 != 0 => 0,
                    _ if clamp.contains("satfinite") && bits & 0x7fff == infinite => bits - 1,
                    _ => bits,
                }
            };
            verify(&format!("cvt.{mode}{clamp}.f16x2.f32 %r0, %r1, %r2"), 32, two, |[a, b]| {
                half(a, false) << 16 | half(b, false)
            });
            verify(&format!("cvt.{mode}{clamp}.bf16x2.f32 %r0, %r1, %r2"), 32, two, |[a, b]| {
                half(a, true) << 16 | half(b, true)
            });
        }
    }
}

#[test]
fn tf32_keeps_ten_bits() {
    let round = |x: u64, mode: &str| {
        let x = x & 0xffff_ffff;
        let magnitude = x & 0x7fff_ffff;
        let (down, rest) = (magnitude & !0x1fff, magnitude & 0x1fff);
        let up = match mode {
            "rna" => rest >= 0x1000,
            "rn" => rest > 0x1000 || rest == 0x1000 && down & 0x2000 != 0,
            _ => false,
        };
        match magnitude {
            0x7f80_0001.. => 0x7fff_ffff,
            0x7f80_0000 => x,
            _ => x & 0x8000_0000 | (down + if up { 0x2000 } else { 0 }),
        }
    };
    for mode in ["rna", "rn", "rz"] {
        let one = |r: &mut Random| [r.number(32, 23) & if r.below(2) == 0 { !0 } else { !0xfff }];
        verify(&format!("cvt.{mode}.tf32.f32 %r0, %r1"), 32, one, |[a]| round(a, mode));
        verify(&format!("cvt.{mode}.satfinite.tf32.f32 %r0, %r1"), 32, one, |[a]| {
            let y = round(a, mode);
            if y & 0x7fff_ffff == 0x7f80_0000 { y & 0x8000_0000 | 0x7f7f_e000 } else { y }
        });
    }
    for mode in ["rn", "rz"] {
        verify(
            &format!("cvt.{mode}.relu.tf32.f32 %r0, %r1"),
            32,
            |r| [r.number(32, 23)],
            |[a]| {
                let y = round(a, mode);
                if y != 0x7fff_ffff && y & 0x8000_0000 != 0 { 0 } else { y }
            },
        );
    }
}

#[test]
fn integers_are_packed_with_saturation() {
    let two = |r: &mut Random| [r.integer(), r.integer()];
    for (ty, low, high) in [("u16", 0, 0xffff), ("s16", -0x8000, 0x7fff)] {
        verify(&format!("cvt.pack.sat.{ty}.s32 %r0, %r1, %r2"), 32, two, |[a, b]| {
            let small = |x: u64| number(x, 32, true).clamp(low, high) as u64 & 0xffff;
            small(a) << 16 | small(b)
        });
    }
    for bits in [2u32, 4, 8] {
        for signed in [false, true] {
            let (low, high) = if signed {
                (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
            } else {
                (0, (1i128 << bits) - 1)
            };
            let ty = if signed { 's' } else { 'u' };
            verify(
                &format!("cvt.pack.sat.{ty}{bits}.s32.b32 %r0, %r1, %r2, %r3"),
                32,
                |r| [r.integer(), r.integer(), r.next()],
                |[a, b, c]| {
                    let small = |x: u64| number(x, 32, true).clamp(low, high) as u64 & ((1 << bits) - 1);
                    c << (2 * bits) | small(a) << bits | small(b)
                },
            );
        }
    }
}
