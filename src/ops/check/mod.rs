//! Compares an op with its f64 reference: the forward pass element by element, the gradients with the gradients of the
//! definition in f64 where an op has them, and with central differences of the reference. Used by the tests and by
//! `dtk check`.
//!
//! [`check`] looks at the CPU's code, [`check_on`] at a device's kernels.

mod device;
mod truth;

pub use device::check_on;
pub use truth::compare;

use super::{Backward, Case, run};
use crate::base::{DType, Shape};
use crate::error::Result;
use crate::tensor::Tensor;
use truth::Truth;

/// Largest errors seen in a check, relative to the largest reference magnitude.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deviation {
    /// Of the forward pass.
    pub forward: f64,
    /// Of the gradients.
    pub gradient: f64,
}

impl Deviation {
    /// The larger errors of two checks.
    pub fn max(self, other: Deviation) -> Deviation {
        Deviation { forward: self.forward.max(other.forward), gradient: self.gradient.max(other.gradient) }
    }
}

/// Tolerance of the forward pass: f32 rounding through sums of a few thousand terms.
pub const FORWARD_TOLERANCE: f64 = 2e-5;
/// Tolerance of the gradient: f32 rounding plus the truncation error of the central differences.
pub const GRADIENT_TOLERANCE: f64 = 2e-4;

/// How far a value may be off: a share of the tensor's largest magnitude, and a share of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Of the largest reference magnitude of the tensor: what sums in f32 lose.
    pub of_max: f64,
    /// Of the value: what storing the result loses. Twice the rounding error of the element type, so that a result is as
    /// good as twice the error of the exact value rounded once.
    pub of_value: f64,
}

impl Limit {
    /// For results stored as `dtype` whose sums lose `of_max`.
    pub fn new(of_max: f64, dtype: DType) -> Limit {
        let of_value = match dtype {
            DType::Bf16 => 2.0f64.powi(-8),
            DType::F16 => 2.0f64.powi(-10),
            _ => 0.0,
        };
        Limit { of_max, of_value }
    }
}

/// Runs a case on the CPU and compares it with the reference.
///
/// # Errors
/// The op fails, or a deviation is not within the tolerance (which a NaN never is).
pub fn check(case: &Case, seed: u64) -> Result<Deviation> {
    let op = &*case.op;
    let inputs = case.tensors(seed);
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let truth = Truth::new(case, &inputs, DType::F32, seed)?;
    let out = run(op, &refs)?;
    let forward = truth.forward(&out.y, Limit::new(FORWARD_TOLERANCE, DType::F32))?;
    if !case.inputs.iter().any(|i| i.grad) {
        return Ok(Deviation { forward, gradient: 0.0 });
    }
    let shapes: Vec<Shape> = refs.iter().map(|t| t.shape()).collect();
    let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
    let mut saved = op.save(&refs, &out.y);
    saved.extend(out.extra);
    let grads = op.backward(&Backward { gy: truth.gy(), saved: &saved, inputs: &shapes, needs: &needs })?;
    let mut gradient = 0.0f64;
    for i in (0..needs.len()).filter(|&i| needs[i]) {
        let limit = Limit::new(GRADIENT_TOLERANCE, DType::F32);
        gradient = gradient.max(truth.gradient(i, grads[i].as_ref(), limit)?);
        gradient = gradient.max(truth.slopes(i, grads[i].as_ref(), limit)?);
    }
    Ok(Deviation { forward, gradient })
}
