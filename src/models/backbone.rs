//! The student's backbone: a [`ResNet`] or a [`ConvNext`] behind one interface.

use super::convnext::{ConvNext, ConvNextConfig};
use super::resnet::{ResNet, ResNetConfig};
use crate::error::{Error, Result};
use crate::nn::{Builder, Ctx};
use crate::tape::Var;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The largest width, depth or number of classes that configurations accept; beyond it lies a typing error.
pub(super) const MAX_SIZE: usize = 1 << 17;

/// ImageNet's channel means, for RGB values in 0..1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's channel standard deviations, for RGB values in 0..1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Checks that all of `sizes` are from 1 to [`MAX_SIZE`].
pub(super) fn check_sizes<'a>(
    model: &str,
    what: &str,
    sizes: impl IntoIterator<Item = &'a usize>,
) -> Result<()> {
    match sizes.into_iter().find(|&&s| s == 0 || s > MAX_SIZE) {
        None => Ok(()),
        Some(s) => Err(Error::usage(format!("{model}: {what} contain {s}"))
            .with_remedy(format!("choose numbers from 1 to {MAX_SIZE}"))),
    }
}

/// The error for asking a network without a classifier for its logits.
pub(super) fn no_head(model: &str) -> Error {
    Error::usage(format!("{model}: the network was built without a classifier"))
        .with_remedy("set `num_classes` in the backbone's configuration")
}

/// A family of backbones. Recipes differ between them: convolutional networks with batch norm train with LAMB,
/// ConvNeXt with AdamW, and heads put a layer norm on ConvNeXt's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Residual networks with batch norm.
    ResNet,
    /// ConvNeXt.
    ConvNext,
}

/// The configuration of one architecture.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// A residual network.
    ResNet(ResNetConfig),
    /// A ConvNeXt.
    ConvNext(ConvNextConfig),
}

/// A named architecture with overrides. In a recipe: `{ name = "resnet50", recompute = true }`; every other key is a
/// field of [`ResNetConfig`] or [`ConvNextConfig`] and replaces the named constructor's value. Written out again, all
/// fields are listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct BackboneConfig {
    name: String,
    /// The architecture after overrides.
    pub arch: Architecture,
}

/// Every name a [`BackboneConfig`] can start from.
pub const NAMES: &[&str] = &[
    "resnet_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
];

impl BackboneConfig {
    /// A named architecture without a classifier. `resnet_small` is [`ResNetConfig::small`] with width 32.
    ///
    /// # Errors
    /// The name is not in [`NAMES`].
    pub fn named(name: &str) -> Result<Self> {
        let arch = match name {
            "resnet_small" => Architecture::ResNet(ResNetConfig::small(32)),
            "resnet18" => Architecture::ResNet(ResNetConfig::resnet18()),
            "resnet34" => Architecture::ResNet(ResNetConfig::resnet34()),
            "resnet50" => Architecture::ResNet(ResNetConfig::resnet50()),
            "resnet101" => Architecture::ResNet(ResNetConfig::resnet101()),
            "convnext_tiny" => Architecture::ConvNext(ConvNextConfig::tiny()),
            "convnext_small" => Architecture::ConvNext(ConvNextConfig::small()),
            "convnext_base" => Architecture::ConvNext(ConvNextConfig::base()),
            "convnext_large" => Architecture::ConvNext(ConvNextConfig::large()),
            _ => {
                return Err(Error::usage(format!("unknown backbone `{name}`"))
                    .with_key("name")
                    .with_remedy(format!("choose one of {}", NAMES.join(", "))));
            }
        };
        Ok(BackboneConfig { name: name.into(), arch })
    }

    /// The name it started from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with a classifier of `n` outputs; 0 for none.
    pub fn with_classes(mut self, n: usize) -> Self {
        match &mut self.arch {
            Architecture::ResNet(c) => c.num_classes = n,
            Architecture::ConvNext(c) => c.num_classes = n,
        }
        self
    }

    /// The family.
    pub fn family(&self) -> Family {
        match self.arch {
            Architecture::ResNet(_) => Family::ResNet,
            Architecture::ConvNext(_) => Family::ConvNext,
        }
    }

