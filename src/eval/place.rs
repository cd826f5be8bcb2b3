//! Where networks compute: on the host, or on a CUDA device with their operands as one type.

use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::{Ctx, DeviceParams, Gradients, ParamId, ParamStore};
use crate::ops::untaped::running_average::{self, Move};
use crate::optim::device::{DeviceOptimizer, DeviceParam};
use crate::optim::{Optimizer, OptimizerConfig, Slot, weight_decays};
use crate::tape::Var;
use crate::tensor::Tensor;

/// The host, or a device and the type of images, activations and operands there.
#[derive(Clone, Default)]
pub(super) struct Place(pub Option<(Gpu, DType)>);

impl Place {
    /// A copy of a network's parameters to compute with.
    pub fn network(&self, store: &ParamStore) -> Result<ParamStore> {
        match &self.0 {
            None => Ok(store.clone()),
            Some((gpu, dtype)) => Ok(DeviceParams::new(store, gpu, *dtype)?.store),
        }
    }

    /// Images or features for a network, f32 on the host.
    pub fn values(&self, ctx: &Ctx<'_>, values: Tensor) -> Result<Var> {
        match &self.0 {
            None => Ok(ctx.constant(values)),
            Some((gpu, dtype)) => Ok(ctx.constant(values.to_dtype(*dtype)?.to_gpu_tagged(gpu, "images")?)),
        }
    }

    /// Classes, i64 on the host.
    pub fn classes(&self, ctx: &Ctx<'_>, classes: Tensor) -> Result<Var> {
        match &self.0 {
            None => Ok(ctx.constant(classes)),
            Some((gpu, _)) => Ok(ctx.constant(classes.to_gpu_tagged(gpu, "labels")?)),
        }
    }

    /// A result as f32 on the host. Waits for the device.
    pub fn to_host(&self, result: Var) -> Result<Tensor> {
        match &self.0 {
            None => Ok(result.into_tensor()),
            Some(_) => result.tensor().to_cpu()?.to_dtype(DType::F32),
        }
    }
}

/// Parameters in training, where they are trained.
pub(super) enum Trained<'s> {
    /// On the host.
    Here(&'s mut ParamStore, Box<dyn Optimizer>),
    /// On a device; the store on the host follows at the end.
    There(Box<There<'s>>),
}

/// Parameters in training on a device.
pub(super) struct There<'s> {
    gpu: Gpu,
    host: &'s mut ParamStore,
    params: DeviceParams,
    ids: Vec<ParamId>,
    optimizer: DeviceOptimizer,
}

impl<'s> Trained<'s> {
    /// Makes ready to train the trainable parameters of `store`.
    pub fn new(store: &'s mut ParamStore, config: &OptimizerConfig, place: &Place) -> Result<Self> {
        let Some((gpu, dtype)) = &place.0 else { return Ok(Trained::Here(store, config.build()?)) };
        let params = DeviceParams::new(store, gpu, *dtype)?;
        let (mut ids, mut there) = (Vec::new(), Vec::new());
        for (id, master) in params.masters.iter().filter(|(id, _)| store.get(*id).trainable()) {
            let (p, value) = (store.get(*id), params.store.get(*id).value());
            ids.push(*id);
            there.push(DeviceParam {
                name: p.name().to_string(),
                value: master.clone(),
                shadow: (value.dtype() != master.dtype()).then(|| value.clone()),
                decay: weight_decays(p.name(), p.file_shape().len()),
                lr_scale: 1.0,
            });
        }
        let optimizer = DeviceOptimizer::new(config, gpu, there, None, None)?;
        Ok(Trained::There(Box::new(There { gpu: gpu.clone(), host: store, params, ids, optimizer })))
    }

    /// The parameters to run a step with.
    pub fn store(&self) -> &ParamStore {
        match self {
            Trained::Here(store, _) => store,
            Trained::There(t) => &t.params.store,
        }
    }

    /// Ends a step: running statistics, then the update by the gradients.
    pub fn update(&mut self, mut grads: Gradients, loss: &Tensor, lr: f64) -> Result<()> {
        match self {
            Trained::Here(store, optimizer) => {
                let buffers = grads.buffers().to_vec();
                let ids: Vec<ParamId> = store.iter().map(|(id, _)| id).collect();
                let given: Vec<Option<Tensor>> = ids.into_iter().map(|id| grads.take_param(id)).collect();
                // What the tape still holds of the parameters would make the update copy them.
                drop(grads);
                buffers.into_iter().try_for_each(|(id, value)| store.set(id, value))?;
                let mut slots = Vec::new();
                for ((name, _, rank, value), grad) in store.values_mut().zip(&given) {
                    let Some(grad) = grad else { continue };
                    slots.push(Slot { name, value, grad, decay: weight_decays(name, rank), lr_scale: 1.0 });
                }
                optimizer.step(lr, &mut slots).map(drop)
            }
            Trained::There(t) => {
                let buffer = |id| t.params.store.get(id).value();
                let moves: Vec<Move<'_>> = grads
                    .averages()
                    .iter()
                    .map(|a| Move { buffer: buffer(a.id), value: &a.value, weight: a.weight })
                    .collect();
                running_average::run(&t.gpu, &moves)?;
                drop(moves);
                let given: Vec<Option<Tensor>> = t.ids.iter().map(|id| grads.take_param(*id)).collect();
                let given: Vec<Option<&Tensor>> = given.iter().map(Option::as_ref).collect();
                let scalars = t.optimizer.scalars(lr)?;
                t.optimizer.upload_scalars(&scalars)?;
                t.optimizer.enqueue(&t.gpu, &given, Some(&loss.reshape([1])?))?;
                match t.optimizer.norms().to_cpu()?.f32s()? {
                    [.., ok] if *ok == 1.0 => Ok(()),
                    _ => {
                        Err(Error::numeric("fit", "the loss or gradient is not finite; nothing was changed")
                            .with_remedy("lower the learning rate, or look for bad input data"))
                    }
                }
            }
        }
    }

    /// Brings the store on the host up to date.
    pub fn finish(self) -> Result<()> {
        match self {
            Trained::Here(..) => Ok(()),
            Trained::There(t) => t.params.download(t.host),
        }
    }
}
