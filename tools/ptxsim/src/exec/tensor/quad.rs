//! `mma.m8n8k4` on `.f16`: four multiplications at once, each by a quad pair: lanes `4 q .. 4 q + 4` hold rows 0 to 3 of
//! A (columns 0 to 3 of B), lanes 16 further the others.

use super::block::pack;
use super::whole_warp;
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst, Slot};
use crate::exec::lanes::LANES;
use half::f16;

/// Flags in `Inst::aux`.
pub(crate) const A_COL: u32 = 1;
pub(crate) const B_COL: u32 = 2;
pub(crate) const C_HALF: u32 = 4;
pub(crate) const D_HALF: u32 = 8;

/// A multiplicand of the four multiplications: `[pair][row of A or column of B][k]`.
type Multiplicand = [[[f32; 4]; 8]; 4];
type Accumulator = [[[f32; 8]; 8]; 4];

/// `v`: D, A, B, C.
pub(crate) fn mma(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    whole_warp(cx, mask);
    let (d, rest) = i.v.split_at(if i.aux & D_HALF != 0 { 4 } else { 8 });
    let (a, rest) = rest.split_at(2);
    let (b, c) = rest.split_at(2);
    // A by columns is laid out as B by rows is, with rows for columns.
    let a = multiplicand(&halves(cx, a), i.aux & A_COL != 0);
    let b = multiplicand(&halves(cx, b), i.aux & B_COL == 0);
    let mut acc = accumulator(cx, c, i.aux & C_HALF != 0);
    for (pair, acc) in acc.iter_mut().enumerate() {
        for (m, row) in acc.iter_mut().enumerate() {
            for (n, sum) in row.iter_mut().enumerate() {
                for k in 0..4 {
                    *sum = a[pair][m][k].mul_add(b[pair][n][k], *sum);
                }
            }
        }
    }
    let half = i.aux & D_HALF != 0;
    for (register, &slot) in d.iter().enumerate() {
        let bits: [u32; LANES] = std::array::from_fn(|lane| {
            let at = |i: usize| {
                let (row, col) = place(lane, i, half);
                acc[lane / 4 % 4][row][col]
            };
            if half {
                pack(f16::from_f32(at(2 * register)), f16::from_f32(at(2 * register + 1)))
            } else {
                at(register).to_bits()
            }
        });
        cx.put(slot, mask, &bits);
    }
    Flow::Next
}

/// The four elements of each lane.
fn halves(cx: &Cx<'_>, slots: &[Slot]) -> [[f32; 4]; LANES] {
    let (low, high) = (cx.get::<u32>(slots[0]), cx.get::<u32>(slots[1]));
    let element = |word: u32, n: u32| f16::from_bits((word >> (16 * n)) as u16).to_f32();
    std::array::from_fn(|l| {
        [element(low[l], 0), element(low[l], 1), element(high[l], 0), element(high[l], 1)]
    })
}

/// `across`: a lane's elements have one k and differ in row (of A) or column (of B).
fn multiplicand(lanes: &[[f32; 4]; LANES], across: bool) -> Multiplicand {
    let mut out = [[[0.0; 4]; 8]; 4];
    for (lane, elements) in lanes.iter().enumerate() {
        let high = lane / 16 * 4;
        for (i, &x) in elements.iter().enumerate() {
            let (outer, k) = if across { (i + high, lane % 4) } else { (lane % 4 + high, i) };
            out[lane / 4 % 4][outer][k] = x;
        }
    }
    out
}

/// Row and column of an accumulator's element.
fn place(lane: usize, i: usize, half: bool) -> (usize, usize) {
    let high = lane / 16 * 4;
    if half { (lane % 4 + high, i) } else { ((lane & 1) + (i & 2) + high, (i & 4) + (lane & 2) + (i & 1)) }
}

fn accumulator(cx: &Cx<'_>, slots: &[Slot], half: bool) -> Accumulator {
    let mut out = [[[0.0; 8]; 8]; 4];
    for (register, &slot) in slots.iter().enumerate() {
        for (lane, word) in cx.get::<u32>(slot).into_iter().enumerate() {
            let rows = &mut out[lane / 4 % 4];
            if half {
                for n in 0..2 {
                    let (row, col) = place(lane, 2 * register + n, true);
                    rows[row][col] = f16::from_bits((word >> (16 * n)) as u16).to_f32();
                }
            } else {
                let (row, col) = place(lane, register, false);
                rows[row][col] = f32::from_bits(word);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
