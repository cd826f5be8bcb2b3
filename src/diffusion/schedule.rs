//! Noise schedules and the forward process.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the betas grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// `linspace(1e-4 s, 0.02 s, steps)` with `s = 1000 / steps` (Ho et al. 2020; guided-diffusion).
    #[default]
    Linear,
    /// `linspace(sqrt(0.00085), sqrt(0.012), steps)^2` (Stable Diffusion).
    ScaledLinear,
}

impl BetaSchedule {
    fn betas(self, steps: usize) -> Vec<f64> {
        match self {
            BetaSchedule::Linear => {
                let scale = 1000.0 / steps as f64;
                linspace(scale * 0.0001, scale * 0.02, steps)
            }
            BetaSchedule::ScaledLinear => {
                linspace(0.00085f64.sqrt(), 0.012f64.sqrt(), steps).into_iter().map(|r| r * r).collect()
            }
        }
    }
}

/// `n` evenly spaced numbers with NumPy's rounding: the last one is exactly `stop`.
fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    let step = (stop - start) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if i > 0 && i + 1 == n { stop } else { i as f64 * step + start }).collect()
}

/// Which steps of a schedule to keep. In a recipe: `"ddim20"`, `"10,15,20"`, `""` (all), or a list of indices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "\"ddimN\", counts per section such as \"10,15,20\", or a list of step indices"
)]
pub enum Respacing {
    /// guided-diffusion's notation.
    Text(String),
    /// These steps.
    Steps(Vec<usize>),
}

/// The kept indices out of `0..steps`, ascending.
///
/// `"ddimN"` keeps N steps at an integer stride, beginning with 0. `"a,b,.."` cuts the steps into sections of equal
/// length and keeps `a`, `b`, .. of them at a fractional stride, rounded half to even.
///
/// # Errors
/// There is no such selection.
pub fn space_timesteps(steps: usize, respacing: &Respacing) -> Result<Vec<usize>> {
    let mut kept = match respacing {
        Respacing::Text(text) if text.is_empty() => (0..steps).collect(),
        Respacing::Text(text) => match text.strip_prefix("ddim") {
            Some(count) => ddim_stride(steps, text, count)?,
            None => sections(steps, text)?,
        },
        Respacing::Steps(list) => list.clone(),
    };
    kept.sort_unstable();
    kept.dedup();
    match kept.last() {
        None => Err(Error::usage("no diffusion step is kept").with_remedy("keep at least one step")),
        Some(&last) if last >= steps => Err(Error::usage(format!("step {last} does not exist"))
            .with_remedy(format!("choose indices below the schedule's {steps} steps"))),
        Some(_) => Ok(kept),
    }
}

fn ddim_stride(steps: usize, text: &str, count: &str) -> Result<Vec<usize>> {
    let wanted: usize = count.trim().parse().map_err(|e| {
        Error::usage(format!("\"{text}\" names no number of steps ({e})"))
            .with_remedy("write e.g. \"ddim20\"")
    })?;
    let stride = (1..steps).find(|&s| steps.div_ceil(s) == wanted);
    stride.map(|s| (0..steps).step_by(s).collect()).ok_or_else(|| {
        let mut counts: Vec<usize> = (1..steps).map(|s| steps.div_ceil(s)).collect();
        counts.dedup();
        let nearest = counts.into_iter().min_by_key(|c| c.abs_diff(wanted));
        let e = Error::usage(format!("no integer stride keeps exactly {wanted} of {steps} steps"));
        match nearest {
            Some(n) => e.with_remedy(format!("use \"ddim{n}\", or list the steps")),
            None => e.with_remedy("use a schedule with more than one step"),
        }
    })
}

