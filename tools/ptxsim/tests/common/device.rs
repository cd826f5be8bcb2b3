//! Buffers, parameters and launches on the simulator.
#![allow(dead_code, reason = "each test file uses a part")]

use half::bf16;
use ptxsim::exec::launch::{LaunchConfig, Report, launch};
use ptxsim::exec::program::Program;
use ptxsim::mem::GlobalMemory;
use ptxsim::nvrtc::Options;

/// The targets that every kernel is tested on.
pub const ARCHS: [&str; 2] = ["compute_80", "compute_90a"];

/// PTX of a kernel file for each of the targets; empty where NVRTC is missing.
pub fn compiled<'a>(file: &str, archs: &[&'a str], defines: &[&str]) -> Vec<(&'a str, String)> {
    let Some(nvrtc) = super::nvrtc() else { return Vec::new() };
    let source = super::kernel_source(file);
    let compile = |arch: &'a str| {
        let mut options = Options::new(arch);
        options.defines = defines.iter().map(|d| d.to_string()).collect();
        (arch, nvrtc.compile(&source, file, &options).unwrap_or_else(|e| panic!("{e}")).ptx)
    };
    archs.iter().copied().map(compile).collect()
}

/// An element of a buffer.
pub trait Value: Copy {
    /// Size.
    const BYTES: usize;
    /// Little endian.
    fn put(self, to: &mut Vec<u8>);
    /// Little endian.
    fn get(from: &[u8]) -> Self;
}

macro_rules! value {
    ($($t:ty),*) => {$(
        impl Value for $t {
            const BYTES: usize = size_of::<$t>();
            fn put(self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }
            fn get(from: &[u8]) -> Self {
                Self::from_le_bytes(from.try_into().unwrap())
            }
        }
    )*};
}
value!(f32, i32, u32, u64, bf16);

/// A parameter block under construction.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<u8>);

impl Params {
    /// Appends a value at its alignment.
    pub fn with(mut self, value: impl Value) -> Params {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend(bytes);
        self
    }

    /// The block so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Memory with one program in it.
pub struct Device {
    memory: GlobalMemory,
    program: Program,
}

impl Device {
    /// Loads PTX.
    pub fn new(ptx: &str) -> Device {
        let memory = GlobalMemory::new(1 << 30);
        let program = Program::load(ptx, &memory).unwrap_or_else(|e| panic!("{e}"));
        Device { memory, program }
    }

    /// A buffer with that in it.
    pub fn upload<T: Value>(&self, values: &[T]) -> u64 {
        let mut bytes = Vec::with_capacity(values.len() * T::BYTES);
        values.iter().for_each(|v| v.put(&mut bytes));
        let at = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    /// A buffer that nobody has written.
    pub fn uninitialised<T: Value>(&self, count: usize) -> u64 {
        self.memory.alloc((count * T::BYTES) as u64).unwrap()
    }

    /// What a buffer holds.
    pub fn download<T: Value>(&self, at: u64, count: usize) -> Vec<T> {
        let mut bytes = vec![0; count * T::BYTES];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks(T::BYTES).map(T::get).collect()
    }

    /// Launches.
    pub fn run(&self, kernel: &str, grid: [u32; 3], threads: u32, shared: u32, params: &Params) -> Report {
        let kernel = self.program.kernel(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
        let config = LaunchConfig {
            grid,
            block: [threads, 1, 1],
            dynamic_shared_bytes: shared,
            ..LaunchConfig::default()
        };
        launch(&self.memory, kernel, &config, &params.0).unwrap()
    }

    /// Launches; there has to be nothing to find.
    #[track_caller]
    pub fn run_clean(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: &Params,
    ) -> Report {
        let report = self.run(kernel, grid, threads, shared, params);
        let all: Vec<String> = report.findings.iter().map(|f| f.to_string()).collect();
        assert!(report.clean(), "{}", all.join("\n"));
        report
    }
}

/// Numbers in [-1, 1), the same in every run.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// They are near the reference: each within its tolerance.
#[track_caller]
pub fn assert_near(what: &str, got: &[f32], wanted: impl Iterator<Item = (f64, f64)>) {
    let mut count = 0;
    for (i, (wanted, tolerance)) in wanted.enumerate() {
        let error = (f64::from(got[i]) - wanted).abs();
        // A NaN is not near anything.
        assert!(error <= tolerance, "{what}: element {i} is {}, not {wanted} (+- {tolerance:.2e})", got[i]);
        count += 1;
    }
    assert!(count > 0, "{what}: nothing was compared");
    assert_eq!(count, got.len(), "{what}");
}
