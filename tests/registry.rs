//! The list of ops agrees with the files, and every entry has what tests and benches need.

use dtk::ops::REGISTRY;
use dtk::ops::untaped::UNTAPED;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files of `src/ops` that are no ops.
const INFRASTRUCTURE: [&str; 14] = [
    "mod",
    "run",
    "case",
    "cast",
    "check",
    "device_key",
    "elementwise",
    "support",
    "implicit_gemm",
    "kernel",
    "norm",
    "offload",
    "untaped",
    "variants",
];
/// Files of `src/ops/untaped` that are no operations.
const UNTAPED_INFRASTRUCTURE: [&str; 3] = ["mod", "check", "multi_tensor"];
/// Kernels of functions that are no ops: `kernels/x.cu` of `ops::x`.
const FUNCTIONS: [&str; 1] = ["cast"];
/// Ops that only move data: no floating-point operation.
const NO_ARITHMETIC: [&str; 2] = ["concat", "embedding"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names() -> BTreeSet<String> {
    REGISTRY.iter().map(|e| e.name.to_string()).collect()
}

fn untaped() -> BTreeSet<String> {
    UNTAPED.iter().map(|e| e.name.to_string()).collect()
}

/// Stems of the entries of a folder that `which` accepts; none if there is no such folder.
fn stems(dir: &str, which: impl Fn(&Path) -> bool) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder(dir)) else { return BTreeSet::new() };
    entries
        .map(|e| e.unwrap().path())
        .filter(|p| which(p))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_string())
        .collect()
}

/// Compares the files of a folder, without its infrastructure, with the names of a list.
fn one_file_each(dir: &str, infrastructure: &[&str], names: &BTreeSet<String>, macro_name: &str) {
    let mut files = stems(dir, |p| p.is_dir() || p.extension().is_some_and(|e| e == "rs"));
    for name in infrastructure {
        assert!(files.remove(*name), "{dir}/{name}.rs is gone: take it off the list of infrastructure");
    }
    let list = |s: BTreeSet<&String>| format!("{s:?}");
    let orphans = files.difference(names).collect::<BTreeSet<_>>();
    assert!(orphans.is_empty(), "not in {macro_name}: {}", list(orphans));
    let lost = names.difference(&files).collect::<BTreeSet<_>>();
    assert!(lost.is_empty(), "no file in {dir}: {}", list(lost));
}

#[test]
fn every_file_is_an_op_and_every_op_a_file() {
    one_file_each("src/ops", &INFRASTRUCTURE, &names(), "for_each_op!");
    one_file_each("src/ops/untaped", &UNTAPED_INFRASTRUCTURE, &untaped(), "for_each_untaped!");
    let both = names().intersection(&untaped()).cloned().collect::<Vec<_>>();
    assert!(both.is_empty(), "one name for two: {both:?}");
}

/// The op that a kernel file belongs to: the one whose name is the file's, or the longest `<op>_` it begins with
/// (`conv2d_depthwise.cu` is of `conv2d`).
fn op_of<'n>(file: &str, names: &'n BTreeSet<String>) -> Option<&'n String> {
    let fits =
        |name: &&String| file.strip_prefix(&***name).is_some_and(|r| r.is_empty() || r.starts_with('_'));
    names.iter().filter(fits).max_by_key(|n| n.len())
}

/// Names of the entries (`extern "C" __global__ void __launch_bounds__(..) name(`) of CUDA text.
fn entries(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    let name = |rest: &str| {
        let rest = rest.split_once("void").expect("a kernel gives nothing back").1.trim_start();
        let bounds = rest.strip_prefix("__launch_bounds__").map(|r| {
            let mut depth = 0;
            let end = r.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                c == ')' && depth == 0
            });
            &r[end.expect("a closed bracket") + 1..]
        });
        let name = bounds.unwrap_or(rest).trim_start();
        name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    code.split("extern \"C\"").skip(1).map(name).collect()
}

#[test]
fn every_kernel_belongs_to_an_op_that_says_so() {
    let kernels = stems("kernels", |p| p.extension().is_some_and(|e| e == "cu"));
    let mut names: BTreeSet<String> = names().union(&untaped()).cloned().collect();
    names.extend(FUNCTIONS.map(String::from));
    let mut with_kernel = BTreeSet::new();
    for file in &kernels {
        let op = op_of(file, &names).unwrap_or_else(|| panic!("kernels/{file}.cu belongs to no op"));
        with_kernel.insert(op.clone());
        let text = std::fs::read_to_string(folder("kernels").join(format!("{file}.cu"))).unwrap();
        let entries = entries(&text);
        assert!(!entries.is_empty(), "kernels/{file}.cu has no `extern \"C\"` kernel");
        for entry in entries {
            let after = entry.strip_prefix(op.as_str());
            assert!(
                after.is_some_and(|r| r.starts_with('_')),
                "kernels/{file}.cu: entry `{entry}` is not named {op}_.."
            );
        }
    }
    for e in REGISTRY {
        let says = (e.cases)().iter().any(|c| c.op.has_kernel());
        assert_eq!(
            says,
            with_kernel.contains(e.name),
            "{}: has_kernel (left) and a file in kernels/",
            e.name
        );
    }
}

