//! Memory traffic of a launch, by space and direction.

use crate::exec::inst::Class;
use crate::mem::stats::Traffic;
use serde::Serialize;
use std::collections::BTreeMap;

/// `a / b`, unless there is nothing to divide by.
pub(super) fn ratio(a: u64, b: u64) -> Option<f64> {
    (b != 0).then(|| a as f64 / b as f64)
}

/// Accesses to global memory in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GlobalTraffic {
    /// Warp accesses.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Of these, each byte counted once a request.
    pub distinct_bytes: u64,
    /// 32-byte sectors touched, each counted once a request.
    pub sectors: u64,
    /// Sectors of a request; 4 is a full line of 128 bytes.
    pub sectors_per_request: Option<f64>,
    /// Distinct bytes asked for, of the bytes of the sectors: 1 where nothing moves in vain.
    pub efficiency: Option<f64>,
}

/// Accesses to shared memory in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SharedTraffic {
    /// Warp accesses.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Passes through the banks.
    pub wavefronts: u64,
    /// Passes that the distinct bytes need where no two words lie in one bank.
    pub ideal_wavefronts: u64,
    /// Passes of ideal ones: 1 without bank conflicts.
    pub conflict_factor: Option<f64>,
}

/// Accesses to a thread's own memory, or to constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlainTraffic {
    /// Warp accesses.
    pub requests: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// 32-byte sectors touched.
    pub sectors: u64,
}

/// Atomic operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AtomicTraffic {
    /// Warp accesses.
    pub requests: u64,
    /// Operations of single lanes.
    pub operations: u64,
    /// Most lanes of one request that met at one address.
    pub most_collisions: u64,
}

/// Copies that go on beside the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AsyncTraffic {
    /// Warp instructions.
    pub requests: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Of these, each byte counted once a request.
    pub distinct_bytes: u64,
    /// Sectors of global memory.
    pub sectors: u64,
    /// Distinct bytes, of the bytes of the sectors: 1 where nothing moves in vain.
    pub efficiency: Option<f64>,
    /// Passes through the banks of shared memory.
    pub wavefronts: u64,
    /// The same without bank conflicts.
    pub ideal_wavefronts: u64,
}

/// Memory traffic of a launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// `ld.global`
    pub global_load: GlobalTraffic,
    /// `st.global`
    pub global_store: GlobalTraffic,
    /// `ld.shared`, `ldmatrix`
    pub shared_load: SharedTraffic,
    /// `st.shared`, `stmatrix`
    pub shared_store: SharedTraffic,
    /// `ld.local`: spills and arrays that registers cannot hold.
    pub local_load: PlainTraffic,
    /// `st.local`
    pub local_store: PlainTraffic,
    /// `ld.const`; parameters are not counted.
    pub constant_load: PlainTraffic,
    /// `atom`, `red` in global memory.
    pub global_atomic: AtomicTraffic,
    /// `atom`, `red` in shared memory.
    pub shared_atomic: AtomicTraffic,
    /// `cp.async` and bulk copies.
    pub async_copy: AsyncTraffic,
    /// Warp accesses to global memory (loads, stores, asynchronous copies) by the bytes of a lane.
    pub global_widths: BTreeMap<u64, u64>,
}

impl GlobalTraffic {
    fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.bytes += t.bytes;
        self.distinct_bytes += t.unique_bytes;
        self.sectors += t.sectors;
        self.sectors_per_request = ratio(self.sectors, self.requests);
        self.efficiency = ratio(self.distinct_bytes, self.sectors * 32);
    }
}

impl SharedTraffic {
    fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.bytes += t.bytes;
        self.wavefronts += t.wavefronts;
        self.ideal_wavefronts += t.ideal_wavefronts;
        self.conflict_factor = ratio(self.wavefronts, self.ideal_wavefronts);
    }
}

impl PlainTraffic {
    fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.bytes += t.bytes;
        self.sectors += t.sectors;
    }
}

impl AtomicTraffic {
    fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.operations += t.atomics;
        self.most_collisions = self.most_collisions.max(t.max_collisions);
    }
}

impl AsyncTraffic {
    fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.bytes += t.bytes;
        self.distinct_bytes += t.unique_bytes;
        self.sectors += t.sectors;
        self.efficiency = ratio(self.distinct_bytes, self.sectors * 32);
        self.wavefronts += t.wavefronts;
        self.ideal_wavefronts += t.ideal_wavefronts;
    }
}

