//! `mma` on `.s8`, `.u8`, `.s4`, `.u4` and `.b1`.

use super::block::{Rows, read, write};
use super::whole_warp;
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst, Slot};
use crate::exec::lanes::LANES;

/// A multiplicand's element type, `PER` to a word.
pub(crate) trait Element<const PER: usize> {
    /// The elements of a word, low bits first.
    fn unpack(word: u32) -> [i32; PER];
}

pub(crate) struct Signed;
pub(crate) struct Unsigned;

impl<const PER: usize> Element<PER> for Signed {
    #[inline(always)]
    fn unpack(word: u32) -> [i32; PER] {
        let bits = 32 / PER;
        std::array::from_fn(|i| ((word << (32 - bits * (i + 1))) as i32) >> (32 - bits))
    }
}

impl<const PER: usize> Element<PER> for Unsigned {
    #[inline(always)]
    fn unpack(word: u32) -> [i32; PER] {
        let bits = 32 / PER;
        std::array::from_fn(|i| ((word << (32 - bits * (i + 1))) >> (32 - bits)) as i32)
    }
}

/// `v`: D, A, B, C. `RB` blocks of 8 rows; `KB` blocks of four words along k. `aux` 1: the result is clamped.
pub(crate) fn mma<A: Element<PER>, B: Element<PER>, const PER: usize, const RB: usize, const KB: usize>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
) -> Flow {
    run::<RB, KB>(cx, i, mask, |a, b, sums| {
        let (a, b) = (unpack::<A, PER>(a), unpack::<B, PER>(b));
        for (row, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let (a, b) = (a[4 * row..][..4].as_flattened(), b[4 * n..][..4].as_flattened());
                *sum += a.iter().zip(b).map(|(x, y)| x * y).sum::<i32>();
            }
        }
    })
}

/// The elements of a block.
#[inline(always)]
fn unpack<E: Element<PER>, const PER: usize>(words: &[u32; LANES]) -> [[i32; PER]; LANES] {
    let mut elements = [[0; PER]; LANES];
    for (elements, &word) in elements.iter_mut().zip(words) {
        *elements = E::unpack(word);
    }
    elements
}

/// `.b1`: bits that both have (`AND`), or that differ, are counted.
pub(crate) fn bits<const AND: bool, const RB: usize, const KB: usize>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
) -> Flow {
    run::<RB, KB>(cx, i, mask, |a, b, sums| {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let words = a[4 * row..][..4].iter().zip(&b[4 * n..][..4]);
                *sum += words.map(|(x, y)| if AND { x & y } else { x ^ y }.count_ones() as i32).sum::<i32>();
            }
        }
    })
}

/// Sums the products of the blocks; no sum of them leaves an `i32`.
#[inline(always)]
fn run<const RB: usize, const KB: usize>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    block: impl Fn(&[u32; LANES], &[u32; LANES], &mut Rows<i32>),
) -> Flow {
    whole_warp(cx, mask);
    let (d, rest) = i.v.split_at(2 * RB);
    let (a, rest) = rest.split_at(RB * KB);
    let (b, c) = rest.split_at(KB);
    let mut out = [[[0i32; 8]; 8]; RB];
    for (half, out) in out.iter_mut().enumerate() {
        let mut sums = [[0i32; 8]; 8];
        for k in 0..KB {
            block(&cx.get(a[RB * k + half]), &cx.get(b[k]), &mut sums);
        }
        *out = accumulate(cx, c[2 * half], c[2 * half + 1], &sums, i.aux != 0);
    }
    for (half, rows) in out.iter().enumerate() {
        write(cx, d[2 * half], d[2 * half + 1], mask, rows);
    }
    Flow::Next
}

fn accumulate(cx: &Cx<'_>, even: Slot, odd: Slot, sums: &Rows<i32>, clamp: bool) -> Rows<i32> {
    let mut rows = read::<i32>(cx, even, odd);
    for (x, &sum) in rows.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *x = if clamp { x.saturating_add(sum) } else { x.wrapping_add(sum) };
    }
    rows
}
