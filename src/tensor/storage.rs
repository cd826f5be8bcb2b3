//! The memory behind a tensor, and the ledger that counts it when planning.

use super::{CudaBuffer, Device, Element};
use crate::base::DType;
use half::{bf16, f16};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The data of a tensor. Everything that is not a kernel goes through [`super::Tensor`] and does not match on this.
#[derive(Clone)]
#[non_exhaustive]
pub enum Storage {
    /// Host memory.
    Cpu(CpuBuffer),
    /// No memory: `len` elements of `dtype` that only count in a ledger.
    Meta {
        /// Number of elements.
        len: usize,
        /// Element type.
        dtype: DType,
        /// Where the bytes are counted.
        ledger: Option<Arc<Ledger>>,
        /// Counts the bytes for as long as the storage lives.
        entry: Entry,
    },
    /// Memory of a CUDA device.
    Cuda(CudaBuffer),
}

impl Storage {
    pub(super) fn meta(len: usize, dtype: DType, ledger: Option<&Arc<Ledger>>) -> Self {
        Storage::Meta {
            len,
            dtype,
            ledger: ledger.cloned(),
            entry: Entry::new(ledger.cloned(), len * dtype.size()),
        }
    }

    pub(super) fn meta_uncounted(len: usize, dtype: DType, ledger: &Arc<Ledger>) -> Self {
        Storage::Meta { len, dtype, ledger: Some(Arc::clone(ledger)), entry: Entry::new(None, 0) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Storage::Cpu(b) => b.len(),
            Storage::Meta { len, .. } => *len,
            Storage::Cuda(b) => b.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Storage::Cpu(b) => b.dtype(),
            Storage::Meta { dtype, .. } => *dtype,
            Storage::Cuda(b) => b.dtype(),
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Meta { .. } => Device::Meta,
            Storage::Cuda(b) => b.device(),
        }
    }

    /// The ledger of a planning tensor.
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        match self {
            Storage::Cpu(_) | Storage::Cuda(_) => None,
            Storage::Meta { ledger, .. } => ledger.as_ref(),
        }
    }
}

/// Counts the bytes of live planning tensors and remembers the highest sum.
#[derive(Debug, Default)]
pub struct Ledger {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// Bytes alive now.
    pub fn live_bytes(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
    /// The most bytes that were ever alive at once.
    pub fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
    /// Counts `bytes` that live only for a moment (scratch of one operation) on top of what is alive.
    pub fn touch(&self, bytes: usize) {
        self.add(bytes);
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }
    fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }
}

/// One living allocation in a [`Ledger`].
pub struct Entry {
    ledger: Option<Arc<Ledger>>,
    bytes: usize,
}

impl Entry {
    fn new(ledger: Option<Arc<Ledger>>, bytes: usize) -> Self {
        if let Some(l) = &ledger {
            l.add(bytes);
        }
        Entry { ledger, bytes }
    }
}

