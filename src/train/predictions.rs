//! Predicted masks over images.

use crate::data::Mask;
use crate::error::{Error, Result};
use crate::eval;
use crate::viz::gallery::{Gallery, Picture};
use crate::viz::{Mosaic, overlay};
use image::RgbImage;
use std::path::Path;

/// How strongly the classes cover the image.
const STRENGTH: f32 = 0.6;

/// Writes predicted masks over their images: for every protocol and number of labels a mosaic of the image, the truth, and
/// what the readout of each backbone says. `tile` is the width of one, in pixels. Gives the names of the files.
///
/// # Errors
/// No pictures, backbones with other images than the first, masks of another size than their image, or a file that cannot be
/// written.
pub fn predictions(dir: &Path, pictures: &[eval::Picture], tile: u32) -> Result<Vec<String>> {
    if pictures.is_empty() {
        return Err(Error::usage("there are no predicted masks to show")
            .with_remedy("evaluate a segmentation protocol, with at least 1 picture"));
    }
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for p in pictures {
        if !kinds.contains(&(p.protocol.as_str(), p.labels)) {
            kinds.push((&p.protocol, p.labels));
        }
    }
    let mut written = Vec::new();
    for (protocol, labels) in kinds {
        let of_kind: Vec<&eval::Picture> =
            pictures.iter().filter(|p| p.protocol == protocol && p.labels == labels).collect();
        let file = format!("masks_{protocol}_{labels}.png");
        let how = if protocol == "seg_finetune" { "fine-tuned" } else { "with the backbone frozen" };
        let (columns, image) = mosaic(&of_kind, tile)?;
        let picture = Picture {
            file: file.clone(),
            title: format!("Predicted masks, {labels} labelled images"),
            caption: format!(
                "Segmentation {how}; one colour is one class. The true masks are beside the images."
            ),
            columns,
            band: Mosaic::BAND,
        };
        Gallery::add(dir, picture, &image)?;
        written.push(file);
    }
    Ok(written)
}

/// One protocol and number of labels: the columns' names, and the picture.
fn mosaic(pictures: &[&eval::Picture], tile: u32) -> Result<(Vec<String>, RgbImage)> {
    let over = |image: &RgbImage, mask: &Mask| overlay(image, mask.ids(), None, STRENGTH);
    let mut backbones: Vec<&str> = Vec::new();
    for p in pictures {
        if !backbones.contains(&p.backbone.as_str()) {
            backbones.push(&p.backbone);
        }
    }
    let first: Vec<&&eval::Picture> = pictures.iter().filter(|p| p.backbone == backbones[0]).collect();
    let mut rows = Vec::new();
    for p in &first {
        let mut row = vec![p.image.clone(), over(&p.image, &p.truth)?];
        for backbone in &backbones {
            let same = pictures.iter().find(|q| q.backbone == *backbone && q.index == p.index);
            let q = same.ok_or_else(|| {
                Error::usage(format!("`{backbone}` has no mask of test image {}", p.index))
                    .with_remedy("give all backbones the same number of pictures")
            })?;
            row.push(over(&p.image, &q.predicted)?);
        }
        rows.push(row);
    }
    let mut columns = vec!["image".to_string(), "truth".to_string()];
    columns.extend(backbones.iter().map(|b| (*b).to_string()));
    let (w, h) = first[0].image.dimensions();
    let height = (u64::from(tile) * u64::from(h) / u64::from(w)).max(1) as u32;
    let image = Mosaic { columns: columns.clone(), rows, tile: [tile, height] }.render()?;
    Ok((columns, image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture(backbone: &str, labels: usize, index: usize) -> eval::Picture {
        eval::Picture {
            protocol: "seg_frozen".into(),
            backbone: backbone.into(),
            labels,
            index,
            image: RgbImage::from_pixel(4, 2, Rgb([90; 3])),
            truth: Mask::new(2, 4, vec![1; 8]).unwrap(),
            predicted: Mask::new(2, 4, vec![2; 8]).unwrap(),
        }
    }

    #[test]
    fn one_mosaic_for_every_number_of_labels() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<eval::Picture> =
            [("pretrained", 40), ("pretrained", 400), ("scratch", 40), ("scratch", 400)]
                .into_iter()
                .flat_map(|(b, n)| [picture(b, n, 0), picture(b, n, 1)])
                .collect();
        let files = predictions(dir.path(), &all, 40).unwrap();
        assert_eq!(files, ["masks_seg_frozen_40.png", "masks_seg_frozen_400.png"]);
        let gallery = Gallery::read(dir.path()).unwrap();
        assert_eq!(gallery.pictures[0].columns, ["image", "truth", "pretrained", "scratch"]);
        let image = image::open(dir.path().join(&files[0])).unwrap().into_rgb8();
        assert_eq!(image.dimensions(), (4 * 44, Mosaic::BAND + 2 * 24));
        // Truth and prediction differ in colour, in the middle of their tiles.
        let at = |column: u32| image.get_pixel(column * 44 + 12, Mosaic::BAND + 12).0;
        assert!(at(1) != at(2) && at(2) == at(3) && at(0) == [90; 3]);
    }

    #[test]
    fn what_cannot_be_shown_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(predictions(dir.path(), &[], 40).unwrap_err().is_usage());
        let uneven = [picture("pretrained", 40, 0), picture("pretrained", 40, 1), picture("scratch", 40, 0)];
        let e = predictions(dir.path(), &uneven, 40).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("scratch"), "{e}");
        let mut small = picture("pretrained", 40, 0);
        small.truth = Mask::new(1, 1, vec![0]).unwrap();
        assert!(predictions(dir.path(), &[small], 40).unwrap_err().is_shape());
    }
}
