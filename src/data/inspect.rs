//! Looking through a whole set: counts, sizes, balance, what is malformed.

use super::mask::Mask;
use super::scenes::hsv;
use super::source::ImageSource;
use super::transform::resize;
use crate::error::{Error, Result};
use image::{Rgb, RgbImage, imageops};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Images looked at between two reports of progress.
const BATCH: usize = 256;

/// What [`inspect`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// Images in the set.
    pub images: usize,
    /// Images looked at.
    pub inspected: usize,
    /// How many images have each size (height, width).
    pub sizes: BTreeMap<(u32, u32), usize>,
    /// Images of each label class.
    pub labels: Vec<usize>,
    /// Images without a label.
    pub unlabelled: usize,
    /// Images with a mask.
    pub masks: usize,
    /// Pixels of each mask class.
    pub mask_pixels: Vec<u64>,
    /// Pixels to be ignored.
    pub ignored_pixels: u64,
    /// Images that cannot be used, and why.
    pub malformed: Vec<Malformed>,
}

/// An image that cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Malformed {
    /// Its name.
    pub name: String,
    /// Why, in one line.
    pub error: String,
}

/// What one image adds.
struct Seen {
    size: (u32, u32),
    label: Option<u32>,
    mask: Option<Mask>,
}

/// Reads the first `limit` images (all of them without a limit) with their masks and labels, on all threads. What is
/// malformed is counted and listed, and is no error. `progress` is told how many images are done.
pub fn inspect(set: &dyn ImageSource, limit: Option<usize>, progress: &mut dyn FnMut(usize)) -> Inspection {
    let inspected = set.len().min(limit.unwrap_or(usize::MAX));
    let mut found = Inspection {
        images: set.len(),
        inspected,
        labels: vec![0; set.classes().len()],
        mask_pixels: vec![0; set.mask_classes().len()],
        ..Inspection::default()
    };
    for first in (0..inspected).step_by(BATCH) {
        let batch = first..inspected.min(first + BATCH);
        let seen: Vec<Result<Seen>> = batch.clone().into_par_iter().map(|i| look(set, i)).collect();
        for (i, seen) in batch.clone().zip(seen) {
            if let Err(e) = seen.and_then(|s| found.add(set, &s)) {
                let error = e.to_string().lines().next().unwrap_or_default().to_string();
                found.malformed.push(Malformed { name: set.name(i), error });
            }
        }
        progress(batch.end);
    }
    found
}

fn look(set: &dyn ImageSource, index: usize) -> Result<Seen> {
    let image = set.load(index, [255; 3])?;
    Ok(Seen { size: (image.height(), image.width()), label: set.label(index), mask: set.mask(index)? })
}

impl Inspection {
    fn add(&mut self, set: &dyn ImageSource, seen: &Seen) -> Result<()> {
        let out_of_range = |what: &str, id: usize, count: usize| {
            Error::data(format!("the {what} {id} is out of range: there are {count} classes"))
        };
        let label = seen.label.map(|l| l as usize);
        if let Some(l) = label.filter(|&l| l >= self.labels.len()) {
            return Err(out_of_range("label", l, self.labels.len()));
        }
        if let Some(mask) = &seen.mask {
            let mut pixels = vec![0; self.mask_pixels.len()];
            let mut ignored = 0;
            for &id in mask.ids() {
                match pixels.get_mut(usize::from(id)) {
                    Some(p) => *p += 1,
                    None if Some(id) == set.ignore_index() => ignored += 1,
                    None => return Err(out_of_range("mask id", id.into(), self.mask_pixels.len())),
                }
            }
            self.masks += 1;
            self.ignored_pixels += ignored;
            self.mask_pixels.iter_mut().zip(pixels).for_each(|(sum, p)| *sum += p);
        }
        *self.sizes.entry(seen.size).or_default() += 1;
        match label {
            Some(l) => self.labels[l] += 1,
            None => self.unlabelled += 1,
        }
        Ok(())
    }
}

/// A picture of `count` images spread evenly over a set, `columns` in a row, each fitted into a square of `side` pixels; at
/// the right of each, where it has one, the image under the colours of its mask. Unreadable images stay grey.
///
/// # Errors
/// [`Error::usage`]: no image, column or pixel, or a picture of more than 2^28 pixels.
pub fn mosaic(set: &dyn ImageSource, count: usize, columns: usize, side: u32) -> Result<RgbImage> {
    let count = count.min(set.len());
    let parts = if set.mask_classes().is_empty() { 1 } else { 2 };
    let columns = columns.min(count);
    let (width, rows) =
        ((columns * parts) as u64 * u64::from(side), count.checked_div(columns).unwrap_or(0) as u64 + 1);
    if count == 0 || columns == 0 || side == 0 || width * rows * u64::from(side) > 1 << 28 {
        return Err(Error::usage(format!(
            "cannot draw {count} images in {columns} columns of {side} pixels"
        ))
        .with_remedy("choose fewer or smaller images, at least one of each"));
    }
    let cells: Vec<[Option<RgbImage>; 2]> =
        (0..count).into_par_iter().map(|i| cell(set, i * set.len() / count, side)).collect();
    let height = count.div_ceil(columns) as u32 * side;
    let mut out = RgbImage::from_pixel(width as u32, height, Rgb([128; 3]));
    for (i, pictures) in cells.iter().enumerate() {
        for (k, picture) in pictures.iter().enumerate() {
            if let Some(p) = picture {
                let x = ((i % columns * parts + k) as u32 * side) + (side - p.width()) / 2;
                let y = (i / columns) as u32 * side + (side - p.height()) / 2;
                imageops::replace(&mut out, p, x.into(), y.into());
            }
        }
    }
    Ok(out)
}

