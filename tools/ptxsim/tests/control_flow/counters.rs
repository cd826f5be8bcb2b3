//! What a launch counted.

use crate::harness::{run_with, shape, told};
use ptxsim::card::{Card, Limit};
use ptxsim::counters::{Count, details, table};
use ptxsim::exec::inst::Class;
use ptxsim::exec::launch::{LaunchConfig, Report};

const SHARED: &str = ".shared .align 16 .b8 box[8192];";

#[track_caller]
fn counted(declarations: &str, body: &str, config: &LaunchConfig) -> Report {
    let (report, _) = run_with(declarations, body, config, &[]);
    assert!(report.clean(), "{}", told(&report));
    report
}

/// Instructions before the body: seven.
const PROLOGUE: u64 = 8;

#[test]
fn instructions_lanes_and_classes() {
    let body = "
    cvt.rn.f32.u32 %f1, %r2;
    fma.rn.f32 %f2, %f1, %f1, %f1;
    setp.lt.u32 %p1, %r2, 5;
    @%p1 add.f32 %f2, %f2, %f1;
    @%p1 mul.f32 %f2, %f2, %f1;
    cvt.rzi.u32.f32 %r10, %f2;
    give %r10;
    ret;";
    let c = counted("", body, &shape(3, 48)).counters;
    assert_eq!(c.warp_instructions, 3 * 2 * (PROLOGUE + 8));
    assert_eq!(c.lane_instructions, 3 * (48 * (PROLOGUE + 6) + 2 * 5));
    assert_eq!(c.classes[&Class::F32], Count { warp: 3 * 2 * 3, lanes: 3 * (48 + 5 + 5) });
    assert_eq!(c.flops.f32, 3 * (2 * 48 + 5 + 5));
    assert_eq!((c.flops.f64, c.flops.half, c.flops.tensor), (0, 0, 0));
    assert_eq!(c.divergence.instructions, 0);
    assert_eq!(c.divergence.mean_active_lanes, 24.0, "warps of 32 and of 16 lanes");
    let classes: u64 = c.classes.values().map(|n| n.warp).sum();
    assert_eq!(classes, c.warp_instructions);
}

#[test]
fn divergence_and_branches() {
    let body = "
    setp.lt.u32 %p1, %r2, 8;
    @%p1 bra $few;
    mov.u32 %r10, 1;
    mov.u32 %r10, 2;
    bra $join;
$few:
    mov.u32 %r10, 3;
$join:
    bar.sync 0;
    bar.warp.sync 0xffffffff;
    give %r10;
    ret;";
    let c = counted("", body, &shape(1, 64)).counters;
    // Warp 0: three instructions for 24 lanes, one for 8. Warp 1 stays together.
    assert_eq!(c.warp_instructions, 2 * (PROLOGUE + 6) + 4 + 3);
    assert_eq!(c.divergence.instructions, 4);
    let all = c.warp_instructions as f64;
    assert_eq!(c.divergence.percent, 100.0 * 4.0 / all);
    assert_eq!(c.divergence.mean_active_lanes, (32.0 * (all - 4.0) + 3.0 * 24.0 + 8.0) / all);
    assert_eq!((c.branches.executed, c.branches.divergent), (2 + 2, 1));
    assert_eq!((c.barriers.block, c.barriers.warp), (2, 2));
}

#[test]
fn lanes_that_ended_are_not_missed() {
    let body = "
    setp.ge.u32 %p1, %r2, 16;
    @%p1 exit;
    give %r2;
    ret;";
    let c = counted("", body, &shape(1, 32)).counters;
    assert_eq!(c.divergence.instructions, 0);
    assert_eq!(
        c.divergence.mean_active_lanes,
        (32.0 * (PROLOGUE as f64 + 2.0) + 16.0 * 2.0) / (PROLOGUE as f64 + 4.0)
    );
}

