//! Where the noise of stochastic encoding comes from.

use crate::base::Philox;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Where the noise of stochastic encoding comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// New noise for every sample and training step.
    #[default]
    Fresh,
    /// One noise image, drawn from the seed, for all samples and steps.
    Shared,
}

impl Noise {
    /// The random stream of the noise of one sample. `base` is the run's noise stream, `step` the training step,
    /// `position` the sample's place in the whole batch of that step, so that the noise does not depend on how the
    /// batch is split over micro-batches or ranks. Element `i` of the stream is element `i` of the sample, which is
    /// stored as `[H, W, C]`.
    pub fn stream(self, base: Philox, step: u64, position: u64) -> Philox {
        match self {
            Noise::Fresh => base.fold(step).fold(position),
            Noise::Shared => base,
        }
    }

    /// Standard normal noise `[N, H, W, C]` for the samples at `positions`.
    ///
    /// # Errors
    /// `sample` is not `[H, W, C]`-sized within memory.
    pub fn draw(self, base: Philox, step: u64, positions: &[u64], sample: [usize; 3]) -> Result<Tensor> {
        let [h, w, c] = sample;
        let shape = crate::base::Shape::from_slice(&[positions.len(), h, w, c])?;
        let size = shape.elems().checked_div(positions.len()).ok_or_else(|| {
            Error::shape("noise", "noise for no sample").with_remedy("give at least one position")
        })?;
        let mut out = vec![0.0f32; shape.elems()];
        if size > 0 {
            out.par_chunks_mut(size).zip(positions).for_each(|(out, &position)| {
                self.stream(base, step, position).fill_normal(out);
            });
        }
        Tensor::from_vec(shape, out)
    }
}
