//! Allocations: of the device, of pools, of the host; and what a pointer is.

use crate::capture;
use crate::context::{Context, current, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, In, Location, Out};
use crate::handles;
use crate::op::{self, Op};
use crate::order::Moment;
use crate::pool::Pool;
use crate::state::{self, Driver, lock};
use crate::stream::{self, Stream};
use ptxsim::mem::AllocKind;
use ptxsim::mem::touched::Use;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of the host.
const PAGE: usize = 4096;
/// Rows of `cuMemAllocPitch` begin at multiples of this.
const PITCH: usize = 512;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Where an allocation came from.
pub enum Origin {
    /// `cuMemAlloc`, `cuMemAllocPitch`.
    Device,
    /// `cuMemAllocAsync`, `cuMemAllocFromPoolAsync`.
    Pool(Arc<Pool>),
    /// `cuMemAllocAsync` in a capture: the graph's.
    Graph,
    /// `cuMemHostAlloc`, `cuMemAllocHost`; with its flags.
    Host(Layout, u32),
    /// `cuMemHostRegister`; with its flags.
    Registered(u32),
    /// `cuMemAllocManaged`.
    Managed(Layout),
}

/// Who allocated what.
pub struct Allocation {
    bytes: u64,
    origin: Origin,
    /// The context it ends with; pools have none.
    context: Handle,
    ordinal: usize,
    id: u64,
}

impl Allocation {
    fn is_host(&self) -> bool {
        matches!(self.origin, Origin::Host(..) | Origin::Registered(_))
    }

    fn is_managed(&self) -> bool {
        matches!(self.origin, Origin::Managed(_))
    }

    /// Whether it takes memory of the device.
    fn counts(&self) -> bool {
        !self.is_host()
    }
}

/// All allocations by address.
#[derive(Default)]
pub struct Allocations(BTreeMap<u64, Allocation>);

impl Allocations {
    /// The allocation that holds an address.
    fn around(&self, address: u64) -> Option<(u64, &Allocation)> {
        let (&base, allocation) = self.0.range(..=address).next_back()?;
        (address - base < allocation.bytes).then_some((base, allocation))
    }
}

fn reserve(driver: &Driver, ordinal: usize, bytes: u64) -> Result {
    let device = &driver.devices[ordinal];
    let total = device.card.total_memory_bytes;
    let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= total);
    let taken = device.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
    taken.map(|_| ()).map_err(|_| Error::OUT_OF_MEMORY)
}

fn unreserve(driver: &Driver, ordinal: usize, bytes: u64) {
    driver.devices[ordinal].used_bytes.fetch_sub(bytes, Ordering::Relaxed);
}

fn add(driver: &Driver, address: u64, bytes: u64, origin: Origin, context: Handle, ordinal: usize) {
    let id = SERIAL.fetch_add(1, Ordering::Relaxed);
    let allocation = Allocation { bytes, origin, context, ordinal, id };
    lock(&driver.allocations).0.insert(address, allocation);
}

/// Takes memory of the device.
fn device_memory(
    driver: &Driver,
    context: Handle,
    ordinal: usize,
    bytes: u64,
    origin: Origin,
) -> Result<u64> {
    reserve(driver, ordinal, bytes)?;
    match driver.memory.alloc(bytes) {
        Ok(address) => {
            add(driver, address, bytes, origin, context, ordinal);
            Ok(address)
        }
        Err(_) => {
            unreserve(driver, ordinal, bytes);
            Err(Error::OUT_OF_MEMORY)
        }
    }
}

/// Takes memory of the host and makes it known under its own address.
fn host_memory(driver: &Driver, context: &Context, bytes: usize, kind: AllocKind, flags: u32) -> Result<u64> {
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Error::OUT_OF_MEMORY)?;
    let managed = kind == AllocKind::Managed;
    if managed {
        reserve(driver, context.ordinal, bytes as u64)?;
    }
    // SAFETY: the size is not zero; every caller has refused that.
    let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
    let origin = if managed { Origin::Managed(layout) } else { Origin::Host(layout, flags) };
    if pointer.is_null() || driver.memory.register_host(pointer, bytes as u64, kind).is_err() {
        if managed {
            unreserve(driver, context.ordinal, bytes as u64);
        }
        if !pointer.is_null() {
            // SAFETY: just allocated with this layout, and nobody knows of it.
            unsafe { std::alloc::dealloc(pointer, layout) };
        }
        return Err(Error::OUT_OF_MEMORY);
    }
    add(driver, pointer as u64, bytes as u64, origin, context.handle, context.ordinal);
    Ok(pointer as u64)
}

