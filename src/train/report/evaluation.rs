//! The results of an evaluation: bars of pretrained beside scratch, and every number in a table.

use super::timing::duration;
use crate::eval::{Report, Row};
use crate::viz::html::escape;
use std::fmt::Write;

/// What the rows of a comparison are measured against.
const BASE: &str = "scratch";

fn protocol_name(protocol: &str) -> &str {
    match protocol {
        "knn" => "Nearest neighbours",
        "linear" => "Linear probe",
        "seg_frozen" => "Segmentation, frozen backbone",
        "seg_finetune" => "Segmentation, fine-tuned",
        "finetune" => "Classification, fine-tuned",
        other => other,
    }
}

fn metric_name(metric: &str) -> &str {
    match metric {
        "top1" => "top-1",
        "miou" => "mIoU",
        "pixel_accuracy" => "pixel accuracy",
        other => other,
    }
}

fn backbone_name(backbone: &str) -> &str {
    match backbone {
        "scratch" => "from scratch",
        other => other,
    }
}

/// The colour of a backbone: always the same for those that are known.
fn colour(backbone: &str, index: usize) -> usize {
    match backbone {
        "pretrained" => 0,
        "scratch" => 7,
        "supervised" => 2,
        _ => [1, 3, 4, 5, 6][index % 5],
    }
}

/// `40 labelled images (10 %)`.
fn labels_text(row: &Row) -> String {
    let share = format!("{:.2}", 100.0 * row.fraction);
    let share = share.trim_end_matches('0').trim_end_matches('.');
    format!("{} labelled images ({share} %)", row.labels)
}

/// The rows of each protocol and metric, in the order in which they first occur.
fn groups(report: &Report) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in &report.rows {
        let same = |g: &&mut Vec<&Row>| g[0].protocol == row.protocol && g[0].metric == row.metric;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// How far a row is from the same protocol from scratch, in points.
fn gain(report: &Report, row: &Row) -> Option<f64> {
    let base = report.find(&row.protocol, &row.metric, row.labels, BASE)?;
    (row.backbone != BASE).then(|| 100.0 * (row.mean() - base.mean()))
}

/// A signed number of points, coloured by its sign.
fn points(gain: f64) -> String {
    let class = if gain >= 0.0 { "gain" } else { "loss" };
    format!("<span class=\"{class}\">{gain:+.1}</span>").replace('-', "−")
}

/// Name, value and what qualifies it, of the comparisons that tell most: with the fewest labels.
pub(super) fn facts(report: &Report) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    for (protocol, metric) in [("seg_frozen", "miou"), ("linear", "top1")] {
        let of_group = |r: &&Row| r.protocol == protocol && r.metric == metric && r.backbone == "pretrained";
        let Some(row) = report.rows.iter().filter(of_group).min_by_key(|r| r.labels) else { continue };
        let Some(base) = report.find(protocol, metric, row.labels, BASE) else { continue };
        out.push((
            format!("{}, {} labels", protocol_name(protocol), row.labels),
            format!("{:.1} %", 100.0 * row.mean()),
            format!("{}; {:.1} from scratch", metric_name(metric), 100.0 * base.mean()),
        ));
    }
    out
}

/// All results; empty without any.
pub(super) fn html(report: &Report) -> String {
    if report.rows.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "<p class=\"lead\">{} Mean over seeds in percent, ± sample standard deviation; the coloured number is the \
         distance to the same protocol from scratch, in points.</p>\n<div class=\"cards\">\n",
        escape(&sentence(&report.title))
    );
    let backbones = report.backbones();
    for group in groups(report) {
        bars(&mut out, report, &group, &backbones);
    }
    out.push_str("</div>\n");
    table(&mut out, report);
    let tables: String = groups(report).iter().map(|g| classes(g)).collect();
    if !tables.is_empty() {
        let _ = write!(out, "<details><summary>By class</summary>\n{tables}</details>\n");
    }
    out
}

/// A text that ends with a full stop; nothing of nothing.
fn sentence(text: &str) -> String {
    match text.trim_end_matches('.') {
        "" => String::new(),
        text => format!("{text}."),
    }
}

/// One protocol and metric: for every number of labels a bar for every backbone.
fn bars(out: &mut String, report: &Report, group: &[&Row], backbones: &[&str]) {
    let title = format!("{}: {}", protocol_name(&group[0].protocol), metric_name(&group[0].metric));
    let _ = write!(out, "<figure class=\"card\"><figcaption><b>{}</b></figcaption>", escape(&title));
    // The longest bar ends a little before the edge.
    let most = group.iter().map(|r| r.mean() + r.std()).fold(0.0, f64::max);
    let full = if most > 0.0 { most * 1.04 } else { 1.0 };
    let mut labels: Vec<usize> = group.iter().map(|r| r.labels).collect();
    labels.sort_unstable();
    labels.dedup();
    for count in labels {
        let mut rows: Vec<&&Row> = group.iter().filter(|r| r.labels == count).collect();
        rows.sort_by_key(|r| backbones.iter().position(|b| *b == r.backbone));
        let _ = write!(out, "<h3>{}</h3><div class=\"bars\">", escape(&labels_text(rows[0])));
        for row in rows {
            let index = backbones.iter().position(|b| *b == row.backbone).unwrap_or(0);
            let share = |v: f64| (100.0 * v / full).clamp(0.0, 100.0);
            let (mean, std) = (row.mean(), row.std());
            let (from, to) = (share(mean - std), share(mean + std));
            let _ = write!(
                out,
                "<span>{}</span><div class=\"track\"><i class=\"c{}\" style=\"width:{:.2}%\"></i>",
                escape(backbone_name(&row.backbone)),
                colour(&row.backbone, index),
                share(mean)
            );
            if row.values.len() > 1 {
                let _ = write!(out, "<u style=\"left:{from:.2}%;width:{:.2}%\"></u>", to - from);
            }
            let gain = gain(report, row).map_or(String::new(), points);
            let _ = write!(out, "</div><output>{} {gain}</output>", escape(&row.percent()));
        }
        out.push_str("</div>");
    }
    out.push_str("</figure>\n");
}

