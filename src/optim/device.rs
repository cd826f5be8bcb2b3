//! The optimisers, clipping and averaging of weights on a CUDA device: all parameters in a few launches that a graph can
//! capture. Rules, and names and values of the state, are those of the CPU, so that a run goes on on the other kind of device.
//!
//! ```text
//! once a step    scalars(lr) -> bytes, uploaded to scalars_memory()
//! then           enqueue_accumulate(gradients)   for each part of the batch
//!                enqueue_update(parts, loss)     norm, clip, update, shadows, average
//! ```

use super::clip::check_max_norm;
use super::state::{check_lr, step_tensor};
use super::{Ema, EmaConfig, OptimizerConfig};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Work};
use crate::ops::untaped::ema::Average;
use crate::ops::untaped::multi_tensor::{self, Group, Parameter, StepScalars};
use crate::ops::untaped::{accumulate, adamw, grad_norm, lamb, lars, sgd};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// One parameter on the device.
#[derive(Clone, Debug)]
pub struct DeviceParam {
    /// The dotted name; state is kept under it.
    pub name: String,
    /// The f32 master weights, updated in place.
    pub value: Tensor,
    /// A bf16 copy of them for products, rewritten at every update. It is not written before the first.
    pub shadow: Option<Tensor>,
    /// Whether weight decay applies ([`super::weight_decays`] is the usual rule).
    pub decay: bool,
    /// Multiplies the learning rate (layer-wise decay); 1 otherwise.
    pub lr_scale: f32,
}

/// The kernels of an optimiser with their hyper-parameters.
enum Rule {
    AdamW(adamw::AdamW),
    Lamb(lamb::Lamb),
    Lars(lars::Lars),
    Sgd(sgd::Sgd),
}

impl Rule {
    fn of(config: &OptimizerConfig) -> Rule {
        match config {
            OptimizerConfig::AdamW(c) => {
                Rule::AdamW(adamw::AdamW { betas: c.betas, eps: c.eps, weight_decay: c.weight_decay })
            }
            OptimizerConfig::Lamb(c) => Rule::Lamb(lamb::Lamb {
                betas: c.betas,
                eps: c.eps,
                weight_decay: c.weight_decay,
                bias_correction: c.bias_correction,
                max_grad_norm: c.max_grad_norm,
                trust_clip: c.trust_clip,
                always_adapt: c.always_adapt,
            }),
            OptimizerConfig::Lars(c) => Rule::Lars(lars::Lars {
                sgd: sgd::Sgd {
                    momentum: c.momentum,
                    dampening: c.dampening,
                    nesterov: c.nesterov,
                    weight_decay: c.weight_decay,
                },
                trust_coeff: c.trust_coeff,
                eps: c.eps,
                trust_clip: c.trust_clip,
                always_adapt: c.always_adapt,
                apex: c.apex,
            }),
            OptimizerConfig::Sgd(c) => Rule::Sgd(sgd::Sgd {
                momentum: c.momentum,
                dampening: c.dampening,
                nesterov: c.nesterov,
                weight_decay: c.weight_decay,
            }),
        }
    }

    /// Names of the buffers.
    fn kinds(&self) -> &'static [&'static str] {
        match self {
            Rule::AdamW(_) | Rule::Lamb(_) => &["exp_avg", "exp_avg_sq"],
            Rule::Lars(_) | Rule::Sgd(_) => &["momentum_buffer"],
        }
    }

    fn scalars(&self, step: u64) -> StepScalars {
        match self {
            Rule::AdamW(r) => r.scalars(step),
            Rule::Lamb(r) => r.scalars(step),
            Rule::Lars(r) => r.scalars(step),
            Rule::Sgd(r) => r.scalars(step),
        }
    }

    fn enqueue(&self, gpu: &Gpu, group: &Group) -> Result<()> {
        match self {
            Rule::AdamW(r) => r.enqueue(gpu, group),
            Rule::Lamb(r) => r.enqueue(gpu, group),
            Rule::Lars(r) => r.enqueue(gpu, group),
            Rule::Sgd(r) => r.enqueue(gpu, group),
        }
    }
}