impl Memory {
    /// Adds what one memory instruction did. Where an address was generic, what it touched tells the space.
    pub(super) fn add(&mut self, class: Class, opcode: &str, t: &Traffic) {
        if t.requests == 0 {
            return;
        }
        let shared = t.wavefronts != 0 && t.sectors == 0;
        match class {
            Class::LoadGlobal if shared => self.shared_load.add(t),
            Class::StoreGlobal if shared => self.shared_store.add(t),
            Class::LoadGlobal => self.global_load.add(t),
            Class::StoreGlobal => self.global_store.add(t),
            Class::MatrixMove if opcode.starts_with("st") => self.shared_store.add(t),
            Class::LoadShared | Class::MatrixMove => self.shared_load.add(t),
            Class::StoreShared => self.shared_store.add(t),
            Class::LoadLocal => self.local_load.add(t),
            Class::StoreLocal => self.local_store.add(t),
            Class::LoadConstant if opcode.starts_with("ld.param") => {}
            Class::LoadConstant => self.constant_load.add(t),
            Class::AsyncCopy => self.async_copy.add(t),
            _ if shared => self.shared_atomic.add(t),
            _ => self.global_atomic.add(t),
        }
        if let Some(width) = global_width(class, t) {
            *self.global_widths.entry(width).or_default() += t.requests;
        }
    }
}

/// Bytes of a lane, if it is an access to global memory (a load, a store or an asynchronous copy).
pub(super) fn global_width(class: Class, t: &Traffic) -> Option<u64> {
    let wide = matches!(class, Class::LoadGlobal | Class::StoreGlobal | Class::AsyncCopy);
    (wide && t.sectors != 0 && t.lanes != 0).then(|| t.bytes / t.lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic() -> Traffic {
        Traffic { requests: 2, lanes: 64, bytes: 256, unique_bytes: 256, ..Traffic::default() }
    }

    #[test]
    fn a_strided_load_uses_an_eighth_of_its_sectors() {
        let mut m = Memory::default();
        m.add(Class::LoadGlobal, "ld.global.f32", &Traffic { sectors: 64, ..traffic() });
        assert_eq!(m.global_load.sectors_per_request, Some(32.0));
        assert_eq!(m.global_load.efficiency, Some(0.125));
        assert_eq!(m.global_widths, BTreeMap::from([(4, 2)]));
        assert_eq!(m.global_store, GlobalTraffic::default());
    }

    #[test]
    fn a_generic_access_belongs_where_it_went() {
        let mut m = Memory::default();
        m.add(Class::LoadGlobal, "ld.f32", &Traffic { wavefronts: 6, ideal_wavefronts: 2, ..traffic() });
        assert_eq!(m.shared_load.conflict_factor, Some(3.0));
        assert_eq!(m.global_load, GlobalTraffic::default());
        assert!(m.global_widths.is_empty());
    }

    #[test]
    fn copies_that_skip_every_other_sector_half_are_half_as_efficient() {
        let mut m = Memory::default();
        let t = Traffic { sectors: 16, wavefronts: 2, ideal_wavefronts: 2, ..traffic() };
        m.add(Class::AsyncCopy, "cp.async.cg.shared.global", &t);
        assert_eq!((m.async_copy.efficiency, m.async_copy.distinct_bytes), (Some(0.5), 256));
        assert_eq!(global_width(Class::AsyncCopy, &t), Some(4));
        assert_eq!(global_width(Class::LoadShared, &t), None);
    }

    #[test]
    fn matrix_moves_have_a_direction() {
        let mut m = Memory::default();
        let t = Traffic { wavefronts: 4, ideal_wavefronts: 4, ..traffic() };
        m.add(Class::MatrixMove, "stmatrix.sync.aligned.m8n8.x4.shared.b16", &t);
        m.add(Class::MatrixMove, "ldmatrix.sync.aligned.m8n8.x4.shared.b16", &t);
        m.add(Class::MatrixMove, "ldmatrix.sync.aligned.m8n8.x4.shared.b16", &t);
        assert_eq!((m.shared_store.wavefronts, m.shared_load.wavefronts), (4, 8));
    }

    #[test]
    fn atomics_go_by_what_they_touched() {
        let mut m = Memory::default();
        let t = Traffic { atomics: 64, max_collisions: 32, ..traffic() };
        m.add(Class::Atomic, "atom.add.u32", &Traffic { wavefronts: 64, ideal_wavefronts: 2, ..t });
        m.add(Class::Atomic, "red.add.u32", &Traffic { sectors: 2, ..t });
        for a in [m.shared_atomic, m.global_atomic] {
            assert_eq!((a.requests, a.operations, a.most_collisions), (2, 64, 32));
        }
    }
}
