//! Distillation on a CUDA device: the whole step captured once and launched as a graph.
//!
//! ```text
//!  host     keys, pixels -> pinned       keys, pixels -> pinned      ..     takes what is there of earlier steps
//!  copies        '--- batch s                 '--- batch s+1
//!  device             '- [ inputs | teacher | student | loss | backward | update ]  '- [ .. ]
//!  host <- copies                                                           metrics of s '
//! ```
//! Nothing waits for a step but the one that is two steps behind. What changes from step to step (pixels, keys of random
//! streams, learning rate) lies in memory that the host writes, never in a kernel's parameters.

mod direct;
mod distiller;
mod engine;
mod inputs;
mod parts;
mod phases;
mod plan;

pub use direct::{DirectDistiller, DirectOutcome};
pub use distiller::{DeviceConfig, DeviceDistiller, LEVEL_NUMBERS};
pub(super) use engine::DeviceEngine;
pub use phases::{CapturedPhase, Phase, PhaseCost, StepPhases};
pub use plan::{DevicePlan, PlannedWork};

use crate::base::DType;
use crate::distill::{Distiller, LevelMetrics};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Graph, PinnedBuffer, Prefetch, Readback};
use crate::nn::{Param, ParamStore, Role};
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use parts::Parts;
use rayon::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Steps that may be under way.
const DEPTH: usize = 2;

/// What a finished step tells.
#[derive(Clone, Debug)]
pub struct DeviceOutcome {
    /// The step, counted from 0.
    pub step: u64,
    /// The loss.
    pub loss: f32,
    /// Every level, fine to coarse.
    pub levels: Vec<LevelMetrics>,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Time from the step before to this one, as the host saw them finish.
    pub time: Duration,
}

/// A step that was launched and not taken.
struct Pending {
    step: u64,
    parts: Vec<[Readback; 2]>,
    norms: Readback,
}

/// Plans the steps of a recipe, takes the memory that the plan says in one piece, and compiles the kernels that it names.
fn prepare(recipe: &Recipe, distiller: &Distiller, gpu: &Gpu) -> Result<DevicePlan> {
    let plan = DevicePlan::new(recipe, distiller, gpu.info())?;
    gpu.reserve(plan.extent)?;
    let kernels = plan.kernels().into_par_iter();
    kernels.try_for_each(|k| gpu.kernel(&k.source, &k.entry, &k.defines).map(drop))?;
    Ok(plan)
}

/// Distillation steps on a CUDA device.
pub struct DeviceStep {
    // Graphs end before what their work uses.
    part: Graph,
    update: Option<Graph>,
    parts: Parts,
    prefetch: Prefetch,
    scalars: [PinnedBuffer; DEPTH],
    pending: VecDeque<Pending>,
    /// Page-locked memory of steps that were taken.
    free: Vec<Pending>,
    launched: u64,
    accumulate: usize,
    finished_at: Instant,
    plan: DevicePlan,
}

impl DeviceStep {
    /// Puts teacher, student and optimiser on a device and captures a step of the recipe. Takes the memory that the plan says,
    /// in one piece, and compiles the kernels that it names.
    ///
    /// # Errors
    /// The device has not enough memory, a kernel does not compile, or shapes do not fit.
    pub fn new(recipe: &Recipe, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        let plan = prepare(recipe, distiller, gpu)?;
        let parts = Parts::new(recipe, distiller, gpu)?;
        let accumulate = recipe.train.accumulate;
        let (part, update) = parts.capture(distiller, accumulate, &mut |_| ())?;
        let pinned = || gpu.pinned(parts.distiller.optimizer().scalars_memory().bytes());
        Ok(DeviceStep {
            part,
            update,
            prefetch: Prefetch::new(gpu, parts.inputs.bytes(), "input")?,
            scalars: [pinned()?, pinned()?],
            parts,
            pending: VecDeque::new(),
            free: Vec::new(),
            launched: 0,
            accumulate,
            finished_at: Instant::now(),
            plan,
        })
    }

    /// What a step launches, and what it takes.
    pub fn plan(&self) -> &DevicePlan {
        &self.plan
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.parts.distiller.gpu()
    }

    /// Launches a step: `pixels` gives the u8 images `[n, H, W, 3]` of each part of the batch. The host waits for the step that
    /// is two behind at most; results come from [`DeviceStep::finished`].
    ///
    /// # Errors
    /// Those of `pixels`, a learning rate that is none, images of another size, or earlier work on the device has failed.
    pub fn launch(
        &mut self,
        distiller: &Distiller,
        step: u64,
        lr: f64,
        mut pixels: impl FnMut(usize) -> Result<Tensor>,
    ) -> Result<()> {
        debug_assert!(self.pending.len() < DEPTH, "the caller takes what is finished");
        let gpu = self.gpu().clone();
        let mut pending = match self.free.pop() {
            Some(free) => Pending { step, ..free },
            None => self.new_pending(step)?,
        };
        for part in 0..self.accumulate {
            let batch = pixels(part)?;
            let inputs = &self.parts.inputs;
            let first = (part * inputs.size[0]) as u64;
            self.prefetch.push(|to| inputs.write(to, distiller, &batch, step, first))?;
            self.prefetch.consume(|arrived| inputs.unpack(&gpu, arrived))?;
            self.parts.encode(&batch, step, first)?;
            let there = &mut self.parts.distiller;
            if part == 0 {
                let numbers = there.optimizer_mut().scalars(lr)?;
                let scalars = &mut self.scalars[(self.launched % DEPTH as u64) as usize];
                scalars.as_mut_slice()?.copy_from_slice(numbers.as_bytes());
                scalars.upload(gpu.stream(), there.optimizer().scalars_memory().cuda_buffer()?)?;
            }
            self.part.launch(gpu.stream())?;
            let metrics = [there.loss(), there.level_metrics()];
            for (read, from) in pending.parts[part].iter_mut().zip(metrics) {
                read.begin(gpu.stream(), from.cuda_buffer()?)?;
            }
        }
        if let Some(update) = &mut self.update {
            update.launch(gpu.stream())?;
        }
        pending.norms.begin(gpu.stream(), self.parts.distiller.optimizer().norms().cuda_buffer()?)?;
        self.pending.push_back(pending);
        self.launched += 1;
        Ok(())
    }

