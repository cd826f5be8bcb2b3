//! Instructions back to PTX text, for reports. Names appear as the PTX text has them: the suffix that kept names of nested
//! scopes apart is left off.

use super::ast::{Inst, Operand};
use super::scope::as_written;
use std::fmt::{self, Display, Formatter};

fn list(f: &mut Formatter<'_>, open: &str, items: &[Operand], close: &str) -> fmt::Result {
    f.write_str(open)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    f.write_str(close)
}

/// ` + offset` in the way of NVVM: `+8`, `+-8`, nothing for 0.
fn plus(f: &mut Formatter<'_>, offset: i64) -> fmt::Result {
    if offset == 0 { Ok(()) } else { write!(f, "+{offset}") }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Name(name) => f.write_str(&as_written(name)),
            Operand::Int(value) => write!(f, "{value}"),
            Operand::F32(bits) => write!(f, "0f{bits:08X}"),
            Operand::F64(bits) => write!(f, "0d{bits:016X}"),
            Operand::Address { base: None, offset } => write!(f, "[{offset}]"),
            Operand::Address { base: Some(base), offset } => {
                write!(f, "[{}", as_written(base))?;
                plus(f, *offset)?;
                f.write_str("]")
            }
            Operand::SymbolOffset { symbol, offset } => write!(f, "{}+{offset}", as_written(symbol)),
            Operand::TensorAddress { base, offset, coordinates } => {
                write!(f, "[{}", as_written(base))?;
                plus(f, *offset)?;
                list(f, ", {", coordinates, "}]")
            }
            Operand::Vector(items) => list(f, "{", items, "}"),
            Operand::Pair(left, right) => write!(f, "{left}|{right}"),
            Operand::Not(operand) => write!(f, "!{operand}"),
            Operand::List(items) => list(f, "(", items, ")"),
            Operand::Sink => f.write_str("_"),
        }
    }
}

impl Display for Inst {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some((name, negated)) = &self.guard {
            write!(f, "@{}{} ", if *negated { "!" } else { "" }, as_written(name))?;
        }
        f.write_str(&self.opcode)?;
        for word in &self.mods {
            write!(f, ".{word}")?;
        }
        list(f, if self.operands.is_empty() { "" } else { " " }, &self.operands, ";")
    }
}
