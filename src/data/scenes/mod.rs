//! Rendered scenes, with exact masks: images and labels that need no files.

mod scene;
mod surface;
#[cfg(test)]
mod tests;

use super::decode::MAX_SIDE;
use super::mask::Mask;
use super::source::ImageSource;
use super::write::{Example, Progress, staged, write_examples};
use crate::error::{Error, Result};
use image::{Rgb, RgbImage};
use scene::Scene;
use std::path::Path;
pub(super) use surface::hsv;

/// The classes of the objects in [`Scenes`].
pub const SCENE_CLASSES: [&str; surface::FAMILIES as usize] =
    ["berry", "crate", "leaf", "buoy", "tent", "star"];

/// Which scenes, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SceneConfig {
    /// Number of scenes, at least 1.
    pub count: usize,
    /// The number of the first one in the endless sequence of scenes.
    pub first: u64,
    /// Height of the images in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
}

/// Rendered scenes: a part of one endless sequence, the same pixels on every machine, and (for one ratio of the sides)
/// the same scene at any size.
///
/// Each shows two to four objects of [`SCENE_CLASSES`], one of them large, on textured ground with strokes that belong
/// to no class; with light, cast shadows and overlaps. A class prefers an outline, a texture and a range of hues. Every
/// object draws each of the three by itself: with probability 0.75 it is what its class prefers, else what another class
/// does, so that each is evidence and none is proof. The ground takes the same textures and any hue.
///
/// The label is the class of the largest object. Mask ids index [`ImageSource::mask_classes`]: 0 is the background,
/// `k + 1` an object of class `k`.
#[derive(Debug)]
pub struct Scenes {
    config: SceneConfig,
    classes: Vec<String>,
    mask_classes: Vec<String>,
}

impl Scenes {
    /// Number of the first scene for training what is evaluated; images for pretraining begin at 0.
    pub const HELD_OUT: u64 = 1 << 40;

    /// Number of the first scene for testing.
    pub const TEST: u64 = 1 << 41;

    /// The scenes `first .. first + count`.
    ///
    /// # Errors
    /// [`Error::usage`]: no scene, numbers beyond 2^64, or a side of zero or above [`MAX_SIDE`].
    pub fn new(config: SceneConfig) -> Result<Self> {
        let SceneConfig { count, first, height, width } = config;
        let sides = 1..=MAX_SIDE;
        if count == 0 || !sides.contains(&height) || !sides.contains(&width) {
            return Err(Error::usage(format!("cannot render {count} scenes of {height}x{width} pixels"))
                .with_remedy(format!("ask for at least one scene with sides of 1 to {MAX_SIDE}")));
        }
        if first.checked_add(count as u64).is_none() {
            return Err(Error::usage(format!("there are no {count} scenes from number {first} on"))
                .with_remedy("begin at a smaller number"));
        }
        let classes = SCENE_CLASSES.map(String::from).to_vec();
        let mask_classes = std::iter::once("background".to_string()).chain(classes.clone()).collect();
        Ok(Scenes { config, classes, mask_classes })
    }

    /// The objects of scene `index` as a mask: 0 where there is none, 1 for the frontmost, 2 for the one behind it, and
    /// so on. An object that is hidden completely leaves its number out.
    ///
    /// # Errors
    /// [`Error::data`]: an index out of range.
    pub fn instances(&self, index: usize) -> Result<Mask> {
        self.paint(index, |(front, _)| front as u16 + 1)
    }

    /// Writes all scenes as a new folder that [`super::MaskFolder`] reads, with `instances/` beside `masks/`.
    ///
    /// # Errors
    /// [`Error::usage`]: `out` is a file or a folder that is not empty. [`Error::io`].
    pub fn write(&self, out: &Path, progress: Progress) -> Result<()> {
        let render = |i: usize| {
            Ok(Example {
                image: self.load(i, [0; 3])?,
                mask: self.paint(i, class_id)?,
                instances: self.instances(i)?,
                label: self.scene(i)?.label(),
            })
        };
        staged(out, |dir| {
            write_examples(dir, self.config.count, &self.classes, &self.mask_classes, &render, progress)
        })
    }

    fn paint(&self, index: usize, id: impl Fn((usize, u32)) -> u16) -> Result<Mask> {
        let SceneConfig { height, width, .. } = self.config;
        let scene = self.scene(index)?;
        let points = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let ids = points.map(|(x, y)| scene.object(self.point(x, y)).map_or(0, &id)).collect();
        Mask::new(height, width, ids)
    }

    fn scene(&self, index: usize) -> Result<Scene> {
        if index >= self.config.count {
            let m = format!("scene {index} of {} does not exist", self.config.count);
            return Err(Error::data(m));
        }
        let unit = self.pixel();
        let size = [self.config.width as f32 * unit, self.config.height as f32 * unit];
        Ok(Scene::new(self.config.first + index as u64, size))
    }

    /// The side of a pixel, where the shorter side of the image is 1.
    fn pixel(&self) -> f32 {
        1.0 / self.config.width.min(self.config.height) as f32
    }

    /// The middle of a pixel.
    fn point(&self, x: u32, y: u32) -> [f32; 2] {
        [x, y].map(|v| (v as f32 + 0.5) * self.pixel())
    }
}

/// The mask's id of an object, given its place and its class.
fn class_id((_, class): (usize, u32)) -> u16 {
    class as u16 + 1
}

impl ImageSource for Scenes {
    fn len(&self) -> usize {
        self.config.count
    }

    fn load(&self, index: usize, _background: [u8; 3]) -> Result<RgbImage> {
        let scene = self.scene(index)?;
        Ok(RgbImage::from_fn(self.config.width, self.config.height, |x, y| {
            let c = scene.colour(self.point(x, y), self.pixel());
            Rgb(c.map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8))
        }))
    }

    fn name(&self, index: usize) -> String {
        format!("scene#{}", self.config.first.saturating_add(index as u64))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.scene(index).ok().map(|s| s.label())
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn mask(&self, index: usize) -> Result<Option<Mask>> {
        self.paint(index, class_id).map(Some)
    }

    fn mask_classes(&self) -> &[String] {
        &self.mask_classes
    }

    fn fingerprint(&self) -> String {
        let SceneConfig { count, first, height, width } = self.config;
        format!("scenes-1:{first}+{count}:{height}x{width}")
    }
}
