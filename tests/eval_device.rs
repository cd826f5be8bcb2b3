//! Evaluations on a CUDA device: the simulated one, or a card where `DTK_TEST_DEVICE` names one. Networks trained there are
//! those of the host within a tolerance, and the same numbers come out every time.

#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/tiny.rs"]
mod tiny;

use dtk::base::DType;
use dtk::data::{Amount, SceneConfig, Scenes};
use dtk::eval::{EvalConfig, Evaluation, Protocol, SegHead, Weights, supervise};
use dtk::gpu::Gpu;
use dtk::models::backbone::BackboneConfig;
use dtk::models::heads::UperConfig;
use dtk::nn::{ParamStore, Role};
use dtk::optim::{LrConfig, OptimizerConfig, SgdConfig, Span};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A few images of 16 pixels, a few steps of plain descent: an adaptive step would magnify what rounding leaves of a gradient.
fn config() -> EvalConfig {
    let mut c = EvalConfig::default();
    (c.data.scenes, c.data.test_limit) = (12, 6);
    (c.data.height, c.data.width) = (Some(16), Some(16));
    (c.labels, c.seeds, c.batch) = (vec![Amount::Count(8)], 1, 6);
    for fit in [
        &mut c.linear.fit,
        &mut c.seg_frozen.fit,
        &mut c.seg_finetune.fit,
        &mut c.finetune.fit,
        &mut c.supervised.fit,
    ] {
        (fit.batch, fit.length) = (4, Span::Steps(2));
        (fit.optimizer, fit.lr) = (OptimizerConfig::Sgd(SgdConfig::default()), LrConfig::Value(0.05));
    }
    c.seg_frozen.head.channels = 8;
    c.seg_finetune.head = SegHead::Upernet(UperConfig { channels: 8, ..UperConfig::default() });
    c.seg_finetune.auxiliary = 0.4;
    c
}

fn backbone() -> BackboneConfig {
    let set = ["student.backbone.channels=[8, 8, 8, 8]"];
    tiny::recipe(&set).student.backbone
}

fn trained(device: Option<(&Gpu, DType)>) -> ParamStore {
    let scenes = Scenes::new(SceneConfig { count: 8, first: 0, height: 16, width: 16 }).unwrap();
    supervise(&config(), &backbone(), Arc::new(scenes), 0, device, &mut |_| {}, &AtomicBool::new(false))
        .unwrap()
}

/// Largest difference of a tensor, relative to its norm, over all floating-point tensors of the two networks.
fn difference(a: &ParamStore, b: &ParamStore) -> f64 {
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let of = |(x, y): (&[f32], &[f32])| {
        let apart: Vec<f32> = x.iter().zip(y).map(|(x, y)| x - y).collect();
        norm(&apart) / norm(x).max(1e-2)
    };
    let floats = |p: &dtk::nn::Param| p.role() == Role::Parameter || p.value().dtype() == DType::F32;
    let pairs = a.iter().zip(b.iter()).filter(|((_, p), _)| floats(p));
    pairs
        .map(|((_, p), (_, q))| of((p.value().f32s().unwrap(), q.value().f32s().unwrap())))
        .fold(0.0, f64::max)
}

#[test]
fn training_there_is_training_here() {
    let Some(gpu) = gpu::device() else { return };
    let here = trained(None);
    let there = trained(Some((&gpu, DType::F32)));
    let apart = difference(&here, &there);
    assert!(apart < 1e-3, "{apart}");
    let start = {
        let mut c = config();
        c.supervised.fit.length = Span::Steps(0);
        let scenes = Scenes::new(SceneConfig { count: 8, first: 0, height: 16, width: 16 }).unwrap();
        supervise(&c, &backbone(), Arc::new(scenes), 0, None, &mut |_| {}, &AtomicBool::new(false)).unwrap()
    };
    // It has moved by more than that.
    assert!(difference(&start, &there) > 1e-2);
    gpu::clean_after_launches(&gpu);
}

#[test]
fn every_protocol_runs_there() {
    let Some(gpu) = gpu::device() else { return };
    let c = EvalConfig { protocols: Protocol::ALL.to_vec(), ..config() };
    let run = |device: Option<DType>| {
        let evaluation = Evaluation::new(&c).unwrap();
        let evaluation = match device {
            Some(dtype) => evaluation.on_device(&gpu, dtype),
            None => evaluation,
        };
        let rows = evaluation.run("x", &backbone(), &Weights::Scratch, &mut |_| {}, &AtomicBool::new(false));
        rows.unwrap().rows.into_iter().map(|r| (r.protocol, r.metric, r.values[0])).collect::<Vec<_>>()
    };
    let (here, there) = (run(None), run(Some(DType::F32)));
    assert_eq!(here.len(), 7);
    for (a, b) in here.iter().zip(&there) {
        assert_eq!((&a.0, &a.1), (&b.0, &b.1));
        // Six test images, or 1536 pixels of which a few lie on a border between classes.
        let allowed = if a.1 == "top1" { 0.17 } else { 0.02 };
        assert!((a.2 - b.2).abs() <= allowed, "{a:?} {b:?}");
    }
    let narrow = run(Some(DType::Bf16));
    assert!(narrow.iter().all(|(_, _, v)| (0.0..=1.0).contains(v)), "{narrow:?}");
    assert_eq!(narrow, run(Some(DType::Bf16)));
    gpu::clean_after_launches(&gpu);
}
