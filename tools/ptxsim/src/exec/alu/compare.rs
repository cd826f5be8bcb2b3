//! Comparisons and selection: setp, set, selp, slct, testp.

// Unordered comparisons are negations by definition: they hold when a NaN is there.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use super::super::cx::Cx;
use super::super::inst::{ALWAYS, Class, Exec, Flow, Inst};
use super::super::lanes::{LANES, Value, each, lane_mask};
use super::super::lower::{Decoded, Lower};
use super::fp::{flush, flush_f16};
use super::half_bits::{Bf16 as BrainBits, Bits, F16 as HalfBits};
use super::{Form, for_int, map3, of_class, with_operands};
use crate::ptx::ast::{self, Operand, Ty};
use std::marker::PhantomData;

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let form = Form::new(i);
    match i.opcode.as_str() {
        "setp" => of_class(Class::Predicate, setp(i, lower, form)),
        "set" => of_class(Class::Predicate, set(i, lower, form)),
        "selp" => of_class(Class::Move, selp(i, lower, form)),
        "slct" => of_class(Class::Move, slct(i, lower, form)),
        _ => of_class(Class::Predicate, testp(i, lower, form)),
    }
}

/// What is compared: how a lane is read.
trait Compared {
    type Lane: Value;
    type Number: PartialOrd + Copy;
    fn number(lane: Self::Lane) -> Self::Number;
}

/// A lane as it is.
struct Plain<T>(PhantomData<T>);
impl<T: Value + PartialOrd> Compared for Plain<T> {
    type Lane = T;
    type Number = T;
    #[inline(always)]
    fn number(lane: T) -> T {
        lane
    }
}

macro_rules! compared {
    ($($name:ident: $lane:ty, $f:expr);* $(;)?) => {$(
        struct $name;
        impl Compared for $name {
            type Lane = $lane;
            type Number = f32;
            #[inline(always)]
            fn number(lane: $lane) -> f32 {
                $f(lane)
            }
        }
    )*};
}
compared! {
    Flushed: f32, flush;
    F16: u16, HalfBits::widen;
    F16Flushed: u16, |x| HalfBits::widen(flush_f16(x));
    Bf16: u16, BrainBits::widen;
    // One half of a packed pair.
    Low16: u32, |x| HalfBits::widen(x as u16);
    High16: u32, |x| HalfBits::widen((x >> 16) as u16);
    Low16Flushed: u32, |x| HalfBits::widen(flush_f16(x as u16));
    High16Flushed: u32, |x| HalfBits::widen(flush_f16((x >> 16) as u16));
    LowBf16: u32, |x| BrainBits::widen(x as u16);
    HighBf16: u32, |x| BrainBits::widen((x >> 16) as u16);
}

/// The comparison as a lane mask.
#[inline(always)]
fn truth<C: Compared>(cx: &Cx<'_>, i: &Inst, f: impl Fn(C::Number, C::Number) -> bool) -> u32 {
    let a = cx.get::<C::Lane>(i.r[1]);
    let b = cx.get::<C::Lane>(i.r[2]);
    lane_mask(|l| f(C::number(a[l]), C::number(b[l])))
}

/// What `$with` makes of the comparison, as `Some`. For integers `a < b || a > b` is the plain inequality.
macro_rules! by_operator {
    ($op:expr, $with:ident) => {
        Some(match $op {
            "eq" => $with!(|a, b| a == b),
            "ne" => $with!(|a, b| (a < b) | (a > b)),
            "lt" | "lo" => $with!(|a, b| a < b),
            "le" | "ls" => $with!(|a, b| a <= b),
            "gt" | "hi" => $with!(|a, b| a > b),
            "ge" | "hs" => $with!(|a, b| a >= b),
            "equ" => $with!(|a, b| !((a < b) | (a > b))),
            "neu" => $with!(|a, b| a != b),
            "ltu" => $with!(|a, b| !(a >= b)),
            "leu" => $with!(|a, b| !(a > b)),
            "gtu" => $with!(|a, b| !(a <= b)),
            "geu" => $with!(|a, b| !(a < b)),
            "num" => $with!(|a, b| (a == a) & (b == b)),
            "nan" => $with!(|a, b| (a != a) | (b != b)),
            _ => return None,
        })
    };
}

