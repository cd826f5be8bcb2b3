//! Allocations, pools, copies, memsets, pointers.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::c_void;
use std::ptr::null_mut;

#[test]
fn device_memory() {
    let _context = Context::new();
    let p = alloc(1000);
    assert!(p.is_multiple_of(256));
    let data: Vec<u8> = (0..=249).collect();
    upload(p + 5, &data);
    assert_eq!(download::<u8>(p + 5, 250), data);
    let (mut base, mut bytes) = (0, 0);
    ok!(cuMemGetAddressRange_v2(&mut base, &mut bytes, p + 999));
    assert_eq!((base, bytes), (p, 1000));
    fails!(cuMemGetAddressRange_v2(&mut base, &mut bytes, 0x99), CUDA_ERROR_NOT_FOUND);
    fails!(cuMemAlloc_v2(&mut 0, 0), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemAlloc_v2(null_mut(), 8), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemAlloc_v2(&mut 0, 1 << 40), CUDA_ERROR_OUT_OF_MEMORY);
    fails!(cuMemFree_v2(p + 8), CUDA_ERROR_INVALID_VALUE);
    let mut host = [0u8; 16];
    fails!(cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), p + 990, 16), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemcpyDtoH_v2(null_mut(), p, 16), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemcpyHtoD_v2(host.as_ptr() as u64, host.as_ptr().cast(), 16), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemcpyHtoD_v2(p, p as *const c_void, 16), CUDA_ERROR_INVALID_VALUE);
    ok!(cuMemcpyHtoD_v2(p, null_mut(), 0), cuMemFree_v2(p));
    fails!(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), p, 16), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemcpyHtoD_v2(alloc(16), p as *const c_void, 16), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn memsets() {
    let _context = Context::new();
    let p = alloc(64);
    ok!(cuMemsetD8_v2(p, 0xAB, 64), cuMemsetD16_v2(p + 8, 0x1234, 4), cuMemsetD32_v2(p + 32, 0xdead_beef, 2));
    let bytes = download::<u8>(p, 64);
    assert_eq!(bytes[7..17], [0xAB, 0x34, 0x12, 0x34, 0x12, 0x34, 0x12, 0x34, 0x12, 0xAB]);
    assert_eq!(bytes[32..41], [0xef, 0xbe, 0xad, 0xde, 0xef, 0xbe, 0xad, 0xde, 0xAB]);
    ok!(cuMemsetD2D8_v2(p, 16, 1, 4, 4), cuMemsetD2D32_v2(p + 4, 16, 2, 1, 4));
    let bytes = download::<u8>(p, 64);
    for row in bytes.chunks(16) {
        assert_eq!(row[..8], [1, 1, 1, 1, 2, 0, 0, 0]);
    }
    fails!(cuMemsetD32_v2(p + 2, 0, 1), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemsetD16_v2(p + 1, 0, 1), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemsetD8_v2(p, 0, 65), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemsetD2D8_v2(p, 3, 0, 4, 2), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemsetD2D8_v2(p, 32, 0, 4, 3), CUDA_ERROR_INVALID_VALUE);
    ok!(cuMemsetD8_v2(p, 0, 0));
    ok!(cuMemsetD8Async(p, 9, 64, null_mut()), cuMemsetD32Async(p, 0, 1, null_mut()));
    assert_eq!(download::<u8>(p, 5), [0, 0, 0, 0, 9]);
}

