//! One composite.

use super::super::mask::Mask;
use super::super::open::Split;
use super::super::transform::random_resized_crop;
use super::super::write::Example;
use super::cutout::{Cutout, OPAQUE};
use super::{Composer, Stock};
use crate::base::{Philox, Sequence};
use crate::error::{Error, Result};
use image::{Rgb, RgbImage};

/// How often an image is begun anew because one object hides another.
const TRIES: u64 = 16;
/// The least part of a pasted object that the others have to leave in sight, and the least number of pixels.
const IN_SIGHT: f32 = 0.3;
const PIXELS: usize = 6;

/// Where a cut-out goes.
struct Place {
    class: usize,
    cutout: Cutout,
    centre: [f32; 2],
    /// Cosine and sine of the rotation, divided by the scale: from pixels of the image to those of the cut-out.
    turn: [f32; 2],
    mirrored: bool,
    /// No pixel further from the centre is touched.
    reach: f32,
}

impl Composer {
    /// Image `index` of a split.
    ///
    /// # Errors
    /// [`Error::data`]: nothing stays in sight of the cut-outs, because they are too thin for the size.
    pub(super) fn render(&self, split: Split, index: usize) -> Result<Example> {
        let name = if split == Split::Train { "compose train" } else { "compose test" };
        let stream = Philox::new(self.config.seed).fold_str(name).fold(index as u64);
        for attempt in 0..TRIES {
            if let Some(example) = self.attempt(self.stock(split), stream.fold(attempt))? {
                return Ok(example);
            }
        }
        Err(Error::data(format!(
            "nothing is to be seen of the cut-outs of image {index} after {TRIES} tries"
        ))
        .with_file(&self.config.cutouts)
        .with_remedy("compose larger images, fewer objects or a larger scale"))
    }

    /// An image; `None` if one of its objects is hidden.
    fn attempt(&self, stock: &Stock, stream: Philox) -> Result<Option<Example>> {
        let c = &self.config;
        let mut r = stream.sequence();
        let ground = &self.backgrounds[stock.backgrounds[r.below(stock.backgrounds.len() as u32) as usize]];
        let ground =
            random_resized_crop(&ground.image, c.height, c.width, (0.2, 1.0), (0.75, 4.0 / 3.0), &mut r)?;
        let count = c.objects.0 + r.below(c.objects.1 - c.objects.0 + 1);
        let places: Vec<Place> = (0..count).map(|_| self.place(stock, &mut r)).collect();
        let mut canvas = Canvas::new(&ground);
        for (i, place) in places.iter().enumerate() {
            // The last one is in front.
            canvas.paste(place, places.len() - i);
        }
        if canvas.instances.iter().all(|&o| o == 0) || !canvas.all_in_sight(places.len()) {
            return Ok(None);
        }
        let class_of = |instance: u16| match instance {
            0 => 0,
            i => places[places.len() - usize::from(i)].class as u16 + 1,
        };
        let mask: Vec<u16> = canvas.instances.iter().map(|&i| class_of(i)).collect();
        let mut areas = vec![0usize; self.classes.len()];
        for &id in mask.iter().filter(|&&id| id > 0) {
            areas[usize::from(id) - 1] += 1;
        }
        // The first of those with the most pixels.
        let label = (0..areas.len()).rev().max_by_key(|&k| areas[k]).unwrap_or(0);
        let image = canvas.image();
        Ok(Some(Example {
            image,
            mask: Mask::new(c.height, c.width, mask)?,
            instances: Mask::new(c.height, c.width, canvas.instances)?,
            label: label as u32,
        }))
    }

