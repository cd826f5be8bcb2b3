//! Parallel loops whose results do not depend on the number of threads: the work is always cut at the same places,
//! and partial results are always combined in the same order.

use rayon::prelude::*;

/// Number of worker threads of the current pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Elements a task should at least touch for a thread to be worth waking.
const GRAIN: usize = 16 * 1024;

/// Calls `f(i, chunk)` for every chunk of `chunk` elements of `out` (the last may be shorter), in parallel when there
/// is enough work.
pub fn for_each_chunk<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Send + Sync) {
    let chunk = chunk.max(1);
    if out.len() < 2 * GRAIN || out.len() <= chunk {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    } else {
        let per_task = GRAIN.div_ceil(chunk);
        out.par_chunks_mut(chunk).with_min_len(per_task).enumerate().for_each(|(i, c)| f(i, c));
    }
}

/// Like [`for_each_chunk`] over two slices cut into the same number of chunks, e.g. a result and its statistics.
pub fn for_each_chunk2<T: Send, U: Send>(
    a: &mut [T],
    chunk_a: usize,
    b: &mut [U],
    chunk_b: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Send + Sync,
) {
    let (chunk_a, chunk_b) = (chunk_a.max(1), chunk_b.max(1));
    debug_assert_eq!(a.len().div_ceil(chunk_a), b.len().div_ceil(chunk_b));
    if a.len() < 2 * GRAIN {
        a.chunks_mut(chunk_a).zip(b.chunks_mut(chunk_b)).enumerate().for_each(|(i, (x, y))| f(i, x, y));
    } else {
        let per_task = GRAIN.div_ceil(chunk_a);
        a.par_chunks_mut(chunk_a)
            .zip(b.par_chunks_mut(chunk_b))
            .with_min_len(per_task)
            .enumerate()
            .for_each(|(i, (x, y))| f(i, x, y));
    }
}

/// Runs `f(0..tasks)` in parallel and returns the results in order. For a handful of large tasks, whose number must
/// not depend on the number of threads if their results are then combined.
pub fn map_ordered<R: Send>(tasks: usize, f: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
    if tasks <= 1 {
        (0..tasks).map(f).collect()
    } else {
        (0..tasks).into_par_iter().with_max_len(1).map(f).collect()
    }
}

/// Sum of `f(start..end)` over fixed ranges of `0..n`, added in order in f64.
pub fn sum_ordered(n: usize, f: impl Fn(std::ops::Range<usize>) -> f64 + Send + Sync) -> f64 {
    let tasks = n.div_ceil(GRAIN);
    map_ordered(tasks, |i| f(i * GRAIN..((i + 1) * GRAIN).min(n))).into_iter().sum()
}

/// Sums of the columns of `[rows, c]` in f64, over fixed parts in order.
pub fn column_sums(v: &[f32], c: usize) -> Vec<f32> {
    let rows = v.len() / c.max(1);
    let part_rows = (1usize << 16).div_ceil(c.max(1));
    let partial = map_ordered(rows.div_ceil(part_rows), |p| {
        let mut sum = vec![0.0f64; c];
        for row in v[p * part_rows * c..((p + 1) * part_rows).min(rows) * c].chunks_exact(c) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        sum
    });
    let mut total = vec![0.0f64; c];
    partial.iter().for_each(|p| total.iter_mut().zip(p).for_each(|(t, p)| *t += p));
    total.into_iter().map(|t| t as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pool<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
    }

    #[test]
    fn chunks_cover_everything_once() {
        for n in [0, 1, 7, 5 * GRAIN + 3] {
            let mut v = vec![0u32; n];
            in_pool(3, || for_each_chunk(&mut v, 10, |i, c| c.iter_mut().for_each(|x| *x += i as u32 + 1)));
            assert!(v.iter().enumerate().all(|(j, &x)| x == (j / 10) as u32 + 1));
        }
    }

    #[test]
    fn sums_do_not_depend_on_threads() {
        let v: Vec<f32> = (0..200_000).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.3).collect();
        let sum = || sum_ordered(v.len(), |r| v[r].iter().map(|&x| f64::from(x)).sum());
        assert_eq!(in_pool(1, sum).to_bits(), in_pool(3, sum).to_bits());
    }
}