/// Gives an allocation back, whatever it is.
fn give_back(driver: &Driver, address: u64, allocation: &Allocation) {
    // Known to nobody else any more; were it refused, there would be nothing to do about it.
    let _ = driver.memory.free(address);
    lock(&driver.order).forget(address..address + allocation.bytes);
    if allocation.counts() {
        unreserve(driver, allocation.ordinal, allocation.bytes);
    }
    match &allocation.origin {
        Origin::Pool(pool) => pool.give(allocation.bytes),
        Origin::Host(layout, _) | Origin::Managed(layout) => {
            // SAFETY: allocated with this layout by `host_memory`, and no longer in the table of allocations.
            unsafe { std::alloc::dealloc(address as *mut u8, *layout) }
        }
        Origin::Device | Origin::Graph | Origin::Registered(_) => {}
    }
}

/// Takes an allocation out of the table, if it begins at the address and is of the right sort, and gives it back.
fn free_if(driver: &Driver, address: u64, wrong: Error, right: impl Fn(&Allocation) -> bool) -> Result {
    let allocation = {
        let mut all = lock(&driver.allocations);
        if !all.0.get(&address).is_some_and(right) {
            return Err(wrong);
        }
        all.0.remove(&address).ok_or(wrong)?
    };
    give_back(driver, address, &allocation);
    Ok(())
}

/// Gives back what a graph kept.
pub fn release(address: u64) {
    if let Ok(driver) = state::driver() {
        let _ = free_if(driver, address, Error::INVALID_VALUE, |a| matches!(a.origin, Origin::Graph));
    }
}

/// Gives back everything that ends with a context.
pub fn free_all_of(driver: &Driver, context: &Context) {
    let mut ended = Vec::new();
    lock(&driver.allocations).0.retain(|&address, allocation| {
        let stays = allocation.context != context.handle;
        if !stays {
            let taken = Allocation {
                origin: std::mem::replace(&mut allocation.origin, Origin::Device),
                ..*allocation
            };
            ended.push((address, taken));
        }
        stays
    });
    for (address, allocation) in ended {
        give_back(driver, address, &allocation);
    }
}

/// `cuMemAlloc_v2`.
pub fn alloc(out: Out<u64>, bytes: usize) -> Result {
    let context = current()?;
    out.needed()?;
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    capture::unsafe_call()?;
    let driver = state::driver()?;
    out.set(device_memory(driver, context.handle, context.ordinal, bytes as u64, Origin::Device)?)
}

/// `cuMemAllocPitch_v2`.
pub fn alloc_pitch(out: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) -> Result {
    current()?;
    pitch.needed()?;
    if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let row = width.checked_next_multiple_of(PITCH).ok_or(Error::OUT_OF_MEMORY)?;
    alloc(out, row.checked_mul(height).ok_or(Error::OUT_OF_MEMORY)?)?;
    pitch.set(row)
}

/// `cuMemFree_v2`: waits for the device, as drivers do, and so needs no order.
pub fn free(address: u64) -> Result {
    let context = current()?;
    capture::unsafe_call()?;
    let driver = state::driver()?;
    for stream in context.streams() {
        stream.drain();
    }
    let _turn = context.turn();
    free_if(driver, address, Error::INVALID_VALUE, |a| {
        matches!(a.origin, Origin::Device | Origin::Pool(_) | Origin::Managed(_) | Origin::Graph)
    })
}

fn alloc_from(out: Out<u64>, bytes: usize, pool: Arc<Pool>, stream: &Arc<Stream>) -> Result {
    out.needed()?;
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let driver = state::driver()?;
    let bytes = bytes as u64;
    if let Some(graph) = capture::graph_of(stream)? {
        // Its address must be known now, and is the same in every launch.
        let address = device_memory(driver, Handle::NULL, pool.ordinal, bytes, Origin::Graph)?;
        graph.keep_memory(address);
        op::enqueue(stream, Op::Alloc(address..address + bytes))?;
        return out.set(address);
    }
    pool.take(bytes)?;
    let ordinal = pool.ordinal;
    let made = device_memory(driver, Handle::NULL, ordinal, bytes, Origin::Pool(pool.clone()));
    let address = made.inspect_err(|_| pool.give(bytes))?;
    op::enqueue(stream, Op::Alloc(address..address + bytes))?;
    out.set(address)
}

