//! Backbones and regressors against reference values of timm and mmseg arithmetic: features, losses, gradients,
//! running statistics. Every tensor of every file has to be used.

mod common;

use common::{Manifest, assert_close, load, max_abs};
use dtk::base::Philox;
use dtk::models::convnext::{ConvNext, ConvNextConfig};
use dtk::models::regressor::{Inner, Regressor, RegressorConfig};
use dtk::models::resnet::{Block, ResNet, ResNetConfig};
use dtk::nn::{Ctx, Gradients, ParamStore, Role};
use dtk::tape::Var;
use dtk::tensor::{SafetensorsFile, Tensor};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// One file of reference values that keeps track of what was used.
struct Reference<'a> {
    entry: &'a Value,
    file: SafetensorsFile,
    unused: RefCell<BTreeSet<String>>,
}

impl<'a> Reference<'a> {
    fn open(name: &str, entry: &'a Value) -> Option<Self> {
        let file = load(name)?;
        let unused = RefCell::new(file.names().map(String::from).collect());
        Some(Reference { entry, file, unused })
    }

    fn raw(&self, name: &str) -> Tensor {
        self.unused.borrow_mut().remove(name);
        self.file.get(name).unwrap_or_else(|e| panic!("{e}"))
    }

    /// An image-shaped tensor as NHWC, any other as it is.
    fn memory(&self, name: &str) -> Tensor {
        let t = self.raw(name);
        if t.shape().len() == 4 { t.nchw_to_nhwc().unwrap() } else { t }
    }

    fn dim(&self, name: &str, axis: usize) -> usize {
        self.file.info(name).unwrap_or_else(|| panic!("{name} is missing")).1[axis]
    }

    fn list(&self, entry: &Value) -> Vec<usize> {
        entry.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
    }

    /// Fills the store from `model.*`; its names have to be exactly the file's.
    fn load(&self, store: &mut ParamStore) {
        store.init(1).unwrap();
        let in_file: BTreeSet<String> =
            self.file.names().filter_map(|n| n.strip_prefix("model.")).map(String::from).collect();
        let in_store: BTreeSet<String> = store.iter().map(|(_, p)| p.name().to_string()).collect();
        assert_eq!(in_file, in_store, "keys of the file (left) and of the network");
        for name in in_file {
            let id = store.find(&name).unwrap();
            store.set_from_file(id, &self.raw(&format!("model.{name}"))).unwrap();
        }
    }

    /// What the reference code itself loses in f32, relative to the tensor's largest value. The manifest names the
    /// worst tensors; the least of these bounds all others.
    fn f32_error(&self, name: &str) -> f64 {
        let worst = self.entry["f32_vs_f64"]["worst"].as_array().unwrap();
        let entry = worst.iter().find(|w| w["name"] == name).or(worst.last()).unwrap();
        entry["rel_to_max"].as_f64().unwrap()
    }

    /// `got` in memory layout.
    fn check(&self, name: &str, got: &Tensor) {
        let want = self.raw(name);
        let got = match (got.shape().len(), want.shape().len()) {
            (4, _) => got.nhwc_to_nchw().unwrap(),
            (0, 1) => got.reshape([1]).unwrap(),
            _ => got.clone(),
        };
        assert_eq!(got.shape(), want.shape(), "{name}");
        if let Ok(want) = want.data::<i64>() {
            assert_eq!(got.data::<i64>().unwrap(), want, "{name}");
            return;
        }
        let want = want.f32s().unwrap();
        let max = max_abs(want);
        let atol = f64::max(1e-5, 30.0 * self.f32_error(name)) * max;
        assert_close(name, got.f32s().unwrap(), want, 1e-4, atol);
    }

