//! `dtk check`.

mod teacher;

use super::{DeviceArgs, RecipeArgs};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::untaped::{self, UNTAPED};
use crate::ops::{Case, Entry, REGISTRY, check};
use clap::Args;
use std::collections::BTreeSet;
use std::time::Instant;

/// Run every operation against its f64 reference on this machine; with --device cuda, every kernel. With --teacher, a
/// teacher's features against those of the CPU in f32.
#[derive(Args)]
pub struct Check {
    /// Only operations whose name contains this.
    filter: Option<String>,
    /// Compare the feature maps of the recipe's teacher instead, in f32 and bf16 on a device and in bf16 on the CPU. The
    /// checkpoint is the recipe's if none is named.
    #[arg(long, value_name = "FILE|random", num_args = 0..=1, conflicts_with = "filter")]
    teacher: Option<Option<String>>,
    /// The recipe of the teacher and its images: a TOML file or a built-in name.
    #[arg(long, default_value = "quickstart", value_name = "FILE|NAME", requires = "teacher")]
    recipe: String,
    /// Change one value of the recipe. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "teacher")]
    set: Vec<String>,
    /// How many images the teacher looks at.
    #[arg(long, default_value_t = 1, value_name = "N", requires = "teacher")]
    images: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Check {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        if let Some(weights) = &self.teacher {
            let args = RecipeArgs {
                recipe: self.recipe.clone(),
                set: self.set.clone(),
                data: None,
                teacher: weights.clone(),
                device: self.device.clone(),
            };
            return teacher::run(&args.recipe()?, self.images, &self.device);
        }
        let cuda = self.device.cuda()?;
        let filter = self.filter.as_deref().unwrap_or("");
        let chosen: Vec<&Entry> = REGISTRY.iter().filter(|e| e.name.contains(filter)).collect();
        // These have nothing to be checked on the CPU.
        let untaped: Vec<&untaped::Entry> =
            UNTAPED.iter().filter(|e| cuda.is_some() && e.name.contains(filter)).collect();
        if chosen.is_empty() && untaped.is_empty() {
            return Err(Error::usage(format!("no operation's name contains `{filter}`"))
                .with_remedy("leave the filter out to check all"));
        }
        match cuda {
            None => on_host(&chosen),
            Some(ordinal) => on_device(&DeviceArgs::open(ordinal)?, &chosen, &untaped),
        }
    }
}

/// The CPU's code of some ops.
fn on_host(chosen: &[&Entry]) -> Result<()> {
    let mut table = Table::new("operation (cpu, f32)");
    for entry in chosen {
        let cases = (entry.cases)();
        let small = cases.iter().filter(|c| !c.bench);
        table.row(entry.name, small, |case| check::check(case, 1));
    }
    println!("errors are relative to the largest reference value; gradients against central differences");
    table.end()?;
    println!("{} operations are right on this machine", chosen.len());
    Ok(())
}

/// The kernels of some ops, and of some operations without a tape.
fn on_device(gpu: &Gpu, chosen: &[&Entry], untaped: &[&untaped::Entry]) -> Result<()> {
    gpu.record_launches();
    let (mut kernels, mut without) = (BTreeSet::new(), Vec::new());
    let mut table = Table::new(&format!("operation ({gpu:?})"));
    for entry in chosen {
        let cases = (entry.cases)();
        if !cases.iter().any(|c| c.op.has_kernel()) {
            without.push(entry.name);
            continue;
        }
        for dtype in [DType::F32, DType::Bf16] {
            let small = cases.iter().filter(|c| !c.bench && c.op.has_kernel());
            table.row(&format!("{} {dtype}", entry.name), small, |case| {
                let seen = check::check_on(gpu, case, dtype, 1);
                kernels.extend(gpu.take_launches().into_iter().map(|l| l.kernel));
                // Reports are of no use here, and long: findings have failed their launch.
                gpu.report_clear();
                seen
            });
        }
    }
    for entry in untaped {
        table.untaped(entry.name, || {
            let seen = (entry.check)(gpu);
            kernels.extend(gpu.take_launches().into_iter().map(|l| l.kernel));
            gpu.report_clear();
            seen
        });
    }
    let twice = if table.failures.is_empty() { "; every case ran twice and gave the same bits" } else { "" };
    println!("errors are relative to the largest reference value{twice}");
    if !without.is_empty() {
        println!("no kernel yet: {}", without.join(", "));
    }
    let (simulated, card) = if gpu.info().simulated { (kernels.len(), 0) } else { (0, kernels.len()) };
    println!("{simulated} kernels simulated, {card} on a card");
    table.end()?;
    if kernels.is_empty() {
        return Err(Error::usage("none of these operations has a kernel")
            .with_remedy("leave the filter out, or use --device cpu"));
    }
    Ok(())
}

/// Rows as they come, and what failed in them.
struct Table {
    failures: Vec<Error>,
}

impl Table {
    fn new(title: &str) -> Table {
        println!("{title:30} {:>5}  {:>9}  {:>9}  {:>9}", "cases", "forward", "gradient", "time");
        Table { failures: Vec::new() }
    }

    fn row<'c>(
        &mut self,
        name: &str,
        cases: impl Iterator<Item = &'c Case>,
        mut check: impl FnMut(&Case) -> Result<check::Deviation>,
    ) {
        let start = Instant::now();
        let (mut worst, mut count, before) = (check::Deviation::default(), 0, self.failures.len());
        for case in cases {
            match check(case) {
                Ok(seen) => worst = worst.max(seen),
                Err(e) => self.failures.push(e),
            }
            count += 1;
        }
        let failed = self.failures.len() - before;
        println!("{}", line(name, count, failed, worst, start.elapsed().as_millis()));
    }

    /// The check of an operation without a tape, which has no gradient.
    fn untaped(&mut self, name: &str, check: impl FnOnce() -> Result<f64>) {
        let start = Instant::now();
        let worst = check().unwrap_or_else(|e| {
            self.failures.push(e);
            f64::NAN
        });
        let (none, time) = ("", start.elapsed().as_millis());
        println!("{name:30} {none:5}  {worst:9.1e}  {none:9}  {time:6} ms");
    }

    fn end(self) -> Result<()> {
        match self.failures.first() {
            None => Ok(()),
            Some(first) => {
                let count = self.failures.len();
                Err(Error::numeric("check", format!("{count} cases failed; the first: {first}")))
            }
        }
    }
}

/// A row: deviations are those of the cases that passed.
fn line(name: &str, count: usize, failed: usize, worst: check::Deviation, ms: u128) -> String {
    let number = |v: f64| if failed < count { format!("{v:.1e}") } else { "-".into() };
    let (forward, gradient) = (number(worst.forward), number(worst.gradient));
    let note = if failed > 0 { format!("  {failed} FAILED") } else { String::new() };
    format!("{name:30} {count:5}  {forward:>9}  {gradient:>9}  {ms:6} ms{note}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_what_failed() {
        let seen = check::Deviation { forward: 2e-7, gradient: 0.0 };
        let row = |failed| line("relu f32", 3, failed, seen, 5);
        assert!(row(0).contains("2.0e-7") && row(0).ends_with("5 ms"), "{}", row(0));
        assert!(row(1).contains("2.0e-7") && row(1).ends_with("5 ms  1 FAILED"), "{}", row(1));
        assert!(!row(3).contains("e-7") && row(3).ends_with("3 FAILED"), "{}", row(3));
    }
}
