//! Logic, shifts and bit fields against loops over single bits, as the manual has them.

use super::{Random, number, refused, verify};
use crate::exec::test_bench::Bench;

fn one(r: &mut Random) -> [u64; 1] {
    [r.integer()]
}

fn two(r: &mut Random) -> [u64; 2] {
    [r.integer(), r.integer()]
}

/// A value and an amount to shift by, often near a width.
fn shifted(r: &mut Random) -> [u64; 2] {
    let amount = match r.below(4) {
        0 => r.integer(),
        1 => [15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256][r.below(11) as usize],
        _ => r.below(70),
    };
    [r.integer(), amount]
}

fn fields(r: &mut Random) -> [u64; 4] {
    let [a, pos] = shifted(r);
    let [b, len] = shifted(r);
    [a, b, pos, len]
}

fn names(w: u32) -> &'static str {
    if w == 64 { "%rd" } else { "%r" }
}

#[test]
fn logic() {
    for w in [16, 32, 64] {
        let r = names(w);
        verify(&format!("and.b{w} {r}0, {r}1, {r}2"), w, two, |[a, b]| a & b);
        verify(&format!("or.b{w} {r}0, {r}1, {r}2"), w, two, |[a, b]| a | b);
        verify(&format!("xor.b{w} {r}0, {r}1, {r}2"), w, two, |[a, b]| a ^ b);
        verify(&format!("not.b{w} {r}0, {r}1"), w, one, |[a]| !a);
        verify(&format!("cnot.b{w} {r}0, {r}1"), w, one, |[a]| u64::from(number(a, w, false) == 0));
    }
    refused("and.u32 %r0, %r1, %r2", "type");
}

#[test]
fn logic_of_predicates() {
    let (a, b) = (0b0011, 0b0101);
    for (text, want) in [
        ("and.pred %p0, %p1, %p2;", a & b),
        ("or.pred %p0, %p1, %p2;", a | b),
        ("xor.pred %p0, %p1, %p2;", a ^ b),
        ("not.pred %p0, %p1;", !a),
        ("and.pred %p0, !%p1, %p2;", !a & b),
        ("or.pred %p0, %p1, !%p2;", a | !b),
        ("mov.pred %p0, %p1;", a),
        ("mov.pred %p0, !%p1;", !a),
        ("mov.pred %p0, 0;", 0),
        ("mov.pred %p0, 1;", u32::MAX),
    ] {
        let mut m = Bench::new(text).expect("lowers");
        m.set_pred("%p0", 0xffff_0000);
        if text.contains("%p1") {
            m.set_pred("%p1", a);
        }
        if text.contains("%p2") {
            m.set_pred("%p2", b);
        }
        m.run(0x0000_ffff);
        assert_eq!(m.pred("%p0"), 0xffff_0000 | want & 0xffff, "{text}");
    }
}

#[test]
fn every_table_of_lop3() {
    for table in 0..256u64 {
        verify(
            &format!("lop3.b32 %r0, %r1, %r2, %r3, {table}"),
            32,
            |r| [r.next(), r.next(), r.next()],
            |[a, b, c]| {
                (0..32).fold(0, |d, n| {
                    d | (table >> ((a >> n & 1) << 2 | (b >> n & 1) << 1 | c >> n & 1) & 1) << n
                })
            },
        );
    }
    refused("lop3.b32 %r0, %r1, %r2, %r3, 256", "255");
}

#[test]
fn lop3_with_a_predicate() {
    for (op, f) in [("or", u32::wrapping_add as fn(u32, u32) -> u32), ("and", u32::wrapping_mul)] {
        let mut b =
            Bench::new(&format!("lop3.{op}.b32 %r0|%p0, %r1, %r2, %r3, 0x80, !%p1;")).expect("lowers");
        b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| l as u32 & 1));
        b.set("%r2", [3u32; 32]);
        b.set("%r3", [1u32; 32]);
        b.set_pred("%p1", 0x0000_ffff);
        b.run(u32::MAX);
        assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| l as u32 & 1));
        let want = (0..32).fold(0, |p, l| p | u32::from(f(l & 1, u32::from(l >= 16)) > 0) << l);
        assert_eq!(b.pred("%p0"), want, "{op}");
    }
    let mut b = Bench::new("lop3.or.b32 _|%p0, %r1, %r1, %r1, 0xfe, 0;").expect("lowers");
    b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| l as u32 & 2));
    b.run(u32::MAX);
    assert_eq!(b.pred("%p0"), 0xcccc_cccc);
}

