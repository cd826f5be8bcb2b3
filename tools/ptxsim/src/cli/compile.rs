//! `ptxsim compile`

use super::source::{Compiling, extension, warnings};
use super::{Outcome, say};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compiles a .cu with NVRTC to PTX, or to a cubin
#[derive(Debug, Args)]
pub(super) struct Compile {
    /// The source
    file: PathBuf,
    #[command(flatten)]
    compiling: Compiling,
    /// Where to write: PTX to a .ptx, machine code to a .cubin. Without it PTX is printed
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Compile {
    pub(super) fn run(self) -> Outcome {
        let compiled = self.compiling.compile(&self.file, "sm_90a")?;
        if let Some(warnings) = warnings(&compiled.log) {
            eprintln!("{warnings}");
        }
        let Some(output) = self.output else {
            say(compiled.ptx.trim_end());
            return Ok(ExitCode::SUCCESS);
        };
        let bytes = match extension(&output).as_str() {
            "cubin" => compiled.cubin.ok_or("a virtual target has no machine code; use --arch sm_..")?,
            "ptx" => compiled.ptx.into_bytes(),
            _ => return Err(format!("{}: neither .ptx nor .cubin", output.display()).into()),
        };
        std::fs::write(&output, bytes).map_err(|e| format!("{}: {e}", output.display()))?;
        for r in &compiled.resources {
            say(format_args!(
                "{}: {} registers, {} B shared, {} B spilled",
                r.kernel, r.registers, r.shared_bytes, r.spill_store_bytes
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
