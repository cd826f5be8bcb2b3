//! Parameter values from and to files.

use crate::base::{DType, Philox};
use crate::checkpoint::{KeyReport, StateDict, Tolerance, load_backbone};
use crate::distill::{StudentConfig, TeacherConfig};
use crate::error::{Error, Result};
use crate::nn::{Init, ParamStore};

pub use crate::checkpoint::{load_params, save_params, save_params_as};

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
    load_backbone(store, config.backbone.family(), path).map(Some).map_err(in_recipe)
}
