//! Attention transfer: the distance between the normalised spatial energy maps of student and teacher.
//!
//! ```text
//! q[n,i] = sum over c of |a[n,i,c]|^p,   i = pixel
//! u[n]   = q[n] / max(||q[n]||_2, 1e-12)
//! y      = mean over n of ||us[n] - ut[n]||_2            (L2)
//! y      = mean over n, i of (us[n,i] - ut[n,i])^2       (MeanSquare)
//! ```
//! Gradient, with `d = us - ut` and `v` the gradient with respect to `us`: `v = d / (N ||d||)` for L2, 0 where the
//! distance is 0; `v = 2 d / (N H W)` for MeanSquare; then `gq = (v - us (us . v)) / ||qs||` (or `v / 1e-12` below the
//! bound), `ga = gy gq p |a|^(p-1) sign(a)`. The teacher gets no gradient.
//!
//! L2 is DreamTeacher's form (Li et al., ICCV 2023, equation 2, as a mean over the batch); MeanSquare that of the code
//! published with Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. That code takes the mean
//! over channels instead of the sum, which the normalisation cancels, so the channel counts may differ.

use super::feature_loss::cuda::{self, Kernels, Loss, Pair};
use super::support::{BLOCK, dims, expect_inputs, images, sum};
use super::whiten_mse::Whiten;
use super::*;
use crate::cpu;
use crate::error::Error;
use serde::{Deserialize, Serialize};

/// Lower bound of the norm that a map is divided by.
const MIN_NORM: f64 = 1e-12;

/// How the distance of two normalised maps is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDistance {
    /// The Euclidean norm of the difference, mean over the samples. Its gradient is taken as 0 at distance 0.
    #[default]
    L2,
    /// The mean of the squared difference over samples and pixels.
    MeanSquare,
}

/// Attention transfer: `student [N, H, W, Cs], teacher [N, H, W, Ct] -> scalar`.
#[derive(Clone, Debug)]
pub struct AttentionTransfer {
    /// Exponent of the energy map, at least 1.
    pub p: f32,
    /// The distance of two maps.
    pub distance: AtDistance,
}

impl Default for AttentionTransfer {
    fn default() -> Self {
        AttentionTransfer { p: 2.0, distance: AtDistance::L2 }
    }
}

fn check_p(p: f32) -> Result<()> {
    if p >= 1.0 && p.is_finite() {
        return Ok(());
    }
    Err(Error::usage(format!("the exponent p must be at least 1, got {p}")).with_op("attention_transfer"))
}

/// `sum over c of |a|^p` for every pixel.
fn energy(a: &[f32], c: usize, p: f32) -> Vec<f64> {
    let per_task = (BLOCK / c).max(1) * c;
    let parts = cpu::map_ordered(a.len().div_ceil(per_task), |task| {
        let a = &a[task * per_task..((task + 1) * per_task).min(a.len())];
        let pixel = |a: &[f32]| match p {
            2.0 => sum(a, |v| v * v),
            1.0 => sum(a, f64::abs),
            _ => sum(a, |v| v.abs().powf(f64::from(p))),
        };
        a.chunks_exact(c).map(pixel).collect::<Vec<f64>>()
    });
    parts.concat()
}

/// Divides each map of `pixels` by its norm, and returns the norms (before the lower bound).
fn normalise(q: &mut [f64], pixels: usize) -> Vec<f64> {
    let one = |q: &mut [f64]| {
        let norm = q.iter().map(|q| q * q).sum::<f64>().sqrt();
        q.iter_mut().for_each(|q| *q /= norm.max(MIN_NORM));
        norm
    };
    q.chunks_exact_mut(pixels).map(one).collect()
}

/// The normalised map of a feature `[N, H, W, C]`: `[N, H * W]`, each row of norm 1 (or 0 where the feature is 0).
///
/// # Errors
/// `a` is not a non-empty f32 image batch on the CPU, or `p` is below 1.
pub fn attention_map(a: &Tensor, p: f32) -> Result<Tensor> {
    check_p(p)?;
    let (n, h, w, c) = images("attention_transfer", a.shape())?;
    let mut q = energy(a.f32s()?, c, p);
    normalise(&mut q, h * w);
    Tensor::from_vec([n, h * w], q.iter().map(|&q| q as f32).collect::<Vec<_>>())
}

