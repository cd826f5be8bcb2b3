//! One run of a network: the tape, the parameters in use, the mode and the random numbers.

use super::params::{ParamId, ParamStore, Role};
use super::recompute::Recompute;
use crate::base::Philox;
use crate::error::Result;
use crate::ops::{DeviceKey, Offload, Op};
use crate::tape::{Grads, Step, Tape, Var};
use crate::tensor::{Device, Ledger, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything a forward pass needs. A network's `forward` takes `&mut Ctx` and applies ops through it.
pub struct Ctx<'a> {
    tape: Tape<'a>,
    store: &'a ParamStore,
    leaves: BTreeMap<ParamId, Var>,
    training: bool,
    rng: Philox,
    draws: u64,
    keys: Option<Tensor>,
    buffers: Vec<(ParamId, Tensor)>,
    averages: Vec<RunningAverage>,
    ledger: Option<Arc<Ledger>>,
}

/// A buffer that moves towards a value: `buffer = (1 - weight) buffer + weight value`.
#[derive(Clone, Debug)]
pub struct RunningAverage {
    /// The buffer.
    pub id: ParamId,
    /// What it moves towards, of the buffer's shape, f32.
    pub value: Tensor,
    /// How far, from 0 to 1.
    pub weight: f32,
}

impl<'a> Ctx<'a> {
    /// Inference: nothing is recorded, norms use their running statistics, dropout is off.
    pub fn inference(store: &'a ParamStore) -> Self {
        Self::with_tape(store, Tape::frozen(), false)
    }

    /// Training: parameters are leaves of a recording tape, norms use batch statistics, dropout draws from `rng`.
    pub fn training(store: &'a ParamStore, rng: Philox) -> Self {
        Ctx { rng, ..Self::with_tape(store, Tape::new(), true) }
    }

    /// Gradients through a network in inference mode (running statistics, no dropout).
    pub fn differentiable(store: &'a ParamStore) -> Self {
        Self::with_tape(store, Tape::new(), false)
    }

    fn with_tape(store: &'a ParamStore, tape: Tape<'a>, training: bool) -> Self {
        Ctx {
            tape,
            store,
            leaves: BTreeMap::new(),
            training,
            rng: Philox::new(0),
            draws: 0,
            keys: None,
            buffers: Vec::new(),
            averages: Vec::new(),
            ledger: None,
        }
    }

    /// Lists the executed operations.
    pub fn trace(mut self) -> Self {
        self.tape = self.tape.trace();
        self
    }

    /// Runs the ops that have a kernel on a device, as [`Tape::offload`].
    pub fn offload(mut self, offload: Offload) -> Self {
        self.tape = self.tape.offload(offload);
        self
    }

    /// Runs on planning tensors: parameters become shapes without data whose gradients and everything made from them
    /// count in `ledger`. The parameters themselves are not counted.
    pub fn planning(mut self, ledger: &Arc<Ledger>) -> Self {
        self.ledger = Some(Arc::clone(ledger));
        self
    }

    /// The executed operations since [`Ctx::trace`].
    pub fn steps(&self) -> &[Step] {
        self.tape.steps()
    }

    /// Whether norms use batch statistics and dropout drops.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// A fresh random stream for one use in this pass (a dropout mask). Uses in the same order get the same streams.
    pub fn next_rng(&mut self) -> Philox {
        self.draws += 1;
        self.rng.fold(self.draws)
    }

    /// Lets random ops on a device read their streams from a table, u8 `[n, 16]`, whose entry `i` holds the words of the
    /// stream that draw `i + 1` gives ([`Ctx::next_rng`]). Under a captured graph it is written anew before every step.
    pub fn with_keys(mut self, table: Tensor) -> Self {
        self.keys = Some(table);
        self
    }

    /// How many streams were drawn so far: as many entries a table of keys needs.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// Where the stream that [`Ctx::next_rng`] gave last lies on the device; `None` without a table or a draw.
    pub fn last_key(&self) -> Option<DeviceKey> {
        let index = usize::try_from(self.draws.checked_sub(1)?).ok()?;
        self.keys.as_ref().map(|table| DeviceKey { table: table.clone(), index })
    }

