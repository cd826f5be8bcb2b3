//! Integer arithmetic against 128-bit integers.

use super::{Random, number, refused, verify};
use crate::exec::test_bench::Bench;

const TYPES: [(&str, u32, bool); 6] = [
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

fn three(r: &mut Random) -> [u64; 3] {
    [r.integer(), r.integer(), r.integer()]
}

/// `op %r0, %r1, ..` with registers of the widths.
fn text(op: &str, widths: &[u32]) -> String {
    let names: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(n, &w)| format!("{}{n}", if w == 64 { "%rd" } else { "%r" }))
        .collect();
    format!("{op} {}", names.join(", "))
}

fn two(op: &str, w: u32, signed: bool, f: impl Fn(i128, i128) -> i128) {
    let make = |r: &mut Random| [r.integer(), r.integer()];
    verify(&text(op, &[w; 3]), w, make, |[a, b]| f(number(a, w, signed), number(b, w, signed)) as u64);
}

#[test]
fn sums_products_and_extremes() {
    for (ty, w, s) in TYPES {
        two(&format!("add.{ty}"), w, s, |a, b| a.wrapping_add(b));
        two(&format!("sub.{ty}"), w, s, |a, b| a.wrapping_sub(b));
        two(&format!("min.{ty}"), w, s, |a, b| a.min(b));
        two(&format!("max.{ty}"), w, s, |a, b| a.max(b));
        two(&format!("mul.lo.{ty}"), w, s, |a, b| a.wrapping_mul(b));
        // The product of unsigned 64-bit numbers needs all 128 bits.
        two(&format!("mul.hi.{ty}"), w, s, |a, b| {
            if s { (a * b) >> w } else { ((a as u128 * b as u128) >> w) as i128 }
        });
        verify(&text(&format!("sad.{ty}"), &[w; 4]), w, three, |[a, b, c]| {
            (number(c, w, s) + (number(a, w, s) - number(b, w, s)).abs()) as u64
        });
        verify(&text(&format!("mad.lo.{ty}"), &[w; 4]), w, three, |[a, b, c]| {
            number(a, w, s).wrapping_mul(number(b, w, s)).wrapping_add(number(c, w, s)) as u64
        });
        verify(&text(&format!("mad.hi.{ty}"), &[w; 4]), w, three, |[a, b, c]| {
            let (a, b) = (number(a, w, s), number(b, w, s));
            let high = if s { (a * b) >> w } else { ((a as u128 * b as u128) >> w) as i128 };
            (high + number(c, w, s)) as u64
        });
        if s {
            let one = |r: &mut Random| [r.integer()];
            verify(&text(&format!("neg.{ty}"), &[w; 2]), w, one, |[a]| -number(a, w, true) as u64);
            verify(&text(&format!("abs.{ty}"), &[w; 2]), w, one, |[a]| {
                number(a, w, true).unsigned_abs() as u64
            });
        }
        if w < 64 {
            let make = |r: &mut Random| [r.integer(), r.integer()];
            verify(&text(&format!("mul.wide.{ty}"), &[2 * w, w, w]), 2 * w, make, |[a, b]| {
                (number(a, w, s) * number(b, w, s)) as u64
            });
            verify(&text(&format!("mad.wide.{ty}"), &[2 * w, w, w, 2 * w]), 2 * w, three, |[a, b, c]| {
                (number(a, w, s) * number(b, w, s) + number(c, 2 * w, s)) as u64
            });
        }
    }
}

#[test]
fn saturation() {
    let clamp = |x: i128| x.clamp(i32::MIN.into(), i32::MAX.into());
    two("add.sat.s32", 32, true, |a, b| clamp(a + b));
    two("sub.sat.s32", 32, true, |a, b| clamp(a - b));
    two("min.relu.s32", 32, true, |a, b| a.min(b).max(0));
    two("max.relu.s32", 32, true, |a, b| a.max(b).max(0));
    verify("mad.hi.sat.s32 %r0, %r1, %r2, %r3", 32, three, |[a, b, c]| {
        let [a, b, c] = [a, b, c].map(|x| number(x, 32, true));
        clamp(((a * b) >> 32) + c) as u64
    });
    refused("add.sat.u32 %r0, %r1, %r2", ".sat");
    refused("mad.lo.sat.s32 %r0, %r1, %r2, %r3", ".sat");
    refused("min.relu.u32 %r0, %r1, %r2", ".relu");
    refused("add.ftz.s32 %r0, %r1, %r2", "ftz");
    refused("mul.s32 %r0, %r1, %r2", ".lo");
    refused("add.s32 %r0, %r1", "operands");
}

