//! Matrix product, behind one function. Today it is the crate `gemm` (AVX-512, AVX2, NEON, picked at run time).

use crate::cpu::threads;

/// A read-only matrix view: `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A writable matrix view.
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

fn check(len: usize, rows: usize, cols: usize, rs: usize, cs: usize) {
    if rows > 0 && cols > 0 {
        assert!((rows - 1) * rs + (cols - 1) * cs < len, "matrix view reaches outside its slice");
    }
}

impl<'a> MatRef<'a> {
    /// A view with explicit strides, in elements.
    ///
    /// # Panics
    /// The view reaches outside `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, col_stride);
        MatRef { data, rows, cols, row_stride, col_stride }
    }

    /// A row-major matrix without gaps.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// The range reaches outside the matrix.
    pub fn row_range(self, rows: &std::ops::Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "rows outside the matrix");
        let data = &self.data[rows.start * self.row_stride..];
        MatRef { data, rows: rows.len(), ..self }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        MatRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> MatMut<'a> {
    /// A view with explicit strides, in elements.
    ///
    /// # Panics
    /// The view reaches outside `data`, or two of its elements are the same one.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride, col_stride);
        assert!(
            rows <= 1 || cols <= 1 || row_stride >= cols * col_stride || col_stride >= rows * row_stride,
            "a writable view must not overlap itself"
        );
        MatMut { data, rows, cols, row_stride, col_stride }
    }

    /// A row-major matrix without gaps.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }
}

/// `c = a * b`, or `c += a * b` if `accumulate`. With `parallel` the threads of the current pool share the work;
/// callers that already run in parallel pass `false`. The result is the same either way.
///
/// # Panics
/// The sizes do not fit.
pub fn gemm(c: MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool, parallel: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(c.rows == m && c.cols == n && b.rows == k, "matrix sizes do not fit");
    if m == 0 || n == 0 {
        return;
    }
    if parallel && threads() > 1 && m * n * k >= 1 << 20 {
        return split(c, a, b, accumulate);
    }
    single(c, a, b, accumulate);
}

/// Smallest side of a block: smaller products take another path in the crate, whose sums are cut differently.
const MIN_BLOCK: usize = 96;

/// Where to cut a side for the current number of threads. No sum is cut, so the cuts change no bit of the result.
fn cuts(side: usize) -> Vec<usize> {
    let blocks = (2 * threads()).min(side / MIN_BLOCK).max(1);
    let mut cuts: Vec<usize> = (0..blocks).map(|i| i * side / blocks / 16 * 16).collect();
    cuts.push(side);
    cuts
}

/// Cuts the result into blocks of rows or of columns, whichever lie together in memory.
fn split(c: MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool) {
    use rayon::prelude::*;
    let (rows, cols, rs, cs) = (c.rows, c.cols, c.row_stride, c.col_stride);
    if rs >= cols * cs && (rows >= 2 * MIN_BLOCK || rows >= cols) {
        parts(c.data, &cuts(rows), rs).into_par_iter().for_each(|(r, part)| {
            single(MatMut::new(part, r.len(), cols, rs, cs), a.row_range(&r), b, accumulate);
        });
    } else if cs >= rows * rs {
        parts(c.data, &cuts(cols), cs).into_par_iter().for_each(|(r, part)| {
            single(MatMut::new(part, rows, r.len(), rs, cs), a, b.t().row_range(&r).t(), accumulate);
        });
    } else {
        // A row-major result that is wide and low: its column blocks are not contiguous, so compute the blocks apart
        // and copy them in.
        let cuts = cuts(cols);
        let blocks = crate::cpu::map_ordered(cuts.len() - 1, |i| {
            let r = cuts[i]..cuts[i + 1];
            let mut out = vec![0.0; rows * r.len()];
            single(MatMut::row_major(&mut out, rows, r.len()), a, b.t().row_range(&r).t(), false);
            out
        });
        for (i, block) in blocks.iter().enumerate() {
            for (r, from) in block.chunks_exact(cuts[i + 1] - cuts[i]).enumerate() {
                for (j, v) in from.iter().enumerate() {
                    let to = &mut c.data[r * rs + (cuts[i] + j) * cs];
                    *to = v + if accumulate { *to } else { 0.0 };
                }
            }
        }
    }
}

