//! Launches: what they are given, what their host threads share, what they leave.

use super::cx::Block;
use super::program::Kernel;
use super::schedule::work;
use super::special::Facts;
use crate::card::Card;
use crate::check::{Finding, Findings, Severity};
use crate::counters::{Counters, Tally};
use crate::mem::GlobalMemory;
use crate::mem::fence::Published;
use crate::mem::touched::{self, Touched};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Warp instructions of a launch unless its configuration says otherwise.
pub const DEFAULT_MAX_INSTRUCTIONS: u64 = 1_000_000_000_000;
/// Most shared memory of a block on any card.
const MAX_SHARED_BYTES: u32 = 256 * 1024;
/// Largest grid of any card.
const MAX_GRID: [u32; 3] = [0x7FFF_FFFF, 65535, 65535];
/// Largest block of any card, beside the limit of its threads.
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

/// What a launch is given besides the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// `gridDim`
    pub grid: [u32; 3],
    /// `blockDim`
    pub block: [u32; 3],
    /// Third launch parameter.
    pub dynamic_shared_bytes: u32,
    /// Blocks may wait for each other.
    pub cooperative: bool,
    /// Cluster shape; ones without clusters.
    pub cluster: [u32; 3],
    /// Host threads; 0 for all.
    pub host_threads: usize,
    /// Limit of warp instructions; 0 for the default.
    pub max_instructions: u64,
    /// Multiprocessors that `%nsmid` tells.
    pub multiprocessors: u32,
}

impl Default for LaunchConfig {
    fn default() -> LaunchConfig {
        LaunchConfig {
            grid: [1; 3],
            block: [1; 3],
            dynamic_shared_bytes: 0,
            cooperative: false,
            cluster: [1; 3],
            host_threads: 0,
            max_instructions: 0,
            multiprocessors: 132,
        }
    }
}

/// Why a launch did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A zero in the grid or block.
    #[error("{kernel}: grid {grid:?} and block {block:?} must not have a zero")]
    Empty {
        /// Kernel.
        kernel: String,
        /// Grid.
        grid: [u32; 3],
        /// Block.
        block: [u32; 3],
    },
    /// More threads than the kernel or any card takes.
    #[error("{kernel}: a block of {threads} threads; the kernel takes at most {limit}")]
    Threads {
        /// Kernel.
        kernel: String,
        /// Threads.
        threads: u64,
        /// Limit.
        limit: u32,
    },
    /// Not the block shape of `.reqntid`.
    #[error("{kernel}: block {block:?}, but the kernel was compiled for {required:?}")]
    Required {
        /// Kernel.
        kernel: String,
        /// Block.
        block: [u32; 3],
        /// Required.
        required: [u32; 3],
    },
    /// Too much shared memory.
    #[error("{kernel}: {bytes} bytes of shared memory; at most {limit}")]
    Shared {
        /// Kernel.
        kernel: String,
        /// Static and dynamic.
        bytes: u64,
        /// Limit.
        limit: u32,
    },
    /// Too few parameter bytes.
    #[error("{kernel}: {given} bytes of parameters; it takes {needed}")]
    Params {
        /// Kernel.
        kernel: String,
        /// Given.
        given: usize,
        /// Needed.
        needed: u32,
    },
    /// A shape that no card takes.
    #[error("{kernel}: grid {grid:?}, block {block:?}: the limits are {MAX_GRID:?} and {MAX_BLOCK:?}")]
    Shape {
        /// Kernel.
        kernel: String,
        /// Grid.
        grid: [u32; 3],
        /// Block.
        block: [u32; 3],
    },
    /// A grid that is no multiple of the cluster.
    #[error("{kernel}: grid {grid:?} is not a multiple of the cluster {cluster:?}")]
    Cluster {
        /// Kernel.
        kernel: String,
        /// Grid.
        grid: [u32; 3],
        /// Cluster.
        cluster: [u32; 3],
    },
}

/// What a launch left.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Kernel.
    pub kernel: String,
    /// `gridDim`
    pub grid: [u32; 3],
    /// `blockDim`
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub dynamic_shared_bytes: u32,
    /// Faults first, then by line.
    pub findings: Vec<Finding>,
    /// Counts.
    pub counters: Counters,
    /// Output of `printf`, block after block.
    pub printf: String,
    /// The memory it used. Addresses are no part of the printed report.
    #[serde(skip)]
    pub touched: Vec<Touched>,
    /// Number of the launch on its memory, for [`GlobalMemory::words_of`].
    #[serde(skip)]
    pub launch: u64,
}

impl Report {
    /// The fault that stopped the launch.
    pub fn faulted(&self) -> Option<&Finding> {
        self.findings.iter().find(|f| f.severity == Severity::Fault)
    }

    /// Nothing was found.
    pub fn clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// One object, its fields in the order of the structures.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_else(|e| serde_json::json!({ "error": e.to_string() }))
    }

    /// Works out the occupancy; see [`Counters::estimate_occupancy`].
    pub fn estimate_occupancy(&mut self, card: &Card, registers: Option<u32>) {
        self.counters.estimate_occupancy(card, registers, self.grid);
    }
}

/// What the host threads of a launch share.
pub struct LaunchState<'l> {
    /// Device memory.
    pub memory: &'l GlobalMemory,
    /// Kernel.
    pub kernel: &'l Kernel,
    /// Parameter block.
    pub params: Vec<u8>,
    /// For special registers; `block` is filled in block by block.
    pub facts: Facts,
    /// Number of the launch on this memory, for the race checker.
    pub epoch: u64,
    /// What blocks published by flags in global memory.
    pub published: Published,
    pub(super) stop: AtomicBool,
    pub(super) executed: AtomicU64,
    pub(super) limit: u64,
    pub(super) next: AtomicU64,
    pub(super) blocks: u64,
    pub(super) finished: AtomicU64,
    pub(super) parked: Mutex<VecDeque<Block>>,
    printf: Mutex<BTreeMap<u64, String>>,
}

