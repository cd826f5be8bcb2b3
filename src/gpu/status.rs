//! What of CUDA this machine has, what is missing, and how to get it.

use super::Arch;
use super::cache::KernelCache;
use super::device::{DeviceInfo, describe, device_count};
use super::driver::Driver;
use super::nvrtc::{self, Nvrtc};
use crate::error::{Error, Result};
use std::path::PathBuf;

/// The answer of [`status`]. Every part may be missing by itself; its error says why, and what to do.
#[derive(Debug)]
pub struct Status {
    /// The driver's library.
    pub driver: Result<DriverStatus>,
    /// Every device of the driver. One that dtk cannot use is an error.
    pub devices: Vec<(DeviceInfo, Result<Arch>)>,
    /// The run-time compiler.
    pub nvrtc: Result<NvrtcStatus>,
    /// Compiled kernels.
    pub cache: CacheStatus,
}

/// A driver that was loaded.
#[derive(Debug)]
pub struct DriverStatus {
    /// Its file, where the system tells.
    pub path: Option<PathBuf>,
    /// The highest version of CUDA that it knows.
    pub version: (u32, u32),
    /// The version of the simulator, if it is that.
    pub simulator: Option<String>,
    /// Why no device can be used, if none can.
    pub problem: Option<Error>,
}

/// An NVRTC that was loaded.
#[derive(Debug)]
pub struct NvrtcStatus {
    /// Its file.
    pub path: PathBuf,
    /// Major and minor.
    pub version: (u32, u32),
    /// What the driver will not load of what it makes.
    pub problem: Option<Error>,
}

/// The folder of compiled kernels.
#[derive(Debug)]
pub struct CacheStatus {
    /// The folder, or why there is none.
    pub dir: Result<PathBuf, String>,
    /// Files in it.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why nothing can be written there, if nothing can.
    pub problem: Option<String>,
}

impl Status {
    /// Whether kernels can be compiled and launched on at least one device.
    pub fn is_ready(&self) -> bool {
        self.devices.iter().any(|(_, arch)| arch.is_ok())
            && self.nvrtc.as_ref().is_ok_and(|n| n.problem.is_none())
    }
}

/// Looks at driver, devices, NVRTC and the folder of compiled kernels. Loads both libraries; opens no device, changes nothing.
pub fn status() -> Status {
    let mut devices = Vec::new();
    let driver = Driver::load(None).map(|driver| {
        let found = driver.init().and_then(|()| device_count()).and_then(|count| {
            for ordinal in 0..count {
                let (_, info) = describe(driver, ordinal)?;
                let arch = Arch::of(info.compute_capability);
                devices.push((info, arch));
            }
            Ok(())
        });
        DriverStatus {
            path: driver.path().map(Into::into),
            version: driver.version(),
            simulator: driver.simulator().map(|s| s.version.clone()),
            problem: found.err(),
        }
    });
    let nvrtc = Nvrtc::find().map(|found| {
        let version = found.version();
        let problem = match &driver {
            Ok(driver) => nvrtc::check_driver(driver.version, version).err(),
            Err(_) => None,
        };
        NvrtcStatus { path: found.path().into(), version, problem }
    });
    let cache = KernelCache::at(None);
    let (entries, bytes) = cache.contents();
    let dir = cache.dir().map(Into::into).map_err(str::to_string);
    let cache = CacheStatus { dir, entries, bytes, problem: cache.writable().err() };
    Status { driver, devices, nvrtc, cache }
}
