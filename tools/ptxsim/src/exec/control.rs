//! Control flow: branches, calls, the end of threads.

use super::cx::Cx;
use super::inst::{Class, Flow, Inst, Slot};
use super::lower::{Decoded, Lower};
use super::program::FUNCTION_WINDOW;
use super::warp::{Frame, Split};
use crate::check::Kind;
use crate::ptx::ast::{self, Operand, Stmt, Ty};

/// `Inst::aux` of a `brx.idx` before its table has a number.
pub(super) const TABLE: u32 = u32::MAX;

/// A call site: where its arguments lie in the lane's frame.
#[derive(Clone, Debug)]
pub struct CallSite {
    /// Function by index in the module; `None` for a call through a register.
    pub function: Option<usize>,
    /// (offset, bytes) of each result variable of the caller.
    pub results: Vec<(u32, u32)>,
    /// (offset, bytes) of each argument variable of the caller.
    pub arguments: Vec<(u32, u32)>,
}

pub(super) fn decode(i: &ast::Inst, body: &ast::Function, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    match i.opcode.as_str() {
        "bra" => {
            let [Operand::Name(label)] = i.operands.as_slice() else {
                return Err("one label is needed".into());
            };
            lower.label(label);
            lower.ends_path();
            Ok((Inst::new(bra), Class::Control))
        }
        "brx" => brx_decode(i, body, lower),
        "call" => call_decode(i, body, lower),
        "ret" if lower.in_kernel() => {
            lower.ends_path();
            Ok((Inst::new(exit), Class::Control))
        }
        "ret" => {
            lower.ends_path();
            Ok((Inst::new(ret), Class::Control))
        }
        "exit" => {
            lower.ends_path();
            Ok((Inst::new(exit), Class::Control))
        }
        "trap" | "brkpt" => {
            lower.ends_path();
            Ok((Inst::new(trap), Class::Control))
        }
        "nanosleep" if mods == ["u32"] && i.operands.len() == 1 => {
            let time = lower.src(&i.operands[0], Ty::U32)?;
            Ok((Inst::with(nanosleep, &[Slot::NONE, time]), Class::Control))
        }
        "pmevent" => Ok((Inst::new(nothing), Class::Other)),
        _ => Err("this form is not implemented".into()),
    }
}

fn brx_decode(i: &ast::Inst, body: &ast::Function, lower: &mut Lower<'_>) -> Decoded {
    let [index, Operand::Name(table)] = i.operands.as_slice() else {
        return Err("an index and a table are needed".into());
    };
    let labels = body
        .body
        .iter()
        .find_map(|s| match s {
            Stmt::BranchTargets(name, labels) if name == table => Some(labels),
            _ => None,
        })
        .ok_or_else(|| format!("{table} is not a .branchtargets table of this function"))?;
    if labels.is_empty() {
        return Err(format!("{table} is empty"));
    }
    for label in labels {
        lower.label(label);
    }
    lower.ends_path();
    let index = lower.src(index, Ty::U32)?;
    let mut inst = Inst::with(brx, &[Slot::NONE, index]);
    inst.aux = TABLE;
    Ok((inst, Class::Control))
}

