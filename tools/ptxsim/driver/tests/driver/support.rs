//! Loading the library, contexts, small wrappers.

use cudarc::driver::sys::*;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

/// The results that tests name.
pub use cudarc::driver::sys::CUresult as R;

/// Calls that must succeed.
macro_rules! ok {
    ($($call:expr),+ $(,)?) => {{
        // SAFETY: the arguments are handles and places of the test.
        $(assert_eq!(unsafe { $call }, cudarc::driver::sys::CUresult::CUDA_SUCCESS, "{}", stringify!($call));)+
    }};
}

/// A call that must give this result.
macro_rules! fails {
    ($call:expr, $result:ident) => {{
        // SAFETY: the arguments are handles and places of the test, or such as the driver must refuse.
        assert_eq!(unsafe { $call }, cudarc::driver::sys::CUresult::$result, "{}", stringify!($call))
    }};
}

pub(crate) use {fails, ok};

/// PTX with the kernels of these tests.
pub const KERNELS: &str = concat!(include_str!("kernels.ptx"), "\0");

/// The library: beside the test's executable, where cargo puts it.
pub fn library() -> PathBuf {
    let executable = std::env::current_exe().expect("a path");
    let folder = executable.parent().expect("a folder");
    let name = "libptxsim_driver.so";
    let places = [folder.join(name), folder.join("..").join(name)];
    places.into_iter().find(|p| p.is_file()).expect("the library is built with its tests")
}

/// Loads the library under the name that cudarc asks for.
pub fn load() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        if std::env::var_os("PTXSIM_QUIET").is_none() {
            // SAFETY: before the library is loaded, and nobody else in these tests changes the environment.
            unsafe { std::env::set_var("PTXSIM_QUIET", "1") };
        }
        // SAFETY: loading it has no effect but the loading.
        let library = unsafe { Library::open(Some(library()), RTLD_NOW | RTLD_GLOBAL) }.expect("loads");
        std::mem::forget(library);
        // SAFETY: asks the loader.
        assert!(unsafe { is_culib_present() }, "cudarc finds it by its SONAME");
    });
}

/// Loads and initialises.
pub fn start() {
    load();
    ok!(cuInit(0));
}

/// Runs a test in a process of its own, with other variables of the environment. `name` is the test's path.
pub fn apart(name: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    const MARK: &str = "PTXSIM_TEST_APART";
    if std::env::var(MARK).is_ok_and(|n| n == name) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args([name, "--exact", "--nocapture"]).env(MARK, name);
    for (key, value) in variables {
        command.env(key, value);
    }
    let output = command.output().expect("starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name}:\n{text}");
}

/// A value that a call writes.
pub fn get<T>(call: impl FnOnce(*mut T) -> R) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    assert_eq!(call(value.as_mut_ptr()), R::CUDA_SUCCESS);
    // SAFETY: the call succeeded, and so wrote it; else it is zero, which the types asked for allow.
    unsafe { value.assume_init() }
}

/// A context of this test alone, current to its thread.
pub struct Context(pub CUcontext);

impl Context {
    /// On the first device.
    pub fn new() -> Self {
        Self::on(0)
    }

    /// On a device.
    pub fn on(device: i32) -> Self {
        start();
        // SAFETY: writes the context.
        Context(get(|c| unsafe { cuCtxCreate_v4(c, std::ptr::null_mut(), 0, device) }))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context of this value; that the test may have destroyed it does not matter.
        unsafe { cuCtxDestroy_v2(self.0) };
    }
}

/// Device memory.
pub fn alloc(bytes: usize) -> CUdeviceptr {
    // SAFETY: writes the address.
    get(|p| unsafe { cuMemAlloc_v2(p, bytes) })
}

/// A stream that has nothing to do with the NULL stream.
pub fn stream() -> CUstream {
    // SAFETY: writes the stream.
    get(|s| unsafe { cuStreamCreate(s, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) })
}

/// A stream that waits for the NULL stream, and the other way round.
pub fn blocking_stream() -> CUstream {
    // SAFETY: writes the stream.
    get(|s| unsafe { cuStreamCreate(s, 0) })
}

