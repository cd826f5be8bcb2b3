//! A kernel and the functions it calls, lowered and laid out.

use super::alloc::{self, Effects};
use super::inst::Slot;
use super::lower::{Lower, Lowered};
use super::place::{frames, reachable};
use super::program::{Code, Kernel, Linked, LoadError, Origin, Param, Place, symbol_error};
use crate::ptx::ast::{self, Stmt, Variable};
use std::collections::HashMap;

pub(super) fn build(linked: &Linked, kernel: usize) -> Result<Kernel, LoadError> {
    let order = reachable(linked, kernel)?;
    let frames = frames(linked, &order)?;
    let mut lower = Lower::new(linked);
    let mut all: Vec<Lowered> = Vec::new();
    let mut entries = HashMap::new();
    let mut formals = HashMap::new();
    let mut rows_by_function: HashMap<usize, (Vec<Option<u32>>, u32)> = HashMap::new();
    let mut pressure_total = 0;
    let mut undefined: Vec<(usize, u32, u32)> = Vec::new();
    for &index in &order {
        let f = &linked.module.functions[index];
        let places = frames.places[&index].clone();
        let formal = |list: &[Variable]| {
            list.iter()
                .map(|v| match places.get(&v.name) {
                    Some(&Place::Frame { offset, bytes }) => (offset, bytes),
                    _ => (0, 0),
                })
                .collect::<Vec<_>>()
        };
        formals.insert(index, (formal(&f.returns), formal(&f.params)));
        lower.begin(index, f, places.clone()).map_err(|reason| symbol_error(&f.name, reason))?;
        let first = all.len();
        entries.insert(index, first as u32);
        lower_body(&mut lower, f, &mut all)?;
        let effects: Vec<Effects> = all[first..]
            .iter()
            .map(|l| Effects {
                targets: l.effects.targets.iter().map(|t| t - first as u32).collect(),
                ..l.effects.clone()
            })
            .collect();
        let allocation = alloc::allocate(&effects, &lower.function.sizes);
        pressure_total += allocation.pressure;
        for v in allocation.undefined {
            if let Some(row) = allocation.rows[v as usize] {
                undefined.push((index, row, lower.function.sizes[v as usize]));
            }
        }
        rows_by_function.insert(index, (allocation.rows, allocation.count));
    }
    // Functions lie one behind the other in the file: no two that are active together may share rows.
    let mut next = 0u32;
    for index in &order {
        if let Some((rows, count)) = rows_by_function.get_mut(index) {
            rows.iter_mut().flatten().for_each(|r| *r += next);
            undefined.iter_mut().filter(|u| u.0 == *index).for_each(|u| u.1 += next);
            next += *count;
        }
    }
    let mut constants = Vec::new();
    for &(bits, rows) in &lower.constants {
        constants.push((next, bits, rows));
        next += rows;
    }
    let mut specials = Vec::new();
    for &special in &lower.specials {
        specials.push((next, special));
        next += special.rows();
    }
    let constant_rows: Vec<u32> = constants.iter().map(|c| c.0).collect();
    let special_rows: Vec<u32> = specials.iter().map(|s| s.0).collect();
    let mut insts = Vec::with_capacity(all.len());
    let mut origins = Vec::with_capacity(all.len());
    let mut site_pc = vec![0; lower.sites as usize];
    for (pc, l) in all.into_iter().enumerate() {
        let Lowered { mut inst, class, loc, ptx_line, text, function, flops, .. } = l;
        let rows = &rows_by_function[&function].0;
        let place = |s: Slot| Lower::row(s, rows, &constant_rows, &special_rows);
        inst.r = inst.r.map(place);
        inst.v.iter_mut().for_each(|s| *s = place(*s));
        if let Some(at) = site_pc.get_mut(inst.site as usize) {
            *at = pc as u32;
        }
        insts.push(inst);
        origins.push(Origin { loc, ptx_line, text, class, flops });
    }
    let observers = (0..).zip(&origins).filter(|(_, o)| o.observes()).map(|(pc, _)| pc).collect();
    let f = &linked.module.functions[kernel];
    let params: Vec<Param> = f
        .params
        .iter()
        .map(|v| Param {
            offset: frames.places[&kernel][&v.name].address() as u32,
            bytes: v.bytes.unwrap_or(0) as u32,
            align: v.align,
        })
        .collect();
    Ok(Kernel {
        name: f.name.clone(),
        param_bytes: params.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0),
        params,
        static_shared_bytes: frames.shared_bytes,
        registers: pressure_total.max(1),
        stack_bytes: frames.stack_bytes,
        maxntid: f.maxntid,
        reqntid: f.reqntid,
        minnctapersm: f.minnctapersm,
        cluster: f.cluster,
        files: linked.module.files.clone(),
        inlining: linked.module.inlining.clone(),
        code: Code {
            insts,
            origins,
            observers,
            rows: next,
            predicates: lower.predicate_count,
            constants,
            undefined: undefined.into_iter().map(|(_, row, rows)| (row, rows)).collect(),
            specials,
            sites: lower.sites,
            site_pc,
            local_bytes: frames.local_bytes,
            calls: lower.calls,
            branch_tables: lower.branch_tables,
            entries,
            formals,
            features: lower.features,
        },
    })
}

/// Lowers the statements of one function and resolves its labels.
fn lower_body(lower: &mut Lower<'_>, f: &ast::Function, all: &mut Vec<Lowered>) -> Result<(), LoadError> {
    let first = all.len();
    let mut labels: HashMap<&str, u32> = HashMap::new();
    for stmt in &f.body {
        match stmt {
            Stmt::Label(name) => {
                labels.insert(name, all.len() as u32);
            }
            Stmt::Inst(i) => lower.instruction(i, f, all).map_err(|reason| LoadError::Instruction {
                function: f.name.clone(),
                line: i.ptx_line,
                text: i.to_string(),
                reason,
            })?,
            Stmt::BranchTargets(..) | Stmt::CallPrototype { .. } => {}
        }
    }
    // A body may end without `ret`; a label may stand behind the last instruction.
    let end = ast::Inst {
        ptx_line: f.ptx_line,
        loc: all.last().map(|l| l.loc).unwrap_or_default(),
        guard: None,
        opcode: "ret".into(),
        mods: Vec::new(),
        operands: Vec::new(),
    };
    lower.instruction(&end, f, all).map_err(|reason| symbol_error(&f.name, reason))?;
    let count = all.len() as u32;
    for l in &mut all[first..] {
        let mut targets = Vec::new();
        for name in &l.labels {
            let &target = labels
                .get(name.as_str())
                .ok_or_else(|| symbol_error(&f.name, format!("label {name} is not in this function")))?;
            debug_assert!(target < count);
            targets.push(target);
        }
        if let (Some(&target), false) = (targets.first(), l.inst.aux == super::control::TABLE) {
            l.inst.aux = target;
        } else if !targets.is_empty() {
            lower.branch_tables.push(targets.clone());
            l.inst.aux = lower.branch_tables.len() as u32 - 1;
        }
        l.effects.targets = targets;
    }
    Ok(())
}
