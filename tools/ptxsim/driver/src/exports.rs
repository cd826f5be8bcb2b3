//! The exported symbols. Each is in exactly one place: in a table of `entries!` with what it does, or in the list of
//! `unsupported!`, where it answers `CUDA_ERROR_NOT_SUPPORTED` and says its name once.

mod context;
mod device;
mod event;
mod graph;
mod launch;
mod memory;
mod missing;
mod module;
mod report;
mod stream;
mod tensormap;

use crate::error::{Error, Result};
use crate::state;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex};

/// Address of an exported function.
#[derive(Clone, Copy)]
pub struct Address(pub *const ());

// SAFETY: the address of a function, which is the same for every thread and never written through.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

/// Exports functions: the C declaration, and the expression that does it.
macro_rules! entries {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) => $body:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            ///
            /// # Safety
            /// Pointers are as the CUDA driver's documentation asks.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
                $crate::exports::guard(|| $body)
            }
        )*

        /// Name and address of each.
        pub static TABLE: &[(&str, $crate::exports::Address)] =
            &[$((stringify!($name), $crate::exports::Address($name as *const ()))),*];
    };
}

/// Exports functions that do nothing. The caller's arguments stay in registers and on its stack, where it takes them off
/// again, so that their number does not matter.
macro_rules! unsupported {
    ($($name:ident)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`: not supported.")]
            ///
            /// # Safety
            /// None is needed: no argument is looked at.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() -> u32 {
                $crate::exports::guard(|| $crate::exports::not_supported(stringify!($name)))
            }
        )*

        /// Name and address of each.
        pub static TABLE: &[(&str, $crate::exports::Address)] =
            &[$((stringify!($name), $crate::exports::Address($name as *const ()))),*];
    };
}

use {entries, unsupported};

/// Runs a function of the driver for a C caller: a result code, and no panic crosses.
pub fn guard(f: impl FnOnce() -> Result) -> u32 {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.0,
        Err(_) => Error::UNKNOWN.0,
    }
}

/// Says once that a function is not there.
fn not_supported(name: &'static str) -> Result {
    static SAID: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    if state::lock(&SAID).insert(name) && !state::quiet() {
        eprintln!("ptxsim: {name} is not supported (CUDA_ERROR_NOT_SUPPORTED)");
    }
    Err(Error::NOT_SUPPORTED)
}

/// The tables of functions that do something.
pub fn implemented() -> impl Iterator<Item = &'static (&'static str, Address)> {
    let tables = [
        context::TABLE,
        device::TABLE,
        event::TABLE,
        graph::TABLE,
        launch::TABLE,
        memory::TABLE,
        module::TABLE,
        stream::TABLE,
        tensormap::TABLE,
    ];
    tables.into_iter().flatten()
}

/// The functions that answer `CUDA_ERROR_NOT_SUPPORTED`.
pub fn not_implemented() -> impl Iterator<Item = &'static (&'static str, Address)> {
    missing::TABLE.iter()
}

/// The address of a symbol.
pub fn address(name: &str) -> Option<Address> {
    implemented().chain(not_implemented()).find(|e| e.0 == name).map(|e| e.1)
}
