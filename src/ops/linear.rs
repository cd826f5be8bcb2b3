//! Linear layer on the last axis.
//!
//! ```text
//! y  = x w^T + b          x [.., in], w [out, in], b [out]
//! dx = gy w
//! dw = gy^T x             summed over all rows
//! db = column sums of gy
//! ```

use super::conv2d::{Geometry, bias_gradient, product_weight_gradient, product_with_bias};
use super::implicit_gemm::gather::{Finish, Gather, Segment};
use super::implicit_gemm::params::Axis;
use super::implicit_gemm::pixels::Pixels;
use super::implicit_gemm::{Family, Pass, operand_dtype};
use super::{Backward, Case, Forward, Input, Op};
use crate::base::Shape;
use crate::cpu::{MatMut, MatRef, column_sums, gemm};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
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

/// Rows are images of one pixel: `result = a * w^T` (or `a * w` for the input gradient) on a device.
fn product(gpu: &Gpu, pass: Pass, a: &Tensor, w: &Tensor, m: usize, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = operand_dtype("linear", &[a, w])?;
    let (out, features) = w.shape().matrix("linear")?;
    let (channels, columns) = if pass == Pass::Fwd { (features, out) } else { (out, features) };
    let axis =
        Axis { size: 1, kernel: 1, step: 1, pad: 0, dilation: 1, tap_step: 1, weight_step: 1, phases: 1 };
    let segment = Segment {
        x: a.cuda_ptr()?,
        w: w.cuda_ptr()?,
        axis: [axis; 2],
        channels,
        pixel: channels,
        w_row: features,
        w_tap: features,
        w_phase: 0,
    };
    let gather = Gather {
        family: Family::Linear,
        pass,
        dtype,
        segments: vec![segment],
        images: m,
        size: [1; 2],
        phases: [1; 2],
        columns,
        groups: 1,
        doubled: false,
        stats: false,
        finish: Finish { bias: bias.map_or(Ok(0), |b| b.cuda_ptr())?, ..Finish::default() },
    };
    Ok(gather.run(gpu)?.y)
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

    fn has_kernel(&self) -> bool {
        true
    }

    fn is_operand(&self, input: usize) -> bool {
        input < 2
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let (m, _, _) = sizes(&shapes)?;
        let y = product(gpu, Pass::Fwd, inputs[0], inputs[1], m, inputs.get(2).copied())?;
        Ok(y.reshape(self.output_shape(&shapes)?)?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (m, ci, co) = sizes(b.inputs)?;
        let (gy, x, w) = (b.gy, &b.saved[0], &b.saved[1]);
        let dx = || product(gpu, Pass::Dgrad, gy, w, m, None)?.reshape(b.inputs[0]);
        let dw = || {
            let pixels = Pixels {
                family: Family::Linear,
                dtype: operand_dtype("linear", &[x, gy])?,
                images: m,
                size: [1; 2],
                map: [1; 2],
                kernel: [1; 2],
                stride: [1; 2],
                pad: [0; 2],
                dilation: [1; 2],
                groups: 1,
                channels: ci,
                rows: co,
            };
            pixels.run(gpu, x, gy, b.inputs[1])
        };
        let mut out = vec![b.needs[0].then(dx).transpose()?, b.needs[1].then(dw).transpose()?];
        if let Some(&need) = b.needs.get(2) {
            out.push(need.then(|| bias_gradient(gpu, gy)).transpose()?);
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

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let (m, ci, co) = sizes(&shapes)?;
        let (x, w, gy) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?, gy.data::<f64>()?);
        let sum = |n: usize, term: &dyn Fn(usize) -> f64| (0..n).map(term).sum::<f64>();
        let dx = (0..m * ci).map(|i| sum(co, &|o| gy[i / ci * co + o] * w[o * ci + i % ci]));
        let dw = (0..co * ci).map(|i| sum(m, &|row| gy[row * co + i / ci] * x[row * ci + i % ci]));
        let mut all = vec![
            Some(Tensor::from_vec(shapes[0], dx.collect::<Vec<f64>>())?),
            Some(Tensor::from_vec(shapes[1], dw.collect::<Vec<f64>>())?),
        ];
        if inputs.len() > 2 {
            let db = (0..co).map(|o| sum(m, &|row| gy[row * co + o]));
            all.push(Some(Tensor::from_vec([co], db.collect::<Vec<f64>>())?));
        }
        Ok(Some(all))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        sizes(inputs).map_or(0, |(m, ci, co)| 2 * (m * ci * co) as u64)
    }

    fn convolution(&self, inputs: &[Shape]) -> Option<Geometry> {
        let (m, ci, co) = sizes(inputs).ok()?;
        let (n, h, w, _) = inputs[0].nhwc("linear").unwrap_or((m, 1, 1, ci));
        let (stride, pad, dilation) = ([1; 2], [0; 2], [1; 2]);
        Some(Geometry { n, h, w, ci, co, kh: 1, kw: 1, ho: h, wo: w, stride, pad, dilation, groups: 1 })
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
        make("copies of four elements", &[5, 12], 20, true, false),
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
