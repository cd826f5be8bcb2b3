//! CUDA's driver library: found, loaded and asked for its version without ever panicking.
//!
//! `cudarc` loads the library at the first call, and panics where it is missing or lacks a function. So nothing here calls
//! it before the library and every function in [`SYMBOLS`] are known to be there.

use super::error::check;
use super::library;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use libloading::Library;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Every function of the driver that dtk calls. All are in drivers for CUDA 12.8 and later.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Folders that hold the driver's library on machines whose loader does not know it: WSL, containers, NixOS.
const FOLDERS: &[&str] = &[
    "/usr/lib/wsl/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];

const REMEDY: &str = "install NVIDIA's driver (580 or later for CUDA 13), or let DTK_CUDA_DRIVER name its libcuda.so.1; \
                      without a GPU use --device cpu";

/// The driver's library. One is used for the life of a process.
pub(super) struct Driver {
    /// The library's file, where the system tells.
    path: Option<PathBuf>,
    /// The highest version of CUDA that it knows.
    version: (u32, u32),
    simulator: Option<Simulator>,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

impl Driver {
    /// Loads the library `asked`, else the one that `DTK_CUDA_DRIVER` names, else the one that the system's loader knows,
    /// else one in the usual folders.
    ///
    /// # Errors
    /// There is none, it is too old, or another one is in use already.
    pub(super) fn load(asked: Option<&Path>) -> Result<&'static Driver> {
        // Two threads at once would both search, and report the other's half-loaded library.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked
            .map(Path::to_path_buf)
            .or_else(|| std::env::var_os("DTK_CUDA_DRIVER").filter(|v| !v.is_empty()).map(PathBuf::from));
        let asked = match &asked {
            Some(path) => Some(path.canonicalize().map_err(|e| {
                Error::io(path, "the CUDA driver that was asked for cannot be opened", e).with_remedy(REMEDY)
            })?),
            None => None,
        };
        if let Some(driver) = DRIVER.get() {
            return driver.is_the_one(asked.as_deref()).map(|()| driver);
        }
        let library = find(asked.as_deref())?;
        let missing: Vec<&str> =
            SYMBOLS.iter().copied().filter(|s| library::address(library, s).is_none()).collect();
        let path = library::address(library, "cuInit").and_then(library::file_of);
        let named = |e: Error| match &path {
            Some(path) => e.with_file(path),
            None => e,
        };
        if !missing.is_empty() {
            return Err(named(Error::device(format!(
                "this CUDA driver is older than CUDA 12.8, or no driver: it lacks {}",
                missing.join(", ")
            )))
            .with_remedy(REMEDY));
        }
        let mut number = 0;
        // SAFETY: the pointer is to a live integer; the function is there, and may be called before `cuInit`.
        check(unsafe { sys::cuDriverGetVersion(&mut number) }, "cuDriverGetVersion").map_err(named)?;
        let version = version_of(number);
        let simulator = Simulator::of(library);
        let driver = Driver { path, version, simulator };
        Ok(DRIVER.get_or_init(|| driver))
    }

    /// Initialises the driver: it looks for devices. Cheap when done again.
    ///
    /// # Errors
    /// The driver finds no device, or does not work.
    pub(super) fn init(&self) -> Result<()> {
        // SAFETY: takes no pointer.
        check(unsafe { sys::cuInit(0) }, "cuInit").map_err(|e| match &self.path {
            Some(path) => e.with_file(path),
            None => e,
        })
    }

    /// The library's file, where the system tells.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The highest version of CUDA that it knows.
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The simulator's own functions, if this is the simulator.
    pub(super) fn simulator(&self) -> Option<&Simulator> {
        self.simulator.as_ref()
    }

    fn is_the_one(&self, asked: Option<&Path>) -> Result<()> {
        match (asked, &self.path) {
            (Some(asked), Some(path)) if path.canonicalize().is_ok_and(|p| p != asked) => {
                Err(Error::device("this process uses another CUDA driver already")
                    .with_file(path)
                    .with_remedy(format!("start a process of its own for {}", asked.display())))
            }
            _ => Ok(()),
        }
    }
}

/// 13000 is CUDA 13.0, 12040 is CUDA 12.4.
fn version_of(number: i32) -> (u32, u32) {
    let number = number.max(0) as u32;
    (number / 1000, number % 1000 / 10)
}

/// The library that `cudarc` will call.
fn find(asked: Option<&Path>) -> Result<&'static Library> {
    let none = |what: &str| Err(Error::device(what).with_remedy(REMEDY));
    let mut wanted = None;
    if let Some(path) = asked {
        // Its name is then known to the loader, and `cudarc`, which asks for names, gets it.
        let library = library::open(path.as_os_str()).map_err(|why| {
            Error::device(format!("the CUDA driver that was asked for cannot be loaded: {why}"))
                .with_remedy(REMEDY)
        })?;
        wanted = library::address(library, "cuInit");
        if wanted.is_none() {
            return none(&format!("{} is no CUDA driver: it has no function cuInit", path.display()));
        }
    } else if !is_present() {
        let files = FOLDERS.iter().map(|folder| Path::new(folder).join("libcuda.so.1"));
        for file in files.filter(|f| f.is_file()) {
            // One that cannot be loaded leaves the answer below as it is.
            library::open(file.as_os_str()).ok();
        }
    }
    if !is_present() {
        return none(
            "there is no CUDA driver on this machine: no libcuda.so.1 that the system's loader knows",
        );
    }
    // SAFETY: the library is there, which is all that this function demands.
    let library = unsafe { sys::culib() };
    if wanted.is_some() && library::address(library, "cuInit") != wanted {
        let other = library::address(library, "cuInit").and_then(library::file_of);
        let other = other.map_or_else(|| "another one".into(), |p| p.display().to_string());
        return Err(Error::device(format!(
            "the CUDA driver that was asked for is not the one that the system's loader takes, which is {other}"
        ))
        .with_remedy("put the folder of the one you want first into LD_LIBRARY_PATH"));
    }
    Ok(library)
}

