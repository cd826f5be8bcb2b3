//! The arena: cuts large pieces of device memory ("chunks") into blocks. Pure arithmetic on addresses; it calls no
//! driver, so that its rules can be tested without one.
//!
//! ```text
//!  chunk 0x7000_0000, 64 MiB                                    chunk 0x9000_0000, 64 MiB
//!  +---------+------+-------------+------+---------------------+ +---------------+----------------+
//!  | block A | free |   block B   | free |       block C       | |    block D    |      free      |
//!  +---------+------+-------------+------+---------------------+ +---------------+----------------+
//! ```
//!
//! A request takes the smallest free range that holds it (of equals the lowest), from the range's low end. What comes
//! back joins its free neighbours, but never across the border of two chunks, since a chunk goes back to the driver
//! as a whole. Both are `O(log n)`. The same calls give the same addresses.

use std::collections::{BTreeMap, BTreeSet};

/// Every block begins at, and takes, a multiple of this many bytes: what the driver's own allocations are aligned to
/// at least, and enough for every vector load, tensor map and cache line.
pub(super) const ALIGNMENT: u64 = 512;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Span {
    /// The address behind the last one.
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// The bytes that a block of `bytes` takes: a multiple of [`ALIGNMENT`], at least one. `None` where that overflows.
pub(super) fn block_bytes(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(ALIGNMENT)
}

/// Free ranges, findable by address and by size.
#[derive(Debug, Default)]
struct FreeList {
    by_start: BTreeMap<u64, u64>,
    by_bytes: BTreeSet<(u64, u64)>,
    total: u64,
}

impl FreeList {
    fn insert(&mut self, span: Span) {
        let before = self.by_start.insert(span.start, span.bytes);
        debug_assert!(before.is_none(), "{:#x} is free already", span.start);
        self.by_bytes.insert((span.bytes, span.start));
        self.total += span.bytes;
    }

    fn remove(&mut self, start: u64) -> Option<Span> {
        let bytes = self.by_start.remove(&start)?;
        self.by_bytes.remove(&(bytes, start));
        self.total -= bytes;
        Some(Span { start, bytes })
    }

    /// Gives a range back and joins it with its neighbours, unless a chunk begins between them.
    fn join(&mut self, mut span: Span, is_border: impl Fn(u64) -> bool) {
        if !is_border(span.start)
            && let Some((&start, &bytes)) = self.by_start.range(..span.start).next_back()
            && start + bytes == span.start
        {
            self.remove(start);
            span = Span { start, bytes: bytes + span.bytes };
        }
        if !is_border(span.end())
            && let Some(next) = self.remove(span.end())
        {
            span.bytes += next.bytes;
        }
        self.insert(span);
    }

    /// Takes `bytes` from the low end of the smallest range that holds them.
    fn best_fit(&mut self, bytes: u64) -> Option<Span> {
        let &(_, start) = self.by_bytes.range((bytes, 0)..).next()?;
        let found = self.remove(start)?;
        if found.bytes > bytes {
            self.insert(Span { start: start + bytes, bytes: found.bytes - bytes });
        }
        Some(Span { start, bytes })
    }

    fn largest(&self) -> u64 {
        self.by_bytes.last().map_or(0, |&(bytes, _)| bytes)
    }
}

/// A set of blocks that only takes memory from the arena and gives none back until it is closed: the memory of a
/// captured graph, whose kernels run again and again at the addresses they were captured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lot(u64);

#[derive(Debug, Default)]
struct LotState {
    /// What the lot has had and does not use.
    free: FreeList,
    /// What was given to be kept as it is.
    kept: Vec<Span>,
}

/// Chunks and the free ranges in them.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: BTreeMap<u64, u64>,
    free: FreeList,
    lots: BTreeMap<Lot, LotState>,
    next_lot: u64,
}

impl Arena {
    /// Adds a chunk from the driver. Its address and size are multiples of [`ALIGNMENT`].
    pub fn add_chunk(&mut self, chunk: Span) {
        debug_assert!(chunk.start.is_multiple_of(ALIGNMENT) && chunk.bytes.is_multiple_of(ALIGNMENT));
        self.chunks.insert(chunk.start, chunk.bytes);
        self.free.insert(chunk);
    }

    /// Takes a block of `bytes`, which [`block_bytes`] has rounded; `None` if no free range holds it.
    pub fn take(&mut self, bytes: u64) -> Option<Span> {
        self.free.best_fit(bytes)
    }

    /// Gives a block of [`Arena::take`] back.
    pub fn give(&mut self, block: Span) {
        let chunks = &self.chunks;
        self.free.join(block, |address| chunks.contains_key(&address));
    }

    /// Opens a lot.
    pub fn open_lot(&mut self) -> Lot {
        let lot = Lot(self.next_lot);
        self.next_lot += 1;
        self.lots.insert(lot, LotState::default());
        lot
    }

