//! The feature regressor: a feature pyramid that turns the backbone's features into maps with the teacher's channels.
//!
//! The paper (section 3.1) uses an FPN with a pyramid pooling module; its arithmetic here is that of mmseg's UPerHead
//! with one 1x1 convolution per level on top. The other kinds are the paper's ablation of the regressor.

pub(super) mod parts;

use crate::error::{Error, Result};
use crate::nn::{Builder, Conv2d, Ctx, LayerNorm};
use crate::ops;
use crate::tape::Var;
use parts::{ConvModule, PyramidPooling, SelfAttention, resize_to};
use serde::{Deserialize, Serialize};

/// What the regressor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegressorKind {
    /// Feature pyramid with a pyramid pooling module on the coarsest level.
    FpnPpm,
    /// Plain feature pyramid: a 1x1 lateral on the coarsest level too.
    Fpn,
    /// Plain feature pyramid with self-attention on the coarsest level. After the lateral, with `t` the `H * W`
    /// positions of the map: `t + proj(attention(qkv(norm(t))))`; layer norm with eps 1e-5, `qkv` and `proj` linear
    /// with bias, softmax of `q k / sqrt(head width)`, no position encoding.
    FpnAttention,
    /// Plain feature pyramid followed by PANet's bottom-up path. With `p[i]` the pyramid's outputs, `n[0] = p[0]` and
    /// `n[i+1] = p[i+1] + down[i](n[i])` where `down` is a 3x3 ConvModule with stride 2; all but the finest `n` go
    /// through one more 3x3 ConvModule.
    Pafpn,
}

/// Configuration of a [`Regressor`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegressorConfig {
    /// What it is made of.
    pub kind: RegressorKind,
    /// Width of the pyramid.
    pub channels: usize,
    /// Whether the coarsest level gets a 3x3 output convolution after the pyramid pooling module, which already ends
    /// in one. The other kinds have a 3x3 output convolution on every level.
    pub fpn_conv_on_top: bool,
    /// Grid sizes of the pyramid pooling module.
    pub pool_scales: Vec<usize>,
    /// Heads of the self-attention; they divide `channels`.
    pub attention_heads: usize,
    /// Whether each input goes through a layer norm (eps 1e-6) over its channels first, as ConvNeXt's heads do.
    /// Left out: for ConvNeXt only, see [`RegressorConfig::for_family`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_norm: Option<bool>,
}

impl Default for RegressorConfig {
    /// FPN + PPM of width 256.
    fn default() -> Self {
        RegressorConfig {
            kind: RegressorKind::FpnPpm,
            channels: 256,
            fpn_conv_on_top: false,
            pool_scales: vec![1, 2, 3, 6],
            attention_heads: 8,
            input_norm: None,
        }
    }
}

impl RegressorConfig {
    /// The configuration for backbones of a family: settles `input_norm` where it was left out.
    pub fn for_family(mut self, family: super::backbone::Family) -> Self {
        self.input_norm.get_or_insert(family == super::backbone::Family::ConvNext);
        self
    }

    fn check(&self, in_channels: &[usize], out_channels: &[usize]) -> Result<()> {
        let bad = |what: String| Err(Error::usage(format!("regressor: {what}")));
        if in_channels.len() != out_channels.len() || in_channels.is_empty() {
            return bad(format!(
                "{} input levels and {} output levels",
                in_channels.len(),
                out_channels.len()
            ));
        }
        if out_channels.iter().all(|&c| c == 0) {
            return bad("no level has an output".into());
        }
        let sizes = in_channels.iter().chain([&self.channels]);
        super::backbone::check_sizes("regressor", "channels", sizes)?;
        let outputs = out_channels.iter().filter(|&&c| c > 0);
        super::backbone::check_sizes("regressor", "output channels", outputs)?;
        match self.kind {
            RegressorKind::FpnPpm if self.pool_scales.is_empty() => bad("pool_scales is empty".into()),
            RegressorKind::FpnPpm => {
                super::backbone::check_sizes("regressor", "pool_scales", &self.pool_scales)
            }
            RegressorKind::FpnAttention
                if self.attention_heads == 0 || !self.channels.is_multiple_of(self.attention_heads) =>
            {
                bad(format!(
                    "attention_heads {} do not divide channels {}",
                    self.attention_heads, self.channels
                ))
            }
            _ => Ok(()),
        }
    }
}

/// An intermediate map, for inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Output of the pyramid pooling module.
    Ppm,
    /// The top-down sum at a level (an index into the inputs), before the output convolution.
    TopDown(usize),
}

/// What happens at one level of the pyramid.
#[derive(Clone, Debug)]
struct Level {
    norm: Option<LayerNorm>,
    lateral: Option<ConvModule>,
    fpn_conv: Option<ConvModule>,
    proj: Option<Conv2d>,
}

