//! Logic, shifts, bit fields, permutation of bytes.

use super::super::cx::Cx;
use super::super::inst::{Class, Exec, Flow, Inst};
use super::super::lanes::{Value, each, lane_mask};
use super::super::lower::{Decoded, Lower};
use super::{Form, for_int, map1, map2, map3, of_class, with_operands};
use crate::ptx::ast::{self, Operand, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut form = Form::new(i);
    if form.mods == ["pred"] {
        return of_class(Class::Predicate, predicate_logic(i, lower));
    }
    let inst = match i.opcode.as_str() {
        "and" | "or" | "xor" | "not" | "cnot" => logic(i, lower, form),
        "lop3" => lop3(i, lower, form),
        "shl" | "shr" => shift(i, lower, form),
        "shf" => funnel(i, lower, form),
        "prmt" => prmt(i, lower, form),
        "popc" | "clz" => {
            let ty = form.ty()?;
            form.end()?;
            let count = i.opcode == "popc";
            let exec = for_int!(
                ty,
                T,
                [B32: u32, B64: u64],
                if count { map1!(|a: T| a.count_ones()) } else { map1!(|a: T| a.leading_zeros()) }
            );
            with_operands(i, lower, exec, Ty::U32, &[ty])
        }
        "brev" => {
            let ty = form.ty()?;
            form.end()?;
            let exec = for_int!(ty, T, [B32: u32, B64: u64], map1!(|a: T| a.reverse_bits()));
            with_operands(i, lower, exec, ty, &[ty])
        }
        "bfind" => bfind(i, lower, form),
        "fns" => {
            let ty = form.ty()?;
            form.end()?;
            if ty != Ty::B32 {
                return Err("the type is .b32".into());
            }
            with_operands(i, lower, map3!(find_nth_set), Ty::B32, &[Ty::B32, Ty::B32, Ty::S32])
        }
        "bfe" => bfe(i, lower, form),
        "bfi" => bfi(i, lower, form),
        "bmsk" => {
            let wrap = form.one_of(&["wrap", "clamp"]).ok_or("one of .wrap, .clamp is needed")? == "wrap";
            let ty = form.ty()?;
            form.end()?;
            if ty != Ty::B32 {
                return Err("the type is .b32".into());
            }
            let exec = if wrap { map2!(|a: u32, b: u32| bit_mask(a & 31, b & 31)) } else { map2!(bit_mask) };
            with_operands(i, lower, exec, Ty::B32, &[Ty::U32; 2])
        }
        _ => szext(i, lower, form),
    };
    of_class(Class::Integer, inst)
}

fn logic(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let ty = form.ty()?;
    form.end()?;
    macro_rules! pick {
        ($map:ident, $f:expr) => {
            for_int!(ty, T, [B16: u16, B32: u32, B64: u64], $map!($f))
        };
    }
    let (exec, sources) = match i.opcode.as_str() {
        "and" => (pick!(map2, |a: T, b: T| a & b), 2),
        "or" => (pick!(map2, |a: T, b: T| a | b), 2),
        "xor" => (pick!(map2, |a: T, b: T| a ^ b), 2),
        "not" => (pick!(map1, |a: T| !a), 1),
        _ => (pick!(map1, |a: T| T::from(a == 0)), 1),
    };
    with_operands(i, lower, exec, ty, &[ty; 2][..sources])
}

/// `p[0] = p[1] op aux`, each source turned over where its half of `imm` says so.
fn predicate_logic(i: &ast::Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    fn sources(cx: &Cx<'_>, i: &Inst) -> (u32, u32) {
        (cx.pred(i.p[1]) ^ i.imm as u32, cx.pred(i.aux) ^ (i.imm >> 32) as u32)
    }
    let exec: Exec = match i.opcode.as_str() {
        "and" => |c, i, m| {
            let (a, b) = sources(c, i);
            c.set_pred(i.p[0], m, a & b);
            Flow::Next
        },
        "or" => |c, i, m| {
            let (a, b) = sources(c, i);
            c.set_pred(i.p[0], m, a | b);
            Flow::Next
        },
        "xor" => |c, i, m| {
            let (a, b) = sources(c, i);
            c.set_pred(i.p[0], m, a ^ b);
            Flow::Next
        },
        "not" => |c, i, m| {
            let (a, _) = sources(c, i);
            c.set_pred(i.p[0], m, !a);
            Flow::Next
        },
        _ => return Err("this instruction does not work on predicates".into()),
    };
    let expected = if i.opcode == "not" { 2 } else { 3 };
    if i.operands.len() != expected {
        return Err(format!("{expected} operands are needed"));
    }
    let mut inst = Inst::new(exec);
    let (a, turn_a) = lower.pred_src(&i.operands[1])?;
    let (b, turn_b) = lower.pred_src(&i.operands[expected - 1])?;
    inst.p = [lower.pred_dst(&i.operands[0])?, a];
    inst.aux = b;
    inst.imm = i64::from(turn_a) | i64::from(turn_b) << 32;
    Ok(inst)
}

