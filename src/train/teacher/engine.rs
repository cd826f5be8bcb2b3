//! What makes the steps of a teacher's training.

use super::TeacherReport;
use crate::data::Batch;
use crate::diffusion::Denoiser;
use crate::error::Result;
use crate::optim::{Ema, Optimizer, clip_grad_norm};
use crate::recipe::TeacherRecipe;
use crate::tensor::Tensor;
use crate::train::engine::{State, load_states, update_params};
use std::time::Instant;

/// A step that is to be made.
pub(super) struct Job {
    /// Counted from 0.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// The images.
    pub batch: Batch,
    /// Their classes, for a class-conditional network.
    pub labels: Option<Tensor>,
}

/// Makes steps. The network on the host is up to date after [`Engine::synchronize`].
pub(super) trait Engine {
    /// Makes a step. What the caller knows (numbers of steps, epoch, images) is left 0.
    fn step(&mut self, denoiser: &mut Denoiser, job: Job) -> Result<TeacherReport>;
    /// Brings the network on the host up to date.
    fn synchronize(&mut self, denoiser: &mut Denoiser) -> Result<()>;
    /// State of the optimiser.
    fn optimizer_state(&self) -> Result<State>;
    /// State of the average of the network, if there is one.
    fn average_state(&self) -> Result<Option<State>>;
    /// Goes on from states; the network has its values already.
    fn load(&mut self, denoiser: &Denoiser, optimizer: &State, average: Option<&State>) -> Result<()>;
}

/// The CPU.
pub(super) struct HostEngine {
    clip_grad: Option<f64>,
    optimizer: Box<dyn Optimizer>,
    ema: Option<Ema>,
}

impl HostEngine {
    pub fn new(recipe: &TeacherRecipe, denoiser: &Denoiser) -> Result<Self> {
        let values = denoiser.params().iter().map(|(_, p)| (p.name(), p.value()));
        Ok(HostEngine {
            clip_grad: recipe.train.clip_grad,
            optimizer: recipe.optimizer.build()?,
            ema: recipe.train.ema.clone().map(|config| Ema::new(config, values)).transpose()?,
        })
    }
}

impl Engine for HostEngine {
    fn step(&mut self, denoiser: &mut Denoiser, job: Job) -> Result<TeacherReport> {
        let start = Instant::now();
        let mut out = denoiser.step(&job.batch.images, job.labels.as_ref(), job.step)?;
        let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
        let norm = self.clip_grad.map(|max| clip_grad_norm(&mut grads, max)).transpose()?;
        let stats = update_params(&mut *self.optimizer, denoiser.params_mut(), &out.grads, job.lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update(denoiser.params().iter().map(|(_, p)| (p.name(), p.value())))?;
        }
        Ok(TeacherReport {
            step: 0,
            total_steps: 0,
            epoch: 0.0,
            loss: out.loss,
            mse: out.mse,
            vlb: out.vlb,
            quarters: out.quarters,
            lr: job.lr,
            grad_norm: norm.unwrap_or(stats.grad_norm),
            time: start.elapsed() + job.batch.wait,
            data_wait: job.batch.wait,
            images: 0,
        })
    }

    fn synchronize(&mut self, _: &mut Denoiser) -> Result<()> {
        Ok(())
    }

    fn optimizer_state(&self) -> Result<State> {
        Ok(self.optimizer.state())
    }

    fn average_state(&self) -> Result<Option<State>> {
        Ok(self.ema.as_ref().map(Ema::state))
    }

    fn load(&mut self, denoiser: &Denoiser, optimizer: &State, average: Option<&State>) -> Result<()> {
        load_states(denoiser.params(), &mut *self.optimizer, optimizer, self.ema.as_mut().zip(average))
    }
}
