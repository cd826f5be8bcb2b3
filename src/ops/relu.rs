//! Rectified linear unit: `y = max(x, 0)`, gradient `gx = gy` where `y > 0`, else 0. NaN stays NaN.

use super::elementwise::{DTYPES, MapParams, map};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::*;
use crate::cpu::{math, rows};
use crate::error::Error;

/// `y = max(x, 0)`. Input: `x` of any shape.
#[derive(Clone, Debug, Default)]
pub struct Relu {}

fn fwd() -> Call {
    Call::new("relu.cu", "relu_fwd")
}

fn bwd() -> Call {
    Call::new("relu.cu", "relu_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let of = |dtype| [fwd(), bwd()].map(|call| call.dtype(dtype).variant::<MapParams>());
    DTYPES.into_iter().flat_map(of).collect()
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x] => Ok(*x),
            _ => Err(Error::shape("relu", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        Ok(Tensor::from_vec(inputs[0].shape(), rows::map(inputs[0].f32s()?, math::relu))?.into())
    }

    fn save(&self, _inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        vec![y.clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gate = |gy: f32, y: f32| if y <= 0.0 { 0.0 } else { gy };
        let gx = rows::map2(ctx.gy.f32s()?, ctx.saved[0].f32s()?, gate);
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        operand_dtype("relu", inputs)?;
        Ok(map(gpu, fwd(), inputs, "relu")?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let inputs = [ctx.gy, &ctx.saved[0]];
        operand_dtype("relu", &inputs)?;
        Ok(vec![Some(map(gpu, bwd(), &inputs, "gradient of relu")?)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        Tensor::from_vec(inputs[0].shape(), x.iter().map(|&x| x.max(0.0)).collect())
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let x = inputs[0].data::<f64>()?;
        let gx = gy.data::<f64>()?.iter().zip(x).map(|(g, &x)| if x > 0.0 { *g } else { 0.0 }).collect();
        Ok(Some(vec![Some(Tensor::from_vec(gy.shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64
    }
}

/// Distinct values keep the central differences away from the kink.
pub fn cases() -> Vec<Case> {
    let x = |shape: &[usize]| {
        let shape = Shape::from_slice(shape).expect("a small shape");
        vec![Input::filled("x", shape, Fill::Distinct)]
    };
    vec![
        Case::new("one element", Relu {}, x(&[1])),
        Case::new("odd", Relu {}, x(&[3, 5, 7, 11])),
        Case::new("matrix", Relu {}, x(&[2, 33])),
        Case::new("more than a block", Relu {}, x(&[3, 4099])),
        Case::bench("activation", Relu {}, vec![Input::normal("x", [8, 64, 64, 64])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_nan_and_refuses_two_inputs() {
        let x = Tensor::from_vec([3], vec![-1.0, f32::NAN, 2.0]).unwrap();
        let y = run(&Relu {}, &[&x]).unwrap().y;
        let y = y.f32s().unwrap();
        assert!(y[0] == 0.0 && y[1].is_nan() && y[2] == 2.0);
        assert!(run(&Relu {}, &[&x, &x]).err().unwrap().is_shape());
    }
}
