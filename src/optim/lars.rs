//! LARS (You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017) and its clipped form LARC,
//! with the rules of timm's `Lars`; a flag gives those of apex's `LARC`, which the linear probe of SimSiam uses.

use super::sgd::Momentum;
use super::state::State;
use super::{Optimizer, Slot, StepStats, check_range, kernel};
use crate::base::Shape;
use crate::error::Result;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hyper-parameters of [`Lars`]; the defaults are timm's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LarsConfig {
    /// Momentum.
    pub momentum: f64,
    /// Takes this share off the gradient that enters the buffer, from the second step on.
    pub dampening: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient before the trust ratio is applied.
    pub weight_decay: f64,
    /// Trust coefficient: the relative size of a step at learning rate 1.
    pub trust_coeff: f64,
    /// Added to the denominator of the trust ratio.
    pub eps: f64,
    /// LARC: the step of a tensor is at most the plain learning rate.
    pub trust_clip: bool,
    /// Take the trust ratio for tensors without weight decay too.
    pub always_adapt: bool,
    /// apex's rule: adapt every tensor, but take the plain gradient, without decay, where the norm of the weights or
    /// of the gradient is 0. (timm still adds the decay there.)
    pub apex: bool,
}

impl Default for LarsConfig {
    fn default() -> Self {
        LarsConfig {
            momentum: 0.9,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            trust_coeff: 0.001,
            eps: 1e-8,
            trust_clip: false,
            always_adapt: false,
            apex: false,
        }
    }
}

/// LARS: SGD with momentum along `r (g + wd w)`, `r = trust_coeff |w| / (|g| + wd |w| + eps)`, norms per tensor.
pub struct Lars {
    config: LarsConfig,
    momentum: Momentum,
    state: State<1>,
}

impl Lars {
    /// An optimiser without state.
    ///
    /// # Errors
    /// A hyper-parameter outside its range, or Nesterov without momentum.
    pub fn new(config: LarsConfig) -> Result<Self> {
        check_range("weight_decay", config.weight_decay, f64::INFINITY)?;
        check_range("trust_coeff", config.trust_coeff, f64::INFINITY)?;
        check_range("eps", config.eps, f64::INFINITY)?;
        let LarsConfig { momentum, dampening, nesterov, .. } = config;
        let momentum = Momentum { momentum, dampening, nesterov }.check()?;
        Ok(Lars { config, momentum, state: State::new(["momentum_buffer"]) })
    }
}

impl Optimizer for Lars {
    fn step(&mut self, lr: f64, slots: &mut [Slot<'_>]) -> Result<StepStats> {
        let (c, momentum) = (&self.config, self.momentum);
        self.state.run("lars", lr, slots, |job, _, _| {
            let mut decay = if job.decay { c.weight_decay } else { 0.0 };
            let mut ratio = 1.0;
            if decay != 0.0 || c.always_adapt || c.apex {
                let (w, g) = (kernel::sum_squares(job.value).sqrt(), job.grad_sq.sqrt());
                let adapts = w > 0.0 && g > 0.0;
                if adapts {
                    ratio = c.trust_coeff * w / (g + w * decay + c.eps);
                } else if c.apex {
                    decay = 0.0;
                }
                // At learning rate 0 the quotient is infinite and the limit holds.
                if c.trust_clip && (adapts || !c.apex) {
                    ratio = (ratio / job.lr).min(1.0);
                }
            }
            momentum.apply(job, decay, ratio)
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