/// The function of three inputs whose truth table is in `imm`: bit `4a + 2b + c`.
#[inline(always)]
fn lookup(masks: &[u32; 8], a: u32, b: u32, c: u32) -> u32 {
    let select = |which: u32, zero: u32, one: u32| zero ^ (which & (zero ^ one));
    let by_c = |n: usize| select(c, masks[2 * n], masks[2 * n + 1]);
    select(a, select(b, by_c(0), by_c(1)), select(b, by_c(2), by_c(3)))
}

#[inline(always)]
fn table(i: &Inst) -> [u32; 8] {
    std::array::from_fn(|n| ((i.imm >> n & 1) as u32).wrapping_neg())
}

fn lop3(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    /// `p[0] = (r0 != 0) op p[1]`
    fn with_predicate(cx: &mut Cx<'_>, i: &Inst, mask: u32, or: bool) {
        let d = cx.get::<u32>(i.r[0]);
        let any = lane_mask(|l| d[l] != 0);
        let q = cx.pred(i.p[1]) ^ i.aux;
        cx.set_pred(i.p[0], mask, if or { any | q } else { any & q });
    }
    let op = form.one_of(&["or", "and"]);
    let ty = form.ty()?;
    form.end()?;
    if ty != Ty::B32 {
        return Err("the type is .b32".into());
    }
    let expected = if op.is_some() { 6 } else { 5 };
    if i.operands.len() != expected {
        return Err(format!("{expected} operands are needed"));
    }
    let Operand::Int(imm @ 0..=255) = i.operands[4] else {
        return Err("the table is a number to 255".into());
    };
    let exec: Exec = match op {
        None => |c, i, m| {
            let masks = table(i);
            c.map3(i, m, |x, y, z| lookup(&masks, x, y, z))
        },
        Some("or") => |c, i, m| {
            let masks = table(i);
            c.map3(i, m, |x, y, z| lookup(&masks, x, y, z));
            with_predicate(c, i, m, true);
            Flow::Next
        },
        Some(_) => |c, i, m| {
            let masks = table(i);
            c.map3(i, m, |x, y, z| lookup(&masks, x, y, z));
            with_predicate(c, i, m, false);
            Flow::Next
        },
    };
    let mut inst = Inst::new(exec);
    for n in 1..4 {
        inst.r[n] = lower.src(&i.operands[n], Ty::B32)?;
    }
    if op.is_some() {
        let Operand::Pair(d, p) = &i.operands[0] else { return Err("the result is d|p".into()) };
        inst.r[0] = lower.dst(d, Ty::B32)?;
        let (q, turn) = lower.pred_src(&i.operands[5])?;
        inst.p = [lower.pred_dst(p)?, q];
        inst.aux = turn;
    } else {
        inst.r[0] = lower.dst(&i.operands[0], Ty::B32)?;
    }
    inst.imm = imm;
    Ok(inst)
}

