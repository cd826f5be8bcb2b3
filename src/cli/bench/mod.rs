//! `dtk bench`: how fast, on this machine.

mod card;
mod cases;
mod format;
mod merge;
mod peaks;
mod report;
mod step;
mod time;
mod tune;

use super::{DeviceArgs, info};
use crate::base::DType;
use crate::cpu::threads;
use crate::error::{Error, Result};
use crate::gpu::{DeviceInfo, Gpu};
use crate::ops::implicit_gemm::table::TileTable;
use card::OnCard;
use cases::Problem;
use clap::Args;
use format::{Card, Machine, Pass, Program, Results, Row, Suite, spread};
pub(super) use peaks::{Bound, Peaks};
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;
use step::Step;

/// Time the operations on this machine.
#[derive(Args)]
pub struct Bench {
    /// The benchmark cases of all operations, the convolutions of the ADM-256 teacher, or a recipe's whole step.
    #[arg(value_enum, default_value = "ops")]
    suite: Suite,
    /// Only cases whose op or label contains this.
    filter: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Write the times to a file (docs/formats.md), after every case.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long to repeat every case. Default: 0.5 on a CPU, 0.05 on a card; of `step` 2 and 4.
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Numbers of images, for `conv` and `step`. Default for `conv`: 1 on a CPU, 8,64 on a card; for `step`: 2 and 64.
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    batch: Vec<usize>,
    /// The recipe of `step`: a TOML file or a built-in name. Default: benchmark on a CPU, imagenet on a card. The teacher's
    /// weights are random unless --set names others.
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<String>,
    /// Change one value of that recipe. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only list the cases.
    #[arg(long)]
    list: bool,
    /// Time every tile for the products of these cases on a card, and write the fastest into --tiles.
    #[arg(long, conflicts_with_all = ["list", "json"])]
    tune: bool,
    /// The table of tiles that --tune adds to. It takes effect with the next build, or by DTK_TILES.
    #[arg(long, value_name = "FILE", default_value = "kernels/tiles.json")]
    tiles: PathBuf,
    /// Merge these files of one run into the one that --json names.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "json", conflicts_with_all = ["list", "report"])]
    merge: Vec<PathBuf>,
    /// Write the report on the files in --results into --page.
    #[arg(long, conflicts_with_all = ["list", "json"])]
    report: bool,
    /// Where the report takes measurements from.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// The page the report is written into, between its markers.
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    page: PathBuf,
}

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        if self.report {
            let machines = report::update(&self.page, &self.results)?;
            let names = if machines.is_empty() { "no measurement yet".into() } else { machines.join(", ") };
            println!("{}: {names}", self.page.display());
            return Ok(());
        }
        if let ([first, rest @ ..], Some(json)) = (&*self.merge, &self.json) {
            let mut all = Results::read(first)?;
            rest.iter().try_for_each(|part| all.merge(Results::read(part)?))?;
            all.write(json)?;
            println!("{}: {} cases", json.display(), all.rows.len());
            return Ok(());
        }
        self.time()
    }

    fn time(&self) -> Result<()> {
        if self.suite != Suite::Step && (self.recipe.is_some() || !self.set.is_empty()) {
            return Err(Error::usage("only the step of a recipe depends on one")
                .with_key("--recipe")
                .with_remedy("write `dtk bench step`, or leave --recipe and --set out"));
        }
        if self.suite == Suite::Step && self.list {
            // By the plan, which needs no card.
            let device = self.device.cuda()?.and(self.device.planned()?);
            return self.list_steps(device);
        }
        let gpu = self.device.cuda()?.map(DeviceArgs::open).transpose()?;
        if self.tune && gpu.is_none() {
            return Err(Error::usage("tiles are those of a card's kernels")
                .with_key("--tune")
                .with_remedy("add --device cuda"));
        }
        if gpu.as_ref().is_some_and(|g| g.info().simulated) && !self.list {
            return Err(Error::device("a simulated device has no speed: nothing can be timed on it")
                .with_remedy("time on a card, or list the cases with --list"));
        }
        let seconds = self.seconds.unwrap_or(match (self.suite, &gpu) {
            (Suite::Step, None) => 2.0,
            (Suite::Step, Some(_)) => 4.0,
            (_, None) => 0.5,
            (_, Some(_)) => 0.05,
        });
        if !(0.0..=3600.0).contains(&seconds) {
            return Err(Error::usage(format!("{seconds} is no number of seconds up to an hour"))
                .with_key("--seconds"));
        }
        if self.batch.contains(&0) {
            return Err(Error::usage("a batch has at least one image").with_key("--batch"));
        }
        if self.suite == Suite::Step {
            return self.time_steps(gpu.as_ref(), seconds);
        }
        let batches = match (&*self.batch, &gpu) {
            ([], None) => vec![1],
            ([], Some(_)) => vec![8, 64],
            (given, _) => given.to_vec(),
        };
        // The CPU computes in f32; the teacher runs in bf16 on a card.
        let dtypes: &[DType] = match (&gpu, self.suite) {
            (None, _) => &[DType::F32],
            (Some(_), Suite::Conv) => &[DType::Bf16],
            (Some(_), Suite::Ops | Suite::Step) => &[DType::F32, DType::Bf16],
        };
        let mut problems = cases::problems(self.suite, self.filter.as_deref().unwrap_or(""), &batches)?;
        if gpu.is_some() {
            without_kernel(&mut problems)?;
        }
        if let Some(gpu) = gpu.as_ref().filter(|_| self.tune) {
            return self.tune(gpu, &problems, dtypes);
        }
        let mut results = results(machine(gpu.as_ref().map(Gpu::info)));
        let peaks = peaks(&results);
        println!("{}", head());
        for problem in &problems {
            for (pass, dtype) in passes(problem, dtypes) {
                let mut row = self.row(problem, pass, dtype)?;
                row.ms = match &gpu {
                    _ if self.list => Vec::new(),
                    None => time::on_cpu(problem, pass, seconds)?,
                    Some(gpu) => OnCard::new(gpu, problem, pass, dtype)?.times(seconds)?,
                };
                println!("{}", line(&row, peaks.as_ref()));
                results.rows.push(row);
            }
            if let Some(json) = &self.json {
                results.write(json)?;
            }
        }
        if !self.list {
            totals(&results.rows);
        }
        Ok(())
    }

    /// The steps of the recipe, one for each batch.
    fn steps(&self, device: Option<&DeviceInfo>) -> Result<Vec<Step>> {
        if self.tune {
            return Err(Error::usage("tiles are those of single products")
                .with_key("--tune")
                .with_remedy("tune `conv` or `ops`"));
        }
        if self.batch.contains(&0) {
            return Err(Error::usage("a batch has at least one image").with_key("--batch"));
        }
        let default = if device.is_some() { "imagenet" } else { "benchmark" };
        let name = self.recipe.as_deref().unwrap_or(default);
        let filter = self.filter.as_deref().unwrap_or("");
        let step = |batch| Step::new(name, &self.set, batch, device, filter);
        match &*self.batch {
            [] => Ok(vec![step(None)?]),
            given => given.iter().map(|n| step(Some(*n))).collect(),
        }
    }

    /// Lists the phases of steps on a device, which need not be there.
    fn list_steps(&self, device: Option<(DeviceInfo, bool)>) -> Result<()> {
        let device = device.map(|(info, there)| DeviceInfo {
            name: if there { info.name } else { format!("{} (not here)", info.name) },
            simulated: info.simulated || !there,
            ..info
        });
        let mut results = results(machine(device.as_ref()));
        let steps = self.steps(device.as_ref())?;
        println!("{}", head());
        results.rows = steps.into_iter().flat_map(Step::rows).collect();
        results.rows.iter().for_each(|row| println!("{}", line(row, None)));
        self.json.iter().try_for_each(|json| results.write(json))
    }

    fn time_steps(&self, gpu: Option<&Gpu>, seconds: f64) -> Result<()> {
        let steps = self.steps(gpu.map(Gpu::info))?;
        let mut results = results(machine(gpu.map(Gpu::info)));
        let peaks = peaks(&results);
        println!("{}", head());
        let mut done = |row: Row| {
            println!("{}", line(&row, peaks.as_ref()));
            results.rows.push(row);
            self.json.iter().try_for_each(|json| results.write(json))
        };
        for step in steps {
            match gpu {
                Some(gpu) => step.on_card(gpu, seconds, &mut done)?,
                None => step.on_cpu(seconds)?.into_iter().try_for_each(&mut done)?,
            }
        }
        Ok(())
    }

    /// Finds the fastest tile of every product in these cases, saving the table after every case.
    fn tune(&self, gpu: &Gpu, problems: &[Problem], dtypes: &[DType]) -> Result<()> {
        let mut table = if self.tiles.exists() { TileTable::load(&self.tiles)? } else { TileTable::new() };
        let mut done = HashSet::new();
        let seconds = self.seconds.unwrap_or(0.01);
        for problem in problems {
            for (pass, dtype) in passes(problem, dtypes) {
                for found in tune::tune(gpu, problem, pass, dtype, seconds, &mut done, &mut table)? {
                    println!("{:44} {}", problem.case.label, found.line());
                }
            }
            table.save(&self.tiles)?;
        }
        println!("{}: {} products tried", self.tiles.display(), done.len());
        Ok(())
    }

    fn row(&self, problem: &Problem, pass: Pass, dtype: DType) -> Result<Row> {
        let (flops, bytes) = time::cost(problem, pass, dtype)?;
        Ok(Row {
            suite: self.suite,
            op: problem.case.op.name().into(),
            case: problem.case.label.clone(),
            pass,
            dtype: dtype.to_string(),
            convolution: problem.convolution.map(|c| c.0),
            count: problem.convolution.map(|c| c.1),
            images: None,
            launches: None,
            flops,
            bytes,
            ms: Vec::new(),
        })
    }
}

