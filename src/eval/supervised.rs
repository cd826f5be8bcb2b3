//! The backbone that labels teach: what pretraining without labels is compared with.

use super::config::EvalConfig;
use super::finetune::Classifier;
use super::place::Place;
use super::progress::{EvalProgress, Watch};
use super::samples::Samples;
use crate::base::DType;
use crate::data::ImageSource;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::models::backbone::BackboneConfig;
use crate::nn::ParamStore;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Trains a backbone with the labels of all images of `source`, from random values drawn with `seed`, as
/// [`EvalConfig::supervised`] says, on the host or on a device with operands of a type. The result holds backbone and classifier below
/// [`Backbone::PREFIX`](crate::models::backbone::Backbone::PREFIX), as [`Weights::Params`](super::Weights::Params) takes it.
///
/// # Errors
/// An invalid configuration, images without labels, a training that diverges, or
/// [`Error::interrupted`](crate::Error::interrupted) once `stop` is set.
pub fn supervise(
    config: &EvalConfig,
    backbone: &BackboneConfig,
    source: Arc<dyn ImageSource>,
    seed: u64,
    device: Option<(&Gpu, DType)>,
    progress: &mut dyn FnMut(&EvalProgress),
    stop: &AtomicBool,
) -> Result<ParamStore> {
    config.validate()?;
    let d = &config.data;
    let samples = Samples::new(source, 0, d.size(), d.behind(), config.cache_mib);
    let all: Vec<usize> = (0..samples.len()).collect();
    let mut watch = Watch::new("supervised", progress, stop);
    watch.part(None, all.len(), seed);
    let place = Place(device.map(|(gpu, dtype)| (gpu.clone(), dtype)));
    let (data, at) = ((&samples, &all[..]), (seed, &place));
    let trained = Classifier::train(&config.supervised, backbone, &|_| Ok(()), data, at, &mut watch)?;
    Ok(trained.store)
}
