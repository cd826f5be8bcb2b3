//! Backbones for other libraries: weights that their models load strictly, and beside them a configuration and a model card.
//!
//! [`export`] reads a backbone in any known layout, finds out which public model it is, adds what that model wants and dtk
//! does not train (step counters, the norm before a ConvNeXt's classifier), renames, and writes.

mod card;
mod keys;
mod layout;
#[cfg(test)]
mod tests;

pub use keys::{TargetKey, target_keys};
pub use layout::{ExportFormat, ExportLayout};

use super::backbone::{Found, identify, is_head};
use super::pth::{PthValue, write_pth};
use super::{StateDict, Tolerance, compare, keymap};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::tensor::{Storage, Tensor, write_atomically, write_safetensors};
use layout::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct ExportJob {
    /// A checkpoint that holds a backbone (any layout that dtk reads), or the folder of a finished run.
    pub backbone: PathBuf,
    /// Whose model it is for.
    pub layout: ExportLayout,
    /// A folder, or a file whose extension says its format. Folders are made; the files beside a named file take its stem.
    pub out: PathBuf,
    /// The format of the weights; from the file's extension, or the layout's usual one, if absent.
    pub format: Option<ExportFormat>,
    /// Whether files that exist are replaced.
    pub overwrite: bool,
    /// Whether the written file is read again and held to the target's keys and the source's values.
    pub verify: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// The public name of the model; for dtk's own layout the name in its configuration.
    pub model: String,
    /// The weights, then what lies beside them.
    pub files: Vec<PathBuf>,
    /// Number of tensors.
    pub tensors: usize,
    /// Tensors of the target that were added with neutral values, under the target's names.
    pub added: Vec<String>,
    /// Tensors of the source that were left out (classifiers), under dtk's names.
    pub left_out: Vec<String>,
    /// What has to be known to use the weights.
    pub notes: Vec<String>,
    /// Whether the file was read again and found to be right.
    pub verified: bool,
}

/// Exports a backbone.
///
/// # Errors
/// The source cannot be read, or holds no backbone with all its keys; the layout does not have the model; a file exists and
/// is not to be replaced, or cannot be written; the written file is not what the target wants.
pub fn export(job: &ExportJob) -> Result<ExportReport> {
    let source = open(&job.backbone)?;
    let Found { config, tensors: found } = identify(&source)?;
    let model = Model::find(job.layout, &config)?;
    let target = target_keys(job.layout, &config.arch);
    let places = Places::find(job, &model)?;

    let mut body = BTreeMap::new();
    let mut left_out = Vec::new();
    for (name, t) in found {
        // The norm before the classifier of a ConvNeXt has a place in the other libraries' models.
        let norm = name.starts_with("head.norm.") && job.layout != ExportLayout::Dtk;
        if is_head(&name) && !norm {
            left_out.push(name);
            continue;
        }
        let t = if t.dtype().is_float() { t.to_dtype(DType::F32)? } else { t };
        if !t.all_finite()? {
            return Err(Error::checkpoint("holds values that are not finite")
                .with_file(source.path())
                .with_key(name)
                .with_remedy("export a checkpoint from before the training diverged"));
        }
        body.insert(name, t);
    }
    let mut tensors = keymap::export(config.family(), job.layout.names(), &body)?;
    let added = complete(&mut tensors, &target);

    let mut metadata = source.metadata().clone();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("layout".into(), job.layout.to_string());
    places.make_folder()?;
    write_weights(&places, job.layout, &tensors, &metadata)?;
    let facts = card::Facts {
        layout: job.layout,
        format: places.format,
        model: &model,
        config: &config,
        file: &places.weights,
        folder: places.is_folder,
        added: &added,
        metadata: source.metadata(),
    };
    let texts = [(&places.config, facts.config()), (&places.card, facts.card())];
    let yaml = places.yaml.iter().map(|path| (path, facts.detectron2()));
    let mut files = vec![places.weights.clone()];
    for (path, text) in texts.into_iter().chain(yaml) {
        write_atomically(path, |f| f.write_all(text.as_bytes()))?;
        files.push(path.clone());
    }
    if job.verify {
        verify(&places, job.layout, &target, &tensors)?;
    }
    Ok(ExportReport {
        model: model.name.clone(),
        files,
        tensors: tensors.len(),
        notes: facts.notes(),
        added,
        left_out,
        verified: job.verify,
    })
}

/// Opens a checkpoint, or the result in a run's folder.
fn open(path: &Path) -> Result<StateDict> {
    if !path.exists() {
        return Err(Error::usage("there is no such file or folder")
            .with_file(path)
            .with_remedy("give the backbone.safetensors of a run, the run's folder, or another checkpoint"));
    }
    let result = path.join("backbone.safetensors");
    if !path.is_dir() || result.is_file() {
        let file = if path.is_dir() { &result } else { path };
        return StateDict::open(file)?.auto_root();
    }
    if path.join("recipe.toml").exists() {
        return Err(Error::usage("this run has no backbone.safetensors yet").with_file(path).with_remedy(
            "finish it with dtk train --resume auto, or give a checkpoint's student.safetensors",
        ));
    }
    StateDict::open(path)?.auto_root()
}

