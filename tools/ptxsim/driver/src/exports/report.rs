//! What the simulator offers beyond the driver's interface. `ptxsim_version` is how a program recognises it.

use crate::ffi::Out;
use crate::report;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a version without NUL"),
};

fn quietly<T: Default>(f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_default()
}

/// The version, as text. There is such a symbol in the simulator only.
#[unsafe(no_mangle)]
pub extern "C" fn ptxsim_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The report of the current context as JSON: its launches with their counters and findings, and the races between its
/// streams. Writes as much as there is room for, ended by NUL; returns the length without the NUL, 0 without a context.
///
/// # Safety
/// `out` is null or has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptxsim_report_json(out: Out<c_char>, room: usize) -> usize {
    quietly(|| report::json_text(out, room))
}

/// Forgets the launches and findings of the current context. A fault stays.
#[unsafe(no_mangle)]
pub extern "C" fn ptxsim_report_clear() {
    quietly(report::clear);
}

/// How many findings the current context has.
#[unsafe(no_mangle)]
pub extern "C" fn ptxsim_findings_count() -> u64 {
    quietly(report::count)
}