impl AttentionTransfer {
    /// The normalised map of a sample and the norm before, by the definition, in f64.
    fn map(&self, t: &Tensor, sample: usize) -> Result<(Vec<f64>, f64)> {
        let [_, h, w, c] = dims(t.shape());
        let x = &t.data::<f64>()?[sample * h * w * c..(sample + 1) * h * w * c];
        let energy = |pixel: &[f64]| pixel.iter().map(|a| a.abs().powf(f64::from(self.p))).sum();
        let q: Vec<f64> = x.chunks(c).map(energy).collect();
        let norm = q.iter().map(|q| q * q).sum::<f64>().sqrt();
        Ok((q.iter().map(|q| q / norm.max(MIN_NORM)).collect(), norm))
    }

    fn loss(&self) -> Loss {
        Loss {
            kernels: &KERNELS,
            whiten: Whiten::None,
            eps: 0.0,
            mse_weight: 0.0,
            at_weight: 1.0,
            p: self.p,
            distance: self.distance,
        }
    }
}

/// -1, 0 or 1.
fn sign(v: f64) -> f64 {
    if v == 0.0 { 0.0 } else { v.signum() }
}

const KERNELS: Kernels = Kernels {
    op: "attention_transfer",
    source: "attention_transfer.cu",
    fwd: "attention_transfer_fwd",
    samples: "attention_transfer_samples",
    total: "attention_transfer_total",
    bwd: "attention_transfer_bwd",
    moments: false,
    energy: true,
};

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    KERNELS.variants()
}