    /// Whether a lot is open.
    pub fn has_lot(&self, lot: Lot) -> bool {
        self.lots.contains_key(&lot)
    }

    /// Takes a block for a lot: one that the lot has had and does not use, else a new one.
    pub fn take_in(&mut self, lot: Lot, bytes: u64) -> Option<Span> {
        let own = self.lots.get_mut(&lot).and_then(|lot| lot.free.best_fit(bytes));
        own.or_else(|| self.take(bytes))
    }

    /// Keeps a block as it is, used by nobody, until the lot is closed.
    pub fn keep_in(&mut self, lot: Lot, block: Span) {
        match self.lots.get_mut(&lot) {
            Some(lot) => lot.kept.push(block),
            None => self.give(block),
        }
    }

    /// Gives a block back to its lot.
    pub fn give_in(&mut self, lot: Lot, block: Span) {
        let chunks = &self.chunks;
        match self.lots.get_mut(&lot) {
            Some(lot) => lot.free.join(block, |address| chunks.contains_key(&address)),
            None => self.give(block),
        }
    }

    /// Closes a lot: the blocks that it does not use are free, the others when they are given back.
    pub fn close_lot(&mut self, lot: Lot) {
        let Some(LotState { free, kept }) = self.lots.remove(&lot) else { return };
        let unused = free.by_start.into_iter().map(|(start, bytes)| Span { start, bytes });
        unused.chain(kept).for_each(|block| self.give(block));
    }

    /// Takes the chunks of which nothing is used out of the arena.
    pub fn take_unused_chunks(&mut self) -> Vec<Span> {
        let unused: Vec<Span> = self
            .chunks
            .iter()
            .filter(|&(start, bytes)| self.free.by_start.get(start) == Some(bytes))
            .map(|(&start, &bytes)| Span { start, bytes })
            .collect();
        for chunk in &unused {
            self.chunks.remove(&chunk.start);
            self.free.remove(chunk.start);
        }
        unused
    }

    /// Takes all chunks out of the arena, used or not.
    pub fn take_all_chunks(&mut self) -> Vec<Span> {
        self.free = FreeList::default();
        std::mem::take(&mut self.chunks).into_iter().map(|(start, bytes)| Span { start, bytes }).collect()
    }

    /// Bytes of all chunks.
    pub fn reserved(&self) -> u64 {
        self.chunks.values().sum()
    }

    /// Bytes that any request may take.
    pub fn free(&self) -> u64 {
        self.free.total
    }

    /// Bytes of the largest free range.
    pub fn largest_free(&self) -> u64 {
        self.free.largest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn arena(chunks: &[(u64, u64)]) -> Arena {
        let mut arena = Arena::default();
        chunks.iter().for_each(|&(start, bytes)| arena.add_chunk(Span { start, bytes }));
        arena
    }

    #[test]
    fn blocks_are_rounded_up() {
        assert_eq!([0, 1, 512, 513].map(block_bytes), [Some(512), Some(512), Some(512), Some(1024)]);
        assert_eq!(block_bytes(u64::MAX), None);
    }

    #[test]
    fn the_smallest_range_that_fits_is_taken() {
        let mut a = arena(&[(0, 10 * 512)]);
        let blocks: Vec<Span> = [1, 3, 1, 2, 1, 2].iter().map(|n| a.take(n * 512).unwrap()).collect();
        assert_eq!((a.free(), a.take(512)), (0, None));
        a.give(blocks[1]);
        a.give(blocks[3]);
        assert_eq!(a.take(2 * 512).unwrap(), blocks[3]);
        assert_eq!(a.take(512).unwrap().start, blocks[1].start);
        assert_eq!((a.free(), a.largest_free()), (2 * 512, 2 * 512));
    }

    #[test]
    fn neighbours_join_but_not_across_chunks() {
        // Two chunks that happen to lie side by side.
        let mut a = arena(&[(0, MIB), (MIB, MIB)]);
        assert_eq!(a.take(2 * MIB), None);
        let halves: Vec<Span> = (0..4).map(|_| a.take(MIB / 2).unwrap()).collect();
        for i in [1, 0, 2, 3] {
            a.give(halves[i]);
        }
        assert_eq!((a.free(), a.largest_free()), (2 * MIB, MIB));
        let one = a.take(512).unwrap();
        assert_eq!((one.start, a.take_unused_chunks()), (0, vec![Span { start: MIB, bytes: MIB }]));
        assert_eq!(a.reserved(), MIB);
        a.give(one);
        assert_eq!(a.take_unused_chunks().len(), 1);
        assert_eq!((a.reserved(), a.free()), (0, 0));
    }

    #[test]
    fn a_lot_uses_its_memory_again_and_lets_nobody_else() {
        let mut a = arena(&[(0, 8 * 512)]);
        let lot = a.open_lot();
        let x = a.take_in(lot, 4 * 512).unwrap();
        a.give_in(lot, x);
        assert_eq!(a.free(), 4 * 512, "what a lot has had is not free");
        let (y, z) = (a.take_in(lot, 512).unwrap(), a.take_in(lot, 3 * 512).unwrap());
        assert_eq!((y.start, z.end()), (x.start, x.end()));
        a.give_in(lot, y);
        a.close_lot(lot);
        assert_eq!(a.free(), 5 * 512, "a block in use stays used");
        a.give_in(lot, z);
        assert_eq!((a.free(), a.largest_free()), (8 * 512, 8 * 512));
    }

    #[derive(Clone, Debug)]
    enum Call {
        Chunk(u64),
        Take(u64),
        TakeInLot(u64),
        Give(usize),
        Keep(usize),
        Trim,
        Lot,
    }

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let call = prop_oneof![
            1 => (1u64..64).prop_map(Call::Chunk),
            6 => (0u64..20_000).prop_map(Call::Take),
            3 => (0u64..20_000).prop_map(Call::TakeInLot),
            6 => any::<usize>().prop_map(Call::Give),
            1 => any::<usize>().prop_map(Call::Keep),
            1 => Just(Call::Trim),
            1 => Just(Call::Lot),
        ];
        proptest::collection::vec(call, 1..200)
    }

