//! The gradients of a convolution in f64, straight from its definition.

use super::{Geometry, indices};
use crate::error::Result;
use crate::tensor::Tensor;

/// Gradients with respect to `x`, the weight and, where there is one, the bias, for the gradient `gy` of the result; all
/// f64. Every product of the definition hands its share to both of its factors.
pub(super) fn gradients(g: &Geometry, inputs: &[&Tensor], gy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (x, w, gy) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?, gy.data::<f64>()?);
    let (mut dx, mut dw, mut db) = (vec![0.0; g.x_len()], vec![0.0; g.w_len()], vec![0.0; g.co]);
    let (cig, cog) = g.per_group();
    for ((n, oy, ox, o), &gy) in indices([g.n, g.ho, g.wo, g.co]).zip(gy) {
        db[o] += gy;
        for (r, s, c, _) in indices([g.kh, g.kw, cig, 1]) {
            if let (Some(iy), Some(ix)) = (g.input_index(0, oy, r), g.input_index(1, ox, s)) {
                let at = ((n * g.h + iy) * g.w + ix) * g.ci + o / cog * cig + c;
                let tap = ((o * g.kh + r) * g.kw + s) * cig + c;
                dx[at] += gy * w[tap];
                dw[tap] += gy * x[at];
            }
        }
    }
    let mut all =
        vec![Some(Tensor::from_vec(inputs[0].shape(), dx)?), Some(Tensor::from_vec(inputs[1].shape(), dw)?)];
    if inputs.len() > 2 {
        all.push(Some(Tensor::from_vec([g.co], db)?));
    }
    Ok(all)
}