#[test]
fn traffic_by_space_and_direction() {
    let body = "
    .local .align 8 .b8 mine[16];
    mov.u32 %r10, box;
    // Shared: a column of a 32 x 64-word array, then a row.
    shl.b32 %r11, %r2, 8;
    add.u32 %r11, %r10, %r11;
    st.shared.u32 [%r11], %r2;
    ld.shared.u32 %r12, [%r11];
    shl.b32 %r13, %r2, 2;
    add.u32 %r13, %r10, %r13;
    bar.sync 0;
    st.shared.u32 [%r13], %r2;
    // Local.
    st.local.u64 [mine+8], %rd1;
    ld.local.u32 %r14, [mine+8];
    // Atomics.
    atom.shared.add.u32 %r15, [box+256], 1;
    red.global.add.u32 [%rd3], 1;
    // Global: 16 bytes a lane apart by 32, then the result's 4 bytes side by side.
    mul.wide.u32 %rd10, %r2, 0;
    add.u64 %rd10, %rd3, %rd10;
    ld.global.u32 %r16, [%rd10+16];
    give %r16;
    ret;";
    let c = counted(SHARED, body, &shape(1, 32)).counters;
    let m = &c.memory;
    assert_eq!((m.global_load.requests, m.global_load.bytes, m.global_load.distinct_bytes), (1, 128, 4));
    assert_eq!((m.global_load.sectors, m.global_load.efficiency), (1, Some(0.125)));
    assert_eq!((m.global_store.requests, m.global_store.sectors_per_request), (1, Some(4.0)));
    assert_eq!(m.global_store.efficiency, Some(1.0));
    assert_eq!((m.shared_load.wavefronts, m.shared_load.conflict_factor), (32, Some(32.0)));
    assert_eq!(
        (m.shared_store.requests, m.shared_store.wavefronts, m.shared_store.ideal_wavefronts),
        (2, 33, 2)
    );
    assert_eq!((m.local_store.bytes, m.local_load.bytes), (256, 128));
    assert_eq!(
        (m.shared_atomic.requests, m.shared_atomic.operations, m.shared_atomic.most_collisions),
        (1, 32, 32)
    );
    assert_eq!((m.global_atomic.requests, m.global_atomic.operations), (1, 32));
    assert_eq!(m.constant_load.requests, 0, "parameters are not counted");
    assert_eq!(m.global_widths.iter().collect::<Vec<_>>(), [(&4, &2)]);
}

#[test]
fn wide_accesses() {
    let body = "
    mul.wide.u32 %rd10, %r2, 16;
    add.u64 %rd10, %rd3, %rd10;
    and.b32 %r9, %r2, 7;
    setp.lt.u32 %p1, %r2, 8;
    @%p1 ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd10];
    ld.global.u8 %r14, [%rd3];
    give %r14;
    ret;";
    let m = counted("", body, &shape(1, 32)).counters.memory;
    assert_eq!(m.global_widths.iter().map(|(&b, &n)| (b, n)).collect::<Vec<_>>(), [(1, 1), (4, 1), (16, 1)]);
    assert_eq!(m.global_load.sectors, 4 + 1);
}

/// A kernel with source lines.
const LINES: &str = "
    .loc 1 10 0
    mov.u32 %r10, 0;
