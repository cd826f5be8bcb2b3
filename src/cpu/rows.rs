//! Loops over matrices and batches of matrices: elementwise maps, row sums, and column sums whose cuts follow from the
//! sizes alone.

use super::{for_each_chunk, map_ordered};
use rayon::prelude::*;
use std::ops::Range;

/// Elements per block: large enough for a thread to be worth waking, small enough for the second-level cache.
const BLOCK: usize = 16 * 1024;

/// `f` of every element.
pub fn map(x: &[f32], f: impl Fn(f32) -> f32 + Send + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for_each_chunk(&mut y, BLOCK, |i, y| {
        for (y, &x) in y.iter_mut().zip(&x[i * BLOCK..]) {
            *y = f(x);
        }
    });
    y
}

/// `f` of every pair of elements.
///
/// # Panics
/// The slices differ in length.
pub fn map2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Send + Sync) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "both slices must have the same length");
    let mut y = vec![0.0; a.len()];
    for_each_chunk(&mut y, BLOCK, |i, y| {
        for ((y, &a), &b) in y.iter_mut().zip(&a[i * BLOCK..]).zip(&b[i * BLOCK..]) {
            *y = f(a, b);
        }
    });
    y
}

const LANES: usize = 8;

/// Sum of `f(a, b)` over two slices of the same length, in f64.
#[inline(always)]
pub fn dot_by(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f64 = ac.remainder().iter().zip(bc.remainder()).map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in ac.zip(bc) {
        for ((l, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *l += f(a, b);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// Largest element; `-inf` for none. NaN elements are passed over.
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| larger(m, v));
    for c in chunks {
        for (l, &v) in lanes.iter_mut().zip(c) {
            *l = larger(*l, v);
        }
    }
    lanes.iter().fold(tail, |m, &v| larger(m, v))
}

/// Mean and biased variance of a slice, computed in f64 in two passes.
pub fn moments(x: &[f32]) -> (f64, f64) {
    let n = x.len().max(1) as f64;
    let mean = dot_by(x, x, |v, _| f64::from(v)) / n;
    let var = dot_by(x, x, |v, _| (f64::from(v) - mean) * (f64::from(v) - mean)) / n;
    (mean, var)
}

/// A number as the sum of two f32: subtracting the first from values near it is exact, the second is a correction.
pub fn split(x: f64) -> (f32, f32) {
    let high = x as f32;
    (high, (x - f64::from(high)) as f32)
}

/// Cuts `samples` matrices of `rows` x `width` into blocks of whole rows that do not cross samples.
fn blocks(samples: usize, rows: usize, width: usize) -> Vec<(usize, Range<usize>)> {
    let step = rows_per_block(width);
    (0..samples)
        .flat_map(|n| (0..rows.div_ceil(step)).map(move |i| (n, i * step..rows.min((i + 1) * step))))
        .collect()
}

fn rows_per_block(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

/// Adds the blocks' sums of each sample, in order.
fn combine(samples: usize, len: usize, parts: impl Iterator<Item = (usize, Vec<f64>)>) -> Vec<f64> {
    let mut out = vec![0.0; samples * len];
    for (n, part) in parts {
        for (o, p) in out[n * len..(n + 1) * len].iter_mut().zip(part) {
            *o += p;
        }
    }
    out
}

/// Sums over the rows of each of `samples` matrices of `rows` x `width`: `f(sample, rows, sums)` adds the
/// contribution of some rows to `len` sums. Returns `samples` x `len` sums.
pub fn sum_rows(
    [samples, rows, width]: [usize; 3],
    len: usize,
    f: impl Fn(usize, Range<usize>, &mut [f64]) + Send + Sync,
) -> Vec<f64> {
    let cut = blocks(samples, rows, width);
    let part = |i: usize| {
        let (n, rows) = cut[i].clone();
        let mut sums = vec![0.0; len];
        f(n, rows, &mut sums);
        (n, sums)
    };
    let parts: Vec<_> = if samples * rows * width < 2 * BLOCK {
        (0..cut.len()).map(part).collect()
    } else {
        map_ordered(cut.len(), part)
    };
    combine(samples, len, parts.into_iter())
}

/// Like [`sum_rows`] while filling `out`, the `samples` matrices one after another: `f(sample, rows, out, sums)` gets
/// the part of `out` that holds these rows.
///
/// # Panics
/// `out` does not have `samples * rows * width` elements.
pub fn fill_and_sum_rows(
    out: &mut [f32],
    [samples, rows, width]: [usize; 3],
    len: usize,
    f: impl Fn(usize, Range<usize>, &mut [f32], &mut [f64]) + Send + Sync,
) -> Vec<f64> {
    assert_eq!(out.len(), samples * rows * width, "the result must hold all rows");
    let small = out.len() < 2 * BLOCK;
    let step = rows_per_block(width) * width.max(1);
    let pieces = out.chunks_mut((rows * width).max(1)).flat_map(|sample| sample.chunks_mut(step));
    let part = |((n, rows), out): ((usize, Range<usize>), &mut [f32])| {
        let mut sums = vec![0.0; len];
        f(n, rows, out, &mut sums);
        (n, sums)
    };
    let work: Vec<_> = blocks(samples, rows, width).into_iter().zip(pieces).collect();
    let parts: Vec<_> = if small {
        work.into_iter().map(part).collect()
    } else {
        work.into_par_iter().with_max_len(1).map(part).collect()
    };
    combine(samples, len, parts.into_iter())
}

/// For each of `samples` matrices of `rows` x `width`, the column sums and then the column sums of squares, in f64:
/// `samples` x `2 * width` numbers.
pub fn column_moments(x: &[f32], [samples, rows, width]: [usize; 3]) -> Vec<f64> {
    sum_rows([samples, rows, width], 2 * width, |n, range, sums| {
        let (s, q) = sums.split_at_mut(width);
        let part = &x[(n * rows + range.start) * width..(n * rows + range.end) * width];
        // Two rows at a time halve the traffic on the sums.
        let mut pairs = part.chunks_exact(2 * width);
        for pair in &mut pairs {
            let (a, b) = pair.split_at(width);
            for (((s, q), &a), &b) in s.iter_mut().zip(q.iter_mut()).zip(a).zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                *s += a + b;
                *q += a * a + b * b;
            }
        }
        for ((s, q), &a) in s.iter_mut().zip(q.iter_mut()).zip(pairs.remainder()) {
            let a = f64::from(a);
            *s += a;
            *q += a * a;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Philox;

    fn filled(n: usize) -> Vec<f32> {
        let mut v = vec![0.0; n];
        Philox::new(4).fill_normal(&mut v);
        v
    }

    fn in_pool<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
    }

    #[test]
    fn maps_cover_every_element() {
        for n in [0, 1, 7, BLOCK, 3 * BLOCK + 5] {
            let x = filled(n);
            assert_eq!(map(&x, |v| v + 1.0), x.iter().map(|v| v + 1.0).collect::<Vec<_>>());
            assert_eq!(map2(&x, &x, |a, b| a * b), x.iter().map(|v| v * v).collect::<Vec<_>>());
        }
    }

    #[test]
    fn row_statistics() {
        for n in [1, 7, 8, 9, 100] {
            let x = filled(n);
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            let got = moments(&x);
            assert!((got.0 - mean).abs() < 1e-12 && (got.1 - var).abs() < 1e-12, "{n}");
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[-3.0, f32::NAN, -1.0]), -1.0);
    }

    #[test]
    fn column_sums_match_and_ignore_the_number_of_threads() {
        for (samples, rows, width) in [(1, 1, 1), (2, 3, 5), (3, 501, 67), (1, 5, 20_000), (600, 1, 64)] {
            let x = filled(samples * rows * width);
            let size = [samples, rows, width];
            let got = in_pool(1, || column_moments(&x, size));
            let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&in_pool(3, || column_moments(&x, size))));
            for n in 0..samples {
                for c in 0..width {
                    let column = (0..rows).map(|r| f64::from(x[(n * rows + r) * width + c]));
                    let (s, q) = column.fold((0.0, 0.0), |(s, q), v| (s + v, q + v * v));
                    let at = n * 2 * width + c;
                    assert!((got[at] - s).abs() <= 1e-9 && (got[at + width] - q).abs() <= 1e-9);
                }
            }
            let mut copy = vec![0.0; x.len()];
            let sums = fill_and_sum_rows(&mut copy, size, width, |n, range, out, sums| {
                let from = (n * rows + range.start) * width;
                assert_eq!(out.len(), range.len() * width);
                for (row, x) in out.chunks_mut(width).zip(x[from..].chunks(width)) {
                    row.copy_from_slice(x);
                    sums.iter_mut().zip(x).for_each(|(s, &v)| *s += f64::from(v));
                }
            });
            assert_eq!(copy, x);
            for (i, s) in sums.iter().enumerate() {
                assert!((s - got[i / width * 2 * width + i % width]).abs() <= 1e-9);
            }
        }
    }
}
