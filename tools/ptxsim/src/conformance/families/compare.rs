//! `setp`, `set`, `testp`: PTX ISA 9.3.1, 9.7.6, 9.7.7.

use super::super::elementwise::{Out, Suite};
use super::super::softfloat::Format;
use super::super::values::{Width, floats, integers, ones, packed_floats, predicates};
use std::cmp::Ordering::{self, Equal, Greater, Less};

const PRED: Out = Out::Bits(Width::Pred);
const U32: Out = Out::Bits(Width::B32);

/// Table 23: comparisons, false with a NaN; table 24: true with one; table 25: about NaNs alone.
const FLOAT: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

fn holds(op: &str, order: Option<Ordering>) -> bool {
    match (op, order) {
        ("num", o) => o.is_some(),
        ("nan", o) => o.is_none(),
        (op, None) => op.len() == 3,
        (op, Some(o)) => match &op[..2] {
            "eq" => o == Equal,
            "ne" => o != Equal,
            "lt" | "lo" => o == Less,
            "le" | "ls" => o != Greater,
            "gt" | "hi" => o == Greater,
            _ => o != Less,
        },
    }
}

fn boolean(op: &str, t: bool, c: bool) -> bool {
    match op {
        "and" => t && c,
        "or" => t || c,
        _ => t != c,
    }
}

/// Family `compare`.
pub fn cases(s: &mut Suite) {
    whole_numbers(s);
    floating(s);
    halves(s);
    tests(s);
}

fn order(signed: bool, bits: u32, a: u64, b: u64) -> Option<Ordering> {
    let flip = if signed { 1 << (bits - 1) } else { 0 };
    Some((a ^ flip).cmp(&(b ^ flip)))
}

fn whole_numbers(s: &mut Suite) {
    for n in [16u32, 32, 64] {
        for (signed, t, ops) in [
            (false, 'b', &["eq", "ne"][..]),
            (true, 's', &["eq", "ne", "lt", "le", "gt", "ge"][..]),
            (false, 'u', &["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"][..]),
        ] {
            for op in ops {
                let two = [integers(n), integers(n)];
                s.op(&format!("setp.{op}.{t}{n} d, a, b"), PRED, &two, |x| {
                    u64::from(holds(op, order(signed, n, x[0], x[1])))
                });
                s.op(&format!("set.{op}.u32.{t}{n} d, a, b"), U32, &two, |x| {
                    if holds(op, order(signed, n, x[0], x[1])) { ones(32) } else { 0 }
                });
            }
        }
    }
    let three = [integers(32), integers(32), predicates()];
    for op in ["and", "or", "xor"] {
        for not in ["", "!"] {
            let c = |x: &[u64]| (x[2] != 0) ^ !not.is_empty();
            s.ops(&format!("setp.lt.{op}.s32 d|g, a, b, {not}c"), &[PRED, PRED], &three, |x, d| {
                let t = (x[0] as i32) < x[1] as i32;
                d[0] = Some(u64::from(boolean(op, t, c(x))));
                d[1] = Some(u64::from(boolean(op, !t, c(x))));
            });
            s.op(&format!("set.ge.{op}.s32.u32 d, a, b, {not}c"), U32, &three, |x| {
                if boolean(op, x[0] >= x[1], c(x)) { ones(32) } else { 0 }
            });
            s.op(&format!("set.ge.{op}.f32.u32 d, a, b, {not}c"), U32, &three, |x| {
                if boolean(op, x[0] >= x[1], c(x)) { Format::F32.one() } else { 0 }
            });
        }
    }
    s.ops("setp.eq.u64 d|g, a, b", &[PRED, PRED], &[integers(64), integers(64)], |x, d| {
        d[0] = Some(u64::from(x[0] == x[1]));
        d[1] = Some(u64::from(x[0] != x[1]));
    });
}

fn floating(s: &mut Suite) {
    s.room(1600);
    for op in FLOAT {
        for (f, ftz) in [(Format::F32, ""), (Format::F32, ".ftz"), (Format::F64, "")] {
            let flush = move |v: u64| if ftz.is_empty() { v } else { f.flush(v) };
            let t = move |x: &[u64]| holds(op, f.compare(flush(x[0]), flush(x[1])));
            let two = [floats(f), floats(f)];
            let name = f.name();
            s.op(&format!("setp.{op}{ftz}.{name} d, a, b"), PRED, &two, |x| u64::from(t(x)));
            s.op(
                &format!("set.{op}{ftz}.u32.{name} d, a, b"),
                U32,
                &two,
                |x| if t(x) { ones(32) } else { 0 },
            );
            s.op(&format!("set.{op}{ftz}.f32.{name} d, a, b"), U32, &two, |x| {
                if t(x) { Format::F32.one() } else { 0 }
            });
        }
        let three = [floats(Format::F32), floats(Format::F32), predicates()];
        s.ops(&format!("setp.{op}.and.f32 d|g, a, b, !c"), &[PRED, PRED], &three, |x, d| {
            let t = holds(op, Format::F32.compare(x[0], x[1]));
            d[0] = Some(u64::from(t && x[2] == 0));
            d[1] = Some(u64::from(!t && x[2] == 0));
        });
    }
    s.room(512);
}

