//! What a part of a batch brings to the device: pixels, and the keys of its random streams.

use crate::base::{DType, Philox};
use crate::distill::Distiller;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu};
use crate::tensor::Tensor;

/// Bytes of a key: [`Philox::words`].
pub(super) const KEY_BYTES: usize = 16;

/// The inputs of a part, at addresses that do not change. They come in one piece, in the order of the fields.
pub(super) struct Inputs {
    /// Images, height, width.
    pub size: [usize; 3],
    /// u8 `[n, h, w, 3]`.
    pub pixels: Tensor,
    /// u8 `[n, 16]`: the stream of each sample's noise.
    pub noise: Tensor,
    /// u8 `[draws, 16]`: the streams that the student draws from; `None` if it draws from none.
    pub draws: Option<Tensor>,
}

impl Inputs {
    pub fn new(gpu: &Gpu, size @ [n, h, w]: [usize; 3], draws: usize) -> Result<Self> {
        let bytes = |shape: &[usize]| {
            let shape = crate::base::Shape::from_slice(shape)?;
            Tensor::empty_gpu(shape, DType::U8, gpu, "input")
        };
        Ok(Inputs {
            size,
            pixels: bytes(&[n, h, w, 3])?,
            noise: bytes(&[n, KEY_BYTES])?,
            draws: (draws > 0).then(|| bytes(&[draws, KEY_BYTES])).transpose()?,
        })
    }

    fn fields(&self) -> impl Iterator<Item = &Tensor> {
        [&self.pixels, &self.noise].into_iter().chain(&self.draws)
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.fields().map(Tensor::bytes).sum()
    }

    /// Writes the inputs of samples `first..first + n` of the batch of a step, as they travel.
    pub fn write(
        &self,
        to: &mut [u8],
        distiller: &Distiller,
        pixels: &Tensor,
        step: u64,
        first: u64,
    ) -> Result<()> {
        let pixels = pixels.data::<u8>()?;
        if pixels.len() != self.pixels.elems() {
            return Err(Error::shape(
                "device step",
                format!("the step takes pixels {}", self.pixels.shape()),
            )
            .with_remedy("give as many images as a part of the batch has, of the recipe's size"));
        }
        let (here, rest) = to.split_at_mut(pixels.len());
        here.copy_from_slice(pixels);
        let (noise, draws) = rest.split_at_mut(self.noise.elems());
        for (i, key) in noise.chunks_exact_mut(KEY_BYTES).enumerate() {
            write_key(key, distiller.teacher().noise_stream(step, first + i as u64));
        }
        let stream = distiller.student_stream(step, first);
        for (i, key) in draws.chunks_exact_mut(KEY_BYTES).enumerate() {
            // As `Ctx::next_rng` numbers them.
            write_key(key, stream.fold(i as u64 + 1));
        }
        Ok(())
    }

    /// Enqueues the copies from where they arrived.
    pub fn unpack(&self, gpu: &Gpu, from: &Buffer) -> Result<()> {
        unpack(gpu, from, self.fields())
    }
}

/// Enqueues the copies to tensors whose values arrived in one piece, one behind the other.
pub(in crate::train) fn unpack<'t>(
    gpu: &Gpu,
    from: &Buffer,
    fields: impl Iterator<Item = &'t Tensor>,
) -> Result<()> {
    let mut offset = 0;
    for field in fields {
        gpu.copy_part(from, offset, field.cuda_buffer()?)?;
        offset += field.bytes();
    }
    Ok(())
}

pub(super) fn write_key(to: &mut [u8], stream: Philox) {
    for (to, word) in to.chunks_exact_mut(4).zip(stream.words()) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}