impl Clone for Entry {
    fn clone(&self) -> Self {
        Entry::new(self.ledger.clone(), self.bytes)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(l) = &self.ledger {
            l.live.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Host memory of one dtype.
#[derive(Clone)]
pub enum CpuBuffer {
    /// f32 elements.
    F32(Vec<f32>),
    /// f64 elements.
    F64(Vec<f64>),
    /// f16 elements.
    F16(Vec<f16>),
    /// bf16 elements.
    Bf16(Vec<bf16>),
    /// Bytes.
    U8(Vec<u8>),
    /// i64 elements.
    I64(Vec<i64>),
}

macro_rules! each {
    ($b:expr, $v:ident => $e:expr) => {
        match $b {
            CpuBuffer::F32($v) => $e,
            CpuBuffer::F64($v) => $e,
            CpuBuffer::F16($v) => $e,
            CpuBuffer::Bf16($v) => $e,
            CpuBuffer::U8($v) => $e,
            CpuBuffer::I64($v) => $e,
        }
    };
}

/// The value in f32, rounded to odd: towards zero, and the last bit set if anything was lost. To round that once more, to at
/// most 22 bits, gives what rounding the value once would. (`half` itself looks at the upper 32 bits of an f64 only.)
fn to_odd(x: f64) -> f32 {
    let y = x as f32;
    if f64::from(y) == x || !y.is_finite() {
        return y;
    }
    let towards_zero = y.to_bits() - u32::from(f64::from(y).abs() > x.abs());
    f32::from_bits(towards_zero | 1)
}

impl CpuBuffer {
    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            CpuBuffer::F32(_) => DType::F32,
            CpuBuffer::F64(_) => DType::F64,
            CpuBuffer::F16(_) => DType::F16,
            CpuBuffer::Bf16(_) => DType::Bf16,
            CpuBuffer::U8(_) => DType::U8,
            CpuBuffer::I64(_) => DType::I64,
        }
    }

    pub(super) fn convert(&self, to: DType) -> CpuBuffer {
        // f16 and bf16 widen to f32 exactly and f32 to f64 exactly, so going through them rounds only once. Integers
        // go through f64 only when the target is a float; i64 values beyond 2^53 would lose bits, labels do not.
        let f64_of = |i: usize| -> f64 {
            match self {
                CpuBuffer::F32(v) => f64::from(v[i]),
                CpuBuffer::F64(v) => v[i],
                CpuBuffer::F16(v) => f64::from(v[i]),
                CpuBuffer::Bf16(v) => f64::from(v[i]),
                CpuBuffer::U8(v) => f64::from(v[i]),
                CpuBuffer::I64(v) => v[i] as f64,
            }
        };
        let n = self.len();
        match (self, to) {
            (CpuBuffer::F16(v), DType::F32) => CpuBuffer::F32(v.iter().map(|x| x.to_f32()).collect()),
            (CpuBuffer::Bf16(v), DType::F32) => CpuBuffer::F32(v.iter().map(|x| x.to_f32()).collect()),
            (CpuBuffer::F32(v), DType::F64) => CpuBuffer::F64(v.iter().map(|&x| f64::from(x)).collect()),
            (CpuBuffer::U8(v), DType::I64) => CpuBuffer::I64(v.iter().map(|&x| i64::from(x)).collect()),
            (_, DType::F32) => CpuBuffer::F32((0..n).map(|i| f64_of(i) as f32).collect()),
            (_, DType::F64) => CpuBuffer::F64((0..n).map(f64_of).collect()),
            (_, DType::F16) => CpuBuffer::F16((0..n).map(|i| f16::from_f32(to_odd(f64_of(i)))).collect()),
            (_, DType::Bf16) => CpuBuffer::Bf16((0..n).map(|i| bf16::from_f32(to_odd(f64_of(i)))).collect()),
            (_, DType::U8) => CpuBuffer::U8((0..n).map(|i| f64_of(i) as u8).collect()),
            (_, DType::I64) => CpuBuffer::I64((0..n).map(|i| f64_of(i) as i64).collect()),
        }
    }

    pub(super) fn swap_inner(&self, n: usize, a: usize, b: usize) -> CpuBuffer {
        fn go<T: Element>(v: &[T], n: usize, a: usize, b: usize) -> CpuBuffer {
            let mut out = Vec::with_capacity(v.len());
            for i in 0..n {
                let part = &v[i * a * b..(i + 1) * a * b];
                for j in 0..b {
                    out.extend((0..a).map(|k| part[k * b + j]));
                }
            }
            T::wrap(out)
        }
        each!(self, v => go(v, n, a, b))
    }

    pub(super) fn all_finite(&self) -> bool {
        match self {
            CpuBuffer::F32(v) => v.iter().all(|x| x.is_finite()),
            CpuBuffer::F64(v) => v.iter().all(|x| x.is_finite()),
            CpuBuffer::F16(v) => v.iter().all(|x| x.is_finite()),
            CpuBuffer::Bf16(v) => v.iter().all(|x| x.is_finite()),
            CpuBuffer::U8(_) | CpuBuffer::I64(_) => true,
        }
    }

    /// The little-endian bytes of the elements.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            CpuBuffer::F32(v) => bytemuck::cast_slice(v),
            CpuBuffer::F64(v) => bytemuck::cast_slice(v),
            CpuBuffer::F16(v) => bytemuck::cast_slice(v),
            CpuBuffer::Bf16(v) => bytemuck::cast_slice(v),
            CpuBuffer::U8(v) => v,
            CpuBuffer::I64(v) => bytemuck::cast_slice(v),
        }
    }

    /// The little-endian bytes of the elements, for writing.
    pub(super) fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            CpuBuffer::F32(v) => bytemuck::cast_slice_mut(v),
            CpuBuffer::F64(v) => bytemuck::cast_slice_mut(v),
            CpuBuffer::F16(v) => bytemuck::cast_slice_mut(v),
            CpuBuffer::Bf16(v) => bytemuck::cast_slice_mut(v),
            CpuBuffer::U8(v) => v,
            CpuBuffer::I64(v) => bytemuck::cast_slice_mut(v),
        }
    }

    /// `len` zeros.
    pub(super) fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F32 => CpuBuffer::F32(vec![0.0; len]),
            DType::F64 => CpuBuffer::F64(vec![0.0; len]),
            DType::F16 => CpuBuffer::F16(vec![f16::ZERO; len]),
            DType::Bf16 => CpuBuffer::Bf16(vec![bf16::ZERO; len]),
            DType::U8 => CpuBuffer::U8(vec![0; len]),
            DType::I64 => CpuBuffer::I64(vec![0; len]),
        }
    }

    /// A buffer from little-endian bytes, which need not be aligned. `None` if the length is no multiple of the
    /// element size.
    pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Option<Self> {
        fn read<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
            let mut v = vec![T::zeroed(); bytes.len() / size_of::<T>()];
            bytemuck::cast_slice_mut::<T, u8>(&mut v).copy_from_slice(bytes);
            v
        }
        if !bytes.len().is_multiple_of(dtype.size()) {
            return None;
        }
        Some(match dtype {
            DType::F32 => CpuBuffer::F32(read(bytes)),
            DType::F64 => CpuBuffer::F64(read(bytes)),
            DType::F16 => CpuBuffer::F16(read(bytes)),
            DType::Bf16 => CpuBuffer::Bf16(read(bytes)),
            DType::U8 => CpuBuffer::U8(bytes.to_vec()),
            DType::I64 => CpuBuffer::I64(read(bytes)),
        })
    }
}