#[test]
fn shifts() {
    for w in [16, 32, 64] {
        let r = names(w);
        let left = |[a, n]: [u64; 2]| if n as u32 >= w { 0 } else { a << (n as u32) };
        verify(&format!("shl.b{w} {r}0, {r}1, %r2"), w, shifted, left);
        for (kind, signed) in [('b', false), ('u', false), ('s', true)] {
            verify(&format!("shr.{kind}{w} {r}0, {r}1, %r2"), w, shifted, |[a, n]| {
                (number(a, w, signed) >> (n as u32).min(64)) as u64
            });
        }
    }
    refused("shl.u32 %r0, %r1, %r2", "type");
}

#[test]
fn funnel_shifts() {
    for mode in ["wrap", "clamp"] {
        let make = |r: &mut Random| {
            let [a, n] = shifted(r);
            [a, r.next(), n]
        };
        let amount = |n: u64| if mode == "wrap" { n as u32 & 31 } else { (n as u32).min(32) };
        let pair = |a: u64, b: u64| b << 32 | a & 0xffff_ffff;
        verify(&format!("shf.l.{mode}.b32 %r0, %r1, %r2, %r3"), 32, make, |[a, b, n]| {
            (u128::from(pair(a, b)) << amount(n) >> 32) as u64
        });
        verify(&format!("shf.r.{mode}.b32 %r0, %r1, %r2, %r3"), 32, make, |[a, b, n]| {
            pair(a, b) >> amount(n)
        });
    }
}

