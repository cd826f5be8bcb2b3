//! Tensors in the memory of a CUDA device, and the copies between there and the host.

use super::{CpuBuffer, Device, Storage, Tensor};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu};

/// Device memory of one dtype. Cloning shares it.
#[derive(Clone)]
pub struct CudaBuffer {
    gpu: Gpu,
    buffer: Buffer,
    dtype: DType,
    len: usize,
}

impl CudaBuffer {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device it lies on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub(super) fn device(&self) -> Device {
        Device::Cuda(self.gpu.info().ordinal)
    }

    fn download(&self) -> Result<CpuBuffer> {
        let mut host = CpuBuffer::zeros(self.dtype, self.len);
        self.gpu.download(&self.buffer, host.as_bytes_mut())?;
        Ok(host)
    }
}

impl Tensor {
    /// A tensor on a device whose elements are whatever was there before. `tag` says what it is for in the ledger
    /// of the device's memory.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn empty_gpu(shape: impl Into<Shape>, dtype: DType, gpu: &Gpu, tag: &'static str) -> Result<Self> {
        let shape = shape.into();
        let len = shape.elems();
        let buffer = gpu.alloc(len * dtype.size(), tag)?;
        Self::new(shape, Storage::Cuda(CudaBuffer { gpu: gpu.clone(), buffer, dtype, len }))
    }

    /// A tensor over device memory of the host program, which dtk reads, writes if it is told to, and never frees.
    ///
    /// # Errors
    /// The address is null or no multiple of 16 bytes.
    ///
    /// # Safety
    /// That of [`Gpu::borrow`], with as many bytes as the tensor has.
    pub unsafe fn from_cuda_ptr(gpu: &Gpu, ptr: u64, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let len = shape.elems();
        // SAFETY: the caller's promise.
        let buffer = unsafe { gpu.borrow(ptr, len * dtype.size(), "host program") }?;
        Self::new(shape, Storage::Cuda(CudaBuffer { gpu: gpu.clone(), buffer, dtype, len }))
    }

    /// A tensor on a device that is filled with one f32 value, in the order of its compute stream; may be captured.
    ///
    /// # Errors
    /// The device is out of memory, or earlier work has failed.
    pub fn full_gpu(shape: impl Into<Shape>, value: f32, gpu: &Gpu, tag: &'static str) -> Result<Self> {
        let t = Self::empty_gpu(shape, DType::F32, gpu, tag)?;
        gpu.fill_word(t.cuda_buffer()?, value.to_bits())?;
        Ok(t)
    }

    /// The tensor on a device; itself if it lies there. On a planning device nothing needs to be in it. The copy is ordered on the device's compute stream and done
    /// when this returns.
    ///
    /// # Errors
    /// There is no data, the device is out of memory, or the copy fails.
    pub fn to_gpu(&self, gpu: &Gpu) -> Result<Self> {
        self.to_gpu_tagged(gpu, "tensor")
    }

    /// [`Tensor::to_gpu`] with a tag for the ledger of the device's memory.
    ///
    /// # Errors
    /// As [`Tensor::to_gpu`].
    pub fn to_gpu_tagged(&self, gpu: &Gpu, tag: &'static str) -> Result<Self> {
        match self.storage() {
            Storage::Cuda(b) if b.gpu.is(gpu) => Ok(self.clone()),
            // Two devices, or two contexts: by way of the host.
            Storage::Cuda(_) => self.to_cpu()?.to_gpu_tagged(gpu, tag),
            // There nothing has values.
            Storage::Meta { .. } if gpu.is_planning() => {
                Self::empty_gpu(self.shape(), self.dtype(), gpu, tag)
            }
            Storage::Meta { .. } => Err(self.not_here()),
            Storage::Cpu(host) => {
                let new = Self::empty_gpu(self.shape(), self.dtype(), gpu, tag)?;
                if let Storage::Cuda(b) = new.storage() {
                    gpu.upload(host.as_bytes(), &b.buffer)?;
                }
                Ok(new)
            }
        }
    }

    /// Copies the elements of a tensor in host memory to a tensor on a device, which keeps its place. Ordered on the
    /// device's compute stream and done when this returns.
    ///
    /// # Errors
    /// Shapes or types differ, one of the two does not lie where it is said to, or the copy fails.
    pub fn copy_to_gpu(&self, to: &Tensor) -> Result<()> {
        if self.shape() != to.shape() || self.dtype() != to.dtype() {
            return Err(Error::shape("copy", "source and target differ")
                .with_tensor("source", self)
                .with_tensor("target", to));
        }
        match (self.storage(), to.storage()) {
            (Storage::Cpu(host), Storage::Cuda(b)) => b.gpu.upload(host.as_bytes(), &b.buffer),
            (Storage::Cpu(_), _) => Err(Error::device(format!("{to:?} is not in device memory"))),
            _ => Err(self.not_here()),
        }
    }

    /// The tensor in host memory; itself if it lies there. Waits for what the device's compute stream was given.
    ///
    /// # Errors
    /// There is no data, or the copy fails: also when a kernel before it has.
    pub fn to_cpu(&self) -> Result<Self> {
        match self.storage() {
            Storage::Cpu(_) => Ok(self.clone()),
            Storage::Cuda(b) => Self::new(self.shape(), Storage::Cpu(b.download()?)),
            Storage::Meta { .. } => Err(self.not_here()),
        }
    }

    /// The tensor where another one lies.
    ///
    /// # Errors
    /// As [`Tensor::to_gpu`] and [`Tensor::to_cpu`].
    pub(crate) fn to_device_of(&self, other: &Tensor) -> Result<Self> {
        match other.gpu() {
            Some(gpu) => self.to_gpu(gpu),
            None => self.to_cpu(),
        }
    }

    /// The device the tensor lies on; `None` in host memory and for planning tensors.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self.storage() {
            Storage::Cuda(b) => Some(&b.gpu),
            Storage::Cpu(_) | Storage::Meta { .. } => None,
        }
    }

    /// The device memory of the tensor.
    ///
    /// # Errors
    /// The tensor does not lie on a CUDA device.
    pub fn cuda_buffer(&self) -> Result<&Buffer> {
        match self.storage() {
            Storage::Cuda(b) => Ok(&b.buffer),
            Storage::Cpu(_) | Storage::Meta { .. } => Err(self.not_there()),
        }
    }

    fn not_there(&self) -> Error {
        Error::device(format!("{self:?} is not in device memory"))
            .with_remedy("copy it to the device with `.to_gpu(&gpu)` first")
    }

    /// The address of the first element in device memory, for a kernel's parameters. Keep the tensor until the kernel
    /// is enqueued; its memory is used again only by what is enqueued later.
    ///
    /// # Errors
    /// The tensor does not lie on a CUDA device.
    pub fn cuda_ptr(&self) -> Result<u64> {
        match self.storage() {
            Storage::Cuda(b) => Ok(b.buffer.ptr()),
            Storage::Cpu(_) | Storage::Meta { .. } => Err(self.not_there()),
        }
    }
}
