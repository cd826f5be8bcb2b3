//! Initialisation, errors, contexts.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::CStr;
use std::ptr::null_mut;

#[test]
fn nothing_works_before_init() {
    apart("contexts::nothing_works_before_init", &[], || {
        load();
        let (mut n, mut context) = (0, null_mut());
        fails!(cuDeviceGetCount(&mut n), CUDA_ERROR_NOT_INITIALIZED);
        fails!(cuDevicePrimaryCtxRetain(&mut context, 0), CUDA_ERROR_NOT_INITIALIZED);
        fails!(cuCtxGetCurrent(&mut context), CUDA_ERROR_NOT_INITIALIZED);
        fails!(cuCtxSynchronize(), CUDA_ERROR_NOT_INITIALIZED);
        fails!(cuStreamSynchronize(null_mut()), CUDA_ERROR_NOT_INITIALIZED);
        fails!(cuMemFree_v2(0), CUDA_ERROR_NOT_INITIALIZED);
        ok!(cuDriverGetVersion(&mut n));
        assert_eq!(n, 13000);
        fails!(cuInit(1), CUDA_ERROR_INVALID_VALUE);
        fails!(cuDeviceGetCount(&mut n), CUDA_ERROR_NOT_INITIALIZED);
        ok!(cuInit(0), cuInit(0), cuDeviceGetCount(&mut n));
        assert_eq!(n, 1);
    });
}

