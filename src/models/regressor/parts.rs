//! What regressors and segmentation heads are made of: ConvModules, pyramid pooling, self-attention.

use crate::error::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, Ctx, Init, LayerNorm, Layout, Linear};
use crate::ops;
use crate::ops::attention::QkvOrder;
use crate::ops::resize::ResizeMode;
use crate::tape::Var;

/// OpenMMLab's ConvModule: convolution without bias, batch norm, ReLU. Keys `conv`, `bn`.
#[derive(Clone, Debug)]
pub(in crate::models) struct ConvModule {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl ConvModule {
    /// With padding `kernel / 2`.
    pub(in crate::models) fn new(
        b: &mut Builder<'_>,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
    ) -> Self {
        let op =
            ops::conv2d::Conv2d { stride: [stride; 2], pad: [kernel / 2; 2], dilation: [1; 2], groups: 1 };
        let init = Init::KaimingNormalFanOut;
        ConvModule {
            conv: Conv2d::with_op(&mut b.pp("conv"), c_in, c_out, kernel, op, init, false),
            bn: BatchNorm2d::new(&mut b.pp("bn"), c_out, 1.0),
        }
    }

    pub(in crate::models) fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let (y, stats) = self.conv.forward_with_stats(ctx, x)?;
        self.bn.forward_after(ctx, &y, stats, None, true)
    }
}

/// `x` resized bilinearly (corners not aligned) to the height and width of `like`.
pub(in crate::models) fn resize_to(ctx: &mut Ctx<'_>, x: &Var, like: &Var) -> Result<Var> {
    let (_, h, w, _) = like.shape().nhwc("resize")?;
    let (_, xh, xw, _) = x.shape().nhwc("resize")?;
    if (xh, xw) == (h, w) {
        return Ok(x.clone());
    }
    let mode = ResizeMode::Bilinear { align_corners: false };
    ctx.apply(ops::resize::Resize { mode, out: [h, w] }, &[x])
}

/// PSPNet's pyramid pooling: for each scale s, average-pool to s x s, 1x1 ConvModule, resize back; then a 3x3
/// ConvModule on the concatenation of the input and all of them.
#[derive(Clone, Debug)]
pub(in crate::models) struct PyramidPooling {
    scales: Vec<(usize, ConvModule)>,
    bottleneck: ConvModule,
}

impl PyramidPooling {
    /// Registers `psp_modules.i.1` and `bottleneck` at `b`'s path.
    pub(in crate::models) fn new(b: &mut Builder<'_>, c_in: usize, c_out: usize, scales: &[usize]) -> Self {
        let module = |(i, &s): (usize, &usize)| {
            (s, ConvModule::new(&mut b.pp(format!("psp_modules.{i}.1")), c_in, c_out, 1, 1))
        };
        PyramidPooling {
            scales: scales.iter().enumerate().map(module).collect(),
            bottleneck: ConvModule::new(&mut b.pp("bottleneck"), c_in + scales.len() * c_out, c_out, 3, 1),
        }
    }

    pub(in crate::models) fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let mut parts = vec![x.clone()];
        for (s, conv) in &self.scales {
            let pool = ops::adaptive_avg_pool::AdaptiveAvgPool { out: [*s; 2] };
            let y = ctx.apply(pool, &[x])?;
            let y = conv.forward(ctx, &y)?;
            parts.push(resize_to(ctx, &y, x)?);
        }
        let parts: Vec<&Var> = parts.iter().collect();
        let y = ctx.apply(ops::concat::Concat {}, &parts)?;
        self.bottleneck.forward(ctx, &y)
    }
}

/// Pre-norm multi-head self-attention over the positions of a map, with a residual connection.
#[derive(Clone, Debug)]
pub(super) struct SelfAttention {
    norm: LayerNorm,
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl SelfAttention {
    pub(super) fn new(b: &mut Builder<'_>, channels: usize, heads: usize) -> Self {
        let linear = |b: &mut Builder<'_>, c_out| {
            Linear::with(b, channels, c_out, Layout::Plain, Init::TruncNormal(0.02), true)
        };
        SelfAttention {
            norm: LayerNorm::new(&mut b.pp("norm"), channels, 1e-5),
            qkv: linear(&mut b.pp("qkv"), 3 * channels),
            proj: linear(&mut b.pp("proj"), channels),
            heads,
        }
    }

    pub(super) fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let y = self.norm.forward(ctx, x)?;
        let y = self.qkv.forward(ctx, &y)?;
        let y = ctx.apply(ops::attention::Attention { heads: self.heads, order: QkvOrder::New }, &[&y])?;
        let y = self.proj.forward(ctx, &y)?;
        ctx.apply(ops::add::Add { relu: false }, &[&y, x])
    }
}
