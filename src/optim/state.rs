//! What the optimisers share: checks, state by parameter name, and the loop over the parameters.

use super::{Slot, StepStats, kernel};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// `B` buffers for every parameter, and the step count.
pub(super) struct State<const B: usize> {
    kinds: [&'static str; B],
    step: u64,
    entries: BTreeMap<String, Entry<B>>,
}

struct Entry<const B: usize> {
    shape: Shape,
    bufs: [Vec<f32>; B],
}

/// One parameter during a step.
pub(super) struct Job<'a, const B: usize> {
    pub value: &'a mut [f32],
    pub grad: &'a [f32],
    pub bufs: [Vec<f32>; B],
    /// Sum of squares of the gradient.
    pub grad_sq: f64,
    /// Learning rate of this parameter.
    pub lr: f64,
    pub decay: bool,
    /// No step has been made with this parameter before.
    pub fresh: bool,
}

impl<const B: usize> State<B> {
    pub fn new(kinds: [&'static str; B]) -> Self {
        State { kinds, step: 0, entries: BTreeMap::new() }
    }

    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Runs `update(job, step, gradient norm of all)` for every slot, steps counted from 1. It returns the sums of
    /// squares of the change and of the new value.
    pub fn run(
        &mut self,
        op: &str,
        lr: f64,
        slots: &mut [Slot<'_>],
        update: impl Fn(&mut Job<'_, B>, u64, f64) -> [f64; 2] + Sync,
    ) -> Result<StepStats> {
        let squares = self.check(op, lr, slots)?;
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        let mut jobs = Vec::with_capacity(slots.len());
        for (slot, grad_sq) in slots.iter_mut().zip(squares) {
            let shape = slot.value.shape();
            let entry = self.entries.get_mut(slot.name);
            let (fresh, bufs) = match entry {
                Some(e) => (false, e.bufs.each_mut().map(std::mem::take)),
                None => (true, self.kinds.map(|_| vec![0.0; shape.elems()])),
            };
            jobs.push(Job {
                grad: slot.grad.data()?,
                value: slot.value.data_mut()?,
                bufs,
                grad_sq,
                lr: lr * f64::from(slot.lr_scale),
                decay: slot.decay,
                fresh,
            });
        }
        self.step += 1;
        let step = self.step;
        let sums: Vec<[f64; 2]> = jobs.par_iter_mut().map(|job| update(job, step, grad_norm)).collect();
        let bufs: Vec<_> = jobs.into_iter().map(|j| j.bufs).collect();
        for (slot, bufs) in slots.iter().zip(bufs) {
            self.entries.insert(slot.name.to_string(), Entry { shape: slot.value.shape(), bufs });
        }
        let [update, param] = sums.iter().fold([0.0; 2], |[a, b], [u, p]| [a + u, b + p]);
        Ok(StepStats { grad_norm, update_norm: update.sqrt(), param_norm: param.sqrt() })
    }

    /// Everything that can be wrong, before anything is changed. Returns every gradient's sum of squares.
    fn check(&self, op: &str, lr: f64, slots: &[Slot<'_>]) -> Result<Vec<f64>> {
        check_lr(op, lr)?;
        let mut names = BTreeSet::new();
        for s in slots {
            let known = self.entries.get(s.name).map_or(s.value.shape(), |e| e.shape);
            if s.value.shape() != s.grad.shape() || s.value.shape() != known {
                return Err(Error::shape(op, "parameter, gradient and optimiser state must have one shape")
                    .with_key(s.name)
                    .with_tensor("parameter", &*s.value)
                    .with_tensor("gradient", s.grad)
                    .with_tensor("state", known));
            }
            if !names.insert(s.name) {
                return Err(Error::usage("the parameter is given twice").with_op(op).with_key(s.name));
            }
            s.value.data::<f32>().map_err(|e| e.with_key(s.name))?;
            s.grad.data::<f32>().map_err(|e| e.with_key(s.name))?;
        }
        let squares: Vec<f64> =
            slots.par_iter().map(|s| s.grad.f32s().map(kernel::sum_squares)).collect::<Result<_>>()?;
        match squares.iter().position(|s| !s.is_finite()) {
            None => Ok(squares),
            Some(i) => Err(Error::numeric(op, "the gradient is not finite; no parameter was changed")
                .with_key(slots[i].name)
                .with_remedy("lower the learning rate, clip the gradient, or look for bad input data")),
        }
    }

    pub fn export(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        for (name, e) in &self.entries {
            for (kind, buf) in self.kinds.iter().zip(&e.bufs) {
                let t = Tensor::from_vec(e.shape, buf.clone())
                    .expect("a buffer has as many elements as its shape");
                out.insert(format!("{kind}.{name}"), t);
            }
        }
        out.insert("step".into(), step_tensor(self.step));
        out
    }

    pub fn import(&mut self, params: &[(&str, Shape)], state: &BTreeMap<String, Tensor>) -> Result<()> {
        let step = step_value(state)?;
        let mut entries = BTreeMap::new();
        let mut used = BTreeSet::from(["step".to_string()]);
        for &(name, shape) in params {
            // Before the first step there is nothing to keep.
            if step == 0 {
                break;
            }
            let mut bufs = self.kinds.map(|_| Vec::new());
            for (kind, buf) in self.kinds.iter().zip(&mut bufs) {
                let key = format!("{kind}.{name}");
                *buf = buffer(state, &key, shape)?.f32s()?.to_vec();
                used.insert(key);
            }
            entries.insert(name.to_string(), Entry { shape, bufs });
        }
        if let Some(key) = state.keys().find(|k| !used.contains(*k)) {
            return Err(unfit("the optimiser state has a tensor that no parameter asks for", key));
        }
        (self.step, self.entries) = (step, entries);
        Ok(())
    }
}

/// Checks a learning rate.
pub(super) fn check_lr(op: &str, lr: f64) -> Result<()> {
    if (0.0..f64::INFINITY).contains(&lr) {
        return Ok(());
    }
    Err(Error::usage(format!("{lr} is no learning rate"))
        .with_op(op)
        .with_remedy("check `lr` and the schedule of the recipe"))
}

/// The error of a state that does not fit, naming its key.
pub(super) fn unfit(what: impl Into<String>, key: &str) -> Error {
    Error::checkpoint(what)
        .with_key(key)
        .with_remedy("resume with the recipe that wrote the checkpoint, or start the optimiser afresh")
}

/// The f32 tensor `key` of a saved state, which must have `shape`.
pub(super) fn buffer<'a>(state: &'a BTreeMap<String, Tensor>, key: &str, shape: Shape) -> Result<&'a Tensor> {
    let t = state.get(key).ok_or_else(|| unfit("the saved state lacks this tensor", key))?;
    if t.shape() != shape || t.dtype() != DType::F32 {
        return Err(unfit(format!("the parameter asks for f32 {shape}"), key).with_tensor("saved", t));
    }
    Ok(t)
}

/// A step count as a tensor.
pub(super) fn step_tensor(step: u64) -> Tensor {
    // Counts beyond i64 cannot be reached by counting.
    Tensor::from_vec(Shape::SCALAR, vec![step as i64]).expect("a scalar has one element")
}

/// The count saved under `step`.
pub(super) fn step_value(state: &BTreeMap<String, Tensor>) -> Result<u64> {
    let t = state.get("step").ok_or_else(|| unfit("the saved state lacks the step count", "step"))?;
    match t.data::<i64>() {
        Ok(&[n]) if n >= 0 => Ok(n as u64),
        _ => Err(unfit("the step count is one i64 that is not negative", "step").with_tensor("saved", t)),
    }
}
