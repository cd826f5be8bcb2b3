//! The general convolution: panels of output pixels are gathered into rows of `taps x channels`, and a matrix product
//! does the rest. Serves any stride, padding, dilation and grouping.

use super::Geometry;
use crate::cpu::{MatMut, MatRef, for_each_chunk, gemm, map_ordered};

/// Bytes of a gathered panel: large enough to amortise packing the weight, small enough for the second-level cache
/// and a slice of the third.
const PANEL_BYTES: usize = 2 << 20;

/// Below this many output pixels the weight, not the image, is the large operand.
const FEW_PIXELS: usize = 1024;

/// Whether there are so few pixels, and so many channels, that reading the weight decides the time.
pub(super) fn has_few_pixels(g: &Geometry) -> bool {
    g.groups == 1 && g.n * g.ho * g.wo <= FEW_PIXELS && g.co >= 256 && g.ci >= 128
}

/// Output pixels per panel.
fn panel_rows(g: &Geometry) -> usize {
    if has_few_pixels(g) {
        return FEW_PIXELS;
    }
    (PANEL_BYTES / 4 / g.k().max(1)).clamp(32, 1024).next_multiple_of(8)
}

/// Scratch of one task, in floats.
pub(super) fn scratch(g: &Geometry) -> usize {
    panel_rows(g).min(g.n * g.ho * g.wo) * g.k()
}

/// The taps `s0..s1` of a kernel row that hit the image for output column `ox`. Without dilation they are neighbours in
/// memory.
fn tap_range(g: &Geometry, ox: usize) -> (usize, usize) {
    let at = ox * g.stride[1];
    let s0 = g.pad[1].saturating_sub(at).min(g.kw);
    let s1 = (g.w + g.pad[1]).saturating_sub(at).min(g.kw);
    (s0, s1.max(s0))
}

/// Calls `run(start in the gathered row, start in the image, length)` for every piece of memory that output pixel
/// `(oy, ox)` of group `group` reads through its taps: a kernel row at a time where that is contiguous, else a tap.
fn pieces(g: &Geometry, group: usize, oy: usize, ox: usize, mut run: impl FnMut(usize, usize, usize)) {
    let (cig, _) = g.per_group();
    let whole_rows = g.groups == 1 && g.dilation[1] == 1;
    let (s0, s1) = tap_range(g, ox);
    for r in 0..g.kh {
        let Some(iy) = g.input_index(0, oy, r) else { continue };
        if whole_rows && s0 < s1 {
            let ix = ox * g.stride[1] + s0 - g.pad[1];
            run((r * g.kw + s0) * cig, (iy * g.w + ix) * g.ci, (s1 - s0) * cig);
        } else if !whole_rows {
            for s in 0..g.kw {
                if let Some(ix) = g.input_index(1, ox, s) {
                    run((r * g.kw + s) * cig, (iy * g.w + ix) * g.ci + group * cig, cig);
                }
            }
        }
    }
}

/// Gathers output pixels `first..first + rows` of group `group` into `[rows, kh * kw * ci/groups]`.
fn gather(g: &Geometry, x: &[f32], group: usize, first: usize, rows: usize, out: &mut [f32]) {
    for (i, row) in out.chunks_exact_mut(g.k()).take(rows).enumerate() {
        let p = first + i;
        let (n, oy, ox) = (p / (g.ho * g.wo), p / g.wo % g.ho, p % g.wo);
        let image = &x[n * g.h * g.w * g.ci..(n + 1) * g.h * g.w * g.ci];
        row.fill(0.0);
        pieces(g, group, oy, ox, |to, from, len| row[to..to + len].copy_from_slice(&image[from..from + len]));
    }
}

/// All output pixels gathered in parallel; the image itself for a 1x1 convolution.
fn gather_all<'a>(g: &Geometry, x: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
    if g.is_pointwise() {
        return x.into();
    }
    let k = g.k();
    let mut panel = vec![0.0; g.n * g.ho * g.wo * k];
    for_each_chunk(&mut panel, 8 * k, |i, part| gather(g, x, 0, i * 8, part.len() / k, part));
    panel.into()
}

/// `y = conv(x, w) + bias` for few pixels: the product is made transposed, `[co, pixels]`, because then the weight
/// is read in place, once, instead of being packed.
pub(super) fn forward_few(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (m, k) = (g.n * g.ho * g.wo, g.k());
    let panel = gather_all(g, x);
    let mut out = vec![0.0; m * g.co];
    let c = MatMut::new(&mut out, m, g.co, 1, m);
    gemm(c, MatRef::row_major(&panel, m, k), MatRef::row_major(w, g.co, k).t(), false, true);
    for_each_chunk(y, g.co, |i, row| {
        row.iter_mut().zip(out[i..].iter().step_by(m)).for_each(|(y, v)| *y = *v);
        if let Some(b) = bias {
            row.iter_mut().zip(b).for_each(|(y, b)| *y += b);
        }
    });
}

