//! Where variables live: module-scope ones in device memory, those of functions in shared memory, in a lane's frame, or
//! among the kernel's parameters; and which functions a kernel reaches.

use super::lower::callees;
use super::program::{Linked, LoadError, Place, SHARED_BASE, symbol_error};
use crate::mem::GlobalMemory;
use crate::ptx::ast::{self, Init, Space, Stmt, Variable};
use std::collections::HashMap;

/// Allocates `.global` and `.const` variables, of the module and of function bodies.
pub(super) fn place_globals(
    module: &ast::Module,
    memory: &GlobalMemory,
) -> Result<HashMap<String, (u64, u64)>, LoadError> {
    let mut globals = HashMap::new();
    let inner = module.functions.iter().flat_map(|f| &f.vars);
    for v in module.vars.iter().chain(inner) {
        if matches!(v.space, Space::Global | Space::Const) {
            let bytes = v
                .bytes
                .ok_or_else(|| symbol_error(&v.name, "an external variable has no definition here"))?;
            let address = memory.alloc(bytes.max(1)).map_err(|e| symbol_error(&v.name, e.to_string()))?;
            globals.insert(v.name.clone(), (address, bytes));
        }
    }
    Ok(globals)
}

/// Writes initialisers, once every address is known.
pub(super) fn initialise(linked: &Linked, memory: &GlobalMemory) -> Result<(), LoadError> {
    let inner = linked.module.functions.iter().flat_map(|f| &f.vars);
    for v in linked.module.vars.iter().chain(inner) {
        if !matches!(v.space, Space::Global | Space::Const) {
            continue;
        }
        let mut image: Vec<u8> = Vec::new();
        for piece in &v.init {
            match piece {
                Init::Bytes(b) => image.extend_from_slice(b),
                Init::Address { symbol, addend, bytes } => {
                    let address = linked
                        .address(symbol)
                        .ok_or_else(|| {
                            symbol_error(
                                &v.name,
                                format!("its initialiser names {symbol}, which is not declared"),
                            )
                        })?
                        .wrapping_add_signed(*addend);
                    image.extend_from_slice(&address.to_le_bytes()[..(*bytes as usize).min(8)]);
                }
            }
        }
        let bytes = v.bytes.unwrap_or(0) as usize;
        if image.len() > bytes {
            return Err(symbol_error(
                &v.name,
                format!("its initialiser has {} bytes, it has {bytes}", image.len()),
            ));
        }
        image.resize(bytes, 0);
        let (address, _) = linked.globals[&v.name];
        memory.write(address, &image).map_err(|e| symbol_error(&v.name, e.to_string()))?;
    }
    Ok(())
}

/// Functions reachable from a kernel, callers before callees. Recursion has no such order and is refused.
pub(super) fn reachable(linked: &Linked, kernel: usize) -> Result<Vec<usize>, LoadError> {
    fn visit(
        linked: &Linked,
        at: usize,
        path: &mut Vec<usize>,
        done: &mut Vec<usize>,
    ) -> Result<(), LoadError> {
        let f = &linked.module.functions[at];
        if path.contains(&at) {
            return Err(symbol_error(&f.name, "recursive calls are not supported"));
        }
        if done.contains(&at) || f.declaration {
            return Ok(());
        }
        path.push(at);
        let mut next: Vec<usize> = callees(f).iter().filter_map(|n| linked.function(n)).collect();
        if indirect(f) {
            // Every function whose address is taken could be meant.
            next.extend(addressed(linked));
        }
        next.sort_unstable();
        next.dedup();
        for n in next {
            visit(linked, n, path, done)?;
        }
        path.pop();
        done.push(at);
        Ok(())
    }
    let mut done = Vec::new();
    visit(linked, kernel, &mut Vec::new(), &mut done)?;
    done.reverse();
    Ok(done)
}

/// Functions whose addresses are taken, by instructions or initialisers.
fn addressed(linked: &Linked) -> impl Iterator<Item = usize> {
    let functions = &linked.module.functions;
    let mut names = used_names(functions.iter(), false);
    let inner = functions.iter().flat_map(|f| &f.vars);
    for v in linked.module.vars.iter().chain(inner) {
        names.extend(v.init.iter().filter_map(|piece| match piece {
            Init::Address { symbol, .. } => Some(symbol.as_str()),
            Init::Bytes(_) => None,
        }));
    }
    (0..functions.len()).filter(move |&i| !functions[i].kernel && names.contains(functions[i].name.as_str()))
}

/// Whether a function calls through a register.
fn indirect(f: &ast::Function) -> bool {
    f.body.iter().any(|s| matches!(s, Stmt::CallPrototype { .. }))
}