/// How a comparison is used.
struct Uses {
    /// `setp p, a, b`; packed pairs have none.
    simple: Option<Exec>,
    /// `setp` with a second result or a combination.
    general: Exec,
    /// `set`
    set: Exec,
}

#[allow(clippy::double_comparisons, clippy::nonminimal_bool, clippy::eq_op)]
fn uses<C: Compared>(op: &str) -> Option<Uses> {
    macro_rules! with {
        ($f:expr) => {
            Uses {
                simple: Some(|c, i, m| {
                    let t = truth::<C>(c, i, $f);
                    c.set_pred(i.p[0], m, t);
                    Flow::Next
                }),
                general: |c, i, m| {
                    let t = truth::<C>(c, i, $f);
                    results(c, i, m, t, !t)
                },
                set: |c, i, m| store(c, i, m, truth::<C>(c, i, $f)),
            }
        };
    }
    by_operator!(op, with)
}

/// Of packed pairs: the first result is for the low halves, the second for the high ones.
#[allow(clippy::double_comparisons, clippy::nonminimal_bool, clippy::eq_op)]
fn pair_uses<L: Compared, H: Compared>(op: &str) -> Option<Uses> {
    macro_rules! with {
        ($f:expr) => {
            Uses {
                simple: None,
                general: |c, i, m| results(c, i, m, truth::<L>(c, i, $f), truth::<H>(c, i, $f)),
                set: |c, i, m| store_pair(c, i, m, truth::<L>(c, i, $f), truth::<H>(c, i, $f)),
            }
        };
    }
    by_operator!(op, with)
}

const OPERATORS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

/// Checks that the operator exists for the type and gives its functions.
fn pick(op: &str, ty: Ty, ftz: bool) -> Result<Uses, String> {
    let float = matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 | Ty::F32 | Ty::F64);
    let fits = match op {
        "eq" | "ne" => true,
        "lt" | "le" | "gt" | "ge" => !matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
        "lo" | "ls" | "hi" | "hs" => matches!(ty, Ty::U16 | Ty::U32 | Ty::U64),
        _ => float,
    };
    let found = match (ty, ftz) {
        (Ty::B16 | Ty::U16, false) => uses::<Plain<u16>>(op),
        (Ty::B32 | Ty::U32, false) => uses::<Plain<u32>>(op),
        (Ty::B64 | Ty::U64, false) => uses::<Plain<u64>>(op),
        (Ty::S16, false) => uses::<Plain<i16>>(op),
        (Ty::S32, false) => uses::<Plain<i32>>(op),
        (Ty::S64, false) => uses::<Plain<i64>>(op),
        (Ty::F32, false) => uses::<Plain<f32>>(op),
        (Ty::F32, true) => uses::<Flushed>(op),
        (Ty::F64, false) => uses::<Plain<f64>>(op),
        (Ty::F16, false) => uses::<F16>(op),
        (Ty::F16, true) => uses::<F16Flushed>(op),
        (Ty::Bf16, false) => uses::<Bf16>(op),
        (Ty::F16x2, false) => pair_uses::<Low16, High16>(op),
        (Ty::F16x2, true) => pair_uses::<Low16Flushed, High16Flushed>(op),
        (Ty::Bf16x2, false) => pair_uses::<LowBf16, HighBf16>(op),
        _ => None,
    };
    found.filter(|_| fits).ok_or_else(|| format!("{ty:?} cannot be compared by .{op}"))
}

/// Ways to combine with another predicate.
const OPS: [&str; 3] = ["and", "or", "xor"];

#[inline(always)]
fn with_other(op: u32, truth: u32, other: u32) -> u32 {
    match op {
        0 => truth & other,
        1 => truth | other,
        _ => truth ^ other,
    }
}

/// `aux` is the other predicate; `imm` has the operator in its high half and says in its low one whether to turn the
/// predicate over.
#[inline(always)]
fn other(cx: &Cx<'_>, i: &Inst) -> (u32, u32) {
    ((i.imm >> 32) as u32, cx.pred(i.aux) ^ i.imm as u32)
}

