//! `dtk check`.

use super::DeviceArgs;
use crate::error::{Error, Result};
use crate::ops::{REGISTRY, check};
use clap::Args;
use std::time::Instant;

/// Run every operation against its f64 reference on this machine.
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
        self.device.check()?;
        let filter = self.filter.as_deref().unwrap_or("");
        let chosen: Vec<_> = REGISTRY.iter().filter(|e| e.name.contains(filter)).collect();
        if chosen.is_empty() {
            return Err(Error::usage(format!("no operation's name contains `{filter}`"))
                .with_remedy("leave the filter out to check all"));
        }
        println!(
            "{:22} {:>5}  {:>9}  {:>9}  {:>8}",
            "operation (cpu, f32)", "cases", "forward", "gradient", "time"
        );
        let mut failures = Vec::new();
        for entry in &chosen {
            let start = Instant::now();
            let (mut worst, mut cases) = (check::Deviation::default(), 0);
            for case in (entry.cases)().iter().filter(|c| !c.bench) {
                match check::check(case, 1) {
                    Ok(d) => {
                        worst.forward = worst.forward.max(d.forward);
                        worst.gradient = worst.gradient.max(d.gradient);
                    }
                    Err(e) => failures.push(e),
                }
                cases += 1;
            }
            println!(
                "{:22} {cases:5}  {:9.1e}  {:9.1e}  {:6} ms",
                entry.name,
                worst.forward,
                worst.gradient,
                start.elapsed().as_millis()
            );
        }
        println!("errors are relative to the largest reference value; gradients against central differences");
        if let Some(first) = failures.first() {
            return Err(Error::numeric(
                "check",
                format!("{} cases failed; the first: {first}", failures.len()),
            ));
        }
        println!("{} operations are right on this machine", chosen.len());
        Ok(())
    }
}
