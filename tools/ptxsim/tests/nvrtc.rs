//! NVRTC, found and used.
#![cfg(feature = "nvrtc")]

mod common;

use ptxsim::nvrtc::{NvrtcError, Options};

const SCALE: &str = r#"
#include "factor.h"
extern "C" __global__ void scale(float *x, int n) {
    __shared__ float s[128];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    s[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) x[i] = FACTOR * EXTRA * s[127 - threadIdx.x];
}
extern "C" __global__ void nothing() {}
"#;

fn options(arch: &str) -> Options {
    let mut options = Options::new(arch).define("EXTRA", 3);
    options.headers.push(("factor.h".into(), "#define FACTOR 2.0f\n".into()));
    options
}

#[test]
fn a_virtual_target_gives_ptx_alone() {
    let Some(nvrtc) = common::nvrtc() else { return };
    assert!(nvrtc.version() >= (11, 1), "{nvrtc:?}");
    let made = nvrtc.compile(SCALE, "scale.cu", &options("compute_80")).unwrap();
    assert!(made.ptx.contains(".target sm_80"), "{}", made.ptx);
    assert!(made.ptx.contains(".visible .entry scale("), "{}", made.ptx);
    assert!(made.ptx.contains("scale.cu\""), "no .file in {}", made.ptx);
    assert!(made.ptx.contains(".loc"), "no .loc in {}", made.ptx);
    // 2.0f * 3 is folded.
    assert!(made.ptx.contains("0f40C00000"), "{}", made.ptx);
    assert!(!made.ptx.contains('\0'));
    assert_eq!(made.cubin, None);
    assert_eq!(made.resources, []);
}

#[test]
fn a_real_target_gives_both_and_its_resources() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let made = nvrtc.compile(SCALE, "scale.cu", &options("sm_90a")).unwrap();
    assert!(made.ptx.contains(".target sm_90a"), "{}", made.ptx);
    assert_eq!(&made.cubin.unwrap()[..4], b"\x7fELF");
    let scale = made.resources.iter().find(|r| r.kernel == "scale").unwrap();
    assert_eq!((scale.arch.as_str(), scale.shared_bytes, scale.barriers), ("sm_90a", 512, 1), "{}", made.log);
    assert!((4..64).contains(&scale.registers), "{scale:?}");
    assert_eq!((scale.spill_store_bytes, scale.spill_load_bytes, scale.stack_bytes), (0, 0, 0));
    assert!(made.resources.iter().any(|r| r.kernel == "nothing"), "{:?}", made.resources);
}

#[test]
fn line_information_can_be_left_out() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let mut options = options("compute_90a");
    options.lineinfo = false;
    let made = nvrtc.compile(SCALE, "scale.cu", &options).unwrap();
    assert!(!made.ptx.contains(".loc"), "{}", made.ptx);
}

#[test]
fn an_error_is_told_in_the_compilers_own_words() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let source = "extern \"C\" __global__ void k() {\n    int x = nonsense;\n}\n";
    let error = nvrtc.compile(source, "wrong.cu", &Options::new("compute_80")).unwrap_err();
    let NvrtcError::Compile { ref log, .. } = error else { panic!("{error:?}") };
    assert!(log.contains("wrong.cu(2): error: identifier \"nonsense\" is undefined\n"), "{log}");
    assert!(error.to_string().contains(log.as_str()));
}

#[test]
fn wrong_options_are_named() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let error = nvrtc.compile("", "empty.cu", &Options::new("compute_1")).unwrap_err().to_string();
    assert!(error.contains("compute_1"), "{error}");
    let error = nvrtc.compile("\0", "empty.cu", &Options::new("compute_80")).unwrap_err();
    assert!(matches!(error, NvrtcError::Nul { .. }), "{error:?}");
}

/// `cudarc` panics where it finds no library: having found NVRTC has to be enough for it.
#[test]
fn cudarc_finds_what_was_loaded() {
    let Some(nvrtc) = common::nvrtc() else { return };
    // SAFETY: opens a library that is loaded already and closes that handle.
    let present = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    assert!(present, "{nvrtc:?} is not found by name");
    let ptx = cudarc::nvrtc::compile_ptx("extern \"C\" __global__ void k() {}").unwrap();
    assert!(ptx.to_src().contains(".entry k("));
}
