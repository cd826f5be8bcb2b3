//! Memory of the device: allocations by address, and everything the host does with them.

use super::allocation::{AllocInfo, AllocKind, Allocation};
use super::report::bytes as count;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Where device addresses begin. Below lie the windows of the other spaces.
const FIRST_ADDRESS: u64 = 0x0A00_0000_0000;
/// Where they end: host addresses, under which pinned memory appears, lie above.
const LAST_ADDRESS: u64 = 0x5000_0000_0000;
/// Allocations begin at multiples of this.
const ALIGN: u64 = 512;
/// Nothing is mapped for at least this many bytes behind an allocation, so that running over its end is noticed.
const GAP: u64 = 1 << 22;
/// Freed allocations that are remembered.
const TOMBSTONES: usize = 1 << 16;
/// Launches are told apart by this many numbers before shadows must be cleared.
const EPOCHS: u64 = 255;

/// Why memory could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// The card, or the host, has no more.
    #[error("out of memory: {requested} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        free: u64,
    },
    /// An allocation of no bytes.
    #[error("an allocation of 0 bytes")]
    Empty,
    /// No allocation there.
    #[error("{0}")]
    Unmapped(String),
    /// Not all of the range lies in the allocation.
    #[error("{bytes} bytes at {address:#x} run over the end of the allocation of {size} bytes at {base:#x}")]
    OutOfBounds {
        /// First address.
        address: u64,
        /// Length of the range.
        bytes: u64,
        /// Allocation.
        base: u64,
        /// Its size.
        size: u64,
    },
    /// Freeing what is not the first address of an allocation.
    #[error("{0:#x} is not the first address of an allocation")]
    NotABase(u64),
    /// Registering what overlaps an allocation.
    #[error("the range at {0:#x} overlaps an allocation")]
    Overlap(u64),
    /// A fill pattern of a length other than 1, 2 or 4, or at an address that is no multiple of it.
    #[error("a fill pattern of {0} bytes at {1:#x}")]
    BadPattern(usize, u64),
}

/// Allocations in the order of their addresses.
#[derive(Clone, Debug, Default)]
pub struct Table {
    all: Vec<Arc<Allocation>>,
}

impl Table {
    /// Index of the allocation that holds the address.
    pub fn index_of(&self, address: u64) -> Option<usize> {
        let after = self.all.partition_point(|a| a.base() <= address);
        let index = after.checked_sub(1)?;
        (address < self.all[index].end()).then_some(index)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// By index.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<&Allocation> {
        self.all.get(index).map(|a| &**a)
    }

    /// By an index that [`Table::index_of`] gave.
    #[inline(always)]
    pub fn at(&self, index: usize) -> &Allocation {
        &self.all[index]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.all.iter().map(|a| &**a)
    }

    fn range(&self, address: u64, bytes: u64) -> Result<Option<&Allocation>, MemError> {
        let Some(index) = self.index_of(address) else { return Ok(None) };
        let a = &self.all[index];
        if bytes > a.end() - address {
            let info = a.info();
            return Err(MemError::OutOfBounds { address, bytes, base: info.base, size: info.bytes });
        }
        Ok(Some(a))
    }

    fn overlaps(&self, base: u64, bytes: u64) -> bool {
        self.all.iter().any(|a| a.base() < base.saturating_add(bytes) && base < a.end())
    }
}

#[derive(Debug)]
struct State {
    table: Arc<Table>,
    next: u64,
    used: u64,
    freed: BTreeMap<u64, u64>,
}

/// Memory of a device. All methods may be called from any thread.
#[derive(Debug)]
pub struct GlobalMemory {
    state: RwLock<State>,
    capacity: u64,
    launches: AtomicU64,
}

