//! `dtk info`.

use crate::cpu::threads;
use crate::error::Result;
use clap::Args;

/// Say what this machine offers.
#[derive(Args)]
pub struct Info {}

impl Info {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        println!("dtk        {}", env!("CARGO_PKG_VERSION"));
        println!("system     {} {}", std::env::consts::OS, std::env::consts::ARCH);
        println!(
            "processor  {}",
            from_proc("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())
        );
        println!("threads    {} (RAYON_NUM_THREADS changes it)", threads());
        let memory = |key| from_proc("/proc/meminfo", key).unwrap_or_else(|| "unknown".into());
        println!("memory     {} in all, {} available", memory("MemTotal"), memory("MemAvailable"));
        println!("SIMD       {}", simd().join(", "));
        println!("products   crate gemm, f32, picks the widest of these at run time");
        println!("CUDA       not used: this version computes on the CPU only");
        Ok(())
    }
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
