//! Evaluations of small backbones on scenes: every protocol runs, repeats, learns, and says what is wrong with its input.

#[path = "common/tiny.rs"]
mod tiny;

use dtk::data::{Amount, ImageSource, SceneConfig, Scenes};
use dtk::eval::{
    ConfusionMatrix, EvalConfig, EvalProgress, Evaluation, Levels, Protocol, Report, Weights, evaluate,
};
use dtk::models::backbone::BackboneConfig;
use dtk::models::heads::UperConfig;
use dtk::optim::Span;
use dtk::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Few scenes, few steps.
fn config(protocols: &[Protocol]) -> EvalConfig {
    let mut c = EvalConfig::default();
    (c.data.scenes, c.data.test_limit) = (60, 30);
    c.protocols = protocols.to_vec();
    c.labels = vec![Amount::Count(12), Amount::Percent(50.0)];
    (c.seeds, c.batch) = (2, 16);
    for fit in [&mut c.linear.fit, &mut c.seg_frozen.fit, &mut c.seg_finetune.fit, &mut c.finetune.fit] {
        (fit.batch, fit.length) = (8, Span::Steps(6));
    }
    c.seg_frozen.head.channels = 8;
    c
}

fn backbone() -> BackboneConfig {
    tiny::recipe(&[]).student.backbone
}

fn run(config: &EvalConfig, weights: Weights) -> Result<Report> {
    evaluate(config, &backbone(), weights, &mut |_| {}, &AtomicBool::new(false))
}

/// A report without the times.
fn timeless(mut report: Report) -> String {
    report.rows.iter_mut().for_each(|r| r.seconds = 0.0);
    report.to_json()
}

#[test]
fn every_protocol_reports_and_repeats() {
    let all = config(&Protocol::ALL);
    let report = run(&all, Weights::Scratch).unwrap();
    let rows: Vec<(String, String, usize)> =
        report.rows.iter().map(|r| (r.protocol.clone(), r.metric.clone(), r.labels)).collect();
    let mut want = Vec::new();
    for p in Protocol::ALL {
        for labels in [12, 30] {
            let metrics: &[&str] = if p.segments() { &["miou", "pixel_accuracy"] } else { &["top1"] };
            want.extend(metrics.iter().map(|m| (p.to_string(), m.to_string(), labels)));
        }
    }
    assert_eq!(rows, want);
    for row in &report.rows {
        assert_eq!((row.backbone.as_str(), &row.seeds[..]), ("scratch", &[0, 1][..]));
        assert!(row.values.len() == 2 && row.values.iter().all(|v| (0.0..=1.0).contains(v)), "{row:?}");
        assert_eq!(row.fraction, row.labels as f64 / 60.0);
        assert_eq!(row.classes.len(), row.per_class.len());
        assert_eq!(row.per_class.is_empty(), row.metric == "pixel_accuracy");
        if row.metric == "miou" {
            assert_eq!((row.classes[0].as_str(), row.classes.len()), ("background", 7));
        }
    }
    assert_eq!(timeless(report), timeless(run(&all, Weights::Scratch).unwrap()));
}

/// What does not fit the memory is computed anew, with the same result.
#[test]
fn results_do_not_depend_on_the_cache() {
    let mut c = config(&[Protocol::Knn, Protocol::Linear, Protocol::SegFrozen]);
    let kept = timeless(run(&c, Weights::Scratch).unwrap());
    c.cache_mib = 0;
    assert_eq!(kept, timeless(run(&c, Weights::Scratch).unwrap()));
}

/// The same weights from a file, from a store, and from scratch with the seed that they were drawn with.
#[test]
fn weights_from_everywhere_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backbone.safetensors");
    let mut store = dtk::nn::ParamStore::new();
    dtk::models::backbone::Backbone::new(&mut store.builder().pp("backbone"), &backbone()).unwrap();
    store.init(0).unwrap();
    dtk::checkpoint::save_params(&store, "backbone.", &path, &Default::default()).unwrap();
    let mut c = config(&Protocol::ALL);
    (c.seeds, c.labels) = (1, vec![Amount::Count(12)]);
    let values = |w: Weights| run(&c, w).unwrap().rows.into_iter().map(|r| r.values).collect::<Vec<_>>();
    let file = values(Weights::File(path));
    assert_eq!(file, values(Weights::Params(store)));
    assert_eq!(file, values(Weights::Scratch));
}

