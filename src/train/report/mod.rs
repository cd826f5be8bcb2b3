//! `report.html`: what a run did, on one page.
//!
//! The page is one file without scripts and without anything from elsewhere: curves are SVG, pictures are inside it, and
//! its own content security policy forbids the rest. It is made from what lies in the run folder, so it can be written
//! again at any time, and the same files give the same bytes.

mod curves;
mod evaluation;
mod metrics;
mod page;
mod pictures;
mod timing;

use crate::error::{Error, Result};
use crate::eval;
use crate::tensor::write_atomically;
use metrics::Metrics;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The page's name in the run folder.
pub const FILE: &str = "report.html";
/// The name of an evaluation's results in the run folder.
pub const EVALUATION: &str = "eval.json";

/// What a run folder holds for the page.
struct Run {
    name: String,
    recipe_text: String,
    recipe: toml::Table,
    environment: Value,
    metrics: Metrics,
    evaluation: eval::Report,
    pictures: Vec<pictures::Shown>,
    /// Results in the folder and their sizes in bytes.
    files: Vec<(String, u64)>,
}

/// Writes `report.html` into a run folder, from its `recipe.toml`, and, where they are there, `metrics.jsonl`, `eval.json`,
/// `environment.json` and the pictures in `viz/`. Gives the page's path.
///
/// # Errors
/// The folder holds no run, one of the files is malformed, or the page cannot be written.
pub fn write(run: impl AsRef<Path>) -> Result<PathBuf> {
    let dir = run.as_ref();
    let text = page::html(&read(dir)?);
    let path = dir.join(FILE);
    write_atomically(&path, |f| f.write_all(text.as_bytes()))?;
    Ok(path)
}

/// Reads what there is.
fn read(dir: &Path) -> Result<Run> {
    let recipe_path = dir.join("recipe.toml");
    let recipe_text = std::fs::read_to_string(&recipe_path).map_err(|e| {
        Error::io(&recipe_path, "cannot read the run's recipe", e)
            .with_remedy("give the folder of a run, as `dtk train` made it")
    })?;
    let recipe: toml::Table = recipe_text.parse().map_err(|e: toml::de::Error| {
        Error::format(&recipe_path, "is not TOML").with_source(e).with_remedy("give the folder of a run")
    })?;
    let evaluation = dir.join(EVALUATION);
    let evaluation =
        if evaluation.is_file() { eval::Report::read(&evaluation)? } else { eval::Report::default() };
    let name = recipe.get("name").and_then(|n| n.as_str()).unwrap_or("a run").to_string();
    let mut files: Vec<(String, u64)> = std::fs::read_dir(dir)
        .map_err(|e| Error::io(dir, "cannot list", e))?
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "safetensors" || x == "pth"))
        .filter_map(|e| Some((e.file_name().to_string_lossy().into_owned(), e.metadata().ok()?.len())))
        .collect();
    files.sort();
    Ok(Run {
        name,
        recipe_text,
        recipe,
        environment: json(&dir.join("environment.json"))?,
        metrics: Metrics::read(&dir.join("metrics.jsonl"))?,
        evaluation,
        pictures: pictures::read(&dir.join(crate::viz::gallery::FOLDER))?,
        files,
    })
}

/// A JSON file; null if there is none.
fn json(path: &Path) -> Result<Value> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(e) => return Err(Error::io(path, "cannot read", e)),
    };
    serde_json::from_str(&text).map_err(|e| {
        Error::format(path, "is not JSON").with_source(e).with_remedy("remove the file, or write it again")
    })
}
