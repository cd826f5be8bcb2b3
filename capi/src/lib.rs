//! dtk as a C library. `include/dtk.h` is the reference; `docs/embedding.md` tells how to build and use it.

mod abi;
mod border;
mod session;

pub use abi::{Images, Level, Map, Options, StepResult};

use border::{Failure, Status, border, null, text};
use dtk::base::{DType, Shape};
use dtk::error::{Error, Result};
use dtk::gpu::Gpu;
use dtk::tensor::{CpuBuffer, Storage, Tensor};
use session::Session;
use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::{Mutex, TryLockError};

/// `dtk_distiller`
pub struct Handle(Mutex<Session>);

impl Handle {
    /// The session, for one call.
    fn enter(&self) -> Result<std::sync::MutexGuard<'_, Session>, Failure> {
        self.0.try_lock().map_err(|e| match e {
            TryLockError::Poisoned(_) => Failure::Broken,
            TryLockError::WouldBlock => Error::usage("another call with this handle is under way")
                .with_remedy("make calls with one handle one after the other")
                .into(),
        })
    }
}

/// `dtk_version`
#[unsafe(no_mangle)]
pub extern "C" fn dtk_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// `dtk_abi_version`
#[unsafe(no_mangle)]
pub extern "C" fn dtk_abi_version() -> u32 {
    abi::VERSION
}

/// `dtk_last_error`
#[unsafe(no_mangle)]
pub extern "C" fn dtk_last_error() -> *const c_char {
    border::last()
}

/// `dtk_open`
///
/// # Safety
/// As the header says: `options` and all that it points to are valid during the call, `out` is to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dtk_open(options: *const Options, out: *mut *mut Handle) -> Status {
    border(|| {
        // SAFETY: NULL, or to a pointer.
        let out = unsafe { out.as_mut() }.ok_or_else(|| null("out"))?;
        *out = std::ptr::null_mut();
        if options.is_null() {
            return Err(null("options").into());
        }
        // SAFETY: a struct of this header, of whatever version, begins with its version.
        let version = unsafe { options.cast::<u32>().read() };
        if version != abi::VERSION {
            let what = format!("is {version}, and this library's is {}", abi::VERSION);
            return Err(Error::usage(what)
                .with_key("options.abi_version")
                .with_remedy("begin with DTK_OPTIONS_INIT, and compile with the header of this version")
                .into());
        }
        // SAFETY: it is a struct of this version, valid during the call.
        let session = unsafe { open(&*options) }?;
        *out = Box::into_raw(Box::new(Handle(Mutex::new(session))));
        Ok(())
    })
}

/// # Safety
/// Pointers of the options are NULL or valid.
unsafe fn open(options: &Options) -> Result<Session> {
    // SAFETY: the caller's promise, for all texts here.
    let recipe = unsafe { text(options.recipe, "recipe") }?;
    let recipe = recipe.ok_or_else(|| null("options.recipe"))?;
    let mut set = Vec::new();
    if options.override_count > 0 {
        if options.overrides.is_null() {
            return Err(null("options.overrides"));
        }
        // SAFETY: there are as many pointers as is said.
        for &one in unsafe { std::slice::from_raw_parts(options.overrides, options.override_count) } {
            // SAFETY: as above.
            let one = unsafe { text(one, "overrides") }?.ok_or_else(|| null("options.overrides[i]"))?;
            set.push(one.to_string());
        }
    }
    let recipe = dtk::recipe::resolve(recipe, &set)?;
    // SAFETY: as above.
    let gpu = unsafe { device(options) }?;
    Session::new(recipe, options.epoch_images, gpu.as_ref())
}

