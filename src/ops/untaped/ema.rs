//! Exponential moving average of weights: `average += (1 - decay) (value - average)`.

use super::check::{Scene, expect, repeated, wide};
use super::multi_tensor::{self, ChunkTable, Group, StepScalars, grid};
use super::{accumulate, grad_norm};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::{Storage, Tensor};
use bytemuck::{Pod, Zeroable};

const OP: &str = "ema";

/// The average of some f32 tensors, in device memory.
pub struct Average {
    /// Kept, since the table has their addresses.
    _values: Vec<Tensor>,
    averages: Vec<Tensor>,
    table: Option<Tensor>,
    chunks: usize,
}

/// `EmaParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    chunks: u64,
    scalars: u64,
    verdict: u64,
}

impl Average {
    /// An average that starts at what `values` are now.
    ///
    /// # Errors
    /// Values that are not f32 on the device, or no memory.
    pub fn new(gpu: &Gpu, values: Vec<Tensor>) -> Result<Average> {
        let (mut averages, mut table) = (Vec::new(), ChunkTable::default());
        for (i, value) in values.iter().enumerate() {
            multi_tensor::expect(OP, "a value", value, gpu, DType::F32, value.elems())?;
            let average = Tensor::empty_gpu(value.shape(), DType::F32, gpu, "averaged weights")?;
            let (Storage::Cuda(from), Storage::Cuda(to)) = (value.storage(), average.storage()) else {
                return Err(Error::device("a value is not in device memory").with_op(OP));
            };
            gpu.copy(from.buffer(), to.buffer())?;
            table.push(i, value.elems(), [value.cuda_ptr()?, 0, average.cuda_ptr()?, 0], 0);
            averages.push(average);
        }
        let chunks = table.len();
        let table = (chunks > 0).then(|| table.upload(gpu)).transpose()?;
        Ok(Average { _values: values, averages, table, chunks })
    }

    /// Enqueues an update with the rate in the group's scalars; nothing happens in a step whose verdict is not finite.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let p = Params {
            chunks: table.cuda_ptr()?,
            scalars: group.scalars().cuda_ptr()?,
            verdict: group.verdict().cuda_ptr()?,
        };
        let elements = self.averages.iter().map(Tensor::elems).sum();
        // A difference, a product and a sum; the value is read, the average read and written.
        multi_tensor::traced(gpu, OP, elements, [3, 12], || call().launch(gpu, grid(self.chunks), &p))
    }

    /// The averages, in the order of the values.
    pub fn tensors(&self) -> &[Tensor] {
        &self.averages
    }
}

fn call() -> Call {
    Call::new("ema.cu", "ema_update")
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
    let scene = Scene::new(4);
    let group = scene.group(gpu, 0)?;
    let rate = 0.25f32;
    let scalars = StepScalars { ema_rate: rate, ..StepScalars::zeroed() };
    multi_tensor::write(gpu, group.scalars(), &[scalars])?;
    let grads = scene.gradients(gpu, 1)?;
    let present: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
    accumulate::enqueue(gpu, &group, &present, true)?;
    grad_norm::clip(gpu, &group, None, 1, None)?;
    let before = scene.gradients(gpu, 2)?;
    let after = scene.gradients(gpu, 3)?;
    let made = repeated(OP, || {
        let values = before.iter().map(|t| t.to_cpu()?.to_gpu(gpu)).collect::<Result<Vec<_>>>()?;
        let average = Average::new(gpu, values.clone())?;
        for (value, new) in values.iter().zip(&after) {
            multi_tensor::write(gpu, value, new.to_cpu()?.f32s()?)?;
        }
        average.enqueue(gpu, &group)?;
        average.enqueue(gpu, &group)?;
        average.tensors().iter().map(Tensor::to_cpu).collect()
    })?;
    let mut worst = 0.0f64;
    for (i, got) in made.iter().enumerate() {
        let (old, new) = (wide(&before[i].to_cpu()?)?, wide(&after[i].to_cpu()?)?);
        let keep = (1.0 - f64::from(rate)).powi(2);
        let want: Vec<f64> = old.iter().zip(&new).map(|(o, n)| keep * o + (1.0 - keep) * n).collect();
        worst = worst.max(expect(OP, &format!("average {i}"), got, &want, 1e-6)?);
    }
    Ok(worst)
}
