//! `shfl.sync`

use super::members;
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{ALWAYS, Class, Flow, Inst};
use crate::exec::lanes::{FULL, LANES, lane_mask};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

const UP: u8 = 0;
const DOWN: u8 = 1;
const BFLY: u8 = 2;
const IDX: u8 = 3;

/// `shfl.sync.mode.b32 d[|p], a, b, c, membermask`
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let exec = match mods.as_slice() {
        ["sync", "up", "b32"] => shfl::<UP>,
        ["sync", "down", "b32"] => shfl::<DOWN>,
        ["sync", "bfly", "b32"] => shfl::<BFLY>,
        ["sync", "idx", "b32"] => shfl::<IDX>,
        _ => return Err("this form of shfl is not implemented".into()),
    };
    let [d, a, b, c, members] = i.operands.as_slice() else {
        return Err("a result, a value, a lane, a clamp and a member mask are needed".into());
    };
    let (d, p) = match d {
        Operand::Pair(d, p) => (d.as_ref(), lower.pred_dst(p)?),
        d => (d, ALWAYS),
    };
    let sources = [lower.src(a, Ty::B32)?, lower.src(b, Ty::U32)?, lower.src(c, Ty::U32)?];
    let members = lower.src(members, Ty::B32)?;
    let mut inst = Inst::with(exec, &[lower.dst(d, Ty::B32)?, sources[0], sources[1], sources[2], members]);
    inst.p[0] = p;
    Ok((inst, Class::Warp))
}

fn shfl<const MODE: u8>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[4], mask) {
        return cx.again();
    }
    let a = cx.get::<u32>(i.r[1]);
    let (source, in_range) = sources::<MODE>(&cx.get(i.r[2]), &cx.get(i.r[3]));
    members::groups(cx, i.r[4], mask, |cx, group| {
        let source = if group == FULL { source } else { present(cx, &source, group) };
        // Lanes that read from themselves or from each other: no lane's source is written before it is read.
        let out: [u32; LANES] = std::array::from_fn(|l| a[source[l] as usize & 31]);
        cx.put(i.r[0], group, &out);
    });
    if i.p[0] != ALWAYS {
        cx.set_pred(i.p[0], mask, in_range);
    }
    Flow::Next
}

/// Lane that each lane reads from, and the lanes whose source is in range; the others read from themselves.
#[inline(always)]
fn sources<const MODE: u8>(b: &[u32; LANES], c: &[u32; LANES]) -> ([u32; LANES], u32) {
    let mut source = [0u32; LANES];
    let mut valid = [false; LANES];
    for l in 0..LANES {
        let lane = l as i32;
        let offset = (b[l] & 31) as i32;
        let segment = (c[l] >> 8 & 31) as i32;
        let low = lane & segment;
        let high = low | (c[l] as i32 & 31 & !segment);
        let j = match MODE {
            UP => lane - offset,
            DOWN => lane + offset,
            BFLY => lane ^ offset,
            _ => low | (offset & !segment),
        };
        // For `up` the clamp is a lower bound.
        valid[l] = if MODE == UP { j >= high } else { j <= high };
        source[l] = if valid[l] { j } else { lane } as u32;
    }
    (source, lane_mask(|l| valid[l]))
}

/// Sources for a part of the warp: lanes outside the group have no value, a lane keeps its own instead.
#[cold]
fn present(cx: &mut Cx<'_>, source: &[u32; LANES], group: u32) -> [u32; LANES] {
    let missing = group & lane_mask(|l| group >> (source[l] & 31) & 1 == 0);
    if missing != 0 {
        let lane = missing.trailing_zeros();
        let from = source[lane as usize];
        cx.find(Kind::AbsentLane, lane, None, || {
            format!(
                "lanes {missing:#010x} read from lanes that do not take part: lane {lane} from lane {from}"
            )
        });
    }
    std::array::from_fn(|l| if missing >> l & 1 != 0 { l as u32 } else { source[l] })
}

#[cfg(test)]
mod tests;
