//! Moving bytes between memory and the lanes of registers.
//!
//! Bytes of global memory may be written by other host threads at the same moment, as on a card. Loads and stores of it are
//! relaxed atomics of the element's size (which cost what plain ones do), so that such a program reads one value or the
//! other. Shared and local memory and parameters belong to one host thread and are accessed plainly (`RACY` is false).

use super::order::bits;
use super::pattern::{Offsets, Shape};
use super::racy;
use crate::exec::inst::Slot;
use crate::exec::lanes::{FULL, LANES, Row, Value};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// What one element is in memory and in a register.
pub trait Element {
    /// Size in memory.
    const BYTES: u32;
    /// A lane of the register.
    type Lane: Value;

    /// Loads one.
    ///
    /// # Safety
    /// `at` is inside live memory with `BYTES` bytes, aligned to them.
    unsafe fn load<const RACY: bool>(at: *const u8) -> Self::Lane;

    /// Stores one.
    ///
    /// # Safety
    /// As for `load`.
    unsafe fn store<const RACY: bool>(at: *mut u8, value: Self::Lane);

    /// One byte of a value, as memory has it.
    fn byte(value: Self::Lane, byte: usize) -> u8;
}

macro_rules! element {
    ($($(#[$doc:meta])* $name:ident: $atomic:ty, $mem:ty, $lane:ty, $extend:expr);* $(;)?) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Element for $name {
            const BYTES: u32 = size_of::<$mem>() as u32;
            type Lane = $lane;
            #[inline(always)]
            unsafe fn load<const RACY: bool>(at: *const u8) -> $lane {
                // SAFETY: the caller gives an aligned address of live bytes, of which plain ones are this thread's own.
                let x = unsafe {
                    if RACY { (*at.cast::<$atomic>()).load(Relaxed) } else { at.cast::<$mem>().read_unaligned() }
                };
                ($extend)(x)
            }
            #[inline(always)]
            unsafe fn store<const RACY: bool>(at: *mut u8, value: $lane) {
                // SAFETY: as above.
                unsafe {
                    if RACY {
                        (*at.cast::<$atomic>()).store(value as $mem, Relaxed);
                    } else {
                        at.cast::<$mem>().write_unaligned(value as $mem);
                    }
                }
            }
            #[inline(always)]
            fn byte(value: $lane, byte: usize) -> u8 {
                (value >> (8 * byte)) as u8
            }
        }
    )*};
}
element! {
    /// 8 bits, zeros above.
    U8: AtomicU8, u8, u32, u32::from;
    /// 8 bits into 16 with their sign.
    S8In16: AtomicU8, u8, u32, |x| u32::from(x as i8 as i16 as u16);
    /// 8 bits into 32 with their sign.
    S8: AtomicU8, u8, u32, |x| x as i8 as u32;
    /// 16 bits, zeros above.
    U16: AtomicU16, u16, u32, u32::from;
    /// 16 bits into 32 with their sign.
    S16: AtomicU16, u16, u32, |x| x as i16 as u32;
    /// 32 bits.
    B32: AtomicU32, u32, u32, |x| x;
    /// 64 bits.
    B64: AtomicU64, u64, u64, |x| x;
}

/// 128 bits.
pub struct B128;

impl Element for B128 {
    const BYTES: u32 = 16;
    type Lane = u128;

    #[inline(always)]
    unsafe fn load<const RACY: bool>(at: *const u8) -> u128 {
        // SAFETY: the caller gives 16 live bytes, aligned; each half is one atomic.
        let (low, high) = unsafe { (B64::load::<RACY>(at), B64::load::<RACY>(at.add(8))) };
        u128::from(low) | u128::from(high) << 64
    }

    #[inline(always)]
    unsafe fn store<const RACY: bool>(at: *mut u8, value: u128) {
        // SAFETY: as above.
        unsafe {
            B64::store::<RACY>(at, value as u64);
            B64::store::<RACY>(at.add(8), (value >> 64) as u64);
        }
    }

    fn byte(value: u128, byte: usize) -> u8 {
        (value >> (8 * byte)) as u8
    }
}

/// Loads one element for every lane from `base + offsets[lane]`. Inactive lanes have offset 0 and load, too.
///
/// # Safety
/// All of these are live, aligned elements.
#[inline(always)]
unsafe fn gather<E: Element, const RACY: bool>(base: *const u8, offsets: &Offsets) -> [E::Lane; LANES] {
    std::array::from_fn(|lane| {
        // SAFETY: the caller answers for each address.
        unsafe { E::load::<RACY>(base.offset(offsets[lane] as isize)) }
    })
}

