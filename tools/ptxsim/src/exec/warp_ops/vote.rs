//! `vote.sync`, `match`, `activemask`

use super::members;
use crate::exec::cx::Cx;
use crate::exec::inst::{ALWAYS, Class, Flow, Inst};
use crate::exec::lanes::{LANES, Value, lane_mask};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let inst = match (i.opcode.as_str(), mods.as_slice(), i.operands.as_slice()) {
        ("activemask", ["b32"], [d]) => Inst::with(activemask, &[lower.dst(d, Ty::B32)?]),
        ("vote", ["sync", "ballot", "b32"], [d, a, members]) => {
            let members = lower.src(members, Ty::B32)?;
            let mut inst = Inst::with(ballot, &[lower.dst(d, Ty::B32)?, members]);
            voted(&mut inst, a, lower)?;
            inst
        }
        ("vote", ["sync", how @ ("all" | "any" | "uni"), "pred"], [p, a, members]) => {
            let exec = match *how {
                "all" => vote::<ALL>,
                "any" => vote::<ANY>,
                _ => vote::<UNI>,
            };
            let members = lower.src(members, Ty::B32)?;
            let mut inst = Inst::with(exec, &[crate::exec::inst::Slot::NONE, members]);
            inst.p[0] = lower.pred_dst(p)?;
            voted(&mut inst, a, lower)?;
            inst
        }
        ("match", ["any", "sync", ty @ ("b32" | "b64")], [d, a, members]) => {
            let exec = if *ty == "b32" { match_any::<u32> } else { match_any::<u64> };
            let a = lower.src(a, if *ty == "b32" { Ty::B32 } else { Ty::B64 })?;
            let members = lower.src(members, Ty::B32)?;
            Inst::with(exec, &[lower.dst(d, Ty::B32)?, a, members])
        }
        ("match", ["all", "sync", ty @ ("b32" | "b64")], [d, a, members]) => {
            let exec = if *ty == "b32" { match_all::<u32> } else { match_all::<u64> };
            let a = lower.src(a, if *ty == "b32" { Ty::B32 } else { Ty::B64 })?;
            let members = lower.src(members, Ty::B32)?;
            let (d, p) = match d {
                Operand::Pair(d, p) => (d.as_ref(), lower.pred_dst(p)?),
                d => (d, ALWAYS),
            };
            let mut inst = Inst::with(exec, &[lower.dst(d, Ty::B32)?, a, members]);
            inst.p[0] = p;
            inst
        }
        _ => return Err(format!("this form of {} is not implemented", i.opcode)),
    };
    Ok((inst, Class::Warp))
}

/// The predicate that is voted about goes to `p[1]`, its negation to `imm`.
fn voted(inst: &mut Inst, a: &Operand, lower: &mut Lower<'_>) -> Result<(), String> {
    let (p, xor) = lower.pred_src(a)?;
    inst.p[1] = p;
    inst.imm = i64::from(xor);
    Ok(())
}

fn activemask(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.put(i.r[0], mask, &[mask; LANES]);
    Flow::Next
}

fn ballot(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[1], mask) {
        return cx.again();
    }
    let votes = cx.pred(i.p[1]) ^ i.imm as u32;
    members::groups(cx, i.r[1], mask, |cx, group| cx.put(i.r[0], group, &[votes & group; LANES]));
    Flow::Next
}

const ALL: u8 = 0;
const ANY: u8 = 1;
const UNI: u8 = 2;

fn vote<const HOW: u8>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[1], mask) {
        return cx.again();
    }
    let votes = cx.pred(i.p[1]) ^ i.imm as u32;
    members::groups(cx, i.r[1], mask, |cx, group| {
        let yes = votes & group;
        let result = match HOW {
            ALL => yes == group,
            ANY => yes != 0,
            _ => yes == group || yes == 0,
        };
        cx.set_pred(i.p[0], group, if result { u32::MAX } else { 0 });
    });
    Flow::Next
}

fn match_any<T: Value + PartialEq>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[2], mask) {
        return cx.again();
    }
    let a = cx.get::<T>(i.r[1]);
    members::groups(cx, i.r[2], mask, |cx, group| {
        let same: [u32; LANES] = std::array::from_fn(|l| group & lane_mask(|k| a[k] == a[l]));
        cx.put(i.r[0], group, &same);
    });
    Flow::Next
}

fn match_all<T: Value + PartialEq>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[2], mask) {
        return cx.again();
    }
    let a = cx.get::<T>(i.r[1]);
    members::groups(cx, i.r[2], mask, |cx, group| {
        let first = a[group.trailing_zeros() as usize & 31];
        let all = group & !lane_mask(|l| a[l] == first) == 0;
        cx.put(i.r[0], group, &[if all { group } else { 0 }; LANES]);
        if i.p[0] != ALWAYS {
            cx.set_pred(i.p[0], group, if all { u32::MAX } else { 0 });
        }
    });
    Flow::Next
}

#[cfg(test)]
mod tests;
