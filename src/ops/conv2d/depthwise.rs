//! Depthwise convolutions: one filter per channel. No matrix product fits, so these are direct loops over taps with
//! the channels innermost.

use super::Geometry;
use crate::cpu::{for_each_chunk, map_ordered};

/// Channels that one pass over the taps keeps in registers.
const LANES: usize = 32;

/// `a + x * w`, fused where the target has the instruction; elsewhere a fused multiply-add would be a library call.
#[inline(always)]
fn multiply_add(a: f32, x: f32, w: f32) -> f32 {
    if cfg!(target_feature = "fma") { x.mul_add(w, a) } else { a + x * w }
}

/// `out = out + sum over taps of x[ix..] * w[iw..]`, channel by channel, where `taps` gives the starts `(ix, iw)`.
/// A block of exactly `LANES` channels has a length the compiler knows: its sums stay in registers over all taps.
#[inline(always)]
fn sum_taps(out: &mut [f32], x: &[f32], w: &[f32], taps: impl Iterator<Item = (usize, usize)>) {
    if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
        let mut acc = *out;
        for (ix, iw) in taps {
            let (x, w) = (&x[ix..ix + LANES], &w[iw..iw + LANES]);
            for ((a, x), w) in acc.iter_mut().zip(x).zip(w) {
                *a = multiply_add(*a, *x, *w);
            }
        }
        *out = acc;
    } else {
        for (ix, iw) in taps {
            let n = out.len();
            for ((o, x), w) in out.iter_mut().zip(&x[ix..ix + n]).zip(&w[iw..iw + n]) {
                *o = multiply_add(*o, *x, *w);
            }
        }
    }
}

/// `[c, kh, kw, 1]` to `[kh * kw, c]`.
fn taps_first(g: &Geometry, w: &[f32]) -> Vec<f32> {
    let taps = g.kh * g.kw;
    let mut out = vec![0.0; w.len()];
    for (tap, row) in out.chunks_exact_mut(g.co).enumerate() {
        row.iter_mut().zip(w[tap..].iter().step_by(taps)).for_each(|(o, w)| *o = *w);
    }
    out
}

/// The taps that hit the image for output coordinate `o`, with the input coordinate of each.
fn hits(g: &Geometry, axis: usize, o: usize) -> Vec<(usize, usize)> {
    let k = if axis == 0 { g.kh } else { g.kw };
    (0..k).filter_map(|t| Some((t, g.input_index(axis, o, t)?))).collect()
}

/// `y = conv(x, w) + bias`.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let c = g.co;
    let weight = taps_first(g, w);
    let columns: Vec<_> = (0..g.wo).map(|ox| hits(g, 1, ox)).collect();
    for_each_chunk(y, g.wo * c, |i, row| {
        let (n, oy) = (i / g.ho, i % g.ho);
        let rows = hits(g, 0, oy);
        for (out, columns) in row.chunks_exact_mut(c).zip(&columns) {
            for (block, out) in out.chunks_mut(LANES).enumerate() {
                let c0 = block * LANES;
                match bias {
                    Some(b) => out.copy_from_slice(&b[c0..c0 + out.len()]),
                    None => out.fill(0.0),
                }
                let taps = rows.iter().flat_map(|&(r, iy)| {
                    columns
                        .iter()
                        .map(move |&(s, ix)| (((n * g.h + iy) * g.w + ix) * c + c0, (r * g.kw + s) * c + c0))
                });
                sum_taps(out, x, &weight, taps);
            }
        }
    });
}

/// Gradient of the input: every input pixel collects from the outputs that read it.
pub(super) fn input_gradient(g: &Geometry, gy: &[f32], w: &[f32], dx: &mut [f32]) {
    let c = g.co;
    let weight = taps_first(g, w);
    // (tap, output coordinate) pairs that read input coordinate i.
    let readers = |axis: usize, i: usize| -> Vec<(usize, usize)> {
        let (k, out) = if axis == 0 { (g.kh, g.ho) } else { (g.kw, g.wo) };
        (0..k)
            .filter_map(|t| {
                let at = (i + g.pad[axis]).checked_sub(t * g.dilation[axis])?;
                (at.is_multiple_of(g.stride[axis]) && at / g.stride[axis] < out)
                    .then(|| (t, at / g.stride[axis]))
            })
            .collect()
    };
    let columns: Vec<_> = (0..g.w).map(|ix| readers(1, ix)).collect();
    for_each_chunk(dx, g.w * c, |i, row| {
        let (n, iy) = (i / g.h, i % g.h);
        let rows = readers(0, iy);
        for (out, columns) in row.chunks_exact_mut(c).zip(&columns) {
            for (block, out) in out.chunks_mut(LANES).enumerate() {
                let c0 = block * LANES;
                out.fill(0.0);
                let taps = rows.iter().flat_map(|&(r, oy)| {
                    columns.iter().map(move |&(s, ox)| {
                        (((n * g.ho + oy) * g.wo + ox) * c + c0, (r * g.kw + s) * c + c0)
                    })
                });
                sum_taps(out, gy, &weight, taps);
            }
        }
    });
}

/// Gradient of the weight, summed over fixed parts of the output rows in order.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], dw: &mut [f32]) {
    let (c, taps) = (g.co, g.kh * g.kw);
    let rows = g.n * g.ho;
    let parts = rows.div_ceil(8).clamp(1, 32);
    let columns: Vec<_> = (0..g.wo).map(|ox| hits(g, 1, ox)).collect();
    let partial = map_ordered(parts, |part| {
        let mut acc = vec![0.0f32; taps * c];
        for i in part * rows / parts..(part + 1) * rows / parts {
            let (n, oy) = (i / g.ho, i % g.ho);
            for (r, iy) in hits(g, 0, oy) {
                for (ox, columns) in columns.iter().enumerate() {
                    let gs = &gy[(i * g.wo + ox) * c..][..c];
                    for &(s, ix) in columns {
                        let xs = &x[((n * g.h + iy) * g.w + ix) * c..][..c];
                        let to = &mut acc[(r * g.kw + s) * c..][..c];
                        for ((t, x), g) in to.iter_mut().zip(xs).zip(gs) {
                            *t = multiply_add(*t, *x, *g);
                        }
                    }
                }
            }
        }
        acc
    });
    let mut sum = vec![0.0; taps * c];
    super::add_in_order(&mut sum, &partial);
    for (tap, row) in sum.chunks_exact(c).enumerate() {
        dw[tap..].iter_mut().step_by(taps).zip(row).for_each(|(d, s)| *d = *s);
    }
}
