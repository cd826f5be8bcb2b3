//! Strided views of a storage: checks, and the gather into a contiguous tensor.

use super::node::{Stored, TensorRef};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::{CpuBuffer, Storage, Tensor};
use std::path::Path;

/// A view may have at most this many elements more than its storage. Only stride 0 (`expand`) makes a view larger
/// than what it shows; without a bound a few bytes could ask for terabytes.
const MAX_EXPANDED: u64 = 1 << 16;

/// The dtype that a stored element type becomes. Integers widen to i64, booleans become bytes.
pub(super) fn dtype_of(kind: Stored) -> DType {
    match kind {
        Stored::F32 => DType::F32,
        Stored::F64 => DType::F64,
        Stored::F16 => DType::F16,
        Stored::Bf16 => DType::Bf16,
        Stored::U8 | Stored::Bool => DType::U8,
        Stored::I64 | Stored::I32 | Stored::I16 | Stored::I8 => DType::I64,
    }
}

/// A checked view: every element lies inside the storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub kind: Stored,
    pub shape: Shape,
    /// Elements from one index to the next, per dimension.
    strides: Vec<u64>,
    /// First and one past the last element of the storage that the view touches.
    pub first: u64,
    pub end: u64,
}

impl View {
    /// Checks `t` against its storage.
    ///
    /// # Errors
    /// Negative sizes, offsets or strides, too many dimensions, elements outside the storage. The caller adds the key.
    pub(super) fn check(path: &Path, t: &TensorRef) -> Result<Self> {
        let bad = |what: &str| {
            Error::format(path, what)
                .with_tensor("size", format!("{:?}", t.sizes))
                .with_tensor("stride", format!("{:?}", t.strides))
                .with_tensor("offset", t.offset)
                .with_tensor("storage", format!("{} elements", t.storage.numel))
                .with_remedy(
                    "save the tensors as contiguous copies: {k: v.contiguous().clone() for k, v in ...}",
                )
        };
        let unsigned = |v: &[i64]| v.iter().map(|&x| u64::try_from(x).ok()).collect::<Option<Vec<u64>>>();
        let (Some(sizes), Some(strides), Ok(first)) =
            (unsigned(&t.sizes), unsigned(&t.strides), u64::try_from(t.offset))
        else {
            return Err(bad("a tensor has a negative size, stride or offset"));
        };
        if sizes.len() != strides.len() {
            return Err(bad("a tensor has another number of strides than of sizes"));
        }
        let dims: Option<Vec<usize>> = sizes.iter().map(|&d| usize::try_from(d).ok()).collect();
        let dims = dims.ok_or_else(|| bad("a size is beyond the address space"))?;
        let shape = Shape::from_slice(&dims).map_err(|e| e.with_file(path))?;
        let empty = sizes.contains(&0);
        // The highest element is reached where every index is at its end, because no stride is negative.
        let last = sizes.iter().zip(&strides).try_fold(first, |sum, (&n, &s)| {
            n.saturating_sub(1).checked_mul(s).and_then(|x| sum.checked_add(x))
        });
        let end = if empty { Some(first) } else { last.and_then(|l| l.checked_add(1)) };
        let end = end.filter(|&e| e <= t.storage.numel);
        let end = end.ok_or_else(|| bad("a tensor reaches outside its storage"))?;
        if shape.elems() as u64 > t.storage.numel.max(MAX_EXPANDED) {
            return Err(bad("an expanded tensor is much larger than its storage"));
        }
        Ok(View { kind: t.storage.kind, shape, strides, first, end })
    }

    /// The byte range of the storage that [`View::gather`] wants.
    pub(super) fn bytes(&self) -> std::ops::Range<u64> {
        // The storage holds `end` elements and its length in bytes was compared with the archive, so this fits.
        let size = self.kind.size() as u64;
        self.first * size..self.end * size
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1u64;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && s != expected {
                return false;
            }
            expected *= n as u64;
        }
        true
    }

    /// The tensor from the bytes of [`View::bytes`].
    pub(super) fn gather(&self, bytes: Vec<u8>) -> Result<Tensor> {
        let packed = if self.shape.elems() == 0 || self.is_contiguous() { bytes } else { self.pack(&bytes)? };
        let data = match self.kind {
            Stored::I32 => widen(&packed, |b: [u8; 4]| i64::from(i32::from_le_bytes(b))),
            Stored::I16 => widen(&packed, |b: [u8; 2]| i64::from(i16::from_le_bytes(b))),
            Stored::I8 => widen(&packed, |b: [u8; 1]| i64::from(i8::from_le_bytes(b))),
            Stored::Bool => CpuBuffer::U8(packed.iter().map(|&b| u8::from(b != 0)).collect()),
            Stored::U8 => CpuBuffer::U8(packed),
            kind => CpuBuffer::from_bytes(dtype_of(kind), &packed)
                .ok_or_else(|| Error::shape("checkpoint", "the data is no whole number of elements"))?,
        };
        Tensor::new(self.shape, Storage::Cpu(data))
    }

    /// Copies the elements of a non-contiguous view in row-major order.
    fn pack(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let size = self.kind.size();
        let elems = self.shape.elems();
        let mut out = Vec::with_capacity(elems * size);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..elems {
            let at: u64 = index.iter().zip(&self.strides).map(|(&i, &s)| i as u64 * s).sum();
            let at = at as usize * size;
            let element = bytes.get(at..at + size);
            out.extend_from_slice(
                element.ok_or_else(|| Error::shape("checkpoint", "an element is outside the data"))?,
            );
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < self.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Ok(out)
    }
}

fn widen<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> i64) -> CpuBuffer {
    let (elements, _) = bytes.as_chunks::<N>();
    CpuBuffer::I64(elements.iter().map(|&e| f(e)).collect())
}
