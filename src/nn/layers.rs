//! Layers: parameters plus the op that uses them. Names and defaults are PyTorch's.

use super::ctx::RunningAverage;
use super::params::{Builder, Layout, ParamId};
use super::{Ctx, Init};
use crate::base::DType;
use crate::error::Result;
use crate::ops::batch_norm::BatchNormMode;
use crate::ops::{self};
use crate::tape::Var;
use crate::tensor::Tensor;

/// A 2-D convolution on NHWC images: `weight [out, in/groups, kh, kw]`, optional `bias [out]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: ParamId,
    bias: Option<ParamId>,
    op: ops::conv2d::Conv2d,
}

impl Conv2d {
    /// A square convolution with PyTorch's default initialisation and a bias.
    pub fn new(
        b: &mut Builder<'_>,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Self {
        let op = ops::conv2d::Conv2d { stride: [stride; 2], pad: [pad; 2], dilation: [1; 2], groups: 1 };
        Self::with_op(b, c_in, c_out, kernel, op, Init::TorchDefault, true)
    }

    /// A square convolution with every option.
    pub fn with_op(
        b: &mut Builder<'_>,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        op: ops::conv2d::Conv2d,
        init: Init,
        bias: bool,
    ) -> Self {
        let per_group = c_in / op.groups.max(1);
        let fan_in = per_group * kernel * kernel;
        let weight = b.param("weight", [c_out, per_group, kernel, kernel], Layout::Conv2d, init);
        let bias_init = if init == Init::TorchDefault { Init::TorchBias { fan_in } } else { Init::ZEROS };
        let bias = bias.then(|| b.param("bias", [c_out], Layout::Plain, bias_init));
        Conv2d { weight, bias, op }
    }

    /// `x [N, H, W, in]` to `[N, H', W', out]`.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        match self.bias {
            Some(b) => {
                let b = ctx.param(b);
                self.forward_with_bias(ctx, x, &b)
            }
            None => {
                let w = ctx.param(self.weight);
                ctx.apply(self.op.clone(), &[x, &w])
            }
        }
    }

    /// Like [`Conv2d::forward`] for a layer without a bias that a batch norm follows: in training on a device the second
    /// result are the statistics that [`BatchNorm2d::forward_after`] takes.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward_with_stats(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<(Var, Option<Tensor>)> {
        if !ctx.is_training() || self.bias.is_some() {
            return Ok((self.forward(ctx, x)?, None));
        }
        let w = ctx.param(self.weight);
        let (y, aux) = ctx.apply_aux(ops::conv2d::ConvStats(self.op.clone()), &[x, &w])?;
        Ok((y, aux.into_iter().next()))
    }

    /// Like [`Conv2d::forward`] with another bias, e.g. with a constant folded in.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward_with_bias(&self, ctx: &mut Ctx<'_>, x: &Var, bias: &Var) -> Result<Var> {
        let w = ctx.param(self.weight);
        ctx.apply(self.op.clone(), &[x, &w, bias])
    }

    /// The weight's handle.
    pub fn weight(&self) -> ParamId {
        self.weight
    }

    /// The convolution itself.
    pub fn op(&self) -> &ops::conv2d::Conv2d {
        &self.op
    }

    /// The bias' handle.
    pub fn bias(&self) -> Option<ParamId> {
        self.bias
    }
}

/// A linear layer on the last axis: `weight [out, in]`, optional `bias [out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// With PyTorch's default initialisation and a bias.
    pub fn new(b: &mut Builder<'_>, c_in: usize, c_out: usize) -> Self {
        Self::with(b, c_in, c_out, Layout::Plain, Init::TorchDefault, true)
    }

    /// With every option. `Layout::Conv1d` reads `weight [out, in, 1]`, as the attention blocks of guided-diffusion
    /// store it.
    pub fn with(
        b: &mut Builder<'_>,
        c_in: usize,
        c_out: usize,
        layout: Layout,
        init: Init,
        bias: bool,
    ) -> Self {
        let weight = match layout {
            Layout::Conv1d => b.param("weight", [c_out, c_in, 1], layout, init),
            _ => b.param("weight", [c_out, c_in], layout, init),
        };
        let bias_init =
            if init == Init::TorchDefault { Init::TorchBias { fan_in: c_in } } else { Init::ZEROS };
        let bias = bias.then(|| b.param("bias", [c_out], Layout::Plain, bias_init));
        Linear { weight, bias }
    }

    /// The weight's handle.
    pub fn weight(&self) -> ParamId {
        self.weight
    }

    /// The bias' handle.
    pub fn bias(&self) -> Option<ParamId> {
        self.bias
    }

    /// `x [.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let w = ctx.param(self.weight);
        match self.bias {
            Some(b) => {
                let b = ctx.param(b);
                ctx.apply(ops::linear::Linear {}, &[x, &w, &b])
            }
            None => ctx.apply(ops::linear::Linear {}, &[x, &w]),
        }
    }
}

