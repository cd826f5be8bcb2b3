//! The layers of the network on the device.

use super::super::blocks::{self, EPS, Resample};
use super::super::config::GROUPS;
use super::{DeviceBlock, DeviceTime};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::{self, ParamId, ParamStore};
use crate::ops::attention::Attention;
use crate::ops::conv2d::{Conv2d, FusedConv, FusedOutput, Part, fold_doubled};
use crate::ops::group_norm::cuda::{StatsPart, apply, channel_stats, coefficients};
use crate::ops::resize::{Resize, ResizeMode};
use crate::ops::{self, avg_pool::AvgPool};
use crate::tensor::{Device, Tensor};

/// A value between layers: `[n, h, w, c]`, and mean and sum of squared deviations of every image and channel,
/// `[n, c, 2]` f32, where the launch that made it has given them.
#[derive(Clone)]
pub(super) struct Map {
    pub(super) y: Tensor,
    stats: Option<Tensor>,
}

impl Map {
    /// A value whose statistics are not known.
    pub(super) fn new(y: Tensor) -> Map {
        Map { y, stats: None }
    }

    fn pixels(&self) -> usize {
        self.y.shape()[1] * self.y.shape()[2]
    }
}

impl From<FusedOutput> for Map {
    fn from(out: FusedOutput) -> Map {
        Map { y: out.y, stats: out.stats }
    }
}