/// The bottom-up step from one level to the next coarser one.
#[derive(Clone, Debug)]
struct BottomUp {
    down: ConvModule,
    conv: Option<ConvModule>,
}

/// A feature pyramid from the backbone's features to the teacher's channels.
///
/// Keys, with `i` counting levels from fine to coarse: `norm{i}`, `lateral_convs.i.{conv, bn}`,
/// `psp_modules.s.1.{conv, bn}` and `bottleneck.{conv, bn}` (pyramid pooling; in place of the coarsest lateral),
/// `attention.{norm, qkv, proj}`, `fpn_convs.i.{conv, bn}`, `downsample_convs.i.{conv, bn}` (from level i to i + 1),
/// `pafpn_convs.i.{conv, bn}` (level i + 1), `proj.i`.
#[derive(Clone, Debug)]
pub struct Regressor {
    in_channels: Vec<usize>,
    /// The finest level in use; finer ones have no parameters.
    finest: usize,
    /// From `finest` on.
    levels: Vec<Level>,
    ppm: Option<PyramidPooling>,
    attention: Option<SelfAttention>,
    /// From `finest` on; empty for other kinds than PAFPN.
    bottom_up: Vec<BottomUp>,
}

impl Regressor {
    /// Where a student's regressor lies in its parameter store.
    pub const PREFIX: &'static str = "regressor";

    /// Registers the parameters below `b`'s path. Both lists run from fine to coarse. A 0 in `out_channels` marks a
    /// level that the teacher has no map for: it has no output, but takes part in the top-down path if a finer level
    /// needs it.
    ///
    /// # Errors
    /// The lists differ in length, no level has an output, or a number is out of range.
    pub fn new(
        b: &mut Builder<'_>,
        config: &RegressorConfig,
        in_channels: &[usize],
        out_channels: &[usize],
    ) -> Result<Self> {
        config.check(in_channels, out_channels)?;
        let (c, top) = (config.channels, in_channels.len() - 1);
        let wanted = |i: usize| out_channels[i] > 0;
        let finest = (0..=top).find(|&i| wanted(i)).unwrap_or(top);
        let coarsest = (0..=top).rev().find(|&i| wanted(i)).unwrap_or(top);
        let (has_ppm, pafpn) = (config.kind == RegressorKind::FpnPpm, config.kind == RegressorKind::Pafpn);
        let levels = (finest..=top)
            .map(|i| {
                let conv_here = i < top || !has_ppm || config.fpn_conv_on_top;
                let reached = wanted(i) || (pafpn && i <= coarsest);
                Level {
                    norm: config
                        .input_norm
                        .unwrap_or(false)
                        .then(|| LayerNorm::new(&mut b.pp(format!("norm{i}")), in_channels[i], 1e-6)),
                    lateral: (i < top || !has_ppm).then(|| {
                        ConvModule::new(&mut b.pp(format!("lateral_convs.{i}")), in_channels[i], c, 1, 1)
                    }),
                    fpn_conv: (conv_here && reached)
                        .then(|| ConvModule::new(&mut b.pp(format!("fpn_convs.{i}")), c, c, 3, 1)),
                    proj: wanted(i)
                        .then(|| Conv2d::new(&mut b.pp(format!("proj.{i}")), c, out_channels[i], 1, 1, 0)),
                }
            })
            .collect();
        let ppm = has_ppm.then(|| PyramidPooling::new(b, in_channels[top], c, &config.pool_scales));
        let attention = (config.kind == RegressorKind::FpnAttention)
            .then(|| SelfAttention::new(&mut b.pp("attention"), c, config.attention_heads));
        let bottom_up = (finest..coarsest)
            .filter(|_| pafpn)
            .map(|i| BottomUp {
                down: ConvModule::new(&mut b.pp(format!("downsample_convs.{i}")), c, c, 3, 2),
                conv: wanted(i + 1)
                    .then(|| ConvModule::new(&mut b.pp(format!("pafpn_convs.{i}")), c, c, 3, 1)),
            })
            .collect();
        Ok(Regressor { in_channels: in_channels.to_vec(), finest, levels, ppm, attention, bottom_up })
    }

    /// Indices of the levels that have an output, fine to coarse.
    pub fn outputs(&self) -> Vec<usize> {
        let has = |(i, l): (usize, &Level)| l.proj.is_some().then_some(self.finest + i);
        self.levels.iter().enumerate().filter_map(has).collect()
    }

    /// One map `[N, h, w, out_channels]` for every level with an output, fine to coarse, at that level's size.
    /// `features` are all input levels, fine to coarse, `[N, h, w, in_channels]`.
    ///
    /// # Errors
    /// Number of levels or channels differ from the configuration.
    pub fn forward(&self, ctx: &mut Ctx<'_>, features: &[Var]) -> Result<Vec<Var>> {
        self.forward_observed(ctx, features, &mut |_, _| {})
    }

