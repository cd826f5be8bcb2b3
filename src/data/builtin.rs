//! A set of rendered scenes that needs no files: shaded shapes of a few classes on a textured background.

use super::decode::MAX_SIDE;
use super::source::ImageSource;
use crate::base::{Philox, Sequence};
use crate::error::{Error, Result};
use image::{Rgb, RgbImage};

/// The classes of the shapes in [`BuiltinScenes`].
pub const BUILTIN_CLASSES: [&str; 5] = ["ball", "box", "triangle", "ring", "cross"];

/// Rendered scenes, a function of the index only: the same pixels on every machine, at any size the same scene.
///
/// Each shows three to six shapes with bevelled edges and shadows; the label is the class of the largest one, which
/// is in front of the others. For first runs and tests, not a substitute for photographs.
#[derive(Debug)]
pub struct BuiltinScenes {
    count: usize,
    height: u32,
    width: u32,
    classes: Vec<String>,
}

type V2 = [f32; 2];
type V3 = [f32; 3];

/// Side of the repeating lattice of noise values.
const LATTICE: usize = 32;
/// Direction to the light; x to the right, y down, z to the viewer. Of length 1 to three digits.
const LIGHT: V3 = [-0.5, -0.62, 0.605];
/// How far behind a shape its shadow lies, as a fraction of the shorter side.
const SHADOW: V2 = [0.025, 0.035];

impl BuiltinScenes {
    /// `count` scenes of `height` x `width` pixels.
    ///
    /// # Errors
    /// [`Error::usage`]: no scene, or a side of zero or above [`MAX_SIDE`].
    pub fn new(count: usize, height: u32, width: u32) -> Result<Self> {
        if count == 0 || !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
            return Err(Error::usage(format!("cannot render {count} scenes of {width}x{height} pixels"))
                .with_remedy(format!("ask for at least one scene with sides of 1 to {MAX_SIDE}")));
        }
        let classes = BUILTIN_CLASSES.map(String::from).to_vec();
        Ok(BuiltinScenes { count, height, width, classes })
    }
}

impl ImageSource for BuiltinScenes {
    fn len(&self) -> usize {
        self.count
    }

    fn load(&self, index: usize, _background: [u8; 3]) -> Result<RgbImage> {
        if index >= self.count {
            return Err(Error::data(format!("builtin scene {index} of {} does not exist", self.count)));
        }
        let unit = 1.0 / self.width.min(self.height) as f32;
        let scene = Scene::new(index, [self.width as f32 * unit, self.height as f32 * unit]);
        Ok(RgbImage::from_fn(self.width, self.height, |x, y| {
            let c = scene.colour([(x as f32 + 0.5) * unit, (y as f32 + 0.5) * unit], unit);
            Rgb(c.map(|v| (v * 255.0).round().clamp(0.0, 255.0) as u8))
        }))
    }

    fn name(&self, index: usize) -> String {
        format!("builtin#{index}")
    }

    fn label(&self, index: usize) -> Option<u32> {
        let front = Scene::new(index, [1.0; 2]).shapes.last().map(|s| s.class);
        front.filter(|_| index < self.count)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> String {
        format!("builtin-1:{}:{}x{}", self.count, self.width, self.height)
    }
}

struct Shape {
    class: u32,
    centre: V2,
    radius: f32,
    /// Cosine and sine of its rotation.
    turn: V2,
    colour: V3,
}

/// Lengths are in units of the image's shorter side.
struct Scene {
    shapes: Vec<Shape>,
    lattice: Vec<f32>,
    /// The two colours of the background.
    ground: [V3; 2],
    /// Direction and frequency of its stripes, and how much they count against the clouds.
    stripes: V2,
    stripe_weight: f32,
}

impl Scene {
    fn new(index: usize, size: V2) -> Self {
        let root = Philox::new(0).fold_str("builtin scenes").fold(index as u64);
        let mut lattice = vec![0.0; LATTICE * LATTICE];
        root.fold_str("lattice").fill_uniform(&mut lattice);
        let mut r = root.sequence();
        let hue = r.uniform();
        let ground = [
            hsv(hue, 0.2 + 0.35 * r.uniform(), 0.3 + 0.3 * r.uniform()),
            hsv(hue + 0.3 * r.uniform(), 0.15 + 0.3 * r.uniform(), 0.65 + 0.3 * r.uniform()),
        ];
        let (sin, cos) = libm::sincosf(std::f32::consts::TAU * r.uniform());
        let frequency = 3.0 + 9.0 * r.uniform();
        let stripe_weight = if r.below(2) == 0 { 0.0 } else { 0.3 + 0.4 * r.uniform() };
        let others = 2 + r.below(4);
        let mut shapes: Vec<Shape> =
            (0..others).map(|_| Shape::new(&mut r, size, hue, (0.10, 0.19))).collect();
        shapes.push(Shape::new(&mut r, size, hue, (0.21, 0.33)));
        Scene { shapes, lattice, ground, stripes: [cos * frequency, sin * frequency], stripe_weight }
    }

