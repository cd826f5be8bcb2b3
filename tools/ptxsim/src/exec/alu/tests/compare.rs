//! Comparisons and selection.

use super::{Random, number, refused, verify};
use crate::exec::alu::half_bits::{Bf16, Bits, F16};
use crate::exec::test_bench::Bench;
use std::cmp::Ordering;

const OPERATORS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

/// What the manual says of the operator, for two numbers that compare so (`None`: one is NaN).
fn holds(op: &str, order: Option<Ordering>) -> bool {
    let Some(order) = order else {
        return matches!(op, "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan");
    };
    match op {
        "eq" | "equ" => order.is_eq(),
        "ne" | "neu" => order.is_ne(),
        "lt" | "lo" | "ltu" => order.is_lt(),
        "le" | "ls" | "leu" => order.is_le(),
        "gt" | "hi" | "gtu" => order.is_gt(),
        "ge" | "hs" | "geu" => order.is_ge(),
        "num" => true,
        _ => false,
    }
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 } else { x }
}

/// Two values, one in four of them equal.
fn equal_at_times(r: &mut Random, mut make: impl FnMut(&mut Random) -> u64) -> [u64; 2] {
    let a = make(r);
    [a, if r.below(4) == 0 { a } else { make(r) }]
}

#[test]
fn integers() {
    for (kind, signed) in [('b', false), ('u', false), ('s', true)] {
        for w in [16, 32, 64] {
            let r = if w == 64 { "%rd" } else { "%r" };
            for op in OPERATORS {
                let text = format!("setp.{op}.{kind}{w} %p0, {r}1, {r}2");
                let fits = match op {
                    "eq" | "ne" => true,
                    "lt" | "le" | "gt" | "ge" => kind != 'b',
                    "lo" | "ls" | "hi" | "hs" => kind == 'u',
                    _ => false,
                };
                if fits {
                    verify(
                        &text,
                        1,
                        |r| equal_at_times(r, Random::integer),
                        |[a, b]| u64::from(holds(op, Some(number(a, w, signed).cmp(&number(b, w, signed))))),
                    );
                } else {
                    refused(&text, "cannot be compared");
                }
            }
        }
    }
}

#[test]
fn numbers() {
    for op in OPERATORS {
        if matches!(op, "lo" | "ls" | "hi" | "hs") {
            refused(&format!("setp.{op}.f32 %p0, %r1, %r2"), "cannot be compared");
            refused(&format!("setp.{op}.f16 %p0, %r1, %r2"), "cannot be compared");
            continue;
        }
        let order = |a: f32, b: f32| u64::from(holds(op, a.partial_cmp(&b)));
        let single = |x: u64| f32::from_bits(x as u32);
        let make = |r: &mut Random| equal_at_times(r, |r| r.number(32, 23));
        verify(&format!("setp.{op}.f32 %p0, %r1, %r2"), 1, make, |[a, b]| order(single(a), single(b)));
        verify(&format!("setp.{op}.ftz.f32 %p0, %r1, %r2"), 1, make, |[a, b]| {
            order(flushed(single(a)), flushed(single(b)))
        });
        verify(
            &format!("setp.{op}.f64 %p0, %rd1, %rd2"),
            1,
            |r| equal_at_times(r, |r| r.number(64, 52)),
            |[a, b]| u64::from(holds(op, f64::from_bits(a).partial_cmp(&f64::from_bits(b)))),
        );
        let make = |r: &mut Random| equal_at_times(r, |r| r.number(16, 10));
        let half = |x: u64| F16::widen(x as u16);
        verify(&format!("setp.{op}.f16 %p0, %r1, %r2"), 1, make, |[a, b]| order(half(a), half(b)));
        verify(&format!("setp.{op}.ftz.f16 %p0, %r1, %r2"), 1, make, |[a, b]| {
            let kept = |x: u64| if x & 0x7c00 == 0 { 0.0 } else { half(x) };
            order(kept(a), kept(b))
        });
        let make = |r: &mut Random| equal_at_times(r, |r| r.number(16, 7));
        let brain = |x: u64| Bf16::widen(x as u16);
        verify(&format!("setp.{op}.bf16 %p0, %r1, %r2"), 1, make, |[a, b]| order(brain(a), brain(b)));
    }
}

/// Rows and predicates for the tests of combinations: a < b in the odd lanes, the other predicate in the high half.
fn prepared(text: &str) -> Bench {
    let mut b = Bench::new(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| 1 - (l as u32 & 1)));
    b.set("%r2", [1u32; 32]);
    if text.contains("%p2") {
        b.set_pred("%p2", 0xffff_0000);
    }
    b
}

