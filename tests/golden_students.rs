//! Backbones and regressors against reference values of timm and mmseg arithmetic: features, losses, gradients,
//! running statistics. Every tensor of every file has to be used.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{Golden, Tolerance, counts, for_section};
use dtk::base::{DType, Philox};
use dtk::gpu::Gpu;
use dtk::models::convnext::{ConvNext, ConvNextConfig};
use dtk::models::regressor::{Inner, Regressor, RegressorConfig};
use dtk::models::resnet::{Block, ResNet, ResNetConfig};
use dtk::nn::{Ctx, ParamStore, Role};
use dtk::ops::Offload;
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

/// Forward and backward in one mode: named values with how far each may be off. `run` gives named results for a leaf per
/// input; those with a reference `r.*` are what the loss consists of.
fn evaluate(
    golden: &Golden,
    mode: &str,
    store: &ParamStore,
    inputs: &[String],
    offload: Option<Offload>,
    run: impl Fn(&mut Ctx<'_>, &[Var]) -> Named,
) -> Vec<(String, Tensor, Tolerance)> {
    let mut ctx = match mode {
        "eval" => Ctx::differentiable(store),
        "train" => Ctx::training(store, Philox::new(0)),
        _ => panic!("{}: unknown mode {mode}", golden.name),
    };
    if let Some(offload) = offload {
        ctx = ctx.offload(offload);
    }
    let mut all = Vec::new();
    let mut note = |name: String, t: &Tensor, tolerance| all.push((name, t.clone(), tolerance));
    let leaves: Vec<Var> = inputs.iter().map(|n| ctx.leaf(golden.memory(n))).collect();
    let results = run(&mut ctx, &leaves);
    let (mut loss, mut size, mut seeds) = (0.0, 0.0, Vec::new());
    for (name, value) in results {
        note(format!("{mode}.{name}"), value.tensor(), Tolerance::default());
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
    note(format!("{mode}.loss"), &Tensor::full([1], loss as f32), tolerance);
    let mut grads = ctx.backward_from(seeds).unwrap();
    for (name, leaf) in inputs.iter().zip(&leaves) {
        note(format!("{mode}.grad.{name}"), &grads.take(leaf).unwrap(), Tolerance::default());
    }
    for (id, p) in store.iter().filter(|(_, p)| p.role() == Role::Parameter) {
        let name = format!("{mode}.grad.param.{}", p.name());
        let g = grads.take_param(id).unwrap_or_else(|| panic!("{name}: none"));
        note(name, &g, Tolerance::default());
    }
    let expected = store.iter().filter(|(_, p)| p.role() == Role::Buffer).count();
    assert_eq!(grads.buffers().len(), if mode == "train" { expected } else { 0 }, "{mode}: buffers");
    for (id, value) in grads.buffers() {
        note(format!("{mode}.after.{}", store.get(*id).name()), value, Tolerance::default());
    }
    all
}

/// Checks a network in one mode: on the host, or on a device, there in f32 and then in bf16.
fn run_mode(
    golden: &Golden,
    mode: &str,
    store: &ParamStore,
    inputs: &[String],
    device: Option<&Gpu>,
    run: impl Fn(&mut Ctx<'_>, &[Var]) -> Named,
) {
    let wide = device.map(|gpu| Offload::to(gpu, DType::F32));
    for (name, value, tolerance) in evaluate(golden, mode, store, inputs, wide, &run) {
        golden.check(&name, &value, tolerance);
    }
    let Some(gpu) = device else { return };
    // The loss is a sum that cancels: its error is chance.
    let rounded = |offload| -> Vec<(String, Tensor)> {
        let all = evaluate(golden, mode, store, inputs, Some(offload), &run).into_iter();
        let kept = all.filter(|(name, ..)| golden.has(name) && !name.ends_with(".loss"));
        kept.map(|(name, value, _)| (name, value)).filter(|(_, t)| t.dtype() == DType::F32).collect()
    };
    golden.check_rounded(&rounded(Offload::to(gpu, DType::Bf16)), &rounded(Offload::rounding(DType::Bf16)));
    gpu::clean_after_launches(gpu);
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
    device: Option<&Gpu>,
    features: impl Fn(&mut Ctx<'_>, &Var) -> Vec<Var>,
    head: impl Fn(&mut Ctx<'_>, &Var) -> Var,
) {
    for mode in modes(golden) {
        run_mode(golden, mode, store, &["x".to_string()], device, |ctx, x| {
            let maps = features(ctx, &x[0]);
            let logits = head(ctx, &maps[3]);
            let named = maps.into_iter().enumerate().map(|(k, f)| (format!("feat.{}", k + 1), f));
            named.chain([("logits".to_string(), logits)]).collect()
        });
    }
}

/// Whether blocks are recomputed: on a device, where it takes long, only not.
fn ways(device: Option<&Gpu>) -> Vec<bool> {
    if device.is_some() { vec![false] } else { vec![false, true] }
}

fn four(v: Vec<usize>) -> [usize; 4] {
    v.try_into().expect("four stages")
}

fn check_resnet(device: Option<&Gpu>) {
    for_files("resnet", |golden| {
        let kwargs = &golden.entry["kwargs"];
        let bottleneck = golden.has("model.layer1.0.conv3.weight");
        for recompute in ways(device) {
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
                device,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn golden_resnet() {
    check_resnet(None);
}

#[test]
fn golden_resnet_on_a_device() {
    let Some(gpu) = gpu::device() else { return };
    check_resnet(Some(&gpu));
}

fn check_convnext(device: Option<&Gpu>) {
    for_files("convnext", |golden| {
        let kwargs = &golden.entry["kwargs"];
        for recompute in ways(device) {
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
                device,
                |ctx, x| model.features(ctx, x).unwrap(),
                |ctx, top| model.forward_head(ctx, top).unwrap(),
            );
        }
    });
}

#[test]
fn golden_convnext() {
    check_convnext(None);
}

#[test]
fn golden_convnext_on_a_device() {
    let Some(gpu) = gpu::device() else { return };
    check_convnext(Some(&gpu));
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
            run_mode(golden, mode, &store, &inputs, None, |ctx, x| {
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
