//! What a run's backbone is worth, measured when the run is done.

use super::pictures::{Looks, StudentFrom, View};
use super::predictions::predictions;
use super::report;
use super::run_dir::RunDir;
use crate::error::Result;
use crate::eval::{EvalProgress, Evaluation, Report, Weights};
use crate::recipe::Recipe;
use crate::viz::{KMeans, gallery};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Measures the backbone of a finished run, and beside it the same architecture from scratch, by the recipe's section
/// `[eval]`; writes `eval.json` into the run folder, and predicted masks of the first `run.pictures` test images into `viz/`.
///
/// # Errors
/// As [`Evaluation::new`] and [`Evaluation::run`]; the file cannot be written.
pub fn evaluate_run(
    run: &RunDir,
    recipe: &Recipe,
    progress: &mut dyn FnMut(&EvalProgress),
    stop: &AtomicBool,
) -> Result<Report> {
    let evaluation = Evaluation::new(&recipe.evaluation())?;
    let mut found = Report::new(evaluation.title());
    let backbone = &recipe.student.backbone;
    let pretrained = Weights::File(run.file("backbone.safetensors"));
    let (images, mut pictures) = (recipe.run.pictures, Vec::new());
    for (name, weights) in [("pretrained", &pretrained), ("scratch", &Weights::Scratch)] {
        let (rows, drawn) = evaluation.run_with_pictures(name, backbone, weights, images, progress, stop)?;
        found.merge(rows);
        pictures.extend(drawn);
    }
    found.write(run.file(report::EVALUATION))?;
    if !pictures.is_empty() {
        predictions(&run.file(gallery::FOLDER), &pictures, View::default().tile)?;
    }
    Ok(found)
}

/// Draws what teacher and student see of `run.pictures` images (at least one) into `viz/` of a run folder, then writes its `report.html`. Gives the
/// page's path.
///
/// # Errors
/// As [`Looks::new`] and [`report::write`].
pub fn illustrate_run(run: &Path, recipe: &Recipe, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let mut recipe = recipe.clone();
    let from = StudentFrom::run(run, &mut recipe)?;
    let view = View { out: run.join(gallery::FOLDER), images: recipe.run.pictures, ..View::default() };
    let looks = Looks::new(&recipe, &from, view, progress)?;
    looks.features()?;
    looks.segments(&KMeans::default())?;
    report::write(run)
}
