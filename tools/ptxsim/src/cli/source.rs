//! Reading a program from a file, compiled if it has to be.

use crate::nvrtc::{Compiled, Nvrtc, Options, Resources};
use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};

/// How a `.cu` is compiled.
#[derive(Clone, Debug, Args)]
pub(super) struct Compiling {
    /// Target: sm_90a, sm_80, .. make PTX and a cubin, compute_90a, compute_80, .. PTX alone
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Defines a macro
    #[arg(short = 'D', long = "define", value_name = "NAME[=VALUE]")]
    pub defines: Vec<String>,
    /// Adds a folder to search for includes
    #[arg(short = 'I', long = "include", value_name = "DIR")]
    pub include_dirs: Vec<PathBuf>,
    /// Passes an option on to NVRTC as it is
    #[arg(short = 'X', long = "nvrtc", value_name = "OPTION", allow_hyphen_values = true)]
    pub extra: Vec<String>,
}

impl Compiling {
    /// Compiles a file.
    pub(super) fn compile(&self, file: &Path, default_arch: &str) -> Result<Compiled, Box<dyn Error>> {
        let source = read_text(file)?;
        let options = Options {
            defines: self.defines.clone(),
            include_dirs: self.include_dirs.clone(),
            extra: self.extra.clone(),
            ..Options::new(self.arch.as_deref().unwrap_or(default_arch))
        };
        let compiled = Nvrtc::find()?.compile(&source, &file.to_string_lossy(), &options)?;
        Ok(compiled)
    }

    /// PTX of a `.cu`, with ptxas' account for a real target, or the text of a `.ptx`.
    pub(super) fn ptx(&self, file: &Path) -> Result<(String, Vec<Resources>), Box<dyn Error>> {
        match extension(file).as_str() {
            "ptx" => Ok((read_text(file)?, Vec::new())),
            "cu" => {
                let compiled = self.compile(file, "compute_90a")?;
                if let Some(warnings) = warnings(&compiled.log) {
                    eprintln!("{warnings}");
                }
                Ok((compiled.ptx, compiled.resources))
            }
            "cubin" => Err(format!(
                "{}: a cubin is machine code, which is not interpreted; give the .cu or the .ptx",
                file.display()
            )
            .into()),
            _ => Err(format!("{}: neither .cu nor .ptx", file.display()).into()),
        }
    }

    /// Cubin of a `.cu` with ptxas' account, or the bytes of a `.cubin` without.
    pub(super) fn cubin(&self, file: &Path) -> Result<(Vec<u8>, Vec<Resources>), Box<dyn Error>> {
        match extension(file).as_str() {
            "cubin" => Ok((std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?, Vec::new())),
            "cu" => {
                let compiled = self.compile(file, "sm_90a")?;
                let cubin = compiled.cubin.ok_or("a virtual target has no machine code; use --arch sm_..")?;
                Ok((cubin, compiled.resources))
            }
            _ => Err(format!("{}: neither .cu nor .cubin", file.display()).into()),
        }
    }
}

/// Compiler messages without ptxas' account.
pub(super) fn warnings(log: &str) -> Option<String> {
    let lines: Vec<&str> =
        log.lines().filter(|l| !l.trim_start().starts_with("ptxas ") && !l.trim().is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// In lower case, without the dot.
pub(super) fn extension(file: &Path) -> String {
    file.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

fn read_text(file: &Path) -> Result<String, Box<dyn Error>> {
    std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()).into())
}
