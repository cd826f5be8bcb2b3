//! Launches: what is refused, and how parameters arrive.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::c_void;
use std::ptr::null_mut;

#[test]
fn a_kernel_runs() {
    let _context = Context::new();
    let p = alloc(400);
    upload(p, &[1.5f32; 100]);
    let scale = function(module(), "scale");
    assert_eq!(launch(scale, 4, 32, 0, null_mut(), &[p, 4f32.to_bits().into(), 90]), R::CUDA_SUCCESS);
    ok!(cuCtxSynchronize());
    let out = download::<f32>(p, 100);
    assert_eq!((&out[..90], &out[90..]), (&[6.0; 90][..], &[1.5; 10][..]));
    let report = report();
    assert_eq!(report["launches"][0]["kernel"], "scale");
    assert_eq!(report["launches"][0]["grid"], serde_json::json!([4, 1, 1]));
    assert_eq!((report["findings"].clone(), findings()), (0.into(), 0));
    let clear: extern "C" fn() = extension("ptxsim_report_clear");
    clear();
    assert_eq!(self::report()["launches"], serde_json::json!([]));
}

fn shaped(f: CUfunction, grid: [u32; 3], block: [u32; 3], shared: u32, params: &mut [*mut c_void]) -> R {
    let [gx, gy, gz] = grid;
    let [bx, by, bz] = block;
    // SAFETY: the parameters are those of the kernel.
    unsafe { cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, null_mut(), params.as_mut_ptr(), null_mut()) }
}

