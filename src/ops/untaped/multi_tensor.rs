//! What the updates of many tensors share: their tables in device memory, and what a step tells them.
//!
//! ```text
//! accumulate   gradients of the tape -> sums, squares of every chunk        once for each part of a batch
//! grad_norm    squares -> verdict: norm, clip, finite                       from here on nothing is changed if it is not
//! adamw ..     sums, values, buffers -> values, buffers, shadows
//! grad_norm    squares -> report
//! ema          values -> average
//! ```
//!
//! All addresses are fixed when a [`Group`] is made, and what changes from step to step lies in device memory
//! ([`StepScalars`]): a captured graph of these launches stays right.

use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid, Work};
use crate::tensor::{Storage, Tensor};
use bytemuck::{Pod, Zeroable};

/// The most elements of a chunk, which a block takes. As in `kernels/tile/multi_tensor.cuh`, whose structs these are.
pub(super) const CHUNK: usize = 8192;
/// Threads of a block.
const THREADS: u32 = 256;

/// What changes from step to step, in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct StepScalars {
    /// The learning rate.
    pub lr: f64,
    /// `1 / (1 - beta1^step)`.
    pub inverse_bias_1: f64,
    /// `1 - beta1^step`, or 1 where moments are not corrected.
    pub bias_1: f32,
    /// `sqrt(1 - beta2^step)`, or 1 where moments are not corrected.
    pub root_bias_2: f32,
    /// Share of the gradient that enters a momentum buffer.
    pub enters: f32,
    /// One minus the decay of the average.
    pub ema_rate: f32,
}

impl StepScalars {
    /// The bytes that go to [`Group::scalars`].
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }
}

/// `TensorChunk` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct TensorChunk {
    data: [u64; 4],
    shadow: u64,
    elements: i32,
    tensor: i32,
}

/// `TensorInfo` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct TensorInfo {
    lr_scale: f32,
    decays: i32,
    first_chunk: i32,
    chunks: i32,
}

/// `Verdict` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Verdict {
    pub norm: f64,
    pub clipped_norm: f64,
    pub mean: f32,
    pub clip: f32,
    pub finite: i32,
    pub pad: i32,
}

/// `Updates` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Updates {
    chunks: u64,
    tensors: u64,
    scalars: u64,
    verdict: u64,
    present: u64,
    grads: u64,
    squares: u64,
    tensor_sums: u64,
}

/// `Momentum` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Momentum {
    pub momentum: f32,
    pub nesterov: i32,
}

/// A tensor that is updated.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The f32 master, changed in place.
    pub value: Tensor,
    /// A bf16 copy of it, rewritten at every update.
    pub shadow: Option<Tensor>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Multiplies the learning rate.
    pub lr_scale: f32,
}

/// A chunk table on its way to the device.
#[derive(Default)]
pub(super) struct ChunkTable {
    chunks: Vec<TensorChunk>,
}

impl ChunkTable {
    /// Appends a tensor: addresses of its f32 parts by their place in the kernels' `data`, 0 for what there is not.
    pub fn push(&mut self, tensor: usize, elements: usize, data: [u64; 4], shadow: u64) {
        let at = |address: u64, bytes: usize| if address == 0 { 0 } else { address + bytes as u64 };
        for begin in (0..elements).step_by(CHUNK) {
            self.chunks.push(TensorChunk {
                data: data.map(|a| at(a, begin * DType::F32.size())),
                shadow: at(shadow, begin * DType::Bf16.size()),
                elements: CHUNK.min(elements - begin) as i32,
                tensor: tensor as i32,
            });
        }
    }

    /// Chunks so far.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The table on the device.
    pub fn upload(&self, gpu: &Gpu) -> Result<Tensor> {
        upload(gpu, &self.chunks)
    }
}

/// A table in device memory.
fn upload<P: Pod>(gpu: &Gpu, rows: &[P]) -> Result<Tensor> {
    let bytes: Vec<u8> = bytemuck::cast_slice(rows).to_vec();
    Tensor::from_vec([bytes.len()], bytes)?.to_gpu_tagged(gpu, "update tables")
}

/// Zeros in device memory.
fn zeros(gpu: &Gpu, elements: usize, dtype: DType, tag: &'static str) -> Result<Tensor> {
    let t = Tensor::empty_gpu([elements], dtype, gpu, tag)?;
    if let Storage::Cuda(memory) = t.storage() {
        gpu.fill_byte(memory.buffer(), 0)?;
    }
    Ok(t)
}

/// A grid of one block for each of `chunks`.
pub(super) fn grid(chunks: usize) -> Grid {
    Grid { grid: [chunks as u32, 1, 1], block: THREADS, shared_bytes: 0 }
}

/// Enqueues what takes so many FLOPs and bytes for each of `elements`, and notes it.
pub(super) fn traced(
    gpu: &Gpu,
    op: &str,
    elements: usize,
    [flops, bytes]: [usize; 2],
    launch: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let note = |(): &()| Work {
        op: op.into(),
        pass: "",
        shape: [elements].into(),
        dtype: DType::F32,
        flops: (flops * elements) as u64,
        bytes: (bytes * elements) as u64,
        result: 0,
        launches: Vec::new(),
    };
    gpu.traced(launch, note)
}