fn call_decode(i: &ast::Inst, body: &ast::Function, lower: &mut Lower<'_>) -> Decoded {
    let (results, rest) = match i.operands.as_slice() {
        [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
        rest => (&[][..], rest),
    };
    let (target, arguments, prototype) = match rest {
        [target] => (target, &[][..], None),
        [target, Operand::List(arguments)] => (target, arguments.as_slice(), None),
        [target, Operand::List(arguments), Operand::Name(p)] => (target, arguments.as_slice(), Some(p)),
        _ => return Err("this form of call is not implemented".into()),
    };
    let frame = |list: &[Operand]| -> Result<Vec<(u32, u32)>, String> {
        list.iter()
            .map(|o| match o {
                Operand::Name(name) => match lower.place(name) {
                    Some(super::program::Place::Frame { offset, bytes }) => Ok((offset, bytes)),
                    _ => Err(format!("{name} is not a .param variable of this function")),
                },
                _ => Err("arguments of a call are .param variables".to_string()),
            })
            .collect()
    };
    let (results, arguments) = (frame(results)?, frame(arguments)?);
    if let Some(p) = prototype {
        let known = body.body.iter().any(|s| matches!(s, Stmt::CallPrototype { name, .. } if name == p));
        let table = body.body.iter().any(|s| matches!(s, Stmt::BranchTargets(name, _) if name == p));
        if !known && !table {
            return Err(format!("{p} is not a .callprototype of this function"));
        }
    }
    let Operand::Name(name) = target else { return Err("a function or a register is needed".into()) };
    let mut inst = Inst::new(call);
    let function = lower.module.function(name);
    match function {
        Some(f) if lower.module.module.functions[f].declaration => {
            inst.exec = super::builtin::find(name)?;
        }
        Some(_) => {}
        None => {
            inst.exec = call_indirect;
            inst.r[1] = lower.src(target, Ty::U64)?;
        }
    }
    lower.calls.push(CallSite { function, results, arguments });
    inst.aux = lower.calls.len() as u32 - 1;
    Ok((inst, Class::Control))
}

fn nothing(_: &mut Cx<'_>, _: &Inst, _: u32) -> Flow {
    Flow::Next
}

/// A sleeping warp lets the others run.
fn nanosleep(cx: &mut Cx<'_>, _: &Inst, _: u32) -> Flow {
    cx.pc += 1;
    cx.block.warps[cx.warp].state = super::warp::State::Yield { polling: None };
    Flow::Park
}

fn bra(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if mask == cx.active {
        cx.pc = i.aux;
        return Flow::Jump;
    }
    cx.tally.parted(cx.pc);
    // The lanes part: both sides become splits, and the lower one goes first.
    let stack = cx.block.warps[cx.warp].current.stack.clone();
    cx.block.warps[cx.warp].splits.push(Split { pc: i.aux, mask, stack });
    cx.active &= !mask;
    cx.pc += 1;
    cx.leave();
    cx.choose()
}

fn brx(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let index = cx.get::<u32>(i.r[1]);
    let table = &cx.code.branch_tables[i.aux as usize];
    let stack = cx.block.warps[cx.warp].current.stack.clone();
    let (mut left, mut parts) = (mask, 0);
    while left != 0 {
        let lane = left.trailing_zeros();
        let value = index[lane as usize];
        let Some(&target) = table.get(value as usize) else {
            let size = table.len();
            return cx.fault(Kind::OutOfBounds, lane, None, || {
                format!("branch index {value} is outside the table of {size} targets")
            });
        };
        let same = left & super::lanes::lane_mask(|l| index[l] == value);
        cx.block.warps[cx.warp].splits.push(Split { pc: target, mask: same, stack: stack.clone() });
        left &= !same;
        parts += 1;
    }
    if parts > 1 || mask != cx.active {
        cx.tally.parted(cx.pc);
    }
    cx.active &= !mask;
    cx.pc += 1;
    cx.leave();
    cx.choose()
}

/// Copies call arguments or results from frame to frame, for each lane of the mask.
fn copy_frames(cx: &mut Cx<'_>, mask: u32, from: &[(u32, u32)], to: &[(u32, u32)]) {
    let stride = cx.code.local_bytes as usize;
    let local = &mut cx.block.warps[cx.warp].local;
    for lane in (0..32usize).filter(|l| mask >> l & 1 != 0) {
        for (&(a, n), &(b, m)) in from.iter().zip(to) {
            let (a, b, n) = (lane * stride + a as usize, lane * stride + b as usize, n.min(m) as usize);
            local.copy_within(a..a + n, b);
        }
    }
}

fn enter_function(cx: &mut Cx<'_>, mask: u32, call: u32, function: usize) -> Flow {
    let code = cx.code;
    let (Some(&entry), Some((_, params))) = (code.entries.get(&function), code.formals.get(&function)) else {
        return cx.fault(Kind::Unsupported, mask.trailing_zeros(), None, || {
            format!(
                "the function with address {:#x} is not part of this kernel",
                FUNCTION_WINDOW + 16 * function as u64
            )
        });
    };
    let site = &code.calls[call as usize];
    copy_frames(cx, mask, &site.arguments, params);
    let mut stack = cx.block.warps[cx.warp].current.stack.clone();
    stack.push(Frame { return_pc: cx.pc + 1, call, function: function as u32 });
    cx.block.warps[cx.warp].splits.push(Split { pc: entry, mask, stack });
    Flow::Jump
}

fn call(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let Some(function) = cx.code.calls[i.aux as usize].function else { return Flow::Next };
    if enter_function(cx, mask, i.aux, function) == Flow::Stop {
        return Flow::Stop;
    }
    cx.active &= !mask;
    cx.pc += 1;
    cx.leave();
    cx.choose()
}

fn call_indirect(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let address = cx.get::<u64>(i.r[1]);
    let mut left = mask;
    while left != 0 {
        let lane = left.trailing_zeros();
        let target = address[lane as usize];
        let same = left & super::lanes::lane_mask(|l| address[l] == target);
        let offset = target.wrapping_sub(FUNCTION_WINDOW);
        if target < FUNCTION_WINDOW || !offset.is_multiple_of(16) || offset / 16 > u64::from(u32::MAX) {
            return cx.fault(Kind::OutOfBounds, lane, Some(target), || {
                "a call to an address that is no function".into()
            });
        }
        if enter_function(cx, same, i.aux, (offset / 16) as usize) == Flow::Stop {
            return Flow::Stop;
        }
        left &= !same;
    }
    cx.active &= !mask;
    cx.pc += 1;
    cx.leave();
    cx.choose()
}

fn ret(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    let code = cx.code;
    let mut stack = cx.block.warps[cx.warp].current.stack.clone();
    let Some(frame) = stack.pop() else { return exit_lanes(cx, mask) };
    let site = &code.calls[frame.call as usize];
    if let Some((returns, _)) = code.formals.get(&(frame.function as usize)) {
        copy_frames(cx, mask, returns, &site.results);
    }
    cx.block.warps[cx.warp].splits.push(Split { pc: frame.return_pc, mask, stack });
    cx.active &= !mask;
    cx.pc += 1;
    cx.leave();
    cx.choose()
}

fn exit(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    exit_lanes(cx, mask)
}

/// Ends the lanes of the mask.
fn exit_lanes(cx: &mut Cx<'_>, mask: u32) -> Flow {
    cx.exiting(mask);
    cx.active &= !mask;
    let warp = &mut cx.block.warps[cx.warp];
    warp.live &= !mask;
    cx.block.progress += 1;
    cx.pc += 1;
    cx.leave();
    cx.barriers_after_exit();
    cx.choose()
}

fn trap(cx: &mut Cx<'_>, _: &Inst, mask: u32) -> Flow {
    cx.fault(Kind::Trap, mask.trailing_zeros(), None, || "the kernel executed trap".into())
}
