//! Which lanes touch which bytes of a word, in eleven bits, and the words of the shadows made of them.
//!
//! Low eleven bits, the same in patterns and in both shadows: `lane 5 | mode 2 | byte mask 4`. Above them in a shadow:
//! warp (5 bits), strong (1), and then the site (shared memory, 15 bits) or time, block and launch (global).

/// Bits of byte mask, mode and lane.
pub const WHO_BITS: u32 = 11;
/// Position of the warp.
pub const WARP_SHIFT: u32 = 11;
/// An atomic, or a load or store that takes part in the memory model's strong operations.
pub const STRONG: u32 = 1 << 16;
/// Position of the site in a shared shadow.
pub const SITE_SHIFT: u32 = 17;
/// Sites from here on are told without their place.
pub const MAX_SITE: u32 = (1 << 15) - 1;
/// Warp, lane and mode: equal and not shared between lanes means the same thread.
pub const THREAD: u32 = 0xFFF0;

const SINGLE: u32 = 0;
const PACKED16: u32 = 1;
const PACKED8: u32 = 2;
const MULTI: u32 = 3;
const MODE_SHIFT: u32 = 4;
const LANE_SHIFT: u32 = 6;
/// Bits of the mode; all set for a word that several lanes touch at once.
pub const MODE_BITS: u32 = 3 << MODE_SHIFT;
/// A whole word, touched by nobody knows which lanes.
pub const UNKNOWN_LANE_WORD: u16 = SCATTERED as u16 | 15;
const SCATTERED: u32 = (31 << LANE_SHIFT) | (PACKED8 << MODE_SHIFT);

/// Who touched one byte of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toucher {
    /// One lane.
    Lane(usize),
    /// Two lanes or more.
    Many,
    /// Not recorded.
    Unknown,
}

/// One lane touches the masked bytes.
pub fn single(lane: u32, mask: u32) -> u16 {
    ((lane << LANE_SHIFT) | (SINGLE << MODE_SHIFT) | mask) as u16
}

/// Several lanes touch each of the masked bytes; `lane` is the first.
pub fn multi(lane: u32, mask: u32) -> u16 {
    ((lane << LANE_SHIFT) | (MULTI << MODE_SHIFT) | mask) as u16
}

/// From the lanes that touch each byte (a lane mask per byte) the best description there is.
pub fn describe(lanes: [u32; 4]) -> u16 {
    let mask = (0..4).filter(|&b| lanes[b] != 0).fold(0, |m, b| m | 1 << b);
    let touched = || lanes.into_iter().filter(|&l| l != 0);
    if touched().all(|l| l.count_ones() > 1) {
        return multi(touched().next().unwrap_or(1).trailing_zeros(), mask);
    }
    if touched().all(|l| l.count_ones() == 1) {
        let lane = |b: usize| lanes[b].trailing_zeros();
        let first = mask.trailing_zeros() as usize;
        if (0..4).all(|b| lanes[b] == 0 || lanes[b] == lanes[first]) {
            return single(lane(first), mask);
        }
        if lanes[0] == lanes[1] && lanes[2] == lanes[3] && mask == 15 && lane(2) == lane(0) + 1 {
            return ((lane(0) << LANE_SHIFT) | (PACKED16 << MODE_SHIFT) | mask) as u16;
        }
        if let Some(zero) = lane(first).checked_sub(first as u32)
            && (0..4).all(|b| lanes[b] == 0 || lane(b) == zero + b as u32)
            && zero < 31
        {
            return ((zero << LANE_SHIFT) | (PACKED8 << MODE_SHIFT) | mask) as u16;
        }
    }
    (SCATTERED | mask) as u16
}

/// Byte mask.
#[inline(always)]
pub fn mask(info: u32) -> u32 {
    info & 15
}

/// First lane.
#[inline(always)]
pub fn lane(info: u32) -> usize {
    (info >> LANE_SHIFT) as usize & 31
}

/// Warp.
#[inline(always)]
pub fn warp(info: u32) -> usize {
    (info >> WARP_SHIFT) as usize & 31
}

/// Several lanes touch each byte.
#[inline(always)]
pub fn is_multi(info: u32) -> bool {
    info & MODE_BITS == MODE_BITS
}

/// Exactly the same single lane touches each byte in both, so far as recorded.
#[inline(always)]
pub fn same_thread(a: u32, b: u32) -> bool {
    (a ^ b) & THREAD == 0 && !is_multi(a) && a & 0x7F0 != SCATTERED
}

/// Who touched byte `b`.
pub fn toucher(info: u32, b: usize) -> Toucher {
    let first = lane(info);
    match info >> MODE_SHIFT & 3 {
        SINGLE => Toucher::Lane(first),
        PACKED16 => Toucher::Lane(first + b / 2),
        PACKED8 if first == 31 => Toucher::Unknown,
        PACKED8 => Toucher::Lane(first + b),
        _ => Toucher::Many,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_what_lanes_touch() {
        let one = |l: u32| 1u32 << l;
        let info = u32::from(describe([one(7); 4]));
        assert_eq!((mask(info), lane(info), toucher(info, 3)), (15, 7, Toucher::Lane(7)));
        let info = u32::from(describe([one(4), one(4), one(5), one(5)]));
        assert_eq!((toucher(info, 1), toucher(info, 2)), (Toucher::Lane(4), Toucher::Lane(5)));
        let info = u32::from(describe([one(8), one(9), one(10), one(11)]));
        assert_eq!((toucher(info, 0), toucher(info, 3)), (Toucher::Lane(8), Toucher::Lane(11)));
        let info = u32::from(describe([0, one(9), 0, one(11)]));
        assert_eq!(
            (mask(info), toucher(info, 1), toucher(info, 3)),
            (10, Toucher::Lane(9), Toucher::Lane(11))
        );
        let info = u32::from(describe([6, 6, 0, 0]));
        assert_eq!((mask(info), lane(info), toucher(info, 0)), (3, 1, Toucher::Many));
        let info = u32::from(describe([one(3), one(1), 0, 0]));
        assert_eq!((mask(info), toucher(info, 0)), (3, Toucher::Unknown));
        let info = u32::from(describe([6, one(1), 0, 0]));
        assert_eq!(toucher(info, 0), Toucher::Unknown);
        let info = u32::from(describe([one(31), 0, 0, 0]));
        assert_eq!(toucher(info, 0), Toucher::Lane(31));
    }

    #[test]
    fn the_same_thread() {
        let a = u32::from(single(3, 15)) | 2 << WARP_SHIFT;
        assert!(same_thread(a, a | STRONG));
        assert!(!same_thread(a, u32::from(single(4, 15)) | 2 << WARP_SHIFT));
        assert!(!same_thread(a, u32::from(single(3, 15)) | 1 << WARP_SHIFT));
        let m = u32::from(multi(3, 15));
        assert!(!same_thread(m, m));
        let s = u32::from(describe([8, 2, 0, 0]));
        assert!(!same_thread(s, s));
    }
}