#[test]
fn page_locked_memory() {
    let _context = Context::new();
    let mut host: *mut c_void = null_mut();
    ok!(cuMemHostAlloc(&mut host, 256, 2));
    // SAFETY: just allocated, zeroed, of this size.
    let words = unsafe { std::slice::from_raw_parts_mut(host.cast::<f32>(), 64) };
    words.fill(2.0);
    let mut device = 0;
    ok!(cuMemHostGetDevicePointer_v2(&mut device, host, 0));
    assert_eq!(device, host as u64);
    // A kernel reaches it under its own address.
    let scale = function(module(), "scale");
    assert_eq!(launch(scale, 2, 32, 0, null_mut(), &[device, 3f32.to_bits().into(), 64]), R::CUDA_SUCCESS);
    ok!(cuCtxSynchronize());
    assert!(words.iter().all(|&w| w == 6.0));
    let mut flags = 0;
    ok!(cuMemHostGetFlags(&mut flags, host));
    assert_eq!(flags, 2);
    fails!(cuMemHostRegister_v2(host, 16, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    fails!(cuMemHostUnregister(host), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    fails!(cuMemFree_v2(host as u64), CUDA_ERROR_INVALID_VALUE);
    ok!(cuMemFreeHost(host));
    fails!(cuMemFreeHost(host), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemHostAlloc(&mut host, 0, 0), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemHostAlloc(&mut host, 8, 8), CUDA_ERROR_INVALID_VALUE);

    let mut mine = vec![1f32; 64];
    let place = mine.as_mut_ptr().cast::<c_void>();
    ok!(cuMemHostRegister_v2(place, 256, 0));
    fails!(cuMemHostRegister_v2(place, 256, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    assert_eq!(
        launch(scale, 2, 32, 0, null_mut(), &[place as u64, 5f32.to_bits().into(), 64]),
        R::CUDA_SUCCESS
    );
    ok!(cuCtxSynchronize(), cuMemHostUnregister(place));
    assert_eq!(mine, [5.0; 64]);
}

#[test]
fn managed_memory() {
    let _context = Context::new();
    let mut p = 0;
    ok!(cuMemAllocManaged(&mut p, 128, 1));
    // SAFETY: just allocated, zeroed, of this size.
    let words = unsafe { std::slice::from_raw_parts_mut(p as *mut f32, 32) };
    words.fill(1.5);
    let scale = function(module(), "scale");
    assert_eq!(launch(scale, 1, 32, 0, null_mut(), &[p, 2f32.to_bits().into(), 32]), R::CUDA_SUCCESS);
    ok!(cuCtxSynchronize());
    assert_eq!(words, [3.0; 32]);
    let location = device_location();
    ok!(
        cuMemPrefetchAsync_v2(p, 128, location, 0, null_mut()),
        cuMemAdvise_v2(p, 128, CUmem_advise::CU_MEM_ADVISE_SET_READ_MOSTLY, location)
    );
    fails!(cuMemPrefetchAsync_v2(p, 129, location, 0, null_mut()), CUDA_ERROR_INVALID_VALUE);
    let mut managed = 0u32;
    ok!(cuPointerGetAttribute(
        std::ptr::from_mut(&mut managed).cast(),
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED,
        p
    ));
    assert_eq!(managed, 1);
    ok!(cuMemFree_v2(p));
    fails!(cuMemAllocManaged(&mut p, 128, 0), CUDA_ERROR_INVALID_VALUE);
}

fn device_location() -> CUmemLocation {
    // SAFETY: plain numbers; zero is the first device.
    let mut location: CUmemLocation = unsafe { std::mem::zeroed() };
    location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    location
}

#[test]
fn pools() {
    let _context = Context::new();
    // SAFETY: writes the pool.
    let default = get(|p| unsafe { cuDeviceGetDefaultMemPool(p, 0) });
    // SAFETY: plain numbers and pointers.
    let mut properties: CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = device_location();
    // SAFETY: writes the pool.
    let pool = get(|p| unsafe { cuMemPoolCreate(p, &properties) });
    let s = stream();
    let (mut p, mut q) = (0, 0);
    ok!(cuMemAllocFromPoolAsync(&mut p, 1000, pool, s), cuMemAllocAsync(&mut q, 10, s));
    let read = |attribute| {
        let mut value = 0u64;
        ok!(cuMemPoolGetAttribute(pool, attribute, std::ptr::from_mut(&mut value).cast()));
        value
    };
    assert_eq!(read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 1000);
    let mut threshold = 4096u64;
    let release = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    ok!(cuMemPoolSetAttribute(pool, release, std::ptr::from_mut(&mut threshold).cast()));
    assert_eq!(read(release), 4096);
    let mut of: CUmemoryPool = null_mut();
    ok!(cuPointerGetAttribute(
        std::ptr::from_mut(&mut of).cast(),
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,
        p
    ));
    assert_eq!(of, pool);
    ok!(cuMemFreeAsync(p, s), cuMemFree_v2(q));
    fails!(cuMemFreeAsync(p, s), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemFreeAsync(alloc(8), s), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
    assert_eq!(read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH), 1000);
    ok!(cuMemPoolTrimTo(pool, 0), cuMemPoolDestroy(pool));
    fails!(cuMemPoolDestroy(pool), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemPoolDestroy(default), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemAllocFromPoolAsync(&mut p, 8, pool, s), CUDA_ERROR_INVALID_VALUE);
    fails!(cuMemAllocAsync(&mut p, 0, s), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn pitched_copies() {
    let _context = Context::new();
    let (mut p, mut pitch) = (0, 0);
    ok!(cuMemAllocPitch_v2(&mut p, &mut pitch, 100, 4, 4));
    assert!(pitch >= 100 && pitch % 512 == 0);
    fails!(cuMemAllocPitch_v2(&mut p, &mut pitch, 100, 4, 3), CUDA_ERROR_INVALID_VALUE);
    let from: Vec<u8> = (0..40).collect();
    let mut copy = copy_2d(CUmemorytype::CU_MEMORYTYPE_HOST, CUmemorytype::CU_MEMORYTYPE_DEVICE);
    copy.srcHost = from.as_ptr().cast();
    copy.srcPitch = 10;
    copy.dstDevice = p;
    copy.dstPitch = pitch;
    copy.dstXInBytes = 3;
    copy.WidthInBytes = 10;
    copy.Height = 4;
    ok!(cuMemcpy2D_v2(&copy));
    let mut to = vec![0u8; 16];
    let mut back = copy_2d(CUmemorytype::CU_MEMORYTYPE_UNIFIED, CUmemorytype::CU_MEMORYTYPE_HOST);
    back.srcDevice = p;
    back.srcPitch = pitch;
    back.srcXInBytes = 5;
    back.srcY = 1;
    back.dstHost = to.as_mut_ptr().cast();
    back.dstPitch = 5;
    back.WidthInBytes = 4;
    back.Height = 3;
    ok!(cuMemcpy2DAsync_v2(&back, null_mut()));
    assert_eq!(to, [12, 13, 14, 15, 0, 22, 23, 24, 25, 0, 32, 33, 34, 35, 0, 0]);
    back.srcPitch = 4;
    fails!(cuMemcpy2D_v2(&back), CUDA_ERROR_INVALID_VALUE);
    back.srcPitch = pitch;
    back.Height = 400;
    fails!(cuMemcpy2D_v2(&back), CUDA_ERROR_INVALID_VALUE);
    back.srcMemoryType = CUmemorytype::CU_MEMORYTYPE_ARRAY;
    fails!(cuMemcpy2D_v2(&back), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn copies_in_space() {
    let _context = Context::new();
    let (from, to) = (alloc(4 * 3 * 2), alloc(5 * 4 * 2));
    upload(from, &(0..24u8).collect::<Vec<_>>());
    ok!(cuMemsetD8_v2(to, 0xff, 40));
    let mut copy = copy_3d(CUmemorytype::CU_MEMORYTYPE_DEVICE, CUmemorytype::CU_MEMORYTYPE_DEVICE);
    copy.srcDevice = from;
    (copy.srcPitch, copy.srcHeight) = (4, 3);
    copy.dstDevice = to;
    (copy.dstPitch, copy.dstHeight, copy.dstY) = (5, 4, 1);
    (copy.WidthInBytes, copy.Height, copy.Depth) = (4, 3, 2);
    ok!(cuMemcpy3D_v2(&copy));
    let bytes = download::<u8>(to, 40);
    assert_eq!(bytes[..15], [255, 255, 255, 255, 255, 0, 1, 2, 3, 255, 4, 5, 6, 7, 255]);
    assert_eq!(bytes[25..30], [12, 13, 14, 15, 255]);
}

#[test]
fn unified_copies() {
    let _context = Context::new();
    let (p, q) = (alloc(8), alloc(8));
    let (from, mut to) = ([1u8, 2, 3, 4, 5, 6, 7, 8], [0u8; 8]);
    ok!(
        cuMemcpy(p, from.as_ptr() as u64, 8),
        cuMemcpy(q, p, 8),
        cuMemcpyDtoD_v2(p, q, 8),
        cuMemcpyAsync(to.as_mut_ptr() as u64, p, 8, null_mut())
    );
    assert_eq!(to, from);
    fails!(cuMemcpy(p, from.as_ptr() as u64, 9), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn what_a_pointer_is() {
    let _context = Context::new();
    let p = alloc(100);
    let mut kind = 0u32;
    let place = std::ptr::from_mut(&mut kind).cast::<c_void>();
    ok!(cuPointerGetAttribute(place, CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + 50));
    assert_eq!(kind, 2);
    fails!(
        cuPointerGetAttribute(place, CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, place as u64),
        CUDA_ERROR_INVALID_VALUE
    );
    fails!(
        cuPointerGetAttribute(place, CUpointer_attribute::CU_POINTER_ATTRIBUTE_HOST_POINTER, p),
        CUDA_ERROR_INVALID_VALUE
    );
    let mut attributes = [
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    ];
    let (mut start, mut size) = (1u64, 1u64);
    let mut places = [std::ptr::from_mut(&mut start).cast(), std::ptr::from_mut(&mut size).cast()];
    ok!(cuPointerGetAttributes(2, attributes.as_mut_ptr(), places.as_mut_ptr(), p + 50));
    assert_eq!((start, size), (p, 100));
    // Of an ordinary pointer of the host they are zero.
    ok!(cuPointerGetAttributes(2, attributes.as_mut_ptr(), places.as_mut_ptr(), 0x10));
    assert_eq!((start, size), (0, 0));
}
