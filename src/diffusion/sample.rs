//! Sampling: pictures out of noise, with DDIM (Song et al., "Denoising diffusion implicit models", 2021) and step by step with
//! fresh noise (Ho et al., "Denoising diffusion probabilistic models", 2020).

use super::{EpsModel, Noise, Respacing, Schedule, space_timesteps};
use crate::base::Philox;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How a picture comes out of noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Deterministic: the same noise gives the same picture, also in fewer steps nearly so.
    #[default]
    Ddim,
    /// Step by step with fresh noise, of the variance that the network predicts.
    Ancestral,
}

impl Schedule {
    /// The schedule that visits `count` of this one's steps, evenly, the last one included.
    ///
    /// # Errors
    /// No step, or more than there are.
    pub fn for_sampling(&self, count: usize) -> Result<Schedule> {
        let last = self.steps() - 1;
        if count == 0 || count > self.steps() {
            return Err(Error::usage(format!(
                "a picture cannot be drawn in {count} of {} steps",
                self.steps()
            ))
            .with_op("sample")
            .with_remedy(format!("choose 1 to {} steps", self.steps())));
        }
        match count {
            1 => self.respace(&[last]),
            _ => self.respace(&space_timesteps(self.steps(), &Respacing::Text(count.to_string()))?),
        }
    }

    /// The deterministic step from `x` at `index` to the index before, given the predicted clean image:
    /// `eps = (sqrt(1 / abar) x - pred) / sqrt(1 / abar - 1)`, `sqrt(abar_prev) pred + sqrt(1 - abar_prev) eps`.
    ///
    /// The noise is taken from the prediction, which may have been clamped, not from the network. At index 0 the result is the
    /// prediction.
    ///
    /// # Errors
    /// Shapes that differ, an index outside the schedule.
    pub fn ddim_step(&self, x: &Tensor, pred_xstart: &Tensor, index: usize) -> Result<Tensor> {
        self.check_index("ddim_step", index)?;
        let (recip, recipm1) =
            (self.sqrt_recip_alphas_cumprod[index], self.sqrt_recipm1_alphas_cumprod[index]);
        let prev = self.alphas_cumprod_prev[index];
        let (keep, add) = (prev.sqrt(), (1.0 - prev).sqrt());
        combine("ddim_step", x, pred_xstart, |x, p| keep * p + add * ((recip * x - p) / recipm1))
    }

    /// The mean of `q(x_{t-1} | x_t, x_0)` for the predicted clean image.
    ///
    /// # Errors
    /// As [`Schedule::ddim_step`].
    pub fn posterior_mean(&self, x: &Tensor, pred_xstart: &Tensor, index: usize) -> Result<Tensor> {
        self.check_index("posterior_mean", index)?;
        let (of_image, of_x) = (self.posterior_mean_coef1[index], self.posterior_mean_coef2[index]);
        combine("posterior_mean", x, pred_xstart, |x, p| of_image * p + of_x * x)
    }

    /// The step from `x` at `index` to the index before with fresh noise: the posterior's mean for the predicted clean image,
    /// plus `noise` times the standard deviation that the network predicts between the posterior's and that of beta. A
    /// network that predicts none has beta's, at index 0 the posterior's; nothing is added at index 0.
    ///
    /// # Errors
    /// Shapes that do not fit, an index outside the schedule.
    pub fn ancestral_step(
        &self,
        x: &Tensor,
        model_output: &Tensor,
        pred_xstart: &Tensor,
        index: usize,
        noise: &Tensor,
    ) -> Result<Tensor> {
        const OP: &str = "ancestral_step";
        let mean = self.posterior_mean(x, pred_xstart, index)?;
        if index == 0 {
            return Ok(mean);
        }
        let (c, oc) = (x.shape().last(), model_output.shape().last());
        if noise.shape() != x.shape()
            || model_output.elems() * c != x.elems() * oc
            || (oc != c && oc != 2 * c)
        {
            return Err(Error::shape(OP, "noise and prediction must fit the image")
                .with_tensor("x", x)
                .with_tensor("model output", model_output)
                .with_tensor("noise", noise));
        }
        let (least, most) = (self.posterior_log_variance_clipped[index], self.betas[index].ln());
        let output = model_output.f32s()?;
        let deviation = |i: usize| {
            let log_variance = match oc == c {
                true => most,
                false => {
                    let share = (f64::from(output[i / c * oc + c + i % c]) + 1.0) / 2.0;
                    share * most + (1.0 - share) * least
                }
            };
            (0.5 * log_variance).exp()
        };
        let pairs = mean.f32s()?.par_iter().zip(noise.f32s()?).enumerate();
        let values = pairs.map(|(i, (m, z))| (f64::from(*m) + deviation(i) * f64::from(*z)) as f32).collect();
        Tensor::from_vec(x.shape(), values)
    }
}

