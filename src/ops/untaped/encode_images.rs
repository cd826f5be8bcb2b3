//! From pixels to what the two networks see: the student's normalised image, the teacher's noisy one.
//!
//! ```text
//! student = (p / 255 - mean[c]) / std[c]
//! teacher = signal (p / 127.5 - 1) + noise z        z standard normal, from the sample's random stream
//! ```

use super::check::{expect, repeated};
use crate::base::{DType, Philox};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid, Work};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "encode_images";
/// Threads of a block, each with 16 bytes of results.
const THREADS: usize = 256;
/// The most images of a batch.
const MOST_IMAGES: usize = 65_535;

/// How the pixels of a batch become the inputs of student and teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncodeImages {
    /// Height of the results, pixels.
    pub height: usize,
    /// Width of the results, pixels.
    pub width: usize,
    /// Element type of the results: f32 or bf16.
    pub dtype: DType,
    /// Means that the student's image is freed of, for RGB values in 0..1.
    pub mean: [f32; 3],
    /// Standard deviations that it is divided by.
    pub std: [f32; 3],
    /// Factor of the image in -1..1 in the teacher's input: the root of the product of alphas, 1 for the image itself.
    pub signal: f32,
    /// Factor of the noise in the teacher's input: the root of one minus that product.
    pub noise: f32,
}

/// Which part of an image is used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// First row.
    pub top: i32,
    /// First column.
    pub left: i32,
    /// Not 0: the part is mirrored left to right.
    pub mirrored: i32,
}

/// `EncodeImagesParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    pixels: u64,
    places: u64,
    keys: u64,
    student: u64,
    teacher: u64,
    source: [i32; 2],
    size: [i32; 2],
    scale: [f32; 3],
    shift: [f32; 3],
    signal: f32,
    noise: f32,
}

impl EncodeImages {
    /// Enqueues the kernel and gives the student's and the teacher's input, `[N, height, width, 3]`.
    ///
    /// `pixels` u8 `[N, H, W, 3]`; `places` u8 `[N, 12]`, the bytes of a [`Place`] for each image (a place that is not inside
    /// of the image is moved there), or `None` where the images have the size of the results; `keys` u8 `[N, 16]`, the bytes
    /// of [`Philox::words`] of each sample's stream (those of `diffusion::Noise::stream`), or `None` for no noise.
    ///
    /// # Errors
    /// Tensors of other shapes or types, images smaller than the results, more than 65535 images, no memory, or a failed
    /// compilation or launch.
    pub fn run(
        &self,
        gpu: &Gpu,
        pixels: &Tensor,
        places: Option<&Tensor>,
        keys: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let images = self.check(pixels, places, keys)?;
        let EncodeImages { height, width, dtype, mean, std, signal, noise } = *self;
        let shape = [images, height, width, 3];
        let student = Tensor::empty_gpu(shape, dtype, gpu, "student input")?;
        let teacher = Tensor::empty_gpu(shape, dtype, gpu, "teacher input")?;
        let address = |t: Option<&Tensor>| t.map_or(Ok(0), Tensor::cuda_ptr);
        let p = Params {
            pixels: pixels.cuda_ptr()?,
            places: address(places)?,
            keys: address(keys)?,
            student: student.cuda_ptr()?,
            teacher: teacher.cuda_ptr()?,
            source: [pixels.shape()[1] as i32, pixels.shape()[2] as i32],
            size: [height as i32, width as i32],
            scale: std.map(|s| (1.0 / (255.0 * f64::from(s))) as f32),
            shift: std::array::from_fn(|c| (-f64::from(mean[c]) / f64::from(std[c])) as f32),
            signal,
            noise,
        };
        let chunks = (3 * height * width).div_ceil(16 / dtype.size());
        let blocks = chunks.div_ceil(THREADS);
        let grid = Grid { grid: [blocks as u32, images as u32, 1], block: THREADS as u32, shared_bytes: 0 };
        let elements = student.elems();
        let note = |(): &()| Work {
            op: OP.into(),
            pass: "",
            shape: student.shape(),
            dtype,
            // Two scales with their shifts, and a logarithm, a root, a sine and products for the noise.
            flops: 12 * elements as u64,
            bytes: (elements + student.bytes() + teacher.bytes()) as u64,
            result: p.student,
            launches: Vec::new(),
        };
        gpu.traced(|| call(dtype).launch(gpu, grid, &p), note)?;
        Ok((student, teacher))
    }