fn sections(steps: usize, text: &str) -> Result<Vec<usize>> {
    let counts: Vec<usize> = text
        .split(',')
        .map(|c| {
            c.trim().parse().map_err(|e| {
                Error::usage(format!("\"{text}\" is no list of section counts ({e})"))
                    .with_remedy("write e.g. \"ddim20\" or \"10,15,20\"")
            })
        })
        .collect::<Result<_>>()?;
    let (size_per, extra) = (steps / counts.len(), steps % counts.len());
    let (mut start, mut kept) = (0, Vec::new());
    for (i, &count) in counts.iter().enumerate() {
        let size = size_per + usize::from(i < extra);
        if size < count {
            return Err(Error::usage(format!("a section of {size} steps has no {count} steps to keep"))
                .with_remedy(format!("let the counts of \"{text}\" be at most {size_per}")));
        }
        let stride = if count <= 1 { 1.0 } else { (size - 1) as f64 / (count - 1) as f64 };
        // The position is summed, not multiplied: the rounding of the sum decides ties.
        let mut at = 0.0f64;
        for _ in 0..count {
            kept.push(start + at.round_ties_even() as usize);
            at += stride;
        }
        start += size;
    }
    Ok(kept)
}

/// A noise schedule with every table that sampling and encoding need. All tables have one f64 entry per step.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Variance added by each step.
    pub betas: Vec<f64>,
    /// Product of `1 - beta` up to and including each step: the share of the image's variance that is left.
    pub alphas_cumprod: Vec<f64>,
    /// The same one step earlier; 1 at step 0.
    pub alphas_cumprod_prev: Vec<f64>,
    /// The same one step later; 0 at the last step.
    pub alphas_cumprod_next: Vec<f64>,
    /// Factor of the image in `q(x_t | x_0)`.
    pub sqrt_alphas_cumprod: Vec<f64>,
    /// Factor of the noise in `q(x_t | x_0)`.
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    /// Log-variance of `q(x_t | x_0)`.
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    /// Factor of `x_t` in the predicted image.
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    /// Factor of the noise in the predicted image.
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of `q(x_{t-1} | x_t, x_0)`; 0 at step 0.
    pub posterior_variance: Vec<f64>,
    /// Its logarithm, with step 0 given the value of step 1.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Factor of `x_0` in the mean of `q(x_{t-1} | x_t, x_0)`.
    pub posterior_mean_coef1: Vec<f64>,
    /// Factor of `x_t` in the mean of `q(x_{t-1} | x_t, x_0)`.
    pub posterior_mean_coef2: Vec<f64>,
    /// The index that the network was trained with, for each step; the identity unless respaced.
    pub timestep_map: Vec<usize>,
}

impl Schedule {
    /// A schedule of `steps` steps.
    ///
    /// # Errors
    /// No step, or so few that the linear schedule's betas reach 1.
    pub fn new(betas: BetaSchedule, steps: usize) -> Result<Self> {
        Self::from_betas(betas.betas(steps))
    }

