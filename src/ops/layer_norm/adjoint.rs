//! The gradients of the definition in f64.

use super::LayerNorm;
use crate::error::Result;
use crate::tensor::Tensor;

/// Gradients of x, w and b for the gradient `gy` of the result, all f64.
pub(super) fn gradients(op: &LayerNorm, inputs: &[&Tensor], gy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (x, w, gy) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?, gy.data::<f64>()?);
    let c = w.len();
    let (mut gx, mut gw, mut gb) = (Vec::with_capacity(x.len()), vec![0.0; c], vec![0.0; c]);
    for (x, gy) in x.chunks(c).zip(gy.chunks(c)) {
        let mean = |f: &dyn Fn(usize) -> f64| (0..c).map(f).sum::<f64>() / c as f64;
        let m = mean(&|j| x[j]);
        let r = 1.0 / (mean(&|j| (x[j] - m).powi(2)) + f64::from(op.eps)).sqrt();
        let xh = |j: usize| (x[j] - m) * r;
        let (mean_g, slope) = (mean(&|j| gy[j] * w[j]), mean(&|j| gy[j] * w[j] * xh(j)));
        gx.extend((0..c).map(|j| r * (gy[j] * w[j] - mean_g - xh(j) * slope)));
        for j in 0..c {
            gw[j] += gy[j] * xh(j);
            gb[j] += gy[j];
        }
    }
    let all = [(inputs[0].shape(), gx), (inputs[1].shape(), gw), (inputs[2].shape(), gb)];
    all.into_iter().map(|(shape, g)| Tensor::from_vec(shape, g).map(Some)).collect()
}
