//! `ptxsim run`

use super::source::Compiling;
use super::spec::{FORMS, Init, Spec, What, contents};
use super::value::Type;
use super::{FOUND, Outcome, npy, say};
use crate::card::Card;
use crate::counters;
use crate::exec::launch::{LaunchConfig, Report, launch};
use crate::exec::program::{Kernel, Program};
use crate::mem::GlobalMemory;
use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs a kernel of a .cu or .ptx and checks it. Exit code 0: nothing found, 1: findings, 2: it could not be run
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The source, or PTX
    file: PathBuf,
    #[command(flatten)]
    compiling: Compiling,
    #[command(flatten)]
    launch: LaunchArgs,
    /// Prints a buffer after the launch: its name, or the argument's number from 0
    #[arg(long, value_name = "ARGUMENT")]
    print: Vec<String>,
    /// Elements of a buffer that are printed at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    limit: usize,
    /// Writes a buffer after the launch, as .npy or raw
    #[arg(long, value_name = "ARGUMENT=FILE")]
    out: Vec<String>,
    /// Source lines told with their counters
    #[arg(long, value_name = "N", default_value_t = 10)]
    lines: usize,
    /// Writes the report as JSON; - for stdout, with nothing else there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A launch as written on the command line.
#[derive(Clone, Debug, Args)]
pub struct LaunchArgs {
    /// The kernel; may be left out where there is only one
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// Blocks
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = extent, default_value = "1")]
    pub grid: [u32; 3],
    /// Threads of a block
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = extent)]
    pub block: [u32; 3],
    /// Dynamic shared memory
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub shared: u32,
    /// An argument of the kernel, in order. --help shows the forms
    #[arg(long = "arg", value_name = "SPEC", allow_hyphen_values = true, long_help = FORMS)]
    pub args: Vec<Spec>,
    /// Host threads; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Stops after so many warp instructions; 0 for the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_instructions: u64,
    /// A cooperative launch, whose blocks may wait for each other
    #[arg(long)]
    pub cooperative: bool,
    /// The card whose limits hold: sm_80, sm_90 or a JSON file [default: PTXSIM_CARD, or the program's target]
    #[arg(long, value_name = "CARD")]
    pub card: Option<String>,
    /// Device memory
    #[arg(long, value_name = "MIB", default_value_t = 16384)]
    pub memory: u64,
}

/// `x,y,z`
fn extent(text: &str) -> Result<[u32; 3], String> {
    let mut all = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("at most three numbers".into());
    }
    for (to, part) in all.iter_mut().zip(parts) {
        *to = part.trim().parse().map_err(|e| format!("{part}: {e}"))?;
    }
    Ok(all)
}

/// A buffer among the arguments.
struct Buffer {
    address: u64,
    bytes: usize,
    ty: Type,
    freed: bool,
}

/// A launch that was made.
pub struct Ran {
    /// What it left.
    pub report: Report,
    /// The card it was made on.
    pub card: Card,
    memory: GlobalMemory,
    /// One for each argument; `None` for values.
    buffers: Vec<Option<Buffer>>,
    names: Vec<Option<String>>,
}

impl LaunchArgs {
    /// Loads the program, makes the buffers and launches.
    pub fn launch(&self, ptx: &str) -> Result<Ran, Box<dyn Error>> {
        let memory = GlobalMemory::new(self.memory << 20);
        let program = Program::load(ptx, &memory)?;
        let kernel = self.kernel(&program)?;
        let names: Vec<Option<String>> = self.args.iter().map(|a| a.name.clone()).collect();
        let mut buffers = Vec::new();
        for spec in &self.args {
            buffers.push(place(spec, &memory).map_err(|e| format!("--arg {}: {e}", spec.text))?);
        }
        let mut values = Vec::new();
        for (spec, buffer) in self.args.iter().zip(&buffers) {
            values.push(match (&spec.what, buffer) {
                (What::Bytes(bytes), _) => bytes.clone(),
                (_, Some(buffer)) => buffer.address.to_le_bytes().to_vec(),
                (What::Pointer { to, offset }, None) => {
                    let at = find(to, &names, &buffers).map_err(|e| format!("--arg {}: {e}", spec.text))?;
                    (at.1.address + offset).to_le_bytes().to_vec()
                }
                (What::Buffer { .. }, None) => return Err("a buffer without an address".into()),
            });
        }
        let params = self.params(kernel, &values)?;
        let card = self.card(program.target())?;
        let shared = u64::from(kernel.static_shared_bytes()) + u64::from(self.shared);
        if shared > u64::from(card.shared_per_block_optin_bytes) {
            let limit = card.shared_per_block_optin_bytes;
            return Err(
                format!("a block takes {shared} B of shared memory; {} has {limit} B", card.name).into()
            );
        }
        for buffer in buffers.iter().flatten().filter(|b| b.freed) {
            memory.free(buffer.address)?;
        }
        let config = LaunchConfig {
            grid: self.grid,
            block: self.block,
            dynamic_shared_bytes: self.shared,
            cooperative: self.cooperative,
            host_threads: self.threads,
            max_instructions: self.max_instructions,
            multiprocessors: card.multiprocessors,
            ..LaunchConfig::default()
        };
        let report = launch(&memory, kernel, &config, &params)?;
        Ok(Ran { report, card, memory, buffers, names })
    }

