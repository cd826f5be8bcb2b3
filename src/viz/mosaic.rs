//! Pictures beside one another, and masks over pictures.

use super::{colour, font};
use crate::error::{Error, Result};
use image::{Rgb, RgbImage, imageops};

/// Between the tiles: dark, so that it disturbs neither a light nor a dark page.
const GROUND: [u8; 3] = [22, 25, 32];
const INK: [u8; 3] = [222, 226, 234];
/// Half of the gap between tiles, in pixels; also around the whole, so that all columns are equally wide.
const MARGIN: u32 = 2;
/// Scale of the labels.
const SCALE: u32 = 2;

/// Rows of tiles under labelled columns.
#[derive(Clone, Debug, Default)]
pub struct Mosaic {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The tiles, row by row; every row has one for every column.
    pub rows: Vec<Vec<RgbImage>>,
    /// Width and height to which tiles are enlarged, in pixels.
    pub tile: [u32; 2],
}

impl Mosaic {
    /// Height of the band of labels, in pixels.
    pub const BAND: u32 = 5 * SCALE + 8;

    /// The picture: a band with the columns' names, then the rows. Names that are too long for their column are cut off.
    ///
    /// # Errors
    /// No tile, or a row with another number of tiles than columns.
    pub fn render(&self) -> Result<RgbImage> {
        let [w, h] = self.tile;
        let n = self.columns.len();
        if n == 0 || w == 0 || h == 0 || self.rows.is_empty() || self.rows.iter().any(|r| r.len() != n) {
            let rows: Vec<usize> = self.rows.iter().map(Vec::len).collect();
            return Err(Error::shape("mosaic", format!("rows of {rows:?} tiles of {w}x{h} for {n} columns")));
        }
        let (across, down) = (w + 2 * MARGIN, h + 2 * MARGIN);
        let size = [across * n as u32, Self::BAND + down * self.rows.len() as u32];
        let mut out = RgbImage::from_pixel(size[0], size[1], Rgb(GROUND));
        for (i, name) in self.columns.iter().enumerate() {
            let fits = ((w / SCALE + 1) / 4) as usize;
            let name: String = name.chars().take(fits).collect();
            let x = i as u32 * across + MARGIN + (w - font::width(&name, SCALE).min(w)) / 2;
            font::draw(&mut out, &name, x, (Self::BAND - font::height(SCALE)) / 2, SCALE, INK);
        }
        for (r, row) in self.rows.iter().enumerate() {
            for (c, tile) in row.iter().enumerate() {
                let at = [c as u32 * across + MARGIN, Self::BAND + r as u32 * down + MARGIN];
                imageops::replace(&mut out, &enlarge(tile, w, h), at[0].into(), at[1].into());
            }
        }
        Ok(out)
    }
}

/// A picture in another size without new values: every pixel of the result is one of the picture's.
pub fn enlarge(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    imageops::resize(image, width, height, imageops::FilterType::Nearest)
}

/// Colours of classes over a picture: `ids` gives the class of every one of its pixels, row by row; `strength` from 0 (the
/// picture) to 1 (the colours). Borders between classes are drawn in full colour. Pixels of class `ignore` stay as they are.
///
/// # Errors
/// Another number of classes than pixels.
pub fn overlay(image: &RgbImage, ids: &[u16], ignore: Option<u16>, strength: f32) -> Result<RgbImage> {
    let (w, h) = image.dimensions();
    if ids.len() != w as usize * h as usize {
        return Err(Error::shape("overlay", format!("{} classes for an image of {w}x{h} pixels", ids.len())));
    }
    let id = |x: u32, y: u32| ids[y as usize * w as usize + x as usize];
    Ok(RgbImage::from_fn(w, h, |x, y| {
        let own = id(x, y);
        let below = *image.get_pixel(x, y);
        if Some(own) == ignore {
            return below;
        }
        let border = (x + 1 < w && id(x + 1, y) != own) || (y + 1 < h && id(x, y + 1) != own);
        let part = if border { 1.0 } else { strength.clamp(0.0, 1.0) };
        let over = colour::class(own.into());
        Rgb(std::array::from_fn(|c| {
            (f32::from(below[c]) * (1.0 - part) + f32::from(over[c]) * part).round() as u8
        }))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_lie_under_their_names() {
        let tile = |v: u8| RgbImage::from_pixel(2, 2, Rgb([v; 3]));
        let m = Mosaic {
            columns: vec!["image".into(), "a very long name indeed".into()],
            rows: vec![vec![tile(200), tile(210)], vec![tile(220), tile(230)]],
            tile: [40, 30],
        };
        let out = m.render().unwrap();
        let (across, down) = (40 + 2 * MARGIN, 30 + 2 * MARGIN);
        assert_eq!(out.dimensions(), (2 * across, Mosaic::BAND + 2 * down));
        for (r, c, v) in [(0, 0, 200), (0, 1, 210), (1, 0, 220), (1, 1, 230)] {
            let corner = [c * across + MARGIN, Mosaic::BAND + r * down + MARGIN];
            assert_eq!(out.get_pixel(corner[0], corner[1]).0, [v; 3]);
            assert_eq!(out.get_pixel(corner[0] + 39, corner[1] + 29).0, [v; 3]);
        }
        let inked = |x: std::ops::Range<u32>| {
            x.flat_map(|x| (0..Mosaic::BAND).map(move |y| (x, y)))
                .filter(|(x, y)| out.get_pixel(*x, *y).0 == INK)
                .count()
        };
        assert!(inked(0..across) > 20 && inked(across..2 * across) > 20);
        assert_eq!(inked(across - MARGIN..across + MARGIN), 0, "names stay in their columns");
        let uneven = Mosaic { rows: vec![vec![tile(0)]], ..m };
        assert!(uneven.render().unwrap_err().is_shape());
        assert!(Mosaic::default().render().unwrap_err().is_shape());
    }

    #[test]
    fn classes_over_a_picture() {
        let image = RgbImage::from_pixel(4, 1, Rgb([100; 3]));
        let out = overlay(&image, &[1, 1, 9, 9], Some(9), 0.5).unwrap();
        let c = colour::class(1);
        let half = c.map(|v| ((100.0 + f32::from(v)) / 2.0).round() as u8);
        assert_eq!(
            [out.get_pixel(0, 0).0, out.get_pixel(1, 0).0, out.get_pixel(2, 0).0],
            [half, c, [100; 3]]
        );
        assert!(overlay(&image, &[0; 3], None, 0.5).unwrap_err().is_shape());
    }
}