/// The device that the options name; `None` for the CPU.
///
/// # Safety
/// Texts are NULL or valid; context and stream are NULL, or live until the handle is closed.
unsafe fn device(options: &Options) -> Result<Option<Gpu>> {
    // SAFETY: the caller's promise.
    let (name, cache) = unsafe { (text(options.device, "device")?, text(options.cache_dir, "cache_dir")?) };
    let own = !options.cuda_context.is_null();
    if own == options.cuda_stream.is_null() {
        return Err(Error::usage("there is only one of the program's context and stream")
            .with_key("options.cuda_stream")
            .with_remedy("give both, or none"));
    }
    let ordinal = match (name, own) {
        (None | Some("cpu"), false) => return Ok(None),
        (None | Some("cuda"), _) => None,
        (Some(name), _) => {
            let number = name.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok());
            Some(number.ok_or_else(|| {
                Error::usage(format!("`{name}` is no device that can be used here"))
                    .with_key("options.device")
                    .with_remedy("give \"cpu\" without a context, \"cuda\" or \"cuda:N\"")
            })?)
        }
    };
    let limit = options.memory_limit_bytes;
    let settings = dtk::gpu::Options {
        cache_dir: cache.map(Into::into),
        memory_limit_bytes: (limit > 0).then_some(limit),
        ..Default::default()
    };
    if !own {
        return Gpu::open_with(ordinal.unwrap_or(0), settings).map(Some);
    }
    // SAFETY: the caller's promise.
    let gpu = unsafe { Gpu::from_raw(options.cuda_context, options.cuda_stream, settings) }?;
    match ordinal {
        Some(n) if n != gpu.info().ordinal => {
            Err(Error::usage(format!("cuda:{n} is not the context's device, which is {gpu:?}"))
                .with_key("options.device")
                .with_remedy("leave options.device NULL"))
        }
        _ => Ok(Some(gpu)),
    }
}

/// The images of a call. Those on the device are not copied.
///
/// # Safety
/// The data are as large as they are said to be, and stay until the call has ended.
unsafe fn images(given: &Images, gpu: Option<&Gpu>) -> Result<Tensor> {
    let dims = [given.n, given.height, given.width, 3].map(|d| usize::try_from(d).unwrap_or(usize::MAX));
    let shape = Shape::from_slice(&dims).map_err(|e| e.with_key("images"))?;
    if shape.elems() == 0 {
        return Err(Error::shape("images", format!("there are none in {shape}")));
    }
    if given.data.is_null() {
        return Err(null("images.data"));
    }
    let dtype = match given.dtype {
        abi::U8 => DType::U8,
        abi::F32 => DType::F32,
        other => {
            return Err(Error::usage(format!("{other} is no element type of images"))
                .with_key("images.dtype")
                .with_remedy("give DTK_U8 or DTK_F32"));
        }
    };
    match given.memory {
        abi::HOST => {}
        abi::DEVICE => {
            let gpu = gpu.ok_or_else(|| {
                Error::usage("the handle is not on a device")
                    .with_key("images.memory")
                    .with_remedy("give DTK_HOST")
            })?;
            // SAFETY: the caller's promise.
            return unsafe { Tensor::from_cuda_ptr(gpu, given.data.addr() as u64, shape, dtype) };
        }
        other => {
            return Err(Error::usage(format!("{other} is no kind of memory"))
                .with_key("images.memory")
                .with_remedy("give DTK_HOST or DTK_DEVICE"));
        }
    }
    // SAFETY: the caller promises so many bytes; they need no alignment.
    let bytes = unsafe { std::slice::from_raw_parts(given.data.cast::<u8>(), shape.elems() * dtype.size()) };
    match CpuBuffer::from_bytes(dtype, bytes) {
        Some(CpuBuffer::U8(v)) => Tensor::from_vec(shape, v),
        Some(CpuBuffer::F32(v)) => Tensor::from_vec(shape, v),
        _ => Err(Error::shape("images", "an odd number of bytes")),
    }
}

