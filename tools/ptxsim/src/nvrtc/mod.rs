//! Compiling `.cu` text with NVRTC, which is found and loaded at run time; nothing of it is needed to build.
//!
//! ```no_run
//! use ptxsim::nvrtc::{Nvrtc, Options};
//! let nvrtc = Nvrtc::find()?;
//! let source = "extern \"C\" __global__ void k(float *x) { x[threadIdx.x] *= 2.0f; }";
//! let compiled = nvrtc.compile(source, "k.cu", &Options::new("sm_90a"))?;
//! println!("{}\n{:?}", compiled.ptx, compiled.resources);
//! # Ok::<(), ptxsim::nvrtc::NvrtcError>(())
//! ```

mod api;
mod find;
mod resources;

pub use find::{library_dirs, python_packages};
pub use resources::Resources;

use api::{Api, Program};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What to install where NVRTC is missing.
pub const HOW_TO_GET: &str = "pip install 'nvidia-cuda-nvrtc==13.0.*'";

/// Why there is no NVRTC, or no program.
#[derive(Clone, Debug, Error)]
pub enum NvrtcError {
    /// Nothing that could be loaded, in any of the places.
    #[error(
        "NVRTC was not found. Looked at:\n{}\nGet it with: {HOW_TO_GET}\n\
         (any folder with libnvrtc.so can be named by PTXSIM_NVRTC_DIR)",
        .looked.iter().map(|l| format!("  {l}")).collect::<Vec<_>>().join("\n")
    )]
    NotFound {
        /// Each place with the reason it did not do.
        looked: Vec<String>,
    },
    /// Source, name, header or option with a NUL byte in it.
    #[error("{what} has a NUL byte, which NVRTC cannot be given")]
    Nul {
        /// Which text.
        what: String,
    },
    /// The compiler refused the program.
    #[error("{name} does not compile for {arch}:\n{log}")]
    Compile {
        /// As given to [`Nvrtc::compile`].
        name: String,
        /// As in [`Options::arch`].
        arch: String,
        /// What the compiler printed, as it printed it.
        log: String,
    },
    /// A call failed for another reason than the program.
    #[error("{call} failed: {reason}{}{log}", if .log.is_empty() { "" } else { "\n" })]
    Call {
        /// The function of NVRTC.
        call: &'static str,
        /// NVRTC's own words for the code.
        reason: String,
        /// The compiler's log, where there is one.
        log: String,
    },
}

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `sm_90a` makes PTX and a cubin, `compute_80` PTX alone.
    pub arch: String,
    /// `NAME` or `NAME=VALUE`.
    pub defines: Vec<String>,
    /// Searched for `#include`, in order.
    pub include_dirs: Vec<PathBuf>,
    /// Name as included, and text: headers that need no file.
    pub headers: Vec<(String, String)>,
    /// Lines of the `.cu` in the PTX and the cubin. On unless turned off; costs nothing at run time.
    pub lineinfo: bool,
    /// Further options of NVRTC, as they are.
    pub extra: Vec<String>,
}

impl Options {
    /// For that target, with line information and nothing else.
    pub fn new(arch: &str) -> Options {
        Options {
            arch: arch.to_string(),
            defines: Vec::new(),
            include_dirs: Vec::new(),
            headers: Vec::new(),
            lineinfo: true,
            extra: Vec::new(),
        }
    }

    /// Adds `-D name=value`.
    pub fn define(mut self, name: &str, value: impl std::fmt::Display) -> Options {
        self.defines.push(format!("{name}={value}"));
        self
    }

    /// A real target: ptxas runs and a cubin comes out.
    fn makes_cubin(&self) -> bool {
        self.arch.starts_with("sm_")
    }

    /// Command line for NVRTC.
    fn arguments(&self) -> Vec<String> {
        let mut all = vec![format!("--gpu-architecture={}", self.arch)];
        if self.lineinfo {
            all.push("--generate-line-info".into());
        }
        if self.makes_cubin() {
            all.push("--ptxas-options=-v".into());
        }
        all.extend(self.defines.iter().map(|d| format!("--define-macro={d}")));
        all.extend(self.include_dirs.iter().map(|d| format!("--include-path={}", d.display())));
        all.extend(self.extra.iter().cloned());
        all
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Text, without the NUL that NVRTC puts at its end.
    pub ptx: String,
    /// Machine code; `None` for a virtual target (`compute_..`).
    pub cubin: Option<Vec<u8>>,
    /// Warnings, and ptxas' account of resources.
    pub log: String,
    /// That account, one for each kernel; empty for a virtual target.
    pub resources: Vec<Resources>,
}

/// A loaded NVRTC. Copies of it share the library, which stays loaded until the process ends.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    api: &'static Api,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.version();
        write!(f, "Nvrtc {major}.{minor} from {}", self.path().display())
    }
}

impl Nvrtc {
    /// Loads NVRTC from the first place that has it: the folder `PTXSIM_NVRTC_DIR`; the `.venv` of a folder at or above
    /// the working folder, the executable's or the crate's; `CUDA_HOME/lib64`; `/usr/local/cuda/lib64`; the system's
    /// loader. A folder named by `PTXSIM_NVRTC_DIR` has to have it.
    ///
    /// The library is loaded by its absolute path, with its symbols for everyone, and so is found afterwards by whatever
    /// in the process asks for `libnvrtc.so.13` by name, `cudarc` among them. The search is made once in a process; a
    /// failed one is made again.
    pub fn find() -> Result<Nvrtc, NvrtcError> {
        find::load().map(|api| Nvrtc { api })
    }

    /// `(13, 0)`
    pub fn version(&self) -> (u32, u32) {
        self.api.version
    }

    /// The library's file; a bare name where the system's loader found it.
    pub fn path(&self) -> &Path {
        &self.api.path
    }

    /// Compiles `source`; `name` is the file named in messages and line information. Several threads may compile at once.
    pub fn compile(&self, source: &str, name: &str, options: &Options) -> Result<Compiled, NvrtcError> {
        let program = Program::new(self.api, source, name, &options.headers)?;
        let arguments = options.arguments();
        let done = program.compile(&arguments);
        let log = program.log()?;
        if let Err(error) = done {
            return Err(match error {
                api::Failed::Compilation => {
                    NvrtcError::Compile { name: name.to_string(), arch: options.arch.clone(), log }
                }
                api::Failed::Nul(what) => NvrtcError::Nul { what },
                api::Failed::Other(reason) => {
                    let reason = format!("{reason} (options: {})", arguments.join(" "));
                    NvrtcError::Call { call: "nvrtcCompileProgram", reason, log }
                }
            });
        }
        let ptx = program.ptx()?;
        let cubin = if options.makes_cubin() { Some(program.cubin()?) } else { None };
        let resources = resources::parse(&log);
        Ok(Compiled { ptx, cubin, log, resources })
    }
}