    /// A parameter or buffer as a value. The same parameter is the same leaf throughout a pass.
    pub fn param(&mut self, id: ParamId) -> Var {
        if let Some(v) = self.leaves.get(&id) {
            return v.clone();
        }
        let p = self.store.get(id);
        let value = match &self.ledger {
            // Its own bytes are not counted here: the ledger keeps an entry of size zero alive through the gradients.
            Some(l) => Tensor::meta_uncounted(p.value().shape(), p.value().dtype(), l),
            None => p.value().clone(),
        };
        let v = if p.trainable() { self.tape.leaf(value) } else { self.tape.constant(value) };
        self.leaves.insert(id, v.clone());
        v
    }

    /// Applies an op.
    ///
    /// # Errors
    /// As [`crate::ops::run`].
    pub fn apply(&mut self, op: impl Op + 'a, inputs: &[&Var]) -> Result<Var> {
        self.tape.apply(op, inputs)
    }

    /// Applies an op and also gives its results without a gradient.
    ///
    /// # Errors
    /// As [`crate::ops::run`].
    pub fn apply_aux(&mut self, op: impl Op + 'a, inputs: &[&Var]) -> Result<(Var, Vec<Tensor>)> {
        self.tape.apply_aux(op, inputs)
    }

    /// An input that a gradient is wanted for.
    pub fn leaf(&mut self, t: Tensor) -> Var {
        self.tape.leaf(t)
    }

    /// An input without a gradient.
    pub fn constant(&self, t: Tensor) -> Var {
        self.tape.constant(t)
    }

    /// Notes the new value of a buffer, to be stored after the step ([`Gradients::buffers`]).
    pub fn update_buffer(&mut self, id: ParamId, value: Tensor) {
        debug_assert_eq!(self.store.get(id).role(), Role::Buffer);
        self.buffers.push((id, value));
    }

    /// Notes that a buffer on a device is to move towards a value after the step ([`Gradients::averages`]): there one launch
    /// does it for all buffers.
    pub fn move_buffer(&mut self, average: RunningAverage) {
        debug_assert_eq!(self.store.get(average.id).role(), Role::Buffer);
        self.averages.push(average);
    }

