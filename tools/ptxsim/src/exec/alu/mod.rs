//! Arithmetic, comparison, conversion and moves: everything that works on registers alone.
//!
//! Each family decodes its instructions into one function per opcode, type and modifiers, so that nothing is chosen while
//! it runs; the functions are maps over 32 lanes without branches, which the compiler turns into vector instructions.

mod approx;
mod bits;
mod compare;
mod cvt;
mod divide;
mod float;
mod fp;
mod half;
mod half_bits;
mod integer;
mod moves;
mod soft;
#[cfg(test)]
mod tests;
mod video;

use super::inst::{Class, Exec, Inst};
use super::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

/// An execution function from a map over lanes.
macro_rules! map1 {
    ($f:expr) => {{
        let exec: $crate::exec::inst::Exec = |c, i, m| c.map1(i, m, $f);
        exec
    }};
}
macro_rules! map2 {
    ($f:expr) => {{
        let exec: $crate::exec::inst::Exec = |c, i, m| c.map2(i, m, $f);
        exec
    }};
}
macro_rules! map3 {
    ($f:expr) => {{
        let exec: $crate::exec::inst::Exec = |c, i, m| c.map3(i, m, $f);
        exec
    }};
}
/// The expression with `$t` as the Rust type of an integer type; an error for any other.
macro_rules! for_int {
    ($ty:expr, $t:ident, [$($case:ident: $rust:ty),*], $e:expr) => {
        match $ty {
            $(Ty::$case => { type $t = $rust; $e })*
            other => return Err(format!("the type {other:?} does not fit this instruction")),
        }
    };
}
use {for_int, map1, map2, map3};

/// The modifiers of an instruction, taken one by one; what nobody took is an error.
struct Form<'a> {
    mods: Vec<&'a str>,
}

impl<'a> Form<'a> {
    fn new(i: &'a ast::Inst) -> Form<'a> {
        Form { mods: i.mods.iter().map(String::as_str).collect() }
    }

    /// Takes a modifier that may be there.
    fn flag(&mut self, word: &str) -> bool {
        self.one_of(&[word]).is_some()
    }

    /// Takes the first modifier that is one of the words.
    fn one_of(&mut self, words: &[&str]) -> Option<&'a str> {
        let at = self.mods.iter().position(|m| words.contains(m))?;
        Some(self.mods.remove(at))
    }

    /// Takes the last modifier, which is a type.
    fn ty(&mut self) -> Result<Ty, String> {
        let last = self.mods.pop().ok_or("a type is missing")?;
        Ty::parse(last).ok_or_else(|| format!("{last} is not a type that this instruction takes"))
    }

    /// Nothing may be left.
    fn end(&self) -> Result<(), String> {
        match self.mods.first() {
            None => Ok(()),
            Some(m) => Err(format!("the modifier .{m} is not known here")),
        }
    }
}

/// An instruction with a result and sources of the given types, in order.
fn with_operands(
    i: &ast::Inst,
    lower: &mut Lower<'_>,
    exec: Exec,
    result: Ty,
    sources: &[Ty],
) -> Result<Inst, String> {
    if i.operands.len() != 1 + sources.len() {
        return Err(format!("{} operands are needed, there are {}", 1 + sources.len(), i.operands.len()));
    }
    let mut inst = Inst::new(exec);
    for (n, &ty) in sources.iter().enumerate() {
        inst.r[n + 1] = lower.src(&i.operands[n + 1], ty)?;
    }
    inst.r[0] = lower.dst(&i.operands[0], result)?;
    Ok(inst)
}

/// What the last modifier says the instruction works on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    F32,
    F64,
    Half,
}

fn kind(i: &ast::Inst) -> Kind {
    match i.mods.last().map(String::as_str) {
        Some("f32") => Kind::F32,
        Some("f64") => Kind::F64,
        Some("f16" | "f16x2" | "bf16" | "bf16x2") => Kind::Half,
        _ => Kind::Integer,
    }
}

/// Decodes an instruction of this family.
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    match i.opcode.as_str() {
        "mov" => moves::decode(i, lower),
        "setp" | "set" | "selp" | "slct" | "testp" => compare::decode(i, lower),
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" => match kind(i) {
            Kind::F32 | Kind::F64 => float::decode(i, lower),
            Kind::Half => half::decode(i, lower),
            Kind::Integer => integer::decode(i, lower),
        },
        "cvt" => cvt::decode(i, lower),
        "ex2" | "tanh" if kind(i) == Kind::Half => half::decode(i, lower),
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" => approx::decode(i, lower),
        "copysign" | "rcp" | "sqrt" => float::decode(i, lower),
        "addc" | "subc" | "madc" | "mul24" | "mad24" | "sad" | "rem" | "dp4a" | "dp2a" => {
            integer::decode(i, lower)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" | "popc" | "clz"
        | "bfind" | "fns" | "brev" | "bfe" | "bfi" | "bmsk" | "szext" => bits::decode(i, lower),
        opcode if video::knows(opcode) => video::decode(i, lower),
        opcode => Err(format!("unknown instruction {opcode}")),
    }
}

/// What the families give: the instruction, of a class.
fn of_class(class: Class, inst: Result<Inst, String>) -> Decoded {
    inst.map(|inst| (inst, class))
}
