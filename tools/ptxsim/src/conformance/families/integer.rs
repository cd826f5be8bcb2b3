//! Integer arithmetic, PTX ISA 9.7.1 and 9.7.2, in `i128`.

use super::super::case::Target;
use super::super::elementwise::{Out, Suite};
use super::super::values::{Values, Width, amounts, integers, ones, packed_integers};

const U32: Out = Out::Bits(Width::B32);

fn bits(n: u32) -> Out {
    Out::Bits(Width::of_bits(n))
}

/// Value of the low bits of a register.
fn value(signed: bool, bits: u32, v: u64) -> i128 {
    let v = v & ones(bits);
    if signed && v >> (bits - 1) != 0 { i128::from(v) - (1 << bits) } else { i128::from(v) }
}

/// Back to a register.
fn low(bits: u32, v: i128) -> u64 {
    v as u64 & ones(bits)
}

fn kinds() -> impl Iterator<Item = (bool, u32, String)> {
    [16, 32, 64].into_iter().flat_map(|n| [(false, n, format!("u{n}")), (true, n, format!("s{n}"))])
}

/// Family `integer`.
pub fn cases(s: &mut Suite) {
    arithmetic(s);
    multiplication(s);
    saturating(s);
    signed_only(s);
    counting(s);
    fields(s);
    packed(s);
    dot_products(s);
    carries(s);
    immediates(s);
}

fn arithmetic(s: &mut Suite) {
    for (signed, n, t) in kinds() {
        let i = integers(n);
        let two = [i.clone(), i.clone()];
        let v = move |x: u64| value(signed, n, x);
        s.op(&format!("add.{t} d, a, b"), bits(n), &two, |x| low(n, v(x[0]) + v(x[1])));
        s.op(&format!("sub.{t} d, a, b"), bits(n), &two, |x| low(n, v(x[0]) - v(x[1])));
        s.op(&format!("min.{t} d, a, b"), bits(n), &two, |x| low(n, v(x[0]).min(v(x[1]))));
        s.op(&format!("max.{t} d, a, b"), bits(n), &two, |x| low(n, v(x[0]).max(v(x[1]))));
        // Division by zero, and of the least number by -1, is left open.
        let smallest = -(1i128 << (n - 1));
        let open = move |x: &[u64]| v(x[1]) == 0 || signed && v(x[0]) == smallest && v(x[1]) == -1;
        s.partial(&format!("div.{t} d, a, b"), bits(n), &two, |x| {
            (!open(x)).then(|| low(n, v(x[0]) / v(x[1])))
        });
        s.partial(&format!("rem.{t} d, a, b"), bits(n), &two, |x| {
            (!open(x)).then(|| low(n, v(x[0]) % v(x[1])))
        });
        let three = [i.clone(), i.clone(), i.clone()];
        s.op(&format!("sad.{t} d, a, b, c"), bits(n), &three, |x| {
            low(n, v(x[2]) + (v(x[0]) - v(x[1])).abs())
        });
    }
}

fn multiplication(s: &mut Suite) {
    for (signed, n, t) in kinds() {
        let i = integers(n);
        let v = move |x: u64| value(signed, n, x);
        // The product of two 64-bit unsigned numbers needs all 128 bits.
        let product = move |x: &[u64]| v(x[0]).wrapping_mul(v(x[1])) as u128;
        let high = move |x: &[u64]| match (signed, n) {
            (false, 64) => (product(x) >> 64) as i128,
            _ => (product(x) as i128) >> n,
        };
        let two = [i.clone(), i.clone()];
        s.op(&format!("mul.lo.{t} d, a, b"), bits(n), &two, |x| low(n, product(x) as i128));
        s.op(&format!("mul.hi.{t} d, a, b"), bits(n), &two, |x| low(n, high(x)));
        let three = [i.clone(), i.clone(), i.clone()];
        s.op(&format!("mad.lo.{t} d, a, b, c"), bits(n), &three, |x| {
            low(n, (product(x) as i128).wrapping_add(v(x[2])))
        });
        s.op(&format!("mad.hi.{t} d, a, b, c"), bits(n), &three, |x| low(n, high(x) + v(x[2])));
        if n < 64 {
            s.op(&format!("mul.wide.{t} d, a, b"), bits(2 * n), &two, |x| low(2 * n, product(x) as i128));
            s.op(
                &format!("mad.wide.{t} d, a, b, c"),
                bits(2 * n),
                &[i.clone(), i.clone(), integers(2 * n)],
                |x| low(2 * n, product(x) as i128 + i128::from(x[2])),
            );
        }
    }
    for (signed, t) in [(false, "u32"), (true, "s32")] {
        let i = integers(32);
        let product = move |x: &[u64]| value(signed, 24, x[0]) * value(signed, 24, x[1]);
        let two = [i.clone(), i.clone()];
        let three = [i.clone(), i.clone(), i];
        s.op(&format!("mul24.lo.{t} d, a, b"), U32, &two, |x| low(32, product(x)));
        s.op(&format!("mul24.hi.{t} d, a, b"), U32, &two, |x| low(32, product(x) >> 16));
        s.op(&format!("mad24.lo.{t} d, a, b, c"), U32, &three, |x| low(32, product(x) + i128::from(x[2])));
        s.op(&format!("mad24.hi.{t} d, a, b, c"), U32, &three, |x| {
            low(32, (product(x) >> 16) + i128::from(x[2]))
        });
    }
}

