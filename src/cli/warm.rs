//! `dtk warm`.

use crate::error::{Error, Result};
use crate::gpu::{self, Arch, KernelCache, Origin, Source};
use crate::ops::kernel_variants;
use clap::Args;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compile all kernels now, so that no run waits for the compiler.
#[derive(Args)]
pub struct Warm {
    /// Architectures to compile for, such as sm_90a,sm_80; those of this machine's devices if left out. With it no GPU is needed.
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    arch: Vec<String>,
    /// How many to compile at the same time; one for each thread of the machine if left out.
    #[arg(long, value_name = "N")]
    jobs: Option<std::num::NonZeroUsize>,
}

impl Warm {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let archs = self.archs()?;
        // Several kernels of one source and defines are one compilation.
        let wanted: BTreeSet<_> = kernel_variants().into_iter().map(|v| (v.source, v.defines)).collect();
        let mut units = Vec::new();
        for (source, defines) in &wanted {
            let source = Source::named(source)?;
            units.extend(archs.iter().map(|&arch| gpu::Unit { source, defines: defines.clone(), arch }));
        }
        if units.is_empty() {
            println!("no operation has a kernel yet: there is nothing to compile");
            return Ok(());
        }
        let cache = KernelCache::at(None);
        let jobs = self.jobs.map_or_else(crate::cpu::threads, Into::into);
        let (done, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        gpu::warm(&cache, &units, jobs, |i, result, time| {
            let n = done.fetch_add(1, Ordering::Relaxed) + 1;
            let unit = &units[i];
            let what = match &result {
                Ok(Origin::Cached) => "in the cache".to_string(),
                Ok(Origin::Compiled) => format!("{:.2} s", time.as_secs_f64()),
                Ok(Origin::Replaced(why)) => format!("{:.2} s (a damaged file: {why})", time.as_secs_f64()),
                Err(_) => "FAILED".to_string(),
            };
            println!("{n:4}/{} {} {} {what}  {}", units.len(), unit.source.name(), unit.arch, unit.defines);
            if let Err(e) = result {
                failed.lock().unwrap_or_else(|e| e.into_inner()).push((i, e));
            }
        });
        let mut failed = failed.into_inner().unwrap_or_else(|e| e.into_inner());
        let report = cache.report();
        if let Some(why) = report.problem {
            println!("nothing was kept: {why}; let DTK_CACHE_DIR name a folder that can be written");
        }
        println!("{} compiled, {} were in the cache", report.compiled, report.cached);
        if failed.is_empty() {
            return Ok(());
        }
        failed.sort_by_key(|(i, _)| *i);
        let n = failed.len();
        let (_, first) = failed.swap_remove(0);
        Err(if n == 1 {
            first
        } else {
            Error::device(format!("{n} kernels do not compile; the first: {first}"))
        })
    }

    fn archs(&self) -> Result<BTreeSet<Arch>> {
        if !self.arch.is_empty() {
            return self.arch.iter().map(|a| a.trim().parse()).collect();
        }
        let status = gpu::status();
        let found: BTreeSet<Arch> =
            status.devices.iter().filter_map(|(_, arch)| arch.as_ref().ok().copied()).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let why = match status.driver {
            Err(e) => e.to_string(),
            Ok(driver) => driver.problem.map_or("no device can be used".to_string(), |e| e.to_string()),
        };
        Err(Error::device(format!("there is no device to compile for: {why}"))
            .with_remedy("name the architectures: --arch sm_90a,sm_80"))
    }
}
