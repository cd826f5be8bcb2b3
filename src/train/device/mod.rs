//! Distillation on a CUDA device: the whole step captured once and launched as a graph.
//!
//! ```text
//!  [ inputs | teacher | student | loss | backward | update ]      launched and awaited as `pipeline` says
//! ```

mod direct;
mod distiller;
mod engine;
mod inputs;
mod parts;
mod phases;
mod pipeline;
mod plan;
mod trained;

pub use direct::{DirectDistiller, DirectOutcome};
pub(super) use distiller::copy;
pub use distiller::{DeviceDistiller, LEVEL_NUMBERS};
pub(super) use engine::DeviceEngine;
pub(super) use inputs::unpack;
pub use phases::{CapturedPhase, Phase, PhaseCost, StepPhases};
pub(super) use pipeline::Pipeline;
pub(super) use plan::Stage;
pub use plan::{DevicePlan, PlannedWork};
pub use trained::DeviceConfig;
pub(super) use trained::Trained;

use crate::distill::{Distiller, LevelMetrics};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::nn::ParamStore;
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use parts::Parts;
use std::collections::BTreeMap;
use std::time::Duration;

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

/// Distillation steps on a CUDA device.
pub struct DeviceStep {
    // Graphs end before what their work uses.
    pipeline: Pipeline,
    parts: Parts,
    accumulate: usize,
    plan: DevicePlan,
}

impl DeviceStep {
    /// Puts teacher, student and optimiser on a device and captures a step of the recipe. Takes the memory that the plan says,
    /// in one piece, and compiles the kernels that it names.
    ///
    /// # Errors
    /// The device has not enough memory, a kernel does not compile, or shapes do not fit.
    pub fn new(recipe: &Recipe, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        let plan = DevicePlan::new(recipe, distiller, gpu.info())?;
        plan.prepare(gpu)?;
        let parts = Parts::new(recipe, distiller, gpu)?;
        let accumulate = recipe.train.accumulate;
        let graphs = parts.capture(distiller, accumulate, &mut |_| ())?;
        let pipeline = Pipeline::new(gpu, graphs, parts.inputs.bytes(), parts.distiller.optimizer())?;
        Ok(DeviceStep { pipeline, parts, accumulate, plan })
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
        let gpu = self.gpu().clone();
        let mut pending = None;
        for part in 0..self.accumulate {
            let batch = pixels(part)?;
            let inputs = &self.parts.inputs;
            let first = (part * inputs.size[0]) as u64;
            self.pipeline.feed(
                |to| inputs.write(to, distiller, &batch, step, first),
                |arrived| inputs.unpack(&gpu, arrived),
            )?;
            self.parts.encode(&batch, step, first)?;
            let there = &mut self.parts.distiller;
            let pending = match &mut pending {
                Some(begun) => begun,
                none => none.insert(self.pipeline.begin(step, lr, there.optimizer_mut())?),
            };
            self.pipeline.launch_part(pending, &[there.loss(), there.level_metrics()])?;
        }
        match pending {
            Some(pending) => self.pipeline.finish(pending, self.parts.distiller.optimizer()),
            None => Ok(()),
        }
    }

    /// Steps that were launched and not taken.
    pub fn under_way(&self) -> usize {
        self.pipeline.under_way()
    }

    /// Whether another step may be launched before the oldest is taken.
    pub fn has_room(&self) -> bool {
        self.pipeline.has_room()
    }

    /// The oldest step that was launched and not taken; waits for it. `None` if there is none.
    ///
    /// # Errors
    /// The loss or a gradient of that step is not finite: it changed no parameter. Or work on the device has failed.
    pub fn finished(&mut self, distiller: &Distiller) -> Result<Option<DeviceOutcome>> {
        let Some(out) = self.pipeline.take()? else { return Ok(None) };
        let strides = distiller.student().pairs().iter().map(|&t| distiller.teacher().taps()[t].stride);
        let mut levels: Vec<LevelMetrics> =
            strides.map(|stride| LevelMetrics { stride, mse: 0.0, at: 0.0, cosine: 0.0 }).collect();
        let mut loss = 0.0;
        for part in out.results.chunks_exact(2) {
            loss += part[0][0];
            for (level, v) in levels.iter_mut().zip(part[1].chunks_exact(LEVEL_NUMBERS)) {
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
        let grad_norm = out.grad_norm(loss);
        if grad_norm.is_err() {
            self.parts.distiller.optimizer_mut().take_back();
        }
        Ok(Some(DeviceOutcome { step: out.step, loss, levels, grad_norm: grad_norm?, time: out.time }))
    }

    /// Copies parameters and running statistics to the host; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn download(&self, store: &mut ParamStore) -> Result<()> {
        self.parts.distiller.student.download(store, self.batches())
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
        self.parts.distiller.student.average_state(self.batches())
    }

    /// Parts of batches that went through the student since it came here.
    fn batches(&self) -> i64 {
        self.pipeline.launched() as i64 * self.accumulate as i64
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
        self.pipeline.restart();
        self.parts.distiller.student.load(student, optimizer, average)
    }
}
