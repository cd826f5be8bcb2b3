//! The gradients of the definition in f64.

use super::{BatchNorm, BatchNormMode};
use crate::error::Result;
use crate::tensor::Tensor;

/// Gradients of x, w, b and, where it is there, the residual, for the gradient `gy` of the result, all f64.
pub(super) fn gradients(op: &BatchNorm, inputs: &[&Tensor], gy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let shape = inputs[0].shape();
    let (rows, c) = (shape.rows(), shape.last());
    let (x, gy) = (inputs[0].data::<f64>()?, gy.data::<f64>()?);
    let (w, b) = (inputs[1].data::<f64>()?, inputs[2].data::<f64>()?);
    let residual = op.residual_of(inputs).map(|r| r.data::<f64>()).transpose()?;
    let (mut gx, mut gw, mut gb) = (vec![0.0; x.len()], vec![0.0; c], vec![0.0; c]);
    let mut gz = gy.to_vec();
    for j in 0..c {
        let at = || (0..rows).map(move |i| i * c + j);
        let (mean, var) = match op.mode {
            BatchNormMode::Train => {
                let mean = at().map(|i| x[i]).sum::<f64>() / rows as f64;
                (mean, at().map(|i| (x[i] - mean).powi(2)).sum::<f64>() / rows as f64)
            }
            BatchNormMode::Eval => (inputs[3].data::<f64>()?[j], inputs[4].data::<f64>()?[j]),
        };
        let r = 1.0 / (var + f64::from(op.eps)).sqrt();
        let xh = |i: usize| (x[i] - mean) * r;
        for i in at() {
            let z = xh(i) * w[j] + b[j] + residual.map_or(0.0, |r| r[i]);
            if op.relu && z <= 0.0 {
                gz[i] = 0.0;
            }
            gw[j] += gz[i] * xh(i);
            gb[j] += gz[i];
        }
        let means = match op.mode {
            BatchNormMode::Train => (gb[j] / rows as f64, gw[j] / rows as f64),
            BatchNormMode::Eval => (0.0, 0.0),
        };
        for i in at() {
            gx[i] = r * w[j] * (gz[i] - means.0 - xh(i) * means.1);
        }
    }
    let mut all = vec![
        Some(Tensor::from_vec(shape, gx)?),
        Some(Tensor::from_vec([c], gw)?),
        Some(Tensor::from_vec([c], gb)?),
    ];
    all.resize(inputs.len(), None);
    if residual.is_some() {
        *all.last_mut().expect("inputs") = Some(Tensor::from_vec(shape, gz)?);
    }
    Ok(all)
}