    /// Channels of the four features, fine to coarse.
    pub fn channels(&self) -> [usize; 4] {
        match &self.arch {
            Architecture::ResNet(c) => c.feature_channels(),
            Architecture::ConvNext(c) => c.dims,
        }
    }

    /// Input pixels per feature pixel, fine to coarse.
    pub fn strides(&self) -> [usize; 4] {
        match &self.arch {
            Architecture::ResNet(c) => c.strides(),
            Architecture::ConvNext(c) => c.strides(),
        }
    }

    /// Height and width of the four features of an input of this height and width, fine to coarse.
    pub fn feature_sizes(&self, input: [usize; 2]) -> [[usize; 2]; 4] {
        match &self.arch {
            Architecture::ResNet(c) => c.feature_sizes(input),
            Architecture::ConvNext(c) => c.feature_sizes(input),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let fields = match &self.arch {
            Architecture::ResNet(c) => serde_json::to_value(c),
            Architecture::ConvNext(c) => serde_json::to_value(c),
        };
        match fields {
            Ok(Value::Object(map)) => map,
            _ => unreachable!("a struct of numbers, arrays and names serialises to an object"),
        }
    }
}

impl TryFrom<Map<String, Value>> for BackboneConfig {
    type Error = Error;

    fn try_from(mut given: Map<String, Value>) -> Result<Self> {
        let name = match given.shift_remove("name") {
            Some(Value::String(s)) => s,
            _ => {
                return Err(Error::usage("a backbone needs a name")
                    .with_key("name")
                    .with_remedy(format!("set it to one of {}", NAMES.join(", "))));
            }
        };
        let mut config = Self::named(&name)?;
        let mut fields = config.fields();
        for (key, value) in given {
            let Some(slot) = fields.get_mut(&key) else {
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                return Err(Error::usage(format!("`{name}` has no such option"))
                    .with_key(key)
                    .with_remedy(format!("use one of {}", known.join(", "))));
            };
            *slot = value;
        }
        let fields = Value::Object(fields);
        let bad = |e: serde_json::Error| Error::usage(format!("`{name}`: {e}")).with_key("backbone");
        match &mut config.arch {
            Architecture::ResNet(c) => *c = serde_json::from_value(fields).map_err(bad)?,
            Architecture::ConvNext(c) => *c = serde_json::from_value(fields).map_err(bad)?,
        }
        Ok(config)
    }
}

impl From<BackboneConfig> for Map<String, Value> {
    fn from(c: BackboneConfig) -> Self {
        let mut map = Map::new();
        map.insert("name".into(), c.name.clone().into());
        map.extend(c.fields());
        map
    }
}

/// A convolutional backbone with four feature levels.
#[derive(Clone, Debug)]
pub enum Backbone {
    /// A residual network.
    ResNet(ResNet),
    /// A ConvNeXt.
    ConvNext(ConvNext),
}

impl Backbone {
    /// Where a student's backbone lies in its parameter store; exports drop this prefix.
    pub const PREFIX: &'static str = "backbone";

    /// Registers the parameters below `b`'s path.
    ///
    /// # Errors
    /// The configuration is out of range.
    pub fn new(b: &mut Builder<'_>, config: &BackboneConfig) -> Result<Self> {
        match &config.arch {
            Architecture::ResNet(c) => ResNet::new(b, c).map(Backbone::ResNet),
            Architecture::ConvNext(c) => ConvNext::new(b, c).map(Backbone::ConvNext),
        }
    }

