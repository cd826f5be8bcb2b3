//! `cp.async` groups of a warp: which copies are under way, by lane.
//!
//! Every lane has groups of its own: `commit_group` closes the one that it has open. Bytes are copied when the instruction
//! is executed; until the lane has waited they count as in flight.

use crate::exec::lanes::{LANES, lane_mask};
use crate::mem::pattern::Offsets;
use crate::mem::shared::Flight;

/// One `cp.async` of a warp.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    /// Instruction.
    pc: u32,
    /// Groups that its lanes had closed before it.
    group: u32,
    /// Lanes that have not waited for it.
    lanes: u32,
    /// Where the lowest lane wrote, from the start of the block's shared memory.
    base: u32,
    /// Bytes of a lane.
    width: u32,
    /// Distances of the lanes from it.
    offsets: Offsets,
}

impl Copy {
    /// The words that the lanes wrote, neighbours put together.
    fn flights(&self, lanes: u32, out: &mut Vec<Flight>) {
        let count = self.width / 4;
        let from = out.len();
        for lane in (0..LANES).filter(|l| lanes >> l & 1 != 0) {
            let word = self.base.wrapping_add_signed(self.offsets[lane]) / 4;
            match out[from..].last_mut() {
                Some(last) if last.word + last.count == word => last.count += count,
                _ => out.push(Flight { word, count }),
            }
        }
    }
}

/// The copies of a warp.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    pending: Vec<Copy>,
    /// Groups that each lane has closed.
    closed: [u32; LANES],
}

impl Copies {
    /// At the start of a block.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.closed = [0; LANES];
    }

    /// Copies of `width` bytes to `base + offsets` begin.
    pub(crate) fn begin(&mut self, pc: u32, lanes: u32, base: u32, width: u32, offsets: &Offsets) {
        let mut left = lanes;
        while left != 0 {
            let group = self.closed[left.trailing_zeros() as usize & 31];
            let same = left & lane_mask(|l| self.closed[l] == group);
            self.pending.push(Copy { pc, group, lanes: same, base, width, offsets: *offsets });
            left &= !same;
        }
    }

    /// `commit_group`
    pub(crate) fn commit(&mut self, lanes: u32) {
        for (lane, closed) in self.closed.iter_mut().enumerate() {
            *closed += lanes >> lane & 1;
        }
    }

    /// `wait_group`: all but the last `keep` closed groups of these lanes are over; their words are appended.
    pub(crate) fn wait(&mut self, lanes: u32, keep: u32, out: &mut Vec<Flight>) {
        if self.pending.is_empty() {
            return;
        }
        let closed = self.closed;
        self.finish(out, |group| {
            lanes & lane_mask(|l| u64::from(closed[l]) > u64::from(group) + u64::from(keep))
        });
    }

    /// Everything that these lanes began is over, whether in a closed group or not; its words are appended.
    pub(crate) fn take(&mut self, lanes: u32, out: &mut Vec<Flight>) {
        self.finish(out, |_| lanes);
    }

    /// Removes the lanes that `over` gives for a group.
    fn finish(&mut self, out: &mut Vec<Flight>, over: impl Fn(u32) -> u32) {
        self.pending.retain_mut(|copy| {
            let lanes = copy.lanes & over(copy.group);
            copy.flights(lanes, out);
            copy.lanes &= !lanes;
            copy.lanes != 0
        });
    }

    /// Forgets the copies of these lanes; gives the instruction and the lanes of each.
    pub(crate) fn drop(&mut self, lanes: u32) -> Vec<(u32, u32)> {
        let mut dropped = Vec::new();
        self.pending.retain_mut(|copy| {
            if copy.lanes & lanes != 0 {
                dropped.push((copy.pc, copy.lanes & lanes));
            }
            copy.lanes &= !lanes;
            copy.lanes != 0
        });
        dropped
    }

    /// Lanes that began copies and have not waited for them.
    #[cfg(test)]
    fn waiting(&self) -> u32 {
        self.pending.iter().fold(0, |m, c| m | c.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contiguous() -> Offsets {
        std::array::from_fn(|l| 16 * l as i32)
    }

    fn waited(c: &mut Copies, lanes: u32, keep: u32) -> Vec<(u32, u32)> {
        let mut out = Vec::new();
        c.wait(lanes, keep, &mut out);
        out.iter().map(|f| (f.word, f.count)).collect()
    }

    #[test]
    fn groups_end_in_order() {
        let mut c = Copies::default();
        for stage in 0..3 {
            c.begin(7, u32::MAX, 512 * stage, 16, &contiguous());
            c.commit(u32::MAX);
        }
        assert_eq!(waited(&mut c, u32::MAX, 3), []);
        assert_eq!(waited(&mut c, u32::MAX, 2), [(0, 128)]);
        assert_eq!(waited(&mut c, u32::MAX, 2), []);
        assert_eq!(waited(&mut c, u32::MAX, 0), [(128, 128), (256, 128)]);
        assert_eq!(c.waiting(), 0);
    }

    #[test]
    fn an_open_group_is_not_waited_for() {
        let mut c = Copies::default();
        c.begin(7, u32::MAX, 0, 16, &contiguous());
        assert_eq!(waited(&mut c, u32::MAX, 0), []);
        assert_eq!(c.waiting(), u32::MAX);
        assert_eq!(c.drop(0b11), [(7, 0b11)]);
        let mut out = Vec::new();
        c.take(u32::MAX, &mut out);
        assert_eq!((out.len(), c.waiting()), (1, 0));
        assert_eq!(c.drop(u32::MAX), []);
    }

    #[test]
    fn empty_groups_count() {
        let mut c = Copies::default();
        c.begin(7, u32::MAX, 0, 16, &contiguous());
        c.commit(u32::MAX);
        c.commit(u32::MAX);
        assert_eq!(waited(&mut c, u32::MAX, 1), [(0, 128)]);
    }

    #[test]
    fn lanes_have_their_own_groups() {
        let mut c = Copies::default();
        // Lane 0 closes a group more than the others before all copy together.
        c.commit(1);
        c.begin(7, 0b11, 0, 4, &std::array::from_fn(|l| 64 * l as i32));
        c.commit(0b11);
        assert_eq!(waited(&mut c, 0b01, 0), [(0, 1)]);
        assert_eq!(c.waiting(), 0b10);
        assert_eq!(waited(&mut c, 0b11, 0), [(16, 1)]);
        c.begin(7, u32::MAX, 256, 8, &std::array::from_fn(|l| -8 * l as i32));
        c.commit(u32::MAX);
        assert_eq!(waited(&mut c, 0b110, 0), [(62, 2), (60, 2)]);
        assert_eq!(c.waiting(), !0b110);
    }
}