/// Checks that a tensor lies on `gpu`, has a type and as many elements as it should.
pub(super) fn expect(
    op: &str,
    what: &str,
    t: &Tensor,
    gpu: &Gpu,
    dtype: DType,
    elements: usize,
) -> Result<()> {
    if t.dtype() != dtype {
        return Err(Error::dtype(op, format!("{what} is {}, not {dtype}", t.dtype())));
    }
    if t.elems() != elements {
        return Err(Error::shape(op, format!("{what} has not {elements} elements")).with_tensor(what, t));
    }
    if t.gpu().is_none_or(|g| g.info().ordinal != gpu.info().ordinal) {
        return Err(Error::device(format!("{what} does not lie on {gpu:?}")).with_op(op));
    }
    // Kernels read 16 bytes at a time; memory that dtk takes is aligned to more.
    if !t.cuda_ptr()?.is_multiple_of(16) {
        return Err(Error::device(format!("{what} is not aligned to 16 bytes")).with_op(op));
    }
    Ok(())
}

/// Tensors that are updated together: their values, sums of gradients and buffers, and the tables by which kernels find them.
pub struct Group {
    params: Vec<Parameter>,
    sums: Vec<Tensor>,
    /// By kind of buffer, then by parameter.
    buffers: Vec<Vec<Tensor>>,
    table: Tensor,
    tensors: Tensor,
    /// The first chunk of every tensor, and their number.
    first_chunks: Vec<usize>,
    scalars: Tensor,
    verdict: Tensor,
    present: Tensor,
    grads: Tensor,
    squares: Tensor,
    tensor_sums: Tensor,
    report: Tensor,
}

impl Group {
    /// Memory and tables for `params`, with `kinds` buffers of zeros for each (0 to 2).
    ///
    /// # Errors
    /// No element to update, values or shadows of other types or sizes or on another device, or no memory.
    pub fn new(gpu: &Gpu, params: Vec<Parameter>, kinds: usize) -> Result<Group> {
        const OP: &str = "multi_tensor";
        for p in &params {
            let elements = p.value.elems();
            expect(OP, "a parameter", &p.value, gpu, DType::F32, elements)?;
            if let Some(shadow) = &p.shadow {
                expect(OP, "the shadow of a parameter", shadow, gpu, DType::Bf16, elements)?;
            }
        }
        let of_all = |tag: &'static str| -> Result<Vec<Tensor>> {
            params.iter().map(|p| zeros(gpu, p.value.elems(), DType::F32, tag)).collect()
        };
        let sums = of_all("gradients")?;
        let buffers = (0..kinds).map(|_| of_all("optimizer state")).collect::<Result<Vec<_>>>()?;
        let (mut table, mut infos, mut first_chunks) = (ChunkTable::default(), Vec::new(), vec![0]);
        for (i, p) in params.iter().enumerate() {
            let mut data = [p.value.cuda_ptr()?, sums[i].cuda_ptr()?, 0, 0];
            for (place, kind) in data[2..].iter_mut().zip(&buffers) {
                *place = kind[i].cuda_ptr()?;
            }
            let shadow = p.shadow.as_ref().map_or(Ok(0), Tensor::cuda_ptr)?;
            let first_chunk = table.len();
            table.push(i, p.value.elems(), data, shadow);
            infos.push(TensorInfo {
                lr_scale: p.lr_scale,
                decays: i32::from(p.decay),
                first_chunk: first_chunk as i32,
                chunks: (table.len() - first_chunk) as i32,
            });
            first_chunks.push(table.len());
        }
        let chunks = table.len();
        if chunks == 0 || i32::try_from(chunks).is_err() {
            return Err(Error::usage(format!("{chunks} chunks of parameters to update")).with_op(OP));
        }
        let scratch = |bytes: usize| Tensor::empty_gpu([bytes], DType::U8, gpu, "update sums");
        Ok(Group {
            sums,
            buffers,
            table: table.upload(gpu)?,
            tensors: upload(gpu, &infos)?,
            first_chunks,
            scalars: scratch(size_of::<StepScalars>())?,
            verdict: scratch(size_of::<Verdict>())?,
            present: scratch(params.len() * size_of::<i32>())?,
            grads: scratch(chunks * size_of::<f64>())?,
            squares: scratch(chunks * 2 * size_of::<f64>())?,
            tensor_sums: scratch(chunks * 2 * size_of::<f64>())?,
            report: Tensor::empty_gpu([4], DType::F32, gpu, "update sums")?,
            params,
        })
    }

    /// The tensors.
    pub fn params(&self) -> &[Parameter] {
        &self.params
    }

    /// Their sums of gradients, f32.
    pub fn sums(&self) -> &[Tensor] {
        &self.sums
    }

    /// The buffers of one kind, one for each tensor: f32, as many elements.
    pub fn buffers(&self, kind: usize) -> &[Tensor] {
        &self.buffers[kind]
    }

    /// Device memory for a [`StepScalars`], which has to be there before a step runs.
    pub fn scalars(&self) -> &Tensor {
        &self.scalars
    }

    /// After a step: f32 `[4]` with the norms of the gradient before clipping, of the change and of the parameters, and 1 if
    /// loss and gradient were finite, else 0.
    pub fn report(&self) -> &Tensor {
        &self.report
    }

    /// What a step's gradients were found to be, in device memory.
    pub(super) fn verdict(&self) -> &Tensor {
        &self.verdict
    }

    /// Sums of squares of the sums of gradients by chunk, f64.
    pub(super) fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// Sums of squares of change and value by chunk, f64 pairs.
    pub(super) fn squares(&self) -> &Tensor {
        &self.squares
    }

    /// Which tensors got a gradient, i32.
    pub(super) fn present(&self) -> &Tensor {
        &self.present
    }

    /// The tables of chunks and tensors.
    pub(super) fn tables(&self) -> [&Tensor; 2] {
        [&self.table, &self.tensors]
    }

    /// The number of chunks before tensor `i`; of all of them for the one behind the last.
    pub(super) fn first_chunk(&self, i: usize) -> usize {
        self.first_chunks[i]
    }

    /// Elements of all tensors.
    pub(super) fn elements(&self) -> usize {
        self.params.iter().map(|p| p.value.elems()).sum()
    }

    /// Bytes that an update reads and writes for an element, each tensor once, with so many buffers: the gradient is read,
    /// value and buffers are read and written, a shadow is written.
    pub(super) fn bytes_of_update(&self, buffers: usize) -> usize {
        let shadow = if self.params.iter().any(|p| p.shadow.is_some()) { DType::Bf16.size() } else { 0 };
        DType::F32.size() * (1 + 2 * (1 + buffers)) + shadow
    }

    /// Chunks of all tensors.
    pub(super) fn chunks(&self) -> usize {
        self.first_chunks[self.params.len()]
    }

    /// What the kernels of the optimisers begin with.
    pub(super) fn updates(&self) -> Result<Updates> {
        Ok(Updates {
            chunks: self.table.cuda_ptr()?,
            tensors: self.tensors.cuda_ptr()?,
            scalars: self.scalars.cuda_ptr()?,
            verdict: self.verdict.cuda_ptr()?,
            present: self.present.cuda_ptr()?,
            grads: self.grads.cuda_ptr()?,
            squares: self.squares.cuda_ptr()?,
            tensor_sums: self.tensor_sums.cuda_ptr()?,
        })
    }
}

