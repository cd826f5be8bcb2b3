//! Which memory a launch used: for those who keep launches in order, as a driver does with its streams.

use super::global::{GlobalMemory, epoch};
use super::who::STRONG;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// How memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Plain loads.
    Read,
    /// Plain stores.
    Write,
    /// Atomics, and other strong accesses: two of them at once are no race.
    Strong,
}

/// Addresses from the first to behind the last; empty where nothing was used so.
type Extent = Range<u64>;

/// Before any use: extending it by a range gives that range.
const NOTHING: Extent = Range { start: u64::MAX, end: 0 };

/// What a launch used of one allocation: the lowest and the highest address of each use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// First address of the allocation.
    pub base: u64,
    /// Read.
    pub reads: Extent,
    /// Written.
    pub writes: Extent,
    /// Used by strong operations.
    pub strong: Extent,
}

/// What one host thread used, by number of the allocation.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    all: Vec<[Extent; 3]>,
}

impl Extents {
    /// For so many allocations.
    pub fn new(allocations: usize) -> Extents {
        Extents { all: vec![[NOTHING; 3]; allocations] }
    }

    /// Notes a use.
    #[inline(always)]
    pub fn note(&mut self, allocation: usize, usage: Use, low: u64, end: u64) {
        if let Some(extents) = self.all.get_mut(allocation) {
            let extent = &mut extents[usage as usize];
            extent.start = extent.start.min(low);
            extent.end = extent.end.max(end);
        }
    }

    /// The allocations that were used; `base` tells where one begins.
    pub fn touched(self, base: impl Fn(usize) -> Option<u64>) -> Vec<Touched> {
        let used = self.all.into_iter().enumerate().filter(|(_, e)| e.iter().any(|r| !r.is_empty()));
        used.filter_map(|(n, [reads, writes, strong])| {
            Some(Touched { base: base(n)?, reads, writes, strong })
        })
        .collect()
    }
}

/// What all host threads of a launch used, by address.
pub fn merge(parts: impl IntoIterator<Item = Vec<Touched>>) -> Vec<Touched> {
    let mut all: BTreeMap<u64, Touched> = BTreeMap::new();
    for part in parts.into_iter().flatten() {
        match all.get_mut(&part.base) {
            Some(mine) => {
                let join = |a: &mut Extent, b: Extent| *a = a.start.min(b.start)..a.end.max(b.end);
                join(&mut mine.reads, part.reads);
                join(&mut mine.writes, part.writes);
                join(&mut mine.strong, part.strong);
            }
            None => {
                all.insert(part.base, part);
            }
        }
    }
    all.into_values().collect()
}

/// Ranges in ascending order, none touching the next.
type Ranges = Vec<Range<u64>>;

/// What a launch used of one allocation, to the word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Read.
    pub reads: Ranges,
    /// Written.
    pub writes: Ranges,
    /// Written by strong operations.
    pub strong: Ranges,
}

/// More ranges than this are joined over ever larger gaps.
const MOST_RANGES: usize = 1 << 16;

/// Adds a word to ranges that it does not come before.
fn push(ranges: &mut Ranges, from: u64, gap: u64) {
    match ranges.last_mut() {
        Some(last) if from <= last.end + gap => last.end = from + 4,
        _ => ranges.push(from..from + 4),
    }
}

/// Joins ranges until there are few enough.
fn shorten(ranges: &mut Ranges) {
    let mut gap = 16;
    while ranges.len() > MOST_RANGES {
        let mut joined: Ranges = Vec::new();
        for range in ranges.drain(..) {
            match joined.last_mut() {
                Some(last) if range.start <= last.end + gap => last.end = range.end,
                _ => joined.push(range),
            }
        }
        *ranges = joined;
        gap *= 2;
    }
}