/// Group normalisation: `weight [C]`, `bias [C]`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: ParamId,
    bias: ParamId,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// `groups` groups over `channels` channels.
    pub fn new(b: &mut Builder<'_>, groups: usize, channels: usize, eps: f32) -> Self {
        let weight = b.param("weight", [channels], Layout::Plain, Init::ONES);
        let bias = b.param("bias", [channels], Layout::Plain, Init::ZEROS);
        GroupNorm { weight, bias, groups, eps }
    }

    /// The affine parameters' handles: weight, bias.
    pub fn affine(&self) -> (ParamId, ParamId) {
        (self.weight, self.bias)
    }

    /// Normalises `x`, then SiLU if asked. `scale_shift [N, 2C]` holds scale, then shift:
    /// `(norm * (1 + scale) + shift)` before the SiLU.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward(&self, ctx: &mut Ctx<'_>, x: &Var, scale_shift: Option<&Var>, silu: bool) -> Result<Var> {
        let (w, b) = (ctx.param(self.weight), ctx.param(self.bias));
        self.forward_with(ctx, x, &w, &b, scale_shift, silu)
    }

    /// Like [`GroupNorm::forward`] with other affine values, e.g. with a constant scale and shift folded in.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward_with(
        &self,
        ctx: &mut Ctx<'_>,
        x: &Var,
        weight: &Var,
        bias: &Var,
        scale_shift: Option<&Var>,
        silu: bool,
    ) -> Result<Var> {
        let op = ops::group_norm::GroupNorm { groups: self.groups, eps: self.eps, silu };
        match scale_shift {
            Some(s) => ctx.apply(op, &[x, weight, bias, s]),
            None => ctx.apply(op, &[x, weight, bias]),
        }
    }
}

/// Layer normalisation over the last axis: `weight [C]`, `bias [C]`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
    eps: f32,
}

impl LayerNorm {
    /// Over `channels` channels.
    pub fn new(b: &mut Builder<'_>, channels: usize, eps: f32) -> Self {
        let weight = b.param("weight", [channels], Layout::Plain, Init::ONES);
        let bias = b.param("bias", [channels], Layout::Plain, Init::ZEROS);
        LayerNorm { weight, bias, eps }
    }

    /// Normalises the last axis.
    ///
    /// # Errors
    /// The channels do not fit.
    pub fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let (w, b) = (ctx.param(self.weight), ctx.param(self.bias));
        ctx.apply(ops::layer_norm::LayerNorm { eps: self.eps }, &[x, &w, &b])
    }
}

/// Batch normalisation of NHWC images: `weight`, `bias`, and the buffers `running_mean`, `running_var`,
/// `num_batches_tracked`; eps 1e-5, momentum 0.1.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    weight: ParamId,
    bias: ParamId,
    running_mean: ParamId,
    running_var: ParamId,
    num_batches_tracked: ParamId,
}

impl BatchNorm2d {
    const EPS: f32 = 1e-5;
    const MOMENTUM: f32 = 0.1;

