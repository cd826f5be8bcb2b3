//! Contexts: primary ones, those a program makes, and the stack of each thread.

use crate::error::{Error, Result};
use crate::ffi::{ContextParams, Handle, In, Out};
use crate::handles;
use crate::order::Clock;
use crate::report::Report;
use crate::state::{self, Device, Driver, lock};
use crate::stream::{self, Stream};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::ThreadId;

/// What `cuCtxGetLimit` answers, by number of the limit.
const LIMITS: [usize; 10] = [1024, 1 << 20, 8 << 20, 2, 2048, 64, 0, 0, 0, 0];
/// Scheduling bits of the flags, of which one may be set.
const SCHEDULE_MASK: u32 = 0x7;
/// Every flag there is.
const FLAGS_MASK: u32 = 0xff;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A context.
pub struct Context {
    /// Its handle.
    pub handle: Handle,
    /// Its device.
    pub ordinal: usize,
    /// Whether it is a primary one.
    pub primary: bool,
    /// A number that no other context of the process has.
    pub id: u64,
    flags: AtomicU32,
    limits: Mutex<[usize; LIMITS.len()]>,
    cache_config: AtomicU32,
    shared_config: AtomicU32,
    alive: AtomicBool,
    fault: Mutex<Option<Error>>,
    /// The legacy NULL stream.
    pub null: Arc<Stream>,
    /// Streams of threads that use `CU_STREAM_PER_THREAD`.
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    streams: Mutex<Vec<Weak<Stream>>>,
    /// Work of streams that were destroyed before the host waited for it.
    destroyed: Mutex<Clock>,
    /// Handles that end with the context.
    owned: Mutex<HashSet<Handle>>,
    /// Contexts whose memory this one was given access to.
    peers: Mutex<HashSet<Handle>>,
    /// Launches and findings.
    pub report: Mutex<Report>,
    /// Held while a piece of work runs.
    work: Mutex<()>,
}

thread_local! {
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Runs a host function of the program, in which calls of the driver are not permitted.
pub fn in_callback(f: impl FnOnce()) {
    IN_CALLBACK.set(true);
    f();
    IN_CALLBACK.set(false);
}

/// The driver, for functions that need no context.
pub fn initialised() -> Result<&'static Driver> {
    if IN_CALLBACK.get() {
        return Err(Error::NOT_PERMITTED);
    }
    state::driver()
}

/// The context of this thread, whether or not it has faulted.
pub fn top() -> Result<Arc<Context>> {
    initialised()?;
    let handle = STACK.with_borrow(|s| s.last().copied()).filter(|h| !h.is_null());
    let handle = handle.ok_or(Error::INVALID_CONTEXT)?;
    handles::find(handle).ok_or(Error::CONTEXT_IS_DESTROYED)
}

/// The context of this thread. After a fault every call returns the fault again.
pub fn current() -> Result<Arc<Context>> {
    let context = top()?;
    context.check()?;
    Ok(context)
}

/// The context of a handle.
fn by_handle(handle: Handle) -> Result<Arc<Context>> {
    handles::find(handle).ok_or(Error::INVALID_CONTEXT)
}

impl Context {
    fn create(device: &Device, handle: Handle, flags: u32) -> Result<Arc<Self>> {
        let driver = state::driver()?;
        let context = Arc::new_cyclic(|me| Self {
            handle,
            ordinal: device.ordinal,
            primary: handle == device.primary_handle,
            id: SERIAL.fetch_add(1, Ordering::Relaxed),
            flags: AtomicU32::new(flags),
            limits: Mutex::new(LIMITS),
            cache_config: AtomicU32::new(0),
            shared_config: AtomicU32::new(0),
            alive: AtomicBool::new(true),
            fault: Mutex::new(None),
            null: Stream::new(driver, me.clone(), stream::Kind::Legacy, 0),
            per_thread: Mutex::default(),
            streams: Mutex::default(),
            destroyed: Mutex::default(),
            owned: Mutex::default(),
            peers: Mutex::default(),
            report: Mutex::default(),
            work: Mutex::new(()),
        });
        handles::bind(handle, context.clone());
        Ok(context)
    }

    /// The handle of a primary context stays the same over resets.
    fn create_primary(device: &Device) -> Result<Arc<Self>> {
        Self::create(device, device.primary_handle, device.primary_flags.load(Ordering::Relaxed))
    }

