//! Access patterns: everything about an access that does not depend on where it is, computed once.
//!
//! Bank conflicts, sectors, distinct words and contiguous ranges follow from each lane's distance to the lowest active
//! lane's address, the mask, the width and the lowest bits of that address. Kernels repeat few patterns very often, so
//! each memory instruction remembers the last four that it saw, and all share one table.
//!
//! **Shared memory** has 32 banks of 4 bytes. Lanes that touch the same word are served together. A warp's access of up to
//! 4 bytes a lane is one group, of 8 bytes two groups (half warps), of 16 bytes four (quarter warps), of 32 bytes eight. A
//! group takes as many wavefronts as the fullest bank has distinct words; ideally it takes its distinct bytes / 128,
//! rounded up. **Global memory** moves distinct 32-byte sectors.

use super::order::bits;
use super::stats::PatternCounts;
use super::who;

/// Bytes per lane and lanes per group, as far as patterns go.
pub const MAX_WIDTH: u32 = 32;

/// Memory that a pattern is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Banks count.
    Shared,
    /// Sectors count.
    Global,
}

/// Whom the shadows name for what a lane's address leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// The lane.
    #[default]
    Lane,
    /// All lanes of the warp: `ldmatrix` hands each row to several.
    Warp,
    /// Nobody in particular: a bulk copy, whose bytes are shared out among lanes only here.
    Nobody,
}

/// A run of consecutive words, all touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First word, counted from the one that holds the lowest active lane's address.
    pub word: i32,
    /// Index of its first word among the pattern's words.
    pub first: u16,
    /// Words.
    pub count: u16,
}

/// How the data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All active lanes at one address.
    Broadcast,
    /// All 32 lanes, one after the other.
    Contiguous,
    /// Anything else.
    Scattered,
}

/// Offsets of the lanes from the lowest active lane's address; 0 for inactive lanes.
pub type Offsets = [i32; 32];

/// What identifies a pattern besides its offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// `base` is the lowest active lane's address, `width` the bytes of a lane.
    #[inline(always)]
    pub fn new(class: Class, by: By, base: u64, width: u32, mask: u32) -> Key {
        let (low, class) = match class {
            Class::Shared => (base & 3, 0),
            Class::Global => (base & 31, 1),
        };
        Key(u64::from(mask) << 32 | u64::from(width) << 16 | low << 8 | (by as u64) << 1 | class)
    }

    fn mask(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn width(self) -> u32 {
        (self.0 >> 16) as u32 & 0xFF
    }

    fn low(self) -> i32 {
        (self.0 >> 8) as i32 & 0xFF
    }

    fn by(self) -> By {
        match self.0 >> 1 & 3 {
            0 => By::Lane,
            1 => By::Warp,
            _ => By::Nobody,
        }
    }

    fn class(self) -> Class {
        if self.0 & 1 == 0 { Class::Shared } else { Class::Global }
    }
}

/// An access, but for its place.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Pattern {
    offsets: Offsets,
    key: Key,
    /// Lowest offset.
    pub min: i32,
    /// Highest offset plus the width.
    pub end: i32,
    /// Active lanes.
    pub mask: u32,
    /// Bytes of a lane.
    pub width: u32,
    /// How the data lies.
    pub shape: Shape,
    /// Some byte belongs to two lanes.
    pub overlap: bool,
    /// Every touched word is touched whole.
    pub whole_words: bool,
    range_count: u8,
    words: u16,
    /// What the access costs.
    pub counts: PatternCounts,
    ranges: [Range; 32],
    /// The ranges again, cut into runs of [`RUNS`] words, longest first; and where the runs of each length end.
    runs: [Run; 32],
    run_ends: [u8; RUNS.len()],
    who: [u16; 256],
}

/// Lengths of runs.
pub const RUNS: [u16; 6] = [32, 16, 8, 4, 2, 1];

/// Some consecutive words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// As in [`Range`].
    pub word: i32,
    /// As in [`Range`].
    pub first: u16,
}

