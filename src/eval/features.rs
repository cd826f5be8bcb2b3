//! Features of a frozen backbone, computed once.

use super::place::Place;
use super::progress::Watch;
use super::samples::Samples;
use crate::distill::normalize_imagenet;
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, BackboneConfig};
use crate::nn::{Ctx, ParamStore};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// A backbone in inference mode.
pub(super) struct Frozen {
    backbone: Backbone,
    store: ParamStore,
    place: Place,
}

impl Frozen {
    /// With the values of `store`, at a place.
    pub fn new(backbone: Backbone, store: &ParamStore, place: &Place) -> Result<Self> {
        Ok(Frozen { backbone, store: place.network(store)?, place: place.clone() })
    }

    /// The four maps of images in -1..1, fine to coarse.
    pub fn maps(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let mut ctx = Ctx::inference(&self.store);
        let x = self.place.values(&ctx, normalize_imagenet(images)?)?;
        self.backbone.features(&mut ctx, &x)?.into_iter().map(|m| self.place.to_host(m)).collect()
    }
}

/// The features of some images: pooled ones, and the maps if they are wanted and fit the budget.
pub(super) struct Features<'a> {
    frozen: &'a Frozen,
    samples: &'a Samples,
    /// Where an image's features lie.
    rows: HashMap<usize, usize>,
    sizes: [[usize; 2]; 4],
    channels: [usize; 4],
    /// For every level `[images, channels]`: the mean over the pixels, and the mean of the squares.
    pooled: [Vec<f32>; 4],
    squares: [Vec<f32>; 4],
    maps: Option<[Vec<f32>; 4]>,
}

impl<'a> Features<'a> {
    /// Computes them for the images `indices`.
    pub fn new(
        frozen: &'a Frozen,
        config: &BackboneConfig,
        samples: &'a Samples,
        indices: &[usize],
        (batch, cache_mib): (usize, usize),
        want_maps: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Self> {
        let (channels, sizes) = (config.channels(), config.feature_sizes(samples.size()));
        let bytes: usize = sizes.iter().zip(channels).map(|([h, w], c)| 4 * h * w * c).sum();
        let keep = want_maps && bytes.saturating_mul(indices.len()) <= cache_mib << 20;
        let mut all = Features {
            frozen,
            samples,
            rows: indices.iter().enumerate().map(|(row, &i)| (i, row)).collect(),
            sizes,
            channels,
            pooled: Default::default(),
            squares: Default::default(),
            maps: keep.then(Default::default),
        };
        for part in indices.chunks(batch) {
            watch.tick(all.pooled[0].len() / channels[0], indices.len())?;
            let maps = frozen.maps(&samples.images(part, &[])?)?;
            for (level, map) in maps.iter().enumerate() {
                let values = map.f32s()?;
                if !values.iter().all(|v| v.is_finite()) {
                    return Err(Error::numeric("eval", "the backbone's features are not finite")
                        .with_remedy("use weights from before the training diverged"));
                }
                let [h, w] = sizes[level];
                for image in values.chunks_exact(h * w * channels[level]) {
                    let (mean, square) = moments(image, channels[level]);
                    all.pooled[level].extend(mean);
                    all.squares[level].extend(square);
                }
                if let Some(kept) = &mut all.maps {
                    kept[level].extend_from_slice(values);
                }
            }
        }
        watch.tick(indices.len(), indices.len())?;
        Ok(all)
    }

    /// The images themselves.
    pub fn samples(&self) -> &'a Samples {
        self.samples
    }

    /// Channels of the four levels.
    pub fn channels(&self) -> [usize; 4] {
        self.channels
    }

    /// The pooled features `[images, channels]` of a level (0 to 3).
    pub fn pooled(&self, level: usize, indices: &[usize]) -> Vec<f32> {
        self.gather(&self.pooled[level], self.channels[level], indices)
    }

