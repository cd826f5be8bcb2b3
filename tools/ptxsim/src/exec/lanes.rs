//! Values of lanes in the register file, and maps over the 32 lanes that the compiler vectorises.

use super::cx::Cx;
use super::inst::{Flow, Inst, Slot};
use half::{bf16, f16};
use std::mem::MaybeUninit;

/// A warp has 32 lanes.
pub const LANES: usize = 32;
/// All lanes.
pub const FULL: u32 = u32::MAX;

/// One 32-bit register of a warp.
pub type Row = [u32; LANES];

/// A type that a lane of a register can hold.
pub trait Value: Copy {
    /// Rows the register takes.
    const ROWS: usize;
    /// Reads all lanes.
    ///
    /// # Safety
    /// `at` points at `ROWS` initialised rows.
    unsafe fn get(at: *const Row) -> [Self; LANES];
    /// Writes all lanes.
    ///
    /// # Safety
    /// `at` points at `ROWS` rows that nothing else borrows.
    unsafe fn put(at: *mut Row, values: &[Self; LANES]);
    /// Writes the lanes of the mask.
    ///
    /// # Safety
    /// As for `put`.
    unsafe fn put_masked(at: *mut Row, values: &[Self; LANES], mask: u32);
}

/// Writes the lanes of a mask. Functions of their own, not part of every instruction: a partial mask is the rare case, and
/// this keeps the code of the common one small.
macro_rules! blend {
    ($name:ident, $t:ty) => {
        /// # Safety
        /// `row` points at 32 values that nothing else borrows, `values` at 32 others.
        #[inline(never)]
        unsafe fn $name(row: *mut [$t; LANES], values: *const [$t; LANES], mask: u32) {
            // SAFETY: the caller's promise.
            let (row, values) = unsafe { (&mut *row, &*values) };
            for lane in 0..LANES {
                let keep = <$t>::from(mask >> lane & 1).wrapping_sub(1);
                row[lane] = (row[lane] & keep) | (values[lane] & !keep);
            }
        }
    };
}
blend!(blend_32, u32);
blend!(blend_64, u64);
blend!(blend_128, u128);

macro_rules! whole {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const ROWS: usize = size_of::<$t>() / 4;
            #[inline(always)]
            unsafe fn get(at: *const Row) -> [Self; LANES] {
                // SAFETY: the caller gives ROWS rows; rows are 128 bytes, aligned to 64, and every bit pattern is a value.
                unsafe { *at.cast::<[Self; LANES]>() }
            }
            #[inline(always)]
            unsafe fn put(at: *mut Row, values: &[Self; LANES]) {
                // SAFETY: as above.
                unsafe { *at.cast::<[Self; LANES]>() = *values }
            }
            #[inline(always)]
            unsafe fn put_masked(at: *mut Row, values: &[Self; LANES], mask: u32) {
                // SAFETY: as above; the values are as many bytes as the rows, and plain numbers.
                unsafe {
                    match size_of::<$t>() {
                        4 => blend_32(at.cast(), std::ptr::from_ref(values).cast(), mask),
                        8 => blend_64(at.cast(), std::ptr::from_ref(values).cast(), mask),
                        _ => blend_128(at.cast(), std::ptr::from_ref(values).cast(), mask),
                    }
                }
            }
        }
    )*};
}
whole!(u32, i32, f32, u64, i64, f64, u128);

macro_rules! narrow {
    ($($t:ty: $from:expr, $to:expr);* $(;)?) => {$(
        impl Value for $t {
            const ROWS: usize = 1;
            #[inline(always)]
            unsafe fn get(at: *const Row) -> [Self; LANES] {
                // SAFETY: the caller gives one row.
                let row = unsafe { &*at };
                each(|lane| ($from)(row[lane]))
            }
            #[inline(always)]
            unsafe fn put(at: *mut Row, values: &[Self; LANES]) {
                // SAFETY: as above.
                let row = unsafe { &mut *at };
                for lane in 0..LANES {
                    row[lane] = ($to)(values[lane]);
                }
            }
            #[inline(always)]
            unsafe fn put_masked(at: *mut Row, values: &[Self; LANES], mask: u32) {
                let wide: Row = each(|lane| ($to)(values[lane]));
                // SAFETY: as above.
                unsafe { blend_32(at, &wide, mask) }
            }
        }
    )*};
}
narrow! {
    u8: |x: u32| x as u8, |x: u8| u32::from(x);
    i8: |x: u32| x as i8, |x: i8| u32::from(x as u8);
    u16: |x: u32| x as u16, |x: u16| u32::from(x);
    i16: |x: u32| x as i16, |x: i16| u32::from(x as u16);
    f16: |x: u32| f16::from_bits(x as u16), |x: f16| u32::from(x.to_bits());
    bf16: |x: u32| bf16::from_bits(x as u16), |x: bf16| u32::from(x.to_bits());
}

