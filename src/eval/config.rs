//! What is evaluated, and how: the section `[eval]` of a recipe.

use crate::data::Amount;
use crate::error::{Error, Result};
use crate::models::heads::{FcnConfig, UperConfig};
use crate::optim::{AdamWConfig, LrConfig, OptimizerConfig, ScheduleConfig, SgdConfig, Span};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A way of measuring a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Weighted nearest neighbours among the labelled images; nothing is trained.
    Knn,
    /// A linear classifier on the frozen backbone's pooled features.
    Linear,
    /// A segmentation readout on the frozen backbone's maps.
    SegFrozen,
    /// Backbone and segmentation head, trained together.
    SegFinetune,
    /// Backbone and classifier, trained together.
    Finetune,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 5] =
        [Protocol::Knn, Protocol::Linear, Protocol::SegFrozen, Protocol::SegFinetune, Protocol::Finetune];

    /// Whether it needs masks; the others need labels.
    pub fn segments(self) -> bool {
        matches!(self, Protocol::SegFrozen | Protocol::SegFinetune)
    }

    /// Whether the backbone is frozen.
    pub fn is_frozen(self) -> bool {
        matches!(self, Protocol::Knn | Protocol::Linear | Protocol::SegFrozen)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Knn => "knn",
            Protocol::Linear => "linear",
            Protocol::SegFrozen => "seg_frozen",
            Protocol::SegFinetune => "seg_finetune",
            Protocol::Finetune => "finetune",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    /// Reads the name that `Display` writes.
    fn from_str(s: &str) -> Result<Self> {
        Protocol::ALL.into_iter().find(|p| p.to_string() == s).ok_or_else(|| {
            let all: Vec<_> = Protocol::ALL.iter().map(Protocol::to_string).collect();
            Error::usage(format!("there is no evaluation `{s}`"))
                .with_remedy(format!("choose among {}", all.join(", ")))
        })
    }
}

/// An evaluation. In a recipe every key may be left out, at any depth; a table with a `name` replaces another one as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The labelled images and the test images.
    pub data: EvalData,
    /// What is measured.
    pub protocols: Vec<Protocol>,
    /// With how many labelled images: counts, or shares such as `"10 %"`. Chosen by seed, balanced over classes where the
    /// images have labels; fewer are always a part of more.
    pub labels: Vec<Amount>,
    /// How many seeds.
    pub seeds: u64,
    /// The first one; the others count on from it.
    pub first_seed: u64,
    /// Images per pass through a frozen backbone, and per pass of a test.
    pub batch: usize,
    /// The most memory that decoded images and cached feature maps may take, in MiB each. What does not fit is computed anew
    /// whenever it is needed; results do not depend on it.
    pub cache_mib: usize,
    /// While pretraining, measure `knn` on a part of the test images after every so many steps; 0 for never.
    pub online_knn_every: u64,
    /// Nearest neighbours.
    pub knn: KnnConfig,
    /// The linear classifier.
    pub linear: LinearConfig,
    /// The readout on a frozen backbone.
    pub seg_frozen: SegFrozenConfig,
    /// Segmentation by fine-tuning.
    pub seg_finetune: SegFinetuneConfig,
    /// Classification by fine-tuning.
    pub finetune: FinetuneConfig,
    /// The training of a supervised backbone to compare with, on the labels of the images that others are pretrained on.
    pub supervised: FinetuneConfig,
}

/// Where labelled images and test images come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalData {
    /// The labelled images; the built-in scenes if absent. A folder with parts for training and test is enough for both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The test images, where they are elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_path: Option<PathBuf>,
    /// How many scenes there are to choose labelled ones from, without a path.
    pub scenes: usize,
    /// At most this many test images, the first ones; all of them if 0. Without a path, the number of test scenes.
    pub test_limit: usize,
    /// Height of the images that the backbone sees, in pixels; in a recipe, that of its own images if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Width, likewise. Images of other sizes are resized and cropped at the centre, their masks with them (nearest).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// The colour behind transparent parts, RGB; in a recipe, that of its own images if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<[u8; 3]>,
}

