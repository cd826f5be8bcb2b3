//! Mean squared error against a whitened teacher feature: the feature regression loss.
//!
//! ```text
//! y  = mean over n, h, w, c of (s - W(t))^2
//! gs = gy * 2 (s - W(t)) / (N H W C)          the teacher gets no gradient
//! W(t) = (t - mean) / sqrt(variance + eps)    LayerNorm without affine, biased variance
//! ```
//! Mean and variance are those of a sample (over H, W, C) or of a pixel (over C). DreamTeacher (Li et al., ICCV 2023),
//! equation 1, where W is "a whitening operator" implemented as LayerNorm; the axes are not said.
//!
//! Fused: one pass over the teacher for the statistics, in f64, and one over both for the loss; the whitened feature
//! never exists in memory.

use super::attention_transfer::AtDistance;
use super::feature_loss::cuda::{self, Kernels, Loss, Pair};
use super::support::{BLOCK, dims, expect_inputs, images, sum, sum2};
use super::*;
use crate::cpu;
use crate::error::Error;
use serde::{Deserialize, Serialize};

/// What the teacher feature is whitened over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whiten {
    /// Over height, width and channels of each sample.
    #[default]
    Sample,
    /// Over the channels of each pixel.
    Channel,
    /// Not at all.
    None,
}

/// Whitened mean squared error: `student [N, H, W, C], teacher [N, H, W, C] -> scalar`.
#[derive(Clone, Debug)]
pub struct WhitenMse {
    /// What the teacher is whitened over.
    pub whiten: Whiten,
    /// Added to the variance.
    pub eps: f32,
}

impl Default for WhitenMse {
    fn default() -> Self {
        WhitenMse { whiten: Whiten::Sample, eps: 1e-5 }
    }
}

impl Whiten {
    /// Number of elements that share a mean and a variance.
    fn group(self, shape: Shape) -> usize {
        match self {
            Whiten::Sample => shape.elems() / shape[0],
            Whiten::Channel => shape[3],
            Whiten::None => shape.elems(),
        }
    }

    /// Mean and `1 / sqrt(variance + eps)` of every group; mean 0 and factor 1 for [`Whiten::None`].
    fn statistics(self, t: &[f32], shape: Shape, eps: f32) -> Vec<f64> {
        if self == Whiten::None {
            return vec![0.0, 1.0];
        }
        let group = self.group(shape);
        let finish = |x0: f64, sum: f64, squares: f64| {
            let mean = sum / group as f64;
            // The sums are about the group's first element, so a large mean does not swallow the variance.
            let variance = (squares / group as f64 - mean * mean).max(0.0);
            [x0 + mean, 1.0 / (variance + f64::from(eps)).sqrt()]
        };
        let sums = |x0: f64, x: &[f32]| (sum(x, |v| v - x0), sum(x, |v| (v - x0) * (v - x0)));
        if group <= BLOCK {
            let per_task = (BLOCK / group).max(1) * group;
            let parts = cpu::map_ordered(t.len().div_ceil(per_task), |task| {
                let t = &t[task * per_task..((task + 1) * per_task).min(t.len())];
                let one = |x: &[f32]| {
                    let x0 = f64::from(x[0]);
                    let (s, q) = sums(x0, x);
                    finish(x0, s, q)
                };
                t.chunks_exact(group).flat_map(one).collect::<Vec<f64>>()
            });
            return parts.concat();
        }
        let blocks = group.div_ceil(BLOCK);
        let parts = cpu::map_ordered(t.len() / group * blocks, |task| {
            let x = &t[task / blocks * group..][..group];
            let from = task % blocks * BLOCK;
            sums(f64::from(x[0]), &x[from..(from + BLOCK).min(group)])
        });
        let groups = parts.chunks_exact(blocks).zip(t.chunks_exact(group));
        let total = |(parts, x): (&[(f64, f64)], &[f32])| {
            let (s, q) = parts.iter().fold((0.0, 0.0), |(s, q), p| (s + p.0, q + p.1));
            finish(f64::from(x[0]), s, q)
        };
        groups.flat_map(total).collect()
    }

    fn check(self, op: &str, eps: f32) -> Result<()> {
        if self == Whiten::None || (eps >= 0.0 && eps.is_finite()) {
            return Ok(());
        }
        Err(Error::usage(format!("eps must be a number of at least 0, got {eps}")).with_op(op))
    }
}

/// Calls `f(range, mean, factor)` for the pieces of `range` that lie in one group each.
fn for_each_group(
    range: std::ops::Range<usize>,
    group: usize,
    stats: &[f64],
    mut f: impl FnMut(std::ops::Range<usize>, f64, f64),
) {
    let mut at = range.start;
    while at < range.end {
        let g = at / group;
        let end = ((g + 1) * group).min(range.end);
        f(at..end, stats[2 * g], stats[2 * g + 1]);
        at = end;
    }
}

