//! Norms over all tensors, how far the gradient is clipped, and whether the step may be done.
//!
//! ```text
//! norm = |sum of gradients| / parts;  clip = min(1, max_norm / (norm + 1e-6));  finite = norm and loss are
//! ```

use super::check::{Scene, expect, repeated, wide};
use super::multi_tensor::{Group, Verdict};
use super::{accumulate, multi_tensor};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "grad_norm";
/// Threads of the only block.
const THREADS: u32 = 512;

/// `GradNormParams` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    grads: u64,
    squares: u64,
    loss: u64,
    verdict: u64,
    report: u64,
    max_norm: f64,
    mean: f32,
    chunks: i32,
}

impl Params {
    fn of(group: &Group) -> Result<Params> {
        Ok(Params {
            grads: group.grads().cuda_ptr()?,
            squares: group.squares().cuda_ptr()?,
            loss: 0,
            verdict: group.verdict().cuda_ptr()?,
            report: group.report().cuda_ptr()?,
            max_norm: 0.0,
            mean: 1.0,
            chunks: group.chunks() as i32,
        })
    }

    fn launch(&self, gpu: &Gpu, entry: &'static str) -> Result<()> {
        call(entry).launch(gpu, Grid { grid: [1; 3], block: THREADS, shared_bytes: 0 }, self)
    }
}

/// Enqueues the verdict on the gradients of a batch in `parts` parts, which have been accumulated: their norm, the factor that
/// clips it to `max_norm`, and whether they and `loss` (f32, one element) are finite.
///
/// # Errors
/// No part, a limit that is not positive, a loss that is not one f32 on the device, or a failed launch.
pub fn clip(
    gpu: &Gpu,
    group: &Group,
    max_norm: Option<f64>,
    parts: usize,
    loss: Option<&Tensor>,
) -> Result<()> {
    if parts == 0 || max_norm.is_some_and(|m| m.is_nan() || m <= 0.0) {
        return Err(Error::usage(format!("{parts} parts, clipped to {max_norm:?}")).with_op(OP));
    }
    if let Some(loss) = loss {
        multi_tensor::expect(OP, "the loss", loss, gpu, DType::F32, 1)?;
    }
    let loss = loss.map_or(Ok(0), Tensor::cuda_ptr)?;
    let (max_norm, mean) = (max_norm.unwrap_or(0.0), 1.0 / parts as f32);
    Params { loss, max_norm, mean, ..Params::of(group)? }.launch(gpu, "grad_norm_clip")
}

/// Enqueues the report of a step behind its updates: [`Group::report`].
///
/// # Errors
/// A failed launch.
pub fn report(gpu: &Gpu, group: &Group) -> Result<()> {
    Params::of(group)?.launch(gpu, "grad_norm_report")
}

fn call(entry: &'static str) -> Call {
    Call::new("grad_norm.cu", entry)
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    ["grad_norm_clip", "grad_norm_report"].map(|entry| call(entry).variant::<Params>()).to_vec()
}

/// Runs all variants against the definition and gives the largest error.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, a step that is not finite and not found out, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let scene = Scene::new(5);
    let group = scene.group(gpu, 0)?;
    let grads = scene.gradients(gpu, 1)?;
    let all: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
    let mut sum = 0.0;
    for g in &grads {
        sum += wide(&g.to_cpu()?)?.iter().map(|v| v * v).sum::<f64>();
    }
    let norm = sum.sqrt() / 2.0;
    let mut worst = 0.0f64;
    for (loss, limit) in
        [(1.0f32, None), (f32::NAN, Some(2.0 * norm)), (f32::INFINITY, None), (1.0, Some(0.5))]
    {
        let loss = Tensor::scalar(loss).to_gpu(gpu)?;
        let finite = f64::from(u8::from(loss.item()?.is_finite()));
        let made = repeated(OP, || {
            accumulate::enqueue(gpu, &group, &all, true)?;
            clip(gpu, &group, limit, 2, Some(&loss))?;
            let host = group.verdict().to_cpu()?;
            let v: Verdict = bytemuck::pod_read_unaligned(host.data::<u8>()?);
            let v = [v.norm, v.clipped_norm, f64::from(v.mean), f64::from(v.clip), f64::from(v.finite)];
            Ok(vec![Tensor::from_vec([5], v.to_vec())?])
        })?;
        let factor = limit.map_or(1.0, |m| (m / (norm + 1e-6)).min(1.0));
        let want = [norm, norm * factor, 0.5, factor, finite];
        worst = worst.max(expect(OP, "the verdict", &made[0], &want, 1e-6)?);
    }
    // The report, of squares that stand for those of an update.
    let squares: Vec<f64> = (0..2 * group.chunks()).map(|i| i as f64 + 0.25).collect();
    multi_tensor::write(gpu, group.squares(), &squares)?;
    let report = repeated(OP, || {
        report(gpu, &group)?;
        Ok(vec![group.report().clone()])
    })?;
    let root = |place: usize| squares.iter().skip(place).step_by(2).sum::<f64>().sqrt();
    worst = worst.max(expect(OP, "the report", &report[0], &[norm, root(0), root(1), 1.0], 1e-6)?);
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    #[test]
    fn nonsense_is_refused() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let group = Scene::new(2).group(&gpu, 0).unwrap();
        clip(&gpu, &group, Some(1.0), 3, None).unwrap();
        assert!(clip(&gpu, &group, Some(0.0), 1, None).unwrap_err().is_usage());
        assert!(clip(&gpu, &group, Some(f64::NAN), 1, None).unwrap_err().is_usage());
        assert!(clip(&gpu, &group, None, 0, None).unwrap_err().is_usage());
        let two = Tensor::empty_gpu([2], DType::F32, &gpu, "test").unwrap();
        assert!(clip(&gpu, &group, None, 1, Some(&two)).unwrap_err().is_shape());
    }
}