fn halves(s: &mut Suite) {
    s.room(1600);
    for op in FLOAT {
        for (f, ftz) in [(Format::F16, ""), (Format::F16, ".ftz"), (Format::Bf16, "")] {
            // Comparisons of bf16 need compute capability 9.0.
            let target =
                if f == Format::Bf16 { super::super::case::Target::Sm90 } else { s.current_target() };
            let before = s.current_target();
            s.target(target);
            let flush = move |v: u64| if ftz.is_empty() { v } else { f.flush(v) };
            let compare = move |a: u64, b: u64| holds(op, f.compare(flush(a), flush(b)));
            let two = [floats(f), floats(f)];
            let name = f.name();
            s.op(&format!("setp.{op}{ftz}.{name} d, a, b"), PRED, &two, |x| u64::from(compare(x[0], x[1])));
            s.op(&format!("set.{op}{ftz}.u32.{name} d, a, b"), U32, &two, |x| {
                if compare(x[0], x[1]) { ones(32) } else { 0 }
            });
            s.op(&format!("set.{op}{ftz}.u16.{name} d, a, b"), Out::Bits(Width::B16), &two, |x| {
                if compare(x[0], x[1]) { ones(16) } else { 0 }
            });
            s.op(&format!("set.{op}{ftz}.{name}.{name} d, a, b"), Out::Bits(Width::B16), &two, |x| {
                if compare(x[0], x[1]) { f.one() } else { 0 }
            });
            let two = [packed_floats(f), packed_floats(f)];
            let half = move |x: &[u64], i: u32| compare(x[0] >> (16 * i) & 0xffff, x[1] >> (16 * i) & 0xffff);
            s.ops(&format!("setp.{op}{ftz}.{name}x2 d|g, a, b"), &[PRED, PRED], &two, |x, d| {
                d[0] = Some(u64::from(half(x, 0)));
                d[1] = Some(u64::from(half(x, 1)));
            });
            for (kind, truth) in [(format!("{name}x2"), f.one()), ("u32".to_string(), 0xffff)] {
                s.op(&format!("set.{op}{ftz}.{kind}.{name}x2 d, a, b"), U32, &two, |x| {
                    (0..2).fold(0, |d, i| d | if half(x, i) { truth } else { 0 } << (16 * i))
                });
            }
            s.target(before);
        }
    }
    s.room(512);
    let f = Format::F16;
    for op in ["and", "or", "xor"] {
        let t = |a: u64, b: u64| holds("lt", f.compare(a & 0xffff, b & 0xffff));
        let three = [floats(f), floats(f), predicates()];
        s.op(&format!("setp.lt.{op}.f16 d, a, b, c"), PRED, &three, |x| {
            u64::from(boolean(op, t(x[0], x[1]), x[2] != 0))
        });
        s.op(&format!("set.lt.{op}.u32.f16 d, a, b, !c"), U32, &three, |x| {
            if boolean(op, t(x[0], x[1]), x[2] == 0) { ones(32) } else { 0 }
        });
        let three = [packed_floats(f), packed_floats(f), predicates()];
        s.ops(&format!("setp.lt.{op}.f16x2 d|g, a, b, c"), &[PRED, PRED], &three, |x, d| {
            d[0] = Some(u64::from(boolean(op, t(x[0], x[1]), x[2] != 0)));
            d[1] = Some(u64::from(boolean(op, t(x[0] >> 16, x[1] >> 16), x[2] != 0)));
        });
        s.op(&format!("set.lt.{op}.f16x2.f16x2 d, a, b, !c"), U32, &three, |x| {
            let half = |k: u32| if boolean(op, t(x[0] >> k, x[1] >> k), x[2] == 0) { f.one() } else { 0 };
            half(0) | half(16) << 16
        });
    }
}

fn tests(s: &mut Suite) {
    for f in [Format::F32, Format::F64] {
        let one = [floats(f)];
        let name = f.name();
        let infinite = move |v: u64| v & !f.sign() == f.infinity();
        s.op(&format!("testp.finite.{name} d, a"), PRED, &one, |x| {
            u64::from(!infinite(x[0]) && !f.is_nan(x[0]))
        });
        s.op(&format!("testp.infinite.{name} d, a"), PRED, &one, |x| u64::from(infinite(x[0])));
        s.op(&format!("testp.number.{name} d, a"), PRED, &one, |x| u64::from(!f.is_nan(x[0])));
        s.op(&format!("testp.notanumber.{name} d, a"), PRED, &one, |x| u64::from(f.is_nan(x[0])));
        // Zeros count as normal.
        s.op(&format!("testp.normal.{name} d, a"), PRED, &one, |x| {
            u64::from(!infinite(x[0]) && !f.is_nan(x[0]) && !f.is_subnormal(x[0]))
        });
        s.op(&format!("testp.subnormal.{name} d, a"), PRED, &one, |x| u64::from(f.is_subnormal(x[0])));
    }
}
