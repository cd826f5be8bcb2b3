//! From the tree of one kernel, and of the functions it calls, to decoded instructions.
//!
//! Families of instructions live in modules of their own; each has a `decode` that takes the tree's instruction and asks
//! [`Lower`] for the slots of its operands. While a function is lowered slots are virtual; `finish` gives them rows.

use super::alloc::Effects;
use super::inst::{ALWAYS, Class, Flow, Inst, Slot};
use super::program::{Linked, Place};
use super::special::Special;
use super::warp_ops;
use crate::ptx::ast::{self, Operand, Ty};
use std::collections::{HashMap, HashSet};

/// Virtual slots carry their kind in the top bits until `finish`.
const KIND: u32 = 0xC000_0000;
const CONSTANT: u32 = 0x4000_0000;
const SPECIAL: u32 = 0x8000_0000;

/// What the lowering of one instruction gives.
pub type Decoded = Result<(Inst, Class), String>;

/// Base and offset of a memory operand.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// Register with the base: 64-bit (two rows) or 32-bit (one row); a constant for a symbol or a plain number.
    pub base: Slot,
    /// Rows of the base.
    pub rows: u32,
    /// Added to it.
    pub offset: i64,
    /// For `.param`: the variable is in the lane's own frame (a device function's parameter, or a call's argument), not
    /// among the kernel's parameters.
    pub frame: bool,
}

/// One function being lowered.
#[derive(Default)]
pub(super) struct FunctionState {
    pub(super) index: usize,
    pub(super) kernel: bool,
    registers: HashMap<String, (Ty, u32)>,
    predicates: HashMap<String, u32>,
    pub(super) places: HashMap<String, Place>,
    pub(super) sizes: Vec<u32>,
}

/// An instruction with what the finish needs.
pub(super) struct Lowered {
    pub(super) inst: Inst,
    pub(super) class: Class,
    pub(super) effects: Effects,
    pub(super) loc: ast::Loc,
    pub(super) ptx_line: u32,
    pub(super) text: String,
    /// Labels to be resolved: the first goes to `Inst::aux`, all to `effects.targets`.
    pub(super) labels: Vec<String>,
    pub(super) function: usize,
    /// Floating-point operations of one execution by a whole warp.
    pub(super) flops: u32,
}

/// The lowering of one kernel.
pub struct Lower<'m> {
    /// Symbols of the module.
    pub module: &'m Linked,
    pub(super) function: FunctionState,
    pub(super) constants: Vec<(u128, u32)>,
    constant_index: HashMap<(u128, u32), u32>,
    pub(super) specials: Vec<Special>,
    pub(super) predicate_count: u32,
    pub(super) sites: u32,
    effects: Effects,
    labels: Vec<String>,
    before: Vec<Inst>,
    after: Vec<Inst>,
    pub(super) calls: Vec<super::control::CallSite>,
    pub(super) branch_tables: Vec<Vec<u32>>,
    /// Features that choose the checker's mode.
    pub features: Features,
    /// Operations (a multiplication and an addition count two) of a matrix instruction, for the whole warp; 0 for all
    /// others. Its decoder sets it.
    pub flops: u32,
}

/// What a kernel uses that changes how it is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Named barriers, `bar.arrive`, `mbarrier`: warps are ordered by more than barriers of the whole block.
    pub partial_barriers: bool,
    /// `fence` or `membar` at device scope or beyond: blocks may be ordered by atomics.
    pub fences: bool,
}

