//! Dice losses of a segmentation: one minus the overlap of the predicted and the true regions.
//!
//! With `p = softmax(z)` over classes, `r = onehot(labels)`, and the sums `I = sum p r`, `P = sum p`, `R = sum r` of a
//! class over the pixels of a group:
//! ```text
//! plain:       loss = mean over groups and classes of 1 - (2 I + e) / (P + R + e),   e = 1e-5
//! generalized: loss = mean over groups of 1 - 2 (sum_l w_l I_l) / (sum_l w_l (P_l + R_l)),   w_l = 1 / R_l^2
//! ```
//! A group is the whole batch or one sample. Generalized: Sudre et al., "Generalised Dice overlap as a deep learning
//! loss function for highly unbalanced segmentations", 2017; a class that is absent from a group has weight 0, and a
//! group without any class has loss 0 (and counts in the mean). Ignored pixels take part in no sum, so a batch in
//! which every pixel is ignored has loss 0 and gradient 0. A label that is neither a class nor ignored is an error on the CPU;
//! kernels cannot refuse it: there it makes the loss and its pixel's gradient NaN.
//!
//! Gradient: with `a_l = dloss/dI_l` and `b_l = dloss/dP_l` the gradient of a pixel's `p_l` is `g_l = a_l r_l + b_l`, and
//! through the softmax `gz_l = gy p_l (g_l - sum_k p_k g_k)`.

mod cuda;

use super::support::{BLOCK, class_of, dims, expect_inputs, images};
use super::*;
use crate::cpu;
use crate::error::Error;

/// Keeps the ratio of a class that is absent and not predicted at 1.
const EPS: f64 = 1e-5;

/// Dice loss: `logits [N, H, W, K], labels i64 [N, H, W] -> scalar`.
#[derive(Clone, Debug)]
pub struct Dice {
    /// Weights classes by the inverse square of their size, in one ratio, instead of the mean of one ratio per class.
    pub generalized: bool,
    /// Sums over the pixels of each sample and takes the mean over samples, instead of sums over the whole batch.
    pub per_sample: bool,
    /// Label of pixels that take no part.
    pub ignore_index: Option<i64>,
}

/// Sums of one class over a group of pixels.
#[derive(Clone, Copy, Default)]
struct Sums {
    both: f64,
    predicted: f64,
    real: f64,
}

impl Dice {
    fn groups(&self, n: usize) -> usize {
        if self.per_sample { n } else { 1 }
    }

    /// Loss of one group of `groups`, and for every class its derivatives with respect to `I` and `P`.
    fn group_loss(&self, sums: &[Sums], groups: usize) -> (f64, Vec<[f64; 2]>) {
        if self.generalized {
            let weight = |s: &Sums| if s.real > 0.0 { 1.0 / (s.real * s.real) } else { 0.0 };
            let top: f64 = sums.iter().map(|s| weight(s) * s.both).sum();
            let bottom: f64 = sums.iter().map(|s| weight(s) * (s.predicted + s.real)).sum();
            if bottom == 0.0 {
                return (0.0, vec![[0.0; 2]; sums.len()]);
            }
            let share = 2.0 / groups as f64;
            let slopes = |s: &Sums| {
                let w = weight(s);
                [-share * w / bottom, share * w * top / (bottom * bottom)]
            };
            return ((1.0 - 2.0 * top / bottom) / groups as f64, sums.iter().map(slopes).collect());
        }
        let share = 1.0 / (groups * sums.len()) as f64;
        let mut loss = 0.0;
        let slopes = |s: &Sums| {
            let (top, bottom) = (2.0 * s.both + EPS, s.predicted + s.real + EPS);
            loss += share * (1.0 - top / bottom);
            [-2.0 * share / bottom, share * top / (bottom * bottom)]
        };
        let slopes = sums.iter().map(slopes).collect();
        (loss, slopes)
    }
}

/// Softmax of one row of logits.
fn softmax(z: &[f32], p: &mut [f32]) {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for (p, &z) in p.iter_mut().zip(z) {
        *p = (z - max).exp();
        sum += f64::from(*p);
    }
    let inverse = (1.0 / sum) as f32;
    p.iter_mut().for_each(|p| *p *= inverse);
}

