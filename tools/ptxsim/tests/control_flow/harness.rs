//! Kernels that give one number for each thread.

use ptxsim::check::Kind;
use ptxsim::exec::launch::{LaunchConfig, Report, launch};
use ptxsim::exec::program::{LoadError, Program};
use ptxsim::mem::GlobalMemory;

/// What goes around a kernel's body. In the body `%r1` is the number of the thread in the (one-dimensional) grid, `%r2`
/// that in its block, `%rd1` the output, `%rd2` the thread's own element of it, `%rd3` the input. `give %r5;` stores the
/// thread's result.
pub fn module(declarations: &str, body: &str) -> String {
    let body = body.replace("give ", "st.global.u32 [%rd2], ");
    format!(
        "
.version 9.0
.target sm_90a
.address_size 64
{declarations}
.visible .entry k(.param .u64 k_out, .param .u64 k_in)
{{
    .reg .pred %p<16>;
    .reg .b32 %r<64>;
    .reg .b64 %rd<32>;
    .reg .f32 %f<16>;
    ld.param.u64 %rd1, [k_out];
    ld.param.u64 %rd3, [k_in];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r1, %r3, %r4, %r2;
    mul.wide.u32 %rd4, %r1, 4;
    add.s64 %rd2, %rd1, %rd4;
{body}
}}
"
    )
}

/// Loads the kernel alone.
pub fn load(declarations: &str, body: &str) -> Result<(), LoadError> {
    Program::load(&module(declarations, body), &GlobalMemory::new(1 << 24)).map(|_| ())
}

/// A launch of `blocks` blocks of `threads` threads on one host thread.
pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        host_threads: 1,
        max_instructions: 200_000_000,
        ..LaunchConfig::default()
    }
}

/// Runs the kernel; gives the report and what each thread gave. The output is zero before.
pub fn run_with(declarations: &str, body: &str, config: &LaunchConfig, input: &[u32]) -> (Report, Vec<u32>) {
    let memory = GlobalMemory::new(1 << 24);
    let text = module(declarations, body);
    let program = Program::load(&text, &memory).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let threads = config.grid.iter().chain(&config.block).map(|&n| n as usize).product::<usize>();
    let out = memory.alloc(4 * threads as u64).unwrap();
    memory.fill(out, &[0], 4 * threads as u64).unwrap();
    let given = memory.alloc(4 * input.len().max(64) as u64).unwrap();
    memory.fill(given, &[0], 4 * input.len().max(64) as u64).unwrap();
    let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
    if !bytes.is_empty() {
        memory.write(given, &bytes).unwrap();
    }
    let params = [out.to_le_bytes(), given.to_le_bytes()].concat();
    let report = launch(&memory, program.kernel("k").unwrap(), config, &params).unwrap();
    let mut bytes = vec![0; 4 * threads];
    memory.read(out, &mut bytes).unwrap();
    let values = bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    (report, values)
}

/// Runs a kernel in which nothing may be found.
#[track_caller]
pub fn run(declarations: &str, body: &str, config: &LaunchConfig) -> Vec<u32> {
    let (report, values) = run_with(declarations, body, config, &[]);
    assert!(report.clean(), "{}", told(&report));
    values
}

/// The findings as text.
pub fn told(report: &Report) -> String {
    report.findings.iter().map(|f| f.to_string()).collect::<Vec<_>>().join("\n")
}

/// One finding, of this kind, and none else; gives its text.
#[track_caller]
pub fn only(report: &Report, kind: Kind) -> String {
    assert_eq!(report.findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [kind], "{}", told(report));
    report.findings[0].to_string()
}

/// What `f` says of each thread.
pub fn each(threads: u32, f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..threads).map(f).collect()
}