impl<'m> Lower<'m> {
    pub(super) fn new(module: &'m Linked) -> Lower<'m> {
        Lower {
            module,
            function: FunctionState::default(),
            constants: Vec::new(),
            constant_index: HashMap::new(),
            specials: Vec::new(),
            predicate_count: 1,
            sites: 0,
            effects: Effects::default(),
            labels: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            calls: Vec::new(),
            branch_tables: Vec::new(),
            features: Features::default(),
            flops: 0,
        }
    }

    /// Begins a function: its registers and variables.
    pub(super) fn begin(
        &mut self,
        index: usize,
        f: &ast::Function,
        places: HashMap<String, Place>,
    ) -> Result<(), String> {
        self.function = FunctionState { index, kernel: f.kernel, places, ..FunctionState::default() };
        for decl in &f.regs {
            let names: Vec<String> = match decl.count {
                Some(n) => (0..n).map(|i| format!("{}{i}", decl.name)).collect(),
                None => vec![decl.name.clone()],
            };
            for name in names {
                if decl.ty == Ty::Pred {
                    self.function.predicates.insert(name, self.predicate_count);
                    self.predicate_count += 1;
                } else {
                    let index = self.function.sizes.len() as u32;
                    if index & KIND != 0 {
                        return Err("too many registers".into());
                    }
                    self.function.sizes.push(rows_of(decl.ty));
                    self.function.registers.insert(name, (decl.ty, index));
                }
            }
        }
        Ok(())
    }

    /// A source operand of the type. A 64-bit register given for a narrower type is cut down first.
    pub fn src(&mut self, operand: &Operand, ty: Ty) -> Result<Slot, String> {
        let rows = rows_of(ty);
        match operand {
            Operand::Name(name) => {
                if let Some(&(declared, index)) = self.function.registers.get(name) {
                    self.effects.uses.push(index);
                    let have = rows_of(declared);
                    if have == rows {
                        return Ok(Slot(index));
                    }
                    if have == 2 && rows == 1 {
                        let narrow = self.scratch(1);
                        self.before.push(Inst::with(narrow_64, &[narrow, Slot(index)]));
                        return Ok(narrow);
                    }
                    return Err(format!(
                        "register {name} is {have} words wide, the instruction needs {rows}"
                    ));
                }
                if self.function.predicates.contains_key(name) {
                    return Err(format!("{name} is a predicate, a register is needed"));
                }
                if let Some(special) = Special::parse(name) {
                    let rows_special = special.rows();
                    let slot = self.special(special);
                    return match (rows_special, rows) {
                        (a, b) if a == b => Ok(slot),
                        (2, 1) => {
                            let narrow = self.scratch(1);
                            self.before.push(Inst::with(narrow_64, &[narrow, slot]));
                            Ok(narrow)
                        }
                        _ => Err(format!("{name} has {rows_special} words, the instruction takes {rows}")),
                    };
                }
                let value = self.symbol(name)?;
                Ok(self.constant(u128::from(value), rows))
            }
            Operand::SymbolOffset { symbol, offset } => {
                let value = self.symbol(symbol)?.wrapping_add_signed(*offset);
                Ok(self.constant(u128::from(value), rows))
            }
            Operand::Sink => Err("`_` cannot be read".into()),
            _ => {
                let bits = immediate(operand, ty)?;
                Ok(self.constant(bits, rows))
            }
        }
    }

    /// The declared type of a register operand; `None` for anything else.
    pub fn register_type(&self, operand: &Operand) -> Option<Ty> {
        match operand {
            Operand::Name(name) => self.function.registers.get(name).map(|r| r.0),
            _ => None,
        }
    }

    /// Whether the operand is a predicate register.
    pub fn is_predicate(&self, operand: &Operand) -> bool {
        matches!(operand, Operand::Name(name) if self.function.predicates.contains_key(name))
    }

    /// A result operand of the type; `_` gives a row that nobody reads. A value narrower than a 64-bit register is
    /// extended afterwards, with its sign for `.s` types.
    pub fn dst(&mut self, operand: &Operand, ty: Ty) -> Result<Slot, String> {
        let rows = rows_of(ty);
        match operand {
            Operand::Sink => Ok(self.scratch(rows)),
            Operand::Name(name) => {
                let &(declared, index) =
                    self.function.registers.get(name).ok_or_else(|| format!("{name} is not a register"))?;
                self.effects.defs.push(index);
                let have = rows_of(declared);
                if have == rows {
                    Ok(Slot(index))
                } else if have == 2 && rows == 1 {
                    let narrow = self.scratch(1);
                    let widen = match ty {
                        Ty::S8 => widen_s8,
                        Ty::S16 => widen_s16,
                        Ty::S32 => widen_s32,
                        _ => widen_u32,
                    };
                    self.after.push(Inst::with(widen, &[Slot(index), narrow]));
                    Ok(narrow)
                } else {
                    Err(format!("register {name} is {have} words wide, the result has {rows}"))
                }
            }
            _ => Err("a register is needed for the result".into()),
        }
    }

    /// A fresh row that lives in this instruction only.
    pub fn scratch(&mut self, rows: u32) -> Slot {
        let index = self.function.sizes.len() as u32;
        self.function.sizes.push(rows);
        self.effects.held.push(index);
        Slot(index)
    }

    /// A predicate that is read: its index, and all ones if it is negated.
    pub fn pred_src(&mut self, operand: &Operand) -> Result<(u32, u32), String> {
        match operand {
            Operand::Name(name) => self
                .function
                .predicates
                .get(name)
                .map(|&p| (p, 0))
                .ok_or_else(|| format!("{name} is not a predicate")),
            Operand::Not(inner) => self.pred_src(inner).map(|(p, x)| (p, !x)),
            Operand::Int(0) => Ok((ALWAYS, u32::MAX)),
            Operand::Int(_) => Ok((ALWAYS, 0)),
            _ => Err("a predicate is needed".into()),
        }
    }

    /// A predicate that is written; `_` gives one that nobody reads.
    pub fn pred_dst(&mut self, operand: &Operand) -> Result<u32, String> {
        match operand {
            Operand::Name(name) => self
                .function
                .predicates
                .get(name)
                .copied()
                .ok_or_else(|| format!("{name} is not a predicate")),
            Operand::Sink => {
                self.predicate_count += 1;
                Ok(self.predicate_count - 1)
            }
            _ => Err("a predicate is needed for the result".into()),
        }
    }

    /// The carry flag of the function.
    pub fn carry(&mut self) -> u32 {
        let next = self.predicate_count;
        let flag = *self.function.predicates.entry("CC.CF".into()).or_insert(next);
        self.predicate_count += u32::from(flag == next);
        flag
    }

    /// The rows of a constant.
    pub fn constant(&mut self, bits: u128, rows: u32) -> Slot {
        let next = self.constants.len() as u32;
        let index = *self.constant_index.entry((bits, rows)).or_insert(next);
        if index == next {
            self.constants.push((bits, rows));
        }
        Slot(CONSTANT | index)
    }

    /// The rows of a special register that is filled when a block starts.
    pub fn special(&mut self, special: Special) -> Slot {
        let index = match self.specials.iter().position(|&s| s == special) {
            Some(at) => at,
            None => {
                self.specials.push(special);
                self.specials.len() - 1
            }
        };
        Slot(SPECIAL | index as u32)
    }

    /// `[base + offset]`
    pub fn address(&mut self, operand: &Operand) -> Result<Address, String> {
        let (base, offset) = match operand {
            Operand::Address { base, offset } => (base.as_deref(), *offset),
            Operand::TensorAddress { base, offset, .. } => (Some(base.as_str()), *offset),
            _ => return Err("a memory operand `[..]` is needed".into()),
        };
        let Some(name) = base else {
            return Ok(Address { base: self.constant(0, 2), rows: 2, offset, frame: false });
        };
        if let Some(&(ty, index)) = self.function.registers.get(name) {
            self.effects.uses.push(index);
            return Ok(Address { base: Slot(index), rows: rows_of(ty), offset, frame: false });
        }
        let frame = matches!(self.function.places.get(name), Some(Place::Frame { .. }));
        let value = self.symbol(name)?;
        Ok(Address { base: self.constant(u128::from(value), 2), rows: 2, offset, frame })
    }

    /// The address of a name in its own space.
    pub fn symbol(&self, name: &str) -> Result<u64, String> {
        if let Some(place) = self.function.places.get(name) {
            return Ok(place.address());
        }
        self.module.address(name).ok_or_else(|| format!("{name} is not declared"))
    }

    /// Where a variable of the function lives.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.function.places.get(name).copied()
    }

