//! The recipe of a teacher's training.

use super::{DataConfig, LearningRate, Precision, RunConfig, load};
use crate::base::DType;
use crate::diffusion::{ProcessConfig, Sampler};
use crate::distill::TeacherModel;
use crate::error::{Error, Result};
use crate::models::adm::AdmConfig;
use crate::optim::{AdamWConfig, EmaConfig, OptimizerConfig, Span};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The recipes inside the program: name and TOML text.
pub const BUILTIN: &[(&str, &str)] =
    &[("quickstart_teacher", include_str!("../../recipes/quickstart_teacher.toml"))];

/// The recipe of a built-in name or a TOML file, changed by `key.path=value` overrides as [`super::resolve`] takes them.
///
/// # Errors
/// As [`super::resolve`].
pub fn resolve(name_or_file: &str, overrides: &[String]) -> Result<TeacherRecipe> {
    let (recipe, file): (TeacherRecipe, _) =
        load::read(BUILTIN, "dtk teacher train", name_or_file, overrides)?;
    recipe.validate().map_err(|e| load::in_file(e, file))?;
    Ok(recipe)
}

/// A complete training of a diffusion network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRecipe {
    /// What the recipe is called.
    pub name: String,
    /// Root of all randomness: initial weights, order of the images, flips, time steps, noise, dropout.
    #[serde(default)]
    pub seed: u64,
    /// The images.
    #[serde(default)]
    pub data: DataConfig,
    /// The network: a name of the zoo, or a table of [`AdmConfig`]'s fields.
    pub model: TeacherModel,
    /// What it learns to undo.
    #[serde(default)]
    pub diffusion: ProcessConfig,
    /// The optimiser; by default AdamW without weight decay.
    #[serde(default = "adamw")]
    pub optimizer: OptimizerConfig,
    /// The learning rate: its peak and its course.
    pub lr: LearningRate,
    /// Batch and length.
    pub train: TeacherTrainConfig,
    /// Pictures during training. Do not influence the result.
    #[serde(default)]
    pub sample: SampleConfig,
    /// The file that comes out.
    #[serde(default)]
    pub output: OutputConfig,
    /// What is written, and how often. Does not influence the result.
    #[serde(default)]
    pub run: RunConfig,
}

fn adamw() -> OptimizerConfig {
    OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() })
}

/// Batch and length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherTrainConfig {
    /// Images per update of the parameters.
    pub batch: usize,
    /// Length of the run: a number of steps, or `"200 epochs"`.
    pub length: Span,
    /// Clip the gradient to this global L2 norm before the optimiser sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// The average of the weights that is the result; without it the last weights are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// Dropout rate inside ResBlocks, in place of the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f32>,
    /// Element type of activations and operands on a CUDA device; a CPU computes in f32.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// Pictures during training: grids in the run folder's `samples`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Steps between grids; 0 for none. Unless it is 0, the end has one too.
    pub every: u64,
    /// Pictures of a grid.
    pub count: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// The sampler.
    pub kind: Sampler,
}

impl Default for SampleConfig {
    fn default() -> Self {
        SampleConfig { every: 0, count: 16, steps: 50, kind: Sampler::Ddim }
    }
}

/// The file that comes out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Element type of the weights in `teacher.safetensors`. Checkpoints are f32.
    pub dtype: FileType,
}

/// Element types of weights in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16: half the size, 8 bits of precision.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl FileType {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            FileType::F32 => DType::F32,
            FileType::Bf16 => DType::Bf16,
            FileType::F16 => DType::F16,
        }
    }
}

impl TeacherRecipe {
    /// The network, with the recipe's dropout.
    ///
    /// # Errors
    /// The name is unknown, or the network cannot be built.
    pub fn model(&self) -> Result<AdmConfig> {
        let mut model = self.model.resolve().map_err(|e| e.with_key("model"))?;
        model.dropout = self.train.dropout.unwrap_or(model.dropout);
        model.validate().map_err(|e| {
            let key = e.key().map_or("model".to_string(), |k| format!("model.{k}"));
            e.with_key(key)
        })?;
        Ok(model)
    }

    /// Checks what the components cannot check alone.
    ///
    /// # Errors
    /// [`Error::usage`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let model = self.model()?;
        self.diffusion.build()?;
        self.optimizer.build()?;
        self.lr.peak.resolve(self.train.batch)?;
        let t = &self.train;
        if t.batch == 0 {
            return Err(Error::usage("a batch of 0 images")
                .with_key("train.batch")
                .with_remedy("set it to 1 or more"));
        }
        super::check_clip(t.clip_grad)?;
        self.run.validate()?;
        self.data.validate(model.max_stride() as u32)?;
        if model.in_channels != 3 {
            return Err(Error::usage(format!(
                "images have 3 channels, the network takes {}",
                model.in_channels
            ))
            .with_key("model.in_channels")
            .with_remedy("set it to 3"));
        }
        let s = &self.sample;
        if s.every > 0 && (s.count == 0 || s.steps == 0 || s.steps > self.diffusion.steps) {
            let what = format!("{} pictures in {} of {} steps", s.count, s.steps, self.diffusion.steps);
            return Err(Error::usage(what)
                .with_key("sample")
                .with_remedy("give at least one picture and step, at most the steps of the diffusion"));
        }
        Ok(())
    }

    /// The recipe as TOML, with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain data")
    }

    /// Identifies what influences the result, as [`super::Recipe::fingerprint`] does. Pictures, logging and the type of the
    /// file do not count.
    pub fn fingerprint(&self) -> String {
        let plain = TeacherRecipe {
            run: RunConfig::default(),
            sample: SampleConfig::default(),
            output: OutputConfig::default(),
            data: DataConfig { path: None::<PathBuf>, workers: 0, prefetch: 0, ..self.data.clone() },
            ..self.clone()
        };
        super::digest(&plain.to_toml())
    }
}
