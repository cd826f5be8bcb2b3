//! `dtk data inspect`.

use super::Counter;
use crate::data::{ImageSource, Inspection, Split, inspect, mosaic, open_path};
use crate::error::{Error, Result};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Malformed images that are listed; `--json` lists all.
const LISTED: usize = 20;

/// Examine a set: counts, sizes, classes, balance of labels and mask pixels. Ends with exit code 1 if something is
/// malformed.
#[derive(Args)]
pub struct Inspect {
    /// A folder, a list of files, an IDX file: whatever --data takes.
    path: PathBuf,
    /// Which part, where the set has two.
    #[arg(long, value_enum, default_value = "train")]
    split: SplitName,
    /// Look at the first N images only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Write a picture of 64 images, with masks where there are some.
    #[arg(long, value_name = "PNG")]
    mosaic: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Test,
}

impl Inspect {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        if self.limit == Some(0) {
            return Err(Error::usage("no image to look at")
                .with_key("--limit")
                .with_remedy("give at least 1"));
        }
        let split = match self.split {
            SplitName::Train => Split::Train,
            SplitName::Test => Split::Test,
        };
        let set = open_path(&self.path, split)?;
        let counter = Counter::new(set.len().min(self.limit.unwrap_or(usize::MAX)));
        let found = inspect(&*set, self.limit, &mut |done| {
            if !self.json {
                counter.report(done);
            }
        });
        if self.json {
            println!("{}", self.as_json(&*set, &found));
        } else {
            print_findings(&*set, &found);
        }
        if let Some(path) = &self.mosaic {
            let picture = mosaic(&*set, 64, 8, 64)?;
            picture
                .save_with_format(path, image::ImageFormat::Png)
                .map_err(|e| Error::io(path, "cannot write the mosaic", std::io::Error::other(e)))?;
            if !self.json {
                println!("wrote {}", path.display());
            }
        }
        if found.malformed.is_empty() {
            return Ok(());
        }
        let m = format!("{} of {} images are malformed", found.malformed.len(), found.inspected);
        Err(Error::data(m).with_file(&self.path).with_remedy("repair or remove what is listed above"))
    }

    fn as_json(&self, set: &dyn ImageSource, found: &Inspection) -> serde_json::Value {
        let sizes: Vec<_> = found
            .sizes
            .iter()
            .map(|((h, w), n)| serde_json::json!({"height": h, "width": w, "images": n}))
            .collect();
        serde_json::json!({
            "path": self.path,
            "fingerprint": set.fingerprint(),
            "images": found.images,
            "inspected": found.inspected,
            "sizes": sizes,
            "classes": set.classes(),
            "labels": found.labels,
            "unlabelled": found.unlabelled,
            "masks": found.masks,
            "mask_classes": set.mask_classes(),
            "mask_pixels": found.mask_pixels,
            "ignored_pixels": found.ignored_pixels,
            "malformed": found.malformed,
        })
    }
}

fn print_findings(set: &dyn ImageSource, found: &Inspection) {
    println!("fingerprint  {}", set.fingerprint());
    println!("images       {} ({} looked at)", found.images, found.inspected);
    let mut sizes: Vec<_> = found.sizes.iter().collect();
    sizes.sort_by_key(|(size, n)| (std::cmp::Reverse(**n), **size));
    for ((h, w), n) in sizes.iter().take(5) {
        println!("size         {h}x{w}: {n} images");
    }
    if sizes.len() > 5 {
        let all = || found.sizes.keys();
        let (least, most) = (all().map(|s| s.0.min(s.1)).min(), all().map(|s| s.0.max(s.1)).max());
        let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
        println!("size         {} more; sides of {least} to {most} pixels", sizes.len() - 5);
    }
    if set.classes().is_empty() {
        println!("labels       none");
    } else {
        println!("labels       {} classes, {} images without", set.classes().len(), found.unlabelled);
        let total: usize = found.labels.iter().sum();
        for (name, &n) in set.classes().iter().zip(&found.labels) {
            println!("  {name:20} {n:>10} images {:>6.2} %", percent(n as f64, total as f64));
        }
    }
    if set.mask_classes().is_empty() {
        println!("masks        none");
    } else {
        println!("masks        {}, {} classes", found.masks, set.mask_classes().len());
        let total = found.mask_pixels.iter().sum::<u64>() + found.ignored_pixels;
        let rows = set.mask_classes().iter().map(String::as_str).zip(found.mask_pixels.iter().copied());
        for (name, n) in rows.chain((found.ignored_pixels > 0).then_some(("(ignored)", found.ignored_pixels)))
        {
            println!("  {name:20} {n:>10} pixels {:>6.2} %", percent(n as f64, total as f64));
        }
    }
    println!("malformed    {}", found.malformed.len());
    for m in found.malformed.iter().take(LISTED) {
        println!("  {}: {}", m.name, m.error);
    }
    if found.malformed.len() > LISTED {
        println!("  and {} more; --json lists all", found.malformed.len() - LISTED);
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    100.0 * part / whole.max(1.0)
}
