//! A network in training on a device: parameters, optimiser and average, at addresses that stay.

use crate::base::DType;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::nn::{DeviceParams, Gradients, Param, ParamId, ParamStore, Role};
use crate::ops::untaped::running_average::{self, Move};
use crate::optim::device::{DeviceOptimizer, DeviceParam};
use crate::optim::{EmaConfig, OptimizerConfig, weight_decays};
use crate::recipe::{Recipe, TeacherRecipe};
use crate::tensor::Tensor;
use crate::train::engine::State;

/// How a network is trained on a device, beside what it and its loss say.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Element type of images, activations and operands: bf16 or f32.
    pub dtype: DType,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Clip the gradient to this global L2 norm.
    pub clip_grad: Option<f64>,
    /// Keep an exponential moving average of the network.
    pub ema: Option<EmaConfig>,
}

impl From<&Recipe> for DeviceConfig {
    fn from(recipe: &Recipe) -> Self {
        DeviceConfig {
            dtype: recipe.train.precision.dtype(),
            optimizer: recipe.optimizer.clone(),
            clip_grad: recipe.train.clip_grad,
            ema: recipe.train.ema.clone(),
        }
    }
}

impl From<&TeacherRecipe> for DeviceConfig {
    fn from(recipe: &TeacherRecipe) -> Self {
        DeviceConfig {
            dtype: recipe.train.precision.dtype(),
            optimizer: recipe.optimizer.clone(),
            clip_grad: recipe.train.clip_grad,
            ema: recipe.train.ema.clone(),
        }
    }
}

/// A network in training on a device.
pub(in crate::train) struct Trained {
    pub gpu: Gpu,
    pub params: DeviceParams,
    pub optimizer: DeviceOptimizer,
    /// Parameters that are trained, in the store's order.
    ids: Vec<ParamId>,
}

impl Trained {
    /// Copies the parameters to a device. On a planning device they need no values.
    pub fn new(config: DeviceConfig, store: &ParamStore, gpu: &Gpu) -> Result<Self> {
        let DeviceConfig { dtype, optimizer, clip_grad, ema } = config;
        let there = DeviceParams::new(store, gpu, dtype)?;
        let (mut ids, mut params) = (Vec::new(), Vec::new());
        for (id, master) in there.masters.iter().filter(|(id, _)| store.get(*id).trainable()) {
            let (p, value) = (store.get(*id), there.store.get(*id).value());
            ids.push(*id);
            params.push(DeviceParam {
                name: p.name().to_string(),
                value: master.clone(),
                shadow: (value.dtype() != master.dtype()).then(|| value.clone()),
                decay: weight_decays(p.name(), p.file_shape().len()),
                lr_scale: 1.0,
            });
        }
        // The average follows running statistics too; batches are counted on the host.
        let others = there.store.iter().filter(|(_, p)| !p.trainable() && p.value().gpu().is_some());
        let others = others.map(|(_, p)| (p.name().to_string(), p.value().clone())).collect();
        let optimizer = DeviceOptimizer::new(&optimizer, gpu, params, clip_grad, ema)?.averaging(others)?;
        Ok(Trained { gpu: gpu.clone(), params: there, optimizer, ids })
    }

    /// Enqueues what a backward pass over a part of a batch leaves to do: running statistics move, gradients are added up.
    pub fn enqueue_gradients(&self, mut gradients: Gradients, first: bool) -> Result<()> {
        let averages: Vec<Move<'_>> = gradients
            .averages()
            .iter()
            .map(|a| Move { buffer: self.params.store.get(a.id).value(), value: &a.value, weight: a.weight })
            .collect();
        running_average::run(&self.gpu, &averages)?;
        let grads: Vec<Option<Tensor>> = self.ids.iter().map(|id| gradients.take_param(*id)).collect();
        let grads: Vec<Option<&Tensor>> = grads.iter().map(Option::as_ref).collect();
        self.optimizer.enqueue_accumulate(&self.gpu, &grads, first)
    }

    /// Copies parameters and running statistics to the host, where `batches` went through the network since they came from
    /// there; waits for the device.
    pub fn download(&self, store: &mut ParamStore, batches: i64) -> Result<()> {
        self.params.download(store)?;
        for (name, count) in self.counts(batches)? {
            if let Some(id) = store.find(&name) {
                store.set(id, count)?;
            }
        }
        Ok(())
    }

    /// The state of the average, as [`crate::optim::Ema::state`], after as many batches; `None` without one. Waits for the
    /// device.
    pub fn average_state(&self, batches: i64) -> Result<Option<State>> {
        let Some(mut state) = self.optimizer.ema_state()? else { return Ok(None) };
        // An average of counts is the last one.
        for (name, count) in self.counts(batches)? {
            state.insert(format!("average.{name}"), count);
        }
        Ok(Some(state))
    }

    /// The counts of batches, which are kept on the host: as they came, and `batches` more.
    fn counts(&self, batches: i64) -> Result<Vec<(String, Tensor)>> {
        let counter = |p: &&Param| p.role() == Role::Buffer && p.value().dtype() == DType::I64;
        let counters = self.params.store.iter().map(|(_, p)| p).filter(counter);
        let count = |p: &Param| {
            let value = p.value().data::<i64>()?.iter().map(|n| n + batches).collect();
            Ok((p.name().to_string(), Tensor::from_vec(p.value().shape(), value)?))
        };
        counters.map(count).collect()
    }

    /// Goes on from a checkpoint: parameters, the states of optimiser and average.
    pub fn load(&mut self, store: &ParamStore, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.optimizer.load_state(optimizer)?;
        if let Some(average) = average {
            let mut average = average.clone();
            average.retain(|name, t| name == "step" || t.dtype() != DType::I64);
            self.optimizer.load_ema_state(&average)?;
        }
        self.params.refresh_from(store)
    }
}
