//! Memory pools. A pool here only counts: memory is taken from the device and given back at once.

use crate::context::initialised;
use crate::error::{Error, Result};
use crate::ffi::{AccessDescription, Handle, In, Location, Out, PoolProperties};
use crate::handles;
use crate::state::lock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// `CU_MEM_LOCATION_TYPE_DEVICE`
const ON_DEVICE: u32 = 1;

/// A pool.
pub struct Pool {
    /// Its handle.
    pub handle: Handle,
    /// Its device.
    pub ordinal: usize,
    /// Whether it is the one of `cuDeviceGetDefaultMemPool`.
    pub default: bool,
    max_bytes: u64,
    used: AtomicU64,
    high: AtomicU64,
    reuse: [AtomicU32; 3],
    threshold: AtomicU64,
    access: Mutex<Vec<(i32, u32)>>,
}

impl Pool {
    fn new(ordinal: usize, default: bool, max_bytes: u64) -> Arc<Self> {
        let handle = handles::reserve();
        let pool = Arc::new(Self {
            handle,
            ordinal,
            default,
            max_bytes,
            used: AtomicU64::new(0),
            high: AtomicU64::new(0),
            reuse: [AtomicU32::new(1), AtomicU32::new(1), AtomicU32::new(1)],
            threshold: AtomicU64::new(0),
            access: Mutex::default(),
        });
        handles::bind(handle, pool.clone());
        pool
    }

    /// The default pool of a device.
    pub fn default_of(ordinal: usize) -> Arc<Self> {
        Self::new(ordinal, true, 0)
    }

    /// Counts an allocation, unless it exceeds the pool.
    pub fn take(&self, bytes: u64) -> Result {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.max_bytes > 0 && used > self.max_bytes {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::OUT_OF_MEMORY);
        }
        self.high.fetch_max(used, Ordering::Relaxed);
        Ok(())
    }

    /// Counts an allocation that ended.
    pub fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn pool(handle: Handle) -> Result<Arc<Pool>> {
    handles::find(handle).ok_or(Error::INVALID_VALUE)
}

/// `cuMemPoolCreate`.
pub fn create(out: Out<Handle>, properties: In<PoolProperties>) -> Result {
    let driver = initialised()?;
    out.needed()?;
    let wanted = properties.get()?;
    if wanted.allocation != 1 || wanted.location.kind != ON_DEVICE {
        return Err(Error::INVALID_VALUE);
    }
    if wanted.handles != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    let device = driver.device(wanted.location.id)?;
    out.set(Pool::new(device.ordinal, false, wanted.max_bytes as u64).handle)
}

/// `cuMemPoolDestroy`: what was allocated from it lives on until it is freed.
pub fn destroy(handle: Handle) -> Result {
    let driver = initialised()?;
    let pool = pool(handle)?;
    if pool.default {
        return Err(Error::INVALID_VALUE);
    }
    handles::take::<Pool>(handle)?;
    let device = &driver.devices[pool.ordinal];
    let mut current = lock(&device.current_pool);
    if current.handle == handle {
        *current = device.default_pool.clone();
    }
    Ok(())
}

/// `cuMemPoolTrimTo`: nothing is kept, so there is nothing to give back.
pub fn trim_to(handle: Handle, _keep: usize) -> Result {
    initialised()?;
    pool(handle).map(|_| ())
}

/// `cuMemPoolGetAttribute`.
pub fn get_attribute(handle: Handle, id: u32, out: Out<u64>) -> Result {
    initialised()?;
    let pool = pool(handle)?;
    out.needed()?;
    match id {
        1..=3 => out.cast::<u32>().set(pool.reuse[id as usize - 1].load(Ordering::Relaxed)),
        4 => out.set(pool.threshold.load(Ordering::Relaxed)),
        5 | 7 => out.set(pool.used.load(Ordering::Relaxed)),
        6 | 8 => out.set(pool.high.load(Ordering::Relaxed)),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuMemPoolSetAttribute`: the high-water marks can only be reset.
pub fn set_attribute(handle: Handle, id: u32, value: Out<u64>) -> Result {
    initialised()?;
    let pool = pool(handle)?;
    match id {
        1..=3 => pool.reuse[id as usize - 1].store(value.cast::<u32>().get()?, Ordering::Relaxed),
        4 => pool.threshold.store(value.get()?, Ordering::Relaxed),
        6 | 8 if value.get()? == 0 => pool.high.store(pool.used.load(Ordering::Relaxed), Ordering::Relaxed),
        _ => return Err(Error::INVALID_VALUE),
    }
    Ok(())
}

/// `cuMemPoolSetAccess`.
pub fn set_access(handle: Handle, list: In<AccessDescription>, count: usize) -> Result {
    let driver = initialised()?;
    let pool = pool(handle)?;
    for wanted in list.list(count)? {
        if wanted.location.kind != ON_DEVICE || !matches!(wanted.flags, 0 | 1 | 3) {
            return Err(Error::INVALID_VALUE);
        }
        let device = driver.device(wanted.location.id)?;
        if device.ordinal == pool.ordinal && wanted.flags != 3 {
            return Err(Error::INVALID_VALUE);
        }
        let mut access = lock(&pool.access);
        access.retain(|a| a.0 != wanted.location.id);
        access.push((wanted.location.id, wanted.flags));
    }
    Ok(())
}

/// `cuMemPoolGetAccess`.
pub fn get_access(out: Out<u32>, handle: Handle, location: In<Location>) -> Result {
    let driver = initialised()?;
    let pool = pool(handle)?;
    let location = location.get()?;
    if location.kind != ON_DEVICE {
        return Err(Error::INVALID_VALUE);
    }
    let device = driver.device(location.id)?;
    let own = if device.ordinal == pool.ordinal { 3 } else { 0 };
    let given = lock(&pool.access).iter().find(|a| a.0 == location.id).map(|a| a.1);
    out.set(given.unwrap_or(own))
}
