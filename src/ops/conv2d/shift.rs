//! Stride-1 convolutions without gathering: the images are copied once into a zero-padded frame, and each tap is a
//! matrix product over the frame shifted by the tap's offset.
//!
//! Rows of output pixels are taken in the frame's width, so that a block of rows is one contiguous matrix; the few
//! columns that belong to the padding are computed and thrown away.
//!
//! ```text
//! frame [hp, wp]         tap (r, s) of output rows a..b = frame rows a+r.. shifted by s pixels:
//! 0 0 0 0 0 0              M = (b - a) * wp pixels, each a row of ci floats, next to each other
//! 0 x x x x 0              y[M, co] += frame[offset.., ci] * w[r, s]
//! 0 x x x x 0
//! 0 0 0 0 0 0
//! ```

use super::Geometry;
use crate::cpu::{MatMut, MatRef, for_each_chunk, gemm, map_ordered};

/// Pixels per block: the block of results stays in the second-level cache over all taps.
const BLOCK_PIXELS: usize = 512;

/// Whether this way is cheaper than gathering: junk columns cost `wp / wo`, gathering costs about as much as 40
/// multiply-adds per gathered number, which `co` of them amortise.
pub(super) fn suits(g: &Geometry) -> bool {
    if g.stride != [1, 1] || g.groups != 1 || g.kh * g.kw == 1 {
        return false;
    }
    let junk = (g.w + 2 * g.pad[1]) as f64 / g.wo as f64;
    junk <= 1.02 + 40.0 / g.co as f64
}

struct Frame {
    data: Vec<f32>,
    hp: usize,
    wp: usize,
}

/// Copies `[n, h, w, c]` images into zero frames with `pad` on every side and one row's slack at the end.
fn frame(n: usize, h: usize, w: usize, c: usize, pad: [usize; 2], slack: usize, x: &[f32]) -> Frame {
    let (hp, wp) = (h + 2 * pad[0], w + 2 * pad[1]);
    let mut data = vec![0.0f32; (n * hp * wp + slack) * c];
    for_each_chunk(&mut data[..n * hp * wp * c], wp * c, |i, row| {
        let (image, y) = (i / hp, i % hp);
        if let Some(y) = y.checked_sub(pad[0]).filter(|&y| y < h) {
            let from = (image * h + y) * w * c;
            row[pad[1] * c..(pad[1] + w) * c].copy_from_slice(&x[from..from + w * c]);
        }
    });
    Frame { data, hp, wp }
}

/// Scratch in floats: the frame, and one block of results per task.
pub(super) fn scratch(g: &Geometry) -> usize {
    let (hp, wp) = (g.h + 2 * g.pad[0], g.w + 2 * g.pad[1]);
    g.n * hp * wp * g.ci + 2 * (BLOCK_PIXELS + wp) * g.co
}

fn row_block(g: &Geometry, wp: usize) -> usize {
    // At least a handful of blocks, so that threads have something to share; cut by the sizes alone.
    (BLOCK_PIXELS / wp).clamp(1, g.ho).min((g.n * g.ho).div_ceil(16).max(1))
}

/// `y = conv(x, w) + bias` for stride 1 and one group; `w [co, kh, kw, ci]`.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let slack = (g.kw - 1) * g.dilation[1];
    let f = frame(g.n, g.h, g.w, g.ci, g.pad, slack, x);
    let block = row_block(g, f.wp);
    let row = g.wo * g.co;
    // Blocks must not run over the end of an image; a chunk is a block of one image.
    let blocks_per_image = g.ho.div_ceil(block);
    let weight = Weight::new(g, w);
    let task = |image: usize, first: usize, part: &mut [f32]| {
        let rows = part.len() / row;
        let m = (rows - 1) * f.wp + g.wo;
        let mut out = vec![0.0; m * g.co];
        for r in 0..g.kh {
            for s in 0..g.kw {
                let at = (image * f.hp + first + r * g.dilation[0]) * f.wp + s * g.dilation[1];
                let a = MatRef::new(&f.data[at * g.ci..], m, g.ci, g.ci, 1);
                let c = MatMut::row_major(&mut out, m, g.co);
                gemm(c, a, weight.tap(r * g.kw + s), r + s > 0, false);
            }
        }
        for (to, from) in part.chunks_exact_mut(row).zip(out.chunks(f.wp * g.co)) {
            match bias {
                None => to.copy_from_slice(&from[..row]),
                Some(b) => {
                    for (to, from) in to.chunks_exact_mut(g.co).zip(from.chunks_exact(g.co)) {
                        to.iter_mut().zip(from).zip(b).for_each(|((t, f), b)| *t = f + b);
                    }
                }
            }
        }
    };
    if g.ho.is_multiple_of(block) {
        for_each_chunk(y, block * row, |i, part| {
            task(i / blocks_per_image, i % blocks_per_image * block, part)
        });
    } else {
        // Ragged images: one task each, its blocks one after another.
        for_each_chunk(y, g.ho * row, |image, part| {
            part.chunks_mut(block * row).enumerate().for_each(|(j, part)| task(image, j * block, part));
        });
    }
}

