//! Cross-entropy of logits against class labels or against the softened output of a teacher.
//!
//! Hard, with labels `y`, label smoothing `e` and `M` rows that are not ignored:
//! ```text
//! loss = -1/M sum over rows of ((1 - e) log p[y] + e/K sum over k of log p[k]),   p = softmax(z)
//! gz   = gy/M (p - (1 - e) onehot(y) - e/K)      0 in ignored rows
//! ```
//! Soft, with teacher logits `t`, temperature `tau` and `R` rows:
//! ```text
//! loss = -1/R sum over rows, k of softmax(t/tau)[k] log softmax(z/tau)[k]
//! gz   = gy/(R tau) (softmax(z/tau) - softmax(t/tau))      the teacher gets no gradient
//! ```
//! times `tau^2` if asked for, which keeps the size of the gradient about independent of `tau` (Hinton et al.,
//! "Distilling the Knowledge in a Neural Network", 2015). DreamTeacher's label distillation uses tau = 4. Hard labels
//! are those of `torch.nn.CrossEntropyLoss`, but a batch in which every label is ignored has loss 0 and gradient 0
//! there instead of NaN.
//!
//! A label that is neither a class nor ignored is an error on the CPU. Kernels cannot refuse it: there it makes the loss and
//! its row's gradient NaN.

mod cuda;

use super::support::{BLOCK, class_of, expect_inputs};
use super::*;
use crate::cpu;
use crate::error::Error;

/// What the logits are compared with: the meaning of the second input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Class labels, i64, of the logits' shape without the last axis.
    Hard,
    /// Teacher logits of the logits' shape.
    Soft {
        /// Temperature that divides both logits, above 0.
        tau: f32,
        /// Whether the loss is multiplied by `tau^2`.
        tau_squared: bool,
    },
}

/// Cross-entropy: `logits [.., K], labels [..]` (or `teacher [.., K]`) `-> scalar`.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// What the second input is.
    pub target: Target,
    /// Label of rows that take no part. Only with [`Target::Hard`].
    pub ignore_index: Option<i64>,
    /// Share of the target that is spread evenly over all classes, 0 to 1. Only with [`Target::Hard`].
    pub label_smoothing: f32,
}

impl CrossEntropy {
    /// Against labels, nothing ignored, no smoothing.
    pub fn hard() -> Self {
        CrossEntropy { target: Target::Hard, ignore_index: None, label_smoothing: 0.0 }
    }

    /// Against teacher logits at a temperature.
    pub fn soft(tau: f32) -> Self {
        CrossEntropy { target: Target::Soft { tau, tau_squared: false }, ..Self::hard() }
    }

    fn check_options(&self) -> Result<()> {
        let problem = match self.target {
            Target::Hard if !(0.0..=1.0).contains(&self.label_smoothing) => {
                format!("label smoothing {} is not between 0 and 1", self.label_smoothing)
            }
            Target::Soft { tau, .. } if !(tau > 0.0 && tau.is_finite()) => {
                format!("the temperature must be a number above 0, got {tau}")
            }
            Target::Soft { .. } if self.ignore_index.is_some() || self.label_smoothing != 0.0 => {
                "ignored labels and label smoothing need hard targets".into()
            }
            _ => return Ok(()),
        };
        Err(Error::usage(problem).with_op(self.name()))
    }
}

/// Log of the sum of `exp(z / tau)`.
fn log_sum_exp(z: &[f32], inv_tau: f32) -> f64 {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = z.iter().map(|&z| f64::from(((z - max) * inv_tau).exp())).sum();
    f64::from(max) * f64::from(inv_tau) + sum.ln()
}

/// `softmax(z / tau)` of one logit, given the row's [`log_sum_exp`].
fn probability(z: f32, inv_tau: f32, lse: f64) -> f32 {
    ((f64::from(z) * f64::from(inv_tau) - lse) as f32).exp()
}

