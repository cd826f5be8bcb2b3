//! Finding and running nvdisasm.

use super::sass::{self, Sass};
use crate::nvrtc::python_packages;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// What to install where nvdisasm is missing.
pub const HOW_TO_GET: &str = "pip install nvidia-cuda-nvdisasm";

/// Why there is no disassembly.
#[derive(Debug, Error)]
pub enum NvdisasmError {
    /// In none of the places.
    #[error(
        "nvdisasm was not found. Looked at:\n{}\nGet it with: {HOW_TO_GET}\n\
         (any executable can be named by PTXSIM_NVDISASM)",
        .looked.iter().map(|l| format!("  {}", l.display())).collect::<Vec<_>>().join("\n")
    )]
    NotFound {
        /// The files that are not there.
        looked: Vec<PathBuf>,
    },
    /// It could not be started, or its input not be written.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Executable or input.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It refused the cubin.
    #[error("{path} failed: {message}", path = .path.display())]
    Failed {
        /// Executable.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// It printed something else than expected.
    #[error("{0}")]
    Text(String),
}

/// An executable that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvdisasm {
    path: PathBuf,
}

impl Nvdisasm {
    /// The first of: `PTXSIM_NVDISASM` (which has to be there), every folder of `PATH`, `CUDA_HOME/bin`,
    /// `/usr/local/cuda/bin`, the `bin` beside the folder `PTXSIM_NVRTC_DIR`, the `.venv`s that NVRTC is looked for in.
    pub fn find() -> Result<Nvdisasm, NvdisasmError> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        if let Some(path) = set("PTXSIM_NVDISASM").map(PathBuf::from) {
            return if path.is_file() {
                Ok(Nvdisasm { path })
            } else {
                Err(NvdisasmError::NotFound { looked: vec![path] })
            };
        }
        let mut dirs: Vec<PathBuf> = Vec::new();
        if let Some(path) = set("PATH") {
            dirs.extend(std::env::split_paths(&path));
        }
        if let Some(home) = set("CUDA_HOME") {
            dirs.push(PathBuf::from(home).join("bin"));
        }
        dirs.push("/usr/local/cuda/bin".into());
        if let Some(libraries) = set("PTXSIM_NVRTC_DIR").map(PathBuf::from) {
            dirs.extend(libraries.parent().map(|p| p.join("bin")));
        }
        dirs.extend(python_packages().iter().map(|p| p.join("nvidia/cu13/bin")));
        let looked: Vec<PathBuf> = dirs.into_iter().map(|d| d.join("nvdisasm")).collect();
        match looked.iter().find(|p| p.is_file()) {
            Some(path) => Ok(Nvdisasm { path: path.clone() }),
            None => Err(NvdisasmError::NotFound { looked }),
        }
    }

    /// The executable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of a cubin's code, with lines where the cubin has them.
    pub fn text(&self, cubin: &[u8]) -> Result<String, NvdisasmError> {
        let input = Temporary::new(cubin)?;
        let output = Command::new(&self.path).args(["-g", "-c"]).arg(&input.0).output();
        let output = output.map_err(|error| NvdisasmError::Io { path: self.path.clone(), error })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(NvdisasmError::Failed { path: self.path.clone(), message });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The kernels of a cubin, by name.
    pub fn kernels(&self, cubin: &[u8]) -> Result<Vec<Sass>, NvdisasmError> {
        let mut all = sass::parse(&self.text(cubin)?).map_err(NvdisasmError::Text)?;
        if all.is_empty() {
            return Err(NvdisasmError::Text("nvdisasm shows no code in this cubin".into()));
        }
        all.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        Ok(all)
    }
}

/// A file that goes when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(bytes: &[u8]) -> Result<Temporary, NvdisasmError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("ptxsim-{}-{}.cubin", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let file = Temporary(std::env::temp_dir().join(name));
        std::fs::write(&file.0, bytes).map_err(|error| NvdisasmError::Io { path: file.0.clone(), error })?;
        Ok(file)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It lies in the folder for temporary files; one that cannot be removed does no harm.
        let _ = std::fs::remove_file(&self.0);
    }
}
