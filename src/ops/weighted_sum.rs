//! Weighted sum of numbers: how losses are put together.
//!
//! ```text
//! y    = sum over i of w_i x_i
//! gx_i = w_i gy
//! ```

use super::kernel::Call;
use super::*;
use crate::base::DType;
use crate::error::Error;
use crate::gpu::Grid;
use bytemuck::{Pod, Zeroable};

/// Weighted sum: any number of inputs of one element each `->` scalar.
#[derive(Clone, Debug)]
pub struct WeightedSum {
    /// The weights, one for each input.
    pub weights: Vec<f32>,
}

/// Numbers of one launch.
const MOST: usize = 16;

/// `WeightedSumParams` of `kernels/weighted_sum.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    number: [u64; MOST],
    weight: [f32; MOST],
    whole: u64,
    count: i32,
    pad: i32,
}

fn fwd() -> Call {
    Call::new("weighted_sum.cu", "weighted_sum_fwd")
}

fn bwd() -> Call {
    Call::new("weighted_sum.cu", "weighted_sum_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    [fwd(), bwd()].map(|call| call.variant::<Params>()).into()
}

/// One launch over numbers (addresses, 0 for none) with their weights.
fn launch(gpu: &Gpu, call: &Call, numbers: &[(u64, f32)], whole: u64) -> Result<()> {
    let mut p = Params { whole, count: numbers.len() as i32, ..Params::zeroed() };
    for (i, &(number, weight)) in numbers.iter().enumerate() {
        (p.number[i], p.weight[i]) = (number, weight);
    }
    call.launch(gpu, Grid { grid: [1; 3], block: 32, shared_bytes: 0 }, &p)
}

fn check_dtypes(tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|t| t.dtype() != DType::F32) {
        Some(t) => Err(Error::dtype("weighted_sum", format!("losses are f32, got {t:?}"))),
        None => Ok(()),
    }
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

    fn has_kernel(&self) -> bool {
        true
    }

    fn is_operand(&self, _input: usize) -> bool {
        false
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        check_dtypes(inputs)?;
        let pointers = inputs.iter().map(|t| t.cuda_ptr()).collect::<Result<Vec<u64>>>()?;
        let numbers: Vec<(u64, f32)> = pointers.into_iter().zip(self.weights.iter().copied()).collect();
        let sum = |numbers: &[(u64, f32)]| -> Result<Tensor> {
            let y = Tensor::empty_gpu(Shape::SCALAR, DType::F32, gpu, "weighted_sum")?;
            launch(gpu, &fwd(), numbers, y.cuda_ptr()?)?;
            Ok(y)
        };
        let (first, rest) = numbers.split_at(numbers.len().min(MOST));
        let mut y = sum(first)?;
        // What one launch does not take is added to the sum so far.
        for some in rest.chunks(MOST - 1) {
            let all: Vec<(u64, f32)> =
                [(y.cuda_ptr()?, 1.0)].into_iter().chain(some.iter().copied()).collect();
            y = sum(&all)?;
        }
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        check_dtypes(&[ctx.gy])?;
        let make = |(&shape, &need): (&Shape, &bool)| {
            need.then(|| Tensor::empty_gpu(shape, DType::F32, gpu, "gradient of weighted_sum")).transpose()
        };
        let grads = ctx.inputs.iter().zip(ctx.needs).map(make).collect::<Result<Vec<_>>>()?;
        let pointer = |g: &Option<Tensor>| g.as_ref().map_or(Ok(0), Tensor::cuda_ptr);
        let pointers = grads.iter().map(pointer).collect::<Result<Vec<u64>>>()?;
        let numbers: Vec<(u64, f32)> = pointers.into_iter().zip(self.weights.iter().copied()).collect();
        for some in numbers.chunks(MOST) {
            launch(gpu, &bwd(), some, ctx.gy.cuda_ptr()?)?;
        }
        Ok(grads)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let mut sum = 0.0;
        for (t, &w) in inputs.iter().zip(&self.weights) {
            sum += f64::from(w) * t.data::<f64>()?[0];
        }
        Tensor::from_vec(Shape::SCALAR, vec![sum])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let gy = gy.data::<f64>()?[0];
        let grad = |(t, &w): (&&Tensor, &f32)| Tensor::from_vec(t.shape(), vec![f64::from(w) * gy]).map(Some);
        Ok(Some(inputs.iter().zip(&self.weights).map(grad).collect::<Result<_>>()?))
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
        case("more than one launch takes", WeightedSum::mean(40), Shape::SCALAR),
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