/// `cuMemAllocAsync`.
pub fn alloc_async(out: Out<u64>, bytes: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    let pool = lock(&stream.context()?.device()?.current_pool).clone();
    alloc_from(out, bytes, pool, &stream)
}

/// `cuMemAllocFromPoolAsync`.
pub fn alloc_from_pool(out: Out<u64>, bytes: usize, pool: Handle, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    let pool: Arc<Pool> = handles::find(pool).ok_or(Error::INVALID_VALUE)?;
    alloc_from(out, bytes, pool, &stream)
}

/// `cuMemFreeAsync`.
pub fn free_async(address: u64, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    let driver = state::driver()?;
    let known = match lock(&driver.allocations).0.get(&address).map(|a| &a.origin) {
        Some(Origin::Pool(_)) => !capture::is_active(&stream),
        Some(Origin::Graph) => true,
        _ => false,
    };
    if !known {
        return Err(Error::INVALID_VALUE);
    }
    op::enqueue(&stream, Op::Free(address)).map(|_| ())
}

/// The free of [`free_async`], in its stream's order.
pub fn free_in_order(driver: &Driver, context: &Arc<Context>, address: u64, moment: &Moment) -> Result {
    let Some(bytes) = lock(&driver.allocations).0.get(&address).map(|a| a.bytes) else {
        return Err(context.fail(Error::ILLEGAL_ADDRESS));
    };
    let used = op::uses(driver, context, moment, &[(address..address + bytes, Use::Write)]);
    // A graph's memory is there again at its next launch, and goes when the graph goes.
    let freed = free_if(driver, address, Error::INVALID_VALUE, |a| matches!(a.origin, Origin::Pool(_)));
    match used {
        Ok(()) if freed.is_err() => Ok(()),
        other => other,
    }
}

/// `cuMemHostAlloc`.
pub fn host_alloc(out: Out<usize>, bytes: usize, flags: u32) -> Result {
    let context = current()?;
    out.needed()?;
    if bytes == 0 || flags & !7 != 0 {
        return Err(Error::INVALID_VALUE);
    }
    capture::unsafe_call()?;
    out.set(host_memory(state::driver()?, &context, bytes, AllocKind::Pinned, flags)? as usize)
}

/// `cuMemAllocHost_v2`.
pub fn host_alloc_plain(out: Out<usize>, bytes: usize) -> Result {
    host_alloc(out, bytes, 0)
}

/// `cuMemFreeHost`.
pub fn host_free(address: usize) -> Result {
    let context = current()?;
    capture::unsafe_call()?;
    for stream in context.streams() {
        stream.drain();
    }
    let _turn = context.turn();
    free_if(state::driver()?, address as u64, Error::INVALID_VALUE, |a| matches!(a.origin, Origin::Host(..)))
}

/// `cuMemHostRegister_v2`.
pub fn host_register(address: usize, bytes: usize, flags: u32) -> Result {
    let context = current()?;
    if address == 0 || bytes == 0 || flags & !0xf != 0 || address.checked_add(bytes).is_none() {
        return Err(Error::INVALID_VALUE);
    }
    capture::unsafe_call()?;
    let driver = state::driver()?;
    let (from, to) = (address as u64, (address + bytes) as u64);
    {
        let all = lock(&driver.allocations);
        if all.around(from).is_some() || all.0.range(from..to).next().is_some() {
            return Err(Error::HOST_MEMORY_ALREADY_REGISTERED);
        }
    }
    let registered = driver.memory.register_host(address as *mut u8, bytes as u64, AllocKind::Pinned);
    registered.map_err(|_| Error::INVALID_VALUE)?;
    add(driver, from, bytes as u64, Origin::Registered(flags), context.handle, context.ordinal);
    Ok(())
}

/// `cuMemHostUnregister`.
pub fn host_unregister(address: usize) -> Result {
    let context = current()?;
    capture::unsafe_call()?;
    let _turn = context.turn();
    let right = |a: &Allocation| matches!(a.origin, Origin::Registered(_));
    free_if(state::driver()?, address as u64, Error::HOST_MEMORY_NOT_REGISTERED, right)
}