impl LaunchState<'_> {
    /// Before the first block.
    pub(super) fn new<'l>(
        memory: &'l GlobalMemory,
        kernel: &'l Kernel,
        config: &LaunchConfig,
        params: &[u8],
    ) -> LaunchState<'l> {
        let blocks: u64 = config.grid.iter().map(|&n| u64::from(n)).product();
        let mut padded = params.to_vec();
        padded.resize(kernel.param_bytes.next_multiple_of(16) as usize + 16, 0);
        let epoch = memory.begin_launch();
        LaunchState {
            memory,
            kernel,
            params: padded,
            facts: Facts {
                block_dim: config.block,
                grid_dim: config.grid,
                block: [0; 3],
                cluster: config.cluster,
                shared_bytes: kernel.static_shared_bytes + config.dynamic_shared_bytes,
                dynamic_shared_bytes: config.dynamic_shared_bytes,
                multiprocessors: config.multiprocessors,
                grid_id: epoch,
            },
            epoch,
            published: Published::default(),
            stop: AtomicBool::new(false),
            executed: AtomicU64::new(0),
            limit: if config.max_instructions == 0 {
                DEFAULT_MAX_INSTRUCTIONS
            } else {
                config.max_instructions
            },
            next: AtomicU64::new(0),
            blocks,
            finished: AtomicU64::new(0),
            parked: Mutex::new(VecDeque::new()),
            printf: Mutex::new(BTreeMap::new()),
        }
    }

    /// Ends the launch as soon as possible.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Appends to the output of a block.
    pub fn print(&self, block: u64, text: &str) {
        let mut all = self.printf.lock().unwrap_or_else(|e| e.into_inner());
        all.entry(block).or_default().push_str(text);
    }

    pub(super) fn index(&self, linear: u64) -> [u32; 3] {
        let [x, y, _] = self.facts.grid_dim.map(u64::from);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
    }
}

/// Runs a kernel to its end. `params` is the parameter block as the kernel's `.param` list lays it out.
pub fn launch(
    memory: &GlobalMemory,
    kernel: &Kernel,
    config: &LaunchConfig,
    params: &[u8],
) -> Result<Report, LaunchError> {
    check(kernel, config, params)?;
    let state = LaunchState::new(memory, kernel, config, params);
    let blocks = state.blocks;
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let wanted = if config.host_threads == 0 { available } else { config.host_threads };
    let threads = (wanted as u64).min(blocks).max(1);
    let mut results: Vec<(Tally, Findings, Vec<Touched>)> = Vec::new();
    if threads == 1 {
        results.push(work(&state));
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&state))).collect();
            for handle in handles {
                match handle.join() {
                    Ok(result) => results.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    let mut tally = Tally::new(&kernel.code);
    let mut findings = Findings::default();
    let mut used = Vec::new();
    for (t, f, u) in results {
        tally.merge(&t);
        findings.merge(f);
        used.push(u);
    }
    let code = &kernel.code;
    let findings = findings.resolve(&kernel.name, |pc| {
        let o = &code.origins[pc as usize];
        (o.loc, kernel.file(o.loc.file).to_string(), o.ptx_line, o.text.clone())
    });
    let printf = state.printf.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().collect();
    Ok(Report {
        kernel: kernel.name.clone(),
        grid: config.grid,
        block: config.block,
        dynamic_shared_bytes: config.dynamic_shared_bytes,
        findings,
        counters: Counters::collect(kernel, config, &tally),
        printf,
        touched: touched::merge(used),
        launch: state.epoch,
    })
}

fn check(kernel: &Kernel, config: &LaunchConfig, params: &[u8]) -> Result<(), LaunchError> {
    let name = || kernel.name.clone();
    if config.grid.contains(&0) || config.block.contains(&0) {
        return Err(LaunchError::Empty { kernel: name(), grid: config.grid, block: config.block });
    }
    if (0..3).any(|a| config.grid[a] > MAX_GRID[a] || config.block[a] > MAX_BLOCK[a]) {
        return Err(LaunchError::Shape { kernel: name(), grid: config.grid, block: config.block });
    }
    let threads: u64 = config.block.iter().map(|&n| u64::from(n)).product();
    let limit = kernel.max_threads().min(1024);
    if threads > u64::from(limit) {
        return Err(LaunchError::Threads { kernel: name(), threads, limit });
    }
    if let Some(required) = kernel.reqntid
        && required != config.block
    {
        return Err(LaunchError::Required { kernel: name(), block: config.block, required });
    }
    let bytes = u64::from(kernel.static_shared_bytes) + u64::from(config.dynamic_shared_bytes);
    if bytes > u64::from(MAX_SHARED_BYTES) {
        return Err(LaunchError::Shared { kernel: name(), bytes, limit: MAX_SHARED_BYTES });
    }
    if params.len() < kernel.param_bytes as usize {
        return Err(LaunchError::Params { kernel: name(), given: params.len(), needed: kernel.param_bytes });
    }
    if config.cluster.contains(&0) || (0..3).any(|a| !config.grid[a].is_multiple_of(config.cluster[a])) {
        return Err(LaunchError::Cluster { kernel: name(), grid: config.grid, cluster: config.cluster });
    }
    Ok(())
}
