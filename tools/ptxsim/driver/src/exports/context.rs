//! `cuInit`, errors, contexts, the profiler's switch.

use super::entries;
use crate::ffi::{ContextParams, Handle, In, Out, Text};
use crate::{context, error, procaddress, state};
use std::ffi::{c_char, c_int, c_uint};

entries! {
    cuInit(flags: c_uint) => state::init(flags);
    cuGetErrorName(code: u32, out: Out<*const c_char>) => error::name(code, out);
    cuGetErrorString(code: u32, out: Out<*const c_char>) => error::string(code, out);
    cuGetProcAddress(name: Text, out: Out<usize>, version: c_int, flags: u64) =>
        procaddress::get(name, out, version, flags, Out::nowhere());
    cuGetProcAddress_v2(name: Text, out: Out<usize>, version: c_int, flags: u64, status: Out<u32>) =>
        procaddress::get(name, out, version, flags, status);
    cuDevicePrimaryCtxRetain(out: Out<Handle>, device: c_int) => context::primary_retain(out, device);
    cuDevicePrimaryCtxRelease_v2(device: c_int) => context::primary_release(device);
    cuDevicePrimaryCtxReset_v2(device: c_int) => context::primary_reset(device);
    cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) => context::primary_set_flags(device, flags);
    cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) =>
        context::primary_state(device, flags, active);
    cuCtxCreate_v2(out: Out<Handle>, flags: c_uint, device: c_int) => context::create(out, flags, device);
    cuCtxCreate_v3(out: Out<Handle>, affinity: usize, count: c_int, flags: c_uint, device: c_int) =>
        context::create_v3(out, affinity, count, flags, device);
    cuCtxCreate_v4(out: Out<Handle>, params: In<ContextParams>, flags: c_uint, device: c_int) =>
        context::create_v4(out, params, flags, device);
    cuCtxDestroy_v2(handle: Handle) => context::destroy(handle);
    cuCtxGetCurrent(out: Out<Handle>) => context::get_current(out);
    cuCtxSetCurrent(handle: Handle) => context::set_current(handle);
    cuCtxPushCurrent_v2(handle: Handle) => context::push_current(handle);
    cuCtxPopCurrent_v2(out: Out<Handle>) => context::pop_current(out);
    cuCtxGetDevice(out: Out<c_int>) => context::get_device(out);
    cuCtxGetDevice_v2(out: Out<c_int>, handle: Handle) => context::get_device_v2(out, handle);
    cuCtxGetFlags(out: Out<c_uint>) => context::get_flags(out);
    cuCtxSetFlags(flags: c_uint) => context::set_flags(flags);
    cuCtxGetId(handle: Handle, out: Out<u64>) => context::get_id(handle, out);
    cuCtxGetApiVersion(handle: Handle, out: Out<c_uint>) => context::api_version(handle, out);
    cuCtxGetLimit(out: Out<usize>, limit: c_uint) => context::get_limit(out, limit);
    cuCtxSetLimit(limit: c_uint, value: usize) => context::set_limit(limit, value);
    cuCtxGetCacheConfig(out: Out<c_uint>) => context::get_cache_config(out);
    cuCtxSetCacheConfig(config: c_uint) => context::set_cache_config(config);
    cuCtxGetSharedMemConfig(out: Out<c_uint>) => context::get_shared_config(out);
    cuCtxSetSharedMemConfig(config: c_uint) => context::set_shared_config(config);
    cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) => context::priority_range(least, greatest);
    cuCtxSynchronize() => context::synchronize();
    cuCtxSynchronize_v2(handle: Handle) => context::synchronize_v2(handle);
    cuCtxResetPersistingL2Cache() => context::reset_persisting();
    cuCtxEnablePeerAccess(peer: Handle, flags: c_uint) => context::enable_peer(peer, flags);
    cuCtxDisablePeerAccess(peer: Handle) => context::disable_peer(peer);
    cuProfilerStart() => context::profiler();
    cuProfilerStop() => context::profiler();
}