/// `cuMemHostGetDevicePointer_v2`: the same address.
pub fn host_device_pointer(out: Out<u64>, address: usize, flags: u32) -> Result {
    current()?;
    out.needed()?;
    let known = lock(&state::driver()?.allocations).around(address as u64).is_some_and(|(_, a)| a.is_host());
    if flags != 0 || !known {
        return Err(Error::INVALID_VALUE);
    }
    out.set(address as u64)
}

/// `cuMemHostGetFlags`.
pub fn host_flags(out: Out<u32>, address: usize) -> Result {
    current()?;
    let flags = match lock(&state::driver()?.allocations).around(address as u64).map(|(_, a)| &a.origin) {
        Some(&Origin::Host(_, flags) | &Origin::Registered(flags)) => flags,
        _ => return Err(Error::INVALID_VALUE),
    };
    // Every page-locked allocation is mapped, as unified addressing has it.
    out.set(flags | 2)
}

/// `cuMemAllocManaged`.
pub fn alloc_managed(out: Out<u64>, bytes: usize, flags: u32) -> Result {
    let context = current()?;
    out.needed()?;
    if bytes == 0 || !matches!(flags, 1 | 2) {
        return Err(Error::INVALID_VALUE);
    }
    capture::unsafe_call()?;
    out.set(host_memory(state::driver()?, &context, bytes, AllocKind::Managed, 0)?)
}

/// Whether an address is of managed memory.
pub fn is_managed(address: u64) -> Result<bool> {
    let driver = initialised()?;
    Ok(lock(&driver.allocations).around(address).is_some_and(|(_, a)| a.is_managed()))
}

fn managed_range(address: u64, bytes: usize) -> Result {
    let driver = initialised()?;
    let all = lock(&driver.allocations);
    let (base, allocation) =
        all.around(address).filter(|(_, a)| a.is_managed()).ok_or(Error::INVALID_VALUE)?;
    if bytes == 0 || bytes as u64 > allocation.bytes - (address - base) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(())
}

/// `cuMemAdvise`: checked, and of no consequence.
pub fn advise(address: u64, bytes: usize, advice: u32, ordinal: i32) -> Result {
    let kind = if ordinal == -1 { 2 } else { 1 };
    advise_v2(address, bytes, advice, Location { kind, id: ordinal })
}

/// `cuMemAdvise_v2`.
pub fn advise_v2(address: u64, bytes: usize, advice: u32, location: Location) -> Result {
    current()?;
    managed_range(address, bytes)?;
    if !(1..=6).contains(&advice) {
        return Err(Error::INVALID_VALUE);
    }
    check_location(location)
}