    /// Like [`Regressor::forward`], and shows intermediate maps to `observe`.
    ///
    /// # Errors
    /// As [`Regressor::forward`].
    pub fn forward_observed(
        &self,
        ctx: &mut Ctx<'_>,
        features: &[Var],
        observe: &mut dyn FnMut(Inner, &Var),
    ) -> Result<Vec<Var>> {
        if features.len() != self.in_channels.len() {
            return Err(Error::shape(
                "regressor",
                format!("built for {} levels, got {}", self.in_channels.len(), features.len()),
            ));
        }
        for (i, (f, &c)) in features.iter().zip(&self.in_channels).enumerate() {
            if f.shape().nhwc("regressor")?.3 != c {
                return Err(Error::shape("regressor", format!("level {i} should have {c} channels"))
                    .with_tensor("feature", f.tensor())
                    .with_remedy("pass the backbone's features from fine to coarse"));
            }
        }
        let mut maps = self.laterals(ctx, &features[self.finest..], observe)?;
        for i in (1..maps.len()).rev() {
            let up = resize_to(ctx, &maps[i], &maps[i - 1])?;
            maps[i - 1] = ctx.apply(ops::add::Add { relu: false }, &[&maps[i - 1], &up])?;
        }
        for (i, m) in maps.iter().enumerate() {
            observe(Inner::TopDown(self.finest + i), m);
        }
        for (map, level) in maps.iter_mut().zip(&self.levels) {
            if let Some(conv) = &level.fpn_conv {
                *map = conv.forward(ctx, map)?;
            }
        }
        for (i, step) in self.bottom_up.iter().enumerate() {
            let down = step.down.forward(ctx, &maps[i])?;
            let down = resize_to(ctx, &down, &maps[i + 1])?;
            maps[i + 1] = ctx.apply(ops::add::Add { relu: false }, &[&maps[i + 1], &down])?;
        }
        // The sums above read each other, so the last convolutions come after all of them.
        for (i, step) in self.bottom_up.iter().enumerate() {
            if let Some(conv) = &step.conv {
                maps[i + 1] = conv.forward(ctx, &maps[i + 1])?;
            }
        }
        let with_output = maps.iter().zip(&self.levels).filter_map(|(m, l)| Some((m, l.proj.as_ref()?)));
        with_output.map(|(m, proj)| proj.forward(ctx, m)).collect()
    }

    /// The maps that the top-down path starts from.
    fn laterals(
        &self,
        ctx: &mut Ctx<'_>,
        features: &[Var],
        observe: &mut dyn FnMut(Inner, &Var),
    ) -> Result<Vec<Var>> {
        let mut maps = Vec::with_capacity(features.len());
        for (level, f) in self.levels.iter().zip(features) {
            let x = match &level.norm {
                Some(norm) => norm.forward(ctx, f)?,
                None => f.clone(),
            };
            maps.push(match (&level.lateral, &self.ppm) {
                (None, Some(ppm)) => {
                    let y = ppm.forward(ctx, &x)?;
                    observe(Inner::Ppm, &y);
                    y
                }
                (Some(lateral), _) => lateral.forward(ctx, &x)?,
                (None, None) => unreachable!("only pyramid pooling replaces a lateral"),
            });
        }
        if let (Some(attention), Some(top)) = (&self.attention, maps.last_mut()) {
            *top = attention.forward(ctx, top)?;
        }
        Ok(maps)
    }
}

/// Pairs the teacher's maps with the student's levels of the same height and width: for every student level, the
/// index of the teacher's map, if there is one. Nominal strides do not matter, as teacher and student may see the
/// image at different sizes.
///
/// # Errors
/// A teacher's map has no student level of its size, or two have the same size.
pub fn pair_levels(student: &[[usize; 2]], teacher: &[[usize; 2]]) -> Result<Vec<Option<usize>>> {
    let mut pairs = vec![None; student.len()];
    for (t, size) in teacher.iter().enumerate() {
        let fits = student.iter().zip(&mut pairs).find(|(s, pair)| *s == size && pair.is_none());
        let Some((_, pair)) = fits else {
            let list =
                |v: &[[usize; 2]]| v.iter().map(|[h, w]| format!("{h}x{w}")).collect::<Vec<_>>().join(", ");
            return Err(Error::usage(format!(
                "no student level is left for the teacher's map of {}x{}: the student has {}, the teacher {}",
                size[0],
                size[1],
                list(student),
                list(teacher)
            ))
            .with_remedy("change the taps, or the image sizes that teacher and student see"));
        };
        *pair = Some(t);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests;
