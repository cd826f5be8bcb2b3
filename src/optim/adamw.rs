//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019), as `torch.optim.AdamW`.

use super::state::State;
use super::{Optimizer, Slot, StepStats, check_betas, check_range, kernel};
use crate::base::Shape;
use crate::error::Result;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hyper-parameters of [`AdamW`]; the defaults are PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: every step multiplies the weights by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// AdamW: `w *= 1 - lr wd; w -= lr m^ / (sqrt(v^) + eps)` with bias-corrected moments `m^`, `v^`.
pub struct AdamW {
    config: AdamWConfig,
    state: State<2>,
}

impl AdamW {
    /// An optimiser without state.
    ///
    /// # Errors
    /// A hyper-parameter outside its range.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        check_betas(config.betas)?;
        check_range("eps", config.eps, f64::INFINITY)?;
        check_range("weight_decay", config.weight_decay, f64::INFINITY)?;
        Ok(AdamW { config, state: State::new(["exp_avg", "exp_avg_sq"]) })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, lr: f64, slots: &mut [Slot<'_>]) -> Result<StepStats> {
        let AdamWConfig { betas: [beta1, beta2], eps, weight_decay } = self.config;
        self.state.run("adamw", lr, slots, |job, step, _| {
            // beta^step below f64's smallest number is 0, which is the right limit for any larger step.
            let power = |b: f64| b.powf(step as f64);
            let keep = if job.decay { (1.0 - job.lr * weight_decay) as f32 } else { 1.0 };
            let size = (job.lr / (1.0 - power(beta1))) as f32;
            let root = (1.0 - power(beta2)).sqrt() as f32;
            let (one_b1, b2, one_b2, eps) =
                ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32, eps as f32);
            kernel::visit(job.value, &mut job.bufs, job.grad, |w, [m, v], g| {
                let old = *w;
                *m += (g - *m) * one_b1;
                *v = *v * b2 + g * g * one_b2;
                // With eps = 0 a gradient that was always 0 moves nothing.
                let denominator = v.sqrt() / root + eps;
                let delta = if denominator > 0.0 { *m / denominator } else { 0.0 };
                *w = old * keep - size * delta;
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
