//! NVRTC's C functions, taken from the library that was found.
//!
//! The crate `cudarc` has them too, but takes the first library of that name that the system's loader knows: on a machine
//! with two toolkits not always the one that was found and whose version was checked.

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

type Handle = *mut c_void;
type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Read = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Handle,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

const SUCCESS: c_int = 0;
const ERROR_COMPILATION: c_int = 6;

/// The functions, where they come from, and what this version can do.
pub(super) struct Api {
    /// The library's file.
    pub path: PathBuf,
    /// Major and minor.
    pub version: (u32, u32),
    /// Ten times the compute capability of every architecture that it compiles for.
    pub archs: Vec<u32>,
    create: Create,
    destroy: unsafe extern "C" fn(*mut Handle) -> c_int,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    log: (SizeOf, Read),
    ptx: (SizeOf, Read),
    cubin: (SizeOf, Read),
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// A function of a library that is never closed.
fn symbol<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
    // SAFETY: each caller below asks for the signature that NVRTC's header has declared for that name since CUDA 11.2; the
    // library stays loaded, so the pointer does not dangle.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|f| *f).map_err(|_| format!("it has no function {name}"))
}

impl Api {
    /// Takes the functions out of a library; says what is wrong with one that is not NVRTC.
    pub(super) fn new(library: &'static Library, path: PathBuf) -> Result<Api, String> {
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol(library, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        match unsafe { version(&mut major, &mut minor) } {
            SUCCESS => {}
            code => return Err(format!("nvrtcVersion returns {code}")),
        }
        Ok(Api {
            path,
            version: (major.max(0) as u32, minor.max(0) as u32),
            archs: archs(library)?,
            create: symbol(library, "nvrtcCreateProgram")?,
            destroy: symbol(library, "nvrtcDestroyProgram")?,
            compile: symbol(library, "nvrtcCompileProgram")?,
            log: (symbol(library, "nvrtcGetProgramLogSize")?, symbol(library, "nvrtcGetProgramLog")?),
            ptx: (symbol(library, "nvrtcGetPTXSize")?, symbol(library, "nvrtcGetPTX")?),
            cubin: (symbol(library, "nvrtcGetCUBINSize")?, symbol(library, "nvrtcGetCUBIN")?),
            error_string: symbol(library, "nvrtcGetErrorString")?,
        })
    }

    fn failed(&self, call: &str, code: c_int) -> Error {
        // SAFETY: takes any code, and returns null or a text among the library's constants.
        let text = unsafe { (self.error_string)(code) };
        let reason = if text.is_null() {
            format!("code {code}")
        } else {
            // SAFETY: not null, ended by NUL, and constant data of a library that is never unloaded.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Error::device(format!("{call} of {} failed: {reason}", self.path.display()))
    }
}

fn archs(library: &'static Library) -> Result<Vec<u32>, String> {
    let count: unsafe extern "C" fn(*mut c_int) -> c_int = symbol(library, "nvrtcGetNumSupportedArchs")?;
    let list: unsafe extern "C" fn(*mut c_int) -> c_int = symbol(library, "nvrtcGetSupportedArchs")?;
    let mut n = 0;
    // SAFETY: the pointer is to a live integer.
    match unsafe { count(&mut n) } {
        SUCCESS => {}
        code => return Err(format!("nvrtcGetNumSupportedArchs returns {code}")),
    }
    let mut all = vec![0; n.max(0) as usize];
    // SAFETY: NVRTC writes as many numbers as it just said, and the vector has room for them.
    match unsafe { list(all.as_mut_ptr()) } {
        SUCCESS => Ok(all.into_iter().map(|a| a.max(0) as u32).collect()),
        code => Err(format!("nvrtcGetSupportedArchs returns {code}")),
    }
}

/// A program inside NVRTC, destroyed when dropped.
pub(super) struct Program<'a> {
    api: &'a Api,
    handle: Handle,
}

fn c_string(text: &str, what: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::device(format!("{what} has a NUL character, which NVRTC cannot be given")))
}

impl<'a> Program<'a> {
    /// Hands source and headers over; NVRTC copies them.
    pub(super) fn new<'h>(
        api: &'a Api,
        name: &str,
        text: &str,
        headers: impl Iterator<Item = (&'h str, &'h str)>,
    ) -> Result<Self> {
        let (c_name, c_text) = (c_string(name, "the name of a kernel source")?, c_string(text, name)?);
        let (mut names, mut texts) = (Vec::new(), Vec::new());
        for (name, text) in headers {
            names.push(c_string(name, "the name of a header")?);
            texts.push(c_string(text, name)?);
        }
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name_list, text_list) = (pointers(&names), pointers(&texts));
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: all texts end with NUL and live until the call returns; both lists hold as many pointers as is said.
        let code = unsafe {
            (api.create)(
                &mut handle,
                c_text.as_ptr(),
                c_name.as_ptr(),
                names.len() as c_int,
                text_list.as_ptr(),
                name_list.as_ptr(),
            )
        };
        match code {
            SUCCESS => Ok(Program { api, handle }),
            code => Err(api.failed("nvrtcCreateProgram", code)),
        }
    }

    /// Compiles; `false` if the program is wrong, which the log then explains.
    pub(super) fn compile(&self, options: &[String]) -> Result<bool> {
        let texts =
            options.iter().map(|o| c_string(o, "an option of the compiler")).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<_> = texts.iter().map(|s| s.as_ptr()).collect();
        // SAFETY: the handle is live, and the list holds as many texts ended by NUL as is said.
        match unsafe { (self.api.compile)(self.handle, pointers.len() as c_int, pointers.as_ptr()) } {
            SUCCESS => Ok(true),
            ERROR_COMPILATION => Ok(false),
            code => Err(self.api.failed("nvrtcCompileProgram", code)),
        }
    }

    pub(super) fn log(&self) -> Result<String> {
        self.read("nvrtcGetProgramLog", self.api.log).map(text)
    }

    pub(super) fn ptx(&self) -> Result<String> {
        self.read("nvrtcGetPTX", self.api.ptx).map(text)
    }

    pub(super) fn cubin(&self) -> Result<Vec<u8>> {
        self.read("nvrtcGetCUBIN", self.api.cubin)
    }

    fn read(&self, call: &str, (size, read): (SizeOf, Read)) -> Result<Vec<u8>> {
        let mut n = 0usize;
        // SAFETY: the handle is live and the pointer is to a live integer.
        let code = unsafe { size(self.handle, &mut n) };
        let mut bytes = vec![0u8; n];
        let code = match code {
            // SAFETY: NVRTC writes as many bytes as it just said, and the vector has as many.
            SUCCESS => unsafe { read(self.handle, bytes.as_mut_ptr().cast()) },
            code => code,
        };
        if code == SUCCESS { Ok(bytes) } else { Err(self.api.failed(call, code)) }
    }
}

/// Text up to its NUL.
fn text(mut bytes: Vec<u8>) -> String {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram`, destroyed here and nowhere else. A failure leaves nothing to be done.
        unsafe { (self.api.destroy)(&mut self.handle) };
    }
}
