//! One scene: what is in it, and the colour and the object at any point.

use super::surface::{FAMILIES, Noise, V2, V3, hsv, mix, outline, step};
use crate::base::{Philox, Sequence};

/// How often a cue of an object (outline, texture, hue) is the one that its class prefers; else it is, equally often,
/// one of the other classes'.
const LOYALTY: f32 = 0.75;
/// How far a hue lies from the middle of its family's range at most, in turns; the middles are 1/6 apart.
const HUE_SPREAD: f32 = 0.055;
/// Radii of the largest object and of the others, from and to.
const LARGE: V2 = [0.28, 0.4];
const SMALL: V2 = [0.1, 0.26];

/// A rendered scene; see [`super::Scenes`]. Lengths are in units of the image's shorter side, points from its upper left corner.
pub(super) struct Scene {
    /// From the back to the front.
    objects: Vec<Object>,
    noise: Noise,
    grounds: [Ground; 2],
    /// Points `p` with `p . normal > offset` lie on the second ground.
    horizon: (V2, f32),
    strokes: Vec<Stroke>,
    light: Light,
}

struct Object {
    class: u32,
    outline: u32,
    texture: u32,
    centre: V2,
    radius: f32,
    /// Height over width.
    aspect: f32,
    /// Cosine and sine of its rotation.
    turn: V2,
    period: f32,
    colours: [V3; 2],
}

struct Ground {
    colours: [V3; 2],
    texture: u32,
    period: f32,
    /// Cosine and sine of the rotation of the texture.
    turn: V2,
    /// How much the texture counts against the clouds.
    weight: f32,
}

struct Stroke {
    from: V2,
    /// To the other end.
    reach: V2,
    half_width: f32,
    colour: V3,
}

struct Light {
    /// Towards the light; x to the right, y down, z to the viewer.
    direction: V3,
    colour: V3,
    /// From an object to its shadow.
    shadow: V2,
    /// How much brighter the side of the light is.
    slope: f32,
}

fn between(r: &mut Sequence, from: f32, to: f32) -> f32 {
    from + (to - from) * r.uniform()
}

/// A length such that every ratio is equally likely.
fn scale(r: &mut Sequence, [from, to]: V2) -> f32 {
    from * libm::powf(to / from, r.uniform())
}

fn turn(r: &mut Sequence) -> V2 {
    let (sin, cos) = libm::sincosf(std::f32::consts::TAU * r.uniform());
    [cos, sin]
}

/// The family of one cue of an object of `class`.
fn cue(r: &mut Sequence, class: u32) -> u32 {
    let loyal = r.uniform() < LOYALTY;
    let other = (class + 1 + r.below(FAMILIES - 1)) % FAMILIES;
    if loyal { class } else { other }
}

impl Scene {
    /// Scene `number` on an image of `size` (width, height).
    pub(super) fn new(number: u64, size: V2) -> Self {
        let root = Philox::new(0).fold_str("scenes").fold(number);
        let noise = Noise::new(root.fold_str("noise"));
        let mut r = root.sequence();
        let light = Light::new(&mut r);
        let grounds = [Ground::new(&mut r), Ground::new(&mut r)];
        let [cos, sin] = turn(&mut r);
        let horizon = if r.below(2) == 0 {
            // Nearly level, in the lower half.
            let tilt = 0.3 * cos;
            ([tilt, 1.0], size[1] * between(&mut r, 0.45, 0.8) + tilt * 0.5 * size[0])
        } else {
            ([cos, sin], 0.5 * (cos * size[0] + sin * size[1]) + between(&mut r, 0.2, 0.9))
        };
        let strokes = (0..2 + r.below(4)).map(|_| Stroke::new(&mut r, size)).collect();
        let mut objects: Vec<Object> = Vec::new();
        for i in 0..2 + r.below(3) {
            let stream = root.fold_str("object").fold(u64::from(i));
            objects.push(Object::new(stream, size, if i == 0 { LARGE } else { SMALL }, &objects));
        }
        r.shuffle(&mut objects);
        Scene { objects, noise, grounds, horizon, strokes, light }
    }

