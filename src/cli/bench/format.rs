//! The file format of measurements, version 1 (`docs/formats.md`). `dtk bench`, `tools/torch_conv.py`,
//! `tools/torch_step.py` and `tools/gpu.sh` write parts in it; parts of one machine are merged, and the report is made from the whole.
//!
//! Only what was measured is kept: every single time, FLOPs, bytes, the machine. Rates and shares are worked out by
//! whoever reads the file, so that they cannot contradict the times.

use crate::error::{Error, Result};
use crate::gpu::DeviceInfo;
use crate::ops::conv2d::Geometry;
use crate::tensor::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The value of [`Results::format`].
const FORMAT: &str = "dtk-bench";
/// The value of [`Results::version`]; a change that an older program would misread raises it.
const VERSION: u32 = 1;

/// A file of measurements, whole or a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Always [`FORMAT`].
    pub format: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// When the measurement began, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtk: Option<Program>,
    /// What it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Clock, power and temperature during the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<Clocks>,
    /// The stages of `tools/gpu.sh` and how they ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// dtk's times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Row>,
    /// PyTorch's times on the same machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<Torch>,
    /// What the profiler says of single kernels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
}

/// The program measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its version.
    pub version: String,
    /// The commit it was built from, with `-dirty` behind it if files had changed; empty if unknown.
    pub commit: String,
}

/// The machine measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `cpu` or `cuda`.
    pub device: String,
    /// The processor's or the card's name.
    pub name: String,
    /// A simulator in a card's place: nothing was timed.
    pub simulated: bool,
    /// Threads used, on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The card's attributes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
}

/// Attributes of a card, as its driver gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The CUDA version the driver offers, such as `13.0`.
    pub driver: String,
    /// Compute capability, major and minor.
    pub compute_capability: [u32; 2],
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Highest clock of the multiprocessors.
    pub clock_khz: u64,
    /// Highest clock of the memory.
    pub memory_clock_khz: u64,
    /// Width of the memory bus.
    pub memory_bus_bits: u32,
    /// Second-level cache.
    pub l2_bytes: u64,
    /// Memory.
    pub memory_bytes: u64,
}

impl Card {
    /// What a device says of itself.
    pub fn of(info: &DeviceInfo) -> Card {
        let ((major, minor), (cuda, point)) = (info.compute_capability, info.driver_version);
        Card {
            driver: format!("{cuda}.{point}"),
            compute_capability: [major, minor],
            multiprocessors: info.multiprocessors,
            clock_khz: info.clock_khz.into(),
            memory_clock_khz: info.memory_clock_khz.into(),
            memory_bus_bits: info.memory_bus_bits,
            l2_bytes: info.l2_bytes.into(),
            memory_bytes: info.total_memory_bytes,
        }
    }
}

/// Lowest, median and highest of samples taken while the stages ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// The display driver's version.
    pub driver: String,
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: [f64; 3],
    /// Clock of the memory, MHz.
    pub memory_mhz: [f64; 3],
    /// Power, W.
    pub power_w: [f64; 3],
    /// Temperature, degrees Celsius.
    pub temperature_c: [f64; 3],
}

/// One stage of `tools/gpu.sh`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Seconds it took.
    pub seconds: f64,
    /// Why it was skipped, or how it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With exit code 0.
    Passed,
    /// With another exit code.
    Failed,
    /// Stopped at its time limit.
    Timeout,
    /// Not started.
    Skipped,
}

/// Which list a case belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// The benchmark cases of all operations, forward and backward.
    Ops,
    /// The distinct convolutions of the ADM-256 teacher's early exit.
    Conv,
    /// The whole distillation step of a recipe, by phase.
    Step,
}

/// Which pass of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The result.
    Forward,
    /// All gradients the case asks for.
    Backward,
    /// All that the case names, for the list `step`.
    Whole,
}

impl Pass {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
            Pass::Whole => "whole",
        }
    }
}

