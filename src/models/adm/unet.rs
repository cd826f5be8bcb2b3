//! The U-Net itself.

use super::AdmConfig;
use super::blocks::{self, AttentionBlock, Condition, Layer, ResBlock};
use super::layout::{DecoderBlock, EncoderBlock, Layout};
use super::taps::{Tap, TapPosition, Taps};
use super::time::{FoldedTime, Time, embed_batch};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::nn::{Builder, Conv2d, Ctx, Embedding, GroupNorm, Linear, ParamStore};
use crate::ops::{add::Add, silu::Silu};
use crate::tape::Var;
use crate::tensor::{Device, Tensor};
use std::fmt;

/// A place in the network whose value can be observed. Displays as the name of the module that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The time embedding `[N, E]`, with the label's added. Absent with [`Time::Folded`].
    Embedding,
    /// The output of an encoder block.
    Encoder(usize),
    /// The output of the middle block.
    Middle,
    /// A feature map of the decoder. Blocks without an up-sampler are observed at [`TapPosition::PostUp`] only.
    Decoder(Tap),
    /// The prediction.
    Out,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Embedding => f.write_str("emb"),
            Site::Encoder(i) => write!(f, "input_blocks.{i}"),
            Site::Middle => f.write_str("middle_block"),
            Site::Decoder(tap) => tap.fmt(f),
            Site::Out => f.write_str("out"),
        }
    }
}

type Observer<'o> = &'o mut dyn FnMut(Site, &Var);

#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) layers: Vec<Layer>,
    /// Whether the last layer is an up-sampler.
    pub(super) up: bool,
}

/// An ADM U-Net (guided-diffusion's `UNetModel`). Images are NHWC.
#[derive(Debug)]
pub struct AdmUnet {
    config: AdmConfig,
    time_embed: [Linear; 2],
    label_emb: Option<Embedding>,
    pub(super) encoder: Vec<Vec<Layer>>,
    pub(super) middle: Vec<Layer>,
    pub(super) decoder: Vec<Decoder>,
    pub(super) out_norm: GroupNorm,
    pub(super) out_conv: Conv2d,
    recompute: bool,
}

impl AdmUnet {
    /// Registers the parameters under the keys of guided-diffusion, in its order and with its initial values.
    ///
    /// # Errors
    /// As [`AdmConfig::validate`].
    pub fn new(b: &mut Builder<'_>, config: &AdmConfig) -> Result<Self> {
        config.validate()?;
        let layout = Layout::new(config);
        let e = config.embedding_channels();
        let time_embed = [
            Linear::new(&mut b.pp("time_embed.0"), config.model_channels, e),
            Linear::new(&mut b.pp("time_embed.2"), e, e),
        ];
        let label_emb = config.num_classes.map(|n| Embedding::new(&mut b.pp("label_emb"), n, e));
        let mut index = 0;
        let mut encoder = Vec::with_capacity(layout.encoder.len());
        for (i, &block) in layout.encoder.iter().enumerate() {
            encoder.push(encoder_block(&mut b.pp("input_blocks").pp(i), config, block, &mut index));
        }
        let middle = middle_block(&mut b.pp("middle_block"), config, layout.middle, &mut index);
        let mut decoder = Vec::with_capacity(layout.decoder.len());
        for (i, &block) in layout.decoder.iter().enumerate() {
            decoder.push(decoder_block(&mut b.pp("output_blocks").pp(i), config, block, &mut index));
        }
        let c = config.channels(0);
        Ok(AdmUnet {
            config: config.clone(),
            time_embed,
            label_emb,
            encoder,
            middle,
            decoder,
            out_norm: blocks::norm(&mut b.pp("out.0"), c),
            out_conv: blocks::zero_conv3x3(&mut b.pp("out.2"), c, config.out_channels()),
            recompute: false,
        })
    }

    /// Sets whether ResBlocks and attention blocks are run again in the backward pass instead of keeping their
    /// intermediate values: less memory for about a third more time.
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &AdmConfig {
        &self.config
    }

