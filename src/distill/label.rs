//! Eq. 3: soft labels of a feature interpreter join the feature loss.

use crate::error::{Error, Result};
use crate::nn::Ctx;
use crate::ops::cross_entropy::{CrossEntropy, Target};
use crate::ops::weighted_sum::WeightedSum;
use crate::tape::Var;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Label distillation: cross-entropy of the student's logits against the interpreter's softened ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelLossConfig {
    /// Weight of the feature loss.
    pub feature_weight: f32,
    /// Weight of the label loss.
    pub label_weight: f32,
    /// Temperature of both softmaxes.
    pub tau: f32,
    /// Multiply the label loss by tau squared, as Hinton et al. (2015) do and the paper does not.
    pub tau_squared: bool,
}

impl Default for LabelLossConfig {
    fn default() -> Self {
        LabelLossConfig { feature_weight: 1.0, label_weight: 1.0, tau: 4.0, tau_squared: false }
    }
}

/// `feature_weight * feature + label_weight * H(softmax(teacher / tau), softmax(student / tau))`, with logits
/// `[.., K]` of equal shape. `feature` may be absent for pure label distillation. Also gives the label loss.
///
/// # Errors
/// The logits differ in shape, or the temperature is not positive.
pub fn mixed_loss<'a>(
    ctx: &mut Ctx<'a>,
    feature: Option<&Var>,
    student_logits: &Var,
    teacher_logits: &Tensor,
    config: &LabelLossConfig,
) -> Result<(Var, Var)> {
    if !(config.tau.is_finite() && config.tau > 0.0) {
        return Err(Error::usage(format!("temperature tau = {}", config.tau))
            .with_key("tau")
            .with_remedy("give a positive temperature; the paper uses 4"));
    }
    let target = Target::Soft { tau: config.tau, tau_squared: config.tau_squared };
    let op = CrossEntropy { target, ignore_index: None, label_smoothing: 0.0 };
    let teacher = ctx.input(teacher_logits);
    let label = ctx.apply(op, &[student_logits, &teacher])?;
    let total = match feature {
        Some(f) => {
            let weights = vec![config.feature_weight, config.label_weight];
            ctx.apply(WeightedSum { weights }, &[f, &label])?
        }
        None => ctx.apply(WeightedSum { weights: vec![config.label_weight] }, &[&label])?,
    };
    Ok((total, label))
}