fn saturating(s: &mut Suite) {
    let i = integers(32);
    let v = |x: u64| value(true, 32, x);
    let clamp = |x: i128| low(32, x.clamp(i32::MIN.into(), i32::MAX.into()));
    let two = [i.clone(), i.clone()];
    s.op("add.sat.s32 d, a, b", U32, &two, |x| clamp(v(x[0]) + v(x[1])));
    s.op("sub.sat.s32 d, a, b", U32, &two, |x| clamp(v(x[0]) - v(x[1])));
    let three = [i.clone(), i.clone(), i];
    s.op("mad.hi.sat.s32 d, a, b, c", U32, &three, |x| clamp(((v(x[0]) * v(x[1])) >> 32) + v(x[2])));
    s.op("mad24.hi.sat.s32 d, a, b, c", U32, &three, |x| {
        clamp(((value(true, 24, x[0]) * value(true, 24, x[1])) >> 16) + v(x[2]))
    });
}

fn signed_only(s: &mut Suite) {
    for n in [16, 32, 64] {
        let one = [integers(n)];
        s.op(&format!("abs.s{n} d, a"), bits(n), &one, |x| low(n, value(true, n, x[0]).abs()));
        s.op(&format!("neg.s{n} d, a"), bits(n), &one, |x| low(n, -value(true, n, x[0])));
    }
}

fn counting(s: &mut Suite) {
    for n in [32u32, 64] {
        let one = [integers(n)];
        s.op(&format!("popc.b{n} d, a"), U32, &one, |x| (0..n).filter(|i| x[0] >> i & 1 != 0).count() as u64);
        s.op(&format!("clz.b{n} d, a"), U32, &one, |x| {
            (0..n).take_while(|i| x[0] >> (n - 1 - i) & 1 == 0).count() as u64
        });
        s.op(&format!("brev.b{n} d, a"), bits(n), &one, |x| {
            (0..n).fold(0, |d, i| d | (x[0] >> (n - 1 - i) & 1) << i)
        });
        for signed in [false, true] {
            let t = if signed { 's' } else { 'u' };
            let find = move |x: u64| {
                let a = if signed && x >> (n - 1) & 1 != 0 { !x & ones(n) } else { x };
                (0..n).rev().find(|i| a >> i & 1 != 0)
            };
            let none = 0xffff_ffff;
            s.op(&format!("bfind.{t}{n} d, a"), U32, &one, |x| find(x[0]).map_or(none, u64::from));
            s.op(&format!("bfind.shiftamt.{t}{n} d, a"), U32, &one, |x| {
                find(x[0]).map_or(none, |i| u64::from(n - 1 - i))
            });
        }
    }
    let base = Values::only(Width::B32, &[0, 1, 2, 7, 8, 15, 16, 20, 30, 31]);
    let offset: Vec<u64> = (-5i32..6).chain([-32, -31, 31, 32, 33]).map(|v| u64::from(v as u32)).collect();
    s.op("fns.b32 d, a, b, c", U32, &[integers(32), base, Values::only(Width::B32, &offset)], |x| {
        let (mask, base, offset) = (x[0], x[1] as i32, x[2] as i32);
        if offset == 0 {
            return if mask >> base & 1 == 1 { base as u64 } else { 0xffff_ffff };
        }
        let (mut position, mut count) = (base, offset.abs() - 1);
        while (0..32).contains(&position) {
            if mask >> position & 1 == 1 {
                if count == 0 {
                    return position as u64;
                }
                count -= 1;
            }
            position += offset.signum();
        }
        0xffff_ffff
    });
}

