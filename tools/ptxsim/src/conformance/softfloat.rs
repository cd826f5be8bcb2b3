//! Arithmetic as IEEE 754 defines it, on bit patterns, by `rustc_apfloat`: nothing here is shared with the interpreter.

use rustc_apfloat::ieee::{BFloat, Double, Half, IeeeFloat, Quad, Semantics, Single};
use rustc_apfloat::{Float, FloatConvert, Round};
use std::cmp::Ordering;

/// The 19 significant bits of `.tf32`.
pub struct Tf32S;

impl Semantics for Tf32S {
    const BITS: usize = 19;
    const EXP_BITS: usize = 8;
}

/// The value of a `.tf32`, without the 13 bits below it.
pub type Tf32 = IeeeFloat<Tf32S>;

/// Formats with an arithmetic of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.f32`
    F32,
    /// `.f64`
    F64,
}

/// `.rn .rz .rm .rp`
pub const ROUNDINGS: [(&str, Round); 4] = [
    ("rn", Round::NearestTiesToEven),
    ("rz", Round::TowardZero),
    ("rm", Round::TowardNegative),
    ("rp", Round::TowardPositive),
];

/// Runs a generic expression with `$F` bound to the type of a format.
macro_rules! with {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            Format::F16 => {
                type $F = Half;
                $body
            }
            Format::Bf16 => {
                type $F = BFloat;
                $body
            }
            Format::F32 => {
                type $F = Single;
                $body
            }
            Format::F64 => {
                type $F = Double;
                $body
            }
        }
    };
}

impl Format {
    /// Size of a value.
    pub fn bytes(self) -> usize {
        match self {
            Format::F16 | Format::Bf16 => 2,
            Format::F32 => 4,
            Format::F64 => 8,
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        8 * self.bytes() as u32
    }

    /// The word in PTX.
    pub fn name(self) -> &'static str {
        match self {
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F32 => "f32",
            Format::F64 => "f64",
        }
    }

    /// Bits of the significand that are stored.
    pub fn mantissa_bits(self) -> u32 {
        match self {
            Format::F16 => 10,
            Format::Bf16 => 7,
            Format::F32 => 23,
            Format::F64 => 52,
        }
    }

    /// The sign bit.
    pub fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// Exponent bits all ones, significand zero.
    pub fn infinity(self) -> u64 {
        (self.sign() - 1) >> self.mantissa_bits() << self.mantissa_bits()
    }

    /// 1.0
    pub fn one(self) -> u64 {
        (self.infinity() / 2) >> self.mantissa_bits() << self.mantissa_bits()
    }

    /// A quiet NaN.
    pub fn nan(self) -> u64 {
        self.infinity() | 1 << (self.mantissa_bits() - 1)
    }

    /// Smallest normal number.
    pub fn smallest_normal(self) -> u64 {
        1 << self.mantissa_bits()
    }

    /// Largest finite number.
    pub fn largest(self) -> u64 {
        self.infinity() - 1
    }

    /// Any NaN.
    pub fn is_nan(self, v: u64) -> bool {
        v & (self.sign() - 1) > self.infinity()
    }

    /// Either zero.
    pub fn is_zero(self, v: u64) -> bool {
        v & (self.sign() - 1) == 0
    }

    /// Neither zero nor normal.
    pub fn is_subnormal(self, v: u64) -> bool {
        let magnitude = v & (self.sign() - 1);
        magnitude != 0 && magnitude < self.smallest_normal()
    }

    /// `.ftz` of one value: a subnormal becomes the zero of its sign.
    pub fn flush(self, v: u64) -> u64 {
        if self.is_subnormal(v) { v & self.sign() } else { v }
    }

    /// `.sat`: `[0.0, 1.0]`, a NaN becomes +0.
    pub fn saturate(self, v: u64) -> u64 {
        if self.is_nan(v) || v & self.sign() != 0 { 0 } else { v.min(self.one()) }
    }

    /// `.relu`: a negative value becomes +0, NaNs stay NaNs.
    pub fn relu(self, v: u64) -> u64 {
        if !self.is_nan(v) && v & self.sign() != 0 { 0 } else { v }
    }

    /// Sum.
    pub fn add(self, round: Round, a: u64, b: u64) -> u64 {
        with!(self, F => F::from_bits(a.into()).add_r(F::from_bits(b.into()), round).value.to_bits() as u64)
    }