/// An event.
pub fn event() -> CUevent {
    // SAFETY: writes the event.
    get(|e| unsafe { cuEventCreate(e, 0) })
}

/// The kernels of these tests.
pub fn module() -> CUmodule {
    // SAFETY: the text ends with NUL.
    get(|m| unsafe { cuModuleLoadData(m, KERNELS.as_ptr().cast()) })
}

/// A kernel of a module.
pub fn function(module: CUmodule, name: &str) -> CUfunction {
    let name = CString::new(name).expect("no NUL");
    // SAFETY: writes the function.
    get(|f| unsafe { cuModuleGetFunction(f, module, name.as_ptr()) })
}

/// Launches with parameters of 8 bytes each, of which a kernel takes as many as it wants.
pub fn launch(f: CUfunction, grid: u32, block: u32, shared: u32, stream: CUstream, params: &[u64]) -> R {
    let mut pointers: Vec<*mut c_void> =
        params.iter().map(|p| std::ptr::from_ref(p).cast_mut().cast()).collect();
    let params = if pointers.is_empty() { std::ptr::null_mut() } else { pointers.as_mut_ptr() };
    // SAFETY: each parameter has at least as many bytes as the kernel takes.
    unsafe { cuLaunchKernel(f, grid, 1, 1, block, 1, 1, shared, stream, params, std::ptr::null_mut()) }
}

/// Copies numbers to the device.
pub fn upload<T: Copy>(to: CUdeviceptr, data: &[T]) {
    ok!(cuMemcpyHtoD_v2(to, data.as_ptr().cast(), size_of_val(data)));
}

/// Copies numbers from the device.
pub fn download<T: Copy + Default>(from: CUdeviceptr, count: usize) -> Vec<T> {
    let mut data = vec![T::default(); count];
    ok!(cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), from, count * size_of::<T>()));
    data
}

/// A symbol that only the simulator has.
pub fn extension<T: Copy>(name: &str) -> T {
    // SAFETY: the library is loaded already.
    let library = unsafe { libloading::Library::new(library()) }.expect("loads");
    // SAFETY: callers name the type that the library documents.
    let symbol = unsafe { *library.get::<T>(name.as_bytes()).expect("exported") };
    std::mem::forget(library);
    symbol
}

/// The report of the current context.
pub fn report() -> serde_json::Value {
    let write: unsafe extern "C" fn(*mut u8, usize) -> usize = extension("ptxsim_report_json");
    // SAFETY: asks for the length only.
    let length = unsafe { write(std::ptr::null_mut(), 0) };
    let mut text = vec![0u8; length + 1];
    // SAFETY: there is room for as much as is said.
    assert_eq!(unsafe { write(text.as_mut_ptr(), text.len()) }, length);
    serde_json::from_slice(&text[..length]).expect("JSON")
}

/// How many findings the current context has.
pub fn findings() -> u64 {
    let count: extern "C" fn() -> u64 = extension("ptxsim_findings_count");
    count()
}

/// A copy of these kinds of memory, all else zero.
pub fn copy_2d(src: CUmemorytype, dst: CUmemorytype) -> CUDA_MEMCPY2D {
    let mut copy = std::mem::MaybeUninit::<CUDA_MEMCPY2D>::zeroed();
    // SAFETY: numbers and pointers, which may be zero, and the two kinds of memory, which may not and are set.
    unsafe {
        (&raw mut (*copy.as_mut_ptr()).srcMemoryType).write(src);
        (&raw mut (*copy.as_mut_ptr()).dstMemoryType).write(dst);
        copy.assume_init()
    }
}

/// A copy of these kinds of memory, all else zero.
pub fn copy_3d(src: CUmemorytype, dst: CUmemorytype) -> CUDA_MEMCPY3D {
    let mut copy = std::mem::MaybeUninit::<CUDA_MEMCPY3D>::zeroed();
    // SAFETY: numbers and pointers, which may be zero, and the two kinds of memory, which may not and are set.
    unsafe {
        (&raw mut (*copy.as_mut_ptr()).srcMemoryType).write(src);
        (&raw mut (*copy.as_mut_ptr()).dstMemoryType).write(dst);
        copy.assume_init()
    }
}
