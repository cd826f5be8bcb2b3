//! SiLU, also called swish: `y = x s(x)` with the logistic function `s`; gradient `gx = gy s (1 + x (1 - s))`.
//! Elfwing, Uchibe, Doya, "Sigmoid-weighted linear units", Neural Networks 107, 2018.

use super::elementwise::{DTYPES, MapParams, map};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::*;
use crate::cpu::{math, rows};
use crate::error::Error;

/// `y = x * sigmoid(x)`. Input: `x` of any shape.
#[derive(Clone, Debug, Default)]
pub struct Silu {}

fn fwd() -> Call {
    Call::new("silu.cu", "silu_fwd")
}

fn bwd() -> Call {
    Call::new("silu.cu", "silu_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let of = |dtype| [fwd(), bwd()].map(|call| call.dtype(dtype).variant::<MapParams>());
    DTYPES.into_iter().flat_map(of).collect()
}

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x] => Ok(*x),
            _ => Err(Error::shape("silu", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let y = rows::map(inputs[0].f32s()?, |x| x * math::sigmoid(x));
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gx = rows::map2(ctx.gy.f32s()?, ctx.saved[0].f32s()?, |gy, x| {
            let s = math::sigmoid(x);
            gy * (s * (1.0 + x * (1.0 - s)))
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        operand_dtype("silu", inputs)?;
        Ok(map(gpu, fwd(), inputs, "silu")?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let inputs = [ctx.gy, &ctx.saved[0]];
        operand_dtype("silu", &inputs)?;
        Ok(vec![Some(map(gpu, bwd(), &inputs, "gradient of silu")?)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        Tensor::from_vec(inputs[0].shape(), x.iter().map(|&x| x / (1.0 + (-x).exp())).collect())
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let x = inputs[0].data::<f64>()?;
        let slope = |x: f64| {
            let s = 1.0 / (1.0 + (-x).exp());
            s + x * s * (1.0 - s)
        };
        let gx = gy.data::<f64>()?.iter().zip(x).map(|(g, &x)| g * slope(x)).collect();
        Ok(Some(vec![Some(Tensor::from_vec(gy.shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        4 * inputs[0].elems() as u64
    }
}

/// Values from the linear, the curved and the flat part.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("one element", Silu {}, vec![Input::normal("x", [1])]),
        Case::new("odd", Silu {}, vec![Input::normal("x", [3, 5, 7, 11])]),
        Case::new("wide", Silu {}, vec![Input::filled("x", [2, 33], Fill::Uniform(-40.0, 40.0))]),
        Case::bench("activation", Silu {}, vec![Input::normal("x", [8, 64, 64, 64])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_errors() {
        let x = Tensor::from_vec([3], vec![-1e4, 1e4, f32::NAN]).unwrap();
        let y = run(&Silu {}, &[&x]).unwrap().y;
        let y = y.f32s().unwrap();
        assert!(y[0] == 0.0 && y[1] == 1e4 && y[2].is_nan());
        assert!(run(&Silu {}, &[]).err().unwrap().is_shape());
    }
}
