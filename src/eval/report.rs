//! What an evaluation has found, as data, as text and as a table for a document.

use crate::error::{Error, Result};
use crate::tensor::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The outcome of an evaluation: one row for every protocol, backbone, number of labels and metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What was evaluated, e.g. the recipe's name and the data.
    pub title: String,
    /// The results.
    pub rows: Vec<Row>,
}

/// One metric of one protocol, over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// `knn`, `linear`, `seg_frozen`, `seg_finetune` or `finetune`.
    pub protocol: String,
    /// Whose features: `pretrained`, `scratch`, `supervised`, or another name that was given.
    pub backbone: String,
    /// `top1`, `miou` or `pixel_accuracy`.
    pub metric: String,
    /// How many labelled images were used.
    pub labels: usize,
    /// The share of the labelled images that these are, from 0 to 1.
    pub fraction: f64,
    /// The seeds: of the choice of labelled images, of the head's initial values, of the order of batches; from scratch of
    /// the backbone's initial values too.
    pub seeds: Vec<u64>,
    /// The metric for every seed, from 0 to 1.
    pub values: Vec<f64>,
    /// The names of the classes that `per_class` is about.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The metric of every class, averaged over the seeds; may be empty. A class that has no value in any seed is `null` in
    /// JSON and NaN here.
    #[serde(default, with = "nan_as_null")]
    pub per_class: Vec<f64>,
    /// Time for all seeds, in seconds.
    pub seconds: f64,
}

impl Row {
    /// Mean over the seeds; NaN without one.
    pub fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// Sample standard deviation over the seeds (divided by n - 1); 0 with fewer than two.
    pub fn std(&self) -> f64 {
        let n = self.values.len();
        if n < 2 {
            return 0.0;
        }
        let mean = self.mean();
        (self.values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt()
    }

    /// `43.2 ± 0.6`, in percent; without the deviation where there is one seed.
    pub fn percent(&self) -> String {
        let mean = 100.0 * self.mean();
        match self.values.len() {
            0 | 1 => format!("{mean:.1}"),
            _ => format!("{mean:.1} ± {:.1}", 100.0 * self.std()),
        }
    }

    /// What tells the row from others but for the backbone.
    fn key(&self) -> (&str, &str, usize) {
        (&self.protocol, &self.metric, self.labels)
    }
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>) -> Self {
        Report { title: title.into(), rows: Vec::new() }
    }

    /// Adds the rows of another report.
    pub fn merge(&mut self, other: Report) {
        self.rows.extend(other.rows);
    }

