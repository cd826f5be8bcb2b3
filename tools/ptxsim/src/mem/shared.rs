//! Shared memory of a block, with its shadow.
//!
//! For each 4-byte word the shadow keeps which bytes were written, the last write (time, warp, lane, instruction), the last
//! read, and the warps that read the word since the last barrier of the whole block. A kernel in which not all warps meet
//! at every barrier (named barriers, `mbarrier`, fences) also keeps the time of each warp's last read.
//!
//! An access whose words were all last touched no later than the warp's `floor` (see [`OrderState`]) is in order; only the
//! others are looked at one by one, in `check.rs`.
//!
//! Decisions:
//! - Two writes of the same value to the same bytes are not told: `if (x) flag = 1;` by several threads is common and means
//!   what it says.
//! - Strong accesses (atomics, `.relaxed`, `.acquire`, `.release`, volatile reads, volatile writes after a fence) do not
//!   race with each other. A volatile write without a fence before it is like a plain one; so warp-synchronous code of old,
//!   which has no `__syncwarp`, is told.
//! - Only the last access is remembered for single bytes of a word and for lanes: a mistake may go unseen, none is made up.

use super::order::OrderState;
use super::pattern::{Pattern, each_run};
use super::report::{Access, Reporter};

mod check;

/// In the `init` byte of a word: an asynchronous copy may still be writing it.
const IN_FLIGHT: u8 = 16;

/// Words that an asynchronous copy is writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// First word.
    pub word: u32,
    /// Number of words.
    pub count: u32,
}

/// What is kept for each word.
#[derive(Clone, Copy)]
enum Plane {
    /// Time of the last write.
    WriteTime,
    /// Its [`Access::info`] and lanes.
    WriteInfo,
    /// Time of the last read.
    ReadTime,
    /// Its [`Access::info`] and lanes.
    ReadInfo,
    /// Warps that read all of the word since the last barrier of the block.
    Readers,
}
const PLANES: usize = 5;

/// Shared memory of one block at a time.
#[derive(Debug)]
pub struct SharedMemory {
    data: Vec<u128>,
    bytes: u32,
    words: usize,
    init: Vec<u8>,
    /// A row of `words` for each of [`Plane`].
    planes: Vec<u32>,
    /// Time of each warp's last read of each word, a row per warp; empty unless `precise`.
    rows: Vec<u32>,
}

impl SharedMemory {
    /// `bytes` is static plus dynamic size, `warps` those of a block; `precise` where not every barrier is for all warps.
    pub fn new(bytes: u32, warps: usize, precise: bool) -> Self {
        let words = bytes.div_ceil(4) as usize;
        SharedMemory {
            data: vec![0; bytes.div_ceil(16) as usize],
            bytes,
            words,
            init: vec![0; words],
            planes: vec![0; PLANES * words],
            rows: if precise { vec![0; words * warps] } else { Vec::new() },
        }
    }

    /// Begins a block: nothing is initialised. `clear` where the clock began anew (see [`OrderState::new_block`]).
    pub fn new_block(&mut self, clear: bool) {
        // Bytes that nobody wrote read as NaNs and as improbable indices, the same in every run.
        self.data.fill(u128::MAX);
        self.init.fill(0);
        if clear {
            self.planes.fill(0);
            self.rows.fill(0);
        }
    }

    /// Size in bytes.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The bytes, 16-byte aligned.
    #[inline(always)]
    pub fn data(&self) -> *const u8 {
        self.data.as_ptr().cast()
    }

    /// The bytes, 16-byte aligned.
    #[inline(always)]
    pub fn data_mut(&mut self) -> *mut u8 {
        self.data.as_mut_ptr().cast()
    }

    /// Whether all of the access lies inside.
    #[inline(always)]
    pub fn contains(&self, base: u32, pattern: &Pattern) -> bool {
        let base = i64::from(base);
        base + i64::from(pattern.min) >= 0 && base + i64::from(pattern.end) <= i64::from(self.bytes)
    }

