//! Backbones in checkpoints of any layout.

use super::keymap::{self, Family};
use super::{StateDict, Tolerance, compare};
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, BackboneConfig, NAMES};
use crate::nn::ParamStore;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// The backbone of `family` in a checkpoint, under dtk's names and in file shapes; its layout is found by its keys. A
/// classifier is among the tensors if the file has one, other parts are not. dtk's own students carry their backbone under
/// a prefix, which is removed.
///
/// # Errors
/// The keys belong to no known layout of the family; a tensor cannot be read.
pub fn read_backbone(file: &StateDict, family: Family) -> Result<BTreeMap<String, Tensor>> {
    let prefix = format!("{}.", Backbone::PREFIX);
    let own =
        file.names().any(|n| n.starts_with(&prefix)) && file.names().any(|n| n.starts_with("regressor."));
    let inner = if own { file.with_prefix(&prefix)? } else { file.clone() };
    let layout = keymap::detect(family, inner.names()).ok_or_else(|| {
        Error::checkpoint("its keys belong to no known layout of this backbone")
            .with_file(file.path())
            .with_remedy(
                "give a checkpoint with timm, torchvision, official ConvNeXt, Detectron2 or mmseg keys",
            )
    })?;
    keymap::translate(family, layout, &inner)
}

/// Whether a key belongs to a classifier, or to the norm before it.
pub fn is_head(key: &str) -> bool {
    key.starts_with("fc.") || key.starts_with("head.")
}

/// The keys of a backbone without a classifier, in file shapes, in the order of the network.
///
/// # Errors
/// The configuration is out of range.
fn keys_of(config: &BackboneConfig) -> Result<Vec<(String, Shape)>> {
    let mut store = ParamStore::new();
    Backbone::new(&mut store.builder(), &config.clone().with_classes(0))?;
    Ok(store.iter().map(|(_, p)| (p.name().to_string(), p.file_shape())).collect())
}

/// A backbone with the architecture it belongs to.
pub(super) struct Found {
    pub config: BackboneConfig,
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads the backbone of a checkpoint and finds out its architecture: from the metadata that dtk writes, else by comparing
/// keys and shapes with the named ones.
///
/// # Errors
/// No known architecture has these keys; keys are missing, misshapen or superfluous.
pub(super) fn identify(file: &StateDict) -> Result<Found> {
    let Some(config) = declared(file)? else { return by_shapes(file) };
    let tensors = read_backbone(file, config.family())?;
    let body = StateDict::from_tensors(file.path(), without_head(&tensors));
    compare(&keys_of(&config)?, &body).into_result(Tolerance::default())?;
    Ok(Found { config, tensors })
}

/// The architecture that the metadata names.
fn declared(file: &StateDict) -> Result<Option<BackboneConfig>> {
    let meta = file.metadata();
    let bad = |key: &str, e: &dyn std::fmt::Display| {
        Error::format(file.path(), format!("its metadata names no backbone of this version: {e}"))
            .with_key(key)
            .with_remedy("export with the version of dtk that wrote the file")
    };
    if let Some(text) = meta.get("backbone_config") {
        return serde_json::from_str(text).map(Some).map_err(|e| bad("backbone_config", &e));
    }
    meta.get("backbone").map(|n| BackboneConfig::named(n).map_err(|e| bad("backbone", &e))).transpose()
}

fn by_shapes(file: &StateDict) -> Result<Found> {
    let mut closest: Option<(usize, Error)> = None;
    for family in [Family::ResNet, Family::ConvNext] {
        let Ok(tensors) = read_backbone(file, family) else { continue };
        let body = StateDict::from_tensors(file.path(), without_head(&tensors));
        for name in NAMES {
            let config = BackboneConfig::named(name)?;
            if config.family() != family {
                continue;
            }
            let report = compare(&keys_of(&config)?, &body);
            let wrong = report.missing.len() + report.unexpected.len() + report.misshapen.len();
            match report.into_result(Tolerance::default()) {
                Ok(_) => return Ok(Found { config, tensors }),
                Err(e) if closest.as_ref().is_none_or(|(least, _)| wrong < *least) => {
                    closest = Some((wrong, Error::checkpoint(format!("is no {name}")).with_source(e)));
                }
                Err(_) => {}
            }
        }
    }
    Err(match closest {
        Some((_, e)) => e.with_file(file.path()),
        None => {
            let first: Vec<&str> = file.names().take(3).collect();
            Error::checkpoint(format!("holds no backbone; its keys look like: {}", first.join(", ")))
                .with_file(file.path())
        }
    }
    .with_remedy(format!("give a checkpoint of one of {}", NAMES.join(", "))))
}

fn without_head(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.iter().filter(|(k, _)| !is_head(k)).map(|(k, t)| (k.clone(), t.clone())).collect()
}
