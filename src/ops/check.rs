//! Compares an op with its f64 reference: the forward pass element by element, the gradient with central differences
//! of the reference. Used by the tests and by `dtk check`.

use super::{Backward, Case, run};
use crate::base::{DType, Philox, Shape};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Largest errors seen in a check, relative to the largest reference magnitude.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deviation {
    /// Of the forward pass.
    pub forward: f64,
    /// Of the gradients.
    pub gradient: f64,
}

/// Tolerance of the forward pass: f32 rounding through sums of a few thousand terms.
pub const FORWARD_TOLERANCE: f64 = 2e-5;
/// Tolerance of the gradient: f32 rounding plus the truncation error of the central differences.
pub const GRADIENT_TOLERANCE: f64 = 2e-4;
/// Step of the central differences, in f64.
const STEP: f64 = 1e-4;
/// Elements of each input at which the gradient is differentiated one by one.
const PROBES: usize = 24;

/// Runs a case and compares it with the reference.
///
/// # Errors
/// The op fails, or a deviation is not within the tolerance (which a NaN never is).
pub fn check(case: &Case, seed: u64) -> Result<Deviation> {
    let op = &*case.op;
    let fail = |what: String| Error::numeric(op.name(), format!("case `{}`: {what}", case.label));
    let inputs = case.tensors(seed);
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let out = run(op, &refs)?;
    let wide: Vec<Tensor> = inputs
        .iter()
        .map(|t| if t.dtype() == DType::F32 { t.to_dtype(DType::F64) } else { Ok(t.clone()) })
        .collect::<Result<_>>()?;
    let want = op.reference(&wide.iter().collect::<Vec<_>>())?;
    if want.shape() != out.y.shape() {
        return Err(fail(format!("shape {} but the reference has {}", out.y.shape(), want.shape())));
    }
    let forward = relative_error(out.y.f32s()?, want.data::<f64>()?);
    // A NaN is no deviation within the tolerance.
    if forward.is_nan() || forward > FORWARD_TOLERANCE {
        return Err(fail(format!("forward error {forward:.2e} is above {FORWARD_TOLERANCE:.0e}")));
    }
    if !case.inputs.iter().any(|i| i.grad) {
        return Ok(Deviation { forward, gradient: 0.0 });
    }

    let mut gy = vec![0.0f32; want.elems()];
    Philox::new(seed).fold_str("gy").fill_normal(&mut gy);
    let gy = Tensor::from_vec(want.shape(), gy)?;
    let shapes: Vec<Shape> = refs.iter().map(|t| t.shape()).collect();
    let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
    let mut saved = op.save(&refs, &out.y);
    saved.extend(out.extra);
    let grads = op.backward(&Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs })?;

    let loss = |inputs: &[Tensor]| -> Result<f64> {
        let y = op.reference(&inputs.iter().collect::<Vec<_>>())?;
        Ok(y.data::<f64>()?.iter().zip(gy.f32s()?).map(|(y, g)| y * f64::from(*g)).sum())
    };
    let mut gradient = 0.0f64;
    for (i, g) in grads.iter().enumerate() {
        if !needs[i] {
            continue;
        }
        let name = case.inputs[i].name;
        let g = g.as_ref().ok_or_else(|| fail(format!("no gradient for `{name}`")))?;
        if g.shape() != shapes[i] || !g.all_finite()? {
            return Err(fail(format!("the gradient of `{name}` is {g:?}, or not finite")));
        }
        let g = g.f32s()?;
        let scale = g.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
        // Single elements, spread over the tensor, and one random direction through all of them.
        let n = g.len();
        let mut at: Vec<usize> = (0..n.min(PROBES)).map(|j| j * n / n.min(PROBES)).collect();
        at.dedup();
        let mut direction = vec![0.0f32; n];
        Philox::new(seed).fold(i as u64).fold_str("direction").fill_normal(&mut direction);
        let norm = (n as f64).sqrt();
        let slope = |shift: &dyn Fn(&mut [f64], f64)| -> Result<f64> {
            let mut moved = wide.clone();
            shift(moved[i].data_mut::<f64>()?, STEP);
            let up = loss(&moved)?;
            moved[i] = wide[i].clone();
            shift(moved[i].data_mut::<f64>()?, -STEP);
            Ok((up - loss(&moved)?) / (2.0 * STEP))
        };
        let mut compare = |got: f64, want: f64, what: String| -> Result<()> {
            let error = (got - want).abs() / scale.max(want.abs()).max(1e-3);
            gradient = gradient.max(error);
            if error <= GRADIENT_TOLERANCE {
                return Ok(());
            }
            Err(fail(format!("gradient of `{name}` {what}: {got:.6e}, central differences say {want:.6e}")))
        };
        for j in at {
            compare(f64::from(g[j]), slope(&|x, h| x[j] += h)?, format!("at element {j}"))?;
        }
        let along = g.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum::<f64>() / norm;
        let want =
            slope(&|x, h| x.iter_mut().zip(&direction).for_each(|(x, &d)| *x += h * f64::from(d) / norm))?;
        compare(along, want, "along a random direction".into())?;
    }
    Ok(Deviation { forward, gradient })
}

/// Largest absolute difference over the largest reference magnitude; NaN if any element is not finite, the lengths
/// differ, or there is nothing to compare.
pub fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    let comparable = got.len() == want.len() && !got.is_empty();
    if !comparable || got.iter().any(|v| !v.is_finite()) || want.iter().any(|v| !v.is_finite()) {
        return f64::NAN;
    }
    let scale = want.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    got.iter().zip(want).fold(0.0, |m: f64, (&g, &w)| m.max((f64::from(g) - w).abs())) / scale
}
