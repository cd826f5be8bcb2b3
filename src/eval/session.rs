//! The run of an evaluation.

use super::config::{EvalConfig, Protocol};
use super::features::{Features, Frozen};
use super::finetune::Classifier;
use super::metrics::{ConfusionMatrix, mean_per_class};
use super::place::Place;
use super::progress::{EvalProgress, Watch};
use super::report::{Report, Row};
use super::samples::Samples;
use super::{knn, linear, seg};
use crate::base::DType;
use crate::checkpoint::load_backbone;
use crate::data::{ImageSource, Mask, RgbImage, SceneConfig, Scenes, Split, balanced_order, open_path};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::models::backbone::{Backbone, BackboneConfig};
use crate::nn::ParamStore;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Where a backbone's values come from.
#[derive(Clone, Debug)]
pub enum Weights {
    /// A checkpoint in any layout that [`load_backbone`] knows.
    File(PathBuf),
    /// Random initial values, others for every seed.
    Scratch,
    /// Those of a store, below [`Backbone::PREFIX`], e.g. a student's.
    Params(ParamStore),
}

impl Weights {
    /// What rows of a report call it.
    fn name(&self) -> &'static str {
        match self {
            Weights::Scratch => "scratch",
            Weights::File(_) | Weights::Params(_) => "pretrained",
        }
    }
}

/// Measures one backbone, which the report calls `scratch` or `pretrained`.
///
/// # Errors
/// An invalid configuration, unreadable or unlabelled images, weights that do not fit, or [`Error::interrupted`] once `stop`
/// is set.
pub fn evaluate(
    config: &EvalConfig,
    backbone: &BackboneConfig,
    initial: Weights,
    progress: &mut dyn FnMut(&EvalProgress),
    stop: &AtomicBool,
) -> Result<Report> {
    Evaluation::new(config)?.run(initial.name(), backbone, &initial, progress, stop)
}

/// The images of an evaluation, for one backbone after another.
pub struct Evaluation {
    config: EvalConfig,
    train: Samples,
    test: Samples,
    /// How many images are labelled at a time, in the order of the configuration.
    labels: Vec<usize>,
    place: Place,
}

/// One number, and that of every class.
struct Metric {
    name: &'static str,
    value: f64,
    per_class: Vec<f64>,
}

/// What one protocol gave for one seed.
struct Outcome {
    protocol: Protocol,
    labels: usize,
    metrics: Vec<Metric>,
    /// The predicted masks of the first test images.
    masks: Vec<Mask>,
    seconds: f64,
}

/// A test image with its mask and a predicted one, for pictures.
#[derive(Clone, Debug)]
pub struct Picture {
    /// `seg_frozen` or `seg_finetune`.
    pub protocol: String,
    /// Whose features, as in [`Row::backbone`].
    pub backbone: String,
    /// How many labelled images the readout was trained on.
    pub labels: usize,
    /// Position among the test images.
    pub index: usize,
    /// The image as the backbone saw it.
    pub image: RgbImage,
    /// The true mask, of the image's size.
    pub truth: Mask,
    /// The predicted mask.
    pub predicted: Mask,
}

impl Evaluation {
    /// Opens the images and checks that they have what the protocols need.
    ///
    /// # Errors
    /// An invalid configuration; images that cannot be opened, or lack labels or masks; more labels than images; training and
    /// test images of different classes.
    pub fn new(config: &EvalConfig) -> Result<Self> {
        config.validate()?;
        let d = &config.data;
        let open = |test| -> Result<Samples> {
            let (source, limit) = open(config, test)?;
            Ok(Samples::new(source, limit, d.size(), d.behind(), config.cache_mib))
        };
        let (train, test) = (open(false)?, open(true)?);
        if train.is(&test)? {
            return Err(Error::data("the labelled images and the test images are the same")
                .with_key("eval.data.test_path")
                .with_remedy("give other test images, or a folder with the sub-folders train and test"));
        }
        let labels = config.labels.iter().map(|a| a.of(train.len())).collect::<Result<Vec<usize>>>()?;
        for &protocol in &config.protocols {
            let (a, b, what) = match protocol.segments() {
                true => (train.mask_classes(), test.mask_classes(), "masks"),
                false => (train.classes(), test.classes(), "labels"),
            };
            if a.is_empty() || b.is_empty() {
                return Err(Error::data(format!("{protocol} needs {what}, and the images have none"))
                    .with_remedy("give images with them, or leave the protocol out"));
            }
            if a != b {
                return Err(Error::data(format!(
                    "training and test images have different classes: {} and {}",
                    a.join(", "),
                    b.join(", ")
                ))
                .with_remedy("use two parts of one set"));
            }
        }
        Ok(Evaluation { config: config.clone(), train, test, labels, place: Place::default() })
    }

