//! Parameter values from and to files.

use crate::base::Philox;
use crate::base::{DType, Shape};
use crate::checkpoint::{KeyReport, StateDict, Tolerance, compare, keymap};
use crate::distill::{StudentConfig, TeacherConfig};
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, Family};
use crate::nn::{Init, ParamStore};
use crate::tensor::{Tensor, write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Fills the parameters of `store` below `prefix` (`"backbone."`, say, or empty) from a state dict without that
/// prefix.
///
/// # Errors
/// Missing, unexpected or misshapen keys that `tolerance` does not let pass; an unreadable tensor.
pub fn load_params(
    store: &mut ParamStore,
    prefix: &str,
    from: &StateDict,
    tolerance: Tolerance,
) -> Result<KeyReport> {
    let wanted: Vec<_> = store
        .iter()
        .filter_map(|(id, p)| Some((id, p.name().strip_prefix(prefix)?.to_string(), p.file_shape())))
        .collect();
    let expected: Vec<(String, Shape)> = wanted.iter().map(|(_, n, s)| (n.clone(), *s)).collect();
    let report = compare(&expected, from).into_result(tolerance)?;
    for (id, name, shape) in wanted {
        if from.info(&name).is_some_and(|(_, s)| s == shape) {
            let t = from.get(&name)?;
            if !t.all_finite()? {
                return Err(Error::checkpoint("holds values that are not finite")
                    .with_file(from.path())
                    .with_key(name)
                    .with_remedy("use a checkpoint from before the training diverged"));
            }
            store.set_from_file(id, &t)?;
        }
    }
    Ok(report)
}

/// Names the recipe's key where the error does not name a tensor already.
fn name_key(e: Error, key: &str) -> Error {
    if e.key().is_some() { e } else { e.with_key(key) }
}

/// Gives a teacher's parameters their values: from the checkpoint its configuration names, or random ones.
///
/// Random values are the usual initial ones, except that the layers which start at zero (the last of every residual
/// branch) are drawn too: with zeros, every block would be the identity.
///
/// # Errors
/// As [`load_params`]; the file cannot be opened.
pub fn fill_teacher(store: &mut ParamStore, config: &TeacherConfig, seed: u64) -> Result<Option<KeyReport>> {
    if config.weights == "random" {
        store.init(seed)?;
        let zero: Vec<_> = store
            .iter()
            .filter(|(_, p)| {
                p.file_shape().len() > 1 && p.value().f32s().is_ok_and(|v| v.iter().all(|x| *x == 0.0))
            })
            .map(|(id, p)| (id, p.name().to_string(), p.file_shape()))
            .collect();
        for (id, name, shape) in zero {
            let rng = Philox::new(seed).fold_str("random teacher").fold_str(&name);
            store.set_from_file(id, &Init::TorchDefault.make(shape, DType::F32, rng))?;
        }
        return Ok(None);
    }
    let in_recipe = |e| name_key(e, "teacher.weights");
    let file = StateDict::open(&config.weights).map_err(in_recipe)?.auto_root().map_err(in_recipe)?;
    let tolerance = Tolerance { missing: false, unexpected: config.allow_unexpected, misshapen: false };
    let report = load_params(store, "", &file, tolerance).map_err(in_recipe)?;
    Ok(Some(report))
}

/// Gives a student's parameters their values: all random from `seed`, then the backbone from its checkpoint if the
/// configuration names one. Classifier heads in the file are ignored.
///
/// # Errors
/// As [`load_params`]; the file cannot be opened, or its layout is unknown.
pub fn fill_backbone(store: &mut ParamStore, config: &StudentConfig, seed: u64) -> Result<Option<KeyReport>> {
    store.init(seed)?;
    let Some(path) = &config.weights else { return Ok(None) };
    let in_recipe = |e| name_key(e, "student.weights");
    let file = StateDict::open(path).map_err(in_recipe)?.auto_root().map_err(in_recipe)?;
    let family = match config.backbone.family() {
        Family::ResNet => keymap::Family::ResNet,
        Family::ConvNext => keymap::Family::ConvNext,
    };
    // A student of dtk itself carries its backbone under a prefix.
    let prefix = format!("{}.", Backbone::PREFIX);
    let own =
        file.names().any(|n| n.starts_with(&prefix)) && file.names().any(|n| n.starts_with("regressor."));
    let file = if own { file.with_prefix(&prefix).map_err(in_recipe)? } else { file };
    let layout = keymap::detect(family, file.names()).ok_or_else(|| {
        in_recipe(Error::checkpoint("its keys belong to no known layout of this backbone"))
            .with_file(path)
            .with_remedy(
                "give a checkpoint with timm, torchvision, official ConvNeXt, Detectron2 or mmseg keys",
            )
    })?;
    let mut tensors = keymap::translate(family, layout, &file).map_err(in_recipe)?;
    tensors.retain(|k, _| !k.starts_with("fc.") && !k.starts_with("head."));
    let named = StateDict::from_tensors(path, tensors);
    load_params(store, &prefix, &named, Tolerance::default()).map(Some).map_err(in_recipe)
}

/// Writes the parameters and buffers below `prefix`, without it, in file layout to a safetensors file.
///
/// # Errors
/// The file cannot be written.
pub fn save_params(
    store: &ParamStore,
    prefix: &str,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (id, p) in store.iter() {
        if let Some(name) = p.name().strip_prefix(prefix) {
            tensors.insert(name.to_string(), store.to_file(id)?);
        }
    }
    write_safetensors(path, &tensors, metadata)
}
