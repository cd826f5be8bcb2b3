//! Memory traffic of one instruction.

use serde::Serialize;
use std::ops::AddAssign;

/// Sums over the executions of one memory instruction.
///
/// Plain sums, so that merging the host threads' parts gives the same result in any order; the one maximum too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Warp instructions with at least one active lane.
    pub requests: u64,
    /// Active lanes.
    pub lanes: u64,
    /// Bytes that the lanes asked for.
    pub bytes: u64,
    /// Distinct bytes among them, per request.
    pub unique_bytes: u64,
    /// Global memory: distinct 32-byte sectors, per request.
    pub sectors: u64,
    /// Shared memory: passes through the 32 banks.
    pub wavefronts: u64,
    /// Shared memory: passes that the distinct bytes would need without conflicts.
    pub ideal_wavefronts: u64,
    /// Lane operations of atomic instructions.
    pub atomics: u64,
    /// Most lanes of one atomic request on one address.
    pub max_collisions: u64,
}

impl Traffic {
    /// Bytes of the sectors moved.
    pub fn sector_bytes(&self) -> u64 {
        self.sectors * 32
    }

    /// Adds one access to the sums.
    #[inline(always)]
    pub fn add(&mut self, pattern: &PatternCounts) {
        self.requests += 1;
        self.lanes += u64::from(pattern.lanes);
        self.bytes += u64::from(pattern.bytes);
        self.unique_bytes += u64::from(pattern.unique_bytes);
        self.sectors += u64::from(pattern.sectors);
        self.wavefronts += u64::from(pattern.wavefronts);
        self.ideal_wavefronts += u64::from(pattern.ideal_wavefronts);
    }

    /// Takes one back: it is executed in parts instead.
    pub fn undo(&mut self, pattern: &PatternCounts) {
        self.requests -= 1;
        self.lanes -= u64::from(pattern.lanes);
        self.bytes -= u64::from(pattern.bytes);
        self.unique_bytes -= u64::from(pattern.unique_bytes);
        self.sectors -= u64::from(pattern.sectors);
        self.wavefronts -= u64::from(pattern.wavefronts);
        self.ideal_wavefronts -= u64::from(pattern.ideal_wavefronts);
    }

    /// Takes one back, but for its passes through the banks.
    pub fn undo_but_passes(&mut self, pattern: &PatternCounts) {
        self.undo(pattern);
        self.wavefronts += u64::from(pattern.wavefronts);
        self.ideal_wavefronts += u64::from(pattern.ideal_wavefronts);
    }

    /// Adds what is special to atomics.
    pub fn add_atomic(&mut self, pattern: &PatternCounts) {
        self.atomics += u64::from(pattern.lanes);
        self.max_collisions = self.max_collisions.max(u64::from(pattern.collisions));
    }
}

impl AddAssign<&Traffic> for Traffic {
    fn add_assign(&mut self, other: &Traffic) {
        self.requests += other.requests;
        self.lanes += other.lanes;
        self.bytes += other.bytes;
        self.unique_bytes += other.unique_bytes;
        self.sectors += other.sectors;
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
        self.atomics += other.atomics;
        self.max_collisions = self.max_collisions.max(other.max_collisions);
    }
}

/// What one access costs, known from its pattern alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatternCounts {
    /// Active lanes.
    pub lanes: u32,
    /// Bytes that the lanes ask for.
    pub bytes: u32,
    /// Distinct ones.
    pub unique_bytes: u32,
    /// Distinct 32-byte sectors.
    pub sectors: u32,
    /// Passes through the banks of shared memory.
    pub wavefronts: u32,
    /// The same without conflicts.
    pub ideal_wavefronts: u32,
    /// Most lanes on one address.
    pub collisions: u32,
}