pub(super) struct Frames {
    pub(super) places: HashMap<usize, HashMap<String, Place>>,
    pub(super) local_bytes: u32,
    pub(super) stack_bytes: u32,
    pub(super) shared_bytes: u32,
}

fn align_up(x: u64, align: u64) -> u64 {
    x.next_multiple_of(align.max(1))
}

/// Places the variables of all functions of a kernel.
pub(super) fn frames(linked: &Linked, order: &[usize]) -> Result<Frames, LoadError> {
    let mut shared = u64::from(SHARED_BASE);
    let mut shared_places: HashMap<String, Place> = HashMap::new();
    let mut external: Vec<&Variable> = Vec::new();
    let functions = || order.iter().map(|&i| &linked.module.functions[i]);
    let used = used_names(functions(), true);
    let module_scope = linked.module.vars.iter().filter(|v| used.contains(v.name.as_str()));
    for v in module_scope.chain(functions().flat_map(|f| &f.vars)) {
        if v.space == Space::Shared {
            match v.bytes {
                Some(bytes) => {
                    let at = align_up(shared, u64::from(v.align));
                    shared = at + bytes;
                    if shared > u64::from(u32::MAX) {
                        return Err(symbol_error(&v.name, "does not fit into shared memory"));
                    }
                    shared_places.insert(v.name.clone(), Place::Shared(at as u32));
                }
                None => external.push(v),
            }
        }
    }
    let static_end = shared;
    let align = external.iter().map(|v| v.align).max().unwrap_or(1);
    let dynamic = align_up(shared, u64::from(align));
    for v in &external {
        shared_places.insert(v.name.clone(), Place::Shared(dynamic as u32));
    }
    let shared_end = if external.is_empty() { static_end } else { dynamic };
    let mut offset = 0u64;
    let mut stack = 0u64;
    let mut places = HashMap::new();
    for &index in order {
        let f = &linked.module.functions[index];
        let mut mine = shared_places.clone();
        let mut parameter = 0u64;
        for v in f.returns.iter().chain(&f.params).chain(&f.vars) {
            let bytes = v.bytes.unwrap_or(0);
            let is_kernel_param = f.kernel && f.params.iter().any(|p| std::ptr::eq(p, v));
            let place = match v.space {
                Space::Param if is_kernel_param => {
                    let at = align_up(parameter, u64::from(v.align));
                    parameter = at + bytes;
                    Place::Param(at as u32)
                }
                Space::Param | Space::Local => {
                    let at = align_up(offset, u64::from(v.align));
                    offset = at + bytes;
                    if offset > 1 << 24 {
                        return Err(symbol_error(&v.name, "local memory of a thread is larger than 16 MiB"));
                    }
                    if v.space == Space::Local {
                        stack += bytes;
                        Place::Local(at as u32)
                    } else {
                        Place::Frame { offset: at as u32, bytes: bytes as u32 }
                    }
                }
                _ => continue,
            };
            mine.insert(v.name.clone(), place);
        }
        places.insert(index, mine);
    }
    Ok(Frames {
        places,
        local_bytes: align_up(offset, 16) as u32,
        stack_bytes: stack as u32,
        shared_bytes: (shared_end - u64::from(SHARED_BASE)) as u32,
    })
}

/// Every name that operands mention; without `calls`, those of other instructions only.
fn used_names<'m>(
    functions: impl Iterator<Item = &'m ast::Function>,
    calls: bool,
) -> std::collections::HashSet<&'m str> {
    fn names<'m>(operand: &'m ast::Operand, out: &mut std::collections::HashSet<&'m str>) {
        use ast::Operand as O;
        match operand {
            O::Name(n) => {
                out.insert(n);
            }
            O::Address { base: Some(n), .. } | O::SymbolOffset { symbol: n, .. } => {
                out.insert(n);
            }
            O::TensorAddress { base, coordinates, .. } => {
                out.insert(base);
                coordinates.iter().for_each(|o| names(o, out));
            }
            O::Vector(list) | O::List(list) => list.iter().for_each(|o| names(o, out)),
            O::Pair(a, b) => {
                names(a, out);
                names(b, out);
            }
            O::Not(a) => names(a, out),
            _ => {}
        }
    }
    let mut out = std::collections::HashSet::new();
    for f in functions {
        for s in &f.body {
            if let Stmt::Inst(i) = s
                && (calls || i.opcode != "call")
            {
                i.operands.iter().for_each(|o| names(o, &mut out));
            }
        }
    }
    out
}
