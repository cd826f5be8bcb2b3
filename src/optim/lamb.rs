//! LAMB (You et al., "Large batch optimization for deep learning", ICLR 2020), with the rules of timm's `Lamb`, which
//! SparK's pretraining recipe uses: global gradient-norm clipping first, decay inside the trust ratio, no trust ratio
//! for tensors without weight decay.

use super::state::State;
use super::{Optimizer, Slot, StepStats, check_betas, check_range, kernel};
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hyper-parameters of [`Lamb`]; the defaults are timm's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambConfig {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, part of the update before the trust ratio is taken.
    pub weight_decay: f64,
    /// Correct the moments for their start at zero.
    pub bias_correction: bool,
    /// Gradients of all parameters together are scaled down to this L2 norm; `"none"` in a recipe turns it off.
    #[serde(with = "limit")]
    pub max_grad_norm: Option<f64>,
    /// Let the trust ratio be at most 1 (LAMBC).
    pub trust_clip: bool,
    /// Take the trust ratio for tensors without weight decay too.
    pub always_adapt: bool,
}

impl Default for LambConfig {
    fn default() -> Self {
        LambConfig {
            betas: [0.9, 0.999],
            eps: 1e-6,
            weight_decay: 0.01,
            bias_correction: true,
            max_grad_norm: Some(1.0),
            trust_clip: false,
            always_adapt: false,
        }
    }
}

/// TOML has no null, and leaving the field out means the default; "none" is the value that says "no limit".
mod limit {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        None,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(untagged, expecting = "a number or \"none\"")]
    enum Limit {
        Number(f64),
        Word(Word),
    }

    pub fn serialize<S: Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        value.map_or(Limit::Word(Word::None), Limit::Number).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        // The outer option takes JSON's null.
        Ok(match Option::<Limit>::deserialize(d)? {
            Some(Limit::Number(v)) => Some(v),
            Some(Limit::Word(Word::None)) | None => None,
        })
    }
}

/// LAMB: `u = m^ / (sqrt(v^) + eps) + wd w; w -= lr |w| / |u| u`, norms per tensor.
pub struct Lamb {
    config: LambConfig,
    state: State<2>,
}

impl Lamb {
    /// An optimiser without state.
    ///
    /// # Errors
    /// A hyper-parameter outside its range.
    pub fn new(config: LambConfig) -> Result<Self> {
        check_betas(config.betas)?;
        check_range("eps", config.eps, f64::INFINITY)?;
        check_range("weight_decay", config.weight_decay, f64::INFINITY)?;
        if config.max_grad_norm.is_some_and(|m| m.is_nan() || m <= 0.0) {
            return Err(Error::usage("the largest gradient norm must be positive")
                .with_key("max_grad_norm")
                .with_remedy("choose a positive number, or \"none\" to turn clipping off"));
        }
        Ok(Lamb { config, state: State::new(["exp_avg", "exp_avg_sq"]) })
    }
}

impl Optimizer for Lamb {
    fn step(&mut self, lr: f64, slots: &mut [Slot<'_>]) -> Result<StepStats> {
        let c = &self.config;
        let [beta1, beta2] = c.betas;
        self.state.run("lamb", lr, slots, |job, step, grad_norm| {
            let clip = c.max_grad_norm.map_or(1.0, |m| (grad_norm / m).max(1.0)) as f32;
            let correct = |b: f64| if c.bias_correction { 1.0 - b.powf(step as f64) } else { 1.0 };
            let (bc1, root) = (correct(beta1) as f32, correct(beta2).sqrt() as f32);
            let decay = if job.decay { c.weight_decay } else { 0.0 };
            let wd = decay as f32;
            let (one_b1, b2, one_b2, eps) =
                ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32, c.eps as f32);
            let update = |w: f32, m: f32, v: f32| {
                let denominator = v.sqrt() / root + eps;
                let adam = if denominator > 0.0 { m / bc1 / denominator } else { 0.0 };
                adam + wd * w
            };
            let [u, w] = kernel::visit(job.value, &mut job.bufs, job.grad, |w, [m, v], g| {
                let g = g / clip;
                *m += (g - *m) * one_b1;
                *v = *v * b2 + g * g * one_b2;
                [update(*w, *m, *v), *w]
            });
            let mut ratio = 1.0;
            if decay != 0.0 || c.always_adapt {
                if u > 0.0 && w > 0.0 {
                    ratio = w.sqrt() / u.sqrt();
                }
                if c.trust_clip {
                    ratio = ratio.min(1.0);
                }
            }
            let size = (job.lr * ratio) as f32;
            // The update is computed again rather than stored: three reads cost less than a scratch tensor.
            kernel::visit(job.value, &mut job.bufs, job.grad, |w, [m, v], _| {
                let old = *w;
                *w = old - size * update(old, *m, *v);
                [*w - old, *w]
            })
        })
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        self.state.export()
    }

    fn load_state(&mut self, params: &[(&str, Shape)], state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.state.import(params, state)
    }

    fn step_count(&self) -> u64 {
        self.state.step_count()
    }
}
