//! Launches of kernels that treat elements one by one (`map`), rows of channels under something that belongs to the channels,
//! sums of such rows ([`rows`]), and pixels that
//! gather from windows of others ([`window`]). The kernels are those of the ops; what they share lies in `kernels/tile`.

pub(in crate::ops) mod rows;
pub(in crate::ops) mod window;

use crate::base::DType;
use crate::error::Result;
use crate::gpu::{Gpu, Grid};
use crate::ops::kernel::Call;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// Threads of a block of kernels that go through elements.
pub(in crate::ops) const THREADS: usize = 256;
/// Chunks of 16 bytes of a thread.
pub(in crate::ops) const TURNS: usize = 4;
/// The element types that the kernels are compiled for.
pub(in crate::ops) const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// `MapParams` of `kernels/tile/elementwise.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(in crate::ops) struct MapParams {
    inputs: [u64; 2],
    output: u64,
    elems: i64,
}

/// Elements in 16 bytes.
pub(in crate::ops) fn chunk(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Blocks of [`THREADS`] threads in one row.
pub(in crate::ops) fn blocks(count: usize) -> Grid {
    Grid { grid: [count as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 }
}

impl MapParams {
    /// One or two inputs and a result, all of one size; and the grid for them.
    ///
    /// # Errors
    /// A tensor that is not on the device.
    pub fn new(inputs: &[&Tensor], y: &Tensor) -> Result<(MapParams, Grid)> {
        let elems = y.elems();
        let mut p = MapParams { output: y.cuda_ptr()?, elems: elems as i64, ..MapParams::zeroed() };
        for (to, t) in p.inputs.iter_mut().zip(inputs) {
            *to = t.cuda_ptr()?;
        }
        Ok((p, blocks(blocks_of(y.dtype(), elems))))
    }
}

/// Blocks that go through `elems` elements, 16 bytes at a time.
pub(in crate::ops) fn blocks_of(dtype: DType, elems: usize) -> usize {
    elems.div_ceil(chunk(dtype) * THREADS * TURNS)
}

/// Launches `call` over all elements of one or two inputs of one size and type; gives the result, of the shape of the first.
/// The kernel's element type is set here.
///
/// # Errors
/// No memory, or a failed compilation or launch.
pub(in crate::ops) fn map(gpu: &Gpu, call: Call, inputs: &[&Tensor], tag: &'static str) -> Result<Tensor> {
    let first = inputs[0];
    let y = Tensor::empty_gpu(first.shape(), first.dtype(), gpu, tag)?;
    if y.elems() > 0 {
        let (p, grid) = MapParams::new(inputs, &y)?;
        call.dtype(first.dtype()).launch(gpu, grid, &p)?;
    }
    Ok(y)
}
