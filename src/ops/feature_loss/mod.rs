//! The feature loss of all levels: whitened mean squared error and attention transfer, in one operation.
//!
//! ```text
//! y    = sum over levels l of (mse_weight mse_l + at_weight at_l) / L
//! mse  = whiten_mse(s_l, t_l),  at = attention_transfer(s_l, t_l)
//! gs_l = (mse_weight gmse_l + at_weight gat_l) / L              the teachers get no gradient
//! ```
//! Beside the loss it gives what a step reports of every level: both distances and the mean over samples of the cosine
//! between the student's map and the whitened teacher map, both flattened, which starts near 0 and goes towards 1.
//! DreamTeacher (Li et al., ICCV 2023), equations 1 and 2. On a device all levels are read once forward and once backward.

pub(super) mod cuda;

use super::attention_transfer::{AtDistance, AttentionTransfer};
use super::support::images;
use super::whiten_mse::{Whiten, WhitenMse, whiten};
use super::*;
use crate::base::DType;
use crate::cpu;
use crate::error::Error;
use cuda::{Kernels, Loss, Pair};

/// Most levels of one loss.
pub const MAX_LEVELS: usize = 16;
/// Lower bound of the product of norms that a cosine is divided by.
const MIN_NORM: f64 = 1e-12;

/// Feature loss: `students [N, H_l, W_l, C_l] .., teachers [N, H_l, W_l, C_l] .. -> scalar`; the result without a gradient is
/// f32 `[levels, 3]`: MSE (0 if its weight is 0), attention-transfer distance (likewise) and cosine of every level.
#[derive(Clone, Debug)]
pub struct FeatureLoss {
    /// What the teachers are whitened over.
    pub whiten: Whiten,
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the MSE, at least 0; 0 leaves it out.
    pub mse_weight: f32,
    /// Weight of attention transfer, at least 0; 0 leaves it out.
    pub at_weight: f32,
    /// Exponent of the attention maps, at least 1.
    pub p: f32,
    /// The distance of two attention maps.
    pub distance: AtDistance,
}

impl Default for FeatureLoss {
    fn default() -> Self {
        FeatureLoss {
            whiten: Whiten::Sample,
            eps: 1e-5,
            mse_weight: 1.0,
            at_weight: 10.0,
            p: 2.0,
            distance: AtDistance::L2,
        }
    }
}

/// Mean over samples of the cosine between the student's map and the whitened teacher map `[N, H, W, C]`, both flattened.
///
/// # Errors
/// The shapes differ, or the maps are no non-empty f32 image batches on the CPU.
pub fn cosine_similarity(student: &Tensor, teacher: &Tensor, mode: Whiten, eps: f32) -> Result<f32> {
    if student.shape() != teacher.shape() {
        return Err(Error::shape("feature_loss", "the maps of a cosine differ in shape")
            .with_tensor("student", student)
            .with_tensor("teacher", teacher));
    }
    let target = whiten(teacher, mode, eps)?;
    let n = student.shape()[0];
    let per_sample = student.elems() / n;
    let (s, t) = (student.f32s()?, target.f32s()?);
    let cosines = cpu::map_ordered(n, |i| {
        let part = i * per_sample..(i + 1) * per_sample;
        let (s, t) = (&s[part.clone()], &t[part]);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(s, t) / (dot(s, s) * dot(t, t)).sqrt().max(MIN_NORM)
    });
    Ok((cosines.into_iter().sum::<f64>() / n as f64) as f32)
}

impl FeatureLoss {
    /// The MSE of a level, unless its weight is 0.
    fn mse(&self) -> Option<WhitenMse> {
        (self.mse_weight > 0.0).then_some(WhitenMse { whiten: self.whiten, eps: self.eps })
    }

    /// The attention transfer of a level, unless its weight is 0.
    fn at(&self) -> Option<AttentionTransfer> {
        (self.at_weight > 0.0).then_some(AttentionTransfer { p: self.p, distance: self.distance })
    }