#[test]
fn permutations() {
    let byte = |a: u64, b: u64, n: u64| (b << 32 | a & 0xffff_ffff) >> (8 * n) & 0xff;
    let generic = |a: u64, b: u64, c: u64| {
        (0..4).fold(0, |d, n| {
            let selector = c >> (4 * n) & 0xf;
            let x = byte(a, b, selector & 7);
            let x = if selector & 8 == 0 {
                x
            } else if x & 0x80 != 0 {
                0xff
            } else {
                0
            };
            d | x << (8 * n)
        })
    };
    let three = |r: &mut Random| [r.next(), r.next(), r.next()];
    verify("prmt.b32 %r0, %r1, %r2, %r3", 32, three, |[a, b, c]| generic(a, b, c));
    for c in [0x5410, 0x7632, 0x3210, 0x0123, 0x4140, 0x7770, 0xba98, 0x3340, 0x8f08, 0x15410] {
        let make = |r: &mut Random| [r.next(), r.next()];
        verify(&format!("prmt.b32 %r0, %r1, %r2, {c}"), 32, make, |[a, b]| generic(a, b, c));
    }
    // The manual's table: selectors for bytes 3 to 0, by the two low bits of the control.
    let table: [(&str, [u64; 4]); 6] = [
        ("f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
        ("b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
        ("rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
        ("ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
        ("ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
        ("rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ];
    for (mode, selectors) in table {
        verify(&format!("prmt.b32.{mode} %r0, %r1, %r2, %r3"), 32, three, |[a, b, c]| {
            generic(a, b, selectors[c as usize & 3])
        });
    }
}

#[test]
fn counts_and_positions() {
    for w in [32, 64] {
        let r = names(w);
        let bits = move |a: u64| (0..w).filter(move |n| a >> n & 1 != 0);
        verify(&format!("popc.b{w} %r0, {r}1"), 32, one, |[a]| bits(a).count() as u64);
        verify(&format!("clz.b{w} %r0, {r}1"), 32, one, |[a]| {
            u64::from(bits(a).max().map_or(w, |top| w - 1 - top))
        });
        verify(&format!("brev.b{w} {r}0, {r}1"), w, one, |[a]| bits(a).fold(0, |d, n| d | 1 << (w - 1 - n)));
        for signed in [false, true] {
            let kind = if signed { 's' } else { 'u' };
            let found = |a: u64| {
                let negative = signed && a >> (w - 1) & 1 != 0;
                bits(if negative { !a } else { a }).max()
            };
            verify(&format!("bfind.{kind}{w} %r0, {r}1"), 32, one, |[a]| {
                found(a).map_or(0xffff_ffff, u64::from)
            });
            verify(&format!("bfind.shiftamt.{kind}{w} %r0, {r}1"), 32, one, |[a]| {
                found(a).map_or(0xffff_ffff, |n| u64::from(w - 1 - n))
            });
        }
    }
}

#[test]
fn the_nth_set_bit() {
    let make = |r: &mut Random| [r.integer(), r.below(32), r.below(80).wrapping_sub(40)];
    verify("fns.b32 %r0, %r1, %r2, %r3", 32, make, |[mask, base, offset]| {
        let offset = offset as i32;
        let mut hits: Vec<u64> = (0..32).filter(|n| mask >> n & 1 != 0).collect();
        match offset {
            0 => hits.retain(|&n| n == base),
            1.. => hits.retain(|&n| n >= base),
            _ => {
                hits.retain(|&n| n <= base);
                hits.reverse();
            }
        }
        hits.get(offset.unsigned_abs().saturating_sub(1) as usize).copied().unwrap_or(0xffff_ffff)
    });
    for (text, want) in [("3, 1", 3u32), ("3, -1", 3), ("2, 1", 3), ("2, -1", 1)] {
        let mut b = Bench::new(&format!("fns.b32 %r0, 0xaaaaaaaa, {text};")).expect("lowers");
        b.run(u32::MAX);
        assert_eq!(b.get::<u32>("%r0"), [want; 32], "{text}");
    }
}

#[test]
fn bit_fields() {
    for w in [32, 64] {
        let r = names(w);
        for signed in [false, true] {
            let kind = if signed { 's' } else { 'u' };
            let make = |r: &mut Random| {
                let [a, _, pos, len] = fields(r);
                [a, pos, len]
            };
            verify(&format!("bfe.{kind}{w} {r}0, {r}1, %r2, %r3"), w, make, |[a, pos, len]| {
                let (pos, len) = (pos & 0xff, len & 0xff);
                let top = u64::from(w) - 1;
                let bit = |n: u64| a >> n & 1;
                let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(top)) };
                (0..=top).fold(0, |d, n| d | if n < len && pos + n <= top { bit(pos + n) } else { sign } << n)
            });
        }
        verify(&format!("bfi.b{w} {r}0, {r}1, {r}2, %r3, %r4"), w, fields, |[a, b, pos, len]| {
            let (pos, len) = (pos & 0xff, len & 0xff);
            (0..u64::from(w)).fold(0, |d, n| {
                let inside = n >= pos && n - pos < len;
                d | (if inside { a >> (n - pos) } else { b >> n } & 1) << n
            })
        });
    }
}

#[test]
fn masks_and_extensions() {
    for mode in ["clamp", "wrap"] {
        let make = |r: &mut Random| {
            let [_, a] = shifted(r);
            let [_, b] = shifted(r);
            [a, b]
        };
        verify(&format!("bmsk.{mode}.b32 %r0, %r1, %r2"), 32, make, |[a, b]| {
            let (a, b) = (a & 0xffff_ffff, b & 0xffff_ffff);
            let (a1, b1) = (a & 31, b & 31);
            let ones = 0xffff_ffffu64;
            let over = mode == "clamp";
            let mask0 = if over && a >= 32 { 0 } else { ones << a1 & ones };
            let all = a1 + b1 >= 32 || over && (a >= 32 || b >= 32);
            let mask1 = if all {
                0
            } else if b1 == 0 {
                ones
            } else {
                ones << (a1 + b1) & ones
            };
            mask0 & !mask1
        });
        for (ty, signed) in [("u32", false), ("s32", true)] {
            verify(&format!("szext.{mode}.{ty} %r0, %r1, %r2"), 32, shifted, |[a, n]| {
                let n = n as u32;
                match if mode == "wrap" { n & 31 } else { n.min(32) } {
                    0 => 0,
                    bits => number(a, bits, signed) as u64,
                }
            });
        }
    }
}
