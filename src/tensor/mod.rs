//! Tensors: shape + dtype + storage, contiguous, images as NHWC.

mod cuda;
mod device;
mod io;
mod storage;

pub use cuda::CudaBuffer;
pub use device::Device;
pub use io::{SafetensorsFile, write_atomically, write_safetensors};
pub use storage::{CpuBuffer, Ledger, Storage};

use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::fmt;
use std::sync::Arc;

/// A contiguous n-dimensional array. Cloning shares the storage; writing to shared storage copies it first.
///
/// Image batches are `[N, H, W, C]`; files hold them as `[N, C, H, W]`, and [`Tensor::nchw_to_nhwc`] and
/// [`Tensor::nhwc_to_nchw`] are the border.
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    storage: Arc<Storage>,
}

impl Tensor {
    /// A tensor over a storage. The element counts must agree.
    pub(crate) fn new(shape: Shape, storage: Storage) -> Result<Self> {
        if shape.elems() != storage.len() {
            return Err(Error::shape("tensor", format!("{} elements do not fill {shape}", storage.len())));
        }
        Ok(Tensor { shape, storage: Arc::new(storage) })
    }

    /// A CPU tensor over `data`.
    ///
    /// # Errors
    /// `data` has another length than the shape has elements.
    pub fn from_vec<T: Element>(shape: impl Into<Shape>, data: Vec<T>) -> Result<Self> {
        Self::new(shape.into(), Storage::Cpu(T::wrap(data)))
    }

