//! From pixels to what a diffusion network is trained on: the image, noise, and the mixture that the network sees.
//!
//! ```text
//! image = p / 127.5 - 1
//! noisy = signal[n] image + noise[n] z        z standard normal, from the sample's random stream
//! ```

use super::check::{expect, repeated};
use crate::base::{DType, Philox};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid, Work};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "q_sample";
/// Threads of a block.
const THREADS: usize = 256;
/// Elements of a thread.
const EACH: usize = 4;
/// The most images of a batch.
const MOST_IMAGES: usize = 65_535;

/// What is made of the pixels of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QSample {
    /// Element type of the mixture: f32 or bf16.
    pub dtype: DType,
    /// Whether the images in -1..1 are wanted too.
    pub images: bool,
}

/// What [`QSample::run`] makes, each `[N, H, W, 3]`.
#[derive(Clone, Debug)]
pub struct QSampled {
    /// Image and noise, mixed, of [`QSample::dtype`].
    pub noisy: Tensor,
    /// The noise, f32.
    pub noise: Tensor,
    /// The images in -1..1, f32, if they were wanted.
    pub images: Option<Tensor>,
}

/// `QSampleParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    pixels: u64,
    keys: u64,
    levels: u64,
    noisy: u64,
    noise: u64,
    clean: u64,
    size: i32,
    pad: i32,
}

impl QSample {
    /// Enqueues the kernel.
    ///
    /// `pixels` u8 `[N, H, W, 3]`; `keys` u8 `[N, 16]`, the bytes of [`Philox::words`] of each sample's stream (those of
    /// `diffusion::Noise::stream`); `levels` f32 `[N, 2]`, the factors of image and noise.
    ///
    /// # Errors
    /// Tensors of other shapes or types, more than 65535 images, no memory, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu, pixels: &Tensor, keys: &Tensor, levels: &Tensor) -> Result<QSampled> {
        let (images, size) = self.check(pixels, keys, levels)?;
        let shape = pixels.shape();
        let noisy = Tensor::empty_gpu(shape, self.dtype, gpu, "noisy images")?;
        let noise = Tensor::empty_gpu(shape, DType::F32, gpu, "noise")?;
        let clean = self.images.then(|| Tensor::empty_gpu(shape, DType::F32, gpu, "images")).transpose()?;
        let p = Params {
            pixels: pixels.cuda_ptr()?,
            keys: keys.cuda_ptr()?,
            levels: levels.cuda_ptr()?,
            noisy: noisy.cuda_ptr()?,
            noise: noise.cuda_ptr()?,
            clean: clean.as_ref().map_or(Ok(0), Tensor::cuda_ptr)?,
            size: size as i32,
            pad: 0,
        };
        let blocks = size.div_ceil(EACH * THREADS);
        let grid = Grid { grid: [blocks as u32, images as u32, 1], block: THREADS as u32, shared_bytes: 0 };
        let made = [Some(&noisy), Some(&noise), clean.as_ref()];
        let note = |(): &()| Work {
            op: OP.into(),
            pass: "",
            shape,
            dtype: self.dtype,
            // Two scales with a shift, and a logarithm, a root, a sine and products for the noise.
            flops: 11 * pixels.elems() as u64,
            bytes: (pixels.bytes() + made.iter().flatten().map(|t| t.bytes()).sum::<usize>()) as u64,
            result: p.noisy,
            launches: Vec::new(),
        };
        gpu.traced(|| call(self.dtype).launch(gpu, grid, &p), note)?;
        Ok(QSampled { noisy, noise, images: clean })
    }

    /// The number of images, and of the elements of each.
    fn check(&self, pixels: &Tensor, keys: &Tensor, levels: &Tensor) -> Result<(usize, usize)> {
        let (n, h, w, c) = pixels.shape().nhwc(OP)?;
        if !matches!(self.dtype, DType::F32 | DType::Bf16) || pixels.dtype() != DType::U8 {
            let what = format!("makes f32 or bf16 of u8, not {} of {}", self.dtype, pixels.dtype());
            return Err(Error::dtype(OP, what));
        }
        let size = h.saturating_mul(w).saturating_mul(c);
        if c != 3 || n == 0 || size == 0 || size > i32::MAX as usize / 8 {
            return Err(Error::shape(OP, "takes images of 3 channels").with_tensor("pixels", pixels));
        }
        if n > MOST_IMAGES {
            return Err(Error::shape(OP, format!("{n} images at once; there can be {MOST_IMAGES}"))
                .with_remedy("use a smaller batch"));
        }
        for (name, t, dtype, width) in [("keys", keys, DType::U8, 16), ("levels", levels, DType::F32, 2)] {
            if t.dtype() != dtype || *t.shape() != [n, width] {
                let what = format!("`{name}` is {dtype} [{n}, {width}]: a row for each image");
                return Err(Error::shape(OP, what).with_tensor(name, t));
            }
        }
        Ok((n, size))
    }
}

