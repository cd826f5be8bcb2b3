//! Order between warps and blocks through memory: a fence, then an atomic or flag; at the other side the flag, then a
//! fence.
//!
//! A warp that writes a flag after a fence publishes, at the flag's address, what happened before its fence. Whoever reads
//! the flag takes note of all that is published there, and has acquired it once it executes a fence, or takes part in a
//! barrier, after which its other threads rely on the flag (as CUDA's threadFenceReduction sample does, which has no second
//! fence).
//!
//! Within a block this moves the vector clock of [`OrderState`]. Between blocks an access is ordered if its time is covered
//! by something published and acquired, possibly by way of further blocks. What one warp of a block acquired counts for
//! all its warps. These rules order too much rather than too little.
//!
//! Only kernels with fences (or acquire and release accesses) keep any of this.

use super::order::{MAX_WARPS, OrderState, Token};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What was published at one address.
#[derive(Debug, Default)]
struct Location {
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    count: usize,
    by_block: HashMap<u64, Vec<Release>>,
}

#[derive(Debug, Clone)]
struct Release {
    /// Position in the log.
    index: usize,
    /// By warp: time relative to the block's start up to which its accesses are covered.
    seen: [u32; MAX_WARPS],
    /// What the block had acquired itself.
    foreign: Vec<Seen>,
}

/// The first entries of a location's log.
#[derive(Debug, Clone)]
struct Seen {
    location: Arc<Location>,
    count: usize,
}

