//! The backbone and the regressor that trains it.

use crate::error::{Error, Result};
use crate::models::adm::TapInfo;
use crate::models::backbone::{Backbone, BackboneConfig, IMAGENET_MEAN, IMAGENET_STD};
use crate::models::regressor::{Regressor, RegressorConfig, pair_levels};
use crate::nn::{Ctx, ParamStore};
use crate::tape::Var;
use crate::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// The student's part of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
    /// The architecture that is wanted in the end.
    pub backbone: BackboneConfig,
    /// The feature regressor, needed only for the distillation.
    #[serde(default)]
    pub regressor: RegressorConfig,
    /// A checkpoint the backbone starts from (any known layout); random if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

/// What a student sees of images in -1..1: `((x + 1) / 2 - mean) / std` with ImageNet's statistics.
///
/// # Errors
/// The last axis is not 3 channels.
pub fn normalize_imagenet(x: &Tensor) -> Result<Tensor> {
    if x.shape().last() != 3 {
        return Err(Error::shape("normalize_imagenet", "expects 3 channels last").with_tensor("x", x));
    }
    let mut y = x.f32s()?.to_vec();
    crate::cpu::for_each_chunk(&mut y, 3 * 1024, |_, part| {
        for pixel in part.chunks_exact_mut(3) {
            for ((v, mean), std) in pixel.iter_mut().zip(IMAGENET_MEAN).zip(IMAGENET_STD) {
                *v = ((*v + 1.0) * 0.5 - mean) / std;
            }
        }
    });
    Tensor::from_vec(x.shape(), y)
}

/// A backbone and a regressor in one parameter store, under `backbone.` and `regressor.`.
pub struct Student {
    backbone: Backbone,
    regressor: Regressor,
    store: ParamStore,
    pairs: Vec<usize>,
}

impl Student {
    /// Builds a student for images of `input` height and width that learns the teacher maps `taps`. Levels pair by
    /// spatial size. `fill` gives the parameters their values.
    ///
    /// # Errors
    /// An invalid configuration, or a teacher map that no student level has the size of.
    pub fn new(
        config: &StudentConfig,
        taps: &[TapInfo],
        input: [usize; 2],
        fill: impl FnOnce(&mut ParamStore) -> Result<()>,
    ) -> Result<Self> {
        let sizes = config.backbone.feature_sizes(input);
        let wanted: Vec<[usize; 2]> = taps.iter().map(|t| input.map(|s| s / t.stride)).collect();
        let pairs = pair_levels(&sizes, &wanted)?;
        let out: Vec<usize> = pairs.iter().map(|p| p.map_or(0, |t| taps[t].channels)).collect();
        let mut store = ParamStore::new();
        let mut b = store.builder();
        let backbone = Backbone::new(&mut b.pp(Backbone::PREFIX), &config.backbone)?;
        let regressor_config = config.regressor.clone().for_family(config.backbone.family());
        let channels = config.backbone.channels();
        let regressor = Regressor::new(&mut b.pp(Regressor::PREFIX), &regressor_config, &channels, &out)?;
        fill(&mut store)?;
        Ok(Student { backbone, regressor, store, pairs: pairs.into_iter().flatten().collect() })
    }

    /// The parameters of backbone and regressor.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// The parameters for an optimiser or a checkpoint to write.
    pub fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.store
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// For every map of [`Student::forward`], the index of the teacher tap it learns.
    pub fn pairs(&self) -> &[usize] {
        &self.pairs
    }

    /// The regressor's maps for images `[N, H, W, 3]` that are normalised already ([`IMAGENET_MEAN`], [`IMAGENET_STD`]), on
    /// the host or a device, fine to coarse.
    ///
    /// # Errors
    /// Wrong shapes.
    pub fn forward_normalized(&self, ctx: &mut Ctx<'_>, images: &Var) -> Result<Vec<Var>> {
        let features = self.backbone.features(ctx, images)?;
        self.regressor.forward(ctx, &features)
    }

    /// The regressor's maps for images `[N, H, W, 3]` in -1..1, fine to coarse.
    ///
    /// # Errors
    /// Wrong shapes.
    pub fn forward(&self, ctx: &mut Ctx<'_>, images: &Tensor) -> Result<Vec<Var>> {
        let features = self.backbone_features(ctx, images)?;
        self.regressor.forward(ctx, &features)
    }

    /// The backbone's four maps for images `[N, H, W, 3]` in -1..1, fine to coarse.
    ///
    /// # Errors
    /// Wrong shapes.
    pub fn backbone_features(&self, ctx: &mut Ctx<'_>, images: &Tensor) -> Result<Vec<Var>> {
        let x = match images.device() {
            Device::Meta => ctx.input(images),
            _ => ctx.constant(normalize_imagenet(images)?),
        };
        self.backbone.features(ctx, &x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisation() {
        let x = Tensor::from_vec([1, 1, 2, 3], vec![-1.0f32, -1.0, -1.0, 1.0, 1.0, 1.0]).unwrap();
        let y = normalize_imagenet(&x).unwrap();
        for (i, v) in y.f32s().unwrap().iter().enumerate() {
            let want = ((i / 3) as f32 - IMAGENET_MEAN[i % 3]) / IMAGENET_STD[i % 3];
            approx::assert_abs_diff_eq!(*v, want, epsilon = 1e-6);
        }
        assert!(normalize_imagenet(&Tensor::zeros([1, 2, 2, 4])).unwrap_err().is_shape());
    }
}