    /// A CPU tensor of f32 zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Tensor { shape, storage: Arc::new(Storage::Cpu(CpuBuffer::F32(vec![0.0; shape.elems()]))) }
    }

    /// A CPU tensor filled with one f32 value.
    pub fn full(shape: impl Into<Shape>, value: f32) -> Self {
        let shape = shape.into();
        Tensor { shape, storage: Arc::new(Storage::Cpu(CpuBuffer::F32(vec![value; shape.elems()]))) }
    }

    /// A scalar f32 tensor (rank 0).
    pub fn scalar(value: f32) -> Self {
        Self::full(Shape::SCALAR, value)
    }

    /// A tensor that has a shape and no data, for planning: operations on it only work out shapes. Its bytes count
    /// in `ledger` for as long as it lives.
    pub fn meta(shape: impl Into<Shape>, dtype: DType, ledger: Option<&Arc<Ledger>>) -> Self {
        let shape = shape.into();
        Tensor { shape, storage: Arc::new(Storage::meta(shape.elems(), dtype, ledger)) }
    }

    /// Like [`Tensor::meta`], but its own bytes do not count: for values that live outside the planned part.
    pub fn meta_uncounted(shape: impl Into<Shape>, dtype: DType, ledger: &Arc<Ledger>) -> Self {
        let shape = shape.into();
        Tensor { shape, storage: Arc::new(Storage::meta_uncounted(shape.elems(), dtype, ledger)) }
    }

    /// The dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.elems()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Size of the data in bytes.
    pub fn bytes(&self) -> usize {
        self.elems() * self.dtype().size()
    }

    /// Where the data lies.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// The storage itself.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What to say when the elements are asked for and are not in host memory.
    fn not_here(&self) -> Error {
        match self.device() {
            Device::Cuda(_) => Error::device(format!("{self:?} is not in host memory"))
                .with_remedy("copy it to the host with `.to_cpu()` first"),
            _ => Error::device(format!("{self:?} has a shape but no data")),
        }
    }

    /// The elements, as type `T`.
    ///
    /// # Errors
    /// The tensor has another dtype or is not on the CPU.
    pub fn data<T: Element>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(b) => T::unwrap(b)
                .ok_or_else(|| Error::dtype("tensor", format!("expected {}, got {self:?}", T::DTYPE))),
            Storage::Meta { .. } | Storage::Cuda(_) => Err(self.not_here()),
        }
    }

    /// The elements for writing; copies first if the storage is shared.
    ///
    /// # Errors
    /// As [`Tensor::data`].
    pub fn data_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.data::<T>()?;
        match Arc::make_mut(&mut self.storage) {
            Storage::Cpu(b) => Ok(T::unwrap_mut(b).expect("checked by data()")),
            Storage::Meta { .. } | Storage::Cuda(_) => unreachable!("checked by data()"),
        }
    }

    /// The elements as a vector of `T`; no copy if nobody shares the storage.
    ///
    /// # Errors
    /// As [`Tensor::data`].
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>> {
        self.data::<T>()?;
        match Arc::try_unwrap(self.storage) {
            Ok(Storage::Cpu(b)) => Ok(T::into_vec(b)),
            Ok(Storage::Meta { .. } | Storage::Cuda(_)) => unreachable!("checked by data()"),
            Err(shared) => match &*shared {
                Storage::Cpu(b) => Ok(T::unwrap(b).map(<[T]>::to_vec).unwrap_or_default()),
                Storage::Meta { .. } | Storage::Cuda(_) => unreachable!("checked by data()"),
            },
        }
    }

    /// The f32 elements. Shorthand for `data::<f32>()`.
    ///
    /// # Errors
    /// As [`Tensor::data`].
    pub fn f32s(&self) -> Result<&[f32]> {
        self.data::<f32>()
    }

    /// The single element of an f32 tensor; waits for the device if the tensor lies on one.
    ///
    /// # Errors
    /// There is not exactly one element, it is no f32, or there is no data.
    pub fn item(&self) -> Result<f32> {
        match self.elems() {
            1 => Ok(self.to_cpu()?.f32s()?[0]),
            _ => Err(Error::shape("item", format!("{self:?} is not one number"))),
        }
    }

    /// The same data under another shape.
    ///
    /// # Errors
    /// The element counts differ.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elems() != self.elems() {
            return Err(Error::shape("reshape", format!("{} cannot become {shape}", self.shape)));
        }
        Ok(Tensor { shape, storage: Arc::clone(&self.storage) })
    }

    /// Converts the element type (on the CPU), rounding to nearest even. Integers convert to floats and back by value.
    ///
    /// # Errors
    /// The tensor is not on the CPU.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        match &*self.storage {
            Storage::Meta { ledger, .. } => Ok(Self::meta(self.shape, dtype, ledger.as_ref())),
            Storage::Cpu(b) => Self::new(self.shape, Storage::Cpu(b.convert(dtype))),
            Storage::Cuda(_) => Err(self.not_here()),
        }
    }

    /// `[N, C, H, W]` to `[N, H, W, C]`.
    ///
    /// # Errors
    /// The tensor does not have four dimensions or is not on the CPU.
    pub fn nchw_to_nhwc(&self) -> Result<Self> {
        let [n, c, h, w] = *self.shape else {
            return Err(Error::shape("nchw_to_nhwc", format!("expects [N, C, H, W], got {}", self.shape)));
        };
        self.swap_inner(n, c, h * w, [n, h, w, c].into())
    }

    /// `[N, H, W, C]` to `[N, C, H, W]`.
    ///
    /// # Errors
    /// The tensor does not have four dimensions or is not on the CPU.
    pub fn nhwc_to_nchw(&self) -> Result<Self> {
        let (n, h, w, c) = self.shape.nhwc("nhwc_to_nchw")?;
        self.swap_inner(n, h * w, c, [n, c, h, w].into())
    }

    /// Transposes the two inner axes of `[n, a, b]` and calls the result `shape`.
    fn swap_inner(&self, n: usize, a: usize, b: usize, shape: Shape) -> Result<Self> {
        match &*self.storage {
            Storage::Meta { ledger, .. } => Ok(Self::meta(shape, self.dtype(), ledger.as_ref())),
            Storage::Cpu(buf) => Self::new(shape, Storage::Cpu(buf.swap_inner(n, a, b))),
            Storage::Cuda(_) => Err(self.not_here()),
        }
    }

    /// Whether every element is finite (integers always are).
    ///
    /// # Errors
    /// The tensor is not on the CPU.
    pub fn all_finite(&self) -> Result<bool> {
        match &*self.storage {
            Storage::Cpu(b) => Ok(b.all_finite()),
            Storage::Meta { .. } | Storage::Cuda(_) => Err(self.not_here()),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.dtype(), self.shape)?;
        match self.device() {
            Device::Cpu => Ok(()),
            d => write!(f, " on {d}"),
        }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that tensors can hold.
pub trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// The dtype that names this type.
    const DTYPE: DType;
    /// Wraps a vector as a buffer.
    fn wrap(v: Vec<Self>) -> CpuBuffer;
    /// The slice in a buffer of this type, or `None` for another type.
    fn unwrap(b: &CpuBuffer) -> Option<&[Self]>;
    /// The slice in a buffer of this type, for writing, or `None` for another type.
    fn unwrap_mut(b: &mut CpuBuffer) -> Option<&mut [Self]>;
    /// The vector in a buffer of this type; empty for another type.
    fn into_vec(b: CpuBuffer) -> Vec<Self>;
}