    /// The number of images.
    fn check(&self, pixels: &Tensor, places: Option<&Tensor>, keys: Option<&Tensor>) -> Result<usize> {
        let (n, h, w, c) = pixels.shape().nhwc(OP)?;
        if !matches!(self.dtype, DType::F32 | DType::Bf16) || pixels.dtype() != DType::U8 {
            let what = format!("makes f32 or bf16 of u8, not {} of {}", self.dtype, pixels.dtype());
            return Err(Error::dtype(OP, what));
        }
        let limit = i32::MAX as usize / 8;
        let (rows, columns) = (self.height, self.width);
        if c != 3 || n == 0 || rows * columns == 0 || h.max(w) > limit || 3 * rows * columns > limit {
            let what = format!("no images of 3 channels that {rows}x{columns} pixels can be taken from");
            return Err(Error::shape(OP, what).with_tensor("pixels", pixels));
        }
        if n > MOST_IMAGES {
            return Err(Error::shape(OP, format!("{n} images at once; there can be {MOST_IMAGES}"))
                .with_remedy("use a smaller batch"));
        }
        let fits = if places.is_some() { h >= rows && w >= columns } else { h == rows && w == columns };
        if !fits {
            let what = format!("cannot take {rows}x{columns} pixels from images of {h}x{w}");
            return Err(Error::shape(OP, what).with_remedy("give places in larger images, or their own size"));
        }
        for (name, table, bytes) in [("places", places, size_of::<Place>()), ("keys", keys, 16)] {
            let Some(t) = table else { continue };
            if t.dtype() != DType::U8 || *t.shape() != [n, bytes] {
                let what = format!("`{name}` is u8 [{n}, {bytes}]: {bytes} bytes for each image");
                return Err(Error::shape(OP, what).with_tensor(name, t));
            }
        }
        Ok(n)
    }
}

fn call(dtype: DType) -> Call {
    Call::new("encode_images.cu", "encode_images_fwd").dtype(dtype)
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    [DType::F32, DType::Bf16].map(|dtype| call(dtype).variant::<Params>()).to_vec()
}

/// What the noise and the roundings of pixels may lose, of the largest magnitude.
const TOLERANCE: f64 = 2e-6;

/// Sizes of the check: whole chunks in every type, chunks of f32 only, neither; and without places one of them.
const SIZES: [[usize; 2]; 3] = [[16, 24], [6, 10], [5, 7]];

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let mut worst = 0.0f64;
    for dtype in [DType::F32, DType::Bf16] {
        for (i, size) in SIZES.into_iter().enumerate() {
            worst = worst.max(check_one(gpu, dtype, size, size, None, i == 0)?);
            let source = [size[0] + 3, size[1] + 6];
            let places = [[2, 1, 0], [3, 6, 1], [0, 0, 1]];
            let places = places.map(|[top, left, mirrored]| Place { top, left, mirrored });
            worst = worst.max(check_one(gpu, dtype, size, source, Some(&places), true)?);
        }
    }
    Ok(worst)
}

