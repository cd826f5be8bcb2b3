//! Golden tensors: a folder with `manifest.json` and safetensors files. `DTK_GOLDEN` names the folder; without it
//! `tests/golden` is used, and if that is absent the tests say so and do nothing.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

use dtk::base::DType;
use dtk::tensor::{SafetensorsFile, Tensor};
use serde_json::Value;
use std::path::PathBuf;

/// The folder, or `None` if the default one is absent.
pub fn golden_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DTK_GOLDEN") {
        return Some(dir.into());
    }
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if dir.join("manifest.json").is_file() {
        return Some(dir);
    }
    eprintln!("skipped: no golden tensors in {} and DTK_GOLDEN is not set", dir.display());
    None
}

/// One file and its entry in the manifest.
pub struct Golden {
    /// The tensors.
    pub file: SafetensorsFile,
    /// What the manifest says about the file.
    pub entry: Value,
}

impl Golden {
    /// Opens a file of the set; `None` if there is no set.
    pub fn open(name: &str) -> Option<Self> {
        let dir = golden_dir()?;
        let path = dir.join("manifest.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let manifest: Value = serde_json::from_str(&text).expect("the manifest is JSON");
        let entry = manifest["files"][name].clone();
        assert!(entry.is_object(), "the manifest has no entry `{name}`");
        Some(Golden { file: SafetensorsFile::open(dir.join(name)).unwrap(), entry })
    }

    /// A tensor as f32 (integers stay i64).
    pub fn get(&self, name: &str) -> Tensor {
        let t = self.file.get(name).unwrap_or_else(|e| panic!("{e}"));
        if t.dtype() == DType::I64 { t } else { t.to_dtype(DType::F32).unwrap() }
    }
}

/// Asserts `|got - want| <= atol + rtol * |want|` for every element, which a NaN never satisfies.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, rtol: f32, atol: f32) {
    assert_eq!(got.shape(), want.shape(), "{what}: shapes differ");
    for (i, (&g, &w)) in got.f32s().unwrap().iter().zip(want.f32s().unwrap()).enumerate() {
        let error = (g - w).abs();
        assert!(
            error <= atol + rtol * w.abs(),
            "{what}: element {i} is {g:e}, not {w:e} (off by {error:.1e})"
        );
    }
}
