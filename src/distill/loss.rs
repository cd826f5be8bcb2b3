//! The feature loss: Eq. 1 (whitened mean squared error) and Eq. 2 (attention transfer) over all levels.

use crate::error::{Error, Result};
use crate::nn::Ctx;
use crate::ops::attention_transfer::AtDistance;
use crate::ops::feature_loss;
use crate::ops::whiten_mse::{Whiten, whiten};
use crate::tape::Var;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What the student is asked to match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// How the teacher's features are whitened for the MSE: LayerNorm over each sample, over the channels of each
    /// pixel, or not at all.
    pub whiten: Whiten,
    /// Weight of the MSE term; 0 leaves it out (Table 9).
    pub mse_weight: f32,
    /// Weight of the attention-transfer term, lambda of the paper; 0 leaves it out (Table 9).
    pub at_weight: f32,
    /// Exponent of the attention map.
    pub p: f32,
    /// How two attention maps are compared.
    pub at_distance: AtDistance,
}

impl Default for LossConfig {
    fn default() -> Self {
        LossConfig {
            whiten: Whiten::Sample,
            mse_weight: 1.0,
            at_weight: 10.0,
            p: 2.0,
            at_distance: AtDistance::L2,
        }
    }
}

/// Stabiliser of the whitening's variance.
pub(super) const EPS: f32 = 1e-5;

impl LossConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A weight is negative or not finite, both are 0, or `p` is below 1.
    pub fn validate(&self) -> Result<()> {
        let weight = |w: f32| w.is_finite() && w >= 0.0;
        if !weight(self.mse_weight) || !weight(self.at_weight) || self.mse_weight + self.at_weight == 0.0 {
            return Err(Error::usage(format!(
                "loss weights mse_weight = {} and at_weight = {}",
                self.mse_weight, self.at_weight
            ))
            .with_key("loss")
            .with_remedy("give two weights of at least 0, one of them positive"));
        }
        if !(self.p.is_finite() && self.p >= 1.0) {
            return Err(Error::usage(format!("exponent p = {} of the attention map", self.p))
                .with_key("loss.p")
                .with_remedy("give an exponent of at least 1"));
        }
        Ok(())
    }

    /// A raw map of the teacher `[N, h, w, C]` as the student is asked to match it by the MSE: whitened.
    ///
    /// # Errors
    /// No map of this form in host memory.
    pub fn target(&self, teacher: &Tensor) -> Result<Tensor> {
        whiten(teacher, self.whiten, EPS)
    }
}

/// The feature loss and what is known of its levels.
pub struct FeatureLoss {
    /// `mse_weight * mse + at_weight * at`, a scalar that can be differentiated.
    pub total: Var,
    /// Whitened MSE, attention-transfer distance and cosine of every level, f32 `[levels, 3]`, on the device of the maps;
    /// 0 for a term whose weight is 0. `None` in a planning pass, which has no values.
    pub levels: Option<Tensor>,
}

/// One level of a feature loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelLoss {
    /// Whitened MSE; 0 if its weight is 0.
    pub mse: f32,
    /// Attention-transfer distance; 0 if its weight is 0.
    pub at: f32,
    /// Mean over samples of the cosine between the student's map and the whitened teacher map, both flattened: the progress
    /// metric that starts near 0 and goes towards 1.
    pub cosine: f32,
}

impl FeatureLoss {
    /// The levels in host memory; none in a planning pass. Waits for a device.
    ///
    /// # Errors
    /// The copy from the device fails.
    pub fn level_losses(&self) -> Result<Vec<LevelLoss>> {
        let Some(levels) = &self.levels else { return Ok(Vec::new()) };
        let host = levels.to_cpu()?;
        let level = |v: &[f32]| LevelLoss { mse: v[0], at: v[1], cosine: v[2] };
        Ok(host.f32s()?.chunks_exact(3).map(level).collect())
    }
}

/// Means over levels of MSE and attention-transfer distance.
pub fn mean_of_levels(levels: &[LevelLoss]) -> [f32; 2] {
    let mean = |of: fn(&LevelLoss) -> f32| levels.iter().map(of).sum::<f32>() / levels.len().max(1) as f32;
    [mean(|l| l.mse), mean(|l| l.at)]
}

/// The feature loss between student maps and raw teacher maps `[N, h, w, C]`, level by level.
///
/// # Errors
/// The lists differ in length or are empty, or a pair of maps differs in shape.
pub fn feature_loss<'a>(
    ctx: &mut Ctx<'a>,
    student: &[Var],
    teacher: &[Tensor],
    config: &LossConfig,
) -> Result<FeatureLoss> {
    config.validate()?;
    if student.len() != teacher.len() || student.is_empty() {
        return Err(Error::shape(
            "feature_loss",
            format!("{} student and {} teacher maps do not pair up", student.len(), teacher.len()),
        ));
    }
    let targets: Vec<Var> = teacher.iter().map(|t| ctx.input(t)).collect();
    let maps: Vec<&Var> = student.iter().chain(&targets).collect();
    let op = feature_loss::FeatureLoss {
        whiten: config.whiten,
        eps: EPS,
        mse_weight: config.mse_weight,
        at_weight: config.at_weight,
        p: config.p,
        distance: config.at_distance,
    };
    let (total, aux) = ctx.apply_aux(op, &maps)?;
    Ok(FeatureLoss { total, levels: aux.into_iter().next() })
}
