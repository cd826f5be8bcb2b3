//! The teacher on a CUDA device.

use super::Teacher;
use super::teacher::Encoder;
use crate::base::DType;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::models::adm::{DeviceTime, DeviceUnet, TapInfo};
use crate::tensor::Tensor;

/// A [`Teacher`] whose network runs on a device. It needs the teacher on the host only to be made.
pub struct DeviceTeacher {
    net: DeviceUnet,
    time: DeviceTime,
    info: Vec<TapInfo>,
    encoder: Encoder,
    /// The times of deterministic encoding, as folded on the device.
    times: Vec<(usize, DeviceTime)>,
}

impl DeviceTeacher {
    /// Copies the network to a device: operands as `dtype`, which is bf16 or f32. What no pass needs stays behind. On a
    /// planning device the teacher's values need not be filled.
    ///
    /// # Errors
    /// As [`DeviceUnet::new`].
    pub fn new(teacher: &Teacher, gpu: &Gpu, dtype: DType) -> Result<Self> {
        let steps = teacher.encoder.times();
        // Deterministic encoding needs the prediction, so then nothing of the network is left out.
        let partial = teacher.early_exit && steps.is_empty();
        let mut net = DeviceUnet::new(&teacher.net, &teacher.store, gpu, dtype, &teacher.taps, partial)?;
        if teacher.early_exit {
            net = net.exit_early();
        }
        let fold = |&t: &usize| -> Result<(usize, DeviceTime)> {
            Ok((t, net.fold(&teacher.net.fold_time(&teacher.store, t as f32, teacher.label)?)?))
        };
        Ok(DeviceTeacher {
            time: net.fold(&teacher.folded)?,
            info: teacher.taps().to_vec(),
            encoder: teacher.encoder.clone(),
            times: steps.iter().map(fold).collect::<Result<_>>()?,
            net,
        })
    }

    /// The network.
    pub fn net(&self) -> &DeviceUnet {
        &self.net
    }

    /// Stride and channels of every feature map, in the order of the taps.
    pub fn taps(&self) -> &[TapInfo] {
        &self.info
    }

    /// The noisy input of the network, on the device and of its type, for clean images `[N, H, W, 3]` (f32, -1..1) in host
    /// memory. Noise as in [`Teacher::encode`]. The network's passes of deterministic encoding run on the device; the image
    /// is updated on the host between them, in f64.
    ///
    /// # Errors
    /// As [`Teacher::encode`] and [`DeviceUnet::forward`].
    pub fn encode(&self, images: &Tensor, step: u64, positions: &[u64]) -> Result<Tensor> {
        let noisy = self.encoder.encode(images, step, positions, &mut |x, t| {
            let (_, time) = self.times.iter().find(|(at, _)| *at == t).expect("every time was folded");
            self.net.forward(&self.send(x)?, time)?.to_cpu()?.to_dtype(DType::F32)
        })?;
        self.send(&noisy)
    }

    /// The raw feature maps `[N, H/stride, W/stride, channels]` of clean images in host memory, in the order of the taps, on
    /// the device.
    ///
    /// # Errors
    /// As [`DeviceTeacher::encode`] and [`DeviceUnet::features`].
    pub fn features(&self, images: &Tensor, step: u64, positions: &[u64]) -> Result<Vec<Tensor>> {
        self.features_of_noisy(&self.encode(images, step, positions)?)
    }

    /// The raw feature maps of images on the device that already carry the noise of the time step. Nothing is copied and
    /// nothing waits.
    ///
    /// # Errors
    /// As [`DeviceUnet::features`].
    pub fn features_of_noisy(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.net.features(x, &self.time)
    }

    fn send(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(self.net.dtype())?.to_gpu_tagged(self.net.gpu(), "noisy images")
    }
}