/// Overwrites what a tensor in device memory holds, and waits.
///
/// # Errors
/// Another number of bytes, or a failed copy.
pub fn write<P: Pod>(gpu: &Gpu, to: &Tensor, from: &[P]) -> Result<()> {
    match to.storage() {
        Storage::Cuda(memory) => gpu.upload(bytemuck::cast_slice(from), memory.buffer()),
        _ => Err(Error::device(format!("{to:?} is not in device memory"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;

    fn gpu() -> Gpu {
        Gpu::planning(DeviceInfo::h100()).unwrap()
    }

    fn parameter(gpu: &Gpu, n: usize, shadow: usize) -> Parameter {
        let empty = |n, dtype| Tensor::empty_gpu([n], dtype, gpu, "test").unwrap();
        let shadow = (shadow > 0).then(|| empty(shadow, DType::Bf16));
        Parameter { value: empty(n, DType::F32), shadow, decay: true, lr_scale: 1.0 }
    }

    #[test]
    fn tensors_are_cut_into_chunks() {
        let gpu = gpu();
        let sizes = [2 * CHUNK + 1, 0, 5, CHUNK];
        let group = Group::new(&gpu, sizes.iter().map(|&n| parameter(&gpu, n, n)).collect(), 2).unwrap();
        let first: Vec<usize> = (0..=4).map(|i| group.first_chunk(i)).collect();
        assert_eq!((first, group.chunks()), (vec![0, 3, 3, 4, 5], 5));
        assert_eq!(group.tables()[0].bytes(), 5 * 48);
        let mut table = ChunkTable::default();
        table.push(7, CHUNK + 9, [1024, 0, 2048, 0], 4096);
        let second = table.chunks[1];
        assert_eq!((second.elements, second.tensor, table.len()), (9, 7, 2));
        assert_eq!(second.data, [1024 + 4 * CHUNK as u64, 0, 2048 + 4 * CHUNK as u64, 0]);
        assert_eq!(second.shadow, 4096 + 2 * CHUNK as u64);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let gpu = gpu();
        let error = |params| Group::new(&gpu, params, 1).err().unwrap();
        assert!(error(Vec::new()).is_usage());
        assert!(error(vec![parameter(&gpu, 0, 0)]).is_usage());
        assert!(error(vec![parameter(&gpu, 5, 4)]).is_shape());
        let half = Tensor::empty_gpu([5], DType::Bf16, &gpu, "test").unwrap();
        assert!(error(vec![Parameter { value: half, ..parameter(&gpu, 5, 0) }]).is_dtype());
        assert!(error(vec![Parameter { value: Tensor::zeros([5]), ..parameter(&gpu, 5, 0) }]).is_device());
    }
}
