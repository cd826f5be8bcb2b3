//! The command, as a process.
#![cfg(feature = "cli")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder that goes when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("ptxsim-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ptxsim<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptxsim")).args(args).output().unwrap()
}

/// What a run printed; it has to end with that code.
#[track_caller]
fn printed(args: &[&str], code: i32) -> String {
    let output = ptxsim(args);
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "ptxsim {}\n{text}", args.join(" "));
    text
}

const SAXPY: &str = r#"
extern "C" __global__ void saxpy(float a, const float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void wild(const float *x, float *y) {
    y[threadIdx.x] = x[threadIdx.x + WIDTH];
}
"#;

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

#[test]
fn compile_writes_what_the_name_says() {
    if common::nvrtc().is_none() {
        return;
    }
    let dir = Folder::new("compile");
    let source = dir.write("saxpy.cu", SAXPY);
    let (ptx, cubin) = (dir.0.join("a.ptx"), dir.0.join("a.cubin"));
    let source = path(&source);
    printed(&["compile", source, "--arch", "compute_80", "-D", "WIDTH=1", "-o", path(&ptx)], 0);
    let text = std::fs::read_to_string(&ptx).unwrap();
    assert!(text.contains(".target sm_80") && text.contains(".entry saxpy("), "{text}");
    let said = printed(&["compile", source, "-D", "WIDTH=1", "-o", path(&cubin)], 0);
    assert!(said.contains("saxpy: ") && said.contains(" registers"), "{said}");
    assert!(std::fs::read(&cubin).unwrap().starts_with(b"\x7fELF"));
    let said = printed(&["compile", source, "--arch", "compute_80"], 2);
    assert!(said.contains("saxpy.cu(7): error: identifier \"WIDTH\" is undefined"), "{said}");
    let said = printed(
        &["compile", source, "--arch", "compute_80", "-D", "WIDTH=1", "-o", path(&dir.0.join("a.cubin"))],
        2,
    );
    assert!(said.contains("--arch sm_"), "{said}");
}

#[test]
fn usage_errors_end_with_2_and_help() {
    let said = printed(&["compile", "nowhere.cu"], 2);
    assert!(said.contains("nowhere.cu"), "{said}");
    let said = printed(&["run", "k.cu"], 2);
    assert!(said.contains("--block"), "{said}");
    let said = printed(&["run", "k.cu", "--block", "1,2,3,4"], 2);
    assert!(said.contains("at most three"), "{said}");
    let said = printed(&["run", "k.cu", "--block", "32", "--arg", "buf:f32=zeros"], 2);
    assert!(said.contains("how many") && said.contains("buf:TYPE[N]"), "{said}");
    let said = printed(&["run", "k.cubin", "--block", "32"], 2);
    assert!(said.contains("machine code"), "{said}");
    let said = printed(&["profile", "k.ptx"], 2);
    assert!(said.contains("neither .cu nor .cubin"), "{said}");
}

#[test]
fn run_prints_and_writes_what_it_is_asked_for() {
    if common::nvrtc().is_none() {
        return;
    }
    let dir = Folder::new("run");
    let (source, ptx) = (dir.write("saxpy.cu", SAXPY), dir.0.join("saxpy.ptx"));
    printed(&["compile", path(&source), "--arch", "compute_80", "-D", "WIDTH=1", "-o", path(&ptx)], 0);
    let (npy, raw, json) = (dir.0.join("y.npy"), dir.0.join("y.bin"), dir.0.join("report.json"));
    let (to_npy, to_raw) = (format!("y={}", path(&npy)), format!("2={}", path(&raw)));
    let launch = ["--kernel", "saxpy", "--grid", "2", "--block", "64", "--arg", "f32:2", "--arg"];
    let mut args = vec!["run", path(&ptx)];
    args.extend(launch);
    args.extend(["buf:f32[100]=iota", "--arg", "y=buf:f32[100]=fill(0.5)", "--arg", "i32:100"]);
    args.extend(["--print", "y", "--limit", "10", "--out", &to_npy, "--out", &to_raw, "--json", path(&json)]);
    let said = printed(&args, 0);
    assert!(said.contains("y: f32[100]") && said.contains("90 more"), "{said}");
    let row = "0.5          2.5          4.5          6.5";
    assert!(said.contains(row), "{said}");
    assert!(said.contains("saxpy <<<(2, 1, 1), (64, 1, 1)>>>: nothing found"), "{said}");
    assert!(said.contains("warp instr"), "{said}");
    let raw = std::fs::read(&raw).unwrap();
    assert_eq!((raw.len(), &raw[396..]), (400, 198.5f32.to_le_bytes().as_slice()));
    assert!(std::fs::read(&npy).unwrap().ends_with(&raw));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((report["kernel"].as_str(), &report["findings"]), (Some("saxpy"), &serde_json::json!([])));

    // What was written is read again.
    let from = format!("x=buf:f32=file({})", path(&npy));
    let mut args = vec!["run", path(&ptx)];
    args.extend(launch);
    args.extend([&from, "--arg", "y=buf:f32[100]=zeros", "--arg", "i32:100", "--print", "y", "--limit", "2"]);
    let said = printed(&args, 0);
    assert!(said.contains(" 1            5\n"), "{said}");
}

#[test]
fn run_tells_faults_and_ends_with_1() {
    if common::nvrtc().is_none() {
        return;
    }
    let dir = Folder::new("fault");
    let source = dir.write("saxpy.cu", SAXPY);
    let wild =
        ["--kernel", "wild", "--block", "64", "--arg", "buf:f32[64]=iota", "--arg", "buf:f32[64]=uninit"];
    let mut args = vec!["run", path(&source), "-D", "WIDTH=1"];
    args.extend(wild);
    let said = printed(&args, 1);
    assert!(said.contains("saxpy.cu:7: out_of_bounds in wild"), "{said}");
    assert!(said.contains("1 finding\n"), "{said}");
    args.extend(["--json", "-"]);
    let report: serde_json::Value = serde_json::from_str(&printed(&args, 1)).unwrap();
    assert_eq!(report["findings"][0]["kind"], "out_of_bounds");
    assert_eq!(report["findings"][0]["line"], 7);
    args[3] = "WIDTH=0";
    printed(&args, 0);
}

#[test]
fn run_explains_arguments_that_do_not_fit() {
    if common::nvrtc().is_none() {
        return;
    }
    let dir = Folder::new("fit");
    let source = dir.write("saxpy.cu", SAXPY);
    let base = ["run", path(&source), "-D", "WIDTH=1", "--block", "32"];
    let with = |more: &[&str]| printed(&[&base, more].concat(), 2);
    let said = with(&[]);
    assert!(said.contains("--kernel has to name one of: saxpy, wild"), "{said}");
    let said = with(&["--kernel", "sax"]);
    assert!(said.contains("no kernel sax; there are: saxpy, wild"), "{said}");
    let said = with(&["--kernel", "saxpy", "--arg", "f32:1"]);
    assert!(said.contains("saxpy takes 4 parameters, of 4, 8, 8, 4 bytes; 1 --arg are given"), "{said}");
    let buffer = "buf:f32[4]=zeros";
    let said =
        with(&["--kernel", "saxpy", "--arg", "f32:1", "--arg", buffer, "--arg", "ref:1+8", "--arg", "i64:1"]);
    assert!(said.contains("--arg 3 (i64:1) has 8 bytes"), "{said}");
    let said = with(&["--kernel", "wild", "--arg", buffer, "--arg", "ref:x"]);
    assert!(
        said.contains("--arg ref:x: x is neither the name of an argument nor a number below 2"),
        "{said}"
    );
    let said = with(&["--kernel", "wild", "--arg", buffer, "--arg", buffer, "--print", "z"]);
    assert!(said.contains("z is neither"), "{said}");
}

#[test]
fn disasm_and_profile_show_a_kernel() {
    if common::nvrtc().is_none() || common::required(ptxsim::static_view::Nvdisasm::find()).is_none() {
        return;
    }
    let file = common::kernel_dir().join("gemm_bf16.cu");
    let said = printed(&["profile", path(&file), "--arch", "sm_80"], 0);
    assert!(said.contains("gemm_bf16 (sm_80)") && said.contains("hmma"), "{said}");
    assert!(said.contains("hottest of 1 loops"), "{said}");
    let said = printed(&["profile", path(&file), "--json", "--kernel", "gemm_bf16"], 0);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json[0]["arch"], "sm_90a");
    assert_eq!(json[0]["hottest_loop"]["classes"]["hmma"], 32);
    assert_eq!(json[0]["resources"]["spill_store_bytes"], 0);
    let said = printed(&["disasm", path(&file)], 0);
    assert!(said.lines().any(|l| l.contains('‖') && l.contains("HMMA.16816.F32.BF16")), "{said}");
    let said = printed(&["disasm", path(&file), "--kernel", "gemm"], 2);
    assert!(said.contains("there are: gemm_bf16"), "{said}");
}

