//! `ptxsim disasm`

use super::source::Compiling;
use super::{Outcome, say};
use crate::static_view::{Flow, Nvdisasm, Sass};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows the machine code of a .cu or .cubin: instructions, the loops around them, their source lines
#[derive(Debug, Args)]
pub(super) struct Disasm {
    /// The source, or a cubin
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

impl Disasm {
    pub(super) fn run(self) -> Outcome {
        let (cubin, _) = self.compiling.cubin(&self.file)?;
        let kernels = chosen(Nvdisasm::find()?.kernels(&cubin)?, self.kernel.as_deref())?;
        if self.json {
            say(serde_json::to_string_pretty(&kernels)?);
        } else {
            kernels.iter().for_each(|k| say(listing(k)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One kernel, or all.
pub(super) fn chosen(kernels: Vec<Sass>, name: Option<&str>) -> Result<Vec<Sass>, String> {
    let Some(name) = name else { return Ok(kernels) };
    let names: Vec<String> = kernels.iter().map(|k| k.kernel.clone()).collect();
    let one: Vec<Sass> = kernels.into_iter().filter(|k| k.kernel == name).collect();
    if one.is_empty() { Err(format!("no kernel {name}; there are: {}", names.join(", "))) } else { Ok(one) }
}

/// Offset, source line, a bar for every loop around, instruction; the hottest loop's bar is double.
fn listing(sass: &Sass) -> String {
    let flow = Flow::of(sass);
    let hottest = flow.hottest();
    let mut text = format!("{} ({})\n", sass.kernel, sass.arch);
    for (i, instruction) in sass.instructions.iter().enumerate().filter(|(i, _)| flow.reachable[*i]) {
        let line = if instruction.line > 0 { instruction.line.to_string() } else { String::new() };
        let hot = hottest.is_some_and(|l| l.body.binary_search(&i).is_ok());
        let bars = if hot { "‖" } else { "|" }.repeat(flow.depth[i] as usize);
        let guard =
            if instruction.guard.is_empty() { String::new() } else { format!("@{}", instruction.guard) };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:>6x} {line:>6} {bars:<4} {guard:>5} {} {}",
            instruction.offset, instruction.opcode, instruction.operands
        );
    }
    text
}
