//! Compares an op's kernels with its f64 reference.

use super::truth::{Truth, upstream};
use super::{Deviation, FORWARD_TOLERANCE, GRADIENT_TOLERANCE, Limit};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::{Backward, Case, backward, run};
use crate::tensor::Tensor;

/// What one run of a case left, copied to the host.
struct Pass {
    y: Tensor,
    grads: Vec<Option<Tensor>>,
}

/// Runs a case's kernels, forward and backward, on a device with operands of `dtype`, and compares every element with the
/// reference for the very numbers that the device was given. A second run has to give the same bits.
///
/// Results in f32 may be off by [`FORWARD_TOLERANCE`] of the largest magnitude, gradients too where the op has them by its
/// definition; narrower results by twice their rounding more, and all results by [`Op::inner_rounding`](crate::ops::Op) more.
///
/// # Errors
/// The op has no kernel or a launch fails, a deviation is not within the tolerance (which a NaN never is), or two runs
/// differ.
pub fn check_on(gpu: &Gpu, case: &Case, dtype: DType, seed: u64) -> Result<Deviation> {
    let op = &*case.op;
    let narrow = |(i, t): (usize, &Tensor)| {
        if op.is_operand(i) && t.dtype() == DType::F32 { t.to_dtype(dtype) } else { Ok(t.clone()) }
    };
    let host = case.tensors(seed).iter().enumerate().map(narrow).collect::<Result<Vec<Tensor>>>()?;
    let first = pass(gpu, case, &host, seed)?;
    let truth = Truth::new(case, &host, first.y.dtype(), seed)?;
    let inner = op.inner_rounding(dtype);
    let mut seen = Deviation {
        forward: truth.forward(&first.y, Limit::new(FORWARD_TOLERANCE + inner, first.y.dtype()))?,
        gradient: 0.0,
    };
    for (i, g) in first.grads.iter().enumerate().filter(|(i, _)| case.inputs[*i].grad) {
        let dtype = g.as_ref().map_or(DType::F32, Tensor::dtype);
        let error = if truth.has_gradients() {
            truth.gradient(i, g.as_ref(), Limit::new(FORWARD_TOLERANCE + inner, dtype))?
        } else {
            truth.slopes(i, g.as_ref(), Limit::new(GRADIENT_TOLERANCE + inner, dtype))?
        };
        seen.gradient = seen.gradient.max(error);
    }
    let second = pass(gpu, case, &host, seed)?;
    let all =
        |p: &Pass| std::iter::once(Some(&p.y)).chain(p.grads.iter().map(Option::as_ref)).map(bits).collect();
    let (a, b): (Vec<_>, Vec<_>) = (all(&first), all(&second));
    if a != b {
        return Err(Error::numeric(op.name(), format!("case `{}`: two runs on {gpu:?} differ", case.label)));
    }
    Ok(seen)
}

/// Forward and backward on the device.
fn pass(gpu: &Gpu, case: &Case, host: &[Tensor], seed: u64) -> Result<Pass> {
    let op = &*case.op;
    poison(gpu, case)?;
    let inputs = host.iter().map(|t| t.to_gpu(gpu)).collect::<Result<Vec<Tensor>>>()?;
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let out = run(op, &refs)?;
    let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
    if !needs.contains(&true) {
        return Ok(Pass { y: out.y.to_cpu()?, grads: Vec::new() });
    }
    let gy = upstream(out.y.shape(), out.y.dtype(), seed)?.to_gpu(gpu)?;
    let mut saved = op.save(&refs, &out.y);
    saved.extend(out.extra);
    let shapes: Vec<Shape> = refs.iter().map(|t| t.shape()).collect();
    let grads = backward(op, &Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs })?;
    let grads = grads.iter().map(|g| g.as_ref().map(Tensor::to_cpu).transpose());
    Ok(Pass { y: out.y.to_cpu()?, grads: grads.collect::<Result<_>>()? })
}

/// Leaves NaNs (bytes of ones) in the memory that a card hands out next, so that what a kernel does not write is seen. The
/// simulator gives memory that it knows nobody has written, and tells who reads it.
fn poison(gpu: &Gpu, case: &Case) -> Result<()> {
    if gpu.info().simulated {
        return Ok(());
    }
    let shapes = case.shapes();
    let elements = shapes.iter().map(|s| s.elems()).sum::<usize>() + case.op.output_shape(&shapes)?.elems();
    let buffer = gpu.alloc(4 * DType::F64.size() * elements, "poison")?;
    gpu.fill_byte(&buffer, 0xFF)
}

/// Dtype and bytes.
fn bits(t: Option<&Tensor>) -> Option<(DType, Vec<u64>)> {
    let t = t?;
    // Widening keeps what tells two floats apart, apart from the payload of NaNs, which have failed before.
    let wide = t.to_dtype(DType::F64).ok()?;
    Some((t.dtype(), wide.data::<f64>().ok()?.iter().map(|v| v.to_bits()).collect()))
}
