//! Weighted sum of numbers: how losses are put together.
//!
//! ```text
//! y    = sum over i of w_i x_i
//! gx_i = w_i gy
//! ```

use super::*;
use crate::error::Error;

/// Weighted sum: any number of inputs of one element each `->` scalar.
#[derive(Clone, Debug)]
pub struct WeightedSum {
    /// The weights, one for each input.
    pub weights: Vec<f32>,
}

impl WeightedSum {
    /// The mean of `n` numbers.
    pub fn mean(n: usize) -> Self {
        WeightedSum { weights: vec![(1.0 / n.max(1) as f64) as f32; n] }
    }
}

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        if inputs.is_empty() || inputs.len() != self.weights.len() {
            return Err(Error::shape(
                self.name(),
                format!(
                    "{} weights for {} numbers: there must be one each",
                    self.weights.len(),
                    inputs.len()
                ),
            ));
        }
        match inputs.iter().position(|s| s.elems() != 1) {
            Some(i) => Err(Error::shape(self.name(), format!("input {i} is {}, not one number", inputs[i]))),
            None => Ok(Shape::SCALAR),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let mut sum = 0.0f64;
        for (t, &w) in inputs.iter().zip(&self.weights) {
            sum += f64::from(w) * f64::from(t.item()?);
        }
        Ok(Tensor::scalar(sum as f32).into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gy = ctx.gy.item()?;
        let grad = |((&shape, &need), &w): ((&Shape, &bool), &f32)| need.then(|| Tensor::full(shape, w * gy));
        Ok(ctx.inputs.iter().zip(ctx.needs).zip(&self.weights).map(grad).collect())
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let mut sum = 0.0;
        for (t, &w) in inputs.iter().zip(&self.weights) {
            sum += f64::from(w) * t.data::<f64>()?[0];
        }
        Tensor::from_vec(Shape::SCALAR, vec![sum])
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        2 * inputs.len() as u64
    }
}

/// One number, several, the mean, and numbers of rank 1.
pub fn cases() -> Vec<Case> {
    let case = |label, op: WeightedSum, shape: Shape| {
        let inputs = (0..op.weights.len()).map(|_| Input::normal("x", shape)).collect();
        Case::new(label, op, inputs)
    };
    vec![
        case("one", WeightedSum { weights: vec![-2.5] }, Shape::SCALAR),
        case("mse and attention", WeightedSum { weights: vec![1.0, 10.0] }, Shape::SCALAR),
        case("with a zero", WeightedSum { weights: vec![1.0, 0.0, 0.3] }, [1].into()),
        case("mean of levels", WeightedSum::mean(4), Shape::SCALAR),
        Case::bench(
            "mean of levels",
            WeightedSum::mean(4),
            (0..4).map(|_| Input::normal("x", [1])).collect(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_uses_are_errors() {
        let s = Shape::SCALAR;
        assert!(WeightedSum { weights: vec![1.0] }.output_shape(&[s, s]).unwrap_err().is_shape());
        assert!(WeightedSum { weights: vec![] }.output_shape(&[]).unwrap_err().is_shape());
        assert!(WeightedSum { weights: vec![1.0] }.output_shape(&[[2].into()]).unwrap_err().is_shape());
    }
}
