//! Results of driver calls.

use super::driver;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;
use std::ptr;

/// Turns the result of a driver call into dtk's.
///
/// # Errors
/// The call's name, the code's name and the driver's own words; on the simulator also what it found.
pub(super) fn check(code: CUresult, call: &str) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(explain(code, call)) }
}

/// The error that a code of a call stands for.
pub(super) fn explain(code: CUresult, call: &str) -> Error {
    let mut text = ptr::null();
    // SAFETY: takes any code, and writes null or the address of a constant text to the live pointer. A code comes from a
    // driver that is loaded, whose functions `driver` has checked to be there.
    unsafe { sys::cuGetErrorString(code, &mut text) };
    let words = if text.is_null() {
        "unknown to this driver".into()
    } else {
        // SAFETY: not null, ended by NUL, and constant data of a library that is never unloaded.
        unsafe { CStr::from_ptr(text) }.to_string_lossy()
    };
    let mut message = format!("{call} failed with {code:?} ({}): {words}", code as u32);
    for finding in driver::findings() {
        message.push_str("\n  ");
        message.push_str(&finding);
    }
    let e = Error::device(message);
    match remedy(code) {
        Some(remedy) => e.with_remedy(remedy),
        None => e,
    }
}

/// What a user can do about a code.
fn remedy(code: CUresult) -> Option<&'static str> {
    use CUresult::*;
    Some(match code {
        CUDA_ERROR_NO_DEVICE => {
            "check that `nvidia-smi` lists a card and that CUDA_VISIBLE_DEVICES does not hide it (in a container: pass it \
             through, as `docker run --gpus all` does), or use --device cpu"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "the library that was loaded is the toolkit's stub for linking: take its folder out of LD_LIBRARY_PATH, or \
             let DTK_CUDA_DRIVER name the driver's libcuda.so.1"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_SYSTEM_NOT_READY | CUDA_ERROR_UNKNOWN => {
            "the kernel module and the driver library do not fit together or are not ready: reboot, or install the \
             driver again"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the card for itself: wait for it, or use another card"
        }
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_INVALID_PTX => {
            "the driver does not take what NVRTC made: compare both versions in `dtk info`, then update the driver, or \
             install an NVRTC that is no newer than it"
        }
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_HARDWARE_STACK_ERROR => {
            "a kernel went wrong, this one or an earlier one, and the device is unusable until the program starts again; \
             run the same work on the simulator (see docs/gpu.md) to learn the line"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_say_what_to_do() {
        let of = |code| remedy(code).unwrap_or("");
        assert!(of(CUresult::CUDA_ERROR_NO_DEVICE).contains("nvidia-smi"));
        assert!(of(CUresult::CUDA_ERROR_STUB_LIBRARY).contains("LD_LIBRARY_PATH"));
        assert!(of(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION).contains("update the driver"));
        assert!(of(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS).contains("simulator"));
        assert_eq!(remedy(CUresult::CUDA_ERROR_INVALID_VALUE), None);
    }
}
