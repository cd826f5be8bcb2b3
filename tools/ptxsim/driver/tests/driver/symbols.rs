//! The exported symbols: everything that `cudarc` and `cust` may ask for.

use crate::support::*;
use cudarc::driver::sys::{CUresult, cuGetProcAddress_v2};
use std::collections::BTreeSet;
use std::ffi::{CString, c_void};

/// The names in cudarc's bindings, all versions of the interface together.
const CUDARC: &str = include_str!("../../symbols/cudarc.txt");
/// The names in cust's bindings; each must be there when a program with cust is linked.
const CUST: &str = include_str!("../../symbols/cust.txt");

fn wanted() -> BTreeSet<&'static str> {
    CUDARC.lines().chain(CUST.lines()).collect()
}

#[test]
fn every_name_is_exported_once() {
    let wanted = wanted();
    assert!(wanted.len() > 500);
    let done: Vec<&str> = ptxsim_driver::exports::implemented().map(|e| e.0).collect();
    let not: Vec<&str> = ptxsim_driver::exports::not_implemented().map(|e| e.0).collect();
    let all: BTreeSet<&str> = done.iter().chain(&not).copied().collect();
    assert_eq!(all.len(), done.len() + not.len(), "a name is in two tables");
    assert_eq!(all, wanted);
    // SAFETY: loading it has no effect but the loading.
    let library = unsafe { libloading::Library::new(library()) }.expect("loads");
    for name in wanted {
        // SAFETY: only looked up.
        assert!(unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_ok(), "{name}");
    }
}

#[test]
fn what_is_not_supported_says_so() {
    apart("symbols::what_is_not_supported_says_so", &[], || {
        load();
        for (name, _) in ptxsim_driver::exports::not_implemented() {
            let f: unsafe extern "C" fn(usize, usize, usize) -> u32 = extension(name);
            // SAFETY: these look at no argument.
            assert_eq!(unsafe { f(0, 0, 0) }, CUresult::CUDA_ERROR_NOT_SUPPORTED as u32, "{name}");
        }
    });
}

#[test]
fn it_says_so_once() {
    const NAME: &str = "symbols::it_says_so_once";
    if std::env::var("PTXSIM_TEST_APART").is_ok() {
        load();
        let f: unsafe extern "C" fn() -> u32 = extension("cuArrayCreate_v2");
        for _ in 0..3 {
            // SAFETY: it looks at no argument.
            unsafe { f() };
        }
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args([NAME, "--exact", "--nocapture"])
        .env("PTXSIM_TEST_APART", NAME)
        .env("PTXSIM_QUIET", "0")
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().filter(|l| l.contains("cuArrayCreate_v2 is not supported")).count(), 1, "{text}");
}

/// Any of the driver's functions, for arguments that are all zero.
type Zeros = unsafe extern "C" fn(
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
) -> u32;

#[test]
fn no_pointer_makes_it_panic() {
    start();
    // With arguments that are all zero, every function answers with an error or with success. More are given than any takes:
    // one that was not given would be whatever the stack holds.
    let result: Zeros = extension("cuLaunchKernel");
    // SAFETY: null pointers and handles, which the driver must refuse.
    let refused = unsafe { result(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) };
    // No context is current on this thread.
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_CONTEXT as u32);
    for (name, _) in ptxsim_driver::exports::implemented() {
        if name.contains("Primary") || name.contains("Capture") {
            continue; // these change what other tests see
        }
        let f: Zeros = extension(name);
        // SAFETY: null pointers and handles, which the driver must refuse.
        let code = unsafe { f(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) };
        assert_ne!(code, CUresult::CUDA_ERROR_UNKNOWN as u32, "{name}");
    }
}

#[test]
fn addresses_by_name_and_version() {
    load();
    let find = |name: &str, version: i32| {
        let name = CString::new(name).expect("no NUL");
        let mut address = std::ptr::null_mut();
        let mut status = 9u32;
        let place = std::ptr::from_mut(&mut status).cast();
        // SAFETY: writes both.
        let result = unsafe { cuGetProcAddress_v2(name.as_ptr(), &mut address, version, 0, place) };
        (result, address)
    };
    let symbol = |name: &str| extension::<*mut c_void>(name);
    let fine = |name| (CUresult::CUDA_SUCCESS, symbol(name));
    assert_eq!(find("cuMemAlloc", 13000), fine("cuMemAlloc_v2"));
    assert_eq!(find("cuCtxCreate", 11030), fine("cuCtxCreate_v2"));
    assert_eq!(find("cuCtxCreate", 12050), fine("cuCtxCreate_v4"));
    assert_eq!(find("cuCtxSynchronize", 12080), fine("cuCtxSynchronize"));
    assert_eq!(find("cuTexRefSetAddress2D", 13000), fine("cuTexRefSetAddress2D_v3"));
    assert_eq!(find("cuNoSuchThing", 13000), (CUresult::CUDA_SUCCESS, std::ptr::null_mut()));
    assert_eq!(find("cuGraphAddNode", 12000), (CUresult::CUDA_SUCCESS, std::ptr::null_mut()));
    assert_eq!(find("cuMemAlloc", 13010).0, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn the_simulator_is_recognised() {
    load();
    let version: extern "C" fn() -> *const std::ffi::c_char = extension("ptxsim_version");
    // SAFETY: a text of the library's.
    let text = unsafe { std::ffi::CStr::from_ptr(version()) };
    assert_eq!(text.to_str(), Ok(env!("CARGO_PKG_VERSION")));
}