    /// Adds up, for every student, the gradients of its terms that `of` gives: for a term and its weight in a loss of
    /// `levels` levels. Entry `i` of the result is of input `i`.
    fn collect(
        &self,
        levels: usize,
        mut of: impl FnMut(usize, &dyn Op, f64) -> Result<Option<Tensor>>,
        add: impl Fn(&mut Tensor, &Tensor) -> Result<()>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut grads = Vec::with_capacity(2 * levels);
        for l in 0..levels {
            let mut sum: Option<Tensor> = None;
            let (mse, at) = (self.mse(), self.at());
            let terms = [
                mse.as_ref().map(|op| (op as &dyn Op, self.mse_weight)),
                at.as_ref().map(|op| (op as &dyn Op, self.at_weight)),
            ];
            for (op, weight) in terms.into_iter().flatten() {
                let g = of(l, op, f64::from(weight) / levels as f64)?;
                sum = match (sum, g) {
                    (Some(mut sum), Some(g)) => {
                        add(&mut sum, &g)?;
                        Some(sum)
                    }
                    (sum, g) => sum.or(g),
                };
            }
            grads.push(sum);
        }
        grads.resize(2 * levels, None);
        Ok(grads)
    }

    fn loss(&self) -> Loss {
        Loss {
            kernels: &KERNELS,
            whiten: self.whiten,
            eps: self.eps,
            mse_weight: self.mse_weight,
            at_weight: self.at_weight,
            p: self.p,
            distance: self.distance,
        }
    }
}

const KERNELS: Kernels = Kernels {
    op: "feature_loss",
    source: "feature_loss.cu",
    fwd: "feature_loss_fwd",
    samples: "feature_loss_samples",
    total: "feature_loss_total",
    bwd: "feature_loss_bwd",
    moments: true,
    energy: true,
};

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    KERNELS.variants()
}

/// Adds `b` to `a`, element by element.
fn add<T: crate::tensor::Element + Copy + std::ops::AddAssign>(a: &mut Tensor, b: &Tensor) -> Result<()> {
    let b = b.data::<T>()?;
    a.data_mut::<T>()?.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    Ok(())
}

