//! `docs/kernels.md`: the table of all kernels, generated.

use crate::cases::{self, Name, Ran};
use crate::counters::{Bytes, Waves};
use crate::{blessed, fused, limits, limits_elementwise, limits_norms, snapshot, tiles, untaped};
use dtk::ops::untaped::UNTAPED;
use dtk::ops::{REGISTRY, kernel_variants};
use ptxsim::card::Card;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

const FILE: &str = "docs/kernels.md";
/// Defines that say nothing about a variant.
const SILENT: [&str; 2] = ["PARAMS_BYTES=", "PASS_"];

const INTRODUCTION: &str = "\
# Kernels

Every variant of every kernel, as `cargo test --release --test kernels` finds it on a machine without a card: compiled by
NVRTC for sm_80 and sm_90a without spills, run by the simulator ([ptxsim](../tools/ptxsim/README.md)) over the case list of
its op, compared with f64, without a finding. This page is generated; the test fails where it is not what the tree makes.

None of these numbers is a time. They say what a kernel asks of the machine:

* **cases**: test cases of the op (in f32 and bf16) that launch this variant;
* **main loop**: passes through shared memory for one that would do without bank conflicts, in the main loop (limit 1.1);
  **else**: the same outside of it;
* **loads**, **stores**: bytes asked for, of the bytes of the 32-byte sectors that move (limit for loads 0.9);
* **16 B**: share of the accesses to global memory that are 16 bytes wide;
* **tensor**: operations of tensor cores for one of the definition (limit 1.1; depthwise kernels multiply with zeros);
* **registers**, **shared** (bytes of a block) and **occupancy** (of the warps of a multiprocessor) for sm_90a.

Counters are of shapes that fill the tiles, where limits hold; those in *italics* of the op's test cases, which are odd on
purpose. **Status** is \"simulated only\" until the checks have passed on a card.
";

/// Card and date of the measurements in which every kernel was right.
fn checked_on() -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let mut found: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let v: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        found.extend(passed(&v));
    }
    found.sort();
    found.pop()
}

/// Date and card of one file, if it is of a card and its checks passed.
fn passed(v: &Value) -> Option<String> {
    let machine = &v["machine"];
    let card = machine["device"] == "cuda" && machine["simulated"] == false;
    let checked = v["stages"].as_array()?.iter().any(|s| s["name"] == "check" && s["outcome"] == "passed");
    let date = v["date"].as_str()?.get(..10)?;
    (card && checked).then(|| format!("{date}, {}", machine["name"].as_str().unwrap_or("a card")))
}

/// `BM=128 BN=64 T_BF16=1`, without what says nothing.
fn variant_of(kernel: &Name) -> String {
    let all = kernel.defines.split(' ').filter_map(|d| d.strip_prefix("-D"));
    let told = all.filter(|d| !SILENT.iter().any(|s| d.starts_with(s)));
    told.collect::<Vec<_>>().join(" ")
}

fn op_of(entry: &str) -> &'static str {
    let names = REGISTRY.iter().map(|e| e.name).chain(UNTAPED.iter().map(|e| e.name)).chain(["cast"]);
    let names = names.filter(|n| entry.starts_with(&format!("{n}_")));
    names.max_by_key(|n| n.len()).unwrap_or_else(|| panic!("{entry} belongs to no op"))
}

/// Counters over some launches, as cells. Each comes with the operations of the definition that are its share, or 0.
fn counters(launches: &[(&Ran, u64)]) -> [String; 6] {
    let (mut inner, mut outer, mut loads, mut stores) =
        (Waves::default(), Waves::default(), Bytes::default(), Bytes::default());
    let (mut wide, mut accesses, mut tensor, mut needed) = (0, 0, 0, 0);
    for (c, useful) in launches.iter().filter_map(|(r, useful)| Some((r.counters.as_ref()?, *useful))) {
        for (sum, part) in [(&mut inner, c.main_loop), (&mut outer, c.elsewhere)] {
            *sum = Waves { real: sum.real + part.real, ideal: sum.ideal + part.ideal };
        }
        for (sum, part) in [(&mut loads, c.loads), (&mut stores, c.stores)] {
            *sum = Bytes { useful: sum.useful + part.useful, moved: sum.moved + part.moved };
        }
        accesses += c.widths.iter().map(|(_, n)| n).sum::<u64>();
        wide += c.widths.iter().filter(|(w, _)| *w >= 16).map(|(_, n)| n).sum::<u64>();
        if c.tensor_flops > 0 && useful > 0 {
            tensor += c.tensor_flops;
            needed += useful;
        }
    }
    let waves = |w: Waves| if w.ideal == 0 { "-".into() } else { format!("{:.2}", w.factor()) };
    let share = |b: Bytes| if b.moved == 0 { "-".into() } else { format!("{:.2}", b.efficiency()) };
    let ratio = |a: u64, b: u64| if b == 0 { "-".into() } else { format!("{:.2}", a as f64 / b as f64) };
    [waves(inner), waves(outer), share(loads), share(stores), ratio(wide, accesses), ratio(tensor, needed)]
}

