//! Fences, address conversions, hints.

use super::AUX_SHIFT;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst, Slot};
use crate::exec::lanes::lane_mask;
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::Window;
use crate::ptx::ast::{self, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    match i.opcode.as_str() {
        "fence" | "membar" => fence_decode(i, &mods, lower),
        "cvta" => cvta_decode(i, &mods, lower),
        "isspacep" => isspacep_decode(i, &mods, lower),
        "createpolicy" if mods.last() == Some(&"b64") => {
            let dst = lower.dst(i.operands.first().ok_or("a result is needed")?, Ty::B64)?;
            Ok((Inst::with(no_policy, &[dst]), Class::Other))
        }
        // Hints move no data that anybody could notice.
        "prefetch" | "prefetchu" | "applypriority" => Ok((Inst::new(nothing), Class::Other)),
        _ => Err("this form is not implemented".into()),
    }
}

fn nothing(_: &mut Cx<'_>, _: &Inst, _: u32) -> Flow {
    Flow::Next
}

fn no_policy(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.put(i.r[0], mask, &[0u64; 32]);
    Flow::Next
}

fn fence_decode(i: &ast::Inst, mods: &[&str], lower: &mut Lower<'_>) -> Decoded {
    let device = match (i.opcode.as_str(), mods) {
        // Between kinds of access to the same memory, which are one here.
        ("fence", ["proxy", "alias" | "async", ..] | ["mbarrier_init", "release", "cluster"])
        | ("membar", ["proxy", "alias"]) => return Ok((Inst::new(nothing), Class::Barrier)),
        ("membar", ["cta"]) | ("fence", ["sc" | "acq_rel" | "acquire" | "release", "cta"]) => false,
        ("membar", ["gl" | "sys"])
        | ("fence", ["sc" | "acq_rel" | "acquire" | "release", "cluster" | "gpu" | "sys"]) => true,
        _ => return Err("this form of fence is not implemented".into()),
    };
    lower.features.partial_barriers = true;
    lower.features.fences = true;
    let mut inst = Inst::new(fence);
    inst.aux = u32::from(device);
    Ok((inst, Class::Barrier))
}

fn fence(cx: &mut Cx<'_>, i: &Inst, _: u32) -> Flow {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    cx.release(i.aux != 0);
    Flow::Next
}

fn space_window(word: &str) -> Option<Window> {
    Some(match word {
        "global" | "const" => Window::Global,
        "shared" | "shared::cta" => Window::Shared,
        "local" => Window::Local,
        "param" | "param::entry" => Window::Param,
        _ => return None,
    })
}

fn cvta_decode(i: &ast::Inst, mods: &[&str], lower: &mut Lower<'_>) -> Decoded {
    let (to, space) = match mods {
        ["to", space, "u64"] => (true, *space),
        [space, "u64"] => (false, *space),
        _ => return Err("this form of cvta is not implemented".into()),
    };
    let window = space_window(space).ok_or_else(|| format!(".{space} has no generic addresses"))?;
    let [dst, src] = i.operands.as_slice() else { return Err("a result and an address are needed".into()) };
    let src = lower.src(src, Ty::U64)?;
    let mut inst = Inst::with(cvta, &[Slot::NONE, src]);
    inst.r[0] = lower.dst(dst, Ty::U64)?;
    inst.imm = window.base() as i64 * if to { -1 } else { 1 };
    Ok((inst, Class::Integer))
}

fn cvta(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let offset = i.imm as u64;
    cx.map1(i, mask, |x: u64| x.wrapping_add(offset))
}

fn isspacep_decode(i: &ast::Inst, mods: &[&str], lower: &mut Lower<'_>) -> Decoded {
    let [space] = mods else { return Err("one space is needed".into()) };
    let [dst, address] = i.operands.as_slice() else {
        return Err("a predicate and an address are needed".into());
    };
    let window = space_window(space).ok_or_else(|| format!(".{space} has no generic addresses"))?;
    let address = lower.src(address, Ty::U64)?;
    let mut inst = Inst::with(isspacep, &[Slot::NONE, address]);
    inst.p[0] = lower.pred_dst(dst)?;
    inst.imm = window.base() as i64;
    // Constants live in global memory here, and no generic address is taken for one.
    inst.aux = u32::from(*space == "const") << AUX_SHIFT;
    Ok((inst, Class::Predicate))
}

fn isspacep(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let addresses = cx.get::<u64>(i.r[1]);
    let base = i.imm as u64;
    let constant = i.aux != 0;
    let inside = lane_mask(|l| !constant && Window::of(addresses[l]).base() == base);
    cx.set_pred(i.p[0], mask, inside);
    Flow::Next
}
