//! LAMB: Adam's direction plus decay, `u = m^ / (sqrt(v^) + eps) + wd w`, then `w -= lr |w| / |u| u`, norms per tensor.

use super::adamw::AdamW;
use super::check::{Job, check_optimizer};
use super::multi_tensor::{Group, StepScalars, Updates, grid, traced};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use bytemuck::{Pod, Zeroable};

/// Operations of the formula for an element, with its corrections and norms; a root and a division count one.
const FLOPS: usize = 20;

/// The hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lamb {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, part of the update before the trust ratio is taken.
    pub weight_decay: f64,
    /// Correct the moments for their start at zero.
    pub bias_correction: bool,
    /// Gradients of all tensors together are scaled down to this L2 norm.
    pub max_grad_norm: Option<f64>,
    /// Let the trust ratio be at most 1.
    pub trust_clip: bool,
    /// Take the trust ratio for tensors without weight decay too.
    pub always_adapt: bool,
}

/// `LambParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    updates: Updates,
    max_norm: f64,
    weight_decay: f64,
    one_b1: f32,
    b2: f32,
    one_b2: f32,
    eps: f32,
    trust_clip: i32,
    always_adapt: i32,
}

impl Lamb {
    /// Enqueues the update of a group with two buffers: the first and the second moment.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        let [b1, b2] = self.betas;
        let p = Params {
            updates: group.updates()?,
            max_norm: self.max_grad_norm.unwrap_or(0.0),
            weight_decay: self.weight_decay,
            one_b1: (1.0 - b1) as f32,
            b2: b2 as f32,
            one_b2: (1.0 - b2) as f32,
            eps: self.eps as f32,
            trust_clip: i32::from(self.trust_clip),
            always_adapt: i32::from(self.always_adapt),
        };
        let launch = |entry| call(entry).launch(gpu, grid(group.chunks()), &p);
        let cost = [FLOPS, group.bytes_of_update(2)];
        traced(gpu, "lamb", group.elements(), cost, || ENTRIES.into_iter().try_for_each(launch))
    }

    /// Corrections of the moments at a step counted from 1.
    pub fn scalars(&self, step: u64) -> StepScalars {
        if !self.bias_correction {
            return StepScalars {
                inverse_bias_1: 1.0,
                bias_1: 1.0,
                root_bias_2: 1.0,
                ..StepScalars::zeroed()
            };
        }
        AdamW { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay }.scalars(step)
    }
}

const ENTRIES: [&str; 2] = ["lamb_moments", "lamb_update"];

fn call(entry: &'static str) -> Call {
    Call::new("lamb.cu", entry)
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
    let op = Lamb {
        betas: [0.9, 0.99],
        eps: 1e-6,
        weight_decay: 0.1,
        bias_correction: true,
        max_grad_norm: Some(1.0),
        trust_clip: false,
        always_adapt: false,
    };
    let [b1, b2] = op.betas;
    let reference = |job: &mut Job<'_>| {
        let correct = |b: f64| 1.0 - b.powi(job.step as i32);
        let mut u = Vec::new();
        for i in 0..job.w.len() {
            let g = job.g[i] / job.norm.max(1.0);
            job.a[i] += (1.0 - b1) * (g - job.a[i]);
            job.b[i] = b2 * job.b[i] + (1.0 - b2) * g * g;
            let adam = job.a[i] / correct(b1) / ((job.b[i] / correct(b2)).sqrt() + op.eps);
            u.push(adam + if job.decay { op.weight_decay * job.w[i] } else { 0.0 });
        }
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let ratio = if job.decay { norm(job.w) / norm(&u) } else { 1.0 };
        job.w.iter_mut().zip(&u).for_each(|(w, u)| *w -= job.lr * ratio * u);
    };
    check_optimizer("lamb", gpu, 2, |step| op.scalars(step), |group| op.enqueue(gpu, group), reference)
}
