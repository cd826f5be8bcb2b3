//! The blocks of the U-Net: residual blocks with a time condition, attention, resampling.

use super::AdmConfig;
use super::config::GROUPS;
use super::time::{FoldedBlock, FoldedTime};
use crate::error::Result;
use crate::nn::{Builder, Conv2d, Ctx, GroupNorm, Init, Layout, Linear};
use crate::ops::attention::{Attention, QkvOrder};
use crate::ops::resize::{Resize, ResizeMode};
use crate::ops::{add::Add, avg_pool::AvgPool, conv2d, dropout::Dropout};
use crate::tape::Var;

/// Epsilon of every norm (PyTorch's default).
pub(super) const EPS: f32 = 1e-5;

/// A 3x3 convolution that starts at zero, as the last one of every residual branch does.
pub(super) fn zero_conv3x3(b: &mut Builder<'_>, c_in: usize, c_out: usize) -> Conv2d {
    let op = conv2d::Conv2d { stride: [1; 2], pad: [1; 2], dilation: [1; 2], groups: 1 };
    Conv2d::with_op(b, c_in, c_out, 3, op, Init::ZEROS, true)
}

pub(super) fn norm(b: &mut Builder<'_>, channels: usize) -> GroupNorm {
    GroupNorm::new(b, GROUPS, channels, EPS)
}

/// Halving or doubling of height and width, without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resample {
    /// Mean of 2x2 pixels.
    Down,
    /// Every pixel four times.
    Up,
}

impl Resample {
    fn apply(self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        match self {
            Resample::Down => ctx.apply(AvgPool { kernel: 2, stride: 2, pad: 0 }, &[x]),
            Resample::Up => {
                let (_, h, w, _) = x.shape().nhwc("upsample")?;
                ctx.apply(Resize { mode: ResizeMode::Nearest, out: [2 * h, 2 * w] }, &[x])
            }
        }
    }
}

/// The time condition of a pass.
pub(super) enum Condition<'t> {
    /// SiLU of the embedding: `[N, E]`. Every block would apply the same SiLU, so it is applied once.
    Embedding(Var),
    /// Constants for every ResBlock.
    Folded(&'t FoldedTime),
}

/// The time condition of one ResBlock.
enum BlockCondition<'t> {
    Embedding(&'t Var),
    Folded(&'t FoldedBlock),
}

/// A ResBlock: `skip(x) + conv(silu(condition(norm(conv(resample(silu(norm(x))))))))`.
#[derive(Debug)]
pub(super) struct ResBlock {
    pub(super) in_norm: GroupNorm,
    pub(super) in_conv: Conv2d,
    embedding: Linear,
    pub(super) out_norm: GroupNorm,
    pub(super) out_conv: Conv2d,
    pub(super) skip: Option<Conv2d>,
    pub(super) resample: Option<Resample>,
    scale_shift: bool,
    dropout: f32,
    /// Position among the ResBlocks of the network, which is its place in [`FoldedTime`].
    pub(super) index: usize,
}

impl ResBlock {
    pub(super) fn new(
        b: &mut Builder<'_>,
        config: &AdmConfig,
        c_in: usize,
        c_out: usize,
        resample: Option<Resample>,
        index: &mut usize,
    ) -> Box<Self> {
        let conditions = if config.use_scale_shift_norm { 2 * c_out } else { c_out };
        let block = Box::new(ResBlock {
            in_norm: norm(&mut b.pp("in_layers.0"), c_in),
            in_conv: Conv2d::new(&mut b.pp("in_layers.2"), c_in, c_out, 3, 1, 1),
            embedding: Linear::new(&mut b.pp("emb_layers.1"), config.embedding_channels(), conditions),
            out_norm: norm(&mut b.pp("out_layers.0"), c_out),
            out_conv: zero_conv3x3(&mut b.pp("out_layers.3"), c_out, c_out),
            skip: (c_in != c_out).then(|| Conv2d::new(&mut b.pp("skip_connection"), c_in, c_out, 1, 1, 0)),
            resample,
            scale_shift: config.use_scale_shift_norm,
            dropout: config.dropout,
            index: *index,
        });
        *index += 1;
        block
    }

    fn forward<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: Var,
        condition: &Condition<'_>,
        recompute: bool,
    ) -> Result<Var> {
        match (condition, recompute) {
            (Condition::Embedding(e), false) => self.run(ctx, x, BlockCondition::Embedding(e)),
            (Condition::Folded(f), false) => self.run(ctx, x, BlockCondition::Folded(&f.blocks[self.index])),
            (Condition::Embedding(e), true) => ctx
                .recompute(&[&x, e], |ctx, v| self.run(ctx, v[0].clone(), BlockCondition::Embedding(&v[1]))),
            (Condition::Folded(f), true) => {
                let folded = f.blocks[self.index].clone();
                ctx.recompute(&[&x], move |ctx, v| {
                    self.run(ctx, v[0].clone(), BlockCondition::Folded(&folded))
                })
            }
        }
    }

    fn run(&self, ctx: &mut Ctx<'_>, mut x: Var, condition: BlockCondition<'_>) -> Result<Var> {
        // Values are assigned to `h` rather than shadowed, so that each is freed as soon as the next one exists.
        let mut h = self.in_norm.forward(ctx, &x, None, true)?;
        if let Some(resample) = self.resample {
            h = resample.apply(ctx, &h)?;
            x = resample.apply(ctx, &x)?;
        }
        h = match &condition {
            BlockCondition::Folded(FoldedBlock::Bias(bias)) => {
                let bias = ctx.input(bias);
                self.in_conv.forward_with_bias(ctx, &h, &bias)?
            }
            _ => self.in_conv.forward(ctx, &h)?,
        };
        h = match condition {
            BlockCondition::Embedding(e) if self.scale_shift => {
                let scale_shift = self.embedding.forward(ctx, e)?;
                self.out_norm.forward(ctx, &h, Some(&scale_shift), true)?
            }
            BlockCondition::Embedding(e) => {
                let shift = self.embedding.forward(ctx, e)?;
                h = ctx.apply(Add { relu: false }, &[&h, &shift])?;
                self.out_norm.forward(ctx, &h, None, true)?
            }
            BlockCondition::Folded(FoldedBlock::Norm { weight, bias }) => {
                let (weight, bias) = (ctx.input(weight), ctx.input(bias));
                self.out_norm.forward_with(ctx, &h, &weight, &bias, None, true)?
            }
            BlockCondition::Folded(FoldedBlock::Bias(_)) => self.out_norm.forward(ctx, &h, None, true)?,
        };
        if self.dropout > 0.0 && ctx.is_training() {
            let rng = ctx.next_rng();
            h =
                ctx.apply(Dropout { rate: self.dropout, rng, channels: false, key: ctx.last_key() }, &[&h])?;
        }
        h = self.out_conv.forward(ctx, &h)?;
        if let Some(skip) = &self.skip {
            x = skip.forward(ctx, &x)?;
        }
        ctx.apply(Add { relu: false }, &[&x, &h])
    }

    /// The constants that SiLU of a time embedding, `activated [1, E]`, amounts to.
    fn fold(&self, ctx: &mut Ctx<'_>, activated: &Var) -> Result<FoldedBlock> {
        let condition = self.embedding.forward(ctx, activated)?.into_tensor();
        let mut value = |id| ctx.param(id).into_tensor();
        if self.scale_shift {
            let (weight, bias) = self.out_norm.affine();
            FoldedBlock::norm(&value(weight), &value(bias), &condition)
        } else {
            let bias = self.in_conv.bias().expect("the convolution was built with a bias");
            FoldedBlock::bias(&value(bias), &condition)
        }
    }
}

