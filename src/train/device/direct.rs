//! Distillation of images that lie on the device already: what a host program with memory of its own drives.

use super::distiller::{DeviceDistiller, LEVEL_NUMBERS};
use super::inputs::{KEY_BYTES, write_key};
use super::parts::draws;
use super::trained::DeviceConfig;
use crate::base::{DType, Philox};
use crate::distill::{Distiller, IMAGENET_MEAN, IMAGENET_STD, LevelMetrics, NoiseLevel};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::Ctx;
use crate::ops::untaped::encode_images::EncodeImages;
use crate::tape::Var;
use crate::tensor::Tensor;

/// A distillation whose images come as u8 `[N, H, W, 3]` in device memory, the program's own ([`Tensor::from_cuda_ptr`]) or
/// dtk's. Kernels read them there and go to the device's stream ([`Gpu::from_raw`]) one by one; what the program has enqueued
/// there before comes before them.
///
/// Unlike [`super::DeviceStep`], which takes the images of a loader and launches a captured graph, it may be given another
/// address at every step.
pub struct DirectDistiller {
    distiller: Distiller,
    there: DeviceDistiller,
    size: [usize; 3],
    draws: usize,
    /// Updates of the student.
    steps: i64,
}

/// What a step of [`DirectDistiller::step`] has computed.
#[derive(Clone, Debug)]
pub struct DirectOutcome {
    /// The loss.
    pub loss: f32,
    /// Every level, fine to coarse.
    pub levels: Vec<LevelMetrics>,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
}

impl DirectDistiller {
    /// Copies teacher, student and the optimiser's state to a device, for steps with batches of `size`: images, height, width.
    ///
    /// # Errors
    /// The device has not enough memory, or shapes do not fit.
    pub fn new(config: DeviceConfig, distiller: Distiller, gpu: &Gpu, size: [usize; 3]) -> Result<Self> {
        let draws = draws(&distiller, size)?;
        let there = DeviceDistiller::new(config, &distiller, gpu)?;
        Ok(DirectDistiller { distiller, there, size, draws, steps: 0 })
    }

    /// Teacher and student on the host. The student is as [`DirectDistiller::download`] left it.
    pub fn distiller(&self) -> &Distiller {
        &self.distiller
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.there.gpu()
    }

    /// The inputs of student and teacher.
    fn encode(&self, pixels: &Tensor, level: NoiseLevel, keys: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (_, height, width, _) = pixels.shape().nhwc("encode_images")?;
        let encode = EncodeImages {
            height,
            width,
            dtype: self.there.dtype(),
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            signal: level.signal,
            noise: level.noise,
        };
        encode.run(self.gpu(), pixels, None, keys)
    }

    /// Inputs with the noise of samples `first..` of a step.
    fn encode_noisy(&self, pixels: &Tensor, step: u64, first: u64) -> Result<(Tensor, Tensor)> {
        let teacher = self.distiller.teacher();
        let level = teacher.noise_level().ok_or_else(|| {
            Error::usage("deterministic encoding takes images in host memory")
                .with_key("diffusion.encoding")
                .with_remedy("use q_sample, or `train::DeviceStep`")
        })?;
        let samples = pixels.shape().nhwc("encode_images")?.0 as u64;
        let keys = self.keys((0..samples).map(|i| teacher.noise_stream(step, first.wrapping_add(i))))?;
        self.encode(pixels, level, Some(&keys))
    }

    /// The table of some random streams, u8 `[n, 16]`.
    fn keys(&self, streams: impl Iterator<Item = Philox>) -> Result<Tensor> {
        let mut bytes = Vec::new();
        for stream in streams {
            let at = bytes.len();
            bytes.resize(at + KEY_BYTES, 0);
            write_key(&mut bytes[at..], stream);
        }
        Tensor::from_vec([bytes.len() / KEY_BYTES, KEY_BYTES], bytes)?.to_gpu_tagged(self.gpu(), "keys")
    }

