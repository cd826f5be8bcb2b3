//! Outlines, textures and colours: plain arithmetic, so that every machine computes the same bits.

use crate::base::Philox;

pub(super) type V2 = [f32; 2];
pub(super) type V3 = [f32; 3];

/// Families of outlines, of textures and of hues: as many as there are classes of objects. Family `k` is the one that
/// class `k` prefers.
pub(super) const FAMILIES: u32 = 6;

/// Side of the repeating lattice of noise values.
const LATTICE: usize = 16;

/// Signed distance to an outline of about radius 1, negative inside; outside of corners a lower bound of it.
pub(super) fn outline(family: u32, x: f32, y: f32) -> f32 {
    let length = (x * x + y * y).sqrt();
    match family {
        // A disc.
        0 => length - 0.95,
        // A box.
        1 => x.abs().max(y.abs()) - 0.82,
        // A lens: the intersection of two discs of radius 1.25.
        2 => {
            let below = y.abs() + 0.75;
            (x * x + below * below).sqrt() - 1.25
        }
        // A ring.
        3 => (length - 0.68).abs() - 0.27,
        // A triangle.
        4 => y.max(0.866_025_4 * x.abs() - 0.5 * y) - 0.56,
        // A star with five tips.
        _ => star(x, y),
    }
}

/// Mirrors the plane into the wedge of 36 degrees beside one tip, where one straight edge is left.
fn star(x: f32, y: f32) -> f32 {
    /// Normals of the mirrors 108 and 36 degrees from the tip.
    const MIRRORS: [V2; 2] = [[-0.309_017, -0.951_056_5], [0.809_017, -0.587_785_25]];
    /// The normal of the edge from the tip at distance 1 to the notch at distance 0.45.
    const EDGE: V2 = [0.923_3, 0.384_0];
    let mut p = [x.abs(), y];
    for n in MIRRORS {
        let beyond = (p[0] * n[0] + p[1] * n[1]).max(0.0);
        p = [p[0] - 2.0 * beyond * n[0], p[1] - 2.0 * beyond * n[1]];
    }
    EDGE[0] * p[0].abs() + EDGE[1] * (p[1] - 1.05)
}

/// Values on a repeating lattice.
pub(super) struct Noise(Vec<f32>);

impl Noise {
    pub(super) fn new(stream: Philox) -> Self {
        let mut values = vec![0.0; LATTICE * LATTICE];
        stream.fill_uniform(&mut values);
        Noise(values)
    }

    /// Smoothly interpolated lattice values with `frequency` cells per unit, in 0..=1.
    pub(super) fn at(&self, p: V2, frequency: f32) -> f32 {
        let at = p.map(|v| v * frequency);
        let low = at.map(f32::floor);
        let f = [smooth(at[0] - low[0]), smooth(at[1] - low[1])];
        // Two's complement makes the mask a remainder for negative cells too.
        let wrap = |v: f32, d: i32| (v as i32 + d) as usize & (LATTICE - 1);
        let row = |d| {
            let row = &self.0[wrap(low[1], d) * LATTICE..][..LATTICE];
            let (a, b) = (row[wrap(low[0], 0)], row[wrap(low[0], 1)]);
            a + (b - a) * f[0]
        };
        let top = row(0);
        top + (row(1) - top) * f[1]
    }

    /// The texture of a family at `p`, in 0..=1; `period` is in the units of `p`.
    pub(super) fn texture(&self, family: u32, p: V2, period: f32) -> f32 {
        let [u, v] = p.map(|v| v / period);
        match family {
            // Dots.
            0 => {
                // Every other row is shifted by half a cell.
                let shift = 0.5 * (v.floor() - 2.0 * (0.5 * v.floor()).floor());
                let (a, b) = (fract(u + shift) - 0.5, fract(v) - 0.5);
                1.0 - step((a * a + b * b).sqrt(), 0.24, 0.42)
            }
            // Stripes.
            1 => wave(u),
            // Blotches.
            2 => step(self.at([u, v], 0.8), 0.3, 0.7),
            // Rings around the origin.
            3 => wave((u * u + v * v).sqrt()),
            // A chequerboard.
            4 => 0.5 + 2.0 * (wave(0.7 * u) - 0.5) * (wave(0.7 * v) - 0.5),
            // Hardly any: a slow gradient.
            _ => (0.5 + 0.14 * u).clamp(0.0, 1.0),
        }
    }
}

fn fract(x: f32) -> f32 {
    x - x.floor()
}

/// A wave of period 1 between 0 and 1, with flat tops.
fn wave(x: f32) -> f32 {
    step((2.0 * fract(x) - 1.0).abs(), 0.2, 0.8)
}

/// 0 below `from`, 1 above `to`, smooth between.
pub(super) fn step(x: f32, from: f32, to: f32) -> f32 {
    smooth(((x - from) / (to - from)).clamp(0.0, 1.0))
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

pub(super) fn mix(a: V3, b: V3, t: f32) -> V3 {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

/// RGB of a hue (any number, one turn is 1), saturation and value.
pub(in crate::data) fn hsv(hue: f32, saturation: f32, value: f32) -> V3 {
    [5.0, 3.0, 1.0].map(|n| {
        let k = (n + 6.0 * hue).rem_euclid(6.0);
        value * (1.0 - saturation * k.min(4.0 - k).clamp(0.0, 1.0))
    })
}
