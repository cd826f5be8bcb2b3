//! Parameter values of a network from and to files.

use super::backbone::{is_head, read_backbone};
use super::{KeyReport, StateDict, Tolerance, compare};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, Family};
use crate::nn::ParamStore;
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

/// Fills a backbone below [`Backbone::PREFIX`] from a checkpoint in any known layout, a student of dtk among them. Classifier
/// heads in the file are ignored.
///
/// # Errors
/// As [`load_params`]; the file cannot be opened, or its layout is unknown.
pub fn load_backbone(store: &mut ParamStore, family: Family, path: impl AsRef<Path>) -> Result<KeyReport> {
    let path = path.as_ref();
    let mut tensors = read_backbone(&StateDict::open(path)?.auto_root()?, family)?;
    tensors.retain(|k, _| !is_head(k));
    let named = StateDict::from_tensors(path, tensors);
    load_params(store, &format!("{}.", Backbone::PREFIX), &named, Tolerance::default())
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
    save_params_as(store, prefix, path, metadata, None)
}

/// Like [`save_params`], with floating-point values rounded to `dtype` if one is given.
///
/// # Errors
/// The file cannot be written.
pub fn save_params_as(
    store: &ParamStore,
    prefix: &str,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    dtype: Option<DType>,
) -> Result<()> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (id, p) in store.iter() {
        if let Some(name) = p.name().strip_prefix(prefix) {
            let t = store.to_file(id)?;
            let dtype = dtype.filter(|_| t.dtype().is_float()).unwrap_or(t.dtype());
            tensors.insert(name.to_string(), t.to_dtype(dtype)?);
        }
    }
    write_safetensors(path, &tensors, metadata)
}
