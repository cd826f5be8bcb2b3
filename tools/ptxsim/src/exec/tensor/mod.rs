//! Matrix instructions.
//!
//! Layout. Lane `4 g + t` of a warp holds, in each register of a multiplicand, word `t` of row `g` of A (of column `g` of
//! B): one register of a warp is a row-major block of 8 rows of 4 words. A has such blocks in the order (rows 0-7, rows
//! 8-15) for the first four words of k, then for the next four; B has one for each four words of k. Accumulators of 32
//! bits and more come in pairs of registers: columns `2 t` and `2 t + 1` of row `g`. `m8n8k4` with `.f16`, made for
//! compute capability 7.0, has its own layout (`quad.rs`).
//!
//! Numbers. Products of `.f16`, `.bf16`, `.tf32` and 8-bit floats are exact in `f32`; they are added to the accumulator
//! one by one in the order of k, each sum rounded to nearest even (a fused multiply-add). Accumulators of `.f16` are kept
//! in `f32` until the end. Hardware adds several products at a time with fewer bits and cuts some off: results differ in
//! the last bits. `.tf32` operands lose their low 13 bits here, as the tensor cores ignore them. `.f64` is a fused
//! multiply-add per product in the order of k; integers are exact.

mod block;
mod double;
mod float;
mod int;
mod mma;
mod movmatrix;
mod quad;
mod rows;

use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::Slot;
use crate::exec::lanes::FULL;
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    match i.opcode.as_str() {
        "mma" => mma::decode(i, lower),
        "ldmatrix" | "stmatrix" => rows::decode(i, lower),
        "movmatrix" => movmatrix::decode(i, lower),
        // Warpgroup matrix instructions (compute capability 9.0) belong here: `wgmma.mma_async`, `wgmma.fence`,
        // `wgmma.commit_group`, `wgmma.wait_group`.
        "wgmma" => Err("Hopper's wgmma is not implemented".into()),
        _ => Err(format!("{} is not implemented", i.opcode)),
    }
}

/// Tells of a warp-wide instruction that only a part of the warp executes.
#[inline(always)]
pub(crate) fn whole_warp(cx: &mut Cx<'_>, mask: u32) {
    if mask != FULL {
        partial(cx, mask);
    }
}

#[cold]
fn partial(cx: &mut Cx<'_>, mask: u32) {
    let (absent, live) = (!mask, cx.live());
    cx.find(Kind::PartialWarp, absent.trailing_zeros(), None, || {
        let exited = absent & !live;
        format!(
            "lanes {mask:#010x} execute an instruction that takes the whole warp, without lanes {absent:#010x}{}",
            if exited != 0 {
                format!(" (of which {exited:#010x} exited or never were)")
            } else {
                String::new()
            }
        )
    });
}

/// The slots of a vector operand with so many elements; a single register is a vector of one.
pub(crate) fn elements<'o>(operand: &'o Operand, count: usize, what: &str) -> Result<&'o [Operand], String> {
    let list = match operand {
        Operand::Vector(list) => list.as_slice(),
        single => std::slice::from_ref(single),
    };
    if list.len() != count {
        return Err(format!("{what} has {} registers, not {count}", list.len()));
    }
    Ok(list)
}

/// Slots of the sources of a vector operand.
pub(crate) fn sources(
    lower: &mut Lower<'_>,
    operand: &Operand,
    ty: Ty,
    count: usize,
    what: &str,
) -> Result<Vec<Slot>, String> {
    elements(operand, count, what)?.iter().map(|o| lower.src(o, ty)).collect()
}

/// Slots of the results of a vector operand.
pub(crate) fn results(
    lower: &mut Lower<'_>,
    operand: &Operand,
    ty: Ty,
    count: usize,
    what: &str,
) -> Result<Vec<Slot>, String> {
    elements(operand, count, what)?.iter().map(|o| lower.dst(o, ty)).collect()
}
