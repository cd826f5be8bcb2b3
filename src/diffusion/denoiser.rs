//! A diffusion network in training: images to loss and gradients, and its prediction for sampling.

use super::{Noise, Schedule};
use crate::base::Philox;
use crate::cpu;
use crate::error::{Error, Result};
use crate::models::adm::{AdmUnet, Time};
use crate::nn::{Ctx, ParamId, ParamStore};
use crate::ops::diffusion_loss::DiffusionLoss;
use crate::tape::Var;
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The diffusion part of a teacher's recipe: what the network learns to undo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessConfig {
    /// How the betas grow.
    pub schedule: super::BetaSchedule,
    /// Number of diffusion steps.
    pub steps: usize,
    /// Factor of the variational bound in the loss of a network that also predicts a variance. 1 is guided-diffusion's, and
    /// 0.001 times the sum over 1000 steps of Nichol and Dhariwal.
    pub vlb_weight: f32,
}

/// Samples of a batch that go through the network together on the CPU.
const PART: usize = 8;

impl Default for ProcessConfig {
    fn default() -> Self {
        ProcessConfig { schedule: super::BetaSchedule::Linear, steps: 1000, vlb_weight: 1.0 }
    }
}

impl ProcessConfig {
    /// The schedule.
    ///
    /// # Errors
    /// A number of steps that gives none, or a weight that is negative or not finite.
    pub fn build(&self) -> Result<Schedule> {
        if !(0.0..f32::INFINITY).contains(&self.vlb_weight) {
            return Err(Error::usage(format!("{} is no weight", self.vlb_weight))
                .with_key("diffusion.vlb_weight")
                .with_remedy("set it to 0 or more"));
        }
        Schedule::new(self.schedule, self.steps).map_err(|e| e.with_key("diffusion.steps"))
    }
}

impl Schedule {
    /// What the variational bound has to know of every step, measured in standard deviations of the posterior
    /// `q(x_{t-1} | x_t, x_0)`, whose variance at step 0 is that of step 1: `[steps, 2]` with the logarithm of beta over the
    /// variance, and the shift of the mean for a unit error of the noise; and half the distance of two pixel values at step 0.
    pub fn bound_tables(&self) -> (Tensor, f32) {
        let row = |t: usize| {
            let log_variance = self.posterior_log_variance_clipped[t];
            let shift = self.posterior_mean_coef1[t] * self.sqrt_recipm1_alphas_cumprod[t];
            [(self.betas[t].ln() - log_variance) as f32, (shift * (-0.5 * log_variance).exp()) as f32]
        };
        let values = (0..self.steps()).flat_map(row).collect();
        let tables = Tensor::from_vec([self.steps(), 2], values).expect("two numbers for every step");
        let half_bin = (-0.5 * self.posterior_log_variance_clipped[0]).exp() / 255.0;
        (tables, half_bin as f32)
    }
}

/// What one step gave.
pub struct DenoiserStep {
    /// The loss.
    pub loss: f32,
    /// Mean squared error of the predicted noise.
    pub mse: f32,
    /// The variational bound in bits per dimension, unweighted; 0 where the network predicts no variance.
    pub vlb: f32,
    /// Mean loss of the samples whose step lies in each quarter of the schedule; `None` where there is none.
    pub quarters: [Option<f32>; 4],
    /// A gradient for every trainable parameter that the loss reaches, in the store's order and memory layout.
    pub grads: Vec<(ParamId, Tensor)>,
}

/// What a part of a batch gave, times its share.
struct Part {
    loss: f32,
    /// Squared error and bound of every sample.
    samples: Vec<f32>,
    grads: Vec<(ParamId, Tensor)>,
}

/// Images of a training step with their noise, as the loss takes them: all in host memory, or all on a device.
pub struct NoisyBatch {
    /// Image and noise, mixed: `[N, H, W, C]`, of the network's type.
    pub noisy: Tensor,
    /// The noise, f32 `[N, H, W, C]`.
    pub noise: Tensor,
    /// The classes, i64 `[N]`, for a class-conditional network.
    pub labels: Option<Tensor>,
    /// What the variational bound needs, for a network that predicts a variance, and only then.
    pub bound: Option<Bound>,
}

/// What the variational bound of a [`NoisyBatch`] needs.
pub struct Bound {
    /// The images in -1..1, f32 `[N, H, W, C]`.
    pub images: Tensor,
    /// The step of each, i64 `[N]`.
    pub index: Tensor,
    /// Those of [`Denoiser::tables`].
    pub tables: Tensor,
}

