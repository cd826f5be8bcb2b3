//! Metrics on disk: `metrics.jsonl` and TensorBoard events.

use super::StepReport;
use super::course::Reported;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Appends lines to a JSON-lines file.
pub(super) struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Opens the file for appending after dropping every line whose `step` is above `last_step`: they belong to a
    /// part of the run that is about to be repeated.
    pub fn open(path: &Path, last_step: u64) -> Result<Self> {
        let failed = |e| Error::io(path, "cannot write the metrics", e);
        if let Ok(text) = std::fs::read_to_string(path) {
            let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
            let kept: String = text
                .lines()
                .filter(|l| step(l).is_some_and(|s| s <= last_step))
                .flat_map(|l| [l, "\n"])
                .collect();
            crate::tensor::write_atomically(path, |f| f.write_all(kept.as_bytes()))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(JsonLines { path: path.to_path_buf(), file })
    }

    /// Appends one line.
    pub fn write(&mut self, values: &Map<String, Value>) -> Result<()> {
        let mut line = serde_json::to_vec(values).expect("metrics are plain data");
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, "cannot write the metrics", e))
    }
}

/// Writes scalars in TensorBoard's event format: TFRecord framing (length, masked CRC-32C, data, masked CRC-32C)
/// around `Event` messages in protobuf encoding.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates `events.out.tfevents.<seconds>.<purge step>.dtk` in `dir`. Events of an earlier file after
    /// `purge_step` are hidden by TensorBoard, as they are about to be repeated.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: &Path, wall_time: f64, purge_step: u64) -> Result<Self> {
        let path = dir.join(format!("events.out.tfevents.{:010}.{purge_step}.dtk", wall_time as u64));
        let file = File::create(&path).map_err(|e| Error::io(&path, "cannot write the events", e))?;
        let mut w = EventWriter { path, file };
        let mut event = Vec::new();
        double(&mut event, 1, wall_time);
        bytes(&mut event, 3, b"brain.Event:2");
        w.record(&event)?;
        if purge_step > 0 {
            // SessionLog { status: START } tells TensorBoard that steps from here on start again.
            let mut event = Vec::new();
            double(&mut event, 1, wall_time);
            varint_field(&mut event, 2, purge_step);
            bytes(&mut event, 7, &[0x08, 0x01]);
            w.record(&event)?;
        }
        Ok(w)
    }

    /// Writes scalars of one step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, wall_time: f64, step: u64, values: &[(String, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, v) in values {
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5);
            value.extend(v.to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        let mut event = Vec::new();
        double(&mut event, 1, wall_time);
        varint_field(&mut event, 2, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let mask = |crc: u32| crc.rotate_right(15).wrapping_add(0xA282_EAD8);
        let length = (data.len() as u64).to_le_bytes();
        let mut out = length.to_vec();
        out.extend(mask(crc32c::crc32c(&length)).to_le_bytes());
        out.extend(data);
        out.extend(mask(crc32c::crc32c(data)).to_le_bytes());
        self.file.write_all(&out).map_err(|e| Error::io(&self.path, "cannot write the events", e))
    }
}

fn varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u64, v: u64) {
    varint(out, field << 3);
    varint(out, v);
}

fn double(out: &mut Vec<u8>, field: u64, v: f64) {
    varint(out, field << 3 | 1);
    out.extend(v.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, v: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, v.len() as u64);
    out.extend(v);
}

/// A time to two decimals.
pub(super) fn milliseconds(d: Duration) -> Value {
    json!((d.as_secs_f64() * 1e5).round() / 100.0)
}

/// An f32 as the shortest decimal that reads back as the same f32.
pub(super) fn short(v: f32) -> Value {
    json!(v.to_string().parse().unwrap_or(f64::from(v)))
}

impl Reported for StepReport {
    fn line(&self) -> Map<String, Value> {
        let mut m = Map::new();
        m.insert("step".into(), json!(self.step));
        m.insert("epoch".into(), json!(self.epoch));
        for (tag, v) in self.scalars() {
            m.insert(tag, short(v));
        }
        m.insert("lr".into(), json!(self.lr));
        m.insert("step_ms".into(), milliseconds(self.time));
        m.insert("data_wait_ms".into(), milliseconds(self.data_wait));
        // On a device the step is one graph, whose parts are not timed.
        for (key, time) in [("teacher_ms", self.teacher_time), ("student_ms", self.student_time)] {
            if time > Duration::ZERO {
                m.insert(key.into(), milliseconds(time));
            }
        }
        m
    }

    fn scalars(&self) -> Vec<(String, f32)> {
        let mut v = vec![
            ("loss".to_string(), self.loss),
            ("mse".to_string(), self.mse),
            ("at".to_string(), self.at),
            ("lr".to_string(), self.lr as f32),
            ("grad_norm".to_string(), self.grad_norm as f32),
            ("images_per_s".to_string(), self.images as f32 / self.time.as_secs_f32().max(1e-9)),
        ];
        for l in &self.levels {
            v.push((format!("cosine/stride{}", l.stride), l.cosine));
            v.push((format!("mse/stride{}", l.stride), l.mse));
            v.push((format!("at/stride{}", l.stride), l.at));
        }
        v.extend(self.knn_top1.map(|k| ("knn_top1".to_string(), k as f32)));
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_drops_later_and_broken_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut log = JsonLines::open(&path, 2).unwrap();
        log.write(serde_json::json!({"step": 3, "again": true}).as_object().unwrap()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"again\":true}\n");
    }

    /// Bytes worked out by hand from the protobuf and TFRecord definitions.
    #[test]
    fn event_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = EventWriter::create(dir.path(), 1.0, 0).unwrap();
        w.scalars(2.0, 300, &[("a".into(), 0.5)]).unwrap();
        let data = std::fs::read(&w.path).unwrap();
        let first = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
        assert_eq!(&data[12..12 + 9], [9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        assert_eq!(&data[21..12 + first], b"\x1a\x0dbrain.Event:2");
        let at = 12 + first + 4;
        let second = u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) as usize;
        let event = &data[at + 12..at + 12 + second];
        let want = [
            &[9u8, 0, 0, 0, 0, 0, 0, 0, 0x40][..],
            &[0x10, 0xac, 0x02],
            &[0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0, 0x3f],
        ]
        .concat();
        assert_eq!(event, want);
        assert_eq!(data.len(), at + 12 + second + 4);
        // CRC-32C of the nine bytes "123456789" is the published check value; the mask is TFRecord's.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }
}
