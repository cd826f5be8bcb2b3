//! Stochastic gradient descent with momentum: `b = momentum b + (g + wd w)`, `w -= lr b`.

use super::check::{Job, check_optimizer};
use super::multi_tensor::{Group, Momentum, StepScalars, Updates, grid, traced};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use bytemuck::{Pod, Zeroable};

/// Operations of the formula for an element.
const FLOPS: usize = 7;

/// The hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Momentum.
    pub momentum: f64,
    /// Takes this share off the gradient that enters the buffer, from the second step on.
    pub dampening: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

/// `SgdParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    updates: Updates,
    momentum: Momentum,
    weight_decay: f32,
    pad: i32,
}

impl Sgd {
    /// Enqueues the update of a group with one buffer: the momentum.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        let p = Params {
            updates: group.updates()?,
            momentum: self.of_kernel(),
            weight_decay: self.weight_decay as f32,
            pad: 0,
        };
        let cost = [FLOPS, group.bytes_of_update(1)];
        traced(gpu, "sgd", group.elements(), cost, || call().launch(gpu, grid(group.chunks()), &p))
    }

    /// What enters the buffer at a step counted from 1: the buffer starts as a copy of the first gradient, without dampening.
    pub fn scalars(&self, step: u64) -> StepScalars {
        let enters = if step == 1 || self.momentum == 0.0 { 1.0 } else { (1.0 - self.dampening) as f32 };
        StepScalars { enters, ..StepScalars::zeroed() }
    }

    pub(super) fn of_kernel(&self) -> Momentum {
        Momentum { momentum: self.momentum as f32, nesterov: i32::from(self.nesterov) }
    }
}

fn call() -> Call {
    Call::new("sgd.cu", "sgd_update")
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    vec![call().variant::<Params>()]
}

/// The definition in f64, along `scale (g + decay w)`.
pub(super) fn step(job: &mut Job<'_>, op: &Sgd, decay: f64, scale: f64) {
    let enters = if job.step == 1 { 1.0 } else { 1.0 - op.dampening };
    for i in 0..job.w.len() {
        let g = scale * (job.g[i] + decay * job.w[i]);
        job.a[i] = op.momentum * job.a[i] + enters * g;
        job.w[i] -= job.lr * if op.nesterov { g + op.momentum * job.a[i] } else { job.a[i] };
    }
}

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let op = Sgd { momentum: 0.9, dampening: 0.25, nesterov: false, weight_decay: 0.1 };
    let reference = |job: &mut Job<'_>| {
        let decay = if job.decay { op.weight_decay } else { 0.0 };
        step(job, &op, decay, 1.0);
    };
    check_optimizer("sgd", gpu, 1, |step| op.scalars(step), |group| op.enqueue(gpu, group), reference)
}