/// Every row with the values of its seeds.
fn table(out: &mut String, report: &Report) {
    out.push_str(
        "<details><summary>Every number</summary><div class=\"scroll\"><table>\n<tr><th>protocol</th><th>metric</th>\
         <th class=\"n\">labels</th><th>backbone</th><th class=\"n\">mean ± std</th><th class=\"n\">of each seed</th>\
         <th class=\"n\">time</th></tr>\n",
    );
    for row in &report.rows {
        let seeds: Vec<String> = row.values.iter().map(|v| format!("{:.1}", 100.0 * v)).collect();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            escape(protocol_name(&row.protocol)),
            escape(metric_name(&row.metric)),
            row.labels,
            escape(backbone_name(&row.backbone)),
            row.percent(),
            seeds.join(", "),
            duration(row.seconds)
        );
    }
    out.push_str("</table></div></details>\n");
}

/// The classes of a protocol and metric as a table, one column for every backbone and number of labels; empty where they are
/// not known.
fn classes(group: &[&Row]) -> String {
    let known = |r: &&&Row| !r.per_class.is_empty() && r.per_class.len() == r.classes.len();
    let rows: Vec<&&Row> = group.iter().filter(known).collect();
    let Some(first) = rows.first() else { return String::new() };
    let title = format!("{}: {}", protocol_name(&first.protocol), metric_name(&first.metric));
    let mut out = format!("<div class=\"scroll\"><h3>{}</h3><table>\n<tr><th>class</th>", escape(&title));
    for row in &rows {
        let _ = write!(
            out,
            "<th class=\"n\">{}<br>{} labels</th>",
            escape(backbone_name(&row.backbone)),
            row.labels
        );
    }
    out.push_str("</tr>\n");
    for (i, class) in first.classes.iter().enumerate() {
        let _ = write!(out, "<tr><td>{}</td>", escape(class));
        for row in &rows {
            let value = row.per_class.get(i).filter(|v| v.is_finite());
            let text = value.map_or("–".to_string(), |v| format!("{:.1}", 100.0 * v));
            let _ = write!(out, "<td class=\"n\">{text}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(protocol: &str, backbone: &str, labels: usize, values: &[f64]) -> Row {
        Row {
            protocol: protocol.into(),
            backbone: backbone.into(),
            metric: if protocol.starts_with("seg") { "miou".into() } else { "top1".into() },
            labels,
            fraction: labels as f64 / 400.0,
            seeds: (0..values.len() as u64).collect(),
            values: values.to_vec(),
            classes: vec!["cat & dog".into(), "sky".into()],
            per_class: vec![0.25, f64::NAN],
            seconds: 2.0,
        }
    }

    #[test]
    fn comparisons_are_told_in_words_and_bars() {
        let report = Report {
            title: "a <run>".into(),
            rows: vec![
                row("seg_frozen", "pretrained", 40, &[0.4, 0.42]),
                row("seg_frozen", "pretrained", 400, &[0.6]),
                row("seg_frozen", "scratch", 40, &[0.25, 0.27]),
                row("linear", "pretrained", 40, &[0.2]),
                row("linear", "scratch", 40, &[0.3]),
            ],
        };
        assert_eq!(
            facts(&report),
            [
                ("Segmentation, frozen backbone, 40 labels", "41.0 %", "mIoU; 26.0 from scratch"),
                ("Linear probe, 40 labels", "20.0 %", "top-1; 30.0 from scratch"),
            ]
            .map(|(a, b, c)| (a.to_string(), b.to_string(), c.to_string()))
        );
        let page = html(&report);
        for needle in [
            "a &lt;run&gt;.",
            "41.0 ± 1.4 <span class=\"gain\">+15.0</span>",
            "<span class=\"loss\">−10.0</span>",
            "60.0 </output>",
            "40 labelled images (10 %)",
            "cat &amp; dog",
            "<td class=\"n\">–</td>",
            "40.0, 42.0",
        ] {
            assert!(page.contains(needle), "{needle}\n{page}");
        }
        assert!(!page.contains("<run>") && !page.contains("NaN"));
        // The longest bar and its deviation stay within the track.
        assert!(page.contains("width:96.15%"), "{page}");
        assert_eq!(html(&Report::default()), "");
    }
}
