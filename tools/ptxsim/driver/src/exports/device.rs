//! Devices.

use super::entries;
use crate::device;
use crate::ffi::{DeviceProperties, Handle, Out, Text, Uuid};
use std::ffi::{c_char, c_int, c_uint};

entries! {
    cuDriverGetVersion(out: Out<c_int>) => device::version(out);
    cuDeviceGetCount(out: Out<c_int>) => device::count(out);
    cuDeviceGet(out: Out<c_int>, ordinal: c_int) => device::get(out, ordinal);
    cuDeviceGetName(out: Out<c_char>, room: c_int, device: c_int) => device::name(out, room, device);
    cuDeviceGetUuid(out: Out<Uuid>, device: c_int) => device::uuid(out, device);
    cuDeviceGetUuid_v2(out: Out<Uuid>, device: c_int) => device::uuid(out, device);
    cuDeviceTotalMem_v2(out: Out<usize>, device: c_int) => device::total_memory(out, device);
    cuDeviceGetAttribute(out: Out<c_int>, attribute: c_uint, device: c_int) =>
        device::attribute(out, attribute, device);
    cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) =>
        device::compute_capability(major, minor, device);
    cuDeviceGetProperties(out: Out<DeviceProperties>, device: c_int) => device::properties(out, device);
    cuDeviceCanAccessPeer(out: Out<c_int>, device: c_int, peer: c_int) => device::can_access_peer(out, device, peer);
    cuDeviceGetP2PAttribute(out: Out<c_int>, attribute: c_uint, device: c_int, peer: c_int) =>
        device::peer_attribute(out, attribute, device, peer);
    cuDeviceGetPCIBusId(out: Out<c_char>, room: c_int, device: c_int) => device::pci_bus_id(out, room, device);
    cuDeviceGetByPCIBusId(out: Out<c_int>, text: Text) => device::by_pci_bus_id(out, text);
    cuDeviceGetExecAffinitySupport(out: Out<c_int>, kind: c_int, device: c_int) =>
        device::affinity_support(out, kind, device);
    cuDeviceGetDefaultMemPool(out: Out<Handle>, device: c_int) => device::default_pool(out, device);
    cuDeviceGetMemPool(out: Out<Handle>, device: c_int) => device::get_pool(out, device);
    cuDeviceSetMemPool(device: c_int, pool: Handle) => device::set_pool(device, pool);
}