fn check_location(location: Location) -> Result {
    match location.kind {
        1 => initialised()?.device(location.id).map(|_| ()),
        2..=4 => Ok(()),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuMemPrefetchAsync`.
pub fn prefetch(address: u64, bytes: usize, ordinal: i32, stream: Handle) -> Result {
    let kind = if ordinal == -1 { 2 } else { 1 };
    prefetch_v2(address, bytes, Location { kind, id: ordinal }, 0, stream)
}

/// `cuMemPrefetchAsync_v2`.
pub fn prefetch_v2(address: u64, bytes: usize, location: Location, flags: u32, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    managed_range(address, bytes)?;
    check_location(location)?;
    if flags != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if capture::is_active(&stream) {
        capture::invalidate(&stream);
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    op::enqueue(&stream, Op::Empty).map(|_| ())
}

/// `cuMemGetInfo_v2`.
pub fn info(free: Out<usize>, total: Out<usize>) -> Result {
    let context = current()?;
    let device = context.device()?;
    free.needed()?;
    total.needed()?;
    let all = device.card.total_memory_bytes;
    free.set((all - device.used_bytes.load(Ordering::Relaxed).min(all)) as usize)?;
    total.set(all as usize)
}

/// `cuMemGetAddressRange_v2`.
pub fn address_range(base: Out<u64>, bytes: Out<usize>, address: u64) -> Result {
    current()?;
    let found = state::driver()?.memory.find(address).ok_or(Error::NOT_FOUND)?;
    base.set_if(found.base);
    bytes.set_if(found.bytes as usize);
    Ok(())
}

/// Kinds of memory that `CU_POINTER_ATTRIBUTE_MEMORY_TYPE` tells.
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// One attribute of a pointer; `false` if there is none such.
fn pointer(driver: &Driver, out: Out<u64>, id: u32, address: u64) -> Result<bool> {
    let all = lock(&driver.allocations);
    let Some((base, a)) = all.around(address) else {
        // A variable of a module.
        return match (driver.memory.find(address), id) {
            (Some(_), 2) => out.cast::<u32>().set(DEVICE).map(|()| true),
            (Some(_), 3) => out.set(address).map(|()| true),
            (Some(found), 11) => out.set(found.base).map(|()| true),
            (Some(found), 12) => out.set(found.bytes).map(|()| true),
            _ => Ok(false),
        };
    };
    match id {
        1 => out.cast::<Handle>().set(a.context)?,
        2 => out.cast::<u32>().set(if a.is_host() { HOST } else { DEVICE })?,
        3 => out.set(address)?,
        4 if a.is_host() || a.is_managed() => out.set(address)?,
        6 | 8 | 10 | 13 | 15 => {
            let yes = match id {
                8 => a.is_managed(),
                13 => true,
                _ => false,
            };
            out.cast::<u32>().set(u32::from(yes))?;
        }
        7 | 20 => out.set(a.id)?,
        9 => out.cast::<i32>().set(a.ordinal as i32)?,
        11 | 19 => out.set(base)?,
        12 | 18 => out.set(a.bytes)?,
        14 => out.set(0)?,
        16 => out.cast::<u32>().set(3)?,
        17 => {
            let pool = if let Origin::Pool(pool) = &a.origin { pool.handle } else { Handle::NULL };
            out.cast::<Handle>().set(pool)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// `cuPointerGetAttribute`.
pub fn pointer_attribute(out: Out<u64>, id: u32, address: u64) -> Result {
    current()?;
    out.needed()?;
    if pointer(state::driver()?, out, id, address)? { Ok(()) } else { Err(Error::INVALID_VALUE) }
}

/// `cuPointerGetAttributes`: what a pointer does not have is answered with zero.
pub fn pointer_attributes(count: u32, ids: In<u32>, outs: In<usize>, address: u64) -> Result {
    current()?;
    let driver = state::driver()?;
    if count == 0 {
        return Err(Error::INVALID_VALUE);
    }
    for (id, out) in ids.list(count as usize)?.into_iter().zip(outs.list(count as usize)?) {
        // SAFETY: the caller's array holds a place for each attribute, of that attribute's type.
        let out: Out<u64> = unsafe { Out::at(out) };
        if !(1..=21).contains(&id) {
            return Err(Error::INVALID_VALUE);
        }
        if !pointer(driver, out.needed()?, id, address)? {
            match id {
                2 | 6 | 8 | 9 | 10 | 13 | 15 | 16 | 21 => {
                    out.cast::<u32>().set(if id == 9 { -2i32 as u32 } else { 0 })?
                }
                _ => out.set(0)?,
            }
        }
    }
    Ok(())
}

/// `cuPointerSetAttribute`: only synchronous memory operations can be set, which all are.
pub fn set_pointer_attribute(value: In<u32>, id: u32, address: u64) -> Result {
    current()?;
    value.get()?;
    let known = lock(&state::driver()?.allocations).around(address).is_some();
    if id != 6 || !known { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

/// `cuMemGetDefaultMemPool` and `cuMemGetMemPool`: of a place; `cuMemSetMemPool` sets it.
pub fn location_pool(out: Out<Handle>, location: In<Location>, kind: u32, default: bool) -> Result {
    let driver = initialised()?;
    let device = pool_device(driver, location, kind)?;
    let pool = if default { device.default_pool.clone() } else { lock(&device.current_pool).clone() };
    out.set(pool.handle)
}

fn pool_device(driver: &'static Driver, location: In<Location>, kind: u32) -> Result<&'static state::Device> {
    let location = location.get()?;
    match (location.kind, kind) {
        (1, 1) => driver.device(location.id),
        (1..=4, 1 | 2) => Err(Error::NOT_SUPPORTED),
        _ => Err(Error::INVALID_VALUE),
    }
}
