//! Cut-outs: which there are, of which class and concept, and their pixels.

use super::super::decode::decode_file_rgba;
use super::super::files::{find_files, is_image, key};
use super::super::tables::{BACKGROUND, read_csv, read_text};
use crate::error::{Error, Result};
use image::RgbaImage;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A pixel of a mask belongs to the object where its alpha is above this.
pub(super) const OPAQUE: u8 = 127;

/// A cut-out that is known, but not read yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    pub(super) class: String,
    /// What it shows. Different pictures of one concept stay in one split.
    pub(super) concept: String,
    pub(super) file: PathBuf,
}

/// A line of a list in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    file: PathBuf,
    class: String,
    concept: Option<String>,
}

/// The cut-outs of a folder (the class is the first sub-folder, the concept the file's name without its extension) or of a
/// list: CSV with the header `file,class`, or JSON, an array of objects with `file`, `class` and perhaps `concept`. Paths
/// of a list are relative to its folder. Sorted by class, concept and file.
///
/// # Errors
/// The path does not exist, a list is malformed, there is no cut-out, one lies outside of all classes, a class has none,
/// or is called `background`.
pub(super) fn list(path: &Path) -> Result<Vec<Listed>> {
    let fail = |m: String, remedy: &str| Error::data(m).with_file(path).with_remedy(remedy);
    let mut all = if path.is_dir() { list_folder(path)? } else { list_file(path)? };
    if all.is_empty() {
        return Err(fail(
            "no cut-outs found".into(),
            "put PNG or WebP files with alpha into one folder per class",
        ));
    }
    if all.iter().any(|c| c.class == BACKGROUND) {
        let m = format!("`{BACKGROUND}` is the class of pixels that show no cut-out");
        return Err(fail(m, "give this class another name"));
    }
    all.sort();
    Ok(all)
}

fn list_folder(path: &Path) -> Result<Vec<Listed>> {
    let fail = |m: String, remedy: &str| Error::data(m).with_file(path).with_remedy(remedy);
    let mut all = Vec::new();
    for file in find_files(path, &is_image)? {
        let parts = key(&file);
        let text = String::from_utf8_lossy(&parts);
        let Some((class, _)) = text.split_once('/') else {
            let m = format!("the cut-out {text} lies outside of all class folders");
            return Err(fail(m, "put every cut-out into a sub-folder named after its class"));
        };
        all.push(Listed { class: class.to_string(), concept: stem(&file), file: path.join(&file) });
    }
    let classes: BTreeSet<&str> = all.iter().map(|c| c.class.as_str()).collect();
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, "cannot list the folder", e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(path, "cannot list the folder", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') && !classes.contains(name.as_str()) {
            let m = format!("the class `{name}` has no cut-outs");
            return Err(fail(m, "fill the folder or remove it"));
        }
    }
    Ok(all)
}

fn list_file(path: &Path) -> Result<Vec<Listed>> {
    let lines = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        serde_json::from_str(&read_text(path)?).map_err(|e| {
            Error::format(path, format!("is not a list of cut-outs: {e}"))
                .with_remedy(r#"write [{"file": "a.png", "class": "cat"}, ...]"#)
        })?
    } else {
        read_csv(path, &["file", "class"])?
            .into_iter()
            .filter_map(|(_, row)| <[String; 2]>::try_from(row).ok())
            .map(|[file, class]| Line { file: file.into(), class, concept: None })
            .collect::<Vec<_>>()
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let listed = |l: Line| {
        let concept = l.concept.unwrap_or_else(|| stem(&l.file));
        Listed { class: l.class, concept, file: folder.join(&l.file) }
    };
    Ok(lines.into_iter().map(listed).collect())
}

pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The pixels of a cut-out: RGB multiplied by alpha, and alpha, in 0..=1.
#[derive(Clone, Debug)]
pub(super) struct Cutout {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<[f32; 4]>,
}

impl Cutout {
    /// Reads a cut-out, cuts off what is transparent around it, and halves it while its longer side is at least
    /// `2 * side`.
    ///
    /// # Errors
    /// The file cannot be read; it has no transparent pixel, or no opaque one.
    pub(super) fn read(file: &Path, side: f32) -> Result<Self> {
        let image = decode_file_rgba(file)?;
        let unusable = |m: &str| {
            Error::data(m)
                .with_file(file)
                .with_remedy("give a picture whose background is transparent, or leave it out")
        };
        if image.pixels().all(|p| p[3] > OPAQUE) {
            return Err(unusable("is opaque: it has no background to cut off"));
        }
        let visible = |p: &image::Rgba<u8>| p[3] > OPAQUE;
        let shown = image.enumerate_pixels().filter(|(_, _, p)| visible(p));
        let bounds = shown.fold(None, |b: Option<[u32; 4]>, (x, y, _)| {
            let [x0, y0, x1, y1] = b.unwrap_or([x, y, x, y]);
            Some([x0.min(x), y0.min(y), x1.max(x), y1.max(y)])
        });
        let bounds = bounds.ok_or_else(|| unusable("is transparent: it shows nothing"))?;
        Ok(Self::cut(&image, bounds).halved_to(side))
    }

    /// The part of an image between two corners, both inside.
    fn cut(image: &RgbaImage, [x0, y0, x1, y1]: [u32; 4]) -> Self {
        let pixel = |x: u32, y: u32| {
            let [r, g, b, a] = image.get_pixel(x, y).0.map(|v| f32::from(v) / 255.0);
            [r * a, g * a, b * a, a]
        };
        let pixels =
            (y0..=y1).flat_map(|y| (x0..=x1).map(move |x| (x, y))).map(|(x, y)| pixel(x, y)).collect();
        Cutout { width: (x1 - x0 + 1) as usize, height: (y1 - y0 + 1) as usize, pixels }
    }

    /// The longer side in pixels.
    pub(super) fn side(&self) -> usize {
        self.width.max(self.height)
    }

    /// Halved while its longer side is at least `2 * side`.
    pub(super) fn halved_to(mut self, side: f32) -> Self {
        while self.side() > 1 && self.side() as f32 >= 2.0 * side {
            self = self.halved();
        }
        self
    }

    /// At half the size, each pixel the mean of four.
    fn halved(&self) -> Self {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let mean = |x: usize, y: usize| {
            let four = [(0, 0), (1, 0), (0, 1), (1, 1)]
                .map(|(i, j)| self.at((2 * x + i) as i64, (2 * y + j) as i64));
            std::array::from_fn(|c| 0.25 * four.iter().map(|p| p[c]).sum::<f32>())
        };
        let pixels =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| mean(x, y)).collect();
        Cutout { width, height, pixels }
    }

    /// A pixel; transparent outside.
    fn at(&self, x: i64, y: i64) -> [f32; 4] {
        let inside = (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y);
        if inside { self.pixels[y as usize * self.width + x as usize] } else { [0.0; 4] }
    }

    /// The value between pixels; the middle of the first one is (0.5, 0.5).
    pub(super) fn sample(&self, x: f32, y: f32) -> [f32; 4] {
        let (x, y) = (x - 0.5, y - 0.5);
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = (x - x0, y - y0);
        let (i, j) = (x0 as i64, y0 as i64);
        let corners = [
            (self.at(i, j), (1.0 - fx) * (1.0 - fy)),
            (self.at(i + 1, j), fx * (1.0 - fy)),
            (self.at(i, j + 1), (1.0 - fx) * fy),
            (self.at(i + 1, j + 1), fx * fy),
        ];
        std::array::from_fn(|c| corners.iter().map(|(p, w)| p[c] * w).sum())
    }
}