    /// Lets networks compute on a device, with images, activations and operands of products as `dtype` (bf16 or f32);
    /// nearest neighbours stay on the host.
    pub fn on_device(mut self, gpu: &Gpu, dtype: DType) -> Self {
        self.place = Place(Some((gpu.clone(), dtype)));
        self
    }

    /// Lets at most this many images be labelled at a time.
    pub(super) fn limit_labels(&mut self, most: usize) {
        self.labels.iter_mut().for_each(|n| *n = (*n).min(most));
    }

    /// What is evaluated on, in one line.
    pub fn title(&self) -> String {
        let [h, w] = self.train.size();
        format!(
            "{} images to label ({}), {} test images ({}), {h}x{w} pixels",
            self.train.len(),
            self.train.fingerprint(),
            self.test.len(),
            self.test.fingerprint()
        )
    }

    /// Measures one backbone under a name of one's own.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn run(
        &self,
        name: &str,
        backbone: &BackboneConfig,
        weights: &Weights,
        progress: &mut dyn FnMut(&EvalProgress),
        stop: &AtomicBool,
    ) -> Result<Report> {
        Ok(self.run_with_pictures(name, backbone, weights, 0, progress, stop)?.0)
    }

    /// As [`Evaluation::run`], and gives the predicted masks of the first `pictures` test images, of every segmentation
    /// protocol and number of labels, with the first seed.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn run_with_pictures(
        &self,
        name: &str,
        backbone: &BackboneConfig,
        weights: &Weights,
        pictures: usize,
        progress: &mut dyn FnMut(&EvalProgress),
        stop: &AtomicBool,
    ) -> Result<(Report, Vec<Picture>)> {
        let mut watch = Watch::new(name, progress, stop);
        let backbone = backbone.clone().with_classes(0);
        let given = match weights {
            Weights::Scratch => None,
            given => Some(fixed(&backbone, given)?),
        };
        let first = self.config.first_seed;
        let seeds: Vec<u64> = (first..first.saturating_add(self.config.seeds)).collect();
        // The features of given weights serve all seeds; from scratch every seed has its own.
        let groups: Vec<&[u64]> = match &given {
            Some(_) => vec![&seeds],
            None => seeds.chunks(1).collect(),
        };
        let mut found: Vec<Vec<Outcome>> = Vec::new();
        for group in groups {
            let fresh;
            let store = match &given {
                Some(store) => store,
                None => {
                    let mut store = empty(&backbone)?.0;
                    store.init(group[0])?;
                    fresh = store;
                    &fresh
                }
            };
            for outcome in self.group(&backbone, store, group, pictures, &mut watch)? {
                let same = |o: &&mut Vec<Outcome>| {
                    (o[0].protocol, o[0].labels) == (outcome.protocol, outcome.labels)
                };
                match found.iter_mut().find(same) {
                    Some(all) => all.push(outcome),
                    None => found.push(vec![outcome]),
                }
            }
        }
        let mut report = Report::new(self.title());
        found.iter().for_each(|o| report.rows.extend(self.rows(name, &seeds, o)));
        let mut shown = Vec::new();
        for outcome in found.iter().filter_map(|o| o.first()) {
            shown.extend(self.pictures(name, outcome)?);
        }
        Ok((report, shown))
    }

    /// The rows of one protocol and number of labels.
    fn rows(&self, name: &str, seeds: &[u64], outcomes: &[Outcome]) -> Vec<Row> {
        let (protocol, labels) = (outcomes[0].protocol, outcomes[0].labels);
        let row = |m: usize| {
            let per_class: Vec<Vec<f64>> = outcomes.iter().map(|o| o.metrics[m].per_class.clone()).collect();
            let classes = match (per_class[0].is_empty(), protocol.segments()) {
                (true, _) => Vec::new(),
                (_, true) => self.test.mask_classes().to_vec(),
                (_, false) => self.test.classes().to_vec(),
            };
            Row {
                protocol: protocol.to_string(),
                backbone: name.to_string(),
                metric: outcomes[0].metrics[m].name.to_string(),
                labels,
                fraction: labels as f64 / self.train.len() as f64,
                seeds: seeds.to_vec(),
                values: outcomes.iter().map(|o| o.metrics[m].value).collect(),
                classes,
                per_class: mean_per_class(&per_class),
                seconds: outcomes.iter().map(|o| o.seconds).sum(),
            }
        };
        (0..outcomes[0].metrics.len()).map(row).collect()
    }

    /// The predicted masks of an outcome beside their images.
    fn pictures(&self, name: &str, outcome: &Outcome) -> Result<Vec<Picture>> {
        let [h, w] = self.test.size().map(|s| s as u32);
        let picture = |(index, predicted): (usize, &Mask)| {
            Ok(Picture {
                protocol: outcome.protocol.to_string(),
                backbone: name.to_string(),
                labels: outcome.labels,
                index,
                image: self.test.image(index)?,
                truth: Mask::new(h, w, self.test.masks(&[index], &[])?)?,
                predicted: predicted.clone(),
            })
        };
        outcome.masks.iter().enumerate().map(picture).collect()
    }

    /// Everything that some seeds measure on one backbone with given values.
    fn group(
        &self,
        backbone: &BackboneConfig,
        store: &ParamStore,
        seeds: &[u64],
        pictures: usize,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Outcome>> {
        let config = &self.config;
        let most = self.labels.iter().copied().max().unwrap_or(0);
        let orders: Vec<Vec<usize>> = seeds
            .iter()
            .map(|&s| {
                let mut order = balanced_order(self.train.len(), s, |i| self.train.class(i));
                order.truncate(most);
                order
            })
            .collect();
        let frozen = match config.protocols.iter().any(|p| p.is_frozen()) {
            true => Some(Frozen::new(empty(backbone)?.1, store, &self.place)?),
            false => None,
        };
        let budget = (config.batch, config.cache_mib);
        let maps = config.protocols.contains(&Protocol::SegFrozen);
        let features = match &frozen {
            None => None,
            Some(frozen) => {
                watch.part(None, most, seeds[0]);
                let labelled: BTreeSet<usize> = orders.iter().flatten().copied().collect();
                let labelled: Vec<usize> = labelled.into_iter().collect();
                let test: Vec<usize> = (0..self.test.len()).collect();
                let train = Features::new(frozen, backbone, &self.train, &labelled, budget, maps, watch)?;
                Some((train, Features::new(frozen, backbone, &self.test, &test, budget, maps, watch)?))
            }
        };
        let fill = |to: &mut ParamStore| copy(store, to);
        let mut found = Vec::new();
        for &protocol in &config.protocols {
            for &labels in &self.labels {
                for (&seed, order) in seeds.iter().zip(&orders) {
                    watch.part(Some(protocol), labels, seed);
                    let start = Instant::now();
                    let labelled = &order[..labels];
                    let at = (seed, &self.place);
                    // Pictures show the first seed.
                    let pictures = if seed == config.first_seed { pictures } else { 0 };
                    let (metrics, masks) = match (protocol, &features) {
                        (Protocol::Knn | Protocol::Linear, Some(f)) => {
                            (self.on_pooled(protocol, labelled, f, seed, watch)?, Vec::new())
                        }
                        (Protocol::SegFrozen, Some((train, test))) => {
                            let (config, sizes) = (&config.seg_frozen, (config.batch, pictures));
                            segmentation(seg::frozen(config, train, labelled, test, sizes, at, watch)?)
                        }
                        (Protocol::SegFinetune, _) => {
                            let (config, sizes) = (&config.seg_finetune, (config.batch, pictures));
                            let data = (&self.train, labelled, &self.test);
                            segmentation(seg::finetune(config, backbone, &fill, data, sizes, at, watch)?)
                        }
                        _ => {
                            let trained = (&self.train, labelled);
                            let config = &config.finetune;
                            let net = Classifier::train(config, backbone, &fill, trained, at, watch)?;
                            let predicted = net.classify(&self.test, self.config.batch)?;
                            (self.classification(&predicted)?, Vec::new())
                        }
                    };
                    watch.complete(metrics[0].value);
                    let seconds = start.elapsed().as_secs_f64();
                    found.push(Outcome { protocol, labels, metrics, masks, seconds });
                }
            }
        }
        Ok(found)
    }

    /// A classification of pooled features.
    fn on_pooled(
        &self,
        protocol: Protocol,
        labelled: &[usize],
        (train, test): &(Features<'_>, Features<'_>),
        seed: u64,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Metric>> {
        let config = &self.config;
        let level = if protocol == Protocol::Knn { config.knn.level } else { config.linear.level } - 1;
        let (width, classes) = (train.channels()[level], self.train.classes().len());
        let all: Vec<usize> = (0..self.test.len()).collect();
        let (x, queries) = (train.pooled(level, labelled), test.pooled(level, &all));
        let y = labelled.iter().map(|&i| self.train.label(i)).collect::<Result<Vec<u16>>>()?;
        let predicted = match protocol {
            Protocol::Knn => knn::classify(&config.knn, &x, &y, &queries, width, classes),
            _ => linear::classify(
                &config.linear,
                (x, &y),
                queries,
                width,
                classes,
                (seed, &self.place),
                watch,
            )?,
        };
        self.classification(&predicted)
    }

    fn classification(&self, predicted: &[u16]) -> Result<Vec<Metric>> {
        let truth = (0..self.test.len()).map(|i| self.test.label(i)).collect::<Result<Vec<u16>>>()?;
        let mut matrix = ConfusionMatrix::new(self.test.classes().len(), None);
        matrix.add(&truth, predicted)?;
        Ok(vec![Metric { name: "top1", value: matrix.accuracy(), per_class: matrix.recall() }])
    }
}

fn segmentation(out: seg::Segmented) -> (Vec<Metric>, Vec<Mask>) {
    let m = &out.matrix;
    let miou = Metric { name: "miou", value: m.miou(), per_class: m.iou() };
    let accuracy = Metric { name: "pixel_accuracy", value: m.accuracy(), per_class: Vec::new() };
    (vec![miou, accuracy], out.pictures)
}

/// The training or test images, and how many of them count (0 for all).
fn open(config: &EvalConfig, test: bool) -> Result<(Arc<dyn ImageSource>, usize)> {
    let d = &config.data;
    let limit = if test { d.test_limit } else { 0 };
    let Some(path) = &d.path else {
        let (count, first) = if test { (d.test_limit, Scenes::TEST) } else { (d.scenes, Scenes::HELD_OUT) };
        let [height, width] = d.size();
        let scenes = Scenes::new(SceneConfig { count, first, height, width })?;
        return Ok((Arc::new(scenes), 0));
    };
    let path = if test { d.test_path.as_ref().unwrap_or(path) } else { path };
    Ok((open_path(path, if test { Split::Test } else { Split::Train })?, limit))
}

/// A backbone whose values are not filled.
fn empty(config: &BackboneConfig) -> Result<(ParamStore, Backbone)> {
    let mut store = ParamStore::new();
    let backbone = Backbone::new(&mut store.builder().pp(Backbone::PREFIX), config)?;
    Ok((store, backbone))
}

/// A backbone with the values of `weights`.
fn fixed(config: &BackboneConfig, weights: &Weights) -> Result<ParamStore> {
    let (mut store, _) = empty(config)?;
    match weights {
        Weights::File(path) => {
            load_backbone(&mut store, config.family(), path)?;
        }
        Weights::Params(from) => {
            copy(from, &mut store)?;
            if let Some((_, p)) = store.iter().find(|(_, p)| from.find(p.name()).is_none()) {
                return Err(Error::checkpoint("the given parameters lack this one").with_key(p.name()));
            }
        }
        Weights::Scratch => {}
    }
    Ok(store)
}

/// Copies the values of a backbone by name.
fn copy(from: &ParamStore, to: &mut ParamStore) -> Result<()> {
    let pairs: Vec<_> = to.iter().filter_map(|(id, p)| Some((id, from.find(p.name())?))).collect();
    pairs.into_iter().try_for_each(|(id, at)| to.set(id, from.get(at).value().clone()))
}