    /// The fault that ended the context, if there was one.
    pub fn check(&self) -> Result {
        match *lock(&self.fault) {
            Some(error) => Err(error),
            None if self.alive.load(Ordering::Acquire) => Ok(()),
            None => Err(Error::CONTEXT_IS_DESTROYED),
        }
    }

    /// Ends the context's usefulness; the first fault stays.
    pub fn fail(&self, error: Error) -> Error {
        *lock(&self.fault).get_or_insert(error)
    }

    /// Its device.
    pub fn device(&self) -> Result<&'static Device> {
        state::driver()?.devices.get(self.ordinal).ok_or(Error::INVALID_DEVICE)
    }

    /// Waits for the turn to run a piece of work.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    /// Gives an object a handle that ends with the context.
    pub fn own<T: std::any::Any + Send + Sync>(&self, object: Arc<T>) -> Handle {
        let handle = handles::insert(object);
        self.adopt(handle);
        handle
    }

    /// Lets a handle end with the context.
    pub fn adopt(&self, handle: Handle) {
        lock(&self.owned).insert(handle);
    }

    /// A handle was destroyed before the context.
    pub fn disown(&self, handle: Handle) {
        lock(&self.owned).remove(&handle);
    }

    /// Remembers a stream, for synchronisation with the NULL stream and with the context.
    pub fn add_stream(&self, stream: &Arc<Stream>) {
        let mut streams = lock(&self.streams);
        streams.retain(|s| s.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }

    /// Every stream that lives, the NULL stream first.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        let mut all = vec![self.null.clone()];
        all.extend(lock(&self.streams).iter().filter_map(Weak::upgrade));
        all
    }

    /// Work of streams that are no more.
    pub fn destroyed_streams(&self) -> Clock {
        lock(&self.destroyed).clone()
    }

    /// Keeps what a stream did in mind after its end.
    pub fn add_destroyed_stream(&self, clock: &Clock) {
        lock(&self.destroyed).join(clock);
    }

    /// The calling thread's own default stream.
    pub fn per_thread(self: &Arc<Self>) -> Result<Arc<Stream>> {
        let driver = state::driver()?;
        let mut map = lock(&self.per_thread);
        let stream = map.entry(std::thread::current().id()).or_insert_with(|| {
            let stream = Stream::new(driver, Arc::downgrade(self), stream::Kind::Blocking, 0);
            self.add_stream(&stream);
            stream
        });
        Ok(stream.clone())
    }

    fn destroy(&self) -> Result {
        self.alive.store(false, Ordering::Release);
        for stream in self.streams() {
            stream.drain();
        }
        handles::forget(self.handle);
        let owned: Vec<Handle> = lock(&self.owned).drain().collect();
        for handle in owned {
            handles::forget(handle);
        }
        lock(&self.per_thread).clear();
        crate::memory::free_all_of(state::driver()?, self);
        Ok(())
    }
}

fn push(handle: Handle) {
    STACK.with_borrow_mut(|s| s.push(handle));
}

fn check_flags(flags: u32) -> Result {
    let schedules = flags & SCHEDULE_MASK;
    if flags & !FLAGS_MASK != 0 || !(schedules == 0 || schedules.is_power_of_two()) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(())
}

/// `cuDevicePrimaryCtxRetain`.
pub fn primary_retain(out: Out<Handle>, ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    let out = out.needed()?;
    let mut primary = lock(&device.primary);
    let context = match &primary.context {
        Some(context) => context.clone(),
        None => Context::create_primary(device)?,
    };
    primary.retained += 1;
    primary.context = Some(context.clone());
    out.set(context.handle)
}

/// `cuDevicePrimaryCtxRelease_v2`.
pub fn primary_release(ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    let mut primary = lock(&device.primary);
    if primary.retained == 0 {
        return Err(Error::INVALID_CONTEXT);
    }
    primary.retained -= 1;
    if primary.retained > 0 {
        return Ok(());
    }
    primary.context.take().map_or(Ok(()), |context| context.destroy())
}

/// `cuDevicePrimaryCtxReset_v2`: whoever retained it still has to release it.
pub fn primary_reset(ordinal: i32) -> Result {
    let device = initialised()?.device(ordinal)?;
    let mut primary = lock(&device.primary);
    if let Some(context) = primary.context.take() {
        context.destroy()?;
        if primary.retained > 0 {
            primary.context = Some(Context::create_primary(device)?);
        }
    }
    Ok(())
}

