//! The kernels of a device: each variant is compiled and loaded once.

use super::arch::Arch;
use super::cache::{CacheReport, KernelCache};
use super::defines::Defines;
use super::device::{Context, Gpu};
use super::launch::Kernel;
use super::module::Module;
use super::nvrtc::{self, Nvrtc};
use super::source::Source;
use super::trace::Identity;
use crate::error::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What tells modules apart: the source, its defines. The architecture is the device's.
type Key = ([u8; 32], Defines);

/// Where a module is, or will be. A lock for each, so that two are compiled at the same time, but none twice.
type Place = Mutex<Option<Arc<Module>>>;

/// The modules of a device, as they come to be wanted.
pub(super) struct Kernels {
    cache: KernelCache,
    modules: Mutex<HashMap<Key, Arc<Place>>>,
}

impl Kernels {
    pub(super) fn new(cache: KernelCache) -> Kernels {
        Kernels { cache, modules: Mutex::default() }
    }

    fn module(
        &self,
        context: &Arc<Context>,
        source: &Source,
        defines: &Defines,
        arch: Arch,
    ) -> Result<Arc<Module>> {
        let key = (*source.digest(), defines.clone());
        let place = lock(&self.modules).entry(key).or_default().clone();
        let mut place = lock(&place);
        if let Some(module) = &*place {
            return Ok(module.clone());
        }
        let nvrtc = Nvrtc::find()?;
        if let Some(driver) = context.driver() {
            nvrtc::check_driver(driver.version(), nvrtc.version())?;
        }
        let (image, _) = self.cache.image(source, defines, arch)?;
        let module = Arc::new(Module::load(context, &image, source.name())?);
        *place = Some(module.clone());
        Ok(module)
    }
}

/// Takes a lock; what it protects is whole even if another thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// A kernel of a source in `kernels/`: `gpu.kernel("conv2d.cu", "conv2d_fwd", &defines)`. Compiled at the first request.
    ///
    /// # Errors
    /// There is no such source, it does not compile, it has no such kernel, or NVRTC is missing.
    pub fn kernel(&self, source: &str, entry: &str, defines: &Defines) -> Result<Kernel> {
        self.kernel_of(Source::named(source)?, entry, defines)
    }

    /// A kernel of any source.
    ///
    /// # Errors
    /// Those of [`Gpu::kernel`].
    pub fn kernel_of(&self, source: &Source, entry: &str, defines: &Defines) -> Result<Kernel> {
        let identity = Identity {
            source: source.name().to_string(),
            entry: entry.to_string(),
            defines: defines.clone(),
        };
        if self.is_planning() {
            return Ok(Kernel::planned(self.context(), identity, self.info().shared_per_block_optin_bytes));
        }
        let module = self.kernels().module(self.context(), source, defines, self.arch())?;
        Kernel::of(module, identity, self.info().shared_per_block_optin_bytes)
    }

    /// How many kernels of this device the folder had, how many were compiled, and what ails the folder.
    pub fn cache_report(&self) -> CacheReport {
        self.kernels().cache.report()
    }
}