#[test]
fn quotients_and_remainders() {
    for (ty, w, s) in TYPES {
        two(&format!("div.{ty}"), w, s, |a, b| if b == 0 { -1 } else { a / b });
        two(&format!("rem.{ty}"), w, s, |a, b| if b == 0 { -1 } else { a % b });
    }
    // Dividends next to multiples of the divisor, where an inexact quotient would show.
    let near = |r: &mut Random| {
        let b = (r.next() >> (32 + r.below(31))).max(1);
        [((r.next() >> 32) / b * b).wrapping_add(r.below(3)).wrapping_sub(1), b]
    };
    verify("div.u32 %r0, %r1, %r2", 32, near, |[a, b]| u64::from(a as u32 / b as u32));
    verify("rem.u32 %r0, %r1, %r2", 32, near, |[a, b]| u64::from(a as u32 % b as u32));
    verify("div.s32 %r0, %r1, %r2", 32, near, |[a, b]| (a as i32).wrapping_div(b as i32) as u64);
    verify("rem.s32 %r0, %r1, %r2", 32, near, |[a, b]| (a as i32).wrapping_rem(b as i32) as u64);
}

#[test]
fn multiplication_of_24_bits() {
    for (ty, s) in [("u32", false), ("s32", true)] {
        let product = move |a: u64, b: u64| number(a, 24, s) * number(b, 24, s);
        let make = |r: &mut Random| [r.integer(), r.integer()];
        verify(&format!("mul24.lo.{ty} %r0, %r1, %r2"), 32, make, |[a, b]| product(a, b) as u64);
        verify(&format!("mul24.hi.{ty} %r0, %r1, %r2"), 32, make, |[a, b]| (product(a, b) >> 16) as u64);
        verify(&format!("mad24.lo.{ty} %r0, %r1, %r2, %r3"), 32, three, |[a, b, c]| {
            (product(a, b) + i128::from(c)) as u64
        });
        verify(&format!("mad24.hi.{ty} %r0, %r1, %r2, %r3"), 32, three, |[a, b, c]| {
            ((product(a, b) >> 16) + i128::from(c)) as u64
        });
    }
    verify("mad24.hi.sat.s32 %r0, %r1, %r2, %r3", 32, three, |[a, b, c]| {
        let t = (number(a, 24, true) * number(b, 24, true)) >> 16;
        // The high part is the 32 bits from bit 16 up.
        (number(t as u64, 32, true) + number(c, 32, true)).clamp(i32::MIN.into(), i32::MAX.into()) as u64
    });
    refused("mul24.hi.sat.s32 %r0, %r1, %r2", ".sat");
}

