//! What makes the steps of a run: the CPU here, a CUDA device in [`super::device`].

use crate::data::Batch;
use crate::distill::{Distiller, LevelMetrics, StepOutput, Student};
use crate::error::{Error, Result};
use crate::nn::{ParamId, ParamStore};
use crate::optim::{Ema, Optimizer, Slot, StepStats, clip_grad_norm, weight_decays};
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A step that is to be made.
pub(super) struct Job<'a> {
    /// Counted from 0.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Gives the parts of the batch, one after the other.
    pub batch: &'a mut dyn FnMut() -> Result<Batch>,
}

/// A step that was made.
pub(super) struct Outcome {
    /// Counted from 0.
    pub step: u64,
    pub loss: f32,
    pub mse: f32,
    pub at: f32,
    pub levels: Vec<LevelMetrics>,
    pub lr: f64,
    pub grad_norm: f64,
    pub time: Duration,
    pub data_wait: Duration,
    /// Times of the networks, where they are known.
    pub teacher_time: Duration,
    pub student_time: Duration,
}

/// States by tensor name.
pub(super) type State = BTreeMap<String, Tensor>;

/// Makes steps. The student on the host is up to date after [`Engine::synchronize`].
pub(super) trait Engine {
    /// Makes a step, or begins it.
    fn step(&mut self, distiller: &mut Distiller, job: Job<'_>) -> Result<()>;
    /// Steps that are done and were not given yet, oldest first. Waits for `all` that were begun, or for as many that another
    /// one can begin.
    fn finished(&mut self, distiller: &Distiller, all: bool) -> Result<Vec<Outcome>>;
    /// Brings the student on the host up to date.
    fn synchronize(&mut self, distiller: &mut Distiller) -> Result<()>;
    /// State of the optimiser.
    fn optimizer_state(&self) -> Result<State>;
    /// State of the average of the student, if there is one.
    fn average_state(&self) -> Result<Option<State>>;
    /// Goes on from states; the student has its values already.
    fn load(&mut self, distiller: &Distiller, optimizer: &State, average: Option<&State>) -> Result<()>;
}

/// The CPU.
pub(super) struct HostEngine {
    accumulate: usize,
    batch: usize,
    clip_grad: Option<f64>,
    optimizer: Box<dyn Optimizer>,
    ema: Option<Ema>,
    done: VecDeque<Outcome>,
}

impl HostEngine {
    pub fn new(recipe: &Recipe, student: &Student) -> Result<Self> {
        let values = student.params().iter().map(|(_, p)| (p.name(), p.value()));
        Ok(HostEngine {
            accumulate: recipe.train.accumulate,
            batch: recipe.train.batch,
            clip_grad: recipe.train.clip_grad,
            optimizer: recipe.optimizer.build()?,
            ema: recipe.train.ema.clone().map(|config| Ema::new(config, values)).transpose()?,
            done: VecDeque::new(),
        })
    }
}

impl Engine for HostEngine {
    fn step(&mut self, distiller: &mut Distiller, job: Job<'_>) -> Result<()> {
        let start = Instant::now();
        let micro = self.batch / self.accumulate;
        let mut sum: Option<Sum> = None;
        for part in 0..self.accumulate {
            let batch = (job.batch)()?;
            let positions: Vec<u64> = (part * micro..(part + 1) * micro).map(|p| p as u64).collect();
            let out = distiller.step(&batch.images, job.step, &positions)?;
            let store = distiller.student_mut().params_mut();
            for (id, value) in &out.buffers {
                store.set(*id, value.clone())?;
            }
            match &mut sum {
                None => sum = Some(Sum { out, data_wait: batch.wait }),
                Some(sum) => sum.add(out, batch.wait)?,
            }
        }
        let Some(mut sum) = sum else { return Err(Error::usage("a step has at least one part")) };
        sum.divide(self.accumulate)?;
        let Sum { mut out, data_wait } = sum;
        let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
        let norm = self.clip_grad.map(|max| clip_grad_norm(&mut grads, max)).transpose()?;
        let stats = apply_gradients(&mut *self.optimizer, distiller.student_mut(), &out.grads, job.lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update(distiller.student().params().iter().map(|(_, p)| (p.name(), p.value())))?;
        }
        self.done.push_back(Outcome {
            step: job.step,
            loss: out.loss,
            mse: out.mse,
            at: out.at,
            levels: out.levels,
            lr: job.lr,
            grad_norm: norm.unwrap_or(stats.grad_norm),
            time: start.elapsed(),
            data_wait,
            teacher_time: out.teacher_time,
            student_time: out.student_time,
        });
        Ok(())
    }