    /// Forward and backward in one mode. `run` gives named results for a leaf per input; those with a reference `r.*`
    /// are what the loss consists of.
    fn run(
        &self,
        mode: &str,
        store: &ParamStore,
        inputs: &[&str],
        run: impl Fn(&mut Ctx<'_>, &[Var]) -> Named,
    ) {
        let mut ctx = match mode {
            "eval" => Ctx::differentiable(store),
            "train" => Ctx::training(store, Philox::new(0)),
            _ => panic!("unknown mode {mode}"),
        };
        let leaves: Vec<Var> = inputs.iter().map(|n| ctx.leaf(self.memory(n))).collect();
        let results = run(&mut ctx, &leaves);
        let (mut loss, mut seeds) = (0.0f64, Vec::new());
        for (name, value) in results {
            self.check(&format!("{mode}.{name}"), value.tensor());
            let weight = format!("r.{name}");
            if self.file.info(&weight).is_some() {
                let r = self.memory(&weight);
                let pairs = r.f32s().unwrap().iter().zip(value.tensor().f32s().unwrap());
                loss += pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                seeds.push((value, r));
            }
        }
        self.check(&format!("{mode}.loss"), &Tensor::full([1], loss as f32));
        let mut grads = ctx.backward_from(seeds).unwrap();
        for (name, leaf) in inputs.iter().zip(&leaves) {
            self.check(&format!("{mode}.grad.{name}"), &grads.take(leaf).unwrap());
        }
        for (id, p) in store.iter().filter(|(_, p)| p.role() == Role::Parameter) {
            let name = format!("{mode}.grad.param.{}", p.name());
            self.check(&name, &grads.take_param(id).unwrap_or_else(|| panic!("{name}: none")));
        }
        self.check_buffers(mode, store, &grads);
    }

    fn check_buffers(&self, mode: &str, store: &ParamStore, grads: &Gradients) {
        let expected = store.iter().filter(|(_, p)| p.role() == Role::Buffer).count();
        assert_eq!(grads.buffers().len(), if mode == "train" { expected } else { 0 }, "{mode}: buffers");
        for (id, value) in grads.buffers() {
            self.check(&format!("{mode}.after.{}", store.get(*id).name()), value);
        }
    }

    fn modes(&self) -> Vec<&str> {
        self.entry["modes"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect()
    }

    fn finish(self, name: &str) {
        let left = self.unused.into_inner();
        assert!(left.is_empty(), "{name}: tensors that no check used: {left:?}");
    }
}

type Named = Vec<(String, Var)>;

/// Runs `check` on every file of a section.
fn for_files(section: &str, check: impl Fn(&Reference<'_>)) {
    let Some(manifest) = Manifest::open() else { return };
    let mut found = false;
    for (name, entry) in manifest.0["files"].as_object().expect("`files` of the manifest is an object") {
        if entry["section"] == section
            && let Some(reference) = Reference::open(name, entry)
        {
            found = true;
            check(&reference);
            reference.finish(name);
        }
    }
    if !found {
        eprintln!("skipped: the reference values hold no file of section {section}");
    }
}

/// Checks a backbone in all modes: features, then the head.
fn backbone(
    r: &Reference<'_>,
    store: &ParamStore,
    features: impl Fn(&mut Ctx<'_>, &Var) -> Vec<Var>,
    head: impl Fn(&mut Ctx<'_>, &Var) -> Var,
) {
    for mode in r.modes() {
        r.run(mode, store, &["x"], |ctx, x| {
            let maps = features(ctx, &x[0]);
            let logits = head(ctx, &maps[3]);
            let named = maps.into_iter().enumerate().map(|(k, f)| (format!("feat.{}", k + 1), f));
            named.chain([("logits".to_string(), logits)]).collect()
        });
    }
}

fn four(v: Vec<usize>) -> [usize; 4] {
    v.try_into().expect("four stages")
}

#[test]
fn resnet() {
    for_files("resnet", |r| {
        let kwargs = &r.entry["kwargs"];
        let bottleneck = r.file.info("model.layer1.0.conv3.weight").is_some();
        for recompute in [false, true] {
            let config = ResNetConfig {
                block: if bottleneck { Block::Bottleneck } else { Block::Basic },
                layers: four(r.list(&kwargs["layers"])),
                channels: four(r.list(&kwargs["channels"])),
                stem_width: r.dim("model.conv1.weight", 0),
                num_classes: kwargs["num_classes"].as_u64().unwrap() as usize,
                recompute,
                ..ResNetConfig::default()
            };
            let mut store = ParamStore::new();
            let model = ResNet::new(&mut store.builder(), &config).unwrap();
            r.load(&mut store);
            backbone(
                r,
                &store,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn convnext() {
    for_files("convnext", |r| {
        let kwargs = &r.entry["kwargs"];
        for recompute in [false, true] {
            let config = ConvNextConfig {
                depths: four(r.list(&kwargs["depths"])),
                dims: four(r.list(&kwargs["dims"])),
                num_classes: kwargs["num_classes"].as_u64().unwrap() as usize,
                recompute,
                ..ConvNextConfig::default()
            };
            let mut store = ParamStore::new();
            let model = ConvNext::new(&mut store.builder(), &config).unwrap();
            r.load(&mut store);
            backbone(
                r,
                &store,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn fpn_ppm() {
    for_files("fpn_ppm", |r| {
        let levels: Vec<usize> = (2..=5).collect();
        let inputs: Vec<String> = levels.iter().map(|l| format!("x.{l}")).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let config = RegressorConfig {
            channels: r.entry["channels"].as_u64().unwrap() as usize,
            fpn_conv_on_top: r.entry["fpn_conv_on_top"].as_bool().unwrap(),
            pool_scales: r.list(&r.entry["pool_scales"]),
            ..RegressorConfig::default()
        };
        let in_channels: Vec<usize> = inputs.iter().map(|n| r.dim(n, 1)).collect();
        let out_channels = r.list(&r.entry["out_channels"]);
        let mut store = ParamStore::new();
        let model = Regressor::new(&mut store.builder(), &config, &in_channels, &out_channels).unwrap();
        r.load(&mut store);
        for mode in r.modes() {
            r.run(mode, &store, &inputs, |ctx, x| {
                let mut named = Named::new();
                let maps = model
                    .forward_observed(ctx, x, &mut |inner, v| {
                        let name = match inner {
                            Inner::Ppm => "ppm".to_string(),
                            Inner::TopDown(i) => format!("topdown.{}", levels[i]),
                        };
                        named.push((name, v.clone()));
                    })
                    .unwrap();
                named.extend(maps.into_iter().zip(&levels).map(|(m, l)| (format!("y.{l}"), m)));
                named
            });
        }
    });
}
