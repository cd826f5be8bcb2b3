//! Dispatch: the one place that picks an op's implementation by device.

use super::{Backward, Forward, Op};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::Work;
use crate::tensor::{Device, Tensor};

/// Runs an op on the device its inputs lie on.
///
/// On [`Device::Meta`] only the shape is worked out, and result and scratch are counted in the inputs' ledger.
///
/// # Errors
/// Shapes or dtypes that the op does not take, or inputs on different devices.
pub fn run(op: &dyn Op, inputs: &[&Tensor]) -> Result<Forward> {
    let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
    let describe = |mut e: Error| {
        for (i, t) in inputs.iter().enumerate() {
            e = e.with_tensor(format!("input {i}"), t);
        }
        e
    };
    let shape = op.output_shape(&shapes).map_err(|e| describe(e.with_op(op.name())))?;
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    let gpu = inputs.first().and_then(|t| t.gpu());
    let elsewhere = |t: &Tensor| t.device() != device || t.gpu().zip(gpu).is_some_and(|(a, b)| !a.is(b));
    if inputs.iter().any(|t| elsewhere(t)) {
        return Err(describe(Error::device("inputs lie on different devices").with_op(op.name())));
    }
    match device {
        Device::Cpu => {
            let out = op.forward(inputs).map_err(|e| describe(e.with_op(op.name())))?;
            debug_assert_eq!(out.y.shape(), shape, "{} breaks its shape rule", op.name());
            Ok(out)
        }
        Device::Cuda(_) => {
            let gpu = gpu.expect("a tensor on a device knows it");
            let out = gpu.traced(
                || op.launch(gpu, inputs).map_err(|e| describe(e.with_op(op.name()))),
                |out| {
                    let results = std::iter::once(&out.y).chain(&out.extra).chain(&out.aux);
                    work(op, "fwd", op.flops(&shapes), inputs.iter().copied(), results)
                },
            )?;
            debug_assert_eq!(out.y.shape(), shape, "{} breaks its shape rule", op.name());
            debug_assert_eq!(out.y.device(), device, "the result of {} lies elsewhere", op.name());
            Ok(out)
        }
        Device::Meta => {
            let ledger = inputs.iter().find_map(|t| t.storage().ledger());
            let y = Tensor::meta(shape, DType::F32, ledger);
            if let Some(l) = ledger {
                l.touch(op.scratch_bytes(&shapes));
            }
            Ok(y.into())
        }
    }
}

/// Runs an op's backward pass on the device its upstream gradient lies on. A composite op's is made of others, which
/// come here themselves.
///
/// # Errors
/// Those of the op, or no kernel on that device.
pub fn backward(op: &dyn Op, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
    match (ctx.gy.device(), ctx.gy.gpu()) {
        (Device::Meta, _) if !op.is_composite() => Ok(plan_backward(op, ctx)),
        (Device::Cuda(_), Some(gpu)) if !op.is_composite() => {
            gpu.traced(
                || op.launch_backward(gpu, ctx).map_err(|e| e.with_op(op.name()).with_tensor("gy", ctx.gy)),
                |grads| {
                    // A product has one of the same size for every gradient of an operand.
                    let products = match op.convolution(ctx.inputs) {
                        Some(_) => ctx.needs.iter().take(2).filter(|n| **n).count() as u64,
                        None => 1,
                    };
                    let read = std::iter::once(ctx.gy).chain(ctx.saved);
                    work(op, "bwd", products * op.flops(ctx.inputs), read, grads.iter().flatten())
                },
            )
        }
        _ => op.backward(ctx).map_err(|e| e.with_op(op.name())),
    }
}

/// What is noted of an op's launches: the first result stands for all.
fn work<'t>(
    op: &dyn Op,
    pass: &'static str,
    flops: u64,
    read: impl Iterator<Item = &'t Tensor>,
    written: impl Iterator<Item = &'t Tensor>,
) -> Work {
    let (read, written): (Vec<&Tensor>, Vec<&Tensor>) = (read.collect(), written.collect());
    let bytes = read.iter().chain(&written).map(|t| t.bytes()).sum::<usize>() as u64;
    let first = written.first();
    Work {
        op: op.name().into(),
        pass,
        shape: first.map_or(Shape::SCALAR, |t| t.shape()),
        dtype: read.first().map_or(DType::F32, |t| t.dtype()),
        flops,
        bytes,
        result: first.and_then(|t| t.cuda_ptr().ok()).unwrap_or(0),
        launches: Vec::new(),
    }
}

/// The backward pass of an op on planning tensors: one gradient for every input that wants one.
fn plan_backward(op: &dyn Op, ctx: &Backward<'_>) -> Vec<Option<Tensor>> {
    let ledger = ctx.gy.storage().ledger();
    if let Some(l) = ledger {
        l.touch(op.scratch_bytes(ctx.inputs));
    }
    let make = |(&shape, &need): (&Shape, &bool)| need.then(|| Tensor::meta(shape, ctx.gy.dtype(), ledger));
    ctx.inputs.iter().zip(ctx.needs).map(make).collect()
}
