//! One distillation step: teacher, student, loss, gradients.

use super::{LevelLoss, LossConfig, Student, Teacher, feature_loss, mean_of_levels};
use crate::base::Philox;
use crate::error::{Error, Result};
use crate::nn::{Ctx, ParamId};
use crate::tensor::Tensor;
use std::time::{Duration, Instant};

/// A teacher, a student and the loss between them. It computes gradients; whoever drives it applies them.
pub struct Distiller {
    teacher: Teacher,
    student: Student,
    loss: LossConfig,
    rng: Philox,
}

/// What is known of one level after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelMetrics {
    /// Stride of the teacher's tap.
    pub stride: usize,
    /// Whitened MSE; 0 if the term is off.
    pub mse: f32,
    /// Attention-transfer distance; 0 if the term is off.
    pub at: f32,
    /// Mean cosine between the student's map and the whitened teacher map.
    pub cosine: f32,
}

/// The result of one step.
pub struct StepOutput {
    /// The loss.
    pub loss: f32,
    /// Its MSE part, unweighted.
    pub mse: f32,
    /// Its attention-transfer part, unweighted.
    pub at: f32,
    /// Every level, fine to coarse.
    pub levels: Vec<LevelMetrics>,
    /// A gradient for every trainable parameter that the loss reaches, in the store's order and memory layout.
    pub grads: Vec<(ParamId, Tensor)>,
    /// New values of the running statistics.
    pub buffers: Vec<(ParamId, Tensor)>,
    /// Time spent in the teacher.
    pub teacher_time: Duration,
    /// Time spent in the student, forward and backward.
    pub student_time: Duration,
}

impl Distiller {
    /// Puts the parts together. `seed` is the root of dropout and drop path.
    ///
    /// # Errors
    /// An invalid loss configuration.
    pub fn new(teacher: Teacher, student: Student, loss: LossConfig, seed: u64) -> Result<Self> {
        loss.validate()?;
        Ok(Distiller { teacher, student, loss, rng: Philox::new(seed).fold_str("student") })
    }

    /// The teacher.
    pub fn teacher(&self) -> &Teacher {
        &self.teacher
    }

    /// The student.
    pub fn student(&self) -> &Student {
        &self.student
    }

    /// The student, for its parameters to be updated.
    pub fn student_mut(&mut self) -> &mut Student {
        &mut self.student
    }

    /// The student alone, e.g. after training.
    pub fn into_student(self) -> Student {
        self.student
    }

    /// The loss configuration.
    pub fn loss(&self) -> &LossConfig {
        &self.loss
    }

    /// The random stream of the student's pass over samples from position `first` on of a step's batch.
    pub fn student_stream(&self, step: u64, first: u64) -> Philox {
        self.rng.fold(step).fold(first)
    }

    /// Loss, metrics and gradients of clean images `[N, H, W, 3]` in -1..1. All randomness follows from the seeds,
    /// `step` and `positions`, the samples' places in the global batch of that step.
    ///
    /// # Errors
    /// Wrong shapes; a loss that is not finite.
    pub fn step(&self, images: &Tensor, step: u64, positions: &[u64]) -> Result<StepOutput> {
        let start = Instant::now();
        let noisy = self.teacher.encode(images, step, positions)?;
        self.step_encoded(images, &noisy, step, positions, start)
    }

    /// Like [`Distiller::step`] with the teacher's noisy input given.
    ///
    /// # Errors
    /// As [`Distiller::step`].
    pub fn step_with_noisy(&self, images: &Tensor, noisy: &Tensor, step: u64) -> Result<StepOutput> {
        self.step_encoded(images, noisy, step, &[0], Instant::now())
    }

    fn step_encoded(
        &self,
        images: &Tensor,
        noisy: &Tensor,
        step: u64,
        positions: &[u64],
        start: Instant,
    ) -> Result<StepOutput> {
        let maps = self.teacher.features_of_noisy(noisy)?;
        let targets: Vec<Tensor> = self.student.pairs().iter().map(|&t| maps[t].clone()).collect();
        drop(maps);
        let teacher_time = start.elapsed();

        let start = Instant::now();
        let rng = self.student_stream(step, positions.first().copied().unwrap_or(0));
        let mut ctx = Ctx::training(self.student.params(), rng);
        let out = self.student.forward(&mut ctx, images)?;
        let loss = feature_loss(&mut ctx, &out, &targets, &self.loss)?;
        let total = loss.total.tensor().item()?;
        let losses = loss.level_losses()?;
        let [mse, at] = mean_of_levels(&losses);
        if !total.is_finite() {
            return Err(Error::numeric("loss", format!("is {total} at step {step} (mse {mse}, at {at})"))
                .with_remedy("lower the learning rate, clip the gradient, or check the teacher's weights"));
        }
        let taps = self.student.pairs().iter().map(|&t| self.teacher.taps()[t].stride);
        let level = |(stride, l): (usize, &LevelLoss)| LevelMetrics {
            stride,
            mse: l.mse,
            at: l.at,
            cosine: l.cosine,
        };
        let levels = taps.zip(&losses).map(level).collect();
        drop((out, targets));
        let mut g = ctx.backward(&loss.total)?;
        let ids: Vec<ParamId> = self.student.params().iter().map(|(id, _)| id).collect();
        let grads = ids.into_iter().filter_map(|id| Some((id, g.take_param(id)?))).collect();
        Ok(StepOutput {
            loss: total,
            mse,
            at,
            levels,
            grads,
            buffers: g.buffers().to_vec(),
            teacher_time,
            student_time: start.elapsed(),
        })
    }
}
