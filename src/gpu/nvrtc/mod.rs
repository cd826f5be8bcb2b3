//! Compiling kernels with NVRTC, NVIDIA's run-time compiler. Needs neither a GPU nor a driver.

mod api;
mod find;
mod resources;
mod version;

pub use resources::Resources;
pub(crate) use version::check_driver;

use super::{Arch, Defines, Source};
use crate::error::{Error, Result};
use api::{Api, Program};
use std::path::Path;

/// NVRTC, once it is found. It stays loaded until the process ends.
pub struct Nvrtc {
    api: Api,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.version();
        write!(f, "NVRTC {major}.{minor} ({})", self.path().display())
    }
}

/// What one compilation makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The intermediate language, for the simulator and for reading.
    pub ptx: String,
    /// Machine code for the architecture.
    pub cubin: Vec<u8>,
    /// Warnings, and the assembler's report.
    pub log: String,
    /// That report, a line for each kernel.
    pub resources: Vec<Resources>,
}

impl Nvrtc {
    /// The first usable NVRTC of: the folder `DTK_NVRTC_DIR` (and no other, if it is set), `CUDA_HOME`, `CUDA_PATH`,
    /// `/usr/local/cuda*`, the system's loader, Python packages in `VIRTUAL_ENV` or in a `.venv` at or above the working
    /// folder.
    ///
    /// # Errors
    /// None was found; the message lists every place with what was wrong there.
    pub fn find() -> Result<&'static Nvrtc> {
        find::find()
    }

    /// Major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.api.version
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.api.path
    }

    /// Checks that this version compiles for an architecture.
    ///
    /// # Errors
    /// It does not.
    pub fn check_arch(&self, arch: Arch) -> Result<()> {
        version::check_arch(self.version(), &self.api.archs, arch)
    }

    /// Compiles one variant of a source. Several threads may compile at once.
    ///
    /// # Errors
    /// The architecture is unknown to this version, or the source is wrong: the message then holds the compiler's, with
    /// files and lines.
    pub fn compile(&self, source: &Source, defines: &Defines, arch: Arch) -> Result<Image> {
        self.check_arch(arch)?;
        let program = Program::new(&self.api, source.name(), source.text(), source.headers())?;
        let compiled = program.compile(&options(defines, arch))?;
        let log = program.log()?;
        if !compiled {
            return Err(Error::device(format!(
                "does not compile for {arch} with {defines}:\n{}",
                log.trim_end()
            ))
            .with_op(source.name()));
        }
        let log = without_times(&log);
        let resources = resources::parse(&log);
        Ok(Image { ptx: program.ptx()?, cubin: program.cubin()?, log, resources })
    }
}

/// The log without how long it took, so that the same input gives the same image.
fn without_times(log: &str) -> String {
    log.split_inclusive('\n').filter(|line| !line.contains("Compile time = ")).collect()
}

/// Compiles one variant of a source with the NVRTC of this machine.
///
/// # Errors
/// Those of [`Nvrtc::find`] and [`Nvrtc::compile`].
pub fn compile(source: &Source, defines: &Defines, arch: &Arch) -> Result<Image> {
    Nvrtc::find()?.compile(source, defines, *arch)
}

/// The options of every compilation, apart from defines and architecture. Part of the key of the cache.
pub(super) const OPTIONS: &[&str] =
    &["--std=c++17", "-default-device", "--generate-line-info", "--ptxas-options=-v"];

fn options(defines: &Defines, arch: Arch) -> Vec<String> {
    let mut all = vec![format!("--gpu-architecture={arch}")];
    all.extend(OPTIONS.iter().map(ToString::to_string));
    all.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    all
}