    /// Difference.
    pub fn sub(self, round: Round, a: u64, b: u64) -> u64 {
        with!(self, F => F::from_bits(a.into()).sub_r(F::from_bits(b.into()), round).value.to_bits() as u64)
    }

    /// Product.
    pub fn mul(self, round: Round, a: u64, b: u64) -> u64 {
        with!(self, F => F::from_bits(a.into()).mul_r(F::from_bits(b.into()), round).value.to_bits() as u64)
    }

    /// Quotient.
    pub fn div(self, round: Round, a: u64, b: u64) -> u64 {
        with!(self, F => F::from_bits(a.into()).div_r(F::from_bits(b.into()), round).value.to_bits() as u64)
    }

    /// Product and sum, rounded once.
    pub fn fma(self, round: Round, a: u64, b: u64, c: u64) -> u64 {
        with!(self, F => F::from_bits(a.into())
            .mul_add_r(F::from_bits(b.into()), F::from_bits(c.into()), round).value.to_bits() as u64)
    }

    /// Square root by integers: a root with two bits more than the significand and a sticky bit below them, rounded by
    /// the conversion from an integer.
    pub fn sqrt(self, round: Round, a: u64) -> u64 {
        if self.is_nan(a) || self.is_zero(a) || a == self.infinity() {
            return a;
        }
        if a & self.sign() != 0 {
            return self.nan();
        }
        let m = self.mantissa_bits();
        let bias = (1i32 << (self.bits() - m - 2)) - 1;
        let raw = (a >> m) as i32;
        let (mut significand, mut exponent) = match raw {
            0 => (u128::from(a), 1 - bias - m as i32),
            _ => (u128::from(a & ((1 << m) - 1) | 1 << m), raw - bias - m as i32),
        };
        // Up to 120 bits, so that the root has about 60; the exponent must be even.
        let shift = significand.leading_zeros() as i32 - 8;
        let shift = shift - ((exponent - shift) & 1);
        significand <<= shift;
        exponent -= shift;
        let root = significand.isqrt();
        let sticky = u128::from(root * root != significand);
        // Quad holds the root exactly: one rounding, to the format.
        let wide = Quad::from_u128(root << 1 | sticky).value.scalbn(exponent / 2 - 1);
        let mut lost = false;
        with!(self, F => {
            let narrow: F = wide.convert_r(round, &mut lost).value;
            narrow.to_bits() as u64
        })
    }

    /// Nearest integral value in the given direction, as a float.
    pub fn round_to_integral(self, round: Round, a: u64) -> u64 {
        with!(self, F => F::from_bits(a.into()).round_to_integral(round).value.to_bits() as u64)
    }

    /// `None` when one is a NaN.
    pub fn compare(self, a: u64, b: u64) -> Option<Ordering> {
        with!(self, F => F::from_bits(a.into()).partial_cmp(&F::from_bits(b.into())))
    }

    /// The value in another format.
    pub fn convert(self, to: Format, round: Round, a: u64) -> u64 {
        let mut lost = false;
        with!(self, F => {
            let from = F::from_bits(a.into());
            with!(to, T => {
                let result: T = from.convert_r(round, &mut lost).value;
                result.to_bits() as u64
            })
        })
    }

    /// From an integer.
    pub fn from_integer(self, round: Round, v: i128) -> u64 {
        with!(self, F => F::from_i128_r(v, round).value.to_bits() as u64)
    }

    /// To an integer in the given direction, clamped to `low..=high`; `None` for a NaN.
    pub fn to_integer(self, round: Round, a: u64, low: i128, high: i128) -> Option<i128> {
        if self.is_nan(a) {
            return None;
        }
        let integral = self.round_to_integral(round, a);
        let mut exact = false;
        // Values beyond 2^126 saturate in the conversion, and then here.
        Some(
            with!(self, F => F::from_bits(integral.into()).to_i128_r(127, round, &mut exact).value)
                .clamp(low, high),
        )
    }

    /// Exactly.
    pub fn to_f64(self, v: u64) -> f64 {
        f64::from_bits(self.convert(Format::F64, Round::NearestTiesToEven, v))
    }

    /// Rounded to nearest even.
    pub fn from_f64(self, v: f64) -> u64 {
        Format::F64.convert(self, Round::NearestTiesToEven, v.to_bits())
    }
}