/// `tests/kernels/untaped.rs` runs the check of every operation without a tape; what it launches is of the operation's own
/// files, or it could not be told whether all of them are checked.
#[test]
fn every_operation_without_a_tape_has_kernels_of_its_own() {
    let names: BTreeSet<String> = names().union(&untaped()).cloned().collect();
    for e in UNTAPED {
        let variants = (e.variants)();
        assert!(!variants.is_empty(), "{} launches nothing", e.name);
        for v in variants {
            let file = v.source.trim_end_matches(".cu");
            assert_eq!(op_of(file, &names).map(String::as_str), Some(e.name), "{}", v.source);
        }
    }
    let tests = std::fs::read_to_string(folder("tests/kernels/untaped.rs")).unwrap();
    assert!(tests.contains("for_each_untaped!(tests)"), "a test for each is made from the list");
}

#[test]
fn entries_are_found_whatever_stands_around_them() {
    let text = "// extern \"C\" in a comment\nextern \"C\" __global__ void\n__launch_bounds__(f(128), 2)\nadd_fwd(int n) {}\n\
                extern \"C\" __global__ void add_bwd(const __grid_constant__ P p) {}";
    assert_eq!(entries(text), ["add_fwd", "add_bwd"]);
    let names: BTreeSet<String> = ["conv2d", "add", "add_x"].map(String::from).into();
    assert_eq!(op_of("conv2d_depthwise", &names).map(String::as_str), Some("conv2d"));
    assert_eq!(op_of("add_x_fast", &names).map(String::as_str), Some("add_x"));
    assert_eq!(op_of("adds", &names), None);
}

#[test]
fn names_are_sorted_and_unique() {
    let in_order = |w: &[dtk::ops::Entry]| w[0].name < w[1].name;
    if let Some(w) = REGISTRY.windows(2).find(|w| !in_order(w)) {
        panic!("`{}` stands before `{}`", w[0].name, w[1].name);
    }
    assert!(REGISTRY.len() >= 26);
}

#[test]
fn every_module_says_what_it_computes() {
    for e in REGISTRY {
        let (file, module) = (format!("src/ops/{}.rs", e.name), format!("src/ops/{}/mod.rs", e.name));
        let path = [file, module].map(|p| folder(&p)).into_iter().find(|p| p.is_file()).expect("a file");
        let text = std::fs::read_to_string(&path).unwrap();
        let doc: Vec<&str> = text.lines().take_while(|l| l.starts_with("//!")).collect();
        assert!(doc.first().is_some_and(|l| l.len() > 20), "{} begins without a `//!` text", path.display());
    }
}

#[test]
fn every_entry_has_cases() {
    for e in REGISTRY {
        let cases = (e.cases)();
        let small = cases.iter().filter(|c| !c.bench).count();
        assert!(small >= 2, "{} has {small} test cases", e.name);
        assert!(cases.iter().any(|c| c.bench), "{} has no bench case", e.name);
        let mut labels = BTreeSet::new();
        for c in &cases {
            let what = format!("{}, case `{}`", e.name, c.label);
            // A bench may show in real size what a test case shows in small, under the same label.
            let new = labels.insert((c.bench, &c.label));
            assert!(!c.label.trim().is_empty() && new, "{what}: empty or repeated label");
            assert_eq!(c.op.name(), e.name, "{what}");
            let (shapes, elems) = (c.shapes(), c.shapes().iter().map(|s| s.elems()).sum::<usize>());
            let y = c.op.output_shape(&shapes).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(y.elems() > 0, "{what}: the result is empty");
            assert!(!c.bench || elems >= 1 << 10 || e.name == "weighted_sum", "{what} is too small to time");
            if c.bench && !NO_ARITHMETIC.contains(&e.name) {
                // Only nearest-neighbour resizing computes nothing.
                let nearest = e.name == "resize" && format!("{:?}", c.op).contains("Nearest");
                assert_eq!(c.op.flops(&shapes) > 0, !nearest, "{what}: FLOPs");
            }
            let names: BTreeSet<&str> = c.inputs.iter().map(|i| i.name).collect();
            // Ops of any number of equal inputs call all of them the same.
            assert!([1, c.inputs.len()].contains(&names.len()), "{what}: some inputs share a name");
        }
        let bench = cases.iter().filter(|c| c.bench).map(|c| c.op.flops(&c.shapes())).max();
        assert_eq!(bench > Some(0), !NO_ARITHMETIC.contains(&e.name), "{}: FLOPs", e.name);
    }
}

#[test]
fn cases_repeat_with_the_seed() {
    for e in REGISTRY {
        for c in (e.cases)().iter().filter(|c| !c.bench) {
            for (a, b) in c.tensors(5).iter().zip(c.tensors(5)) {
                let same = match (a.f32s(), b.f32s()) {
                    (Ok(a), Ok(b)) => a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()),
                    _ => a.data::<i64>().unwrap() == b.data::<i64>().unwrap(),
                };
                assert!(same, "{}, case `{}`", e.name, c.label);
            }
        }
    }
}