/// `f` of every pair of elements, in f64.
fn combine(op: &str, x: &Tensor, y: &Tensor, f: impl Fn(f64, f64) -> f64 + Sync) -> Result<Tensor> {
    if x.shape() != y.shape() {
        return Err(Error::shape(op, "the image and its prediction must have one shape")
            .with_tensor("x", x)
            .with_tensor("pred_xstart", y));
    }
    let pairs = x.f32s()?.par_iter().zip(y.f32s()?);
    let values = pairs.map(|(x, y)| f(f64::from(*x), f64::from(*y)) as f32).collect();
    Tensor::from_vec(x.shape(), values)
}

/// Draws pictures `[N, H, W, C]` in -1..1 out of noise, visiting the steps of `schedule` from the last to the first. The
/// picture at a position depends on `root` and the position alone. `on_step` sees how many steps are done.
///
/// # Errors
/// No picture, shapes that do not fit, or an error of `model` or `on_step`.
pub fn sample(
    schedule: &Schedule,
    sampler: Sampler,
    root: Philox,
    positions: &[u64],
    picture: [usize; 3],
    model: &mut EpsModel<'_>,
    on_step: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Tensor> {
    let steps = schedule.steps();
    let draw = |step: usize| Noise::Fresh.draw(root, step as u64, positions, picture);
    // The noise of index i is stream i; what all begins with is the stream behind the last.
    let mut x = draw(steps)?;
    for index in (0..steps).rev() {
        let output = model(&x, schedule.timestep_map[index])?;
        let pred = schedule.predict_xstart(&x, &output, index, true)?;
        x = match sampler {
            Sampler::Ddim => schedule.ddim_step(&x, &pred, index)?,
            Sampler::Ancestral if index == 0 => schedule.posterior_mean(&x, &pred, index)?,
            Sampler::Ancestral => schedule.ancestral_step(&x, &output, &pred, index, &draw(index)?)?,
        };
        on_step(steps - index)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::super::BetaSchedule;
    use super::*;

    fn schedule() -> Schedule {
        Schedule::new(BetaSchedule::Linear, 1000).unwrap()
    }

    fn normal(seed: u64, shape: [usize; 4]) -> Tensor {
        let mut v = vec![0.0; shape.iter().product()];
        Philox::new(seed).fill_normal(&mut v);
        Tensor::from_vec(shape, v).unwrap()
    }

    /// The network of data that is one image: it knows the noise exactly.
    fn oracle<'a>(s: &'a Schedule, image: f32) -> impl FnMut(&Tensor, usize) -> Result<Tensor> + 'a {
        move |x, t| {
            let (a, b) = (s.sqrt_alphas_cumprod[t], s.sqrt_one_minus_alphas_cumprod[t]);
            let eps = x.f32s()?.iter().map(|x| ((f64::from(*x) - a * f64::from(image)) / b) as f32).collect();
            Tensor::from_vec(x.shape(), eps)
        }
    }

    #[test]
    fn one_image_is_found_by_both_samplers_in_any_number_of_steps() {
        let s = schedule();
        for sampler in [Sampler::Ddim, Sampler::Ancestral] {
            for steps in [1, 2, 50, 1000] {
                let short = s.for_sampling(steps).unwrap();
                let mut count = 0;
                let x = sample(
                    &short,
                    sampler,
                    Philox::new(1),
                    &[0, 1],
                    [2, 3, 3],
                    &mut oracle(&s, 0.25),
                    &mut |done| {
                        count += 1;
                        assert_eq!(done, count);
                        Ok(())
                    },
                )
                .unwrap();
                assert_eq!(count, steps);
                let worst = x.f32s().unwrap().iter().fold(0.0f32, |m, v| m.max((v - 0.25).abs()));
                assert!(worst <= 2e-3, "{sampler:?} {steps}: {worst}");
            }
        }
    }

    /// Data with mean 0 and standard deviation `sd` in every pixel: the best prediction of the noise is linear in x, so that
    /// the distribution of what comes out is known.
    #[test]
    fn the_spread_of_gaussian_data_is_found() {
        let (s, sd) = (schedule(), 0.2f64);
        for sampler in [Sampler::Ddim, Sampler::Ancestral] {
            let short = s.for_sampling(200).unwrap();
            let mut model = |x: &Tensor, t: usize| {
                let abar = s.alphas_cumprod[t];
                let slope = (1.0 - abar).sqrt() / (abar * sd * sd + 1.0 - abar);
                Tensor::from_vec(
                    x.shape(),
                    x.f32s()?.iter().map(|x| (slope * f64::from(*x)) as f32).collect(),
                )
            };
            let shape = [16, 16, 3];
            let positions: Vec<u64> = (0..8).collect();
            let x = sample(&short, sampler, Philox::new(3), &positions, shape, &mut model, &mut |_| Ok(()))
                .unwrap();
            let v = x.f32s().unwrap();
            let found = (v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
            assert!((found / sd - 1.0).abs() <= 0.05, "{sampler:?}: {found}");
        }
    }

    #[test]
    fn ddim_undoes_deterministic_encoding() {
        let s = schedule();
        let (x, eps) = (normal(1, [1, 2, 2, 3]), normal(2, [1, 2, 2, 3]));
        let pred = s.predict_xstart(&x, &eps, 400, false).unwrap();
        let later = s.ddim_reverse_from(&x, &pred, 400).unwrap();
        // The same clean image at the later index is the same noise.
        let back = s.ddim_step(&later, &pred, 401).unwrap();
        for (a, b) in back.f32s().unwrap().iter().zip(x.f32s().unwrap()) {
            assert!((a - b).abs() <= 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn the_predicted_variance_lies_between_two_ends() {
        let s = schedule();
        let (x, pred, noise) =
            (normal(1, [1, 1, 2, 1]), normal(2, [1, 1, 2, 1]), Tensor::full([1, 1, 2, 1], 1.0));
        // Two channels for each of two pixels: noise, then variance.
        let output = Tensor::from_vec([1, 1, 2, 2], vec![0.0f32, -1.0, 0.0, 1.0]).unwrap();
        let index = 3;
        let mean = s.posterior_mean(&x, &pred, index).unwrap();
        let y = s.ancestral_step(&x, &output, &pred, index, &noise).unwrap();
        let added: Vec<f64> =
            y.f32s().unwrap().iter().zip(mean.f32s().unwrap()).map(|(y, m)| f64::from(y - m)).collect();
        for (got, want) in added.iter().zip([s.posterior_variance[index].sqrt(), s.betas[index].sqrt()]) {
            assert!((got - want).abs() <= 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn a_picture_depends_on_its_position_alone() {
        let s = schedule().for_sampling(3).unwrap();
        let draw = |positions: &[u64]| {
            let mut model = |x: &Tensor, _: usize| Ok(x.clone());
            sample(&s, Sampler::Ancestral, Philox::new(9), positions, [2, 2, 1], &mut model, &mut |_| Ok(()))
                .unwrap()
        };
        let (all, one) = (draw(&[0, 1, 2]), draw(&[1]));
        assert_eq!(all.f32s().unwrap()[4..8], *one.f32s().unwrap());
    }

    #[test]
    fn wrong_uses_are_errors() {
        let s = schedule();
        for steps in [0, 1001] {
            assert!(s.for_sampling(steps).unwrap_err().is_usage());
        }
        assert_eq!(s.for_sampling(1).unwrap().timestep_map, [999]);
        assert_eq!(s.for_sampling(1000).unwrap().timestep_map, s.timestep_map);
        let (x, other) = (Tensor::zeros([1, 1, 1, 3]), Tensor::zeros([1, 1, 2, 3]));
        assert!(s.ddim_step(&x, &other, 3).unwrap_err().is_shape());
        assert!(s.ddim_step(&x, &x, 1000).unwrap_err().is_usage());
        assert!(s.ancestral_step(&x, &other, &x, 3, &x).unwrap_err().is_shape());
    }
}
