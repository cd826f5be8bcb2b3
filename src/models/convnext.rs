//! ConvNeXt (Liu et al. 2022), with timm's state-dict keys: `stem.{0,1}`, `stages.i.downsample.{0,1}`,
//! `stages.i.blocks.j.{conv_dw, norm, mlp.fc1, mlp.fc2, gamma}`, `head.{norm, fc}`.

use crate::error::{Error, Result};
use crate::nn::{Builder, Conv2d, Ctx, Init, LayerNorm, Layout, Linear, ParamId};
use crate::ops;
use crate::tape::Var;
use serde::{Deserialize, Serialize};

/// Epsilon of every layer norm.
const EPS: f32 = 1e-6;
/// Every weight starts truncated normal with this deviation, every bias at 0.
const INIT: Init = Init::TruncNormal(0.02);

/// Configuration of a [`ConvNext`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvNextConfig {
    /// Blocks per stage.
    pub depths: [usize; 4],
    /// Channels per stage.
    pub dims: [usize; 4],
    /// Outputs of the classifier `head`; 0 leaves out the head with its norm.
    pub num_classes: usize,
    /// Initial value of every layer scale `gamma`.
    pub layer_scale: f64,
    /// Probability of dropping the last block's branch in training; it grows linearly from 0 at the first block.
    pub drop_path: f64,
    /// Whether training computes each block a second time in the backward pass to save its activations.
    pub recompute: bool,
}

impl Default for ConvNextConfig {
    /// ConvNeXt-B without a classifier.
    fn default() -> Self {
        Self::base()
    }
}

impl ConvNextConfig {
    fn sized(depths: [usize; 4], width: usize) -> Self {
        ConvNextConfig {
            depths,
            dims: [1, 2, 4, 8].map(|m| width * m),
            num_classes: 0,
            layer_scale: 1e-6,
            drop_path: 0.0,
            recompute: false,
        }
    }

    /// ConvNeXt-T without a classifier.
    pub fn tiny() -> Self {
        Self::sized([3, 3, 9, 3], 96)
    }

    /// ConvNeXt-S without a classifier.
    pub fn small() -> Self {
        Self::sized([3, 3, 27, 3], 96)
    }

    /// ConvNeXt-B without a classifier.
    pub fn base() -> Self {
        Self::sized([3, 3, 27, 3], 128)
    }

    /// ConvNeXt-L without a classifier.
    pub fn large() -> Self {
        Self::sized([3, 3, 27, 3], 192)
    }

    /// Input pixels per feature pixel, fine to coarse.
    pub fn strides(&self) -> [usize; 4] {
        [4, 8, 16, 32]
    }

    /// Height and width of the four features of an input of this height and width, fine to coarse.
    pub fn feature_sizes(&self, input: [usize; 2]) -> [[usize; 2]; 4] {
        self.strides().map(|s| input.map(|n| n / s))
    }

    fn check(&self) -> Result<()> {
        super::backbone::check_sizes("convnext", "depths", &self.depths)?;
        super::backbone::check_sizes("convnext", "dims", &self.dims)?;
        if self.num_classes > super::backbone::MAX_SIZE {
            return Err(Error::usage(format!("convnext: num_classes is {}", self.num_classes)));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return Err(Error::usage(format!("convnext: drop_path is {}", self.drop_path))
                .with_remedy("choose a probability from 0 up to, but not including, 1"));
        }
        if !self.layer_scale.is_finite() {
            return Err(Error::usage(format!("convnext: layer_scale is {}", self.layer_scale)));
        }
        Ok(())
    }
}

/// A square convolution with bias; `stride` equals the kernel and there is no padding, or it is depthwise.
fn conv(b: &mut Builder<'_>, c_in: usize, c_out: usize, kernel: usize, depthwise: bool) -> Conv2d {
    let (stride, pad, groups) = if depthwise { (1, kernel / 2, c_in) } else { (kernel, 0, 1) };
    let op = ops::conv2d::Conv2d { stride: [stride; 2], pad: [pad; 2], dilation: [1; 2], groups };
    Conv2d::with_op(b, c_in, c_out, kernel, op, INIT, true)
}