/// The whitened feature `W(teacher)` itself, `[N, H, W, C]`, for pictures and tests; [`WhitenMse`] does not need it.
///
/// # Errors
/// `teacher` is not a non-empty f32 image batch on the CPU, or `eps` is negative.
pub fn whiten(teacher: &Tensor, whiten: Whiten, eps: f32) -> Result<Tensor> {
    let (op, shape) = ("whiten_mse", teacher.shape());
    images(op, shape)?;
    whiten.check(op, eps)?;
    let t = teacher.f32s()?;
    let (group, stats) = (whiten.group(shape), whiten.statistics(t, shape, eps));
    let mut y = vec![0.0f32; t.len()];
    cpu::for_each_chunk(&mut y, BLOCK, |i, y| {
        let start = i * BLOCK;
        for_each_group(start..start + y.len(), group, &stats, |r, mean, factor| {
            let t = &t[r.clone()];
            let y = &mut y[r.start - start..r.end - start];
            y.iter_mut().zip(t).for_each(|(y, &t)| *y = ((f64::from(t) - mean) * factor) as f32);
        });
    });
    Tensor::from_vec(shape, y)
}

impl WhitenMse {
    /// `s - W(t)` by its definition, in f64.
    fn differences(&self, inputs: &[&Tensor]) -> Result<Vec<f64>> {
        let (s, t) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?);
        let [n, h, w, c] = dims(inputs[1].shape());
        let group = match self.whiten {
            Whiten::Sample => h * w * c,
            Whiten::Channel => c,
            Whiten::None => n * h * w * c,
        };
        let mut all = Vec::with_capacity(s.len());
        for (s, t) in s.chunks(group).zip(t.chunks(group)) {
            let (mut mean, mut factor) = (0.0, 1.0);
            if self.whiten != Whiten::None {
                mean = t.iter().sum::<f64>() / group as f64;
                let variance = t.iter().map(|t| (t - mean) * (t - mean)).sum::<f64>() / group as f64;
                factor = 1.0 / (variance + f64::from(self.eps)).sqrt();
            }
            all.extend(s.iter().zip(t).map(|(s, t)| s - (t - mean) * factor));
        }
        Ok(all)
    }

    fn loss(&self) -> Loss {
        Loss {
            kernels: &KERNELS,
            whiten: self.whiten,
            eps: self.eps,
            mse_weight: 1.0,
            at_weight: 0.0,
            p: 2.0,
            distance: AtDistance::L2,
        }
    }
}

const KERNELS: Kernels = Kernels {
    op: "whiten_mse",
    source: "whiten_mse.cu",
    fwd: "whiten_mse_fwd",
    samples: "whiten_mse_samples",
    total: "whiten_mse_total",
    bwd: "whiten_mse_bwd",
    moments: true,
    energy: false,
};

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    KERNELS.variants()
}

impl Op for WhitenMse {
    fn name(&self) -> &'static str {
        "whiten_mse"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(self.name(), inputs, &["student", "teacher"])?;
        images(self.name(), inputs[0])?;
        self.whiten.check(self.name(), self.eps)?;
        if inputs[0] != inputs[1] {
            return Err(Error::shape(
                self.name(),
                format!("the student is {} but the teacher is {}", inputs[0], inputs[1]),
            )
            .with_remedy(
                "project the student to the teacher's channels and pair levels of the same spatial size",
            ));
        }
        Ok(Shape::SCALAR)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (s, t, shape) = (inputs[0].f32s()?, inputs[1].f32s()?, inputs[1].shape());
        let (group, stats) = (self.whiten.group(shape), self.whiten.statistics(t, shape, self.eps));
        let total = cpu::sum_ordered(s.len(), |range| {
            let mut part = 0.0;
            for_each_group(range, group, &stats, |r, mean, factor| {
                part += sum2(&s[r.clone()], &t[r], |s, t| {
                    let d = s - (t - mean) * factor;
                    d * d
                });
            });
            part
        });
        let stats = Tensor::from_vec([stats.len() / 2, 2], stats)?;
        Ok(Forward {
            y: Tensor::scalar((total / s.len() as f64) as f32),
            extra: vec![stats],
            aux: Vec::new(),
        })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let (s, t, stats) = (ctx.saved[0].f32s()?, ctx.saved[1].f32s()?, ctx.saved[2].data::<f64>()?);
        let group = self.whiten.group(ctx.inputs[1]);
        let scale = 2.0 * f64::from(ctx.gy.item()?) / s.len() as f64;
        let mut gs = vec![0.0f32; s.len()];
        cpu::for_each_chunk(&mut gs, BLOCK, |i, gs| {
            let start = i * BLOCK;
            for_each_group(start..start + gs.len(), group, stats, |r, mean, factor| {
                let gs = &mut gs[r.start - start..r.end - start];
                for ((g, &s), &t) in gs.iter_mut().zip(&s[r.clone()]).zip(&t[r]) {
                    *g = (scale * (f64::from(s) - (f64::from(t) - mean) * factor)) as f32;
                }
            });
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gs)?), None])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let out = cuda::forward(gpu, &self.loss(), &inputs[..1], &inputs[1..])?;
        Ok(Forward { y: out.y, extra: vec![out.whitening], aux: Vec::new() })
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let pair = Pair { student: &ctx.saved[0], teacher: Some(&ctx.saved[1]), wanted: ctx.needs[0] };
        let mut grads = cuda::backward(gpu, &self.loss(), &[pair], Some(&ctx.saved[2]), None, ctx.gy)?;
        grads.push(None);
        Ok(grads)
    }

    fn is_operand(&self, _input: usize) -> bool {
        true
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let d = self.differences(inputs)?;
        let total: f64 = d.iter().map(|d| d * d).sum();
        Tensor::from_vec(Shape::SCALAR, vec![total / d.len() as f64])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (gy, mut gs) = (gy.data::<f64>()?[0], self.differences(inputs)?);
        let scale = 2.0 * gy / gs.len() as f64;
        gs.iter_mut().for_each(|g| *g *= scale);
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gs)?), None]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let per_element = if self.whiten == Whiten::None { 3 } else { 9 };
        inputs[0].elems() as u64 * per_element
    }
}