    /// The row of a protocol, metric, number of labels and backbone.
    pub fn find(&self, protocol: &str, metric: &str, labels: usize, backbone: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.key() == (protocol, metric, labels) && r.backbone == backbone)
    }

    /// The backbones, in the order of their first row.
    pub fn backbones(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for r in &self.rows {
            if !names.contains(&r.backbone.as_str()) {
                names.push(&r.backbone);
            }
        }
        names
    }

    /// One line for every protocol, metric and number of labels, with a cell for every backbone; header first.
    fn cells(&self) -> Vec<Vec<String>> {
        let backbones = self.backbones();
        let mut header: Vec<String> = ["protocol", "metric", "labels", "seeds"].map(String::from).to_vec();
        header.extend(backbones.iter().map(|b| (*b).to_string()));
        let mut lines = vec![header];
        let mut seen: Vec<(&str, &str, usize)> = Vec::new();
        for row in &self.rows {
            if seen.contains(&row.key()) {
                continue;
            }
            seen.push(row.key());
            let fraction = format!("{:.3}", 100.0 * row.fraction);
            let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
            let labels = format!("{} ({fraction} %)", row.labels);
            let mut line =
                vec![row.protocol.clone(), row.metric.clone(), labels, row.values.len().to_string()];
            line.extend(backbones.iter().map(|b| {
                let found = self.find(&row.protocol, &row.metric, row.labels, b);
                found.map_or_else(|| "-".to_string(), Row::percent)
            }));
            lines.push(line);
        }
        lines
    }

    /// A table for a terminal, in percent: mean and sample standard deviation over the seeds.
    pub fn to_text(&self) -> String {
        let lines = self.cells();
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = format!("{}\n", self.title);
        for line in &lines {
            let padded = line.iter().zip(&widths).enumerate().map(|(i, (cell, &w))| {
                let gap = " ".repeat(w - cell.chars().count());
                // Numbers stand right, names left.
                if i < 2 { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            });
            text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// The same table in Markdown.
    pub fn to_markdown(&self) -> String {
        let lines = self.cells();
        let row = |line: &[String]| {
            let cells: Vec<String> = line.iter().map(|c| c.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<&str> = (0..lines[0].len()).map(|i| if i < 2 { "---" } else { "---:" }).collect();
        let mut text = row(&lines[0]);
        text.push_str(&format!("| {} |\n", rule.join(" | ")));
        lines[1..].iter().for_each(|l| text.push_str(&row(l)));
        text
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text + "\n"
    }

    /// Writes the JSON, under a temporary name first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.to_json();
        write_atomically(path, |f| f.write_all(text.as_bytes()))
    }

    /// Reads what [`Report::write`] has written.
    ///
    /// # Errors
    /// The file cannot be read, or is no report.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot read the evaluation", e))?;
        let again = "write it again with `dtk eval`";
        let report: Report = serde_json::from_str(&text)
            .map_err(|e| Error::format(path, format!("is no evaluation report: {e}")).with_remedy(again))?;
        let whole = |r: &&Row| r.seeds.len() != r.values.len() || r.values.iter().any(|v| !v.is_finite());
        match report.rows.iter().find(whole) {
            None => Ok(report),
            Some(row) => Err(Error::format(path, "a row has not one number for every seed")
                .with_key(format!("{}/{}", row.protocol, row.metric))
                .with_remedy(again)),
        }
    }
}

/// JSON has no NaN.
mod nan_as_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(values: &[f64], s: S) -> Result<S::Ok, S::Error> {
        values.iter().map(|v| v.is_finite().then_some(*v)).collect::<Vec<Option<f64>>>().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f64>, D::Error> {
        let values = Vec::<Option<f64>>::deserialize(d)?;
        Ok(values.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backbone: &str, labels: usize, values: &[f64]) -> Row {
        Row {
            protocol: "linear".into(),
            backbone: backbone.into(),
            metric: "top1".into(),
            labels,
            fraction: labels as f64 / 400.0,
            seeds: (0..values.len() as u64).collect(),
            values: values.to_vec(),
            classes: vec!["a|b".into(), "c".into()],
            per_class: vec![0.5, f64::NAN],
            seconds: 1.5,
        }
    }

    #[test]
    fn statistics() {
        let r = row("x", 1, &[0.1, 0.2, 0.6]);
        assert!((r.mean() - 0.3).abs() < 1e-12);
        // Squares of -0.2, -0.1, 0.3 add up to 0.14.
        assert!((r.std() - 0.07f64.sqrt()).abs() < 1e-12);
        assert_eq!(r.percent(), "30.0 ± 26.5");
        let one = row("x", 1, &[0.25]);
        assert_eq!((one.std(), one.percent()), (0.0, "25.0".into()));
    }

    #[test]
    fn tables_put_backbones_side_by_side() {
        let mut report = Report::new("test");
        report.rows = vec![row("pretrained", 40, &[0.5, 0.7]), row("pretrained", 400, &[0.75])];
        report.merge(Report { title: String::new(), rows: vec![row("scratch", 40, &[0.25])] });
        let text = report.to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].ends_with("scratch") && lines[2].contains("60.0 ± 14.1"), "{text}");
        assert!(lines[2].contains("40 (10 %)") && lines[2].ends_with("25.0"), "{text}");
        assert!(lines[3].ends_with('-'), "{text}");
        let table = report.to_markdown();
        assert_eq!(table.lines().count(), 4);
        assert!(table.lines().all(|l| l.matches('|').count() == 7), "{table}");
    }

    #[test]
    fn json_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval.json");
        let report = Report { title: "t".into(), rows: vec![row("pretrained", 40, &[0.5])] };
        report.write(&path).unwrap();
        let again = Report::read(&path).unwrap();
        assert_eq!(again.rows[0].values, [0.5]);
        assert!(again.rows[0].per_class[1].is_nan() && again.rows[0].per_class[0] == 0.5);
        let mut lacking = report.clone();
        lacking.rows[0].seeds.clear();
        lacking.write(&path).unwrap();
        assert!(Report::read(&path).unwrap_err().is_format());
        for broken in ["", "{\"title\": 3}", "[]"] {
            std::fs::write(&path, broken).unwrap();
            let e = Report::read(&path).unwrap_err();
            assert!(e.is_format() && e.remedy().is_some(), "{broken}: {e}");
        }
        assert!(Report::read(dir.path().join("none.json")).unwrap_err().is_io());
    }
}
