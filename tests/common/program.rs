//! The program as users run it: a folder to work in, commands, what they say.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

#[path = "gpu.rs"]
pub mod gpu;
#[path = "tiny.rs"]
pub mod tiny;

use dtk::gpu::nvrtc::Nvrtc;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A folder to work in with the recipe `tiny.toml`.
pub struct Place(pub tempfile::TempDir);

impl Place {
    /// A fresh one, removed at the end.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_recipe(dir.path());
        Place(dir)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `dtk` with these arguments, in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dtk"));
        c.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        c.env("DTK_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/kernel_cache"));
        c
    }

    /// A command on the tests' device; `None` without one.
    pub fn on_device(&self, args: &[&str]) -> Option<Output> {
        let ordinal = gpu::device()?.info().ordinal;
        let mut c = self.command(&[args, &["--device", &format!("cuda:{ordinal}")]].concat());
        if std::env::var("DTK_TEST_DEVICE").is_ok_and(|v| !v.is_empty()) {
            return Some(c.output().unwrap());
        }
        // The compiler as the tests find it, and compiled kernels kept where they keep theirs.
        let compiler = Nvrtc::find().ok()?.path().parent()?;
        let c = c.env("DTK_CUDA_DRIVER", gpu::simulator()?).env("DTK_NVRTC_DIR", compiler);
        c.env("DTK_CACHE_DIR", gpu::CACHE);
        Some(c.output().unwrap())
    }

    /// Runs `dtk`.
    pub fn dtk(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `dtk train` on the tiny recipe.
    pub fn train(&self, args: &[&str]) -> Output {
        self.dtk(&[&["train", "--recipe", "tiny.toml"], args].concat())
    }

    /// `dtk train` on the tiny recipe, still running; what it says on standard error is for the caller.
    pub fn start(&self, args: &[&str]) -> Child {
        let args = [&["train", "--recipe", "tiny.toml"], args].concat();
        self.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// Standard output.
pub fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

/// Asserts success; gives standard output.
pub fn ok(o: &Output) -> String {
    assert_eq!(o.status.code(), Some(0), "{}\n{}", out(o), String::from_utf8_lossy(&o.stderr));
    out(o)
}

/// Asserts an exit code and that the message holds all of `needles`.
pub fn fails(o: &Output, code: i32, needles: &[&str]) {
    let text = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(code), "{}\n{text}", out(o));
    assert!(!text.contains("panicked"), "{text}");
    for n in needles {
        assert!(text.contains(n), "`{n}` is not in: {text}");
    }
}
