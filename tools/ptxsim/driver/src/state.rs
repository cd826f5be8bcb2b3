//! The state of the process: what `cuInit` makes.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::ffi::Handle;
use crate::handles;
use crate::memory::Allocations;
use crate::order::Order;
use crate::pool::Pool;
use ptxsim::card::Card;
use ptxsim::mem::GlobalMemory;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Takes a lock; a panic that was caught at the C boundary leaves it usable.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `PTXSIM_ON_FINDING=report`: a finding that is no fault lets the program go on.
    pub report_only: bool,
    /// `PTXSIM_QUIET=1`: nothing on stderr.
    pub quiet: bool,
    /// `PTXSIM_THREADS`: threads of the host that run blocks; 0 is all.
    pub host_threads: usize,
    /// `PTXSIM_MAX_INSTRUCTIONS`: warp instructions after which a launch times out; 0 is the library's default.
    pub max_instructions: u64,
}

impl Settings {
    fn from_environment() -> std::result::Result<Self, String> {
        let text = |name: &str| std::env::var(name).ok().filter(|s| !s.is_empty());
        let number = |name: &str| match text(name) {
            None => Ok(0),
            Some(s) => s.parse::<u64>().map_err(|_| format!("{name}: `{s}` is not a number")),
        };
        let report_only = match text("PTXSIM_ON_FINDING").as_deref() {
            None | Some("fail") => false,
            Some("report") => true,
            Some(other) => return Err(format!("PTXSIM_ON_FINDING: `{other}` is neither fail nor report")),
        };
        Ok(Self {
            report_only,
            quiet: quiet(),
            host_threads: number("PTXSIM_THREADS")? as usize,
            max_instructions: number("PTXSIM_MAX_INSTRUCTIONS")?,
        })
    }
}

/// Whether `PTXSIM_QUIET` is set.
pub fn quiet() -> bool {
    std::env::var("PTXSIM_QUIET").is_ok_and(|s| !s.is_empty() && s != "0")
}

/// A device and what belongs to it rather than to a context.
pub struct Device {
    /// Its model.
    pub card: Card,
    /// Its ordinal.
    pub ordinal: usize,
    /// The primary context and its users.
    pub primary: Mutex<Primary>,
    /// Handle of the primary context.
    pub primary_handle: Handle,
    /// Flags that the next primary context gets.
    pub primary_flags: AtomicU32,
    /// Bytes allocated.
    pub used_bytes: AtomicU64,
    /// The pool of `cuDeviceGetDefaultMemPool`.
    pub default_pool: Arc<Pool>,
    /// The pool of `cuMemAllocAsync`.
    pub current_pool: Mutex<Arc<Pool>>,
}

/// The primary context of a device.
#[derive(Default)]
pub struct Primary {
    /// There while retained.
    pub context: Option<Arc<Context>>,
    /// How often it was retained.
    pub retained: u32,
}

/// Everything.
pub struct Driver {
    /// The devices.
    pub devices: Vec<Device>,
    /// Device memory and registered host memory of all devices: one address space, as unified addressing has it.
    pub memory: GlobalMemory,
    /// Who allocated what.
    pub allocations: Mutex<Allocations>,
    /// Clocks.
    pub order: Mutex<Order>,
    /// Settings.
    pub settings: Settings,
}

static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();

/// `cuInit`.
pub fn init(flags: u32) -> Result {
    if flags != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let made = DRIVER.get_or_init(|| match Driver::from_environment() {
        Ok(driver) => Some(driver),
        Err(message) => {
            eprintln!("ptxsim: {message}");
            None
        }
    });
    match made {
        Some(driver) if !driver.devices.is_empty() => Ok(()),
        _ => Err(Error::NO_DEVICE),
    }
}

/// The driver, once `cuInit` was called.
pub fn driver() -> Result<&'static Driver> {
    match DRIVER.get() {
        None => Err(Error::NOT_INITIALIZED),
        Some(Some(driver)) if !driver.devices.is_empty() => Ok(driver),
        Some(_) => Err(Error::NO_DEVICE),
    }
}

impl Driver {
    fn from_environment() -> std::result::Result<Self, String> {
        let cards = Card::from_environment()?;
        let settings = Settings::from_environment()?;
        let capacity = cards.iter().fold(0u64, |sum, card| sum.saturating_add(card.total_memory_bytes));
        let devices = cards.into_iter().enumerate().map(|(ordinal, card)| {
            let pool = Pool::default_of(ordinal);
            Device {
                card,
                ordinal,
                primary: Mutex::default(),
                primary_handle: handles::reserve(),
                primary_flags: AtomicU32::new(0),
                used_bytes: AtomicU64::new(0),
                default_pool: pool.clone(),
                current_pool: Mutex::new(pool),
            }
        });
        Ok(Self {
            devices: devices.collect(),
            memory: GlobalMemory::new(capacity),
            allocations: Mutex::default(),
            order: Mutex::default(),
            settings,
        })
    }

    /// A device by ordinal, which is also what a `CUdevice` holds.
    pub fn device(&self, ordinal: i32) -> Result<&Device> {
        usize::try_from(ordinal).ok().and_then(|i| self.devices.get(i)).ok_or(Error::INVALID_DEVICE)
    }
}
