//! Segments: the pixels of a set of maps, grouped by their features.

use super::maps;
use super::pca::sample;
use crate::base::Philox;
use crate::cpu::{MatMut, MatRef, gemm};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The most pixels that centres are fitted to; of more, evenly spaced ones are taken.
const SAMPLE: usize = 16384;

/// How pixels are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KMeans {
    /// Number of groups.
    pub k: usize,
    /// Root of the first centres.
    pub seed: u64,
    /// First centres that are tried; the result with the least distances is kept.
    pub tries: usize,
    /// The most passes over the pixels of each try.
    pub passes: usize,
}

impl Default for KMeans {
    fn default() -> Self {
        KMeans { k: 6, seed: 0, tries: 4, passes: 50 }
    }
}

/// The groups of a set. One set of groups for all images makes a group's number, and so its colour, mean the same in all.
#[derive(Clone, Debug)]
pub struct Segments {
    /// `[k, C]`, those with the most pixels first.
    centres: Vec<f32>,
    channels: usize,
}

impl KMeans {
    /// Groups all pixels of maps `[N, H, W, C]` by the direction of their features (each pixel's are scaled to length 1), with
    /// k-means++ and Lloyd's iteration.
    ///
    /// # Errors
    /// `k` is 0, above 256, or larger than the number of pixels; no maps, maps of different channels, or values that are
    /// not finite.
    pub fn fit(&self, set: &[&Tensor]) -> Result<Segments> {
        let (mut rows, c) = sample("kmeans", set, SAMPLE)?;
        let n = rows.len() / c;
        if self.k == 0 || self.k > n.min(256) {
            return Err(Error::usage(format!("{} groups of {n} pixels", self.k))
                .with_remedy(format!("choose from 1 to {}", n.min(256))));
        }
        rows.chunks_exact_mut(c).for_each(normalise);
        let root = Philox::new(self.seed).fold_str("kmeans");
        let tries = (0..self.tries.max(1)).map(|t| self.descend(&rows, c, root.fold(t as u64)));
        let best = tries.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, centres)| centres);
        let centres = best.unwrap_or_default();
        let mut sizes = vec![0usize; self.k];
        nearest(&rows, &centres, c).iter().for_each(|(i, _)| sizes[*i] += 1);
        let mut order: Vec<usize> = (0..self.k).collect();
        order.sort_by_key(|i| std::cmp::Reverse(sizes[*i]));
        let sorted = order.iter().flat_map(|i| &centres[i * c..(i + 1) * c]).copied().collect();
        Ok(Segments { centres: sorted, channels: c })
    }

    /// One try: the sum of squared distances, and the centres.
    fn descend(&self, rows: &[f32], c: usize, random: Philox) -> (f64, Vec<f32>) {
        let mut random = random.sequence();
        let n = rows.len() / c;
        let row = |i: usize| &rows[i * c..(i + 1) * c];
        let mut centres = row(random.below(n as u32) as usize).to_vec();
        while centres.len() < self.k * c {
            // The next one by chance in proportion to the squared distance from those there are.
            let far: Vec<f64> = nearest(rows, &centres, c).iter().map(|(_, d)| *d).collect();
            let mut left = f64::from(random.uniform()) * far.iter().sum::<f64>();
            let pick = far.iter().position(|d| {
                left -= d;
                left <= 0.0
            });
            centres.extend_from_slice(row(pick.unwrap_or(n - 1)));
        }
        let mut last = f64::INFINITY;
        for _ in 0..self.passes {
            let own = nearest(rows, &centres, c);
            let total: f64 = own.iter().map(|(_, d)| d).sum();
            if total >= last * (1.0 - 1e-6) {
                return (total, centres);
            }
            last = total;
            let mut sums = vec![0.0f64; self.k * c];
            let mut sizes = vec![0usize; self.k];
            for (i, (group, _)) in own.iter().enumerate() {
                sizes[*group] += 1;
                sums[group * c..(group + 1) * c]
                    .iter_mut()
                    .zip(row(i))
                    .for_each(|(s, v)| *s += f64::from(*v));
            }
            // A group that lost all its pixels takes the one farthest from its centre.
            let farthest = (0..n).max_by(|a, b| own[*a].1.total_cmp(&own[*b].1)).unwrap_or(0);
            for (g, size) in sizes.iter().enumerate() {
                let centre = &mut centres[g * c..(g + 1) * c];
                match *size {
                    0 => centre.copy_from_slice(row(farthest)),
                    s => centre.iter_mut().zip(&sums[g * c..]).for_each(|(m, v)| *m = (v / s as f64) as f32),
                }
            }
        }
        (nearest(rows, &centres, c).iter().map(|(_, d)| d).sum(), centres)
    }
}