impl Op for AttentionTransfer {
    fn name(&self) -> &'static str {
        "attention_transfer"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(self.name(), inputs, &["student", "teacher"])?;
        check_p(self.p)?;
        images(self.name(), inputs[0])?;
        images(self.name(), inputs[1])?;
        if inputs[0][..3] != inputs[1][..3] {
            return Err(Error::shape(
                self.name(),
                format!(
                    "the student is {} but the teacher is {}: only the channels may differ",
                    inputs[0], inputs[1]
                ),
            )
            .with_remedy("pair levels of the same spatial size, or resize one of the features"));
        }
        Ok(Shape::SCALAR)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let [n, h, w, c] = dims(inputs[0].shape());
        let pixels = h * w;
        let mut us = energy(inputs[0].f32s()?, c, self.p);
        let mut ut = energy(inputs[1].f32s()?, inputs[1].shape().last(), self.p);
        let norms = normalise(&mut us, pixels);
        normalise(&mut ut, pixels);
        // The gradient with respect to the student's raw map is a by-product as small as the map. With it the
        // backward pass needs neither the teacher nor the maps.
        let mut total = 0.0;
        let mut gq = ut;
        for ((us, gq), norm) in us.chunks_exact(pixels).zip(gq.chunks_exact_mut(pixels)).zip(norms) {
            gq.iter_mut().zip(us).for_each(|(g, u)| *g = u - *g);
            let squared = gq.iter().map(|d| d * d).sum::<f64>();
            let scale = match self.distance {
                AtDistance::L2 => {
                    total += squared.sqrt() / n as f64;
                    if squared == 0.0 { 0.0 } else { 1.0 / (n as f64 * squared.sqrt()) }
                }
                AtDistance::MeanSquare => {
                    total += squared / (n * pixels) as f64;
                    2.0 / (n * pixels) as f64
                }
            };
            let along =
                if norm > MIN_NORM { gq.iter().zip(us).map(|(d, u)| d * u).sum::<f64>() } else { 0.0 };
            gq.iter_mut().zip(us).for_each(|(g, u)| *g = scale * (*g - u * along) / norm.max(MIN_NORM));
        }
        let gq = Tensor::from_vec([n, pixels], gq)?;
        Ok(Forward { y: Tensor::scalar(total as f32), extra: vec![gq], aux: Vec::new() })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let (a, gq, c) = (ctx.saved[0].f32s()?, ctx.saved[1].data::<f64>()?, ctx.inputs[0].last());
        let (gy, p) = (f64::from(ctx.gy.item()?), f64::from(self.p));
        let mut ga = vec![0.0f32; a.len()];
        cpu::for_each_chunk(&mut ga, c, |i, ga| {
            let (k, a) = (gy * gq[i] * p, &a[i * c..][..c]);
            let pairs = ga.iter_mut().zip(a.iter().map(|&a| f64::from(a)));
            match self.p {
                2.0 => pairs.for_each(|(g, a)| *g = (k * a) as f32),
                _ => pairs.for_each(|(g, a)| {
                    let slope = if self.p == 1.0 { 1.0 } else { a.abs().powf(p - 1.0) };
                    *g = if a == 0.0 { 0.0 } else { (k * slope.copysign(a)) as f32 };
                }),
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], ga)?), None])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let out = cuda::forward(gpu, &self.loss(), &inputs[..1], &inputs[1..])?;
        Ok(Forward { y: out.y, extra: vec![out.slopes], aux: Vec::new() })
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let pair = Pair { student: &ctx.saved[0], teacher: None, wanted: ctx.needs[0] };
        let mut grads = cuda::backward(gpu, &self.loss(), &[pair], None, Some(&ctx.saved[1]), ctx.gy)?;
        grads.push(None);
        Ok(grads)
    }

    fn is_operand(&self, _input: usize) -> bool {
        true
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [n, h, w, _] = dims(inputs[0].shape());
        let mut y = 0.0;
        for sample in 0..n {
            let ((us, _), (ut, _)) = (self.map(inputs[0], sample)?, self.map(inputs[1], sample)?);
            let squared: f64 = us.iter().zip(&ut).map(|(s, t)| (s - t) * (s - t)).sum();
            y += match self.distance {
                AtDistance::L2 => squared.sqrt() / n as f64,
                AtDistance::MeanSquare => squared / (n * h * w) as f64,
            };
        }
        Tensor::from_vec(Shape::SCALAR, vec![y])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let [n, h, w, c] = dims(inputs[0].shape());
        let (s, gy, p) = (inputs[0].data::<f64>()?, gy.data::<f64>()?[0], f64::from(self.p));
        let mut gs = Vec::with_capacity(s.len());
        for sample in 0..n {
            let ((us, norm), (ut, _)) = (self.map(inputs[0], sample)?, self.map(inputs[1], sample)?);
            let d: Vec<f64> = us.iter().zip(&ut).map(|(s, t)| s - t).collect();
            let length = d.iter().map(|d| d * d).sum::<f64>().sqrt();
            let scale = match self.distance {
                AtDistance::L2 if length == 0.0 => 0.0,
                AtDistance::L2 => 1.0 / (n as f64 * length),
                AtDistance::MeanSquare => 2.0 / (n * h * w) as f64,
            };
            let along =
                if norm > MIN_NORM { d.iter().zip(&us).map(|(d, u)| d * u).sum::<f64>() } else { 0.0 };
            for (i, (d, u)) in d.iter().zip(&us).enumerate() {
                let gq = gy * scale * (d - u * along) / norm.max(MIN_NORM);
                let pixel = &s[(sample * h * w + i) * c..][..c];
                gs.extend(pixel.iter().map(|a| gq * p * a.abs().powf(p - 1.0) * sign(*a)));
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gs)?), None]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        2 * (inputs[0].elems() + inputs[1].elems()) as u64
    }
}

