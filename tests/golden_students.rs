//! Backbones and regressors against reference values of timm and mmseg arithmetic: features, losses, gradients,
//! running statistics. Every tensor of every file has to be used.

mod common;

use common::{Golden, Tolerance, counts, for_section};
use dtk::base::Philox;
use dtk::models::convnext::{ConvNext, ConvNextConfig};
use dtk::models::regressor::{Inner, Regressor, RegressorConfig};
use dtk::models::resnet::{Block, ResNet, ResNetConfig};
use dtk::nn::{Ctx, Gradients, ParamStore, Role};
use dtk::tape::Var;
use dtk::tensor::Tensor;
use std::collections::BTreeSet;

/// Fills the store from `model.*`; its names have to be exactly the file's.
fn load(golden: &Golden, store: &mut ParamStore) {
    let in_file: BTreeSet<String> = golden.suffixes("model.").into_iter().collect();
    let in_store: BTreeSet<String> = store.iter().map(|(_, p)| p.name().to_string()).collect();
    assert_eq!(in_file, in_store, "{}: keys of the file (left) and of the network", golden.name);
    for name in in_file {
        let id = store.find(&name).unwrap();
        store.set_from_file(id, &golden.get(&format!("model.{name}"))).unwrap();
    }
}

/// Forward and backward in one mode. `run` gives named results for a leaf per input; those with a reference `r.*`
/// are what the loss consists of.
fn run_mode(
    golden: &Golden,
    mode: &str,
    store: &ParamStore,
    inputs: &[String],
    run: impl Fn(&mut Ctx<'_>, &[Var]) -> Named,
) {
    let mut ctx = match mode {
        "eval" => Ctx::differentiable(store),
        "train" => Ctx::training(store, Philox::new(0)),
        _ => panic!("{}: unknown mode {mode}", golden.name),
    };
    let check = |name: &str, got: &Tensor| golden.check(name, got, Tolerance::default());
    let leaves: Vec<Var> = inputs.iter().map(|n| ctx.leaf(golden.memory(n))).collect();
    let results = run(&mut ctx, &leaves);
    let (mut loss, mut size, mut seeds) = (0.0, 0.0, Vec::new());
    for (name, value) in results {
        check(&format!("{mode}.{name}"), value.tensor());
        let weight = format!("r.{name}");
        if golden.has(&weight) {
            let r = golden.memory(&weight);
            for (a, b) in r.f32s().unwrap().iter().zip(value.tensor().f32s().unwrap()) {
                let term = f64::from(*a) * f64::from(*b);
                loss += term;
                size += term.abs();
            }
            seeds.push((value, r));
        }
    }
    // Terms of both signs may leave little of their size.
    let tolerance = Tolerance { absolute: 1e-6 * size, ..Tolerance::default() };
    golden.check(&format!("{mode}.loss"), &Tensor::full([1], loss as f32), tolerance);
    let mut grads = ctx.backward_from(seeds).unwrap();
    for (name, leaf) in inputs.iter().zip(&leaves) {
        check(&format!("{mode}.grad.{name}"), &grads.take(leaf).unwrap());
    }
    for (id, p) in store.iter().filter(|(_, p)| p.role() == Role::Parameter) {
        let name = format!("{mode}.grad.param.{}", p.name());
        check(&name, &grads.take_param(id).unwrap_or_else(|| panic!("{name}: none")));
    }
    check_buffers(golden, mode, store, &grads);
}

fn check_buffers(golden: &Golden, mode: &str, store: &ParamStore, grads: &Gradients) {
    let expected = store.iter().filter(|(_, p)| p.role() == Role::Buffer).count();
    assert_eq!(grads.buffers().len(), if mode == "train" { expected } else { 0 }, "{mode}: buffers");
    for (id, value) in grads.buffers() {
        golden.check(&format!("{mode}.after.{}", store.get(*id).name()), value, Tolerance::default());
    }
}

fn modes(golden: &Golden) -> Vec<&str> {
    golden.entry["modes"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect()
}

/// Runs `check` on every file of a section and makes sure that nothing in it was left out.
fn for_files(section: &str, check: impl Fn(&Golden)) {
    for_section(section, |golden| {
        check(golden);
        assert_eq!(golden.unused(), Vec::<String>::new(), "{}: tensors that no check used", golden.name);
    });
}

type Named = Vec<(String, Var)>;

/// Checks a backbone in all modes: features, then the head.
fn backbone(
    golden: &Golden,
    store: &ParamStore,
    features: impl Fn(&mut Ctx<'_>, &Var) -> Vec<Var>,
    head: impl Fn(&mut Ctx<'_>, &Var) -> Var,
) {
    for mode in modes(golden) {
        run_mode(golden, mode, store, &["x".to_string()], |ctx, x| {
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
fn golden_resnet() {
    for_files("resnet", |golden| {
        let kwargs = &golden.entry["kwargs"];
        let bottleneck = golden.has("model.layer1.0.conv3.weight");
        for recompute in [false, true] {
            let config = ResNetConfig {
                block: if bottleneck { Block::Bottleneck } else { Block::Basic },
                layers: four(counts(&kwargs["layers"])),
                channels: four(counts(&kwargs["channels"])),
                stem_width: golden.shape("model.conv1.weight")[0],
                num_classes: kwargs["num_classes"].as_u64().unwrap() as usize,
                recompute,
                ..ResNetConfig::default()
            };
            let mut store = ParamStore::new();
            let model = ResNet::new(&mut store.builder(), &config).unwrap();
            load(golden, &mut store);
            backbone(
                golden,
                &store,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn golden_convnext() {
    for_files("convnext", |golden| {
        let kwargs = &golden.entry["kwargs"];
        for recompute in [false, true] {
            let config = ConvNextConfig {
                depths: four(counts(&kwargs["depths"])),
                dims: four(counts(&kwargs["dims"])),
                num_classes: kwargs["num_classes"].as_u64().unwrap() as usize,
                recompute,
                ..ConvNextConfig::default()
            };
            let mut store = ParamStore::new();
            let model = ConvNext::new(&mut store.builder(), &config).unwrap();
            load(golden, &mut store);
            backbone(
                golden,
                &store,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn golden_fpn_ppm() {
    for_files("fpn_ppm", |golden| {
        // Level numbers run from fine to coarse.
        let mut levels: Vec<usize> = golden.suffixes("x.").iter().map(|l| l.parse().unwrap()).collect();
        levels.sort_unstable();
        let inputs: Vec<String> = levels.iter().map(|l| format!("x.{l}")).collect();
        let config = RegressorConfig {
            channels: golden.entry["channels"].as_u64().unwrap() as usize,
            fpn_conv_on_top: golden.entry["fpn_conv_on_top"].as_bool().unwrap(),
            pool_scales: counts(&golden.entry["pool_scales"]),
            ..RegressorConfig::default()
        };
        let in_channels: Vec<usize> = inputs.iter().map(|n| golden.shape(n)[1]).collect();
        let out_channels = counts(&golden.entry["out_channels"]);
        let mut store = ParamStore::new();
        let model = Regressor::new(&mut store.builder(), &config, &in_channels, &out_channels).unwrap();
        load(golden, &mut store);
        for mode in modes(golden) {
            run_mode(golden, mode, &store, &inputs, |ctx, x| {
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
