//! What the program says where something of CUDA is missing or does not fit, each in a process of its own.

#[path = "common/gpu.rs"]
mod gpu;

use std::path::Path;
use std::process::{Command, Output};

/// `dtk` on the simulator, with a cache of its own.
fn dtk(dir: &Path, args: &[&str]) -> Option<Command> {
    let Some(simulator) = gpu::simulator() else {
        println!("skipped: libptxsim_driver.so is not beside the test's executable");
        return None;
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtk"));
    command.args(args).env("DTK_CUDA_DRIVER", simulator).env("DTK_CACHE_DIR", dir).env("PTXSIM_QUIET", "1");
    Some(command)
}

fn text(output: &Output) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Asserts the exit code and what is said.
fn says(command: &mut Command, code: i32, needles: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for needle in needles {
        assert!(text.contains(needle), "`{needle}` is not in: {text}");
    }
    text
}

const ON_CUDA: &[&str] = &["check", "relu", "--device", "cuda"];

#[test]
fn the_simulator_is_never_taken_for_a_card() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut info) = dtk(dir.path(), &["info"]) else { return };
    says(
        &mut info,
        0,
        &[
            "SIMULATED by ptxsim",
            "libptxsim_driver.so",
            "NVIDIA H100",
            "sm_90a",
            "132 multi",
            "ready, SIMULATED",
        ],
    );
}

#[test]
fn a_driver_that_is_not_there_or_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("libcuda.so");
    std::fs::write(&fake, "not a library").unwrap();
    for path in [dir.path().join("gone.so"), fake] {
        let name = path.to_str().unwrap();
        let Some(mut info) = dtk(dir.path(), &["info"]) else { return };
        says(info.env("DTK_CUDA_DRIVER", &path), 0, &[name, "DTK_CUDA_DRIVER", "not usable"]);
        let mut check = dtk(dir.path(), ON_CUDA).unwrap();
        says(check.env("DTK_CUDA_DRIVER", &path), 1, &[name, "CUDA driver", "--device cpu"]);
    }
}

#[test]
fn a_machine_without_a_driver() {
    let plain = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtk"));
        command.args(args).env_remove("DTK_CUDA_DRIVER").env_remove("LD_LIBRARY_PATH");
        command
    };
    let info = text(&plain(&["info"]).output().unwrap());
    if !info.contains("there is no CUDA driver") {
        println!("skipped: this machine has a CUDA driver");
        return;
    }
    assert!(info.contains("not usable") && info.contains("DTK_CUDA_DRIVER"), "{info}");
    says(&mut plain(ON_CUDA), 1, &["there is no CUDA driver", "--device cpu"]);
    says(&mut plain(&["warm"]), 1, &["no device to compile for", "--arch sm_90a,sm_80"]);
}

#[test]
fn a_library_that_is_no_driver() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut check) = dtk(dir.path(), ON_CUDA) else { return };
    let c_library = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(path) =
        c_library.lines().find_map(|l| l.find('/').map(|i| &l[i..]).filter(|p| p.contains("/libc.so")))
    else {
        println!("skipped: no other library is known here");
        return;
    };
    says(check.env("DTK_CUDA_DRIVER", path), 1, &["is no CUDA driver", "cuInit"]);
}

#[test]
fn devices_that_are_too_old_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let card = dir.path().join("turing.json");
    std::fs::write(&card, r#"{"name": "T4", "compute_capability": [7, 5]}"#).unwrap();
    let Some(mut info) = dtk(dir.path(), &["info"]) else { return };
    says(info.env("PTXSIM_CARD", &card), 0, &["T4", "7.5 is too old", "8.0", "not usable"]);
    let mut check = dtk(dir.path(), ON_CUDA).unwrap();
    says(check.env("PTXSIM_CARD", &card), 1, &["T4", "7.5 is too old", "--device cpu"]);
    let mut check = dtk(dir.path(), &["check", "relu", "--device", "cuda:7"]).unwrap();
    says(&mut check, 1, &["no CUDA device 7", "only device 0", "dtk info"]);
    for args in [ON_CUDA, &["warm"]] {
        let mut command = dtk(dir.path(), args).unwrap();
        says(command.env("PTXSIM_DEVICES", "0"), 1, &["no CUDA", "-> "]);
    }
}

#[test]
fn an_nvrtc_that_is_not_there_or_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, fake) = (dir.path().join("empty"), dir.path().join("fake"));
    for folder in [&empty, &fake] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(fake.join("libnvrtc.so.13"), "not a library").unwrap();
    for folder in [&empty, &fake, &dir.path().join("gone")] {
        let name = folder.to_str().unwrap();
        let Some(mut info) = dtk(dir.path(), &["info"]) else { return };
        let needles = [
            "NVRTC, the CUDA run-time compiler, is missing",
            name,
            "pip install",
            "apt install",
            "not usable",
        ];
        says(info.env("DTK_NVRTC_DIR", folder), 0, &needles);
    }
}

#[test]
fn the_cache_is_described() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut info) = dtk(dir.path(), &["info"]) else { return };
    let said = says(&mut info, 0, &[dir.path().to_str().unwrap(), "0 compiled"]);
    assert!(!said.contains("cannot be written"), "{said}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut info = dtk(&file, &["info"]).unwrap();
    says(&mut info, 0, &["cannot be written", "DTK_CACHE_DIR"]);
}

#[test]
fn training_without_the_compiler_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["train", "features"] {
        let Some(mut dtk) = dtk(dir.path(), &[command, "--device", "cuda"]) else { return };
        dtk.env("DTK_NVRTC_DIR", dir.path());
        says(dtk.current_dir(dir.path()), 1, &["NVRTC", "missing", "nvidia-cuda-nvrtc"]);
    }
}

#[test]
fn plans_of_features_are_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut dtk) = dtk(dir.path(), &["features", "--dry-run", "--device", "cuda"]) else { return };
    says(&mut dtk, 2, &["--device", "train --dry-run"]);
}

#[test]
fn tiles_that_cannot_be_had_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value, needles) in [
        ("DTK_TILES", "none.json", ["DTK_TILES", "none.json"]),
        ("DTK_TILE", "wide", ["DTK_TILE", "such as 128x64"]),
    ] {
        let Some(mut dtk) = dtk(dir.path(), &["check", "linear", "--device", "cuda"]) else { return };
        says(dtk.env(name, value), 1, &needles);
    }
}

#[test]
fn warming_takes_architectures_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (arch, code, needle) in [("sm_75", 1, "7.5 is too old"), ("fast", 2, "`fast` is no GPU architecture")]
    {
        let Some(mut warm) = dtk(dir.path(), &["warm", "--arch", arch]) else { return };
        says(&mut warm, code, &[needle]);
    }
    let mut warm = dtk(dir.path(), &["warm", "--jobs", "0"]).unwrap();
    says(&mut warm, 2, &["--jobs"]);
}
