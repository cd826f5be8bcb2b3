//! The feature loss: Eq. 1 (whitened mean squared error) and Eq. 2 (attention transfer) over all levels.

use crate::error::{Error, Result};
use crate::nn::Ctx;
use crate::ops::attention_transfer::{AtDistance, AttentionTransfer};
use crate::ops::weighted_sum::WeightedSum;
use crate::ops::whiten_mse::{Whiten, WhitenMse, whiten};
use crate::tape::Var;
use crate::tensor::{Device, Tensor};
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
const EPS: f32 = 1e-5;

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
}

/// The feature loss and its parts.
pub struct FeatureLoss {
    /// `mse_weight * mse + at_weight * at`, a scalar that can be differentiated.
    pub total: Var,
    /// Mean over levels of the whitened MSE; 0 if its weight is 0.
    pub mse: f32,
    /// Mean over levels of the attention-transfer distance; 0 if its weight is 0.
    pub at: f32,
    /// Whitened MSE of every level.
    pub mse_levels: Vec<f32>,
    /// Attention-transfer distance of every level.
    pub at_levels: Vec<f32>,
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
    let levels = student.len() as f32;
    let (mut terms, mut weights) = (Vec::new(), Vec::new());
    let (mut mse_levels, mut at_levels) = (Vec::new(), Vec::new());
    // A planning pass has no values.
    let value = |v: &Var| if v.tensor().device() == Device::Meta { Ok(0.0) } else { v.tensor().item() };
    for (s, t) in student.iter().zip(teacher) {
        let t = ctx.input(t);
        if config.mse_weight > 0.0 {
            let term = ctx.apply(WhitenMse { whiten: config.whiten, eps: EPS }, &[s, &t])?;
            mse_levels.push(value(&term)?);
            terms.push(term);
            weights.push(config.mse_weight / levels);
        }
        if config.at_weight > 0.0 {
            let op = AttentionTransfer { p: config.p, distance: config.at_distance };
            let term = ctx.apply(op, &[s, &t])?;
            at_levels.push(value(&term)?);
            terms.push(term);
            weights.push(config.at_weight / levels);
        }
    }
    let total = ctx.apply(WeightedSum { weights }, &terms.iter().collect::<Vec<_>>())?;
    let mean = |v: &[f32]| v.iter().sum::<f32>() / levels;
    Ok(FeatureLoss { total, mse: mean(&mse_levels), at: mean(&at_levels), mse_levels, at_levels })
}

/// Mean over samples of the cosine between the student's map and the whitened teacher map, both flattened: the
/// progress metric that starts near 0 and goes towards 1.
///
/// # Errors
/// The shapes differ.
pub fn cosine_similarity(student: &Tensor, teacher: &Tensor, config: &LossConfig) -> Result<f32> {
    if student.shape() != teacher.shape() || student.shape().is_empty() {
        return Err(Error::shape("cosine_similarity", "the maps differ in shape")
            .with_tensor("student", student)
            .with_tensor("teacher", teacher));
    }
    let target = whiten(teacher, config.whiten, EPS)?;
    let n = student.shape()[0];
    let per_sample = student.elems() / n.max(1);
    let cosines = crate::cpu::map_ordered(n, |i| -> Result<f64> {
        let part = i * per_sample..(i + 1) * per_sample;
        let (s, t) = (&student.f32s()?[part.clone()], &target.f32s()?[part]);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        Ok(dot(s, t) / (dot(s, s) * dot(t, t)).sqrt().max(1e-12))
    });
    let sum: f64 = cosines.into_iter().sum::<Result<f64>>()?;
    Ok((sum / n.max(1) as f64) as f32)
}
