//! Feature maps as colours: their three principal components as red, green and blue.

use super::maps;
use crate::base::Philox;
use crate::cpu::{MatMut, MatRef, gemm};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use image::{Rgb, RgbImage};

/// The most pixels that a basis is fitted to; of more, evenly spaced ones are taken.
const SAMPLE: usize = 8192;
/// Directions that are iterated; more than the three that are wanted, so that these settle sooner.
const DIRECTIONS: usize = 8;
const ITERATIONS: usize = 24;
/// The share of pixels at either end of a component whose colour is clipped.
const CLIPPED: f64 = 0.01;

/// The common basis of a set of maps. The same basis for all images, networks and times makes their colours comparable.
#[derive(Clone, Debug)]
pub struct Pca {
    mean: Vec<f32>,
    /// Three directions `[3, C]`; zeros where there are fewer channels.
    axes: Vec<f32>,
    /// What becomes 0 and 1, of each component.
    range: [[f32; 2]; 3],
    explained: f64,
}

impl Pca {
    /// Fits the basis to all pixels of maps `[N, H, W, C]` with one number of channels, by subspace iteration.
    ///
    /// # Errors
    /// No maps, maps of different channels, or values that are not finite.
    pub fn fit(set: &[&Tensor]) -> Result<Self> {
        let (mut rows, c) = sample("pca", set, SAMPLE)?;
        let n = rows.len() / c;
        let mut mean = vec![0.0f64; c];
        for row in rows.chunks_exact(c) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / n as f64);
        }
        let mean: Vec<f32> = mean.into_iter().map(|m| m as f32).collect();
        for row in rows.chunks_exact_mut(c) {
            row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m);
        }
        let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let total = square(&rows);
        let k = DIRECTIONS.min(c);
        let mut axes = vec![0.0; k * c];
        Philox::new(0).fold_str("pca").fill_normal(&mut axes);
        orthonormalise(&mut axes, c);
        let x = MatRef::row_major(&rows, n, c);
        let mut parts = vec![0.0; n * k];
        for _ in 0..ITERATIONS {
            gemm(MatMut::row_major(&mut parts, n, k), x, MatRef::row_major(&axes, k, c).t(), false, true);
            gemm(MatMut::row_major(&mut axes, k, c), MatRef::row_major(&parts, n, k).t(), x, false, true);
            orthonormalise(&mut axes, c);
        }
        gemm(MatMut::row_major(&mut parts, n, k), x, MatRef::row_major(&axes, k, c).t(), false, true);
        // The iteration keeps the directions in the order in which they settle, which is that of their variance, up to ties.
        let variance = |j: usize| parts.iter().skip(j).step_by(k).map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| variance(*b).total_cmp(&variance(*a)));
        let mut best = vec![0.0; 3 * c];
        let mut range = [[0.0; 2]; 3];
        for (to, &j) in order.iter().take(3).enumerate() {
            let axis = &axes[j * c..(j + 1) * c];
            // A direction and its opposite are equally good: the largest entry is made positive.
            let largest = axis.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(1.0);
            let sign = if largest < 0.0 { -1.0 } else { 1.0 };
            best[to * c..(to + 1) * c].iter_mut().zip(axis).for_each(|(b, a)| *b = sign * a);
            range[to] = ends(parts.iter().skip(j).step_by(k).map(|v| sign * v).collect());
        }
        let kept = order.iter().take(3).map(|j| variance(*j)).sum::<f64>();
        let explained = if total > 0.0 { kept / total } else { 0.0 };
        Ok(Pca { mean, axes: best, range, explained })
    }

    /// The share of the variance that the three components hold, 0..1.
    pub fn explained(&self) -> f64 {
        self.explained
    }

    /// The same directions, with the centre and the range of other maps: shows what these vary in, however weakly, in colours
    /// that mean the same.
    ///
    /// # Errors
    /// Another number of channels than the basis, or values that are not finite.
    pub fn ranged(&self, map: &Tensor) -> Result<Pca> {
        let (rows, c) = sample("pca", &[map], SAMPLE)?;
        self.expect(c, map)?;
        let mut range = [[0.0; 2]; 3];
        for (j, range) in range.iter_mut().enumerate() {
            *range = ends(rows.chunks_exact(c).map(|pixel| self.component(pixel, j)).collect());
        }
        Ok(Pca { range, ..self.clone() })
    }

    fn expect(&self, channels: usize, map: &Tensor) -> Result<()> {
        if channels == self.mean.len() {
            return Ok(());
        }
        Err(Error::shape("pca", format!("a basis of {} channels", self.mean.len())).with_tensor("maps", map))
    }

    /// How far a pixel lies along direction `j`.
    fn component(&self, pixel: &[f32], j: usize) -> f32 {
        let axis = &self.axes[j * self.mean.len()..];
        pixel.iter().zip(&self.mean).zip(axis).map(|((v, m), a)| (v - m) * a).sum()
    }

    /// Maps `[N, H, W, C]` in the basis, one picture of `W x H` pixels each.
    ///
    /// # Errors
    /// Another number of channels than the basis, or values that are not finite.
    pub fn rgb(&self, map: &Tensor) -> Result<Vec<RgbImage>> {
        let ([_, h, w, c], values) = maps("pca", map)?;
        self.expect(c, map)?;
        let colour = |pixel: &[f32], j: usize| {
            let v = self.component(pixel, j);
            let [low, high] = self.range[j];
            let unit = if high > low { (v - low) / (high - low) } else { 0.5 };
            (unit.clamp(0.0, 1.0) * 255.0).round() as u8
        };
        let picture = |image: &[f32]| {
            RgbImage::from_fn(w as u32, h as u32, |x, y| {
                let at = (y as usize * w + x as usize) * c;
                Rgb(std::array::from_fn(|j| colour(&image[at..at + c], j)))
            })
        };
        Ok(values.chunks_exact(h * w * c).map(picture).collect())
    }
}

