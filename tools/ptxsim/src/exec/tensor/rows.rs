//! `ldmatrix` and `stmatrix`: 8x8 matrices of 16-bit elements between rows in shared memory and the layout of `mma`.
//!
//! Lanes `8 m .. 8 m + 8` give the addresses of the rows of matrix `m`, 16 bytes each; addresses of lanes beyond the last
//! matrix are not used. Lane `4 r + t` gets word `t` of row `r`, so that a register of the warp is a matrix as it lies in
//! memory, row by row; `.trans` transposes it.

use super::{results, sources, whole_warp};
use crate::exec::asynch::space::{SharedAddress, shared_address};
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Exec, Flow, Inst};
use crate::exec::lanes::{FULL, LANES, Row};
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::{Does, Manner, Request};
use crate::mem::pattern::By;
use crate::ptx::ast::{self, Ty};

/// `ldmatrix.sync.aligned.m8n8.num{.trans}{.shared{::cta}}.b16 r, [p]`, `stmatrix... [p], r`
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let mut drop = |word: &str| {
        let at = mods.iter().position(|m| *m == word);
        at.map(|at| mods.remove(at)).is_some()
    };
    let trans = drop("trans");
    let shared = drop("shared") || drop("shared::cta");
    let ["sync", "aligned", "m8n8", num, "b16"] = mods.as_slice() else {
        return Err(format!("this form of {} is not implemented", i.opcode));
    };
    let load = i.opcode == "ldmatrix";
    let (count, exec): (usize, Exec) = match (load, *num, trans) {
        (true, "x1", false) => (1, read::<1, false>),
        (true, "x2", false) => (2, read::<2, false>),
        (true, "x4", false) => (4, read::<4, false>),
        (true, "x1", true) => (1, read::<1, true>),
        (true, "x2", true) => (2, read::<2, true>),
        (true, "x4", true) => (4, read::<4, true>),
        (false, "x1", false) => (1, write::<1, false>),
        (false, "x2", false) => (2, write::<2, false>),
        (false, "x4", false) => (4, write::<4, false>),
        (false, "x1", true) => (1, write::<1, true>),
        (false, "x2", true) => (2, write::<2, true>),
        (false, "x4", true) => (4, write::<4, true>),
        _ => return Err(format!("{num} is not .x1, .x2 or .x4")),
    };
    let [first, second] = i.operands.as_slice() else {
        return Err("registers and an address are needed".into());
    };
    let mut inst = Inst::new(exec);
    let address = if load { second } else { first };
    SharedAddress::decode(address, shared, lower)?.place(&mut inst);
    inst.v = if load {
        results(lower, first, Ty::B32, count, "the result")?
    } else {
        sources(lower, second, Ty::B32, count, "the source")?
    }
    .into();
    inst.site = lower.site();
    Ok((inst, Class::MatrixMove))
}

/// Lanes that give addresses.
const fn address_lanes(matrices: usize) -> u32 {
    FULL >> (32 - 8 * matrices)
}

fn read<const N: usize, const TRANS: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    whole_warp(cx, mask);
    let lanes = mask & address_lanes(N);
    if lanes == 0 {
        return Flow::Next;
    }
    let Some((base, offsets)) = shared_address(cx, i, lanes, 16) else { return Flow::Stop };
    let manner = Manner { by: By::Warp, ..Manner::default() };
    let request = Request { site: i.site, width: 16, mask: lanes, base, offsets: &offsets, manner };
    let Ok(place) = cx.shared_access(request, Does::Read) else { return Flow::Stop };
    for (m, &slot) in i.v.iter().enumerate() {
        let mut matrix: Row = [0; LANES];
        for (row, words) in matrix.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: the row of each lane of the request was found to lie inside shared memory, aligned to 16 bytes; the
            // offset of any other lane is 0, which is such a row, too.
            *words = unsafe { place.pointer.offset(offsets[8 * m + row] as isize).cast::<[u32; 4]>().read() };
        }
        let matrix = if TRANS { transposed(&matrix) } else { matrix };
        cx.put(slot, mask, &matrix);
    }
    Flow::Next
}

fn write<const N: usize, const TRANS: bool>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    whole_warp(cx, mask);
    let lanes = mask & address_lanes(N);
    if lanes == 0 {
        return Flow::Next;
    }
    let mut rows = [[0u32; 4]; LANES];
    for (rows, &slot) in rows.as_chunks_mut::<8>().0.iter_mut().zip(&i.v) {
        let matrix = cx.get::<u32>(slot);
        let matrix = if TRANS { transposed(&matrix) } else { matrix };
        rows.as_flattened_mut().copy_from_slice(&matrix);
    }
    let Some((base, offsets)) = shared_address(cx, i, lanes, 16) else { return Flow::Stop };
    let request =
        Request { site: i.site, width: 16, mask: lanes, base, offsets: &offsets, manner: Manner::default() };
    let bytes = |lane: usize, byte: usize| Some((rows[lane][byte / 4] >> (8 * (byte % 4))) as u8);
    let Ok(place) = cx.shared_access(request, Does::Write(&bytes)) else { return Flow::Stop };
    for (lane, row) in rows.iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 != 0) {
        // SAFETY: as in `read`.
        unsafe { place.pointer.offset(offsets[lane] as isize).cast::<[u32; 4]>().write(*row) };
    }
    Flow::Next
}

/// The transpose of an 8x8 matrix of halves that lies row by row.
#[inline(always)]
pub(crate) fn transposed(matrix: &Row) -> Row {
    // Halves of one column in two neighbouring rows become a word; the rest is the transpose of two 4x4 matrices.
    let mut columns = [[[0u32; 4]; 4]; 2];
    for pair in 0..4 {
        for word in 0..4 {
            let (a, b) = (matrix[8 * pair + word], matrix[8 * pair + 4 + word]);
            columns[0][word][pair] = (a & 0xFFFF) | b << 16;
            columns[1][word][pair] = a >> 16 | (b & 0xFFFF_0000);
        }
    }
    let mut out = [0; LANES];
    for (row, words) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *words = columns[row % 2][row / 2];
    }
    out
}

#[cfg(test)]
mod tests;
