//! What a case ought to give, in f64.

use super::Limit;
use crate::base::{DType, Philox, Shape};
use crate::error::{Error, Result};
use crate::ops::Case;
use crate::tensor::Tensor;

/// Step of the central differences, in f64.
const STEP: f64 = 1e-4;
/// Elements of each input at which the gradient is differentiated one by one.
const PROBES: usize = 24;

/// A case with its inputs, its result and its gradients by the definition.
pub(super) struct Truth<'c> {
    case: &'c Case,
    seed: u64,
    /// The inputs in f64; labels as they are.
    wide: Vec<Tensor>,
    y: Tensor,
    /// A gradient of the result, in the element type of the check.
    gy: Tensor,
    /// By the definition, if the op has them.
    gradients: Option<Vec<Option<Tensor>>>,
}

impl<'c> Truth<'c> {
    /// Computes it for inputs of any float type, on the CPU; the gradient of the result is of `dtype`.
    pub fn new(case: &'c Case, inputs: &[Tensor], dtype: DType, seed: u64) -> Result<Truth<'c>> {
        let widen = |t: &Tensor| if t.dtype().is_float() { t.to_dtype(DType::F64) } else { Ok(t.clone()) };
        let wide = inputs.iter().map(widen).collect::<Result<Vec<Tensor>>>()?;
        let refs: Vec<&Tensor> = wide.iter().collect();
        let y = case.op.reference(&refs)?;
        let gy = upstream(y.shape(), dtype, seed)?;
        let gradients = if case.inputs.iter().any(|i| i.grad) {
            case.op.reference_gradients(&refs, &gy.to_dtype(DType::F64)?)?
        } else {
            None
        };
        Ok(Truth { case, seed, wide, y, gy, gradients })
    }

    /// A normal random gradient of the result.
    pub fn gy(&self) -> &Tensor {
        &self.gy
    }

    /// Whether the op has gradients by its definition.
    pub fn has_gradients(&self) -> bool {
        self.gradients.is_some()
    }

    fn fail(&self, what: String) -> Error {
        Error::numeric(self.case.op.name(), format!("case `{}`: {what}", self.case.label))
    }

    /// Compares a result on the CPU; gives the largest error.
    pub fn forward(&self, y: &Tensor, limit: Limit) -> Result<f64> {
        self.elements("the result", y, &self.y, limit)
    }

    /// Compares the gradient of input `i` with the definition's, element by element; 0 if the op has none.
    pub fn gradient(&self, i: usize, g: Option<&Tensor>, limit: Limit) -> Result<f64> {
        let Some(all) = &self.gradients else { return Ok(0.0) };
        let name = self.case.inputs[i].name;
        let want = all.get(i).and_then(Option::as_ref);
        let want = want.ok_or_else(|| self.fail(format!("the definition has no gradient for `{name}`")))?;
        self.elements(&format!("the gradient of `{name}`"), self.present(i, g)?, want, limit)
    }

    fn present<'t>(&self, i: usize, g: Option<&'t Tensor>) -> Result<&'t Tensor> {
        g.ok_or_else(|| self.fail(format!("no gradient for `{}`", self.case.inputs[i].name)))
    }

    fn elements(&self, what: &str, got: &Tensor, want: &Tensor, limit: Limit) -> Result<f64> {
        if got.shape() != want.shape() {
            return Err(self.fail(format!(
                "{what} has shape {}, the reference {}",
                got.shape(),
                want.shape()
            )));
        }
        let (got, want) = (got.to_dtype(DType::F64)?, want.data::<f64>()?);
        compare(got.data::<f64>()?, want, limit).map_err(|e| self.fail(format!("{what}: {e}")))
    }

    /// Compares the gradient of input `i` with central differences of the reference: at some elements, spread over the
    /// tensor, and along one random direction through all of them.
    pub fn slopes(&self, i: usize, g: Option<&Tensor>, limit: Limit) -> Result<f64> {
        let (g, name) = (self.present(i, g)?, self.case.inputs[i].name);
        if g.shape() != self.wide[i].shape() || !g.to_dtype(DType::F32)?.all_finite()? {
            return Err(self.fail(format!("the gradient of `{name}` is {g:?}, or not finite")));
        }
        let g = g.to_dtype(DType::F64)?;
        let g = g.data::<f64>()?;
        let gy = self.gy.to_dtype(DType::F64)?;
        let loss = |inputs: &[Tensor]| -> Result<f64> {
            let [inputs, held]: [Vec<&Tensor>; 2] = [inputs.iter().collect(), self.wide.iter().collect()];
            let y = self.case.op.reference_near(&inputs, &held)?;
            Ok(y.data::<f64>()?.iter().zip(gy.data::<f64>()?).map(|(y, g)| y * g).sum())
        };
        let slope = |shift: &dyn Fn(&mut [f64], f64)| -> Result<f64> {
            let mut moved = self.wide.clone();
            shift(moved[i].data_mut::<f64>()?, STEP);
            let up = loss(&moved)?;
            moved[i] = self.wide[i].clone();
            shift(moved[i].data_mut::<f64>()?, -STEP);
            Ok((up - loss(&moved)?) / (2.0 * STEP))
        };
        let scale = g.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let mut worst = 0.0f64;
        let mut compare = |got: f64, want: f64, rounding: f64, what: String| -> Result<()> {
            let size = scale.max(want.abs()).max(1e-3);
            let error = (got - want).abs();
            worst = worst.max(error / size);
            if error <= limit.of_max * size + rounding {
                return Ok(());
            }
            Err(self
                .fail(format!("gradient of `{name}` {what}: {got:.6e}, central differences say {want:.6e}")))
        };
        let n = g.len();
        let mut at: Vec<usize> = (0..n.min(PROBES)).map(|j| j * n / n.min(PROBES)).collect();
        at.dedup();
        for j in at {
            let want = slope(&|x, h| x[j] += h)?;
            compare(g[j], want, limit.of_value * want.abs(), format!("at element {j}"))?;
        }
        let mut direction = vec![0.0f32; n];
        Philox::new(self.seed).fold(i as u64).fold_str("direction").fill_normal(&mut direction);
        let norm = (n as f64).sqrt();
        let parts = || g.iter().zip(&direction).map(|(&g, &d)| g * f64::from(d) / norm);
        let want =
            slope(&|x, h| x.iter_mut().zip(&direction).for_each(|(x, &d)| *x += h * f64::from(d) / norm))?;
        // The elements are rounded independently of one another: the errors add like random numbers.
        let rounding = 2.0 * limit.of_value * parts().map(|p| p * p).sum::<f64>().sqrt();
        compare(parts().sum(), want, rounding, "along a random direction".into())?;
        Ok(worst)
    }
}

