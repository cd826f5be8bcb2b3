//! What the golden tests share: the set of reference values, its manifest, comparisons.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

pub mod golden;

use dtk::tensor::SafetensorsFile;
use serde_json::Value;
use std::path::PathBuf;

/// The folder of the reference values: `DTK_GOLDEN`, or `tests/golden`.
pub fn golden_dir() -> PathBuf {
    std::env::var_os("DTK_GOLDEN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// `manifest.json` of a set of reference values.
pub struct Manifest(pub Value);

impl Manifest {
    /// Reads the manifest; `None`, with the reason printed, where there is none.
    pub fn open() -> Option<Self> {
        let path = golden_dir().join("manifest.json");
        if !path.is_file() {
            eprintln!("skipped: {} does not exist (DTK_GOLDEN names another folder)", path.display());
            return None;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(Manifest(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
    }

    /// The entry of one file.
    pub fn file(&self, file: &str) -> &Value {
        let entry = &self.0["files"][file];
        assert!(entry.is_object(), "the manifest has no entry for {file}");
        entry
    }
}

/// Opens one file of the set; `None`, with the reason printed, if it is not there.
pub fn load(file: &str) -> Option<SafetensorsFile> {
    let path = golden_dir().join(file);
    if !path.is_file() {
        eprintln!("skipped: {} does not exist (DTK_GOLDEN names another folder)", path.display());
        return None;
    }
    Some(SafetensorsFile::open(&path).unwrap_or_else(|e| panic!("{e}")))
}

/// Manifest entry and data of one file; `None`, with the reason printed, if the set lacks it.
pub fn golden(file: &str) -> Option<(Value, SafetensorsFile)> {
    let manifest = Manifest::open()?;
    let data = load(file)?;
    Some((manifest.file(file).clone(), data))
}

/// A tensor of the set as f32 values.
pub fn f32s(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.get(name).and_then(|t| t.into_vec()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A tensor of the set as f64 values.
pub fn f64s(file: &SafetensorsFile, name: &str) -> Vec<f64> {
    file.get(name).and_then(|t| t.into_vec()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Asserts `|got - want| <= atol + rtol |want|` for every element, all of them finite; reports the worst one.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], rtol: f64, atol: f64) {
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_close_f64(name, &wide(got), &wide(want), rtol, atol);
}

/// As [`assert_close`], in f64.
pub fn assert_close_f64(name: &str, got: &[f64], want: &[f64], rtol: f64, atol: f64) {
    assert_comparable(name, got, want);
    let mut worst = (0, 0.0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (error, limit) = ((g - w).abs(), atol + rtol * w.abs());
        // 0 <= 0 passes, so exact comparisons work too.
        let ratio = if error <= limit {
            if limit > 0.0 { error / limit } else { 0.0 }
        } else {
            f64::MAX.min(error / limit)
        };
        if ratio > worst.1 {
            worst = (i, ratio);
        }
    }
    let (i, ratio) = worst;
    assert!(
        ratio <= 1.0,
        "{name}: element {i} is {:e}, expected {:e}: {ratio:.3} times the tolerance (rtol {rtol:e}, atol {atol:e})",
        got[i],
        want[i]
    );
}

/// Asserts `||got - want|| <= tol ||want||`, all elements finite.
pub fn assert_rel_l2(name: &str, got: &[f32], want: &[f32], tol: f64) {
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (got, want) = (wide(got), wide(want));
    assert_comparable(name, &got, &want);
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    let size = norm(&mut want.iter().copied());
    assert!(error <= tol * size, "{name}: relative L2 error {:e} exceeds {tol:e}", error / size);
}

fn assert_comparable(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    for (what, v) in [("computed", got), ("reference", want)] {
        if let Some(i) = v.iter().position(|x| !x.is_finite()) {
            panic!("{name}: {what} element {i} is {}", v[i]);
        }
    }
}

/// The largest absolute value; 0 for no values.
pub fn max_abs(v: &[f32]) -> f64 {
    v.iter().fold(0.0, |m, x| f64::max(m, f64::from(x.abs())))
}
