//! The training loop through the library: resuming, repeatability, refusals, and every variant of a recipe.

#[path = "common/tiny.rs"]
mod tiny;

use dtk::error::Error;
use dtk::nn::{Ctx, ParamStore};
use dtk::recipe::Recipe;
use dtk::tensor::{SafetensorsFile, Tensor};
use dtk::train::{Observer, Options, Resume, StepReport, Summary, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tiny::{assert_same_end, checkpoint, metrics, recipe, snapshot};

/// Keeps the reports and asks for a stop after a step.
#[derive(Default)]
struct Watch {
    reports: Vec<StepReport>,
    saved: Vec<PathBuf>,
    stop_after: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl Observer for Watch {
    fn on_step(&mut self, r: &StepReport) {
        self.reports.push(r.clone());
        if self.stop_after == Some(r.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn on_checkpoint(&mut self, path: &Path) {
        self.saved.push(path.to_path_buf());
    }
}

fn watched(
    recipe: Recipe,
    out: &Path,
    resume: Resume,
    stop_after: Option<u64>,
) -> (Result<Summary, Error>, Watch) {
    let mut watch = Watch { stop_after, ..Watch::default() };
    let options =
        Options { out: out.to_path_buf(), resume, stop: Arc::clone(&watch.stop), ..Options::default() };
    let result = Trainer::new(recipe, options).and_then(|mut t| t.run(&mut watch));
    (result, watch)
}

fn run(recipe: Recipe, out: &Path, resume: Resume) -> Result<Summary, Error> {
    watched(recipe, out, resume, None).0
}

/// Runs to a step, where the stop is asked for.
fn run_to(recipe: Recipe, out: &Path, step: u64) -> Watch {
    let (result, watch) = watched(recipe, out, Resume::No, Some(step));
    let e = result.expect_err("stopped");
    assert!(
        e.is_interrupted() && e.exit_code() == 130 && e.remedy().unwrap().contains("--resume auto"),
        "{e}"
    );
    assert_eq!(watch.saved, [checkpoint(out, step)]);
    watch
}

fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    (dir, a, b)
}

fn resume_equals_straight(what: &str, overrides: &[&str]) {
    let (_dir, straight, halves) = folder();
    let with = |more: &[&str]| recipe(&[overrides, more].concat());
    let done = run(with(&["data.workers=2"]), &straight, Resume::No).unwrap();
    assert_eq!(done.step, 8);
    run_to(with(&["data.workers=0"]), &halves, 3);
    let (result, watch) = watched(with(&["data.workers=1"]), &halves, Resume::Auto, None);
    result.unwrap_or_else(|e| panic!("{what}: {e}"));
    let steps: Vec<u64> = watch.reports.iter().map(|r| r.step).collect();
    assert_eq!(steps, [4, 5, 6, 7, 8], "{what}");
    assert_same_end(what, &straight, &halves, 8);
    assert_eq!(metrics(&straight), metrics(&halves), "{what}");
    assert!(metrics(&straight).iter().map(|m| m.0).eq(1..=8), "{what}: no step is missing or written twice");
}

#[test]
fn resume_adamw_with_ema() {
    resume_equals_straight("adamw", &["train.ema={ decay = 0.9 }"]);
}

#[test]
fn resume_lamb_accumulating() {
    resume_equals_straight("lamb", &["optimizer={ name = \"lamb\" }", "train.accumulate=2"]);
}

#[test]
fn resume_lars() {
    resume_equals_straight(
        "lars",
        &["optimizer={ name = \"lars\" }", "train.ema={ decay = 0.99, warmup = true }"],
    );
}

#[test]
fn resume_sgd_clipped() {
    resume_equals_straight(
        "sgd",
        &["optimizer={ name = \"sgd\" }", "train.clip_grad=1.0", "train.accumulate=2"],
    );
}

#[test]
fn resume_with_random_depth_and_recomputation() {
    let backbone = "student.backbone={ name = \"convnext_tiny\", depths = [1, 1, 2, 1], dims = [8, 8, 16, 16], \
                    drop_path = 0.5, recompute = true }";
    resume_equals_straight("convnext", &[backbone, COARSE_TAPS]);
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let (_dir, one, three) = folder();
    for (threads, out) in [(1, &one), (3, &three)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(recipe(&["train.length=4"]), out, Resume::No)).unwrap();
    }
    assert_same_end("1 and 3 threads", &one, &three, 4);
}

#[test]
fn the_loss_falls_and_features_align() {
    let (_dir, out, _) = folder();
    let r = recipe(&["train.length=40", "lr.peak=5e-3"]);
    let (result, watch) = watched(r, &out, Resume::No, None);
    result.unwrap();
    type Number = fn(&StepReport) -> f32;
    let mean = |r: &[StepReport], f: Number| r.iter().map(f).sum::<f32>() / r.len() as f32;
    let (first, last) = (&watch.reports[..5], &watch.reports[35..]);
    let parts: [(&str, Number); 3] = [("loss", |r| r.loss), ("mse", |r| r.mse), ("at", |r| r.at)];
    for (what, f) in parts {
        let (a, b) = (mean(first, f), mean(last, f));
        assert!(b < 0.97 * a, "{what}: {a} at the beginning, {b} at the end");
    }
    let cosine: Number = |r| r.levels.iter().map(|l| l.cosine).sum::<f32>() / r.levels.len() as f32;
    let (a, b) = (mean(first, cosine), mean(last, cosine));
    assert!(b > a + 0.05, "cosine: {a} at the beginning, {b} at the end");
    let strides: Vec<usize> = watch.reports[0].levels.iter().map(|l| l.stride).collect();
    assert_eq!(strides, [2, 4, 8], "fine to coarse");
    let lr: Vec<f64> = watch.reports.iter().map(|r| r.lr).collect();
    assert!(lr[0] < lr[2] && lr[39] < lr[20] && lr.iter().all(|l| *l <= 5e-3), "{lr:?}");
    let backbone = SafetensorsFile::open(out.join("backbone.safetensors")).unwrap();
    assert!(backbone.names().any(|n| n == "layer1.0.conv1.weight"), "timm's names");
    assert_eq!(&*backbone.info("conv1.weight").unwrap().1, &[8, 3, 7, 7], "PyTorch's layout");
    assert!(backbone.get("bn1.num_batches_tracked").unwrap().data::<i64>().unwrap() == [40]);
}

/// What is wrong with a checkpoint, made on a copy of the run.
type Damage = (&'static str, fn(&Path), fn(&Error) -> bool);

#[test]
fn what_cannot_resume_is_refused_and_nothing_is_lost() {
    let (dir, out, images) = folder();
    tiny::write_images(&images, "a", 5, &["png"]);
    let data = |p: &Path| format!("data.path='{}'", p.display());
    let base = data(&images);
    let with = |more: &[&str]| recipe(&[&["train.ema={ decay = 0.9 }", &*base], more].concat());
    run_to(with(&[]), &out, 2);
    let refuse = |what: &str, r: Recipe, resume: Resume, fits: &dyn Fn(&Error) -> bool| {
        let before = snapshot(&out);
        let e = run(r, &out, resume).expect_err(what);
        assert!(fits(&e), "{what}: {e:?}");
        assert!(e.remedy().is_some() || e.is_io(), "{what}: {e}");
        assert!(snapshot(&out) == before, "{what}: the run folder changed");
    };
    let auto = || Resume::Auto;
    refuse("other recipe", with(&["optimizer.weight_decay=0.3"]), auto(), &|e| {
        e.is_checkpoint() && e.to_string().contains("another recipe")
    });
    let others = dir.path().join("others");
    tiny::write_images(&others, "b", 5, &["png"]);
    refuse("other images", with(&[&*data(&others)]), auto(), &|e| {
        e.is_checkpoint() && e.to_string().contains("other images")
    });
    refuse("existing run", with(&[]), Resume::No, &|e| {
        e.is_usage() && e.remedy().unwrap().contains("--resume auto") && e.file().is_some()
    });
    refuse("no checkpoint", with(&[]), Resume::From(out.join("checkpoints")), &|e| {
        e.is_io() && e.file().is_some()
    });

    fn cut(path: PathBuf, keep: impl Fn(usize) -> usize) {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..keep(bytes.len())]).unwrap();
    }
    let damages: [Damage; 7] = [
        ("student cut", |c| cut(c.join("student.safetensors"), |n| n - 1), |e| e.is_format()),
        ("student cut in the header", |c| cut(c.join("student.safetensors"), |_| 100), |e| e.is_format()),
        ("optimizer cut", |c| cut(c.join("optimizer.safetensors"), |n| n / 2), |e| e.is_format()),
        (
            "no optimizer",
            |c| std::fs::remove_file(c.join("optimizer.safetensors")).unwrap(),
            |e| e.is_io() && e.to_string().contains("optimizer.safetensors"),
        ),
        (
            "no ema",
            |c| std::fs::remove_file(c.join("ema.safetensors")).unwrap(),
            |e| e.is_io() && e.to_string().contains("ema.safetensors"),
        ),
        ("state cut", |c| cut(c.join("state.json"), |n| n / 2), |e| e.is_format()),
        (
            "student of another network",
            |c| std::fs::copy(c.join("ema.safetensors"), c.join("student.safetensors")).map(drop).unwrap(),
            |e| e.is_checkpoint() || e.is_format(),
        ),
    ];
    let good = snapshot(&checkpoint(&out, 2));
    for (what, damage, fits) in damages {
        damage(&checkpoint(&out, 2));
        refuse(what, with(&[]), auto(), &|e| fits(e) && e.to_string().contains("step_00000002"));
        for (name, bytes) in &good {
            std::fs::write(checkpoint(&out, 2).join(name), bytes).unwrap();
        }
    }
    // Restored, it goes on; the images may have moved.
    let moved = dir.path().join("moved");
    std::fs::rename(&images, &moved).unwrap();
    assert_eq!(run(with(&[&*data(&moved)]), &out, Resume::Auto).unwrap().step, 8);
}

#[test]
fn a_killed_run_repeats_its_last_steps_once() {
    let (_dir, out, copy) = folder();
    let r = || recipe(&["run.save_every=3"]);
    run(r(), &out, Resume::No).unwrap();
    let first = metrics(&out);
    // As if it had been killed while the last checkpoint and a line were being written.
    let last = checkpoint(&out, 8);
    std::fs::rename(&last, last.with_file_name(".step_00000008.tmp")).unwrap();
    std::fs::rename(checkpoint(&out, 6), copy).unwrap();
    let mut text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.push_str("{\"step\": 9, \"lo");
    std::fs::write(out.join("metrics.jsonl"), text).unwrap();
    let (result, watch) = watched(r(), &out, Resume::Auto, None);
    result.unwrap();
    assert_eq!(watch.reports[0].step, 4);
    assert_eq!(metrics(&out), first);
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count();
    assert_eq!(lines, 8);
    assert!(!last.with_file_name(".step_00000008.tmp").exists());
}

#[test]
fn a_checkpoint_of_another_folder_starts_a_run_but_never_replaces_one() {
    let (dir, a, b) = folder();
    run_to(recipe(&[]), &a, 4);
    run(recipe(&[]), &b, Resume::From(checkpoint(&a, 4))).unwrap();
    run(recipe(&[]), &a, Resume::From(checkpoint(&a, 4))).unwrap();
    assert_same_end("resumed elsewhere", &a, &b, 8);
    let other = dir.path().join("other");
    run_to(recipe(&["seed=9"]), &other, 1);
    let before = snapshot(&other);
    let e = run(recipe(&[]), &other, Resume::From(checkpoint(&a, 4))).expect_err("another run is there");
    assert!(e.is_usage() && e.file().is_some() && e.remedy().is_some(), "{e:?}");
    assert!(snapshot(&other) == before);
}

#[test]
fn overwriting_removes_the_run_only_and_old_checkpoints_go() {
    let (_dir, out, fresh) = folder();
    let keep = |n: u64| recipe(&["run.save_every=1", "run.tensorboard=true", &format!("run.keep={n}")]);
    run(keep(2), &out, Resume::No).unwrap();
    let steps = |out: &Path| {
        let mut s: Vec<_> =
            std::fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
        s.sort();
        s.into_iter().map(|s| s.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(steps(&out), ["step_00000007", "step_00000008"]);
    std::fs::create_dir(out.join("notes")).unwrap();
    for mine in ["notes/a.txt", "mine.safetensors", "recipe.toml.bak"] {
        std::fs::write(out.join(mine), mine).unwrap();
    }
    run(recipe(&["train.length=2"]), &out, Resume::Overwrite).unwrap();
    assert_eq!(steps(&out), ["step_00000002"]);
    for mine in ["notes/a.txt", "mine.safetensors", "recipe.toml.bak"] {
        assert_eq!(std::fs::read_to_string(out.join(mine)).unwrap(), mine);
    }
    assert_eq!(metrics(&out).len(), 2);
    assert!(!snapshot(&out).keys().any(|p| p.to_str().unwrap().starts_with("events")), "old events are gone");
    run(recipe(&["train.length=2"]), &fresh, Resume::No).unwrap();
    assert_same_end("overwritten", &out, &fresh, 2);
    // What the folder says of itself leads to the same recipe, and a finished run resumes to itself.
    let written = dtk::recipe::resolve(out.join("recipe.toml").to_str().unwrap(), &[]).unwrap();
    assert_eq!(written, recipe(&["train.length=2"]));
    let before = snapshot(&checkpoint(&out, 2));
    let again = run(written, &out, Resume::Auto).unwrap();
    assert!(again.step == 2 && again.last.is_none() && snapshot(&checkpoint(&out, 2)) == before);
}

/// The taps of strides 8 and 4.
const COARSE_TAPS: &str =
    "teacher.taps=[{ block = 1, position = \"pre_up\" }, { block = 3, position = \"pre_up\" }]";

/// Losses of two steps.
fn losses(overrides: &[&str]) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    let r = recipe(&[&["train.length=2", "lr.schedule={ name = \"constant\" }"], overrides].concat());
    let (result, watch) = watched(r, &dir.path().join("run"), Resume::No, None);
    result.unwrap_or_else(|e| panic!("{overrides:?}: {e}"));
    assert!(watch.reports.iter().all(|r| r.loss.is_finite() && r.loss > 0.0 && r.grad_norm > 0.0));
    watch.reports.iter().map(|r| r.loss.to_bits()).collect()
}

#[test]
fn variants_of_the_recipe() {
    let base = losses(&[]);
    let recompute = "student.backbone={ name = \"resnet_small\", channels = [8, 8, 16, 16], stem_width = 8, \
                     layers = [1, 1, 1, 1], recompute = true }";
    for same in [recompute, "teacher.early_exit=false", "data.prefetch=5", "run.log_every=7"] {
        assert_eq!(losses(&[same]), base, "{same} must not change the result");
    }
    let convnext =
        "student.backbone={ name = \"convnext_tiny\", depths = [1, 1, 1, 1], dims = [8, 8, 16, 16] }";
    let other: [&[&str]; 14] = [
        &["diffusion.encoding=ddim"],
        &["diffusion.noise=shared"],
        &["diffusion.t=3"],
        &[COARSE_TAPS],
        &["student.regressor.kind=fpn"],
        &["student.regressor.kind=pafpn"],
        &["student.regressor.kind=fpn_attention"],
        &["loss.whiten=channel"],
        &["loss.whiten=none"],
        &["loss.at_weight=0"],
        &["loss.mse_weight=0"],
        &["data.flip=false"],
        &["seed=4"],
        &[convnext, COARSE_TAPS],
    ];
    let mut seen = vec![base];
    for o in other {
        let l = losses(o);
        assert!(!seen.contains(&l), "{o:?} changes nothing");
        seen.push(l);
    }
}

#[test]
fn parts_that_do_not_fit_say_so() {
    let convnext =
        "student.backbone={ name = \"convnext_tiny\", depths = [1, 1, 1, 1], dims = [8, 8, 16, 16] }";
    let cases: [(&[&str], &str); 4] = [
        (&[convnext], "16"),
        (&["diffusion.encoding=ddim", "diffusion.t=120"], "120"),
        (&["teacher.taps=[{ block = 99, position = \"pre_up\" }]"], "99"),
        (&["teacher.taps=nonsense"], "nonsense"),
    ];
    for (o, needle) in cases {
        let (_dir, out, _) = folder();
        let e = run(recipe(o), &out, Resume::No).expect_err(needle);
        assert!(e.to_string().contains(needle) && e.remedy().is_some(), "{o:?}: {e}");
        assert!(!out.exists(), "{o:?}: nothing is created for a run that cannot start");
    }
}

#[test]
fn a_diverging_run_ends_with_advice() {
    let (_dir, out, _) = folder();
    let o = ["optimizer={ name = \"sgd\" }", "lr={ peak = 1e30, schedule = { name = \"constant\" } }"];
    let e = run(recipe(&o), &out, Resume::No).expect_err("diverges");
    assert!(e.is_numeric() && e.remedy().is_some(), "{e:?}");
    assert!(metrics(&out).iter().all(|(_, loss)| loss.is_finite()));
    assert!(!out.join("backbone.safetensors").exists());
}

#[test]
fn label_distillation() {
    use dtk::distill::{LabelLossConfig, mixed_loss};
    let (rows, classes) = (3, 4);
    let fill = |seed| {
        let mut v = vec![0.0f32; rows * classes];
        dtk::base::Philox::new(seed).fill_normal(&mut v);
        v.iter().map(|x| 3.0 * x).collect::<Vec<f32>>()
    };
    let (s, t) = (fill(1), fill(2));
    let tensor = |v: &[f32]| Tensor::from_vec([rows, classes], v.to_vec()).unwrap();
    let store = ParamStore::new();
    for (tau, tau_squared, feature) in [(1.0, false, None), (4.0, false, Some(2.0)), (4.0, true, Some(0.5))] {
        let c = LabelLossConfig { feature_weight: 0.25, label_weight: 3.0, tau, tau_squared };
        let mut ctx = Ctx::training(&store, dtk::base::Philox::new(0));
        let logits = ctx.leaf(tensor(&s));
        let f = feature.map(|f| ctx.leaf(Tensor::scalar(f)));
        let (total, label) = mixed_loss(&mut ctx, f.as_ref(), &logits, &tensor(&t), &c).unwrap();
        let softmax = |row: &[f32]| {
            let e: Vec<f64> = row.iter().map(|x| (f64::from(*x) / f64::from(tau)).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        let scale = if tau_squared { f64::from(tau * tau) } else { 1.0 } / rows as f64;
        let (mut want, mut grad) = (0.0, Vec::new());
        for (s, t) in s.chunks(classes).zip(t.chunks(classes)) {
            let (p, q) = (softmax(t), softmax(s));
            want -= scale * p.iter().zip(&q).map(|(p, q)| p * q.ln()).sum::<f64>();
            grad.extend(p.iter().zip(&q).map(|(p, q)| 3.0 * scale * (q - p) / f64::from(tau)));
        }
        let close = |got: f32, want: f64, what: &str| {
            assert!(
                (f64::from(got) - want).abs() <= 1e-5 * (1.0 + want.abs()),
                "tau {tau}, {what}: {got}, {want}"
            );
        };
        close(label.tensor().item().unwrap(), want, "label loss");
        let part = 0.25 * f64::from(feature.unwrap_or(0.0));
        close(total.tensor().item().unwrap(), part + 3.0 * want, "total");
        let mut g = ctx.backward(&total).unwrap();
        if let Some(f) = &f {
            close(g.take(f).unwrap().item().unwrap(), 0.25, "gradient of the feature loss");
        }
        for (got, want) in g.take(&logits).unwrap().f32s().unwrap().iter().zip(&grad) {
            close(*got, *want, "gradient of the logits");
        }
    }
    let mut ctx = Ctx::training(&store, dtk::base::Philox::new(0));
    let logits = ctx.leaf(tensor(&s));
    for tau in [0.0, -1.0, f32::NAN] {
        let c = LabelLossConfig { tau, ..LabelLossConfig::default() };
        assert!(mixed_loss(&mut ctx, None, &logits, &tensor(&t), &c).err().unwrap().is_usage());
    }
    let narrow = Tensor::zeros([rows, classes - 1]);
    let e = mixed_loss(&mut ctx, None, &logits, &narrow, &LabelLossConfig::default()).err().unwrap();
    assert!(e.is_shape(), "{e}");
}
