//! Vector loads and stores of memory that other host threads may write at the same moment.
//!
//! They mean as many relaxed atomics, one for each element: x86-64 reads and writes aligned elements of up to 8 bytes
//! whole, also as parts of a vector. The compiler has no such operation, and plain loads must not race, so they are
//! assembly, which it takes as it is. Without AVX2 they are the atomics one by one.

use std::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
mod vector {
    use std::arch::asm;
    use std::arch::x86_64::{__m128i, __m256i};

    /// # Safety
    /// 32 live bytes that are only written as elements of at most 8 bytes, aligned.
    #[inline(always)]
    pub unsafe fn load32(at: *const u8) -> __m256i {
        let value: __m256i;
        // SAFETY: the caller gives live bytes; the instruction reads them and nothing else.
        unsafe {
            asm!("vmovdqu {v}, [{at}]", v = out(ymm_reg) value, at = in(reg) at,
                 options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// As for `load32`.
    #[inline(always)]
    pub unsafe fn store32(at: *mut u8, value: __m256i) {
        // SAFETY: the caller gives live bytes; the instruction writes them and nothing else.
        unsafe {
            asm!("vmovdqu [{at}], {v}", v = in(ymm_reg) value, at = in(reg) at, options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// As for `load32`, 16 bytes.
    #[inline(always)]
    pub unsafe fn load16(at: *const u8) -> __m128i {
        let value: __m128i;
        // SAFETY: as for `load32`.
        unsafe {
            asm!("vmovdqu {v}, [{at}]", v = out(xmm_reg) value, at = in(reg) at,
                 options(nostack, preserves_flags, readonly));
        }
        value
    }
}

/// Four words of one lane.
///
/// # Safety
/// 16 live bytes, aligned to 4.
#[inline(always)]
pub unsafe fn load_words(at: *const u8) -> [u32; 4] {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    // SAFETY: the caller's bytes; any bits are four words.
    unsafe {
        std::mem::transmute(vector::load16(at))
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
    {
        use std::sync::atomic::Ordering::Relaxed;
        // SAFETY: the caller's bytes, aligned.
        let words = unsafe { &*at.cast::<[AtomicU32; 4]>() };
        std::array::from_fn(|k| words[k].load(Relaxed))
    }
}

/// 32 words, one behind the other.
#[inline(always)]
pub fn load_row(from: &[AtomicU32; 32]) -> [u32; 32] {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    // SAFETY: the atomics are live; any bits are eight words.
    unsafe {
        let at = from.as_ptr().cast::<u8>();
        let rows: [[u32; 8]; 4] =
            std::array::from_fn(|k| std::mem::transmute(vector::load32(at.add(32 * k))));
        std::mem::transmute(rows)
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
    {
        use std::sync::atomic::Ordering::Relaxed;
        std::array::from_fn(|k| from[k].load(Relaxed))
    }
}

/// 32 words, one behind the other.
#[inline(always)]
pub fn store_row(to: &[AtomicU32; 32], row: &[u32; 32]) {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    // SAFETY: the atomics are live, and may be written through shared references.
    unsafe {
        let at = to.as_ptr().cast::<u8>().cast_mut();
        for k in 0..4 {
            let part: [u32; 8] = row[8 * k..8 * k + 8].try_into().unwrap_or([0; 8]);
            vector::store32(
                at.add(32 * k),
                std::mem::transmute::<[u32; 8], std::arch::x86_64::__m256i>(part),
            );
        }
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
    {
        use std::sync::atomic::Ordering::Relaxed;
        (0..32).for_each(|k| to[k].store(row[k], Relaxed));
    }
}

/// What four entries of the global shadow are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Four {
    /// Entries below are of earlier launches.
    pub launch: u64,
    /// The present access, but for the lanes.
    pub entry: u64,
    /// Bits that are equal in entries of one block and launch.
    pub block: u64,
    /// Bits that are equal in entries of one thread.
    pub thread: u64,
    /// All set in entries of many lanes.
    pub many: u64,
    /// Bits of the time, and the time up to which entries of this block are in order, in its place.
    pub time: u64,
    /// See `time`.
    pub floor: u64,
}

impl Four {
    /// Whether four earlier entries are all of earlier launches, by the thread that makes the present access, or in order.
    #[inline(always)]
    pub fn fine(&self, before: &[AtomicU64; 4], who: &[u16; 4]) -> bool {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
        // SAFETY: the atomics are live; the build has AVX2.
        unsafe {
            use std::arch::x86_64::*;
            let all = |x: u64| _mm256_set1_epi64x(x as i64);
            let e = vector::load32(before.as_ptr().cast());
            let mine = self.mine(who);
            // Launches are below 2^8, so that the top bit must be flipped for a signed comparison.
            let top = all(1 << 63);
            let older = _mm256_cmpgt_epi64(all(self.launch ^ 1 << 63), _mm256_xor_si256(e, top));
            if _mm256_movemask_epi8(older) == -1 {
                return true;
            }
            let differ = _mm256_xor_si256(e, mine);
            let zero = _mm256_setzero_si256();
            let thread = _mm256_cmpeq_epi64(_mm256_and_si256(differ, all(self.thread)), zero);
            let many = _mm256_cmpeq_epi64(_mm256_and_si256(mine, all(self.many)), all(self.many));
            let block = _mm256_cmpeq_epi64(_mm256_and_si256(differ, all(self.block)), zero);
            let late = _mm256_cmpgt_epi64(_mm256_and_si256(e, all(self.time)), all(self.floor));
            let ordered = _mm256_andnot_si256(late, block);
            let fine = _mm256_or_si256(_mm256_or_si256(older, _mm256_andnot_si256(many, thread)), ordered);
            _mm256_movemask_epi8(fine) == -1
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
        {
            use std::sync::atomic::Ordering::Relaxed;
            (0..4).all(|k| {
                let (e, mine) = (before[k].load(Relaxed), self.entry | u64::from(who[k]));
                let thread = (e ^ mine) & self.thread == 0 && mine & self.many != self.many;
                let ordered = (e ^ mine) & self.block == 0 && e & self.time <= self.floor;
                e < self.launch || thread || ordered
            })
        }
    }

    /// Writes the present access over four entries.
    #[inline(always)]
    pub fn store(&self, to: &[AtomicU64; 4], who: &[u16; 4]) {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
        // SAFETY: the atomics are live, and may be written through shared references; the build has AVX2.
        unsafe {
            vector::store32(to.as_ptr().cast::<u8>().cast_mut(), self.mine(who));
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
        {
            use std::sync::atomic::Ordering::Relaxed;
            (0..4).for_each(|k| to[k].store(self.entry | u64::from(who[k]), Relaxed));
        }
    }

    /// The same, unless one of them is of this launch and another block: `false` then, and nothing is written.
    #[inline(always)]
    pub fn store_unless_shared(&self, to: &[AtomicU64; 4], who: &[u16; 4]) -> bool {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
        // SAFETY: as for `store`.
        let free = unsafe {
            use std::arch::x86_64::*;
            let all = |x: u64| _mm256_set1_epi64x(x as i64);
            let e = vector::load32(to.as_ptr().cast());
            let older = _mm256_cmpgt_epi64(all(self.launch ^ 1 << 63), _mm256_xor_si256(e, all(1 << 63)));
            let differ = _mm256_and_si256(_mm256_xor_si256(e, all(self.entry)), all(self.block));
            let block = _mm256_cmpeq_epi64(differ, _mm256_setzero_si256());
            _mm256_movemask_epi8(_mm256_or_si256(older, block)) == -1
        };
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
        let free = {
            use std::sync::atomic::Ordering::Relaxed;
            (0..4).all(|k| {
                let e = to[k].load(Relaxed);
                e < self.launch || (e ^ self.entry) & self.block == 0
            })
        };
        if free {
            self.store(to, who);
        }
        free
    }

    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    #[inline(always)]
    fn mine(&self, who: &[u16; 4]) -> std::arch::x86_64::__m256i {
        // SAFETY: the build has AVX2; the eight bytes are there.
        unsafe {
            use std::arch::x86_64::*;
            let lanes = _mm256_cvtepu16_epi64(_mm_loadl_epi64(who.as_ptr().cast()));
            _mm256_or_si256(_mm256_set1_epi64x(self.entry as i64), lanes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn rows_go_there_and_back() {
        let memory: [AtomicU32; 32] = std::array::from_fn(|k| AtomicU32::new(3 * k as u32));
        let row = load_row(&memory);
        assert_eq!(row, std::array::from_fn(|k| 3 * k as u32));
        store_row(&memory, &row.map(|x| x + 1));
        assert_eq!(memory[31].load(Relaxed), 94);
        // SAFETY: sixteen bytes of the array.
        assert_eq!(unsafe { load_words(memory.as_ptr().cast()) }, [1, 4, 7, 10]);
    }

    proptest! {
        #[test]
        fn four_at_once_are_as_one_by_one(
            launch in 1u64..256,
            entry in any::<u64>(),
            before in prop::array::uniform4((0u64..256, any::<u64>(), 0u8..4)),
            who in prop::array::uniform4(0u16..2048),
            floor in 0u64..1 << 15,
        ) {
            let entry = launch << 56 | (entry & 0x00FF_FFFF_FFFF_F800);
            let four = Four {
                launch: launch << 56,
                entry,
                block: !0 << 32,
                thread: !0 << 32 | 0xFFF0,
                many: 0x30,
                time: 0x7FFF << 17,
                floor: floor << 17,
            };
            // Entries that resemble the present one more or less.
            let old: [u64; 4] = std::array::from_fn(|k| {
                let (l, bits, like) = before[k];
                match like {
                    0 => l << 56 | bits >> 8,
                    1 => entry & !0 << 32 | bits >> 32,
                    2 => entry & !(0x7FFF << 17) | u64::from(who[k]) | bits & 0x7FFF << 17,
                    _ => entry | u64::from(who[k]),
                }
            });
            let cells = old.map(AtomicU64::new);
            let fine = (0..4).all(|k| {
                let (e, mine) = (old[k], entry | u64::from(who[k]));
                let thread = (e ^ mine) & four.thread == 0 && mine & four.many != four.many;
                e < four.launch || thread || (e ^ mine) & four.block == 0 && e & four.time <= four.floor
            });
            prop_assert_eq!(four.fine(&cells, &who), fine);
            let free = old.iter().all(|&e| e < four.launch || (e ^ entry) & four.block == 0);
            prop_assert_eq!(four.store_unless_shared(&cells, &who), free);
            let new: [u64; 4] = std::array::from_fn(|k| cells[k].load(Relaxed));
            prop_assert_eq!(new, if free { who.map(|w| entry | u64::from(w)) } else { old });
            four.store(&cells, &who);
            prop_assert_eq!(cells.map(AtomicU64::into_inner), who.map(|w| entry | u64::from(w)));
        }
    }
}