/// Shift amounts beyond the width shift everything out.
fn shift(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let ty = form.ty()?;
    form.end()?;
    let exec = match (i.opcode.as_str(), ty) {
        ("shl", Ty::B16) => map2!(|a: u16, n: u32| shl_32(a.into(), n) as u16),
        ("shl", Ty::B32) => map2!(shl_32),
        ("shl", Ty::B64) => map2!(shl_64),
        ("shr", Ty::B16 | Ty::U16) => map2!(|a: u16, n: u32| shr_32(a.into(), n) as u16),
        ("shr", Ty::B32 | Ty::U32) => map2!(shr_32),
        ("shr", Ty::B64 | Ty::U64) => map2!(shr_64),
        ("shr", Ty::S16) => map2!(|a: i16, n: u32| a >> n.min(15)),
        ("shr", Ty::S32) => map2!(|a: i32, n: u32| a >> n.min(31)),
        ("shr", Ty::S64) => map2!(|a: i64, n: u32| a >> n.min(63)),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    with_operands(i, lower, exec, ty, &[ty, Ty::U32])
}

#[inline(always)]
fn shl_32(a: u32, n: u32) -> u32 {
    if n < 32 { a << n } else { 0 }
}

#[inline(always)]
fn shr_32(a: u32, n: u32) -> u32 {
    if n < 32 { a >> n } else { 0 }
}

#[inline(always)]
fn shl_64(a: u64, n: u32) -> u64 {
    if n < 64 { a << n } else { 0 }
}

#[inline(always)]
fn shr_64(a: u64, n: u32) -> u64 {
    if n < 64 { a >> n } else { 0 }
}

/// `a` are the low, `b` the high 32 bits.
fn funnel(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    #[inline(always)]
    fn left(a: u32, b: u32, n: u32) -> u32 {
        shl_32(b, n) | shr_32(a, 32 - n)
    }
    #[inline(always)]
    fn right(a: u32, b: u32, n: u32) -> u32 {
        shl_32(b, 32 - n) | shr_32(a, n)
    }
    let direction = form.one_of(&["l", "r"]).ok_or("one of .l, .r is needed")?;
    let mode = form.one_of(&["wrap", "clamp"]).ok_or("one of .wrap, .clamp is needed")?;
    let ty = form.ty()?;
    form.end()?;
    if ty != Ty::B32 {
        return Err("the type is .b32".into());
    }
    let exec = match (direction, mode) {
        ("l", "wrap") => map3!(|a: u32, b: u32, n: u32| left(a, b, n & 31)),
        ("l", _) => map3!(|a: u32, b: u32, n: u32| left(a, b, n.min(32))),
        (_, "wrap") => map3!(|a: u32, b: u32, n: u32| right(a, b, n & 31)),
        _ => map3!(|a: u32, b: u32, n: u32| right(a, b, n.min(32))),
    };
    with_operands(i, lower, exec, ty, &[ty, ty, Ty::U32])
}

/// Byte 0 to 7 of the pair, in the low bits.
#[inline(always)]
fn byte_of(a: u32, b: u32, selector: u32) -> u32 {
    let word = if selector & 4 == 0 { a } else { b };
    word >> (8 * (selector & 3)) & 0xff
}

/// The four bytes that `select` chooses for positions 0 to 3.
#[inline(always)]
fn four_bytes(a: u32, b: u32, select: impl Fn(u32) -> u32) -> u32 {
    (0..4).fold(0, |d, n| d | byte_of(a, b, select(n)) << (8 * n))
}

/// The generic form: four selectors of four bits; the highest asks for eight copies of the byte's sign.
#[inline(always)]
fn permute(a: u32, b: u32, c: u32) -> u32 {
    (0..4).fold(0, |d, n| {
        let selector = c >> (4 * n);
        let byte = byte_of(a, b, selector);
        let sign = (byte >> 7).wrapping_neg() & 0xff;
        d | (if selector & 8 == 0 { byte } else { sign }) << (8 * n)
    })
}

fn prmt(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let mode = form.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]);
    let ty = form.ty()?;
    form.end()?;
    if ty != Ty::B32 {
        return Err("the type is .b32".into());
    }
    // A constant selector, which is what compilers emit, is the same for all lanes.
    if let (None, Some(&Operand::Int(c))) = (mode, i.operands.get(3)) {
        let exec: Exec = match c & 0xffff {
            0x5410 => |cx, i, m| cx.map2(i, m, |a: u32, b: u32| a & 0xffff | b << 16),
            0x7632 => |cx, i, m| cx.map2(i, m, |a: u32, b: u32| a >> 16 | b & 0xffff_0000),
            _ => |cx, i, m| {
                let c = i.imm as u32;
                cx.map2(i, m, |a, b| permute(a, b, c))
            },
        };
        let mut inst = Inst::with(exec, &[]);
        inst.r[1] = lower.src(&i.operands[1], ty)?;
        inst.r[2] = lower.src(&i.operands[2], ty)?;
        inst.r[0] = lower.dst(&i.operands[0], ty)?;
        inst.imm = c;
        return Ok(inst);
    }
    let exec = match mode {
        None => map3!(permute),
        Some("f4e") => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |n| (c & 3) + n)),
        Some("b4e") => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |n| (c & 3).wrapping_sub(n) & 7)),
        Some("rc8") => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |_| c & 3)),
        Some("ecl") => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |n| n.max(c & 3))),
        Some("ecr") => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |n| n.min(c & 3))),
        Some(_) => map3!(|a: u32, b: u32, c: u32| four_bytes(a, b, |n| (c & 1) * 2 + n % 2)),
    };
    with_operands(i, lower, exec, ty, &[ty; 3])
}

