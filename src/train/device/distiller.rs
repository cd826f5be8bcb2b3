//! Teacher, student and optimiser on a device, and what a step enqueues there.

use super::trained::{DeviceConfig, Trained};
use crate::base::{DType, Philox};
use crate::distill::{DeviceTeacher, Distiller, feature_loss};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::{Ctx, DeviceParams};
use crate::optim::device::DeviceOptimizer;
use crate::tensor::Tensor;

/// Numbers of every level in [`DeviceDistiller::level_metrics`]: MSE, attention transfer, cosine.
pub const LEVEL_NUMBERS: usize = 3;

/// A distillation on a CUDA device. What it reads and writes from step to step keeps its address, so that its work can be
/// captured. Nothing here waits for the device.
pub struct DeviceDistiller {
    gpu: Gpu,
    dtype: DType,
    teacher: DeviceTeacher,
    pub(super) student: Trained,
    loss: Tensor,
    levels: Tensor,
}

impl DeviceDistiller {
    /// Copies teacher and student to a device. On a planning device neither needs values.
    ///
    /// # Errors
    /// The device has not enough memory.
    pub fn new(config: DeviceConfig, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        let dtype = config.dtype;
        let teacher = DeviceTeacher::new(distiller.teacher(), gpu, dtype)?;
        let student = Trained::new(config, distiller.student().params(), gpu)?;
        let pairs = distiller.student().pairs().len();
        Ok(DeviceDistiller {
            gpu: gpu.clone(),
            dtype,
            teacher,
            student,
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
        &self.student.params
    }

    /// The student's parameters, to be written.
    pub fn student_mut(&mut self) -> &mut DeviceParams {
        &mut self.student.params
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &DeviceOptimizer {
        &self.student.optimizer
    }

    /// The optimiser, to set the numbers of a step or a state.
    pub fn optimizer_mut(&mut self) -> &mut DeviceOptimizer {
        &mut self.student.optimizer
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
        let optimizer = &mut self.student.optimizer;
        let scalars = optimizer.scalars(lr)?;
        optimizer.upload_scalars(&scalars)
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
        let mut ctx = Ctx::training(&self.student.params.store, Philox::new(0));
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
        self.student.enqueue_gradients(ctx.backward(&loss.total)?, first)
    }

    /// Enqueues the update of the parameters by the mean of `parts` parts. Nothing changes if the loss of the last part or a
    /// gradient is not finite.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue_update(&self, parts: usize) -> Result<()> {
        self.student.optimizer.enqueue_update(&self.gpu, parts, Some(&self.loss))
    }
}

/// Copies a tensor to another of the same size on the device.
pub(in crate::train) fn copy(gpu: &Gpu, from: &Tensor, to: &Tensor) -> Result<()> {
    gpu.copy(from.cuda_buffer()?, to.cuda_buffer()?)
}
