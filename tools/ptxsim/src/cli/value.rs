//! Typed values of arguments and buffers.

use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// Element types.
#[allow(missing_docs, reason = "they are called what they are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

/// Name, bytes, and what NumPy calls it: `bf16` has no name there and goes as 16-bit integers.
const TYPES: [(Type, &str, usize, &str); 12] = [
    (Type::U8, "u8", 1, "|u1"),
    (Type::I8, "i8", 1, "|i1"),
    (Type::U16, "u16", 2, "<u2"),
    (Type::I16, "i16", 2, "<i2"),
    (Type::U32, "u32", 4, "<u4"),
    (Type::I32, "i32", 4, "<i4"),
    (Type::U64, "u64", 8, "<u8"),
    (Type::I64, "i64", 8, "<i8"),
    (Type::F16, "f16", 2, "<f2"),
    (Type::Bf16, "bf16", 2, "<u2"),
    (Type::F32, "f32", 4, "<f4"),
    (Type::F64, "f64", 8, "<f8"),
];

impl Type {
    fn row(self) -> &'static (Type, &'static str, usize, &'static str) {
        &TYPES[self as usize]
    }

    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        self.row().2
    }

    /// `<f4`
    pub(super) fn numpy(self) -> &'static str {
        self.row().3
    }

    /// Not an integer.
    pub(super) fn is_float(self) -> bool {
        matches!(self, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
    }

    /// A value as written: `1.5`, `-7`, `0xff`, `inf`, `nan`.
    pub(super) fn encode(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = |why: String| format!("{text} is no {self}: {why}");
        if self.is_float() {
            let value: f64 = text.parse().map_err(|e: std::num::ParseFloatError| wrong(e.to_string()))?;
            return Ok(self.encode_float(value));
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let magnitude = match digits.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16),
            None => digits.parse(),
        }
        .map_err(|e| wrong(e.to_string()))?;
        let value = if negative { -magnitude } else { magnitude };
        let bits = self.bytes() * 8;
        let signed = matches!(self, Type::I8 | Type::I16 | Type::I32 | Type::I64);
        let (low, high) =
            if signed { (-(1i128 << (bits - 1)), 1i128 << (bits - 1)) } else { (0, 1i128 << bits) };
        if value < low || value >= high {
            return Err(wrong(format!("it goes from {low} to {}", high - 1)));
        }
        Ok(value.to_le_bytes()[..self.bytes()].to_vec())
    }

    /// A number, rounded to the type; integers are cut off and kept in range.
    pub(super) fn encode_float(self, v: f64) -> Vec<u8> {
        match self {
            Type::U8 => (v as u8).to_le_bytes().to_vec(),
            Type::I8 => (v as i8).to_le_bytes().to_vec(),
            Type::U16 => (v as u16).to_le_bytes().to_vec(),
            Type::I16 => (v as i16).to_le_bytes().to_vec(),
            Type::U32 => (v as u32).to_le_bytes().to_vec(),
            Type::I32 => (v as i32).to_le_bytes().to_vec(),
            Type::U64 => (v as u64).to_le_bytes().to_vec(),
            Type::I64 => (v as i64).to_le_bytes().to_vec(),
            Type::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
            Type::Bf16 => bf16::from_f64(v).to_le_bytes().to_vec(),
            Type::F32 => (v as f32).to_le_bytes().to_vec(),
            Type::F64 => v.to_le_bytes().to_vec(),
        }
    }

    /// One value for reading.
    pub(super) fn show(self, bytes: &[u8]) -> String {
        let mut wide = [0u8; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => bits.to_string(),
            Type::I8 => (bits as i8).to_string(),
            Type::I16 => (bits as i16).to_string(),
            Type::I32 => (bits as i32).to_string(),
            Type::I64 => (bits as i64).to_string(),
            Type::F16 => f16::from_bits(bits as u16).to_string(),
            Type::Bf16 => bf16::from_bits(bits as u16).to_string(),
            Type::F32 => f32::from_bits(bits as u32).to_string(),
            Type::F64 => f64::from_bits(bits).to_string(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

impl FromStr for Type {
    type Err = String;

    fn from_str(text: &str) -> Result<Type, String> {
        TYPES.iter().find(|t| t.1 == text).map(|t| t.0).ok_or_else(|| {
            let all: Vec<&str> = TYPES.iter().map(|t| t.1).collect();
            format!("{text} is no type; there are: {}", all.join(" "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_types() {
        for (i, row) in TYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(row.1.parse::<Type>().unwrap(), row.0);
            assert_eq!(row.0.encode_float(1.0).len(), row.2);
            assert_eq!(row.0.show(&row.0.encode("7").unwrap()), "7", "{}", row.1);
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(Type::I8.encode("-128").unwrap(), [0x80]);
        assert_eq!(Type::U16.encode("0xff01").unwrap(), [0x01, 0xff]);
        for (ty, text) in [
            (Type::I8, "128"),
            (Type::U8, "-1"),
            (Type::U32, "4294967296"),
            (Type::I32, "1.5"),
            (Type::F32, "x"),
        ] {
            let error = ty.encode(text).unwrap_err();
            assert!(error.contains(text) && error.contains(&ty.to_string()), "{error}");
        }
        assert_eq!(Type::Bf16.encode("1.5").unwrap(), [0xc0, 0x3f]);
    }
}