/// `dtk_features`
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dtk_features(
    handle: *const Handle,
    network: i32,
    given: *const Images,
    maps: *mut Map,
    capacity: usize,
    count: *mut usize,
) -> Status {
    border(|| {
        // SAFETY: NULL, or from `dtk_open` and not closed; NULL, or to a number.
        let (handle, count) = unsafe { (handle.as_ref(), count.as_mut()) };
        let handle = handle.ok_or_else(|| null("distiller"))?;
        let count = count.ok_or_else(|| null("count"))?;
        let student = match network {
            abi::TEACHER => false,
            abi::STUDENT => true,
            other => {
                return Err(Error::usage(format!("{other} is no network"))
                    .with_key("network")
                    .with_remedy("give DTK_TEACHER or DTK_STUDENT")
                    .into());
            }
        };
        let mut session = handle.enter()?;
        *count = session.count(student);
        if maps.is_null() && capacity == 0 {
            return Ok(());
        }
        if maps.is_null() {
            return Err(null("maps").into());
        }
        if capacity < *count {
            let what = format!("there is room for {capacity} maps, and there are {count}");
            return Err(Error::usage(what).with_key("capacity").into());
        }
        // SAFETY: NULL, or valid during the call.
        let given = unsafe { given.as_ref() }.ok_or_else(|| null("images"))?;
        session.forget();
        // SAFETY: the caller's promise.
        let tensor = unsafe { images(given, session.gpu()) }?;
        let made = session.features(student, tensor, given.first)?;
        for (i, (map, pixels)) in made.iter().enumerate() {
            // SAFETY: there is room for as many as there are.
            unsafe { maps.add(i).write(describe(map, *pixels)?) };
        }
        Ok(())
    })
}

/// A map as C sees it.
fn describe(map: &Tensor, pixels: usize) -> Result<Map> {
    let (data, memory): (*const c_void, i32) = match map.storage() {
        Storage::Cpu(b) => (b.as_bytes().as_ptr().cast(), abi::HOST),
        _ => (std::ptr::without_provenance(map.cuda_ptr()? as usize), abi::DEVICE),
    };
    let dtype = match map.dtype() {
        DType::F32 => abi::F32,
        DType::Bf16 => abi::BF16,
        other => return Err(Error::dtype("dtk_features", format!("a map of {other}"))),
    };
    let (n, h, w, c) = map.shape().nhwc("dtk_features")?;
    let shape = [n, h, w, c].map(|d| d as u64);
    let strides = [h * w * c, w * c, c, 1].map(|d| d as u64);
    Ok(Map { data, dtype, memory, shape, strides, pixels: pixels as u64 })
}

/// `dtk_step`
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dtk_step(
    handle: *const Handle,
    given: *const Images,
    result: *mut StepResult,
) -> Status {
    border(|| {
        // SAFETY: NULL, or from `dtk_open` and not closed; NULL, or valid during the call.
        let (handle, given, result) = unsafe { (handle.as_ref(), given.as_ref(), result.as_mut()) };
        let handle = handle.ok_or_else(|| null("distiller"))?;
        let given = given.ok_or_else(|| null("images"))?;
        let result = result.ok_or_else(|| null("result"))?;
        let mut session = handle.enter()?;
        session.forget();
        // SAFETY: the caller's promise.
        let tensor = unsafe { images(given, session.gpu()) }?;
        *result = session.step(tensor, given.first)?;
        Ok(())
    })
}

/// `dtk_save_backbone`
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dtk_save_backbone(handle: *const Handle, path: *const c_char) -> Status {
    border(|| {
        // SAFETY: NULL, or from `dtk_open` and not closed; NULL, or a text.
        let (handle, path) = unsafe { (handle.as_ref(), text(path, "path")?) };
        let handle = handle.ok_or_else(|| null("distiller"))?;
        let path = path.ok_or_else(|| null("path"))?;
        let mut session = handle.enter()?;
        session.forget();
        Ok(session.save_backbone(Path::new(path))?)
    })
}

/// `dtk_close`
///
/// # Safety
/// The handle is NULL, or from `dtk_open`, not closed before, and in no other call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dtk_close(handle: *mut Handle) {
    // What dropping could fail with has nobody to hear it.
    border(|| {
        if !handle.is_null() {
            // SAFETY: made by `Box::into_raw`, and the caller gives it up.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    });
}
