//! Logic, shifts, permutations, comparisons, selections and predicates: PTX ISA 9.7.6, 9.7.8, `prmt`.

use super::super::elementwise::{Out, Suite};
use super::super::softfloat::Format;
use super::super::values::{Values, Width, amounts, floats, integers, ones, predicates};
use std::cmp::Ordering;

const U32: Out = Out::Bits(Width::B32);
const PRED: Out = Out::Bits(Width::Pred);

fn bits(n: u32) -> Out {
    Out::Bits(Width::of_bits(n))
}

/// Family `logic`.
pub fn cases(s: &mut Suite) {
    bitwise(s);
    lop3(s);
    shifts(s);
    permutations(s);
    predicate_logic(s);
    selections(s);
}

fn bitwise(s: &mut Suite) {
    for n in [16u32, 32, 64] {
        let two = [integers(n), integers(n)];
        s.op(&format!("and.b{n} d, a, b"), bits(n), &two, |x| x[0] & x[1]);
        s.op(&format!("or.b{n} d, a, b"), bits(n), &two, |x| x[0] | x[1]);
        s.op(&format!("xor.b{n} d, a, b"), bits(n), &two, |x| x[0] ^ x[1]);
        s.op(&format!("not.b{n} d, a"), bits(n), &two[..1], |x| !x[0] & ones(n));
        s.op(&format!("cnot.b{n} d, a"), bits(n), &two[..1], |x| u64::from(x[0] == 0));
        s.op(&format!("mov.b{n} d, a"), bits(n), &two[..1], |x| x[0]);
    }
}

/// All 256 tables, bit by bit.
fn lop3(s: &mut Suite) {
    let inputs = [integers(32), integers(32), integers(32)];
    let bit = |lut: u64, x: &[u64], i: u32| {
        let index = (x[0] >> i & 1) << 2 | (x[1] >> i & 1) << 1 | x[2] >> i & 1;
        (lut >> index & 1) << i
    };
    s.room(96);
    for lut in 0..256u64 {
        s.op(&format!("lop3.b32 d, a, b, c, {lut:#x}"), U32, &inputs, |x| {
            (0..32).fold(0, |d, i| d | bit(lut, x, i))
        });
    }
    s.room(512);
    let inputs = [integers(32), integers(32), integers(32), predicates()];
    for (op, and) in [("and", true), ("or", false)] {
        s.ops(&format!("lop3.{op}.b32 d|g, a, b, c, 0x80, e"), &[U32, PRED], &inputs, |x, d| {
            let (v, q) = (x[0] & x[1] & x[2], x[3] != 0);
            d[0] = Some(v);
            d[1] = Some(u64::from(if and { (v != 0) && q } else { (v != 0) || q }));
        });
    }
}

fn shifts(s: &mut Suite) {
    for n in [16u32, 32, 64] {
        let inputs = [integers(n), amounts()];
        s.op(&format!("shl.b{n} d, a, b"), bits(n), &inputs, |x| {
            if x[1] >= u64::from(n) { 0 } else { x[0] << x[1] & ones(n) }
        });
        for t in ["u", "b"] {
            s.op(&format!("shr.{t}{n} d, a, b"), bits(n), &inputs, |x| {
                if x[1] >= u64::from(n) { 0 } else { x[0] >> x[1] }
            });
        }
        s.op(&format!("shr.s{n} d, a, b"), bits(n), &inputs, |x| {
            let sign = x[0] >> (n - 1) & 1;
            (0..u64::from(n)).fold(0, |d, i| {
                let from = i + x[1];
                d | if from < u64::from(n) { x[0] >> from & 1 } else { sign } << i
            })
        });
    }
    for (clamp, mode) in [(true, "clamp"), (false, "wrap")] {
        let inputs = [integers(32), integers(32), amounts()];
        let shift = move |c: u64| if clamp { c.min(32) } else { c & 31 };
        s.op(&format!("shf.l.{mode}.b32 d, a, b, c"), U32, &inputs, |x| {
            ((u128::from(x[1]) << 32 | u128::from(x[0])) << shift(x[2]) >> 32) as u64 & ones(32)
        });
        s.op(&format!("shf.r.{mode}.b32 d, a, b, c"), U32, &inputs, |x| {
            (x[1] << 32 | x[0]).checked_shr(shift(x[2]) as u32).unwrap_or(0) & ones(32)
        });
    }
}