/// The passes of a case and the element types to time.
fn passes(problem: &Problem, dtypes: &[DType]) -> impl Iterator<Item = (Pass, DType)> {
    let backward = problem.case.inputs.iter().any(|i| i.grad);
    let passes = [Pass::Forward, Pass::Backward].into_iter().take(1 + usize::from(backward));
    passes.flat_map(move |p| dtypes.iter().map(move |d| (p, *d)))
}

/// Takes out, and names, what no kernel computes.
fn without_kernel(problems: &mut Vec<Problem>) -> Result<()> {
    let missing: BTreeSet<&str> =
        problems.iter().filter(|p| !p.case.op.has_kernel()).map(|p| p.case.op.name()).collect();
    let missing: Vec<&str> = missing.into_iter().collect();
    problems.retain(|p| p.case.op.has_kernel());
    if problems.is_empty() {
        return Err(Error::device(format!("no CUDA kernel yet: {}", missing.join(", ")))
            .with_remedy("use --device cpu, or leave --device out"));
    }
    if !missing.is_empty() {
        println!("no kernel yet: {}", missing.join(", "));
    }
    Ok(())
}

/// Results without a time yet.
fn results(machine: Machine) -> Results {
    Results {
        date: Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
        dtk: Some(Program { version: env!("CARGO_PKG_VERSION").into(), commit: commit() }),
        machine: Some(machine),
        ..Results::default()
    }
}

