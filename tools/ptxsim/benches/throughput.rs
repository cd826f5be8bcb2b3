//! How fast kernels are interpreted on one host thread, with all checks: warp instructions per second, and
//! multiplications with addition per second where a kernel is about those.
//!
//! The kernels in PTX are here; those in CUDA C are those of the tests and are left out where NVRTC is not found.

#[path = "../tests/common/mod.rs"]
mod common;

use common::device::{Params, compiled, random};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use ptxsim::exec::launch::{LaunchConfig, Report, launch};
use ptxsim::exec::program::Program;
use ptxsim::mem::GlobalMemory;
use std::time::{Duration, Instant};

/// A loaded kernel with its arguments.
struct Case {
    name: &'static str,
    memory: GlobalMemory,
    program: Program,
    config: LaunchConfig,
    params: Params,
    /// Multiplications with addition of one launch; 0 where nobody counts them.
    macs: f64,
}

impl Case {
    fn new(name: &'static str, ptx: &str, grid: [u32; 3], threads: u32) -> Case {
        let memory = GlobalMemory::new(1 << 30);
        let program = Program::load(ptx, &memory).unwrap_or_else(|e| panic!("{name}: {e}"));
        let config =
            LaunchConfig { grid, block: [threads, 1, 1], host_threads: 1, ..LaunchConfig::default() };
        Case { name, memory, program, config, params: Params::default(), macs: 0.0 }
    }

    fn floats(mut self, seed: u64, count: usize) -> Case {
        let at = self.upload(random(seed, count).iter().flat_map(|x| x.to_le_bytes()).collect());
        self.params = self.params.with(at);
        self
    }

    fn halves(mut self, seed: u64, count: usize) -> Case {
        let bytes = random(seed, count).iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let at = self.upload(bytes);
        self.params = self.params.with(at);
        self
    }

    fn upload(&self, bytes: Vec<u8>) -> u64 {
        let at = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    fn int(mut self, value: usize) -> Case {
        self.params = self.params.with(value as i32);
        self
    }

    fn float(mut self, value: f32) -> Case {
        self.params = self.params.with(value);
        self
    }

    fn shared(mut self, bytes: u32) -> Case {
        self.config.dynamic_shared_bytes = bytes;
        self
    }

    fn macs(mut self, count: usize) -> Case {
        self.macs = count as f64;
        self
    }

    fn run(&self) -> Report {
        let kernel = self.program.kernels().find(|k| k.name() == self.name);
        let kernel = kernel.or_else(|| self.program.kernels().next()).unwrap();
        launch(&self.memory, kernel, &self.config, self.params.bytes()).unwrap()
    }

    /// Tells the rates of the fastest of a few launches, then lets criterion measure.
    fn measure(&self, c: &mut Criterion) {
        let report = self.run();
        assert!(report.clean(), "{}: {}", self.name, report.findings[0]);
        let instructions = report.counters.warp_instructions;
        let fastest = (0..5)
            .map(|_| {
                let begin = Instant::now();
                self.run();
                begin.elapsed()
            })
            .min()
            .unwrap_or(Duration::MAX)
            .as_secs_f64();
        let rate = instructions as f64 / fastest / 1e6;
        let macs = self.macs / fastest / 1e9;
        println!("{:>16}: {rate:7.1} M warp instructions/s, {macs:6.2} GMAC/s", self.name);
        let mut group = c.benchmark_group("throughput");
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(instructions));
        group.bench_function(self.name, |b| b.iter(|| self.run()));
        group.finish();
    }
}

/// A kernel with a loop of so many rounds. `%r1` is the thread of the grid, `%r2` that of the block, `%rd1` a buffer.
fn looped(rounds: u32, before: &str, body: &str, after: &str) -> String {
    format!(
        "
.version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_buffer)
{{
    .reg .pred %p<8>;
    .reg .b32 %r<64>;
    .reg .f32 %f<64>;
    .reg .b64 %rd<16>;
    .shared .align 16 .b8 box[8192];
    ld.param.u64 %rd1, [k_buffer];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r1, %r3, %r4, %r2;
    mov.u32 %r5, 0;
{before}
$more:
{body}
    add.s32 %r5, %r5, 1;
    setp.lt.s32 %p1, %r5, {rounds};
    @%p1 bra $more;
{after}
    ret;
}}
"
    )
}

/// Stores the 32-bit value at the thread's element.
fn give(value: &str) -> String {
    format!("mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.b32 [%rd3], {value};")
}

fn fma_chain() -> Case {
    let set: String = (0..8).map(|i| format!("cvt.rn.f32.u32 %f{i}, %r2;\n")).collect();
    let body: String = (0..32).map(|i| format!("fma.rn.f32 %f{0}, %f{0}, %f8, %f9;\n", i % 8)).collect();
    let before = format!("{set}mov.f32 %f8, 0f3F000000;\nmov.f32 %f9, 0f3F800000;");
    let sum: String = (1..8).map(|i| format!("add.f32 %f0, %f0, %f{i};\n")).collect();
    let ptx = looped(100, &before, &body, &(sum + &give("%f0")));
    Case::new("fma chain", &ptx, [32, 1, 1], 256).floats(1, 32 * 256).macs(32 * 256 * 100 * 32)
}

