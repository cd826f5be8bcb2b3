//! `ptxsim profile`

use super::source::Compiling;
use super::{Outcome, disasm, say};
use crate::static_view::{Nvdisasm, Profile};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows what is known of a kernel without running it: registers, spills, shared memory, the mix of its instructions
#[derive(Debug, Args)]
pub(super) struct Profiling {
    /// The source, or a cubin (which has no account of registers and spills)
    file: PathBuf,
    #[command(flatten)]
    compiling: Compiling,
    /// This kernel alone
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

impl Profiling {
    pub(super) fn run(self) -> Outcome {
        let (cubin, resources) = self.compiling.cubin(&self.file)?;
        let kernels = disasm::chosen(Nvdisasm::find()?.kernels(&cubin)?, self.kernel.as_deref())?;
        let profiles: Vec<Profile> = kernels.iter().map(|k| Profile::of(k, &resources)).collect();
        if self.json {
            say(serde_json::to_string_pretty(&profiles)?);
        } else {
            profiles.iter().for_each(say);
        }
        Ok(ExitCode::SUCCESS)
    }
}
