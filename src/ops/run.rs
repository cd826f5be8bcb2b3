//! Dispatch: the one place that picks an op's implementation by device.

use super::{Backward, Forward, Op};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
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
    if inputs.iter().any(|t| t.device() != device) {
        return Err(describe(Error::device("inputs lie on different devices").with_op(op.name())));
    }
    match device {
        Device::Cpu => {
            let out = op.forward(inputs).map_err(|e| describe(e.with_op(op.name())))?;
            debug_assert_eq!(out.y.shape(), shape, "{} breaks its shape rule", op.name());
            Ok(out)
        }
        Device::Cuda(_) => {
            let gpu = inputs.iter().find_map(|t| t.gpu()).expect("an input on the device knows it");
            let out = op.launch(gpu, inputs).map_err(|e| describe(e.with_op(op.name())))?;
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
            op.launch_backward(gpu, ctx).map_err(|e| e.with_op(op.name()).with_tensor("gy", ctx.gy))
        }
        _ => op.backward(ctx).map_err(|e| e.with_op(op.name())),
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
