//! `redux.sync`

use super::members;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst};
use crate::exec::lanes::{LANES, Value};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

/// `redux.sync.op.type d, a, membermask`
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let (["sync", op, ty], [d, a, members]) = (mods.as_slice(), i.operands.as_slice()) else {
        return Err("this form of redux is not implemented".into());
    };
    let exec = match (*op, *ty) {
        ("add", "u32" | "s32") => redux::<u32, ADD>,
        ("min", "u32") => redux::<u32, MIN>,
        ("max", "u32") => redux::<u32, MAX>,
        ("min", "s32") => redux::<i32, MIN>,
        ("max", "s32") => redux::<i32, MAX>,
        ("and", "b32") => redux::<u32, AND>,
        ("or", "b32") => redux::<u32, OR>,
        ("xor", "b32") => redux::<u32, XOR>,
        _ => return Err("this form of redux is not implemented".into()),
    };
    let (a, members) = (lower.src(a, Ty::B32)?, lower.src(members, Ty::B32)?);
    Ok((Inst::with(exec, &[lower.dst(d, Ty::B32)?, a, members]), Class::Warp))
}

const ADD: u8 = 0;
const MIN: u8 = 1;
const MAX: u8 = 2;
const AND: u8 = 3;
const OR: u8 = 4;
const XOR: u8 = 5;

trait Word: Value + Ord {
    fn bits(self) -> u32;
    fn of(bits: u32) -> Self;
}

impl Word for u32 {
    fn bits(self) -> u32 {
        self
    }
    fn of(bits: u32) -> u32 {
        bits
    }
}

impl Word for i32 {
    fn bits(self) -> u32 {
        self as u32
    }
    fn of(bits: u32) -> i32 {
        bits as i32
    }
}

fn redux<T: Word, const OP: u8>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[2], mask) {
        return cx.again();
    }
    let a = cx.get::<T>(i.r[1]);
    members::groups(cx, i.r[2], mask, |cx, group| {
        let lanes = (0..LANES).filter(|l| group >> l & 1 != 0).map(|l| a[l]);
        let bits = |f: fn(u32, u32) -> u32| T::of(lanes.clone().map(T::bits).reduce(f).unwrap_or(0));
        let result = match OP {
            ADD => bits(u32::wrapping_add),
            AND => bits(|x, y| x & y),
            OR => bits(|x, y| x | y),
            XOR => bits(|x, y| x ^ y),
            MIN => lanes.min().unwrap_or(T::of(0)),
            _ => lanes.max().unwrap_or(T::of(0)),
        };
        cx.put(i.r[0], group, &[result; LANES]);
    });
    Flow::Next
}

#[cfg(test)]
mod tests;