    /// The class of the largest object.
    pub(super) fn label(&self) -> u32 {
        self.objects.iter().max_by(|a, b| a.radius.total_cmp(&b.radius)).map_or(0, |o| o.class)
    }

    /// The frontmost object at `p`, counted from the front, and its class; `None` on the background.
    pub(super) fn object(&self, p: V2) -> Option<(usize, u32)> {
        let mut front = self.objects.iter().rev().enumerate();
        front.find(|(_, o)| o.near(p, 0.0) && o.distance(p) < 0.0).map(|(i, o)| (i, o.class))
    }

    /// The colour at `p`; edges are softened over one pixel of side `pixel`.
    pub(super) fn colour(&self, p: V2, pixel: f32) -> V3 {
        let mut c = self.background(p, pixel);
        for o in &self.objects {
            let back = [p[0] - self.light.shadow[0], p[1] - self.light.shadow[1]];
            if o.near(back, 0.05) {
                let shade = 1.0 - step(o.distance(back), -0.02, 0.04);
                c = c.map(|v| v * (1.0 - 0.5 * shade));
            }
            if o.near(p, pixel) {
                let d = o.distance(p);
                let cover = (0.5 - d / pixel).clamp(0.0, 1.0);
                if cover > 0.0 {
                    c = mix(c, self.surface(o, p, d), cover);
                }
            }
        }
        let l = &self.light;
        let gain = 1.0 + l.slope * ((p[0] - 0.5) * l.direction[0] + (p[1] - 0.5) * l.direction[1]);
        std::array::from_fn(|i| c[i] * l.colour[i] * gain)
    }

    fn background(&self, p: V2, pixel: f32) -> V3 {
        let (normal, offset) = self.horizon;
        let wobble = 0.06 * self.noise.at(p, 5.0);
        let beyond = p[0] * normal[0] + p[1] * normal[1] + wobble - offset;
        let ground = &self.grounds[usize::from(beyond > 0.0)];
        let cloud = 0.6 * self.noise.at(p, 3.0) + 0.4 * self.noise.at([p[1], p[0]], 8.0);
        let [cos, sin] = ground.turn;
        let q = [cos * p[0] + sin * p[1], cos * p[1] - sin * p[0]];
        let pattern = self.noise.texture(ground.texture, q, ground.period);
        let mut c = mix(ground.colours[0], ground.colours[1], cloud + (pattern - cloud) * ground.weight);
        for s in &self.strokes {
            let d = s.distance(p);
            let cover = (0.5 - d / pixel).clamp(0.0, 1.0);
            c = mix(c, s.colour, cover);
        }
        c
    }

    /// The lit surface of an object at `p`, where the distance to its outline is `d`: a bevel that for the disc reaches
    /// the middle.
    fn surface(&self, o: &Object, p: V2, d: f32) -> V3 {
        let bevel = o.radius * if o.outline == 0 { 0.9 } else { 0.28 };
        let tilt = (1.0 + d / bevel).clamp(0.0, 1.0);
        let l = self.light.direction;
        let facing = if tilt > 0.0 {
            let h = 0.05 * o.radius;
            let slope = |q: V2| ((o.distance(q) - d) / h).clamp(-1.0, 1.0) * 0.9 * tilt;
            let (nx, ny) = (slope([p[0] + h, p[1]]), slope([p[0], p[1] + h]));
            let nz = (1.0 - nx * nx - ny * ny).max(0.0).sqrt();
            (nx * l[0] + ny * l[1] + nz * l[2]).max(0.0)
        } else {
            l[2]
        };
        let t = self.noise.texture(o.texture, o.local(p), o.period);
        mix(o.colours[0], o.colours[1], t).map(|v| v * (0.45 + 0.75 * facing))
    }
}

impl Light {
    fn new(r: &mut Sequence) -> Self {
        // From above, up to 70 degrees to either side.
        let (sin, cos) = libm::sincosf(between(r, -1.2, 1.2));
        let direction = [0.7 * sin, -0.7 * cos, 0.714];
        let length = between(r, 0.03, 0.07);
        let gain = between(r, 0.8, 1.15);
        let colour = std::array::from_fn(|_| gain * between(r, 0.85, 1.1));
        Light { direction, colour, shadow: [-sin * length, cos * length], slope: between(r, 0.0, 0.5) }
    }
}