    /// The prediction `[N, H, W, out_channels]` for noisy images `x [N, H, W, in_channels]` scaled to -1..1: the
    /// noise, and with `learn_sigma` as many channels for the variance after it. `labels [N]` (i64) is required by a
    /// class-conditional network, unless the time is folded, and refused by others.
    ///
    /// With [`Time::Folded`] no gradient reaches the time embedding or the norms that were folded.
    ///
    /// # Errors
    /// Wrong channels, a height or width that [`AdmConfig::max_stride`] does not divide, a number of time steps that
    /// is neither 1 nor N, missing or unexpected labels, or constants folded for another network.
    pub fn forward<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: &Var,
        time: &Time<'_>,
        labels: Option<&Var>,
    ) -> Result<Var> {
        self.forward_observed(ctx, x, time, labels, &mut |_, _| {})
    }

    /// Like [`AdmUnet::forward`], and shows every block's output to `observe` in the order of their computation.
    ///
    /// # Errors
    /// As [`AdmUnet::forward`].
    pub fn forward_observed<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: &Var,
        time: &Time<'_>,
        labels: Option<&Var>,
        observe: &mut dyn FnMut(Site, &Var),
    ) -> Result<Var> {
        let h = self.trunk(ctx, x, time, labels, None, observe)?;
        self.head(ctx, h, observe)
    }

    /// The feature maps of `taps`, in their order. With `early_exit` nothing behind the last tap is computed, and
    /// encoder outputs that no computed block concatenates are not kept.
    ///
    /// # Errors
    /// As [`AdmUnet::forward`], and as [`Taps::describe`].
    pub fn features<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: &Var,
        time: &Time<'_>,
        labels: Option<&Var>,
        taps: &Taps,
        early_exit: bool,
    ) -> Result<Vec<Var>> {
        taps.describe(&self.config)?;
        let wanted: Vec<Tap> = taps.as_slice().iter().map(|&t| self.canonical(t)).collect();
        let mut found: Vec<Option<Var>> = vec![None; wanted.len()];
        let mut take = |site: Site, v: &Var| {
            for (_, slot) in wanted.iter().zip(&mut found).filter(|(tap, _)| site == Site::Decoder(**tap)) {
                *slot = Some(v.clone());
            }
        };
        // Taps order by block, then pre_up before post_up: the order in which they are computed.
        let last = wanted.iter().max().copied().filter(|_| early_exit);
        let h = self.trunk(ctx, x, time, labels, last, &mut take)?;
        if !early_exit {
            self.head(ctx, h, &mut take)?;
        }
        Ok(found.into_iter().map(|v| v.expect("every described tap is observed")).collect())
    }

    /// Precomputes what a fixed time step, and the label of a class-conditional network, amounts to in every
    /// ResBlock.
    ///
    /// # Errors
    /// A missing, unexpected or too large label, or a time step that is not finite.
    pub fn fold_time(&self, store: &ParamStore, step: f32, label: Option<usize>) -> Result<FoldedTime> {
        let mut ctx = Ctx::inference(store);
        let planning = store.iter().any(|(_, p)| p.value().device() == Device::Meta);
        let constant = |ctx: &Ctx<'_>, t: Tensor| match planning {
            true => ctx.constant(Tensor::meta(t.shape(), t.dtype(), None)),
            false => ctx.constant(t),
        };
        let sinusoid = constant(&ctx, embed_batch(&[step], 1, self.config.model_channels)?);
        let index = label.map(|l| Tensor::from_vec([1], vec![l as i64])).transpose()?;
        let index = index.map(|t| constant(&ctx, t));
        let embedding = self.embed(&mut ctx, &sinusoid, index.as_ref())?;
        let activated = ctx.apply(Silu {}, &[&embedding])?;
        let encoder = self.encoder.iter().flatten();
        let decoder = self.decoder.iter().flat_map(|d| &d.layers);
        let layers = encoder.chain(&self.middle).chain(decoder);
        let blocks: Result<Vec<_>> = layers.filter_map(|l| l.fold(&mut ctx, &activated)).collect();
        Ok(FoldedTime { config: self.config.clone(), step, label, blocks: blocks? })
    }

    /// The same tap under the name by which it is observed.
    pub(super) fn canonical(&self, tap: Tap) -> Tap {
        if self.decoder[tap.block].up { tap } else { Tap::post_up(tap.block) }
    }

    /// Everything up to the last decoder block, or up to the tap `stop`.
    fn trunk<'a>(
        &'a self,
        ctx: &mut Ctx<'a>,
        x: &Var,
        time: &Time<'_>,
        labels: Option<&Var>,
        stop: Option<Tap>,
        observe: Observer<'_>,
    ) -> Result<Var> {
        let n = check_input(&self.config, x.tensor())?;
        let condition = self.condition(ctx, n, time, labels, observe)?;
        let run =
            |ctx: &mut Ctx<'a>, layer: &'a Layer, h: Var| layer.forward(ctx, h, &condition, self.recompute);
        // Decoder block j concatenates the output of encoder block (number - 1 - j).
        let computed = stop.map_or(self.decoder.len(), |tap| tap.block + 1);
        let first_skip = self.encoder.len() - computed;
        let mut skips = Vec::with_capacity(computed);
        let mut h = x.clone();
        for (i, block) in self.encoder.iter().enumerate() {
            for layer in block {
                h = run(ctx, layer, h)?;
            }
            observe(Site::Encoder(i), &h);
            if i >= first_skip {
                skips.push(h.clone());
            }
        }
        for layer in &self.middle {
            h = run(ctx, layer, h)?;
        }
        observe(Site::Middle, &h);
        for (j, block) in self.decoder[..computed].iter().enumerate() {
            let skip = skips.pop().expect("one skip per computed block");
            h = ctx.apply(crate::ops::concat::Concat {}, &[&h, &skip])?;
            drop(skip);
            let (up, body) = match block.layers.split_last() {
                Some((up, body)) if block.up => (Some(up), body),
                _ => (None, &block.layers[..]),
            };
            for layer in body {
                h = run(ctx, layer, h)?;
            }
            if let Some(up) = up {
                observe(Site::Decoder(Tap::pre_up(j)), &h);
                if stop == Some(Tap { block: j, position: TapPosition::PreUp }) {
                    return Ok(h);
                }
                h = run(ctx, up, h)?;
            }
            observe(Site::Decoder(Tap::post_up(j)), &h);
        }
        Ok(h)
    }

    /// Norm, SiLU and convolution to the prediction.
    fn head(&self, ctx: &mut Ctx<'_>, mut h: Var, observe: Observer<'_>) -> Result<Var> {
        h = self.out_norm.forward(ctx, &h, None, true)?;
        h = self.out_conv.forward(ctx, &h)?;
        observe(Site::Out, &h);
        Ok(h)
    }

    fn condition<'t>(
        &self,
        ctx: &mut Ctx<'_>,
        n: usize,
        time: &Time<'t>,
        labels: Option<&Var>,
        observe: Observer<'_>,
    ) -> Result<Condition<'t>> {
        let channels = self.config.model_channels;
        let sinusoid = match *time {
            Time::Steps(steps) => ctx.input(&embed_batch(steps, n, channels)?),
            Time::Embedded(v) if *v.shape() == [n, channels] => v.clone(),
            Time::Embedded(v) => {
                return Err(Error::shape("adm", format!("expects a time embedding [{n}, {channels}]"))
                    .with_tensor("time", v.tensor()));
            }
            Time::Folded(_) if labels.is_some() => {
                return Err(Error::usage(
                    "labels are given, but the time was folded together with one label",
                )
                .with_remedy("pass no labels, or pass time steps"));
            }
            Time::Folded(folded) => {
                check_folded(&folded.config, &self.config)?;
                return Ok(Condition::Folded(folded));
            }
        };
        if let Some(l) = labels.filter(|l| *l.shape() != [n] || l.tensor().dtype() != DType::I64) {
            return Err(Error::shape("adm", format!("expects {n} labels of type i64"))
                .with_tensor("labels", l.tensor()));
        }
        let embedding = self.embed(ctx, &sinusoid, labels)?;
        observe(Site::Embedding, &embedding);
        Ok(Condition::Embedding(ctx.apply(Silu {}, &[&embedding])?))
    }

    /// The time embedding `[N, E]`, with the label's added.
    fn embed(&self, ctx: &mut Ctx<'_>, sinusoid: &Var, labels: Option<&Var>) -> Result<Var> {
        let mut e = self.time_embed[0].forward(ctx, sinusoid)?;
        e = ctx.apply(Silu {}, &[&e])?;
        e = self.time_embed[1].forward(ctx, &e)?;
        match (&self.label_emb, labels) {
            (Some(table), Some(labels)) => {
                let l = table.forward(ctx, labels, e.tensor().dtype())?;
                ctx.apply(Add { relu: false }, &[&e, &l])
            }
            (None, None) => Ok(e),
            (Some(_), None) => Err(Error::usage("a class-conditional network needs labels")
                .with_remedy("give one label per sample")),
            (None, Some(_)) => Err(Error::usage("the network is not class-conditional")
                .with_remedy("pass no labels, or set `num_classes`")),
        }
    }
}

