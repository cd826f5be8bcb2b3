//! Looking at features: maps as colours, attention, segments, masks, labelled mosaics, and charts for pages.
//!
//! Maps are f32 tensors `[N, H, W, C]`, pictures 8-bit RGB. Nothing here depends on the number of threads or on the time
//! of day: the same maps give the same bytes.

pub mod chart;
pub mod colour;
mod font;
pub mod gallery;
pub mod html;
mod kmeans;
mod mosaic;
mod pca;

pub use kmeans::{KMeans, Segments};
pub use mosaic::{Mosaic, enlarge, overlay};
pub use pca::Pca;

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use image::RgbImage;

/// Samples, height, width and channels of maps, and their values, all finite.
fn maps<'a>(what: &str, t: &'a Tensor) -> Result<([usize; 4], &'a [f32])> {
    let (n, h, w, c) = t.shape().nhwc(what)?;
    if t.elems() == 0 {
        return Err(Error::shape(what, "the maps are empty").with_tensor("maps", t));
    }
    let values = t.f32s()?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(([n, h, w, c], values)),
        Some(i) => Err(Error::numeric(what, format!("the maps hold {}", values[i]))
            .with_tensor("maps", t)
            .with_remedy("check the weights of the network that gave the maps; training may have diverged")),
    }
}

/// The attention maps of feature maps (the paper's Eq. 2): at every pixel the sum over channels of `|a|^p`, each image's
/// own from least to most, as colours from dark to bright.
///
/// # Errors
/// Maps that are no `[N, H, W, C]`, or hold values that are not finite.
pub fn attention(map: &Tensor, p: f32) -> Result<Vec<RgbImage>> {
    let ([_, h, w, c], values) = maps("attention", map)?;
    let picture = |image: &[f32]| {
        let power = |v: f32| f64::from(v.abs()).powf(f64::from(p));
        let heat: Vec<f64> = image.chunks_exact(c).map(|px| px.iter().map(|v| power(*v)).sum()).collect();
        let least = heat.iter().copied().fold(f64::INFINITY, f64::min);
        let range = heat.iter().copied().fold(0.0, f64::max) - least;
        let scale = if range > 0.0 { 1.0 / range } else { 0.0 };
        RgbImage::from_fn(w as u32, h as u32, |x, y| {
            image::Rgb(colour::heat((heat[y as usize * w + x as usize] - least) * scale))
        })
    };
    Ok(values.chunks_exact(h * w * c).map(picture).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_brightest_where_features_are_large() {
        let mut v = vec![0.1f32; 2 * 3 * 4 * 5];
        v[(4 + 2) * 5] = -3.0;
        v[60 + 2 * 5 + 1] = 2.0;
        let maps = Tensor::from_vec([2, 3, 4, 5], v).unwrap();
        let pictures = attention(&maps, 2.0).unwrap();
        let at = |i: usize| {
            let p = &pictures[i];
            let bright = |px: &image::Rgb<u8>| px.0.iter().map(|v| u32::from(*v)).sum::<u32>();
            p.enumerate_pixels().max_by_key(|(_, _, px)| bright(px)).map(|(x, y, _)| (x, y)).unwrap()
        };
        assert_eq!((at(0), at(1)), ((2, 1), (2, 0)));
        assert_eq!(pictures[0].dimensions(), (4, 3));
        let even = attention(&Tensor::full([1, 2, 2, 3], 0.5), 2.0).unwrap();
        assert!(even[0].pixels().all(|p| p.0 == colour::heat(0.0)));
    }

    #[test]
    fn wrong_maps_are_errors() {
        assert!(attention(&Tensor::zeros([2, 2, 3]), 2.0).unwrap_err().is_shape());
        assert!(attention(&Tensor::zeros([0, 2, 2, 3]), 2.0).unwrap_err().is_shape());
        assert!(attention(&Tensor::full([1, 2, 2, 3], f32::NAN), 2.0).unwrap_err().is_numeric());
    }
}