/// An ADM U-Net, its parameters and the process that it learns to undo. It computes gradients; whoever drives it applies
/// them.
pub struct Denoiser {
    net: AdmUnet,
    store: ParamStore,
    schedule: Schedule,
    tables: Tensor,
    loss: DiffusionLoss,
    root: Philox,
}

impl Denoiser {
    /// Puts the parts together. `seed` is the root of time steps, noise and dropout.
    ///
    /// # Errors
    /// A process without a schedule.
    pub fn new(net: AdmUnet, store: ParamStore, process: &ProcessConfig, seed: u64) -> Result<Self> {
        let schedule = process.build()?;
        let (tables, half_bin) = schedule.bound_tables();
        let loss = DiffusionLoss { vlb_weight: process.vlb_weight, half_bin };
        let root = Philox::new(seed).fold_str("denoiser");
        Ok(Denoiser { net, store, schedule, tables, loss, root })
    }

    /// The network.
    pub fn net(&self) -> &AdmUnet {
        &self.net
    }

    /// The parameters.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// The parameters, to be updated.
    pub fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.store
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The time steps of the samples at `positions` of a training step's batch: uniform over the schedule.
    pub fn times(&self, step: u64, positions: &[u64]) -> Vec<usize> {
        let steps = self.schedule.steps() as u32;
        let base = self.root.fold_str("time").fold(step);
        positions.iter().map(|&p| base.fold(p).sequence().below(steps) as usize).collect()
    }

    /// The stream of the noise of a sample of a training step.
    pub fn noise_stream(&self, step: u64, position: u64) -> Philox {
        Noise::Fresh.stream(self.root.fold_str("noise"), step, position)
    }

    /// The stream of dropout of a training step's samples from position `first` on, which go through the network together. On
    /// the CPU these are parts of eight samples; a device takes the whole batch at once, so that with more samples than eight
    /// and dropout the masks of the two differ.
    pub fn dropout_stream(&self, step: u64, first: u64) -> Philox {
        self.root.fold_str("dropout").fold(step).fold(first)
    }

    /// Loss and gradients of a batch of clean images `[N, H, W, 3]` in -1..1, with labels `[N]` (i64) for a class-conditional
    /// network. All randomness follows from the seed, `step` and the samples' places in the batch.
    ///
    /// The batch is cut into parts of eight samples, which run side by side: small activations stay in caches, and what a
    /// single operation cannot share among threads is shared. The parts and the order of their sum do not depend on the
    /// number of threads.
    ///
    /// # Errors
    /// Wrong shapes; a loss that is not finite.
    pub fn step(&self, images: &Tensor, labels: Option<&Tensor>, step: u64) -> Result<DenoiserStep> {
        let (n, h, w, c) = images.shape().nhwc("denoiser")?;
        if let Some(l) = labels.filter(|l| *l.shape() != [n]) {
            return Err(
                Error::shape("denoiser", format!("{n} images need as many labels")).with_tensor("labels", l)
            );
        }
        let positions: Vec<u64> = (0..n as u64).collect();
        let times = self.times(step, &positions);
        let outs = cpu::map_ordered(n.div_ceil(PART), |i| {
            let range = i * PART..((i + 1) * PART).min(n);
            let pixels = images.f32s()?[range.start * h * w * c..range.end * h * w * c].to_vec();
            let images = Tensor::from_vec([range.len(), h, w, c], pixels)?;
            let labels =
                labels.map(|l| Tensor::from_vec([range.len()], l.data::<i64>()?[range.clone()].to_vec()));
            let share = range.len() as f32 / n as f32;
            self.part(images, labels.transpose()?, step, &positions[range.clone()], &times[range], share)
        });
        let (mut loss, mut samples, mut grads) = (0.0f32, Vec::with_capacity(2 * n), Vec::new());
        for part in outs {
            let part = part?;
            loss += part.loss;
            samples.extend(part.samples);
            if grads.is_empty() {
                grads = part.grads;
                continue;
            }
            // The same network reaches the same parameters in every part.
            grads.par_iter_mut().zip(part.grads).try_for_each(|((_, sum), (_, g))| -> Result<()> {
                sum.data_mut::<f32>()?.iter_mut().zip(g.f32s()?).for_each(|(s, g)| *s += g);
                Ok(())
            })?;
        }
        let numbers = self.numbers(loss, &samples, &times);
        if !loss.is_finite() {
            return Err(Error::numeric(
                "diffusion_loss",
                format!("is {loss} at step {step} (mse {}, bound {})", numbers.mse, numbers.vlb),
            )
            .with_remedy("lower the learning rate, or clip the gradient"));
        }
        Ok(DenoiserStep { grads, ..numbers })
    }

