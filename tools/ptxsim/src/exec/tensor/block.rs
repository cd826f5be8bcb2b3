//! Accumulators between registers and rows.

use crate::exec::cx::Cx;
use crate::exec::inst::Slot;
use crate::exec::lanes::{LANES, Value};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Eight rows of an accumulator.
pub(crate) type Rows<T> = [[T; 8]; 8];

/// Eight rows from two registers: columns `2 t` and `2 t + 1`.
#[inline(always)]
pub(crate) fn read<T: Value + Default>(cx: &Cx<'_>, even: Slot, odd: Slot) -> Rows<T> {
    let (even, odd) = (cx.get::<T>(even), cx.get::<T>(odd));
    let mut rows = [[T::default(); 8]; 8];
    for lane in 0..LANES {
        rows[lane / 4][2 * (lane % 4)] = even[lane];
        rows[lane / 4][2 * (lane % 4) + 1] = odd[lane];
    }
    rows
}

/// Eight rows to two registers.
#[inline(always)]
pub(crate) fn write<T: Value>(cx: &mut Cx<'_>, even: Slot, odd: Slot, mask: u32, rows: &Rows<T>) {
    let at = |lane: usize, odd: usize| rows[lane / 4][2 * (lane % 4) + odd];
    cx.put(even, mask, &std::array::from_fn(|l| at(l, 0)));
    cx.put(odd, mask, &std::array::from_fn(|l| at(l, 1)));
}

/// Eight rows from one register of two `f16` each: as the register lies there, they are in order.
#[inline(always)]
pub(crate) fn read_half(cx: &Cx<'_>, slot: Slot) -> Rows<f32> {
    let mut rows = [[0.0; 8]; 8];
    halves(&cx.get(slot)).convert_to_f32_slice(rows.as_flattened_mut());
    rows
}

/// The `f16` of a register, low ones first.
#[inline(always)]
pub(crate) fn halves(words: &[u32; LANES]) -> [f16; 64] {
    let mut halves = [f16::ZERO; 64];
    for (pair, &word) in halves.chunks_exact_mut(2).zip(words) {
        pair[0] = f16::from_bits(word as u16);
        pair[1] = f16::from_bits((word >> 16) as u16);
    }
    halves
}

/// Eight rows to one register of two `f16` each.
#[inline(always)]
pub(crate) fn write_half(cx: &mut Cx<'_>, slot: Slot, mask: u32, rows: &Rows<f32>) {
    let mut halves = [f16::ZERO; 64];
    halves.convert_from_f32_slice(rows.as_flattened());
    cx.put(slot, mask, &std::array::from_fn(|l| pack(halves[2 * l], halves[2 * l + 1])));
}

/// Two `f16` in a word.
pub(crate) fn pack(low: f16, high: f16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}