$more:
    .loc 1 11 0
    add.u32 %r10, %r10, 1;
    add.u32 %r11, %r10, %r2;
    .loc 1 12 0
    setp.lt.u32 %p1, %r10, 9;
    @%p1 bra $more;
    .loc 1 13 0
    give %r11;
    ret;
    }
    .file 1 \"a.cu\"
    .visible .entry unused()
    {";

#[test]
fn lines() {
    let report = counted("", LINES, &shape(1, 32));
    let lines = &report.counters.lines;
    // The prologue has no source line: it goes by lines of the PTX text.
    let source: Vec<_> = lines.iter().filter(|l| l.file == "a.cu").collect();
    assert_eq!(source.iter().map(|l| l.line).collect::<Vec<_>>(), [10, 11, 12, 13]);
    assert_eq!(source.iter().map(|l| l.warp_instructions).collect::<Vec<_>>(), [1, 18, 18, 2]);
    assert_eq!(source[3].sectors, 4);
    let rest: u64 = lines.iter().filter(|l| l.file.is_empty()).map(|l| l.warp_instructions).sum();
    assert_eq!(rest, PROLOGUE);
    let text = details(&report, 2);
    let hottest: Vec<&str> = text.lines().filter(|l| l.starts_with("a.cu:")).collect();
    assert_eq!(hottest.len(), 2, "{text}");
    assert!(hottest[0].starts_with("a.cu:11 ") && hottest[0].contains("18"), "{text}");
}

/// A load and a store that were inlined: `tile.cuh:5` into `a.cu:20`, and `ptx.cuh:7` into `tile.cuh:6`, that one into
/// `a.cu:21`.
const INLINED: &str = "
    .loc 1 20 3
    mov.u32 %r11, box;
    shl.b32 %r12, %r2, 7;
    add.u32 %r11, %r11, %r12;
    .loc 2 5 9, function_name $L_names, inlined_at 1 20 3
    st.shared.u32 [%r11], %r2;
    bar.sync 0;
    .loc 1 21 3
    mov.u32 %r10, 0;
    .loc 2 6 9, function_name $L_names, inlined_at 1 21 3
    shr.u32 %r11, %r11, 5;
    .loc 3 7 1, function_name $L_names+4, inlined_at 2 6 9
    .loc 3 0 1
    mov.u32 %r11, box;
    ld.shared.u32 %r10, [%r11];
    .loc 1 22 3
    give %r10;
    ret;
    }
    .file 1 \"a.cu\"
    .file 2 \"tile.cuh\"
    .file 3 \"ptx.cuh\"
    .visible .entry unused()
    {";

#[test]
fn inlined_code_tells_the_files_it_came_through() {
    let report = counted(".shared .align 4 .b8 box[4096];", INLINED, &shape(1, 32));
    let chains: Vec<_> = report
        .counters
        .chains
        .iter()
        .map(|c| (c.files.join(" in "), c.warp_instructions, c.wavefronts, c.ideal_wavefronts, c.sectors))
        .collect();
    // The store of a column has 32 passes for one; the load of one word has none in vain.
    assert_eq!(
        chains,
        [
            ("a.cu".to_string(), 6, 0, 0, 4),
            ("ptx.cuh in tile.cuh in a.cu".to_string(), 2, 1, 1, 0),
            ("tile.cuh in a.cu".to_string(), 3, 32, 1, 0),
        ]
    );
    // By line, an instruction counts only where it was written.
    let line = |file: &str, line| {
        report.counters.lines.iter().find(|l| l.file == file && l.line == line).expect("was executed")
    };
    assert_eq!((line("tile.cuh", 5).wavefronts, line("ptx.cuh", 7).wavefronts), (32, 1));
    assert_eq!((line("a.cu", 22).narrowest_global, line("tile.cuh", 5).narrowest_global), (Some(4), None));
}

#[test]
fn occupancy_by_estimate_and_by_ptxas() {
    let mut report =
        counted(SHARED, "give %r2; ret;", &LaunchConfig { dynamic_shared_bytes: 40_000, ..shape(66, 256) });
    assert_eq!(report.counters.occupancy, None);
    report.estimate_occupancy(&Card::sm90(), Some(80));
    let o = report.counters.occupancy.clone().expect("worked out");
    // 65536 / (80 registers x 32 lanes) is 25.6 warps: 24, three blocks; shared memory would allow more.
    assert_eq!((o.blocks, o.warps, o.percent, o.limit), (3, 24, 37.5, Limit::Registers));
    assert_eq!((o.registers, o.registers_estimated, o.waves), (80, false, Some(66.0 / 132.0 / 3.0)));
    report.estimate_occupancy(&Card::sm90(), None);
    let o = report.counters.occupancy.clone().expect("worked out");
    // `box` is not used, so the kernel has none: 40000 + 1024 bytes a block, of 233472.
    assert_eq!((o.blocks, o.limit, o.registers_estimated), (5, Limit::Shared, true));
    let text = details(&report, 0);
    assert!(text.contains("limited by shared") && text.contains("estimated"), "{text}");
}

#[test]
fn the_same_from_any_number_of_host_threads() {
    let body = "
    mov.u32 %r10, %r2;
    mov.u32 %r11, box;
    shl.b32 %r12, %r2, 3;
    add.u32 %r11, %r11, %r12;
$more:
    st.shared.u32 [%r11], %r10;
    atom.global.max.u32 %r13, [%rd3], %r10;
    sub.u32 %r10, %r10, 1;
    setp.gt.s32 %p1, %r10, %r3;
    @%p1 bra $more;
    bar.sync 0;
    give %r10;
    ret;";
    let json = |host_threads| {
        let mut report = counted(SHARED, body, &LaunchConfig { host_threads, ..shape(40, 96) });
        report.estimate_occupancy(&Card::sm90(), None);
        serde_json::to_string(&report).expect("plain data")
    };
    let one = json(1);
    assert_eq!(one, json(3));
    assert_eq!(one, json(1));
    // The order of the fields is that of the structures.
    let keys =
        ["\"kernel\"", "\"counters\"", "\"warp_instructions\"", "\"classes\"", "\"memory\"", "\"lines\""];
    let places: Vec<_> = keys.iter().map(|k| one.find(k).expect("there")).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_table_of_launches() {
    let mut first = counted("", "give %r2; ret;", &shape(4, 64));
    first.estimate_occupancy(&Card::sm90(), None);
    let second = counted("", "fma.rn.f32 %f1, %f1, %f1, %f1; give %r2; ret;", &shape(1000, 32));
    let text = table(&[first, second]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("kernel  ") && lines[0].ends_with("occupancy"), "{text}");
    assert!(lines[1].ends_with('%') && lines[2].ends_with('-'), "{text}");
    let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
    assert_eq!(end(lines[0], "  FLOP"), end(lines[2], " 64 000"), "{text}");
}
