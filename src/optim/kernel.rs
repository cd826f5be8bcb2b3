//! Threaded loops over the elements of one tensor, with sums that do not depend on the number of threads.

use rayon::prelude::*;

/// Elements per task. A constant, so that partial sums are the same however many threads there are.
pub(super) const CHUNK: usize = 1 << 14;

/// Independent accumulators, so that a sum is not one long chain of dependent additions.
const LANES: usize = 8;

/// Sum of squares in f64.
pub(super) fn sum_squares(x: &[f32]) -> f64 {
    let part = |c: &[f32]| {
        let mut acc = [0.0f64; LANES];
        for eight in c.chunks(LANES) {
            for (a, v) in acc.iter_mut().zip(eight) {
                *a += f64::from(*v) * f64::from(*v);
            }
        }
        acc.iter().sum::<f64>()
    };
    if x.len() <= CHUNK {
        return part(x);
    }
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(part).collect();
    parts.iter().sum()
}

/// Calls `f(value, buffers, gradient)` for every element and returns the sums of squares of its two results.
pub(super) fn visit<const B: usize>(
    value: &mut [f32],
    bufs: &mut [Vec<f32>; B],
    grad: &[f32],
    f: impl Fn(&mut f32, [&mut f32; B], f32) -> [f32; 2] + Sync,
) -> [f64; 2] {
    let part = |w: &mut [f32], mut b: [&mut [f32]; B], g: &[f32]| {
        let mut acc = [[0.0f64; LANES]; 2];
        // Blocks of exactly LANES elements, so that the compiler sees the length and vectorises; then what is left.
        let mut block = |w: &mut [f32], b: [&mut [f32]; B], g: &[f32]| {
            let mut b = b;
            for (i, (w, &g)) in w.iter_mut().zip(g).enumerate() {
                let [p, q] = f(w, b.each_mut().map(|b| &mut b[i]), g);
                acc[0][i] += f64::from(p) * f64::from(p);
                acc[1][i] += f64::from(q) * f64::from(q);
            }
        };
        for (i, (w, g)) in w.chunks_mut(LANES).zip(g.chunks(LANES)).enumerate() {
            let n = w.len();
            let bufs = b.each_mut().map(|b| &mut b[i * LANES..i * LANES + n]);
            match (<&mut [f32; LANES]>::try_from(&mut *w), <&[f32; LANES]>::try_from(g)) {
                (Ok(w), Ok(g)) => block(w, bufs, g),
                _ => block(w, bufs, g),
            }
        }
        acc.map(|lanes| lanes.iter().sum::<f64>())
    };
    // Cutting first keeps this independent of the number of buffers; a tensor has few chunks.
    let mut rest = bufs.each_mut().map(Vec::as_mut_slice);
    let mut tasks = Vec::with_capacity(value.len().div_ceil(CHUNK));
    for (w, g) in value.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)) {
        let cut = rest.each_mut().map(|r| {
            let (head, tail) = std::mem::take(r).split_at_mut(w.len());
            *r = tail;
            head
        });
        tasks.push((w, cut, g));
    }
    let parts: Vec<[f64; 2]> = tasks.into_par_iter().map(|(w, b, g)| part(w, b, g)).collect();
    parts.iter().fold([0.0; 2], |[a, b], [p, q]| [a + p, b + q])
}
