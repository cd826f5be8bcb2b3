//! Order between streams: a dependency that the program forgot is found, though work runs when it is enqueued; each
//! correct way of waiting is accepted.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ptr::null_mut;

/// Two streams, an event and some memory.
struct Scene {
    module: CUmodule,
    a: CUstream,
    b: CUstream,
    event: CUevent,
    p: CUdeviceptr,
    _context: Context,
}

impl Scene {
    fn new() -> Self {
        let _context = Context::new();
        let p = alloc(1024);
        ok!(cuMemsetD8_v2(p, 0, 1024), cuCtxSynchronize());
        Scene { module: module(), a: stream(), b: stream(), event: event(), p, _context }
    }

    fn store(&self, stream: CUstream, offset: u64) -> R {
        launch(function(self.module, "store"), 1, 32, 0, stream, &[self.p + offset])
    }

    fn read(&self, stream: CUstream, offset: u64, bytes: usize) -> R {
        // Into page-locked memory, so that the call itself waits for nothing.
        let mut host = null_mut();
        ok!(cuMemHostAlloc(&mut host, bytes, 0));
        // SAFETY: both sides have this size.
        unsafe { cuMemcpyDtoHAsync_v2(host, self.p + offset, bytes, stream) }
    }
}

const RACE: R = R::CUDA_ERROR_LAUNCH_FAILED;
const FINE: R = R::CUDA_SUCCESS;

#[test]
fn a_kernel_and_a_copy() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    assert_eq!(scene.read(scene.b, 512, 512), FINE, "other bytes of the same allocation");
    assert_eq!(scene.read(scene.a, 0, 128), FINE, "the same stream");
    assert_eq!(scene.read(scene.b, 0, 128), RACE);
    let report = report();
    let finding = &report["stream_findings"][0];
    assert_eq!(finding["kind"], "stream_race");
    assert_eq!((&finding["work"], &finding["other"]), (&"cuMemcpyDtoHAsync".into(), &"kernel store".into()));
    assert!(finding["message"].as_str().expect("a text").contains("bytes 0..128"));
    fails!(cuCtxSynchronize(), CUDA_ERROR_LAUNCH_FAILED);
}

#[test]
fn an_event_orders() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    ok!(cuEventRecord(scene.event, scene.a), cuStreamWaitEvent(scene.b, scene.event, 0));
    assert_eq!(scene.read(scene.b, 0, 128), FINE);
    // What comes after the event is not covered by it.
    assert_eq!(scene.store(scene.a, 256), FINE);
    assert_eq!(scene.read(scene.b, 256, 128), RACE);
}

#[test]
fn an_event_that_was_never_recorded_orders_nothing() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    ok!(cuStreamWaitEvent(scene.b, scene.event, 0));
    assert_eq!(scene.read(scene.b, 0, 128), RACE);
}

#[test]
fn the_host_orders() {
    for way in 0..5 {
        let scene = Scene::new();
        assert_eq!(scene.store(scene.a, 0), FINE);
        ok!(cuEventRecord(scene.event, scene.a));
        match way {
            0 => ok!(cuStreamSynchronize(scene.a)),
            1 => ok!(cuEventSynchronize(scene.event)),
            2 => ok!(cuCtxSynchronize()),
            3 => ok!(cuStreamQuery(scene.a)),
            _ => ok!(cuEventQuery(scene.event)),
        }
        assert_eq!(scene.read(scene.b, 0, 128), FINE, "way {way}");
    }
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    ok!(cuStreamSynchronize(scene.b));
    assert_eq!(scene.read(scene.b, 0, 128), RACE, "it waited for the wrong stream");
}

#[test]
fn two_kernels() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    assert_eq!(scene.store(scene.b, 128), FINE, "side by side");
    assert_eq!(scene.store(scene.b, 64), RACE);
}

#[test]
fn kernels_that_use_every_other_word() {
    let scene = Scene::new();
    let comb = function(scene.module, "comb");
    assert_eq!(launch(comb, 1, 32, 0, scene.a, &[scene.p]), FINE);
    assert_eq!(launch(comb, 1, 32, 0, scene.b, &[scene.p + 4]), FINE, "the words between");
    assert_eq!(launch(comb, 1, 32, 0, scene.b, &[scene.p + 8]), RACE);
}

#[test]
fn atomics_do_not_race() {
    let scene = Scene::new();
    let count = function(scene.module, "count");
    assert_eq!(launch(count, 2, 32, 0, scene.a, &[scene.p]), FINE);
    assert_eq!(launch(count, 2, 32, 0, scene.b, &[scene.p]), FINE);
    assert_eq!(scene.read(scene.b, 0, 4), RACE, "a's additions may be still to come");
}