/// What becomes 0 and 1: all but [`CLIPPED`] of the values at either end.
fn ends(mut values: Vec<f32>) -> [f32; 2] {
    values.sort_by(f32::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    [at(CLIPPED), at(1.0 - CLIPPED)]
}

/// At most `most` pixels of a set of maps, evenly spaced, as rows of channels; and the number of channels.
pub(super) fn sample(what: &str, set: &[&Tensor], most: usize) -> Result<(Vec<f32>, usize)> {
    let first = set.first().ok_or_else(|| Error::shape(what, "there are no maps"))?;
    let ([.., c], _) = maps(what, first)?;
    let mut pixels: Vec<&[f32]> = Vec::new();
    for t in set {
        let ([.., own], values) = maps(what, t)?;
        if own != c {
            return Err(Error::shape(what, "the maps differ in channels")
                .with_tensor("first", first)
                .with_tensor("other", t));
        }
        pixels.extend(values.chunks_exact(c));
    }
    let taken = pixels.len().min(most);
    let rows = (0..taken).flat_map(|i| pixels[i * pixels.len() / taken]).copied().collect();
    Ok((rows, c))
}

/// Gram-Schmidt on rows of `c`, twice, which is enough for f32. A row that depends on those before it becomes zero.
fn orthonormalise(rows: &mut [f32], c: usize) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    for i in 0..rows.len() / c {
        let (before, rest) = rows.split_at_mut(i * c);
        let row = &mut rest[..c];
        let length = dot(row, row).sqrt();
        for other in before.chunks_exact(c).chain(before.chunks_exact(c)) {
            let along = dot(row, other) as f32;
            row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
        }
        let left = dot(row, row).sqrt();
        let scale = if left > 1e-6 * length { 1.0 / left } else { 0.0 };
        row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maps whose variance lies along three known directions, largest first.
    fn planted(n: usize) -> (Tensor, Vec<[f32; 3]>) {
        let c = 6;
        let mut z = vec![0.0; 3 * n];
        Philox::new(5).fill_normal(&mut z);
        let parts: Vec<[f32; 3]> = z.chunks_exact(3).map(|p| [9.0 * p[0], 4.0 * p[1], 1.5 * p[2]]).collect();
        let pixel = |p: &[f32; 3]| [10.0 + p[1], -3.0 + p[0], p[2], 7.0, 0.0, -p[0]].to_vec();
        (Tensor::from_vec([1, 1, n, c], parts.iter().flat_map(pixel).collect()).unwrap(), parts)
    }

    #[test]
    fn components_come_by_variance() {
        let (maps, parts) = planted(500);
        let pca = Pca::fit(&[&maps]).unwrap();
        assert!(pca.explained() > 0.9999, "{}", pca.explained());
        let axis = |j: usize| &pca.axes[j * 6..(j + 1) * 6];
        let half = 0.5f32.sqrt();
        for (j, want) in [
            [0.0, half, 0.0, 0.0, 0.0, -half],
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        ]
        .iter()
        .enumerate()
        {
            // The sign is free where two entries are equally large.
            let same: f32 = axis(j).iter().zip(want).map(|(a, b)| a * b).sum();
            assert!(same.abs() > 0.99, "{j}: {:?}", axis(j));
        }
        // Green follows the second component.
        let picture = &pca.rgb(&maps).unwrap()[0];
        let mut by_part: Vec<(f32, u8)> =
            (0..500).map(|i| (parts[i][1], picture.get_pixel(i as u32, 0)[1])).collect();
        by_part.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(by_part[20].1 < 80 && by_part[480].1 > 170, "{:?}", (by_part[20], by_part[480]));
    }

    #[test]
    fn one_basis_gives_equal_features_equal_colours() {
        let (maps, _) = planted(64);
        let pca = Pca::fit(&[&maps, &maps]).unwrap();
        assert_eq!(pca.rgb(&maps).unwrap(), Pca::fit(&[&maps, &maps]).unwrap().rgb(&maps).unwrap());
        let alone = Tensor::from_vec([1, 1, 1, 6], maps.f32s().unwrap()[12..18].to_vec()).unwrap();
        assert_eq!(pca.rgb(&alone).unwrap()[0].get_pixel(0, 0), pca.rgb(&maps).unwrap()[0].get_pixel(2, 0));
    }

    #[test]
    fn weak_copies_look_the_same_in_their_own_range() {
        let (maps, _) = planted(300);
        let pca = Pca::fit(&[&maps]).unwrap();
        let weak: Vec<f32> = maps.f32s().unwrap().iter().map(|v| 0.125 * v + 3.0).collect();
        let weak = Tensor::from_vec([1, 1, 300, 6], weak).unwrap();
        let (a, b) = (pca.rgb(&maps).unwrap(), pca.ranged(&weak).unwrap().rgb(&weak).unwrap());
        let most = a[0].as_raw().iter().zip(b[0].as_raw()).map(|(x, y)| x.abs_diff(*y)).max();
        assert!(most <= Some(1), "{most:?}");
        assert!(pca.ranged(&Tensor::zeros([1, 1, 1, 2])).unwrap_err().is_shape());
    }

    #[test]
    fn few_channels_and_flat_maps() {
        let flat = Pca::fit(&[&Tensor::full([1, 3, 3, 5], 2.0)]).unwrap();
        assert_eq!(flat.rgb(&Tensor::full([1, 1, 1, 5], 2.0)).unwrap()[0].get_pixel(0, 0).0, [128; 3]);
        let line = Tensor::from_vec([1, 1, 4, 1], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let reds: Vec<u8> =
            Pca::fit(&[&line]).unwrap().rgb(&line).unwrap()[0].pixels().map(|p| p[0]).collect();
        assert_eq!(reds, [0, 85, 170, 255]);
        assert!(Pca::fit(&[]).unwrap_err().is_shape());
        assert!(Pca::fit(&[&line, &Tensor::zeros([1, 1, 1, 2])]).unwrap_err().is_shape());
        assert!(flat.rgb(&line).unwrap_err().is_shape());
    }
}
