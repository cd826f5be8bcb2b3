//! mmsegmentation's `UPerHead` (Xiao et al., "Unified perceptual parsing for scene understanding", ECCV 2018): pyramid
//! pooling on the coarsest level, a feature pyramid, and one prediction from all levels together.

use super::{check, check_maps, conv_seg, dropout};
use crate::error::Result;
use crate::models::regressor::parts::{ConvModule, PyramidPooling, resize_to};
use crate::nn::{Builder, Conv2d, Ctx, LayerNorm};
use crate::ops;
use crate::tape::Var;
use serde::{Deserialize, Serialize};

/// Configuration of an [`UperHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UperConfig {
    /// Width of the pyramid.
    pub channels: usize,
    /// Grid sizes of the pyramid pooling.
    pub pool_scales: Vec<usize>,
    /// Probability that a channel is dropped before the classifier in training.
    pub dropout: f32,
    /// Whether each level goes through a layer norm (eps 1e-6) first, as on ConvNeXt.
    pub input_norm: bool,
}

impl Default for UperConfig {
    /// mmsegmentation's: width 512, pooling to 1, 2, 3, 6, dropout 0.1.
    fn default() -> Self {
        UperConfig { channels: 512, pool_scales: vec![1, 2, 3, 6], dropout: 0.1, input_norm: false }
    }
}

/// UPerNet's head. Keys, with `i` counting levels from fine to coarse: `norm{i}`, `psp_modules.s.1.{conv, bn}`,
/// `bottleneck.{conv, bn}`, `lateral_convs.i.{conv, bn}`, `fpn_convs.i.{conv, bn}`, `fpn_bottleneck.{conv, bn}`, `conv_seg`.
#[derive(Clone, Debug)]
pub struct UperHead {
    norms: Vec<LayerNorm>,
    laterals: Vec<ConvModule>,
    fpn_convs: Vec<ConvModule>,
    ppm: PyramidPooling,
    fpn_bottleneck: ConvModule,
    dropout: f32,
    conv_seg: Conv2d,
}

impl UperHead {
    /// Registers the parameters below `b`'s path. `in_channels` are those of all levels, fine to coarse.
    ///
    /// # Errors
    /// A number is out of range.
    pub fn new(
        b: &mut Builder<'_>,
        config: &UperConfig,
        in_channels: &[usize],
        classes: usize,
    ) -> Result<Self> {
        let c = config.channels;
        check("uper_head", in_channels, classes, config.dropout)?;
        check("uper_head", &[c], classes, config.dropout)?;
        check("uper_head", &config.pool_scales, classes, config.dropout)?;
        let top = in_channels.len() - 1;
        let normed = if config.input_norm { in_channels } else { &[] };
        let mut module =
            |name: String, c_in: usize, kernel: usize| ConvModule::new(&mut b.pp(name), c_in, c, kernel, 1);
        let laterals = (0..top).map(|i| module(format!("lateral_convs.{i}"), in_channels[i], 1)).collect();
        let fpn_convs = (0..top).map(|i| module(format!("fpn_convs.{i}"), c, 3)).collect();
        let fpn_bottleneck = module("fpn_bottleneck".into(), in_channels.len() * c, 3);
        let norm = |(i, &c): (usize, &usize)| LayerNorm::new(&mut b.pp(format!("norm{i}")), c, 1e-6);
        Ok(UperHead {
            norms: normed.iter().enumerate().map(norm).collect(),
            laterals,
            fpn_convs,
            fpn_bottleneck,
            ppm: PyramidPooling::new(b, in_channels[top], c, &config.pool_scales),
            dropout: config.dropout,
            conv_seg: conv_seg(b, c, classes),
        })
    }

    /// Logits `[N, h, w, classes]` at the size of the finest map. `maps` are all levels, fine to coarse.
    ///
    /// # Errors
    /// Number of maps or channels differ from the configuration, or a training batch of one image (the batch norm behind
    /// the global pooling needs two).
    pub fn forward(&self, ctx: &mut Ctx<'_>, maps: &[Var]) -> Result<Var> {
        check_maps("uper_head", maps, self.laterals.len() + 1)?;
        let mut maps = maps.to_vec();
        for (norm, map) in self.norms.iter().zip(&mut maps) {
            *map = norm.forward(ctx, map)?;
        }
        let mut levels = Vec::with_capacity(maps.len());
        for (lateral, map) in self.laterals.iter().zip(&maps) {
            levels.push(lateral.forward(ctx, map)?);
        }
        levels.push(self.ppm.forward(ctx, &maps[self.laterals.len()])?);
        for i in (1..levels.len()).rev() {
            let coarse = resize_to(ctx, &levels[i], &levels[i - 1])?;
            levels[i - 1] = ctx.apply(ops::add::Add { relu: false }, &[&levels[i - 1], &coarse])?;
        }
        for (conv, level) in self.fpn_convs.iter().zip(&mut levels) {
            *level = conv.forward(ctx, level)?;
        }
        let finest = levels[0].clone();
        for level in &mut levels[1..] {
            *level = resize_to(ctx, level, &finest)?;
        }
        let all: Vec<&Var> = levels.iter().collect();
        let y = ctx.apply(ops::concat::Concat {}, &all)?;
        let y = self.fpn_bottleneck.forward(ctx, &y)?;
        let y = dropout(ctx, y, self.dropout)?;
        self.conv_seg.forward(ctx, &y)
    }
}
