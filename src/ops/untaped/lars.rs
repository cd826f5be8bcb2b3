//! LARS: SGD with momentum along `r (g + wd w)`, `r = trust |w| / (|g| + wd |w| + eps)`, norms per tensor.

use super::check::{Job, check_optimizer};
use super::multi_tensor::{Group, Momentum, StepScalars, Updates, grid, traced};
use super::sgd;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use bytemuck::{Pod, Zeroable};

/// Operations of the formula for an element, with its norms.
const FLOPS: usize = 12;

/// The hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lars {
    /// Momentum and decay; the decay is added to the gradient before the trust ratio is applied.
    pub sgd: sgd::Sgd,
    /// Trust coefficient.
    pub trust_coeff: f64,
    /// Added to the denominator of the trust ratio.
    pub eps: f64,
    /// The step of a tensor is at most the plain learning rate.
    pub trust_clip: bool,
    /// Take the trust ratio for tensors without weight decay too.
    pub always_adapt: bool,
    /// Adapt every tensor, but take the plain gradient, without decay, where the norm of the weights or of the gradient is 0.
    pub apex: bool,
}

/// `LarsParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    updates: Updates,
    weight_decay: f64,
    trust: f64,
    eps: f64,
    momentum: Momentum,
    trust_clip: i32,
    always_adapt: i32,
    apex: i32,
    pad: i32,
}

impl Lars {
    /// Enqueues the update of a group with one buffer: the momentum.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        let p = Params {
            updates: group.updates()?,
            weight_decay: self.sgd.weight_decay,
            trust: self.trust_coeff,
            eps: self.eps,
            momentum: self.sgd.of_kernel(),
            trust_clip: i32::from(self.trust_clip),
            always_adapt: i32::from(self.always_adapt),
            apex: i32::from(self.apex),
            pad: 0,
        };
        let launch = |entry| call(entry).launch(gpu, grid(group.chunks()), &p);
        let cost = [FLOPS, group.bytes_of_update(1)];
        traced(gpu, "lars", group.elements(), cost, || ENTRIES.into_iter().try_for_each(launch))
    }

    /// What enters the buffer at a step counted from 1.
    pub fn scalars(&self, step: u64) -> StepScalars {
        self.sgd.scalars(step)
    }
}

const ENTRIES: [&str; 2] = ["lars_norms", "lars_update"];

fn call(entry: &'static str) -> Call {
    Call::new("lars.cu", entry)
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    ENTRIES.map(|entry| call(entry).variant::<Params>()).to_vec()
}

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let sgd = sgd::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 0.1 };
    let op = Lars { sgd, trust_coeff: 0.05, eps: 1e-8, trust_clip: false, always_adapt: false, apex: false };
    let reference = |job: &mut Job<'_>| {
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let (mut ratio, mut decay) = (1.0, 0.0);
        if job.decay {
            decay = sgd.weight_decay;
            ratio = op.trust_coeff * norm(job.w) / (norm(job.g) + decay * norm(job.w) + op.eps);
        }
        sgd::step(job, &sgd, decay, ratio);
    };
    check_optimizer("lars", gpu, 1, |step| op.scalars(step), |group| op.enqueue(gpu, group), reference)
}
