//! Races in global memory.
//!
//! For every 4-byte word the last write and the last read are kept in 64 bits each:
//! `launch 8 | block 24 | time 15 | strong 1 | warp 5 | lane 5 | mode 2 | byte mask 4`. The time is relative to
//! the block's start and saturates. Blocks run on several host threads, so the words are atomics; they are only ever
//! loaded and stored, and of two accesses at the same moment one may go unrecorded.
//!
//! A word that several blocks read keeps a mark instead of the block. Decisions are those of [`super::shared`]; besides,
//! blocks are ordered through [`super::fence`] only, and where several blocks read a word in a kernel with fences nobody
//! knows whether all of them were ordered: such a write is not told.

use super::allocation::{Allocation, Shadow};
use super::fence::Fences;
use super::lanes::{self, Touch};
use super::order::OrderState;
use super::pattern::{Pattern, each_run};
use super::racy::Four;
use super::report::{Access, Reporter};
use super::who;
use crate::check::Kind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Position of the launch in an entry.
pub const LAUNCH_SHIFT: u32 = 56;
const BLOCK_SHIFT: u32 = 32;
const TIME_SHIFT: u32 = 17;
const MAX_TIME: u32 = (1 << 15) - 1;
const LOW: u64 = (1 << TIME_SHIFT) - 1;
/// In place of a block: several.
const SEVERAL: u64 = (1 << 24) - 1;
/// Equal in both: the same thread, if it is one lane.
const SAME_THREAD: u64 = !((1 << BLOCK_SHIFT) - 1) | who::THREAD as u64;

/// Block and launch of accesses, as the shadow keeps them.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    head: u64,
}

impl Stamp {
    /// `epoch` from 1 to 255, see [`super::global::epoch`].
    pub fn new(epoch: u64, block: u64) -> Stamp {
        // Block numbers wrap before the mark; blocks that far apart are taken for one another.
        Stamp { head: epoch << LAUNCH_SHIFT | (block % SEVERAL) << BLOCK_SHIFT }
    }

    #[inline(always)]
    fn launch(self) -> u64 {
        self.head >> LAUNCH_SHIFT << LAUNCH_SHIFT
    }
}

/// What checking an access needs besides the access.
pub struct Scene<'a> {
    /// Block and launch.
    pub stamp: Stamp,
    /// Order in the block.
    pub order: &'a OrderState,
    /// Order between blocks.
    pub fences: &'a Fences,
}

/// What makes an earlier access harmless without a closer look, and the entry of the present one.
#[derive(Clone, Copy)]
struct Fast {
    launch: u64,
    four: Four,
}

impl Fast {
    /// Of an earlier launch, by the same thread, ordered whoever it was, or strong as the present one.
    #[inline(always)]
    fn fine(&self, before: u64, who: u16) -> bool {
        let f = &self.four;
        let mine = f.entry | u64::from(who);
        before < f.launch
            || (before ^ mine) & f.thread == 0 && mine & f.many != f.many
            || before & mine & u64::from(who::STRONG) != 0
            || (before ^ mine) & f.block == 0 && before & f.time <= f.floor
    }

    /// Whether all of `N` words are.
    #[inline(always)]
    fn all_fine<const N: usize>(&self, before: &[AtomicU64], who: &[u16; N]) -> bool {
        let mut all = true;
        let fours = before[..N].as_chunks::<4>();
        let who = who.as_chunks::<4>();
        for (b, w) in fours.0.iter().zip(who.0) {
            all &= self.four.fine(b, w) || b.iter().zip(w).all(|(b, w)| self.fine(b.load(Relaxed), *w));
        }
        for (b, w) in fours.1.iter().zip(who.1) {
            all &= self.fine(b.load(Relaxed), *w);
        }
        all
    }

    #[inline(always)]
    fn note_writes<const N: usize>(&self, writes: &[AtomicU64], who: &[u16; N]) {
        let fours = writes[..N].as_chunks::<4>();
        let who = who.as_chunks::<4>();
        for (to, w) in fours.0.iter().zip(who.0) {
            self.four.store(to, w);
        }
        for (to, w) in fours.1.iter().zip(who.1) {
            to.store(self.four.entry | u64::from(*w), Relaxed);
        }
    }

    #[inline(always)]
    fn note_reads<const N: usize>(&self, reads: &[AtomicU64], who: &[u16; N]) {
        let fours = reads[..N].as_chunks::<4>();
        let who = who.as_chunks::<4>();
        for (to, w) in fours.0.iter().zip(who.0) {
            if !self.four.store_unless_shared(to, w) {
                to.iter().zip(w).for_each(|(to, w)| self.note_read(to, *w));
            }
        }
        fours.1.iter().zip(who.1).for_each(|(to, w)| self.note_read(to, *w));
    }

