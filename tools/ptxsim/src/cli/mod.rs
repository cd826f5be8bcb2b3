//! The `ptxsim` command: one module for each subcommand, and what they share.

mod compile;
mod conformance;
mod disasm;
mod driver;
mod npy;
mod profile;
mod run;
mod source;
mod spec;
mod value;

pub use run::{LaunchArgs, Ran};
pub use spec::{Init, Spec, What};
pub use value::Type;

use clap::{Parser, Subcommand};
use std::error::Error;
use std::process::ExitCode;

/// What a subcommand ends with: an exit code, or the reason it could do nothing, which is exit code 2.
type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Findings.
const FOUND: u8 = 1;
/// Wrong usage, a missing tool, a program that does not compile.
const USAGE: u8 = 2;

/// Runs CUDA kernels, as the PTX that NVRTC emits, on a machine without a GPU, and checks them while they run.
#[derive(Debug, Parser)]
#[command(name = "ptxsim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Compile),
    Run(run::Run),
    Disasm(disasm::Disasm),
    Profile(profile::Profiling),
    Conformance(conformance::Conformance),
    Driver(driver::Driver),
}

/// The command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Compile(c) => c.run(),
        Command::Run(c) => c.run(),
        Command::Disasm(c) => c.run(),
        Command::Profile(c) => c.run(),
        Command::Conformance(c) => c.run(),
        Command::Driver(c) => c.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ptxsim: {error}");
        ExitCode::from(USAGE)
    })
}

/// Writes a line to stdout. Whoever reads it may have had enough (`| head`): then there is nobody to tell.
fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
