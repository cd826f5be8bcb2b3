//! How far feature maps are from reference maps: what a narrow type, or a device, costs.

use super::LossConfig;
use super::loss::EPS;
use crate::error::{Error, Result};
use crate::ops::whiten_mse::whiten;
use crate::tensor::Tensor;

/// Deviation of a feature map from a reference map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapError {
    /// `|W(a) - W(b)| / |W(b)|` in the L2 norm, with both maps whitened as the loss whitens its targets.
    pub whitened: f64,
    /// `|a - b| / |b|` of the raw maps.
    pub raw: f64,
    /// The largest deviation of the whitened maps, relative to the largest value of the reference.
    pub worst: f64,
}

impl MapError {
    /// Compares two f32 maps `[N, h, w, C]` on the host. A deviation that is not finite shows in every number.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn between(map: &Tensor, reference: &Tensor, loss: &LossConfig) -> Result<Self> {
        if map.shape() != reference.shape() {
            return Err(Error::shape("map_error", "the maps differ in shape")
                .with_tensor("map", map)
                .with_tensor("reference", reference));
        }
        let (a, b) = (whiten(map, loss.whiten, EPS)?, whiten(reference, loss.whiten, EPS)?);
        let (whitened, worst) = deviation(a.f32s()?, b.f32s()?);
        let (raw, _) = deviation(map.f32s()?, reference.f32s()?);
        Ok(MapError { whitened, raw, worst })
    }
}

/// In the L2 norm, and of the largest element.
fn deviation(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut error, mut size, mut worst, mut largest) = (0.0, 0.0, 0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (d, b) = (f64::from(a) - f64::from(b), f64::from(b));
        error += d * d;
        size += b * b;
        // Once NaN, always NaN: `max` would forget it.
        worst = if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d.abs()) };
        largest = largest.max(b.abs());
    }
    // A map of zeros has no scale of its own.
    let relative = |v: f64, to: f64| if to > 0.0 { v / to } else { v };
    (relative(error.sqrt(), size.sqrt()), relative(worst, largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::whiten_mse::Whiten;

    #[test]
    fn deviations() {
        let raw = LossConfig { whiten: Whiten::None, ..LossConfig::default() };
        let map = |v: [f32; 4]| Tensor::from_vec([1, 1, 2, 2], v.to_vec()).unwrap();
        let b = map([3.0, 0.0, 0.0, 4.0]);
        let e = MapError::between(&map([3.0, 0.0, 0.0, 4.5]), &b, &raw).unwrap();
        assert_eq!(e, MapError { whitened: 0.1, raw: 0.1, worst: 0.125 });
        // Whitening takes scale and offset away.
        let e = MapError::between(&map([7.0, 1.0, 1.0, 9.0]), &b, &LossConfig::default()).unwrap();
        assert!(e.whitened < 1e-5 && e.worst < 1e-5 && e.raw > 0.5, "{e:?}");
        let e = MapError::between(&map([f32::NAN, 0.0, 0.0, 4.0]), &b, &raw).unwrap();
        assert!(e.whitened.is_nan() && e.raw.is_nan() && e.worst.is_nan());
        let zeros = map([0.0; 4]);
        assert_eq!(MapError::between(&zeros, &zeros, &raw).unwrap().raw, 0.0);
        assert!(MapError::between(&zeros, &Tensor::zeros([1, 1, 4, 1]), &raw).unwrap_err().is_shape());
    }
}
