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

/// Cuts the larger side of the result into blocks. The cuts follow from the sizes alone, and no sum is cut, so the
/// number of threads changes nothing.
fn split(c: MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool) {
    use rayon::prelude::*;
    let by_rows = c.rows >= c.cols && c.row_stride >= c.cols * c.col_stride;
    let by_cols = !by_rows && c.col_stride >= c.rows * c.row_stride;
    let (rows, cols, rs, cs) = (c.rows, c.cols, c.row_stride, c.col_stride);
    let block = |side: usize| side.div_ceil(32).next_multiple_of(16).max(32);
    if by_rows {
        let step = block(rows);
        c.data.par_chunks_mut(step * rs).take(rows.div_ceil(step)).enumerate().for_each(|(i, part)| {
            let r = step.min(rows - i * step);
            let sub = MatRef::new(&a.data[i * step * a.row_stride..], r, a.cols, a.row_stride, a.col_stride);
            single(MatMut::new(part, r, cols, rs, cs), sub, b, accumulate);
        });
    } else if by_cols {
        let step = block(cols);
        c.data.par_chunks_mut(step * cs).take(cols.div_ceil(step)).enumerate().for_each(|(i, part)| {
            let n = step.min(cols - i * step);
            let sub = MatRef::new(&b.data[i * step * b.col_stride..], b.rows, n, b.row_stride, b.col_stride);
            single(MatMut::new(part, rows, n, rs, cs), a, sub, accumulate);
        });
    } else {
        // A row-major result that is wider than tall: its column blocks are not contiguous, so compute the blocks
        // apart and copy them in.
        let step = block(cols);
        let parts = crate::cpu::map_ordered(cols.div_ceil(step), |i| {
            let n = step.min(cols - i * step);
            let sub = MatRef::new(&b.data[i * step * b.col_stride..], b.rows, n, b.row_stride, b.col_stride);
            let mut out = vec![0.0; rows * n];
            single(MatMut::row_major(&mut out, rows, n), a, sub, false);
            out
        });
        for r in 0..rows {
            for (i, part) in parts.iter().enumerate() {
                let n = step.min(cols - i * step);
                for j in 0..n {
                    let to = &mut c.data[r * rs + (i * step + j) * cs];
                    *to = part[r * n + j] + if accumulate { *to } else { 0.0 };
                }
            }
        }
    }
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