impl GlobalMemory {
    /// Nothing allocated; `capacity_bytes` is what the card has.
    pub fn new(capacity_bytes: u64) -> GlobalMemory {
        let state = State { table: Arc::default(), next: FIRST_ADDRESS, used: 0, freed: BTreeMap::new() };
        GlobalMemory { state: RwLock::new(state), capacity: capacity_bytes, launches: AtomicU64::new(0) }
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fresh memory, aligned to 512 bytes, unwritten. Addresses are never used again.
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemError> {
        if bytes == 0 {
            return Err(MemError::Empty);
        }
        let mut state = self.write_state();
        let free = self.capacity.saturating_sub(state.used);
        let full = MemError::OutOfMemory { requested: bytes, free };
        let base = state.next;
        let next = base.checked_add(bytes).and_then(|end| (end + GAP).checked_next_multiple_of(ALIGN));
        let Some(next) = next.filter(|&n| n <= LAST_ADDRESS && bytes <= free) else { return Err(full) };
        let info = AllocInfo { base, bytes, kind: AllocKind::Device };
        let Some(allocation) = Allocation::device(info) else { return Err(full) };
        state.next = next;
        state.used += bytes;
        insert(&mut state, allocation);
        Ok(base)
    }

    /// Makes host memory reachable for kernels, under the host's own address. The caller keeps it alive until it is
    /// freed here, or until this value is gone.
    pub fn register_host(&self, ptr: *mut u8, bytes: u64, kind: AllocKind) -> Result<(), MemError> {
        if bytes == 0 || ptr.is_null() {
            return Err(MemError::Empty);
        }
        let base = ptr.expose_provenance() as u64;
        let mut state = self.write_state();
        if state.table.overlaps(base, bytes) || base < LAST_ADDRESS && base + bytes > FIRST_ADDRESS {
            return Err(MemError::Overlap(base));
        }
        let gone: Vec<u64> =
            state.freed.range(..base + bytes).filter(|&(&b, &n)| b + n > base).map(|(&b, _)| b).collect();
        for b in gone {
            state.freed.remove(&b);
        }
        if kind == AllocKind::Managed {
            state.used += bytes;
        }
        insert(&mut state, Allocation::host(AllocInfo { base, bytes, kind }, ptr));
        Ok(())
    }

    /// Frees an allocation by its first address, or unregisters host memory.
    pub fn free(&self, base: u64) -> Result<(), MemError> {
        let mut state = self.write_state();
        let Some(index) = state.table.index_of(base) else {
            return Err(MemError::Unmapped(describe(&state, base)));
        };
        let info = state.table.all[index].info();
        if info.base != base {
            return Err(MemError::NotABase(base));
        }
        Arc::make_mut(&mut state.table).all.remove(index);
        if info.kind != AllocKind::Pinned {
            state.used -= info.bytes;
        }
        if state.freed.len() >= TOMBSTONES {
            state.freed.pop_first();
        }
        state.freed.insert(base, info.bytes);
        Ok(())
    }

    /// Copies to the device.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemError> {
        let state = self.read_state();
        let bytes = data.len() as u64;
        let Some(a) = find(&state, address, bytes)? else { return Ok(()) };
        let at = address - a.base();
        // SAFETY: `find` checked that the range lies inside the allocation, which the lock keeps alive; bytes of device
        // memory are only ever accessed through raw pointers, as the memory of a card that others write to.
        unsafe { std::ptr::copy(data.as_ptr(), a.data().add(at as usize), data.len()) };
        if let Some(init) = a.init() {
            init.set_bytes(at, bytes);
        }
        Ok(())
    }

