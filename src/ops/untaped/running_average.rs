//! Running averages of many buffers in one launch: `buffer = (1 - weight) buffer + weight value`.

use super::check::{expect, repeated};
use crate::base::{DType, Philox, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid, Work};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

const OP: &str = "running_average";
const THREADS: u32 = 128;
/// Pairs of a launch: their addresses travel in its parameter.
const MOST: usize = 128;

/// A buffer that moves towards a value; both f32 of one shape on the device.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// What is written.
    pub buffer: &'a Tensor,
    /// What it moves towards.
    pub value: &'a Tensor,
    /// How far, from 0 to 1.
    pub weight: f32,
}

/// `Pair` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Pair {
    buffer: u64,
    value: u64,
    count: i32,
    weight: f32,
}

/// `RunningAverageParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    pairs: [Pair; MOST],
}

/// Moves all buffers, on the compute stream. The addresses are part of the launch: a captured graph goes on using them.
///
/// # Errors
/// A pair that is not f32 of one shape on the device, or a failed compilation or launch.
pub fn run(gpu: &Gpu, moves: &[Move<'_>]) -> Result<()> {
    for group in moves.chunks(MOST) {
        let mut p = Params::zeroed();
        for (pair, m) in p.pairs.iter_mut().zip(group) {
            let floats = m.buffer.dtype() == DType::F32 && m.value.dtype() == DType::F32;
            if !floats || m.buffer.shape() != m.value.shape() {
                return Err(Error::shape(OP, "a buffer and what it moves towards are f32 of one shape")
                    .with_tensor("buffer", m.buffer)
                    .with_tensor("value", m.value));
            }
            let count = i32::try_from(m.buffer.elems())
                .map_err(|_| Error::shape(OP, "a buffer of more elements than the kernel counts to"))?;
            *pair =
                Pair { buffer: m.buffer.cuda_ptr()?, value: m.value.cuda_ptr()?, count, weight: m.weight };
        }
        let grid = Grid { grid: [group.len() as u32, 1, 1], block: THREADS, shared_bytes: 0 };
        let elements: u64 = group.iter().map(|m| m.buffer.elems() as u64).sum();
        gpu.traced(
            || call().launch(gpu, grid, &p),
            |()| Work {
                op: OP.into(),
                pass: "",
                shape: Shape::from([elements as usize]),
                dtype: DType::F32,
                flops: 3 * elements,
                bytes: 12 * elements,
                result: p.pairs[0].buffer,
                launches: Vec::new(),
            },
        )?;
    }
    Ok(())
}

fn call() -> Call {
    Call::new("running_average.cu", "running_average_update")
}

/// Every variant that may be launched.
pub fn variants() -> Vec<Variant> {
    vec![call().variant::<Params>()]
}

/// Runs the kernel against the definition and gives the largest error: more pairs than one launch takes, of odd sizes.
///
/// # Errors
/// A deviation, two runs that differ, or a failed launch.
pub fn check(gpu: &Gpu) -> Result<f64> {
    let sizes: Vec<usize> = (0..MOST + 3).map(|i| [1, 4, 7, 64, 515][i % 5]).collect();
    let random = |purpose: u64, i: usize| {
        let mut v = vec![0.0f32; sizes[i]];
        Philox::new(5).fold(purpose).fold(i as u64).fill_normal(&mut v);
        v
    };
    let weight = |i: usize| [0.1f32, 1.0, 0.0][i % 3];
    let tensor = |v: Vec<f32>| Tensor::from_vec([v.len()], v);
    let made = repeated(OP, || {
        let there = |purpose| -> Result<Vec<Tensor>> {
            (0..sizes.len()).map(|i| tensor(random(purpose, i))?.to_gpu(gpu)).collect()
        };
        let (buffers, values) = (there(1)?, there(2)?);
        let pairs = buffers.iter().zip(&values).enumerate();
        let moves: Vec<Move<'_>> =
            pairs.map(|(i, (buffer, value))| Move { buffer, value, weight: weight(i) }).collect();
        run(gpu, &moves)?;
        Ok(buffers)
    })?;
    let mut worst = 0.0f64;
    for (i, got) in made.iter().enumerate() {
        let w = f64::from(weight(i));
        let pairs = random(1, i).into_iter().zip(random(2, i));
        let want: Vec<f64> = pairs.map(|(b, v)| (1.0 - w) * f64::from(b) + w * f64::from(v)).collect();
        worst = worst.max(expect(OP, "a buffer", got, &want, 1e-6)?);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    #[test]
    fn many_buffers_need_few_launches_and_shapes_must_agree() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let there = |n: usize| Tensor::zeros([n]).to_gpu(&gpu).unwrap();
        let (a, b) = (there(5), there(5));
        gpu.record_work();
        run(&gpu, &vec![Move { buffer: &a, value: &b, weight: 0.1 }; MOST + 1]).unwrap();
        let work = gpu.take_work();
        assert_eq!(work.iter().map(|w| w.bytes).collect::<Vec<_>>(), [60 * MOST as u64, 60]);
        run(&gpu, &[]).unwrap();
        assert!(gpu.take_work().is_empty());
        assert!(run(&gpu, &[Move { buffer: &a, value: &there(4), weight: 0.1 }]).unwrap_err().is_shape());
    }
}