impl Segments {
    /// Number of groups.
    pub fn k(&self) -> usize {
        self.centres.len() / self.channels
    }

    /// The group of every pixel of maps `[N, H, W, C]`, one list of `H * W` for each image.
    ///
    /// # Errors
    /// Another number of channels than the groups have, or values that are not finite.
    pub fn ids(&self, map: &Tensor) -> Result<Vec<Vec<u16>>> {
        let ([_, h, w, c], values) = maps("kmeans", map)?;
        if c != self.channels {
            return Err(Error::shape("kmeans", format!("groups of {} channels", self.channels))
                .with_tensor("maps", map));
        }
        let mut rows = values.to_vec();
        rows.chunks_exact_mut(c).for_each(normalise);
        let ids: Vec<u16> = nearest(&rows, &self.centres, c).iter().map(|(i, _)| *i as u16).collect();
        Ok(ids.chunks_exact(h * w).map(<[u16]>::to_vec).collect())
    }
}

/// Scales a pixel's features to length 1; zeros stay.
fn normalise(row: &mut [f32]) {
    let length = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

/// For every row the nearest centre and the squared distance to it; of equally near ones the first.
fn nearest(rows: &[f32], centres: &[f32], c: usize) -> Vec<(usize, f64)> {
    let (n, k) = (rows.len() / c, centres.len() / c);
    let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let lengths: Vec<f64> = centres.chunks_exact(c).map(square).collect();
    let mut products = vec![0.0; n * k];
    let to = MatRef::row_major(centres, k, c).t();
    gemm(MatMut::row_major(&mut products, n, k), MatRef::row_major(rows, n, c), to, false, true);
    let pick = |row: &[f32], products: &[f32]| {
        let distance = |j: usize| lengths[j] - 2.0 * f64::from(products[j]);
        let best = (0..k).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(0);
        (best, (distance(best) + square(row)).max(0.0))
    };
    rows.chunks_exact(c).zip(products.chunks_exact(k)).map(|(row, p)| pick(row, p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three directions with some noise, in shares of 1/2, 1/3 and 1/6; and which is where.
    fn groups() -> (Tensor, Vec<usize>) {
        let n = 600;
        let mut z = vec![0.0; n * 4];
        Philox::new(8).fill_normal(&mut z);
        let of = |i: usize| [0, 0, 0, 1, 1, 2][i % 6];
        for (i, row) in z.chunks_exact_mut(4).enumerate() {
            row.iter_mut().for_each(|v| *v *= 0.05);
            row[of(i)] += 1.0;
            // Length does not count.
            row.iter_mut().for_each(|v| *v *= 1.0 + (i % 5) as f32);
        }
        (Tensor::from_vec([6, 10, 10, 4], z).unwrap(), (0..n).map(of).collect())
    }

    #[test]
    fn finds_the_groups_the_largest_first() {
        let (maps, truth) = groups();
        let segments = KMeans { k: 3, ..KMeans::default() }.fit(&[&maps]).unwrap();
        assert_eq!(segments.k(), 3);
        let ids: Vec<usize> = segments.ids(&maps).unwrap().concat().into_iter().map(usize::from).collect();
        assert_eq!(ids, truth);
    }

    #[test]
    fn images_share_the_groups() {
        let (maps, truth) = groups();
        let segments = KMeans { k: 3, seed: 9, ..KMeans::default() }.fit(&[&maps, &maps]).unwrap();
        let v = maps.f32s().unwrap();
        let one = Tensor::from_vec([1, 10, 10, 4], v[400 * 4..500 * 4].to_vec()).unwrap();
        let ids = segments.ids(&one).unwrap();
        assert!(ids.len() == 1 && ids[0].iter().map(|i| usize::from(*i)).eq(truth[400..500].iter().copied()));
    }

    #[test]
    fn limits() {
        let (maps, _) = groups();
        assert!(KMeans { k: 0, ..KMeans::default() }.fit(&[&maps]).unwrap_err().is_usage());
        assert!(KMeans { k: 257, ..KMeans::default() }.fit(&[&maps]).unwrap_err().is_usage());
        // More groups than different pixels.
        let flat = Tensor::full([1, 2, 2, 3], 1.0);
        let segments = KMeans { k: 4, ..KMeans::default() }.fit(&[&flat]).unwrap();
        assert_eq!(segments.ids(&flat).unwrap()[0].len(), 4);
        assert!(segments.ids(&maps).unwrap_err().is_shape());
    }
}