    fn new_pending(&self, step: u64) -> Result<Pending> {
        let there = &self.parts.distiller;
        let read = |t: &Tensor| Readback::new(there.gpu(), t.bytes());
        let both = || Ok([read(there.loss())?, read(there.level_metrics())?]);
        let parts = (0..self.accumulate).map(|_| both()).collect::<Result<_>>()?;
        Ok(Pending { step, parts, norms: read(there.optimizer().norms())? })
    }

    /// Steps that were launched and not taken.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Whether another step may be launched before the oldest is taken.
    pub fn has_room(&self) -> bool {
        self.pending.len() < DEPTH
    }

    /// The oldest step that was launched and not taken; waits for it. `None` if there is none.
    ///
    /// # Errors
    /// The loss or a gradient of that step is not finite: it changed no parameter. Or work on the device has failed.
    pub fn finished(&mut self, distiller: &Distiller) -> Result<Option<DeviceOutcome>> {
        let Some(mut pending) = self.pending.pop_front() else { return Ok(None) };
        let norms = floats(pending.norms.take()?);
        let strides = distiller.student().pairs().iter().map(|&t| distiller.teacher().taps()[t].stride);
        let mut levels: Vec<LevelMetrics> =
            strides.map(|stride| LevelMetrics { stride, mse: 0.0, at: 0.0, cosine: 0.0 }).collect();
        let mut loss = 0.0;
        for [total, each] in &mut pending.parts {
            loss += floats(total.take()?)[0];
            for (level, v) in levels.iter_mut().zip(floats(each.take()?).chunks_exact(LEVEL_NUMBERS)) {
                level.mse += v[0];
                level.at += v[1];
                level.cosine += v[2];
            }
        }
        if self.accumulate > 1 {
            let share = 1.0 / self.accumulate as f32;
            loss *= share;
            for l in &mut levels {
                (l.mse, l.at, l.cosine) = (l.mse * share, l.at * share, l.cosine * share);
            }
        }
        let step = pending.step;
        self.free.push(pending);
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.finished_at, now));
        let grad_norm = f64::from(norms[0]);
        if !loss.is_finite() {
            return Err(Error::numeric("loss", format!("is {loss} at step {step}"))
                .with_remedy("lower the learning rate, clip the gradient, or check the teacher's weights"));
        }
        if norms[3] == 0.0 || !grad_norm.is_finite() {
            return Err(Error::numeric(
                "gradient",
                format!("is not finite at step {step}; that step changed no parameter"),
            )
            .with_remedy("lower the learning rate, clip the gradient, or look for bad input data"));
        }
        Ok(Some(DeviceOutcome { step, loss, levels, grad_norm, time }))
    }

    /// Copies parameters and running statistics to the host; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn download(&self, store: &mut ParamStore) -> Result<()> {
        self.parts.distiller.student().download(store)?;
        for (name, count) in self.counts(&self.parts.distiller.student().store)? {
            if let Some(id) = store.find(&name) {
                store.set(id, count)?;
            }
        }
        Ok(())
    }

    /// The optimiser's state, as [`crate::optim::Optimizer::state`]; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn optimizer_state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parts.distiller.optimizer().state()
    }

    /// The state of the average of the student, as [`crate::optim::Ema::state`]; `None` if the recipe keeps none. Waits for the
    /// device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn average_state(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        let there = &self.parts.distiller;
        let Some(mut state) = there.optimizer().ema_state()? else { return Ok(None) };
        // An average of counts is the last one.
        for (name, count) in self.counts(&there.student().store)? {
            state.insert(format!("average.{name}"), count);
        }
        Ok(Some(state))
    }

    /// The counts of batches, which are kept on the host: those of `store`, as it was loaded, and the steps since.
    fn counts(&self, store: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        let batches = self.launched as i64 * self.accumulate as i64;
        let counter = |p: &&Param| p.role() == Role::Buffer && p.value().dtype() == DType::I64;
        let counters = store.iter().map(|(_, p)| p).filter(counter);
        let count = |p: &Param| {
            let value = p.value().data::<i64>()?.iter().map(|n| n + batches).collect();
            Ok((p.name().to_string(), Tensor::from_vec(p.value().shape(), value)?))
        };
        counters.map(count).collect()
    }

    /// Goes on from a checkpoint: parameters of the student, the states of optimiser and average.
    ///
    /// # Errors
    /// A state that does not fit the recipe.
    pub fn load(
        &mut self,
        student: &ParamStore,
        optimizer: &BTreeMap<String, Tensor>,
        average: Option<&BTreeMap<String, Tensor>>,
    ) -> Result<()> {
        let there = &mut self.parts.distiller;
        there.optimizer_mut().load_state(optimizer)?;
        if let Some(average) = average {
            let mut average = average.clone();
            average.retain(|name, t| name == "step" || t.dtype() != DType::I64);
            there.optimizer_mut().load_ema_state(&average)?;
        }
        self.launched = 0;
        there.student_mut().refresh_from(student)
    }
}

/// The f32 numbers of bytes from the device.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}