impl Pattern {
    /// Works it out. Every lane's address must be a multiple of the width, a power of two up to 32.
    pub fn new(key: Key, offsets: &Offsets) -> Pattern {
        let (mask, width, low) = (key.mask(), key.width(), key.low());
        let mut sorted = [(0i32, 0u32); 32];
        let mut lanes = 0;
        for lane in 0..32u32 {
            if mask >> lane & 1 != 0 {
                sorted[lanes] = (offsets[lane as usize], lane);
                lanes += 1;
            }
        }
        let sorted = &mut sorted[..lanes];
        if !sorted.is_sorted() {
            sorted.sort_unstable();
        }
        let mut p = Pattern {
            offsets: *offsets,
            key,
            min: sorted[0].0,
            end: sorted[lanes - 1].0 + width as i32,
            mask,
            width,
            shape: Shape::Scattered,
            overlap: false,
            whole_words: width >= 4,
            range_count: 0,
            words: 0,
            counts: PatternCounts {
                lanes: lanes as u32,
                bytes: lanes as u32 * width,
                ..PatternCounts::default()
            },
            ranges: [Range::default(); 32],
            runs: [Run::default(); 32],
            run_ends: [0; RUNS.len()],
            who: [0; 256],
        };
        p.place(sorted, low);
        p.cut();
        match key.class() {
            Class::Shared => (p.counts.wavefronts, p.counts.ideal_wavefronts) = banks(sorted, width, low),
            Class::Global => {}
        }
        if p.counts.unique_bytes == width {
            p.shape = Shape::Broadcast;
        } else if mask == u32::MAX && (0..32).all(|l| offsets[l] == l as i32 * width as i32) {
            p.shape = Shape::Contiguous;
        }
        p
    }

    /// Words, ranges, who touches them, sectors and collisions, from the lanes in the order of their addresses.
    fn place(&mut self, sorted: &[(i32, u32)], low: i32) {
        let width = self.width as i32;
        let mut lanes_of_bytes = [0u32; 4];
        let mut open_word = None;
        let mut sector = None;
        let mut at = 0;
        while at < sorted.len() {
            let offset = sorted[at].0;
            let mut together = 0;
            let mut count = 0;
            while at < sorted.len() && sorted[at].0 == offset {
                together |= 1 << sorted[at].1;
                count += 1;
                at += 1;
            }
            self.overlap |= count > 1;
            self.counts.unique_bytes += self.width;
            self.counts.collisions = self.counts.collisions.max(count);
            if self.key.class() == Class::Global && sector != Some((low + offset) >> 5) {
                sector = Some((low + offset) >> 5);
                self.counts.sectors += 1;
            }
            let start = (low & 3) + offset;
            let word = start >> 2;
            if width >= 4 {
                let who = match self.key.by() {
                    By::Lane => who::describe([together; 4]),
                    By::Warp => who::multi(0, 15),
                    By::Nobody => who::UNKNOWN_LANE_WORD,
                };
                for k in 0..width / 4 {
                    self.push(word + k, who);
                }
                continue;
            }
            if open_word != Some(word) {
                if let Some(w) = open_word {
                    self.push(w, who::describe(lanes_of_bytes));
                }
                open_word = Some(word);
                lanes_of_bytes = [0; 4];
            }
            for k in 0..width {
                lanes_of_bytes[((start & 3) + k) as usize] = together;
            }
        }
        if let Some(w) = open_word {
            self.push(w, who::describe(lanes_of_bytes));
        }
        self.whole_words = self.who[..self.words as usize].iter().all(|w| w & 15 == 15);
    }

    fn push(&mut self, word: i32, who: u16) {
        let index = self.words;
        self.who[index as usize] = who;
        self.words += 1;
        if self.range_count > 0 {
            let last = &mut self.ranges[self.range_count as usize - 1];
            if last.word + i32::from(last.count) == word {
                last.count += 1;
                return;
            }
        }
        self.ranges[self.range_count as usize] = Range { word, first: index, count: 1 };
        self.range_count += 1;
    }

