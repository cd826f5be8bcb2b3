//! Small parts that several ops share: input counts, the geometry of pooling windows, labels, and sums whose order
//! of additions is fixed.

use super::elementwise::window::WindowParams;
use crate::base::Shape;
use crate::error::{Error, Result};
use std::ops::Range;

/// Elements one task of a reduction covers. A constant, so that partial sums do not depend on the number of threads.
pub(super) const BLOCK: usize = 16 * 1024;

/// Checks the number of inputs; `names` are those of the formula.
pub(super) fn expect_inputs(op: &str, inputs: &[Shape], names: &[&str]) -> Result<()> {
    if inputs.len() == names.len() {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("takes {} inputs ({}), got {}", names.len(), names.join(", "), inputs.len()),
    ))
}

/// The dimensions of an image batch none of which is 0.
pub(super) fn images(op: &str, shape: Shape) -> Result<(usize, usize, usize, usize)> {
    let dims = shape.nhwc(op)?;
    if shape.elems() == 0 {
        return Err(Error::shape(op, format!("the image batch {shape} is empty")));
    }
    Ok(dims)
}

/// The dimensions of an image batch whose shape was checked before.
pub(super) fn dims(shape: Shape) -> [usize; 4] {
    [shape[0], shape[1], shape[2], shape[3]]
}

/// Largest side of a pooling window: positions in it fit in 32 bits.
const MAX_KERNEL: usize = 1 << 15;

/// A square pooling window.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
}

impl Window {
    /// Shape rule: `floor((H + 2 pad - kernel) / stride) + 1`, the same for W.
    pub fn output_shape(self, op: &str, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(op, inputs, &["x"])?;
        let (n, h, w, c) = images(op, inputs[0])?;
        let Window { kernel, stride, pad } = self;
        if kernel == 0 || stride == 0 {
            return Err(Error::shape(op, format!("kernel {kernel} and stride {stride} must be at least 1")));
        }
        if kernel > MAX_KERNEL {
            return Err(Error::shape(op, format!("the kernel {kernel} is larger than {MAX_KERNEL}")));
        }
        if pad > kernel / 2 {
            return Err(Error::shape(op, format!("padding {pad} is more than half of the kernel {kernel}"))
                .with_remedy("pad by at most kernel / 2, so that every window meets the image"));
        }
        let out = |len: usize| {
            let padded = len + 2 * pad;
            padded.checked_sub(kernel).map(|d| d / stride + 1).ok_or_else(|| {
                Error::shape(
                    op,
                    format!("the kernel {kernel} is larger than the padded image {padded} of {}", inputs[0]),
                )
            })
        };
        Shape::from_slice(&[n, out(h)?, out(w)?, c])
    }

    /// Indices inside an axis of length `len` that the window of output `o` covers.
    pub fn covered(self, o: usize, len: usize) -> Range<usize> {
        let start = o * self.stride;
        start.saturating_sub(self.pad)..(start + self.kernel - self.pad).min(len)
    }

    /// The pixels inside an image of `h x w` that the window of output `[i, j]` of image `b` covers, in row-major
    /// order: position in the window (`u * kernel + v`) and number of the pixel in the batch.
    pub fn pixels(self, [b, i, j]: [usize; 3], [h, w]: [usize; 2]) -> impl Iterator<Item = (usize, usize)> {
        self.covered(i, h).flat_map(move |y| {
            self.covered(j, w).map(move |x| {
                let (u, v) = (y + self.pad - i * self.stride, x + self.pad - j * self.stride);
                (u * self.kernel + v, (b * h + y) * w + x)
            })
        })
    }

    /// Indices inside an axis of length `len` that the windows of the outputs `first ..= last` cover.
    pub fn all_covered(self, first: usize, last: usize, len: usize) -> Range<usize> {
        self.covered(first, len).start..self.covered(last, len).end
    }

    /// Outputs, out of `outputs`, whose window covers one of the indices `first ..= last`.
    pub fn all_covering(self, first: usize, last: usize, outputs: usize) -> Range<usize> {
        self.covering(first, outputs).start..self.covering(last, outputs).end
    }

    /// What the kernels are given: side, stride and padding. A stride beyond every image is as good as any.
    pub fn set(self, p: WindowParams) -> WindowParams {
        let stride = self.stride.min(2 * MAX_KERNEL);
        WindowParams { kernel: self.kernel as i32, stride: stride as i32, pad: self.pad as i32, ..p }
    }

    /// Outputs, out of `outputs`, whose window covers index `i`.
    pub fn covering(self, i: usize, outputs: usize) -> Range<usize> {
        let lo = (i + self.pad + 1).saturating_sub(self.kernel).div_ceil(self.stride);
        lo..((i + self.pad) / self.stride + 1).min(outputs)
    }
}