    /// Checks and records a read that [`SharedMemory::contains`].
    #[inline]
    pub fn read(
        &mut self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        reporter: &mut Reporter<'_>,
    ) {
        let word0 = (base >> 2) as i32;
        let mut step = ReadStep {
            shadow: self.raw(),
            floor: order.floor(access.warp as usize),
            now: order.now(),
            full: order.last_full_barrier(),
            bit: if access.strong { 0 } else { 1 << access.warp },
            info: access.info(),
            whole: pattern.whole_words,
            bad: 0,
        };
        each_run!(pattern, word0, |at, who| step.run(at, who));
        let bad = step.bad != 0;
        if !self.rows.is_empty() && !access.strong {
            self.note_rows(access.warp as usize, word0, pattern, order.now());
        }
        if bad {
            self.check_read(order, access, base, pattern, reporter);
        }
    }

    fn note_rows(&mut self, warp: usize, word0: i32, pattern: &Pattern, now: u32) {
        let row = &mut self.rows[warp * self.words..][..self.words];
        for &range in pattern.ranges() {
            let row = &mut row[(word0 + range.word) as usize..][..range.count as usize];
            if pattern.whole_words {
                row.fill(now);
            } else {
                for (time, who) in row.iter_mut().zip(pattern.who_of(range)) {
                    if who & 15 == 15 {
                        *time = now;
                    }
                }
            }
        }
    }

    /// Checks and records a write (or an atomic, with `reads`) that [`SharedMemory::contains`]. Call it before the bytes
    /// change: `value` gives what a lane is about to write at an offset into its bytes, for telling a repeated value.
    #[inline]
    pub fn write(
        &mut self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        value: &dyn Fn(usize, usize) -> Option<u8>,
        reporter: &mut Reporter<'_>,
    ) {
        if self.write_suspicious(order, access, base, pattern) {
            self.check_write(order, access, base, pattern, value, reporter);
        }
        if pattern.overlap {
            self.check_overlap(access, base, pattern, value, reporter);
        }
        self.record_write(order.now(), access.info(), base, pattern);
    }

    /// Checks and records an atomic operation.
    pub fn atomic(
        &mut self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        reporter: &mut Reporter<'_>,
    ) {
        let uninitialised = self.read_uninitialised((base >> 2) as i32, pattern);
        if uninitialised || self.write_suspicious(order, access, base, pattern) {
            if uninitialised {
                self.check_initialised(access, base, pattern, reporter);
            }
            self.check_write(order, access, base, pattern, &|_, _| None, reporter);
        }
        self.record_write(order.now(), access.info(), base, pattern);
    }

    fn read_uninitialised(&self, word0: i32, pattern: &Pattern) -> bool {
        pattern.ranges().iter().any(|&range| {
            let at = (word0 + range.word) as usize;
            let init = &self.init[at..at + range.count as usize];
            init.iter().zip(pattern.who_of(range)).any(|(i, w)| *i as u16 & 15 & w != w & 15)
        })
    }

    #[inline(always)]
    fn write_suspicious(
        &mut self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
    ) -> bool {
        let word0 = (base >> 2) as i32;
        let step = WriteStep { shadow: self.raw(), floor: order.floor(access.warp as usize) };
        let mut bad = 0;
        each_run!(pattern, word0, |at, who| bad |= step.suspicious(at, who));
        bad != 0
    }

    #[inline(always)]
    fn record_write(&mut self, now: u32, info: u32, base: u32, pattern: &Pattern) {
        let word0 = (base >> 2) as i32;
        let step = RecordStep { shadow: self.raw(), now, info };
        each_run!(pattern, word0, |at, who| step.run(at, who));
    }

    /// Rows of the shadow for the loops over runs.
    #[inline(always)]
    fn raw(&mut self) -> Raw {
        Raw { init: self.init.as_mut_ptr(), planes: self.planes.as_mut_ptr(), words: self.words }
    }

    #[inline(always)]
    fn plane(&self, plane: Plane, word: usize) -> u32 {
        self.planes[plane as usize * self.words + word]
    }

    fn plane_mut(&mut self, plane: Plane, word: usize, count: usize) -> &mut [u32] {
        &mut self.planes[plane as usize * self.words + word..][..count]
    }

    /// A copy that goes on beside the program begins: checks it as a write, and marks its words as in flight until
    /// [`SharedMemory::async_complete`]. Who waits for a copy that another warp issued must be ordered after that warp.
    pub fn async_write(
        &mut self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        reporter: &mut Reporter<'_>,
    ) {
        if self.write_suspicious(order, access, base, pattern) {
            self.check_write(order, access, base, pattern, &|_, _| None, reporter);
        }
        self.record_write(order.now(), access.info(), base, pattern);
        for &range in pattern.ranges() {
            let word = ((base >> 2) as i32 + range.word) as usize;
            for i in &mut self.init[word..][..range.count as usize] {
                *i |= IN_FLIGHT;
            }
        }
    }