/// What one block of rows adds to the loss.
#[derive(Default)]
struct Part {
    loss: f64,
    rows: usize,
    /// For each row the log-sum-exp of the student, with soft targets followed by that of the teacher.
    lse: Vec<f64>,
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let hard = self.target == Target::Hard;
        expect_inputs(self.name(), inputs, &["logits", if hard { "labels" } else { "teacher" }])?;
        self.check_options()?;
        let [z, t] = [inputs[0], inputs[1]];
        if z.is_empty() || z.elems() == 0 {
            return Err(Error::shape(self.name(), format!("the logits {z} are empty or have no class axis")));
        }
        let want = if hard { &z[..z.len() - 1] } else { &z[..] };
        if *t != *want {
            let what = if hard { "labels" } else { "teacher logits" };
            return Err(Error::shape(
                self.name(),
                format!("logits {z} (classes last) need {what} of shape {want:?}, got {t}"),
            ));
        }
        Ok(Shape::SCALAR)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (z, k) = (inputs[0].f32s()?, inputs[0].shape().last());
        let rows = z.len() / k;
        let per_task = (BLOCK / k).max(1);
        let range = |task: usize| task * per_task..((task + 1) * per_task).min(rows);
        let tasks = rows.div_ceil(per_task);
        let (parts, factor): (Vec<Result<Part>>, f64) = match self.target {
            Target::Hard => {
                let labels = inputs[1].data::<i64>()?;
                let smoothing = f64::from(self.label_smoothing);
                let part = |task: usize| {
                    let mut part = Part::default();
                    for row in range(task) {
                        let z = &z[row * k..][..k];
                        let lse = log_sum_exp(z, 1.0);
                        part.lse.push(lse);
                        let Some(y) = class_of(self.name(), labels[row], k, self.ignore_index)? else {
                            continue;
                        };
                        part.rows += 1;
                        part.loss += (1.0 - smoothing) * (lse - f64::from(z[y]));
                        if smoothing > 0.0 {
                            let mean = z.iter().map(|&z| f64::from(z)).sum::<f64>() / k as f64;
                            part.loss += smoothing * (lse - mean);
                        }
                    }
                    Ok(part)
                };
                (cpu::map_ordered(tasks, part), 1.0)
            }
            Target::Soft { tau, tau_squared } => {
                let (t, inv) = (inputs[1].f32s()?, 1.0 / tau);
                let part = |task: usize| {
                    let mut part = Part::default();
                    for row in range(task) {
                        let (z, t) = (&z[row * k..][..k], &t[row * k..][..k]);
                        let (lse, teacher) = (log_sum_exp(z, inv), log_sum_exp(t, inv));
                        part.lse.extend([lse, teacher]);
                        part.rows += 1;
                        for (&z, &t) in z.iter().zip(t) {
                            let log_p = f64::from(z) * f64::from(inv) - lse;
                            part.loss -= f64::from(probability(t, inv, teacher)) * log_p;
                        }
                    }
                    Ok(part)
                };
                let tau = f64::from(tau);
                (cpu::map_ordered(tasks, part), if tau_squared { tau * tau } else { 1.0 })
            }
        };
        let mut all = Part::default();
        for part in parts {
            let part = part?;
            all.loss += part.loss;
            all.rows += part.rows;
            all.lse.extend(part.lse);
        }
        let loss = factor * all.loss / all.rows.max(1) as f64;
        let lse = Tensor::from_vec([all.lse.len()], all.lse)?;
        Ok(Forward { y: Tensor::scalar(loss as f32), extra: vec![lse], aux: Vec::new() })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let (z, k, lse) = (ctx.saved[0].f32s()?, ctx.inputs[0].last(), ctx.saved[2].data::<f64>()?);
        let gy = f64::from(ctx.gy.item()?);
        let mut gz = vec![0.0f32; z.len()];
        match self.target {
            Target::Hard => {
                let labels = ctx.saved[1].data::<i64>()?;
                let valid = labels.iter().filter(|&&y| self.ignore_index != Some(y)).count();
                let scale = (gy / valid.max(1) as f64) as f32;
                let (hit, all) = (1.0 - self.label_smoothing, self.label_smoothing / k as f32);
                cpu::for_each_chunk(&mut gz, k, |row, gz| {
                    // The forward pass has checked the range of the labels.
                    let Ok(Some(y)) = class_of(self.name(), labels[row], k, self.ignore_index) else {
                        return;
                    };
                    for (gz, &z) in gz.iter_mut().zip(&z[row * k..][..k]) {
                        *gz = probability(z, 1.0, lse[row]) - all;
                    }
                    gz[y] -= hit;
                    gz.iter_mut().for_each(|g| *g *= scale);
                });
            }
            Target::Soft { tau, tau_squared } => {
                let (t, inv, tau) = (ctx.saved[1].f32s()?, 1.0 / tau, f64::from(tau));
                let factor = if tau_squared { tau } else { 1.0 / tau };
                let scale = (gy * factor / (z.len() / k) as f64) as f32;
                cpu::for_each_chunk(&mut gz, k, |row, gz| {
                    let (z, t) = (&z[row * k..][..k], &t[row * k..][..k]);
                    for ((gz, &z), &t) in gz.iter_mut().zip(z).zip(t) {
                        *gz = scale
                            * (probability(z, inv, lse[2 * row]) - probability(t, inv, lse[2 * row + 1]));
                    }
                });
            }
        }
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