impl Location {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SHARDS: usize = 64;

/// What was published in global memory during a launch.
#[derive(Debug)]
pub struct Published {
    shards: Vec<Mutex<HashMap<u64, Arc<Location>>>>,
}

impl Default for Published {
    fn default() -> Self {
        Published { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Published {
    fn shard(&self, address: u64) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Location>>> {
        let shard = &self.shards[(address >> 2) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, address: u64) -> Option<Arc<Location>> {
        self.shard(address).get(&address).cloned()
    }

    fn get_or_insert(&self, address: u64) -> Arc<Location> {
        self.shard(address).entry(address).or_default().clone()
    }
}

/// Where a flag lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// Global address.
    Global(u64),
    /// Address in the block's shared memory.
    Shared(u32),
}

/// Flags read and not yet acquired by a warp.
#[derive(Debug, Default)]
struct Pending {
    /// Time of the last such read.
    at: u32,
    own: Option<Token>,
    foreign: Vec<Seen>,
}

/// One block's side.
#[derive(Debug, Default)]
pub struct Fences {
    /// What each warp's last fence covers: within the block, and for all blocks.
    block: Vec<Option<Token>>,
    device: Vec<Option<Token>>,
    /// Time of each warp's last fence, of its own accesses.
    fenced: [u32; MAX_WARPS],
    pending: Vec<Pending>,
    waiting: u32,
    acquired: Vec<Seen>,
    shared: HashMap<u32, Token>,
    global: HashMap<u64, Token>,
}

impl Fences {
    /// For a block; `enabled` where the kernel has fences.
    pub fn new_block(&mut self, warps: usize, enabled: bool) {
        *self = Fences::default();
        if enabled {
            self.block.resize(warps, None);
            self.device.resize(warps, None);
            self.pending.resize_with(warps, Pending::default);
        }
    }

    /// The kernel has fences.
    #[inline(always)]
    pub fn enabled(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the warp has executed a fence: its volatile writes are flags then.
    #[inline(always)]
    pub fn has_fenced(&self, w: usize) -> bool {
        self.block.get(w).is_some_and(Option::is_some)
    }

    /// Warp `w` executes a fence, at device scope or beyond if `device`.
    pub fn fence(&mut self, order: &mut OrderState, w: usize, device: bool) {
        if !self.enabled() {
            return;
        }
        self.acquire(order, w);
        let token = order.release(w);
        if device {
            self.fenced[w] = token.seen[w];
            self.device[w] = Some(token.clone());
        }
        self.block[w] = Some(token);
    }

    /// Warp `w` writes a flag: an atomic, a relaxed or volatile store.
    pub fn write(&mut self, published: &Published, order: &OrderState, w: usize, block: u64, flag: Flag) {
        if !self.enabled() {
            return;
        }
        if let Some(token) = &self.block[w] {
            match flag {
                Flag::Shared(a) => self.shared.entry(a).or_insert(Token::NOTHING).merge(token),
                Flag::Global(a) => self.global.entry(a).or_insert(Token::NOTHING).merge(token),
            }
        }
        let Flag::Global(address) = flag else { return };
        // A thread's own fence covers what it did before; that counts once a barrier told this warp of it.
        let mut seen = [0; MAX_WARPS];
        for (u, s) in seen.iter_mut().enumerate().take(order.warps()) {
            let told = if u == w { 0 } else { order.seen(w, u).min(self.fenced[u]) };
            *s = order.relative(told.max(self.device[w].as_ref().map_or(0, |t| t.seen[u])));
        }
        if seen.iter().all(|&s| s == 0) && self.acquired.is_empty() {
            return;
        }
        let location = published.get_or_insert(address);
        let mut log = location.log();
        let index = log.count;
        let mine = log.by_block.entry(block).or_default();
        let foreign: Vec<Seen> =
            self.acquired.iter().filter(|s| !Arc::ptr_eq(&s.location, &location)).cloned().collect();
        if let Some(last) = mine.last()
            && last.seen == seen
            && last.foreign.len() == foreign.len()
            && last.foreign.iter().zip(&foreign).all(|(a, b)| a.count == b.count)
        {
            return;
        }
        mine.push(Release { index, seen, foreign });
        log.count += 1;
    }

    /// Warp `w` reads a flag: an atomic, a relaxed or volatile load.
    pub fn read(&mut self, published: &Published, order: &OrderState, w: usize, flag: Flag) {
        if !self.enabled() {
            return;
        }
        let own = match flag {
            Flag::Shared(a) => self.shared.get(&a),
            Flag::Global(a) => self.global.get(&a),
        };
        let foreign = match flag {
            Flag::Shared(_) => None,
            Flag::Global(a) => published.get(a),
        };
        if own.is_none() && foreign.is_none() {
            return;
        }
        let pending = &mut self.pending[w];
        pending.at = order.now();
        self.waiting |= 1 << w;
        if let Some(token) = own {
            pending.own.get_or_insert(Token::NOTHING).merge(token);
        }
        if let Some(location) = foreign {
            let count = location.log().count;
            note(&mut pending.foreign, Seen { location, count });
        }
    }

    /// Warp `w` acquires the flags that it read.
    pub fn acquire(&mut self, order: &mut OrderState, w: usize) {
        if self.waiting >> w & 1 == 0 {
            return;
        }
        self.waiting &= !(1 << w);
        let pending = std::mem::take(&mut self.pending[w]);
        if let Some(token) = pending.own {
            order.acquire(w, &token);
        }
        for seen in pending.foreign {
            note(&mut self.acquired, seen);
        }
    }

    /// Acquires for warps that took part in a barrier since they read a flag. Call it before anything is checked.
    #[inline(always)]
    pub fn settle(&mut self, order: &mut OrderState) {
        if self.waiting != 0 {
            self.settle_slow(order);
        }
    }

    #[inline(never)]
    fn settle_slow(&mut self, order: &mut OrderState) {
        for w in super::order::bits(self.waiting) {
            if (0..32).any(|lane| order.lane_sync(w, lane) >= self.pending[w].at) {
                self.acquire(order, w);
            }
        }
    }

    /// Whether what warp `warp` of another block did at `time` (relative to its start) happened before this block's next
    /// access.
    pub fn ordered(&self, block: u64, warp: usize, time: u32) -> bool {
        let mut todo: Vec<Seen> = self.acquired.clone();
        let mut done: Vec<Seen> = Vec::new();
        while let Some(seen) = todo.pop() {
            let known = done.iter().find(|d| Arc::ptr_eq(&d.location, &seen.location)).map_or(0, |d| d.count);
            if known >= seen.count {
                continue;
            }
            let log = seen.location.log();
            let covers = |r: &Release| r.index < seen.count && r.seen[warp] >= time;
            if log.by_block.get(&block).is_some_and(|all| all.iter().any(covers)) {
                return true;
            }
            for r in log.by_block.values().flatten().filter(|r| (known..seen.count).contains(&r.index)) {
                todo.extend(r.foreign.iter().cloned());
            }
            drop(log);
            note(&mut done, seen);
        }
        false
    }
}

fn note(list: &mut Vec<Seen>, seen: Seen) {
    match list.iter_mut().find(|s| Arc::ptr_eq(&s.location, &seen.location)) {
        Some(old) => old.count = old.count.max(seen.count),
        None => list.push(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Block {
        order: OrderState,
        fences: Fences,
        number: u64,
    }

    impl Block {
        fn new(number: u64, warps: usize) -> Block {
            let mut b = Block { order: OrderState::new(), fences: Fences::default(), number };
            b.order.new_block(warps);
            b.fences.new_block(warps, true);
            b
        }

        fn now(&self) -> u32 {
            self.order.relative(self.order.now())
        }

        fn fence(&mut self, w: usize) {
            self.fences.fence(&mut self.order, w, true);
        }

        fn set(&mut self, p: &Published, w: usize, flag: Flag) {
            self.fences.write(p, &self.order, w, self.number, flag);
        }

        fn get(&mut self, p: &Published, w: usize, flag: Flag) {
            self.fences.read(p, &self.order, w, flag);
        }

        fn sees(&mut self, other: &Block, w: usize, time: u32) -> bool {
            self.fences.settle(&mut self.order);
            self.fences.ordered(other.number, w, time)
        }
    }

    const A: Flag = Flag::Global(4096);
    const B: Flag = Flag::Global(8192);

    #[test]
    fn a_fence_on_both_sides_orders() {
        let p = Published::default();
        let (mut x, mut y) = (Block::new(0, 2), Block::new(1, 1));
        let before = x.now();
        x.fence(0);
        x.set(&p, 0, A);
        let after = x.now();
        y.get(&p, 0, A);
        assert!(!y.sees(&x, 0, before), "nothing is acquired yet");
        y.fence(0);
        assert!(y.sees(&x, 0, before));
        assert!(!y.sees(&x, 0, after), "after the fence");
        assert!(!y.sees(&x, 1, before), "another warp without a barrier");
    }

    #[test]
    fn no_fence_no_order() {
        let p = Published::default();
        let (mut x, mut y) = (Block::new(0, 1), Block::new(1, 1));
        let before = x.now();
        x.set(&p, 0, A);
        y.get(&p, 0, A);
        y.fence(0);
        assert!(!y.sees(&x, 0, before));
        x.fences.fence(&mut x.order, 0, false);
        x.set(&p, 0, A);
        y.get(&p, 0, A);
        y.fence(0);
        assert!(!y.sees(&x, 0, before), "a fence of the block is not enough");
    }

    #[test]
    fn a_barrier_and_a_fence_publish_for_the_block() {
        let p = Published::default();
        let (mut x, mut y) = (Block::new(0, 2), Block::new(1, 2));
        let before = x.now();
        x.order.full_barrier();
        x.fence(0);
        x.set(&p, 0, A);
        y.get(&p, 1, A);
        y.order.full_barrier();
        assert!(y.sees(&x, 1, before));
    }

    #[test]
    fn each_thread_may_fence_for_itself() {
        let p = Published::default();
        let (mut x, mut y) = (Block::new(0, 2), Block::new(1, 2));
        let before = x.now();
        x.fence(0);
        x.fence(1);
        x.order.full_barrier();
        x.set(&p, 0, A);
        y.get(&p, 0, A);
        y.order.full_barrier();
        assert!(y.sees(&x, 1, before));
    }

    #[test]
    fn order_passes_through_a_third_block() {
        let p = Published::default();
        let (mut x, mut y, mut z) = (Block::new(0, 1), Block::new(1, 1), Block::new(2, 1));
        let before = x.now();
        x.fence(0);
        x.set(&p, 0, A);
        y.get(&p, 0, A);
        y.fence(0);
        y.set(&p, 0, B);
        z.get(&p, 0, B);
        z.fence(0);
        assert!(z.sees(&x, 0, before));
        // Read before it was set.
        let mut late = Block::new(3, 1);
        late.get(&p, 0, Flag::Global(12288));
        late.fence(0);
        assert!(!late.sees(&x, 0, before));
    }

    #[test]
    fn flags_order_warps_of_a_block() {
        for flag in [A, Flag::Shared(64)] {
            let p = Published::default();
            let mut x = Block::new(0, 2);
            let before = x.order.now();
            x.fences.fence(&mut x.order, 0, false);
            x.set(&p, 0, flag);
            assert!(!x.order.ordered((1, 0), (0, 3), before));
            x.get(&p, 1, flag);
            x.fences.fence(&mut x.order, 1, false);
            assert!(x.order.ordered((1, 0), (0, 3), before));
        }
    }

    #[test]
    fn without_fences_nothing_is_kept() {
        let p = Published::default();
        let mut x = Block::new(0, 1);
        x.fences.new_block(1, false);
        x.fence(0);
        x.set(&p, 0, A);
        x.get(&p, 0, A);
        assert!(!x.fences.enabled() && !x.fences.has_fenced(0));
        assert!(p.get(4096).is_none());
    }
}