impl Op for FeatureLoss {
    fn name(&self) -> &'static str {
        "feature_loss"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let levels = inputs.len() / 2;
        if levels == 0 || !inputs.len().is_multiple_of(2) || levels > MAX_LEVELS {
            return Err(Error::shape(
                self.name(),
                format!("takes 1 to {MAX_LEVELS} students and as many teachers, got {} maps", inputs.len()),
            ));
        }
        let weight = |w: f32| w.is_finite() && w >= 0.0;
        if !weight(self.mse_weight) || !weight(self.at_weight) {
            return Err(Error::usage(format!(
                "weights must be numbers of at least 0, got {} and {}",
                self.mse_weight, self.at_weight
            ))
            .with_op(self.name()));
        }
        let (students, teachers) = inputs.split_at(levels);
        for (l, (&s, &t)) in students.iter().zip(teachers).enumerate() {
            images(self.name(), s)?;
            WhitenMse { whiten: self.whiten, eps: self.eps }
                .output_shape(&[s, t])
                .and_then(|_| AttentionTransfer { p: self.p, distance: self.distance }.output_shape(&[s, t]))
                .map_err(|e| e.with_key(format!("level {l}")))?;
            if s[0] != students[0][0] {
                return Err(Error::shape(
                    self.name(),
                    format!("level {l} has {} samples, level 0 has {}", s[0], students[0][0]),
                ));
            }
        }
        Ok(Shape::SCALAR)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (students, teachers) = inputs.split_at(inputs.len() / 2);
        let levels = students.len();
        let (mut total, mut extra, mut metrics) = (0.0f64, Vec::new(), Vec::with_capacity(3 * levels));
        for (&s, &t) in students.iter().zip(teachers) {
            let mut term = |op: Option<&dyn Op>, weight: f32| -> Result<f32> {
                let Some(op) = op else { return Ok(0.0) };
                let out = op.forward(&[s, t])?;
                extra.extend(out.extra);
                let value = out.y.item()?;
                total += f64::from(weight) * f64::from(value) / levels as f64;
                Ok(value)
            };
            metrics.push(term(self.mse().as_ref().map(|op| op as &dyn Op), self.mse_weight)?);
            metrics.push(term(self.at().as_ref().map(|op| op as &dyn Op), self.at_weight)?);
            metrics.push(cosine_similarity(s, t, self.whiten, self.eps)?);
        }
        let aux = vec![Tensor::from_vec([levels, 3], metrics)?];
        Ok(Forward { y: Tensor::scalar(total as f32), extra, aux })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        let kept = if self.mse_weight > 0.0 { inputs } else { &inputs[..inputs.len() / 2] };
        kept.iter().map(|&t| t.clone()).collect()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let levels = ctx.inputs.len() / 2;
        let (gy, kept) = (f64::from(ctx.gy.item()?), if self.mse_weight > 0.0 { 2 * levels } else { levels });
        let mut extra = ctx.saved[kept..].iter();
        let of = |l: usize, op: &dyn Op, weight: f64| -> Result<Option<Tensor>> {
            let (shapes, needs) = ([ctx.inputs[l], ctx.inputs[levels + l]], [ctx.needs[l], false]);
            let mut saved = vec![ctx.saved[l].clone()];
            if op.name() == "whiten_mse" {
                saved.push(ctx.saved[levels + l].clone());
            }
            saved.extend(extra.next().cloned());
            let gy = Tensor::scalar((gy * weight) as f32);
            let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs };
            Ok(op.backward(&ctx)?.swap_remove(0))
        };
        let mut grads = self.collect(levels, of, add::<f32>)?;
        for (l, g) in grads.iter_mut().enumerate().take(levels) {
            // Without a term.
            if ctx.needs[l] && g.is_none() {
                *g = Some(Tensor::zeros(ctx.inputs[l]));
            }
        }
        Ok(grads)
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let (students, teachers) = inputs.split_at(inputs.len() / 2);
        let out = cuda::forward(gpu, &self.loss(), students, teachers)?;
        Ok(Forward { y: out.y, extra: vec![out.whitening, out.slopes], aux: vec![out.levels] })
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let levels = ctx.inputs.len() / 2;
        let pair = |l: usize| Pair {
            student: &ctx.saved[l],
            teacher: (self.mse_weight > 0.0).then(|| &ctx.saved[levels + l]),
            wanted: ctx.needs[l],
        };
        let pairs: Vec<Pair<'_>> = (0..levels).map(pair).collect();
        let [.., whitening, slopes] = ctx.saved else {
            return Err(Error::shape(self.name(), "the backward pass lacks what the forward pass kept"));
        };
        let mut grads = cuda::backward(gpu, &self.loss(), &pairs, Some(whitening), Some(slopes), ctx.gy)?;
        grads.resize(2 * levels, None);
        Ok(grads)
    }

    fn is_operand(&self, _input: usize) -> bool {
        true
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (students, teachers) = inputs.split_at(inputs.len() / 2);
        let mut y = 0.0;
        for (&s, &t) in students.iter().zip(teachers) {
            let mse = self.mse().map(|op| op.reference(&[s, t])?.data::<f64>().map(|v| v[0])).transpose()?;
            let at = self.at().map(|op| op.reference(&[s, t])?.data::<f64>().map(|v| v[0])).transpose()?;
            y += f64::from(self.mse_weight) * mse.unwrap_or(0.0)
                + f64::from(self.at_weight) * at.unwrap_or(0.0);
        }
        Tensor::from_vec(Shape::SCALAR, vec![y / students.len() as f64])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (students, teachers) = inputs.split_at(inputs.len() / 2);
        let gy = gy.data::<f64>()?[0];
        let of = |l: usize, op: &dyn Op, weight: f64| -> Result<Option<Tensor>> {
            let gy = Tensor::from_vec(Shape::SCALAR, vec![gy * weight])?;
            let grads = op.reference_gradients(&[students[l], teachers[l]], &gy)?;
            Ok(grads.and_then(|mut g| g.swap_remove(0)))
        };
        let mut grads = self.collect(students.len(), of, add::<f64>)?;
        for (g, s) in grads.iter_mut().zip(students).filter(|(g, _)| g.is_none()) {
            *g = Some(Tensor::zeros(s.shape()).to_dtype(DType::F64)?);
        }
        Ok(Some(grads))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let students = &inputs[..inputs.len() / 2];
        // Moments, and two power sums.
        students.iter().map(|s| 14 * s.elems() as u64).sum()
    }
}

