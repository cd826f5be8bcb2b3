//! Dispatch: the one place that picks an op's implementation by device.

use super::{Forward, Op};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::{Device, Storage, Tensor};

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
        Device::Meta => {
            let ledger = inputs.iter().find_map(|t| match t.storage() {
                Storage::Meta { ledger, .. } => ledger.as_ref(),
                Storage::Cpu(_) => None,
            });
            let y = Tensor::meta(shape, DType::F32, ledger);
            if let Some(l) = ledger {
                l.touch(op.scratch_bytes(&shapes));
            }
            Ok(y.into())
        }
    }
}
