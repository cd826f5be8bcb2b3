//! `dtk info`.

use super::bytes;
use crate::cpu::threads;
use crate::error::{Error, Result};
use crate::gpu::{self, Status};
use clap::Args;

/// Say what this machine offers.
#[derive(Args)]
pub struct Info {}

impl Info {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        println!("dtk        {}", env!("CARGO_PKG_VERSION"));
        println!("system     {} {}", std::env::consts::OS, std::env::consts::ARCH);
        println!("processor  {}", processor());
        println!("threads    {} (RAYON_NUM_THREADS changes it)", threads());
        let memory = |key| from_proc("/proc/meminfo", key).unwrap_or_else(|| "unknown".into());
        println!("memory     {} in all, {} available", memory("MemTotal"), memory("MemAvailable"));
        println!("SIMD       {}", simd().join(", "));
        println!("products   crate gemm, f32, picks the widest of these at run time");
        cuda(&gpu::status());
        Ok(())
    }
}

/// What there is of CUDA, a line each, and what to do about what is missing.
fn cuda(status: &Status) {
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    match &status.driver {
        Err(e) => missing("driver", e),
        Ok(driver) => {
            let path = driver.path.as_ref().map_or("unknown file".into(), |p| p.display().to_string());
            println!("driver     for CUDA {}, {path}", version(driver.version));
            if let Some(v) = &driver.simulator {
                println!("           SIMULATED by ptxsim {v}: there is no card, and no time means anything");
            }
            if let Some(e) = &driver.problem {
                missing("devices", e);
            }
        }
    }
    for (info, arch) in &status.devices {
        let (major, minor) = info.compute_capability;
        println!(
            "cuda:{:<5} {}, compute capability {major}.{minor}, {} multiprocessors, {}, {} of shared memory a block",
            info.ordinal,
            info.name,
            info.multiprocessors,
            bytes(info.total_memory_bytes as usize),
            bytes(info.shared_per_block_optin_bytes as usize)
        );
        match arch {
            Ok(arch) => println!("           kernels are compiled for {arch}"),
            Err(e) => missing("", e),
        }
    }
    match &status.nvrtc {
        Err(e) => missing("NVRTC", e),
        Ok(nvrtc) => {
            println!("NVRTC      {}, {}", version(nvrtc.version), nvrtc.path.display());
            if let Some(e) = &nvrtc.problem {
                missing("", e);
            }
        }
    }
    let cache = &status.cache;
    let dir = cache.dir.as_ref().map_or("no folder".into(), |d| d.display().to_string());
    println!("kernels    {dir}: {} compiled, {}", cache.entries, bytes(cache.bytes as usize));
    if let Some(why) = &cache.problem {
        println!("           cannot be written, so every process compiles anew: {why}");
        println!("  -> let DTK_CACHE_DIR name a folder that can be written");
    }
    let simulated = status.driver.as_ref().is_ok_and(|d| d.simulator.is_some());
    let ready = match status.is_ready() {
        true if simulated => "ready, SIMULATED",
        true => "ready",
        false => "not usable, see above; everything runs on the CPU",
    };
    println!("CUDA       {ready}");
}

/// Something that is not there, with its remedy.
fn missing(what: &str, why: &Error) {
    println!("{what:10} {why}");
}

/// The processor's name.
pub(super) fn processor() -> String {
    from_proc("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())
}

/// The value of the first `key : value` line of a file of the proc file system.
fn from_proc(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The vector extensions that matter here, as the system lists them.
fn simd() -> Vec<&'static str> {
    const KNOWN: [&str; 9] =
        ["avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd"];
    let flags = from_proc("/proc/cpuinfo", "flags").or_else(|| from_proc("/proc/cpuinfo", "Features"));
    let Some(flags) = flags else { return vec!["unknown"] };
    KNOWN.into_iter().filter(|f| flags.split(' ').any(|x| x == *f)).collect()
}
