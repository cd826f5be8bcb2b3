//! The gradients of the definition in f64.

use super::{GroupNorm, size};
use crate::error::Result;
use crate::tensor::Tensor;

/// Gradients of x, w, b and, where it is there, scale_shift for the gradient `gy` of the result, all f64.
pub(super) fn gradients(op: &GroupNorm, inputs: &[&Tensor], gy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let shape = inputs[0].shape();
    let [n, pixels, c] = size(&shape);
    let (x, gy) = (inputs[0].data::<f64>()?, gy.data::<f64>()?);
    let (w, b) = (inputs[1].data::<f64>()?, inputs[2].data::<f64>()?);
    let modulation = inputs.get(3).map(|s| s.data::<f64>()).transpose()?;
    let per_group = c / op.groups;
    let count = (pixels * per_group) as f64;
    let (mut gx, mut gw, mut gb, mut gs) =
        (vec![0.0; x.len()], vec![0.0; c], vec![0.0; c], vec![0.0; n * 2 * c]);
    for (sample, group) in (0..n).flat_map(|s| (0..op.groups).map(move |g| (s, g))) {
        let at = || {
            let channels = move |p: usize| (group * per_group..(group + 1) * per_group).map(move |j| (p, j));
            (0..pixels).flat_map(channels).map(move |(p, j)| ((sample * pixels + p) * c + j, j))
        };
        let mean = at().map(|(i, _)| x[i]).sum::<f64>() / count;
        let var = at().map(|(i, _)| (x[i] - mean).powi(2)).sum::<f64>() / count;
        let r = 1.0 / (var + f64::from(op.eps)).sqrt();
        let scale = |j: usize| modulation.map_or(1.0, |s| 1.0 + s[sample * 2 * c + j]);
        let shift = |j: usize| modulation.map_or(0.0, |s| s[sample * 2 * c + c + j]);
        // The gradients at z and at the normalised value.
        let inner = |i: usize, j: usize| {
            let xh = (x[i] - mean) * r;
            let z = (xh * w[j] + b[j]) * scale(j) + shift(j);
            let s = 1.0 / (1.0 + (-z).exp());
            (xh, if op.silu { gy[i] * s * (1.0 + z * (1.0 - s)) } else { gy[i] })
        };
        let (mut mean_g, mut mean_gx) = (0.0, 0.0);
        for (i, j) in at() {
            let (xh, gz) = inner(i, j);
            let g = gz * w[j] * scale(j);
            mean_g += g / count;
            mean_gx += g * xh / count;
            gw[j] += gz * scale(j) * xh;
            gb[j] += gz * scale(j);
            gs[sample * 2 * c + j] += gz * (xh * w[j] + b[j]);
            gs[sample * 2 * c + c + j] += gz;
        }
        for (i, j) in at() {
            let (xh, gz) = inner(i, j);
            gx[i] = r * (gz * w[j] * scale(j) - mean_g - xh * mean_gx);
        }
    }
    let mut all = vec![
        Some(Tensor::from_vec(shape, gx)?),
        Some(Tensor::from_vec([c], gw)?),
        Some(Tensor::from_vec([c], gb)?),
    ];
    if modulation.is_some() {
        all.push(Some(Tensor::from_vec([n, 2 * c], gs)?));
    }
    Ok(all)
}