/// One value for each lane. A plain loop: with `std::array::from_fn` longer functions are not vectorised.
#[inline(always)]
pub fn each<T: Copy>(mut f: impl FnMut(usize) -> T) -> [T; LANES] {
    let mut out = [MaybeUninit::<T>::uninit(); LANES];
    for (lane, value) in out.iter_mut().enumerate() {
        value.write(f(lane));
    }
    // SAFETY: every element was written; an array of `MaybeUninit<T>` is laid out as one of `T`.
    unsafe { std::mem::transmute_copy(&out) }
}

impl Cx<'_> {
    /// All lanes of a register.
    #[inline(always)]
    pub fn get<T: Value>(&self, slot: Slot) -> [T; LANES] {
        debug_assert!(slot.0 as usize + T::ROWS <= self.rows);
        // SAFETY: slots are made by the register allocator, which knows the size of the file and of each register.
        unsafe { T::get(self.regs.add(slot.0 as usize)) }
    }

    /// Writes the lanes of the mask.
    #[inline(always)]
    pub fn put<T: Value>(&mut self, slot: Slot, mask: u32, values: &[T; LANES]) {
        debug_assert!(slot.0 as usize + T::ROWS <= self.rows);
        // SAFETY: as in `get`; `&mut self` owns the file of the running warp.
        unsafe {
            if mask == FULL {
                T::put(self.regs.add(slot.0 as usize), values);
            } else {
                T::put_masked(self.regs.add(slot.0 as usize), values, mask);
            }
        }
    }

    /// `r0 = f(r1)`
    #[inline(always)]
    pub fn map1<A: Value, D: Value>(&mut self, i: &Inst, mask: u32, f: impl Fn(A) -> D) -> Flow {
        let a = self.get::<A>(i.r[1]);
        let out = each(|l| f(a[l]));
        self.put(i.r[0], mask, &out);
        Flow::Next
    }

    /// `r0 = f(r1, r2)`
    #[inline(always)]
    pub fn map2<A: Value, B: Value, D: Value>(&mut self, i: &Inst, mask: u32, f: impl Fn(A, B) -> D) -> Flow {
        let a = self.get::<A>(i.r[1]);
        let b = self.get::<B>(i.r[2]);
        let out = each(|l| f(a[l], b[l]));
        self.put(i.r[0], mask, &out);
        Flow::Next
    }

    /// `r0 = f(r1, r2, r3)`
    #[inline(always)]
    pub fn map3<A: Value, B: Value, C: Value, D: Value>(
        &mut self,
        i: &Inst,
        mask: u32,
        f: impl Fn(A, B, C) -> D,
    ) -> Flow {
        let a = self.get::<A>(i.r[1]);
        let b = self.get::<B>(i.r[2]);
        let c = self.get::<C>(i.r[3]);
        let out = each(|l| f(a[l], b[l], c[l]));
        self.put(i.r[0], mask, &out);
        Flow::Next
    }

    /// Lane mask of a predicate.
    #[inline(always)]
    pub fn pred(&self, index: u32) -> u32 {
        debug_assert!((index as usize) < self.pred_count);
        // SAFETY: indices are made by the lowering, which knows the size of the file.
        unsafe { *self.preds.add(index as usize) }
    }

    /// Writes a predicate for the lanes of the mask. Index 0, the constant true, is never a result.
    #[inline(always)]
    pub fn set_pred(&mut self, index: u32, mask: u32, value: u32) {
        debug_assert!((index as usize) < self.pred_count && index != 0);
        // SAFETY: as in `pred`.
        unsafe {
            let p = self.preds.add(index as usize);
            *p = (*p & !mask) | (value & mask);
        }
    }
}

/// Lane mask of a comparison.
#[inline(always)]
pub fn lane_mask(f: impl Fn(usize) -> bool) -> u32 {
    let mut bits = 0u32;
    for lane in 0..LANES {
        bits |= u32::from(f(lane)) << lane;
    }
    bits
}
