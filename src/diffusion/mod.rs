//! The arithmetic of diffusion: noise schedules, the forward process, deterministic DDIM encoding, training, sampling.
//!
//! Follows guided-diffusion (Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021): time steps
//! are indices `0..steps` and index 0 already holds one step of noise. Tables are f64, images f32 `[N, H, W, C]`.

mod ddim;
mod denoiser;
mod noise;
mod sample;
mod schedule;

pub use ddim::{DdimStep, EpsModel, ddim_encode};
pub use denoiser::{Bound, Denoiser, DenoiserStep, NoisyBatch, ProcessConfig};
pub use noise::Noise;
pub use sample::{Sampler, sample};
pub use schedule::{BetaSchedule, Respacing, Schedule, space_timesteps};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a training image becomes the input of the frozen network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Noise is added ([`Schedule::q_sample`]): one pass of the network.
    #[default]
    Stochastic,
    /// The network itself carries the image to step `t` ([`ddim_encode`]): one pass per step on the way.
    Ddim,
}

/// The diffusion part of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// The betas that the network was trained with.
    pub schedule: BetaSchedule,
    /// Number of steps that the network was trained with.
    pub steps: usize,
    /// The step at which features are read, as an index.
    pub t: usize,
    /// Where noise comes from (stochastic encoding).
    pub noise: Noise,
    /// How images are encoded.
    pub encoding: Encoding,
    /// The steps that deterministic encoding visits; `t` must be one of them.
    pub ddim_steps: Respacing,
    /// Clamp the predicted image to [-1, 1] in deterministic encoding. Off for latents.
    pub clip_denoised: bool,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        DiffusionConfig {
            schedule: BetaSchedule::Linear,
            steps: 1000,
            t: 150,
            noise: Noise::Fresh,
            encoding: Encoding::Stochastic,
            ddim_steps: Respacing::Text("ddim20".into()),
            clip_denoised: true,
        }
    }
}

impl DiffusionConfig {
    /// The full schedule.
    ///
    /// # Errors
    /// A number of steps that gives no valid schedule, or `t` outside it.
    pub fn build(&self) -> Result<Schedule> {
        let schedule = Schedule::new(self.schedule, self.steps)?;
        schedule.check_index("diffusion", self.t).map_err(|e| e.with_key("t"))?;
        Ok(schedule)
    }

    /// The respaced schedule of deterministic encoding, and the number of its steps that lead to `t`.
    ///
    /// # Errors
    /// As [`DiffusionConfig::build`]; the respacing does not exist or does not keep `t`.
    pub fn build_ddim(&self) -> Result<(Schedule, usize)> {
        let kept = space_timesteps(self.steps, &self.ddim_steps).map_err(|e| e.with_key("ddim_steps"))?;
        let schedule = self.build()?.respace(&kept)?;
        match kept.binary_search(&self.t) {
            Ok(steps) => Ok((schedule, steps)),
            Err(above) => {
                let near: Vec<String> = kept[above.saturating_sub(1)..kept.len().min(above + 1)]
                    .iter()
                    .map(usize::to_string)
                    .collect();
                Err(Error::usage(format!("the DDIM steps do not include t = {}", self.t))
                    .with_key("ddim_steps")
                    .with_remedy(format!("set `t` to {}, or choose steps that keep it", near.join(" or "))))
            }
        }
    }
}

#[cfg(test)]
mod tests;
