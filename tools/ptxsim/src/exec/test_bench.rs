//! One warp, or a few, for unit tests: instructions as text, registers by name, any lanes.

use super::cx::Cx;
use super::inst::{Class, Flow};
use super::lanes::{FULL, LANES, Value};
use super::launch::{LaunchConfig, LaunchState};
use super::lower::{Lower, Lowered, rows_of};
use super::program::{Code, Kernel, Linked, Origin, SHARED_BASE};
use super::schedule::{begin, new_block};
use super::special::Special;
use crate::check::{Finding, Kind};
use crate::mem::GlobalMemory;
use crate::mem::stats::Traffic;
use crate::ptx::ast::{self, Operand, RegDecl, Ty};
use std::collections::{BTreeSet, HashMap};

/// A block whose instructions are executed one by one.
pub(crate) struct Bench {
    pub(crate) cx: Cx<'static>,
    rows: HashMap<String, (u32, u32)>,
    predicates: HashMap<String, u32>,
    /// First instruction of each line, and one behind the last.
    lines: Vec<u32>,
    /// Device memory of [`BUFFER`] bytes each, not initialised: a launch knows what was allocated before it.
    pub(crate) buffers: [u64; 3],
}

/// Bytes of a buffer.
pub(crate) const BUFFER: u64 = 4096;

impl Bench {
    /// Lowers the instructions. `%p..` are predicates, `%rs..` 16-bit, `%rd..` and `%fd..` 64-bit, `%rq..` 128-bit
    /// registers, all others 32-bit ones.
    pub(crate) fn new(text: &str) -> Result<Bench, String> {
        Self::block(text, 32, 0)
    }

    /// For a block of so many threads with so many bytes of shared memory.
    pub(crate) fn block(text: &str, threads: u32, shared: u32) -> Result<Bench, String> {
        let insts: Vec<ast::Inst> = text.split_inclusive(';').filter_map(parse).collect();
        let mut names = BTreeSet::new();
        insts.iter().for_each(|i| registers(i, &mut names));
        let regs = names.iter().map(|n| RegDecl { name: n.clone(), count: None, ty: type_of(n) }).collect();
        let function = ast::Function { name: "bench".into(), kernel: true, regs, ..Default::default() };
        let linked = Linked::bare(ast::Module::default());
        let mut lower = Lower::new(&linked);
        lower.begin(0, &function, HashMap::new())?;
        let mut lowered: Vec<Lowered> = Vec::new();
        let mut lines = Vec::new();
        for i in &insts {
            lines.push(lowered.len() as u32);
            lower.instruction(i, &function, &mut lowered)?;
        }
        lines.push(lowered.len() as u32);
        let mut slots = HashMap::new();
        let mut predicates = HashMap::new();
        for name in &names {
            let operand = Operand::Name(name.clone());
            if lower.is_predicate(&operand) {
                predicates.insert(name.clone(), lower.pred_src(&operand)?.0);
            } else {
                slots.insert(name.clone(), (lower.src(&operand, type_of(name))?, rows_of(type_of(name))));
            }
        }
        let mut next = 0;
        let mut take = |n: u32| {
            next += n;
            next - n
        };
        let function_rows: Vec<Option<u32>> = lower.function.sizes.iter().map(|&n| Some(take(n))).collect();
        let constants: Vec<_> = lower.constants.iter().map(|&(bits, n)| (take(n), bits, n)).collect();
        let specials: Vec<_> = lower.specials.iter().map(|&s| (take(s.rows()), s)).collect();
        let constant_rows: Vec<u32> = constants.iter().map(|c| c.0).collect();
        let special_rows: Vec<u32> = specials.iter().map(|s| s.0).collect();
        let place = |s| Lower::row(s, &function_rows, &constant_rows, &special_rows);
        let rows = slots.into_iter().map(|(name, (slot, n))| (name, (place(slot).0, n))).collect();
        let (mut insts, mut origins) = (Vec::new(), Vec::new());
        let mut site_pc = vec![0; lower.sites as usize];
        for (pc, mut l) in lowered.into_iter().enumerate() {
            l.inst.r = l.inst.r.map(place);
            l.inst.v.iter_mut().for_each(|s| *s = place(*s));
            if let Some(at) = site_pc.get_mut(l.inst.site as usize) {
                *at = pc as u32;
            }
            insts.push(l.inst);
            origins.push(Origin {
                loc: l.loc,
                ptx_line: l.ptx_line,
                text: l.text,
                class: l.class,
                flops: l.flops,
            });
        }
        let code = Code {
            insts,
            origins,
            rows: next,
            predicates: lower.predicate_count,
            constants,
            specials,
            sites: lower.sites,
            site_pc,
            local_bytes: 0,
            calls: Vec::new(),
            observers: Vec::new(),
            undefined: Vec::new(),
            branch_tables: Vec::new(),
            entries: HashMap::new(),
            formals: HashMap::new(),
            features: lower.features,
        };
        let kernel = Kernel {
            name: "bench".into(),
            code,
            params: Vec::new(),
            param_bytes: 0,
            static_shared_bytes: shared,
            registers: 1,
            stack_bytes: 0,
            maxntid: None,
            reqntid: None,
            minnctapersm: None,
            cluster: None,
            files: Vec::new(),
            inlining: Vec::new(),
        };
        // Leaked: what a test needs is small, and nothing else would own it as long as the state that borrows it.
        let kernel: &'static Kernel = Box::leak(Box::new(kernel));
        let memory: &'static GlobalMemory = Box::leak(Box::new(GlobalMemory::new(1 << 30)));
        let mut buffers = [0; 3];
        for buffer in &mut buffers {
            *buffer = memory.alloc(BUFFER).map_err(|e| e.to_string())?;
        }
        let config = LaunchConfig { block: [threads, 1, 1], ..LaunchConfig::default() };
        let state: &'static LaunchState<'static> =
            Box::leak(Box::new(LaunchState::new(memory, kernel, &config, &[])));
        let mut cx = Cx::new(state, &kernel.code, new_block(state));
        begin(&mut cx, 0);
        cx.enter(0);
        Ok(Bench { cx, rows, predicates, lines, buffers })
    }

