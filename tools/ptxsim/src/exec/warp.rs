//! One warp: registers, divergence, and what it waits for.

use super::lanes::Row;

/// A row of the register file, aligned for vector loads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct AlignedRow(pub Row);

/// A call that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Instruction after the call.
    pub return_pc: u32,
    /// Call site, index into `Code::calls`.
    pub call: u32,
    /// Function that was called.
    pub function: u32,
}

/// Lanes that are together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Next instruction.
    pub pc: u32,
    /// Which lanes.
    pub mask: u32,
    /// Calls they are in.
    pub stack: Vec<Frame>,
}

/// What lanes of a warp wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// A barrier of the block.
    Barrier(u32),
    /// `bar.warp.sync` with this member mask.
    WarpSync(u32),
}

/// Lanes that wait; they go on at `split.pc`, already past the instruction they wait at.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The lanes.
    pub split: Split,
    /// For what.
    pub on: WaitFor,
    /// The instruction.
    pub at: u32,
}

/// Whether the scheduler may run the warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Yes.
    Ready,
    /// It gave up its turn because it waits for others without standing still: a failed `mbarrier` wait, `nanosleep`, a
    /// loop around an atomic or a volatile load.
    Yield {
        /// The `mbarrier` wait; `None` for the others.
        polling: Option<u32>,
    },
    /// Every lane that lives waits.
    Waiting,
    /// No lane lives.
    Done,
}

/// A warp that is not running now; the running one has `pc`, `active` and the register pointers in `Cx`.
#[derive(Clone)]
pub struct Warp {
    /// Register file.
    pub regs: Vec<AlignedRow>,
    /// Predicates; index 0 is true.
    pub preds: Vec<u32>,
    /// The lanes that run now.
    pub current: Split,
    /// Other lanes that could run.
    pub splits: Vec<Split>,
    /// Lanes that gave up their turn while others of the warp could run; they come back when those have had theirs.
    pub benched: Vec<Split>,
    /// Lanes that wait.
    pub waiting: Vec<Waiting>,
    /// Lanes that exist and have not exited.
    pub live: u32,
    /// For the scheduler.
    pub state: State,
    /// Instructions executed in earlier turns.
    pub executed: u64,
    /// Local memory and call parameters: lane-major, `Code::local_bytes` each.
    pub local: Vec<u8>,
}

impl Warp {
    /// Depth first, then the lowest instruction: callees finish before their callers go on together.
    fn rank(split: &Split) -> (usize, u32) {
        (usize::MAX - split.stack.len(), split.pc)
    }

    /// Puts the current lanes (if any) back among the others, joins those at the same place, and makes the first in rank
    /// current. Returns the instruction at which the next change can happen, or `None` when no lane can run.
    pub fn reschedule(&mut self) -> Option<u32> {
        if self.current.mask != 0 {
            let current = std::mem::take(&mut self.current);
            self.splits.push(current);
        }
        self.current = Split::default();
        if self.splits.is_empty() {
            std::mem::swap(&mut self.splits, &mut self.benched);
        }
        let best = self.splits.iter().map(Self::rank).min()?;
        let first = self.splits.iter().position(|s| Self::rank(s) == best)?;
        let mut chosen = self.splits.swap_remove(first);
        self.splits.retain(|s| {
            let same = s.pc == chosen.pc && s.stack == chosen.stack;
            if same {
                chosen.mask |= s.mask;
            }
            !same
        });
        self.current = chosen;
        Some(self.next_change())
    }

    /// After the current lanes gave up their turn: lets other lanes of the warp go first, so that those who wait for them
    /// (for a lock that one of them holds) do not keep them from running. Lanes that run ahead like this may reach an
    /// instruction that wants all of them: see `Cx::come_later`.
    pub fn rotate(&mut self) {
        // Lanes that sit out at this very place belong to these.
        let current = &mut self.current;
        self.benched.retain(|s| {
            let same = s.pc == current.pc && s.stack == current.stack;
            if same {
                current.mask |= s.mask;
            }
            !same
        });
        if self.splits.is_empty() {
            std::mem::swap(&mut self.splits, &mut self.benched);
        }
        if !self.splits.is_empty() {
            let current = std::mem::take(&mut self.current);
            if current.mask != 0 {
                self.benched.push(current);
            }
            self.reschedule();
        }
    }

    /// Lowest instruction among the other lanes at the same depth of calls; `u32::MAX` if there are none.
    pub fn next_change(&self) -> u32 {
        let depth = self.current.stack.len();
        self.splits.iter().filter(|s| s.stack.len() == depth).map(|s| s.pc).min().unwrap_or(u32::MAX)
    }
}

impl Warp {
    /// Writes one value to the lanes of a row; for results that come while the warp waits.
    pub fn set_row(&mut self, slot: super::inst::Slot, mask: u32, value: u32) {
        let row = &mut self.regs[slot.0 as usize].0;
        for (lane, x) in row.iter_mut().enumerate() {
            if mask >> lane & 1 != 0 {
                *x = value;
            }
        }
    }

    /// Writes one truth to the lanes of a predicate.
    pub fn set_pred(&mut self, index: u32, mask: u32, value: bool) {
        let p = &mut self.preds[index as usize];
        *p = if value { *p | mask } else { *p & !mask };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pc: u32, mask: u32) -> Split {
        Split { pc, mask, stack: Vec::new() }
    }

    fn warp(current: Split, splits: &[Split]) -> Warp {
        Warp {
            regs: Vec::new(),
            preds: Vec::new(),
            current,
            splits: splits.to_vec(),
            benched: Vec::new(),
            waiting: Vec::new(),
            live: u32::MAX,
            state: State::Ready,
            executed: 0,
            local: Vec::new(),
        }
    }

    #[test]
    fn the_lowest_place_goes_first_and_lanes_join() {
        let mut w = warp(at(9, 0b1), &[at(7, 0b10), at(20, 0b100), at(7, 0b1000)]);
        assert_eq!(w.reschedule(), Some(9));
        assert_eq!(w.current, at(7, 0b1010));
        assert_eq!(w.splits.len(), 2);
    }

    #[test]
    fn callees_go_before_their_callers() {
        let inside = Split { stack: vec![Frame { return_pc: 8, call: 0, function: 1 }], ..at(50, 0b10) };
        let mut w = warp(at(3, 0b1), std::slice::from_ref(&inside));
        assert_eq!(w.reschedule(), Some(u32::MAX), "nobody else is at that depth");
        assert_eq!(w.current, inside);
    }

    #[test]
    fn lanes_that_poll_take_turns() {
        let mut w = warp(at(1, 0b1), &[at(5, 0b10)]);
        w.rotate();
        assert_eq!((w.current.pc, w.benched.len()), (5, 1));
        w.rotate();
        assert_eq!((w.current.pc, w.benched.len()), (1, 1));
        // The others wait or end: those that sat out go on.
        w.current = Split::default();
        assert_eq!(w.reschedule(), Some(u32::MAX));
        assert_eq!(w.current, at(5, 0b10));
    }

    #[test]
    fn lanes_that_sat_out_join_those_that_come_to_them() {
        let mut w = warp(at(5, 0b1), &[]);
        w.benched = vec![at(5, 0b10), at(2, 0b100)];
        w.rotate();
        assert_eq!((w.current.clone(), w.benched.clone()), (at(2, 0b100), vec![at(5, 0b11)]));
        w.rotate();
        assert_eq!(w.current, at(5, 0b11));
        w.benched.clear();
        w.rotate();
        assert_eq!(w.current, at(5, 0b11), "nobody else is there");
    }
}