/// The weight as one `[ci, co]` matrix per tap.
struct Weight<'a> {
    data: std::borrow::Cow<'a, [f32]>,
    transposed: bool,
    ci: usize,
    co: usize,
    k: usize,
}

impl<'a> Weight<'a> {
    /// Transposed once if there are enough pixels to pay for it: the product then packs it by plain copies.
    fn new(g: &Geometry, w: &'a [f32]) -> Self {
        let k = g.k();
        let transposed = g.n * g.ho * g.wo >= 2 * BLOCK_PIXELS;
        let data = if transposed {
            let mut t = vec![0.0; w.len()];
            // Blocks of 16 columns keep the strided reads within a few cache lines.
            for_each_chunk(&mut t, g.co * 16, |i, part| {
                for (j, row) in part.chunks_exact_mut(g.co).enumerate() {
                    let at = i * 16 + j;
                    row.iter_mut().zip(w[at..].iter().step_by(k)).for_each(|(t, w)| *t = *w);
                }
            });
            t.into()
        } else {
            w.into()
        };
        Weight { data, transposed, ci: g.ci, co: g.co, k }
    }

    fn tap(&self, tap: usize) -> MatRef<'_> {
        if self.transposed {
            MatRef::row_major(&self.data[tap * self.ci * self.co..], self.ci, self.co)
        } else {
            MatRef::new(&self.data[tap * self.ci..], self.ci, self.co, 1, self.k)
        }
    }
}

/// The weight of the transposed convolution: taps flipped, `[ci, kh, kw, co]`.
pub(super) fn flipped(g: &Geometry, w: &[f32]) -> Vec<f32> {
    let taps = g.kh * g.kw;
    let mut out = vec![0.0; w.len()];
    for_each_chunk(&mut out, taps * g.co, |ci, part| {
        for (tap, row) in part.chunks_exact_mut(g.co).enumerate() {
            let from = (taps - 1 - tap) * g.ci + ci;
            row.iter_mut().zip(w[from..].iter().step_by(taps * g.ci)).for_each(|(t, w)| *t = *w);
        }
    });
    out
}

/// Gradient of the weight: for every tap the product of the framed `gy` (zero in the junk columns) and the shifted
/// frame of `x`, summed over fixed parts of the images in order.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], dw: &mut [f32]) {
    let slack = (g.kw - 1) * g.dilation[1];
    let f = frame(g.n, g.h, g.w, g.ci, g.pad, slack, x);
    // gy in the frame's row width: rows of wp pixels, the last wp - wo of them zero.
    let mut wide = vec![0.0f32; g.n * g.ho * f.wp * g.co];
    for_each_chunk(&mut wide, f.wp * g.co, |i, to| {
        to[..g.wo * g.co].copy_from_slice(&gy[i * g.wo * g.co..(i + 1) * g.wo * g.co]);
    });
    let (k, taps) = (g.k(), g.kh * g.kw);
    let units = g.n * g.ho;
    let parts = super::weight_gradient_parts(units, g.w_len()).min((units * f.wp).div_ceil(1024));
    // One task per part and tap; a task writes its own [co, ci] block.
    let partial = map_ordered(parts * taps, |task| {
        let (part, tap) = (task / taps, task % taps);
        let (r, s) = (tap / g.kw, tap % g.kw);
        let mut block = vec![0.0; g.co * g.ci];
        let mut row = part * units / parts;
        let end = (part + 1) * units / parts;
        while row < end {
            let (image, first) = (row / g.ho, row % g.ho);
            let rows = (g.ho - first).min(end - row);
            let m = rows * f.wp - (f.wp - g.wo);
            let at = (image * f.hp + first + r * g.dilation[0]) * f.wp + s * g.dilation[1];
            let a = MatRef::new(&f.data[at * g.ci..], m, g.ci, g.ci, 1);
            let b = MatRef::new(&wide[row * f.wp * g.co..], m, g.co, g.co, 1);
            gemm(MatMut::row_major(&mut block, g.co, g.ci), b.t(), a, true, false);
            row += rows;
        }
        block
    });
    for_each_chunk(dw, k, |co, to| {
        for (tap, to) in to.chunks_exact_mut(g.ci).enumerate() {
            to.fill(0.0);
            for part in 0..parts {
                let from = &partial[part * taps + tap][co * g.ci..(co + 1) * g.ci];
                to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
            }
        }
    });
}