    /// The outputs of the four stages, fine to coarse, for normalised RGB images `x [N, H, W, 3]`.
    ///
    /// # Errors
    /// `x` has another shape or is too small.
    pub fn features(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Vec<Var>> {
        match self {
            Backbone::ResNet(m) => m.features(ctx, x),
            Backbone::ConvNext(m) => m.features(ctx, x),
        }
    }

    /// The classifier on the coarsest feature, `[N, h, w, C]` to `[N, num_classes]`.
    ///
    /// # Errors
    /// The network was built without a classifier, or the channels do not fit.
    pub fn forward_head(&self, ctx: &mut Ctx<'_>, top: &Var) -> Result<Var> {
        match self {
            Backbone::ResNet(m) => m.forward_head(ctx, top),
            Backbone::ConvNext(m) => m.forward_head(ctx, top),
        }
    }

    /// Channels of the four features, fine to coarse.
    pub fn channels(&self) -> [usize; 4] {
        match self {
            Backbone::ResNet(m) => m.config().feature_channels(),
            Backbone::ConvNext(m) => m.config().dims,
        }
    }

    /// Input pixels per feature pixel, fine to coarse.
    pub fn strides(&self) -> [usize; 4] {
        match self {
            Backbone::ResNet(m) => m.config().strides(),
            Backbone::ConvNext(m) => m.config().strides(),
        }
    }

    /// The family.
    pub fn family(&self) -> Family {
        match self {
            Backbone::ResNet(_) => Family::ResNet,
            Backbone::ConvNext(_) => Family::ConvNext,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DType, Philox};
    use crate::nn::ParamStore;
    use crate::tensor::{Ledger, Tensor};

    fn entries(config: &BackboneConfig) -> usize {
        let mut store = ParamStore::new();
        Backbone::new(&mut store.builder(), config).unwrap();
        store.len()
    }

    #[test]
    fn tensor_counts_of_public_state_dicts() {
        let named = |n: &str| BackboneConfig::named(n).unwrap();
        for (name, with_head, without) in
            [("resnet50", 320, 318), ("resnet18", 122, 120), ("convnext_base", 344, 340)]
        {
            assert_eq!(entries(&named(name).with_classes(1000)), with_head, "{name}");
            assert_eq!(entries(&named(name)), without, "{name}");
        }
    }

    #[test]
    fn recipes_override_and_round_trip() {
        let text = "name = \"resnet50\"\nlayers = [1, 1, 1, 1]\nstem = \"no_maxpool\"\nrecompute = true";
        let c: BackboneConfig = toml::from_str(text).unwrap();
        let Architecture::ResNet(r) = &c.arch else { panic!() };
        assert_eq!((r.layers, r.channels, r.recompute), ([1; 4], [64, 128, 256, 512], true));
        assert_eq!((c.name(), c.strides()), ("resnet50", [2, 4, 8, 16]));
        for name in NAMES {
            let c = BackboneConfig::named(name).unwrap().with_classes(7);
            let text = toml::to_string(&c).unwrap();
            assert_eq!(toml::from_str::<BackboneConfig>(&text).unwrap(), c, "{text}");
        }
        let c: BackboneConfig = toml::from_str("name = \"convnext_tiny\"\ndrop_path = 0.1").unwrap();
        assert!(toml::to_string(&c).unwrap().contains("drop_path = 0.1\n"));
    }

    #[test]
    fn wrong_configurations_are_errors() {
        for (text, says) in [
            ("name = \"resnet51\"", "resnet101"),
            ("layers = [1, 1, 1, 1]", "needs a name"),
            ("name = 50", "needs a name"),
            ("name = \"resnet50\"\ndepths = [1, 1, 1, 1]", "no such option"),
            ("name = \"resnet50\"\nlayers = [1, 1]", "length"),
            ("name = \"resnet50\"\nstem = \"small\"", "no_maxpool"),
        ] {
            let e = toml::from_str::<BackboneConfig>(text).unwrap_err().to_string();
            assert!(e.contains(says), "{text}: {e}");
        }
        for text in [
            "name = \"resnet50\"\nlayers = [1, 0, 1, 1]",
            "name = \"resnet50\"\nstem_width = 0",
            "name = \"resnet50\"\nnum_classes = 1000000",
            "name = \"convnext_tiny\"\ndims = [1, 1, 1, 10000000]",
            "name = \"convnext_tiny\"\ndrop_path = 1.0",
            "name = \"convnext_tiny\"\nlayer_scale = nan",
        ] {
            let Ok(config) = toml::from_str::<BackboneConfig>(text) else { continue };
            let mut store = ParamStore::new();
            assert!(Backbone::new(&mut store.builder(), &config).unwrap_err().is_usage(), "{text}");
        }
    }

    #[test]
    fn features_have_the_announced_sizes() {
        let (small, large) = ([37, 64], [65, 97]);
        for (name, input) in
            [("resnet_small", small), ("resnet18", large), ("resnet50", [32, 32]), ("convnext_tiny", large)]
        {
            let config = BackboneConfig::named(name).unwrap().with_classes(10);
            let mut store = ParamStore::new();
            let model = Backbone::new(&mut store.builder(), &config).unwrap();
            let ledger = Ledger::new();
            let mut ctx = Ctx::training(&store, Philox::new(1)).planning(&ledger);
            let x = ctx.constant(Tensor::meta([2, input[0], input[1], 3], DType::F32, Some(&ledger)));
            let features = model.features(&mut ctx, &x).unwrap();
            let sizes = config.feature_sizes(input);
            assert_eq!(features.len(), 4);
            for ((f, [h, w]), c) in features.iter().zip(sizes).zip(config.channels()) {
                assert_eq!(&*f.shape(), &[2, h, w, c], "{name}");
            }
            let logits = model.forward_head(&mut ctx, &features[3]).unwrap();
            assert_eq!(&*logits.shape(), &[2, 10]);
        }
    }

    #[test]
    fn a_backbone_without_classifier_says_so() {
        for name in ["resnet_small", "convnext_tiny"] {
            let mut store = ParamStore::new();
            let model = Backbone::new(&mut store.builder(), &BackboneConfig::named(name).unwrap()).unwrap();
            let mut ctx = Ctx::inference(&store);
            let x = ctx.constant(Tensor::zeros([1, 1, 1, model.channels()[3]]));
            assert!(model.forward_head(&mut ctx, &x).unwrap_err().remedy().unwrap().contains("num_classes"));
        }
    }

    /// Training with and without recomputation gives the same features and, but for the order in which gradients of
    /// a block's branches are summed, the same gradients; with drop path and batch statistics.
    #[test]
    fn recomputation_changes_nothing() {
        for text in [
            "name = \"resnet_small\"\nchannels = [4, 4, 8, 8]\nstem_width = 4\nzero_init_last = false",
            "name = \"convnext_tiny\"\ndims = [4, 4, 8, 8]\ndepths = [1, 1, 2, 1]\ndrop_path = 0.5\nlayer_scale = 0.5",
        ] {
            let run = |recompute: bool| {
                let config: BackboneConfig =
                    toml::from_str(&format!("{text}\nrecompute = {recompute}")).unwrap();
                let mut store = ParamStore::new();
                let model = Backbone::new(&mut store.builder(), &config).unwrap();
                store.init(3).unwrap();
                let mut ctx = Ctx::training(&store, Philox::new(8));
                let mut v = vec![0.0; 3 * 32 * 32 * 3];
                Philox::new(5).fill_normal(&mut v);
                let x = ctx.constant(Tensor::from_vec([3, 32, 32, 3], v).unwrap());
                let features = model.features(&mut ctx, &x).unwrap();
                let values: Vec<Tensor> = features.iter().map(|f| f.tensor().clone()).collect();
                let seeds = features.into_iter().map(|f| (f.clone(), Tensor::full(f.shape(), 0.5)));
                let mut grads = ctx.backward_from(seeds.collect()).unwrap();
                let mut all: Vec<Vec<f32>> = values.iter().map(|t| t.f32s().unwrap().to_vec()).collect();
                for (id, p) in store.iter().filter(|(_, p)| p.trainable()) {
                    let g = grads.take_param(id).unwrap_or_else(|| panic!("{} has no gradient", p.name()));
                    all.push(g.into_vec().unwrap());
                }
                let updates: Vec<_> = grads.buffers().iter().map(|(id, _)| *id).collect();
                (all, updates)
            };
            let (plain, again) = (run(false), run(true));
            assert_eq!(plain.1, again.1);
            assert_eq!(plain.0[..4], again.0[..4]);
            for (a, b) in plain.0.iter().zip(&again.0) {
                let scale = a.iter().fold(0.0, |m, v| f32::max(m, v.abs()));
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * scale));
            }
        }
    }
}