#[test]
fn errors_have_names_and_texts() {
    load();
    let mut text = std::ptr::null();
    ok!(cuGetErrorName(R::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
    // SAFETY: a text of the library's.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    ok!(cuGetErrorString(R::CUDA_ERROR_OUT_OF_MEMORY, &mut text));
    // SAFETY: a text of the library's.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"out of memory");
    ok!(cuGetErrorString(R::CUDA_SUCCESS, &mut text));
    fails!(cuGetErrorName(R::CUDA_SUCCESS, null_mut()), CUDA_ERROR_INVALID_VALUE);
    // A code that is none cannot be named through the enum.
    let name: unsafe extern "C" fn(u32, *mut *const i8) -> u32 = extension("cuGetErrorName");
    let mut none = std::ptr::null();
    // SAFETY: writes the pointer.
    assert_eq!((unsafe { name(12345, &mut none) }, none.is_null()), (1, true));
}

#[test]
fn no_context_is_an_error() {
    start();
    let mut p = 0;
    std::thread::spawn(move || {
        fails!(cuMemAlloc_v2(&mut p, 4), CUDA_ERROR_INVALID_CONTEXT);
        fails!(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
        fails!(cuCtxPopCurrent_v2(null_mut()), CUDA_ERROR_INVALID_CONTEXT);
        fails!(cuCtxSetCurrent(0x1234 as CUcontext), CUDA_ERROR_INVALID_CONTEXT);
        fails!(cuCtxDestroy_v2(null_mut()), CUDA_ERROR_INVALID_CONTEXT);
        fails!(cuStreamCreate(&mut null_mut(), 0), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .expect("no panic");
}

#[test]
fn the_stack() {
    let first = Context::new();
    let second = Context::new();
    // SAFETY: writes the context.
    let current = || get(|c| unsafe { cuCtxGetCurrent(c) });
    assert_eq!(current(), second.0);
    ok!(cuCtxPushCurrent_v2(first.0));
    assert_eq!(current(), first.0);
    let mut popped = null_mut();
    ok!(cuCtxPopCurrent_v2(&mut popped));
    assert_eq!((popped, current()), (first.0, second.0));
    ok!(cuCtxSetCurrent(first.0));
    assert_eq!(current(), first.0);
    // SAFETY: writes the device.
    assert_eq!(get(|d| unsafe { cuCtxGetDevice(d) }), 0);
    let (mut one, mut two) = (0, 0);
    ok!(cuCtxGetId(first.0, &mut one), cuCtxGetId(second.0, &mut two));
    assert_ne!(one, two);
}

#[test]
fn a_destroyed_context_takes_everything_along() {
    let context = Context::new();
    let (stream, event, module) = (stream(), event(), module());
    let function = function(module, "trapped");
    // SAFETY: writes both.
    let before = get(|free| unsafe { cuMemGetInfo_v2(free, &mut 0) });
    alloc(1 << 20);
    ok!(cuCtxDestroy_v2(context.0));
    fails!(cuCtxSetCurrent(context.0), CUDA_ERROR_INVALID_CONTEXT);
    fails!(cuCtxDestroy_v2(context.0), CUDA_ERROR_INVALID_CONTEXT);
    let _other = Context::new();
    fails!(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuEventQuery(event), CUDA_ERROR_INVALID_HANDLE);
    fails!(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(launch(function, 1, 1, 0, null_mut(), &[]), R::CUDA_ERROR_INVALID_HANDLE);
    // Other tests allocate too, so only that this one's memory is not lost can be said.
    // SAFETY: writes both.
    assert!(get(|free| unsafe { cuMemGetInfo_v2(free, &mut 0) }) + (1 << 30) > before);
}

#[test]
fn another_thread_sees_that_the_context_is_gone() {
    let context = Context::new();
    let handle = context.0 as usize;
    let (send, receive) = std::sync::mpsc::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(handle as CUcontext));
        tell.send(()).expect("heard");
        receive.recv().expect("told");
        fails!(cuCtxSynchronize(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    });
    told.recv().expect("told");
    drop(context);
    send.send(()).expect("heard");
    thread.join().expect("no panic");
}

#[test]
fn the_primary_context() {
    apart("contexts::the_primary_context", &[], || {
        start();
        let (mut one, mut two) = (null_mut(), null_mut());
        let (mut flags, mut active) = (0, 0);
        fails!(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT);
        ok!(cuDevicePrimaryCtxGetState(0, &mut flags, &mut active));
        assert_eq!(active, 0);
        ok!(cuDevicePrimaryCtxSetFlags_v2(0, 4), cuDevicePrimaryCtxRetain(&mut one, 0));
        ok!(cuDevicePrimaryCtxRetain(&mut two, 0), cuDevicePrimaryCtxGetState(0, &mut flags, &mut active));
        assert_eq!((one, flags, active), (two, 4, 1));
        fails!(cuCtxDestroy_v2(one), CUDA_ERROR_INVALID_CONTEXT);
        ok!(cuCtxSetCurrent(one));
        let p = alloc(64);
        ok!(cuDevicePrimaryCtxRelease_v2(0), cuMemFree_v2(p));
        let p = alloc(64);
        ok!(cuDevicePrimaryCtxReset_v2(0));
        fails!(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
        ok!(cuDevicePrimaryCtxRelease_v2(0));
        fails!(cuCtxSynchronize(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
        fails!(cuDevicePrimaryCtxRetain(&mut one, 1), CUDA_ERROR_INVALID_DEVICE);
        fails!(cuDevicePrimaryCtxRetain(null_mut(), 0), CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn limits_flags_and_configurations() {
    let _context = Context::new();
    let mut value = 0;
    ok!(cuCtxGetLimit(&mut value, CUlimit::CU_LIMIT_STACK_SIZE));
    assert_eq!(value, 1024);
    ok!(
        cuCtxSetLimit(CUlimit::CU_LIMIT_STACK_SIZE, 4096),
        cuCtxGetLimit(&mut value, CUlimit::CU_LIMIT_STACK_SIZE)
    );
    assert_eq!(value, 4096);
    fails!(cuCtxSetLimit(CUlimit::CU_LIMIT_SHMEM_SIZE, 1), CUDA_ERROR_UNSUPPORTED_LIMIT);
    fails!(cuCtxGetLimit(null_mut(), CUlimit::CU_LIMIT_STACK_SIZE), CUDA_ERROR_INVALID_VALUE);
    let (mut least, mut greatest, mut flags) = (1, 1, 1);
    ok!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest), cuCtxGetFlags(&mut flags), cuCtxSetFlags(4));
    assert_eq!((least, greatest, flags), (0, -5, 0));
    ok!(cuCtxGetFlags(&mut flags));
    assert_eq!(flags, 4);
    fails!(cuCtxSetFlags(3), CUDA_ERROR_INVALID_VALUE);
    let mut cache = CUfunc_cache::CU_FUNC_CACHE_PREFER_L1;
    ok!(cuCtxGetCacheConfig(&mut cache), cuCtxSetCacheConfig(CUfunc_cache::CU_FUNC_CACHE_PREFER_SHARED));
    assert_eq!(cache, CUfunc_cache::CU_FUNC_CACHE_PREFER_NONE);
    let mut version = 0;
    ok!(cuCtxGetApiVersion(null_mut(), &mut version), cuProfilerStart(), cuProfilerStop());
    assert_eq!(version, 3020);
}