/// The batch size of an input that fits a network.
pub(super) fn check_input(config: &AdmConfig, x: &Tensor) -> Result<usize> {
    let (n, h, w, c) = x.shape().nhwc("adm")?;
    if c != config.in_channels {
        let message = format!("the image has {c} channels, the network takes {}", config.in_channels);
        return Err(Error::shape("adm", message).with_tensor("x", x));
    }
    let stride = config.max_stride();
    if n == 0 || h == 0 || w == 0 || !h.is_multiple_of(stride) || !w.is_multiple_of(stride) {
        let message = format!("height and width must be multiples of {stride}, and no size 0");
        return Err(Error::shape("adm", message)
            .with_tensor("x", x)
            .with_remedy(format!("resize or crop the images to multiples of {stride}")));
    }
    Ok(n)
}

/// Refuses constants that were folded for a network of another configuration.
pub(super) fn check_folded(folded: &AdmConfig, config: &AdmConfig) -> Result<()> {
    if folded == config {
        return Ok(());
    }
    Err(Error::usage("the time was folded for a network of another configuration")
        .with_remedy("fold it with `fold_time` of this network"))
}

fn encoder_block(
    b: &mut Builder<'_>,
    config: &AdmConfig,
    block: EncoderBlock,
    index: &mut usize,
) -> Vec<Layer> {
    match block {
        EncoderBlock::Stem { c_out } => {
            vec![Layer::Stem(Conv2d::new(&mut b.pp(0), config.in_channels, c_out, 3, 1, 1))]
        }
        EncoderBlock::Res { c_in, c_out, heads } => res_and_attention(b, config, [c_in, c_out], heads, index),
        EncoderBlock::Down { channels } => vec![Layer::down(&mut b.pp(0), config, channels, index)],
    }
}

