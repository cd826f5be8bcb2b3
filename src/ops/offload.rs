//! Offloading: single ops on a device in the middle of a network on the host.

use super::{Backward, Forward, Op, backward, run};
use crate::base::DType;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{Device, Tensor};

/// Runs ops that have a kernel on a device: inputs go there, results come back in f32. Everything around them stays on
/// the host.
#[derive(Clone)]
pub struct Offload {
    /// The device. Without one these ops run on the host, with operands, results and their gradients rounded to `dtype`:
    /// what the narrow type costs, apart from the kernels.
    pub gpu: Option<Gpu>,
    /// What f32 operands ([`Op::is_operand`]) are rounded to on the way: `F32`, `Bf16` or `F16`.
    pub dtype: DType,
}

/// An offloaded forward pass.
pub struct Offloaded {
    /// The results, back on the host in f32. `extra` is empty: what it held is in `saved`.
    pub host: Forward,
    /// What the backward pass needs, on the device.
    pub saved: Vec<Tensor>,
    /// The dtype that the result has on the device, and its gradient with it.
    pub dtype: DType,
}

impl Offload {
    /// To a device.
    pub fn to(gpu: &Gpu, dtype: DType) -> Offload {
        Offload { gpu: Some(gpu.clone()), dtype }
    }

    /// To nowhere: rounds as a device would.
    pub fn rounding(dtype: DType) -> Offload {
        Offload { gpu: None, dtype }
    }

    /// Whether an op on these inputs is offloaded: it has a kernel, and there is something on the host to compute.
    pub fn takes(&self, op: &dyn Op, inputs: &[&Tensor]) -> bool {
        op.has_kernel() && inputs.iter().all(|t| t.device() == Device::Cpu)
    }

    /// Runs the forward pass.
    ///
    /// # Errors
    /// As [`run`], and copies that fail.
    pub fn run(&self, op: &dyn Op, inputs: &[&Tensor]) -> Result<Offloaded> {
        let there: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let dtype = if op.is_operand(i) { self.rounded(t.dtype()) } else { t.dtype() };
                self.send(t, dtype)
            })
            .collect::<Result<_>>()?;
        let there: Vec<&Tensor> = there.iter().collect();
        let out = run(op, &there)?;
        let mut saved = op.save(&there, &out.y);
        saved.extend(out.extra);
        let aux = out.aux.iter().map(back).collect::<Result<_>>()?;
        let dtype = if self.gpu.is_some() { out.y.dtype() } else { self.rounded(out.y.dtype()) };
        let y = if self.gpu.is_some() { back(&out.y)? } else { round(&out.y, dtype)? };
        Ok(Offloaded { host: Forward { y, extra: Vec::new(), aux }, saved, dtype })
    }

    /// Runs the backward pass of [`Offload::run`]: `ctx.saved` is what that gave, `dtype` too; `ctx.gy` lies on the
    /// host and is rounded to it.
    ///
    /// # Errors
    /// As [`backward`], and copies that fail.
    pub fn backward(&self, op: &dyn Op, ctx: &Backward<'_>, dtype: DType) -> Result<Vec<Option<Tensor>>> {
        let gy = self.send(ctx.gy, dtype)?;
        let grads = backward(op, &Backward { gy: &gy, ..*ctx })?;
        let narrow = |i: usize| self.gpu.is_none() && op.is_operand(i);
        let home = |(i, g): (usize, &Tensor)| if narrow(i) { round(g, self.dtype) } else { back(g) };
        grads.iter().enumerate().map(|(i, g)| g.as_ref().map(|g| home((i, g))).transpose()).collect()
    }

    /// An input as the op gets it: on the device, or rounded where it is.
    fn send(&self, t: &Tensor, dtype: DType) -> Result<Tensor> {
        match &self.gpu {
            Some(gpu) => t.to_dtype(dtype)?.to_gpu_tagged(gpu, "offload"),
            None => round(t, dtype),
        }
    }

    fn rounded(&self, dtype: DType) -> DType {
        if dtype == DType::F32 { self.dtype } else { dtype }
    }
}

/// Rounded to a dtype, in f32 again where it was.
fn round(t: &Tensor, dtype: DType) -> Result<Tensor> {
    if t.dtype() == dtype { Ok(t.clone()) } else { t.to_dtype(dtype)?.to_dtype(t.dtype()) }
}

/// A result on the host, widened to f32 where it is narrower.
fn back(t: &Tensor) -> Result<Tensor> {
    let t = t.to_cpu()?;
    match t.dtype() {
        DType::F16 | DType::Bf16 => t.to_dtype(DType::F32),
        _ => Ok(t),
    }
}