    /// Device memory.
    pub(crate) fn memory(&self) -> &'static GlobalMemory {
        self.cx.launch.memory
    }

    /// Puts bytes into shared memory, as if the whole block had written them before a barrier. `at` counts from the
    /// beginning of the block's memory.
    pub(crate) fn fill_shared(&mut self, at: u32, bytes: &[u8]) {
        use crate::mem::access::{Does, Manner, Request};
        for (k, &byte) in bytes.iter().enumerate() {
            let request = Request {
                site: 0,
                width: 1,
                mask: 1,
                base: u64::from(SHARED_BASE + at) + k as u64,
                offsets: &[0; LANES],
                manner: Manner::default(),
            };
            let place = self.cx.shared_access(request, Does::Write(&|_, _| None)).expect("inside");
            // SAFETY: the access was found to lie inside shared memory.
            unsafe { place.pointer.write(byte) };
        }
        self.cx.block.order.full_barrier();
    }

    /// The bytes of shared memory.
    pub(crate) fn shared(&self, at: u32, count: usize) -> Vec<u8> {
        assert!(at as usize + count <= self.cx.block.shared.bytes() as usize);
        // SAFETY: inside, as just asserted.
        (0..count).map(|k| unsafe { self.cx.block.shared.data().add(at as usize + k).read() }).collect()
    }

    /// What the instruction with this number moved.
    pub(crate) fn traffic(&self, site: usize) -> Traffic {
        *self.cx.mem.traffic().nth(site).expect("a memory site")
    }

    /// All warps meet at a barrier.
    pub(crate) fn barrier(&mut self) {
        self.cx.block.order.full_barrier();
    }

    /// Writes all lanes of a register.
    pub(crate) fn set<T: Value>(&mut self, name: &str, values: [T; LANES]) {
        let slot = self.slot::<T>(name);
        self.cx.put(slot, FULL, &values);
    }

    /// All lanes of a register.
    pub(crate) fn get<T: Value>(&self, name: &str) -> [T; LANES] {
        self.cx.get(self.slot::<T>(name))
    }

    fn slot<T: Value>(&self, name: &str) -> super::inst::Slot {
        let &(row, rows) = self.rows.get(name).unwrap_or_else(|| panic!("no register {name}"));
        assert_eq!(rows as usize, T::ROWS, "{name}");
        super::inst::Slot(row)
    }

    /// Writes a predicate.
    pub(crate) fn set_pred(&mut self, name: &str, value: u32) {
        self.cx.set_pred(self.predicates[name], FULL, value);
    }

    /// Lane mask of a predicate.
    pub(crate) fn pred(&self, name: &str) -> u32 {
        self.cx.pred(self.predicates[name])
    }

    /// Executes all instructions, one after the other, for the lanes of the mask that their guards leave.
    pub(crate) fn run(&mut self, mask: u32) -> Flow {
        let mut flow = Flow::Next;
        for line in 0..self.lines.len() - 1 {
            flow = self.line(line, mask);
        }
        flow
    }

    /// Executes one instruction, given by its number, in warp 0.
    pub(crate) fn line(&mut self, line: usize, mask: u32) -> Flow {
        self.line_in(0, line, mask)
    }

    /// Executes one instruction in a warp.
    pub(crate) fn line_in(&mut self, warp: usize, line: usize, mask: u32) -> Flow {
        if self.cx.warp != warp {
            self.cx.enter(warp);
        }
        let code = self.cx.code;
        let mut flow = Flow::Next;
        for pc in self.lines[line]..self.lines[line + 1] {
            self.cx.pc = pc;
            self.cx.active = mask;
            let inst = &code.insts[pc as usize];
            let lanes = mask & (self.cx.pred(inst.guard) ^ inst.guard_xor);
            if lanes != 0 {
                flow = (inst.exec)(&mut self.cx, inst, lanes);
            }
        }
        flow
    }

    /// Lanes of warp 0 that have not exited.
    pub(crate) fn set_live(&mut self, live: u32) {
        self.cx.block.warps[0].live = live;
    }

    /// What was found so far.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let origins = &self.cx.code.origins;
        self.cx.findings.clone().resolve("bench", |pc| {
            let o = &origins[pc as usize];
            (o.loc, String::new(), o.ptx_line, o.text.clone())
        })
    }

    /// The kinds of what was found so far.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.findings().into_iter().map(|f| f.kind).collect()
    }

    /// Class and operations of the last instruction.
    pub(crate) fn class(&self) -> (Class, u32) {
        let last = self.cx.code.origins.last().expect("an instruction");
        (last.class, last.flops)
    }
}