const ODD: u32 = 0xaaaa_aaaa;
const HIGH: u32 = 0xffff_0000;

#[test]
fn combinations_and_second_results() {
    for (op, f) in
        [("and", (|t, c| t & c) as fn(u32, u32) -> u32), ("or", |t, c| t | c), ("xor", |t, c| t ^ c)]
    {
        for (c, other) in [("%p2", HIGH), ("!%p2", !HIGH)] {
            let mut b = prepared(&format!("setp.lt.{op}.s32 %p0|%p1, %r1, %r2, {c};"));
            b.set_pred("%p0", 0);
            b.set_pred("%p1", u32::MAX);
            b.run(0x00ff_ff00);
            assert_eq!(b.pred("%p0"), f(ODD, other) & 0x00ff_ff00, "{op} {c}");
            assert_eq!(b.pred("%p1"), f(!ODD, other) | !0x00ff_ff00, "{op} {c}");
            let mut b = prepared(&format!("set.lt.{op}.u32.s32 %r0, %r1, %r2, {c};"));
            b.run(u32::MAX);
            let want = f(ODD, other);
            assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| (want >> l & 1).wrapping_neg()));
        }
    }
    let mut b = prepared("setp.lt.s32 %p0|%p1, %r1, %r2;");
    b.run(u32::MAX);
    assert_eq!((b.pred("%p0"), b.pred("%p1")), (ODD, !ODD));
    let mut b = prepared("setp.lt.s32 _|%p1, %r1, %r2;");
    b.run(u32::MAX);
    assert_eq!(b.pred("%p1"), !ODD);
    // The other predicate may be the one that is written.
    let mut b = prepared("setp.lt.and.s32 %p2, %r1, %r2, %p2;");
    b.run(u32::MAX);
    assert_eq!(b.pred("%p2"), ODD & HIGH);
    refused("setp.lt.and.s32 %p0, %r1, %r2", "combine");
    refused("setp.lt.s32 %p0, %r1, %r2, %p1", "combine");
    refused("setp.s32 %p0, %r1, %r2", "comparison");
}

#[test]
fn values_of_set() {
    for (types, one) in [("u32.s32", u32::MAX), ("s32.u32", u32::MAX), ("f32.s32", 0x3f80_0000)] {
        let mut b = prepared(&format!("set.lt.{types} %r0, %r1, %r2;"));
        b.set("%r0", [7u32; 32]);
        b.run(0x0000_ffff);
        let want = |l: usize| if l >= 16 { 7 } else { one * (l as u32 & 1) };
        assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(want), "{types}");
    }
    for (types, one, a, b) in [
        ("f16.f16", 0x3c00, 0xbc00, 0x3c00),
        ("u16.f16", 0xffff, 0xbc00, 0x3c00),
        ("u32.f16", u32::MAX, 0xbc00, 0x3c00),
        ("f32.f16", 0x3f80_0000, 0xbc00, 0x3c00),
        ("bf16.bf16", 0x3f80, 0xbf80, 0x3f80),
        ("s32.bf16", u32::MAX, 0xbf80, 0x3f80),
    ] {
        let mut m = Bench::new(&format!("set.lt.{types} %r0, %r1, %r2; set.gt.{types} %r3, %r1, %r2;"))
            .expect("lowers");
        m.set("%r1", [a as u32; 32]);
        m.set("%r2", [b as u32; 32]);
        m.run(u32::MAX);
        assert_eq!((m.get::<u32>("%r0"), m.get::<u32>("%r3")), ([one; 32], [0; 32]), "{types}");
    }
    refused("set.lt.f32.f16x2 %r0, %r1, %r2", "does not go");
    refused("set.lt.bf16.f16 %r0, %r1, %r2", "does not go");
}