    /// A schedule with given betas.
    ///
    /// # Errors
    /// No beta, or one outside (0, 1).
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        let map = (0..betas.len()).collect();
        Self::with_map(betas, map)
    }

    fn with_map(betas: Vec<f64>, timestep_map: Vec<usize>) -> Result<Self> {
        if betas.is_empty() {
            return Err(
                Error::usage("a noise schedule needs at least one step").with_remedy("set `steps` above 0")
            );
        }
        if let Some(i) = betas.iter().position(|b| !(*b > 0.0 && *b < 1.0)) {
            return Err(Error::usage(format!("beta {} of step {i} is not between 0 and 1", betas[i]))
                .with_remedy("use more steps: the linear schedule needs at least 21"));
        }
        let mut product = 1.0;
        let bar: Vec<f64> = betas
            .iter()
            .map(|b| {
                product *= 1.0 - b;
                product
            })
            .collect();
        let n = betas.len();
        let prev: Vec<f64> = std::iter::once(1.0).chain(bar[..n - 1].iter().copied()).collect();
        let next: Vec<f64> = bar[1..].iter().copied().chain(std::iter::once(0.0)).collect();
        let of_bar = |f: fn(f64) -> f64| bar.iter().map(|&a| f(a)).collect::<Vec<f64>>();
        let posterior = |f: fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..n).map(|i| f(betas[i], prev[i], 1.0 - bar[i])).collect()
        };
        let variance = posterior(|beta, prev, rest| beta * (1.0 - prev) / rest);
        // The variance of step 0 is 0; a schedule of one step has no step 1 to borrow from and takes its beta.
        let first = variance.get(1).copied().unwrap_or(betas[0]);
        Ok(Schedule {
            sqrt_alphas_cumprod: of_bar(f64::sqrt),
            sqrt_one_minus_alphas_cumprod: of_bar(|a| (1.0 - a).sqrt()),
            log_one_minus_alphas_cumprod: of_bar(|a| (1.0 - a).ln()),
            sqrt_recip_alphas_cumprod: of_bar(|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alphas_cumprod: of_bar(|a| (1.0 / a - 1.0).sqrt()),
            posterior_log_variance_clipped: std::iter::once(first)
                .chain(variance[1..].iter().copied())
                .map(f64::ln)
                .collect(),
            posterior_mean_coef1: posterior(|beta, prev, rest| beta * prev.sqrt() / rest),
            posterior_mean_coef2: posterior(|beta, prev, rest| (1.0 - prev) * (1.0 - beta).sqrt() / rest),
            posterior_variance: variance,
            alphas_cumprod: bar,
            alphas_cumprod_prev: prev,
            alphas_cumprod_next: next,
            betas,
            timestep_map,
        })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// The schedule that visits only `kept` (indices into this one): `beta_i = 1 - abar_i / abar_previous_kept`.
    ///
    /// # Errors
    /// No index, one that does not exist, or indices that are not strictly ascending.
    pub fn respace(&self, kept: &[usize]) -> Result<Schedule> {
        if !kept.is_sorted_by(|a, b| a < b) {
            return Err(Error::usage("the kept steps are not strictly ascending")
                .with_remedy("sort them and remove duplicates"));
        }
        let mut last = 1.0;
        let mut betas = Vec::with_capacity(kept.len());
        for &i in kept {
            self.check_index("respace", i)?;
            betas.push(1.0 - self.alphas_cumprod[i] / last);
            last = self.alphas_cumprod[i];
        }
        Self::with_map(betas, kept.iter().map(|&i| self.timestep_map[i]).collect())
    }

    /// An error unless step `t` exists.
    pub(super) fn check_index(&self, op: &str, t: usize) -> Result<()> {
        if t < self.steps() {
            return Ok(());
        }
        Err(Error::usage(format!("step t = {t} does not exist")).with_op(op).with_remedy(format!(
            "choose t between 0 and {}; it is an index, counted from 0",
            self.steps() - 1
        )))
    }

    /// The forward process: `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`, one index `t` per sample.
    ///
    /// `x0` and `noise` are f32 `[N, H, W, C]`; the factors are rounded to f32 first, as guided-diffusion does.
    ///
    /// # Errors
    /// Shapes that differ, another number of indices than samples, an index outside the schedule.
    pub fn q_sample(&self, x0: &Tensor, t: &[usize], noise: &Tensor) -> Result<Tensor> {
        const OP: &str = "q_sample";
        let (n, h, w, c) = x0.shape().nhwc(OP)?;
        if noise.shape() != x0.shape() || t.len() != n {
            return Err(Error::shape(
                OP,
                format!("needs noise of the image's shape and one step per sample, got {} steps", t.len()),
            )
            .with_tensor("x0", x0)
            .with_tensor("noise", noise));
        }
        t.iter().try_for_each(|&t| self.check_index(OP, t))?;
        let (x, e) = (x0.f32s()?, noise.f32s()?);
        let size = h * w * c;
        let mut out = vec![0.0f32; x.len()];
        if size > 0 {
            let inputs = x.par_chunks(size).zip(e.par_chunks(size)).zip(t);
            out.par_chunks_mut(size).zip(inputs).for_each(|(out, ((x, e), &t))| {
                let a = self.sqrt_alphas_cumprod[t] as f32;
                let b = self.sqrt_one_minus_alphas_cumprod[t] as f32;
                for ((o, x), e) in out.iter_mut().zip(x).zip(e) {
                    *o = a * x + b * e;
                }
            });
        }
        Tensor::from_vec(x0.shape(), out)
    }
}
