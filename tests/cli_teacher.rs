//! The training of diffusion networks, through the library and as users run it: resuming, repeatability, refusals, pictures,
//! conversion, and the result as a teacher.

#[path = "common/program.rs"]
mod program;
#[path = "common/small_teacher.rs"]
mod small_teacher;

use dtk::base::DType;
use dtk::error::Error;
use dtk::recipe::TeacherRecipe;
use dtk::tensor::{SafetensorsFile, Tensor, write_safetensors};
use dtk::train::{Options, Resume, TeacherObserver, TeacherReport, TeacherSummary, TeacherTrainer};
use program::tiny::{checkpoint, metrics, snapshot};
use program::{Place, fails, ok};
use small_teacher::recipe;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keeps the reports and asks for a stop after a step.
#[derive(Default)]
struct Watch {
    reports: Vec<TeacherReport>,
    samples: Vec<PathBuf>,
    stop_after: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl TeacherObserver for Watch {
    fn on_step(&mut self, r: &TeacherReport) {
        self.reports.push(r.clone());
        if self.stop_after == Some(r.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn on_samples(&mut self, path: &Path) {
        self.samples.push(path.to_path_buf());
    }
}

fn run(
    recipe: TeacherRecipe,
    out: &Path,
    resume: Resume,
    stop_after: Option<u64>,
) -> (Result<TeacherSummary, Error>, Watch) {
    let mut watch = Watch { stop_after, ..Watch::default() };
    let options =
        Options { out: out.to_path_buf(), resume, stop: Arc::clone(&watch.stop), ..Options::default() };
    let result = TeacherTrainer::new(recipe, options).and_then(|mut t| t.run(&mut watch));
    (result, watch)
}

/// Asserts that two runs ended with the same bytes.
fn assert_same_end(a: &Path, b: &Path, step: u64) {
    let files = |run: &Path| {
        let mut all = snapshot(&checkpoint(run, step));
        all.insert("teacher.safetensors".into(), std::fs::read(run.join("teacher.safetensors")).unwrap());
        all
    };
    let (x, y) = (files(a), files(b));
    assert_eq!(x.len(), 5, "network, optimiser, average, state, result");
    assert!(x.keys().eq(y.keys()), "{:?} and {:?}", x.keys(), y.keys());
    for (name, bytes) in &x {
        assert!(*bytes == y[name], "{} differs", name.display());
    }
}

#[test]
fn ten_and_ten_steps_are_twenty() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, halves) = (dir.path().join("a"), dir.path().join("b"));
    let (done, watch) = run(recipe(&["data.workers=2"]), &straight, Resume::No, None);
    assert_eq!(done.unwrap().step, 20);
    let losses: Vec<f32> = watch.reports.iter().map(|r| r.loss).collect();
    let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
    assert!(mean(&losses[15..]) < 0.9 * mean(&losses[..5]), "it learns: {losses:?}");
    for r in &watch.reports {
        assert!((r.loss - r.mse - r.vlb).abs() <= 1e-4 * r.loss.abs(), "{r:?}");
        let quarters: Vec<f32> = r.quarters.iter().flatten().copied().collect();
        assert!(!quarters.is_empty() && quarters.iter().all(|q| q.is_finite()), "{r:?}");
    }

    let (stopped, _) = run(recipe(&["data.workers=0"]), &halves, Resume::No, Some(10));
    let e = stopped.unwrap_err();
    assert!(e.is_interrupted() && e.exit_code() == 130 && e.remedy().unwrap().contains("--resume auto"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (done, watch) = pool.install(|| run(recipe(&[]), &halves, Resume::Auto, None));
    assert_eq!(done.unwrap().step, 20);
    assert!(watch.reports.iter().map(|r| r.step).eq(11..=20));
    assert_same_end(&straight, &halves, 20);
    assert_eq!(metrics(&straight), metrics(&halves));
    assert!(metrics(&straight).iter().map(|m| m.0).eq(1..=20));
}

#[test]
fn the_result_is_the_average_if_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let read = |path: &Path, key: &str| SafetensorsFile::open(path).unwrap().get(key).unwrap();
    for (averaged, set) in [(true, "seed=1"), (false, "seed=2")] {
        let out = dir.path().join(set);
        let mut recipe = recipe(&[set, "train.length=4"]);
        recipe.train.ema = recipe.train.ema.filter(|_| averaged);
        run(recipe, &out, Resume::No, None).0.unwrap();
        let key = "middle_block.0.in_layers.2.weight";
        let result = read(&out.join("teacher.safetensors"), key);
        let last = read(&checkpoint(&out, 4).join("network.safetensors"), key);
        assert_eq!(result.f32s().unwrap() != last.f32s().unwrap(), averaged);
        assert_eq!(checkpoint(&out, 4).join("ema.safetensors").exists(), averaged);
    }
}

#[test]
fn networks_of_other_kinds_train() {
    let dir = tempfile::tempdir().unwrap();
    for (i, set) in [
        "model.learn_sigma=false",
        "model.use_scale_shift_norm=false",
        "model.num_classes=7",
        "optimizer={ name = \"sgd\" }",
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(i.to_string());
        let set = ["train.length=2", "data.scenes=200", set];
        let (done, watch) = run(recipe(&set), &out, Resume::No, None);
        done.unwrap_or_else(|e| panic!("{set:?}: {e}"));
        let sigma = !set[2].contains("learn_sigma");
        assert!(watch.reports.iter().all(|r| (r.vlb != 0.0) == sigma), "{set:?}");
    }
    // Labels beyond the classes of the network.
    let e = run(recipe(&["model.num_classes=2"]), &dir.path().join("x"), Resume::No, None).0.unwrap_err();
    assert!(e.is_data() && e.key() == Some("model.num_classes"), "{e}");
}

#[test]
fn mistakes_in_recipes_are_usage_errors() {
    for (set, needle) in [
        ("train.bach=12", "bach"),
        ("train.batch=0", "train.batch"),
        ("train.dropout=1.0", "dropout"),
        ("train.clip_grad=0.0", "train.clip_grad"),
        ("train.ema={ decay = 1.5 }", "decay"),
        ("data.height=17", "multiples of 2"),
        ("data.scenes=0", "data.scenes"),
        ("model=\"adm-900\"", "adm-900"),
        ("model.in_channels=4", "in_channels"),
        ("diffusion.steps=3", "diffusion.steps"),
        ("diffusion.vlb_weight=-1.0", "vlb_weight"),
        ("sample={ every = 5, steps = 101 }", "sample"),
        ("output.dtype=f8", "f8"),
        ("run.keep=0", "at least 1"),
        ("lr.peak=-1", "lr"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = small_teacher::write_recipe(dir.path());
        let e = dtk::recipe::teacher::resolve(path.to_str().unwrap(), &[set.to_string()])
            .and_then(|r| {
                TeacherTrainer::new(r, Options { out: dir.path().join("run"), ..Options::default() })
            })
            .err()
            .unwrap_or_else(|| panic!("{set} must be refused"));
        assert!(e.is_usage(), "{set}: {e:?}");
        assert!(e.to_string().contains(needle), "{set}: {e}");
    }
}

#[test]
fn fingerprints_ignore_what_does_not_change_the_result() {
    let base = recipe(&[]).fingerprint();
    for same in ["run.keep=9", "sample.every=3", "output.dtype=bf16", "data.path=/x", "data.workers=7"] {
        assert_eq!(recipe(&[same]).fingerprint(), base, "{same}");
    }
    for other in ["seed=6", "train.dropout=0.2", "diffusion.vlb_weight=0.5", "model.num_res_blocks=2"] {
        assert_ne!(recipe(&[other]).fingerprint(), base, "{other}");
    }
    let again: TeacherRecipe = toml::from_str(&recipe(&[]).to_toml()).unwrap();
    assert_eq!(again, recipe(&[]));
}

const TRAIN: [&str; 4] = ["teacher", "train", "--recipe", "small_teacher.toml"];

fn place() -> Place {
    let p = Place::new();
    small_teacher::write_recipe(p.0.path());
    p
}

fn png(path: &Path) -> image::RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

#[test]
fn from_training_to_features() {
    let p = place();
    let dry = ok(&p.dtk(&[&TRAIN[..], &["--dry-run"]].concat()));
    assert!(dry.contains("vlb_weight") && dry.contains("parameters"), "{dry}");
    assert!(!p.path("runs").exists());

    let train = [&TRAIN[..], &["--out", "run", "--dtype", "bf16", "--set", "train.length=6"]].concat();
    let pictures = ["--set", "sample={ every = 4, count = 3, steps = 5 }"];
    let said = ok(&p.dtk(&[&train[..], &pictures].concat()));
    assert!(said.contains("step 6/6") && said.contains("teacher.safetensors"), "{said}");
    for step in [4, 6] {
        let image = png(&p.path(&format!("run/samples/step_{step:08}.png")));
        assert_eq!((image.width(), image.height()), (2 * 66 + 2, 2 * 66 + 2));
    }
    fails(&p.dtk(&train), 2, &["--resume auto", "--overwrite"]);
    let file = SafetensorsFile::open(p.path("run/teacher.safetensors")).unwrap();
    assert!(file.names().all(|n| file.info(n).unwrap().0 == DType::Bf16));
    for key in ["dtk", "recipe", "recipe_fingerprint", "data_fingerprint", "adm_config", "step", "seed"] {
        assert!(file.metadata().contains_key(key), "{key}");
    }

    // Pictures: the same seed gives the same bytes, another one others.
    let sample = ["teacher", "sample", "--teacher", "run/teacher.safetensors"];
    let draw = |out: &str, more: &[&str]| {
        ok(&p.dtk(&[&sample[..], &["--count", "2", "--steps", "4", "--out", out], more].concat()));
        png(&p.path(out))
    };
    let first = draw("a.png", &[]);
    assert_eq!(first, draw("b.png", &["--seed", "0", "--kind", "ddim"]));
    assert_ne!(first, draw("c.png", &["--seed", "1"]));
    assert_ne!(first, draw("folder/d.png", &["--kind", "ancestral"]));
    assert_eq!(draw("e.png", &["--size", "8x32"]).dimensions(), (2 * 258 + 2, 66 + 2));
    for (more, needle) in [
        (["--kind", "magic"], "--kind"),
        (["--steps", "101"], "101"),
        (["--steps", "0"], "0 of 100"),
        (["--count", "0"], "count"),
        (["--size", "16"], "--size"),
        (["--size", "15x16"], "multiples of 2"),
        (["--label", "0"], "label"),
    ] {
        let o = p.dtk(&[&sample[..], &more].concat());
        let code = o.status.code();
        assert!(code == Some(1) || code == Some(2), "{more:?}");
        fails(&o, code.unwrap(), &[needle]);
    }

    // The same weights in another type, and as the teacher of a distillation.
    ok(&p.dtk(&["teacher", "convert", "run/teacher.safetensors", "wide.safetensors", "--dtype", "f32"]));
    let wide = SafetensorsFile::open(p.path("wide.safetensors")).unwrap();
    assert_eq!(wide.metadata()["adm_config"], file.metadata()["adm_config"]);
    assert!(wide.names().all(|n| wide.info(n).unwrap().0 == DType::F32));
    let mut model: serde_json::Value = serde_json::from_str(&file.metadata()["adm_config"]).unwrap();
    model.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    let model = format!("teacher.model={}", toml::Value::try_from(model).unwrap());
    let features = ["features", "--recipe", "tiny.toml", "--limit", "1", "--set", &model, "--teacher"];
    ok(&p.dtk(&[&features[..], &["run/teacher.safetensors", "--out", "a.safetensors"]].concat()));
    ok(&p.dtk(&[&features[..], &["wide.safetensors", "--out", "b.safetensors"]].concat()));
    let [a, b] = ["a", "b"].map(|n| SafetensorsFile::open(p.path(&format!("{n}.safetensors"))).unwrap());
    assert!(a.names().count() > 0);
    for name in a.names() {
        assert_eq!(a.get(name).unwrap().f32s().unwrap(), b.get(name).unwrap().f32s().unwrap(), "{name}");
    }
    fails(&p.dtk(&["teacher", "convert", "wide.safetensors", "x", "--dtype", "f8"]), 2, &["f8"]);
    fails(
        &p.dtk(&["teacher", "convert", "wide.safetensors", "x", "--model", "tiny"]),
        1,
        &["wide.safetensors"],
    );
    fails(&p.dtk(&["teacher", "convert", "absent.pt", "x"]), 1, &["absent.pt"]);
    assert!(!p.path("x").exists());
}

#[test]
fn files_that_are_no_teachers_are_refused() {
    let p = place();
    let t: BTreeMap<String, Tensor> = [("a".to_string(), Tensor::zeros([1]))].into();
    write_safetensors(p.path("a.safetensors"), &t, &BTreeMap::new()).unwrap();
    std::fs::write(p.path("zero.pt"), "").unwrap();
    let sample = |file: &str, more: &[&str]| {
        p.dtk(&[&["teacher", "sample", "--size", "32x32", "--teacher", file], more].concat())
    };
    fails(&sample("a.safetensors", &[]), 2, &["a.safetensors", "--model"]);
    fails(&sample("a.safetensors", &["--model", "tiny"]), 1, &["a.safetensors", "time_embed"]);
    fails(&sample("a.safetensors", &["--model", "huge"]), 2, &["huge", "tiny"]);
    fails(&sample("zero.pt", &["--model", "tiny"]), 1, &["zero.pt"]);
    fails(&p.dtk(&[&TRAIN[..], &["--data", "nowhere"]].concat()), 1, &["nowhere"]);
    fails(&p.dtk(&["teacher", "train", "--recipe", "nowhere"]), 2, &["nowhere", "quickstart_teacher"]);
    std::fs::create_dir(p.path("empty")).unwrap();
    fails(&p.dtk(&[&TRAIN[..], &["--data", "empty"]].concat()), 1, &["no images"]);
}

#[test]
fn the_builtin_recipe_is_valid() {
    for (name, _) in dtk::recipe::teacher::BUILTIN {
        assert_eq!(dtk::recipe::teacher::resolve(name, &[]).unwrap().name, *name);
    }
}