#[test]
fn pairs() {
    // Low halves: -1 < 1. High halves: 2 < 1 is false; NaN in every fourth lane.
    let high = |l: usize| if l % 4 == 3 { 0x7e00 } else { 0x4000 };
    let a: [u32; 32] = std::array::from_fn(|l| high(l) << 16 | 0xbc00);
    let nans = 0x8888_8888;
    let run = |text: &str| {
        let mut b = Bench::new(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        b.set("%r1", a);
        b.set("%r2", [0x3c00_3c00u32; 32]);
        if text.contains("%p2") {
            b.set_pred("%p2", HIGH);
        }
        b.run(u32::MAX);
        b
    };
    let b = run("setp.lt.f16x2 %p0|%p1, %r1, %r2;");
    assert_eq!((b.pred("%p0"), b.pred("%p1")), (u32::MAX, 0));
    let b = run("setp.ltu.f16x2 %p0|%p1, %r1, %r2;");
    assert_eq!((b.pred("%p0"), b.pred("%p1")), (u32::MAX, nans));
    let b = run("setp.lt.or.f16x2 %p0|%p1, %r1, %r2, %p2;");
    assert_eq!((b.pred("%p0"), b.pred("%p1")), (u32::MAX, HIGH));
    let b = run("set.ltu.u32.f16x2 %r0, %r1, %r2;");
    assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| if l % 4 == 3 { u32::MAX } else { 0xffff }));
    let b = run("set.gt.f16x2.f16x2 %r0, %r1, %r2;");
    assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| if l % 4 == 3 { 0 } else { 0x3c00_0000 }));
    let b = run("set.lt.ftz.f16x2.f16x2 %r0, %r1, %r2;");
    assert_eq!(b.get::<u32>("%r0"), [0x3c00; 32]);
    let b = run("setp.eq.bf16x2 %p0|%p1, %r1, %r1; mov.b32 %r2, 0;");
    assert_eq!((b.pred("%p0"), b.pred("%p1")), (u32::MAX, u32::MAX), "0x7e00 is a number in bf16");
}

#[test]
fn selection() {
    let mut b = Bench::new(
        "selp.b32 %r0, %r1, %r2, %p0; selp.f64 %rd0, %rd1, %rd2, !%p0; selp.s16 %r3, %r1, 5, %p0;",
    )
    .expect("lowers");
    let numbers = |k: u64| std::array::from_fn::<u64, 32, _>(|l| l as u64 * 0x1_0001_0001 + k);
    b.set("%r1", numbers(1).map(|x| x as u32));
    b.set("%r2", numbers(2).map(|x| x as u32));
    b.set("%rd1", numbers(3));
    b.set("%rd2", numbers(4));
    b.set_pred("%p0", 0x1234_5678);
    b.run(u32::MAX);
    let p = |l: usize| 0x1234_5678u32 >> l & 1 != 0;
    assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| numbers(if p(l) { 1 } else { 2 })[l] as u32));
    assert_eq!(b.get::<u64>("%rd0"), std::array::from_fn(|l| numbers(if p(l) { 4 } else { 3 })[l]));
    assert_eq!(b.get::<u16>("%r3"), std::array::from_fn(|l| if p(l) { numbers(1)[l] as u16 } else { 5 }));
    for w in [16, 32, 64] {
        let r = if w == 64 { "%rd" } else { "%r" };
        verify(
            &format!("slct.u{w}.s32 {r}0, {r}1, {r}2, %r3"),
            w,
            |r| [r.next(), r.next(), r.integer()],
            |[a, b, c]| if c as i32 >= 0 { a } else { b },
        );
        let make = |r: &mut Random| [r.next(), r.next(), r.number(32, 23)];
        verify(&format!("slct.b{w}.f32 {r}0, {r}1, {r}2, %r3"), w, make, |[a, b, c]| {
            if f32::from_bits(c as u32) >= 0.0 { a } else { b }
        });
        verify(&format!("slct.ftz.b{w}.f32 {r}0, {r}1, {r}2, %r3"), w, make, |[a, b, c]| {
            if flushed(f32::from_bits(c as u32)) >= 0.0 { a } else { b }
        });
    }
}

#[test]
fn properties() {
    for op in ["finite", "infinite", "number", "notanumber", "normal", "subnormal"] {
        let holds = |exponent: u64, top: u64, fraction: u64| {
            u64::from(match op {
                "finite" => exponent != top,
                "infinite" => exponent == top && fraction == 0,
                "number" => exponent != top || fraction == 0,
                "notanumber" => exponent == top && fraction != 0,
                // Zeros count as normal.
                "normal" => exponent != top && exponent != 0 || exponent == 0 && fraction == 0,
                _ => exponent == 0 && fraction != 0,
            })
        };
        verify(
            &format!("testp.{op}.f32 %p0, %r1"),
            1,
            |r| [r.number(32, 23)],
            |[a]| holds(a >> 23 & 0xff, 0xff, a & 0x7f_ffff),
        );
        verify(
            &format!("testp.{op}.f64 %p0, %rd1"),
            1,
            |r| [r.number(64, 52)],
            |[a]| holds(a >> 52 & 0x7ff, 0x7ff, a & ((1 << 52) - 1)),
        );
    }
}