#[inline(always)]
fn results(cx: &mut Cx<'_>, i: &Inst, mask: u32, first: u32, second: u32) -> Flow {
    let (op, other) = other(cx, i);
    cx.set_pred(i.p[0], mask, with_other(op, first, other));
    cx.set_pred(i.p[1], mask, with_other(op, second, other));
    Flow::Next
}

/// `p[0]` is the value of a true result.
#[inline(always)]
fn store(cx: &mut Cx<'_>, i: &Inst, mask: u32, truth: u32) -> Flow {
    let (op, other) = other(cx, i);
    let bits = with_other(op, truth, other);
    let value = i.p[0];
    let out: [u32; LANES] = each(|l| (bits >> l & 1).wrapping_neg() & value);
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

/// The same for two halves; `p[0]` is the value of one.
#[inline(always)]
fn store_pair(cx: &mut Cx<'_>, i: &Inst, mask: u32, low: u32, high: u32) -> Flow {
    let (op, other) = other(cx, i);
    let (low, high) = (with_other(op, low, other), with_other(op, high, other));
    let value = i.p[0];
    let out: [u32; LANES] =
        each(|l| (low >> l & 1).wrapping_neg() & value | (high >> l & 1).wrapping_neg() & value << 16);
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

/// Fills `aux` and the operator's half of `imm`; without an operator, the constant true and `.and`.
fn other_operand(
    inst: &mut Inst,
    op: Option<&str>,
    operands: &[Operand],
    lower: &mut Lower<'_>,
) -> Result<(), String> {
    match (op.and_then(|op| OPS.iter().position(|&o| o == op)), operands) {
        (None, []) => inst.aux = ALWAYS,
        (Some(op), [other]) => {
            let (index, turn) = lower.pred_src(other)?;
            inst.aux = index;
            inst.imm = (op as i64) << 32 | i64::from(turn);
        }
        _ => return Err("a predicate to combine with goes with .and, .or, .xor".into()),
    }
    Ok(())
}

fn setp(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let op = form.one_of(&OPERATORS).ok_or("a comparison is needed")?;
    let combination = form.one_of(&OPS);
    let ftz = form.flag("ftz");
    let ty = form.ty()?;
    form.end()?;
    let [results, a, b, rest @ ..] = i.operands.as_slice() else {
        return Err("three operands are needed".into());
    };
    let (p, q) = match results {
        Operand::Pair(p, q) => (&**p, Some(&**q)),
        p => (p, None),
    };
    let uses = pick(op, ty, ftz)?;
    let exec = match uses.simple {
        Some(simple) if combination.is_none() && q.is_none() => simple,
        _ => uses.general,
    };
    let mut inst = Inst::new(exec);
    inst.r[1] = lower.src(a, ty)?;
    inst.r[2] = lower.src(b, ty)?;
    other_operand(&mut inst, combination, rest, lower)?;
    inst.p = [lower.pred_dst(p)?, lower.pred_dst(q.unwrap_or(&Operand::Sink))?];
    Ok(inst)
}

fn set(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let op = form.one_of(&OPERATORS).ok_or("a comparison is needed")?;
    let combination = form.one_of(&OPS);
    let ftz = form.flag("ftz");
    let source = form.ty()?;
    let result = form.ty()?;
    form.end()?;
    let pair = matches!(source, Ty::F16x2 | Ty::Bf16x2);
    let half = matches!(source, Ty::F16 | Ty::Bf16);
    let one = match result {
        Ty::U32 | Ty::S32 if pair => 0xffff,
        Ty::F16x2 if source == Ty::F16x2 => 0x3c00,
        Ty::Bf16x2 if source == Ty::Bf16x2 => 0x3f80,
        _ if pair => return Err(format!("{result:?} does not go with {source:?}")),
        Ty::U32 | Ty::S32 => u32::MAX,
        Ty::F32 => 1f32.to_bits(),
        Ty::U16 | Ty::S16 if half => 0xffff,
        Ty::F16 if source != Ty::Bf16 => 0x3c00,
        Ty::Bf16 if source != Ty::F16 => 0x3f80,
        _ => return Err(format!("{result:?} does not go with {source:?}")),
    };
    let [d, a, b, rest @ ..] = i.operands.as_slice() else { return Err("three operands are needed".into()) };
    let mut inst = Inst::new(pick(op, source, ftz)?.set);
    inst.r[1] = lower.src(a, source)?;
    inst.r[2] = lower.src(b, source)?;
    inst.r[0] = lower.dst(d, result)?;
    other_operand(&mut inst, combination, rest, lower)?;
    inst.p = [one, ALWAYS];
    Ok(inst)
}

/// `aux` turns the predicate over.
#[inline(always)]
fn select<T: Value>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let (a, b) = (cx.get::<T>(i.r[1]), cx.get::<T>(i.r[2]));
    let chosen = cx.pred(i.p[0]) ^ i.aux;
    // Not `each`: this one is vectorised only so.
    let out: [T; LANES] = std::array::from_fn(|l| if chosen >> l & 1 != 0 { a[l] } else { b[l] });
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

fn selp(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let ty = form.ty()?;
    form.end()?;
    let exec: Exec = match ty {
        Ty::B16 | Ty::U16 | Ty::S16 => |c, i, m| select::<u16>(c, i, m),
        Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 => |c, i, m| select::<u32>(c, i, m),
        Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => |c, i, m| select::<u64>(c, i, m),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    };
    let [d, a, b, p] = i.operands.as_slice() else { return Err("four operands are needed".into()) };
    let mut inst = Inst::new(exec);
    inst.r[1] = lower.src(a, ty)?;
    inst.r[2] = lower.src(b, ty)?;
    inst.r[0] = lower.dst(d, ty)?;
    (inst.p[0], inst.aux) = lower.pred_src(p)?;
    Ok(inst)
}

fn slct(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let by = form.ty()?;
    let ty = form.ty()?;
    let ftz = form.flag("ftz");
    form.end()?;
    // NaN is not at least zero: b. A negative subnormal is, once flushed.
    macro_rules! pick {
        ($by:ty, $f:expr) => {
            for_int!(
                ty,
                T,
                [
                    B16: u16, U16: u16, S16: u16, B32: u32, U32: u32, S32: u32, F32: u32, B64: u64, U64: u64,
                    S64: u64, F64: u64
                ],
                map3!(|a: T, b: T, c: $by| if $f(c) { a } else { b })
            )
        };
    }
    let exec = match (by, ftz) {
        (Ty::S32, false) => pick!(i32, |c| c >= 0),
        (Ty::F32, false) => pick!(f32, |c| c >= 0.0),
        (Ty::F32, true) => pick!(f32, |c| flush(c) >= 0.0),
        _ => return Err("selection is by .s32 or .f32".into()),
    };
    with_operands(i, lower, exec, ty, &[ty, ty, by])
}

fn testp(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    #[inline(always)]
    fn test<T: Value>(cx: &mut Cx<'_>, i: &Inst, mask: u32, f: impl Fn(T) -> bool) -> Flow {
        let a = cx.get::<T>(i.r[1]);
        cx.set_pred(i.p[0], mask, lane_mask(|l| f(a[l])));
        Flow::Next
    }
    let op = form
        .one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        .ok_or("a property to test for is needed")?;
    let ty = form.ty()?;
    form.end()?;
    macro_rules! by_property {
        ($t:ty) => {
            match op {
                "finite" => |c, i, m| test(c, i, m, |x: $t| x.is_finite()),
                "infinite" => |c, i, m| test(c, i, m, |x: $t| x.is_infinite()),
                "number" => |c, i, m| test(c, i, m, |x: $t| !x.is_nan()),
                "notanumber" => |c, i, m| test(c, i, m, |x: $t| x.is_nan()),
                // Zeros count as normal.
                "normal" => |c, i, m| test(c, i, m, |x: $t| x.is_normal() | (x == 0.0)),
                _ => |c, i, m| test(c, i, m, |x: $t| x.is_subnormal()),
            }
        };
    }
    let exec: Exec = match ty {
        Ty::F32 => by_property!(f32),
        Ty::F64 => by_property!(f64),
        _ => return Err("the type is .f32 or .f64".into()),
    };
    let [p, a] = i.operands.as_slice() else { return Err("two operands are needed".into()) };
    let mut inst = Inst::new(exec);
    inst.r[1] = lower.src(a, ty)?;
    inst.p[0] = lower.pred_dst(p)?;
    Ok(inst)
}