    #[inline(always)]
    fn note_read(&self, to: &AtomicU64, who: u16) {
        let mine = self.four.entry | u64::from(who);
        let before = to.load(Relaxed);
        let next = if before < self.four.launch || (before ^ mine) & self.four.block == 0 {
            mine
        } else {
            joined(before, mine)
        };
        if next != before {
            to.store(next, Relaxed);
        }
    }
}

impl Scene<'_> {
    #[inline(always)]
    fn fast(&self, access: &Access) -> Fast {
        let relative = |stamp| u64::from(self.order.relative(stamp).min(MAX_TIME)) << TIME_SHIFT;
        let launch = self.stamp.launch();
        Fast {
            launch,
            four: Four {
                launch,
                entry: self.stamp.head | relative(self.order.now()) | u64::from(access.flags()),
                block: !0 << BLOCK_SHIFT,
                thread: SAME_THREAD,
                many: u64::from(who::MODE_BITS),
                time: u64::from(MAX_TIME) << TIME_SHIFT,
                floor: relative(self.order.floor(access.warp as usize)),
            },
        }
    }
}

/// Checks and records a read; `word0` is the word of the lowest active lane's address in the allocation.
#[inline]
pub fn read(
    scene: &Scene<'_>,
    a: &Allocation,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    reporter: &mut Reporter<'_>,
) {
    let shadow = a.shadow();
    let fast = scene.fast(access);
    // What the launch never wrote needs no look at the last writes.
    if a.note_read(fast.launch) {
        let writes = shadow.writes();
        let mut fine = true;
        each_run!(pattern, word0 as isize, |at, who| fine &= fast.all_fine(&writes[at..], who));
        if !fine {
            check_read(scene, a, shadow, access, word0, pattern, reporter);
        }
    }
    let reads = shadow.reads();
    each_run!(pattern, word0 as isize, |at, who| fast.note_reads(&reads[at..], who));
}

/// Two blocks read: the bytes that both read, and strong if one of them is.
#[inline(always)]
fn joined(before: u64, mine: u64) -> u64 {
    if before >> BLOCK_SHIFT & SEVERAL == SEVERAL {
        return before;
    }
    let common = before & mine & 15;
    if common == 0 {
        return mine;
    }
    let strong = (before | mine) & u64::from(who::STRONG);
    mine & !15 | common | strong | SEVERAL << BLOCK_SHIFT
}

/// Checks and records a write or atomic. Call it before the bytes change: see [`super::shared::SharedMemory::write`].
#[inline]
#[allow(clippy::too_many_arguments)]
pub fn write(
    scene: &Scene<'_>,
    a: &Allocation,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    value: &dyn Fn(usize, usize) -> Option<u8>,
    reporter: &mut Reporter<'_>,
) {
    let shadow = a.shadow();
    let fast = scene.fast(access);
    let (written, read) = a.note_write(fast.launch);
    let mut fine = true;
    if written {
        let writes = shadow.writes();
        each_run!(pattern, word0 as isize, |at, who| fine &= fast.all_fine(&writes[at..], who));
    }
    if read {
        let reads = shadow.reads();
        each_run!(pattern, word0 as isize, |at, who| fine &= fast.all_fine(&reads[at..], who));
    }
    if !fine {
        check_write(scene, a, shadow, access, word0, pattern, value, reporter);
    }
    if pattern.overlap && !access.strong {
        check_overlap(a, access, word0, pattern, value, reporter);
    }
    let writes = shadow.writes();
    each_run!(pattern, word0 as isize, |at, who| fast.note_writes(&writes[at..], who));
}

#[inline(never)]
fn check_read(
    scene: &Scene<'_>,
    a: &Allocation,
    shadow: &Shadow,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    reporter: &mut Reporter<'_>,
) {
    each_word(access, word0, pattern, |k, info| {
        let now = Touch { info, writes: false };
        let before = shadow.writes()[k].load(Relaxed);
        against(scene, a, access, k, now, before, true, &|_| false, reporter);
    });
}

#[inline(never)]
#[allow(clippy::too_many_arguments)]
fn check_write(
    scene: &Scene<'_>,
    a: &Allocation,
    shadow: &Shadow,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    value: &dyn Fn(usize, usize) -> Option<u8>,
    reporter: &mut Reporter<'_>,
) {
    each_word(access, word0, pattern, |k, info| {
        let now = Touch { info, writes: true };
        let same = |common| repeats(a, word0, pattern, k, common, value);
        let (w, r) = (shadow.writes()[k].load(Relaxed), shadow.reads()[k].load(Relaxed));
        against(scene, a, access, k, now, w, true, &same, reporter);
        against(scene, a, access, k, now, r, false, &|_| false, reporter);
    });
}