    fn finished(&mut self, _: &Distiller, _: bool) -> Result<Vec<Outcome>> {
        Ok(self.done.drain(..).collect())
    }

    fn synchronize(&mut self, _: &mut Distiller) -> Result<()> {
        Ok(())
    }

    fn optimizer_state(&self) -> Result<State> {
        Ok(self.optimizer.state())
    }

    fn average_state(&self) -> Result<Option<State>> {
        Ok(self.ema.as_ref().map(Ema::state))
    }

    fn load(&mut self, distiller: &Distiller, optimizer: &State, average: Option<&State>) -> Result<()> {
        let average = self.ema.as_mut().zip(average);
        load_states(distiller.student().params(), &mut *self.optimizer, optimizer, average)
    }
}

/// Gives an optimiser and an average the states that were saved with the parameters of `store`.
pub(super) fn load_states(
    store: &ParamStore,
    optimizer: &mut dyn Optimizer,
    state: &State,
    average: Option<(&mut Ema, &State)>,
) -> Result<()> {
    let shapes: Vec<_> =
        store.iter().filter(|(_, p)| p.trainable()).map(|(_, p)| (p.name(), p.value().shape())).collect();
    optimizer.load_state(&shapes, state)?;
    average.map_or(Ok(()), |(ema, state)| ema.load_state(state))
}

/// Updates a student with the gradients of a [`StepOutput`], which are in the order of its parameters. Weight decay
/// follows [`weight_decays`].
///
/// # Errors
/// As [`Optimizer::step`].
pub fn apply_gradients(
    optimizer: &mut dyn Optimizer,
    student: &mut Student,
    grads: &[(ParamId, Tensor)],
    lr: f64,
) -> Result<StepStats> {
    update_params(optimizer, student.params_mut(), grads, lr)
}

/// As [`apply_gradients`], for the parameters of any network.
pub(super) fn update_params(
    optimizer: &mut dyn Optimizer,
    store: &mut ParamStore,
    grads: &[(ParamId, Tensor)],
    lr: f64,
) -> Result<StepStats> {
    // Gradients come in the store's order, so one pass over both pairs them.
    let mut grads = grads.iter().peekable();
    let mut slots = Vec::with_capacity(grads.len());
    for (i, (name, _, rank, value)) in store.values_mut().enumerate() {
        if let Some((_, grad)) = grads.next_if(|(id, _)| id.index() == i) {
            slots.push(Slot { name, value, grad, decay: weight_decays(name, rank), lr_scale: 1.0 });
        }
    }
    optimizer.step(lr, &mut slots)
}

/// The sum over the parts of a batch.
struct Sum {
    out: StepOutput,
    data_wait: Duration,
}

impl Sum {
    fn add(&mut self, part: StepOutput, wait: Duration) -> Result<()> {
        let sum = &mut self.out;
        self.data_wait += wait;
        sum.loss += part.loss;
        sum.mse += part.mse;
        sum.at += part.at;
        for (a, b) in sum.levels.iter_mut().zip(&part.levels) {
            (a.mse, a.at, a.cosine) = (a.mse + b.mse, a.at + b.at, a.cosine + b.cosine);
        }
        for ((_, a), (_, b)) in sum.grads.iter_mut().zip(&part.grads) {
            a.data_mut::<f32>()?.iter_mut().zip(b.f32s()?).for_each(|(a, b)| *a += b);
        }
        sum.teacher_time += part.teacher_time;
        sum.student_time += part.student_time;
        Ok(())
    }

    fn divide(&mut self, parts: usize) -> Result<()> {
        if parts == 1 {
            return Ok(());
        }
        let f = 1.0 / parts as f32;
        let out = &mut self.out;
        for v in [&mut out.loss, &mut out.mse, &mut out.at] {
            *v *= f;
        }
        for l in &mut out.levels {
            (l.mse, l.at, l.cosine) = (l.mse * f, l.at * f, l.cosine * f);
        }
        for (_, g) in &mut out.grads {
            g.data_mut::<f32>()?.iter_mut().for_each(|g| *g *= f);
        }
        Ok(())
    }
}