/// Gain and bias of a norm, `[c]` f32.
pub(super) struct Affine {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Affine {
    /// The group norm of values as if they were concatenated along the channels; SiLU and the mean of 2x2 pixels behind it
    /// if asked.
    pub(super) fn apply(&self, gpu: &Gpu, inputs: &[Map], silu: bool, pool: bool) -> Result<Tensor> {
        let known = |m: &Map| m.stats.clone().map_or_else(|| channel_stats(gpu, &m.y), Ok);
        let stats: Vec<Tensor> = inputs.iter().map(known).collect::<Result<_>>()?;
        let part = |(m, stats)| StatsPart { stats, pixels: Map::pixels(m) };
        let parts: Vec<StatsPart<'_>> = inputs.iter().zip(&stats).map(part).collect();
        let coefficients = coefficients(gpu, &parts, GROUPS, EPS, &self.weight, &self.bias, None)?;
        let values: Vec<&Tensor> = inputs.iter().map(|m| &m.y).collect();
        apply(gpu, &values, &coefficients, silu, pool)
    }
}

/// A convolution or a linear layer.
pub(super) struct Conv {
    /// `[co, kh, kw, ci]`, or what [`fold_doubled`] made of it.
    weight: Tensor,
    /// `[co]` f32.
    bias: Option<Tensor>,
    op: Conv2d,
    /// Whether it convolves the doubling of its input.
    doubled: bool,
}

impl Conv {
    /// The launch, to be given what follows the sum.
    pub(super) fn fused<'a>(&'a self, x: &'a Tensor) -> FusedConv<'a> {
        FusedConv {
            bias: self.bias.as_ref(),
            doubled: self.doubled,
            ..FusedConv::new(vec![x], &self.weight, self.op.clone())
        }
    }
}

/// One entry of a block.
pub(super) enum Layer {
    /// The first convolution, `Downsample` and `Upsample` with one.
    Conv(Conv),
    Res(Box<ResBlock>),
    Attention(Box<AttentionBlock>),
    /// `Downsample` and `Upsample` without a convolution.
    Resample(Resample),
}

impl Layer {
    /// Takes its inputs by value, so that their memory is used again as early as possible. `stats` asks for the statistics
    /// of the result.
    pub(super) fn forward(&self, gpu: &Gpu, inputs: Vec<Map>, time: &DeviceTime, stats: bool) -> Result<Map> {
        match (self, &inputs[..]) {
            (Layer::Res(block), _) => block.forward(gpu, inputs, time, stats),
            (Layer::Conv(conv), [x]) => Ok(FusedConv { stats, ..conv.fused(&x.y) }.run(gpu)?.into()),
            (Layer::Attention(block), [x]) => block.forward(gpu, x, stats),
            (Layer::Resample(resample), [x]) => Ok(Map::new(resample_map(*resample, &x.y)?)),
            _ => Err(Error::shape("adm", "only a ResBlock takes more than one input")),
        }
    }
}

/// Halves or doubles height and width.
fn resample_map(resample: Resample, x: &Tensor) -> Result<Tensor> {
    let out = match resample {
        Resample::Down => ops::run(&AvgPool { kernel: 2, stride: 2, pad: 0 }, &[x])?,
        Resample::Up => {
            let (_, h, w, _) = x.shape().nhwc("upsample")?;
            ops::run(&Resize { mode: ResizeMode::Nearest, out: [2 * h, 2 * w] }, &[x])?
        }
    };
    Ok(out.y)
}

/// As [`blocks::ResBlock`].
pub(super) struct ResBlock {
    in_norm: Affine,
    in_conv: Conv,
    out_norm: Affine,
    /// Its bias has the skip's added.
    out_conv: Conv,
    /// `[co, 1, 1, ci]`.
    skip: Option<Tensor>,
    resample: Option<Resample>,
    index: usize,
}

impl ResBlock {
    fn forward(&self, gpu: &Gpu, mut inputs: Vec<Map>, time: &DeviceTime, stats: bool) -> Result<Map> {
        let down = self.resample == Some(Resample::Down);
        let mut normed = self.in_norm.apply(gpu, &inputs, true, down)?;
        if down {
            inputs = inputs
                .iter()
                .map(|x| resample_map(Resample::Down, &x.y).map(Map::new))
                .collect::<Result<_>>()?;
        }
        let mut conv = FusedConv { stats: true, ..self.in_conv.fused(&normed) };
        let mut norm = &self.out_norm;
        match &time.blocks[self.index] {
            DeviceBlock::Norm(folded) => norm = folded,
            DeviceBlock::Bias(folded) => conv.bias = Some(folded),
        }
        let hidden = Map::from(conv.run(gpu)?);
        drop(normed);
        normed = norm.apply(gpu, &[hidden], true, false)?;
        let mut conv = FusedConv { stats, ..self.out_conv.fused(&normed) };
        match (&self.skip, &inputs[..]) {
            (Some(weight), all) => {
                let inputs = all.iter().map(|x| &x.y).collect();
                conv.parts.push(Part { inputs, weight, conv: Conv2d::square(1, 0) });
            }
            // Half the size of the result where the block doubles: the epilogue reads every pixel four times.
            (None, [x]) => conv.residual = Some(&x.y),
            (None, _) => return Err(Error::shape("adm", "two inputs of a ResBlock need a skip convolution")),
        }
        Ok(conv.run(gpu)?.into())
    }
}

/// As [`blocks::AttentionBlock`].
pub(super) struct AttentionBlock {
    norm: Affine,
    qkv: Conv,
    proj_out: Conv,
    op: Attention,
}

impl AttentionBlock {
    fn forward(&self, gpu: &Gpu, x: &Map, stats: bool) -> Result<Map> {
        let mut h = self.norm.apply(gpu, std::slice::from_ref(x), false, false)?;
        h = self.qkv.fused(&h).run(gpu)?.y;
        h = ops::run(&self.op, &[&h])?.y;
        let proj = FusedConv { residual: Some(&x.y), stats, ..self.proj_out.fused(&h) };
        Ok(proj.run(gpu)?.into())
    }
}

/// Copies layers to the device.
pub(super) struct Loader<'a> {
    pub(super) store: &'a ParamStore,
    pub(super) gpu: &'a Gpu,
    pub(super) dtype: DType,
}