    fn is_operand(&self, input: usize) -> bool {
        input == 0 || self.target != Target::Hard
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (mut loss, mut count) = (0.0, 0.0);
        self.rows(inputs, |row| {
            let terms = row.target.iter().zip(&row.p).map(|(t, p)| t * p.ln());
            loss -= row.factor * terms.sum::<f64>();
            count += 1.0;
        })?;
        Tensor::from_vec(Shape::SCALAR, vec![loss / f64::max(count, 1.0)])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (gy, k) = (gy.data::<f64>()?[0], inputs[0].shape().last());
        let (mut gz, mut count) = (vec![0.0; inputs[0].elems()], 0.0);
        self.rows(inputs, |row| {
            count += 1.0;
            let places = gz[row.index * k..][..k].iter_mut();
            for (g, (p, t)) in places.zip(row.p.iter().zip(&row.target)) {
                *g = gy * row.factor / row.tau * (p - t);
            }
        })?;
        gz.iter_mut().for_each(|g| *g /= f64::max(count, 1.0));
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gz)?), None]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let per_element = if self.target == Target::Hard { 5 } else { 13 };
        inputs[0].elems() as u64 * per_element
    }
}

/// A row that takes part, by the definition.
struct Row {
    index: usize,
    /// The distribution that is asked for, and that of the logits.
    target: Vec<f64>,
    p: Vec<f64>,
    tau: f64,
    factor: f64,
}

impl CrossEntropy {
    /// Calls `f` for every row that takes part.
    fn rows(&self, inputs: &[&Tensor], mut f: impl FnMut(Row)) -> Result<()> {
        let k = inputs[0].shape().last();
        let softmax = |z: &[f64], tau: f64| -> Vec<f64> {
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = z.iter().map(|z| ((z - max) / tau).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|e| e / sum).collect()
        };
        for (index, z) in inputs[0].data::<f64>()?.chunks(k).enumerate() {
            let (target, tau, factor) = match self.target {
                Target::Hard => {
                    let y = inputs[1].data::<i64>()?[index];
                    if self.ignore_index == Some(y) {
                        continue;
                    }
                    let e = f64::from(self.label_smoothing);
                    let one = |c: usize| f64::from(u8::from(c as i64 == y));
                    ((0..k).map(|c| (1.0 - e) * one(c) + e / k as f64).collect(), 1.0, 1.0)
                }
                Target::Soft { tau, tau_squared } => {
                    let tau = f64::from(tau);
                    let t = &inputs[1].data::<f64>()?[index * k..(index + 1) * k];
                    (softmax(t, tau), tau, if tau_squared { tau * tau } else { 1.0 })
                }
            };
            f(Row { index, target, p: softmax(z, tau), tau, factor });
        }
        Ok(())
    }
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    cuda::variants()
}

