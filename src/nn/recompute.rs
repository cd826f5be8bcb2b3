//! Recomputation ("checkpointing") of a block in the backward pass: a composite op.

use super::ctx::{Ctx, ForkState};
use super::params::ParamId;
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::ops::{Backward, Forward, Op};
use crate::tape::Var;
use crate::tensor::Tensor;
use std::fmt;

type Block<'a> = dyn Fn(&mut Ctx<'a>, &[Var]) -> Result<Var> + Send + Sync + 'a;

/// Inputs: the block's inputs, then the parameters it uses.
pub(super) struct Recompute<'a> {
    block: Box<Block<'a>>,
    state: ForkState<'a>,
    params: Vec<ParamId>,
    inputs: usize,
}

impl<'a> Recompute<'a> {
    pub(super) fn new(
        block: Box<Block<'a>>,
        state: ForkState<'a>,
        params: Vec<ParamId>,
        inputs: usize,
    ) -> Self {
        Recompute { block, state, params, inputs }
    }

    fn not_alone(&self) -> Error {
        Error::usage("recompute: is recorded with a known result and never run by itself")
    }
}

impl fmt::Debug for Recompute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recompute({} inputs, {} parameters)", self.inputs, self.params.len())
    }
}

impl Op for Recompute<'_> {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn output_shape(&self, _: &[Shape]) -> Result<Shape> {
        Err(self.not_alone())
    }

    fn forward(&self, _: &[&Tensor]) -> Result<Forward> {
        Err(self.not_alone())
    }

    fn save(&self, inputs: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        inputs.iter().map(|&t| t.clone()).collect()
    }

    fn backward(&self, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (inputs, params) = b.saved.split_at(self.inputs);
        let named: Vec<_> = self.params.iter().copied().zip(params.iter().cloned()).collect();
        let mut ctx = self.state.replay(&named);
        let vars: Vec<Var> = inputs
            .iter()
            .zip(b.needs)
            .map(|(t, &need)| if need { ctx.leaf(t.clone()) } else { ctx.constant(t.clone()) })
            .collect();
        let y = (self.block)(&mut ctx, &vars)?;
        let mut g = ctx.backward_from(vec![(y, b.gy.clone())])?;
        let mut out: Vec<Option<Tensor>> = vars.iter().map(|v| g.take(v)).collect();
        out.extend(self.params.iter().map(|id| g.take_param(*id)));
        Ok(out)
    }

    fn reference(&self, _: &[&Tensor]) -> Result<Tensor> {
        Err(self.not_alone())
    }

    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }

    fn is_composite(&self) -> bool {
        true
    }
}
