//! What runs a case.

use super::case::Case;
use crate::exec::launch::{LaunchConfig, launch};
use crate::exec::program::Program;
use crate::mem::GlobalMemory;

/// Runs cases and gives their output.
pub trait Backend {
    /// The output buffer after the launch, or why there is none.
    fn run(&self, case: &Case) -> Result<Vec<u8>, String>;
}

/// This crate's interpreter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulator;

/// Device memory for a case.
const MEMORY: u64 = 1 << 28;
/// A case that runs longer than this many warp instructions has gone astray.
const LIMIT: u64 = 10_000_000;

impl Backend for Simulator {
    fn run(&self, case: &Case) -> Result<Vec<u8>, String> {
        let memory = GlobalMemory::new(MEMORY);
        let program = Program::load(&case.ptx, &memory).map_err(|e| e.to_string())?;
        let kernel = program.kernel("k").ok_or("the module has no kernel k")?;
        let mut params = Vec::new();
        let mut place = |contents: &[u8]| -> Result<u64, String> {
            let address = memory.alloc(contents.len() as u64).map_err(|e| e.to_string())?;
            memory.write(address, contents).map_err(|e| e.to_string())?;
            params.extend_from_slice(&address.to_le_bytes());
            Ok(address)
        };
        for input in &case.inputs {
            place(input)?;
        }
        let output = place(&case.before)?;
        let config = LaunchConfig {
            grid: [case.grid, 1, 1],
            block: [case.block, 1, 1],
            dynamic_shared_bytes: case.dynamic_shared,
            host_threads: 1,
            max_instructions: LIMIT,
            ..LaunchConfig::default()
        };
        let report = launch(&memory, kernel, &config, &params).map_err(|e| e.to_string())?;
        // The kernels of the suite are correct: whatever the checker says about one is a false alarm.
        if let Some(finding) = report.findings.first() {
            return Err(finding.to_string());
        }
        let mut bytes = vec![0; case.before.len()];
        memory.read(output, &mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}

/// Runs a case and compares: `None` if it passes.
pub fn check(backend: &dyn Backend, case: &Case) -> Option<String> {
    match backend.run(case) {
        Err(reason) => Some(reason),
        Ok(output) => case.compare(&output).map(|d| d.to_string()),
    }
}
