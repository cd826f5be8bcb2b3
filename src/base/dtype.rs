//! Element types.

use std::fmt;

/// The element type of a tensor.
///
/// `F32` is what the CPU computes in; `F64` exists for reference values, `Bf16` and `F16` for storage and tensor
/// cores, `U8` for pixels and `I64` for labels and integer buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 64-bit IEEE float.
    F64,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float: the upper half of an f32.
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed 64-bit integer.
    I64,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// Whether the type is a floating-point one.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::U8 | DType::I64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::U8 => "u8",
            DType::I64 => "i64",
        })
    }
}
