//! `dtk bench` as users run it, and the page that its report is part of.

#[path = "common/gpu.rs"]
mod gpu;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn dtk(dir: &Path, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dtk"));
    c.arg("bench")
        .args(args)
        .current_dir(dir)
        .env("DTK_COMMIT", "0123456789ab")
        .env("DTK_CACHE_DIR", gpu::CACHE);
    c
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts success; gives standard output.
fn ok(o: &Output) -> String {
    assert_eq!(o.status.code(), Some(0), "{}\n{}", text(&o.stdout), text(&o.stderr));
    text(&o.stdout)
}

/// Asserts an exit code and that the message holds all of `needles`.
fn fails(o: &Output, code: i32, needles: &[&str]) {
    let message = text(&o.stderr);
    assert_eq!(o.status.code(), Some(code), "{}\n{message}", text(&o.stdout));
    assert!(!message.contains("panicked"), "{message}");
    for n in needles {
        assert!(message.contains(n), "`{n}` is not in: {message}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn times(results: &Value) -> Vec<usize> {
    results["rows"].as_array().unwrap().iter().map(|r| r["ms"].as_array().unwrap().len()).collect()
}

#[test]
fn times_are_taken_kept_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let run = |file| dtk(dir.path(), &["ops", "relu", "--seconds", "0", "--json", file]).output().unwrap();
    let printed = ok(&run("a.json"));
    ok(&run("b.json"));
    let a = json(&dir.path().join("a.json"));
    assert_eq!((a["format"].as_str(), a["version"].as_u64()), (Some("dtk-bench"), Some(1)));
    assert_eq!(a["dtk"]["commit"], "0123456789ab");
    assert_eq!(
        (a["machine"]["device"].as_str(), a["machine"]["simulated"].as_bool()),
        (Some("cpu"), Some(false))
    );
    let rows = a["rows"].as_array().unwrap();
    assert!(rows.iter().any(|r| r["pass"] == "backward") && rows.iter().all(|r| r["op"] == "relu"), "{a}");
    assert_eq!(printed.lines().filter(|l| l.starts_with("relu")).count(), rows.len(), "{printed}");
    assert_eq!(times(&a), vec![3; rows.len()]);
    ok(&dtk(dir.path(), &["--merge", "a.json", "b.json", "--json", "all.json"]).output().unwrap());
    assert_eq!(times(&json(&dir.path().join("all.json"))), vec![6; rows.len()]);
}

#[test]
fn the_teachers_convolutions_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["conv", "--list", "--batch", "8,64", "--json", "list.json"];
    let printed = ok(&dtk(dir.path(), &args).output().unwrap());
    assert!(printed.contains("[64, 256, 256, 256] -> 256, 3x3"), "{printed}");
    let list = json(&dir.path().join("list.json"));
    assert_eq!(times(&list), [0; 68]);
    let of = |n: u64| {
        let all = list["rows"].as_array().unwrap().iter().filter(move |r| r["convolution"]["n"] == n);
        all.map(|r| r["flops"].as_f64().unwrap() * r["count"].as_f64().unwrap()).sum::<f64>()
    };
    assert_eq!(of(64), 8.0 * of(8));
    // 480.4 GMAC an image.
    assert!((of(8) / 16e9 - 480.4).abs() < 0.2, "{}", of(8) / 16e9);
}

#[test]
fn the_phases_of_a_step_are_timed() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        ["step", "--seconds", "0", "--batch", "2", "--set", "data.height=32", "--set", "data.width=32"];
    let printed = ok(&dtk(dir.path(), &[&args[..], &["--json", "a.json"]].concat()).output().unwrap());
    assert!(printed.contains("images/s") && printed.contains("2 images: whole step"), "{printed}");
    let a = json(&dir.path().join("a.json"));
    assert_eq!(times(&a), [3; 4]);
    let rows = a["rows"].as_array().unwrap();
    assert!(rows.iter().all(|r| r["suite"] == "step" && r["pass"] == "whole" && r["dtype"] == "f32"), "{a}");
    // As the file of a run on a card would be merged and reported.
    ok(&dtk(dir.path(), &["--merge", "a.json", "a.json", "--json", "all.json"]).output().unwrap());
    assert_eq!(times(&json(&dir.path().join("all.json"))), [6; 4]);
}