/// `x + drop_path(gamma * fc2(gelu(fc1(norm(conv_dw(x))))))`.
#[derive(Clone, Debug)]
struct ConvBlock {
    conv_dw: Conv2d,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    gamma: ParamId,
    drop_path: f32,
}

impl ConvBlock {
    fn new(b: &mut Builder<'_>, dim: usize, layer_scale: f32, drop_path: f32) -> Self {
        let linear =
            |b: &mut Builder<'_>, c_in, c_out| Linear::with(b, c_in, c_out, Layout::Plain, INIT, true);
        ConvBlock {
            conv_dw: conv(&mut b.pp("conv_dw"), dim, dim, 7, true),
            norm: LayerNorm::new(&mut b.pp("norm"), dim, EPS),
            fc1: linear(&mut b.pp("mlp.fc1"), dim, 4 * dim),
            fc2: linear(&mut b.pp("mlp.fc2"), 4 * dim, dim),
            gamma: b.param("gamma", [dim], Layout::Plain, Init::Const(layer_scale)),
            drop_path,
        }
    }

    fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let y = self.conv_dw.forward(ctx, x)?;
        let y = self.norm.forward(ctx, &y)?;
        let y = self.fc1.forward(ctx, &y)?;
        let y = ctx.apply(ops::gelu::Gelu {}, &[&y])?;
        let y = self.fc2.forward(ctx, &y)?;
        let gamma = ctx.param(self.gamma);
        let mut y = ctx.apply(ops::scale::Scale {}, &[&y, &gamma])?;
        if ctx.is_training() && self.drop_path > 0.0 {
            let rng = ctx.next_rng();
            y = ctx
                .apply(ops::drop_path::DropPath { rate: self.drop_path, rng, key: ctx.last_key() }, &[&y])?;
        }
        ctx.apply(ops::add::Add { relu: false }, &[&y, x])
    }
}

/// A layer norm and a strided convolution that follow each other in this or the other order.
#[derive(Clone, Debug)]
struct Downsample {
    norm: LayerNorm,
    conv: Conv2d,
}

#[derive(Clone, Debug)]
struct Stage {
    downsample: Option<Downsample>,
    blocks: Vec<ConvBlock>,
}

/// A ConvNeXt. Input: RGB image batches `[N, H, W, 3]`, normalised with ImageNet's mean and deviation.
///
/// Its features are the stages' raw outputs. The layer norms that segmentation and detection heads put on them
/// (`norm0..3` of the official repository) belong to those heads; see
/// [`RegressorConfig::input_norm`](super::regressor::RegressorConfig::input_norm).
#[derive(Clone, Debug)]
pub struct ConvNext {
    config: ConvNextConfig,
    stem: Downsample,
    stages: Vec<Stage>,
    head: Option<(LayerNorm, Linear)>,
}