/// Self-attention over all pixels: `x + proj(attention(qkv(norm(x))))`.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    pub(super) norm: GroupNorm,
    pub(super) qkv: Linear,
    pub(super) proj_out: Linear,
    pub(super) op: Attention,
}

impl AttentionBlock {
    pub(super) fn new(b: &mut Builder<'_>, config: &AdmConfig, channels: usize, heads: usize) -> Self {
        let order = if config.use_new_attention_order { QkvOrder::New } else { QkvOrder::Legacy };
        AttentionBlock {
            norm: norm(&mut b.pp("norm"), channels),
            qkv: Linear::with(
                &mut b.pp("qkv"),
                channels,
                3 * channels,
                Layout::Conv1d,
                Init::TorchDefault,
                true,
            ),
            proj_out: Linear::with(
                &mut b.pp("proj_out"),
                channels,
                channels,
                Layout::Conv1d,
                Init::ZEROS,
                true,
            ),
            op: Attention { heads, order },
        }
    }

    fn run(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let mut h = self.norm.forward(ctx, x, None, false)?;
        h = self.qkv.forward(ctx, &h)?;
        h = ctx.apply(self.op.clone(), &[&h])?;
        h = self.proj_out.forward(ctx, &h)?;
        ctx.apply(Add { relu: false }, &[x, &h])
    }
}

/// One entry of a block.
#[derive(Debug)]
pub(super) enum Layer {
    /// The first convolution.
    Stem(Conv2d),
    Res(Box<ResBlock>),
    Attention(AttentionBlock),
    /// `Downsample`: a convolution of stride 2, or else a mean.
    Down(Option<Conv2d>),
    /// `Upsample`: nearest neighbour, perhaps followed by a convolution.
    Up(Option<Conv2d>),
}

impl Layer {
    pub(super) fn down(b: &mut Builder<'_>, config: &AdmConfig, channels: usize, index: &mut usize) -> Self {
        if config.resblock_updown {
            return Layer::Res(ResBlock::new(b, config, channels, channels, Some(Resample::Down), index));
        }
        Layer::Down(config.conv_resample.then(|| Conv2d::new(&mut b.pp("op"), channels, channels, 3, 2, 1)))
    }

    pub(super) fn up(b: &mut Builder<'_>, config: &AdmConfig, channels: usize, index: &mut usize) -> Self {
        if config.resblock_updown {
            return Layer::Res(ResBlock::new(b, config, channels, channels, Some(Resample::Up), index));
        }
        Layer::Up(config.conv_resample.then(|| Conv2d::new(&mut b.pp("conv"), channels, channels, 3, 1, 1)))
    }

    /// Takes `x` by value, so that it is freed as early as possible.
    pub(super) fn forward<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: Var,
        condition: &Condition<'_>,
        recompute: bool,
    ) -> Result<Var> {
        match self {
            Layer::Stem(conv) | Layer::Down(Some(conv)) => conv.forward(ctx, &x),
            Layer::Res(block) => block.forward(ctx, x, condition, recompute),
            Layer::Attention(block) if recompute => ctx.recompute(&[&x], |ctx, v| block.run(ctx, &v[0])),
            Layer::Attention(block) => block.run(ctx, &x),
            Layer::Down(None) => Resample::Down.apply(ctx, &x),
            Layer::Up(conv) => {
                let y = Resample::Up.apply(ctx, &x)?;
                drop(x);
                conv.as_ref().map_or(Ok(y.clone()), |conv| conv.forward(ctx, &y))
            }
        }
    }

    /// Folds a time embedding into the layer if it has a time condition.
    pub(super) fn fold(&self, ctx: &mut Ctx<'_>, activated: &Var) -> Option<Result<FoldedBlock>> {
        match self {
            Layer::Res(block) => Some(block.fold(ctx, activated)),
            _ => None,
        }
    }
}
