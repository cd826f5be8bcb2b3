//! Teacher, student and optimiser on a device, and what a step enqueues there.

use crate::base::{DType, Philox};
use crate::distill::{DeviceTeacher, Distiller, feature_loss};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::{Ctx, DeviceParams, ParamId};
use crate::ops::untaped::running_average::{self, Move};
use crate::optim::device::{DeviceOptimizer, DeviceParam};
use crate::optim::{EmaConfig, OptimizerConfig, weight_decays};
use crate::recipe::Recipe;
use crate::tensor::Tensor;

/// Numbers of every level in [`DeviceDistiller::level_metrics`]: MSE, attention transfer, cosine.
pub const LEVEL_NUMBERS: usize = 3;

/// How a distillation runs on a device, beside what teacher, student and loss say.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Element type of images, activations and operands: bf16 or f32.
    pub dtype: DType,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Clip the gradient to this global L2 norm.
    pub clip_grad: Option<f64>,
    /// Keep an exponential moving average of the student.
    pub ema: Option<EmaConfig>,
}

impl From<&Recipe> for DeviceConfig {
    fn from(recipe: &Recipe) -> Self {
        DeviceConfig {
            dtype: recipe.train.precision.dtype(),
            optimizer: recipe.optimizer.clone(),
            clip_grad: recipe.train.clip_grad,
            ema: recipe.train.ema.clone(),
        }
    }
}

/// A distillation on a CUDA device. What it reads and writes from step to step keeps its address, so that its work can be
/// captured. Nothing here waits for the device.
pub struct DeviceDistiller {
    gpu: Gpu,
    dtype: DType,
    teacher: DeviceTeacher,
    student: DeviceParams,
    optimizer: DeviceOptimizer,
    /// Parameters that are trained, in the store's order.
    trained: Vec<ParamId>,
    loss: Tensor,
    levels: Tensor,
}

