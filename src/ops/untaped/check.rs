//! What the checks of the operations share.

use super::multi_tensor::{self, CHUNK, Group, Parameter, StepScalars};
use super::{accumulate, grad_norm};
use crate::base::{DType, Philox};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::check::{Limit, compare};
use crate::tensor::Tensor;

/// What `run` makes, copied to the host. It runs twice and has to make the same bits.
pub(super) fn repeated(op: &str, run: impl Fn() -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    let once = || run()?.iter().map(Tensor::to_cpu).collect::<Result<Vec<Tensor>>>();
    let (first, second) = (once()?, once()?);
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        let bits = |t: &Tensor| -> Result<Vec<u64>> { Ok(wide(t)?.iter().map(|v| v.to_bits()).collect()) };
        if bits(a)? != bits(b)? {
            return Err(Error::numeric(op, format!("result {i} differs between two runs")));
        }
    }
    Ok(first)
}

/// The elements in f64.
pub(super) fn wide(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.data::<f64>()?.to_vec())
}

/// Compares a result on the host with the definition; `of_max` of the largest magnitude may be lost beside the rounding to
/// the result's dtype. Gives the largest error.
pub(super) fn expect(op: &str, what: &str, got: &Tensor, want: &[f64], of_max: f64) -> Result<f64> {
    compare(&wide(got)?, want, Limit::new(of_max, got.dtype()))
        .map_err(|why| Error::numeric(op, format!("{what}: {why}")))
}

/// Tensors to update: of several chunks, of whole turns of a block, and of few elements.
pub(super) struct Scene {
    sizes: Vec<usize>,
}

/// Normal random numbers on the device.
fn normal(gpu: &Gpu, stream: Philox, elements: usize) -> Result<Tensor> {
    let mut v = vec![0.0f32; elements];
    stream.fill_normal(&mut v);
    Tensor::from_vec([elements], v)?.to_gpu(gpu)
}

impl Scene {
    /// `count` tensors.
    pub fn new(count: usize) -> Scene {
        let first = [CHUNK + 5, 2048, 7, 1, 0];
        Scene { sizes: (0..count).map(|i| first.get(i).copied().unwrap_or(1 + i % 5)).collect() }
    }

    /// The group with random values; some have no shadow, some no decay, some a learning rate of their own.
    pub fn group(&self, gpu: &Gpu, kinds: usize) -> Result<Group> {
        let parameter = |(i, &n): (usize, &usize)| {
            let shadow = Tensor::empty_gpu([n], DType::Bf16, gpu, "shadow")?;
            Ok(Parameter {
                value: normal(gpu, Philox::new(1).fold(i as u64), n)?,
                shadow: (i != 2).then_some(shadow),
                decay: i % 2 == 0,
                lr_scale: if i == 1 { 0.5 } else { 1.0 },
            })
        };
        let params = self.sizes.iter().enumerate().map(parameter).collect::<Result<Vec<_>>>()?;
        Group::new(gpu, params, kinds)
    }

    /// Random tensors of the group's sizes.
    pub fn gradients(&self, gpu: &Gpu, seed: u64) -> Result<Vec<Tensor>> {
        let of = |(i, &n): (usize, &usize)| normal(gpu, Philox::new(2).fold(seed).fold(i as u64), n);
        self.sizes.iter().enumerate().map(of).collect()
    }
}

/// One tensor in one step of a definition.
pub(super) struct Job<'a> {
    /// The value.
    pub w: &'a mut [f64],
    /// The first buffer.
    pub a: &'a mut [f64],
    /// The second buffer.
    pub b: &'a mut [f64],
    /// The gradient.
    pub g: &'a [f64],
    /// The tensor's learning rate.
    pub lr: f64,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Steps so far, with this one.
    pub step: u64,
    /// Norm of the gradient of all tensors.
    pub norm: f64,
}

/// Learning rate and number of steps of [`check_optimizer`].
const LR: f64 = 0.05;
const STEPS: u64 = 3;

/// Runs some steps of an optimiser with `kinds` buffers and compares values, buffers, shadows and the report with the
/// definition. Gives the largest error.
pub(super) fn check_optimizer(
    op: &str,
    gpu: &Gpu,
    kinds: usize,
    scalars: impl Fn(u64) -> StepScalars,
    enqueue: impl Fn(&Group) -> Result<()>,
    reference: impl Fn(&mut Job<'_>),
) -> Result<f64> {
    let scene = Scene::new(5);
    let made = repeated(op, || {
        let group = scene.group(gpu, kinds)?;
        for step in 1..=STEPS {
            multi_tensor::write(gpu, group.scalars(), &[StepScalars { lr: LR, ..scalars(step) }])?;
            let grads = scene.gradients(gpu, step)?;
            let grads: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
            accumulate::enqueue(gpu, &group, &grads, true)?;
            grad_norm::clip(gpu, &group, None, 1, None)?;
            enqueue(&group)?;
            grad_norm::report(gpu, &group)?;
        }
        let mut all = vec![group.report().clone()];
        for (i, p) in group.params().iter().enumerate() {
            all.push(p.value.clone());
            all.extend((0..kinds).map(|kind| group.buffers(kind)[i].clone()));
            all.extend(p.shadow.clone());
        }
        Ok(all)
    })?;

    let mut got = made.iter();
    let mut next = || got.next().ok_or_else(|| Error::numeric(op, "a result is missing"));
    let report = next()?;
    let start = scene.group(gpu, 0)?;
    let mut state = Vec::new();
    for p in start.params() {
        let w = wide(&p.value.to_cpu()?)?;
        let zeros = vec![0.0; w.len()];
        state.push((w, zeros.clone(), zeros));
    }
    let square = |v: f64| v * v;
    let mut norms = [0.0; 3];
    for step in 1..=STEPS {
        let grads = scene.gradients(gpu, step)?;
        let grads = grads.iter().map(|g| wide(&g.to_cpu()?)).collect::<Result<Vec<_>>>()?;
        let norm = grads.iter().flatten().map(|&g| square(g)).sum::<f64>().sqrt();
        norms = [norm * norm, 0.0, 0.0];
        for ((p, (w, a, b)), g) in start.params().iter().zip(&mut state).zip(&grads) {
            let old = w.clone();
            let (lr, decay) = (LR * f64::from(p.lr_scale), p.decay);
            reference(&mut Job { w, a, b, g, lr, decay, step, norm });
            norms[1] += w.iter().zip(&old).map(|(w, o)| square(w - o)).sum::<f64>();
            norms[2] += w.iter().map(|&w| square(w)).sum::<f64>();
        }
    }
    let [grad, update, param] = norms.map(f64::sqrt);
    let mut worst = expect(op, "the report", report, &[grad, update, param, 1.0], 1e-5)?;
    for (i, (p, (w, a, b))) in start.params().iter().zip(&state).enumerate() {
        let wanted = [("value", w), ("first buffer", a), ("second buffer", b)];
        for (what, want) in
            wanted.into_iter().take(1 + kinds).chain(p.shadow.is_some().then_some(("shadow", w)))
        {
            let got = next()?;
            if !want.is_empty() {
                worst = worst.max(expect(op, &format!("{what} {i}"), got, want, 2e-6)?);
            }
        }
    }
    Ok(worst)
}