/// All whitenings, exponents and distances on corners, one to four levels, terms left out, teachers with a large mean, and the
/// levels of a ResNet.
pub fn cases() -> Vec<Case> {
    let inputs = |shapes: &[[usize; 4]], teacher: Fill| -> Vec<Input> {
        const STUDENTS: [&str; 4] = ["student 0", "student 1", "student 2", "student 3"];
        const TEACHERS: [&str; 4] = ["teacher 0", "teacher 1", "teacher 2", "teacher 3"];
        // Away from 0, where |s| has a kink.
        let student = |(name, &shape)| Input::filled(name, shape, Fill::Distinct);
        let teacher = |(name, &shape)| Input::filled(name, shape, teacher).fixed();
        let students = STUDENTS.into_iter().zip(shapes).map(student);
        students.chain(TEACHERS.into_iter().zip(shapes).map(teacher)).collect()
    };
    let mut cases = Vec::new();
    let levels: [&[[usize; 4]]; 4] = [
        &[[2, 3, 5, 7]],
        &[[3, 4, 4, 16], [3, 2, 2, 24]],
        &[[2, 6, 5, 8], [2, 3, 3, 40], [2, 1, 2, 72]],
        &[[2, 8, 8, 8], [2, 4, 4, 16], [2, 2, 2, 264], [2, 1, 2, 520]],
    ];
    for whiten in [Whiten::Sample, Whiten::Channel, Whiten::None] {
        for (i, shapes) in levels.iter().enumerate() {
            let (p, distance) = ([2.0, 1.0, 3.0, 2.0][i], [AtDistance::L2, AtDistance::MeanSquare][i % 2]);
            let op = FeatureLoss { whiten, p, distance, ..FeatureLoss::default() };
            let label = format!("{} levels, {whiten:?}, p = {p}, {distance:?}", shapes.len());
            cases.push(Case::new(label, op, inputs(shapes, Fill::Normal(0.5, 2.0))));
        }
        let op = FeatureLoss { whiten, at_weight: 1.0, ..FeatureLoss::default() };
        let large = inputs(&[[2, 9, 8, 32], [2, 3, 3, 21]], Fill::Normal(1e3, 1.0));
        cases.push(Case::new(format!("large mean, {whiten:?}"), op, large));
    }
    for (mse_weight, at_weight) in [(0.0, 3.0), (0.5, 0.0), (0.0, 0.0)] {
        for whiten in [Whiten::Sample, Whiten::Channel] {
            let op = FeatureLoss { whiten, mse_weight, at_weight, ..FeatureLoss::default() };
            let label = format!("weights {mse_weight} and {at_weight}, {whiten:?}");
            cases.push(Case::new(label, op, inputs(levels[1], Fill::Normal(0.0, 1.0))));
        }
    }
    for whiten in [Whiten::Sample, Whiten::Channel] {
        let op = FeatureLoss { whiten, p: 3.0, ..FeatureLoss::default() };
        let odd = inputs(levels[0], Fill::Normal(0.0, 1.0));
        cases.push(Case::new(format!("odd channels, {whiten:?}, p = 3"), op, odd));
    }
    let runs = inputs(&[[1, 33, 31, 8], [1, 16, 33, 12]], Fill::Normal(1.0, 1.0));
    cases.push(Case::new("several runs", FeatureLoss::default(), runs));
    let resnet = [[8, 64, 64, 64], [8, 32, 32, 128], [8, 16, 16, 256], [8, 8, 8, 256]];
    cases.push(Case::bench("four levels", FeatureLoss::default(), inputs(&resnet, Fill::Normal(0.0, 1.0))));
    cases
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    fn map(seed: u64, shape: [usize; 4]) -> Tensor {
        let mut v = vec![0.0f32; shape.iter().product()];
        crate::base::Philox::new(seed).fill_normal(&mut v);
        Tensor::from_vec(shape, v).unwrap()
    }

    #[test]
    fn what_is_reported_of_a_level_is_that_of_its_terms() {
        let (s, t) = (map(1, [2, 3, 4, 5]), map(2, [2, 3, 4, 5]));
        let out = run(&FeatureLoss::default(), &[&s, &t]).unwrap();
        let one = |op: &dyn Op| run(op, &[&s, &t]).unwrap().y.item().unwrap();
        let (mse, at) = (one(&WhitenMse::default()), one(&AttentionTransfer::default()));
        let cosine = cosine_similarity(&s, &t, Whiten::Sample, 1e-5).unwrap();
        assert_eq!(out.aux[0].f32s().unwrap(), &[mse, at, cosine]);
        assert!((out.y.item().unwrap() - (mse + 10.0 * at)).abs() <= 1e-6);
        // A term that is left out counts as 0.
        let op = FeatureLoss { mse_weight: 0.0, ..FeatureLoss::default() };
        assert_eq!(run(&op, &[&s, &t]).unwrap().aux[0].f32s().unwrap(), &[0.0, at, cosine]);
    }

    #[test]
    fn the_cosine_is_1_at_the_whitened_teacher_and_0_at_a_constant() {
        let t = map(3, [3, 4, 4, 6]);
        for mode in [Whiten::Sample, Whiten::Channel, Whiten::None] {
            let w = whiten(&t, mode, 1e-5).unwrap();
            assert!((cosine_similarity(&w, &t, mode, 1e-5).unwrap() - 1.0).abs() <= 1e-6);
            let zeros = Tensor::zeros(t.shape());
            assert_eq!(cosine_similarity(&zeros, &t, mode, 1e-5).unwrap(), 0.0);
        }
        assert!(cosine_similarity(&t, &map(3, [3, 4, 4, 5]), Whiten::Sample, 1e-5).unwrap_err().is_shape());
    }

    #[test]
    fn the_teachers_get_no_gradient() {
        let x = [map(1, [1, 2, 2, 3]), map(2, [1, 1, 1, 4]), map(3, [1, 2, 2, 3]), map(4, [1, 1, 1, 4])];
        let refs: Vec<&Tensor> = x.iter().collect();
        let (_, g) = testing::both(&FeatureLoss::default(), &refs, &[true; 4], None);
        assert!(g[0].is_some() && g[1].is_some() && g[2].is_none() && g[3].is_none());
        let (_, g) = testing::both(&FeatureLoss::default(), &refs, &[false, true, false, false], None);
        assert!(g[0].is_none() && g[1].is_some());
    }

    #[test]
    fn wrong_uses_are_errors() {
        let op = FeatureLoss::default();
        let (x, small) = (Shape::from([2, 4, 4, 3]), Shape::from([1, 2, 2, 3]));
        assert!(op.output_shape(&[x, x]).is_ok());
        assert!(op.output_shape(&[]).unwrap_err().is_shape());
        assert!(op.output_shape(&[x]).unwrap_err().is_shape());
        assert!(op.output_shape(&[x; 2 * MAX_LEVELS + 2]).unwrap_err().is_shape());
        assert!(op.output_shape(&[x, x, x, small]).unwrap_err().to_string().contains("level 1"));
        assert!(op.output_shape(&[x, small, x, small]).unwrap_err().to_string().contains("samples"));
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            let op = FeatureLoss { mse_weight: bad, ..op.clone() };
            assert!(op.output_shape(&[x, x]).unwrap_err().is_usage());
            let op = FeatureLoss { p: bad, ..FeatureLoss::default() };
            assert!(op.output_shape(&[x, x]).unwrap_err().is_usage());
        }
    }

    #[test]
    fn feature_loss_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
