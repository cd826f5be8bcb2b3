//! `mma` on `.f16`, `.bf16`, `.tf32`, `.e4m3` and `.e5m2`.

use super::block::{Rows, halves, read, read_half, write, write_half};
use super::whole_warp;
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst};
use crate::exec::lanes::LANES;
use half::slice::HalfFloatSliceExt;

/// A multiplicand's element type, `PER` to a word.
pub(crate) trait Element<const PER: usize> {
    /// The elements of a word, low bits first.
    fn unpack(word: u32) -> [f32; PER];

    /// The elements of a block.
    #[inline(always)]
    fn unpack_all(words: &[u32; LANES]) -> [[f32; PER]; LANES] {
        let mut elements = [[0.0; PER]; LANES];
        for (elements, &word) in elements.iter_mut().zip(words) {
            *elements = Self::unpack(word);
        }
        elements
    }
}

pub(crate) struct F16;
pub(crate) struct Bf16;
pub(crate) struct Tf32;
pub(crate) struct E4m3;
pub(crate) struct E5m2;

/// An `f16` in the high half of a word. Without branches, so that rows of them become vector instructions.
#[inline(always)]
fn from_f16(high: u32) -> f32 {
    // Exponent and mantissa at their places in an `f32`, whose bias is 112 more; subnormals come right by themselves.
    let magnitude = f32::from_bits((high & 0x7FFF_0000) >> 3) * f32::from_bits((127 + 112) << 23);
    let special = if high & 0x7C00_0000 == 0x7C00_0000 { 0x7F80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (high & 0x8000_0000))
}

impl Element<2> for F16 {
    #[inline(always)]
    fn unpack(word: u32) -> [f32; 2] {
        [from_f16(word << 16), from_f16(word & 0xFFFF_0000)]
    }

    #[inline(always)]
    fn unpack_all(words: &[u32; LANES]) -> [[f32; 2]; LANES] {
        let mut elements = [[0.0; 2]; LANES];
        halves(words).convert_to_f32_slice(elements.as_flattened_mut());
        elements
    }
}

impl Element<2> for Bf16 {
    #[inline(always)]
    fn unpack(word: u32) -> [f32; 2] {
        [f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000)]
    }
}

impl Element<1> for Tf32 {
    #[inline(always)]
    fn unpack(word: u32) -> [f32; 1] {
        [f32::from_bits(word & !0x1FFF)]
    }
}

impl Element<4> for E5m2 {
    #[inline(always)]
    fn unpack(word: u32) -> [f32; 4] {
        // The upper half of an `f16`.
        std::array::from_fn(|i| from_f16(word >> (8 * i) << 24))
    }
}

impl Element<4> for E4m3 {
    #[inline(always)]
    fn unpack(word: u32) -> [f32; 4] {
        std::array::from_fn(|i| {
            let byte = word >> (8 * i) & 0xFF;
            // As for `f16`; the bias is 120 more. There are no infinities, and one NaN.
            let magnitude = f32::from_bits((byte & 0x7F) << 20) * f32::from_bits((127 + 120) << 23);
            let nan = if byte & 0x7F == 0x7F { 0x7FC0_0000 } else { 0 };
            f32::from_bits(magnitude.to_bits() | nan | (byte & 0x80) << 24)
        })
    }
}

/// `v`: D, A, B, C. 16 rows; `KB` blocks of four words along k; `HALF`: C and D are `.f16`.
pub(crate) fn mma<A: Element<PER>, B: Element<PER>, const PER: usize, const KB: usize, const HALF: bool>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
) -> Flow {
    whole_warp(cx, mask);
    let accumulators = if HALF { 2 } else { 4 };
    let (d, rest) = i.v.split_at(accumulators);
    let (a, rest) = rest.split_at(2 * KB);
    let (b, c) = rest.split_at(KB);
    let mut columns = [[[[0.0; 8]; PER]; 4]; KB];
    for (columns, &slot) in columns.iter_mut().zip(b) {
        *columns = transposed(&B::unpack_all(&cx.get(slot)));
    }
    let mut out = [[[0.0; 8]; 8]; 2];
    for (half, out) in out.iter_mut().enumerate() {
        *out = if HALF { read_half(cx, c[half]) } else { read(cx, c[2 * half], c[2 * half + 1]) };
        for k in 0..KB {
            let a = A::unpack_all(&cx.get(a[2 * k + half]));
            multiply(out, a.as_flattened(), columns[k].as_flattened());
        }
    }
    for (half, rows) in out.iter().enumerate() {
        if HALF {
            write_half(cx, d[half], mask, rows);
        } else {
            write(cx, d[2 * half], d[2 * half + 1], mask, rows);
        }
    }
    Flow::Next
}

/// A block of B, whose words lie column by column, as rows of k.
#[inline(always)]
fn transposed<const PER: usize>(columns: &[[f32; PER]; LANES]) -> [[[f32; 8]; PER]; 4] {
    let mut rows = [[[0.0; 8]; PER]; 4];
    for (word, rows) in rows.iter_mut().enumerate() {
        for (k, row) in rows.iter_mut().enumerate() {
            for (n, x) in row.iter_mut().enumerate() {
                *x = columns[4 * n + word][k];
            }
        }
    }
    rows
}

/// Adds the product of 8 rows of A with rows of B, in the order of k.
#[inline(always)]
fn multiply(acc: &mut Rows<f32>, a: &[f32], b: &[[f32; 8]]) {
    let depth = b.len();
    let mut sums = *acc;
    for (k, b) in b.iter().enumerate() {
        for (row, sum) in sums.iter_mut().enumerate() {
            let x = a[row * depth + k];
            for n in 0..8 {
                sum[n] = x.mul_add(b[n], sum[n]);
            }
        }
    }
    *acc = sums;
}

#[cfg(test)]
mod tests;