/// Launches by variant: of shapes that fill the tiles with the operations of one pass, and of all others.
#[derive(Default)]
struct Launches<'a> {
    tiled: Vec<(&'a Ran, u64)>,
    others: Vec<&'a Ran>,
}

fn by_variant<'a>() -> Option<BTreeMap<&'a Name, Launches<'a>>> {
    let mut all: BTreeMap<&Name, Launches<'_>> = BTreeMap::new();
    let children = tiles::ran().unwrap_or_default();
    let functions = limits_norms::functions()?.iter().chain(limits_elementwise::casts()?);
    let ops = cases::all()?.into_iter().chain(fused::ran()?).chain(untaped::all()?).chain(functions);
    for r in ops.chain(children.iter().flat_map(|(_, c)| &c.others)) {
        all.entry(&r.kernel).or_default().others.push(r);
    }
    let of_children = children.iter().flat_map(|(_, c)| &c.tiled).map(|(_, flops, ran)| (*flops, ran));
    let mine = limits::ran()?.iter().map(|(case, _, _, ran)| (case.op.flops(&case.shapes()), ran));
    for (flops, ran) in mine.chain(of_children) {
        for r in ran {
            // A phase is a launch of its own: the launches of one pass together do what is needed. Every case runs twice.
            let launches = ran.iter().filter(|o| o.kernel == r.kernel).count() as u64;
            all.entry(&r.kernel).or_default().tiled.push((r, 2 * flops / launches));
        }
    }
    Some(all)
}

#[test]
fn every_variant_is_run_by_a_case_and_the_page_tells_it() {
    let Some(all) = by_variant() else { return };
    let listed: BTreeSet<Name> = kernel_variants()
        .into_iter()
        .map(|v| Name { source: v.source.into(), entry: v.entry.into(), defines: v.defines.to_string() })
        .collect();
    let unlisted: Vec<&&Name> = all.keys().filter(|k| !listed.contains(k)).collect();
    assert!(unlisted.is_empty(), "launched, but not in kernel_variants(): {unlisted:#?}");
    let launches =
        || all.values().flat_map(|l| l.tiled.iter().map(|(r, _)| *r).chain(l.others.iter().copied()));
    if launches().any(|r| r.counters.is_none()) {
        println!("0 kernels simulated, {} on a card; {FILE} is made by the simulator", all.len());
        return;
    }
    println!("{} kernels simulated, 0 on a card; {} launches", all.len(), launches().count());
    let idle: Vec<&Name> = listed.iter().filter(|k| !all.contains_key(k)).collect();
    assert!(idle.is_empty(), "{} variants that no case runs: {idle:#?}", idle.len());

    let status = checked_on().unwrap_or_else(|| "simulated only".into());
    let mut text = String::from(INTRODUCTION);
    let write = "a string grows";
    let mut op = "";
    for (kernel, launches) in &all {
        if op != op_of(&kernel.entry) {
            op = op_of(&kernel.entry);
            writeln!(text, "\n## {op}\n\nStatus: {status}.\n").expect(write);
            text.push_str(
                "| pass | variant | cases | main loop | else | loads | stores | 16 B | tensor | registers | shared | occupancy |\n\
                 | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n",
            );
        }
        let others = launches.others.iter().map(|r| (*r, 0));
        let ran: Vec<(&Ran, u64)> = launches.tiled.iter().copied().chain(others).collect();
        let cases: BTreeSet<&String> = ran.iter().map(|(r, _)| &r.case).collect();
        let cells = match &launches.tiled[..] {
            [] => counters(&ran).map(|c| if c == "-" { c } else { format!("*{c}*") }),
            tiled => counters(tiled),
        };
        let shared = ran.iter().filter_map(|(r, _)| r.counters.as_ref()).map(|c| c.shared_bytes).max();
        let (shared, Ran { threads, registers, .. }) = (shared.unwrap_or(0), ran[0].0);
        // Another compilation may have come out with others.
        let registers = snapshot::recorded_registers(kernel).unwrap_or(*registers);
        let held = Card::sm90().occupancy(*threads, registers, shared);
        let name = kernel.entry.strip_prefix(op).unwrap_or(&kernel.entry).trim_start_matches('_');
        writeln!(
            text,
            "| {name} | {} | {} | {} | {registers} | {shared} | {} % |",
            variant_of(kernel),
            cases.len(),
            cells.join(" | "),
            100 * held.warps / held.warps_possible.max(1)
        )
        .expect(write);
    }
    blessed::expect(FILE, &text);
}

#[test]
fn only_checks_that_passed_on_a_card_count() {
    let file = |outcome: &str, simulated: bool| {
        serde_json::json!({
            "date": "2027-01-02T03:04:05Z",
            "machine": { "device": "cuda", "name": "NVIDIA H100", "simulated": simulated },
            "stages": [{ "name": "check", "outcome": outcome, "seconds": 1.0 }],
        })
    };
    assert_eq!(passed(&file("passed", false)).as_deref(), Some("2027-01-02, NVIDIA H100"));
    assert_eq!(passed(&file("failed", false)), None);
    assert_eq!(passed(&file("passed", true)), None);
    assert_eq!(passed(&serde_json::json!({})), None);
}