fn check_one(
    gpu: &Gpu,
    dtype: DType,
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
    places: Option<&[Place; 3]>,
    noisy: bool,
) -> Result<f64> {
    let op = EncodeImages {
        height,
        width,
        dtype,
        mean: [0.5, 0.25, 0.125],
        std: [0.2, 0.3, 0.4],
        signal: 0.8,
        noise: 0.6,
    };
    let n = 3;
    let random = |i: usize| Philox::new(3).block(i as u64)[0] as u8;
    let pixels: Vec<u8> = (0..n * rows * columns * 3).map(random).collect();
    let there = |shape: [usize; 2], bytes: &[u8]| Tensor::from_vec(shape, bytes.to_vec())?.to_gpu(gpu);
    let on_device = there([n * rows, columns * 3], &pixels)?.reshape([n, rows, columns, 3])?;
    let table = places.map(|p| there([n, size_of::<Place>()], bytemuck::cast_slice(p))).transpose()?;
    let streams: Vec<Philox> = (0..n as u64).map(|i| Philox::new(7).fold(11).fold(i)).collect();
    let words: Vec<[u32; 4]> = streams.iter().map(Philox::words).collect();
    let keys = noisy.then(|| there([n, 16], bytemuck::cast_slice(&words))).transpose()?;
    let made = repeated(OP, || {
        let (student, teacher) = op.run(gpu, &on_device, table.as_ref(), keys.as_ref())?;
        Ok(vec![student, teacher])
    })?;

    let (mut student, mut teacher) = (Vec::new(), Vec::new());
    for (i, stream) in streams.iter().enumerate() {
        let place = places.map_or(Place::default(), |p| p[i]);
        let mut z = vec![0.0f32; height * width * 3];
        if noisy {
            stream.fill_normal(&mut z);
        }
        for (e, z) in z.iter().enumerate() {
            let (y, x, c) = (e / 3 / width, e / 3 % width, e % 3);
            let x = if place.mirrored != 0 { width - 1 - x } else { x };
            let (y, x) = (y + place.top as usize, x + place.left as usize);
            let p = f64::from(pixels[((i * rows + y) * columns + x) * 3 + c]);
            student.push((p / 255.0 - f64::from(op.mean[c])) / f64::from(op.std[c]));
            teacher.push(f64::from(op.signal) * (p / 127.5 - 1.0) + f64::from(op.noise) * f64::from(*z));
        }
    }
    let student = expect(OP, "the student's input", &made[0], &student, TOLERANCE)?;
    Ok(student.max(expect(OP, "the teacher's input", &made[1], &teacher, TOLERANCE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    #[test]
    fn what_does_not_fit_is_told() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let op = EncodeImages {
            height: 4,
            width: 5,
            dtype: DType::Bf16,
            mean: [0.0; 3],
            std: [1.0; 3],
            signal: 1.0,
            noise: 0.0,
        };
        let bytes = |shape: &[usize]| {
            let shape = crate::base::Shape::from_slice(shape).unwrap();
            Tensor::from_vec(shape, vec![0u8; shape.elems()]).unwrap().to_gpu(&gpu).unwrap()
        };
        let (exact, larger, places, keys) =
            (bytes(&[2, 4, 5, 3]), bytes(&[2, 6, 5, 3]), bytes(&[2, 12]), bytes(&[2, 16]));
        let (student, teacher) = op.run(&gpu, &exact, None, Some(&keys)).unwrap();
        assert_eq!((&*student.shape(), teacher.dtype()), (&[2, 4, 5, 3][..], DType::Bf16));
        assert!(op.run(&gpu, &larger, Some(&places), None).is_ok());
        let wrong = |pixels: &Tensor, places: Option<&Tensor>, keys: Option<&Tensor>| {
            op.run(&gpu, pixels, places, keys).unwrap_err()
        };
        assert!(wrong(&larger, None, None).to_string().contains("6x5"));
        assert!(wrong(&exact, Some(&keys), None).to_string().contains("places"));
        assert!(wrong(&exact, None, Some(&places)).to_string().contains("keys"));
        assert!(wrong(&bytes(&[2, 4, 5, 4]), None, None).is_shape());
        assert!(wrong(&Tensor::zeros([2, 4, 5, 3]).to_gpu(&gpu).unwrap(), None, None).is_dtype());
        let half = EncodeImages { dtype: DType::F16, ..op };
        assert!(half.run(&gpu, &exact, None, None).unwrap_err().is_dtype());
    }
}
