//! Faults and findings: the result, and that a context keeps it.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ptr::null_mut;

/// Commits a fault with a launch; from then on every call returns it, until the context is gone.
fn sticky(expected: R, commit: impl FnOnce(CUmodule) -> R) {
    let context = Context::new();
    let (module, p, stream, event) = (module(), alloc(64), stream(), event());
    assert_eq!(commit(module), expected);
    let mut again = 0;
    // SAFETY: the arguments are handles and places of the test.
    let later = unsafe {
        [
            cuCtxSynchronize(),
            cuMemAlloc_v2(&mut again, 8),
            cuMemFree_v2(p),
            cuMemsetD8_v2(p, 0, 8),
            cuStreamSynchronize(stream),
            cuStreamQuery(stream),
            cuEventRecord(event, stream),
            cuEventQuery(event),
            cuModuleUnload(module),
            cuStreamCreate(&mut null_mut(), 0),
        ]
    };
    assert_eq!(later, [expected; 10]);
    assert!(findings() > 0);
    let mut n = 0;
    ok!(cuDeviceGetCount(&mut n), cuCtxDestroy_v2(context.0));
    // A new context knows nothing of it.
    let _fresh = Context::new();
    alloc(8);
    ok!(cuCtxSynchronize());
}

#[test]
fn beyond_the_end() {
    sticky(R::CUDA_ERROR_ILLEGAL_ADDRESS, |m| {
        launch(function(m, "store"), 1, 32, 0, null_mut(), &[alloc(124)])
    });
}

#[test]
fn a_null_pointer() {
    sticky(R::CUDA_ERROR_ILLEGAL_ADDRESS, |m| launch(function(m, "store"), 1, 32, 0, null_mut(), &[0]));
}

#[test]
fn after_the_free() {
    sticky(R::CUDA_ERROR_ILLEGAL_ADDRESS, |m| {
        let p = alloc(128);
        ok!(cuMemFree_v2(p));
        let result = launch(function(m, "store"), 1, 32, 0, null_mut(), &[p]);
        assert_eq!(report()["launches"][0]["findings"][0]["kind"], "use_after_free");
        result
    });
}

#[test]
fn misaligned() {
    sticky(R::CUDA_ERROR_MISALIGNED_ADDRESS, |m| {
        launch(function(m, "store"), 1, 1, 0, null_mut(), &[alloc(64) + 2])
    });
}

#[test]
fn a_trap() {
    sticky(R::CUDA_ERROR_LAUNCH_FAILED, |m| launch(function(m, "trapped"), 1, 1, 0, null_mut(), &[]));
}

#[test]
fn an_assertion() {
    sticky(R::CUDA_ERROR_ASSERT, |m| launch(function(m, "asserts"), 1, 1, 0, null_mut(), &[]));
}

#[test]
fn no_end() {
    apart("faults::no_end", &[("PTXSIM_MAX_INSTRUCTIONS", "100000")], || {
        sticky(R::CUDA_ERROR_LAUNCH_TIMEOUT, |m| launch(function(m, "forever"), 1, 32, 0, null_mut(), &[]));
    });
}

#[test]
fn a_race_fails_the_launch() {
    sticky(R::CUDA_ERROR_LAUNCH_FAILED, |m| launch(function(m, "racy"), 64, 32, 0, null_mut(), &[alloc(4)]));
}

#[test]
fn a_race_may_be_reported_only() {
    apart("faults::a_race_may_be_reported_only", &[("PTXSIM_ON_FINDING", "report")], || {
        let _context = Context::new();
        let m = module();
        assert_eq!(launch(function(m, "racy"), 64, 32, 0, null_mut(), &[alloc(4)]), R::CUDA_SUCCESS);
        ok!(cuCtxSynchronize());
        assert!(findings() > 0);
        assert_eq!(report()["launches"][0]["findings"][0]["kind"], "global_race");
        // A fault stays one.
        assert_eq!(launch(function(m, "store"), 1, 1, 0, null_mut(), &[0]), R::CUDA_ERROR_ILLEGAL_ADDRESS);
        fails!(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn findings_are_printed_once() {
    let run = |quiet: &str| {
        let output = std::process::Command::new(std::env::current_exe().expect("a path"))
            .args(["faults::a_race_may_be_reported_only", "--exact", "--nocapture"])
            .env("PTXSIM_TEST_APART", "faults::a_race_may_be_reported_only")
            .env("PTXSIM_ON_FINDING", "report")
            .env("PTXSIM_QUIET", quiet)
            .output()
            .expect("starts");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().filter(|l| l.starts_with("ptxsim:") && l.contains("global_race in racy")).count()
    };
    assert_eq!((run("0"), run("1")), (1, 0));
}