fn check_overlap(
    a: &Allocation,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    value: &dyn Fn(usize, usize) -> Option<u8>,
    reporter: &mut Reporter<'_>,
) {
    if let Some((i, j)) = pattern.disagreement(value) {
        let base = a.origin() + 4 * word0 as u64 + u64::from(pattern.low());
        let address = base.wrapping_add_signed(i64::from(pattern.offsets()[j]));
        reporter.add(Kind::LaneHazard, access, j, address, |_| {
            format!("lanes {i} and {j} of one store write different values to global address {address:#x}")
        });
    }
}

fn each_word(access: &Access, word0: usize, pattern: &Pattern, mut f: impl FnMut(usize, u32)) {
    let flags = access.flags();
    for &range in pattern.ranges() {
        let at = word0.wrapping_add_signed(range.word as isize);
        for (k, who) in pattern.who_of(range).iter().enumerate() {
            f(at + k, flags | u32::from(*who));
        }
    }
}

/// Whether the store leaves the common bytes of word `k` as they are.
fn repeats(
    a: &Allocation,
    word0: usize,
    pattern: &Pattern,
    k: usize,
    common: u32,
    value: &dyn Fn(usize, usize) -> Option<u8>,
) -> bool {
    let word = (k as i64 - word0 as i64) as i32;
    let bytes = pattern.bytes_of_word(pattern.low() as i32, word).filter(|&(_, _, b)| common >> b & 1 == 1);
    bytes.into_iter().all(|(lane, byte, b)| {
        // SAFETY: the access was found to lie inside the allocation, so this byte of it does; other host threads may write
        // it at the same time, hence the volatile read.
        let old = unsafe { a.pointer(a.origin() + (4 * k + b) as u64).read_volatile() };
        value(lane, byte) == Some(old)
    })
}

#[allow(clippy::too_many_arguments)]
fn against(
    scene: &Scene<'_>,
    a: &Allocation,
    access: &Access,
    k: usize,
    now: Touch,
    before: u64,
    writes: bool,
    same: &dyn Fn(u32) -> bool,
    reporter: &mut Reporter<'_>,
) {
    let info = (before & LOW) as u32;
    if before >> LAUNCH_SHIFT != scene.stamp.head >> LAUNCH_SHIFT || !lanes::meet(info, now.info) {
        return;
    }
    let common = info & now.info & 15;
    let address = a.origin() + 4 * k as u64 + u64::from(common.trailing_zeros());
    let block = before >> BLOCK_SHIFT & SEVERAL;
    let time = (before >> TIME_SHIFT) as u32 & MAX_TIME;
    let (w, u) = (access.warp as usize, who::warp(info));
    let verb = if now.writes { "writes" } else { "reads" };
    let did = if writes { "written" } else { "read" };
    let lane = lanes::name_lane(now.info, common);
    let other = lanes::name_lane(info, common);
    if block != scene.stamp.head >> BLOCK_SHIFT & SEVERAL {
        let ordered = scene.fences.enabled() && (block == SEVERAL || scene.fences.ordered(block, u, time));
        if ordered || (writes && now.writes && same(common)) {
            return;
        }
        let grid = reporter.grid;
        reporter.add(Kind::GlobalRace, access, lane, address, |_| {
            let by = if block == SEVERAL {
                "other blocks".to_string()
            } else {
                let [x, y, z] = block_index(grid, block);
                format!("block ({x}, {y}, {z}) warp {u} lane {other}")
            };
            format!("{verb} global address {address:#x}, {did} by {by}; nothing orders the blocks")
        });
        return;
    }
    // Flags may order threads of one block by way of another block, of which the block's own clock knows nothing.
    if scene.fences.enabled() && scene.fences.ordered(block, u, time) {
        return;
    }
    // The earliest moment that the time can stand for: saturated ones are older than what happened.
    let stamp = scene.order.start() - 1 + time;
    if u != w {
        if stamp <= scene.order.seen(w, u) || (writes && now.writes && same(common)) {
            return;
        }
        reporter.add(Kind::GlobalRace, access, lane, address, |_| {
            format!(
                "{verb} global address {address:#x}, {did} by warp {u} lane {other} of the block with no barrier in between"
            )
        });
        return;
    }
    if let Some((i, j)) = lanes::conflict(scene.order, w, Touch { info, writes }, stamp, now)
        && !(writes && now.writes && same(common))
    {
        reporter.add(Kind::LaneHazard, access, j, address, |_| {
            format!(
                "{verb} global address {address:#x}, {did} by lane {i} of the same warp with no __syncwarp in between"
            )
        });
    }
}

/// `blockIdx` of a linear number.
fn block_index([x, y, _]: [u32; 3], linear: u64) -> [u64; 3] {
    let (x, y) = (u64::from(x.max(1)), u64::from(y.max(1)));
    [linear % x, linear / x % y, linear / x / y]
}

#[cfg(test)]
mod tests;