fn call(dtype: DType) -> Call {
    Call::new("q_sample.cu", "q_sample_fwd").dtype(dtype)
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    [DType::F32, DType::Bf16].map(|dtype| call(dtype).variant::<Params>()).to_vec()
}

/// What the noise may lose, of the largest magnitude.
const TOLERANCE: f64 = 2e-6;

/// Sizes of the check: several blocks, whole chunks of less than one, a last chunk that is not whole.
const SIZES: [[usize; 2]; 3] = [[16, 24], [6, 10], [5, 7]];

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let mut worst = 0.0f64;
    for dtype in [DType::F32, DType::Bf16] {
        for (i, size) in SIZES.into_iter().enumerate() {
            worst = worst.max(check_one(gpu, QSample { dtype, images: i != 1 }, size)?);
        }
    }
    Ok(worst)
}

fn check_one(gpu: &Gpu, op: QSample, [height, width]: [usize; 2]) -> Result<f64> {
    let levels = [[0.8f32, 0.6], [1.0, 0.0], [0.125, 0.99]];
    let (n, size) = (levels.len(), height * width * 3);
    let bytes: Vec<u8> = (0..n * size).map(|i| Philox::new(3).block(i as u64)[0] as u8).collect();
    let streams: Vec<Philox> = (0..n as u64).map(|i| Philox::new(7).fold(11).fold(i)).collect();
    let words: Vec<[u32; 4]> = streams.iter().map(Philox::words).collect();
    let pixels = Tensor::from_vec([n, height, width, 3], bytes.clone())?.to_gpu(gpu)?;
    let keys = Tensor::from_vec([n, 16], bytemuck::cast_slice::<_, u8>(&words).to_vec())?.to_gpu(gpu)?;
    let table = Tensor::from_vec([n, 2], levels.concat())?.to_gpu(gpu)?;
    let made = repeated(OP, || {
        let QSampled { noisy, noise, images } = op.run(gpu, &pixels, &keys, &table)?;
        Ok([Some(noisy), Some(noise), images].into_iter().flatten().collect())
    })?;

    let mut z = vec![0.0f32; n * size];
    z.chunks_exact_mut(size).zip(&streams).for_each(|(z, s)| s.fill_normal(z));
    let clean: Vec<f64> = bytes.iter().map(|&p| f64::from(p) / 127.5 - 1.0).collect();
    let noise: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
    let mix = |i: usize| {
        let [signal, of_noise] = levels[i / size].map(f64::from);
        signal * clean[i] + of_noise * noise[i]
    };
    let noisy: Vec<f64> = (0..n * size).map(mix).collect();
    let wanted = [("the mixture", noisy), ("the noise", noise), ("the image", clean)];
    let errors = made.iter().zip(&wanted).map(|(got, (what, want))| expect(OP, what, got, want, TOLERANCE));
    errors.collect::<Result<Vec<f64>>>().map(|errors| errors.into_iter().fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    #[test]
    fn what_does_not_fit_is_told() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let op = QSample { dtype: DType::Bf16, images: false };
        let there = |t: Tensor| t.to_gpu(&gpu).unwrap();
        let bytes = |shape: &[usize]| {
            let shape = crate::base::Shape::from_slice(shape).unwrap();
            there(Tensor::from_vec(shape, vec![0u8; shape.elems()]).unwrap())
        };
        let (pixels, keys, levels) = (bytes(&[2, 4, 5, 3]), bytes(&[2, 16]), there(Tensor::zeros([2, 2])));
        let made = op.run(&gpu, &pixels, &keys, &levels).unwrap();
        assert_eq!((made.noisy.dtype(), made.noise.dtype()), (DType::Bf16, DType::F32));
        assert!(made.images.is_none() && *made.noise.shape() == [2, 4, 5, 3]);
        let wrong = |op: QSample, pixels: &Tensor, keys: &Tensor, levels: &Tensor| {
            op.run(&gpu, pixels, keys, levels).unwrap_err()
        };
        assert!(wrong(op, &bytes(&[2, 4, 5, 4]), &keys, &levels).is_shape());
        assert!(wrong(op, &there(Tensor::zeros([2, 4, 5, 3])), &keys, &levels).is_dtype());
        assert!(wrong(op, &pixels, &bytes(&[1, 16]), &levels).to_string().contains("keys"));
        assert!(wrong(op, &pixels, &keys, &there(Tensor::zeros([2, 3]))).to_string().contains("levels"));
        let half = QSample { dtype: DType::F16, ..op };
        assert!(wrong(half, &pixels, &keys, &levels).is_dtype());
    }
}