#[test]
fn readers_do_not_race() {
    let scene = Scene::new();
    assert_eq!(scene.read(scene.a, 0, 128), FINE);
    assert_eq!(scene.read(scene.b, 0, 128), FINE);
    assert_eq!(scene.store(scene.b, 0), RACE, "a may still read");
}

#[test]
fn the_null_stream_orders_blocking_streams() {
    let scene = Scene::new();
    let blocking = blocking_stream();
    assert_eq!(scene.store(blocking, 0), FINE);
    assert_eq!(scene.read(null_mut(), 0, 128), FINE, "the NULL stream waits");
    assert_eq!(scene.store(null_mut(), 0), FINE);
    assert_eq!(scene.read(blocking, 0, 128), FINE, "and is waited for");
    let other = blocking_stream();
    assert_eq!(scene.store(blocking, 256), FINE);
    assert_eq!(scene.read(other, 256, 128), RACE, "blocking streams do not wait for each other");
}

#[test]
fn the_null_stream_does_not_order_others() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    assert_eq!(scene.read(null_mut(), 0, 128), RACE);
}

#[test]
fn memsets_return_before_they_are_done() {
    let scene = Scene::new();
    ok!(cuMemsetD8_v2(scene.p, 1, 1024));
    assert_eq!(scene.read(scene.a, 0, 16), RACE);
}

#[test]
fn a_copy_from_the_host_is_done_when_it_returns() {
    let scene = Scene::new();
    upload(scene.p, &[1u8; 64]);
    assert_eq!(scene.read(scene.a, 0, 64), FINE);
}

#[test]
fn the_streams_of_threads() {
    let scene = Scene::new();
    let per_thread = 2 as CUstream;
    assert_eq!(scene.store(per_thread, 0), FINE);
    assert_eq!(scene.read(per_thread, 0, 128), FINE);
    assert_eq!(scene.read(1 as CUstream, 0, 128), FINE, "the legacy stream waits for it");
    let (context, p) = (scene._context.0 as usize, scene.p);
    assert_eq!(scene.store(per_thread, 256), FINE);
    let other = std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(context as CUcontext));
        // SAFETY: inside the allocation.
        unsafe { cuMemsetD8Async(p + 256, 0, 16, 2 as CUstream) }
    });
    assert_eq!(other.join().expect("no panic"), RACE, "another thread's is another stream");
}

#[test]
fn memory_of_a_stream() {
    let scene = Scene::new();
    let mut q = 0;
    ok!(cuMemAllocAsync(&mut q, 128, scene.a));
    // SAFETY: inside the allocation.
    let fill = |stream| unsafe { cuMemsetD8Async(q, 0, 128, stream) };
    assert_eq!(fill(scene.a), FINE);
    ok!(cuEventRecord(scene.event, scene.a), cuStreamWaitEvent(scene.b, scene.event, 0));
    assert_eq!(fill(scene.b), FINE);
    fails!(cuMemFreeAsync(q, scene.a), CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(report()["stream_findings"][0]["work"], "cuMemFreeAsync");
}

#[test]
fn memory_is_not_there_before_its_allocation() {
    let scene = Scene::new();
    let mut q = 0;
    ok!(cuMemAllocAsync(&mut q, 128, scene.a));
    fails!(cuMemsetD8Async(q, 0, 128, scene.b), CUDA_ERROR_LAUNCH_FAILED);
}

#[test]
fn work_of_a_stream_outlives_it() {
    let scene = Scene::new();
    assert_eq!(scene.store(scene.a, 0), FINE);
    ok!(cuStreamDestroy_v2(scene.a), cuCtxSynchronize());
    assert_eq!(scene.read(scene.b, 0, 128), FINE);
    let c = stream();
    assert_eq!(scene.store(c, 256), FINE);
    ok!(cuStreamDestroy_v2(c));
    assert_eq!(scene.read(scene.b, 256, 128), RACE);
}

#[test]
fn a_race_may_be_reported_only() {
    apart("order::a_race_may_be_reported_only", &[("PTXSIM_ON_FINDING", "report")], || {
        let scene = Scene::new();
        assert_eq!(scene.store(scene.a, 0), FINE);
        assert_eq!(scene.read(scene.b, 0, 128), FINE);
        assert_eq!(findings(), 1);
        ok!(cuCtxSynchronize());
    });
}