/// An image, and the same under its mask, as large as fits into a square; `None` for what cannot be read.
fn cell(set: &dyn ImageSource, index: usize, side: u32) -> [Option<RgbImage>; 2] {
    let Ok(image) = set.load(index, [255; 3]) else { return [None, None] };
    let (w, h) = image.dimensions();
    let scale = f64::from(side) / f64::from(w.max(h));
    let fit = |v: u32| ((f64::from(v) * scale).round() as u32).clamp(1, side);
    let (w, h) = (fit(w), fit(h));
    // Few pixels are shown as they are.
    let resized = if scale > 1.0 {
        Ok(imageops::resize(&image, w, h, imageops::FilterType::Nearest))
    } else {
        resize(&image, h, w)
    };
    let Ok(image) = resized else { return [None, None] };
    let mask = set.mask(index).ok().flatten().and_then(|m| m.resize_nearest(h, w).ok());
    let coloured = mask.map(|mask| {
        let ignore = set.ignore_index();
        RgbImage::from_fn(w, h, |x, y| {
            let id = mask.ids()[(y * w + x) as usize];
            let colour = if Some(id) == ignore { [1.0; 3] } else { colour(id) };
            let grey = image.get_pixel(x, y).0.iter().map(|&v| f32::from(v)).sum::<f32>() / 3.0;
            Rgb(colour.map(|c| (0.4 * grey + 0.6 * 255.0 * c).round() as u8))
        })
    });
    [Some(image), coloured]
}

/// A colour for a class: black for the first, and hues that differ from those before.
fn colour(id: u16) -> [f32; 3] {
    match id {
        0 => [0.0; 3],
        // Steps of the golden ratio never come near an earlier one.
        _ => hsv(f32::from(id) * 0.618_034, 0.85, 0.95),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{MaskFolder, SceneConfig, Scenes};

    #[test]
    fn counts_agree_with_the_set() {
        let set = Scenes::new(SceneConfig { count: 300, first: 0, height: 8, width: 12 }).unwrap();
        let mut steps = Vec::new();
        let all = inspect(&set, None, &mut |n| steps.push(n));
        assert_eq!(steps, [256, 300]);
        assert_eq!((all.images, all.inspected, all.masks, all.unlabelled), (300, 300, 300, 0));
        assert_eq!(all.sizes, BTreeMap::from([((8, 12), 300)]));
        assert_eq!(all.mask_pixels.iter().sum::<u64>(), 300 * 96);
        assert_eq!((all.labels.iter().sum::<usize>(), all.malformed.len()), (300, 0));
        let zeros = (0..300).filter(|&i| set.label(i) == Some(0)).count();
        assert_eq!(all.labels[0], zeros);
        assert_eq!(inspect(&set, Some(10), &mut |_| ()).inspected, 10);
    }

    #[test]
    fn malformed_images_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        let set = Scenes::new(SceneConfig { count: 4, first: 0, height: 8, width: 8 }).unwrap();
        set.write(&out, &|_| ()).unwrap();
        std::fs::write(out.join("images/000001.png"), "").unwrap();
        Mask::new(8, 8, vec![77; 64]).unwrap().write_png(out.join("masks/000002.png")).unwrap();
        let set = MaskFolder::open(&out).unwrap();
        let found = inspect(&set, None, &mut |_| ());
        let names: Vec<&str> = found.malformed.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["images/000001.png", "images/000002.png"]);
        assert!(found.malformed[0].error.contains("empty") && found.malformed[1].error.contains("77"));
        assert_eq!((found.masks, found.sizes[&(8, 8)]), (2, 2));
        let picture = mosaic(&set, 4, 2, 16).unwrap();
        assert_eq!(picture.dimensions(), (64, 32));
        assert_eq!(picture.get_pixel(40, 8).0, [128; 3], "an unreadable image stays grey");
        assert_eq!(picture.get_pixel(0, 0), set.load(0, [0; 3]).unwrap().get_pixel(0, 0));
        assert_eq!(mosaic(&set, 3, 8, 16).unwrap().dimensions(), (96, 16));
        for (count, columns, side) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (4, 1, 1 << 16)] {
            assert!(mosaic(&set, count, columns, side).unwrap_err().is_usage());
        }
    }
}
