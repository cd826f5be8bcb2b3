//! Takes the gradients of a tape over: `sum = g` for the first part of a batch, `sum += g` for the others.

use super::check::{Scene, expect, repeated, wide};
use super::multi_tensor::{self, Group};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "accumulate";
/// Tensors of one launch: their addresses travel in its parameter, of which there are 4 KiB.
const SOURCES: usize = 256;

/// `AccumulateParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    chunks: u64,
    tensors: u64,
    present: u64,
    squares: u64,
    first_tensor: i32,
    first_chunk: i32,
    sets: i32,
    pad: i32,
    sources: [u64; SOURCES],
}

/// Enqueues the launches for the gradients of one part of a batch, one for each tensor of the group (f32), or `None` for a
/// tensor that the loss does not reach: it is then not updated. Parts of one batch reach the same tensors. The gradients may be
/// dropped as soon as this returns, or the capture of which it is part.
///
/// # Errors
/// Another number of gradients than tensors, one of another type or size or on another device, or a failed launch.
pub fn enqueue(gpu: &Gpu, group: &Group, grads: &[Option<&Tensor>], first: bool) -> Result<()> {
    let count = group.params().len();
    if grads.len() != count {
        return Err(Error::shape(OP, format!("{} gradients for {count} parameters", grads.len())));
    }
    let [chunks, tensors] = group.tables();
    for (part, some) in grads.chunks(SOURCES).enumerate() {
        let from = part * SOURCES;
        let (mut sources, mut reached) = ([0; SOURCES], 0);
        for (i, grad) in some.iter().enumerate() {
            let Some(grad) = grad else { continue };
            let elements = group.params()[from + i].value.elems();
            multi_tensor::expect(OP, "a gradient", grad, gpu, DType::F32, elements)?;
            sources[i] = grad.cuda_ptr()?;
            reached += elements;
        }
        let (begin, end) = (group.first_chunk(from), group.first_chunk(from + some.len()));
        if begin == end {
            continue;
        }
        let p = Params {
            chunks: chunks.cuda_ptr()?,
            tensors: tensors.cuda_ptr()?,
            present: group.present().cuda_ptr()?,
            squares: group.grads().cuda_ptr()?,
            first_tensor: from as i32,
            first_chunk: begin as i32,
            sets: i32::from(first),
            pad: 0,
            sources,
        };
        // A square, its sum, and the sum of the parts.
        let cost = if first { [2, 8] } else { [3, 12] };
        let grid = multi_tensor::grid(end - begin);
        multi_tensor::traced(gpu, OP, reached, cost, || call().launch(gpu, grid, &p))?;
    }
    Ok(())
}

fn call() -> Call {
    Call::new("accumulate.cu", "accumulate_add")
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    vec![call().variant::<Params>()]
}

/// Runs all variants against the definition and gives the largest error: two parts, with more tensors than one launch takes.
///
/// # Errors
/// A deviation beyond the tolerance, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let scene = Scene::new(SOURCES + 3);
    let group = scene.group(gpu, 0)?;
    let parts = [scene.gradients(gpu, 1)?, scene.gradients(gpu, 2)?];
    let absent = SOURCES + 1;
    let made = repeated(OP, || {
        for (i, part) in parts.iter().enumerate() {
            let mut grads: Vec<Option<&Tensor>> = part.iter().map(Some).collect();
            grads[absent] = None;
            enqueue(gpu, &group, &grads, i == 0)?;
        }
        group.sums().iter().map(Tensor::to_cpu).collect()
    })?;
    let mut worst = 0.0f64;
    let mut squares = vec![0.0; group.chunks()];
    for (i, sum) in made.iter().enumerate() {
        let (a, b) = (wide(&parts[0][i].to_cpu()?)?, wide(&parts[1][i].to_cpu()?)?);
        let there = f64::from(u8::from(i != absent));
        let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| there * (a + b)).collect();
        for (k, chunk) in want.chunks(multi_tensor::CHUNK).enumerate() {
            squares[group.first_chunk(i) + k] = chunk.iter().map(|v| v * v).sum::<f64>();
        }
        if !want.is_empty() {
            worst = worst.max(expect(OP, &format!("sum {i}"), sum, &want, 2e-7)?);
        }
    }
    let got = group.grads().to_cpu()?;
    let got: Vec<f64> = bytemuck::pod_collect_to_vec(got.data::<u8>()?);
    let got = Tensor::from_vec([got.len()], got)?;
    Ok(worst.max(expect(OP, "squares of the chunks", &got, &squares, 1e-6)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    #[test]
    fn gradients_that_do_not_fit_are_refused() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let scene = Scene::new(2);
        let group = scene.group(&gpu, 0).unwrap();
        let empty = |n: usize, dtype| Tensor::empty_gpu([n], dtype, &gpu, "test").unwrap();
        let sizes: Vec<usize> = group.params().iter().map(|p| p.value.elems()).collect();
        let (a, b) = (empty(sizes[0], DType::F32), empty(sizes[1], DType::F32));
        enqueue(&gpu, &group, &[Some(&a), None], true).unwrap();
        enqueue(&gpu, &group, &[Some(&a), Some(&b)], false).unwrap();
        let error = |grads: &[Option<&Tensor>]| enqueue(&gpu, &group, grads, true).unwrap_err();
        assert!(error(&[Some(&a)]).is_shape());
        assert!(error(&[Some(&b), Some(&b)]).is_shape());
        assert!(error(&[Some(&empty(sizes[0], DType::Bf16)), None]).is_dtype());
        assert!(error(&[Some(&Tensor::zeros([sizes[0]])), None]).is_device());
    }
}
