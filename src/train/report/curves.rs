//! The curves of a run: which metrics share a chart, and what is said about them.

use super::metrics::Metrics;
use crate::viz::chart::{Chart, Line, Scale, short};
use crate::viz::html::escape;
use std::fmt::Write;

/// A chart that is known beforehand.
struct Known {
    title: &'static str,
    /// Metrics by name, each with what the legend calls it; `prefix/*` stands for all below a prefix.
    keys: &'static [(&'static str, &'static str)],
    scale: Scale,
    reach: &'static [f64],
    says: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        title: "Cosine to the teacher",
        keys: &[("cosine/*", "")],
        scale: Scale::Linear,
        reach: &[0.0],
        says: "How alike the student's maps and the whitened maps of the teacher are: 0 is unrelated, 1 is the same.",
    },
    Known {
        title: "Loss",
        keys: &[("loss", "loss")],
        scale: Scale::Auto,
        reach: &[],
        says: "What the optimiser minimises.",
    },
    Known {
        title: "Nearest neighbours",
        keys: &[("knn_top1", "kNN top-1")],
        scale: Scale::Linear,
        reach: &[0.0],
        says: "Share of held-out images whose class their nearest neighbours among the labelled images give, by the \
               backbone's features.",
    },
    Known {
        title: "Terms of the loss",
        keys: &[("mse", "MSE"), ("at", "attention transfer"), ("vlb", "variational bound")],
        scale: Scale::Auto,
        reach: &[],
        says: "Before weighting, mean over levels.",
    },
    Known {
        title: "Loss by noise",
        keys: &[("loss/*", "")],
        scale: Scale::Auto,
        reach: &[],
        says: "Mean over the samples of each quarter of the schedule, from little noise to much.",
    },
    Known {
        title: "MSE by level",
        keys: &[("mse/*", "")],
        scale: Scale::Auto,
        reach: &[],
        says: "Mean squared error against the whitened map of the teacher; 1 is what a map of zeros gets.",
    },
    Known {
        title: "Attention transfer by level",
        keys: &[("at/*", "")],
        scale: Scale::Linear,
        reach: &[0.0],
        says: "Distance between the spatial attention maps of student and teacher.",
    },
    Known {
        title: "Learning rate",
        keys: &[("lr", "learning rate")],
        scale: Scale::Linear,
        reach: &[0.0],
        says: "",
    },
    Known {
        title: "Gradient norm",
        keys: &[("grad_norm", "L2 norm")],
        scale: Scale::Auto,
        reach: &[],
        says: "Before clipping.",
    },
    Known {
        title: "Throughput",
        keys: &[("images_per_s", "images per second")],
        scale: Scale::Linear,
        reach: &[0.0],
        says: "",
    },
];

/// Metrics that other parts of the page show.
const ELSEWHERE: &[&str] = &["step", "epoch", "step_ms", "data_wait_ms", "teacher_ms", "student_ms"];

/// What a metric below a prefix is called: `stride 8` for `cosine/stride8`.
fn name_below(key: &str) -> String {
    let name = key.split_once('/').map_or(key, |(_, rest)| rest);
    let number = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    match name.strip_suffix(number) {
        Some(word) if !word.is_empty() && number.parse::<u32>().is_ok() => format!("{word} {number}"),
        _ => name.replace('_', " "),
    }
}

/// The charts with what is said about them: the known ones first, then one for every other metric, those of a common
/// prefix together.
fn charts(metrics: &Metrics) -> Vec<(Chart, String)> {
    let keys = metrics.keys();
    let mut left: Vec<&str> = keys.iter().copied().filter(|k| !ELSEWHERE.contains(k)).collect();
    let line = |key: &str, name: String| Line { name, points: metrics.series(key) };
    let mut out = Vec::new();
    for known in KNOWN {
        let mut lines = Vec::new();
        for (key, name) in known.keys {
            match key.strip_suffix('*') {
                Some(prefix) => {
                    lines.extend(
                        left.iter().filter(|k| k.starts_with(prefix)).map(|k| line(k, name_below(k))),
                    );
                    left.retain(|k| !k.starts_with(prefix));
                }
                None if left.contains(key) => {
                    lines.push(line(key, (*name).to_string()));
                    left.retain(|k| k != key);
                }
                None => {}
            }
        }
        let chart = Chart {
            title: known.title.into(),
            x: "step".into(),
            lines,
            scale: known.scale,
            reach: known.reach.to_vec(),
        };
        out.push((chart, known.says.to_string()));
    }
    while let Some(key) = left.first().copied() {
        let prefix = key.split_once('/').map(|(p, _)| format!("{p}/"));
        let (same, rest) = left.iter().partition(|k| match &prefix {
            Some(p) => k.starts_with(p.as_str()),
            None => **k == key,
        });
        left = rest;
        let same: Vec<&str> = same;
        let title = key.split_once('/').map_or(key, |(p, _)| p).replace('_', " ");
        let lines = same.iter().map(|k| line(k, name_below(k))).collect();
        let chart = Chart { title, x: "step".into(), lines, scale: Scale::Auto, reach: Vec::new() };
        out.push((chart, String::new()));
    }
    out
}

/// All curves as figures; empty without any.
pub(super) fn html(metrics: &Metrics) -> String {
    let mut out = String::new();
    for (chart, says) in charts(metrics) {
        let Some(svg) = chart.to_svg() else { continue };
        let _ = write!(out, "<figure class=\"card\"><figcaption><b>{}</b>", escape(&chart.title));
        out.push_str("<span class=\"legend\">");
        for (i, line) in chart.lines.iter().enumerate() {
            let last = line.points.last().map_or(String::new(), |p| short(p[1]));
            let colour = i % crate::viz::chart::COLOURS;
            let name = if chart.lines.len() == 1 { "" } else { line.name.as_str() };
            let _ = write!(out, "<span><i class=\"c{colour}\"></i>{} <b>{last}</b></span>", escape(name));
        }
        let _ = write!(out, "</span></figcaption>{svg}");
        if !says.is_empty() {
            let _ = write!(out, "<p class=\"says\">{}</p>", escape(&says));
        }
        out.push_str("</figure>\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_shown_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let row = |s: u32| {
            format!(
                "{{\"step\":{s},\"loss\":2,\"mse\":1,\"at\":1,\"mse/stride4\":1,\"mse/stride8\":1,\"cosine/stride4\":0.5,\
                 \"knn_top1\":0.5,\"new_thing\":4,\"odd/a\":1,\"odd/b_c\":2,\"step_ms\":3}}\n"
            )
        };
        std::fs::write(&path, row(1) + &row(2)).unwrap();
        let charts = charts(&Metrics::read(&path).unwrap());
        let shown: Vec<(String, Vec<String>)> = charts
            .into_iter()
            .filter(|(c, _)| !c.lines.is_empty())
            .map(|(c, _)| (c.title, c.lines.into_iter().map(|l| l.name).collect()))
            .collect();
        let of =
            |title: &str, names: &[&str]| (title.to_string(), names.iter().map(|n| n.to_string()).collect());
        let want: Vec<(String, Vec<String>)> = vec![
            of("Cosine to the teacher", &["stride 4"]),
            of("Loss", &["loss"]),
            of("Nearest neighbours", &["kNN top-1"]),
            of("Terms of the loss", &["MSE", "attention transfer"]),
            of("MSE by level", &["stride 4", "stride 8"]),
            of("new thing", &["new thing"]),
            of("odd", &["a", "b c"]),
        ];
        assert_eq!(shown, want);
    }
}