#[test]
fn dot_products() {
    for (a_ty, a_signed) in [("u32", false), ("s32", true)] {
        for (b_ty, b_signed) in [("u32", false), ("s32", true)] {
            let byte = move |x: u64, n: u32, s: bool| number(x >> (8 * n), 8, s);
            verify(&format!("dp4a.{a_ty}.{b_ty} %r0, %r1, %r2, %r3"), 32, three, |[a, b, c]| {
                (i128::from(c) + (0..4).map(|n| byte(a, n, a_signed) * byte(b, n, b_signed)).sum::<i128>())
                    as u64
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                verify(&format!("dp2a.{mode}.{a_ty}.{b_ty} %r0, %r1, %r2, %r3"), 32, three, |[a, b, c]| {
                    let half = |n: u32| number(a >> (16 * n), 16, a_signed);
                    (i128::from(c) + (0..2).map(|n| half(n) * byte(b, first + n, b_signed)).sum::<i128>())
                        as u64
                });
            }
        }
    }
}

#[test]
fn packed_halves() {
    let both = |a: u64, b: u64, signed: bool, f: &dyn Fn(i128, i128) -> i128| {
        let half = |n: u32| {
            let part = f(number(a >> (16 * n), 16, signed), number(b >> (16 * n), 16, signed));
            (part as u64 & 0xffff) << (16 * n)
        };
        half(0) | half(1)
    };
    let make = |r: &mut Random| [r.next(), r.next()];
    for (ty, s) in [("u16x2", false), ("s16x2", true)] {
        verify(&format!("add.{ty} %r0, %r1, %r2"), 32, make, |[a, b]| both(a, b, s, &|x, y| x + y));
        verify(&format!("min.{ty} %r0, %r1, %r2"), 32, make, |[a, b]| both(a, b, s, &|x, y| x.min(y)));
        verify(&format!("max.{ty} %r0, %r1, %r2"), 32, make, |[a, b]| both(a, b, s, &|x, y| x.max(y)));
    }
    verify("min.relu.s16x2 %r0, %r1, %r2", 32, make, |[a, b]| both(a, b, true, &|x, y| x.min(y).max(0)));
    verify("max.relu.s16x2 %r0, %r1, %r2", 32, make, |[a, b]| both(a, b, true, &|x, y| x.max(y).max(0)));
    refused("sub.u16x2 %r0, %r1, %r2", "no such form");
}

#[test]
fn carries_run_through_long_numbers() {
    let mut random = Random::new("carries");
    let mut draw = || std::array::from_fn::<u32, 32, _>(|_| random.integer() as u32);
    let sum = "add.cc.u32 %r10, %r0, %r4; addc.cc.u32 %r11, %r1, %r5; addc.cc.u32 %r12, %r2, %r6; addc.u32 %r13, %r3, %r7;";
    let difference = "sub.cc.u32 %r10, %r0, %r4; subc.cc.u32 %r11, %r1, %r5; subc.cc.u32 %r12, %r2, %r6; subc.u32 %r13, %r3, %r7;";
    for (text, f) in [(sum, u128::wrapping_add as fn(u128, u128) -> u128), (difference, u128::wrapping_sub)] {
        let mut b = Bench::new(text).expect("lowers");
        for _ in 0..200 {
            let words: [[u32; 32]; 8] = std::array::from_fn(|_| draw());
            (0..8).for_each(|n| b.set(&format!("%r{n}"), words[n]));
            b.run(u32::MAX);
            let results: [[u32; 32]; 4] = std::array::from_fn(|n| b.get::<u32>(&format!("%r{}", 10 + n)));
            let long = |words: &[[u32; 32]], lane: usize| {
                words.iter().rev().fold(0u128, |x, word| x << 32 | u128::from(word[lane]))
            };
            for lane in 0..32 {
                let expected = f(long(&words[..4], lane), long(&words[4..], lane));
                assert_eq!(long(&results, lane), expected, "{text}");
            }
        }
    }
}

#[test]
fn long_multiplication_as_in_the_manual() {
    // [r3, r2, r1, r0] = [r5, r4] * [r7, r6]
    let text = "mul.lo.u32 %r0, %r4, %r6; mul.hi.u32 %r1, %r4, %r6; mad.lo.cc.u32 %r1, %r5, %r6, %r1; \
                madc.hi.u32 %r2, %r5, %r6, 0; mad.lo.cc.u32 %r1, %r4, %r7, %r1; madc.hi.cc.u32 %r2, %r4, %r7, %r2; \
                addc.u32 %r3, 0, 0; mad.lo.cc.u32 %r2, %r5, %r7, %r2; madc.hi.u32 %r3, %r5, %r7, %r3;";
    let wide = "mul.lo.u64 %rd0, %rd2, %rd3; mul.hi.u64 %rd1, %rd2, %rd3; mad.lo.cc.u64 %rd0, %rd2, %rd3, %rd4; \
                madc.hi.u64 %rd1, %rd2, %rd3, 0;";
    let mut random = Random::new("long");
    let (mut b, mut w) = (Bench::new(text).expect("lowers"), Bench::new(wide).expect("lowers"));
    for _ in 0..200 {
        let x: [u64; 32] = std::array::from_fn(|_| random.integer());
        let y: [u64; 32] = std::array::from_fn(|_| random.integer());
        let z: [u64; 32] = std::array::from_fn(|_| random.integer());
        for (name, v, shift) in [("%r4", x, 0), ("%r5", x, 32), ("%r6", y, 0), ("%r7", y, 32)] {
            b.set(name, v.map(|v| (v >> shift) as u32));
        }
        w.set("%rd2", x);
        w.set("%rd3", y);
        w.set("%rd4", z);
        b.run(u32::MAX);
        w.run(u32::MAX);
        for l in 0..32 {
            let product = u128::from(x[l]) * u128::from(y[l]);
            let have =
                (0..4).fold(0u128, |s, n| s | u128::from(b.get::<u32>(&format!("%r{n}"))[l]) << (32 * n));
            assert_eq!(have, product);
            let have = u128::from(w.get::<u64>("%rd0")[l]) | u128::from(w.get::<u64>("%rd1")[l]) << 64;
            assert_eq!(have, product + u128::from(z[l]));
        }
    }
}

#[test]
fn a_carry_is_kept_for_lanes_that_take_no_part() {
    let mut b = Bench::new("add.cc.u32 %r0, %r1, %r2; addc.u32 %r3, 0, 0;").expect("lowers");
    b.set("%r1", [u32::MAX; 32]);
    b.set("%r2", [1u32; 32]);
    b.line(0, 0x0000_ffff);
    b.set("%r2", [0u32; 32]);
    b.line(0, 0x0000_00ff);
    b.line(1, u32::MAX);
    let carries = b.get::<u32>("%r3");
    assert_eq!(std::array::from_fn::<u32, 32, _>(|l| u32::from((8..16).contains(&l))), carries);
}