    /// Each range has a multiple of the lanes' words if they are whole, and these are a power of two: there are never more
    /// runs than lanes.
    fn cut(&mut self) {
        let mut count = 0;
        for (class, &length) in RUNS.iter().enumerate() {
            for r in 0..self.range_count as usize {
                let range = self.ranges[r];
                // What longer runs took, all of it or a multiple of twice this length.
                let taken = match class {
                    0 => 0,
                    _ => range.count - range.count % RUNS[class - 1],
                };
                let times =
                    if class == 0 { range.count / length } else { range.count % RUNS[class - 1] / length };
                for n in 0..times {
                    let at = taken + n * length;
                    self.runs[count] = Run { word: range.word + i32::from(at), first: range.first + at };
                    count += 1;
                }
            }
            self.run_ends[class] = count as u8;
        }
    }

    /// The runs of `RUNS[class]` words.
    #[inline(always)]
    pub fn runs(&self, class: usize) -> &[Run] {
        let from = if class == 0 { 0 } else { self.run_ends[class - 1] as usize };
        &self.runs[from..self.run_ends[class] as usize]
    }

    /// Who touches the words of a run of `N`.
    #[inline(always)]
    pub fn who_of_run<const N: usize>(&self, run: Run) -> &[u16; N] {
        let who = &self.who[run.first as usize..];
        who.first_chunk().unwrap_or(&[0; N])
    }

    /// Disjoint runs of words, in ascending order.
    #[inline(always)]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count as usize & 63]
    }

    /// Who touches each distinct word: see [`super::who`].
    #[inline(always)]
    pub fn who(&self) -> &[u16] {
        &self.who[..self.words as usize]
    }

    /// Who touches the words of a range.
    #[inline(always)]
    pub fn who_of(&self, range: Range) -> &[u16] {
        &self.who[range.first as usize..][..range.count as usize]
    }

    /// Each lane's distance from the lowest active lane's address.
    #[inline(always)]
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// The lowest active lane's address modulo 4.
    pub fn low(&self) -> u32 {
        self.key.low() as u32 & 3
    }

    /// The bytes of a word (counted as in [`Range`]) that lanes touch: lane, which of its bytes, which of the word's bytes.
    /// `low` is the lowest active lane's address modulo 4.
    pub fn bytes_of_word(&self, low: i32, word: i32) -> impl Iterator<Item = (usize, usize, usize)> {
        let width = self.width as i32;
        bits(self.mask).flat_map(move |lane| {
            let start = low + self.offsets[lane] - 4 * word;
            (0..4)
                .filter(move |b| (start..start + width).contains(b))
                .map(move |b| (lane, (b - start) as usize, b as usize))
        })
    }

    /// Two lanes that write different values to one address, by what each writes at an offset into its bytes.
    pub fn disagreement(&self, value: &dyn Fn(usize, usize) -> Option<u8>) -> Option<(usize, usize)> {
        let mut first: [u8; 32] = [0; 32];
        for b in bits(self.mask) {
            first[b] = bits(self.mask).find(|&a| self.offsets[a] == self.offsets[b]).unwrap_or(b) as u8;
        }
        bits(self.mask)
            .map(|b| (first[b] as usize, b))
            .find(|&(a, b)| a != b && (0..self.width as usize).any(|byte| value(a, byte) != value(b, byte)))
    }

    #[inline(always)]
    fn matches(&self, key: Key, offsets: &Offsets) -> bool {
        let mut different = 0;
        for (a, b) in self.offsets.iter().zip(offsets) {
            different |= a ^ b;
        }
        different == 0 && self.key == key
    }
}

/// Wavefronts and the ideal.
fn banks(sorted: &[(i32, u32)], width: u32, low: i32) -> (u32, u32) {
    let lanes_per_group = if width <= 4 { 32 } else { 128 / width };
    let (mut wavefronts, mut ideal) = (0, 0);
    for group in 0..32 / lanes_per_group {
        let mut per_bank = [0u8; 32];
        let (mut last_word, mut last_start) = (i32::MIN, i32::MIN);
        let mut bytes = 0;
        for &(offset, lane) in sorted {
            if lane / lanes_per_group != group || offset == last_start {
                continue;
            }
            last_start = offset;
            bytes += width;
            for k in 0..width.div_ceil(4) as i32 {
                let word = ((low + offset) >> 2) + k;
                if word != last_word {
                    per_bank[(word & 31) as usize] += 1;
                    last_word = word;
                }
            }
        }
        wavefronts += u32::from(per_bank.into_iter().max().unwrap_or(0));
        ideal += bytes.div_ceil(128);
    }
    (wavefronts, ideal)
}