#[test]
fn the_driver_is_linked_into_a_folder() {
    let dir = Folder::new("driver");
    let library = dir.write("libptxsim_driver.so", "not really");
    let to = dir.0.join("deep/lib");
    let said = printed(&["driver", "--install", path(&to), "--library", path(&library)], 0);
    assert!(said.contains("LD_LIBRARY_PATH="), "{said}");
    for name in ["libcuda.so", "libcuda.so.1"] {
        assert_eq!(std::fs::read_to_string(to.join(name)).unwrap(), "not really");
        assert!(to.join(name).symlink_metadata().unwrap().is_symlink());
    }
    // Once more over its own links; not over a file.
    printed(&["driver", "--install", path(&to), "--library", path(&library)], 0);
    std::fs::remove_file(to.join("libcuda.so.1")).unwrap();
    std::fs::write(to.join("libcuda.so.1"), "a driver").unwrap();
    let said = printed(&["driver", "--install", path(&to), "--library", path(&library)], 2);
    assert!(said.contains("left alone"), "{said}");
    assert_eq!(std::fs::read_to_string(to.join("libcuda.so.1")).unwrap(), "a driver");
    let said = printed(&["driver", "--install", path(&to), "--library", "nowhere.so"], 2);
    assert!(said.contains("nowhere.so"), "{said}");
}