    /// The teacher's raw maps `[N, H/stride, W/stride, channels]` in the order of its taps, on the device and not copied.
    /// Noise as in [`crate::distill::Teacher::features`] for the samples from place `first` on.
    ///
    /// # Errors
    /// Images that the networks do not take, deterministic encoding, no memory, a failed compilation or launch.
    pub fn teacher_features(&self, pixels: &Tensor, step: u64, first: u64) -> Result<Vec<Tensor>> {
        let (_, noisy) = self.encode_noisy(pixels, step, first)?;
        self.there.teacher().features_of_noisy(&noisy)
    }

    /// The four maps of the backbone as it is now on the device, fine to coarse, not copied.
    ///
    /// # Errors
    /// As [`DirectDistiller::teacher_features`].
    pub fn backbone_features(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let (images, _) = self.encode(pixels, NoiseLevel { signal: 1.0, noise: 0.0 }, None)?;
        let mut ctx = Ctx::inference(&self.there.student().store);
        let x = ctx.constant(images);
        let maps = self.distiller.student().backbone().features(&mut ctx, &x)?;
        Ok(maps.into_iter().map(Var::into_tensor).collect())
    }

    /// Enqueues a step and the update of the student, of samples `first..` of the step's batch. Waits for the copies of its
    /// random keys and its learning rate, some kilobytes, and so for what is on the stream before; not for the step.
    ///
    /// # Errors
    /// As [`DirectDistiller::teacher_features`]; images of another size than was said, a learning rate that is none.
    pub fn step(&mut self, pixels: &Tensor, step: u64, first: u64, lr: f64) -> Result<()> {
        let [n, h, w] = self.size;
        if *pixels.shape() != [n, h, w, 3] || pixels.dtype() != DType::U8 {
            return Err(Error::shape("device step", format!("the step takes u8 [{n}, {h}, {w}, 3]"))
                .with_tensor("pixels", pixels));
        }
        let (images, noisy) = self.encode_noisy(pixels, step, first)?;
        let stream = self.distiller.student_stream(step, first);
        // As `Ctx::next_rng` numbers them.
        let draws = (1..=self.draws as u64).map(|i| stream.fold(i));
        let keys = (self.draws > 0).then(|| self.keys(draws)).transpose()?;
        self.there.begin(lr)?;
        self.there.enqueue_part(&self.distiller, images, noisy, keys.as_ref(), true)?;
        self.there.enqueue_update(1)?;
        self.steps += 1;
        Ok(())
    }

    /// What the last step has computed; waits for it.
    ///
    /// # Errors
    /// Its loss or a gradient is not finite: it changed no parameter. Or work on the device has failed.
    pub fn outcome(&mut self) -> Result<DirectOutcome> {
        let loss = self.there.loss().item()?;
        let numbers = self.there.level_metrics().to_cpu()?;
        let norms = self.there.optimizer().norms().to_cpu()?;
        let (numbers, norms) = (numbers.f32s()?, norms.f32s()?);
        if !loss.is_finite() || norms[3] == 0.0 {
            self.there.optimizer_mut().take_back();
            self.steps -= 1;
            let what = format!("is {loss}, the norm of the gradient {}; no parameter was changed", norms[0]);
            return Err(Error::numeric("loss", what)
                .with_remedy("lower the learning rate, clip the gradient, or look for bad input data"));
        }
        let (teacher, pairs) = (self.distiller.teacher(), self.distiller.student().pairs());
        let level = |(&tap, v): (&usize, &[f32])| LevelMetrics {
            stride: teacher.taps()[tap].stride,
            mse: v[0],
            at: v[1],
            cosine: v[2],
        };
        let levels = pairs.iter().zip(numbers.chunks_exact(LEVEL_NUMBERS)).map(level).collect();
        Ok(DirectOutcome { loss, levels, grad_norm: f64::from(norms[0]) })
    }

    /// Brings the student on the host up to date; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn download(&mut self) -> Result<()> {
        self.there.student.download(self.distiller.student_mut().params_mut(), self.steps)
    }
}
