//! Batch normalisation: per channel over batch and pixels, `y = (x - m) r w + b` with `r = 1 / sqrt(var + eps)`, and
//! optionally a residual added to it, and a ReLU. In training `m` and `var` (biased) are those of the batch; in evaluation
//! they are given.
//!
//! Gradients, with `gz` the gradient before the ReLU and `xh = (x - m) r`: `gw = sum gz xh`, `gb = sum gz`, `gz` for the
//! residual, and `gx = r w (gz - mean gz - xh mean(gz xh))` in training, `gx = r w gz` in evaluation.
//! Ioffe, Szegedy, arXiv:1502.03167.

mod adjoint;
pub(super) mod cuda;

use super::*;
use crate::cpu::{for_each_chunk, math, rows};
use crate::error::Error;

/// Where the statistics come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchNormMode {
    /// From the batch.
    Train,
    /// From the inputs `running_mean` and `running_var`.
    Eval,
}

/// Normalises every channel.
///
/// Inputs: `x [.., C]`, `w [C]`, `b [C]`, in evaluation `running_mean [C]`, `running_var [C]` (without gradients), and
/// the residual, of the shape of `x`, if there is one. In training the forward pass also returns as `aux` the batch mean
/// `[C]` and the unbiased batch variance `[C]`, from which PyTorch updates the running statistics. Saves `x` and a few
/// numbers per channel; the ReLU's mask is computed again from them, or with a residual read from the result.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Where the statistics come from.
    pub mode: BatchNormMode,
    /// Added to the variance.
    pub eps: f32,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Whether the last input is added before the ReLU.
    pub residual: bool,
    /// Statistics that the convolution before has left: f32 `[n, C, 2]` on the device, mean and sum of squared deviations of
    /// every image and channel of `x [n, .., C]`. In training on a device `x` is then not read for them; elsewhere they are
    /// not looked at.
    pub stats: Option<Tensor>,
}

/// Per channel: the mean in two parts and `1 / sqrt(var + eps)`, as three rows of `C`.
fn stats(mean: impl Iterator<Item = f64>, var: impl Iterator<Item = f64>, eps: f32) -> Vec<f32> {
    let rows: Vec<_> = mean
        .zip(var)
        .map(|(mean, var)| {
            let (high, low) = rows::split(mean);
            (high, low, (1.0 / (var + f64::from(eps)).sqrt()) as f32)
        })
        .collect();
    let high = rows.iter().map(|r| r.0);
    high.chain(rows.iter().map(|r| r.1)).chain(rows.iter().map(|r| r.2)).collect()
}

/// `z = (x - high) * slope + offset`: slopes and offsets. Forward and backward pass both call it, so both see the same
/// `z` and agree on the ReLU's mask.
fn affine(stats: &[f32], w: &[f32], b: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let c = w.len();
    (0..c)
        .map(|j| {
            let slope = f64::from(stats[2 * c + j]) * f64::from(w[j]);
            (slope as f32, (f64::from(b[j]) - f64::from(stats[c + j]) * slope) as f32)
        })
        .unzip()
}

impl BatchNorm {
    /// No residual, and no statistics from elsewhere.
    pub fn new(mode: BatchNormMode, eps: f32, relu: bool) -> Self {
        BatchNorm { mode, eps, relu, residual: false, stats: None }
    }

