//! Reading `metrics.jsonl`.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The logged steps of a run.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    rows: Vec<(f64, Map<String, Value>)>,
}

impl Metrics {
    /// Reads the file; no steps if there is none. A last line without an end is what a killed run was writing, and is
    /// left out.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no JSON object with a `step`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Metrics::default()),
            Err(e) => return Err(Error::io(path, "cannot read the metrics", e)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut rows = Vec::new();
        for (i, line) in whole.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let row: Option<Map<String, Value>> = serde_json::from_str(line).ok();
            let step = row.as_ref().and_then(|r| r.get("step")?.as_f64());
            let (Some(row), Some(step)) = (row, step) else {
                return Err(Error::format(path, format!("line {} is no JSON object with a `step`", i + 1))
                    .with_remedy("remove the line; `dtk train --resume auto` also does"));
            };
            rows.push((step, row));
        }
        Ok(Metrics { rows })
    }

    /// Every key with a number in some row, in the order in which they first occur.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = Vec::new();
        for (key, value) in self.rows.iter().flat_map(|(_, row)| row) {
            if value.is_number() && !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        keys
    }

    /// The values of a key as `[step, value]`; numbers that were not finite are absent.
    pub fn series(&self, key: &str) -> Vec<[f64; 2]> {
        self.rows.iter().filter_map(|(step, row)| Some([*step, row.get(key)?.as_f64()?])).collect()
    }

    /// The last value of a key.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.series(key).last().map(|p| p[1])
    }

    /// The median of a key's values.
    pub fn median(&self, key: &str) -> Option<f64> {
        let mut values: Vec<f64> = self.series(key).iter().map(|p| p[1]).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The last step that was logged.
    pub fn last_step(&self) -> Option<f64> {
        self.rows.last().map(|(step, _)| *step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Metrics> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        Metrics::read(&path)
    }

    #[test]
    fn series_leave_out_what_is_no_number() {
        let m = read("{\"step\":1,\"loss\":2.5,\"name\":\"x\"}\n\n{\"step\":5,\"loss\":null}\n{\"step\":9,\"loss\":1,\"b\":3}\n{\"st")
            .unwrap();
        assert_eq!(m.keys(), ["step", "loss", "b"]);
        assert_eq!(m.series("loss"), [[1.0, 2.5], [9.0, 1.0]]);
        assert_eq!((m.last("loss"), m.median("loss"), m.last("absent")), (Some(1.0), Some(2.5), None));
        assert_eq!(m.last_step(), Some(9.0));
    }

    #[test]
    fn a_broken_line_is_named() {
        for text in ["{\"step\":1}\nnot json\n{\"step\":2}\n", "{\"loss\":1}\n", "{\"step\":1}\n[]\n"] {
            let e = read(text).unwrap_err();
            assert!(e.is_format() && e.to_string().contains("line "), "{e}");
        }
        assert_eq!(read("").unwrap().last_step(), None);
        assert_eq!(Metrics::read(Path::new("/nowhere/metrics.jsonl")).unwrap().keys().len(), 0);
    }
}