    /// The colour at `p`; edges are softened over one pixel of side `pixel`.
    fn colour(&self, p: V2, pixel: f32) -> V3 {
        let cloud = 0.55 * self.noise(p, 4.0) + 0.3 * self.noise(p, 9.0) + 0.15 * self.noise(p, 21.0);
        let phase = p[0] * self.stripes[0] + p[1] * self.stripes[1] + 0.8 * cloud;
        let wave = smooth((2.0 * (phase - phase.floor()) - 1.0).abs());
        let [a, b] = self.ground;
        let mut c = mix(a, b, cloud + (wave - cloud) * self.stripe_weight);
        for s in &self.shapes {
            let reach = 1.4 * s.radius + 0.1;
            if (p[0] - s.centre[0]).abs().max((p[1] - s.centre[1]).abs()) > reach {
                continue;
            }
            let shade =
                smooth(1.0 - (s.distance([p[0] - SHADOW[0], p[1] - SHADOW[1]]) / 0.04).clamp(0.0, 1.0));
            c = c.map(|v| v * (1.0 - 0.45 * shade));
            let cover = (0.5 - s.distance(p) / pixel).clamp(0.0, 1.0);
            if cover > 0.0 {
                let grain = 0.88 + 0.24 * self.noise([p[0] + s.centre[1], p[1] - s.centre[0]], 26.0);
                c = mix(c, s.lit(p, grain), cover);
            }
        }
        c
    }

    /// Smoothly interpolated lattice values with `frequency` cells per unit, in 0..=1.
    fn noise(&self, p: V2, frequency: f32) -> f32 {
        let at = p.map(|v| v * frequency);
        let cell = at.map(|v| v.floor() as i64);
        let f = [smooth(at[0] - cell[0] as f32), smooth(at[1] - cell[1] as f32)];
        let value = |dx: i64, dy: i64| {
            let wrap = |v: i64| v.rem_euclid(LATTICE as i64) as usize;
            self.lattice[wrap(cell[1] + dy) * LATTICE + wrap(cell[0] + dx)]
        };
        let row = |dy| value(0, dy) + (value(1, dy) - value(0, dy)) * f[0];
        row(0) + (row(1) - row(0)) * f[1]
    }
}

impl Shape {
    fn new(r: &mut Sequence, size: V2, ground_hue: f32, (least, most): (f32, f32)) -> Self {
        let class = r.below(BUILTIN_CLASSES.len() as u32);
        let centre = size.map(|s| s * (0.15 + 0.7 * r.uniform()));
        let radius = least + (most - least) * r.uniform();
        let (sin, cos) = libm::sincosf(std::f32::consts::TAU * r.uniform());
        // At least a quarter of the colour circle away from the background.
        let colour =
            hsv(ground_hue + 0.25 + 0.5 * r.uniform(), 0.55 + 0.4 * r.uniform(), 0.7 + 0.3 * r.uniform());
        Shape { class, centre, radius, turn: [cos, sin], colour }
    }

