//! Reference values: where they are, how they are read, how results are compared with them.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

use dtk::tensor::SafetensorsFile;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of the reference values: `DTK_GOLDEN`, else `tests/golden`; `None`, with the reason printed, if it
/// holds no manifest.
pub fn golden_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("DTK_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    if dir.join("manifest.json").is_file() {
        return Some(dir);
    }
    eprintln!("skipped: {} holds no manifest.json (DTK_GOLDEN names another folder)", dir.display());
    None
}

/// The set's `manifest.json`.
pub fn manifest(dir: &Path) -> Value {
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a manifest that belong to `section`: name and entry.
pub fn section<'a>(manifest: &'a Value, section: &str) -> Vec<(&'a str, &'a Value)> {
    let files = manifest["files"].as_object().expect("`files` of the manifest is an object");
    let found: Vec<_> = files
        .iter()
        .filter(|(_, entry)| entry["section"] == section)
        .map(|(name, entry)| (name.as_str(), entry))
        .collect();
    if found.is_empty() {
        eprintln!("skipped: the manifest lists no file of section {section}");
    }
    found
}

/// Opens one file of the set.
pub fn open(dir: &Path, file: &str) -> SafetensorsFile {
    SafetensorsFile::open(dir.join(file)).unwrap_or_else(|e| panic!("{e}"))
}

/// Asserts that all elements are finite and `|got - want| <= atol + rtol |want|`; reports the worst one.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], rtol: f64, atol: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    let mut worst = (0, 0.0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(g.is_finite() && w.is_finite(), "{name}: element {i} is {g:e}, expected {w:e}");
        let excess = (f64::from(g) - f64::from(w)).abs() - (atol + rtol * f64::from(w).abs());
        if excess > worst.1 {
            worst = (i, excess);
        }
    }
    let (i, excess) = worst;
    assert!(
        excess <= 0.0,
        "{name}: element {i} is {:e}, expected {:e}: beyond rtol {rtol:e} and atol {atol:e} by {excess:e}",
        got[i],
        want[i]
    );
}

/// The largest absolute value; 0 for no values.
pub fn max_abs(v: &[f32]) -> f64 {
    v.iter().fold(0.0, |m, x| f64::max(m, f64::from(x.abs())))
}