    /// Whether the function is a kernel: its `.param` variables are the launch's.
    pub fn in_kernel(&self) -> bool {
        self.function.kernel
    }

    /// Number of a memory site, for an instruction that touches memory.
    pub fn site(&mut self) -> u32 {
        self.sites += 1;
        self.sites - 1
    }

    /// A branch target of this instruction; the first goes to `Inst::aux`.
    pub(super) fn label(&mut self, name: &str) {
        self.labels.push(name.to_string());
    }

    /// The next instruction cannot follow this one.
    pub(super) fn ends_path(&mut self) {
        self.effects.falls = false;
    }

    /// Lowers one instruction; what it becomes is appended to `out`.
    pub(super) fn instruction(
        &mut self,
        i: &ast::Inst,
        body: &ast::Function,
        out: &mut Vec<Lowered>,
    ) -> Result<(), String> {
        self.effects = Effects { falls: true, ..Effects::default() };
        let (mut inst, class) = decode(i, body, self)?;
        if let Some((name, negated)) = &i.guard {
            let (guard, xor) = self.pred_src(&Operand::Name(name.clone()))?;
            inst.guard = guard;
            inst.guard_xor = if *negated { !xor } else { xor };
            self.effects.partial = true;
            self.effects.falls = true;
        }
        let (guard, guard_xor) = (inst.guard, inst.guard_xor);
        let effects = std::mem::take(&mut self.effects);
        let labels = std::mem::take(&mut self.labels);
        let function = self.function.index;
        let flops = std::mem::take(&mut self.flops);
        // The main part has the effects of the whole; the others keep its registers from being allocated over.
        let all = [&effects.uses[..], &effects.defs, &effects.held].concat();
        let part = |inst: Inst, class: Class, main: bool| Lowered {
            inst,
            class,
            effects: if main {
                effects.clone()
            } else {
                Effects { held: all.clone(), falls: true, ..Effects::default() }
            },
            loc: i.loc,
            ptx_line: i.ptx_line,
            text: String::new(),
            labels: if main { labels.clone() } else { Vec::new() },
            function,
            flops: if main { flops } else { 0 },
        };
        for before in std::mem::take(&mut self.before) {
            out.push(part(before, Class::Move, false));
        }
        let after = std::mem::take(&mut self.after);
        let mut main = part(inst, class, true);
        main.text = i.to_string();
        out.push(main);
        for mut inst in after {
            (inst.guard, inst.guard_xor) = (guard, guard_xor);
            out.push(part(inst, Class::Move, false));
        }
        Ok(())
    }

