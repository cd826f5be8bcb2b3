//! The definition in f64.

use super::DiffusionLoss;
use crate::error::Result;
use crate::tensor::Tensor;
use std::f64::consts::{FRAC_2_PI, LN_2};

/// One element of the loss: the predicted noise, the true one, and what the bound needs.
struct Element {
    prediction: f64,
    noise: f64,
    bound: Option<Bound>,
}

struct Bound {
    /// Difference of predicted and true noise, which the gradient holds constant.
    d: f64,
    s: f64,
    pixel: f64,
    first: bool,
    range: f64,
    gain: f64,
}

impl Bound {
    /// In nats.
    fn value(&self, half_bin: f64) -> f64 {
        let shift = self.gain * self.d;
        let log_variance = self.range * (self.s + 1.0) / 2.0;
        if !self.first {
            return (log_variance - 1.0 + (1.0 + shift * shift) / log_variance.exp()) / 2.0;
        }
        let deviation = (log_variance / 2.0).exp();
        let lower = if self.pixel < -0.999 { f64::NEG_INFINITY } else { (shift - half_bin) / deviation };
        let upper = if self.pixel > 0.999 { f64::INFINITY } else { (shift + half_bin) / deviation };
        // The mirror image has the same mass, and in the lower tail nothing cancels.
        let mass =
            if lower + upper > 0.0 { below(-lower) - below(-upper) } else { below(upper) - below(lower) };
        -mass.max(1e-12).ln()
    }
}

/// The normal distribution: `(1 + tanh u) / 2`, which is `1 / (1 + exp(-2 u))`.
fn below(z: f64) -> f64 {
    1.0 / (1.0 + (-2.0 * FRAC_2_PI.sqrt() * (z + 0.044715 * z.powi(3))).exp())
}

/// Every element, in the order of the noise. The difference in the bound is that of `held`.
fn elements(inputs: &[&Tensor], held: &[&Tensor]) -> Result<Vec<Element>> {
    let c = inputs[1].shape().last();
    let (p, h, noise) = (inputs[0].data::<f64>()?, held[0].data::<f64>()?, inputs[1].data::<f64>()?);
    let per_pixel = inputs[0].shape().last();
    let per_sample = noise.len() / inputs[1].shape()[0];
    let element = |i: usize| {
        let at = i / c * per_pixel + i % c;
        let bound = match inputs {
            [_, _, images, steps, tables] => {
                let step = steps.data::<i64>()?[i / per_sample];
                let row = &tables.data::<f64>()?[2 * step as usize..][..2];
                Some(Bound {
                    d: h[at] - noise[i],
                    s: p[at + c],
                    pixel: images.data::<f64>()?[i],
                    first: step == 0,
                    range: row[0],
                    gain: row[1],
                })
            }
            _ => None,
        };
        Ok(Element { prediction: p[at], noise: noise[i], bound })
    };
    (0..noise.len()).map(element).collect()
}

/// The loss.
pub(super) fn loss(op: &DiffusionLoss, inputs: &[&Tensor], held: &[&Tensor]) -> Result<f64> {
    let all = elements(inputs, held)?;
    let one = |e: &Element| {
        let bound = e.bound.as_ref().map_or(0.0, |b| b.value(f64::from(op.half_bin)));
        (e.prediction - e.noise).powi(2) + f64::from(op.vlb_weight) * bound / LN_2
    };
    Ok(all.iter().map(one).sum::<f64>() / all.len() as f64)
}

/// The gradient of the prediction. That of the variance at step 0 is taken from five values of the bound.
pub(super) fn gradient(op: &DiffusionLoss, inputs: &[&Tensor], gy: f64) -> Result<Vec<f64>> {
    let (all, c) = (elements(inputs, inputs)?, inputs[1].shape().last());
    let scale = gy / all.len() as f64;
    let mut g = Vec::with_capacity(inputs[0].elems());
    for pixel in all.chunks(c) {
        g.extend(pixel.iter().map(|e| scale * 2.0 * (e.prediction - e.noise)));
        let slope = |b: &Bound| {
            if !b.first {
                let ratio = (1.0 + (b.gain * b.d).powi(2)) / (b.range * (b.s + 1.0) / 2.0).exp();
                return b.range / 4.0 * (1.0 - ratio);
            }
            let at = |h: f64| Bound { s: b.s + h, ..*b }.value(f64::from(op.half_bin));
            let h = 1e-3;
            (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
        };
        let weight = scale * f64::from(op.vlb_weight) / LN_2;
        g.extend(pixel.iter().filter_map(|e| e.bound.as_ref()).map(|b| weight * slope(b)));
    }
    Ok(g)
}