macro_rules! element {
    ($($t:ty => $v:ident),*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$v;
            fn wrap(v: Vec<Self>) -> CpuBuffer { CpuBuffer::$v(v) }
            fn unwrap(b: &CpuBuffer) -> Option<&[Self]> {
                match b { CpuBuffer::$v(v) => Some(v), _ => None }
            }
            fn unwrap_mut(b: &mut CpuBuffer) -> Option<&mut [Self]> {
                match b { CpuBuffer::$v(v) => Some(v), _ => None }
            }
            fn into_vec(b: CpuBuffer) -> Vec<Self> {
                match b { CpuBuffer::$v(v) => v, _ => Vec::new() }
            }
        }
    )*};
}
element!(f32 => F32, f64 => F64, f16 => F16, bf16 => Bf16, u8 => U8, i64 => I64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_round_trip() {
        let x = Tensor::from_vec([2, 3, 2, 2], (0..24).map(|v| v as f32).collect()).unwrap();
        let y = x.nchw_to_nhwc().unwrap();
        assert_eq!(&*y.shape(), &[2, 2, 2, 3]);
        assert_eq!(&y.f32s().unwrap()[..6], &[0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        assert_eq!(y.nhwc_to_nchw().unwrap().f32s().unwrap(), x.f32s().unwrap());
    }

    #[test]
    fn writing_copies_shared_storage() {
        let a = Tensor::zeros([3]);
        let mut b = a.clone();
        b.data_mut::<f32>().unwrap()[0] = 1.0;
        assert_eq!(a.f32s().unwrap()[0], 0.0);
        assert_eq!(b.f32s().unwrap()[0], 1.0);
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        let x = Tensor::from_vec([3], vec![1.0f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]).unwrap();
        let b = x.to_dtype(DType::Bf16).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(b.f32s().unwrap(), &[1.0, 1.0, 1.015625]);
        // A little beside the middle between two numbers, on either side, is no tie.
        let near = [0x3F8C_8001u32, 0x3F8C_8000, 0x3F8D_7FFF, 0xBF8C_8001].map(f32::from_bits);
        let b = Tensor::from_vec([4], near.to_vec()).unwrap().to_dtype(DType::Bf16).unwrap();
        let bits: Vec<u16> = b.data::<bf16>().unwrap().iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, [0x3F8D, 0x3F8C, 0x3F8D, 0xBF8D]);
        let wide = [1.0 + 2.0f64.powi(-8) + 2.0f64.powi(-50), 1.0 + 2.0f64.powi(-8), 1e39, f64::NEG_INFINITY];
        let b = Tensor::from_vec([4], wide.to_vec()).unwrap().to_dtype(DType::Bf16).unwrap();
        let bits: Vec<u16> = b.data::<bf16>().unwrap().iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, [0x3F81, 0x3F80, 0x7F80, 0xFF80]);
        let nan = Tensor::from_vec([1], vec![f64::NAN]).unwrap().to_dtype(DType::F16).unwrap();
        assert!(nan.data::<f16>().unwrap()[0].is_nan());
        let u = Tensor::from_vec([2], vec![0u8, 255]).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(u.f32s().unwrap(), &[0.0, 255.0]);
    }

    #[test]
    fn wrong_uses_are_errors() {
        let x = Tensor::zeros([2, 2]);
        assert!(x.data::<f64>().unwrap_err().is_dtype());
        assert!(x.reshape([3]).unwrap_err().is_shape());
        assert!(x.item().unwrap_err().is_shape());
        assert!(Tensor::from_vec([3], vec![0.0f32; 2]).unwrap_err().is_shape());
        assert!(Tensor::meta([2], DType::F32, None).f32s().unwrap_err().is_device());
    }
}