    /// Row of a virtual slot, once everything is known.
    pub(super) fn row(
        slot: Slot,
        function_rows: &[Option<u32>],
        constant_rows: &[u32],
        special_rows: &[u32],
    ) -> Slot {
        if slot == Slot::NONE {
            return slot;
        }
        let index = (slot.0 & !KIND) as usize;
        match slot.0 & KIND {
            CONSTANT => Slot(constant_rows[index]),
            SPECIAL => Slot(special_rows[index]),
            _ => Slot(function_rows[index].unwrap_or(0)),
        }
    }
}

/// Rows of a register of the type.
pub fn rows_of(ty: Ty) -> u32 {
    ty.bytes().div_ceil(4)
}

/// Bits of a literal used as the type.
pub fn immediate(operand: &Operand, ty: Ty) -> Result<u128, String> {
    let mask = match ty.bytes() {
        16 => u128::MAX,
        n => (1u128 << (8 * n)) - 1,
    };
    let bits = match (operand, ty) {
        (Operand::Int(_), Ty::F32 | Ty::F64) => {
            return Err("a floating-point instruction takes no integer literal".into());
        }
        (Operand::Int(x), _) => *x as i128 as u128,
        (Operand::F32(x), Ty::F64) => u128::from(f64::from(f32::from_bits(*x)).to_bits()),
        (Operand::F32(x), _) => u128::from(*x),
        (Operand::F64(x), Ty::F32) => u128::from((f64::from_bits(*x) as f32).to_bits()),
        (Operand::F64(x), _) => u128::from(*x),
        _ => return Err("a register or a number is needed".into()),
    };
    Ok(bits & mask)
}

fn narrow_64(cx: &mut super::cx::Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let wide = cx.get::<u64>(i.r[1]);
    let out: [u32; 32] = std::array::from_fn(|l| wide[l] as u32);
    cx.put(i.r[0], mask, &out);
    Flow::Next
}

fn widen_u32(cx: &mut super::cx::Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.map1(i, mask, |x: u32| u64::from(x))
}

fn widen_s32(cx: &mut super::cx::Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.map1(i, mask, |x: i32| i64::from(x))
}

fn widen_s16(cx: &mut super::cx::Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.map1(i, mask, |x: i16| i64::from(x))
}

fn widen_s8(cx: &mut super::cx::Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.map1(i, mask, |x: i8| i64::from(x))
}

/// The families, by opcode.
fn decode(i: &ast::Inst, body: &ast::Function, lower: &mut Lower<'_>) -> Decoded {
    match i.opcode.as_str() {
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent" => {
            super::control::decode(i, body, lower)
        }
        "bar" | "barrier" => super::barrier::decode(i, lower),
        "shfl" => warp_ops::shuffle::decode(i, lower),
        "vote" | "match" | "activemask" => warp_ops::vote::decode(i, lower),
        "redux" => warp_ops::redux::decode(i, lower),
        "elect" => warp_ops::elect::decode(i, lower),
        opcode if crate::mem::OPCODES.contains(&opcode) => crate::mem::decode(i, lower),
        "mma" | "ldmatrix" | "stmatrix" | "movmatrix" | "wgmma" => super::tensor::decode(i, lower),
        opcode if super::asynch::OPCODES.contains(&opcode) => super::asynch::decode(i, lower),
        _ => super::alu::decode(i, lower),
    }
}

/// Functions that a function calls by name.
pub(super) fn callees(f: &ast::Function) -> HashSet<String> {
    let mut names = HashSet::new();
    for stmt in &f.body {
        if let ast::Stmt::Inst(i) = stmt
            && i.opcode == "call"
        {
            for operand in &i.operands {
                if let Operand::Name(name) = operand {
                    names.insert(name.clone());
                }
            }
        }
    }
    names
}
