//! Segmentation: a readout on frozen maps, or everything trained.

use super::config::{Levels, SegFinetuneConfig, SegFrozenConfig, SegHead};
use super::features::{Features, Scale};
use super::fit::{Batch, fit};
use super::metrics::{ConfusionMatrix, argmax};
use super::place::Place;
use super::progress::Watch;
use super::samples::Samples;
use crate::data::Mask;
use crate::distill::normalize_imagenet;
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, BackboneConfig, Family};
use crate::models::heads::{FcnConfig, FcnHead, UperConfig, UperHead};
use crate::nn::{Ctx, ParamStore};
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::resize::{Resize, ResizeMode};
use crate::ops::weighted_sum::WeightedSum;
use crate::tape::Var;
use crate::tensor::Tensor;

/// What a segmentation gave.
pub(super) struct Segmented {
    /// Over all pixels of the test images.
    pub matrix: ConfusionMatrix,
    /// The predicted masks of the first test images.
    pub pictures: Vec<Mask>,
}

/// Logits resized bilinearly to the size of the masks, as mmsegmentation does for loss and prediction.
fn to_mask_size(ctx: &mut Ctx<'_>, logits: &Var, out: [usize; 2]) -> Result<Var> {
    let (_, h, w, _) = logits.shape().nhwc("segmentation")?;
    if [h, w] == out {
        return Ok(logits.clone());
    }
    ctx.apply(Resize { mode: ResizeMode::Bilinear { align_corners: false }, out }, &[logits])
}

/// Cross-entropy over the pixels that count.
fn pixel_loss(ctx: &mut Ctx<'_>, logits: &Var, ids: &[u16], samples: &Samples, place: &Place) -> Result<Var> {
    let [h, w] = samples.size();
    let logits = to_mask_size(ctx, logits, [h, w])?;
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let ids = place.classes(ctx, Tensor::from_vec([ids.len() / (h * w), h, w], ids)?)?;
    let op = CrossEntropy { ignore_index: samples.ignore().map(i64::from), ..CrossEntropy::hard() };
    ctx.apply(op, &[&logits, &ids])
}

/// Compares what `logits` gives for every batch of the test images with their masks.
fn test(
    samples: &Samples,
    batch: usize,
    pictures: usize,
    mut logits: impl FnMut(&[usize]) -> Result<Tensor>,
) -> Result<Segmented> {
    let classes = samples.mask_classes().len();
    let [h, w] = samples.size();
    let mut out = Segmented { matrix: ConfusionMatrix::new(classes, samples.ignore()), pictures: Vec::new() };
    let all: Vec<usize> = (0..samples.len()).collect();
    for part in all.chunks(batch) {
        let predicted = argmax(logits(part)?.f32s()?, classes);
        out.matrix.add(&samples.masks(part, &[])?, &predicted)?;
        for ids in predicted.chunks_exact(h * w) {
            if out.pictures.len() < pictures {
                out.pictures.push(Mask::new(h as u32, w as u32, ids.to_vec())?);
            }
        }
    }
    Ok(out)
}

/// Trains a readout on the frozen maps of the images `labelled` and tests it.
pub(super) fn frozen(
    config: &SegFrozenConfig,
    train: &Features<'_>,
    labelled: &[usize],
    against: &Features<'_>,
    (batch, pictures): (usize, usize),
    (seed, place): (u64, &Place),
    watch: &mut Watch<'_>,
) -> Result<Segmented> {
    let levels: &[usize] = match config.levels {
        Levels::Last => &[3],
        Levels::All => &[0, 1, 2, 3],
    };
    let scales: Option<Vec<Scale>> =
        config.standardize.then(|| levels.iter().map(|&l| train.pixel_scale(l, labelled)).collect());
    let maps = |from: &Features<'_>, indices: &[usize]| -> Result<Vec<Tensor>> {
        let mut maps = from.maps(levels, indices)?;
        for (map, scale) in maps.iter_mut().zip(scales.iter().flatten()) {
            scale.apply(map.data_mut::<f32>()?);
        }
        Ok(maps)
    };
    let samples = train.samples();
    let classes = samples.mask_classes().len();
    let channels: Vec<usize> = levels.iter().map(|&l| train.channels()[l]).collect();
    let mut store = ParamStore::new();
    let head = FcnHead::new(&mut store.builder().pp("decode_head"), &config.head, &channels, classes)?;
    store.init(seed)?;
    let mut loss = |ctx: &mut Ctx<'_>, b: &Batch| {
        let indices: Vec<usize> = b.at.iter().map(|&i| labelled[i]).collect();
        let maps = maps(train, &indices)?.into_iter();
        let x = maps.map(|m| place.values(ctx, m)).collect::<Result<Vec<Var>>>()?;
        let logits = head.forward(ctx, &x)?;
        pixel_loss(ctx, &logits, &samples.masks(&indices, &[])?, samples, place)
    };
    fit(&mut store, &config.fit, labelled.len(), (seed, place), watch, &mut loss)?;
    let store = place.network(&store)?;
    test(against.samples(), batch, pictures, |part| {
        let mut ctx = Ctx::inference(&store);
        let maps = maps(against, part)?.into_iter();
        let x = maps.map(|m| place.values(&ctx, m)).collect::<Result<Vec<Var>>>()?;
        let logits = head.forward(&mut ctx, &x)?;
        place.to_host(to_mask_size(&mut ctx, &logits, against.samples().size())?)
    })
}