impl DeviceDistiller {
    /// Copies teacher and student to a device. On a planning device neither needs values.
    ///
    /// # Errors
    /// The device has not enough memory.
    pub fn new(config: DeviceConfig, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        let DeviceConfig { dtype, optimizer, clip_grad, ema } = config;
        let teacher = DeviceTeacher::new(distiller.teacher(), gpu, dtype)?;
        let store = distiller.student().params();
        let student = DeviceParams::new(store, gpu, dtype)?;
        let (mut trained, mut params) = (Vec::new(), Vec::new());
        for (id, master) in student.masters.iter().filter(|(id, _)| store.get(*id).trainable()) {
            let (p, value) = (store.get(*id), student.store.get(*id).value());
            trained.push(*id);
            params.push(DeviceParam {
                name: p.name().to_string(),
                value: master.clone(),
                shadow: (value.dtype() != master.dtype()).then(|| value.clone()),
                decay: weight_decays(p.name(), p.file_shape().len()),
                lr_scale: 1.0,
            });
        }
        // The average follows running statistics too; batches are counted on the host.
        let others = student.store.iter().filter(|(_, p)| !p.trainable() && p.value().gpu().is_some());
        let others = others.map(|(_, p)| (p.name().to_string(), p.value().clone())).collect();
        let optimizer = DeviceOptimizer::new(&optimizer, gpu, params, clip_grad, ema)?.averaging(others)?;
        let pairs = distiller.student().pairs().len();
        Ok(DeviceDistiller {
            gpu: gpu.clone(),
            dtype,
            teacher,
            student,
            optimizer,
            trained,
            loss: Tensor::empty_gpu([1], DType::F32, gpu, "metrics")?,
            levels: Tensor::empty_gpu([pairs, LEVEL_NUMBERS], DType::F32, gpu, "metrics")?,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Element type of images, activations and operands.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The teacher.
    pub fn teacher(&self) -> &DeviceTeacher {
        &self.teacher
    }

    /// The student's parameters.
    pub fn student(&self) -> &DeviceParams {
        &self.student
    }

    /// The student's parameters, to be written.
    pub fn student_mut(&mut self) -> &mut DeviceParams {
        &mut self.student
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &DeviceOptimizer {
        &self.optimizer
    }

    /// The optimiser, to set the numbers of a step or a state.
    pub fn optimizer_mut(&mut self) -> &mut DeviceOptimizer {
        &mut self.optimizer
    }

    /// f32 `[1]`: the loss of the last part of a batch.
    pub fn loss(&self) -> &Tensor {
        &self.loss
    }

    /// Begins a step with this learning rate and sends its numbers; for steps that are not captured. Waits for the copy.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite, or a failed copy.
    pub fn begin(&mut self, lr: f64) -> Result<()> {
        let scalars = self.optimizer.scalars(lr)?;
        self.optimizer.upload_scalars(&scalars)
    }

    /// f32 `[levels, 3]`: MSE, attention transfer and cosine of every level, fine to coarse, of the last part of a batch.
    pub fn level_metrics(&self) -> &Tensor {
        &self.levels
    }

    /// Enqueues one part of a batch: features, loss, gradients, running statistics. `images` `[N, H, W, 3]` are normalised for
    /// the student, `noisy` for the teacher, both of [`DeviceDistiller::dtype`]; `keys`, u8 `[draws, 16]`, are the student's
    /// random streams. The gradients of the `first` part replace what the sums hold, those of later parts are added.
    /// `distiller` is what this was made of; its values do not matter.
    ///
    /// # Errors
    /// Wrong shapes, no memory, or a failed compilation or launch.
    pub fn enqueue_part(
        &self,
        distiller: &Distiller,
        images: Tensor,
        noisy: Tensor,
        keys: Option<&Tensor>,
        first: bool,
    ) -> Result<()> {
        let gpu = &self.gpu;
        let maps = self.teacher.features_of_noisy(&noisy)?;
        drop(noisy);
        let targets: Vec<Tensor> = distiller.student().pairs().iter().map(|&t| maps[t].clone()).collect();
        drop(maps);

        // The keys lie on the device where something is drawn; what is drawn from here is of no use.
        let mut ctx = Ctx::training(&self.student.store, Philox::new(0));
        if let Some(keys) = keys {
            ctx = ctx.with_keys(keys.clone());
        }
        let x = ctx.constant(images);
        let out = distiller.student().forward_normalized(&mut ctx, &x)?;
        drop(x);
        let loss = feature_loss(&mut ctx, &out, &targets, distiller.loss())?;
        drop((out, targets));
        copy(gpu, &loss.total.tensor().reshape([1])?, &self.loss)?;
        let levels = loss.levels.ok_or_else(|| Error::device("the loss gave no metrics on the device"))?;
        copy(gpu, &levels, &self.levels)?;
        drop(levels);
        let mut gradients = ctx.backward(&loss.total)?;
        let averages: Vec<Move<'_>> = gradients
            .averages()
            .iter()
            .map(|a| Move { buffer: self.student.store.get(a.id).value(), value: &a.value, weight: a.weight })
            .collect();
        running_average::run(gpu, &averages)?;
        let grads: Vec<Option<Tensor>> = self.trained.iter().map(|id| gradients.take_param(*id)).collect();
        let grads: Vec<Option<&Tensor>> = grads.iter().map(Option::as_ref).collect();
        self.optimizer.enqueue_accumulate(gpu, &grads, first)
    }

    /// Enqueues the update of the parameters by the mean of `parts` parts. Nothing changes if the loss of the last part or a
    /// gradient is not finite.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue_update(&self, parts: usize) -> Result<()> {
        self.optimizer.enqueue_update(&self.gpu, parts, Some(&self.loss))
    }
}

/// Copies a tensor to another of the same size on the device.
pub(super) fn copy(gpu: &Gpu, from: &Tensor, to: &Tensor) -> Result<()> {
    gpu.copy(from.cuda_buffer()?, to.cuda_buffer()?)
}