fn middle_block(
    b: &mut Builder<'_>,
    config: &AdmConfig,
    (c, heads): (usize, usize),
    index: &mut usize,
) -> Vec<Layer> {
    let mut layers = res_and_attention(b, config, [c, c], Some(heads), index);
    layers.push(Layer::Res(ResBlock::new(&mut b.pp(2), config, c, c, None, index)));
    layers
}

fn decoder_block(b: &mut Builder<'_>, config: &AdmConfig, block: DecoderBlock, index: &mut usize) -> Decoder {
    let mut layers = res_and_attention(b, config, [block.c_in, block.channels], block.heads, index);
    if block.up {
        layers.push(Layer::up(&mut b.pp(layers.len()), config, block.channels, index));
    }
    Decoder { layers, up: block.up }
}

fn res_and_attention(
    b: &mut Builder<'_>,
    config: &AdmConfig,
    [c_in, c_out]: [usize; 2],
    heads: Option<usize>,
    index: &mut usize,
) -> Vec<Layer> {
    let mut layers = vec![Layer::Res(ResBlock::new(&mut b.pp(0), config, c_in, c_out, None, index))];
    if let Some(heads) = heads {
        layers.push(Layer::Attention(AttentionBlock::new(&mut b.pp(1), config, c_out, heads)));
    }
    layers
}
