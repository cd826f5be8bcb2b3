//! Linear layer on the last axis.
//!
//! ```text
//! y  = x w^T + b          x [.., in], w [out, in], b [out]
//! dx = gy w
//! dw = gy^T x             summed over all rows
//! db = column sums of gy
//! ```

use super::conv2d::{product_weight_gradient, product_with_bias};
use super::{Backward, Case, Forward, Input, Op};
use crate::base::Shape;
use crate::cpu::{MatMut, MatRef, column_sums, gemm};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Inputs: `x [.., in]`, `w [out, in]`, optionally `b [out]`. Result: `[.., out]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linear {}

fn sizes(inputs: &[Shape]) -> Result<(usize, usize, usize)> {
    let (x, w, b) = match inputs {
        [x, w] => (x, w, None),
        [x, w, b] => (x, w, Some(b)),
        _ => {
            return Err(Error::shape(
                "linear",
                format!("takes x, weight and bias, got {} inputs", inputs.len()),
            ));
        }
    };
    let (out, features) = w.matrix("linear")?;
    if x.is_empty() || x.last() != features {
        return Err(Error::shape("linear", format!("{} features of {x} do not fit weight {w}", x.last())));
    }
    if b.is_some_and(|b| **b != [out]) {
        return Err(Error::shape("linear", format!("bias must be [{out}]")));
    }
    Ok((x.rows(), features, out))
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let (_, _, out) = sizes(inputs)?;
        let mut dims = inputs[0].to_vec();
        *dims.last_mut().expect("checked by sizes") = out;
        Shape::from_slice(&dims)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let (m, ci, co) = sizes(&shapes)?;
        let bias = inputs.get(2).map(|b| b.f32s()).transpose()?;
        let mut y = vec![0.0; m * co];
        product_with_bias(&mut y, inputs[0].f32s()?, inputs[1].f32s()?, bias, m, ci, co);
        Ok(Tensor::from_vec(self.output_shape(&shapes)?, y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (m, ci, co) = sizes(b.inputs)?;
        let (gy, x, w) = (b.gy.f32s()?, b.saved[0].f32s()?, b.saved[1].f32s()?);
        let dx = b.needs[0].then(|| {
            let mut dx = vec![0.0; m * ci];
            let c = MatMut::row_major(&mut dx, m, ci);
            gemm(c, MatRef::row_major(gy, m, co), MatRef::row_major(w, co, ci), false, true);
            Tensor::from_vec(b.inputs[0], dx)
        });
        let dw = b.needs[1].then(|| {
            let mut dw = vec![0.0; co * ci];
            product_weight_gradient(&mut dw, x, gy, m, ci, co);
            Tensor::from_vec(b.inputs[1], dw)
        });
        let mut out = vec![dx.transpose()?, dw.transpose()?];
        if let Some(&need) = b.needs.get(2) {
            out.push(need.then(|| Tensor::from_vec([co], column_sums(gy, co))).transpose()?);
        }
        Ok(out)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let (m, ci, co) = sizes(&shapes)?;
        let (x, w) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?);
        let b = inputs.get(2).map(|b| b.data::<f64>()).transpose()?;
        let y = (0..m * co).map(|i| {
            let (row, o) = (i / co, i % co);
            let dot: f64 = (0..ci).map(|c| x[row * ci + c] * w[o * ci + c]).sum();
            dot + b.map_or(0.0, |b| b[o])
        });
        Tensor::from_vec(self.output_shape(&shapes)?, y.collect())
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        sizes(inputs).map_or(0, |(m, ci, co)| 2 * (m * ci * co) as u64)
    }
}

/// Few and many rows, with and without bias; the benchmark is an attention block's qkv projection.
pub fn cases() -> Vec<Case> {
    let make = |label: &str, x: &[usize], out: usize, bias: bool, bench: bool| {
        let x = Shape::from_slice(x).expect("small");
        let mut inputs = vec![Input::normal("x", x), Input::normal("w", [out, x.last()])];
        if bias {
            inputs.push(Input::normal("b", [out]));
        }
        if bench { Case::bench(label, Linear {}, inputs) } else { Case::new(label, Linear {}, inputs) }
    };
    vec![
        make("one row", &[1, 5], 3, true, false),
        make("one feature", &[7, 1], 1, true, false),
        make("odd", &[3, 33], 65, true, false),
        make("image", &[2, 3, 5, 17], 11, false, false),
        make("many rows", &[700, 9], 6, true, false),
        make("wide", &[40, 130], 300, true, false),
        make("bench 1024 x 512 -> 1536", &[1024, 512], 1536, true, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_are_named() {
        let s = |d: &[usize]| Shape::from_slice(d).unwrap();
        assert!(Linear {}.output_shape(&[s(&[2, 3]), s(&[4, 5])]).unwrap_err().is_shape());
        assert!(Linear {}.output_shape(&[s(&[2, 3]), s(&[4, 3]), s(&[5])]).unwrap_err().is_shape());
        assert_eq!(&*Linear {}.output_shape(&[s(&[2, 7, 3]), s(&[4, 3]), s(&[4])]).unwrap(), &[2, 7, 4]);
    }
}
