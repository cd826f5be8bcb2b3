//! The C functions of NVRTC, taken from the library that was found, and a program that is destroyed when dropped.
//!
//! `cudarc` has the same functions, but takes the first `libnvrtc` that the system's loader knows; on a machine with
//! two toolkits that need not be the one that was found.

use super::NvrtcError;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

type Handle = *mut c_void;
type Sizer = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Getter = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;

const SUCCESS: c_int = 0;
const ERROR_COMPILATION: c_int = 6;

/// The functions, the library they are in, and its version.
pub(super) struct Api {
    pub path: PathBuf,
    pub version: (u32, u32),
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Handle) -> c_int,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    log_size: Sizer,
    log: Getter,
    ptx_size: Sizer,
    ptx: Getter,
    cubin_size: Sizer,
    cubin: Getter,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Api {
    /// Takes the functions from a library that will never be closed.
    pub(super) fn new(library: &'static Library, path: PathBuf) -> Result<Api, String> {
        /// One function; the type is the one that the field has.
        fn symbol<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
            // SAFETY: every name below is given the signature that NVRTC's header declares for it, unchanged since
            // CUDA 11; the library stays loaded for the rest of the process, so the pointer does not dangle.
            unsafe { library.get::<T>(name.as_bytes()) }.map(|s| *s).map_err(|e| format!("{name}: {e}"))
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol(library, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        let code = unsafe { version(&mut major, &mut minor) };
        if code != SUCCESS {
            return Err(format!("nvrtcVersion returns {code}"));
        }
        Ok(Api {
            path,
            version: (major as u32, minor as u32),
            create: symbol(library, "nvrtcCreateProgram")?,
            destroy: symbol(library, "nvrtcDestroyProgram")?,
            compile: symbol(library, "nvrtcCompileProgram")?,
            log_size: symbol(library, "nvrtcGetProgramLogSize")?,
            log: symbol(library, "nvrtcGetProgramLog")?,
            ptx_size: symbol(library, "nvrtcGetPTXSize")?,
            ptx: symbol(library, "nvrtcGetPTX")?,
            cubin_size: symbol(library, "nvrtcGetCUBINSize")?,
            cubin: symbol(library, "nvrtcGetCUBIN")?,
            error_string: symbol(library, "nvrtcGetErrorString")?,
        })
    }

    /// NVRTC's words for a code.
    fn reason(&self, code: c_int) -> String {
        // SAFETY: takes any code, and returns a text of the library's own constant data.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return format!("code {code}");
        }
        // SAFETY: not null, NUL-terminated, and constant data of a library that is never unloaded.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// Why a compilation failed.
pub(super) enum Failed {
    /// The program is wrong; the log says how.
    Compilation,
    /// An option cannot be passed.
    Nul(String),
    /// Options, memory, the library itself.
    Other(String),
}

/// `nvrtcProgram`
pub(super) struct Program {
    api: &'static Api,
    handle: Handle,
}

fn c_string(text: &str, what: &str) -> Result<CString, NvrtcError> {
    CString::new(text).map_err(|_| NvrtcError::Nul { what: what.to_string() })
}

impl Program {
    /// Copies everything into NVRTC.
    pub(super) fn new(
        api: &'static Api,
        source: &str,
        name: &str,
        headers: &[(String, String)],
    ) -> Result<Program, NvrtcError> {
        let (source, name) = (c_string(source, "the source")?, c_string(name, "the name")?);
        let names =
            headers.iter().map(|(n, _)| c_string(n, "a header's name")).collect::<Result<Vec<_>, _>>()?;
        let texts = headers
            .iter()
            .map(|(n, t)| c_string(t, &format!("the header {n}")))
            .collect::<Result<Vec<_>, _>>()?;
        let name_pointers: Vec<_> = names.iter().map(|s| s.as_ptr()).collect();
        let text_pointers: Vec<_> = texts.iter().map(|s| s.as_ptr()).collect();
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: every text is NUL-terminated and lives until the call returns; both arrays hold `headers.len()`
        // pointers; NVRTC copies what it keeps.
        let code = unsafe {
            (api.create)(
                &mut handle,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        if code != SUCCESS {
            let reason = api.reason(code);
            return Err(NvrtcError::Call { call: "nvrtcCreateProgram", reason, log: String::new() });
        }
        Ok(Program { api, handle })
    }

    pub(super) fn compile(&self, options: &[String]) -> Result<(), Failed> {
        let texts = options
            .iter()
            .map(|o| CString::new(o.as_str()).map_err(|_| Failed::Nul(format!("the option {o:?}"))))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = texts.iter().map(|s| s.as_ptr()).collect();
        // SAFETY: the handle is live, and the array holds as many NUL-terminated texts as is said.
        match unsafe { (self.api.compile)(self.handle, pointers.len() as c_int, pointers.as_ptr()) } {
            SUCCESS => Ok(()),
            ERROR_COMPILATION => Err(Failed::Compilation),
            code => Err(Failed::Other(self.api.reason(code))),
        }
    }

    pub(super) fn log(&self) -> Result<String, NvrtcError> {
        self.text("nvrtcGetProgramLog", self.api.log_size, self.api.log)
    }

    pub(super) fn ptx(&self) -> Result<String, NvrtcError> {
        self.text("nvrtcGetPTX", self.api.ptx_size, self.api.ptx)
    }

    pub(super) fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        self.bytes("nvrtcGetCUBIN", self.api.cubin_size, self.api.cubin)
    }

    fn text(&self, call: &'static str, size: Sizer, get: Getter) -> Result<String, NvrtcError> {
        let mut bytes = self.bytes(call, size, get)?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn bytes(&self, call: &'static str, size: Sizer, get: Getter) -> Result<Vec<u8>, NvrtcError> {
        let failed = |code| NvrtcError::Call { call, reason: self.api.reason(code), log: String::new() };
        let mut count = 0usize;
        // SAFETY: the handle is live and the pointer is to a live integer.
        let code = unsafe { size(self.handle, &mut count) };
        if code != SUCCESS {
            return Err(failed(code));
        }
        let mut bytes = vec![0u8; count];
        // SAFETY: NVRTC writes as many bytes as the size function just said, and the buffer has as many.
        let code = unsafe { get(self.handle, bytes.as_mut_ptr().cast()) };
        if code != SUCCESS {
            return Err(failed(code));
        }
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram` and destroyed only here. The code says nothing that could be acted on.
        unsafe { (self.api.destroy)(&mut self.handle) };
    }
}
