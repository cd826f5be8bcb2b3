//! Memory: allocations, pools, copies, memsets.

use super::entries;
use crate::ffi::{AccessDescription, Handle, In, Location, Memcpy2d, Memcpy3d, Out, PoolProperties};
use crate::{copy, memory, pool};
use std::ffi::{c_int, c_uint};

entries! {
    cuMemAlloc_v2(out: Out<u64>, bytes: usize) => memory::alloc(out, bytes);
    cuMemAllocPitch_v2(out: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: c_uint) =>
        memory::alloc_pitch(out, pitch, width, height, element);
    cuMemFree_v2(address: u64) => memory::free(address);
    cuMemAllocAsync(out: Out<u64>, bytes: usize, stream: Handle) => memory::alloc_async(out, bytes, stream);
    cuMemAllocFromPoolAsync(out: Out<u64>, bytes: usize, pool: Handle, stream: Handle) =>
        memory::alloc_from_pool(out, bytes, pool, stream);
    cuMemFreeAsync(address: u64, stream: Handle) => memory::free_async(address, stream);
    cuMemAllocManaged(out: Out<u64>, bytes: usize, flags: c_uint) => memory::alloc_managed(out, bytes, flags);
    cuMemHostAlloc(out: Out<usize>, bytes: usize, flags: c_uint) => memory::host_alloc(out, bytes, flags);
    cuMemAllocHost_v2(out: Out<usize>, bytes: usize) => memory::host_alloc_plain(out, bytes);
    cuMemFreeHost(address: usize) => memory::host_free(address);
    cuMemHostRegister_v2(address: usize, bytes: usize, flags: c_uint) => memory::host_register(address, bytes, flags);
    cuMemHostUnregister(address: usize) => memory::host_unregister(address);
    cuMemHostGetDevicePointer_v2(out: Out<u64>, address: usize, flags: c_uint) =>
        memory::host_device_pointer(out, address, flags);
    cuMemHostGetFlags(out: Out<c_uint>, address: usize) => memory::host_flags(out, address);
    cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) => memory::info(free, total);
    cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) =>
        memory::address_range(base, bytes, address);
    cuPointerGetAttribute(out: Out<u64>, attribute: c_uint, address: u64) =>
        memory::pointer_attribute(out, attribute, address);
    cuPointerGetAttributes(count: c_uint, attributes: In<c_uint>, outs: In<usize>, address: u64) =>
        memory::pointer_attributes(count, attributes, outs, address);
    cuPointerSetAttribute(value: In<c_uint>, attribute: c_uint, address: u64) =>
        memory::set_pointer_attribute(value, attribute, address);
    cuMemAdvise(address: u64, bytes: usize, advice: c_uint, device: c_int) =>
        memory::advise(address, bytes, advice, device);
    cuMemAdvise_v2(address: u64, bytes: usize, advice: c_uint, location: Location) =>
        memory::advise_v2(address, bytes, advice, location);
    cuMemPrefetchAsync(address: u64, bytes: usize, device: c_int, stream: Handle) =>
        memory::prefetch(address, bytes, device, stream);
    cuMemPrefetchAsync_v2(address: u64, bytes: usize, location: Location, flags: c_uint, stream: Handle) =>
        memory::prefetch_v2(address, bytes, location, flags, stream);
    cuMemGetDefaultMemPool(out: Out<Handle>, location: In<Location>, kind: c_uint) =>
        memory::location_pool(out, location, kind, true);
    cuMemGetMemPool(out: Out<Handle>, location: In<Location>, kind: c_uint) =>
        memory::location_pool(out, location, kind, false);

    cuMemPoolCreate(out: Out<Handle>, properties: In<PoolProperties>) => pool::create(out, properties);
    cuMemPoolDestroy(pool: Handle) => pool::destroy(pool);
    cuMemPoolTrimTo(pool: Handle, keep: usize) => pool::trim_to(pool, keep);
    cuMemPoolGetAttribute(pool: Handle, attribute: c_uint, out: Out<u64>) => pool::get_attribute(pool, attribute, out);
    cuMemPoolSetAttribute(pool: Handle, attribute: c_uint, value: Out<u64>) =>
        pool::set_attribute(pool, attribute, value);
    cuMemPoolSetAccess(pool: Handle, list: In<AccessDescription>, count: usize) => pool::set_access(pool, list, count);
    cuMemPoolGetAccess(out: Out<c_uint>, pool: Handle, location: In<Location>) => pool::get_access(out, pool, location);

    cuMemcpy(dst: u64, src: u64, bytes: usize) => copy::unified(dst, src, bytes);
    cuMemcpyAsync(dst: u64, src: u64, bytes: usize, stream: Handle) => copy::unified_async(dst, src, bytes, stream);
    cuMemcpyHtoD_v2(dst: u64, src: usize, bytes: usize) => copy::htod(dst, src, bytes);
    cuMemcpyDtoH_v2(dst: usize, src: u64, bytes: usize) => copy::dtoh(dst, src, bytes);
    cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize) => copy::dtod(dst, src, bytes);
    cuMemcpyHtoDAsync_v2(dst: u64, src: usize, bytes: usize, stream: Handle) =>
        copy::htod_async(dst, src, bytes, stream);
    cuMemcpyDtoHAsync_v2(dst: usize, src: u64, bytes: usize, stream: Handle) =>
        copy::dtoh_async(dst, src, bytes, stream);
    cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: Handle) =>
        copy::dtod_async(dst, src, bytes, stream);
    cuMemcpyPeer(dst: u64, dst_context: Handle, src: u64, src_context: Handle, bytes: usize) =>
        copy::peer(dst, dst_context, src, src_context, bytes);
    cuMemcpyPeerAsync(
        dst: u64, dst_context: Handle, src: u64, src_context: Handle, bytes: usize, stream: Handle,
    ) => copy::peer_async(dst, dst_context, src, src_context, bytes, stream);
    cuMemcpy2D_v2(params: In<Memcpy2d>) => copy::copy_2d(params);
    cuMemcpy2DUnaligned_v2(params: In<Memcpy2d>) => copy::copy_2d(params);
    cuMemcpy2DAsync_v2(params: In<Memcpy2d>, stream: Handle) => copy::copy_2d_async(params, stream);
    cuMemcpy3D_v2(params: In<Memcpy3d>) => copy::copy_3d(params);
    cuMemcpy3DAsync_v2(params: In<Memcpy3d>, stream: Handle) => copy::copy_3d_async(params, stream);

    cuMemsetD8_v2(dst: u64, value: u8, count: usize) => copy::fill(dst, 1, value.into(), count);
    cuMemsetD16_v2(dst: u64, value: u16, count: usize) => copy::fill(dst, 2, value.into(), count);
    cuMemsetD32_v2(dst: u64, value: u32, count: usize) => copy::fill(dst, 4, value, count);
    cuMemsetD8Async(dst: u64, value: u8, count: usize, stream: Handle) =>
        copy::fill_async(dst, 1, value.into(), count, stream);
    cuMemsetD16Async(dst: u64, value: u16, count: usize, stream: Handle) =>
        copy::fill_async(dst, 2, value.into(), count, stream);
    cuMemsetD32Async(dst: u64, value: u32, count: usize, stream: Handle) =>
        copy::fill_async(dst, 4, value, count, stream);
    cuMemsetD2D8_v2(dst: u64, pitch: usize, value: u8, width: usize, height: usize) =>
        copy::fill_2d(dst, pitch, 1, value.into(), width, height);
    cuMemsetD2D16_v2(dst: u64, pitch: usize, value: u16, width: usize, height: usize) =>
        copy::fill_2d(dst, pitch, 2, value.into(), width, height);
    cuMemsetD2D32_v2(dst: u64, pitch: usize, value: u32, width: usize, height: usize) =>
        copy::fill_2d(dst, pitch, 4, value, width, height);
    cuMemsetD2D8Async(dst: u64, pitch: usize, value: u8, width: usize, height: usize, stream: Handle) =>
        copy::fill_2d_async(dst, pitch, 1, value.into(), width, height, stream);
    cuMemsetD2D16Async(dst: u64, pitch: usize, value: u16, width: usize, height: usize, stream: Handle) =>
        copy::fill_2d_async(dst, pitch, 2, value.into(), width, height, stream);
    cuMemsetD2D32Async(dst: u64, pitch: usize, value: u32, width: usize, height: usize, stream: Handle) =>
        copy::fill_2d_async(dst, pitch, 4, value, width, height, stream);
}
