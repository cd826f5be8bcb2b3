//! ResNet (He et al. 2015), in the form that torchvision and timm share: stride on the 3x3 convolution of a
//! bottleneck ("v1.5"), a 7x7 stem, state-dict keys `conv1`, `bn1`, `layer{1..4}.{i}.*`, `fc`.

use crate::error::{Error, Result};
use crate::nn::{BatchNorm2d, Builder, Conv2d, Ctx, Init, Linear};
use crate::ops;
use crate::tape::Var;
use serde::{Deserialize, Serialize};

/// The residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Two 3x3 convolutions (ResNet-18 and 34).
    Basic,
    /// 1x1, 3x3, 1x1 to four times the width (ResNet-50 and deeper).
    Bottleneck,
}

impl Block {
    /// Output channels per unit of width.
    pub fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }
}

/// What stands before the first stage. Both have the same parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 7x7 convolution with stride 2, then 3x3 max-pooling with stride 2: features at strides 4, 8, 16, 32.
    Imagenet,
    /// The convolution alone, for images of 32 to 128 pixels: features at strides 2, 4, 8, 16.
    NoMaxpool,
}

/// Configuration of a [`ResNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// The residual block.
    pub block: Block,
    /// Blocks per stage.
    pub layers: [usize; 4],
    /// Width of each stage; its output has [`Block::expansion`] times as many channels.
    pub channels: [usize; 4],
    /// Before the first stage.
    pub stem: Stem,
    /// Output channels of the stem's convolution, 64 in all public ResNets. (timm's argument of the same name only
    /// concerns its three-convolution stems.)
    pub stem_width: usize,
    /// Outputs of the classifier `fc`; 0 leaves it out.
    pub num_classes: usize,
    /// Whether the gain of each block's last batch norm starts at 0, so that blocks start as their shortcut (timm and
    /// SparK; torchvision starts at 1).
    pub zero_init_last: bool,
    /// Whether training computes each block a second time in the backward pass to save its activations.
    pub recompute: bool,
}

impl Default for ResNetConfig {
    /// ResNet-50 without a classifier.
    fn default() -> Self {
        Self::resnet50()
    }
}

impl ResNetConfig {
    fn imagenet(block: Block, layers: [usize; 4]) -> Self {
        ResNetConfig {
            block,
            layers,
            channels: [64, 128, 256, 512],
            stem: Stem::Imagenet,
            stem_width: 64,
            num_classes: 0,
            zero_init_last: true,
            recompute: false,
        }
    }

    /// ResNet-18 without a classifier.
    pub fn resnet18() -> Self {
        Self::imagenet(Block::Basic, [2, 2, 2, 2])
    }

    /// ResNet-34 without a classifier.
    pub fn resnet34() -> Self {
        Self::imagenet(Block::Basic, [3, 4, 6, 3])
    }

    /// ResNet-50 without a classifier.
    pub fn resnet50() -> Self {
        Self::imagenet(Block::Bottleneck, [3, 4, 6, 3])
    }

    /// ResNet-101 without a classifier.
    pub fn resnet101() -> Self {
        Self::imagenet(Block::Bottleneck, [3, 4, 23, 3])
    }

    /// A network for small images: two basic blocks per stage, no max-pooling, `width` channels after the stem and
    /// in the first stage, doubled at each further stage.
    pub fn small(width: usize) -> Self {
        ResNetConfig {
            channels: [1, 2, 4, 8].map(|m| width.saturating_mul(m)),
            stem: Stem::NoMaxpool,
            stem_width: width,
            ..Self::resnet18()
        }
    }

    /// Channels of the four features, fine to coarse.
    pub fn feature_channels(&self) -> [usize; 4] {
        self.channels.map(|c| c * self.block.expansion())
    }

    /// Input pixels per feature pixel, fine to coarse.
    pub fn strides(&self) -> [usize; 4] {
        match self.stem {
            Stem::Imagenet => [4, 8, 16, 32],
            Stem::NoMaxpool => [2, 4, 8, 16],
        }
    }