/// All times of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its list.
    pub suite: Suite,
    /// The op.
    pub op: String,
    /// The case's label.
    pub case: String,
    /// The pass.
    pub pass: Pass,
    /// Element type of inputs and result.
    pub dtype: String,
    /// The sizes, for the list `conv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convolution: Option<Geometry>,
    /// How often the teacher computes it in one pass, for the list `conv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Images of the batch, for the list `step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Kernels that a card is given, for the list `step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launches: Option<usize>,
    /// Floating-point operations of the pass.
    pub flops: u64,
    /// Bytes that must be moved at least: every input read once, every result written once. For the list `step` of every
    /// operation on a card, though the next may find them in a cache.
    pub bytes: u64,
    /// All times in milliseconds, in the order they were measured. Empty if the case was only listed.
    pub ms: Vec<f64>,
}

impl Row {
    /// What makes a row another one than the next.
    pub fn key(&self) -> impl PartialEq + '_ {
        (self.suite, &self.op, &self.case, self.pass, &self.dtype, self.convolution)
    }
}

/// PyTorch's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Torch {
    /// Version of PyTorch.
    pub torch: String,
    /// Version of the CUDA it was built with; empty on a CPU.
    pub cuda: String,
    /// Version of cuDNN; 0 on a CPU.
    pub cudnn: u64,
    /// The device's name.
    pub device: String,
    /// The convolutions.
    #[serde(default)]
    pub rows: Vec<TorchRow>,
    /// Distillation steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<TorchStep>,
    /// What could not be measured, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// PyTorch's times of one convolution, channels last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchRow {
    /// The sizes.
    pub convolution: Geometry,
    /// Element type.
    pub dtype: String,
    /// With the bias added, as the teacher does it, in milliseconds.
    pub ms: Vec<f64>,
    /// Without a bias, which in PyTorch is a pass of its own.
    pub no_bias_ms: Vec<f64>,
}

/// PyTorch's times of a distillation step, or of its teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchStep {
    /// As dtk's row of the same work is called.
    pub case: String,
    /// How PyTorch computes it: eager or compiled, as released or tuned.
    pub variant: String,
    /// Element type.
    pub dtype: String,
    /// Images of the batch.
    pub images: usize,
    /// All times in milliseconds, in the order they were measured.
    pub ms: Vec<f64>,
}

/// What Nsight Compute says of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The case.
    pub case: String,
    /// The kernel's name.
    pub kernel: String,
    /// Metric, unit, value.
    pub metrics: Vec<(String, String, f64)>,
}

/// Lowest, median and highest of some times; `None` of none.
pub fn spread(ms: &[f64]) -> Option<[f64; 3]> {
    let mut v = ms.to_vec();
    v.sort_by(f64::total_cmp);
    let middle = match v.len() {
        0 => return None,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    };
    Some([v[0], middle, v[v.len() - 1]])
}

impl Default for Results {
    fn default() -> Self {
        Results {
            format: FORMAT.into(),
            version: VERSION,
            date: None,
            dtk: None,
            machine: None,
            clocks: None,
            stages: Vec::new(),
            rows: Vec::new(),
            torch: None,
            profiles: Vec::new(),
        }
    }
}