impl EvalData {
    /// Height and width; 32 pixels where neither the section nor a recipe says more.
    pub fn size(&self) -> [u32; 2] {
        [self.height, self.width].map(|n| n.unwrap_or(32))
    }

    /// The colour behind transparent parts; white where neither the section nor a recipe says more.
    pub fn behind(&self) -> [u8; 3] {
        self.background.unwrap_or([255; 3])
    }
}

/// A training of a head or of everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitConfig {
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Peak of the learning rate.
    pub lr: LrConfig,
    /// Its course.
    pub schedule: ScheduleConfig,
    /// Images per step; all of them where there are fewer.
    pub batch: usize,
    /// Length: a number of steps, or `"90 epochs"` of the labelled images.
    pub length: Span,
}

/// Weighted nearest neighbours (Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbours that vote; all of them where there are fewer.
    pub k: usize,
    /// A neighbour of cosine similarity s has the weight exp(s / temperature).
    pub temperature: f64,
    /// Which of the four features is pooled, 1 (fine) to 4 (coarse).
    pub level: usize,
}

/// A linear classifier on the frozen backbone in inference mode, as in SimSiam's protocol: normal initial weights of
/// deviation 0.01, cosine schedule. Without augmentation, so that features are computed once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Which of the four features is pooled, 1 (fine) to 4 (coarse).
    pub level: usize,
    /// Bring every feature to mean 0 and variance 1 over the labelled images first (a batch norm without affine part, as in
    /// MAE's protocol), so that one learning rate fits backbones of any scale. SimSiam itself does not.
    pub standardize: bool,
    /// Its training.
    pub fit: FitConfig,
}

/// Which features a readout sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Levels {
    /// The coarsest one, as FCN heads do.
    Last,
    /// All four, resized to the finest and concatenated: for small images, whose coarsest map has a few pixels.
    All,
}

/// A segmentation readout on the frozen backbone in inference mode. Without augmentation, so that maps are computed once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegFrozenConfig {
    /// What it sees.
    pub levels: Levels,
    /// As [`LinearConfig::standardize`], for the channels of every level.
    pub standardize: bool,
    /// The readout.
    pub head: FcnConfig,
    /// Its training.
    pub fit: FitConfig,
}

/// The head of a segmentation network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum SegHead {
    /// UPerNet's head on all levels.
    Upernet(UperConfig),
    /// An FCN head on all levels, with kernel 1.
    Fcn(FcnConfig),
}

/// Segmentation with everything trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegFinetuneConfig {
    /// The head.
    pub head: SegHead,
    /// Weight of the loss of an auxiliary FCN head (one 3x3 convolution) on the third level; 0 for none.
    pub auxiliary: f64,
    /// Mirror images and masks with probability 1/2.
    pub flip: bool,
    /// Its training.
    pub fit: FitConfig,
}

/// Classification with everything trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Mirror images with probability 1/2.
    pub flip: bool,
    /// Share of the target that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// Its training.
    pub fit: FitConfig,
}

fn cosine() -> ScheduleConfig {
    ScheduleConfig::Cosine { warmup: Span::Steps(0), warmup_lr_init: 0.0, lr_min: 0.0, warmup_prefix: true }
}

fn adamw(lr: f64, weight_decay: f64, batch: usize, steps: u64) -> FitConfig {
    FitConfig {
        optimizer: OptimizerConfig::AdamW(AdamWConfig { weight_decay, ..AdamWConfig::default() }),
        lr: LrConfig::Value(lr),
        schedule: cosine(),
        batch,
        length: Span::Steps(steps),
    }
}