    fn gather(&self, values: &[f32], width: usize, indices: &[usize]) -> Vec<f32> {
        let mut out = Vec::with_capacity(indices.len() * width);
        indices.iter().for_each(|i| out.extend_from_slice(&values[self.rows[i] * width..][..width]));
        out
    }

    /// The maps of some levels, `[images, h, w, channels]`, fine to coarse.
    pub fn maps(&self, levels: &[usize], indices: &[usize]) -> Result<Vec<Tensor>> {
        let Some(kept) = &self.maps else {
            let mut maps = self.frozen.maps(&self.samples.images(indices, &[])?)?;
            let mut at = 0..;
            maps.retain(|_| at.next().is_some_and(|l| levels.contains(&l)));
            return Ok(maps);
        };
        let one = |&level: &usize| {
            let ([h, w], c) = (self.sizes[level], self.channels[level]);
            Tensor::from_vec([indices.len(), h, w, c], self.gather(&kept[level], h * w * c, indices))
        };
        levels.iter().map(one).collect()
    }

    /// What brings the pixels of a level to mean 0 and variance 1 over the images `indices`.
    pub fn pixel_scale(&self, level: usize, indices: &[usize]) -> Scale {
        let c = self.channels[level];
        let mean = column_means(&self.gather(&self.pooled[level], c, indices), c);
        let square = column_means(&self.gather(&self.squares[level], c, indices), c);
        Scale::new(&mean, &square)
    }
}

/// Mean, and mean of the squares, of each of `c` channels.
fn moments(pixels: &[f32], c: usize) -> (Vec<f32>, Vec<f32>) {
    let square: Vec<f32> = pixels.iter().map(|v| v * v).collect();
    let narrow = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect();
    (narrow(column_means(pixels, c)), narrow(column_means(&square, c)))
}

/// Mean of each of `c` columns.
fn column_means(values: &[f32], c: usize) -> Vec<f64> {
    let mut sums = vec![0.0f64; c];
    for row in values.chunks_exact(c) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
    }
    let n = (values.len() / c).max(1) as f64;
    sums.into_iter().map(|s| s / n).collect()
}

/// A shift and a factor for every channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    mean: Vec<f32>,
    factor: Vec<f32>,
}

impl Scale {
    fn new(mean: &[f64], square: &[f64]) -> Self {
        let factor = |(m, s): (&f64, &f64)| {
            let variance = s - m * m;
            // A channel that says the same everywhere stays at 0.
            if variance > 1e-7 * s.max(1e-20) { (1.0 / variance.sqrt()) as f32 } else { 0.0 }
        };
        Scale {
            mean: mean.iter().map(|m| *m as f32).collect(),
            factor: mean.iter().zip(square).map(factor).collect(),
        }
    }

    /// For vectors of `c` numbers.
    pub fn of_vectors(values: &[f32], c: usize) -> Self {
        let square: Vec<f32> = values.iter().map(|v| v * v).collect();
        Scale::new(&column_means(values, c), &column_means(&square, c))
    }

    /// Applies it to rows of channels.
    pub fn apply(&self, values: &mut [f32]) {
        let width = self.mean.len();
        crate::cpu::for_each_chunk(values, 64 * width, |_, part| {
            for row in part.chunks_exact_mut(width) {
                for ((v, m), f) in row.iter_mut().zip(&self.mean).zip(&self.factor) {
                    *v = (*v - m) * f;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_to_unit_variance() {
        let mut v: Vec<f32> = (0..60).map(|i| [5.0, 0.1 * i as f32, (i % 7) as f32][i % 3]).collect();
        let scale = Scale::of_vectors(&v, 3);
        scale.apply(&mut v);
        let (mean, square) = moments(&v, 3);
        for c in 1..3 {
            assert!(mean[c].abs() < 1e-5 && (square[c] - 1.0).abs() < 1e-4, "{mean:?} {square:?}");
        }
        // The first one is constant.
        assert_eq!((mean[0], square[0]), (0.0, 0.0));
    }
}