/// Gradient of the weight for few pixels: one product over all of them.
pub(super) fn weight_gradient_few(g: &Geometry, x: &[f32], gy: &[f32], dw: &mut [f32]) {
    let (m, k) = (g.n * g.ho * g.wo, g.k());
    let panel = gather_all(g, x);
    let c = MatMut::row_major(dw, g.co, k);
    gemm(c, MatRef::row_major(gy, m, g.co).t(), MatRef::row_major(&panel, m, k), false, true);
}

/// `y = conv(x, w) + bias`.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (cig, cog) = g.per_group();
    let (rows, k) = (panel_rows(g), g.k());
    debug_assert_eq!(k, g.kh * g.kw * cig);
    for_each_chunk(y, rows * g.co, |i, part| {
        let m = part.len() / g.co;
        let mut panel = vec![0.0; m * k];
        for group in 0..g.groups {
            gather(g, x, group, i * rows, m, &mut panel);
            let weight = MatRef::row_major(&w[group * cog * k..(group + 1) * cog * k], cog, k).t();
            let c = MatMut::new(&mut part[group * cog..], m, cog, g.co, 1);
            gemm(c, MatRef::row_major(&panel, m, k), weight, false, false);
        }
        if let Some(b) = bias {
            part.chunks_exact_mut(g.co).for_each(|row| row.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
    });
}

/// Adds a panel of output pixels `first..` of one image back to that image's `dx`: the transpose of `gather`.
fn scatter(g: &Geometry, dx: &mut [f32], panel: &[f32], group: usize, first: usize) {
    for (i, row) in panel.chunks_exact(g.k()).enumerate() {
        let (oy, ox) = ((first + i) / g.wo, (first + i) % g.wo);
        pieces(g, group, oy, ox, |from, to, len| {
            dx[to..to + len].iter_mut().zip(&row[from..from + len]).for_each(|(d, v)| *d += v);
        });
    }
}

/// Gradient of the input for few pixels: one product with the weight as it lies, then every image is put together.
pub(super) fn input_gradient_few(g: &Geometry, gy: &[f32], w: &[f32], dx: &mut [f32]) {
    let (m, k, pixels) = (g.n * g.ho * g.wo, g.k(), g.ho * g.wo);
    let (gy, w) = (MatRef::row_major(gy, m, g.co), MatRef::row_major(w, g.co, k));
    if g.is_pointwise() {
        return gemm(MatMut::row_major(dx, m, k), gy, w, false, true);
    }
    let mut panel = vec![0.0; m * k];
    gemm(MatMut::row_major(&mut panel, m, k), gy, w, false, true);
    for_each_chunk(dx, g.h * g.w * g.ci, |n, dx| {
        dx.fill(0.0);
        scatter(g, dx, &panel[n * pixels * k..(n + 1) * pixels * k], 0, 0);
    });
}

/// Gradient of the input: every panel of `gy` is multiplied by the weight and scattered back. Images are independent,
/// so they run in parallel; within an image the order is fixed.
pub(super) fn input_gradient(g: &Geometry, gy: &[f32], w: &[f32], dx: &mut [f32]) {
    let (_, cog) = g.per_group();
    let (rows, k, pixels) = (panel_rows(g), g.k(), g.ho * g.wo);
    // Few images share their products among the threads; many run side by side.
    let parallel_inside = g.n < 2 * crate::cpu::threads();
    for_each_chunk(dx, g.h * g.w * g.ci, |n, dx| {
        dx.fill(0.0);
        let gy = &gy[n * pixels * g.co..(n + 1) * pixels * g.co];
        let mut panel = vec![0.0; rows.min(pixels) * k];
        for first in (0..pixels).step_by(rows) {
            let m = rows.min(pixels - first);
            for group in 0..g.groups {
                let a = MatRef::new(&gy[first * g.co + group * cog..], m, cog, g.co, 1);
                let weight = MatRef::row_major(&w[group * cog * k..(group + 1) * cog * k], cog, k);
                let panel = &mut panel[..m * k];
                gemm(MatMut::row_major(panel, m, k), a, weight, false, parallel_inside);
                scatter(g, dx, panel, group, first);
            }
        }
    });
}

/// Gradient of the weight: `gy^T * gathered`, summed over fixed parts of the pixels in order.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], dw: &mut [f32]) {
    let (_, cog) = g.per_group();
    let (rows, k, pixels) = (panel_rows(g), g.k(), g.n * g.ho * g.wo);
    let panels = pixels.div_ceil(rows);
    let parts = super::weight_gradient_parts(panels, g.w_len());
    let partial = map_ordered(parts, |part| {
        let mut dw = vec![0.0; g.w_len()];
        let mut panel = vec![0.0; rows.min(pixels) * k];
        for p in part * panels / parts..(part + 1) * panels / parts {
            let first = p * rows;
            let m = rows.min(pixels - first);
            for group in 0..g.groups {
                let panel = &mut panel[..m * k];
                gather(g, x, group, first, m, panel);
                let gy = MatRef::new(&gy[first * g.co + group * cog..], m, cog, g.co, 1);
                let c = MatMut::row_major(&mut dw[group * cog * k..(group + 1) * cog * k], cog, k);
                gemm(c, gy.t(), MatRef::row_major(panel, m, k), true, false);
            }
        }
        dw
    });
    super::add_in_order(dw, &partial);
}
