//! Softmax over the last axis: `y = exp(x - max x) / sum exp(x - max x)`; gradient `gx = y (gy - sum gy y)`.

use super::*;
use crate::cpu::{for_each_chunk, math, rows};
use crate::error::Error;

/// Softmax over the last axis. Input: `x` with at least one axis.
#[derive(Clone, Debug, Default)]
pub struct Softmax {}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x] if !x.is_empty() && x.last() > 0 => Ok(*x),
            [x] => {
                Err(Error::shape("softmax", format!("needs a last axis with at least one element, got {x}")))
            }
            _ => Err(Error::shape("softmax", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (x, width) = (inputs[0].f32s()?, inputs[0].shape().last());
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, width, |r, y| {
            let x = &x[r * width..(r + 1) * width];
            let max = rows::max(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = math::exp(x - max);
            }
            let scale = (1.0 / rows::dot_by(y, y, |v, _| f64::from(v))) as f32;
            y.iter_mut().for_each(|y| *y *= scale);
        });
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        vec![y.clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, y, width) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?, ctx.inputs[0].last());
        let mut gx = vec![0.0; y.len()];
        for_each_chunk(&mut gx, width, |r, gx| {
            let at = r * width..(r + 1) * width;
            let (gy, y) = (&gy[at.clone()], &y[at]);
            let dot = rows::dot_by(gy, y, |g, y| f64::from(g) * f64::from(y)) as f32;
            for ((gx, &gy), &y) in gx.iter_mut().zip(gy).zip(y) {
                *gx = y * (gy - dot);
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].data::<f64>()?.to_vec();
        for row in y.chunks_mut(inputs[0].shape().last()) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        Tensor::from_vec(inputs[0].shape(), y)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        4 * inputs[0].elems() as u64
    }
}

/// Narrow, odd, wide and saturated rows.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("one class", Softmax {}, vec![Input::normal("x", [3, 1])]),
        Case::new("a vector", Softmax {}, vec![Input::normal("x", [7])]),
        Case::new("odd", Softmax {}, vec![Input::normal("x", [2, 3, 5, 19])]),
        Case::new("large", Softmax {}, vec![Input::filled("x", [5, 64], Fill::Normal(300.0, 10.0))]),
        Case::bench("classes", Softmax {}, vec![Input::normal("x", [256, 1000])]),
        Case::bench("attention rows", Softmax {}, vec![Input::normal("x", [8, 1024, 1024])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_extremes() {
        let x = Tensor::from_vec([2, 3], vec![1e30, -1e30, 0.0, f32::NEG_INFINITY, 2.0, 2.0]).unwrap();
        let y = run(&Softmax {}, &[&x]).unwrap().y;
        assert_eq!(y.f32s().unwrap(), &[1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
    }

    #[test]
    fn nan_shows_in_its_row_only() {
        let x = Tensor::from_vec([2, 2], vec![f32::NAN, 0.0, 1.0, 1.0]).unwrap();
        let y = run(&Softmax {}, &[&x]).unwrap().y;
        let y = y.f32s().unwrap();
        assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 0.5);
    }

    #[test]
    fn refuses_empty_rows_and_scalars() {
        for x in [Tensor::zeros([2, 0]), Tensor::scalar(1.0)] {
            assert!(run(&Softmax {}, &[&x]).err().unwrap().is_shape());
        }
    }
}
