//! AdamW: `m += (1 - b1) (g - m)`, `v = b2 v + (1 - b2) g^2`, `w = w (1 - lr wd) - lr m^ / (sqrt(v^) + eps)`.

use super::check::{Job, check_optimizer};
use super::multi_tensor::{Group, StepScalars, Updates, grid, traced};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use bytemuck::{Pod, Zeroable};

/// Operations of the formula for an element, with its corrections; a root and a division count one.
const FLOPS: usize = 15;

/// The hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// `AdamWParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    updates: Updates,
    weight_decay: f64,
    one_b1: f32,
    b2: f32,
    one_b2: f32,
    eps: f32,
}

impl AdamW {
    /// Enqueues the update of a group with two buffers: the first and the second moment.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        let AdamW { betas: [b1, b2], eps, weight_decay } = *self;
        let p = Params {
            updates: group.updates()?,
            weight_decay,
            one_b1: (1.0 - b1) as f32,
            b2: b2 as f32,
            one_b2: (1.0 - b2) as f32,
            eps: eps as f32,
        };
        let cost = [FLOPS, group.bytes_of_update(2)];
        traced(gpu, "adamw", group.elements(), cost, || call().launch(gpu, grid(group.chunks()), &p))
    }

    /// Corrections of the moments at a step counted from 1.
    pub fn scalars(&self, step: u64) -> StepScalars {
        // beta^step below f64's smallest number is 0, which is the right limit for any larger step.
        let [bias_1, bias_2] = self.betas.map(|b| 1.0 - b.powf(step as f64));
        StepScalars {
            inverse_bias_1: 1.0 / bias_1,
            bias_1: bias_1 as f32,
            root_bias_2: bias_2.sqrt() as f32,
            ..StepScalars::zeroed()
        }
    }
}

fn call() -> Call {
    Call::new("adamw.cu", "adamw_update")
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    vec![call().variant::<Params>()]
}

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let op = AdamW { betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.1 };
    let [b1, b2] = op.betas;
    let reference = |job: &mut Job<'_>| {
        let correct = |b: f64| 1.0 - b.powi(job.step as i32);
        for i in 0..job.w.len() {
            let g = job.g[i];
            job.a[i] += (1.0 - b1) * (g - job.a[i]);
            job.b[i] = b2 * job.b[i] + (1.0 - b2) * g * g;
            let delta = job.a[i] / correct(b1) / ((job.b[i] / correct(b2)).sqrt() + op.eps);
            let keep = if job.decay { 1.0 - job.lr * op.weight_decay } else { 1.0 };
            job.w[i] = job.w[i] * keep - job.lr * delta;
        }
    };
    check_optimizer("adamw", gpu, 2, |step| op.scalars(step), |group| op.enqueue(gpu, group), reference)
}
