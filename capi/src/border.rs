//! The border to C: nothing unwinds across it, and what goes wrong is kept as a text for the thread.

use dtk::Error;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `dtk_status`.
pub type Status = i32;

/// `DTK_OK`
pub const OK: Status = 0;
/// `DTK_ERROR_USAGE`
pub const USAGE: Status = 1;
/// `DTK_ERROR_SHAPE`
pub const SHAPE: Status = 2;
/// `DTK_ERROR_DEVICE`
pub const DEVICE: Status = 3;
/// `DTK_ERROR_FILE`
pub const FILE: Status = 4;
/// `DTK_ERROR_NUMERIC`
pub const NUMERIC: Status = 5;
/// `DTK_ERROR_INTERNAL`
pub const INTERNAL: Status = 6;

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// What [`border`] passes on.
pub enum Failure {
    /// An error of dtk's.
    Error(Error),
    /// A defect of dtk's: something panicked before.
    Broken,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Error(e)
    }
}

fn status(e: &Error) -> Status {
    match e {
        e if e.is_usage() => USAGE,
        e if e.is_shape() || e.is_dtype() => SHAPE,
        e if e.is_device() => DEVICE,
        e if e.is_numeric() => NUMERIC,
        e if e.is_io() || e.is_format() || e.is_checkpoint() || e.is_data() => FILE,
        _ => INTERNAL,
    }
}

fn keep(text: String) {
    let text = CString::new(text.replace('\0', " ")).ok();
    // A thread that is being taken down keeps nothing.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// Runs `work`; keeps what it fails with.
pub fn border(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    // What `work` leaves half done is behind a mutex, which a panic poisons, or is lost.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => OK,
        Ok(Err(Failure::Error(e))) => {
            keep(e.to_string());
            status(&e)
        }
        Ok(Err(Failure::Broken)) => {
            keep(
                "an earlier call with this handle met a defect of dtk\n  -> close it, and open another"
                    .into(),
            );
            INTERNAL
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            keep(format!("this is a defect of dtk: {text}\n  -> please report it; close the handle"));
            INTERNAL
        }
    }
}

/// The text of the thread's last failure.
pub fn last() -> *const c_char {
    let empty = c"".as_ptr();
    LAST.try_with(|last| last.borrow().as_ref().map_or(empty, |text| text.as_ptr())).unwrap_or(empty)
}

/// A text that C gives; `None` for NULL.
///
/// # Errors
/// It is not UTF-8.
///
/// # Safety
/// The pointer is NULL or to a text ended by NUL that lives as long as is asked.
pub unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>, Error> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    let bad = |_| Error::usage("is not UTF-8").with_key(name.to_string());
    text.to_str().map(Some).map_err(bad)
}

/// What to say of a NULL that is not allowed.
pub fn null(name: &str) -> Error {
    Error::usage("is NULL").with_key(name.to_string()).with_remedy("see include/dtk.h")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> String {
        // SAFETY: ended by NUL, and no other call comes between.
        unsafe { CStr::from_ptr(last()) }.to_str().unwrap().to_string()
    }

    #[test]
    fn nothing_unwinds_and_everything_is_told() {
        assert_eq!((border(|| Ok(())), said()), (OK, String::new()));
        assert_eq!(border(|| Err(Error::usage("no\0thing").into())), USAGE);
        assert_eq!(said(), "no thing");
        assert_eq!(border(|| panic!("the {} is loose", "screw")), INTERNAL);
        assert!(said().contains("the screw is loose"), "{}", said());
        assert_eq!(border(|| Err(Failure::Broken)), INTERNAL);
        let io = || Error::io("f", "cannot read", std::io::Error::other("gone"));
        for (e, code) in [
            (Error::shape("x", "y"), SHAPE),
            (Error::dtype("x", "y"), SHAPE),
            (Error::device("x"), DEVICE),
            (Error::numeric("x", "y"), NUMERIC),
            (Error::checkpoint("x"), FILE),
            (io(), FILE),
        ] {
            assert_eq!(border(|| Err(e.into())), code);
        }
        assert!(said().contains("gone"));
    }
}
