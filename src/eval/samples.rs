//! Images with labels and masks, at the size that the backbone sees.

use crate::data::transform::{center_crop, to_tensor};
use crate::data::{ImageSource, Mask, RgbImage};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// A part of the data. Images are decoded when they are needed, in parallel, and kept if all of them fit the budget.
pub(super) struct Samples {
    source: Arc<dyn ImageSource>,
    count: usize,
    size: [u32; 2],
    background: [u8; 3],
    classes: OnceLock<Vec<Option<u32>>>,
    images: Option<Vec<OnceLock<RgbImage>>>,
    masks: Vec<OnceLock<Vec<u16>>>,
}

impl Samples {
    /// The first `limit` images of a source (all for 0), at `size` (height, width).
    pub fn new(
        source: Arc<dyn ImageSource>,
        limit: usize,
        size: [u32; 2],
        background: [u8; 3],
        cache_mib: usize,
    ) -> Self {
        let count = if limit == 0 { source.len() } else { limit.min(source.len()) };
        let bytes = count.saturating_mul(3 * size[0] as usize * size[1] as usize);
        let slots = || (0..count).map(|_| OnceLock::new()).collect();
        let images = (bytes <= cache_mib << 20).then(slots);
        let masks = if images.is_some() { (0..count).map(|_| OnceLock::new()).collect() } else { Vec::new() };
        Samples { source, count, size, background, classes: OnceLock::new(), images, masks }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Height and width of the images.
    pub fn size(&self) -> [usize; 2] {
        self.size.map(|s| s as usize)
    }

    /// Classes of the labels.
    pub fn classes(&self) -> &[String] {
        self.source.classes()
    }

    /// Classes of the masks.
    pub fn mask_classes(&self) -> &[String] {
        self.source.mask_classes()
    }

    /// The id that does not count.
    pub fn ignore(&self) -> Option<u16> {
        self.source.ignore_index()
    }

    /// What tells the set from others.
    pub fn fingerprint(&self) -> String {
        self.source.fingerprint()
    }

    /// Whether the other part is of the same set. Fingerprints do not cover the content of files, so the first and
    /// the last common image are compared too.
    pub fn is(&self, other: &Samples) -> Result<bool> {
        let last = self.count.min(other.count) - 1;
        Ok(self.fingerprint() == other.fingerprint()
            && self.image(0)? == other.image(0)?
            && self.image(last)? == other.image(last)?)
    }

    /// The class of an image, if it has one.
    pub fn class(&self, index: usize) -> Option<u32> {
        let find = || (0..self.count).into_par_iter().map(|i| self.source.label(i)).collect();
        self.classes.get_or_init(find)[index]
    }

    /// The class of an image, which must have one.
    pub fn label(&self, index: usize) -> Result<u16> {
        let classes = self.classes().len();
        match self.class(index) {
            Some(l) if (l as usize) < classes => Ok(l as u16),
            Some(l) => Err(Error::data(format!(
                "{}: label {l} is none of {classes} classes",
                self.source.name(index)
            ))
            .with_remedy("check the labels")),
            None => Err(Error::data(format!("{}: the image has no label", self.source.name(index)))
                .with_remedy(
                    "put images into one folder for each class, or leave classification out of the protocols",
                )),
        }
    }

    /// One image, cropped.
    pub fn image(&self, index: usize) -> Result<RgbImage> {
        let make = || center_crop(&self.source.load(index, self.background)?, self.size[0], self.size[1]);
        match &self.images {
            None => make(),
            Some(slots) => kept(&slots[index], make),
        }
    }

    /// The images `indices` as `[n, height, width, 3]` in -1..1, some of them mirrored.
    pub fn images(&self, indices: &[usize], mirrored: &[bool]) -> Result<Tensor> {
        let mut images: Vec<RgbImage> = indices.par_iter().map(|&i| self.image(i)).collect::<Result<_>>()?;
        for (image, _) in images.iter_mut().zip(mirrored).filter(|(_, m)| **m) {
            image::imageops::flip_horizontal_in_place(image);
        }
        to_tensor(&images)
    }

    /// The masks of the images `indices` one after another, row-major, some of them mirrored.
    pub fn masks(&self, indices: &[usize], mirrored: &[bool]) -> Result<Vec<u16>> {
        let [h, w] = self.size();
        let load = |&i: &usize| match self.masks.get(i) {
            None => self.mask(i),
            Some(slot) => kept(slot, || self.mask(i)),
        };
        let masks: Vec<Vec<u16>> = indices.par_iter().map(load).collect::<Result<_>>()?;
        let mut all = Vec::with_capacity(masks.len() * h * w);
        for (i, mut ids) in masks.into_iter().enumerate() {
            if mirrored.get(i) == Some(&true) {
                ids.chunks_exact_mut(w).for_each(<[u16]>::reverse);
            }
            all.extend(ids);
        }
        Ok(all)
    }

    /// One mask, checked and cropped.
    fn mask(&self, index: usize) -> Result<Vec<u16>> {
        let name = || self.source.name(index);
        let mask = self.source.mask(index)?.ok_or_else(|| {
            Error::data(format!("{}: the image has no mask", name()))
                .with_remedy("put a mask beside every image, or leave segmentation out of the protocols")
        })?;
        let (classes, ignore) = (self.mask_classes().len(), self.ignore());
        if let Some(id) = mask.ids().iter().find(|&&id| usize::from(id) >= classes && Some(id) != ignore) {
            return Err(Error::data(format!(
                "{}: the mask has id {id}, and there are {classes} classes",
                name()
            ))
            .with_remedy(
                "check the mask against the list of classes; pixels that do not count have the ignored id",
            ));
        }
        Ok(crop_mask(&mask, self.size))
    }
}

/// What a slot holds; `make` fills it.
fn kept<T: Clone>(slot: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<T> {
    if let Some(value) = slot.get() {
        return Ok(value.clone());
    }
    let value = make()?;
    // Another thread may have been faster, with the same value.
    Ok(slot.get_or_init(|| value).clone())
}

/// The part of a mask that [`center_crop`] shows of its image, at the same size: the pixel under each centre.
fn crop_mask(mask: &Mask, [height, width]: [u32; 2]) -> Vec<u16> {
    let (w, h) = (f64::from(mask.width()), f64::from(mask.height()));
    // The whole image is shrunk or grown by one factor until it covers the target, whose centre is then cut out.
    let scale = (f64::from(width) / w).max(f64::from(height) / h);
    let axis = |target: u32, side: f64, last: u32| -> Vec<usize> {
        let covering = (side * scale).round_ties_even().max(f64::from(target));
        let offset = ((covering - f64::from(target)) / 2.0).floor();
        let at = |i: u32| (((f64::from(i) + offset + 0.5) * side / covering) as u32).min(last) as usize;
        (0..target).map(at).collect()
    };
    let (rows, columns) = (axis(height, h, mask.height() - 1), axis(width, w, mask.width() - 1));
    let stride = mask.width() as usize;
    rows.iter().flat_map(|y| columns.iter().map(move |x| mask.ids()[y * stride + x])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// An image whose pixels tell its mask stays so after both were cropped.
    #[test]
    fn masks_follow_their_images() {
        for ((w, h), size) in
            [((8, 8), [4, 4]), ((20, 12), [6, 6]), ((9, 31), [4, 8]), ((5, 5), [5, 5]), ((4, 4), [8, 8])]
        {
            // Two halves, left and right or above and below.
            let wide = w >= h;
            let id = |x: u32, y: u32| u16::from(if wide { x >= w / 2 } else { y >= h / 2 });
            let ids = (0..h).flat_map(|y| (0..w).map(move |x| (x, y))).map(|(x, y)| id(x, y)).collect();
            let mask = Mask::new(h, w, ids).unwrap();
            let image = RgbImage::from_fn(w, h, |x, y| Rgb([255 * id(x, y) as u8; 3]));
            let (image, ids) = (center_crop(&image, size[0], size[1]).unwrap(), crop_mask(&mask, size));
            assert_eq!(ids.len(), (size[0] * size[1]) as usize);
            for (p, id) in image.pixels().zip(&ids) {
                // Pixels on the border are grey.
                let value = p.0[0];
                if !(40..=215).contains(&value) {
                    assert_eq!(u16::from(value > 127), *id, "{w}x{h} to {size:?}");
                }
            }
        }
    }
}
