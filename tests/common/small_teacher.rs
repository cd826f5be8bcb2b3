//! A teacher's recipe that trains in moments: 16-pixel scenes, a network with 32 channels on two levels.
#![allow(dead_code, reason = "every test binary that includes this uses another part of it")]

use dtk::recipe::{TeacherRecipe, teacher};
use std::path::{Path, PathBuf};

/// The recipe: twenty steps of ten images, which are two parts, with everything that is random.
pub const RECIPE: &str = r#"
name = "small_teacher"
seed = 5

[data]
height = 16
width = 16
flip = true
scenes = 40
workers = 2

[model]
model_channels = 32
learn_sigma = true
num_res_blocks = 1
channel_mult = [1.0, 1.0]
attention_ds = [2]
num_head_channels = 32
use_scale_shift_norm = true
resblock_updown = true

[diffusion]
steps = 100

[lr]
peak = 1e-3
schedule = { name = "cosine", warmup = 2, warmup_prefix = true }

[train]
batch = 10
length = 20
clip_grad = 1.0
dropout = 0.1
ema = { decay = 0.9 }

[run]
log_every = 1
save_every = 1000
tensorboard = false
"#;

/// Writes the recipe into a folder.
pub fn write_recipe(dir: &Path) -> PathBuf {
    let path = dir.join("small_teacher.toml");
    std::fs::write(&path, RECIPE).unwrap();
    path
}

/// The recipe with overrides as `--set` takes them.
pub fn recipe(overrides: &[&str]) -> TeacherRecipe {
    let dir = tempfile::tempdir().unwrap();
    let set: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    teacher::resolve(write_recipe(dir.path()).to_str().unwrap(), &set).unwrap_or_else(|e| panic!("{e}"))
}
