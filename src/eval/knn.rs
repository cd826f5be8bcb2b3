//! Weighted nearest neighbours.

use super::config::KnnConfig;
use crate::cpu::{MatMut, MatRef, gemm, map_ordered};

/// Rows of one product.
const BLOCK: usize = 64;

/// Brings every row of `width` numbers to length 1; a row of zeros stays.
pub(super) fn normalize(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
}

/// The class of each of `queries [m, width]`: the k rows of `bank [n, width]` with the largest cosine similarity s vote for
/// their labels with the weight exp(s / temperature); of equal votes the lower class wins, of equally near rows the earlier.
pub(super) fn classify(
    config: &KnnConfig,
    bank: &[f32],
    labels: &[u16],
    queries: &[f32],
    width: usize,
    classes: usize,
) -> Vec<u16> {
    let (mut bank, mut queries) = (bank.to_vec(), queries.to_vec());
    normalize(&mut bank, width);
    normalize(&mut queries, width);
    let (n, m, k) = (labels.len(), queries.len() / width, config.k.min(labels.len()));
    let of_block = |b: usize| -> Vec<u16> {
        let rows = b * BLOCK..((b + 1) * BLOCK).min(m);
        let mut similar = vec![0.0f32; rows.len() * n];
        let (part, all) =
            (&queries[rows.start * width..rows.end * width], MatRef::row_major(&bank, n, width));
        let there = MatMut::row_major(&mut similar, rows.len(), n);
        gemm(there, MatRef::row_major(part, rows.len(), width), all.t(), false, false);
        similar.chunks_exact(n).map(|s| vote(config, s, labels, k, classes)).collect()
    };
    map_ordered(m.div_ceil(BLOCK), of_block).concat()
}

fn vote(config: &KnnConfig, similar: &[f32], labels: &[u16], k: usize, classes: usize) -> u16 {
    let mut order: Vec<usize> = (0..similar.len()).collect();
    let nearer = |a: &usize, b: &usize| similar[*b].total_cmp(&similar[*a]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, nearer);
        order.truncate(k);
    }
    // Sums do not depend on how the selection has left them.
    order.sort_unstable_by(nearer);
    let mut votes = vec![0.0f64; classes];
    for i in order {
        // Similarities are at most 1, so that no weight overflows.
        votes[usize::from(labels[i])] += ((f64::from(similar[i]) - 1.0) / config.temperature).exp();
    }
    let mut best = 0;
    for (class, v) in votes.iter().enumerate() {
        if *v > votes[best] {
            best = class;
        }
    }
    best as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(k: usize, temperature: f64) -> KnnConfig {
        KnnConfig { k, temperature, level: 4 }
    }

    /// Directions on a circle, counted by hand: length does not matter, near ones weigh more, k limits the vote.
    #[test]
    fn by_hand() {
        let at = |degrees: f32, length: f32| {
            let (s, c) = degrees.to_radians().sin_cos();
            [length * c, length * s]
        };
        // One of class 0 at 0 degrees, far out; two of class 1 at 40 degrees.
        let bank = [at(0.0, 9.0), at(40.0, 0.1), at(40.0, 1.0)].concat();
        let labels = [0, 1, 1];
        let queries = [at(10.0, 3.0), at(25.0, 1.0)].concat();
        // The nearest one alone.
        assert_eq!(classify(&config(1, 0.07), &bank, &labels, &queries, 2, 2), [0, 1]);
        // A high temperature makes votes equal: two against one.
        assert_eq!(classify(&config(3, 100.0), &bank, &labels, &queries, 2, 2), [1, 1]);
        // cos 10 - cos 30 = 0.119 is more than 0.07 ln 2 = 0.049, and less than 0.5 ln 2.
        assert_eq!(classify(&config(20, 0.07), &bank, &labels, &queries, 2, 2)[0], 0);
        assert_eq!(classify(&config(20, 0.5), &bank, &labels, &queries, 2, 2)[0], 1);
    }

    #[test]
    fn more_queries_than_a_block() {
        let n = 3 * BLOCK + 5;
        let rows: Vec<f32> = (0..n).flat_map(|i| [1.0, i as f32 * 0.01]).collect();
        let labels: Vec<u16> = (0..n).map(|i| (i % 5) as u16).collect();
        assert_eq!(classify(&config(1, 0.07), &rows, &labels, &rows, 2, 5), labels);
        let zero = classify(&config(2, 0.07), &rows, &labels, &[0.0, 0.0], 2, 5);
        assert_eq!(zero, [0]);
    }
}