/// Loads `N` words for every lane, a row for each.
///
/// # Safety
/// As for [`gather`].
#[inline(always)]
unsafe fn gather_words<const N: usize, const RACY: bool>(base: *const u8, offsets: &Offsets) -> [Row; N] {
    let mut out = [[0; LANES]; N];
    for group in 0..LANES / 4 {
        // Four lanes at a time, so that the compiler may transpose in vector registers.
        let four: [[u32; N]; 4] = std::array::from_fn(|i| {
            let offset = offsets[4 * group + i] as isize;
            // SAFETY: the caller answers for each address.
            unsafe {
                let at = base.offset(offset);
                if RACY && N == 4 {
                    let words = racy::load_words(at);
                    std::array::from_fn(|k| words[k])
                } else {
                    std::array::from_fn(|k| B32::load::<RACY>(at.add(4 * k)))
                }
            }
        });
        for (k, row) in out.iter_mut().enumerate() {
            for (i, lane) in four.iter().enumerate() {
                row[4 * group + i] = lane[k];
            }
        }
    }
    out
}

/// A register file and what to do with it.
#[derive(Clone, Copy)]
pub struct Registers<'a> {
    /// The running warp's file.
    pub file: *mut Row,
    /// One register for each element of the vector.
    pub slots: &'a [Slot],
    /// Active lanes.
    pub mask: u32,
}

impl Registers<'_> {
    /// Writes the active lanes of an element's register.
    ///
    /// # Safety
    /// `file` is a register file that nothing else borrows, and the slot is a register of the type in it.
    #[inline(always)]
    pub unsafe fn put<T: Value>(&self, element: usize, values: &[T; LANES]) {
        // SAFETY: the caller answers for the file and the slot.
        unsafe {
            let at = self.file.add(self.slots[element].0 as usize);
            if self.mask == FULL { T::put(at, values) } else { T::put_masked(at, values, self.mask) }
        }
    }

    /// All lanes of an element's register.
    ///
    /// # Safety
    /// As for `put`.
    #[inline(always)]
    pub unsafe fn get<T: Value>(&self, element: usize) -> [T; LANES] {
        // SAFETY: the caller answers for the file and the slot.
        unsafe { T::get(self.file.add(self.slots[element].0 as usize)) }
    }

    /// Loads the elements of every active lane from `base + offsets[lane]`.
    ///
    /// # Safety
    /// `file` is a register file that nothing else borrows, the slots are registers of the element in it, and the bytes of
    /// every lane (also of inactive ones, with their offset 0) are live and aligned to the element.
    #[inline(always)]
    pub unsafe fn load<E: Element, const RACY: bool>(
        &self,
        base: *const u8,
        offsets: &Offsets,
        shape: Shape,
    ) {
        // SAFETY: the caller answers for all of it; elements lie one behind the other.
        unsafe {
            let count = self.slots.len();
            if shape == Shape::Broadcast {
                for k in 0..count {
                    self.put(k, &[E::load::<RACY>(base.add(k * E::BYTES as usize)); LANES]);
                }
            } else if E::BYTES == 4 && count == 4 {
                let rows = gather_words::<4, RACY>(base, offsets);
                (0..4).for_each(|k| self.put(k, &rows[k]));
            } else if E::BYTES == 4 && count == 2 {
                let rows = gather_words::<2, RACY>(base, offsets);
                (0..2).for_each(|k| self.put(k, &rows[k]));
            } else if E::BYTES == 4 && count == 1 && shape == Shape::Contiguous {
                if RACY {
                    self.put(0, &racy::load_row(&*base.cast()));
                } else {
                    self.put(0, &base.cast::<Row>().read_unaligned());
                }
            } else {
                for k in 0..count {
                    self.put(k, &gather::<E, RACY>(base.add(k * E::BYTES as usize), offsets));
                }
            }
        }
    }

    /// Stores the elements of every active lane to `base + offsets[lane]`, lanes in order.
    ///
    /// # Safety
    /// As for `load`, for active lanes.
    #[inline(always)]
    pub unsafe fn store<E: Element, const RACY: bool>(&self, base: *mut u8, offsets: &Offsets, shape: Shape) {
        // SAFETY: the caller answers for all of it.
        unsafe {
            if E::BYTES == 4 && self.slots.len() == 1 && shape == Shape::Contiguous {
                let row = self.get::<u32>(0);
                if RACY {
                    racy::store_row(&*base.cast(), &row);
                } else {
                    base.cast::<Row>().write_unaligned(row);
                }
                return;
            }
            for k in 0..self.slots.len() {
                let values = self.get::<E::Lane>(k);
                let base = base.add(k * E::BYTES as usize);
                if self.mask == FULL {
                    for lane in 0..LANES {
                        E::store::<RACY>(base.offset(offsets[lane] as isize), values[lane]);
                    }
                } else {
                    for lane in bits(self.mask) {
                        E::store::<RACY>(base.offset(offsets[lane] as isize), values[lane]);
                    }
                }
            }
        }
    }

    /// A byte that a lane is about to store.
    ///
    /// # Safety
    /// As for `put`.
    pub unsafe fn byte<E: Element>(&self, lane: usize, byte: usize) -> u8 {
        let (element, byte) = (byte / E::BYTES as usize, byte % E::BYTES as usize);
        // SAFETY: the caller answers for the file and the slot.
        E::byte(unsafe { self.get::<E::Lane>(element) }[lane], byte)
    }
}
