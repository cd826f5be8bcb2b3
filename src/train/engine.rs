//! What makes the steps of a run: the CPU here, a CUDA device in [`super::device`].

use crate::data::Batch;
use crate::distill::{Distiller, LevelMetrics, StepOutput, Student};
use crate::error::{Error, Result};
use crate::nn::{ParamId, ParamStore};
use crate::optim::{
    Ema, EmaConfig, Optimizer, OptimizerConfig, Slot, StepStats, clip_grad_norm, weight_decays,
};
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
pub(super) struct Outcome<N> {
    /// Counted from 0.
    pub step: u64,
    /// What was computed.
    pub numbers: N,
    pub lr: f64,
    pub grad_norm: f64,
    pub time: Duration,
    pub data_wait: Duration,
}

/// What a step of a distillation computes.
pub(super) struct Numbers {
    pub loss: f32,
    pub mse: f32,
    pub at: f32,
    pub levels: Vec<LevelMetrics>,
    /// Times of the networks, where they are known.
    pub teacher_time: Duration,
    pub student_time: Duration,
}

/// States by tensor name.
pub(super) type State = BTreeMap<String, Tensor>;

/// Makes the steps of what holds the parameters, a [`Distiller`] or a [`Denoiser`](crate::diffusion::Denoiser). These are up
/// to date on the host after [`Engine::synchronize`].
pub(super) trait Engine<M> {
    /// What a step computes.
    type Numbers;
    /// Makes a step, or begins it.
    fn step(&mut self, model: &mut M, job: Job<'_>) -> Result<()>;
    /// Steps that are done and were not given yet, oldest first. Waits for `all` that were begun, or for as many that another
    /// one can begin.
    fn finished(&mut self, model: &M, all: bool) -> Result<Vec<Outcome<Self::Numbers>>>;
    /// Brings the parameters on the host up to date.
    fn synchronize(&mut self, model: &mut M) -> Result<()>;
    /// State of the optimiser.
    fn optimizer_state(&self) -> Result<State>;
    /// State of the average of the parameters, if there is one.
    fn average_state(&self) -> Result<Option<State>>;
    /// Goes on from states; the parameters have their values already.
    fn load(&mut self, model: &M, optimizer: &State, average: Option<&State>) -> Result<()>;
}

/// Clipping, optimiser and average on the CPU.
pub(super) struct HostUpdate {
    clip_grad: Option<f64>,
    optimizer: Box<dyn Optimizer>,
    ema: Option<Ema>,
}

impl HostUpdate {
    pub fn new(
        optimizer: &OptimizerConfig,
        clip_grad: Option<f64>,
        ema: Option<&EmaConfig>,
        store: &ParamStore,
    ) -> Result<Self> {
        let values = store.iter().map(|(_, p)| (p.name(), p.value()));
        Ok(HostUpdate {
            clip_grad,
            optimizer: optimizer.build()?,
            ema: ema.map(|config| Ema::new(config.clone(), values)).transpose()?,
        })
    }

    /// Updates the parameters with gradients in the store's order. Returns the gradient's norm before clipping.
    pub fn apply(
        &mut self,
        store: &mut ParamStore,
        mut grads: Vec<(ParamId, Tensor)>,
        lr: f64,
    ) -> Result<f64> {
        let mut tensors: Vec<&mut Tensor> = grads.iter_mut().map(|(_, g)| g).collect();
        let norm = self.clip_grad.map(|max| clip_grad_norm(&mut tensors, max)).transpose()?;
        let stats = update_params(&mut *self.optimizer, store, &grads, lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update(store.iter().map(|(_, p)| (p.name(), p.value())))?;
        }
        Ok(norm.unwrap_or(stats.grad_norm))
    }

    pub fn optimizer_state(&self) -> State {
        self.optimizer.state()
    }

    pub fn average_state(&self) -> Option<State> {
        self.ema.as_ref().map(Ema::state)
    }

    /// Goes on from the states that were saved with the parameters of `store`.
    pub fn load(&mut self, store: &ParamStore, optimizer: &State, average: Option<&State>) -> Result<()> {
        let trainable = store.iter().filter(|(_, p)| p.trainable());
        let shapes: Vec<_> = trainable.map(|(_, p)| (p.name(), p.value().shape())).collect();
        self.optimizer.load_state(&shapes, optimizer)?;
        self.ema.as_mut().zip(average).map_or(Ok(()), |(ema, state)| ema.load_state(state))
    }
}

/// The CPU.
pub(super) struct HostEngine {
    accumulate: usize,
    batch: usize,
    update: HostUpdate,
    done: VecDeque<Outcome<Numbers>>,
}

impl HostEngine {
    pub fn new(recipe: &Recipe, student: &Student) -> Result<Self> {
        let train = &recipe.train;
        Ok(HostEngine {
            accumulate: train.accumulate,
            batch: train.batch,
            update: HostUpdate::new(
                &recipe.optimizer,
                train.clip_grad,
                train.ema.as_ref(),
                student.params(),
            )?,
            done: VecDeque::new(),
        })
    }
}

impl Engine<Distiller> for HostEngine {
    type Numbers = Numbers;

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
        let Sum { out, data_wait } = sum;
        let grad_norm = self.update.apply(distiller.student_mut().params_mut(), out.grads, job.lr)?;
        let numbers = Numbers {
            loss: out.loss,
            mse: out.mse,
            at: out.at,
            levels: out.levels,
            teacher_time: out.teacher_time,
            student_time: out.student_time,
        };
        let (step, lr, time) = (job.step, job.lr, start.elapsed());
        self.done.push_back(Outcome { step, numbers, lr, grad_norm, time, data_wait });
        Ok(())
    }

    fn finished(&mut self, _: &Distiller, _: bool) -> Result<Vec<Outcome<Numbers>>> {
        Ok(self.done.drain(..).collect())
    }

    fn synchronize(&mut self, _: &mut Distiller) -> Result<()> {
        Ok(())
    }

    fn optimizer_state(&self) -> Result<State> {
        Ok(self.update.optimizer_state())
    }

    fn average_state(&self) -> Result<Option<State>> {
        Ok(self.update.average_state())
    }

    fn load(&mut self, distiller: &Distiller, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.update.load(distiller.student().params(), optimizer, average)
    }
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
fn update_params(
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