impl Default for EvalConfig {
    /// Nearest neighbours, linear classifier and frozen readout with all labels, three seeds, sized for small images.
    fn default() -> Self {
        let readout = FcnConfig { channels: 64, convs: 1, kernel: 1, concat_input: false, dropout: 0.0 };
        EvalConfig {
            data: EvalData {
                path: None,
                test_path: None,
                scenes: 2000,
                test_limit: 1000,
                height: None,
                width: None,
                background: None,
            },
            protocols: vec![Protocol::Knn, Protocol::Linear, Protocol::SegFrozen],
            labels: vec![Amount::Percent(100.0)],
            seeds: 3,
            first_seed: 0,
            batch: 64,
            cache_mib: 1024,
            online_knn_every: 0,
            knn: KnnConfig { k: 20, temperature: 0.07, level: 4 },
            linear: LinearConfig {
                level: 4,
                standardize: true,
                fit: FitConfig {
                    optimizer: OptimizerConfig::Sgd(SgdConfig::default()),
                    lr: LrConfig::Value(0.02),
                    schedule: cosine(),
                    batch: 256,
                    length: Span::Steps(300),
                },
            },
            seg_frozen: SegFrozenConfig {
                levels: Levels::All,
                standardize: true,
                head: readout.clone(),
                fit: adamw(5e-3, 0.01, 32, 200),
            },
            seg_finetune: SegFinetuneConfig {
                head: SegHead::Fcn(readout),
                auxiliary: 0.0,
                flip: true,
                fit: adamw(1e-3, 0.05, 32, 300),
            },
            finetune: FinetuneConfig { flip: true, label_smoothing: 0.0, fit: adamw(1e-3, 0.05, 64, 300) },
            supervised: FinetuneConfig { flip: true, label_smoothing: 0.1, fit: adamw(2e-3, 0.05, 64, 600) },
        }
    }
}

impl EvalConfig {
    /// A configuration that may leave out any key, over the default one.
    ///
    /// # Errors
    /// An unknown key or a value of a wrong type.
    pub fn over_defaults(given: Map<String, Value>) -> Result<Self> {
        let bad = |e: serde_json::Error| Error::usage(e.to_string()).with_key("eval");
        let mut all = serde_json::to_value(EvalConfig::default()).map_err(bad)?;
        merge(&mut all, Value::Object(given));
        serde_json::from_value(all).map_err(bad)
    }

    /// For serde: an optional section read by [`EvalConfig::over_defaults`].
    ///
    /// # Errors
    /// As there.
    pub fn section<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Self>, D::Error> {
        let given = Option::<Map<String, Value>>::deserialize(d)?;
        given.map(Self::over_defaults).transpose().map_err(serde::de::Error::custom)
    }

    /// Checks what the parts cannot check alone.
    ///
    /// # Errors
    /// [`Error::usage`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let fail = |key: &str, what: &str, remedy: &str| {
            Err(Error::usage(what.to_string()).with_key(format!("eval.{key}")).with_remedy(remedy))
        };
        if self.protocols.is_empty() {
            return fail("protocols", "there is nothing to measure", "name knn, linear, seg_frozen, ...");
        }
        if self.labels.is_empty() {
            return fail("labels", "no number of labelled images is given", "write labels = [\"100 %\"]");
        }
        if self.seeds == 0 || self.batch == 0 {
            return fail("seeds", "seeds and batch must be at least 1", "raise them to 1");
        }
        let d = &self.data;
        if d.size().contains(&0) {
            return fail("data.height", "images have no pixels", "give height and width");
        }
        if d.path.is_none() && (d.scenes == 0 || d.test_limit == 0) {
            return fail(
                "data.scenes",
                "there are no scenes",
                "give data.path, or at least one scene for each part",
            );
        }
        if self.knn.k == 0 || !(self.knn.temperature > 0.0 && self.knn.temperature.is_finite()) {
            return fail("knn", "k and temperature must be positive", "the usual values are 20 and 0.07");
        }
        let levels = [("knn.level", self.knn.level), ("linear.level", self.linear.level)];
        if let Some((key, _)) = levels.iter().find(|(_, l)| !(1..=4).contains(l)) {
            return fail(key, "there are four levels", "choose 1 (fine) to 4 (coarse)");
        }
        let smoothing = [self.finetune.label_smoothing, self.supervised.label_smoothing];
        if !smoothing.iter().all(|s| (0.0..1.0).contains(s)) {
            return fail("finetune.label_smoothing", "is not from 0 to below 1", "0.1 is usual, 0 is none");
        }
        if !(self.seg_finetune.auxiliary >= 0.0 && self.seg_finetune.auxiliary.is_finite()) {
            return fail("seg_finetune.auxiliary", "the weight is negative", "0.4 is usual, 0 is none");
        }
        let fits = [
            ("linear.fit", &self.linear.fit),
            ("seg_frozen.fit", &self.seg_frozen.fit),
            ("seg_finetune.fit", &self.seg_finetune.fit),
            ("finetune.fit", &self.finetune.fit),
            ("supervised.fit", &self.supervised.fit),
        ];
        for (key, f) in fits {
            f.optimizer.build().map_err(|e| e.with_key(format!("eval.{key}.optimizer")))?;
            if f.batch == 0 {
                return fail(key, "a batch of no images", "set batch to at least 1");
            }
            f.lr.resolve(f.batch)?;
        }
        Ok(())
    }
}

