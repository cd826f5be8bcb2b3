//! Which kernels were launched: for tests and reports that tell how many ran, and where.

use super::defines::Defines;
use super::device::Gpu;
use super::launch::Grid;
use super::nvrtc::Resources;
use std::sync::{Mutex, PoisonError};

/// One variant of a kernel: what it is compiled from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The source's name: `conv2d.cu`.
    pub source: String,
    /// The kernel: `conv2d_fwd`.
    pub entry: String,
    /// What it is compiled with.
    pub defines: Defines,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { source, entry, defines } = self;
        f.write_str(format!("{source}: {entry} {defines}").trim_end())
    }
}

/// One launch that the device accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Identity,
    /// Its blocks.
    pub grid: Grid,
    /// What one of them takes.
    pub resources: Resources,
}

/// The launches of a device since recording began; nothing while it is off.
#[derive(Default)]
pub(super) struct Trace(Mutex<Option<Vec<Launch>>>);

impl Trace {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<Launch>>> {
        // A list is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a launch.
    pub fn note(&self, kernel: &Identity, grid: Grid, resources: &Resources) {
        if let Some(launches) = &mut *self.lock() {
            launches.push(Launch { kernel: kernel.clone(), grid, resources: resources.clone() });
        }
    }
}

impl Gpu {
    /// Begins to record launches, of every stream and thread, in the order in which they were given to the device. Costs some
    /// memory for each; off by default.
    pub fn record_launches(&self) {
        *self.context().trace().lock() = Some(Vec::new());
    }

    /// The launches since recording began or the last call; recording goes on. Nothing where it never began.
    pub fn take_launches(&self) -> Vec<Launch> {
        self.context().trace().lock().as_mut().map(std::mem::take).unwrap_or_default()
    }
}