/// `cuDevicePrimaryCtxSetFlags_v2`.
pub fn primary_set_flags(ordinal: i32, flags: u32) -> Result {
    let device = initialised()?.device(ordinal)?;
    check_flags(flags)?;
    device.primary_flags.store(flags, Ordering::Relaxed);
    if let Some(context) = &lock(&device.primary).context {
        context.flags.store(flags, Ordering::Relaxed);
    }
    Ok(())
}

/// `cuDevicePrimaryCtxGetState`.
pub fn primary_state(ordinal: i32, flags: Out<u32>, active: Out<i32>) -> Result {
    let device = initialised()?.device(ordinal)?;
    flags.needed()?;
    active.needed()?;
    flags.set(device.primary_flags.load(Ordering::Relaxed))?;
    active.set(i32::from(lock(&device.primary).context.is_some()))
}

/// `cuCtxCreate_v2`.
pub fn create(out: Out<Handle>, flags: u32, ordinal: i32) -> Result {
    let driver = initialised()?;
    out.needed()?;
    check_flags(flags)?;
    let context = Context::create(driver.device(ordinal)?, handles::reserve(), flags)?;
    push(context.handle);
    out.set(context.handle)
}

/// `cuCtxCreate_v3`: execution affinity is a matter of MPS, which there is not.
pub fn create_v3(out: Out<Handle>, affinity: usize, count: i32, flags: u32, ordinal: i32) -> Result {
    initialised()?;
    match (affinity, count) {
        (_, 0) => create(out, flags, ordinal),
        (0, _) => Err(Error::INVALID_VALUE),
        _ => Err(Error::UNSUPPORTED_EXEC_AFFINITY),
    }
}

/// `cuCtxCreate_v4`.
pub fn create_v4(out: Out<Handle>, params: In<ContextParams>, flags: u32, ordinal: i32) -> Result {
    initialised()?;
    if params.is_null() {
        return create(out, flags, ordinal);
    }
    let params = params.get()?;
    if params.graphics != 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    create_v3(out, params.affinity, params.affinity_count, flags, ordinal)
}

/// `cuCtxDestroy_v2`.
pub fn destroy(handle: Handle) -> Result {
    initialised()?;
    let context = by_handle(handle)?;
    if context.primary {
        return Err(Error::INVALID_CONTEXT);
    }
    context.destroy()?;
    STACK.with_borrow_mut(|s| {
        if s.last() == Some(&handle) {
            s.pop();
        }
    });
    Ok(())
}

/// `cuCtxGetCurrent`.
pub fn get_current(out: Out<Handle>) -> Result {
    initialised()?;
    out.set(STACK.with_borrow(|s| s.last().copied()).unwrap_or_default())
}

/// `cuCtxSetCurrent`: replaces the top of the stack; NULL only pops it.
pub fn set_current(handle: Handle) -> Result {
    initialised()?;
    if !handle.is_null() {
        by_handle(handle)?;
    }
    STACK.with_borrow_mut(|s| {
        s.pop();
        if !handle.is_null() {
            s.push(handle);
        }
    });
    Ok(())
}

/// `cuCtxPushCurrent_v2`.
pub fn push_current(handle: Handle) -> Result {
    initialised()?;
    push(by_handle(handle)?.handle);
    Ok(())
}

/// `cuCtxPopCurrent_v2`.
pub fn pop_current(out: Out<Handle>) -> Result {
    initialised()?;
    let handle = STACK.with_borrow_mut(Vec::pop).ok_or(Error::INVALID_CONTEXT)?;
    out.set_if(handle);
    Ok(())
}

/// `cuCtxGetDevice`.
pub fn get_device(out: Out<i32>) -> Result {
    out.set(top()?.ordinal as i32)
}

/// `cuCtxGetDevice_v2`: of any context.
pub fn get_device_v2(out: Out<i32>, handle: Handle) -> Result {
    initialised()?;
    let context = if handle.is_null() { top()? } else { by_handle(handle)? };
    out.set(context.ordinal as i32)
}

/// `cuCtxGetFlags`.
pub fn get_flags(out: Out<u32>) -> Result {
    out.set(current()?.flags.load(Ordering::Relaxed))
}

/// `cuCtxSetFlags`.
pub fn set_flags(flags: u32) -> Result {
    let context = current()?;
    check_flags(flags)?;
    context.flags.store(flags, Ordering::Relaxed);
    Ok(())
}