impl GlobalMemory {
    /// The words that a launch was the last to use, among those that it touched of an allocation. Asked right after the
    /// launch these are all it used, except for reads among its strong operations. `None` if the allocation is gone.
    pub fn words_of(&self, launch: u64, touched: &Touched) -> Option<Words> {
        let table = self.table();
        let a = table.get(table.index_of(touched.base)?)?;
        let (shadow, epoch) = (a.shadow(), epoch(launch));
        let mut words = Words::default();
        let mine = |entry: u64| entry >> super::shadow::LAUNCH_SHIFT == epoch;
        let span = |extents: [&Extent; 2]| -> Range<usize> {
            let low = extents.iter().map(|e| e.start).min().unwrap_or(0);
            let high = extents.iter().map(|e| e.end).max().unwrap_or(0);
            if low < high { a.word_of(low)..a.word_of(high - 1) + 1 } else { 0..0 }
        };
        let address = |word: usize| a.origin() + 4 * word as u64;
        for word in span([&touched.reads, &touched.reads]) {
            if mine(shadow.reads()[word].load(Relaxed)) {
                push(&mut words.reads, address(word), 0);
            }
        }
        for word in span([&touched.writes, &touched.strong]) {
            let entry = shadow.writes()[word].load(Relaxed);
            if mine(entry) {
                let strong = entry & u64::from(STRONG) != 0;
                push(if strong { &mut words.strong } else { &mut words.writes }, address(word), 0);
            }
        }
        for ranges in [&mut words.reads, &mut words.writes, &mut words.strong] {
            shorten(ranges);
        }
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::launch::{LaunchConfig, Report, launch};
    use crate::exec::program::Program;

    const PTX: &str = "
.version 9.0
.target sm_80
.address_size 64
.visible .entry every_other(.param .u64 from, .param .u64 to, .param .u64 count)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    ld.param.u64 %rd3, [count];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd4, %r1, 8;
    add.s64 %rd5, %rd1, %rd4;
    add.s64 %rd6, %rd2, %rd4;
    ld.global.u32 %r2, [%rd5];
    st.global.u32 [%rd6], %r2;
    atom.global.add.u32 %r3, [%rd3], 1;
    ret;
}
";

    fn run(memory: &GlobalMemory, args: [u64; 3]) -> Report {
        let program = Program::load(PTX, memory).expect("valid");
        let kernel = program.kernel("every_other").expect("there");
        let params: Vec<u8> = args.iter().flat_map(|a| a.to_le_bytes()).collect();
        let config = LaunchConfig { block: [64, 1, 1], ..LaunchConfig::default() };
        launch(memory, kernel, &config, &params).expect("launched")
    }

    #[test]
    fn what_a_launch_used() {
        let memory = GlobalMemory::new(1 << 30);
        let [from, to, count] = [1024, 1024, 4].map(|n| memory.alloc(n).expect("room"));
        for (address, bytes) in [(from, 1024), (count, 4)] {
            memory.fill(address, &[0], bytes).expect("inside");
        }
        let report = run(&memory, [from + 256, to, count]);
        assert!(report.clean(), "{:?}", report.findings);
        let nothing = NOTHING;
        let touched = |base, reads: &Extent, writes: &Extent, strong: &Extent| Touched {
            base,
            reads: reads.clone(),
            writes: writes.clone(),
            strong: strong.clone(),
        };
        let extent = |at: u64| at..at + 63 * 8 + 4;
        assert_eq!(
            report.touched,
            [
                touched(from, &extent(from + 256), &nothing, &nothing),
                touched(to, &nothing, &extent(to), &nothing),
                touched(count, &nothing, &nothing, &(count..count + 4)),
            ]
        );
        let words = memory.words_of(report.launch, &report.touched[1]).expect("there");
        let expected: Ranges = (0..64).map(|i| to + 8 * i..to + 8 * i + 4).collect();
        assert_eq!(words, Words { writes: expected, ..Words::default() });
        let words = memory.words_of(report.launch, &report.touched[2]).expect("there");
        assert_eq!(words.strong, vec![Range { start: count, end: count + 4 }]);
        assert_eq!(memory.words_of(report.launch + 1, &report.touched[1]), Some(Words::default()));
        memory.free(to).expect("there");
        assert_eq!(memory.words_of(report.launch, &report.touched[1]), None);
    }

    #[test]
    fn many_ranges_become_few() {
        let mut ranges: Ranges = (0..200_000).map(|i| 64 * i..64 * i + 4).collect();
        shorten(&mut ranges);
        assert_eq!(ranges, vec![Range { start: 0, end: 64 * 199_999 + 4 }]);
        let mut apart: Ranges = (0..1000).map(|i| 64 * i..64 * i + 4).collect();
        shorten(&mut apart);
        assert_eq!(apart.len(), 1000);
    }
}
