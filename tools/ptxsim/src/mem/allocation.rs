//! One allocation: bytes, which of them were written, and the shadow of the current launches.

use super::zeroed::Zeroed;
use serde::Serialize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Where an allocation's bytes are, and who may touch them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocKind {
    /// On the card.
    Device,
    /// Page-locked host memory, which kernels reach under the host's own address.
    Pinned,
    /// Managed: the same, and it counts as memory of the card too.
    Managed,
}

/// What is known of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocInfo {
    /// First address.
    pub base: u64,
    /// Size.
    pub bytes: u64,
    /// Kind.
    pub kind: AllocKind,
}

/// Last write and last read of every word, as in [`super::shadow`].
#[derive(Debug)]
pub struct Shadow {
    storage: Zeroed,
    words: usize,
}

impl Shadow {
    fn new(words: usize) -> Shadow {
        let storage = Zeroed::new(16 * words).expect("host memory for the shadow of global memory");
        Shadow { storage, words }
    }

    /// Last writes.
    #[inline(always)]
    pub fn writes(&self) -> &[AtomicU64] {
        // SAFETY: the storage holds 16 bytes a word, zeroed, aligned, and is only used as atomics; they live as long as it.
        unsafe { std::slice::from_raw_parts(self.storage.ptr().cast(), self.words) }
    }

    /// Last reads.
    #[inline(always)]
    pub fn reads(&self) -> &[AtomicU64] {
        // SAFETY: as above; the second half of the storage.
        unsafe {
            std::slice::from_raw_parts(self.storage.ptr().cast::<AtomicU64>().add(self.words), self.words)
        }
    }
}

/// One allocation.
#[derive(Debug)]
pub struct Allocation {
    info: AllocInfo,
    data: *mut u8,
    _storage: Option<Zeroed>,
    /// A bit per byte; `None` where everything counts as written.
    init: Option<Zeroed>,
    shadow: OnceLock<Shadow>,
    /// Launches (as shadows number them) that read and wrote it last: what none touched needs no comparison.
    read_in: AtomicU64,
    written_in: AtomicU64,
}

// SAFETY: the raw pointer is to storage owned by the value, or to host memory that its registrant keeps alive until it
// unregisters it; all accesses through it are made in unsafe blocks of their own.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// Fresh memory, all of it unwritten. `None` where the host has not that much.
    pub fn device(info: AllocInfo) -> Option<Allocation> {
        let storage = Zeroed::new(usize::try_from(info.bytes).ok()?)?;
        // One spare word on both ends of the bitmap keeps reads of whole words inside it.
        let init = Zeroed::new(info.bytes.div_ceil(8) as usize + 16)?;
        Some(Allocation {
            info,
            data: storage.ptr(),
            _storage: Some(storage),
            init: Some(init),
            shadow: OnceLock::new(),
            read_in: AtomicU64::new(0),
            written_in: AtomicU64::new(0),
        })
    }

    /// Memory of the host, all of it taken as written.
    pub fn host(info: AllocInfo, data: *mut u8) -> Allocation {
        Allocation {
            info,
            data,
            _storage: None,
            init: None,
            shadow: OnceLock::new(),
            read_in: AtomicU64::new(0),
            written_in: AtomicU64::new(0),
        }
    }

    /// Base, size, kind.
    #[inline(always)]
    pub fn info(&self) -> AllocInfo {
        self.info
    }

    /// First address.
    #[inline(always)]
    pub fn base(&self) -> u64 {
        self.info.base
    }

    /// The address after the last.
    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.info.base + self.info.bytes
    }

    /// Where the first byte is.
    #[inline(always)]
    pub fn data(&self) -> *mut u8 {
        self.data
    }

    /// Words are counted from here: the first address, rounded down so that sectors and words lie as in the address space.
    #[inline(always)]
    pub fn origin(&self) -> u64 {
        self.info.base & !31
    }

    /// The word of an address inside.
    #[inline(always)]
    pub fn word_of(&self, address: u64) -> usize {
        ((address - self.origin()) / 4) as usize
    }

    /// Where the byte of an address is; only for addresses inside may it be accessed.
    #[inline(always)]
    pub fn pointer(&self, address: u64) -> *mut u8 {
        self.data.wrapping_offset(address.wrapping_sub(self.info.base) as isize)
    }

    /// Last accesses of every word; made at the first use.
    #[inline(always)]
    pub fn shadow(&self) -> &Shadow {
        self.shadow.get_or_init(|| Shadow::new((self.end() - self.origin()).div_ceil(4) as usize))
    }

    /// Notes that a launch reads it; whether the launch wrote it, too.
    #[inline(always)]
    pub fn note_read(&self, epoch: u64) -> bool {
        note(&self.read_in, epoch);
        self.written_in.load(Relaxed) == epoch
    }

    /// Notes that a launch writes it; whether the launch wrote and read it before.
    #[inline(always)]
    pub fn note_write(&self, epoch: u64) -> (bool, bool) {
        (note(&self.written_in, epoch), self.read_in.load(Relaxed) == epoch)
    }

    /// Forgets all accesses.
    pub fn clear_shadow(&self) {
        if let Some(shadow) = self.shadow.get() {
            shadow.storage.clear();
        }
    }

    /// Which bytes were written, a bit each; `None` where all were.
    #[inline(always)]
    pub fn init(&self) -> Option<InitBits<'_>> {
        let storage = self.init.as_ref()?;
        let bytes = self.info.bytes.div_ceil(8) as usize + 16;
        // SAFETY: the storage has that many bytes, zeroed, and is only used as atomics; they live as long as it.
        Some(InitBits(unsafe { std::slice::from_raw_parts(storage.ptr().cast(), bytes) }))
    }
}

