//! Initial values of parameters.

use crate::base::{DType, Philox, Shape};
use crate::tensor::Tensor;

/// How a parameter starts. Fans are PyTorch's: fan_in = in/groups * kh * kw, fan_out = out * kh * kw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All the same value.
    Const(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// Normal with mean 0 and this standard deviation, redrawn outside two absolute units (timm's `trunc_normal_`,
    /// whose bounds are -2 and 2 in absolute terms).
    TruncNormal(f32),
    /// Uniform in plus or minus this bound.
    Uniform(f32),
    /// Kaiming normal in mode fan_out with ReLU gain: standard deviation sqrt(2 / fan_out).
    KaimingNormalFanOut,
    /// PyTorch's default of convolutions and linear layers: uniform in plus or minus 1 / sqrt(fan_in).
    TorchDefault,
    /// PyTorch's default of their biases: uniform in plus or minus 1 / sqrt(fan_in) of the weight.
    TorchBias {
        /// fan_in of the weight the bias belongs to.
        fan_in: usize,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Init = Init::Const(0.0);
    /// All ones.
    pub const ONES: Init = Init::Const(1.0);

    /// The values of a parameter of file shape `shape` (`[out, in/groups, kh, kw]` for convolutions), in that order.
    pub fn make(self, shape: Shape, dtype: DType, rng: Philox) -> Tensor {
        let n = shape.elems();
        let inner: usize = shape.iter().skip(1).product();
        let receptive: usize = shape.iter().skip(2).product();
        let normal = |sd: f32| {
            let mut v = vec![0.0; n];
            rng.fill_normal(&mut v);
            v.iter_mut().for_each(|x| *x *= sd);
            v
        };
        let uniform = |bound: f32| {
            let mut v = vec![0.0; n];
            rng.fill_uniform(&mut v);
            v.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * bound);
            v
        };
        let values = match self {
            Init::Const(c) => vec![c; n],
            Init::Normal(sd) => normal(sd),
            Init::TruncNormal(sd) => {
                let mut s = rng.sequence();
                let mut draw = || loop {
                    let x = s.normal() * sd;
                    if x.abs() <= 2.0 {
                        return x;
                    }
                };
                (0..n).map(|_| draw()).collect()
            }
            Init::Uniform(bound) => uniform(bound),
            Init::KaimingNormalFanOut => {
                normal((2.0 / (shape.first().copied().unwrap_or(1) * receptive).max(1) as f32).sqrt())
            }
            Init::TorchDefault => uniform(1.0 / (inner.max(1) as f32).sqrt()),
            Init::TorchBias { fan_in } => uniform(1.0 / (fan_in.max(1) as f32).sqrt()),
        };
        Tensor::from_vec(shape, values)
            .and_then(|t| t.to_dtype(dtype))
            .expect("as many values as the shape has elements")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let sd = |i: Init| {
            let t = i.make([64, 16, 3, 3].into(), DType::F32, Philox::new(5));
            let v = t.f32s().unwrap();
            (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt()
        };
        let close = |a: f32, b: f32| assert!((a / b - 1.0).abs() < 0.05, "{a} {b}");
        close(sd(Init::KaimingNormalFanOut), (2.0f32 / (64.0 * 9.0)).sqrt());
        close(sd(Init::TorchDefault), 1.0 / (16.0f32 * 9.0).sqrt() / 3f32.sqrt());
        close(sd(Init::TruncNormal(0.02)), 0.02);
        close(sd(Init::Const(3.0)), 3.0);
    }
}