/// A normal random gradient of a result, rounded to `dtype`.
pub(super) fn upstream(shape: Shape, dtype: DType, seed: u64) -> Result<Tensor> {
    let mut gy = vec![0.0f32; shape.elems()];
    Philox::new(seed).fold_str("gy").fill_normal(&mut gy);
    Tensor::from_vec(shape, gy)?.to_dtype(dtype)
}

/// The largest error relative to the largest reference magnitude.
///
/// # Errors
/// A sentence about the first element that is further off than the limit allows or not finite; also where the lengths
/// differ or there is nothing to compare.
pub fn compare(got: &[f64], want: &[f64], limit: Limit) -> std::result::Result<f64, String> {
    if got.len() != want.len() || got.is_empty() {
        return Err(format!("{} elements to compare with {}", got.len(), want.len()));
    }
    let scale = want.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    let mut worst = 0.0f64;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs();
        // A NaN is no error within the limit.
        if error.is_nan() || error > limit.of_max * scale + limit.of_value * w.abs() {
            return Err(format!(
                "element {i} is {g:.7e}, the reference says {w:.7e}: {:.2e} of the largest magnitude {scale:.2e} (limit \
                 {:.0e}, and {:.1e} of the value)",
                error / scale,
                limit.of_max,
                limit.of_value
            ));
        }
        worst = worst.max(error / scale);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_no_number_are_no_match() {
        let limit = Limit { of_max: 1e-3, of_value: 0.0 };
        assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.001], limit), Ok(compare(&[2.0], &[2.001], limit).unwrap()));
        for (got, want) in [
            (&[][..], &[][..]),
            (&[1.0], &[1.0, 2.0]),
            (&[f64::NAN], &[1.0]),
            (&[1.0], &[f64::NAN]),
            (&[f64::INFINITY], &[f64::INFINITY]),
            (&[1.0, 2.0], &[1.0, 2.01]),
        ] {
            assert!(compare(got, want, limit).is_err(), "{got:?} {want:?}");
        }
    }

    #[test]
    fn what_is_stored_in_sixteen_bits_may_lose_a_share_of_its_value() {
        let limit = Limit::new(1e-5, DType::Bf16);
        assert_eq!(limit.of_value, 1.0 / 256.0);
        let rounded = |v: f32| f64::from(half::bf16::from_f32(v).to_f32());
        let want = [100.7f32, 0.013, -3.3];
        assert!(compare(&want.map(rounded), &want.map(f64::from), limit).is_ok());
        // A small value that is wrong by more than its own rounding is seen beside a large one.
        assert!(compare(&[rounded(100.7), 0.013 + 0.002, -3.3], &[100.7, 0.013, -3.3], limit).is_err());
    }
}