/// Whether it was noted before.
#[inline(always)]
fn note(last: &AtomicU64, epoch: u64) -> bool {
    let before = last.load(Relaxed) == epoch;
    if !before {
        last.store(epoch, Relaxed);
    }
    before
}

/// A bit for each byte of an allocation: set once written.
#[derive(Clone, Copy, Debug)]
pub struct InitBits<'a>(&'a [AtomicU8]);

impl InitBits<'_> {
    /// Four bits from byte `4 * word` on.
    #[inline(always)]
    pub fn word(&self, word: usize) -> u32 {
        u32::from(self.0[word / 2].load(Relaxed)) >> (word % 2 * 4) & 15
    }

    /// Sets the bits of `mask` from byte `4 * word` on.
    #[inline(always)]
    pub fn set_word(&self, word: usize, mask: u32) {
        let bits = (mask << (word % 2 * 4)) as u8;
        let cell = &self.0[word / 2];
        if cell.load(Relaxed) & bits != bits {
            cell.fetch_or(bits, Relaxed);
        }
    }

    /// Whether `count` words from `word` on were written.
    #[inline(always)]
    pub fn words_set(&self, mut word: usize, mut count: usize) -> bool {
        let mut all = 15;
        if word % 2 == 1 && count > 0 {
            all &= self.word(word);
            (word, count) = (word + 1, count - 1);
        }
        if count % 2 == 1 {
            all &= self.word(word + count - 1);
        }
        let mut whole = 0xFF;
        for cell in &self.0[word / 2..][..count / 2] {
            whole &= cell.load(Relaxed);
        }
        all == 15 && whole == 0xFF
    }

    /// Marks `count` words from `word` on.
    #[inline(always)]
    pub fn set_words(&self, mut word: usize, mut count: usize) {
        if word % 2 == 1 && count > 0 {
            self.set_word(word, 15);
            (word, count) = (word + 1, count - 1);
        }
        if count % 2 == 1 {
            self.set_word(word + count - 1, 15);
        }
        for cell in &self.0[word / 2..][..count / 2] {
            cell.store(0xFF, Relaxed);
        }
    }

    /// Marks bytes.
    pub fn set_bytes(&self, from: u64, bytes: u64) {
        self.copy_bits(from, bytes, |_| 0xFF);
    }

    /// Copies the bits of another range, from the last byte to the first where `backward`.
    pub fn copy_from(&self, to: u64, source: Option<InitBits<'_>>, from: u64, bytes: u64) {
        let Some(source) = source else { return self.set_bytes(to, bytes) };
        let taken: Vec<u8> = (0..bytes.div_ceil(8)).map(|i| source.eight(from + 8 * i)).collect();
        self.copy_bits(to, bytes, |i| taken[i as usize]);
    }

    /// Eight bits from any byte on.
    fn eight(&self, byte: u64) -> u8 {
        let (cell, shift) = ((byte / 8) as usize, byte % 8);
        let pair = u16::from(self.0[cell].load(Relaxed)) | u16::from(self.0[cell + 1].load(Relaxed)) << 8;
        (pair >> shift) as u8
    }

    /// Writes `bytes` bits from byte `to` on; `source(i)` gives the `i`th eight.
    fn copy_bits(&self, to: u64, bytes: u64, source: impl Fn(u64) -> u8) {
        let put = |cell: usize, bits: u8, mask: u8| {
            if mask == 0xFF {
                self.0[cell].store(bits, Relaxed);
            } else if mask != 0 {
                let keep = |old: u8| Some(old & !mask | bits & mask);
                self.0[cell].fetch_update(Relaxed, Relaxed, keep).expect("always written");
            }
        };
        for i in 0..bytes.div_ceil(8) {
            let valid = if bytes - 8 * i >= 8 { 0xFF } else { (1u16 << (bytes - 8 * i)) as u8 - 1 };
            let (cell, shift) = (((to + 8 * i) / 8) as usize, to % 8);
            let (bits, mask) = (u16::from(source(i)) << shift, u16::from(valid) << shift);
            put(cell, bits as u8, mask as u8);
            put(cell + 1, (bits >> 8) as u8, (mask >> 8) as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allocation(bytes: u64) -> Allocation {
        Allocation::device(AllocInfo { base: 512, bytes, kind: AllocKind::Device }).expect("host memory")
    }

    fn state(bits: InitBits<'_>, bytes: u64) -> Vec<bool> {
        (0..bytes).map(|b| bits.eight(b) & 1 == 1).collect()
    }

    proptest! {
        #[test]
        fn bits_equal_a_list(steps in prop::collection::vec((0u64..200, 0u64..60, 0u64..200, 0u8..4), 1..30)) {
            let a = allocation(260);
            let bits = a.init().expect("device memory keeps bits");
            let mut model = vec![false; 260];
            for (to, n, from, kind) in steps {
                match kind {
                    0 => {
                        bits.set_bytes(to, n);
                        model[to as usize..(to + n) as usize].fill(true);
                    }
                    1 => {
                        bits.copy_from(to, Some(bits), from, n);
                        model.copy_within(from as usize..(from + n) as usize, to as usize);
                    }
                    2 => {
                        let (w, c) = (to as usize / 4, n as usize / 4);
                        bits.set_words(w, c);
                        model[4 * w..4 * (w + c)].fill(true);
                    }
                    _ => {
                        bits.set_word(to as usize / 4, n as u32 & 15);
                        for b in 0..4 {
                            model[to as usize / 4 * 4 + b] |= n >> b & 1 == 1;
                        }
                    }
                }
                prop_assert_eq!(state(bits, 260), model.clone());
                let (w, c) = (from as usize / 4, n as usize / 4);
                prop_assert_eq!(bits.words_set(w, c), model[4 * w..4 * (w + c)].iter().all(|&b| b));
            }
        }
    }

    #[test]
    fn a_large_allocation_costs_nothing_until_touched() {
        let a = allocation(1 << 36);
        assert_eq!(a.init().expect("bits").word(12345), 0);
        assert_eq!(a.shadow().writes()[1 << 30].load(Relaxed), 0);
    }
}