fn is_present() -> bool {
    // SAFETY: opens libraries by the names of CUDA's driver; see `library::open` for what that may do.
    unsafe { sys::is_culib_present() }
}

/// What the simulator offers beyond a driver: the findings and counters of its launches.
pub(super) struct Simulator {
    report: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    clear: unsafe extern "C" fn(),
    /// Its version.
    pub(super) version: String,
}

impl Simulator {
    fn of(library: &'static Library) -> Option<Simulator> {
        // SAFETY: the simulator declares these three functions with these signatures, no other library has them, and the
        // library is never closed. The version is a constant text ended by NUL.
        unsafe {
            let version = library.get::<unsafe extern "C" fn() -> *const c_char>(b"ptxsim_version").ok()?;
            let report = *library.get(b"ptxsim_report_json").ok()?;
            let clear = *library.get(b"ptxsim_report_clear").ok()?;
            let version = CStr::from_ptr(version()).to_string_lossy().into_owned();
            Some(Simulator { report, clear, version })
        }
    }

    /// Launches, counters and findings of the thread's current context; empty without one.
    pub(super) fn report(&self) -> String {
        // SAFETY: with no room nothing is written; the length comes back.
        let mut room = unsafe { (self.report)(std::ptr::null_mut(), 0) } + 1;
        loop {
            let mut bytes = vec![0u8; room];
            // SAFETY: the vector has as much room as is said.
            let length = unsafe { (self.report)(bytes.as_mut_ptr().cast(), room) };
            // Another thread may have launched in between.
            if length < room {
                bytes.truncate(length);
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            room = length + 1;
        }
    }

    /// Forgets them.
    pub(super) fn clear(&self) {
        // SAFETY: takes nothing, and does nothing without a current context.
        unsafe { (self.clear)() }
    }
}

/// What the simulator found in the thread's current context, a line each; none on a card.
pub(super) fn findings() -> Vec<String> {
    let simulator = DRIVER.get().and_then(Driver::simulator);
    simulator.map(|s| findings_of(&s.report())).unwrap_or_default()
}

/// The most findings that an error shows.
const SHOWN: usize = 8;

/// The findings of a report, those of launches first.
fn findings_of(report: &str) -> Vec<String> {
    let Ok(report) = serde_json::from_str::<serde_json::Value>(report) else { return Vec::new() };
    let list = |v: &serde_json::Value| v.as_array().cloned().unwrap_or_default();
    let launches = list(&report["launches"]);
    let mut found: Vec<String> =
        launches.iter().flat_map(|l| list(&l["findings"])).map(|f| line(&f)).collect();
    found.extend(list(&report["stream_findings"]).iter().map(line));
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

/// `conv2d.cu:45: out_of_bounds in conv2d_fwd: ...`
fn line(finding: &serde_json::Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or("");
    let place = match (text("file"), finding["line"].as_u64()) {
        (file, Some(line)) if line > 0 => format!("{file}:{line}: "),
        _ => String::new(),
    };
    let kernel = if text("kernel").is_empty() { String::new() } else { format!(" in {}", text("kernel")) };
    format!("{place}{}{kernel}: {}", text("kind"), text("message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_major_and_minor() {
        assert_eq!(
            [13000, 12040, 12080, 11080, -1].map(version_of),
            [(13, 0), (12, 4), (12, 8), (11, 8), (0, 0)]
        );
    }

    #[test]
    fn findings_become_lines() {
        let report = r#"{"launches": [{"findings": []}, {"findings": [{"kind": "out_of_bounds", "kernel": "k",
            "file": "a.cu", "line": 7, "message": "4 bytes behind"}]}],
            "stream_findings": [{"kind": "stream_race", "message": "nothing orders them"}]}"#;
        assert_eq!(
            findings_of(report),
            ["a.cu:7: out_of_bounds in k: 4 bytes behind", "stream_race: nothing orders them"]
        );
        let one = r#"{"kind": "trap", "kernel": "k", "file": "", "line": 0, "message": "m"}"#;
        let many = format!(r#"{{"launches": [{{"findings": [{}]}}]}}"#, [one; 11].join(","));
        let lines = findings_of(&many);
        assert_eq!((lines.len(), &*lines[0], &*lines[8]), (9, "trap in k: m", "and 3 more"));
        assert!(findings_of("").is_empty() && findings_of("{}").is_empty());
    }

    /// Every driver function that the sources of `gpu` name is in the list that is checked before the first call.
    #[test]
    fn every_function_that_is_called_is_checked_first() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu");
        let mut called = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                for (at, _) in text.match_indices("sys::cu") {
                    let name: String =
                        text[at + 5..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if name.as_bytes().get(2).is_some_and(u8::is_ascii_uppercase) {
                        called.insert(name);
                    }
                }
            }
        }
        let unchecked: Vec<_> = called.iter().filter(|c| !SYMBOLS.contains(&c.as_str())).collect();
        assert!(called.len() > 20 && unchecked.is_empty(), "add to SYMBOLS: {unchecked:?}");
    }
}