/// The class of a label, `None` for the ignored one.
///
/// # Errors
/// The label is neither a class nor the ignored index.
pub(super) fn class_of(op: &str, label: i64, classes: usize, ignore: Option<i64>) -> Result<Option<usize>> {
    if ignore == Some(label) {
        return Ok(None);
    }
    match usize::try_from(label) {
        Ok(k) if k < classes => Ok(Some(k)),
        _ => Err(Error::data(format!("label {label} is not one of the {classes} classes 0..{classes}"))
            .with_op(op)
            .with_remedy(match ignore {
                Some(i) => format!("fix the labels; only {i} is ignored"),
                None => "fix the labels, or set `ignore_index` to the label of unlabelled places".into(),
            })),
    }
}

/// Sum of `f` over a slice in f64. Eight interleaved partial sums let the compiler use vector instructions; the order
/// of additions depends only on the length.
pub(super) fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f(f64::from(v))).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(v));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Sum of `f` over pairs in f64, as [`sum`].
pub(super) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: f64 =
        xs.remainder().iter().zip(ys.remainder()).map(|(&a, &b)| f(f64::from(a), f64::from(b))).sum();
    for (a, b) in xs.zip(ys) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f(f64::from(a), f64::from(b));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
pub(super) mod testing {
    //! What the unit tests of several ops use.

    use crate::base::Shape;
    use crate::ops::{Backward, Case, Op, run};
    use crate::tensor::Tensor;

    /// Forward and all gradients of an op for the upstream gradient `gy` (ones if `None`).
    pub fn both(
        op: &dyn Op,
        inputs: &[&Tensor],
        needs: &[bool],
        gy: Option<Tensor>,
    ) -> (Tensor, Vec<Option<Tensor>>) {
        let out = run(op, inputs).unwrap();
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let mut saved = op.save(inputs, &out.y);
        saved.extend(out.extra);
        let gy = gy.unwrap_or_else(|| Tensor::full(out.y.shape(), 1.0));
        let g = op.backward(&Backward { gy: &gy, saved: &saved, inputs: &shapes, needs }).unwrap();
        assert_eq!(g.len(), inputs.len());
        (out.y, g)
    }

    /// Asserts that the benchmark cases, which are large enough to run in parallel, give the same bits in pools of
    /// one and three threads.
    pub fn assert_thread_independent(cases: Vec<Case>) {
        let mut seen = 0;
        for case in cases.iter().filter(|c| c.bench) {
            let inputs = case.tensors(7);
            let refs: Vec<&Tensor> = inputs.iter().collect();
            let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
            let bits = |threads: usize| -> Vec<u32> {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (y, g) = pool.install(|| both(&*case.op, &refs, &needs, None));
                let all = std::iter::once(&y).chain(g.iter().flatten());
                all.flat_map(|t| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()).collect()
            };
            assert!(bits(1) == bits(3), "{}: results depend on the number of threads", case.label);
            seen += 1;
        }
        assert!(seen > 0, "no benchmark case");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_their_inverse_agree() {
        for (kernel, stride, pad, len) in
            [(3, 2, 1, 7), (2, 2, 0, 5), (3, 1, 1, 1), (5, 3, 2, 11), (1, 2, 0, 6), (2, 3, 1, 8)]
        {
            let win = Window { kernel, stride, pad };
            let outs = win.output_shape("t", &[[1, len, len, 1].into()]).unwrap()[1];
            for i in 0..len {
                let direct: Vec<usize> = (0..outs).filter(|&o| win.covered(o, len).contains(&i)).collect();
                assert_eq!(
                    win.covering(i, outs).collect::<Vec<_>>(),
                    direct,
                    "{kernel} {stride} {pad} at {i}"
                );
            }
            assert!((0..outs).all(|o| !win.covered(o, len).is_empty()));
        }
    }

    #[test]
    fn impossible_windows_are_errors() {
        let x = Shape::from([1, 4, 4, 1]);
        for (kernel, stride, pad) in
            [(0, 1, 0), (1, 0, 0), (3, 1, 2), (5, 1, 0), (usize::MAX, 1, usize::MAX / 2)]
        {
            assert!(Window { kernel, stride, pad }.output_shape("t", &[x]).unwrap_err().is_shape());
        }
        let win = Window { kernel: 1, stride: 1, pad: 0 };
        assert!(win.output_shape("t", &[[1, 4, 4].into()]).is_err());
        assert!(win.output_shape("t", &[[0, 4, 4, 1].into()]).is_err());
        assert!(win.output_shape("t", &[x, x]).is_err());
    }

    #[test]
    fn sums_are_complete() {
        for n in [0usize, 1, 7, 8, 9, 31] {
            let v: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&v, |x| x), (n * n.saturating_sub(1) / 2) as f64);
            assert_eq!(sum2(&v, &v, |x, y| x + y), (n * n.saturating_sub(1)) as f64);
        }
    }
}
