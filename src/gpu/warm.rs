//! Compiling many variants at once, so that the first step of a run does not wait for the compiler.

use super::cache::{KernelCache, Origin};
use super::{Arch, Defines, Source};
use crate::error::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What [`warm`] compiles.
pub struct Unit<'a> {
    /// The source.
    pub source: &'a Source,
    /// The variant.
    pub defines: Defines,
    /// The architecture.
    pub arch: Arch,
}

/// Brings every unit into the cache, `jobs` at a time. `each` hears of every one as it is done, from the thread that did it:
/// its place in the list, how it went, how long it took.
pub fn warm(
    cache: &KernelCache,
    units: &[Unit<'_>],
    jobs: usize,
    each: impl Fn(usize, Result<Origin>, Duration) + Sync,
) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((i, unit)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, units.get(i)?)))
        {
            let start = Instant::now();
            let done = cache.image(unit.source, &unit.defines, unit.arch).map(|(_, origin)| origin);
            each(i, done, start.elapsed());
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, units.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
}