    /// Over `channels` channels, with initial weight `gain` (0 for the last norm of a residual block).
    pub fn new(b: &mut Builder<'_>, channels: usize, gain: f32) -> Self {
        BatchNorm2d {
            weight: b.param("weight", [channels], Layout::Plain, Init::Const(gain)),
            bias: b.param("bias", [channels], Layout::Plain, Init::ZEROS),
            running_mean: b.buffer("running_mean", [channels], DType::F32, Init::ZEROS),
            running_var: b.buffer("running_var", [channels], DType::F32, Init::ONES),
            num_batches_tracked: b.buffer(
                "num_batches_tracked",
                crate::base::Shape::SCALAR,
                DType::I64,
                Init::ZEROS,
            ),
        }
    }

    /// Normalises, then ReLU if asked. In training mode with batch statistics, and the running ones are updated
    /// (unbiased variance, momentum 0.1); else with the running statistics.
    ///
    /// # Errors
    /// The channels do not fit, or a training batch has a single value per channel.
    pub fn forward(&self, ctx: &mut Ctx<'_>, x: &Var, relu: bool) -> Result<Var> {
        self.forward_after(ctx, x, None, None, relu)
    }

    /// Like [`BatchNorm2d::forward`] with what [`Conv2d::forward_with_stats`] has left of `x`, and with a residual that is
    /// added before the ReLU.
    ///
    /// # Errors
    /// As [`BatchNorm2d::forward`], or the residual has another shape than `x`.
    pub fn forward_after(
        &self,
        ctx: &mut Ctx<'_>,
        x: &Var,
        stats: Option<Tensor>,
        residual: Option<&Var>,
        relu: bool,
    ) -> Result<Var> {
        let (w, b) = (ctx.param(self.weight), ctx.param(self.bias));
        let (mean, var) = (ctx.param(self.running_mean), ctx.param(self.running_var));
        let op = |mode| ops::batch_norm::BatchNorm {
            residual: residual.is_some(),
            ..ops::batch_norm::BatchNorm::new(mode, Self::EPS, relu)
        };
        if !ctx.is_training() {
            let inputs: Vec<&Var> = [x, &w, &b, &mean, &var].into_iter().chain(residual).collect();
            return ctx.apply(op(BatchNormMode::Eval), &inputs);
        }
        let inputs: Vec<&Var> = [x, &w, &b].into_iter().chain(residual).collect();
        let op = ops::batch_norm::BatchNorm { stats, ..op(BatchNormMode::Train) };
        let (y, aux) = ctx.apply_aux(op, &inputs)?;
        if let [batch_mean, batch_var] = &aux[..]
            && batch_mean.gpu().is_some()
        {
            // Batches are counted on the host.
            for (id, value) in [(self.running_mean, batch_mean), (self.running_var, batch_var)] {
                ctx.move_buffer(RunningAverage { id, value: value.clone(), weight: Self::MOMENTUM });
            }
        } else if let [batch_mean, batch_var] = &aux[..] {
            for (id, old, new) in [(self.running_mean, mean, batch_mean), (self.running_var, var, batch_var)]
            {
                let mixed = old
                    .tensor()
                    .f32s()?
                    .iter()
                    .zip(new.f32s()?)
                    .map(|(o, n)| (1.0 - Self::MOMENTUM) * o + Self::MOMENTUM * n)
                    .collect();
                ctx.update_buffer(id, Tensor::from_vec(old.shape(), mixed)?);
            }
            let seen = ctx.param(self.num_batches_tracked).tensor().data::<i64>()?[0];
            ctx.update_buffer(self.num_batches_tracked, Tensor::from_vec([0; 0], vec![seen + 1])?);
        }
        Ok(y)
    }
}

/// A table of vectors: `weight [rows, dim]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: ParamId,
}

impl Embedding {
    /// With PyTorch's default initialisation, standard normal.
    pub fn new(b: &mut Builder<'_>, rows: usize, dim: usize) -> Self {
        Embedding { weight: b.param("weight", [rows, dim], Layout::Table, Init::Normal(1.0)) }
    }

    /// `index [N]` (i64) to `[N, dim]`, on a device of type `dtype` (f32 or bf16).
    ///
    /// # Errors
    /// An index is out of range.
    pub fn forward(&self, ctx: &mut Ctx<'_>, index: &Var, dtype: DType) -> Result<Var> {
        let w = ctx.param(self.weight);
        ctx.apply(ops::embedding::Embedding { dtype }, &[&w, index])
    }
}