    /// Height and width of the four features of an input of this height and width, fine to coarse.
    pub fn feature_sizes(&self, input: [usize; 2]) -> [[usize; 2]; 4] {
        self.strides().map(|s| input.map(|n| n.div_ceil(s)))
    }

    fn check(&self) -> Result<()> {
        let widths = self.channels.iter().chain([&self.stem_width]);
        super::backbone::check_sizes("resnet", "channels and stem_width", widths)?;
        super::backbone::check_sizes("resnet", "layers", &self.layers)?;
        if self.num_classes > super::backbone::MAX_SIZE {
            return Err(Error::usage(format!("resnet: num_classes is {}", self.num_classes)));
        }
        Ok(())
    }
}

/// A convolution without bias and its batch norm, registered as two siblings (`conv1`, `bn1`).
#[derive(Clone, Debug)]
struct ConvBn {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl ConvBn {
    /// `names` are the keys of convolution and norm; `kernel` and `stride` with padding `kernel / 2`.
    fn new(
        b: &mut Builder<'_>,
        names: [&str; 2],
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        gain: f32,
    ) -> Self {
        let op =
            ops::conv2d::Conv2d { stride: [stride; 2], pad: [kernel / 2; 2], dilation: [1; 2], groups: 1 };
        let [c_in, c_out] = channels;
        let init = Init::KaimingNormalFanOut;
        ConvBn {
            conv: Conv2d::with_op(&mut b.pp(names[0]), c_in, c_out, kernel, op, init, false),
            bn: BatchNorm2d::new(&mut b.pp(names[1]), c_out, gain),
        }
    }

    /// Convolution, norm, a residual added to it, ReLU.
    fn forward(&self, ctx: &mut Ctx<'_>, x: &Var, residual: Option<&Var>, relu: bool) -> Result<Var> {
        let (y, stats) = self.conv.forward_with_stats(ctx, x)?;
        self.bn.forward_after(ctx, &y, stats, residual, relu)
    }
}

/// `relu(branch(x) + shortcut(x))`, with a ReLU after every unit of the branch; the last adds the shortcut before it.
#[derive(Clone, Debug)]
struct Residual {
    branch: Vec<ConvBn>,
    shortcut: Option<ConvBn>,
}

impl Residual {
    fn new(b: &mut Builder<'_>, config: &ResNetConfig, c_in: usize, width: usize, stride: usize) -> Self {
        let c_out = width * config.block.expansion();
        let last = if config.zero_init_last { 0.0 } else { 1.0 };
        let branch = match config.block {
            Block::Basic => vec![
                ConvBn::new(b, ["conv1", "bn1"], [c_in, width], 3, stride, 1.0),
                ConvBn::new(b, ["conv2", "bn2"], [width, c_out], 3, 1, last),
            ],
            Block::Bottleneck => vec![
                ConvBn::new(b, ["conv1", "bn1"], [c_in, width], 1, 1, 1.0),
                ConvBn::new(b, ["conv2", "bn2"], [width, width], 3, stride, 1.0),
                ConvBn::new(b, ["conv3", "bn3"], [width, c_out], 1, 1, last),
            ],
        };
        let shortcut = (stride != 1 || c_in != c_out)
            .then(|| ConvBn::new(&mut b.pp("downsample"), ["0", "1"], [c_in, c_out], 1, stride, 1.0));
        Residual { branch, shortcut }
    }

    fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let shortcut = match &self.shortcut {
            Some(s) => s.forward(ctx, x, None, false)?,
            None => x.clone(),
        };
        let mut y = x.clone();
        for (i, unit) in self.branch.iter().enumerate() {
            let residual = (i + 1 == self.branch.len()).then_some(&shortcut);
            y = unit.forward(ctx, &y, residual, true)?;
        }
        Ok(y)
    }
}