    proptest! {
        /// Against a model that knows only the list of blocks in use: they are aligned, lie inside one chunk, never
        /// overlap; a request is refused only when no gap holds it; and when all came back, all is free and in one
        /// piece for each chunk.
        #[test]
        fn behaves_as_the_model(calls in calls()) {
            let mut a = Arena::default();
            let mut chunks: Vec<Span> = Vec::new();
            let mut used: Vec<(Span, Option<Lot>)> = Vec::new();
            let mut next = 1 << 30;
            let mut lot = a.open_lot();
            let mut lots = vec![lot];
            for call in calls {
                match call {
                    Call::Chunk(pages) => {
                        // Every other chunk begins where the last one ends.
                        next += (pages % 2) * MIB;
                        let chunk = Span { start: next, bytes: pages * 4096 };
                        next = chunk.end();
                        a.add_chunk(chunk);
                        chunks.push(chunk);
                    }
                    Call::Take(bytes) | Call::TakeInLot(bytes) => {
                        let bytes = block_bytes(bytes).unwrap();
                        let in_lot = matches!(call, Call::TakeInLot(_)).then_some(lot);
                        let largest = a.largest_free();
                        let got = match in_lot {
                            Some(lot) => a.take_in(lot, bytes),
                            None => a.take(bytes),
                        };
                        match got {
                            Some(b) => {
                                prop_assert_eq!((b.bytes, b.start % ALIGNMENT), (bytes, 0));
                                prop_assert!(chunks.iter().any(|c| c.start <= b.start && b.end() <= c.end()));
                                prop_assert!(used.iter().all(|(u, _)| u.end() <= b.start || b.end() <= u.start));
                                used.push((b, in_lot));
                            }
                            None => prop_assert!(largest < bytes),
                        }
                    }
                    Call::Give(_) | Call::Keep(_) if used.is_empty() => {}
                    Call::Keep(i) => a.keep_in(lot, used.swap_remove(i % used.len()).0),
                    Call::Give(i) => match used.swap_remove(i % used.len()) {
                        (block, Some(lot)) => a.give_in(lot, block),
                        (block, None) => a.give(block),
                    },
                    Call::Trim => {
                        for gone in a.take_unused_chunks() {
                            prop_assert!(used.iter().all(|(u, _)| u.end() <= gone.start || gone.end() <= u.start));
                            chunks.retain(|c| *c != gone);
                        }
                    }
                    Call::Lot => {
                        // Closed while blocks of it may be in use.
                        a.close_lot(lot);
                        lot = a.open_lot();
                        lots.push(lot);
                    }
                }
                let live: u64 = used.iter().map(|(b, _)| b.bytes).sum();
                let reserved: u64 = chunks.iter().map(|c| c.bytes).sum();
                prop_assert_eq!(a.reserved(), reserved);
                let kept: u64 =
                    a.lots.values().map(|l| l.free.total + l.kept.iter().map(|b| b.bytes).sum::<u64>()).sum();
                prop_assert_eq!(a.free() + kept + live, reserved);
            }
            for (block, lot) in used.drain(..) {
                match lot {
                    Some(lot) => a.give_in(lot, block),
                    None => a.give(block),
                }
            }
            lots.into_iter().for_each(|lot| a.close_lot(lot));
            let reserved: u64 = chunks.iter().map(|c| c.bytes).sum();
            prop_assert_eq!((a.free(), a.reserved()), (reserved, reserved));
            prop_assert_eq!(a.take_unused_chunks().len(), chunks.len());
            prop_assert_eq!(a.free(), 0);
        }
    }
}
