//! Recipes: everything a run depends on, as TOML. Every component owns its configuration; this only composes them.

mod load;
pub mod teacher;

pub use load::{BUILTIN, resolve};
pub use teacher::TeacherRecipe;

use crate::base::DType;
use crate::data::Crop;
use crate::diffusion::DiffusionConfig;
use crate::distill::{LossConfig, StudentConfig, TeacherConfig};
use crate::error::{Error, Result};
use crate::eval::EvalConfig;
use crate::models::regressor::RegressorKind;
use crate::optim::{EmaConfig, LrConfig, OptimizerConfig, ScheduleConfig, Span};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// A complete distillation run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What the recipe is called.
    pub name: String,
    /// Root of all randomness: initial weights, order of the images, flips, noise, dropout.
    #[serde(default)]
    pub seed: u64,
    /// The images.
    #[serde(default)]
    pub data: DataConfig,
    /// The frozen generative network.
    #[serde(default)]
    pub teacher: TeacherConfig,
    /// How images are encoded for it.
    #[serde(default)]
    pub diffusion: DiffusionConfig,
    /// The network that learns.
    pub student: StudentConfig,
    /// What it learns to match.
    #[serde(default)]
    pub loss: LossConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The learning rate: its peak and its course.
    pub lr: LearningRate,
    /// Batch and length.
    pub train: TrainConfig,
    /// What is written, and how often. Does not influence the result.
    #[serde(default)]
    pub run: RunConfig,
    /// How the backbone is evaluated afterwards. Does not influence it.
    #[serde(default, deserialize_with = "EvalConfig::section", skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
}

/// The images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A folder, list or file of images, whatever [`crate::data::open_path`] opens; the built-in scenes if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Height of the images that the networks see, in pixels.
    pub height: u32,
    /// Width, in pixels.
    pub width: u32,
    /// How images of other sizes are cropped.
    pub crop: Crop,
    /// Mirror every image left to right with probability 1/2.
    pub flip: bool,
    /// The colour behind transparent parts, RGB.
    pub background: [u8; 3],
    /// How many unreadable images are tolerated before the run ends.
    pub max_bad: usize,
    /// Number of built-in scenes, when there is no path.
    pub scenes: usize,
    /// Decoding threads. Does not influence the result.
    pub workers: usize,
    /// Batches prepared ahead. Does not influence the result.
    pub prefetch: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            path: None,
            height: 256,
            width: 256,
            crop: Crop::Center,
            flip: true,
            background: [255; 3],
            max_bad: 16,
            scenes: 512,
            workers: 2,
            prefetch: 2,
        }
    }
}

/// The learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// The peak: a number, `"scaled"`, or `{ per_256 = number }`.
    pub peak: LrConfig,
    /// Warm-up and decay.
    pub schedule: ScheduleConfig,
}

/// Batch and length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Images per update of the parameters.
    pub batch: usize,
    /// Parts that a batch is cut into, one after another, to save memory. Batch norm sees the parts.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Length of the run: a number of steps, or `"200 epochs"`.
    pub length: Span,
    /// Clip the gradient to this global L2 norm before the optimiser sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Keep an exponential moving average of the student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// Element type of activations and operands on a CUDA device; a CPU computes in f32. Weights, statistics and losses are
    /// f32 in either case.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// Element type of activations and operands on a CUDA device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16: products run on tensor cores.
    #[default]
    Bf16,
    /// f32 throughout.
    F32,
}

impl Precision {
    fn is_default(&self) -> bool {
        *self == Precision::default()
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Bf16 => DType::Bf16,
            Precision::F32 => DType::F32,
        }
    }
}

fn one() -> usize {
    1
}

fn fail(key: &str, what: String, remedy: &str) -> Result<()> {
    Err(Error::usage(what).with_key(key).with_remedy(remedy))
}

/// Checks a norm to clip gradients to.
fn check_clip(norm: Option<f64>) -> Result<()> {
    match norm {
        Some(c) if !(c.is_finite() && c > 0.0) => {
            fail("train.clip_grad", "the norm must be positive".into(), "leave the key out to not clip")
        }
        _ => Ok(()),
    }
}