/// A residual network. Input: RGB image batches `[N, H, W, 3]`, normalised with ImageNet's mean and deviation.
///
/// Freezing is not a matter of the network: parameters are frozen with `ParamStore::set_trainable`, and batch norms
/// use their running statistics in every context that is not a training context.
#[derive(Clone, Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: ConvBn,
    stages: Vec<Vec<Residual>>,
    fc: Option<Linear>,
}

impl ResNet {
    /// Registers the parameters below `b`'s path.
    ///
    /// # Errors
    /// A width or depth is 0 or absurdly large.
    pub fn new(b: &mut Builder<'_>, config: &ResNetConfig) -> Result<Self> {
        config.check()?;
        let stem = ConvBn::new(b, ["conv1", "bn1"], [3, config.stem_width], 7, 2, 1.0);
        let mut c_in = config.stem_width;
        let mut stage = |s: usize| {
            let mut b = b.pp(format!("layer{}", s + 1));
            let width = config.channels[s];
            (0..config.layers[s])
                .map(|i| {
                    let stride = if s > 0 && i == 0 { 2 } else { 1 };
                    let block = Residual::new(&mut b.pp(i), config, c_in, width, stride);
                    c_in = width * config.block.expansion();
                    block
                })
                .collect()
        };
        let stages = (0..4).map(&mut stage).collect();
        let fc = (config.num_classes > 0).then(|| Linear::new(&mut b.pp("fc"), c_in, config.num_classes));
        Ok(ResNet { config: config.clone(), stem, stages, fc })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }

    /// The outputs of the four stages, fine to coarse, `[N, H/s, W/s, C]` with the strides of
    /// [`ResNetConfig::strides`] (sizes round up).
    ///
    /// # Errors
    /// `x` is not `[N, H, W, 3]`.
    pub fn features(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Vec<Var>> {
        let mut y = self.stem.forward(ctx, x, None, true)?;
        if self.config.stem == Stem::Imagenet {
            y = ctx.apply(ops::max_pool::MaxPool { kernel: 3, stride: 2, pad: 1 }, &[&y])?;
        }
        let mut features = Vec::with_capacity(4);
        for blocks in &self.stages {
            for block in blocks {
                y = if self.config.recompute {
                    let block = block.clone();
                    ctx.recompute(&[&y], move |ctx, x| block.forward(ctx, &x[0]))?
                } else {
                    block.forward(ctx, &y)?
                };
            }
            features.push(y.clone());
        }
        Ok(features)
    }

    /// The classifier on the coarsest feature: global average pooling, then `fc`. `[N, h, w, C]` to
    /// `[N, num_classes]`.
    ///
    /// # Errors
    /// The network was built without a classifier, or the channels do not fit.
    pub fn forward_head(&self, ctx: &mut Ctx<'_>, top: &Var) -> Result<Var> {
        let fc = self.fc.as_ref().ok_or_else(|| super::backbone::no_head("resnet"))?;
        let pooled = ctx.apply(ops::global_avg_pool::GlobalAvgPool {}, &[top])?;
        fc.forward(ctx, &pooled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ParamStore;

    #[test]
    fn last_gains_start_at_zero_if_asked() {
        for (config, last) in [(ResNetConfig::resnet18(), "bn2"), (ResNetConfig::resnet50(), "bn3")] {
            for zero_init_last in [true, false] {
                let config = ResNetConfig { zero_init_last, channels: [2; 4], ..config.clone() };
                let mut store = ParamStore::new();
                ResNet::new(&mut store.builder(), &config).unwrap();
                store.init(1).unwrap();
                for (_, p) in store.iter().filter(|(_, p)| p.name().contains("bn")) {
                    let Some(norm) = p.name().strip_suffix(".weight") else { continue };
                    let zero = zero_init_last && norm.starts_with("layer") && norm.ends_with(last);
                    let want = if zero { 0.0 } else { 1.0 };
                    assert!(p.value().f32s().unwrap().iter().all(|&g| g == want), "{norm}");
                }
            }
        }
    }
}