/// The limits of the card that was measured.
fn peaks(results: &Results) -> Option<Peaks> {
    let machine = results.machine.as_ref()?;
    machine.card.as_ref().map(|c| Peaks::of(&machine.name, c))
}

/// What is measured on: a card, or the processor.
fn machine(device: Option<&DeviceInfo>) -> Machine {
    let Some(info) = device else {
        let threads = Some(threads());
        return Machine {
            device: "cpu".into(),
            name: info::processor(),
            simulated: false,
            threads,
            card: None,
        };
    };
    let card = Card::of(info);
    let (name, simulated) = (info.name.clone(), info.simulated);
    Machine { device: "cuda".into(), name, simulated, threads: None, card: Some(card) }
}

const COLUMNS: &str = "   median (lowest .. highest, n) ms     GFLOP/s      GB/s  roofline";

/// What stands above the rows.
fn head() -> String {
    format!("{:14} {:44} {:8} {:5} {COLUMNS}", "operation", "case", "pass", "type")
}

/// A row for people.
fn line(row: &Row, peaks: Option<&Peaks>) -> String {
    let head = format!("{:14} {:44} {:8} {:5}", row.op, row.case, row.pass.name(), row.dtype);
    let Some([low, ms, high]) = spread(&row.ms) else {
        let times = match (row.count, row.launches) {
            (Some(n), _) => format!(", {n} times"),
            (None, Some(n)) => format!(", {n} launches"),
            (None, None) => String::new(),
        };
        return format!(
            "{head} {:.3} GFLOP, {:.3} MB{times}",
            row.flops as f64 / 1e9,
            row.bytes as f64 / 1e6
        );
    };
    let (gflops, gbs) = (row.flops as f64 / ms / 1e6, row.bytes as f64 / ms / 1e6);
    let roofline = peaks.and_then(|p| p.floor(&row.dtype, row.flops, row.bytes)).map_or(String::new(), |f| {
        let bound = if f.bound == Bound::Compute { "arithmetic" } else { "bytes" };
        format!("  {:3.0} % of {bound}", 100.0 * f.ms / ms)
    });
    let images = row.images.map_or(String::new(), |n| format!("  {:.1} images/s", n as f64 / ms * 1e3));
    let n = row.ms.len();
    format!("{head} {ms:9.4} ({low:9.4} .. {high:9.4}, {n:2})  {gflops:10.1}  {gbs:8.1}{roofline}{images}")
}

/// The time of all the teacher's convolutions, for every batch.
fn totals(rows: &[Row]) {
    let counted = || rows.iter().filter_map(|r| Some((r.convolution?, r.count?, spread(&r.ms)?[1], r)));
    let mut batches: Vec<usize> = counted().map(|(g, ..)| g.n).collect();
    batches.sort_unstable();
    batches.dedup();
    for n in batches {
        let of = || counted().filter(|(g, ..)| g.n == n);
        let ms: f64 = of().map(|(_, count, ms, _)| count as f64 * ms).sum();
        let flops: f64 = of().map(|(_, count, _, r)| count as f64 * r.flops as f64).sum();
        let (kinds, calls) = (of().count(), of().map(|(_, count, ..)| count).sum::<usize>());
        println!(
            "{n} images: {calls} convolutions of {kinds} kinds, {ms:.1} ms in all, {:.1} GFLOP/s",
            flops / ms / 1e6
        );
    }
}

/// The commit: `DTK_COMMIT`, else what git says about the current folder; empty if nobody knows.
fn commit() -> String {
    if let Ok(commit) = std::env::var("DTK_COMMIT") {
        return commit;
    }
    let git = |args: &[&str]| {
        let done = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&done.stdout).trim().to_string())
    };
    let Some(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| s.is_empty());
    if clean { hash } else { format!("{hash}-dirty") }
}