impl Ground {
    fn new(r: &mut Sequence) -> Self {
        let hue = r.uniform();
        let near = hue + between(r, -0.15, 0.15);
        // Duller than objects, mostly: in the range where both lie, colour alone does not tell them apart.
        let dark = hsv(hue, between(r, 0.05, 0.5), between(r, 0.2, 0.55));
        let bright = hsv(near, between(r, 0.05, 0.4), between(r, 0.5, 0.95));
        Ground {
            colours: [dark, bright],
            texture: r.below(FAMILIES),
            period: scale(r, [0.1, 0.4]),
            turn: turn(r),
            weight: between(r, 0.05, 0.4),
        }
    }
}

impl Stroke {
    fn new(r: &mut Sequence, size: V2) -> Self {
        let from = size.map(|s| s * r.uniform());
        let [cos, sin] = turn(r);
        let length = between(r, 0.2, 0.8);
        let colour = hsv(r.uniform(), between(r, 0.1, 0.9), between(r, 0.15, 1.0));
        Stroke { from, reach: [cos * length, sin * length], half_width: between(r, 0.008, 0.022), colour }
    }

    fn distance(&self, p: V2) -> f32 {
        let q = [p[0] - self.from[0], p[1] - self.from[1]];
        let [a, b] = self.reach;
        let along = ((q[0] * a + q[1] * b) / (a * a + b * b)).clamp(0.0, 1.0);
        let (x, y) = (q[0] - along * a, q[1] - along * b);
        (x * x + y * y).sqrt() - self.half_width
    }
}

impl Object {
    /// An object whose middle is not too near to the middles of the `others`, so that every one stays in sight.
    fn new(stream: Philox, size: V2, radii: V2, others: &[Object]) -> Self {
        let mut r = stream.sequence();
        let class = r.below(FAMILIES);
        let radius = scale(&mut r, radii);
        let (outline, texture, family) = (cue(&mut r, class), cue(&mut r, class), cue(&mut r, class));
        let hue = family as f32 / FAMILIES as f32 + between(&mut r, -HUE_SPREAD, HUE_SPREAD);
        let (saturation, value) = (between(&mut r, 0.55, 1.0), between(&mut r, 0.65, 1.0));
        let (aspect, period) = (between(&mut r, 0.75, 1.0), between(&mut r, 0.11, 0.15));
        let turn = turn(&mut r);
        let mut centre = [0.0; 2];
        // A scene too full for one more keeps the last try.
        for _ in 0..8 {
            centre = size.map(|s| between(&mut r, 0.6 * radius, s - 0.6 * radius));
            let clear = |o: &Object| {
                let (x, y) = (centre[0] - o.centre[0], centre[1] - o.centre[1]);
                let least = 0.75 * (radius + o.radius);
                x * x + y * y > least * least
            };
            if others.iter().all(clear) {
                break;
            }
        }
        let colours = [hsv(hue, saturation, 0.45 * value), hsv(hue, 0.8 * saturation, value)];
        Object { class, outline, texture, centre, radius, aspect, turn, period, colours }
    }

    /// `p` seen from the object: from its middle, turned with it.
    fn local(&self, p: V2) -> V2 {
        let (dx, dy) = (p[0] - self.centre[0], p[1] - self.centre[1]);
        let [cos, sin] = self.turn;
        [cos * dx + sin * dy, cos * dy - sin * dx]
    }

    /// Whether `p` may be less than `margin` outside of the outline.
    fn near(&self, p: V2, margin: f32) -> bool {
        let reach = 1.25 * self.radius + margin;
        (p[0] - self.centre[0]).abs().max((p[1] - self.centre[1]).abs()) < reach
    }

    /// Signed distance from `p` to the outline, negative inside (with an aspect below 1, up to that factor too small).
    fn distance(&self, p: V2) -> f32 {
        let [x, y] = self.local(p);
        outline(self.outline, x / self.radius, y / (self.radius * self.aspect)) * self.radius * self.aspect
    }
}
