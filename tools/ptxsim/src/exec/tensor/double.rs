//! `mma` on `.f64`.

use super::block::{read, write};
use super::whole_warp;
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst};

/// `v`: D, A, B, C. `RB` blocks of 8 rows; `KB` blocks of four elements along k.
pub(crate) fn mma<const RB: usize, const KB: usize>(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    whole_warp(cx, mask);
    let (d, rest) = i.v.split_at(2 * RB);
    let (a, rest) = rest.split_at(RB * KB);
    let (b, c) = rest.split_at(KB);
    let mut out = [[[0.0f64; 8]; 8]; RB];
    for (half, out) in out.iter_mut().enumerate() {
        *out = read(cx, c[2 * half], c[2 * half + 1]);
        for k in 0..KB {
            let (a, b) = (cx.get::<f64>(a[RB * k + half]), cx.get::<f64>(b[k]));
            for (row, sums) in out.iter_mut().enumerate() {
                for t in 0..4 {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = a[4 * row + t].mul_add(b[4 * n + t], *sum);
                    }
                }
            }
        }
    }
    for (half, rows) in out.iter().enumerate() {
        write(cx, d[2 * half], d[2 * half + 1], mask, rows);
    }
    Flow::Next
}