fn integer_mix() -> Case {
    let step = "
    mad.lo.s32 %r10, %r10, %r11, %r2;
    shl.b32 %r12, %r10, 3;
    xor.b32 %r11, %r12, %r11;
    shr.u32 %r13, %r11, 5;
    add.s32 %r10, %r10, %r13;
    setp.lt.s32 %p2, %r10, %r11;
    selp.b32 %r14, %r10, %r11, %p2;
    and.b32 %r11, %r14, 65535;
    @%p2 add.s32 %r10, %r10, 1;
    min.s32 %r12, %r10, %r11;
    ";
    let ptx = looped(100, "mov.u32 %r10, %r1;\nmov.u32 %r11, 3;", &step.repeat(4), &give("%r10"));
    Case::new("integer mix", &ptx, [32, 1, 1], 256).floats(1, 32 * 256)
}

fn shared_v4() -> Case {
    let before = "
    mov.u32 %r10, box;
    shl.b32 %r11, %r2, 4;
    add.s32 %r12, %r10, %r11;
    mov.f32 %f0, 0f3F800000;
    st.shared.v4.f32 [%r12], {%f0, %f0, %f0, %f0};
    st.shared.v4.f32 [%r12+4096], {%f0, %f0, %f0, %f0};
    bar.sync 0;";
    let body: String = (0..8)
        .map(|i| {
            let at = 4096 * (i % 2);
            let load = format!("ld.shared.v4.f32 {{%f1, %f2, %f3, %f4}}, [%r12+{at}];\n");
            load + "fma.rn.f32 %f0, %f1, %f2, %f0;\nfma.rn.f32 %f0, %f3, %f4, %f0;\n"
        })
        .collect();
    let ptx = looped(100, before, &body, &give("%f0"));
    Case::new("shared v4", &ptx, [32, 1, 1], 256).floats(1, 32 * 256)
}

fn global_copy() -> Case {
    let before = "
    mul.wide.u32 %rd4, %r1, 16;
    add.s64 %rd5, %rd1, %rd4;
    mov.u64 %rd6, 4194304;
    add.s64 %rd7, %rd5, %rd6;";
    let body = "
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd5];
    st.global.v4.f32 [%rd7], {%f1, %f2, %f3, %f4};
    add.s64 %rd5, %rd5, 262144;
    add.s64 %rd7, %rd7, 262144;";
    // 64 blocks of 256 threads copy 16 x 256 KiB.
    let ptx = looped(16, before, body, "");
    Case::new("global copy", &ptx, [64, 1, 1], 256).floats(1, 2 << 20)
}

fn written_in_ptx(c: &mut Criterion) {
    for case in [fma_chain(), integer_mix(), shared_v4(), global_copy()] {
        case.measure(c);
    }
}

/// The kernel of a file, for compute capability 8.0.
fn file(name: &'static str, grid: [u32; 3], threads: u32, defines: &[&str]) -> Option<Case> {
    let (_, ptx) = compiled(&format!("{name}.cu"), &["compute_80"], defines).pop()?;
    Some(Case::new(name, &ptx, grid, threads))
}

fn sgemm() -> Option<Case> {
    let n = 256;
    let case = file("sgemm", [2, 2, 1], 256, &[])?.int(n).int(n).int(n).float(1.0);
    Some(case.floats(1, n * n).floats(2, n * n).float(0.0).floats(3, n * n).macs(n * n * n))
}

fn group_norm_silu() -> Option<Case> {
    let (channels, pixels, groups) = (64, 4096, 8);
    let (_, ptx) = compiled("group_norm_silu.cu", &["compute_80"], &[]).pop()?;
    let case = Case::new("group_norm_silu_nchw", &ptx, [groups as u32, 1, 1], 256);
    let count = channels * pixels;
    let case = case.floats(1, count).floats(2, channels).floats(3, channels).floats(4, count);
    Some(case.int(channels).int(pixels).int(groups).float(1e-5))
}

fn conv3x3() -> Option<Case> {
    let (side, channels) = (32usize, 64usize);
    let grid = [(side.div_ceil(16) * side.div_ceil(8)) as u32, 1, 1];
    let (image, weights) = (channels * side * side, channels * channels * 9);
    let case = file("conv3x3", grid, 256, &[])?.floats(1, image).floats(2, weights).floats(3, channels);
    let case = case.floats(4, image).int(side).int(side).int(channels).int(channels);
    Some(case.macs(side * side * channels * channels * 9))
}

fn gemm_bf16() -> Option<Case> {
    let n = 512;
    let case = file("gemm_bf16", [4, 4, 1], 256, &["STAGES=3"])?.int(n).int(n).int(n);
    let case = case.halves(1, n * n).halves(2, n * n).floats(3, n * n);
    Some(case.shared(3 * 16384).macs(n * n * n))
}

fn attention() -> Option<Case> {
    let (heads, tokens, d) = (2, 256, 64);
    let count = heads * tokens * d;
    let case = file("attention", [tokens as u32 / 64, heads as u32, 1], 128, &[])?;
    let case = case.halves(1, count).halves(2, count).halves(3, count).floats(4, count);
    Some(case.int(tokens).int(tokens).float(0.125).macs(2 * heads * tokens * tokens * d))
}

fn written_in_cuda(c: &mut Criterion) {
    let cases = [sgemm(), group_norm_silu(), conv3x3(), gemm_bf16(), attention()];
    for case in cases.into_iter().flatten() {
        case.measure(c);
    }
}

criterion_group!(benches, written_in_ptx, written_in_cuda);
criterion_main!(benches);