/// The average of the weights, and of what else belongs to the model.
struct DeviceEma {
    config: EmaConfig,
    updates: u64,
    names: Vec<String>,
    average: Average,
}

impl DeviceEma {
    /// An average on the host with these names and shapes, to read and write states with.
    fn on_host(&self, values: &[Tensor]) -> Result<Ema> {
        Ema::new(self.config.clone(), self.names.iter().map(String::as_str).zip(values))
    }
}

/// An optimiser whose parameters and state lie on a CUDA device.
///
/// A step whose loss or gradient is not finite changes nothing on the device, which [`DeviceOptimizer::norms`] tells;
/// [`DeviceOptimizer::take_back`] then makes the count of steps right.
pub struct DeviceOptimizer {
    gpu: Gpu,
    config: OptimizerConfig,
    rule: Rule,
    names: Vec<String>,
    group: Group,
    clip: Option<f64>,
    ema: Option<DeviceEma>,
    step: u64,
}

impl DeviceOptimizer {
    /// An optimiser without state. The gradient is clipped to the norm `clip`; an average of the parameters, if there is to be
    /// one, starts at what they are now.
    ///
    /// # Errors
    /// A hyper-parameter outside its range, no parameters, a name given twice, tensors of another type or size or on another
    /// device, or no memory.
    pub fn new(
        kind: &OptimizerConfig,
        gpu: &Gpu,
        params: Vec<DeviceParam>,
        clip: Option<f64>,
        ema: Option<EmaConfig>,
    ) -> Result<Self> {
        // The CPU's optimiser knows the ranges.
        kind.build()?;
        clip.map_or(Ok(()), check_max_norm)?;
        let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(Error::usage("the parameter is given twice").with_op("optimizer").with_key(twice));
        }
        let values: Vec<(String, Tensor)> =
            params.iter().map(|p| (p.name.clone(), p.value.clone())).collect();
        let rule = Rule::of(kind);
        let of_kernel = |p: DeviceParam| Parameter {
            value: p.value,
            shadow: p.shadow,
            decay: p.decay,
            lr_scale: p.lr_scale,
        };
        let group = Group::new(gpu, params.into_iter().map(of_kernel).collect(), rule.kinds().len())?;
        let (gpu, config) = (gpu.clone(), kind.clone());
        let new = DeviceOptimizer { gpu, config, rule, names, group, clip, ema: None, step: 0 };
        match ema {
            Some(config) => new.with_average(config, values),
            None => Ok(new),
        }
    }

    /// Averages `others` too: f32 tensors on the device that the optimiser does not update, such as running statistics and
    /// frozen weights, whose addresses stay. Without an average it does nothing.
    ///
    /// # Errors
    /// As [`DeviceOptimizer::new`].
    pub fn averaging(mut self, others: Vec<(String, Tensor)>) -> Result<Self> {
        let Some(DeviceEma { config, .. }) = self.ema.take() else { return Ok(self) };
        let values = self.group.params().iter().map(|p| p.value.clone());
        let all = self.names.iter().cloned().zip(values).chain(others).collect();
        self.with_average(config, all)
    }

    fn with_average(mut self, config: EmaConfig, values: Vec<(String, Tensor)>) -> Result<Self> {
        // The CPU's average knows the range.
        Ema::new(config.clone(), [])?;
        let (names, values): (Vec<String>, Vec<Tensor>) = values.into_iter().unzip();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(Error::usage("the tensor is given twice").with_op("ema").with_key(twice));
        }
        let average = Average::new(&self.gpu, values)?;
        self.ema = Some(DeviceEma { config, updates: 0, names, average });
        Ok(self)
    }

    /// Begins a step: counts it and gives what it has to know, for [`DeviceOptimizer::scalars_memory`].
    ///
    /// # Errors
    /// A learning rate that is negative or not finite; nothing is counted then.
    pub fn scalars(&mut self, lr: f64) -> Result<StepScalars> {
        check_lr("optimizer", lr)?;
        self.step += 1;
        let mut scalars = StepScalars { lr, ..self.rule.scalars(self.step) };
        if let Some(ema) = &mut self.ema {
            scalars.ema_rate = (1.0 - ema.config.decay_at(ema.updates)) as f32;
            ema.updates += 1;
        }
        Ok(scalars)
    }

    /// Takes the last [`DeviceOptimizer::scalars`] back: its step found a loss or gradient that was not finite.
    pub fn take_back(&mut self) {
        self.step = self.step.saturating_sub(1);
        if let Some(ema) = &mut self.ema {
            ema.updates = ema.updates.saturating_sub(1);
        }
    }

    /// Where the bytes of [`StepScalars`] go on the device before the step's work runs. Its address stays.
    pub fn scalars_memory(&self) -> &Tensor {
        self.group.scalars()
    }

    /// Uploads the scalars of a step that is not a captured graph, and waits.
    ///
    /// # Errors
    /// A failed copy; the stream is being captured.
    pub fn upload_scalars(&self, scalars: &StepScalars) -> Result<()> {
        multi_tensor::write(&self.gpu, self.group.scalars(), scalars.as_bytes())
    }

    /// Enqueues that the gradients of one part of a batch are taken over: in the order of the parameters, f32 of their sizes,
    /// `None` for those that the loss does not reach (the same in every part), which are then left as they are. `first` for the
    /// first part. The gradients may be dropped as soon as this returns.
    ///
    /// # Errors
    /// Gradients that do not fit, or a failed launch.
    pub fn enqueue_accumulate(&self, gpu: &Gpu, grads: &[Option<&Tensor>], first: bool) -> Result<()> {
        let elements = grads.iter().flatten().map(|g| g.elems() as u64).sum::<u64>();
        // The gradient in, the sum out, and in as well where there is one; squares of both.
        let bytes = elements * if first { 8 } else { 12 };
        gpu.traced(
            || accumulate::enqueue(gpu, &self.group, grads, first),
            |()| self.work("accumulate", elements, bytes, 3),
        )
    }

    /// What is noted of launches over `elements` elements of the parameters.
    fn work(&self, pass: &'static str, elements: u64, bytes: u64, flops: u64) -> Work {
        Work {
            op: "optimizer".into(),
            pass,
            shape: Shape::from([elements as usize]),
            dtype: DType::F32,
            flops: flops * elements,
            bytes,
            result: 0,
            launches: Vec::new(),
        }
    }

    /// Enqueues that the sums of the gradients become zero, so that every part of the next batch may be added to them.
    ///
    /// # Errors
    /// Earlier work has failed.
    pub fn clear_gradients(&self, gpu: &Gpu) -> Result<()> {
        self.group.sums().iter().try_for_each(|sum| gpu.fill_byte(sum.cuda_buffer()?, 0))
    }

    /// Enqueues the update behind the `parts` parts of a batch, whose gradients are averaged: norm, clipping, parameters,
    /// shadows, average. Nothing of it happens if a gradient or `loss` (f32, one element) is not finite.
    ///
    /// # Errors
    /// No part, a loss that does not fit, or a failed launch.
    pub fn enqueue_update(&self, gpu: &Gpu, parts: usize, loss: Option<&Tensor>) -> Result<()> {
        let enqueue = || {
            grad_norm::clip(gpu, &self.group, self.clip, parts, loss)?;
            self.rule.enqueue(gpu, &self.group)?;
            grad_norm::report(gpu, &self.group)?;
            match &self.ema {
                Some(ema) => ema.average.enqueue(gpu, &self.group),
                None => Ok(()),
            }
        };
        gpu.traced(enqueue, |()| {
            let params = self.group.params();
            let all = params.iter().map(|p| p.value.elems() as u64).sum::<u64>();
            let shadows =
                params.iter().filter_map(|p| p.shadow.as_ref()).map(|s| s.bytes() as u64).sum::<u64>();
            // Gradient in; values, buffers and the average in and out; copies out.
            let floats = 1 + 2 + 2 * self.rule.kinds().len() as u64 + if self.ema.is_some() { 3 } else { 0 };
            self.work("update", all, 4 * floats * all + shadows, 12)
        })
    }

    /// [`DeviceOptimizer::enqueue_accumulate`] and [`DeviceOptimizer::enqueue_update`] for a batch in one part.
    ///
    /// # Errors
    /// As these.
    pub fn enqueue(&self, gpu: &Gpu, grads: &[Option<&Tensor>], loss: Option<&Tensor>) -> Result<()> {
        self.enqueue_accumulate(gpu, grads, true)?;
        self.enqueue_update(gpu, 1, loss)
    }

    /// What the last step saw and did, f32 `[4]` on the device: the norm of the gradient before clipping, of the change, of the
    /// parameters after it, and 1, or 0 where something was not finite: then nothing has changed.
    pub fn norms(&self) -> &Tensor {
        self.group.report()
    }

    /// Steps done so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Names and shapes of the parameters.
    fn shapes(&self) -> Vec<(&str, Shape)> {
        let shapes = self.group.params().iter().map(|p| p.value.shape());
        self.names.iter().map(String::as_str).zip(shapes).collect()
    }

    /// The state in host memory, as [`super::Optimizer::state`] of the CPU gives it. Waits for the device.
    ///
    /// # Errors
    /// A failed copy.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::from([("step".to_string(), step_tensor(self.step))]);
        if self.step == 0 {
            return Ok(out);
        }
        for (k, kind) in self.rule.kinds().iter().enumerate() {
            for ((name, shape), buffer) in self.shapes().into_iter().zip(self.group.buffers(k)) {
                out.insert(format!("{kind}.{name}"), buffer.to_cpu()?.reshape(shape)?);
            }
        }
        Ok(out)
    }

    /// Replaces the state by one that this or a CPU's optimiser of the same kind gave.
    ///
    /// # Errors
    /// [`Error::checkpoint`] naming the key that is missing, unexpected or misshapen; the state is unchanged then. A failed
    /// copy.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        // The CPU's optimiser knows what fits.
        let mut host = self.config.build()?;
        host.load_state(&self.shapes(), state)?;
        let (step, state) = (host.step_count(), host.state());
        for (k, kind) in self.rule.kinds().iter().enumerate() {
            for (name, buffer) in self.names.iter().zip(self.group.buffers(k)) {
                match state.get(&format!("{kind}.{name}")) {
                    Some(t) => multi_tensor::write(&self.gpu, buffer, t.f32s()?)?,
                    None => multi_tensor::write(&self.gpu, buffer, &vec![0.0f32; buffer.elems()])?,
                }
            }
        }
        self.step = step;
        Ok(())
    }

    /// The average's state in host memory, as [`Ema::state`] gives it; `None` without an average. Waits for the device.
    ///
    /// # Errors
    /// A failed copy.
    pub fn ema_state(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        let Some(ema) = &self.ema else { return Ok(None) };
        let values = ema.average.tensors().iter().map(Tensor::to_cpu).collect::<Result<Vec<_>>>()?;
        let mut state = ema.on_host(&values)?.state();
        state.insert("step".into(), step_tensor(ema.updates));
        Ok(Some(state))
    }

    /// Replaces the average by one that this or [`Ema::state`] gave.
    ///
    /// # Errors
    /// There is no average. As [`DeviceOptimizer::load_state`].
    pub fn load_ema_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let Some(ema) = &mut self.ema else {
            return Err(Error::usage("there is no average to load").with_op("ema"));
        };
        let shapes: Vec<Tensor> = ema.average.tensors().iter().map(|t| Tensor::zeros(t.shape())).collect();
        let mut host = ema.on_host(&shapes)?;
        host.load_state(state)?;
        for (name, average) in ema.names.iter().zip(ema.average.tensors()) {
            multi_tensor::write(&self.gpu, average, host.average()[name].f32s()?)?;
        }
        ema.updates = host.updates();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceInfo;
    use crate::optim::{AdamWConfig, SgdConfig};

    fn gpu() -> Gpu {
        Gpu::planning(DeviceInfo::h100()).unwrap()
    }

    fn param(gpu: &Gpu, name: &str, n: usize) -> DeviceParam {
        let value = Tensor::empty_gpu([n], DType::F32, gpu, "test").unwrap();
        DeviceParam { name: name.into(), value, shadow: None, decay: true, lr_scale: 1.0 }
    }

    fn adamw(gpu: &Gpu, ema: Option<EmaConfig>) -> DeviceOptimizer {
        let params = vec![param(gpu, "a", 3), param(gpu, "b", 5)];
        DeviceOptimizer::new(&OptimizerConfig::default(), gpu, params, None, ema).unwrap()
    }

    #[test]
    fn scalars_follow_the_steps() {
        let gpu = gpu();
        let ema = EmaConfig { decay: 0.9, warmup: true };
        let mut opt = adamw(&gpu, Some(ema));
        let first = opt.scalars(0.5).unwrap();
        assert_eq!((first.lr, first.bias_1, first.ema_rate), (0.5, (1.0 - 0.9) as f32, 0.9));
        assert!(opt.scalars(-1.0).unwrap_err().is_usage() && opt.scalars(f64::NAN).is_err());
        assert_eq!(opt.step_count(), 1, "what is refused is not counted");
        let second = opt.scalars(0.25).unwrap();
        assert_ne!((second.bias_1, second.ema_rate), (first.bias_1, first.ema_rate));
        opt.take_back();
        assert_eq!(opt.scalars(0.25).unwrap(), second, "a step taken back is counted again");

        let config = SgdConfig { dampening: 0.25, ..SgdConfig::default() };
        let sgd = OptimizerConfig::Sgd(config);
        let mut sgd = DeviceOptimizer::new(&sgd, &gpu, vec![param(&gpu, "a", 3)], None, None).unwrap();
        let enters: Vec<f32> = (0..3).map(|_| sgd.scalars(0.1).unwrap().enters).collect();
        assert_eq!(enters, [1.0, 0.75, 0.75]);
    }

    #[test]
    fn wrong_optimisers_are_refused() {
        let gpu = gpu();
        let new = |config: &OptimizerConfig, params, clip, ema| {
            DeviceOptimizer::new(config, &gpu, params, clip, ema).err().unwrap()
        };
        let config = OptimizerConfig::default();
        let one = || vec![param(&gpu, "a", 3)];
        assert!(new(&config, Vec::new(), None, None).is_usage());
        let twice = new(&config, vec![param(&gpu, "a", 3), param(&gpu, "a", 4)], None, None);
        assert_eq!(twice.key(), Some("a"));
        assert!(new(&config, one(), Some(-1.0), None).is_usage());
        let bad = OptimizerConfig::AdamW(AdamWConfig { eps: -1.0, ..AdamWConfig::default() });
        assert_eq!(new(&bad, one(), None, None).key(), Some("eps"));
        let ema = EmaConfig { decay: 1.0, warmup: false };
        assert_eq!(new(&config, one(), None, Some(ema)).key(), Some("decay"));
        let opt = adamw(&gpu, Some(EmaConfig::default()));
        let again = opt.averaging(vec![("a".into(), param(&gpu, "a", 3).value)]);
        assert_eq!(again.err().unwrap().key(), Some("a"));
    }

    #[test]
    fn states_that_do_not_fit_are_named() {
        let gpu = gpu();
        let mut opt = adamw(&gpu, Some(EmaConfig::default()));
        let good: BTreeMap<String, Tensor> = [("a", 3), ("b", 5)]
            .iter()
            .flat_map(|(n, e)| ["exp_avg", "exp_avg_sq"].map(|k| (format!("{k}.{n}"), Tensor::zeros([*e]))))
            .chain([("step".to_string(), step_tensor(4))])
            .collect();
        opt.load_state(&good).unwrap();
        assert_eq!(opt.step_count(), 4);
        for key in good.keys() {
            let mut bad = good.clone();
            bad.remove(key);
            assert_eq!(opt.load_state(&bad).unwrap_err().key(), Some(key.as_str()));
        }
        assert_eq!(opt.load_ema_state(&BTreeMap::new()).unwrap_err().key(), Some("step"));
        assert!(adamw(&gpu, None).load_ema_state(&good).unwrap_err().is_usage());
        assert!(adamw(&gpu, None).ema_state().unwrap().is_none());
    }
}
