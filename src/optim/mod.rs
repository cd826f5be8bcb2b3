//! Optimisers, learning-rate schedules, gradient clipping and weight averaging.
//!
//! Everything here works on named tensors handed in by the caller and knows no layers. Arithmetic is f32 on the CPU;
//! norms are f64 sums over fixed chunks added in order, so results do not depend on the number of threads. [`device`] does the
//! same on a CUDA device.

mod adamw;
mod clip;
pub mod device;
mod ema;
mod groups;
mod kernel;
mod lamb;
mod lars;
mod schedule;
mod sgd;
mod state;

pub use adamw::{AdamW, AdamWConfig};
pub use clip::{clip_grad_norm, grad_norm};
pub use ema::{Ema, EmaConfig};
pub use groups::weight_decays;
pub use lamb::{Lamb, LambConfig};
pub use lars::{Lars, LarsConfig};
pub use schedule::{LrConfig, SCALED_BASE_LR, Schedule, ScheduleConfig, Span, scaled_lr};
pub use sgd::{Sgd, SgdConfig};

use crate::base::Shape;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One parameter of a step.
pub struct Slot<'a> {
    /// The dotted name; state is kept under it.
    pub name: &'a str,
    /// The f32 master weights, updated in place.
    pub value: &'a mut Tensor,
    /// The f32 gradient, of the same shape. It is not changed.
    pub grad: &'a Tensor,
    /// Whether weight decay applies ([`weight_decays`] is the usual rule).
    pub decay: bool,
    /// Multiplies the learning rate (layer-wise decay); 1 otherwise.
    pub lr_scale: f32,
}

/// What a step saw and did, over all parameters together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// L2 norm of the gradients as handed in, before any clipping.
    pub grad_norm: f64,
    /// L2 norm of the change of the parameters.
    pub update_norm: f64,
    /// L2 norm of the parameters after the step.
    pub param_norm: f64,
}

/// An optimiser. The learning rate is an argument of every step; it comes from a [`Schedule`].
pub trait Optimizer: Send {
    /// Updates every parameter with its gradient.
    ///
    /// # Errors
    /// A gradient that is not finite ([`Error::numeric`], nothing has been changed then), shapes or dtypes that
    /// differ, a name given twice, a learning rate that is negative or not finite.
    fn step(&mut self, lr: f64, slots: &mut [Slot<'_>]) -> Result<StepStats>;

    /// The state as tensors, named `<buffer>.<parameter>` (f32, e.g. `exp_avg.conv1.weight`), and the number of
    /// steps as `step` (i64 scalar).
    fn state(&self) -> BTreeMap<String, Tensor>;

    /// Replaces the state by one that [`Optimizer::state`] returned, for the parameters `params` (name and shape).
    ///
    /// # Errors
    /// [`Error::checkpoint`] naming the key that is missing, unexpected or misshapen; the state is unchanged then.
    fn load_state(&mut self, params: &[(&str, Shape)], state: &BTreeMap<String, Tensor>) -> Result<()>;

    /// Steps done so far.
    fn step_count(&self) -> u64;
}

/// Which optimiser, with its hyper-parameters. In a recipe the field `name` selects it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay.
    AdamW(AdamWConfig),
    /// Layer-wise adaptive Adam for large batches.
    Lamb(LambConfig),
    /// Layer-wise adaptive SGD for large batches.
    Lars(LarsConfig),
    /// Stochastic gradient descent with momentum.
    Sgd(SgdConfig),
}

impl OptimizerConfig {
    /// How many state tensors of a parameter's size the optimiser keeps: for memory plans.
    pub fn state_copies(&self) -> usize {
        match self {
            OptimizerConfig::AdamW(_) | OptimizerConfig::Lamb(_) => 2,
            OptimizerConfig::Lars(_) | OptimizerConfig::Sgd(_) => 1,
        }
    }

    /// An optimiser without state.
    ///
    /// # Errors
    /// A hyper-parameter outside its range.
    pub fn build(&self) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            OptimizerConfig::AdamW(c) => Box::new(AdamW::new(c.clone())?),
            OptimizerConfig::Lamb(c) => Box::new(Lamb::new(c.clone())?),
            OptimizerConfig::Lars(c) => Box::new(Lars::new(c.clone())?),
            OptimizerConfig::Sgd(c) => Box::new(Sgd::new(c.clone())?),
        })
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig::AdamW(AdamWConfig::default())
    }
}

/// Checks that a hyper-parameter lies in `[0, below)`.
fn check_range(key: &str, value: f64, below: f64) -> Result<()> {
    if (0.0..below).contains(&value) {
        return Ok(());
    }
    let range = if below.is_finite() {
        format!("at least 0 and below {below}")
    } else {
        "finite and at least 0".into()
    };
    Err(Error::usage(format!("{value} is out of range"))
        .with_key(key)
        .with_remedy(format!("choose a value {range}")))
}

/// Checks Adam's two decay rates.
fn check_betas(betas: [f64; 2]) -> Result<()> {
    betas.iter().try_for_each(|&b| check_range("betas", b, 1.0))
}

#[cfg(test)]
mod tests;
