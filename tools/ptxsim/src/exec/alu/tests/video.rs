//! Video instructions against arithmetic on single parts.

use super::{Random, number, refused, verify};

fn three(r: &mut Random) -> [u64; 3] {
    [r.integer(), r.integer(), r.integer()]
}

fn two(r: &mut Random) -> [u64; 2] {
    [r.integer(), r.integer()]
}

fn signed(ty: &str) -> bool {
    ty == "s32"
}

fn clamped(x: i128, bits: u32, signed: bool) -> i128 {
    if signed { x.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { x.clamp(0, (1 << bits) - 1) }
}

const TYPES: [&str; 2] = ["u32", "s32"];

/// An opcode and what it does.
type Operation = (&'static str, fn(i128, i128) -> i128);

fn operations() -> [Operation; 5] {
    [
        ("vadd", |a, b| a + b),
        ("vsub", |a, b| a - b),
        ("vabsdiff", |a, b| (a - b).abs()),
        ("vmin", |a, b| a.min(b)),
        ("vmax", |a, b| a.max(b)),
    ]
}

#[test]
fn words_and_their_parts() {
    for (op, f) in operations() {
        for d in TYPES {
            for a in TYPES {
                for b in TYPES {
                    let types = format!("{op}.{d}.{a}.{b}");
                    let plain = |x: u64, y: u64| f(number(x, 32, signed(a)), number(y, 32, signed(b)));
                    verify(&format!("{types} %r0, %r1, %r2"), 32, two, |[x, y]| plain(x, y) as u64);
                    verify(&format!("{types}.sat %r0, %r1, %r2"), 32, two, |[x, y]| {
                        clamped(plain(x, y), 32, signed(d)) as u64
                    });
                    verify(&format!("{types}.sat %r0, %r1.b3, %r2.h1"), 32, two, |[x, y]| {
                        let t = f(number(x >> 24, 8, signed(a)), number(y >> 16, 16, signed(b)));
                        clamped(t, 32, signed(d)) as u64
                    });
                    verify(&format!("{types}.sat %r0.b1, %r1, %r2.b0, %r3"), 32, three, |[x, y, c]| {
                        let t = clamped(f(number(x, 32, signed(a)), number(y, 8, signed(b))), 8, signed(d));
                        c & 0xffff_00ff | (t as u64 & 0xff) << 8
                    });
                    verify(&format!("{types} %r0.h1, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                        c & 0xffff | (plain(x, y) as u64 & 0xffff) << 16
                    });
                    let cut = |x: i128| number(x as u64, 32, signed(d));
                    verify(&format!("{types}.add %r0, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                        (plain(x, y) + i128::from(c)) as u64
                    });
                    verify(&format!("{types}.min %r0, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                        cut(plain(x, y)).min(cut(c.into())) as u64
                    });
                    verify(&format!("{types}.max %r0, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                        cut(plain(x, y)).max(cut(c.into())) as u64
                    });
                }
            }
        }
    }
    refused("vadd.s32.s32.s32.add %r0.b0, %r1, %r2, %r3", "merged");
    refused("vadd.s32.s32 %r0, %r1, %r2", "types");
    refused("vadd.s32.s32.s32 %r0, %r1.b4, %r2", "part");
    refused("vadd.s32.s32.s32 %r0, %r1, %r2, %r3", "3 operands");
    refused("vmad.s32.s32.s32 %r0, %r1, %r2, %r3", "unknown");
}

#[test]
fn comparisons_and_shifts() {
    for (op, f) in [
        ("eq", (|a, b| a == b) as fn(i128, i128) -> bool),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ] {
        for a in TYPES {
            for b in TYPES {
                let holds =
                    |x: u64, y: u64, w: u32| u64::from(f(number(x, w, signed(a)), number(y, w, signed(b))));
                verify(&format!("vset.{a}.{b}.{op} %r0, %r1, %r2"), 32, two, |[x, y]| holds(x, y, 32));
                verify(&format!("vset2.{a}.{b}.{op} %r0, %r1, %r2, %r3"), 32, three, |[x, y, _]| {
                    holds(x, y, 16) | holds(x >> 16, y >> 16, 16) << 16
                });
                verify(&format!("vset4.{a}.{b}.{op}.add %r0, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                    (0..4).fold(c, |d, n| d + holds(x >> (8 * n), y >> (8 * n), 8))
                });
            }
        }
    }
    let amount = |r: &mut Random| [r.integer(), r.below(70)];
    for (ty, s) in [("u32", false), ("s32", true)] {
        verify(&format!("vshl.u32.{ty}.u32.wrap %r0, %r1, %r2"), 32, amount, |[a, n]| a << (n & 31));
        verify(&format!("vshl.u32.{ty}.u32.clamp %r0, %r1, %r2"), 32, amount, |[a, n]| a << n.min(32));
        verify(&format!("vshr.u32.{ty}.u32.clamp %r0, %r1, %r2"), 32, amount, |[a, n]| {
            (number(a, 32, s) >> n.min(32)) as u64
        });
        verify(&format!("vshr.u32.{ty}.u32.wrap %r0, %r1, %r2"), 32, amount, |[a, n]| {
            (number(a, 32, s) >> (n & 31)) as u64
        });
    }
    refused("vshl2.u32.u32.u32.wrap %r0, %r1, %r2, %r3", "no vshl2");
}

#[test]
fn two_and_four_parts() {
    let average = |a: i128, b: i128| if a + b >= 0 { (a + b + 1) >> 1 } else { (a + b) >> 1 };
    let all = operations().into_iter().chain([("vavrg", average as fn(i128, i128) -> i128)]);
    for (op, f) in all {
        for parts in [2u32, 4] {
            let w = 32 / parts;
            for d in TYPES {
                for s in TYPES {
                    let types = format!("{op}{parts}.{d}.{s}.{s}");
                    let part = |x: u64, y: u64, n: u32| {
                        f(number(x >> (w * n), w, signed(s)), number(y >> (w * n), w, signed(s)))
                    };
                    let join = |f: &dyn Fn(u32) -> i128| {
                        (0..parts).fold(0, |r, n| r | (f(n) as u64 & ((1 << w) - 1)) << (w * n))
                    };
                    verify(&format!("{types} %r0, %r1, %r2, %r3"), 32, three, |[x, y, _]| {
                        join(&|n| part(x, y, n))
                    });
                    verify(&format!("{types}.sat %r0, %r1, %r2, %r3"), 32, three, |[x, y, _]| {
                        join(&|n| clamped(part(x, y, n), w, signed(d)))
                    });
                    verify(&format!("{types}.add %r0, %r1, %r2, %r3"), 32, three, |[x, y, c]| {
                        (0..parts).fold(c, |sum, n| sum.wrapping_add(part(x, y, n) as u64))
                    });
                }
            }
        }
    }
    // Parts by number from both sources, and only some of the results.
    verify("vadd2.u32.u32.u32 %r0.h1, %r1.h02, %r2.h13, %r3", 32, three, |[x, _, c]| {
        // The first digit is for the upper half: half 0 of the pair, plus half 1.
        c & 0xffff | (((x & 0xffff) + (x >> 16 & 0xffff)) & 0xffff) << 16
    });
    verify("vsub4.s32.u32.u32 %r0.b20, %r1.b7650, %r2.b0003, %r3", 32, three, |[x, y, c]| {
        let byte = |n: u32| if n < 4 { x >> (8 * n) & 0xff } else { y >> (8 * (n - 4)) & 0xff };
        let (zero, two) = (byte(0).wrapping_sub(byte(3)) & 0xff, byte(6).wrapping_sub(byte(0)) & 0xff);
        c & 0xff00_ff00 | zero | two << 16
    });
    refused("vadd2.u32.u32.u32.sat.add %r0, %r1, %r2, %r3", "exclude");
    refused("vadd4.u32.u32.u32 %r0, %r1.b765, %r2, %r3", "3 parts");
    refused("vadd2.u32.u32.u32 %r0.h2, %r1, %r2, %r3", "known");
    refused("vadd2.u32.u32.u32 %r0, %r1, %r2", "4 operands");
}
