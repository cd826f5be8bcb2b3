//! Hazards between lanes of one warp, the same in shared and in global memory.

use super::order::{OrderState, bits};
use super::who::{self, STRONG, Toucher};

/// An access to a word, and whether it writes.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Lanes, mode, mask, warp and flags, as in the shadows.
    pub info: u32,
    /// It writes.
    pub writes: bool,
}

/// Whether the two touch a common byte in a way that could conflict, order apart.
#[inline(always)]
pub fn meet(a: u32, b: u32) -> bool {
    a & b & 15 != 0 && a & b & STRONG == 0
}

/// A pair of lanes (before, now) of warp `w` that conflict: `before` was made at `stamp`. `None` where nothing is certain.
pub fn conflict(
    order: &OrderState,
    w: usize,
    before: Touch,
    stamp: u32,
    now: Touch,
) -> Option<(usize, usize)> {
    if !meet(before.info, now.info) || who::same_thread(before.info, now.info) || stamp <= order.own_floor(w)
    {
        return None;
    }
    let late = |lane: usize| stamp > order.lane_sync(w, lane);
    for b in bits(before.info & now.info & 15) {
        let found = match (who::toucher(before.info, b), who::toucher(now.info, b)) {
            (Toucher::Lane(i), Toucher::Lane(j)) => (i != j && (late(i) || late(j))).then_some((i, j)),
            // Whichever of the many lanes it was, another one than `j` is among them; but where they wrote and `j` reads,
            // `j` may be reading its own.
            (Toucher::Many, Toucher::Lane(j)) => ((!before.writes || now.writes) && late(j))
                .then(|| (other_than(j, who::lane(before.info)), j)),
            (Toucher::Lane(i), Toucher::Many) => late(i).then(|| (i, other_than(i, who::lane(now.info)))),
            (Toucher::Many, Toucher::Many) => (!before.writes && now.writes && (0..32).all(late))
                .then(|| (who::lane(before.info), who::lane(now.info))),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// For the message only: the first lane of several is known, and if it is `lane` itself the next one stands for the rest.
fn other_than(lane: usize, first: usize) -> usize {
    if first == lane { (lane + 1) & 31 } else { first }
}

/// The lane to name as the maker of an access to a common byte.
pub fn name_lane(info: u32, common: u32) -> usize {
    match who::toucher(info, (common & 15).trailing_zeros() as usize & 3) {
        Toucher::Lane(l) => l,
        Toucher::Many | Toucher::Unknown => who::lane(info) & 31,
    }
}
