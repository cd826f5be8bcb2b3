//! The steps of a teacher's training on the CPU.

use super::labels;
use crate::diffusion::{Denoiser, DenoiserStep};
use crate::error::Result;
use crate::recipe::TeacherRecipe;
use crate::train::engine::{Engine, HostUpdate, Job, Outcome, State};
use std::collections::VecDeque;
use std::time::Instant;

/// The CPU.
pub(super) struct HostEngine {
    update: HostUpdate,
    done: VecDeque<Outcome<DenoiserStep>>,
}

impl HostEngine {
    pub fn new(recipe: &TeacherRecipe, denoiser: &Denoiser) -> Result<Self> {
        let (train, store) = (&recipe.train, denoiser.params());
        let update = HostUpdate::new(&recipe.optimizer, train.clip_grad, train.ema.as_ref(), store)?;
        Ok(HostEngine { update, done: VecDeque::new() })
    }
}

impl Engine<Denoiser> for HostEngine {
    type Numbers = DenoiserStep;

    fn step(&mut self, denoiser: &mut Denoiser, job: Job<'_>) -> Result<()> {
        let start = Instant::now();
        let batch = (job.batch)()?;
        let labels = labels(denoiser.net().config(), &batch)?;
        let mut numbers = denoiser.step(&batch.images, labels.as_ref(), job.step)?;
        let grads = std::mem::take(&mut numbers.grads);
        let grad_norm = self.update.apply(denoiser.params_mut(), grads, job.lr)?;
        let (step, lr, time) = (job.step, job.lr, start.elapsed());
        self.done.push_back(Outcome { step, numbers, lr, grad_norm, time, data_wait: batch.wait });
        Ok(())
    }

    fn finished(&mut self, _: &Denoiser, _: bool) -> Result<Vec<Outcome<DenoiserStep>>> {
        Ok(self.done.drain(..).collect())
    }

    fn synchronize(&mut self, _: &mut Denoiser) -> Result<()> {
        Ok(())
    }

    fn optimizer_state(&self) -> Result<State> {
        Ok(self.update.optimizer_state())
    }

    fn average_state(&self) -> Result<Option<State>> {
        Ok(self.update.average_state())
    }

    fn load(&mut self, denoiser: &Denoiser, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.update.load(denoiser.params(), optimizer, average)
    }
}