    fn place(&self, stock: &Stock, r: &mut Sequence) -> Place {
        let c = &self.config;
        let pick = |r: &mut Sequence, n: usize| r.below(n as u32) as usize;
        let class = pick(r, stock.concepts.len());
        let concept = pick(r, stock.concepts[class].len());
        let cutouts = &stock.concepts[class][concept].cutouts;
        let cutout = &cutouts[pick(r, cutouts.len())];
        let (least, most) = c.scale;
        let shorter = c.width.min(c.height) as f32;
        let side = (shorter * least * libm::powf(most / least, r.uniform())).max(2.0);
        let angle = (2.0 * r.uniform() - 1.0) * c.rotation.to_radians();
        let mirrored = r.below(2) == 1 && c.flip;
        let centre = [c.width, c.height].map(|s| s as f32 * (0.12 + 0.76 * r.uniform()));
        let cutout = cutout.clone().halved_to(side);
        let scale = side / cutout.side() as f32;
        let (sin, cos) = libm::sincosf(angle);
        // Half the diagonal, and what a pixel and its neighbour blur.
        let (w, h) = (cutout.width as f32, cutout.height as f32);
        let reach = 0.5 * (w * w + h * h).sqrt() * scale + scale + 1.0;
        Place { class, cutout, centre, turn: [cos / scale, sin / scale], mirrored, reach }
    }
}

impl Place {
    /// Premultiplied colour and alpha at a point of the image.
    fn at(&self, x: f32, y: f32) -> [f32; 4] {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let [cos, sin] = self.turn;
        let (u, v) = (cos * dx + sin * dy, cos * dy - sin * dx);
        let u = if self.mirrored { -u } else { u };
        self.cutout.sample(u + 0.5 * self.cutout.width as f32, v + 0.5 * self.cutout.height as f32)
    }
}

/// An image under work.
struct Canvas {
    width: usize,
    height: usize,
    /// RGB in 0..=255.
    pixels: Vec<[f32; 3]>,
    instances: Vec<u16>,
    /// How many pixels each object covered when it was pasted; by instance.
    pasted: Vec<usize>,
}

impl Canvas {
    fn new(ground: &RgbImage) -> Self {
        let pixels: Vec<[f32; 3]> = ground.pixels().map(|p| p.0.map(f32::from)).collect();
        let instances = vec![0; pixels.len()];
        let (width, height) = (ground.width() as usize, ground.height() as usize);
        Canvas { width, height, pixels, instances, pasted: Vec::new() }
    }

    /// Pastes an object in front of everything; each pixel is the mean of four points.
    fn paste(&mut self, place: &Place, instance: usize) {
        if self.pasted.len() <= instance {
            self.pasted.resize(instance + 1, 0);
        }
        let span = |centre: f32, size: usize| {
            let from = (centre - place.reach).floor().max(0.0) as usize;
            from.min(size)..((centre + place.reach).ceil().max(0.0) as usize).min(size)
        };
        for y in span(place.centre[1], self.height) {
            for x in span(place.centre[0], self.width) {
                let points = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)];
                let four = points.map(|(i, j)| place.at(x as f32 + i, y as f32 + j));
                let [r, g, b, a]: [f32; 4] =
                    std::array::from_fn(|c| 0.25 * four.iter().map(|p| p[c]).sum::<f32>());
                if a == 0.0 {
                    continue;
                }
                let at = y * self.width + x;
                let old = self.pixels[at];
                let front = [r, g, b];
                self.pixels[at] = std::array::from_fn(|c| 255.0 * front[c] + (1.0 - a) * old[c]);
                if (255.0 * a).round() > f32::from(OPAQUE) {
                    self.instances[at] = instance as u16;
                    self.pasted[instance] += 1;
                }
            }
        }
    }

    /// Whether enough is left to be seen of each of the objects.
    fn all_in_sight(&self, objects: usize) -> bool {
        let mut seen = vec![0; objects + 1];
        for &i in &self.instances {
            seen[usize::from(i)] += 1;
        }
        (1..=objects).all(|i| seen[i] >= PIXELS && seen[i] as f32 >= IN_SIGHT * self.pasted[i] as f32)
    }

    fn image(&self) -> RgbImage {
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let p = self.pixels[y as usize * self.width + x as usize];
            Rgb(p.map(|v| v.round().clamp(0.0, 255.0) as u8))
        })
    }
}
