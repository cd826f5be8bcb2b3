//! Devices: attributes, the choice of the card, several devices.

use crate::support::*;
use CUdevice_attribute as A;
use cudarc::driver::sys::*;
use std::ffi::CStr;

fn attribute(id: A) -> i32 {
    // SAFETY: writes the value.
    get(|v| unsafe { cuDeviceGetAttribute(v, id, 0) })
}

fn name() -> String {
    let mut text = [0u8; 100];
    ok!(cuDeviceGetName(text.as_mut_ptr().cast(), 100, 0));
    CStr::from_bytes_until_nul(&text).expect("a NUL").to_string_lossy().into_owned()
}

#[test]
fn the_default_card() {
    start();
    assert_eq!(name(), "NVIDIA H100 80GB HBM3 (ptxsim)");
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR), 9);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 132);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), 232_448);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED), 1);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH), 1);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED), 1);
    assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), 0);
    // SAFETY: writes the number.
    assert_eq!(get(|v| unsafe { cuDeviceTotalMem_v2(v, 0) }), 85_029_158_912);
    let mut short = [1u8; 8];
    ok!(cuDeviceGetName(short.as_mut_ptr().cast(), 7, 0));
    assert_eq!(&short, b"NVIDIA\0\x01");
    let get_attribute: unsafe extern "C" fn(*mut i32, u32, i32) -> u32 = extension("cuDeviceGetAttribute");
    for id in 1..=147 {
        // SAFETY: writes the value.
        assert_eq!(unsafe { get_attribute(&mut 0, id, 0) }, 0, "attribute {id}");
    }
    for id in [0, 148, 9999] {
        // SAFETY: writes nothing.
        assert_eq!(unsafe { get_attribute(&mut 0, id, 0) }, 1, "attribute {id}");
    }
    fails!(cuDeviceGet(&mut 0, 1), CUDA_ERROR_INVALID_DEVICE);
    fails!(cuDeviceGet(&mut 0, -1), CUDA_ERROR_INVALID_DEVICE);
    fails!(cuDeviceGetName(short.as_mut_ptr().cast(), 0, 0), CUDA_ERROR_INVALID_VALUE);
    let mut bus = [0u8; 16];
    ok!(cuDeviceGetPCIBusId(bus.as_mut_ptr().cast(), 16, 0));
    assert_eq!(&bus[..13], b"0000:19:00.0\0");
    let mut device = 7;
    ok!(cuDeviceGetByPCIBusId(&mut device, c"19:00".as_ptr()));
    assert_eq!(device, 0);
    fails!(cuDeviceGetByPCIBusId(&mut device, c"20:00".as_ptr()), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn an_a100() {
    apart("cards::an_a100", &[("PTXSIM_CARD", "sm_80")], || {
        let _context = Context::new();
        assert!(name().contains("A100") && name().contains("ptxsim"));
        assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 108);
        assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH), 0);
        let later = c".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() { ret; }\n";
        let mut module = std::ptr::null_mut();
        fails!(cuModuleLoadData(&mut module, later.as_ptr().cast()), CUDA_ERROR_INVALID_PTX);
        let mut map = CUtensorMap { opaque: [0; 16] };
        let (extent, stride, one) = ([64u64, 64], [256u64], [1u32, 1]);
        fails!(
            cuTensorMapEncodeTiled(
                &mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                2,
                0x1000 as *mut _,
                extent.as_ptr(),
                stride.as_ptr(),
                [32u32, 8].as_ptr(),
                one.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            CUDA_ERROR_NOT_SUPPORTED
        );
    });
}

#[test]
fn two_devices() {
    apart("cards::two_devices", &[("PTXSIM_DEVICES", "2")], || {
        let first = Context::on(0);
        let here = alloc(64);
        upload(here, &[7u32; 16]);
        let second = Context::on(1);
        let there = alloc(64);
        let (mut uuid, mut other) = (CUuuid { bytes: [0; 16] }, CUuuid { bytes: [0; 16] });
        ok!(cuDeviceGetUuid_v2(&mut uuid, 0), cuDeviceGetUuid_v2(&mut other, 1));
        assert_ne!(uuid.bytes, other.bytes);
        let mut can = 0;
        ok!(cuDeviceCanAccessPeer(&mut can, 0, 1));
        assert_eq!(can, 1);
        ok!(cuCtxEnablePeerAccess(first.0, 0));
        fails!(cuCtxEnablePeerAccess(first.0, 0), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        ok!(cuMemcpyPeer(there, second.0, here, first.0, 64));
        assert_eq!(download::<u32>(there, 16), [7; 16]);
        ok!(cuMemcpyPeerAsync(here, first.0, there, second.0, 64, std::ptr::null_mut()), cuCtxSynchronize());
        ok!(cuCtxDisablePeerAccess(first.0));
        fails!(cuCtxDisablePeerAccess(first.0), CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
        fails!(cuMemcpyPeer(there, std::ptr::null_mut(), here, first.0, 64), CUDA_ERROR_INVALID_CONTEXT);
        let (mut ordinal, mut owner) = (0i32, std::ptr::null_mut::<CUctx_st>());
        ok!(
            cuPointerGetAttribute(
                std::ptr::from_mut(&mut ordinal).cast(),
                CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                there,
            ),
            cuPointerGetAttribute(
                std::ptr::from_mut(&mut owner).cast(),
                CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT,
                here,
            ),
        );
        assert_eq!((ordinal, owner), (1, first.0));
    });
}

#[test]
fn no_device_and_bad_settings() {
    for (test, variable, value) in [("0", "PTXSIM_DEVICES", "0"), ("x", "PTXSIM_CARD", "no_such_card")] {
        let body = || {
            load();
            fails!(cuInit(0), CUDA_ERROR_NO_DEVICE);
            fails!(cuDeviceGet(&mut 0, 0), CUDA_ERROR_NO_DEVICE);
        };
        if std::env::var("PTXSIM_TEST_APART").is_ok() {
            return body();
        }
        apart("cards::no_device_and_bad_settings", &[(variable, value)], || unreachable!("{test}"));
    }
}

#[test]
fn a_card_from_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), r#"{"name": "small", "multiprocessors": 4, "total_memory_bytes": 1048576}"#)
        .expect("written");
    apart("cards::a_card_from_a_file", &[("PTXSIM_CARD", &file.path().to_string_lossy())], || {
        let _context = Context::new();
        assert_eq!(name(), "small (ptxsim)");
        assert_eq!(attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 4);
        let half = alloc(1 << 19);
        fails!(cuMemAlloc_v2(&mut 0, (1 << 19) + 1), CUDA_ERROR_OUT_OF_MEMORY);
        let (mut free, mut total) = (0, 0);
        ok!(cuMemGetInfo_v2(&mut free, &mut total));
        assert_eq!((free, total), (1 << 19, 1 << 20));
        ok!(cuMemFree_v2(half));
        alloc(1 << 20);
    });
}
