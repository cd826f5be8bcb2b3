//! A run's steps on a device.

use super::DeviceStep;
use crate::distill::Distiller;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::recipe::Recipe;
use crate::train::engine::{Engine, Job, Numbers, Outcome, State};
use std::collections::VecDeque;
use std::time::Duration;

/// [`DeviceStep`] as a run drives it.
pub(in crate::train) struct DeviceEngine {
    step: DeviceStep,
    /// Learning rate and wait for images of the steps under way.
    launched: VecDeque<(f64, Duration)>,
}

impl DeviceEngine {
    pub fn new(recipe: &Recipe, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        Ok(DeviceEngine { step: DeviceStep::new(recipe, distiller, gpu)?, launched: VecDeque::new() })
    }
}

impl Engine<Distiller> for DeviceEngine {
    type Numbers = Numbers;

    fn step(&mut self, distiller: &mut Distiller, job: Job<'_>) -> Result<()> {
        let mut wait = Duration::ZERO;
        let images = |_| {
            let batch = (job.batch)()?;
            wait += batch.wait;
            Ok(batch.images)
        };
        self.step.launch(distiller, job.step, job.lr, images)?;
        self.launched.push_back((job.lr, wait));
        Ok(())
    }

    fn finished(&mut self, distiller: &Distiller, all: bool) -> Result<Vec<Outcome<Numbers>>> {
        let mut done = Vec::new();
        while self.step.under_way() > 0 && (all || !self.step.has_room()) {
            let Some(out) = self.step.finished(distiller)? else { break };
            let (lr, data_wait) = self.launched.pop_front().unwrap_or_default();
            let mean = |f: fn(&crate::distill::LevelMetrics) -> f32| {
                out.levels.iter().map(f).sum::<f32>() / out.levels.len().max(1) as f32
            };
            let numbers = Numbers {
                loss: out.loss,
                mse: mean(|l| l.mse),
                at: mean(|l| l.at),
                levels: out.levels,
                teacher_time: Duration::ZERO,
                student_time: Duration::ZERO,
            };
            let (step, grad_norm, time) = (out.step, out.grad_norm, out.time);
            done.push(Outcome { step, numbers, lr, grad_norm, time, data_wait });
        }
        Ok(done)
    }

    fn synchronize(&mut self, distiller: &mut Distiller) -> Result<()> {
        self.step.download(distiller.student_mut().params_mut())
    }

    fn optimizer_state(&self) -> Result<State> {
        self.step.optimizer_state()
    }

    fn average_state(&self) -> Result<Option<State>> {
        self.step.average_state()
    }

    fn load(&mut self, distiller: &Distiller, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.step.load(distiller.student().params(), optimizer, average)
    }
}