    /// Signed distance from `p` to the edge, negative inside (for corners outside, a lower bound of it).
    fn distance(&self, p: V2) -> f32 {
        let (dx, dy) = ((p[0] - self.centre[0]) / self.radius, (p[1] - self.centre[1]) / self.radius);
        let [cos, sin] = self.turn;
        let (x, y) = (cos * dx + sin * dy, cos * dy - sin * dx);
        let length = (x * x + y * y).sqrt();
        let bar = |x: f32, y: f32| (x.abs() - 0.95).max(y.abs() - 0.34);
        let d = match self.class {
            0 => length - 1.0,
            1 => x.abs().max(y.abs()) - 0.82,
            2 => y.max(0.866_025_4 * x.abs() - 0.5 * y) - 0.55,
            3 => (length - 0.72).abs() - 0.26,
            _ => bar(x, y).min(bar(y, x)),
        };
        d * self.radius
    }

    /// The surface colour at `p`: a bevel that for the ball reaches the centre and makes it a sphere.
    fn lit(&self, p: V2, grain: f32) -> V3 {
        let bevel = self.radius * [1.0, 0.2, 0.2, 0.26, 0.2][self.class as usize];
        let (d, h) = (self.distance(p), 1e-3);
        let tilt = (1.0 + d / bevel).clamp(0.0, 1.0);
        let slope = |q: V2| (self.distance(q) - d) / h * tilt;
        let (nx, ny) = (slope([p[0] + h, p[1]]), slope([p[0], p[1] + h]));
        let nz = (1.0 - nx * nx - ny * ny).max(0.0).sqrt();
        let facing = (nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]).max(0.0);
        // The highlight of Phong's model with the viewer straight above, exponent 16.
        let gleam = (2.0 * facing * nz - LIGHT[2]).max(0.0);
        let gleam = gleam * gleam;
        let gleam = gleam * gleam;
        let gleam = gleam * gleam;
        self.colour.map(|v| v * grain * (0.35 + 0.8 * facing) + 0.35 * gleam * gleam)
    }
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

fn mix(a: V3, b: V3, t: f32) -> V3 {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

/// RGB of a hue (any number, one turn is 1), saturation and value.
fn hsv(hue: f32, saturation: f32, value: f32) -> V3 {
    [5.0, 3.0, 1.0].map(|n| {
        let k = (n + 6.0 * hue).rem_euclid(6.0);
        value * (1.0 - saturation * k.min(4.0 - k).clamp(0.0, 1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::digest;

    #[test]
    fn scenes_differ_and_repeat() {
        let set = BuiltinScenes::new(40, 24, 32).unwrap();
        let a = set.load(3, [0; 3]).unwrap();
        assert_eq!(a.dimensions(), (32, 24));
        assert_eq!(a, set.load(3, [255; 3]).unwrap());
        assert_ne!(a, set.load(4, [0; 3]).unwrap());
        let labels: std::collections::BTreeSet<_> = (0..40).map(|i| set.label(i).unwrap()).collect();
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!((set.label(40), set.classes().len()), (None, 5));
        assert!(set.load(40, [0; 3]).unwrap_err().is_data());
        assert!(BuiltinScenes::new(0, 8, 8).unwrap_err().is_usage());
        assert!(BuiltinScenes::new(1, 0, 8).unwrap_err().is_usage());
        assert_eq!(BuiltinScenes::new(1, 1, 1).unwrap().load(0, [0; 3]).unwrap().dimensions(), (1, 1));
    }

    /// The pixels are part of what a seed promises, so they must not change unnoticed (nor between machines).
    #[test]
    fn pixels_are_pinned() {
        let set = BuiltinScenes::new(4, 48, 48).unwrap();
        let images: Vec<_> = (0..4).map(|i| set.load(i, [0; 3]).unwrap()).collect();
        assert_eq!(digest(images.iter().map(|i| i.as_raw().as_slice())), "24307381630f9b8e");
    }

    /// Colours vary within an image: neither flat nor saturated.
    #[test]
    fn scenes_have_contrast() {
        let set = BuiltinScenes::new(16, 64, 64).unwrap();
        for i in 0..16 {
            let im = set.load(i, [0; 3]).unwrap();
            let v: Vec<f64> = im.as_raw().iter().map(|&b| f64::from(b)).collect();
            let mean = v.iter().sum::<f64>() / v.len() as f64;
            let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
            assert!((50.0..=220.0).contains(&mean) && std >= 20.0, "scene {i}: mean {mean}, std {std}");
        }
    }
}