/// The slice cut at `cuts[i] * stride`, with the range of each part. The last part has what is left.
fn parts<'d>(
    mut data: &'d mut [f32],
    cuts: &[usize],
    stride: usize,
) -> Vec<(std::ops::Range<usize>, &'d mut [f32])> {
    let mut out = Vec::with_capacity(cuts.len() - 1);
    for (i, w) in cuts.windows(2).enumerate() {
        let len = if i + 2 == cuts.len() { data.len() } else { (w[1] - w[0]) * stride };
        let (part, rest) = std::mem::take(&mut data).split_at_mut(len);
        out.push((w[0]..w[1], part));
        data = rest;
    }
    out
}

fn single(c: MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool) {
    // SAFETY: the constructors of the views checked that every element they address lies in its slice, `c` is
    // borrowed mutably so it overlaps neither `a` nor `b`, its elements are distinct, and the sizes were compared.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            c.col_stride as isize,
            c.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Philox;

    fn filled(n: usize, stream: u64) -> Vec<f32> {
        let mut v = vec![0.0; n];
        Philox::new(3).fold(stream).fill_normal(&mut v);
        v
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let pool = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        for (m, n, k) in [(300, 200, 700), (64, 1000, 900), (1000, 40, 900), (193, 97, 1300)] {
            let (a, b) = (filled(m * k, 1), filled(k * n, 2));
            for col_major in [false, true] {
                let product = || {
                    let mut c = vec![0.0; m * n];
                    let (rs, cs) = if col_major { (1, m) } else { (n, 1) };
                    let b = MatRef::row_major(&b, n, k).t();
                    gemm(MatMut::new(&mut c, m, n, rs, cs), MatRef::row_major(&a, m, k), b, false, true);
                    c.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                };
                let one = pool(1).install(product);
                for threads in [2, 3, 8] {
                    assert_eq!(one, pool(threads).install(product), "{m} {n} {k} on {threads} threads");
                }
            }
        }
    }

    #[test]
    fn matches_f64_for_all_layouts() {
        for (m, n, k) in [(1, 1, 1), (7, 5, 3), (33, 65, 17), (130, 40, 300), (40, 300, 130), (300, 257, 129)]
        {
            let (a, b, c0) = (filled(m * k, 1), filled(k * n, 2), filled(m * n, 3));
            for (ta, tb, tc, acc, par) in
                (0..32).map(|i| (i & 1 > 0, i & 2 > 0, i & 4 > 0, i & 8 > 0, i & 16 > 0))
            {
                let at = |i: usize, j: usize| if ta { a[j * m + i] } else { a[i * k + j] };
                let bt = |i: usize, j: usize| if tb { b[j * k + i] } else { b[i * n + j] };
                let ma = if ta { MatRef::row_major(&a, k, m).t() } else { MatRef::row_major(&a, m, k) };
                let mb = if tb { MatRef::row_major(&b, n, k).t() } else { MatRef::row_major(&b, k, n) };
                let mut c = c0.clone();
                let (rs, cs) = if tc { (1, m) } else { (n, 1) };
                gemm(MatMut::new(&mut c, m, n, rs, cs), ma, mb, acc, par);
                for i in 0..m {
                    for j in 0..n {
                        let want: f64 =
                            (0..k).map(|q| f64::from(at(i, q)) * f64::from(bt(q, j))).sum::<f64>()
                                + if acc { f64::from(c0[i * rs + j * cs]) } else { 0.0 };
                        let got = f64::from(c[i * rs + j * cs]);
                        assert!((got - want).abs() <= 1e-4 * (k as f64).sqrt(), "{m} {n} {k}: {got} {want}");
                    }
                }
            }
        }
    }
}
