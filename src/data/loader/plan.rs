//! What each position of the stream shows: pure functions of the configuration, shared by all threads.

use super::{LoaderConfig, Pixels, Skipped};
use crate::base::Philox;
use crate::data::ImageSource;
use crate::data::transform::{write_bytes, write_signed};
use crate::error::{Error, Result};
use crate::tensor::{Element, Tensor};
use image::RgbImage;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// How many epochs' permutations are kept: threads work at both sides of an epoch's end.
const KEPT_ORDERS: usize = 4;

pub(super) struct Plan {
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) config: LoaderConfig,
    root: Philox,
    orders: Mutex<VecDeque<(u64, Arc<[u32]>)>>,
}

/// One position's image, cropped.
pub(super) struct Sample {
    index: usize,
    /// `None` if too many images were unreadable to go on.
    image: Option<RgbImage>,
    flip: bool,
    skipped: Vec<Skipped>,
}

/// A batch on its way to the caller.
pub(super) struct Assembled {
    pub(super) images: Tensor,
    pub(super) indices: Vec<usize>,
    pub(super) labels: Vec<Option<u32>>,
    /// The unreadable images met, in stream order; with repetitions.
    pub(super) skipped: Vec<Skipped>,
}

impl Plan {
    pub(super) fn new(source: Arc<dyn ImageSource>, config: LoaderConfig, start_step: u64) -> Result<Self> {
        let n = source.len();
        if n == 0 || u32::try_from(n).is_err() {
            return Err(Error::data(format!("a set of {n} images cannot be loaded"))
                .with_remedy("give a set of 1 to 4294967295 images"));
        }
        let far = |m: &str| Error::usage(m.to_string()).with_remedy("use a smaller step, batch or image");
        // Leaves 2^24 times what was asked for, more steps than any run takes.
        [config.batch as u64, config.world as u64, 1 << 24]
            .iter()
            .try_fold(start_step.max(1), |p, &f| p.checked_mul(f))
            .ok_or_else(|| far("the first step is too far into the stream"))?;
        let dims = [config.batch, config.height as usize, config.width as usize, 3];
        crate::base::Shape::from_slice(&dims).map_err(|_| far("a batch is too large for the memory"))?;
        let root = Philox::new(config.seed).fold_str("loader");
        Ok(Plan { source, config, root, orders: Mutex::new(VecDeque::new()) })
    }

    /// Whether a run with `bad` different unreadable images has to end.
    pub(super) fn too_many(&self, bad: usize) -> bool {
        bad > self.config.max_bad || bad >= self.source.len()
    }

    /// The image at a position of the endless stream.
    fn index_at(&self, position: u64) -> usize {
        let n = self.source.len() as u64;
        self.order(position / n)[(position % n) as usize] as usize
    }

    fn order(&self, epoch: u64) -> Arc<[u32]> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return Arc::clone(order);
        }
        let mut order: Vec<u32> = (0..self.source.len() as u32).collect();
        self.root.fold_str("order").fold(epoch).sequence().shuffle(&mut order);
        let order: Arc<[u32]> = order.into();
        if orders.len() == KEPT_ORDERS {
            orders.pop_front();
        }
        orders.push_back((epoch, Arc::clone(&order)));
        order
    }

    /// Prepares image `i` of this process's part of `step`.
    pub(super) fn sample(&self, step: u64, i: usize) -> Sample {
        let c = &self.config;
        // Position within the global batch, so that the number of processes does not matter.
        let place = (c.rank * c.batch + i) as u64;
        let here = |purpose: &str| self.root.fold_str(purpose).fold(step).fold(place);
        let flip = c.flip && here("flip").uniform_at(0) < 0.5;
        let mut skipped: Vec<Skipped> = Vec::new();
        let mut index = self.index_at(step * (c.batch * c.world) as u64 + place);
        let mut attempt = 0u64;
        loop {
            if !skipped.iter().any(|s| s.index == index) {
                match self.prepare(index, here("crop")) {
                    Ok(image) => return Sample { index, image: Some(image), flip, skipped },
                    Err(e) => {
                        skipped.push(Skipped { index, name: self.source.name(index), error: e.to_string() })
                    }
                }
                if self.too_many(skipped.len()) {
                    return Sample { index, image: None, flip, skipped };
                }
            }
            attempt += 1;
            index = here("replacement").fold(attempt).sequence().below(self.source.len() as u32) as usize;
        }
    }

    /// Loads and crops one image. A decoder that panics on a damaged file counts as a failure of that file.
    fn prepare(&self, index: usize, random: Philox) -> Result<RgbImage> {
        let c = &self.config;
        catch_unwind(AssertUnwindSafe(|| {
            let image = self.source.load(index, c.background)?;
            c.crop.apply(&image, c.height, c.width, &mut random.sequence())
        }))
        .unwrap_or_else(|_| Err(Error::data("the decoder panicked")))
    }

    /// The images of the samples, each written by `write`.
    fn join<P: Element>(
        &self,
        samples: &[Sample],
        zero: P,
        write: impl Fn(&RgbImage, bool, &mut [P]) -> Result<()>,
    ) -> Result<Tensor> {
        let (height, width) = (self.config.height as usize, self.config.width as usize);
        let size = 3 * height * width;
        let mut data = vec![zero; samples.len() * size];
        for (s, out) in samples.iter().zip(data.chunks_exact_mut(size)) {
            if let Some(image) = &s.image {
                write(image, s.flip, out)?;
            }
        }
        Tensor::from_vec([samples.len(), height, width, 3], data)
    }

    /// Joins the samples of a batch. If one has no image, the tensor is empty: the caller sees from the skipped
    /// images that it has to end.
    pub(super) fn assemble(&self, samples: Vec<Sample>) -> Result<Assembled> {
        let c = &self.config;
        let complete = samples.iter().all(|s| s.image.is_some());
        let images = if complete { samples.as_slice() } else { &[] };
        let images = match c.pixels {
            Pixels::Signed => self.join(images, 0.0f32, write_signed)?,
            Pixels::Bytes => self.join(images, 0u8, write_bytes)?,
        };
        let indices: Vec<usize> = samples.iter().map(|s| s.index).collect();
        let labels = indices.iter().map(|&i| self.source.label(i)).collect();
        let skipped = samples.into_iter().flat_map(|s| s.skipped).collect();
        Ok(Assembled { images, indices, labels, skipped })
    }
}