    /// Loss and gradients of some samples of a batch, times their `share` in it: those at `positions`, with the time steps
    /// `times`.
    fn part(
        &self,
        images: Tensor,
        labels: Option<Tensor>,
        step: u64,
        positions: &[u64],
        times: &[usize],
        share: f32,
    ) -> Result<Part> {
        let (n, h, w, c) = images.shape().nhwc("denoiser")?;
        let noise = Noise::Fresh.draw(self.root.fold_str("noise"), step, positions, [h, w, c])?;
        let noisy = self.schedule.q_sample(&images, times, &noise)?;
        let rng = self.dropout_stream(step, positions.first().copied().unwrap_or(0));
        let mut ctx = Ctx::training(&self.store, rng);
        let bound = self.net.config().learn_sigma.then(|| {
            let index = times.iter().map(|&t| t as i64).collect();
            Ok::<_, Error>(Bound {
                images,
                index: Tensor::from_vec([n], index)?,
                tables: self.tables.clone(),
            })
        });
        let batch = NoisyBatch { noisy, noise, labels, bound: bound.transpose()? };
        let (total, samples) = self.objective(&mut ctx, &Time::Steps(&self.network_times(times)), batch)?;
        let loss = share * total.tensor().item()?;
        let samples = samples.f32s()?.to_vec();
        let mut g = ctx.backward_from(vec![(total.clone(), Tensor::full(total.shape(), share))])?;
        let ids = self.store.iter().map(|(id, _)| id);
        let grads = ids.filter_map(|id| Some((id, g.take_param(id)?))).collect();
        Ok(Part { loss, samples, grads })
    }

    /// The time steps as the network knows them, which is where the schedule has them.
    pub fn network_times(&self, times: &[usize]) -> Vec<f32> {
        times.iter().map(|&t| self.schedule.timestep_map[t] as f32).collect()
    }

    /// What the bound has to know of every step: [`Schedule::bound_tables`], f32 `[steps, 2]`.
    pub fn tables(&self) -> &Tensor {
        &self.tables
    }

    /// The loss of a batch at the network's `time`, a scalar on the tape of `ctx`, and its two parts for every image,
    /// `[N, 2]`. `ctx` holds the network's parameters, here or on a device, and all tensors lie where they do.
    ///
    /// # Errors
    /// Shapes that do not fit; labels or a bound that the network does not take, or needs.
    pub fn objective<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        time: &Time<'_>,
        batch: NoisyBatch,
    ) -> Result<(Var, Tensor)> {
        let NoisyBatch { noisy, noise, labels, bound } = batch;
        let x = ctx.constant(noisy);
        let labels = labels.map(|l| ctx.constant(l));
        let prediction = self.net.forward(ctx, &x, time, labels.as_ref())?;
        drop(x);
        let noise = ctx.constant(noise);
        let (total, parts) = match bound {
            Some(Bound { images, index, tables }) => {
                let [images, index, tables] = [images, index, tables].map(|t| ctx.constant(t));
                ctx.apply_aux(self.loss.clone(), &[&prediction, &noise, &images, &index, &tables])?
            }
            None => ctx.apply_aux(self.loss.clone(), &[&prediction, &noise])?,
        };
        match parts.into_iter().next() {
            Some(parts) => Ok((total, parts)),
            None => {
                Err(Error::device("planning tensors have no parts of the loss").with_op("diffusion_loss"))
            }
        }
    }

    /// The numbers of a step, without gradients, from the two parts of the loss of every sample.
    pub fn numbers(&self, loss: f32, parts: &[f32], times: &[usize]) -> DenoiserStep {
        let mean = |of: &dyn Fn(usize) -> Option<f64>| {
            let values: Vec<f64> = (0..times.len()).filter_map(of).collect();
            (!values.is_empty()).then(|| (values.iter().sum::<f64>() / values.len() as f64) as f32)
        };
        let part = |i: usize, k: usize| f64::from(parts[2 * i + k]);
        let quarter = |q: usize| {
            let here = |i: usize| 4 * times[i] / self.schedule.steps() == q;
            let of = |i: usize| part(i, 0) + f64::from(self.loss.vlb_weight) * part(i, 1);
            mean(&|i| here(i).then(|| of(i)))
        };
        DenoiserStep {
            loss,
            mse: mean(&|i| Some(part(i, 0))).unwrap_or(0.0),
            vlb: mean(&|i| Some(part(i, 1))).unwrap_or(0.0),
            quarters: [0, 1, 2, 3].map(quarter),
            grads: Vec::new(),
        }
    }
}