/// Adds the tensors of the target that have a neutral value where they are absent, and gives their names: step counters at
/// 0, and norms before a classifier, which change nothing but the scale of what they normalise, with weight 1 and bias 0.
fn complete(tensors: &mut BTreeMap<String, Tensor>, target: &[TargetKey]) -> Vec<String> {
    let mut added = Vec::new();
    for key in target {
        if tensors.contains_key(&key.name) {
            continue;
        }
        let value = if key.name.ends_with(".weight") { 1.0 } else { 0.0 };
        let neutral = Tensor::full(key.shape, value);
        tensors.insert(key.name.clone(), neutral.to_dtype(key.dtype).unwrap_or(neutral));
        added.push(key.name.clone());
    }
    added
}

/// Where the files of an export go.
struct Places {
    weights: PathBuf,
    config: PathBuf,
    card: PathBuf,
    yaml: Option<PathBuf>,
    format: ExportFormat,
    is_folder: bool,
}

impl Places {
    /// Decides names and format, and refuses to replace what is not to be replaced.
    fn find(job: &ExportJob, model: &Model) -> Result<Self> {
        let by_name = if job.out.is_dir() { None } else { ExportFormat::of_file(&job.out) };
        if let (Some(a), Some(b)) = (by_name, job.format)
            && a != b
        {
            return Err(Error::usage("the extension of this file stands for another format than --format")
                .with_file(&job.out)
                .with_remedy("leave one of them out"));
        }
        let format = job.format.or(by_name).unwrap_or_else(|| job.layout.usual_format());
        job.layout.check_format(format)?;
        let places = match by_name {
            None => Places {
                weights: job.out.join(job.layout.file_name(&model.name, format)),
                config: job.out.join("config.json"),
                card: job.out.join("README.md"),
                yaml: Some(job.out.join(format!("{}.yaml", model.name))),
                format,
                is_folder: true,
            },
            Some(_) => Places {
                weights: job.out.clone(),
                config: job.out.with_extension("json"),
                card: job.out.with_extension("md"),
                yaml: Some(job.out.with_extension("yaml")),
                format,
                is_folder: false,
            },
        };
        let yaml = places.yaml.filter(|_| job.layout == ExportLayout::Detectron2);
        let places = Places { yaml, ..places };
        let all = [Some(&places.weights), Some(&places.config), Some(&places.card), places.yaml.as_ref()];
        if let Some(there) = all.into_iter().flatten().find(|p| p.exists() && !job.overwrite) {
            return Err(Error::usage("this file exists already")
                .with_file(there)
                .with_remedy("choose another --out, or replace it with --overwrite"));
        }
        Ok(places)
    }

    /// Makes the folder that the files lie in.
    fn make_folder(&self) -> Result<()> {
        match self.weights.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) => {
                std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", e))
            }
            None => Ok(()),
        }
    }
}

fn write_weights(
    places: &Places,
    layout: ExportLayout,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    if places.format == ExportFormat::Safetensors {
        return write_safetensors(&places.weights, tensors, metadata);
    }
    let weights = PthValue::state_dict(tensors);
    let value = match (layout, layout.wrapper()) {
        (_, None) => weights,
        (ExportLayout::Detectron2, Some(key)) => PthValue::Dict(vec![
            (key, weights),
            ("__author__", PthValue::Str("dtk")),
            // Lets Detectron2 find its backbone's prefix (`backbone.bottom_up.`) by itself.
            ("matching_heuristics", PthValue::Bool(true)),
        ]),
        (_, Some(key)) => PthValue::Dict(vec![(key, weights)]),
    };
    write_pth(&places.weights, &value)
}

/// Reads the written weights again, and holds names, shapes and element types to the target, values to `written`.
fn verify(
    places: &Places,
    layout: ExportLayout,
    target: &[TargetKey],
    written: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let file = StateDict::open(&places.weights)?;
    let inner = match layout.wrapper().filter(|_| places.format == ExportFormat::Pth) {
        Some(key) => file.with_prefix(&format!("{key}."))?,
        None => file,
    };
    let expected: Vec<_> = target.iter().map(|k| (k.name.clone(), k.shape)).collect();
    compare(&expected, &inner).into_result(Tolerance::default())?;
    let bad = |key: &str, what: String| {
        Error::checkpoint(what)
            .with_file(&places.weights)
            .with_key(key)
            .with_remedy("report this as an error of dtk: the file is not what the library wants")
    };
    for key in target {
        // Counters too: strict loading wants them.
        let Some((dtype, _)) = inner.info(&key.name) else { return Err(bad(&key.name, "is missing".into())) };
        if dtype != key.dtype {
            return Err(bad(&key.name, format!("is {dtype}, the model has {}", key.dtype)));
        }
        let (read, sent) = (inner.get(&key.name)?, written.get(&key.name));
        let same = match (read.storage(), sent.map(Tensor::storage)) {
            (Storage::Cpu(a), Some(Storage::Cpu(b))) => a.as_bytes() == b.as_bytes(),
            _ => false,
        };
        if !same {
            return Err(bad(&key.name, "does not hold the values that were written".into()));
        }
    }
    match inner.names().find(|n| !written.contains_key(*n)) {
        Some(other) => Err(bad(other, "the model has no such key".into())),
        None => Ok(()),
    }
}