fn permutations(s: &mut Suite) {
    let byte = |x: &[u64], i: u64| (x[1] << 32 | x[0]) >> (8 * i) & 0xff;
    let join = |bytes: [u64; 4]| bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24;
    let selectors = Values::only(
        Width::B32,
        &[0x3210, 0x7654, 0x0123, 0x5410, 0x7632, 0xba98, 0xfedc, 0x89ab, 0x8c3f, 0xffff_1357, 0, 0xffff],
    );
    let mut any = selectors.clone();
    any.random = Some(|rng| rng.bits() & 0xffff_ffff);
    s.op("prmt.b32 d, a, b, c", U32, &[integers(32), integers(32), any], |x| {
        join([0, 4, 8, 12].map(|k| {
            let c = x[2] >> k & 0xf;
            let b = byte(x, c & 7);
            match c & 8 {
                0 => b,
                _ if b & 0x80 != 0 => 0xff,
                _ => 0,
            }
        }))
    });
    // Sources of d.b3, d.b2, d.b1, d.b0 by the two low bits of the selector, as the manual's table has them.
    let modes: [(&str, [[u64; 4]; 4]); 6] = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    let control = Values::only(Width::B32, &[0, 1, 2, 3, 4, 7, 0xfffe, 0x8000_0001]);
    for (mode, table) in modes {
        s.op(
            &format!("prmt.b32.{mode} d, a, b, c"),
            U32,
            &[integers(32), integers(32), control.clone()],
            |x| {
                let [b3, b2, b1, b0] = table[(x[2] & 3) as usize].map(|i| byte(x, i));
                join([b0, b1, b2, b3])
            },
        );
    }
}

fn predicate_logic(s: &mut Suite) {
    let two = [predicates(), predicates()];
    s.room(64);
    s.op("and.pred d, a, b", PRED, &two, |x| x[0] & x[1]);
    s.op("or.pred d, a, b", PRED, &two, |x| x[0] | x[1]);
    s.op("xor.pred d, a, b", PRED, &two, |x| x[0] ^ x[1]);
    s.op("not.pred d, a", PRED, &two[..1], |x| x[0] ^ 1);
    s.op("mov.pred d, a", PRED, &two[..1], |x| x[0]);
    s.room(512);
}

fn selections(s: &mut Suite) {
    for n in [16u32, 32, 64] {
        for t in ["b", "u", "s"] {
            s.op(
                &format!("selp.{t}{n} d, a, b, c"),
                bits(n),
                &[integers(n), integers(n), predicates()],
                |x| {
                    if x[2] != 0 { x[0] } else { x[1] }
                },
            );
            s.op(
                &format!("slct.{t}{n}.s32 d, a, b, c"),
                bits(n),
                &[integers(n), integers(n), integers(32)],
                |x| {
                    if x[2] as i32 >= 0 { x[0] } else { x[1] }
                },
            );
        }
    }
    for f in [Format::F32, Format::F64] {
        let (n, name) = (f.bits(), f.name());
        // Moved without modification: NaNs keep their bits.
        s.op(&format!("selp.{name} d, a, b, c"), bits(n), &[floats(f), floats(f), predicates()], |x| {
            if x[2] != 0 { x[0] } else { x[1] }
        });
        s.op(&format!("slct.{name}.s32 d, a, b, c"), bits(n), &[floats(f), floats(f), integers(32)], |x| {
            if x[2] as i32 >= 0 { x[0] } else { x[1] }
        });
        for ftz in ["", ".ftz"] {
            let inputs = [floats(f), floats(f), floats(Format::F32)];
            s.op(&format!("slct{ftz}.{name}.f32 d, a, b, c"), bits(n), &inputs, |x| {
                let c = if ftz.is_empty() { x[2] } else { Format::F32.flush(x[2]) };
                // Minus zero equals zero; a NaN selects b.
                let first = matches!(Format::F32.compare(c, 0), Some(Ordering::Equal | Ordering::Greater));
                if first { x[0] } else { x[1] }
            });
        }
    }
}