/// The first 16 hexadecimal digits of a recipe's SHA-256.
fn digest(toml: &str) -> String {
    Sha256::digest(toml).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

impl DataConfig {
    /// Checks that there are images, and that they fit a network whose sides are multiples of `stride`.
    fn validate(&self, stride: u32) -> Result<()> {
        if self.path.is_none() && self.scenes == 0 {
            return fail(
                "data.scenes",
                "there are no images".into(),
                "give data.path, or at least one scene",
            );
        }
        let (h, w) = (self.height, self.width);
        if h == 0 || w == 0 || !h.is_multiple_of(stride) || !w.is_multiple_of(stride) {
            let what = format!("images of {h}x{w} pixels do not fit the teacher");
            return fail("data.height", what, &format!("choose height and width as multiples of {stride}"));
        }
        Ok(())
    }
}

/// What is written, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between checkpoints; one is always written at the end.
    pub save_every: u64,
    /// How many checkpoints are kept.
    pub keep: usize,
    /// Write TensorBoard events.
    pub tensorboard: bool,
    /// Images that `dtk train` draws features of for `report.html`; 0 for none.
    pub pictures: usize,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig { log_every: 10, save_every: 1000, keep: 3, tensorboard: true, pictures: 6 }
    }
}

impl RunConfig {
    fn validate(&self) -> Result<()> {
        if self.log_every == 0 || self.save_every == 0 || self.keep == 0 {
            return fail(
                "run",
                "log_every, save_every and keep must be at least 1".into(),
                "raise them to 1",
            );
        }
        Ok(())
    }
}

impl Recipe {
    /// Checks what the components cannot check alone.
    ///
    /// # Errors
    /// [`Error::usage`] that names the key.
    pub fn validate(&self) -> Result<()> {
        self.loss.validate()?;
        self.teacher.model.resolve()?.validate()?;
        self.diffusion.build()?;
        self.optimizer.build()?;
        self.lr.peak.resolve(self.train.batch)?;
        let t = &self.train;
        if t.batch == 0 || t.accumulate == 0 || !t.batch.is_multiple_of(t.accumulate) {
            let what = format!("a batch of {} cannot be cut into {} equal parts", t.batch, t.accumulate);
            return fail("train.accumulate", what, "choose a divisor of train.batch");
        }
        let pooled = self.student.regressor.kind == RegressorKind::FpnPpm
            && self.student.regressor.pool_scales.contains(&1);
        if pooled && t.batch == t.accumulate {
            let what =
                "batch norm behind the global pooling of the regressor cannot train on one image at a time";
            return fail(
                "train.batch",
                what.into(),
                "use at least 2 images per part, or regressor.kind = \"fpn\"",
            );
        }
        check_clip(t.clip_grad)?;
        self.run.validate()?;
        if let Some(eval) = &self.eval {
            eval.validate()?;
        }
        self.data.validate(self.teacher.model.resolve()?.max_stride() as u32)
    }

    /// How to evaluate: the section `[eval]`, or the default one. Images have the run's size and background where it does not
    /// say otherwise.
    pub fn evaluation(&self) -> EvalConfig {
        let mut config = self.eval.clone().unwrap_or_default();
        config.data.height.get_or_insert(self.data.height);
        config.data.width.get_or_insert(self.data.width);
        config.data.background.get_or_insert(self.data.background);
        config
    }

    /// The recipe as TOML, with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain data")
    }

    /// Identifies what influences the result: two runs with equal fingerprints and the same images end with the same
    /// bytes. Logging, the number of threads and the place of the images do not count.
    pub fn fingerprint(&self) -> String {
        let plain = Recipe {
            run: RunConfig::default(),
            eval: None,
            data: DataConfig { path: None, workers: 0, prefetch: 0, ..self.data.clone() },
            ..self.clone()
        };
        digest(&plain.to_toml())
    }
}