/// Trained long enough on few images, every training protocol beats what the most frequent answer gives.
#[test]
fn heads_learn() {
    let mut c = config(&[Protocol::SegFrozen, Protocol::SegFinetune]);
    (c.seeds, c.labels) = (1, vec![Amount::Count(40)]);
    c.seg_frozen.fit.length = Span::Steps(80);
    c.seg_finetune.fit.length = Span::Steps(60);
    let learnt = run(&c, Weights::Scratch).unwrap();
    (c.seg_frozen.fit.length, c.seg_finetune.fit.length) = (Span::Steps(0), Span::Steps(0));
    let before = run(&c, Weights::Scratch).unwrap();
    for (a, b) in learnt.rows.iter().zip(&before.rows) {
        assert!(a.mean() > b.mean() + 0.02, "{} {}: {} from {}", a.protocol, a.metric, a.mean(), b.mean());
    }
}

#[test]
fn other_heads_and_levels() {
    let mut c = config(&[Protocol::SegFrozen, Protocol::SegFinetune]);
    (c.seeds, c.labels) = (1, vec![Amount::Count(12)]);
    c.seg_frozen.levels = Levels::Last;
    c.seg_frozen.head.kernel = 3;
    c.seg_frozen.head.concat_input = true;
    c.seg_finetune.auxiliary = 0.4;
    c.seg_finetune.head = dtk::eval::SegHead::Upernet(UperConfig { channels: 8, ..UperConfig::default() });
    assert_eq!(run(&c, Weights::Scratch).unwrap().rows.len(), 4);
    c.seg_finetune.fit.batch = 1;
    let e = run(&c, Weights::Scratch).unwrap_err();
    assert!(e.is_usage() && e.key() == Some("eval.seg_finetune.fit.batch"), "{e}");
}

/// The pictures of all test images hold what the report has counted.
#[test]
fn pictures_are_the_predictions() {
    let mut c = config(&[Protocol::Knn, Protocol::SegFrozen, Protocol::SegFinetune]);
    (c.seeds, c.labels) = (1, vec![Amount::Count(12)]);
    let stop = AtomicBool::new(false);
    let evaluation = Evaluation::new(&c).unwrap();
    let (report, pictures) =
        evaluation.run_with_pictures("mine", &backbone(), &Weights::Scratch, 30, &mut |_| {}, &stop).unwrap();
    assert_eq!(pictures.len(), 60);
    let truth = Scenes::new(SceneConfig { count: 30, first: Scenes::TEST, height: 32, width: 32 }).unwrap();
    for protocol in ["seg_frozen", "seg_finetune"] {
        let mut matrix = ConfusionMatrix::new(7, None);
        let of_protocol: Vec<_> = pictures.iter().filter(|p| p.protocol == protocol).collect();
        for (i, p) in of_protocol.iter().enumerate() {
            assert_eq!((p.backbone.as_str(), p.labels, p.index), ("mine", 12, i));
            assert_eq!(p.image, truth.load(i, [0; 3]).unwrap());
            assert_eq!(p.truth.ids(), truth.mask(i).unwrap().unwrap().ids());
            matrix.add(p.truth.ids(), p.predicted.ids()).unwrap();
        }
        assert_eq!(report.find(protocol, "miou", 12, "mine").unwrap().values, [matrix.miou()]);
    }
}

#[test]
fn stops_and_tells() {
    let c = config(&[Protocol::Linear]);
    let (stop, mut seen) = (AtomicBool::new(false), Vec::new());
    let mut watch = |p: &EvalProgress| {
        seen.push(p.clone());
        if p.value.is_some() {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let e = Evaluation::new(&c).unwrap().run("mine", &backbone(), &Weights::Scratch, &mut watch, &stop);
    assert!(e.unwrap_err().is_interrupted());
    assert!(seen.iter().all(|p| p.backbone == "mine"));
    assert_eq!(seen[0].protocol, None);
    assert!(seen.iter().any(|p| p.protocol == Some(Protocol::Linear) && p.total == 6 && p.done == 5));
}

#[test]
fn wrong_configurations_and_weights_are_errors() {
    let refused = |c: &EvalConfig, w: Weights| -> Error { run(c, w).unwrap_err() };
    let good = config(&[Protocol::Knn]);
    let many = EvalConfig { labels: vec![Amount::Count(61)], ..good.clone() };
    assert_eq!(refused(&many, Weights::Scratch).key(), Some("labels"));
    let none = EvalConfig { protocols: vec![], ..good.clone() };
    assert!(refused(&none, Weights::Scratch).is_usage());
    assert!(refused(&good, Weights::File("no/such/file.safetensors".into())).to_string().contains("no/such"));
    let empty = dtk::nn::ParamStore::new();
    assert!(refused(&good, Weights::Params(empty)).is_checkpoint());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    std::fs::write(&file, b"").unwrap();
    let e = refused(&good, Weights::File(file.clone()));
    assert_eq!(e.file(), Some(file.as_path()), "{e}");
}