/// `cuCtxGetId`.
pub fn get_id(handle: Handle, out: Out<u64>) -> Result {
    initialised()?;
    let context = if handle.is_null() { top()? } else { by_handle(handle)? };
    out.set(context.id)
}

/// `cuCtxGetApiVersion`.
pub fn api_version(handle: Handle, out: Out<u32>) -> Result {
    initialised()?;
    if handle.is_null() {
        top()?
    } else {
        by_handle(handle)?
    };
    out.set(3020)
}

/// `cuCtxGetLimit`.
pub fn get_limit(out: Out<usize>, limit: u32) -> Result {
    let context = current()?;
    out.needed()?;
    let value = *lock(&context.limits).get(limit as usize).ok_or(Error::INVALID_VALUE)?;
    out.set(value)
}

/// `cuCtxSetLimit`.
pub fn set_limit(limit: u32, value: usize) -> Result {
    let context = current()?;
    let most = match limit {
        5 => 128,
        6 => context.device()?.card.l2_persisting_bytes as usize,
        7.. => {
            return Err(if limit < LIMITS.len() as u32 {
                Error::UNSUPPORTED_LIMIT
            } else {
                Error::INVALID_VALUE
            });
        }
        _ => usize::MAX,
    };
    if value > most {
        return Err(Error::INVALID_VALUE);
    }
    lock(&context.limits)[limit as usize] = value;
    Ok(())
}

/// `cuCtxGetCacheConfig`.
pub fn get_cache_config(out: Out<u32>) -> Result {
    out.set(current()?.cache_config.load(Ordering::Relaxed))
}

/// `cuCtxSetCacheConfig`.
pub fn set_cache_config(config: u32) -> Result {
    let context = current()?;
    if config > 3 {
        return Err(Error::INVALID_VALUE);
    }
    context.cache_config.store(config, Ordering::Relaxed);
    Ok(())
}

/// `cuCtxGetSharedMemConfig`.
pub fn get_shared_config(out: Out<u32>) -> Result {
    out.set(current()?.shared_config.load(Ordering::Relaxed))
}

/// `cuCtxSetSharedMemConfig`: bank sizes can no longer be chosen; the call is accepted, as drivers do.
pub fn set_shared_config(config: u32) -> Result {
    let context = current()?;
    if config > 2 {
        return Err(Error::INVALID_VALUE);
    }
    context.shared_config.store(config, Ordering::Relaxed);
    Ok(())
}

/// `cuCtxGetStreamPriorityRange`.
pub fn priority_range(least: Out<i32>, greatest: Out<i32>) -> Result {
    current()?;
    least.set_if(stream::PRIORITIES.1);
    greatest.set_if(stream::PRIORITIES.0);
    Ok(())
}

/// `cuCtxSynchronize`.
pub fn synchronize() -> Result {
    synchronize_context(&current()?)
}

/// `cuCtxSynchronize_v2`: any context.
pub fn synchronize_v2(handle: Handle) -> Result {
    initialised()?;
    if handle.is_null() {
        return synchronize();
    }
    let context = by_handle(handle)?;
    context.check()?;
    synchronize_context(&context)
}

fn synchronize_context(context: &Arc<Context>) -> Result {
    crate::capture::refuse_in(context)?;
    for stream in context.streams() {
        stream.wait()?;
    }
    let destroyed = std::mem::take(&mut *lock(&context.destroyed));
    lock(&state::driver()?.order).host_waited(&destroyed);
    context.check()
}

/// `cuCtxResetPersistingL2Cache`.
pub fn reset_persisting() -> Result {
    current().map(|_| ())
}

/// `cuCtxEnablePeerAccess`.
pub fn enable_peer(handle: Handle, flags: u32) -> Result {
    let context = current()?;
    let peer = by_handle(handle)?;
    if flags != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if peer.ordinal == context.ordinal {
        return Err(Error::INVALID_DEVICE);
    }
    if lock(&context.peers).insert(handle) { Ok(()) } else { Err(Error::PEER_ACCESS_ALREADY_ENABLED) }
}

/// `cuCtxDisablePeerAccess`.
pub fn disable_peer(handle: Handle) -> Result {
    let context = current()?;
    by_handle(handle)?;
    if lock(&context.peers).remove(&handle) { Ok(()) } else { Err(Error::PEER_ACCESS_NOT_ENABLED) }
}

/// `cuProfilerStart` and `cuProfilerStop`: accepted, there is nothing to switch.
pub fn profiler() -> Result {
    current().map(|_| ())
}