impl ConvNext {
    /// Registers the parameters below `b`'s path.
    ///
    /// # Errors
    /// A depth or width is 0 or absurdly large, or `drop_path` is no probability below 1.
    pub fn new(b: &mut Builder<'_>, config: &ConvNextConfig) -> Result<Self> {
        config.check()?;
        let dims = config.dims;
        let stem = Downsample {
            conv: conv(&mut b.pp("stem.0"), 3, dims[0], 4, false),
            norm: LayerNorm::new(&mut b.pp("stem.1"), dims[0], EPS),
        };
        let total: usize = config.depths.iter().sum();
        let mut seen = 0;
        let mut stage = |s: usize| {
            let mut b = b.pp(format!("stages.{s}"));
            let downsample = (s > 0).then(|| Downsample {
                norm: LayerNorm::new(&mut b.pp("downsample.0"), dims[s - 1], EPS),
                conv: conv(&mut b.pp("downsample.1"), dims[s - 1], dims[s], 2, false),
            });
            let blocks = (0..config.depths[s])
                .map(|j| {
                    let rate = config.drop_path * seen as f64 / (total - 1).max(1) as f64;
                    seen += 1;
                    let mut b = b.pp(format!("blocks.{j}"));
                    ConvBlock::new(&mut b, dims[s], config.layer_scale as f32, rate as f32)
                })
                .collect();
            Stage { downsample, blocks }
        };
        let stages = (0..4).map(&mut stage).collect();
        let head = (config.num_classes > 0).then(|| {
            let norm = LayerNorm::new(&mut b.pp("head.norm"), dims[3], EPS);
            let mut b = b.pp("head.fc");
            (norm, Linear::with(&mut b, dims[3], config.num_classes, Layout::Plain, INIT, true))
        });
        Ok(ConvNext { config: config.clone(), stem, stages, head })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ConvNextConfig {
        &self.config
    }

    /// The outputs of the four stages, fine to coarse, `[N, H/s, W/s, C]` with s = 4, 8, 16, 32 (sizes round down).
    ///
    /// # Errors
    /// `x` is not `[N, H, W, 3]` with at least 32 pixels a side.
    pub fn features(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Vec<Var>> {
        let y = self.stem.conv.forward(ctx, x)?;
        let mut y = self.stem.norm.forward(ctx, &y)?;
        let mut features = Vec::with_capacity(4);
        for stage in &self.stages {
            if let Some(d) = &stage.downsample {
                y = d.norm.forward(ctx, &y)?;
                y = d.conv.forward(ctx, &y)?;
            }
            for block in &stage.blocks {
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

    /// The classifier on the coarsest feature: global average pooling, layer norm, linear. `[N, h, w, C]` to
    /// `[N, num_classes]`.
    ///
    /// # Errors
    /// The network was built without a classifier, or the channels do not fit.
    pub fn forward_head(&self, ctx: &mut Ctx<'_>, top: &Var) -> Result<Var> {
        let (norm, fc) = self.head.as_ref().ok_or_else(|| super::backbone::no_head("convnext"))?;
        let y = ctx.apply(ops::global_avg_pool::GlobalAvgPool {}, &[top])?;
        let y = norm.forward(ctx, &y)?;
        fc.forward(ctx, &y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ParamStore;
    use crate::tensor::Tensor;

    fn build(config: &ConvNextConfig) -> (ParamStore, ConvNext) {
        let mut store = ParamStore::new();
        let model = ConvNext::new(&mut store.builder(), config).unwrap();
        store.init(1).unwrap();
        (store, model)
    }

    #[test]
    fn drop_path_grows_linearly_over_all_blocks() {
        let rates = |config: &ConvNextConfig| -> Vec<f32> {
            let (_, model) = build(config);
            model.stages.iter().flat_map(|s| &s.blocks).map(|b| b.drop_path).collect()
        };
        let config =
            ConvNextConfig { depths: [1, 2, 1, 1], dims: [2; 4], drop_path: 0.4, ..ConvNextConfig::tiny() };
        for (got, want) in rates(&config).into_iter().zip([0.0, 0.1, 0.2, 0.3, 0.4]) {
            assert!((got - want).abs() <= 1e-7, "{got} {want}");
        }
    }

    /// Values of variance 1e-6 tell eps 1e-6 from any other, which ordinary inputs do not.
    #[test]
    fn norms_have_eps_1e_6_and_layer_scale_closes_the_branch() {
        let config =
            ConvNextConfig { depths: [1; 4], dims: [2; 4], layer_scale: 0.0, ..ConvNextConfig::tiny() };
        let (mut store, model) = build(&config);
        let bias = store.find("stem.0.bias").unwrap();
        store.set(bias, Tensor::from_vec([2], vec![1e-3f32, -1e-3]).unwrap()).unwrap();
        let mut ctx = Ctx::inference(&store);
        let x = ctx.constant(Tensor::zeros([1, 32, 32, 3]));
        let features = model.features(&mut ctx, &x).unwrap();
        for pixel in features[0].tensor().f32s().unwrap().chunks(2) {
            let want = 0.5f32.sqrt();
            assert!((pixel[0] - want).abs() <= 1e-4 && (pixel[1] + want).abs() <= 1e-4, "{pixel:?}");
        }
    }
}