/// `softmax(z)` by its definition, in f64.
fn probabilities(z: &Tensor) -> Result<Vec<f64>> {
    let pixel = |z: &[f64]| {
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect::<Vec<f64>>()
    };
    Ok(z.data::<f64>()?.chunks(z.shape().last()).flat_map(pixel).collect())
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    cuda::variants()
}

impl Dice {
    /// The sums `I`, `P` and `R` of every class over the pixels of a group.
    fn reference_sums(&self, p: &[f64], labels: &[i64], k: usize) -> [Vec<f64>; 3] {
        let (mut both, mut predicted, mut real) = (vec![0.0; k], vec![0.0; k], vec![0.0; k]);
        for (p, &label) in p.chunks(k).zip(labels).filter(|(_, l)| self.ignore_index != Some(**l)) {
            for class in 0..k {
                let r = if label == class as i64 { 1.0 } else { 0.0 };
                both[class] += p[class] * r;
                predicted[class] += p[class];
                real[class] += r;
            }
        }
        [both, predicted, real]
    }
}

impl Op for Dice {
    fn name(&self) -> &'static str {
        "dice"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(self.name(), inputs, &["logits", "labels"])?;
        let (n, h, w, _) = images(self.name(), inputs[0])?;
        if *inputs[1] != [n, h, w] {
            return Err(Error::shape(
                self.name(),
                format!("logits {} [N, H, W, K] need labels [{n}, {h}, {w}], got {}", inputs[0], inputs[1]),
            ));
        }
        Ok(Shape::SCALAR)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let [n, h, w, k] = dims(inputs[0].shape());
        let (z, labels) = (inputs[0].f32s()?, inputs[1].data::<i64>()?);
        let per_task = (BLOCK / k).max(1);
        let blocks = (h * w).div_ceil(per_task);
        let parts = cpu::map_ordered(n * blocks, |task| {
            let (from, end) = (task % blocks * per_task, h * w);
            let mut sums = vec![Sums::default(); k];
            let mut p = vec![0.0f32; k];
            for at in (from..(from + per_task).min(end)).map(|i| task / blocks * h * w + i) {
                let Some(y) = class_of(self.name(), labels[at], k, self.ignore_index)? else { continue };
                softmax(&z[at * k..][..k], &mut p);
                sums.iter_mut().zip(&p).for_each(|(s, &p)| s.predicted += f64::from(p));
                sums[y].both += f64::from(p[y]);
                sums[y].real += 1.0;
            }
            Ok(sums)
        });
        let groups = self.groups(n);
        let mut sums = vec![Sums::default(); groups * k];
        for (task, part) in parts.into_iter().enumerate() {
            let group = if self.per_sample { task / blocks } else { 0 };
            for (s, p) in sums[group * k..][..k].iter_mut().zip(part?) {
                s.both += p.both;
                s.predicted += p.predicted;
                s.real += p.real;
            }
        }
        let (mut loss, mut slopes) = (0.0, Vec::with_capacity(2 * groups * k));
        for sums in sums.chunks_exact(k) {
            let (l, s) = self.group_loss(sums, groups);
            loss += l;
            slopes.extend(s.into_iter().flatten());
        }
        let slopes = Tensor::from_vec([groups, k, 2], slopes)?;
        Ok(Forward { y: Tensor::scalar(loss as f32), extra: vec![slopes], aux: Vec::new() })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let [_, h, w, k] = dims(ctx.inputs[0]);
        let (z, labels) = (ctx.saved[0].f32s()?, ctx.saved[1].data::<i64>()?);
        let gy = f64::from(ctx.gy.item()?);
        let slopes: Vec<f64> = ctx.saved[2].data::<f64>()?.iter().map(|s| gy * s).collect();
        let mut gz = vec![0.0f32; z.len()];
        // A row of the image per task, for one buffer of probabilities each.
        cpu::for_each_chunk(&mut gz, w * k, |row, gz| {
            let group = if self.per_sample { row / h } else { 0 };
            let slopes = &slopes[group * 2 * k..][..2 * k];
            let mut p = vec![0.0f32; k];
            for (x, gz) in gz.chunks_exact_mut(k).enumerate() {
                let at = row * w + x;
                // The forward pass has checked the range of the labels.
                let Ok(Some(y)) = class_of(self.name(), labels[at], k, self.ignore_index) else { continue };
                softmax(&z[at * k..][..k], &mut p);
                let all: f64 = p.iter().zip(slopes.chunks_exact(2)).map(|(&p, s)| f64::from(p) * s[1]).sum();
                let mean = all + f64::from(p[y]) * slopes[2 * y];
                for ((gz, &p), s) in gz.iter_mut().zip(&p).zip(slopes.chunks_exact(2)) {
                    *gz = (f64::from(p) * (s[1] - mean)) as f32;
                }
                gz[y] = (f64::from(p[y]) * (slopes[2 * y] + slopes[2 * y + 1] - mean)) as f32;
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gz)?), None])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        cuda::forward(self, gpu, inputs[0], inputs[1])
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        Ok(vec![Some(cuda::backward(self, gpu, ctx)?), None])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [n, _, _, k] = dims(inputs[0].shape());
        let p = probabilities(inputs[0])?;
        let labels = inputs[1].data::<i64>()?;
        let groups = self.groups(n);
        let pixels = labels.len() / groups;
        let mut loss = 0.0;
        for (p, labels) in p.chunks(pixels * k).zip(labels.chunks(pixels)) {
            let [both, predicted, real] = self.reference_sums(p, labels, k);
            if self.generalized {
                let (mut top, mut bottom) = (0.0, 0.0);
                for class in (0..k).filter(|&class| real[class] > 0.0) {
                    top += both[class] / real[class].powi(2);
                    bottom += (predicted[class] + real[class]) / real[class].powi(2);
                }
                loss += if bottom > 0.0 { (1.0 - 2.0 * top / bottom) / groups as f64 } else { 0.0 };
            } else {
                for class in 0..k {
                    let ratio = (2.0 * both[class] + EPS) / (predicted[class] + real[class] + EPS);
                    loss += (1.0 - ratio) / (groups * k) as f64;
                }
            }
        }
        Tensor::from_vec(Shape::SCALAR, vec![loss])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let [n, _, _, k] = dims(inputs[0].shape());
        let (p, gy) = (probabilities(inputs[0])?, gy.data::<f64>()?[0]);
        let labels = inputs[1].data::<i64>()?;
        let groups = self.groups(n);
        let pixels = labels.len() / groups;
        let mut gz = Vec::with_capacity(p.len());
        for (p, labels) in p.chunks(pixels * k).zip(labels.chunks(pixels)) {
            let [both, predicted, real] = self.reference_sums(p, labels, k);
            let sums: Vec<Sums> =
                (0..k).map(|c| Sums { both: both[c], predicted: predicted[c], real: real[c] }).collect();
            let (_, slopes) = self.group_loss(&sums, groups);
            for (p, &label) in p.chunks(k).zip(labels) {
                let of = |c: usize| slopes[c][1] + if label == c as i64 { slopes[c][0] } else { 0.0 };
                let mean: f64 = p.iter().enumerate().map(|(c, p)| p * of(c)).sum();
                let ignored = self.ignore_index == Some(label);
                let one = |(c, p): (usize, &f64)| if ignored { 0.0 } else { gy * p * (of(c) - mean) };
                gz.extend(p.iter().enumerate().map(one));
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gz)?), None]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64 * 6
    }
}