    /// The copies are over and visible to the warp that issued them: they count as its writes, made at that time.
    pub fn async_complete(&mut self, time: u32, flights: &[Flight]) {
        for flight in flights {
            let (at, n) = (flight.word as usize, flight.count as usize);
            self.plane_mut(Plane::WriteTime, at, n).fill(time);
            for i in &mut self.init[at..at + n] {
                *i &= !IN_FLIGHT;
            }
        }
    }
}

/// The shadow of one block, for loops over a fixed number of words.
#[derive(Clone, Copy)]
struct Raw {
    init: *mut u8,
    planes: *mut u32,
    words: usize,
}

impl Raw {
    #[inline(always)]
    fn check<const N: usize>(self, at: usize) {
        assert!(at < self.words && N <= self.words - at, "words of shared memory");
    }

    #[inline(always)]
    fn plane<'a, const N: usize>(self, plane: Plane, at: usize) -> &'a mut [u32; N] {
        self.check::<N>(at);
        // SAFETY: the planes have `words` words each, of which N from `at` on exist; the caller of `SharedMemory::raw` holds
        // it mutably while steps run, and a step borrows no plane twice.
        unsafe { &mut *self.planes.add(plane as usize * self.words + at).cast::<[u32; N]>() }
    }

    #[inline(always)]
    fn init<'a, const N: usize>(self, at: usize) -> &'a mut [u8; N] {
        self.check::<N>(at);
        // SAFETY: as above.
        unsafe { &mut *self.init.add(at).cast::<[u8; N]>() }
    }
}

struct ReadStep {
    shadow: Raw,
    floor: u32,
    now: u32,
    full: u32,
    bit: u32,
    info: u32,
    whole: bool,
    bad: u32,
}

impl ReadStep {
    #[inline(always)]
    fn run<const N: usize>(&mut self, at: usize, who: &[u16; N]) {
        let init = self.shadow.init::<N>(at);
        let write_time = self.shadow.plane::<N>(Plane::WriteTime, at);
        let read_time = self.shadow.plane::<N>(Plane::ReadTime, at);
        let read_info = self.shadow.plane::<N>(Plane::ReadInfo, at);
        let readers = self.shadow.plane::<N>(Plane::Readers, at);
        let mut late = 0;
        let mut unwritten = 0;
        for i in 0..N {
            late |= u32::from(write_time[i] > self.floor);
            unwritten |= init[i] ^ 15;
        }
        for i in 0..N {
            let kept = if read_time[i] > self.full { readers[i] } else { 0 };
            let bit = if self.whole || who[i] & 15 == 15 { self.bit } else { 0 };
            readers[i] = kept | bit;
            read_time[i] = self.now;
            read_info[i] = self.info | u32::from(who[i]);
        }
        self.bad |= late | u32::from(unwritten);
    }
}

struct WriteStep {
    shadow: Raw,
    floor: u32,
}

impl WriteStep {
    #[inline(always)]
    fn suspicious<const N: usize>(&self, at: usize, _who: &[u16; N]) -> u32 {
        let init = self.shadow.init::<N>(at);
        let write_time = self.shadow.plane::<N>(Plane::WriteTime, at);
        let read_time = self.shadow.plane::<N>(Plane::ReadTime, at);
        let mut late = 0;
        let mut flying = 0;
        for i in 0..N {
            late |= u32::from(write_time[i] > self.floor) | u32::from(read_time[i] > self.floor);
            flying |= init[i] & IN_FLIGHT;
        }
        late | u32::from(flying)
    }
}

struct RecordStep {
    shadow: Raw,
    now: u32,
    info: u32,
}

impl RecordStep {
    #[inline(always)]
    fn run<const N: usize>(&self, at: usize, who: &[u16; N]) {
        let init = self.shadow.init::<N>(at);
        let write_time = self.shadow.plane::<N>(Plane::WriteTime, at);
        let write_info = self.shadow.plane::<N>(Plane::WriteInfo, at);
        for i in 0..N {
            write_time[i] = self.now;
            write_info[i] = self.info | u32::from(who[i]);
            init[i] |= who[i] as u8 & 15;
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod random;
