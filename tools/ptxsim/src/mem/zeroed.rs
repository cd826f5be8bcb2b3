//! Memory that is zero until touched.

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Blocks from this size on are mapped: they cost nothing until touched, and only the touched pages ever.
const MAPPED: usize = 64 * 1024;
/// Alignment of [`Zeroed::ptr`].
const ALIGN: usize = 64;

/// A block of zeroed memory that several threads access through raw pointers.
#[derive(Debug)]
pub struct Zeroed(Storage);

#[derive(Debug)]
enum Storage {
    Heap(NonNull<u8>, Layout),
    Mapped(MmapRaw),
}

// SAFETY: the block belongs to this value alone, and handing out its address lends nothing; every access goes through an
// unsafe block that answers for itself.
unsafe impl Send for Zeroed {}
// SAFETY: as above.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    /// `None` where the host has not that much.
    pub fn new(bytes: usize) -> Option<Zeroed> {
        if bytes >= MAPPED {
            let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon().ok()?;
            return Some(Zeroed(Storage::Mapped(map.into())));
        }
        let layout = Layout::from_size_align(bytes.next_multiple_of(ALIGN).max(ALIGN), ALIGN).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Zeroed(Storage::Heap(start, layout)))
    }

    /// First byte, aligned to 64.
    #[inline(always)]
    pub fn ptr(&self) -> *mut u8 {
        match &self.0 {
            Storage::Heap(start, _) => start.as_ptr(),
            Storage::Mapped(map) => map.as_mut_ptr(),
        }
    }

    /// Zeroes the block, which must be in use as atomics only.
    pub fn clear(&self) {
        match &self.0 {
            Storage::Heap(start, layout) => {
                // SAFETY: the block is that large, aligned to 64, and in use as atomics only.
                let words: &[AtomicU64] =
                    unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), layout.size() / 8) };
                words.iter().for_each(|w| w.store(0, Relaxed));
            }
            Storage::Mapped(map) => {
                // SAFETY: the pages are private and anonymous, so the advice makes them read as zero; nobody holds a
                // plain reference to them.
                let advised = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
                advised.expect("giving back pages of an anonymous map");
            }
        }
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        if let Storage::Heap(start, layout) = self.0 {
            // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed once.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zero_and_becomes_zero_again() {
        for bytes in [1, 1000, MAPPED, 3 * MAPPED + 8] {
            let z = Zeroed::new(bytes).expect("host memory");
            assert_eq!(z.ptr() as usize % ALIGN, 0);
            // SAFETY: the block has at least 64 bytes.
            let first = unsafe { &*z.ptr().cast::<AtomicU64>() };
            assert_eq!(first.load(Relaxed), 0);
            first.store(7, Relaxed);
            z.clear();
            assert_eq!(first.load(Relaxed), 0);
        }
    }

    #[test]
    fn large_blocks_cost_nothing() {
        assert!(Zeroed::new(1 << 38).is_some());
        assert!(Zeroed::new(usize::MAX).is_none());
    }
}
