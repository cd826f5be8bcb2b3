//! Stochastic gradient descent with momentum, as `torch.optim.SGD`.

use super::state::{Job, State};
use super::{Optimizer, Slot, StepStats, check_range, kernel};
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hyper-parameters of [`Sgd`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Momentum; 0 is plain gradient descent (the buffer is still kept).
    pub momentum: f64,
    /// Takes this share off the gradient that enters the buffer, from the second step on.
    pub dampening: f64,
    /// Nesterov's momentum: look ahead along the buffer.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        SgdConfig { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// The momentum part that SGD and LARS share.
#[derive(Clone, Copy)]
pub(super) struct Momentum {
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
}

impl Momentum {
    pub fn check(self) -> Result<Self> {
        check_range("momentum", self.momentum, 1.0)?;
        check_range("dampening", self.dampening, 1.0)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            return Err(Error::usage("Nesterov's method needs a momentum and no dampening")
                .with_key("nesterov")
                .with_remedy("set `momentum` above 0 and `dampening` to 0, or `nesterov` to false"));
        }
        Ok(self)
    }

    /// One step along `scale * (grad + decay * w)`.
    pub fn apply(self, job: &mut Job<'_, 1>, decay: f64, scale: f64) -> [f64; 2] {
        let (wd, scale, lr, mu) = (decay as f32, scale as f32, job.lr as f32, self.momentum as f32);
        // PyTorch starts the buffer as a copy of the first gradient, without dampening; without momentum there is no
        // buffer and nothing to dampen.
        let enters = if job.fresh || self.momentum == 0.0 { 1.0 } else { (1.0 - self.dampening) as f32 };
        kernel::visit(job.value, &mut job.bufs, job.grad, |w, [b], g| {
            let old = *w;
            let g = (g + wd * old) * scale;
            *b = mu * *b + enters * g;
            let direction = if self.nesterov { g + mu * *b } else { *b };
            *w = old - lr * direction;
            [*w - old, *w]
        })
    }
}

/// SGD: `b = momentum b + (g + wd w); w -= lr b`.
pub struct Sgd {
    momentum: Momentum,
    weight_decay: f64,
    state: State<1>,
}

impl Sgd {
    /// An optimiser without state.
    ///
    /// # Errors
    /// A hyper-parameter outside its range, or Nesterov without momentum.
    pub fn new(config: SgdConfig) -> Result<Self> {
        let SgdConfig { momentum, dampening, nesterov, weight_decay } = config;
        check_range("weight_decay", weight_decay, f64::INFINITY)?;
        let momentum = Momentum { momentum, dampening, nesterov }.check()?;
        Ok(Sgd { momentum, weight_decay, state: State::new(["momentum_buffer"]) })
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, lr: f64, slots: &mut [Slot<'_>]) -> Result<StepStats> {
        let (momentum, weight_decay) = (self.momentum, self.weight_decay);
        self.state.run("sgd", lr, slots, |job, _, _| {
            let decay = if job.decay { weight_decay } else { 0.0 };
            momentum.apply(job, decay, 1.0)
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