    /// The residual, if there is one.
    fn residual_of<'t>(&self, inputs: &[&'t Tensor]) -> Option<&'t Tensor> {
        inputs.last().copied().filter(|_| self.residual)
    }

    /// Whether the ReLU's mask is read from the result.
    fn keeps_y(&self) -> bool {
        self.relu && self.residual
    }

    /// Batch mean and biased variance of every channel.
    fn batch_moments(x: &[f32], count: usize, c: usize) -> (Vec<f64>, Vec<f64>) {
        let sums = rows::column_moments(x, [1, count, c]);
        let (s, q) = sums.split_at(c);
        let n = count as f64;
        let mean: Vec<f64> = s.iter().map(|s| s / n).collect();
        // In f64 the difference of squares keeps the variance of any f32 input whose own rounding leaves one.
        let var = q.iter().zip(&mean).map(|(q, m)| (q / n - m * m).max(0.0)).collect();
        (mean, var)
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let (vectors, names) = match self.mode {
            BatchNormMode::Train => (3, "x, w, b"),
            BatchNormMode::Eval => (5, "x, w, b, running_mean, running_var"),
        };
        let wanted = vectors + usize::from(self.residual);
        if inputs.len() != wanted {
            let residual = if self.residual { ", residual" } else { "" };
            let what =
                format!("takes {wanted} inputs ({names}{residual}) in this mode, got {}", inputs.len());
            return Err(Error::shape("batch_norm", what));
        }
        let x = inputs[0];
        if x.len() < 2 || x.last() == 0 {
            return Err(Error::shape("batch_norm", format!("expects x [N, .., C], got {x}")));
        }
        if let Some(residual) = inputs.get(vectors).filter(|r| **r != x) {
            return Err(Error::shape("batch_norm", format!("the residual {residual} has to be like x {x}")));
        }
        if let Some(bad) = inputs[1..vectors].iter().find(|s| ***s != [x.last()]) {
            let c = x.last();
            return Err(Error::shape(
                "batch_norm",
                format!("x {x} needs {names} with [{c}] each, got {bad}"),
            ));
        }
        if self.mode == BatchNormMode::Train && x.rows() < 2 {
            return Err(Error::shape(
                "batch_norm",
                format!("x {x} has {} value per channel to train on", x.rows()),
            )
            .with_remedy("use a batch of at least 2"));
        }
        Ok(x)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (shape, x) = (inputs[0].shape(), inputs[0].f32s()?);
        let (w, b) = (inputs[1].f32s()?, inputs[2].f32s()?);
        let (count, c) = (shape.rows(), shape.last());
        let mut aux = Vec::new();
        let stats = match self.mode {
            BatchNormMode::Train => {
                let (mean, var) = Self::batch_moments(x, count, c);
                let unbiased = count as f64 / (count as f64 - 1.0);
                aux.push(Tensor::from_vec([c], mean.iter().map(|&m| m as f32).collect())?);
                aux.push(Tensor::from_vec([c], var.iter().map(|v| (v * unbiased) as f32).collect())?);
                stats(mean.into_iter(), var.into_iter(), self.eps)
            }
            BatchNormMode::Eval => {
                let wide =
                    |t: &Tensor| -> Result<Vec<f64>> { Ok(t.f32s()?.iter().map(|&v| v.into()).collect()) };
                stats(wide(inputs[3])?.into_iter(), wide(inputs[4])?.into_iter(), self.eps)
            }
        };
        let (slope, offset) = affine(&stats, w, b);
        let residual = self.residual_of(inputs).map(|r| r.f32s()).transpose()?;
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, c, |i, y| {
            let row = y.iter_mut().zip(&x[i * c..]).zip(&stats).zip(&slope).zip(&offset);
            if let Some(residual) = residual {
                for (((((y, &x), &high), &slope), &offset), &residual) in row.zip(&residual[i * c..]) {
                    let z = (x - high) * slope + offset + residual;
                    *y = if self.relu { math::relu(z) } else { z };
                }
            } else if self.relu {
                for ((((y, &x), &high), &slope), &offset) in row {
                    *y = math::relu((x - high) * slope + offset);
                }
            } else {
                for ((((y, &x), &high), &slope), &offset) in row {
                    *y = (x - high) * slope + offset;
                }
            }
        });
        let stats = Tensor::from_vec([3, c], stats)?;
        Ok(Forward { y: Tensor::from_vec(shape, y)?, extra: vec![stats], aux })
    }

    fn save(&self, inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        inputs[..3].iter().copied().chain(self.keeps_y().then_some(y)).cloned().collect()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let [x, w, b, y @ .., stats] = ctx.saved else {
            return Err(Error::shape("batch_norm", "the backward pass needs x, w, b and the statistics"));
        };
        let y = y.first().map(|y| y.f32s()).transpose()?;
        let (gy, x, w, b, stats) = (ctx.gy.f32s()?, x.f32s()?, w.f32s()?, b.f32s()?, stats.f32s()?);
        let (count, c) = (ctx.inputs[0].rows(), w.len());
        let (slope, offset) = affine(stats, w, b);
        // First pass: `gx` holds gz; its column sums, plain and times (x - high).
        let mut gx = vec![0.0; x.len()];
        let sums = rows::fill_and_sum_rows(&mut gx, [1, count, c], 2 * c, |_, range, gx, sums| {
            let (sa, sb) = sums.split_at_mut(c);
            let at = range.start * c..range.end * c;
            let rows = x[at.clone()].chunks_exact(c).zip(gy[at].chunks_exact(c));
            for (i, (gx, (x, gy))) in range.clone().zip(gx.chunks_exact_mut(c).zip(rows)) {
                gx.copy_from_slice(gy);
                if let Some(y) = y {
                    for (gz, &y) in gx.iter_mut().zip(&y[i * c..]) {
                        *gz = if y <= 0.0 { 0.0 } else { *gz };
                    }
                } else if self.relu {
                    let row = gx.iter_mut().zip(x).zip(stats).zip(&slope).zip(&offset);
                    for ((((gz, &x), &high), &slope), &offset) in row {
                        let z = (x - high) * slope + offset;
                        *gz = if z <= 0.0 { 0.0 } else { *gz };
                    }
                }
                let row = gx.iter().zip(x).zip(stats).zip(sa.iter_mut()).zip(sb.iter_mut());
                for ((((&gz, &x), &high), sa), sb) in row {
                    *sa += f64::from(gz);
                    *sb += f64::from(gz * (x - high));
                }
            }
        });
        let (low, r) = (|j: usize| f64::from(stats[c + j]), |j: usize| f64::from(stats[2 * c + j]));
        let residual = match y {
            _ if !self.residual || !ctx.needs[ctx.inputs.len() - 1] => None,
            Some(_) => Some(Tensor::from_vec(ctx.inputs[0], gx.clone())?),
            None => Some(ctx.gy.clone()),
        };
        // sum gz xh, per channel.
        let with_xh: Vec<f64> = (0..c).map(|j| r(j) * (sums[c + j] - low(j) * sums[j])).collect();

        let gx = if ctx.needs[0] {
            // gx = gz * own - (x - high) * tilt + offset
            let n = count as f64;
            let terms = |j: usize| {
                let own = r(j) * f64::from(w[j]);
                match self.mode {
                    BatchNormMode::Eval => (own as f32, (0.0, 0.0)),
                    BatchNormMode::Train => {
                        let tilt = own * r(j) * with_xh[j] / n;
                        (own as f32, (tilt as f32, (low(j) * tilt - own * sums[j] / n) as f32))
                    }
                }
            };
            let (own, (tilt, offset)): (Vec<f32>, (Vec<f32>, Vec<f32>)) = (0..c).map(terms).unzip();
            for_each_chunk(&mut gx, c, |i, g| {
                let row = g.iter_mut().zip(&x[i * c..]).zip(stats).zip(&own).zip(&tilt).zip(&offset);
                for (((((g, &x), &high), &own), &tilt), &offset) in row {
                    *g = *g * own - (x - high) * tilt + offset;
                }
            });
            Some(Tensor::from_vec(ctx.inputs[0], gx)?)
        } else {
            None
        };
        let vector = |v: &[f64]| Tensor::from_vec([c], v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        let mut grads = vec![
            gx,
            ctx.needs[1].then(|| vector(&with_xh)).transpose()?,
            ctx.needs[2].then(|| vector(&sums[..c])).transpose()?,
        ];
        grads.resize(ctx.inputs.len(), None);
        if residual.is_some() {
            *grads.last_mut().expect("one for every input") = residual;
        }
        Ok(grads)
    }

    fn has_kernel(&self) -> bool {
        true
    }

    /// x and the residual.
    fn is_operand(&self, input: usize) -> bool {
        let vectors = if self.mode == BatchNormMode::Train { 3 } else { 5 };
        input == 0 || input == vectors
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
        let shape = inputs[0].shape();
        let (count, c) = (shape.rows(), shape.last());
        let (w, b) = (inputs[1].data::<f64>()?, inputs[2].data::<f64>()?);
        let mut y = inputs[0].data::<f64>()?.to_vec();
        let residual = self.residual_of(inputs).map(|r| r.data::<f64>()).transpose()?;
        for j in 0..c {
            let (mean, var) = match self.mode {
                BatchNormMode::Train => {
                    let mean = y.iter().skip(j).step_by(c).sum::<f64>() / count as f64;
                    let square = |v: &f64| (v - mean).powi(2);
                    (mean, y.iter().skip(j).step_by(c).map(square).sum::<f64>() / count as f64)
                }
                BatchNormMode::Eval => (inputs[3].data::<f64>()?[j], inputs[4].data::<f64>()?[j]),
            };
            for (i, v) in y.iter_mut().enumerate().skip(j).step_by(c) {
                let z = (*v - mean) / (var + f64::from(self.eps)).sqrt() * w[j] + b[j];
                let z = z + residual.map_or(0.0, |r| r[i]);
                *v = if self.relu { z.max(0.0) } else { z };
            }
        }
        Tensor::from_vec(shape, y)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64 * if self.mode == BatchNormMode::Train { 6 } else { 3 }
    }
}