/// Both distances and several exponents on corners, and a realistic level.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, p: f32, distance, student: [usize; 4], teacher_channels: usize| {
        let [n, h, w, _] = student;
        Case::new(
            format!("{label}, p = {p}, {distance:?}"),
            AttentionTransfer { p, distance },
            vec![
                // Away from 0, where |a| has a kink.
                Input::filled("student", student, Fill::Distinct),
                Input::normal("teacher", [n, h, w, teacher_channels]).fixed(),
            ],
        )
    };
    let mut cases = Vec::new();
    for distance in [AtDistance::L2, AtDistance::MeanSquare] {
        cases.push(case("one row", 2.0, distance, [1, 1, 2, 1], 1));
        cases.push(case("same channels", 2.0, distance, [2, 3, 5, 7], 7));
        cases.push(case("other channels", 2.0, distance, [3, 4, 3, 9], 2));
        cases.push(case("absolute values", 1.0, distance, [2, 3, 5, 4], 3));
        cases.push(case("fractional", 1.5, distance, [1, 3, 3, 5], 6));
        cases.push(case("whole chunks", 2.0, distance, [2, 3, 5, 16], 24));
        cases.push(case("whole chunks", 3.0, distance, [2, 3, 5, 16], 16));
        cases.push(case("fourth power", 4.0, distance, [2, 2, 3, 3], 8));
        cases.push(Case::bench(
            format!("level 3, {distance:?}"),
            AttentionTransfer { p: 2.0, distance },
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

    fn at(distance: AtDistance) -> AttentionTransfer {
        AttentionTransfer { p: 2.0, distance }
    }

    #[test]
    fn the_gradient_is_0_at_distance_0() {
        let x = Tensor::from_vec([1, 1, 3, 1], vec![1.0f32, -2.0, 3.0]).unwrap();
        for distance in [AtDistance::L2, AtDistance::MeanSquare] {
            let (y, g) = testing::both(&at(distance), &[&x, &x], &[true, false], None);
            assert_eq!(y.item().unwrap(), 0.0);
            assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[0.0; 3]);
        }
    }

    #[test]
    fn features_of_zeros_stay_finite() {
        let (zero, one) = (Tensor::zeros([2, 2, 2, 3]), Tensor::full([2, 2, 2, 3], 1.0));
        for (s, t) in [(&zero, &one), (&one, &zero), (&zero, &zero)] {
            for p in [1.0, 1.5, 2.0] {
                let op = AttentionTransfer { p, distance: AtDistance::L2 };
                let (y, g) = testing::both(&op, &[s, t], &[true, false], None);
                assert!(y.item().unwrap().is_finite() && g[0].as_ref().unwrap().all_finite().unwrap());
            }
        }
    }

    #[test]
    fn large_values_do_not_overflow() {
        let x = Tensor::from_vec([1, 1, 2, 1], vec![3e30f32, 4e30]).unwrap();
        let u = attention_map(&x, 2.0).unwrap();
        let want = [9.0 / 337f32.sqrt(), 16.0 / 337f32.sqrt()];
        assert!(u.f32s().unwrap().iter().zip(want).all(|(u, w)| (u - w).abs() <= 1e-6), "{:?}", u.f32s());
    }

    #[test]
    fn the_teacher_gets_no_gradient() {
        let x = Tensor::full([1, 1, 2, 2], 1.0);
        let (_, g) = testing::both(&at(AtDistance::L2), &[&x, &x], &[true, true], None);
        assert!(g[0].is_some() && g[1].is_none());
    }

    #[test]
    fn wrong_uses_are_errors() {
        let x = Shape::from([1, 2, 2, 3]);
        assert!(at(AtDistance::L2).output_shape(&[x, [1, 2, 1, 3].into()]).unwrap_err().is_shape());
        assert!(at(AtDistance::L2).output_shape(&[x, [1, 2, 2, 8].into()]).is_ok());
        for p in [0.5, f32::NAN, f32::INFINITY] {
            let op = AttentionTransfer { p, distance: AtDistance::L2 };
            assert!(op.output_shape(&[x, x]).unwrap_err().is_usage());
            assert!(attention_map(&Tensor::zeros(x), p).unwrap_err().is_usage());
        }
    }

    #[test]
    fn names_in_recipes() {
        assert_eq!(serde_json::to_string(&AtDistance::L2).unwrap(), "\"l2\"");
        assert_eq!(serde_json::from_str::<AtDistance>("\"mean_square\"").unwrap(), AtDistance::MeanSquare);
    }

    #[test]
    fn attention_transfer_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