fn type_of(name: &str) -> Ty {
    match name {
        n if n.starts_with("%p") => Ty::Pred,
        n if n.starts_with("%rd") => Ty::B64,
        n if n.starts_with("%fd") => Ty::F64,
        n if n.starts_with("%rs") => Ty::B16,
        n if n.starts_with("%rq") => Ty::B128,
        _ => Ty::B32,
    }
}

fn registers(i: &ast::Inst, names: &mut BTreeSet<String>) {
    fn operand(o: &Operand, names: &mut BTreeSet<String>) {
        match o {
            Operand::Name(n) | Operand::Address { base: Some(n), .. }
                if n.starts_with('%')
                // Without a selector of bytes or halves; special registers are there anyway.
                && Special::parse(n).is_none() =>
            {
                names.insert(n.split('.').next().unwrap_or(n).to_string());
            }
            Operand::Vector(list) => list.iter().for_each(|o| operand(o, names)),
            Operand::Pair(a, b) => {
                operand(a, names);
                operand(b, names);
            }
            Operand::Not(a) => operand(a, names),
            _ => {}
        }
    }
    i.operands.iter().for_each(|o| operand(o, names));
    names.extend(i.guard.iter().map(|g| g.0.clone()));
}

/// `@!%p1 shfl.sync.up.b32 %r1|%p2, %r3, 1, 0, -1;`
fn parse(text: &str) -> Option<ast::Inst> {
    let mut text = text.trim().strip_suffix(';')?.trim();
    let mut guard = None;
    if let Some(rest) = text.strip_prefix('@') {
        let (name, rest) = rest.split_once(' ')?;
        guard = Some((name.trim_start_matches('!').to_string(), name.starts_with('!')));
        text = rest.trim();
    }
    let (head, operands) = text.split_once(' ').unwrap_or((text, ""));
    let mut words = head.split('.').map(str::to_string);
    Some(ast::Inst {
        ptx_line: 1,
        loc: ast::Loc::default(),
        guard,
        opcode: words.next()?,
        mods: words.collect(),
        operands: list(operands).into_iter().map(operand).collect(),
    })
}

/// Splits at the commas outside braces.
fn list(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|c| {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|s| !s.is_empty())
    .collect()
}

fn operand(text: &str) -> Operand {
    if text == "_" {
        Operand::Sink
    } else if let Some(inner) = text.strip_prefix('{') {
        Operand::Vector(list(inner.trim_end_matches('}')).into_iter().map(operand).collect())
    } else if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.trim_end_matches(']');
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        match base.parse() {
            Ok(offset) => Operand::Address { base: None, offset },
            Err(_) => Operand::Address { base: Some(base.into()), offset: offset.parse().expect("offset") },
        }
    } else if let Some((a, b)) = text.split_once('|') {
        Operand::Pair(Box::new(operand(a)), Box::new(operand(b)))
    } else if let Some(inner) = text.strip_prefix('!') {
        Operand::Not(Box::new(operand(inner)))
    } else if let Some(hex) = text.strip_prefix("0x") {
        Operand::Int(i64::from_str_radix(hex, 16).expect("a number"))
    } else {
        text.parse().map_or_else(|_| Operand::Name(text.into()), Operand::Int)
    }
}
