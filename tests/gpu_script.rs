//! `tools/gpu.sh` without a card: its plan, its stages on the simulator, what it does when a stage hangs.

#[path = "common/gpu.rs"]
mod gpu;

use serde_json::Value;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The whole script, as `docs/performance.md` promises.
const MOST_SECONDS: u64 = 540;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn script(args: &[&str]) -> Command {
    let mut c = Command::new("bash");
    c.arg(root().join("tools/gpu.sh")).args(args).env_remove("OUT").env_remove("DTK_CUDA_DRIVER");
    c
}

fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// The one file of results in a folder.
fn results(dir: &Path) -> (String, Value) {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    let [file] = &*files else { panic!("{files:?}") };
    let name = file.file_name().unwrap().to_str().unwrap().to_string();
    (name, serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap())
}

fn outcome<'a>(results: &'a Value, stage: &str) -> &'a str {
    let all = results["stages"].as_array().unwrap();
    let found =
        all.iter().find(|s| s["name"] == stage).unwrap_or_else(|| panic!("no stage {stage}: {all:?}"));
    found["outcome"].as_str().unwrap()
}

#[test]
fn the_plan_fits_nine_minutes() {
    let o = script(&["--dry-run"]).output().unwrap();
    let plan = text(&o);
    assert!(o.status.success(), "{plan}");
    let seconds = |l: &str| l.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let sum: u64 = plan.lines().map(seconds).sum();
    assert!(sum <= MOST_SECONDS && sum > MOST_SECONDS * 9 / 10, "{sum} s:\n{plan}");
    let at = |stage: &str| {
        plan.lines().position(|l| l.ends_with(stage)).unwrap_or_else(|| panic!("{stage}: {plan}"))
    };
    assert!(at("info") < at("check") && at("check") < at("ops") && at("ops") < at("racecheck"));
    assert!(at("tests") < at("training") && at("training") < at("step_dtk_1"), "{plan}");
    // dtk, PyTorch, PyTorch, dtk.
    for what in ["conv", "step"] {
        let turns = ["dtk_1", "torch_1", "torch_2", "dtk_2"].map(|turn| at(&format!("{what}_{turn}")));
        assert!(turns.is_sorted() && turns[3] - turns[0] == 3, "{plan}");
    }
}

#[test]
fn wrong_calls_are_refused() {
    for (args, code, needle) in [
        (&["--frobnicate"][..], 2, "--frobnicate"),
        (&["--budget", "soon"], 2, "soon"),
        (&["--out"], 2, "--out"),
        (&["--bin", "/nonexistent"], 1, "gpu_pack.sh"),
    ] {
        let o = script(args).output().unwrap();
        assert!(o.status.code() == Some(code) && text(&o).contains(needle), "{args:?}: {}", text(&o));
    }
}

#[test]
fn python_tools_check_themselves() {
    if Command::new("python3").arg("--version").output().is_err() {
        return println!("skipped: there is no python3");
    }
    for tool in ["torch_conv.py", "torch_step.py", "gpu_parts.py"] {
        let o =
            Command::new("python3").arg(root().join("tools").join(tool)).arg("--selftest").output().unwrap();
        assert!(o.status.success() && text(&o).contains("ok"), "{tool}: {}", text(&o));
    }
}

#[test]
fn all_stages_run_on_the_simulator_and_nothing_is_timed() {
    let Some(driver) = gpu::simulator() else { return println!("skipped: there is no libptxsim_driver.so") };
    let dir = tempfile::tempdir().unwrap();
    let (bin, out) = (dir.path().join("bin"), dir.path().join("out"));
    std::fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_dtk"), bin.join("dtk")).unwrap();
    let o = script(&["--budget", "200", "--bin", bin.to_str().unwrap()])
        .env("OUT", &out)
        .env("DTK_CUDA_DRIVER", driver)
        .env("DTK_CACHE_DIR", dir.path().join("cache"))
        .env("DTK_GPU_CHECK", "linear")
        .output()
        .unwrap();
    let printed = text(&o);
    assert!(out.is_dir(), "{printed}");
    let (name, r) = results(&out);
    assert!(name.ends_with("-simulated.json"), "{name}");
    for stage in ["info", "step_dtk_1", "conv_dtk_1", "ops"] {
        assert_eq!(outcome(&r, stage), "passed", "{stage}: {printed}");
    }
    let twice =
        ["torch_1", "torch_2", "dtk_2"].map(|turn| ["step", "conv"].map(|what| format!("{what}_{turn}")));
    let once = ["tests", "training", "profile", "profile_step", "memcheck", "racecheck"].map(str::to_string);
    for stage in twice.into_iter().flatten().chain(once) {
        assert_eq!(outcome(&r, &stage), "skipped", "{stage}: {printed}");
    }
    assert_eq!(o.status.success(), outcome(&r, "check") == "passed", "{printed}");
    assert_eq!(r["machine"]["simulated"], true);
    let rows = r["rows"].as_array().unwrap();
    let convolutions = rows.iter().filter(|r| r["suite"] == "conv").count();
    assert!(convolutions == 68 && rows.len() > convolutions, "{} rows", rows.len());
    let phases: Vec<_> = rows.iter().filter(|r| r["suite"] == "step").collect();
    assert!(
        phases.len() == 4 && phases.iter().all(|r| r["images"] == 64 && r["launches"].as_u64() > Some(0))
    );
    assert!(rows.iter().all(|r| r["ms"].as_array().unwrap().is_empty()), "nothing may be timed");
    assert!(!out.join("performance.md").exists(), "a simulation makes no report");
}

/// A `dtk` that hangs in one stage and fails in another costs these stages only.
#[test]
fn stages_that_hang_or_fail_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, out) = (dir.path().join("bin"), dir.path().join("out"));
    std::fs::create_dir(&bin).unwrap();
    let fake = format!(
        "#!/bin/sh\ncase \"$1 $2\" in check*) exec sleep 1000;; 'bench --merge') exec '{}' \"$@\";; bench*) exit 3;; esac\n",
        env!("CARGO_BIN_EXE_dtk")
    );
    std::fs::write(bin.join("dtk"), fake).unwrap();
    std::fs::set_permissions(bin.join("dtk"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = Instant::now();
    let mut c = script(&["--budget", "30", "--bin", bin.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let o = c.env("DTK_CUDA_DRIVER", "/nonexistent").output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{}", text(&o));
    assert_eq!(o.status.code(), Some(1), "{}", text(&o));
    let (_, r) = results(&out);
    let got = ["info", "check", "step_dtk_1", "conv_dtk_1", "ops"].map(|s| outcome(&r, s));
    assert_eq!(got, ["passed", "timeout", "failed", "failed", "failed"], "{}", text(&o));
}