/// Puts `given` over `base`: tables key by key, everything else as a whole; a table with a name replaces one with another name.
fn merge(base: &mut Value, given: Value) {
    match (base, given) {
        (Value::Object(base), Value::Object(given)) => {
            if given.get("name").is_some_and(|n| Some(n) != base.get("name")) {
                *base = given;
                return;
            }
            for (key, value) in given {
                match base.get_mut(&key) {
                    Some(old) => merge(old, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, given) => *base = given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Recipe {
        #[serde(default, deserialize_with = "EvalConfig::section", skip_serializing_if = "Option::is_none")]
        eval: Option<EvalConfig>,
    }

    fn read(text: &str) -> Result<Option<EvalConfig>, toml::de::Error> {
        toml::from_str::<Recipe>(text).map(|r| r.eval)
    }

    #[test]
    fn any_key_may_be_left_out() {
        assert_eq!(read("").unwrap(), None);
        let standard = EvalConfig::default();
        standard.validate().unwrap();
        assert_eq!(read("[eval]").unwrap(), Some(standard.clone()));
        let text = "[eval]\nlabels = [40, \"10 %\"]\nseg_frozen.fit.length = 7\nlinear.fit.optimizer = { name = \"lars\", \
                    apex = true }\nseg_finetune.head = { name = \"upernet\", channels = 32 }";
        let c = read(text).unwrap().unwrap();
        assert_eq!(c.labels, [Amount::Count(40), Amount::Percent(10.0)]);
        assert_eq!((c.seg_frozen.fit.length, c.seg_frozen.fit.batch), (Span::Steps(7), 32));
        assert!(matches!(&c.linear.fit.optimizer, OptimizerConfig::Lars(l) if l.apex && l.momentum == 0.9));
        assert!(matches!(&c.seg_finetune.head, SegHead::Upernet(u) if u.channels == 32));
        assert_eq!(c.knn, standard.knn);
        let recipe = Recipe { eval: Some(c) };
        assert_eq!(toml::from_str::<Recipe>(&toml::to_string(&recipe).unwrap()).unwrap(), recipe);
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, says) in [
            ("labels = [0]", "no number of labelled images"),
            ("protocols = [\"knnn\"]", "knnn"),
            ("seedz = 3", "seedz"),
            ("knn.kk = 3", "kk"),
            ("linear.fit.optimizer = { name = \"adam\" }", "adam"),
        ] {
            let e = read(&format!("[eval]\n{text}")).unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
        for (text, key) in [
            ("seeds = 0", "eval.seeds"),
            ("labels = []", "eval.labels"),
            ("protocols = []", "eval.protocols"),
            ("knn.level = 5", "eval.knn.level"),
            ("knn.temperature = 0.0", "eval.knn"),
            ("finetune.fit.batch = 0", "eval.finetune.fit"),
            ("data.height = 0", "eval.data.height"),
            ("data.scenes = 0", "eval.data.scenes"),
            ("seg_finetune.auxiliary = -1.0", "eval.seg_finetune.auxiliary"),
        ] {
            let e = read(&format!("[eval]\n{text}")).unwrap().unwrap().validate().unwrap_err();
            assert!(e.is_usage() && e.key() == Some(key), "{text}: {e}");
        }
        assert!("seg".parse::<Protocol>().unwrap_err().to_string().contains("seg_frozen"));
        for p in Protocol::ALL {
            assert_eq!(p.to_string().parse::<Protocol>().unwrap(), p);
        }
    }
}
