//! One kernel for every fault, with a twin that is right. What has to be found, and where, stands in the kernels' text:
//!
//! - `// RUN: ..` says how both are launched, in the words of `ptxsim run`; `// PASSES: ..` a launch in which the faulty
//!   one is right.
//! - `// FAULT: kind` on a line of the faulty kernel: that has to be found there. `// ALSO: kind, kind`: that may be.
//!   Anything else may not.
//! - `// ARCH: compute_90a`: for that target alone.
//! - `// COUNTER: path/name`: nothing is found, but that counter is at least twice as high in the faulty one.
#![cfg(feature = "cli")]

mod common;

use clap::Parser;
use common::device::{ARCHS, compiled};
use ptxsim::cli::LaunchArgs;
use ptxsim::exec::launch::Report;
use std::collections::BTreeSet;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    launch: LaunchArgs,
}

/// Kind and line.
type Mark = (String, u32);

/// What a source says of itself.
#[derive(Default)]
struct Marks {
    runs: Vec<String>,
    passes: Vec<String>,
    faults: BTreeSet<Mark>,
    also: BTreeSet<Mark>,
    counters: Vec<String>,
    arch: Option<String>,
}

fn marks(source: &str) -> Marks {
    let mut marks = Marks::default();
    for (line, text) in (1..).zip(source.lines()) {
        for comment in text.split("// ").skip(1) {
            let Some((word, rest)) = comment.split_once(':') else { continue };
            let rest = rest.trim();
            let kinds = || rest.split(',').map(|k| (k.trim().to_string(), line));
            match word {
                "RUN" => marks.runs.push(rest.into()),
                "PASSES" => marks.passes.push(rest.into()),
                "FAULT" => marks.faults.extend(kinds()),
                "ALSO" => marks.also.extend(kinds()),
                "ARCH" => marks.arch = Some(rest.into()),
                "COUNTER" => marks.counters.push(rest.into()),
                _ => {}
            }
        }
    }
    marks
}

/// Launches one kernel as its text says.
fn run(ptx: &str, kernel: &str, line: &str, threads: usize) -> Report {
    let words = std::iter::once("run").chain(line.split_whitespace());
    let mut launch = Line::try_parse_from(words).unwrap_or_else(|e| panic!("{kernel}: {line}\n{e}")).launch;
    launch.kernel = Some(kernel.into());
    launch.threads = threads;
    launch.launch(ptx).unwrap_or_else(|e| panic!("{kernel}: {e}")).report
}

fn told(report: &Report) -> String {
    report.findings.iter().map(|f| format!("  {f}\n")).collect()
}

fn check(name: &str) {
    let file = format!("faults/{name}.cu");
    let marks = marks(&common::kernel_source(&file));
    assert!(!marks.runs.is_empty(), "{file} does not say how it is run");
    assert!(
        marks.counters.is_empty() != marks.faults.is_empty(),
        "{file} has to name either a fault or a counter"
    );
    let (bad, good) = (format!("{name}_bad"), format!("{name}_good"));
    let archs: Vec<&str> = match &marks.arch {
        Some(one) => vec![one],
        None => ARCHS.to_vec(),
    };
    for (arch, ptx) in compiled(&file, &archs, &[]) {
        for line in &marks.passes {
            let report = run(&ptx, &bad, line, 0);
            assert!(report.clean(), "{bad} {arch} is right for {line}, but:\n{}", told(&report));
        }
        for line in &marks.runs {
            let right = run(&ptx, &good, line, 0);
            assert!(right.clean(), "{good} {arch}: false alarm:\n{}", told(&right));
            let mut seen: Vec<String> = Vec::new();
            for threads in [1, 3] {
                let report = run(&ptx, &bad, line, threads);
                let found: BTreeSet<Mark> =
                    report.findings.iter().map(|f| (f.kind.name().to_string(), f.line)).collect();
                let all = told(&report);
                for fault in &marks.faults {
                    assert!(found.contains(fault), "{bad} {arch}: {fault:?} is not among:\n{all}");
                }
                for one in found.difference(&marks.faults) {
                    assert!(marks.also.contains(one), "{bad} {arch}: {one:?} is not marked; all:\n{all}");
                }
                assert!(report.findings.iter().all(|f| f.file.ends_with(&format!("{name}.cu"))), "{all}");
                for counter in &marks.counters {
                    let value = |r: &Report| counter_of(r, counter);
                    let (worse, better) = (value(&report), value(&right));
                    assert!(worse >= 2.0 * better, "{bad} {arch}: {counter} is {worse}, {good}: {better}");
                }
                seen.push(serde_json::to_string(&report.counters).unwrap());
            }
            // A race makes the result depend on the schedule, but nothing here branches on what was raced for; a fault
            // ends the launch wherever other host threads are.
            if run(&ptx, &bad, line, 1).faulted().is_none() {
                assert_eq!(seen[0], seen[1], "{bad} {arch}: counters depend on the host's threads");
            }
        }
    }
}

/// A counter by its path in the JSON report.
fn counter_of(report: &Report, name: &str) -> f64 {
    let all = serde_json::to_value(&report.counters).unwrap();
    all.pointer(&format!("/{name}"))
        .and_then(|v| v.as_f64())
        .unwrap_or_else(|| panic!("no counter {name} in {all}"))
}

macro_rules! faults {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

faults! {
    async_lax_wait
    async_missing_barrier
    async_missing_wait
    async_refill
    barrier_divergence
    bulk_missing_wait
    deadlock_mbarrier
    deadlock_named
    exit_with_pending_copies
    flag_without_fence
    global_race_blocks
    global_race_counter
    global_race_neighbour
    global_race_warps
    lane_hazard
    lane_hazard_reduction
    last_block
    mbarrier_uninitialised
    misaligned
    oob_read
    oob_shared
    oob_write
    partial_ldmatrix
    partial_mma
    ragged_bounds
    shared_race_rw
    shared_race_wr
    shared_race_ww
    shuffle_absent
    shuffle_from_absent
    swizzle_removed
    trap
    uninitialised_global
    uninitialised_shared
    use_after_free
    vote_absent
}

#[test]
fn every_file_is_tested() {
    let mut files: Vec<String> = std::fs::read_dir(common::kernel_dir().join("faults"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let tested: Vec<String> = TESTED.iter().map(|t| format!("{t}.cu")).collect();
    assert_eq!(files, tested);
}
