//! The page around curves and pictures.

use super::timing::duration;
use super::{Run, curves, evaluation, pictures, timing};
use crate::viz::chart::short;
use crate::viz::html::escape;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");
/// Nothing but what is in the page itself.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// The whole page.
pub(super) fn html(run: &Run) -> String {
    let name = escape(&run.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{name} – dtk</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>{name}</h1>\n{}</header>\n",
        header(run)
    );
    section(&mut out, "What it is worth", &evaluation::html(&run.evaluation));
    section(&mut out, "Pictures", &pictures::html(&run.pictures));
    let curves = curves::html(&run.metrics);
    match curves.is_empty() {
        true => out.push_str("<p class=\"note\">No step of this run is logged yet.</p>\n"),
        false => section(&mut out, "Curves", &format!("<div class=\"cards\">\n{curves}</div>\n")),
    }
    section(&mut out, "Timing", &timing::html(&run.metrics));
    section(&mut out, "How it was made", &making(run));
    let version = run.environment.get("version").and_then(Value::as_str).unwrap_or(env!("CARGO_PKG_VERSION"));
    let _ = write!(
        out,
        "<footer>dtk {}. This page is one file and needs nothing else; <code>dtk viz report</code> writes it again.</footer>\n\
         </main>\n</body>\n</html>\n",
        escape(version)
    );
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(out, "<section>\n<h2>{title}</h2>\n{body}</section>\n");
    }
}

/// The value at a dotted path of the recipe, as text.
fn setting(run: &Run, path: &str) -> Option<String> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let mut value = run.recipe.get(first)?;
    for key in rest.into_iter().flat_map(|r| r.split('.')) {
        value = value.get(key)?;
    }
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Table(_) | toml::Value::Array(_) => None,
        other => Some(other.to_string()),
    }
}

/// One sentence about the run, what to beware of, and its numbers.
fn header(run: &Run) -> String {
    let get = |path: &str| setting(run, path);
    let mut parts = Vec::new();
    if let Some(backbone) = get("student.backbone.name") {
        let teacher =
            get("teacher.model").map_or("an ADM network".into(), |m| format!("the ADM network `{m}`"));
        let t = get("diffusion.t").map_or(String::new(), |t| format!(" at t = {t}"));
        parts.push(format!("{backbone} learns the features of {teacher}{t}"));
    }
    if let (Some(h), Some(w)) = (get("data.height"), get("data.width")) {
        let images = get("data.path").unwrap_or("built-in scenes".into());
        parts.push(format!("{images}, {h} x {w} pixels"));
    }
    if let (Some(batch), Some(length)) = (get("train.batch"), get("train.length")) {
        let unit = if length.parse::<u64>().is_ok() { " steps" } else { "" };
        parts.push(format!("{length}{unit} of {batch} images"));
    }
    parts.extend(get("seed").map(|s| format!("seed {s}")));
    let mut out = format!("<p class=\"lead\">{}.</p>\n", escape(&parts.join("; ")));
    if get("student.backbone.name").is_some() && get("teacher.weights").as_deref() == Some("random") {
        out.push_str(
            "<p class=\"note\">The teacher's weights are random: this run shows the machinery. A trained teacher teaches \
             more.</p>\n",
        );
    }
    out.push_str("<dl class=\"facts\">\n");
    for (name, value, more) in evaluation::facts(&run.evaluation).into_iter().chain(facts(run)) {
        let _ = writeln!(
            out,
            "<div><dt>{}</dt><dd>{} <small>{}</small></dd></div>",
            escape(&name),
            escape(&value),
            escape(&more)
        );
    }
    out.push_str("</dl>\n");
    out
}

/// Name, value, and what qualifies it.
fn facts(run: &Run) -> Vec<(String, String, String)> {
    let m = &run.metrics;
    let mut out: Vec<(String, String, String)> = Vec::new();
    let mut add = |name: &str, value: String, more: String| out.push((name.into(), value, more));
    let Some(steps) = m.last_step() else { return out };
    let batch = setting(run, "train.batch").and_then(|b| b.parse::<f64>().ok());
    add("Steps", short(steps), batch.map_or(String::new(), |b| format!("{} images", short(steps * b))));
    if let (Some(first), Some(last)) = (m.series("loss").first(), m.last("loss")) {
        add("Loss", short(last), format!("from {}", short(first[1])));
    }
    let cosines: Vec<f64> =
        m.keys().iter().filter(|k| k.starts_with("cosine/")).filter_map(|k| m.last(k)).collect();
    if !cosines.is_empty() {
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        add("Cosine to the teacher", format!("{mean:.3}"), "mean over levels".into());
    }
    if let Some(knn) = m.last("knn_top1") {
        add("Nearest neighbours", format!("{:.1} %", 100.0 * knn), "top-1 on held-out images".into());
    }
    if let Some(ms) = m.median("step_ms") {
        let speed = m.median("images_per_s").map_or(String::new(), |r| format!("{} images/s", short(r)));
        add("Time", format!("≈ {}", duration(steps * ms / 1e3)), speed);
    }
    if let Some(device) = run.environment.get("device").and_then(Value::as_str) {
        let threads = run.environment.get("threads").and_then(Value::as_u64);
        let threads = threads.filter(|_| device == "cpu").map_or(String::new(), |t| format!("{t} threads"));
        add("Computed on", device.to_string(), threads);
    }
    out
}

/// The recipe, the machine, the files.
fn making(run: &Run) -> String {
    let mut out = format!(
        "<details><summary>Recipe</summary><pre>{}</pre></details>\n",
        escape(run.recipe_text.trim_end())
    );
    if let Some(environment) = run.environment.as_object() {
        out.push_str("<details><summary>Environment</summary><div class=\"scroll\"><table>\n");
        for (key, value) in environment {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let _ = writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(key), escape(&text));
        }
        out.push_str("</table></div></details>\n");
    }
    if !run.files.is_empty() {
        out.push_str("<details><summary>Files</summary><div class=\"scroll\"><table>\n");
        for (name, bytes) in &run.files {
            let size = *bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(out, "<tr><th>{}</th><td class=\"n\">{size:.1} MiB</td></tr>", escape(name));
        }
        out.push_str("</table></div></details>\n");
    }
    out
}