fn fields(s: &mut Suite) {
    for n in [32u32, 64] {
        let msb = u64::from(n - 1);
        for signed in [false, true] {
            let t = if signed { 's' } else { 'u' };
            s.op(&format!("bfe.{t}{n} d, a, b, c"), bits(n), &[integers(n), amounts(), amounts()], |x| {
                let (pos, len) = (x[1] & 0xff, x[2] & 0xff);
                let sign = if !signed || len == 0 { 0 } else { x[0] >> (pos + len - 1).min(msb) & 1 };
                (0..=msb).fold(0, |d, i| {
                    d | if i < len && pos + i <= msb { x[0] >> (pos + i) & 1 } else { sign } << i
                })
            });
        }
        let inputs = [integers(n), integers(n), amounts(), amounts()];
        s.op(&format!("bfi.b{n} d, a, b, c, e"), bits(n), &inputs, |x| {
            let (pos, len) = (x[2] & 0xff, x[3] & 0xff);
            let mut f = x[1];
            for i in (0..len).take_while(|i| pos + i <= msb) {
                f = f & !(1 << (pos + i)) | (x[0] >> i & 1) << (pos + i);
            }
            f
        });
    }
    for (clamp, mode) in [(true, "clamp"), (false, "wrap")] {
        for (signed, t) in [(false, "u32"), (true, "s32")] {
            s.op(&format!("szext.{mode}.{t} d, a, b"), U32, &[integers(32), amounts()], |x| {
                let (a, b) = (x[0] as u32, x[1] as u32);
                if clamp && b >= 32 {
                    return u64::from(a);
                }
                match b % 32 {
                    0 => 0,
                    n => low(32, value(signed, n, a.into())),
                }
            });
        }
        s.op(&format!("bmsk.{mode}.b32 d, a, b"), U32, &[amounts(), amounts()], |x| {
            let (a, b) = (x[0], x[1]);
            if clamp && a >= 32 {
                return 0;
            }
            let (start, width) = if clamp { (a, b.min(32)) } else { (a % 32, b % 32) };
            (start..(start + width).min(32)).fold(0, |d, i| d | 1 << i)
        });
    }
}

/// `.u16x2` and `.s16x2`, compute capability 9.0.
fn packed(s: &mut Suite) {
    s.target(Target::Sm90);
    let two = [packed_integers(), packed_integers()];
    let lanes = |x: &[u64], signed: bool, f: fn(i128, i128) -> i128| {
        (0..2).fold(0, |d, i| {
            let v = |k: usize| value(signed, 16, x[k] >> (16 * i));
            d | low(16, f(v(0), v(1))) << (16 * i)
        })
    };
    for (signed, t) in [(false, "u16x2"), (true, "s16x2")] {
        s.op(&format!("add.{t} d, a, b"), U32, &two, |x| lanes(x, signed, |a, b| a + b));
        s.op(&format!("min.{t} d, a, b"), U32, &two, |x| lanes(x, signed, i128::min));
        s.op(&format!("max.{t} d, a, b"), U32, &two, |x| lanes(x, signed, i128::max));
    }
    s.op("min.relu.s16x2 d, a, b", U32, &two, |x| lanes(x, true, |a, b| a.min(b).max(0)));
    s.op("max.relu.s16x2 d, a, b", U32, &two, |x| lanes(x, true, |a, b| a.max(b).max(0)));
    let two = [integers(32), integers(32)];
    let v = |x: u64| value(true, 32, x);
    s.op("min.relu.s32 d, a, b", U32, &two, |x| low(32, v(x[0]).min(v(x[1])).max(0)));
    s.op("max.relu.s32 d, a, b", U32, &two, |x| low(32, v(x[0]).max(v(x[1])).max(0)));
    s.target(Target::Sm80);
}

fn dot_products(s: &mut Suite) {
    let inputs = [packed_integers(), packed_integers(), integers(32)];
    for (a_signed, a) in [(false, "u32"), (true, "s32")] {
        for (b_signed, b) in [(false, "u32"), (true, "s32")] {
            let c_signed = a_signed || b_signed;
            s.op(&format!("dp4a.{a}.{b} d, a, b, c"), U32, &inputs, |x| {
                let part = |i: u32| value(a_signed, 8, x[0] >> (8 * i)) * value(b_signed, 8, x[1] >> (8 * i));
                low(32, value(c_signed, 32, x[2]) + (0..4).map(part).sum::<i128>())
            });
            for (first, mode) in [(0, "lo"), (2, "hi")] {
                s.op(&format!("dp2a.{mode}.{a}.{b} d, a, b, c"), U32, &inputs, |x| {
                    let part = |i: u32| {
                        value(a_signed, 16, x[0] >> (16 * i)) * value(b_signed, 8, x[1] >> (8 * (first + i)))
                    };
                    low(32, value(c_signed, 32, x[2]) + (0..2).map(part).sum::<i128>())
                });
            }
        }
    }
}