    /// Copies from the device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemError> {
        let state = self.read_state();
        let Some(a) = find(&state, address, data.len() as u64)? else { return Ok(()) };
        let at = address - a.base();
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(a.data().add(at as usize), data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    /// Writes a pattern of 1, 2 or 4 bytes `n` times over.
    pub fn fill(&self, address: u64, pattern: &[u8], n: u64) -> Result<(), MemError> {
        let width = pattern.len();
        if !matches!(width, 1 | 2 | 4) || !address.is_multiple_of(width as u64) {
            return Err(MemError::BadPattern(width, address));
        }
        let state = self.read_state();
        let bytes = n.saturating_mul(width as u64);
        let Some(a) = find(&state, address, bytes)? else { return Ok(()) };
        let at = address - a.base();
        // SAFETY: `find` checked the range; the pointer is wrapped into no reference.
        let to = unsafe { a.data().add(at as usize) };
        if pattern.iter().all(|&b| b == pattern[0]) {
            // SAFETY: `bytes` from `to` on lie inside the allocation.
            unsafe { std::ptr::write_bytes(to, pattern[0], bytes as usize) };
        } else {
            for i in 0..n as usize {
                // SAFETY: the i-th repetition lies inside the range checked above.
                unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), to.add(i * width), width) };
            }
        }
        if let Some(init) = a.init() {
            init.set_bytes(at, bytes);
        }
        Ok(())
    }

    /// Copies on the device; bytes nobody wrote stay such.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemError> {
        let state = self.read_state();
        let (Some(to), Some(from)) = (find(&state, dst, bytes)?, find(&state, src, bytes)?) else {
            return Ok(());
        };
        let (d, s) = (dst - to.base(), src - from.base());
        // SAFETY: both ranges were checked; they may overlap, which `copy` allows.
        unsafe { std::ptr::copy(from.data().add(s as usize), to.data().add(d as usize), bytes as usize) };
        if let Some(init) = to.init() {
            init.copy_from(d, from.init(), s, bytes);
        }
        Ok(())
    }

    /// The allocation that holds the address.
    pub fn find(&self, address: u64) -> Option<AllocInfo> {
        let state = self.read_state();
        state.table.index_of(address).map(|i| state.table.all[i].info())
    }

    /// Bytes of the card in use.
    pub fn used_bytes(&self) -> u64 {
        self.read_state().used
    }

    /// Bytes that the card has.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    /// What is wrong with an address that no allocation holds: freed, or how far from the nearest.
    pub fn describe(&self, address: u64) -> String {
        describe(&self.read_state(), address)
    }

    /// Whether the address lay in an allocation that was freed.
    pub fn freed(&self, address: u64) -> bool {
        tombstone(&self.read_state(), address).is_some()
    }

    /// The allocations as they are now; they stay usable for the holder, even if they are freed meanwhile.
    pub fn table(&self) -> Arc<Table> {
        self.read_state().table.clone()
    }

    /// Numbers a launch, from 1.
    pub fn begin_launch(&self) -> u64 {
        let n = self.launches.fetch_add(1, Ordering::Relaxed) + 1;
        if n > 1 && epoch(n) == 1 {
            self.read_state().table.iter().for_each(Allocation::clear_shadow);
        }
        n
    }
}

/// A launch's number as shadows keep it: 1 to 255.
pub fn epoch(launch: u64) -> u64 {
    (launch.max(1) - 1) % EPOCHS + 1
}

fn insert(state: &mut State, allocation: Allocation) {
    let all = &mut Arc::make_mut(&mut state.table).all;
    let at = all.partition_point(|a| a.base() < allocation.base());
    all.insert(at, Arc::new(allocation));
}

/// The allocation that holds the range; `None` for an empty range, wherever it is.
fn find(state: &State, address: u64, bytes: u64) -> Result<Option<&Allocation>, MemError> {
    match state.table.range(address, bytes)? {
        _ if bytes == 0 => Ok(None),
        Some(a) => Ok(Some(a)),
        None => Err(MemError::Unmapped(describe(state, address))),
    }
}

fn tombstone(state: &State, address: u64) -> Option<(u64, u64)> {
    let (&base, &bytes) = state.freed.range(..=address).next_back()?;
    (address - base < bytes).then_some((base, bytes))
}

fn describe(state: &State, address: u64) -> String {
    if let Some((base, bytes)) = tombstone(state, address) {
        return format!(
            "address {address:#x} is {} into an allocation of {bytes} bytes at {base:#x} that was freed",
            count(address - base)
        );
    }
    if address < 4096 {
        return format!("address {address:#x} is a null pointer");
    }
    let after = state.table.all.partition_point(|a| a.base() <= address);
    let before = after.checked_sub(1).map(|i| state.table.all[i].info());
    let behind = before.map(|i| (address - (i.base + i.bytes), i, "behind the end"));
    let ahead = state.table.all.get(after).map(|a| (a.base() - address, a.info(), "before the start"));
    let nearest = [behind, ahead].into_iter().flatten().min_by_key(|n| n.0);
    match nearest {
        Some((0, i, _)) => {
            format!(
                "address {address:#x} is right behind the allocation of {} bytes at {:#x}",
                i.bytes, i.base
            )
        }
        Some((distance, i, side)) => format!(
            "address {address:#x} is {} {side} of the nearest allocation, of {} bytes at {:#x}",
            count(distance),
            i.bytes,
            i.base
        ),
        None => format!("address {address:#x}: nothing is allocated"),
    }
}

#[cfg(test)]
mod tests;
