//! The state of an `mbarrier` object.
//!
//! In memory it is one opaque 64-bit word, here: bits 0 to 19 the arrivals that the next phases expect, 20 to 39 those
//! that the current one still waits for, 40 to 61 the bytes that it waits for (signed), 62 the parity of its number, 63
//! set. `mbarrier.arrive` gives the word from before the arrival.

/// Most arrivals of a phase.
pub(crate) const MAX_COUNT: u32 = (1 << 20) - 1;
/// Most bytes that a phase can wait for, either way.
const MAX_BYTES: i64 = (1 << 20) - 1;

/// An `mbarrier` object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    /// Arrivals that each further phase expects.
    pub(crate) expected: u32,
    /// Arrivals that the current phase waits for.
    pub(crate) pending: u32,
    /// Bytes that it waits for.
    pub(crate) bytes: i32,
    /// Parity of the current phase's number.
    pub(crate) odd: bool,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The phase goes on.
    Open,
    /// The phase is complete, and the next one has begun.
    Complete,
}

impl Phase {
    /// `mbarrier.init`
    pub(crate) fn new(count: u32) -> Result<Phase, String> {
        if count == 0 || count > MAX_COUNT {
            return Err(format!("an mbarrier counts 1 to {MAX_COUNT} arrivals, not {count}"));
        }
        Ok(Phase { expected: count, pending: count, bytes: 0, odd: false })
    }

    /// As it lies in memory.
    pub(crate) fn word(self) -> u64 {
        u64::from(self.expected)
            | u64::from(self.pending) << 20
            | (self.bytes as u64 & 0x3F_FFFF) << 40
            | u64::from(self.odd) << 62
            | 1 << 63
    }

    /// From a word that `word` made.
    pub(crate) fn of(word: u64) -> Option<Phase> {
        (word >> 63 != 0).then_some(Phase {
            expected: word as u32 & MAX_COUNT,
            pending: (word >> 20) as u32 & MAX_COUNT,
            bytes: ((word << 2) as i64 >> 42) as i32,
            odd: word >> 62 & 1 != 0,
        })
    }

    /// So many arrivals; with `drop` the next phases expect as many fewer.
    pub(crate) fn arrive(&mut self, count: u32, drop: bool) -> Result<Step, String> {
        if count == 0 {
            return Err("an arrival of 0 threads".into());
        }
        if count > self.pending {
            return Err(format!("{count} arrivals at an mbarrier that waits for {} more", self.pending));
        }
        self.pending -= count;
        if drop {
            self.expected = self.expected.saturating_sub(count);
        }
        Ok(self.step())
    }

    /// The phase waits for so many bytes more.
    pub(crate) fn expect(&mut self, bytes: u32) -> Result<(), String> {
        self.add(i64::from(bytes))
    }

    /// So many bytes have come.
    pub(crate) fn complete(&mut self, bytes: u32) -> Result<Step, String> {
        self.add(-i64::from(bytes))?;
        Ok(self.step())
    }

    /// The phase waits for one arrival more, which a `cp.async.mbarrier.arrive` makes.
    pub(crate) fn increment(&mut self) -> Result<(), String> {
        if self.pending == MAX_COUNT {
            return Err(format!("more than {MAX_COUNT} arrivals are pending"));
        }
        self.pending += 1;
        Ok(())
    }

    fn add(&mut self, bytes: i64) -> Result<(), String> {
        let sum = i64::from(self.bytes) + bytes;
        if sum.abs() > MAX_BYTES {
            return Err(format!("the byte count of an mbarrier would be {sum}; its limit is {MAX_BYTES}"));
        }
        self.bytes = sum as i32;
        Ok(())
    }

    fn step(&mut self) -> Step {
        if self.pending != 0 || self.bytes != 0 {
            return Step::Open;
        }
        self.pending = self.expected;
        self.odd = !self.odd;
        Step::Complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_word_holds_everything(
            expected in 0..=MAX_COUNT,
            pending in 0..=MAX_COUNT,
            bytes in -MAX_BYTES..=MAX_BYTES,
            odd: bool,
        ) {
            let p = Phase { expected, pending, bytes: bytes as i32, odd };
            prop_assert_eq!(Phase::of(p.word()), Some(p));
        }
    }

    #[test]
    fn arrivals_complete_phases() -> Result<(), String> {
        let mut p = Phase::new(3)?;
        assert_eq!(p.arrive(2, false)?, Step::Open);
        assert_eq!(p.arrive(1, false)?, Step::Complete);
        assert_eq!((p.odd, p.pending), (true, 3));
        assert!(p.arrive(4, false).is_err());
        assert_eq!(p.arrive(1, true)?, Step::Open);
        assert_eq!(p.arrive(2, false)?, Step::Complete);
        assert_eq!((p.odd, p.pending), (false, 2));
        Ok(())
    }

    #[test]
    fn bytes_count_too() -> Result<(), String> {
        let mut p = Phase::new(1)?;
        p.expect(4096)?;
        assert_eq!(p.arrive(1, false)?, Step::Open);
        assert!(p.arrive(1, false).is_err(), "the phase has all its arrivals");
        assert_eq!(p.complete(4000)?, Step::Open);
        assert_eq!(p.complete(96)?, Step::Complete);
        // Bytes may come before they are expected.
        assert_eq!(p.complete(16)?, Step::Open);
        p.expect(16)?;
        assert_eq!(p.arrive(1, false)?, Step::Complete);
        assert!(p.expect(1 << 20).is_err() && p.complete(1 << 20).is_err());
        Ok(())
    }

    #[test]
    fn counts_have_limits() -> Result<(), String> {
        assert!(Phase::new(0).is_err() && Phase::new(1 << 20).is_err());
        let mut p = Phase::new(MAX_COUNT)?;
        assert!(p.increment().is_err() && p.arrive(0, false).is_err());
        assert_eq!(Phase::of(0), None);
        Ok(())
    }
}