/// The step of the paper's recipe on an H100, where there may be neither a card nor its driver.
#[test]
fn a_step_is_listed_without_a_card() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["step", "--device", "cuda", "--list", "--batch", "8,64", "--json", "list.json"];
    let printed = ok(&dtk(dir.path(), &args).output().unwrap());
    assert!(printed.contains("imagenet, 64 images: whole step") && printed.contains("launches"), "{printed}");
    let list = json(&dir.path().join("list.json"));
    assert_eq!(times(&list), [0; 8]);
    let rows = list["rows"].as_array().unwrap();
    let teacher = |i: usize| rows[i]["flops"].as_f64().unwrap() / rows[i]["images"].as_f64().unwrap();
    assert_eq!(rows[4]["case"], "imagenet, 64 images: teacher");
    // 486.4 GMAC an image, less what folding the convolutions behind up-samplers saves.
    assert!((2.0 * 470.0e9..2.0 * 487.0e9).contains(&teacher(4)), "{}", teacher(4) / 2e9);
    assert!((teacher(0) - teacher(4)).abs() < 1e-3 * teacher(4));
    let launches: Vec<u64> = rows.iter().map(|r| r["launches"].as_u64().unwrap()).collect();
    assert_eq!(launches[7], launches[5] + launches[6]);
}

#[test]
fn what_cannot_be_done_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| dtk(dir.path(), args).output().unwrap();
    fails(&run(&["ops", "nosuchop"]), 2, &["nosuchop", "--list"]);
    fails(&run(&["nosuchlist"]), 2, &["nosuchlist", "conv"]);
    fails(&run(&["ops", "relu", "--seconds", "4000"]), 2, &["--seconds"]);
    fails(&run(&["conv", "--batch", "0"]), 2, &["--batch", "at least one"]);
    fails(&run(&["step", "--batch", "0"]), 2, &["--batch", "at least one"]);
    fails(&run(&["step", "nosuchphase"]), 2, &["nosuchphase", "--list"]);
    fails(&run(&["step", "--batch", "4", "--set", "train.accumulate=2"]), 2, &["train.accumulate", "CPU"]);
    fails(&run(&["conv", "--recipe", "imagenet"]), 2, &["--recipe", "dtk bench step"]);
    fails(&run(&["--merge", "a.json"]), 2, &["--json"]);
    std::fs::write(dir.path().join("a.json"), "{}").unwrap();
    fails(&run(&["--merge", "a.json", "--json", "b.json"]), 1, &["a.json", "docs/formats.md"]);
    fails(&run(&["--report"]), 1, &["performance.md", "--page"]);
    fails(&run(&["ops", "relu", "--device", "tpu"]), 2, &["tpu"]);
}

#[test]
fn a_simulated_device_is_not_timed() {
    let Some(driver) = gpu::simulator() else { return println!("skipped: there is no libptxsim_driver.so") };
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let all = [&["ops", "conv2d", "--device", "cuda"], args].concat();
        dtk(dir.path(), &all).env("DTK_CUDA_DRIVER", &driver).output().unwrap()
    };
    fails(&run(&["--json", "a.json"]), 1, &["a simulated device has no speed", "--list"]);
    assert!(!dir.path().join("a.json").exists());
    ok(&run(&["--list", "--json", "a.json"]));
    let list = json(&dir.path().join("a.json"));
    assert_eq!(list["machine"]["simulated"], true);
    assert!(times(&list).iter().all(|n| *n == 0) && list["rows"][1]["dtype"] == "bf16", "{list}");
}

/// The committed page is what `dtk bench --report` makes of the committed results.
#[test]
fn the_page_is_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (page, copy) = (root.join("docs/performance.md"), dir.path().join("performance.md"));
    std::fs::copy(&page, &copy).unwrap();
    ok(&dtk(root, &["--report", "--page", copy.to_str().unwrap()]).output().unwrap());
    let read = |p: &Path| std::fs::read_to_string(p).unwrap();
    assert!(read(&copy) == read(&page), "run `dtk bench --report` and commit docs/performance.md");
}
