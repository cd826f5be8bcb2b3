//! What the integration tests share.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod device;

use ptxsim::nvrtc::Nvrtc;
use std::fmt::Display;
use std::path::PathBuf;

/// The thing, or `None` after saying why not. With `PTXSIM_REQUIRE=1`, as in CI, its absence fails the test.
pub fn required<T, E: Display>(found: Result<T, E>) -> Option<T> {
    match found {
        Ok(thing) => Some(thing),
        Err(error) => {
            assert!(
                std::env::var_os("PTXSIM_REQUIRE").is_none_or(|v| v != "1"),
                "PTXSIM_REQUIRE=1 and {error}"
            );
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// NVRTC, or `None` after saying why not.
pub fn nvrtc() -> Option<Nvrtc> {
    required(Nvrtc::find())
}

/// Folder of the kernels.
pub fn kernel_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// Text of a kernel file.
pub fn kernel_source(file: &str) -> String {
    let path = kernel_dir().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
