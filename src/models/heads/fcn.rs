//! mmsegmentation's `FCNHead` on one level, and its `resize_concat` form on several.

use super::{check, check_maps, conv_seg, dropout};
use crate::error::{Error, Result};
use crate::models::regressor::parts::{ConvModule, resize_to};
use crate::nn::{BatchNorm2d, Builder, Conv2d, Ctx, Init};
use crate::ops;
use crate::tape::Var;
use serde::{Deserialize, Serialize};

/// Configuration of an [`FcnHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FcnConfig {
    /// Width of the convolutions.
    pub channels: usize,
    /// How many ConvModules (convolution, batch norm, ReLU) there are before the classifier; 0 is a linear readout.
    pub convs: usize,
    /// Side of their kernels; 1 for several levels.
    pub kernel: usize,
    /// Whether a further 3x3 ConvModule sees the input beside the result of the others. On one level only.
    pub concat_input: bool,
    /// Probability that a channel is dropped before the classifier in training.
    pub dropout: f32,
}

impl Default for FcnConfig {
    /// mmsegmentation's: two 3x3 ConvModules of width 512, the input beside them, dropout 0.1.
    fn default() -> Self {
        FcnConfig { channels: 512, convs: 2, kernel: 3, concat_input: true, dropout: 0.1 }
    }
}

/// A fully convolutional head.
///
/// On one level it is mmsegmentation's, with the keys `convs.i.{conv, bn}`, `conv_cat.{conv, bn}`, `conv_seg`.
///
/// On several levels the first convolution, 1x1, reads all of them, resized bilinearly to the finest one and concatenated.
/// A 1x1 convolution and a resize exchange, so every level is convolved at its own size with its own columns of the weight,
/// `convs.0.conv.{level}.weight`, and the results are resized and added: the same numbers for a fraction of the work.
/// Side by side along the input axis these weights are mmsegmentation's `convs.0.conv.weight`. Without ConvModules the
/// same holds for `conv_seg.{level}.weight`, with the bias on the first.
#[derive(Clone, Debug)]
pub struct FcnHead {
    first: First,
    convs: Vec<ConvModule>,
    conv_cat: Option<ConvModule>,
    dropout: f32,
    conv_seg: Option<Conv2d>,
}

/// What stands before the other convolutions.
#[derive(Clone, Debug)]
enum First {
    /// The map itself.
    Map,
    /// The sum over the levels; batch norm and ReLU unless it is the classifier.
    Sum(Vec<Conv2d>, Option<BatchNorm2d>),
}

impl FcnHead {
    /// Registers the parameters below `b`'s path. `in_channels` are those of the levels that are used, fine to coarse.
    ///
    /// # Errors
    /// A number is out of range, or several levels with a kernel other than 1 or with `concat_input`.
    pub fn new(
        b: &mut Builder<'_>,
        config: &FcnConfig,
        in_channels: &[usize],
        classes: usize,
    ) -> Result<Self> {
        let FcnConfig { channels, convs, kernel, concat_input, dropout } = *config;
        check("fcn_head", in_channels, classes, dropout)?;
        check("fcn_head", &[channels], classes, dropout)?;
        if kernel.is_multiple_of(2) || kernel > 31 || convs > 64 {
            return Err(Error::usage(format!("fcn_head: {convs} convolutions of side {kernel}"))
                .with_remedy("choose an odd side of at most 31, and at most 64 of them"));
        }
        if in_channels.len() > 1 && (concat_input || (kernel != 1 && convs > 0)) {
            return Err(Error::usage("fcn_head: on several levels the kernel is 1, without concat_input")
                .with_key("levels")
                .with_remedy("set kernel = 1 and concat_input = false, or levels = \"last\""));
        }
        let one = |b: &mut Builder<'_>, c_in, c_out, init, bias| {
            let op = ops::conv2d::Conv2d { stride: [1; 2], pad: [0; 2], dilation: [1; 2], groups: 1 };
            Conv2d::with_op(b, c_in, c_out, 1, op, init, bias)
        };
        let mut c_in = in_channels[0];
        let first = match (in_channels.len(), convs) {
            (1, _) => First::Map,
            (_, 0) => {
                let mut b = b.pp("conv_seg");
                let level =
                    |(i, &c): (usize, &usize)| one(&mut b.pp(i), c, classes, Init::Normal(0.01), i == 0);
                First::Sum(in_channels.iter().enumerate().map(level).collect(), None)
            }
            _ => {
                c_in = channels;
                let mut b = b.pp("convs.0");
                let level = |(i, &c): (usize, &usize)| {
                    one(&mut b.pp(format!("conv.{i}")), c, channels, Init::KaimingNormalFanOut, false)
                };
                let levels = in_channels.iter().enumerate().map(level).collect();
                First::Sum(levels, Some(BatchNorm2d::new(&mut b.pp("bn"), channels, 1.0)))
            }
        };
        let from = usize::from(matches!(first, First::Sum(..)));
        let modules: Vec<ConvModule> = (from..convs)
            .map(|i| {
                let width = std::mem::replace(&mut c_in, channels);
                ConvModule::new(&mut b.pp(format!("convs.{i}")), width, channels, kernel, 1)
            })
            .collect();
        let conv_cat = concat_input.then(|| {
            let both = in_channels[0] + c_in;
            c_in = channels;
            ConvModule::new(&mut b.pp("conv_cat"), both, channels, kernel, 1)
        });
        let linear = matches!(first, First::Sum(_, None));
        let conv_seg = (!linear).then(|| conv_seg(b, c_in, classes));
        Ok(FcnHead { first, convs: modules, conv_cat, dropout, conv_seg })
    }

    /// Logits `[N, h, w, classes]` at the size of the finest map. `maps` are the levels, fine to coarse.
    ///
    /// # Errors
    /// Number of maps or channels differ from the configuration.
    pub fn forward(&self, ctx: &mut Ctx<'_>, maps: &[Var]) -> Result<Var> {
        let mut y = match &self.first {
            First::Map => {
                check_maps("fcn_head", maps, 1)?;
                maps[0].clone()
            }
            First::Sum(levels, bn) => {
                check_maps("fcn_head", maps, levels.len())?;
                let mut sum: Option<Var> = None;
                for (conv, map) in levels.iter().zip(maps) {
                    let y = conv.forward(ctx, map)?;
                    sum = Some(match sum {
                        None => y,
                        Some(sum) => {
                            let y = resize_to(ctx, &y, &sum)?;
                            ctx.apply(ops::add::Add { relu: false }, &[&sum, &y])?
                        }
                    });
                }
                let Some(sum) = sum else { return Err(Error::shape("fcn_head", "there is no level")) };
                match bn {
                    Some(bn) => bn.forward(ctx, &sum, true)?,
                    None => sum,
                }
            }
        };
        for conv in &self.convs {
            y = conv.forward(ctx, &y)?;
        }
        if let Some(cat) = &self.conv_cat {
            let both = ctx.apply(ops::concat::Concat {}, &[&maps[0], &y])?;
            y = cat.forward(ctx, &both)?;
        }
        match &self.conv_seg {
            Some(seg) => {
                let y = dropout(ctx, y, self.dropout)?;
                seg.forward(ctx, &y)
            }
            None => Ok(y),
        }
    }
}