/// Chains through the condition code register: double-width sums, differences, products.
fn carries(s: &mut Suite) {
    for n in [32u32, 64] {
        let i = integers(n);
        let out = [bits(n), bits(n)];
        let four = [i.clone(), i.clone(), i.clone(), i.clone()];
        let wide = move |low: u64, high: u64| u128::from(low) | u128::from(high) << n;
        let split = move |v: u128, d: &mut [Option<u64>]| {
            d[0] = Some(v as u64 & ones(n));
            d[1] = Some((v >> n) as u64 & ones(n));
        };
        // a and c are the low words, b and e the high ones.
        for t in ["u", "s"] {
            s.ops(&format!("add.cc.{t}{n} d, a, c; addc.{t}{n} g, b, e"), &out, &four, |x, d| {
                split(wide(x[0], x[1]).wrapping_add(wide(x[2], x[3])), d);
            });
            s.ops(&format!("sub.cc.{t}{n} d, a, c; subc.{t}{n} g, b, e"), &out, &four, |x, d| {
                split(wide(x[0], x[1]).wrapping_sub(wide(x[2], x[3])), d);
            });
        }
        // The carry out of the second word comes back as 0 or 1, the borrow as 0 or all ones.
        s.ops(
            &format!("add.cc.u{n} d, a, c; addc.cc.u{n} d, b, e; addc.u{n} g, 0, 0; mov.b{n} d, g"),
            &out,
            &four,
            |x, d| {
                let (low, c1) = (x[0] & ones(n), x[2] & ones(n));
                let first = (u128::from(low) + u128::from(c1)) >> n;
                let carry = (u128::from(x[1]) + u128::from(x[3]) + first) >> n;
                d.fill(Some(carry as u64));
            },
        );
        s.ops(
            &format!("sub.cc.u{n} d, a, c; subc.cc.u{n} d, b, e; subc.u{n} g, 0, 0; mov.b{n} d, g"),
            &out,
            &four,
            |x, d| {
                let first = u128::from(x[0] < x[2]);
                let borrow = u128::from(x[1]) < u128::from(x[3]) + first;
                d.fill(Some(if borrow { ones(n) } else { 0 }));
            },
        );
        let three = [i.clone(), i.clone(), i.clone()];
        for (signed, t) in [(false, 'u'), (true, 's')] {
            let product =
                move |x: &[u64]| value(signed, n, x[0]).wrapping_mul(value(signed, n, x[1])) as u128;
            // Low word plus c, then high word plus c and the carry.
            s.ops(
                &format!("mad.lo.cc.{t}{n} d, a, b, c; madc.hi.{t}{n} g, a, b, c"),
                &out,
                &three,
                |x, d| {
                    let p = product(x);
                    let sum = u128::from(p as u64 & ones(n)) + u128::from(x[2]);
                    d[0] = Some(sum as u64 & ones(n));
                    let high = (p >> n) as u64;
                    d[1] = Some(high.wrapping_add(x[2]).wrapping_add((sum >> n) as u64) & ones(n));
                },
            );
            // High word plus c sets the carry that the low word then takes.
            s.ops(
                &format!("mad.hi.cc.{t}{n} d, a, b, c; madc.lo.cc.{t}{n} g, a, b, c"),
                &out,
                &three,
                |x, d| {
                    let p = product(x);
                    let sum = u128::from((p >> n) as u64 & ones(n)) + u128::from(x[2]);
                    d[0] = Some(sum as u64 & ones(n));
                    let second = (p as u64).wrapping_add(x[2]).wrapping_add((sum >> n) as u64);
                    d[1] = Some(second & ones(n));
                },
            );
        }
    }
}

/// Immediate operands, negative ones too.
fn immediates(s: &mut Suite) {
    s.op("add.s32 d, a, -7", U32, &[integers(32)], |x| low(32, value(true, 32, x[0]) - 7));
    s.op("sub.s32 d, 100, a", U32, &[integers(32)], |x| low(32, 100 - value(true, 32, x[0])));
    s.op("mul.lo.s64 d, a, -3", bits(64), &[integers(64)], |x| low(64, value(true, 64, x[0]) * -3));
    s.op("add.s16 d, a, -1", bits(16), &[integers(16)], |x| low(16, value(true, 16, x[0]) - 1));
    s.op("mul.wide.s32 d, a, -5", bits(64), &[integers(32)], |x| low(64, value(true, 32, x[0]) * -5));
    s.op("mad.lo.u32 d, a, 0xFFFFFFFFU, 017", U32, &[integers(32)], |x| {
        low(32, i128::from(x[0]) * 0xffff_ffff + 0o17)
    });
    s.op("min.u64 d, a, 0x8000000000000000", bits(64), &[integers(64)], |x| x[0].min(1 << 63));
}
