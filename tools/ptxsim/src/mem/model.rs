//! The naive checker that tests compare with: a vector clock for every thread, every access to every byte remembered.

use std::collections::HashMap;

/// An access of one thread to one byte.
#[derive(Clone, Copy)]
struct Past {
    thread: usize,
    clock: u32,
    /// The value, of a write.
    wrote: Option<u8>,
    strong: bool,
}

/// All threads and all bytes.
pub(crate) struct Model {
    clocks: Vec<Vec<u32>>,
    bytes: HashMap<u64, Vec<Past>>,
    released: Vec<Vec<u32>>,
    pending: Vec<Vec<u32>>,
    flags: HashMap<u64, Vec<u32>>,
}

/// One thread's part of an access.
#[derive(Clone)]
pub(crate) struct Part {
    pub thread: usize,
    pub address: u64,
    /// What is written; its length is the width also of a read.
    pub bytes: Vec<u8>,
}

fn join(into: &mut [u32], from: &[u32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

impl Model {
    pub fn new(threads: usize) -> Model {
        let clocks = (0..threads).map(|t| (0..threads).map(|u| u32::from(u == t)).collect()).collect();
        let nothing = vec![vec![0; threads]; threads];
        Model {
            clocks,
            bytes: HashMap::new(),
            released: nothing.clone(),
            pending: nothing,
            flags: HashMap::new(),
        }
    }

    /// Threads meet: everything any of them did is before everything they do next.
    pub fn meet(&mut self, threads: &[usize]) {
        let token = self.release(threads);
        self.acquire(threads, &token);
    }

    pub fn release(&mut self, threads: &[usize]) -> Vec<u32> {
        let mut token = vec![0; self.clocks.len()];
        for &t in threads {
            join(&mut token, &self.clocks[t]);
            self.clocks[t][t] += 1;
        }
        token
    }

    pub fn acquire(&mut self, threads: &[usize], token: &[u32]) {
        for &t in threads {
            join(&mut self.clocks[t], token);
        }
    }

    /// A fence of every thread.
    pub fn fence(&mut self, threads: &[usize]) {
        for &t in threads {
            let pending = std::mem::take(&mut self.pending[t]);
            join(&mut self.clocks[t], &pending);
            self.pending[t] = vec![0; pending.len()];
            self.released[t] = self.release(&[t]);
        }
    }

    /// Threads of one instruction read a flag, and then write it.
    pub fn flag(&mut self, threads: &[usize], address: u64) {
        let flag = self.flags.entry(address).or_insert_with(|| vec![0; self.clocks.len()]);
        for &t in threads {
            join(&mut self.pending[t], flag);
        }
        for &t in threads {
            join(flag, &self.released[t]);
        }
    }

    /// Makes an access; gives the earlier threads (as pairs with the present one) that it conflicts with.
    pub fn access(&mut self, parts: &[Part], writes: bool, strong: bool) -> Vec<(usize, usize)> {
        let mut conflicts = Vec::new();
        for part in parts {
            for (k, &value) in part.bytes.iter().enumerate() {
                let past = self.bytes.entry(part.address + k as u64).or_default();
                let seen = &self.clocks[part.thread];
                for p in past.iter().filter(|p| p.thread != part.thread && p.clock > seen[p.thread]) {
                    let conflict = match (p.wrote, writes) {
                        (None, false) => false,
                        (Some(old), true) => old != value || strong != p.strong,
                        _ => true,
                    };
                    if conflict && !(p.strong && strong) {
                        conflicts.push((p.thread, part.thread));
                    }
                }
                let clock = seen[part.thread];
                past.push(Past { thread: part.thread, clock, wrote: writes.then_some(value), strong });
            }
        }
        conflicts
    }
}
