//! Streams, events, host functions.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

#[test]
fn handles() {
    let _context = Context::new();
    let mut s = null_mut();
    fails!(cuStreamCreate(&mut s, 2), CUDA_ERROR_INVALID_VALUE);
    fails!(cuStreamCreate(null_mut(), 0), CUDA_ERROR_INVALID_VALUE);
    ok!(cuStreamCreateWithPriority(&mut s, 1, -9));
    let (mut priority, mut flags, mut id, mut other) = (0, 0, 0, 0);
    ok!(
        cuStreamGetPriority(s, &mut priority),
        cuStreamGetFlags(s, &mut flags),
        cuStreamGetId(s, &mut id),
        cuStreamGetId(null_mut(), &mut other)
    );
    assert_eq!((priority, flags), (-5, 1));
    assert_ne!(id, other);
    let mut context = null_mut();
    ok!(cuStreamGetCtx(s, &mut context));
    assert_eq!(context, _context.0);
    ok!(cuStreamQuery(s), cuStreamSynchronize(s), cuStreamDestroy_v2(s));
    for stream in [s, 0x1230 as CUstream, 0x7074_7800_0000_0010 as CUstream] {
        fails!(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
        fails!(cuStreamDestroy_v2(stream), CUDA_ERROR_INVALID_HANDLE);
    }
    fails!(cuStreamDestroy_v2(null_mut()), CUDA_ERROR_INVALID_HANDLE);
    ok!(cuStreamSynchronize(1 as CUstream), cuStreamSynchronize(2 as CUstream));
    // A handle of another kind.
    fails!(cuStreamSynchronize(event().cast()), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn events() {
    let _context = Context::new();
    let (s, a, b) = (stream(), event(), event());
    let mut ms = -1.0;
    ok!(cuEventQuery(a), cuEventSynchronize(a));
    fails!(cuEventElapsedTime_v2(&mut ms, a, b), CUDA_ERROR_INVALID_HANDLE);
    ok!(cuEventRecord(a, s));
    std::thread::sleep(std::time::Duration::from_millis(5));
    ok!(cuEventRecord(b, s), cuEventSynchronize(b), cuEventElapsedTime_v2(&mut ms, a, b));
    assert!((5.0..10_000.0).contains(&ms), "{ms}");
    ok!(cuEventElapsedTime_v2(&mut ms, b, a));
    assert!(ms < 0.0);
    let v1: unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> u32 = extension("cuEventElapsedTime");
    // SAFETY: writes the number.
    assert_eq!(unsafe { v1(&mut ms, a, b) }, 0);
    let mut untimed = null_mut();
    ok!(cuEventCreate(&mut untimed, 2), cuEventRecord(untimed, s));
    fails!(cuEventElapsedTime_v2(&mut ms, a, untimed), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuEventCreate(&mut untimed, 8), CUDA_ERROR_INVALID_VALUE);
    fails!(cuEventCreate(&mut untimed, 4), CUDA_ERROR_INVALID_VALUE);
    fails!(cuEventCreate(&mut untimed, 6), CUDA_ERROR_NOT_SUPPORTED);
    ok!(cuEventDestroy_v2(a));
    fails!(cuEventDestroy_v2(a), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuEventRecord(a, s), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuStreamWaitEvent(s, a, 0), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuStreamWaitEvent(s, b, 7), CUDA_ERROR_INVALID_VALUE);
    let _second = Context::new();
    fails!(cuEventRecord(b, null_mut()), CUDA_ERROR_INVALID_HANDLE);
}

/// A host function that waits until it is told to go on, and counts its calls.
struct Gate {
    open: Mutex<Receiver<()>>,
    calls: AtomicU32,
}

impl Gate {
    fn new() -> (Arc<Gate>, Sender<()>) {
        let (send, receive) = channel();
        (Arc::new(Gate { open: Mutex::new(receive), calls: AtomicU32::new(0) }), send)
    }

    fn pointer(self: &Arc<Self>) -> *mut c_void {
        Arc::as_ptr(self).cast_mut().cast()
    }
}

unsafe extern "C" fn wait_for_gate(data: *mut c_void) {
    // SAFETY: the tests pass a gate, and keep it until the function has run.
    let gate = unsafe { &*data.cast::<Gate>() };
    gate.open.lock().expect("no panic").recv().expect("opened");
    gate.calls.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn host_functions_run_beside_the_program() {
    let _context = Context::new();
    let (s, other, a, b) = (stream(), stream(), event(), event());
    let (gate, open) = Gate::new();
    ok!(cuEventRecord(a, s), cuLaunchHostFunc(s, Some(wait_for_gate), gate.pointer()), cuEventRecord(b, s));
    fails!(cuStreamQuery(s), CUDA_ERROR_NOT_READY);
    fails!(cuEventQuery(b), CUDA_ERROR_NOT_READY);
    let mut ms = 0.0;
    fails!(cuEventElapsedTime_v2(&mut ms, a, b), CUDA_ERROR_NOT_READY);
    ok!(cuEventQuery(a), cuStreamQuery(other), cuStreamWaitEvent(other, b, 0));
    fails!(cuStreamQuery(other), CUDA_ERROR_NOT_READY);
    assert_eq!(gate.calls.load(Ordering::SeqCst), 0);
    open.send(()).expect("heard");
    ok!(cuStreamSynchronize(other), cuEventQuery(b), cuEventElapsedTime_v2(&mut ms, a, b));
    assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
    fails!(cuLaunchHostFunc(s, None, null_mut()), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn work_behind_a_host_function_waits() {
    let _context = Context::new();
    let s = stream();
    let p = alloc(4);
    let (gate, open) = Gate::new();
    ok!(cuLaunchHostFunc(s, Some(wait_for_gate), gate.pointer()));
    let opener = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        open.send(()).expect("heard");
    });
    ok!(cuMemsetD32Async(p, 5, 1, s));
    assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
    opener.join().expect("no panic");
    ok!(cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 1), [5]);
}

unsafe extern "C" fn calls_the_driver(data: *mut c_void) {
    // SAFETY: the test passes a place for the result; the calls are what is tested.
    unsafe { *data.cast::<(R, R)>() = (cuCtxSynchronize(), cuMemAlloc_v2(&mut 0, 8)) };
}

#[test]
fn host_functions_may_not_call_the_driver() {
    let _context = Context::new();
    let mut results = (R::CUDA_SUCCESS, R::CUDA_SUCCESS);
    ok!(cuLaunchHostFunc(null_mut(), Some(calls_the_driver), std::ptr::from_mut(&mut results).cast()));
    ok!(cuCtxSynchronize());
    assert_eq!(results, (R::CUDA_ERROR_NOT_PERMITTED, R::CUDA_ERROR_NOT_PERMITTED));
}

unsafe extern "C" fn note_status(_stream: CUstream, status: R, data: *mut c_void) {
    // SAFETY: the test passes a place for the status.
    unsafe { *data.cast::<Option<R>>() = Some(status) };
}

#[test]
fn callbacks_are_told_of_errors() {
    let _context = Context::new();
    let s = stream();
    let mut status: Option<R> = None;
    let place: *mut c_void = std::ptr::from_mut(&mut status).cast();
    ok!(cuStreamAddCallback(s, Some(note_status), place, 0), cuStreamSynchronize(s));
    assert_eq!(status, Some(R::CUDA_SUCCESS));
    fails!(cuStreamAddCallback(s, Some(note_status), place, 1), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn a_stream_of_another_context() {
    let first = Context::new();
    let s = stream();
    let second = Context::new();
    // Work goes to the stream's own context.
    ok!(cuStreamSynchronize(s), cuMemsetD8Async(alloc(8), 0, 8, s));
    drop(first);
    ok!(cuCtxSetCurrent(second.0));
    fails!(cuStreamSynchronize(s), CUDA_ERROR_INVALID_HANDLE);
}