/// All four forms on corners, with ignored pixels and absent classes, and a segmentation batch.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (generalized, per_sample) in [(false, false), (false, true), (true, false), (true, true)] {
        let form = format!(
            "{}{}",
            if generalized { "generalized" } else { "plain" },
            if per_sample { " per sample" } else { "" }
        );
        let mut case = |label: &str, [n, h, w, k]: [usize; 4], classes: u32, every: u32| {
            cases.push(Case::new(
                format!("{form}, {label}"),
                Dice { generalized, per_sample, ignore_index: (every > 0).then_some(255) },
                vec![
                    Input::normal("logits", [n, h, w, k]),
                    Input::labels("labels", [n, h, w], classes, every),
                ],
            ));
        };
        case("one pixel", [1, 1, 1, 2], 2, 0);
        case("one class", [2, 2, 3, 1], 1, 0);
        case("odd", [3, 5, 7, 5], 5, 0);
        case("absent class", [2, 3, 4, 4], 3, 0);
        case("ignored pixels", [2, 5, 3, 3], 3, 2);
        case("all ignored", [2, 3, 3, 3], 3, 1);
        case("whole chunks", [2, 9, 5, 24], 24, 5);
        case("many classes", [1, 3, 3, 1100], 7, 0);
        cases.push(Case::bench(
            format!("{form}, segmentation"),
            Dice { generalized, per_sample, ignore_index: Some(255) },
            vec![Input::normal("logits", [8, 128, 128, 19]), Input::labels("labels", [8, 128, 128], 19, 10)],
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    const FORMS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

    #[test]
    fn a_certain_and_right_prediction_has_loss_0() {
        let labels = Tensor::from_vec([2, 1, 2], vec![0i64, 1, 1, 1]).unwrap();
        let mut z = vec![-50.0f32; 12];
        for (at, y) in [0, 1, 1, 1].into_iter().enumerate() {
            z[at * 3 + y] = 50.0;
        }
        let z = Tensor::from_vec([2, 1, 2, 3], z).unwrap();
        for (generalized, per_sample) in FORMS {
            let op = Dice { generalized, per_sample, ignore_index: None };
            let (y, g) = testing::both(&op, &[&z, &labels], &[true, true], None);
            assert!(y.item().unwrap().abs() <= 1e-6, "{op:?}: {y:?}");
            assert!(g[0].as_ref().unwrap().all_finite().unwrap() && g[1].is_none());
        }
    }

    #[test]
    fn an_ignored_batch_gives_0() {
        let z = Tensor::full([2, 1, 2, 3], 1.0);
        let labels = Tensor::from_vec([2, 1, 2], vec![255i64; 4]).unwrap();
        for (generalized, per_sample) in FORMS {
            let op = Dice { generalized, per_sample, ignore_index: Some(255) };
            let (y, g) = testing::both(&op, &[&z, &labels], &[true, false], None);
            assert_eq!(y.item().unwrap(), 0.0);
            assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[0.0; 12]);
        }
    }

    #[test]
    fn labels_out_of_range_are_errors() {
        let z = Tensor::zeros([1, 1, 2, 3]);
        let op = Dice { generalized: false, per_sample: false, ignore_index: Some(255) };
        for bad in [3i64, -1] {
            let labels = Tensor::from_vec([1, 1, 2], vec![255i64, bad]).unwrap();
            let e = run(&op, &[&z, &labels]).err().expect("must be refused");
            assert!(
                e.is_data() && e.to_string().contains("dice") && e.to_string().contains("3 classes"),
                "{e}"
            );
        }
    }

    #[test]
    fn wrong_uses_are_errors() {
        let op = Dice { generalized: false, per_sample: false, ignore_index: None };
        let z = Shape::from([1, 2, 3, 4]);
        assert!(op.output_shape(&[z, [1, 3, 2].into()]).unwrap_err().is_shape());
        assert!(op.output_shape(&[z, [1, 2, 3, 4].into()]).unwrap_err().is_shape());
        assert!(op.output_shape(&[z]).unwrap_err().is_shape());
        assert!(op.output_shape(&[[1, 2, 3, 0].into(), [1, 2, 3].into()]).unwrap_err().is_shape());
        assert!(
            run(&op, &[&Tensor::zeros(z), &Tensor::zeros([1, 2, 3])])
                .err()
                .expect("must be refused")
                .is_dtype()
        );
    }

    #[test]
    fn dice_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
