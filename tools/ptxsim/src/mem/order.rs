//! What happened before what inside a block.
//!
//! A block has one clock, `now`, which advances at every event that orders anything. An access carries the time at which
//! it was made. For two warps, `seen[w][u]` is the time up to which warp `u`'s accesses happened before whatever warp `w`
//! does next. For two lanes of one warp, an access is ordered once both have met in a `__syncwarp` (or a barrier) since.
//! Where a part of a warp synchronises, the rule errs on the side of calling things ordered: it may miss a mistake, but
//! it never reports one that is none.

/// Warps that a block can have: 1024 threads.
pub const MAX_WARPS: usize = 32;

/// Times up to which each warp's accesses are covered: what a release hands to an acquire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// By warp.
    pub seen: [u32; MAX_WARPS],
}

impl Token {
    /// Covers nothing.
    pub const NOTHING: Token = Token { seen: [0; MAX_WARPS] };

    /// Covers what either covers.
    pub fn merge(&mut self, other: &Token) {
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            *a = (*a).max(*b);
        }
    }
}

/// Clock and order of one block.
#[derive(Clone, Debug)]
pub struct OrderState {
    now: u32,
    start: u32,
    full: u32,
    warps: usize,
    seen: Box<[[u32; MAX_WARPS]; MAX_WARPS]>,
    lane_sync: Box<[[u32; 32]; MAX_WARPS]>,
    floor: [u32; MAX_WARPS],
    own_floor: [u32; MAX_WARPS],
}

impl Default for OrderState {
    fn default() -> Self {
        Self::new()
    }
}

impl OrderState {
    /// A clock before its first block.
    pub fn new() -> Self {
        OrderState {
            now: 1,
            start: 1,
            full: 0,
            warps: 0,
            seen: Box::new([[0; MAX_WARPS]; MAX_WARPS]),
            lane_sync: Box::new([[0; 32]; MAX_WARPS]),
            floor: [0; MAX_WARPS],
            own_floor: [0; MAX_WARPS],
        }
    }

    /// Begins a block of `warps` warps: everything before is over. The clock goes on, so that times left in shadows by
    /// earlier blocks count as ordered. True where the clock began anew: shadows must be cleared then.
    pub fn new_block(&mut self, warps: usize) -> bool {
        assert!((1..=MAX_WARPS).contains(&warps), "a block has 1 to {MAX_WARPS} warps, not {warps}");
        let wrapped = self.now >= 0xE000_0000;
        if wrapped {
            self.now = 0;
        }
        self.warps = warps;
        self.full_barrier();
        self.start = self.now;
        wrapped
    }

    /// The time that an access made now carries.
    #[inline(always)]
    pub fn now(&self) -> u32 {
        self.now
    }

    /// Time of the block's first accesses.
    #[inline(always)]
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Time of the last barrier of the whole block; the time before its start if there was none.
    #[inline(always)]
    pub fn last_full_barrier(&self) -> u32 {
        self.full
    }

    /// Accesses up to this time happened before warp `w`'s next one, whoever made them.
    #[inline(always)]
    pub fn floor(&self, w: usize) -> u32 {
        self.floor[w & (MAX_WARPS - 1)]
    }

    /// Accesses of warp `w` itself up to this time happened before its next one, whichever lane made them.
    #[inline(always)]
    pub fn own_floor(&self, w: usize) -> u32 {
        self.own_floor[w & (MAX_WARPS - 1)]
    }

    /// Time up to which warp `u`'s accesses happened before warp `w`'s next one.
    #[inline(always)]
    pub fn seen(&self, w: usize, u: usize) -> u32 {
        self.seen[w & (MAX_WARPS - 1)][u & (MAX_WARPS - 1)]
    }

    /// `seen` of all warps.
    #[inline(always)]
    pub fn seen_row(&self, w: usize) -> &[u32; MAX_WARPS] {
        &self.seen[w & (MAX_WARPS - 1)]
    }

    /// Last time that `lane` of warp `w` took part in a `__syncwarp` or a barrier.
    #[inline(always)]
    pub fn lane_sync(&self, w: usize, lane: usize) -> u32 {
        self.lane_sync[w & (MAX_WARPS - 1)][lane & 31]
    }

    /// Warps of the block.
    pub fn warps(&self) -> usize {
        self.warps
    }

    /// A time as the global shadow keeps it: from 1 at the block's start, 0 before it.
    #[inline(always)]
    pub fn relative(&self, stamp: u32) -> u32 {
        (stamp + 1).saturating_sub(self.start)
    }

    /// All warps meet.
    pub fn full_barrier(&mut self) {
        let t = self.now;
        for w in 0..self.warps {
            self.seen[w] = [t; MAX_WARPS];
            self.lane_sync[w] = [t; 32];
            self.floor[w] = t;
            self.own_floor[w] = t;
        }
        self.full = t;
        self.now = t + 1;
    }

    /// The warps of the mask meet (a named barrier that all of them wait for).
    pub fn barrier_among(&mut self, warps: u32) {
        let t = self.now;
        let mut merged = [0; MAX_WARPS];
        for w in bits(warps) {
            for (m, s) in merged.iter_mut().zip(&self.seen[w]) {
                *m = (*m).max(*s);
            }
        }
        for w in bits(warps) {
            merged[w] = t;
        }
        self.now = t + 1;
        for w in bits(warps) {
            self.seen[w] = merged;
            self.lane_sync[w] = [t; 32];
            self.update_floor(w);
        }
    }

