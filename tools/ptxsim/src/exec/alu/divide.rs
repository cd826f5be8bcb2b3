//! Integer division.
//!
//! Division by zero gives all ones, the quotient and the remainder alike: PTX leaves it unspecified, and that is what
//! the instruction sequences of the hardware's compiler give. The most negative number divided by -1 wraps.
//!
//! Quotients of 32-bit numbers go through `f64`: with a/b not an integer, its distance to the next is at least 1/b, far
//! more than half a unit in the last of 53 places, so that rounding never reaches the integer above.

use super::super::inst::Exec;
use super::map2;
use crate::ptx::ast::Ty;

/// 2^52: adding it leaves an integer below 2^52 in the low bits.
const INTEGER: f64 = 4_503_599_627_370_496.0;
/// 2^52 + 2^51: the same for numbers of either sign.
const SIGNED_INTEGER: f64 = 6_755_399_441_055_744.0;

#[inline(always)]
fn quotient_u32(a: u32, b: u32) -> u32 {
    let q = ((f64::from(a) / f64::from(b)).trunc() + INTEGER).to_bits() as u32;
    if b == 0 { u32::MAX } else { q }
}

#[inline(always)]
fn remainder_u32(a: u32, b: u32) -> u32 {
    let r = a.wrapping_sub(quotient_u32(a, b).wrapping_mul(b));
    if b == 0 { u32::MAX } else { r }
}

#[inline(always)]
fn quotient_i32(a: i32, b: i32) -> i32 {
    let q = ((f64::from(a) / f64::from(b)).trunc() + SIGNED_INTEGER).to_bits() as i32;
    if b == 0 { -1 } else { q }
}

#[inline(always)]
fn remainder_i32(a: i32, b: i32) -> i32 {
    let r = a.wrapping_sub(quotient_i32(a, b).wrapping_mul(b));
    if b == 0 { -1 } else { r }
}

/// The function for the type.
pub(super) fn pick(remainder: bool, ty: Ty) -> Result<Exec, String> {
    Ok(match (remainder, ty) {
        (false, Ty::U16) => map2!(|a: u16, b: u16| quotient_u32(a.into(), b.into()) as u16),
        (true, Ty::U16) => map2!(|a: u16, b: u16| remainder_u32(a.into(), b.into()) as u16),
        (false, Ty::S16) => map2!(|a: i16, b: i16| quotient_i32(a.into(), b.into()) as i16),
        (true, Ty::S16) => map2!(|a: i16, b: i16| remainder_i32(a.into(), b.into()) as i16),
        (false, Ty::U32) => map2!(quotient_u32),
        (true, Ty::U32) => map2!(remainder_u32),
        (false, Ty::S32) => map2!(quotient_i32),
        (true, Ty::S32) => map2!(remainder_i32),
        (false, Ty::U64) => map2!(|a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX)),
        (true, Ty::U64) => map2!(|a: u64, b: u64| a.checked_rem(b).unwrap_or(u64::MAX)),
        (false, Ty::S64) => map2!(|a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) }),
        (true, Ty::S64) => map2!(|a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_rem(b) }),
        _ => return Err(format!("the type {ty:?} does not fit this instruction")),
    })
}
