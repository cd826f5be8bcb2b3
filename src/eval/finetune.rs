//! Classification with everything trained.

use super::config::FinetuneConfig;
use super::fit::{Batch, fit};
use super::metrics::argmax;
use super::place::Place;
use super::progress::Watch;
use super::samples::Samples;
use crate::distill::normalize_imagenet;
use crate::error::{Error, Result};
use crate::models::backbone::{Backbone, BackboneConfig};
use crate::nn::{Ctx, ParamStore};
use crate::ops::cross_entropy::CrossEntropy;
use crate::tape::Var;
use crate::tensor::Tensor;

/// A backbone with a classifier, below [`Backbone::PREFIX`].
pub(super) struct Classifier {
    net: Backbone,
    pub store: ParamStore,
    classes: usize,
    place: Place,
}

impl Classifier {
    /// Trains backbone and classifier on the images `labelled`, the backbone from the values that `fill` gives.
    pub fn train(
        config: &FinetuneConfig,
        backbone: &BackboneConfig,
        fill: &dyn Fn(&mut ParamStore) -> Result<()>,
        (samples, labelled): (&Samples, &[usize]),
        (seed, place): (u64, &Place),
        watch: &mut Watch<'_>,
    ) -> Result<Self> {
        let classes = samples.classes().len();
        if classes == 0 {
            return Err(Error::data("there are no classes to learn")
                .with_remedy("give images in one folder for each class, or with labels"));
        }
        let mut store = ParamStore::new();
        let wanted = backbone.clone().with_classes(classes);
        let net = Backbone::new(&mut store.builder().pp(Backbone::PREFIX), &wanted)?;
        fill(&mut store)?;
        store.init(seed)?;
        let mut all = Classifier { net, store, classes, place: place.clone() };
        let labels = labelled.iter().map(|&i| samples.label(i)).collect::<Result<Vec<u16>>>()?;
        let net = &all.net;
        let mut loss = |ctx: &mut Ctx<'_>, b: &Batch| {
            let indices: Vec<usize> = b.at.iter().map(|&i| labelled[i]).collect();
            let z = logits((net, place), ctx, &samples.images(&indices, &b.mirrored(config.flip))?)?;
            let y: Vec<i64> = b.at.iter().map(|&i| i64::from(labels[i])).collect();
            let y = place.classes(ctx, Tensor::from_vec([y.len()], y)?)?;
            let op = CrossEntropy { label_smoothing: config.label_smoothing as f32, ..CrossEntropy::hard() };
            ctx.apply(op, &[&z, &y])
        };
        fit(&mut all.store, &config.fit, labelled.len(), (seed, place), watch, &mut loss)?;
        Ok(all)
    }

    /// The classes of all images of a set.
    pub fn classify(&self, samples: &Samples, batch: usize) -> Result<Vec<u16>> {
        let mut predicted = Vec::with_capacity(samples.len());
        let all: Vec<usize> = (0..samples.len()).collect();
        let store = self.place.network(&self.store)?;
        for part in all.chunks(batch) {
            let mut ctx = Ctx::inference(&store);
            let z = logits((&self.net, &self.place), &mut ctx, &samples.images(part, &[])?)?;
            predicted.extend(argmax(self.place.to_host(z)?.f32s()?, self.classes));
        }
        Ok(predicted)
    }
}

fn logits((net, place): (&Backbone, &Place), ctx: &mut Ctx<'_>, images: &Tensor) -> Result<Var> {
    let x = place.values(ctx, normalize_imagenet(images)?)?;
    let features = net.features(ctx, &x)?;
    net.forward_head(ctx, &features[3])
}