impl Loader<'_> {
    /// A layer as it is computed there.
    pub(super) fn layer(&self, layer: &blocks::Layer) -> Result<Layer> {
        Ok(match layer {
            blocks::Layer::Stem(conv) | blocks::Layer::Down(Some(conv)) => {
                Layer::Conv(self.conv(conv, None)?)
            }
            blocks::Layer::Up(Some(conv)) => Layer::Conv(self.doubled(conv)?),
            blocks::Layer::Down(None) => Layer::Resample(Resample::Down),
            blocks::Layer::Up(None) => Layer::Resample(Resample::Up),
            blocks::Layer::Res(block) => Layer::Res(Box::new(self.res_block(block)?)),
            blocks::Layer::Attention(block) => Layer::Attention(Box::new(AttentionBlock {
                norm: self.affine(&block.norm)?,
                qkv: self.linear(&block.qkv)?,
                proj_out: self.linear(&block.proj_out)?,
                op: block.op.clone(),
            })),
        })
    }

    fn res_block(&self, block: &blocks::ResBlock) -> Result<ResBlock> {
        let doubles = block.resample == Some(Resample::Up);
        let skip = block.skip.as_ref();
        Ok(ResBlock {
            in_norm: self.affine(&block.in_norm)?,
            in_conv: if doubles { self.doubled(&block.in_conv)? } else { self.conv(&block.in_conv, None)? },
            out_norm: self.affine(&block.out_norm)?,
            out_conv: self.conv(&block.out_conv, skip.and_then(nn::Conv2d::bias))?,
            skip: skip.map(|skip| self.operand(skip.weight())).transpose()?,
            resample: block.resample,
            index: block.index,
        })
    }

    /// Gain and bias of a norm.
    pub(super) fn affine(&self, norm: &nn::GroupNorm) -> Result<Affine> {
        let (weight, bias) = norm.affine();
        Ok(Affine { weight: self.vector(weight)?, bias: self.vector(bias)? })
    }

    /// A convolution; `more` is added to its bias.
    pub(super) fn conv(&self, conv: &nn::Conv2d, more: Option<ParamId>) -> Result<Conv> {
        let bias = match (conv.bias(), more) {
            (Some(a), Some(b)) => Some(self.send(&sum(self.value(a), self.value(b))?)?),
            (a, b) => a.or(b).map(|id| self.vector(id)).transpose()?,
        };
        Ok(Conv { weight: self.operand(conv.weight())?, bias, op: conv.op().clone(), doubled: false })
    }

    /// A convolution behind an up-sampler. Its weight is folded in f32 and rounded once.
    fn doubled(&self, conv: &nn::Conv2d) -> Result<Conv> {
        let exact = Loader { dtype: DType::F32, ..*self }.conv(conv, None)?;
        let folded = fold_doubled(self.gpu, &exact.weight)?;
        Ok(Conv { weight: ops::cast(self.gpu, &folded, self.dtype)?, doubled: true, ..exact })
    }

    /// A linear layer, as a convolution with one tap.
    fn linear(&self, linear: &nn::Linear) -> Result<Conv> {
        let weight = self.operand(linear.weight())?;
        let [co, ci] = *weight.shape() else {
            return Err(Error::shape("adm", "a linear layer has a matrix").with_tensor("weight", &weight));
        };
        Ok(Conv {
            weight: weight.reshape([co, 1, 1, ci])?,
            bias: linear.bias().map(|id| self.vector(id)).transpose()?,
            op: Conv2d::square(1, 0),
            doubled: false,
        })
    }

    fn value(&self, id: ParamId) -> &Tensor {
        self.store.get(id).value()
    }

    /// The weight of a product, in the network's type.
    fn operand(&self, id: ParamId) -> Result<Tensor> {
        self.named(id, self.value(id).to_dtype(self.dtype).and_then(|t| self.send(&t)))
    }

    /// What stays f32.
    fn vector(&self, id: ParamId) -> Result<Tensor> {
        self.named(id, self.send(self.value(id)))
    }

    fn send(&self, t: &Tensor) -> Result<Tensor> {
        t.to_gpu_tagged(self.gpu, "teacher weight")
    }

    fn named(&self, id: ParamId, result: Result<Tensor>) -> Result<Tensor> {
        result.map_err(|e| e.with_key(self.store.get(id).name()))
    }
}

/// The sum of two vectors on the host.
fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device() == Device::Meta {
        return Ok(a.clone());
    }
    Tensor::from_vec(a.shape(), a.f32s()?.iter().zip(b.f32s()?).map(|(a, b)| a + b).collect())
}
