//! Access to the golden reference values.

use dtk::tensor::SafetensorsFile;
use std::path::{Path, PathBuf};

/// The folder of the golden set: `DTK_GOLDEN`, else `tests/golden`. `None` if the latter holds no set, which is a
/// reason to skip; a `DTK_GOLDEN` without one is an error, because somebody asked for it.
pub fn golden_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DTK_GOLDEN").map(PathBuf::from) {
        assert!(dir.join("manifest.json").is_file(), "DTK_GOLDEN={} holds no manifest.json", dir.display());
        return Some(dir);
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if dir.join("manifest.json").is_file() {
        return Some(dir);
    }
    eprintln!("skipped: no golden set in {}; set DTK_GOLDEN to a folder that holds one", dir.display());
    None
}

/// The manifest of a golden set.
pub fn manifest(dir: &Path) -> serde_json::Value {
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Opens one file of a golden set.
pub fn open(dir: &Path, file: &str) -> SafetensorsFile {
    SafetensorsFile::open(dir.join(file)).unwrap_or_else(|e| panic!("{e}"))
}

/// Asserts that every element is finite and `|got - want| <= atol + rtol |want|`.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], rtol: f32, atol: f32) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    assert!(want.iter().all(|v| v.is_finite()), "{name}: the golden values are not finite");
    if let Some(i) = got.iter().position(|v| !v.is_finite()) {
        panic!("{name}: element {i} is {}", got[i]);
    }
    let excess = |(g, w): (&f32, &f32)| {
        let (g, w) = (f64::from(*g), f64::from(*w));
        (g - w).abs() - (f64::from(atol) + f64::from(rtol) * w.abs())
    };
    let worst = got.iter().zip(want).map(excess).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let Some((i, excess)) = worst else { return };
    assert!(
        excess <= 0.0,
        "{name}: element {i} is {} but should be {} (rtol {rtol}, atol {atol})",
        got[i],
        want[i]
    );
}