/// Classification and segmentation, ignored labels, smoothing, temperatures, and a segmentation batch.
pub fn cases() -> Vec<Case> {
    let hard = |label, ignore_index, label_smoothing, shape: &[usize], every| {
        let shape = Shape::from_slice(shape).expect("a small shape");
        let leading = Shape::from_slice(&shape[..shape.len() - 1]).expect("a small shape");
        Case::new(
            label,
            CrossEntropy { ignore_index, label_smoothing, ..CrossEntropy::hard() },
            vec![
                Input::normal("logits", shape),
                Input::labels("labels", leading, shape.last() as u32, every),
            ],
        )
    };
    let soft = |label, tau, tau_squared, shape: [usize; 2]| {
        Case::new(
            label,
            CrossEntropy { target: Target::Soft { tau, tau_squared }, ..CrossEntropy::hard() },
            vec![
                Input::filled("logits", shape, Fill::Normal(0.0, 3.0)),
                Input::filled("teacher", shape, Fill::Normal(1.0, 3.0)).fixed(),
            ],
        )
    };
    vec![
        hard("one class", None, 0.0, &[3, 1], 0),
        hard("one row without a batch", None, 0.0, &[5], 0),
        hard("classification", None, 0.0, &[7, 11], 0),
        hard("segmentation", Some(255), 0.0, &[2, 3, 5, 4], 3),
        hard("smoothed", None, 0.1, &[6, 5], 0),
        hard("smoothed and ignored", Some(255), 0.3, &[1, 4, 3, 6], 2),
        hard("all ignored", Some(255), 0.1, &[4, 3], 1),
        hard("more classes than a task holds", None, 0.0, &[2, 17_000], 0),
        hard("whole chunks", Some(255), 0.2, &[2, 7, 5, 152], 4),
        hard("two classes", None, 0.0, &[1, 40, 33, 2], 0),
        soft("whole chunks at tau 2", 2.0, true, [67, 40]),
        soft("one row", 1.0, false, [1, 2]),
        soft("tau 4", 4.0, false, [5, 7]),
        soft("tau 4, times tau squared", 4.0, true, [3, 10]),
        soft("tau below 1", 0.5, false, [4, 3]),
        Case::new(
            "far from 0",
            CrossEntropy::hard(),
            vec![Input::filled("logits", [4, 6], Fill::Normal(1e3, 2.0)), Input::labels("labels", [4], 6, 0)],
        ),
        Case::bench(
            "segmentation",
            CrossEntropy { ignore_index: Some(255), ..CrossEntropy::hard() },
            vec![Input::normal("logits", [8, 128, 128, 19]), Input::labels("labels", [8, 128, 128], 19, 10)],
        ),
        Case::bench(
            "label distillation",
            CrossEntropy::soft(4.0),
            vec![Input::normal("logits", [8, 64, 64, 21]), Input::normal("teacher", [8, 64, 64, 21]).fixed()],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    fn labels(v: &[i64]) -> Tensor {
        Tensor::from_vec([v.len()], v.to_vec()).unwrap()
    }

    #[test]
    fn labels_out_of_range_are_errors() {
        let z = Tensor::zeros([2, 3]);
        for bad in [3, -1, 255, i64::MAX] {
            let e = run(&CrossEntropy::hard(), &[&z, &labels(&[0, bad])]).err().expect("must be refused");
            let text = e.to_string();
            assert!(
                e.is_data() && text.contains("cross_entropy") && text.contains(&bad.to_string()),
                "{text}"
            );
            assert!(text.contains("3 classes"), "{text}");
        }
    }

    #[test]
    fn an_ignored_batch_gives_0() {
        let z = Tensor::full([2, 3], 1.0);
        let op = CrossEntropy { ignore_index: Some(-100), ..CrossEntropy::hard() };
        let (y, g) = testing::both(&op, &[&z, &labels(&[-100, -100])], &[true, false], None);
        assert_eq!(y.item().unwrap(), 0.0);
        assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[0.0; 6]);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let z = Tensor::from_vec([2, 2], vec![1e30f32, -1e30, -1e30, 1e30]).unwrap();
        let (y, g) = testing::both(&CrossEntropy::hard(), &[&z, &labels(&[0, 1])], &[true, false], None);
        assert_eq!(y.item().unwrap(), 0.0);
        assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[0.0; 4]);
    }

    #[test]
    fn nan_is_not_hidden() {
        let z = Tensor::from_vec([1, 2], vec![f32::NAN, 0.0]).unwrap();
        assert!(run(&CrossEntropy::hard(), &[&z, &labels(&[1])]).unwrap().y.item().unwrap().is_nan());
    }

    #[test]
    fn a_perfect_student_has_no_gradient() {
        let z = Tensor::from_vec([1, 3], vec![1.0f32, 2.0, -1.0]).unwrap();
        let (_, g) = testing::both(&CrossEntropy::soft(4.0), &[&z, &z], &[true, true], None);
        assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[0.0; 3]);
        assert!(g[1].is_none());
    }

    #[test]
    fn wrong_uses_are_errors() {
        let (z, y) = (Shape::from([4, 3]), Shape::from([4]));
        let hard = CrossEntropy::hard();
        assert!(hard.output_shape(&[z, z]).unwrap_err().is_shape());
        assert!(hard.output_shape(&[z]).unwrap_err().is_shape());
        assert!(hard.output_shape(&[Shape::SCALAR, y]).unwrap_err().is_shape());
        assert!(hard.output_shape(&[[4, 0].into(), y]).unwrap_err().is_shape());
        assert!(CrossEntropy::soft(1.0).output_shape(&[z, y]).unwrap_err().is_shape());
        for op in [
            CrossEntropy { label_smoothing: 1.5, ..hard.clone() },
            CrossEntropy { label_smoothing: f32::NAN, ..hard.clone() },
            CrossEntropy::soft(0.0),
            CrossEntropy::soft(f32::NAN),
            CrossEntropy { ignore_index: Some(255), ..CrossEntropy::soft(1.0) },
        ] {
            assert!(
                op.output_shape(&[z, if op.target == Target::Hard { y } else { z }]).unwrap_err().is_usage()
            );
        }
        let floats = Tensor::zeros([4]);
        assert!(run(&hard, &[&Tensor::zeros([4, 3]), &floats]).err().expect("must be refused").is_dtype());
    }

    #[test]
    fn cross_entropy_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
