//! `dtk check`.

use super::DeviceArgs;
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::{Case, Entry, REGISTRY, check};
use clap::Args;
use std::collections::BTreeSet;
use std::time::Instant;

/// Run every operation against its f64 reference on this machine; with --device cuda, every kernel.
#[derive(Args)]
pub struct Check {
    /// Only operations whose name contains this.
    filter: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Check {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let cuda = self.device.cuda()?;
        let filter = self.filter.as_deref().unwrap_or("");
        let chosen: Vec<&Entry> = REGISTRY.iter().filter(|e| e.name.contains(filter)).collect();
        if chosen.is_empty() {
            return Err(Error::usage(format!("no operation's name contains `{filter}`"))
                .with_remedy("leave the filter out to check all"));
        }
        match cuda {
            None => on_host(&chosen),
            Some(ordinal) => on_device(&DeviceArgs::open(ordinal)?, &chosen),
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

/// The kernels of some ops.
fn on_device(gpu: &Gpu, chosen: &[&Entry]) -> Result<()> {
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
    println!(
        "errors are relative to the largest reference value; every case ran twice and gave the same bits"
    );
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
        let (mut worst, mut count) = (check::Deviation::default(), 0);
        for case in cases {
            match check(case) {
                Ok(seen) => worst = worst.max(seen),
                Err(e) => self.failures.push(e),
            }
            count += 1;
        }
        println!(
            "{name:30} {count:5}  {:9.1e}  {:9.1e}  {:6} ms",
            worst.forward,
            worst.gradient,
            start.elapsed().as_millis()
        );
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