#[test]
fn shapes_that_are_refused() {
    let _context = Context::new();
    let module = module();
    let trapped = function(module, "trapped");
    let one = [1, 1, 1];
    let bad = R::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(shaped(trapped, [0, 1, 1], one, 0, &mut []), bad);
    assert_eq!(shaped(trapped, one, [1, 0, 1], 0, &mut []), bad);
    assert_eq!(shaped(trapped, [1, 65_536, 1], one, 0, &mut []), bad);
    assert_eq!(shaped(trapped, [1, 1, 65_536], one, 0, &mut []), bad);
    assert_eq!(shaped(trapped, [1 << 31, 1, 1], one, 0, &mut []), bad);
    assert_eq!(shaped(trapped, one, [1025, 1, 1], 0, &mut []), bad);
    assert_eq!(shaped(trapped, one, [1, 1, 65], 0, &mut []), bad);
    assert_eq!(shaped(trapped, one, [64, 32, 1], 0, &mut []), bad);
    assert_eq!(shaped(trapped, one, one, 49_153, &mut []), bad);
    assert_eq!(
        launch(function(module, "bounded"), 1, 129, 0, null_mut(), &[]),
        R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
    );
    assert_eq!(launch(function(module, "bounded"), 1, 128, 0, null_mut(), &[]), R::CUDA_SUCCESS);
    assert_eq!(launch(function(module, "exact"), 1, 32, 0, null_mut(), &[]), bad);
    assert_eq!(launch(function(module, "exact"), 1, 64, 0, null_mut(), &[]), R::CUDA_SUCCESS);
    assert_eq!(launch(0x60 as CUfunction, 1, 1, 0, null_mut(), &[]), R::CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(launch(null_mut(), 1, 1, 0, null_mut(), &[]), R::CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(launch(function(module, "scale"), 1, 1, 0, null_mut(), &[]), bad);
    assert_eq!(
        launch(function(module, "bounded"), 1, 1, 0, 0x60 as CUstream, &[]),
        R::CUDA_ERROR_INVALID_HANDLE
    );
    // None of these ran, and none of them is a fault.
    ok!(cuCtxSynchronize());
}

#[test]
fn a_function_of_another_context() {
    let first = Context::new();
    let f = function(module(), "bounded");
    let _second = Context::new();
    assert_eq!(launch(f, 1, 1, 0, null_mut(), &[]), R::CUDA_ERROR_INVALID_HANDLE);
    ok!(cuCtxSetCurrent(first.0));
    assert_eq!(launch(f, 1, 1, 0, null_mut(), &[]), R::CUDA_SUCCESS);
}

#[test]
fn dynamic_shared_memory() {
    let _context = Context::new();
    let f = function(module(), "shared_both");
    let out = alloc(4 * 1024);
    assert_eq!(launch(f, 1, 1024, 4096, null_mut(), &[out]), R::CUDA_SUCCESS);
    assert_eq!(download::<u32>(out, 1024), (0..1024).collect::<Vec<_>>());
    // Beyond 48 KiB with the static part only after opting in.
    assert_eq!(launch(f, 1, 1024, 49_152 - 4095, null_mut(), &[out]), R::CUDA_ERROR_INVALID_VALUE);
    ok!(cuFuncSetAttribute(
        f,
        CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        100_000
    ));
    assert_eq!(launch(f, 1, 1024, 100_000, null_mut(), &[out]), R::CUDA_SUCCESS);
    assert_eq!(launch(f, 1, 1024, 100_001, null_mut(), &[out]), R::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn parameters_of_all_sizes() {
    let _context = Context::new();
    let f = function(module(), "by_value");
    let out = alloc(8);
    let (mut first, mut pair, mut place) = (9u16, [1u64, 0x1234_5678_9abc_def0], out);
    let mut params: [*mut c_void; 3] = [
        std::ptr::from_mut(&mut first).cast(),
        pair.as_mut_ptr().cast(),
        std::ptr::from_mut(&mut place).cast(),
    ];
    assert_eq!(shaped(f, [1; 3], [1; 3], 0, &mut params), R::CUDA_SUCCESS);
    assert_eq!(download::<u64>(out, 1), [0x1234_5678_9abc_def0]);
    params[1] = null_mut();
    assert_eq!(shaped(f, [1; 3], [1; 3], 0, &mut params), R::CUDA_ERROR_INVALID_VALUE);

    // The same in one buffer.
    let mut buffer = [0u64, 1, 77, out];
    let mut size = 32usize;
    let place = buffer.as_mut_ptr().cast();
    let mut extra: [*mut c_void; 5] = [
        std::ptr::dangling_mut::<c_void>(),
        place,
        2 as *mut c_void,
        std::ptr::from_mut(&mut size).cast(),
        null_mut(),
    ];
    ok!(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()));
    assert_eq!(download::<u64>(out, 1), [77]);
    size = 31;
    extra[3] = std::ptr::from_mut(&mut size).cast();
    fails!(
        cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()),
        CUDA_ERROR_INVALID_VALUE
    );
    fails!(
        cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, null_mut(), params.as_mut_ptr(), extra.as_mut_ptr()),
        CUDA_ERROR_INVALID_VALUE
    );
}

#[test]
fn cooperative_launches() {
    let _context = Context::new();
    let f = function(module(), "bounded");
    ok!(cuLaunchCooperativeKernel(f, 132, 1, 1, 128, 1, 1, 0, null_mut(), null_mut()));
    fails!(
        cuLaunchCooperativeKernel(f, 132 * 16 + 1, 1, 1, 128, 1, 1, 0, null_mut(), null_mut()),
        CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    );
}

fn extended(f: CUfunction, attributes: &mut [CUlaunchAttribute], grid: u32) -> R {
    // SAFETY: plain numbers and pointers.
    let mut config: CUlaunchConfig = unsafe { std::mem::zeroed() };
    (config.gridDimX, config.gridDimY, config.gridDimZ) = (grid, 1, 1);
    (config.blockDimX, config.blockDimY, config.blockDimZ) = (32, 1, 1);
    config.attrs = attributes.as_mut_ptr();
    config.numAttrs = attributes.len() as u32;
    // SAFETY: the kernel takes no parameters.
    unsafe { cuLaunchKernelEx(&config, f, null_mut(), null_mut()) }
}

#[test]
fn launches_with_attributes() {
    use CUlaunchAttributeID as Id;
    let _context = Context::new();
    let f = function(module(), "bounded");
    let attribute = |id, fill: &dyn Fn(&mut CUlaunchAttributeValue)| {
        // SAFETY: plain numbers and pointers.
        let mut attribute: CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = id;
        fill(&mut attribute.value);
        attribute
    };
    let cluster = |n: u32| {
        attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|v| {
            (v.clusterDim.x, v.clusterDim.y, v.clusterDim.z) = (n, 1, 1);
        })
    };
    let priority = attribute(Id::CU_LAUNCH_ATTRIBUTE_PRIORITY, &|v| v.priority = -1);
    assert_eq!(extended(f, &mut [], 4), R::CUDA_SUCCESS);
    assert_eq!(extended(f, &mut [priority, cluster(1)], 4), R::CUDA_SUCCESS);
    assert_eq!(extended(f, &mut [cluster(16)], 16), R::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    assert_eq!(extended(f, &mut [cluster(3)], 4), R::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    assert_eq!(extended(f, &mut [cluster(0)], 4), R::CUDA_ERROR_INVALID_VALUE);
    let cooperative = attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &|v| v.cooperative = 1);
    assert_eq!(extended(f, &mut [cooperative], 100_000), R::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    let e = event();
    let done =
        attribute(Id::CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT, &|v| v.launchCompletionEvent.event = e);
    assert_eq!(extended(f, &mut [done], 1), R::CUDA_SUCCESS);
    let mut ms = 0.0;
    ok!(cuEventElapsedTime_v2(&mut ms, e, e));
    fails!(cuLaunchKernelEx(std::ptr::null(), f, null_mut(), null_mut()), CUDA_ERROR_INVALID_VALUE);
}
