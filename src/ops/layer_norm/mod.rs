//! Layer normalisation over the last axis: `y = (x - m) r w + b` with the mean `m` and `r = 1 / sqrt(var + eps)` of
//! each row (biased variance). Gradients, with `xh = (x - m) r` and `g = gy w`: `gx = r (g - mean g - xh mean(g xh))`,
//! `gw = sum gy xh`, `gb = sum gy`. Ba, Kiros, Hinton, arXiv:1607.06450.

mod adjoint;
pub(super) mod cuda;

use super::*;
use crate::cpu::{for_each_chunk, rows};
use crate::error::Error;

/// Normalises every row. Inputs: `x [.., C]`, `w [C]`, `b [C]`. On NHWC images this is the channel LayerNorm of
/// ConvNeXt. The row statistics are computed again in the backward pass.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

/// Mean in two parts, and `1 / sqrt(var + eps)`, of a row.
fn stats(x: &[f32], eps: f32) -> (f32, f32, f32) {
    let (mean, var) = rows::moments(x);
    let (high, low) = rows::split(mean);
    (high, low, (1.0 / (var + f64::from(eps)).sqrt()) as f32)
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let [x, w, b] = inputs else {
            return Err(Error::shape(
                "layer_norm",
                format!("takes three inputs (x, w, b), got {}", inputs.len()),
            ));
        };
        if x.is_empty() || x.last() == 0 {
            return Err(Error::shape("layer_norm", format!("needs at least one channel, got {x}")));
        }
        if **w != [x.last()] || **b != [x.last()] {
            let c = x.last();
            return Err(Error::shape("layer_norm", format!("x {x} needs w and b [{c}], got {w} and {b}")));
        }
        Ok(*x)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (x, w, b) = (inputs[0].f32s()?, inputs[1].f32s()?, inputs[2].f32s()?);
        let c = w.len();
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, c, |i, y| {
            let x = &x[i * c..(i + 1) * c];
            let (high, low, r) = stats(x, self.eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = ((x - high) - low) * r * w + b;
            }
        });
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, x, w) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?, ctx.saved[1].f32s()?);
        let (count, c) = (ctx.inputs[0].rows(), w.len());
        let mut gx = vec![0.0; x.len()];
        let sums = rows::fill_and_sum_rows(&mut gx, [1, count, c], 2 * c, |_, range, gx, sums| {
            let (sw, sb) = sums.split_at_mut(c);
            let at = range.start * c..range.end * c;
            let rows = x[at.clone()].chunks_exact(c).zip(gy[at].chunks_exact(c));
            for (gx, (x, gy)) in gx.chunks_exact_mut(c).zip(rows) {
                let (high, low, r) = stats(x, self.eps);
                let xh = |x: f32| ((x - high) - low) * r;
                // `gx` first holds g.
                for ((((g, &x), &gy), sw), sb) in
                    gx.iter_mut().zip(x).zip(gy).zip(sw.iter_mut()).zip(sb.iter_mut())
                {
                    *g = gy;
                    *sw += f64::from(gy * xh(x));
                    *sb += f64::from(gy);
                }
                gx.iter_mut().zip(w).for_each(|(g, &w)| *g *= w);
                let n = c as f64;
                let mean = (rows::dot_by(gx, gx, |g, _| f64::from(g)) / n) as f32;
                let slope = (rows::dot_by(gx, x, |g, x| f64::from(g * xh(x))) / n) as f32;
                for (gx, &x) in gx.iter_mut().zip(x) {
                    *gx = r * (*gx - mean - xh(x) * slope);
                }
            }
        });
        let vector = |v: &[f64]| Tensor::from_vec([c], v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        Ok(vec![
            ctx.needs[0].then(|| Tensor::from_vec(ctx.inputs[0], gx)).transpose()?,
            ctx.needs[1].then(|| vector(&sums[..c])).transpose()?,
            ctx.needs[2].then(|| vector(&sums[c..])).transpose()?,
        ])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        self.forward_cuda(gpu, inputs)
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.backward_cuda(gpu, ctx)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        adjoint::gradients(self, inputs, gy).map(Some)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (w, b) = (inputs[1].data::<f64>()?, inputs[2].data::<f64>()?);
        let n = w.len() as f64;
        let mut y = inputs[0].data::<f64>()?.to_vec();
        for row in y.chunks_mut(w.len()) {
            let mean = row.iter().sum::<f64>() / n;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            for (j, v) in row.iter_mut().enumerate() {
                *v = (*v - mean) / (var + f64::from(self.eps)).sqrt() * w[j] + b[j];
            }
        }
        Tensor::from_vec(inputs[0].shape(), y)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        8 * inputs[0].elems() as u64
    }
}

/// One channel, odd sizes, a large mean, several blocks of rows.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], fill: Fill| {
        let shape = Shape::from_slice(shape).expect("a small shape");
        let c = shape.last();
        let inputs = vec![
            Input::filled("x", shape, fill),
            Input::filled("w", [c], Fill::Normal(1.0, 0.5)),
            Input::normal("b", [c]),
        ];
        Case::new(label, LayerNorm { eps: 1e-6 }, inputs)
    };
    let normal = Fill::Normal(0.5, 2.0);
    vec![
        case("one channel", &[3, 1], normal),
        case("a vector", &[13], normal),
        case("odd", &[2, 3, 5, 67], normal),
        case("tokens", &[2, 7, 24], normal),
        case("a chunk of a thread", &[7, 16], normal),
        case("large mean", &[5, 96], Fill::Normal(1e3, 1.0)),
        case("several blocks", &[700, 30], normal),
        case("several blocks, whole chunks", &[150, 40], normal),
        case("a warp and some", &[3, 7, 400], normal),
        case("a row of several warps", &[5, 2048], normal),
        case("a row of many odd channels", &[3, 1030], normal),
        Case { bench: true, ..case("stage 1", &[8, 56, 56, 96], normal) },
        Case { bench: true, ..case("stage 4", &[8, 7, 7, 768], normal) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_other_shapes() {
        let op = LayerNorm { eps: 1e-6 };
        let (x, w) = (Tensor::zeros([2, 3]), Tensor::zeros([3]));
        for bad in [Tensor::zeros([2]), Tensor::zeros([1, 3])] {
            assert!(run(&op, &[&x, &bad, &w]).err().unwrap().is_shape());
            assert!(run(&op, &[&x, &w, &bad]).err().unwrap().is_shape());
        }
        assert!(run(&op, &[&x, &w]).err().unwrap().is_shape());
        assert!(run(&op, &[&Tensor::zeros([2, 0]), &Tensor::zeros([0]), &Tensor::zeros([0])]).is_err());
        let empty = run(&op, &[&Tensor::zeros([0, 3]), &w, &w]).unwrap();
        assert_eq!(empty.y.elems(), 0);
    }
}