    /// Warp `w` publishes what it did and what it saw: `bar.arrive`, `mbarrier.arrive`, a fence before a store.
    ///
    /// All lanes' accesses are taken as published, even where one lane arrives for them without a `__syncwarp`.
    pub fn release(&mut self, w: usize) -> Token {
        let mut token = Token { seen: self.seen[w] };
        token.seen[w] = self.now;
        self.now += 1;
        token
    }

    /// Warp `w` has waited for what `token` published.
    pub fn acquire(&mut self, w: usize, token: &Token) {
        for (s, t) in self.seen[w].iter_mut().zip(&token.seen) {
            *s = (*s).max(*t);
        }
        let own = token.seen[w];
        for s in &mut self.lane_sync[w] {
            *s = (*s).max(own);
        }
        self.update_floor(w);
    }

    /// Lanes of warp `w` meet: `bar.warp.sync`.
    pub fn syncwarp(&mut self, w: usize, lanes: u32) {
        let t = self.now;
        for lane in bits(lanes) {
            self.lane_sync[w][lane] = t;
        }
        self.now = t + 1;
        self.update_floor(w);
    }

    /// Whether an access that lane `i` of warp `u` made at `stamp` happened before lane `j` of warp `w`'s next one.
    pub fn ordered(&self, (w, j): (usize, usize), (u, i): (usize, usize), stamp: u32) -> bool {
        if u != w {
            stamp <= self.seen[w][u]
        } else {
            i == j || (stamp <= self.lane_sync[w][i] && stamp <= self.lane_sync[w][j])
        }
    }

    fn update_floor(&mut self, w: usize) {
        let own = self.lane_sync[w].iter().fold(u32::MAX, |m, &s| m.min(s));
        let mut floor = own;
        for u in 0..self.warps {
            if u != w {
                floor = floor.min(self.seen[w][u]);
            }
        }
        self.own_floor[w] = own;
        self.floor[w] = floor;
    }
}

/// The set bits of a mask, lowest first.
pub fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let bit = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(warps: usize) -> OrderState {
        let mut order = OrderState::new();
        assert!(!order.new_block(warps));
        order
    }

    #[test]
    fn a_barrier_orders_everything() {
        let mut order = block(2);
        let t = order.now();
        assert!(!order.ordered((1, 3), (0, 3), t));
        order.full_barrier();
        assert!(order.ordered((1, 3), (0, 3), t));
        assert!(order.ordered((1, 3), (1, 4), t));
        assert_eq!(order.floor(0), t);
        assert!(!order.ordered((1, 3), (0, 3), order.now()));
    }

    #[test]
    fn a_named_barrier_orders_its_warps_only() {
        let mut order = block(3);
        let t = order.now();
        order.barrier_among(0b011);
        assert!(order.ordered((1, 0), (0, 5), t) && order.ordered((0, 0), (1, 5), t));
        assert!(!order.ordered((2, 0), (0, 5), t) && !order.ordered((0, 0), (2, 5), t));
        assert!(order.floor(0) < t, "warp 2 is not ordered before warp 0");
        assert_eq!(order.own_floor(0), t);
        // Through a second barrier warp 2 learns of warp 0 by way of warp 1.
        order.barrier_among(0b110);
        assert!(order.ordered((2, 0), (0, 5), t));
    }

    #[test]
    fn release_and_acquire_go_one_way() {
        let mut order = block(2);
        let before = order.now();
        let token = order.release(0);
        let after = order.now();
        order.acquire(1, &token);
        assert!(order.ordered((1, 0), (0, 0), before));
        assert!(!order.ordered((1, 0), (0, 0), after));
        assert!(!order.ordered((0, 0), (1, 0), before));
    }

    #[test]
    fn syncwarp_orders_its_lanes() {
        let mut order = block(1);
        let t = order.now();
        assert!(order.ordered((0, 4), (0, 4), t), "a lane and itself");
        assert!(!order.ordered((0, 4), (0, 5), t));
        order.syncwarp(0, 0b11_0000);
        assert!(order.ordered((0, 4), (0, 5), t));
        assert!(!order.ordered((0, 4), (0, 6), t));
        order.syncwarp(0, u32::MAX);
        assert!(order.ordered((0, 4), (0, 6), t));
        assert_eq!(order.floor(0), order.now() - 1);
    }

    #[test]
    fn a_new_block_has_seen_everything_before_it() {
        let mut order = block(4);
        let t = order.now();
        order.new_block(2);
        assert!(order.floor(0) >= t && order.floor(1) >= t);
        assert_eq!(order.relative(t), 0);
        assert_eq!(order.relative(order.now()), 1);
        order.full_barrier();
        assert_eq!(order.relative(order.now()), 2);
    }

    #[test]
    fn the_clock_begins_anew_before_it_overflows() {
        let mut order = block(1);
        order.now = 0xE000_0000;
        assert!(order.new_block(1));
        assert!(order.now() < 10);
    }
}
