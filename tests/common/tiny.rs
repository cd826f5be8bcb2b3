//! A recipe that trains in moments: 32-pixel scenes, a teacher with 32 channels, a student with 8 to 16.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

use dtk::distill::Teacher;
use dtk::recipe::{self, Recipe};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The recipe: eight steps of four images; taps at the strides 8, 4 and 2.
pub const RECIPE: &str = r#"
name = "tiny"
seed = 3

[data]
height = 32
width = 32
flip = true
scenes = 24
workers = 2

[teacher]
weights = "random"
[teacher.model]
model_channels = 32
learn_sigma = true
num_res_blocks = 1
channel_mult = [1.0, 1.0, 1.0, 1.0]
attention_ds = [8]
num_head_channels = 32
use_scale_shift_norm = true
resblock_updown = true

[diffusion]
t = 100

[student]
backbone = { name = "resnet_small", channels = [8, 8, 16, 16], stem_width = 8, layers = [1, 1, 1, 1] }
regressor = { kind = "fpn_ppm", channels = 16 }

[optimizer]
name = "adamw"

[lr]
peak = 2e-3
schedule = { name = "cosine", warmup = 2, warmup_prefix = true }

[train]
batch = 4
length = 8

[run]
log_every = 1
save_every = 1000
tensorboard = false
"#;

/// Writes the recipe into a folder.
pub fn write_recipe(dir: &Path) -> PathBuf {
    let path = dir.join("tiny.toml");
    std::fs::write(&path, RECIPE).unwrap();
    path
}

/// The recipe with overrides as `--set` takes them.
pub fn recipe(overrides: &[&str]) -> Recipe {
    let dir = tempfile::tempdir().unwrap();
    let set: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    recipe::resolve(write_recipe(dir.path()).to_str().unwrap(), &set).unwrap_or_else(|e| panic!("{e}"))
}

/// Writes random weights of the recipe's teacher as a checkpoint.
pub fn write_teacher(path: &Path) {
    let r = recipe(&[]);
    let fill = |s: &mut _| dtk::train::fill_teacher(s, &r.teacher, 77).map(drop);
    let teacher = Teacher::new(&r.teacher, &r.diffusion, 0, fill).unwrap();
    dtk::train::save_params(teacher.params(), "", path, &BTreeMap::new()).unwrap();
}

/// Every file below a folder with its bytes.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut open) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                files.insert(path.strip_prefix(dir).unwrap().to_path_buf(), bytes);
            }
        }
    }
    files
}

/// The folder of a run's checkpoint.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step_{step:08}"))
}

/// Asserts that two runs ended with the same bytes: the checkpoint of a step, and the results.
pub fn assert_same_end(what: &str, a: &Path, b: &Path, step: u64) {
    let files = |run: &Path| {
        let mut all = snapshot(&checkpoint(run, step));
        for (name, bytes) in snapshot(run) {
            if name.to_str().unwrap().starts_with("backbone") {
                all.insert(name, bytes);
            }
        }
        all
    };
    let (x, y) = (files(a), files(b));
    assert!(x.len() >= 4, "{what}: {:?}", x.keys());
    assert!(x.keys().eq(y.keys()), "{what}: {:?} and {:?}", x.keys(), y.keys());
    for (name, bytes) in &x {
        assert!(*bytes == y[name], "{what}: {} differs", name.display());
    }
}

/// The steps that a run's metrics list, and their losses.
pub fn metrics(run: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let parse = |l: &str| {
        let v: serde_json::Value = serde_json::from_str(l).ok()?;
        Some((v["step"].as_u64()?, v["loss"].as_f64()?))
    };
    text.lines().filter_map(parse).collect()
}

/// Writes `n` scenes of 40x36 pixels into a folder, one after another in the given formats.
pub fn write_images(dir: &Path, prefix: &str, n: usize, extensions: &[&str]) {
    use dtk::data::{ImageSource, SceneConfig, Scenes};
    let scenes = Scenes::new(SceneConfig { count: n, first: 0, height: 36, width: 40 }).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..n {
        let path = dir.join(format!("{prefix}{i:02}.{}", extensions[i % extensions.len()]));
        scenes.load(i, [255; 3]).unwrap().save(&path).unwrap();
    }
}