    /// Runs `block` without keeping what it computes on the way: the backward pass runs it again. Costs one more
    /// forward pass of the block and saves its activations. Random numbers repeat; buffers are updated only once.
    ///
    /// # Errors
    /// Those of the block.
    pub fn recompute<F>(&mut self, inputs: &[&Var], block: F) -> Result<Var>
    where
        F: Fn(&mut Ctx<'a>, &[Var]) -> Result<Var> + Send + Sync + 'a,
    {
        let values: Vec<Var> = inputs.iter().map(|v| v.detach()).collect();
        let mut inner = self.fork(Tape::frozen());
        if self.tape.is_tracing() {
            inner.tape = inner.tape.trace();
        }
        let y = block(&mut inner, &values)?;
        let first_draw = self.draws;
        self.draws = inner.draws;
        self.buffers.append(&mut inner.buffers);
        self.averages.append(&mut inner.averages);
        self.tape.extend_steps(&inner.tape);
        let used: Vec<ParamId> =
            inner.leaves.keys().copied().filter(|id| self.store.get(*id).trainable()).collect();
        let params: Vec<Var> = used.iter().map(|id| self.param(*id)).collect();
        let all: Vec<&Var> = inputs.iter().copied().chain(&params).collect();
        if !self.tape.is_recording() || !all.iter().any(|v| v.tracked()) {
            return Ok(y);
        }
        let op = Recompute::new(Box::new(block), self.fork_state(first_draw), used, inputs.len());
        Ok(self.tape.record(op, &all, y.into_tensor(), vec![]))
    }

    /// A context over the same network and mode with another tape; random draws go on from here.
    fn fork(&self, tape: Tape<'a>) -> Ctx<'a> {
        self.fork_state(self.draws).resume(tape)
    }

    fn fork_state(&self, draws: u64) -> ForkState<'a> {
        ForkState {
            store: self.store,
            training: self.training,
            rng: self.rng,
            draws,
            keys: self.keys.clone(),
            ledger: self.ledger.clone(),
            offload: self.tape.offloading().cloned(),
        }
    }

    /// Runs backward from a scalar loss with gradient 1.
    ///
    /// # Errors
    /// As [`Tape::backward`].
    pub fn backward(self, loss: &Var) -> Result<Gradients> {
        let Ctx { leaves, buffers, averages, tape, .. } = self;
        Ok(Gradients { leaves, buffers, averages, grads: tape.backward(loss)? })
    }

    /// Runs backward from any values with the given gradients.
    ///
    /// # Errors
    /// As [`Tape::backward_from`].
    pub fn backward_from(self, seeds: Vec<(Var, Tensor)>) -> Result<Gradients> {
        let Ctx { leaves, buffers, averages, tape, .. } = self;
        Ok(Gradients { leaves, buffers, averages, grads: tape.backward_from(seeds)? })
    }

    /// The buffer updates of a pass that is not differentiated.
    pub fn into_buffers(self) -> Vec<(ParamId, Tensor)> {
        self.buffers
    }

    /// Whether this pass only plans shapes.
    pub fn is_planning(&self) -> bool {
        self.ledger.is_some()
    }

    /// An input for this pass: the tensor itself, or its shape when planning.
    pub fn input(&self, t: &Tensor) -> Var {
        match &self.ledger {
            Some(l) if t.device() != Device::Meta => {
                self.constant(Tensor::meta(t.shape(), t.dtype(), Some(l)))
            }
            _ => self.constant(t.clone()),
        }
    }
}

/// What a recomputation needs to start again.
pub(super) struct ForkState<'a> {
    store: &'a ParamStore,
    training: bool,
    rng: Philox,
    draws: u64,
    keys: Option<Tensor>,
    ledger: Option<Arc<Ledger>>,
    offload: Option<Offload>,
}

impl<'a> ForkState<'a> {
    /// A context that starts where the state was taken.
    pub(super) fn resume(&self, tape: Tape<'a>) -> Ctx<'a> {
        let tape = match &self.offload {
            Some(offload) => tape.offload(offload.clone()),
            None => tape,
        };
        Ctx {
            rng: self.rng,
            draws: self.draws,
            keys: self.keys.clone(),
            ledger: self.ledger.clone(),
            ..Ctx::with_tape(self.store, tape, self.training)
        }
    }

    /// Like [`ForkState::resume`] on a recording tape, with given leaves for parameters.
    pub(super) fn replay(&self, params: &[(ParamId, Tensor)]) -> Ctx<'a> {
        let mut ctx = self.resume(Tape::new());
        for (id, t) in params {
            let v = ctx.tape.leaf(t.clone());
            ctx.leaves.insert(*id, v);
        }
        ctx
    }
}

/// The result of a backward pass.
pub struct Gradients {
    leaves: BTreeMap<ParamId, Var>,
    buffers: Vec<(ParamId, Tensor)>,
    averages: Vec<RunningAverage>,
    grads: Grads,
}

impl Gradients {
    /// Takes the gradient of a parameter, in memory layout; `None` if none reached it.
    pub fn take_param(&mut self, id: ParamId) -> Option<Tensor> {
        let leaf = self.leaves.get(&id)?;
        self.grads.take(leaf)
    }

    /// Takes the gradient of an input made by [`Ctx::leaf`].
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        self.grads.take(leaf)
    }

    /// New values of buffers (running statistics), in the order in which they were noted.
    pub fn buffers(&self) -> &[(ParamId, Tensor)] {
        &self.buffers
    }

    /// Buffers on a device that are to move towards a value, in the order in which they were noted.
    pub fn averages(&self) -> &[RunningAverage] {
        &self.averages
    }
}