/// All whitenings on corners, teachers with a large mean, groups larger than a task, and a realistic level.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for whiten in [Whiten::Sample, Whiten::Channel, Whiten::None] {
        let case = |label: &str, shape: [usize; 4], fill| {
            Case::new(
                format!("{label}, {whiten:?}"),
                WhitenMse { whiten, eps: 1e-5 },
                vec![Input::normal("student", shape), Input::filled("teacher", shape, fill).fixed()],
            )
        };
        cases.push(case("one element", [1, 1, 1, 1], Fill::Normal(0.0, 1.0)));
        cases.push(case("one channel", [3, 2, 3, 1], Fill::Normal(0.5, 2.0)));
        cases.push(case("odd", [2, 3, 5, 7], Fill::Normal(-1.0, 3.0)));
        cases.push(case("large mean", [2, 4, 3, 9], Fill::Normal(1e3, 1.0)));
        cases.push(case("whole chunks", [2, 4, 3, 16], Fill::Normal(0.5, 2.0)));
        cases.push(case("several tasks", [2, 31, 29, 21], Fill::Normal(10.0, 1.0)));
        cases.push(Case::bench(
            format!("level 3, {whiten:?}"),
            WhitenMse { whiten, eps: 1e-5 },
            vec![
                Input::normal("student", [8, 32, 32, 512]),
                Input::normal("teacher", [8, 32, 32, 512]).fixed(),
            ],
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn whitened_features_have_mean_0_and_variance_1() {
        let mut v = vec![0.0f32; 2 * 31 * 37 * 19];
        crate::base::Philox::new(3).fill_normal(&mut v);
        v.iter_mut().for_each(|x| *x += 1e3);
        let t = Tensor::from_vec([2, 31, 37, 19], v).unwrap();
        for mode in [Whiten::Sample, Whiten::Channel] {
            let y = whiten(&t, mode, 0.0).unwrap();
            for g in y.f32s().unwrap().chunks(mode.group(t.shape())) {
                let n = g.len() as f64;
                let mean = g.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let variance = g.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                assert!(mean.abs() <= 1e-6 && (variance - 1.0).abs() <= 1e-5, "{mean} {variance}");
            }
        }
        assert_eq!(whiten(&t, Whiten::None, 0.0).unwrap().f32s().unwrap(), t.f32s().unwrap());
    }

    #[test]
    fn a_constant_teacher_whitens_to_zero() {
        let y = whiten(&Tensor::full([1, 2, 2, 3], 7.0), Whiten::Sample, 1e-5).unwrap();
        assert!(y.f32s().unwrap().iter().all(|&v| v == 0.0));
    }

    #[test]
    fn the_teacher_gets_no_gradient() {
        let x = Tensor::full([1, 1, 2, 2], 1.0);
        let (_, g) = testing::both(&WhitenMse::default(), &[&x, &x], &[true, true], None);
        assert!(g[0].is_some() && g[1].is_none());
    }

    #[test]
    fn wrong_uses_are_errors() {
        let op = WhitenMse::default();
        let x = Shape::from([1, 2, 2, 3]);
        assert!(op.output_shape(&[x, [1, 2, 2, 4].into()]).unwrap_err().to_string().contains("teacher"));
        assert!(op.output_shape(&[x]).is_err());
        assert!(op.output_shape(&[[0, 2, 2, 3].into(), [0, 2, 2, 3].into()]).is_err());
        let op = WhitenMse { eps: f32::NAN, ..op };
        assert!(op.output_shape(&[x, x]).unwrap_err().is_usage());
    }

    #[test]
    fn names_in_recipes() {
        assert_eq!(serde_json::to_string(&Whiten::Sample).unwrap(), "\"sample\"");
        assert_eq!(serde_json::from_str::<Whiten>("\"channel\"").unwrap(), Whiten::Channel);
        assert_eq!(serde_json::from_str::<Whiten>("\"none\"").unwrap(), Whiten::None);
    }

    #[test]
    fn whiten_mse_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
