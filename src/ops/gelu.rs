//! GELU in its exact form: `y = x P(x)` with the cumulative normal distribution `P(x) = (1 + erf(x / sqrt 2)) / 2`;
//! gradient `gx = gy (P(x) + x p(x))` with the normal density `p`. Hendrycks, Gimpel, arXiv:1606.08415.

use super::elementwise::{DTYPES, MapParams, map};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::*;
use crate::cpu::{math, rows};
use crate::error::Error;

/// `y = x * P(x)`, the exact (erf) form. Input: `x` of any shape.
#[derive(Clone, Debug, Default)]
pub struct Gelu {}

fn fwd() -> Call {
    Call::new("gelu.cu", "gelu_fwd")
}

fn bwd() -> Call {
    Call::new("gelu.cu", "gelu_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let of = |dtype| [fwd(), bwd()].map(|call| call.dtype(dtype).variant::<MapParams>());
    DTYPES.into_iter().flat_map(of).collect()
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x] => Ok(*x),
            _ => Err(Error::shape("gelu", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let y = rows::map(inputs[0].f32s()?, |x| x * math::normal(x).0);
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gx = rows::map2(ctx.gy.f32s()?, ctx.saved[0].f32s()?, |gy, x| {
            let (p, density) = math::normal(x);
            gy * (p + x * density)
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        operand_dtype("gelu", inputs)?;
        Ok(map(gpu, fwd(), inputs, "gelu")?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let inputs = [ctx.gy, &ctx.saved[0]];
        operand_dtype("gelu", &inputs)?;
        Ok(vec![Some(map(gpu, bwd(), &inputs, "gradient of gelu")?)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let gelu = |&x: &f64| 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2));
        Tensor::from_vec(inputs[0].shape(), x.iter().map(gelu).collect())
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let x = inputs[0].data::<f64>()?;
        let slope = |x: f64| {
            let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)) + x * density
        };
        let gx = gy.data::<f64>()?.iter().zip(x).map(|(g, &x)| g * slope(x)).collect();
        Ok(Some(vec![Some(Tensor::from_vec(gy.shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        20 * inputs[0].elems() as u64
    }
}

/// Values from the linear, the curved and the flat part.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("one element", Gelu {}, vec![Input::normal("x", [1])]),
        Case::new("odd", Gelu {}, vec![Input::normal("x", [3, 5, 7, 11])]),
        Case::new("wide", Gelu {}, vec![Input::filled("x", [2, 33], Fill::Uniform(-12.0, 12.0))]),
        Case::bench("mlp activation", Gelu {}, vec![Input::normal("x", [8, 56, 56, 384])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check's tolerance is relative to the largest value; here every value counts for itself.
    #[test]
    fn small_values_are_accurate_too() {
        let x: Vec<f32> = (-6000..6000).map(|i| i as f32 * 1e-3).collect();
        let t = Tensor::from_vec([x.len()], x.clone()).unwrap();
        let y = run(&Gelu {}, &[&t]).unwrap().y;
        for (&x, &y) in x.iter().zip(y.f32s().unwrap()) {
            let want = 0.5 * f64::from(x) * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
            assert!((f64::from(y) - want).abs() <= 2e-5 * want.abs(), "gelu({x}) = {y:e}, not {want:e}");
        }
        assert!(run(&Gelu {}, &[&t, &t]).err().unwrap().is_shape());
    }
}