/// The head of a whole network.
enum Head {
    Uper(UperHead),
    Fcn(FcnHead),
}

/// Backbone, head and auxiliary head in one store, under mmsegmentation's names `backbone`, `decode_head`, `auxiliary_head`.
struct Network {
    backbone: Backbone,
    head: Head,
    auxiliary: Option<FcnHead>,
}

impl Network {
    fn new(
        store: &mut ParamStore,
        config: &SegFinetuneConfig,
        backbone: &BackboneConfig,
        classes: usize,
    ) -> Result<Self> {
        let mut b = store.builder();
        let channels = backbone.channels();
        let body = Backbone::new(&mut b.pp(Backbone::PREFIX), backbone)?;
        let mut at = b.pp("decode_head");
        let head = match &config.head {
            SegHead::Fcn(c) => Head::Fcn(FcnHead::new(&mut at, c, &channels, classes)?),
            SegHead::Upernet(c) => {
                let input_norm = c.input_norm || backbone.family() == Family::ConvNext;
                let c = UperConfig { input_norm, ..c.clone() };
                Head::Uper(UperHead::new(&mut at, &c, &channels, classes)?)
            }
        };
        let width = match &config.head {
            SegHead::Fcn(c) => c.channels,
            SegHead::Upernet(c) => c.channels / 2,
        };
        let one =
            FcnConfig { channels: width.max(1), convs: 1, kernel: 3, concat_input: false, dropout: 0.1 };
        let auxiliary = (config.auxiliary > 0.0)
            .then(|| FcnHead::new(&mut b.pp("auxiliary_head"), &one, &channels[2..3], classes))
            .transpose()?;
        Ok(Network { backbone: body, head, auxiliary })
    }

    fn features(&self, ctx: &mut Ctx<'_>, images: &Tensor, place: &Place) -> Result<Vec<Var>> {
        let x = place.values(ctx, normalize_imagenet(images)?)?;
        self.backbone.features(ctx, &x)
    }

    fn logits(&self, ctx: &mut Ctx<'_>, features: &[Var]) -> Result<Var> {
        match &self.head {
            Head::Uper(h) => h.forward(ctx, features),
            Head::Fcn(h) => h.forward(ctx, features),
        }
    }
}

/// Trains backbone and head on the images `labelled`, the backbone from the values that `fill` gives, and tests them.
pub(super) fn finetune(
    config: &SegFinetuneConfig,
    backbone: &BackboneConfig,
    fill: &dyn Fn(&mut ParamStore) -> Result<()>,
    (train, labelled, against): (&Samples, &[usize], &Samples),
    (batch, pictures): (usize, usize),
    (seed, place): (u64, &Place),
    watch: &mut Watch<'_>,
) -> Result<Segmented> {
    let pooled = matches!(&config.head, SegHead::Upernet(c) if c.pool_scales.contains(&1));
    if pooled && config.fit.batch.min(labelled.len()) < 2 {
        return Err(Error::usage("batch norm behind the global pooling cannot train on one image at a time")
            .with_key("eval.seg_finetune.fit.batch")
            .with_remedy("use at least 2 images, or head.name = \"fcn\""));
    }
    let mut store = ParamStore::new();
    let net = Network::new(&mut store, config, backbone, train.mask_classes().len())?;
    fill(&mut store)?;
    store.init(seed)?;
    let mut loss = |ctx: &mut Ctx<'_>, b: &Batch| {
        let indices: Vec<usize> = b.at.iter().map(|&i| labelled[i]).collect();
        let mirrored = b.mirrored(config.flip);
        let features = net.features(ctx, &train.images(&indices, &mirrored)?, place)?;
        let ids = train.masks(&indices, &mirrored)?;
        let logits = net.logits(ctx, &features)?;
        let value = pixel_loss(ctx, &logits, &ids, train, place)?;
        let Some(auxiliary) = &net.auxiliary else { return Ok(value) };
        let logits = auxiliary.forward(ctx, &features[2..3])?;
        let second = pixel_loss(ctx, &logits, &ids, train, place)?;
        ctx.apply(WeightedSum { weights: vec![1.0, config.auxiliary as f32] }, &[&value, &second])
    };
    fit(&mut store, &config.fit, labelled.len(), (seed, place), watch, &mut loss)?;
    let store = place.network(&store)?;
    test(against, batch, pictures, |part| {
        let mut ctx = Ctx::inference(&store);
        let features = net.features(&mut ctx, &against.images(part, &[])?, place)?;
        let logits = net.logits(&mut ctx, &features)?;
        place.to_host(to_mask_size(&mut ctx, &logits, against.size())?)
    })
}