/// Calls `$body` for every run of a pattern, with the word it begins at and who touches its words, as arrays of fixed size.
macro_rules! each_run {
    ($pattern:expr, $word0:expr, |$at:ident, $who:ident| $body:expr) => {
        $crate::mem::pattern::each_run!($pattern, $word0, |$at, $who| $body; 0: 32, 1: 16, 2: 8, 3: 4, 4: 2, 5: 1)
    };
    ($pattern:expr, $word0:expr, |$at:ident, $who:ident| $body:expr; $($class:literal: $n:literal),*) => {$(
        for &run in $pattern.runs($class) {
            let $at = ($word0 as isize + run.word as isize) as usize;
            let $who = $pattern.who_of_run::<$n>(run);
            $body;
        }
    )*};
}
pub(crate) use each_run;

/// The patterns that one memory instruction met last: indices that may be out of date.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways([u32; 4]);

/// Patterns of one host thread.
#[derive(Debug)]
pub struct Patterns {
    arena: Vec<Pattern>,
    table: Vec<u32>,
}

const CAPACITY: usize = 4096;
const SLOTS: usize = 4 * CAPACITY;

impl Default for Patterns {
    fn default() -> Self {
        Self::new()
    }
}

impl Patterns {
    /// None yet.
    pub fn new() -> Self {
        Patterns { arena: Vec::new(), table: vec![0; SLOTS] }
    }

    /// Index of the pattern, if one of the instruction's last ones or any in the table is it.
    #[inline(always)]
    pub fn find(&mut self, ways: &mut Ways, key: Key, offsets: &Offsets) -> Option<u32> {
        let first = ways.0[0];
        if let Some(p) = self.arena.get(first as usize)
            && p.matches(key, offsets)
        {
            return Some(first);
        }
        self.find_slow(ways, key, offsets)
    }

    #[inline(never)]
    fn find_slow(&mut self, ways: &mut Ways, key: Key, offsets: &Offsets) -> Option<u32> {
        for w in 1..4 {
            let index = ways.0[w];
            if self.arena.get(index as usize).is_some_and(|p| p.matches(key, offsets)) {
                ways.0.swap(0, w);
                return Some(index);
            }
        }
        let mut slot = hash(key, offsets);
        loop {
            let index = self.table[slot].checked_sub(1)?;
            if self.arena[index as usize].matches(key, offsets) {
                ways.0.copy_within(0..3, 1);
                ways.0[0] = index;
                return Some(index);
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// Works out and keeps a pattern that [`Patterns::find`] did not find.
    #[inline(never)]
    pub fn insert(&mut self, ways: &mut Ways, key: Key, offsets: &Offsets) -> u32 {
        if self.arena.len() == CAPACITY {
            self.arena.clear();
            self.table.fill(0);
        }
        let index = self.arena.len() as u32;
        self.arena.push(Pattern::new(key, offsets));
        let mut slot = hash(key, offsets);
        while self.table[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        self.table[slot] = index + 1;
        ways.0.copy_within(0..3, 1);
        ways.0[0] = index;
        index
    }

    /// A pattern just found or inserted.
    #[inline(always)]
    pub fn get(&self, index: u32) -> &Pattern {
        &self.arena[index as usize]
    }
}

fn hash(key: Key, offsets: &Offsets) -> usize {
    let mut sum = 0u32;
    let mut factor = 0x9E37_79B1u32;
    for &o in offsets {
        factor = factor.wrapping_mul(0x85EB_CA6B) | 1;
        sum = sum.wrapping_add((o as u32).wrapping_mul(factor));
    }
    let mixed =
        (u64::from(sum) ^ key.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 40) as usize % SLOTS
}

#[cfg(test)]
mod tests;