    fn kernel<'p>(&self, program: &'p Program) -> Result<&'p Kernel, String> {
        let all: Vec<&Kernel> = program.kernels().collect();
        let names = || all.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
        match (&self.kernel, all.as_slice()) {
            (_, []) => Err("the program has no kernel".into()),
            (None, [one]) => Ok(one),
            (None, _) => Err(format!("--kernel has to name one of: {}", names())),
            (Some(name), _) => {
                program.kernel(name).ok_or_else(|| format!("no kernel {name}; there are: {}", names()))
            }
        }
    }

    /// The card that was asked for.
    fn card(&self, target: &str) -> Result<Card, String> {
        let set = std::env::var("PTXSIM_CARD").ok().filter(|s| !s.is_empty());
        match self.card.clone().or(set) {
            Some(setting) => Card::from_setting(&setting),
            None if target.starts_with("sm_8") => Ok(Card::sm80()),
            None => Ok(Card::sm90()),
        }
    }

    /// Lays the values out as the kernel's parameters, which they have to fit.
    fn params(&self, kernel: &Kernel, values: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        let sizes = || {
            let all: Vec<String> = kernel.params().iter().map(|p| p.bytes.to_string()).collect();
            format!("{} takes {} parameters, of {} bytes", kernel.name(), all.len(), all.join(", "))
        };
        if values.len() != kernel.params().len() {
            return Err(format!("{}; {} --arg are given", sizes(), values.len()));
        }
        let mut block = vec![0; kernel.param_bytes() as usize];
        for (i, (param, value)) in kernel.params().iter().zip(values).enumerate() {
            if value.len() != param.bytes as usize {
                let text = &self.args[i].text;
                return Err(format!("--arg {i} ({text}) has {} bytes; {}", value.len(), sizes()));
            }
            block[param.offset as usize..][..value.len()].copy_from_slice(value);
        }
        Ok(block)
    }
}

/// Makes the buffer of an argument that is one.
fn place(spec: &Spec, memory: &GlobalMemory) -> Result<Option<Buffer>, Box<dyn Error>> {
    let What::Buffer { ty, count, init } = &spec.what else { return Ok(None) };
    let (bytes, data) = contents(*ty, *count, init)?;
    let address = memory.alloc(bytes as u64)?;
    if let Some(data) = data {
        memory.write(address, &data)?;
    }
    Ok(Some(Buffer { address, bytes, ty: *ty, freed: *init == Init::Freed }))
}

/// The buffer of an argument, by name or number.
fn find<'b>(
    which: &str,
    names: &[Option<String>],
    buffers: &'b [Option<Buffer>],
) -> Result<(usize, &'b Buffer), String> {
    let index = names
        .iter()
        .position(|n| n.as_deref() == Some(which))
        .or_else(|| which.parse().ok().filter(|&i| i < buffers.len()))
        .ok_or_else(|| {
            format!("{which} is neither the name of an argument nor a number below {}", buffers.len())
        })?;
    let buffer = buffers[index].as_ref().ok_or_else(|| format!("argument {which} is no buffer"))?;
    Ok((index, buffer))
}

impl Ran {
    /// The bytes of a buffer after the launch, and the type of its elements.
    pub fn buffer(&self, which: &str) -> Result<(Type, Vec<u8>), Box<dyn Error>> {
        let (_, buffer) = find(which, &self.names, &self.buffers)?;
        if buffer.freed {
            return Err(format!("argument {which} is freed").into());
        }
        let mut bytes = vec![0; buffer.bytes];
        self.memory.read(buffer.address, &mut bytes)?;
        Ok((buffer.ty, bytes))
    }
}

impl Run {
    pub(super) fn run(self) -> Outcome {
        let (ptx, resources) = self.compiling.ptx(&self.file)?;
        let mut ran = self.launch.launch(&ptx)?;
        let registers = resources.iter().find(|r| r.kernel == ran.report.kernel).map(|r| r.registers);
        ran.report.counters.estimate_occupancy(&ran.card, registers, ran.report.grid);
        let silent = self.json.as_deref() == Some(Path::new("-"));
        if !silent {
            for which in &self.print {
                let (ty, bytes) = ran.buffer(which)?;
                say(table(which, ty, &bytes, self.limit));
            }
        }
        for out in &self.out {
            let (which, path) =
                out.split_once('=').ok_or_else(|| format!("--out {out}: not ARGUMENT=FILE"))?;
            let (ty, bytes) = ran.buffer(which)?;
            let bytes = if path.to_lowercase().ends_with(".npy") { npy::write(&bytes, ty) } else { bytes };
            std::fs::write(path, bytes).map_err(|e| format!("{path}: {e}"))?;
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&ran.report)?;
            if silent {
                say(text);
            } else {
                std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        if !silent {
            tell(&ran.report, self.lines);
        }
        Ok(if ran.report.clean() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

/// Printf output, findings, counters.
fn tell(report: &Report, lines: usize) {
    if !report.printf.is_empty() {
        say(report.printf.trim_end_matches('\n'));
    }
    report.findings.iter().for_each(say);
    let (g, b) = (report.grid, report.block);
    say(format_args!(
        "{} <<<({}, {}, {}), ({}, {}, {})>>>: {}",
        report.kernel,
        g[0],
        g[1],
        g[2],
        b[0],
        b[1],
        b[2],
        match report.findings.len() {
            0 => "nothing found".to_string(),
            1 => "1 finding".to_string(),
            n => format!("{n} findings"),
        }
    ));
    say(counters::details(report, lines).trim_end());
}

/// Elements, eight to a line.
fn table(which: &str, ty: Type, bytes: &[u8], limit: usize) -> String {
    let all: Vec<&[u8]> = bytes.chunks(ty.bytes()).collect();
    let mut text = format!("{which}: {ty}[{}]", all.len());
    for (i, line) in all[..all.len().min(limit)].chunks(8).enumerate() {
        let values: Vec<String> = line.iter().map(|v| format!("{:>12}", ty.show(v))).collect();
        text.push_str(&format!("\n{:>8} {}", i * 8, values.join(" ")));
    }
    if all.len() > limit {
        text.push_str(&format!("\n     ... {} more", all.len() - limit));
    }
    text
}