fn bfind(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let shift = form.flag("shiftamt");
    let ty = form.ty()?;
    form.end()?;
    macro_rules! find {
        ($t:ty, $u:ty, $sign:expr) => {
            if shift {
                map1!(|a: $t| {
                    let a = $sign(a) as $u;
                    if a == 0 { u32::MAX } else { a.leading_zeros() }
                })
            } else {
                map1!(|a: $t| ((<$u>::BITS - 1) as u32).wrapping_sub(($sign(a) as $u).leading_zeros()))
            }
        };
    }
    let exec = match ty {
        Ty::U32 => find!(u32, u32, |a: u32| a),
        Ty::S32 => find!(i32, u32, |a: i32| a ^ (a >> 31)),
        Ty::U64 => find!(u64, u64, |a: u64| a),
        Ty::S64 => find!(i64, u64, |a: i64| a ^ (a >> 63)),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    with_operands(i, lower, exec, Ty::U32, &[ty])
}

/// A base beyond 31 is undefined; here nothing is found there.
fn find_nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    if offset == 0 {
        return if mask >> base & 1 != 0 { base } else { u32::MAX };
    }
    let count = offset.unsigned_abs();
    let mut found = 0;
    let mut at = base as i32;
    while (0..32).contains(&at) {
        found += mask >> at & 1;
        if found == count {
            return at as u32;
        }
        at += offset.signum();
    }
    u32::MAX
}

fn bfe(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let ty = form.ty()?;
    form.end()?;
    // The arithmetic shift fills with the sign what lies above the number; the pair of shifts extends the field.
    macro_rules! signed {
        ($t:ty) => {
            map3!(|a: $t, pos: u32, len: u32| {
                let field = a >> (pos & 0xff).min(<$t>::BITS - 1);
                let above = <$t>::BITS - (len & 0xff).clamp(1, <$t>::BITS);
                if len & 0xff == 0 { 0 } else { field << above >> above }
            })
        };
    }
    let exec = match ty {
        Ty::U32 => map3!(|a: u32, pos: u32, len: u32| {
            shr_32(a, pos & 0xff) & shl_32(1, len & 0xff).wrapping_sub(1)
        }),
        Ty::U64 => map3!(|a: u64, pos: u32, len: u32| {
            shr_64(a, pos & 0xff) & shl_64(1, len & 0xff).wrapping_sub(1)
        }),
        Ty::S32 => signed!(i32),
        Ty::S64 => signed!(i64),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    with_operands(i, lower, exec, ty, &[ty, Ty::U32, Ty::U32])
}

fn bfi(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    #[inline(always)]
    fn insert<T: Value>(cx: &mut Cx<'_>, i: &Inst, mask: u32, f: impl Fn(T, T, u32, u32) -> T) -> Flow {
        let (a, b) = (cx.get::<T>(i.r[1]), cx.get::<T>(i.r[2]));
        let (pos, len) = (cx.get::<u32>(i.r[3]), cx.get::<u32>(i.r[4]));
        let out = each(|l| f(a[l], b[l], pos[l] & 0xff, len[l] & 0xff));
        cx.put(i.r[0], mask, &out);
        Flow::Next
    }
    let ty = form.ty()?;
    form.end()?;
    let exec: Exec = match ty {
        Ty::B32 => |c, i, m| {
            insert(c, i, m, |a: u32, b: u32, pos, len| {
                let field = shl_32(shl_32(1, len).wrapping_sub(1), pos);
                b & !field | shl_32(a, pos) & field
            })
        },
        Ty::B64 => |c, i, m| {
            insert(c, i, m, |a: u64, b: u64, pos, len| {
                let field = shl_64(shl_64(1, len).wrapping_sub(1), pos);
                b & !field | shl_64(a, pos) & field
            })
        },
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    with_operands(i, lower, exec, ty, &[ty, ty, Ty::U32, Ty::U32])
}

/// `len` ones from position `pos`; what lies above bit 31 is cut off.
#[inline(always)]
fn bit_mask(pos: u32, len: u32) -> u32 {
    shl_32(shl_32(1, len).wrapping_sub(1), pos)
}

fn szext(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    // Of `n` bits; 0 to 32.
    #[inline(always)]
    fn unsigned(a: u32, n: u32) -> u32 {
        a & shl_32(1, n).wrapping_sub(1)
    }
    #[inline(always)]
    fn signed(a: i32, n: u32) -> i32 {
        let above = 32 - n.max(1);
        if n == 0 { 0 } else { a << above >> above }
    }
    let wrap = form.one_of(&["wrap", "clamp"]).ok_or("one of .wrap, .clamp is needed")? == "wrap";
    let ty = form.ty()?;
    form.end()?;
    let exec = match (ty, wrap) {
        (Ty::U32, true) => map2!(|a: u32, n: u32| unsigned(a, n & 31)),
        (Ty::U32, false) => map2!(|a: u32, n: u32| unsigned(a, n.min(32))),
        (Ty::S32, true) => map2!(|a: i32, n: u32| signed(a, n & 31)),
        (Ty::S32, false) => map2!(|a: i32, n: u32| signed(a, n.min(32))),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    with_operands(i, lower, exec, ty, &[ty, Ty::U32])
}