/// Both modes with and without the ReLU, odd sizes, two values per channel, a large mean.
pub fn cases() -> Vec<Case> {
    use BatchNormMode::{Eval, Train};
    let case = |label: &str, x: &[usize], mode: BatchNormMode, relu: bool, fill: Fill| {
        let x = Shape::from_slice(x).expect("a small shape");
        let c = [x.last()];
        let mut inputs = vec![
            Input::filled("x", x, fill),
            Input::filled("w", c, Fill::Normal(1.0, 0.3)),
            Input::normal("b", c),
        ];
        if mode == Eval {
            inputs.push(Input::normal("running_mean", c).fixed());
            inputs.push(Input::filled("running_var", c, Fill::Uniform(0.2, 2.0)).fixed());
        }
        Case::new(label, BatchNorm::new(mode, 1e-5, relu), inputs)
    };
    let with_residual = |label: &str, x: &[usize], mode: BatchNormMode, relu: bool| {
        let mut inputs = case(label, x, mode, relu, Fill::Normal(0.5, 2.0)).inputs;
        inputs.push(Input::normal("residual", inputs[0].shape));
        Case::new(label, BatchNorm { residual: true, ..BatchNorm::new(mode, 1e-5, relu) }, inputs)
    };
    let normal = Fill::Normal(0.5, 2.0);
    vec![
        // A large epsilon: with a small one the gradient of x is a difference that vanishes but for rounding.
        Case {
            op: Box::new(BatchNorm::new(Train, 0.5, false)),
            ..case("train, two values", &[2, 1, 1, 3], Train, false, Fill::Distinct)
        },
        case("train, odd", &[3, 5, 7, 11], Train, false, normal),
        case("train, one channel", &[1, 3, 5, 1], Train, false, normal),
        case("train, relu", &[2, 3, 5, 13], Train, true, normal),
        case("train, matrix", &[7, 5], Train, false, normal),
        case("train, large mean", &[2, 9, 7, 8], Train, false, Fill::Normal(1e3, 1.0)),
        case("train, several blocks", &[3, 19, 23, 32], Train, false, normal),
        case("eval, odd", &[2, 3, 5, 11], Eval, false, normal),
        case("eval, relu", &[1, 3, 5, 9], Eval, true, normal),
        case("eval, one value", &[1, 1, 1, 5], Eval, false, normal),
        with_residual("train, residual", &[2, 3, 5, 12], Train, true),
        with_residual("train, residual, odd", &[2, 4, 3, 7], Train, true),
        with_residual("train, residual, plain", &[2, 3, 3, 16], Train, false),
        with_residual("eval, residual", &[2, 3, 3, 16], Eval, true),
        with_residual("eval, residual, plain", &[1, 3, 5, 5], Eval, false),
        case("train, several runs of channels", &[2, 5, 3, 528], Train, true, normal),
        Case { bench: true, ..case("train stage", &[8, 64, 64, 64], Train, true, normal) },
        Case { bench: true, ..case("eval stage", &[8, 64, 64, 64], Eval, true, normal) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAIN: BatchNorm =
        BatchNorm { mode: BatchNormMode::Train, eps: 1e-5, relu: false, residual: false, stats: None };

    #[test]
    fn returns_mean_and_unbiased_variance() {
        let x = Tensor::from_vec([3, 2], vec![1.0f32, 1000.0, 2.0, 1000.5, 6.0, 1001.0]).unwrap();
        let (w, b) = (Tensor::full([2], 1.0), Tensor::zeros([2]));
        let aux = run(&TRAIN, &[&x, &w, &b]).unwrap().aux;
        assert_eq!(aux[0].f32s().unwrap(), &[3.0, 1000.5]);
        assert_eq!(aux[1].f32s().unwrap(), &[7.0, 0.25]);
    }

    /// One pixel far from the rest must not cost the variance its digits, wherever it lies.
    #[test]
    fn an_outlier_in_the_first_row_does_no_harm() {
        let n = 5000;
        let mut v: Vec<f32> = (0..n).map(|i| 1000.0 + (i % 7) as f32).collect();
        v[0] = 0.0;
        let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let var = v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let (x, one) = (Tensor::from_vec([n, 1], v).unwrap(), Tensor::full([1], 1.0));
        let aux = run(&TRAIN, &[&x, &one, &one]).unwrap().aux;
        assert!((f64::from(aux[1].item().unwrap()) - var).abs() <= 1e-6 * var);
    }

    #[test]
    fn one_value_per_channel_cannot_train() {
        let w = Tensor::zeros([3]);
        let e = run(&TRAIN, &[&Tensor::zeros([1, 1, 1, 3]), &w, &w]).err().unwrap();
        assert!(e.is_shape() && e.remedy() == Some("use a batch of at least 2"), "{e}");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (x, w) = (Tensor::zeros([2, 1, 1, 3]), Tensor::zeros([3]));
        assert!(run(&TRAIN, &[&x, &w, &w, &w, &w]).err().unwrap().is_shape());
        assert!(run(&TRAIN, &[&x, &w, &Tensor::zeros([2])]).err().unwrap().is_shape());
        assert!(run(&TRAIN, &[&w, &w, &w]).err().unwrap().is_shape());
        let eval = BatchNorm { mode: BatchNormMode::Eval, ..TRAIN };
        assert!(run(&eval, &[&x, &w, &w]).err().unwrap().is_shape());
    }
}