impl Results {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// It cannot be read, is not of this format and version, or holds a time that is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot read measurements", e))?;
        // The version first: a file of another one may have other fields.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let broken = |e: serde_json::Error| {
            Error::format(path, format!("no file of measurements: {e}"))
                .with_remedy("docs/formats.md describes the format; measure again")
        };
        let head: Head = serde_json::from_str(&text).map_err(broken)?;
        if (&*head.format, head.version) != (FORMAT, VERSION) {
            let found = format!("{} of version {}", head.format, head.version);
            return Err(Error::format(
                path,
                format!("{found}, but this dtk reads {FORMAT} of version {VERSION}"),
            )
            .with_remedy("measure again with this dtk"));
        }
        let results: Results = serde_json::from_str(&text).map_err(broken)?;
        let torch = results.torch.iter().flat_map(|t| &t.rows).flat_map(|r| r.ms.iter().chain(&r.no_bias_ms));
        let steps = results.torch.iter().flat_map(|t| &t.steps).flat_map(|s| &s.ms);
        if !results
            .rows
            .iter()
            .flat_map(|r| &r.ms)
            .chain(torch)
            .chain(steps)
            .all(|t| *t > 0.0 && t.is_finite())
        {
            return Err(Error::format(path, "a time is not a positive number"));
        }
        if results.machine.as_ref().is_some_and(|m| m.simulated)
            && results.rows.iter().any(|r| !r.ms.is_empty())
        {
            return Err(Error::format(path, "times from a simulator, which has no speed")
                .with_remedy("remove the file; measure on a card"));
        }
        Ok(results)
    }

    /// Writes the file, one row a line so that versions can be compared.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_value(self).map_err(|e| Error::format(path, e.to_string()))?;
        let mut rows = serde_json::Value::Null;
        if let Some(object) = json.as_object_mut() {
            rows = object.shift_remove("rows").unwrap_or_default();
        }
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "cannot create the folder", e))?;
        }
        write_atomically(path, |w| {
            let text = serde_json::to_string_pretty(&json)?;
            w.write_all(text.strip_suffix("\n}").unwrap_or(&text).as_bytes())?;
            w.write_all(b",\n  \"rows\": [")?;
            for (i, row) in rows.as_array().into_iter().flatten().enumerate() {
                w.write_all(if i == 0 { b"\n    " } else { b",\n    " })?;
                w.write_all(serde_json::to_string(row)?.as_bytes())?;
            }
            w.write_all(b"\n  ]\n}\n")
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row of the list `ops`.
    pub fn row(case: &str, ms: &[f64]) -> Row {
        Row {
            suite: Suite::Ops,
            op: "relu".into(),
            case: case.into(),
            pass: Pass::Forward,
            dtype: "f32".into(),
            convolution: None,
            count: None,
            images: None,
            launches: None,
            flops: 2_000_000,
            bytes: 8_000_000,
            ms: ms.to_vec(),
        }
    }

    /// A machine without a card.
    pub fn machine(name: &str) -> Machine {
        Machine { device: "cpu".into(), name: name.into(), simulated: false, threads: Some(2), card: None }
    }

    /// Results on such a machine.
    pub fn results(name: &str, rows: Vec<Row>) -> Results {
        Results { machine: Some(machine(name)), rows, ..Results::default() }
    }

    #[test]
    fn files_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/a.json");
        for r in [Results::default(), results("x", vec![row("a", &[1.5, 1e-3]), row("b", &[])])] {
            r.write(&path).unwrap();
            assert_eq!(Results::read(&path).unwrap(), r);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|l| l.contains("\"case\"")).count(), 2, "one row a line: {text}");
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let refused = |text: &str, needle: &str| {
            std::fs::write(&path, text).unwrap();
            let e = Results::read(&path).unwrap_err();
            assert!(e.is_format() && e.to_string().contains(needle), "{text}: {e}");
        };
        refused("{", "no file of measurements");
        refused("{}", "format");
        refused(r#"{"format": "dtk-bench", "version": 2, "news": 1}"#, "version 2, but this dtk reads");
        refused(r#"{"format": "dtk-bench", "version": 1, "tims": []}"#, "tims");
        let broken = |change: &dyn Fn(&mut Results)| {
            let mut r = results("x", vec![row("a", &[1.0])]);
            change(&mut r);
            serde_json::to_string(&r).unwrap()
        };
        refused(&broken(&|r| r.rows[0].ms.push(0.0)), "not a positive number");
        refused(&broken(&|r| r.machine.as_mut().unwrap().simulated = true), "simulator");
        assert!(Results::read(&dir.path().join("absent.json")).unwrap_err().is_io());
    }

    #[test]
    fn medians() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some([1.0, 2.5, 4.0]));
    }
}
