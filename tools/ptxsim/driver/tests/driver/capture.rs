//! Stream capture and its rules.

use crate::support::*;
use CUstreamCaptureMode as Mode;
use CUstreamCaptureStatus as Status;
use cudarc::driver::sys::*;
use std::ptr::null_mut;

const RELAXED: Mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
const GLOBAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn status(s: CUstream) -> Status {
    // SAFETY: writes the status.
    get(|v| unsafe { cuStreamIsCapturing(s, v) })
}

/// Ends a capture of which nothing must come.
fn end_fails(s: CUstream, expected: R) {
    let mut graph = 0x10 as CUgraph;
    // SAFETY: writes the graph.
    assert_eq!(unsafe { cuStreamEndCapture(s, &mut graph) }, expected);
    assert!(graph.is_null());
    assert_eq!(status(s), Status::CU_STREAM_CAPTURE_STATUS_NONE);
}

fn nodes(graph: CUgraph) -> usize {
    // SAFETY: asks for the number only.
    get(|n| unsafe { cuGraphGetNodes(graph, null_mut(), n) })
}

#[test]
fn what_is_captured_is_not_done() {
    let _context = Context::new();
    let (s, p, store) = (stream(), alloc(128), function(module(), "store"));
    ok!(cuMemsetD8_v2(p, 0, 128), cuCtxSynchronize(), cuStreamBeginCapture_v2(s, RELAXED));
    assert_eq!(status(s), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    assert_eq!(launch(store, 1, 32, 0, s, &[p]), R::CUDA_SUCCESS);
    ok!(cuMemsetD8Async(p, 0, 4, s));
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(s, &mut graph));
    assert_eq!(status(s), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    assert_eq!(download::<u8>(p, 128), [0; 128]);
    assert_eq!(nodes(graph), 2);
    let mut exec = null_mut();
    ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0), cuGraphDestroy(graph));
    fails!(cuGraphDestroy(graph), CUDA_ERROR_INVALID_VALUE);
    for _ in 0..2 {
        ok!(cuMemsetD8_v2(p, 0, 128), cuCtxSynchronize());
        ok!(cuGraphUpload(exec, s), cuGraphLaunch(exec, s), cuStreamSynchronize(s));
        let out = download::<f32>(p, 32);
        assert_eq!((out[0], out[1], out[31]), (0.0, 1.0, 1.0));
    }
    ok!(cuGraphExecDestroy(exec));
    fails!(cuGraphExecDestroy(exec), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphLaunch(exec, s), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn parameters_are_copied_when_captured() {
    let _context = Context::new();
    let (s, p, q, store) = (stream(), alloc(128), alloc(128), function(module(), "store"));
    ok!(
        cuMemsetD8_v2(p, 0, 128),
        cuMemsetD8_v2(q, 0, 128),
        cuCtxSynchronize(),
        cuStreamBeginCapture_v2(s, RELAXED)
    );
    let mut place = p;
    let mut params = [std::ptr::from_mut(&mut place).cast()];
    ok!(cuLaunchKernel(store, 1, 1, 1, 32, 1, 1, 0, s, params.as_mut_ptr(), null_mut()));
    place = q;
    let (mut graph, mut exec) = (null_mut(), null_mut());
    ok!(cuStreamEndCapture(s, &mut graph), cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    ok!(cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    assert_eq!((place, download::<f32>(p, 32), download::<f32>(q, 32)), (q, vec![1.0; 32], vec![0.0; 32]));
}

#[test]
fn another_stream_joins_by_events() {
    let _context = Context::new();
    let (s, side, fork, join, p) = (stream(), stream(), event(), event(), alloc(256));
    ok!(
        cuStreamBeginCapture_v2(s, LOCAL),
        cuMemsetD8Async(p, 1, 64, s),
        cuEventRecord(fork, s),
        cuStreamWaitEvent(side, fork, 0)
    );
    assert_eq!(status(side), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    ok!(
        cuMemsetD8Async(p + 64, 2, 64, side),
        cuMemsetD8Async(p + 128, 3, 64, s),
        cuEventRecord(join, side),
        cuStreamWaitEvent(s, join, 0),
        cuMemcpyDtoDAsync_v2(p + 192, p + 64, 64, s)
    );
    let (mut id, mut tail) = (0, std::ptr::null());
    let (mut active, mut graph, mut count) = (Status::CU_STREAM_CAPTURE_STATUS_NONE, null_mut(), 0);
    ok!(cuStreamGetCaptureInfo_v3(s, &mut active, &mut id, &mut graph, &mut tail, null_mut(), &mut count));
    assert_eq!((active, count), (Status::CU_STREAM_CAPTURE_STATUS_ACTIVE, 1));
    assert!(id > 0 && !tail.is_null());
    fails!(cuGraphDestroy(graph), CUDA_ERROR_INVALID_VALUE);
    let mut ended = null_mut();
    ok!(cuStreamEndCapture(s, &mut ended));
    assert_eq!(ended, graph);
    assert_eq!(status(side), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    let mut edges = 0;
    ok!(cuGraphGetEdges_v2(graph, null_mut(), null_mut(), null_mut(), &mut edges));
    assert_eq!((nodes(graph), edges), (4, 4));
    let mut exec = null_mut();
    ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0), cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    let bytes = download::<u8>(p, 256);
    assert_eq!([bytes[0], bytes[64], bytes[128], bytes[192]], [1, 2, 3, 2]);
    // The event still is one of the capture.
    fails!(cuEventQuery(fork), CUDA_ERROR_CAPTURED_EVENT);
    fails!(cuEventSynchronize(fork), CUDA_ERROR_CAPTURED_EVENT);
    ok!(cuEventRecord(fork, s), cuEventSynchronize(fork));
}

#[test]
fn branches_of_a_graph_race_too() {
    let _context = Context::new();
    let (s, side, fork, join, p) = (stream(), stream(), event(), event(), alloc(64));
    ok!(
        cuStreamBeginCapture_v2(s, RELAXED),
        cuEventRecord(fork, s),
        cuStreamWaitEvent(side, fork, 0),
        cuMemsetD8Async(p, 1, 64, s),
        cuMemsetD8Async(p + 32, 2, 32, side),
        cuEventRecord(join, side),
        cuStreamWaitEvent(s, join, 0)
    );
    let (mut graph, mut exec) = (null_mut(), null_mut());
    ok!(cuStreamEndCapture(s, &mut graph), cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    fails!(cuGraphLaunch(exec, s), CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(report()["stream_findings"][0]["kind"], "stream_race");
}

#[test]
fn the_null_stream_cannot_be_captured() {
    let _context = Context::new();
    fails!(cuStreamBeginCapture_v2(null_mut(), RELAXED), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    ok!(cuStreamBeginCapture_v2(2 as CUstream, RELAXED));
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(2 as CUstream, &mut graph));
    assert_eq!(nodes(graph), 0);
}

#[test]
fn nor_used_while_a_blocking_stream_captures() {
    let _context = Context::new();
    let (s, p) = (blocking_stream(), alloc(8));
    ok!(cuStreamBeginCapture_v2(s, RELAXED));
    let mut active = Status::CU_STREAM_CAPTURE_STATUS_NONE;
    fails!(cuStreamIsCapturing(null_mut(), &mut active), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    fails!(cuMemsetD8_v2(p, 0, 8), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert_eq!(status(s), Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    fails!(cuMemsetD8Async(p, 0, 8, s), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // A stream that does not wait for it lets it be used.
    let s = stream();
    ok!(cuStreamBeginCapture_v2(s, RELAXED), cuMemsetD8_v2(p, 0, 8));
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(s, &mut graph));
}

#[test]
fn waiting_is_not_captured() {
    for what in 0..3 {
        let _context = Context::new();
        let s = stream();
        ok!(cuStreamBeginCapture_v2(s, RELAXED));
        // SAFETY: the arguments are handles of the test.
        let result = unsafe {
            match what {
                0 => cuStreamSynchronize(s),
                1 => cuStreamQuery(s),
                _ => cuCtxSynchronize(),
            }
        };
        assert_eq!(result, R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
}

#[test]
fn unjoined_work() {
    let _context = Context::new();
    let (s, side, fork, p) = (stream(), stream(), event(), alloc(8));
    ok!(
        cuStreamBeginCapture_v2(s, RELAXED),
        cuEventRecord(fork, s),
        cuStreamWaitEvent(side, fork, 0),
        cuMemsetD8Async(p, 0, 8, side)
    );
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(status(side), Status::CU_STREAM_CAPTURE_STATUS_NONE);
}

#[test]
fn ended_on_another_stream() {
    let _context = Context::new();
    let (s, side, fork) = (stream(), stream(), event());
    ok!(cuStreamBeginCapture_v2(s, RELAXED), cuEventRecord(fork, s), cuStreamWaitEvent(side, fork, 0));
    let mut graph = null_mut();
    fails!(cuStreamEndCapture(side, &mut graph), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    fails!(cuStreamEndCapture(s, &mut graph), CUDA_ERROR_ILLEGAL_STATE);
}

#[test]
fn waiting_for_what_is_not_captured() {
    let _context = Context::new();
    let (s, before) = (stream(), event());
    ok!(cuEventRecord(before, s), cuStreamBeginCapture_v2(s, RELAXED));
    fails!(cuStreamWaitEvent(s, before, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn two_captures_do_not_merge() {
    let _context = Context::new();
    let (s, t, e) = (stream(), stream(), event());
    ok!(cuStreamBeginCapture_v2(s, RELAXED), cuStreamBeginCapture_v2(t, RELAXED), cuEventRecord(e, s));
    fails!(cuStreamBeginCapture_v2(s, RELAXED), CUDA_ERROR_ILLEGAL_STATE);
    fails!(cuStreamWaitEvent(t, e, 0), CUDA_ERROR_STREAM_CAPTURE_MERGE);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    end_fails(t, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn ended_by_another_thread() {
    let context = Context::new();
    let s = stream();
    let (handle, stream) = (context.0 as usize, s as usize);
    let end = move || {
        ok!(cuCtxSetCurrent(handle as CUcontext));
        let mut graph = null_mut();
        // SAFETY: writes the graph.
        unsafe { cuStreamEndCapture(stream as CUstream, &mut graph) }
    };
    ok!(cuStreamBeginCapture_v2(s, LOCAL));
    assert_eq!(std::thread::spawn(end).join().expect("no panic"), R::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(s, &mut graph), cuStreamBeginCapture_v2(s, RELAXED));
    assert_eq!(std::thread::spawn(end).join().expect("no panic"), R::CUDA_SUCCESS);
}

#[test]
fn calls_that_a_capture_does_not_see() {
    let _context = Context::new();
    let (s, e) = (stream(), event());
    ok!(cuStreamBeginCapture_v2(s, LOCAL));
    fails!(cuMemAlloc_v2(&mut 0, 8), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    ok!(cuStreamBeginCapture_v2(s, LOCAL));
    fails!(cuEventQuery(e), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // A thread may say that it knows what it does.
    let mut mode = RELAXED;
    ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
    assert_eq!(mode, GLOBAL);
    ok!(
        cuStreamBeginCapture_v2(s, LOCAL),
        cuMemAlloc_v2(&mut 0, 8),
        cuThreadExchangeStreamCaptureMode(&mut mode)
    );
    assert_eq!(mode, RELAXED);
    let mut graph = null_mut();
    ok!(cuStreamEndCapture(s, &mut graph));
}

#[test]
fn memory_of_a_graph() {
    let _context = Context::new();
    let (s, store, to) = (stream(), function(module(), "store"), alloc(128));
    let mut p = 0;
    ok!(cuStreamBeginCapture_v2(s, RELAXED), cuMemAllocAsync(&mut p, 128, s));
    assert_eq!(launch(store, 1, 32, 0, s, &[p]), R::CUDA_SUCCESS);
    ok!(cuMemcpyDtoDAsync_v2(to, p, 128, s), cuMemFreeAsync(p, s));
    let (mut graph, mut exec) = (null_mut(), null_mut());
    ok!(
        cuStreamEndCapture(s, &mut graph),
        cuGraphInstantiateWithFlags(&mut exec, graph, 0),
        cuGraphDestroy(graph)
    );
    ok!(cuGraphLaunch(exec, s), cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    assert_eq!(download::<f32>(to, 32), [1.0; 32]);
    ok!(cuGraphExecDestroy(exec));
    fails!(cuMemsetD8_v2(p, 0, 8), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn a_graph_within_a_capture() {
    let _context = Context::new();
    let (s, count, p) = (stream(), function(module(), "count"), alloc(4));
    ok!(cuMemsetD32_v2(p, 0, 1), cuCtxSynchronize(), cuStreamBeginCapture_v2(s, RELAXED));
    assert_eq!(launch(count, 1, 32, 0, s, &[p]), R::CUDA_SUCCESS);
    let (mut inner, mut outer, mut graph) = (null_mut(), null_mut(), null_mut());
    ok!(cuStreamEndCapture(s, &mut graph), cuGraphInstantiateWithFlags(&mut inner, graph, 0));
    ok!(cuStreamBeginCapture_v2(s, RELAXED), cuGraphLaunch(inner, s), cuGraphLaunch(inner, s));
    ok!(cuStreamEndCapture(s, &mut graph), cuGraphInstantiateWithFlags(&mut outer, graph, 0));
    assert_eq!(nodes(graph), 2);
    ok!(cuGraphLaunch(outer, s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 1), [64]);
}

#[test]
fn a_global_capture_concerns_other_threads() {
    // Alone, since it concerns other tests too.
    apart("capture::a_global_capture_concerns_other_threads", &[], || {
        let context = Context::new();
        let s = stream();
        let handle = context.0 as usize;
        let elsewhere = move |relaxed: bool| {
            std::thread::spawn(move || {
                ok!(cuCtxSetCurrent(handle as CUcontext));
                if relaxed {
                    ok!(cuThreadExchangeStreamCaptureMode(&mut { RELAXED }));
                }
                // SAFETY: writes the address.
                unsafe { cuMemAlloc_v2(&mut 0, 8) }
            })
            .join()
            .expect("no panic")
        };
        ok!(cuStreamBeginCapture_v2(s, LOCAL));
        assert_eq!(elsewhere(false), R::CUDA_SUCCESS);
        let mut graph = null_mut();
        ok!(cuStreamEndCapture(s, &mut graph), cuStreamBeginCapture_v2(s, GLOBAL));
        assert_eq!(elsewhere(true), R::CUDA_SUCCESS);
        assert_eq!(elsewhere(false), R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        end_fails(s, R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    });
}
