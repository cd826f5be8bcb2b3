//! Resizing of an image batch, up or down, nearest or bilinear.
//!
//! ```text
//! nearest:   y[n,i,j,c] = x[n, floor(i H / H'), floor(j W / W'), c]
//! bilinear:  y[n,i,j,c] = sum over a, b of hat(r_i - a) hat(s_j - b) x[n,a,b,c],   hat(t) = max(0, 1 - |t|)
//!            r_i = (i + 1/2) H / H' - 1/2, clamped to 0 .. H - 1        half-pixel centres
//!            r_i = i (H - 1) / (H' - 1), or 0 if H' = 1                 align_corners
//! gx         = the transposed map of gy
//! ```
//! Same as `torch.nn.functional.interpolate` without `antialias`.

use super::elementwise::window::{self, Gather};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::support::{dims, expect_inputs, images};
use super::*;
use crate::cpu;
use crate::error::Error;
use std::ops::Range;

/// How [`Resize`] finds a value between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeMode {
    /// The pixel that the result's upper left corner falls into.
    Nearest,
    /// Linear between the two nearest pixels of each axis.
    Bilinear {
        /// Whether the centres of the corner pixels map onto each other, instead of the corners of the images.
        align_corners: bool,
    },
}

/// Resizing: `x [N, H, W, C] -> [N, H', W', C]`.
#[derive(Clone, Debug)]
pub struct Resize {
    /// How values between pixels are found.
    pub mode: ResizeMode,
    /// Height and width of the result.
    pub out: [usize; 2],
}

/// Where one result index reads along an axis: `(1 - weight) x[lo] + weight x[hi]`.
#[derive(Clone, Copy)]
struct Tap {
    lo: usize,
    hi: usize,
    weight: f32,
}

impl ResizeMode {
    fn taps(self, len: usize, out: usize) -> Vec<Tap> {
        let tap = |i: usize| {
            let at = match self {
                // In integers, so that no rounding of the scale can pick the neighbour.
                ResizeMode::Nearest => {
                    let lo = i * len / out;
                    return Tap { lo, hi: lo, weight: 0.0 };
                }
                ResizeMode::Bilinear { align_corners: true } if out == 1 => 0.0,
                ResizeMode::Bilinear { align_corners: true } => (i * (len - 1)) as f64 / (out - 1) as f64,
                ResizeMode::Bilinear { align_corners: false } => {
                    (i as f64 + 0.5) * len as f64 / out as f64 - 0.5
                }
            };
            let at = at.clamp(0.0, (len - 1) as f64);
            let lo = at as usize;
            Tap { lo, hi: (lo + 1).min(len - 1), weight: (at - lo as f64) as f32 }
        };
        (0..out).map(tap).collect()
    }

    /// For every input index the result indices that read it, in order, with their weights.
    fn readers(self, len: usize, out: usize) -> Vec<Vec<(usize, f32)>> {
        let mut readers = vec![Vec::new(); len];
        for (i, t) in self.taps(len, out).into_iter().enumerate() {
            if t.lo == t.hi {
                readers[t.lo].push((i, 1.0));
                continue;
            }
            readers[t.lo].push((i, 1.0 - t.weight));
            if t.weight != 0.0 {
                readers[t.hi].push((i, t.weight));
            }
        }
        readers
    }
}

/// The first of `0 .. count` that `is` accepts, which also accepts all after it; `count` if there is none.
fn first_where(count: usize, is: impl Fn(usize) -> bool) -> usize {
    let (mut lo, mut hi) = (0, count);
    while lo < hi {
        let mid = lo + (hi - lo) / 2;
        if is(mid) { hi = mid } else { lo = mid + 1 }
    }
    lo
}

/// What the kernels read, in the fractions of integers that they compute with.
impl ResizeMode {
    /// The pixels that result `i` reads: first and last.
    fn ends(self, i: usize, len: usize, out: usize) -> (usize, usize) {
        let lo = match self {
            ResizeMode::Nearest => return (i * len / out, i * len / out),
            ResizeMode::Bilinear { align_corners: true } => i * (len - 1) / (out - 1).max(1),
            ResizeMode::Bilinear { align_corners: false } => {
                ((2 * i + 1) * len).saturating_sub(out).min((len - 1) * 2 * out) / (2 * out)
            }
        };
        (lo, (lo + 1).min(len - 1))
    }

    /// The pixels that the results `first ..= last` read.
    fn sources(self, first: usize, last: usize, len: usize, out: usize) -> Range<usize> {
        self.ends(first, len, out).0..self.ends(last, len, out).1 + 1
    }

    /// The results that read one of the pixels `first ..= last`.
    fn results(self, first: usize, last: usize, len: usize, out: usize) -> Range<usize> {
        let begin = first_where(out, |i| self.ends(i, len, out).1 >= first);
        begin..first_where(out, |i| self.ends(i, len, out).0 > last).max(begin)
    }

    fn call(self, entry: &'static str) -> Call {
        let mode = match self {
            ResizeMode::Nearest => 0,
            ResizeMode::Bilinear { align_corners: false } => 1,
            ResizeMode::Bilinear { align_corners: true } => 2,
        };
        Call::new("resize.cu", entry).set("MODE", mode)
    }

    fn fwd(self) -> Call {
        self.call("resize_fwd")
    }

    fn bwd(self) -> Call {
        self.call("resize_bwd")
    }
}

/// All modes.
const MODES: [ResizeMode; 3] = [
    ResizeMode::Nearest,
    ResizeMode::Bilinear { align_corners: false },
    ResizeMode::Bilinear { align_corners: true },
];

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    MODES.iter().flat_map(|mode| window::variants(&[mode.fwd(), mode.bwd()])).collect()
}

impl Resize {
    /// Weight of pixel `a` in result `i` of an axis, straight from the formula.
    fn weight(&self, i: usize, a: usize, len: usize, out: usize) -> f64 {
        let at = match self.mode {
            ResizeMode::Nearest => return f64::from(u8::from(i * len / out == a)),
            ResizeMode::Bilinear { align_corners: true } => {
                i as f64 * (len - 1) as f64 / (out - 1).max(1) as f64
            }
            ResizeMode::Bilinear { align_corners: false } => (i as f64 + 0.5) * len as f64 / out as f64 - 0.5,
        };
        (1.0 - (at.clamp(0.0, (len - 1) as f64) - a as f64).abs()).max(0.0)
    }
}

impl Op for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(self.name(), inputs, &["x"])?;
        let (n, _, _, c) = images(self.name(), inputs[0])?;
        if self.out.contains(&0) {
            return Err(Error::shape(self.name(), format!("the size {:?} must be at least 1x1", self.out)));
        }
        Shape::from_slice(&[n, self.out[0], self.out[1], c])
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let ([n, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        let x = inputs[0].f32s()?;
        let (rows, cols) = (self.mode.taps(h, ho), self.mode.taps(w, wo));
        let mut y = vec![0.0f32; n * ho * wo * c];
        cpu::for_each_chunk(&mut y, wo * c, |row, y| {
            let (b, r) = (row / ho, rows[row % ho]);
            let (top, bottom) =
                (&x[(b * h + r.lo) * w * c..][..w * c], &x[(b * h + r.hi) * w * c..][..w * c]);
            for (y, s) in y.chunks_exact_mut(c).zip(&cols) {
                let (p, q) = (&top[s.lo * c..][..c], &top[s.hi * c..][..c]);
                if self.mode == ResizeMode::Nearest {
                    y.copy_from_slice(p);
                    continue;
                }
                let (u, v) = (&bottom[s.lo * c..][..c], &bottom[s.hi * c..][..c]);
                let (right, down) = (s.weight, r.weight);
                let (left, up) = (1.0 - right, 1.0 - down);
                for ((((y, &p), &q), &u), &v) in y.iter_mut().zip(p).zip(q).zip(u).zip(v) {
                    *y = up * (left * p + right * q) + down * (left * u + right * v);
                }
            }
        });
        Ok(Tensor::from_vec([n, ho, wo, c], y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let ([_, h, w, c], [ho, wo]) = (dims(ctx.inputs[0]), self.out);
        let gy = ctx.gy.f32s()?;
        let (rows, cols) = (self.mode.readers(h, ho), self.mode.readers(w, wo));
        // Gathered per input row: no two tasks write to the same element, and the order of additions is fixed.
        let mut gx = vec![0.0f32; ctx.inputs[0].elems()];
        cpu::for_each_chunk(&mut gx, w * c, |row, gx| {
            for &(i, down) in &rows[row % h] {
                let gy = &gy[(row / h * ho + i) * wo * c..][..wo * c];
                for (gx, readers) in gx.chunks_exact_mut(c).zip(&cols) {
                    for &(j, right) in readers {
                        let weight = down * right;
                        gx.iter_mut().zip(&gy[j * c..][..c]).for_each(|(gx, &g)| *gx += weight * g);
                    }
                }
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let dtype = operand_dtype("resize", inputs)?;
        let ([n, h, w, c], [ho, wo], mode) = (dims(inputs[0].shape()), self.out, self.mode);
        let y = Tensor::empty_gpu([n, ho, wo, c], dtype, gpu, "resize")?;
        let gather = Gather {
            op: "resize",
            from: [n, h, w, c],
            to: [ho, wo],
            down: &|first, last| mode.sources(first, last, h, ho),
            right: &|first, last| mode.sources(first, last, w, wo),
            positions: false,
        };
        gather.launch(gpu, mode.fwd(), inputs[0], None, &y, |p| p)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("resize", &[ctx.gy])?;
        let ([n, h, w, c], [ho, wo], mode) = (dims(ctx.inputs[0]), self.out, self.mode);
        let gx = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of resize")?;
        let gather = Gather {
            op: "resize",
            from: [n, ho, wo, c],
            to: [h, w],
            down: &|first, last| mode.results(first, last, h, ho),
            right: &|first, last| mode.results(first, last, w, wo),
            positions: false,
        };
        gather.launch(gpu, mode.bwd(), ctx.gy, None, &gx, |p| p)?;
        Ok(vec![Some(gx)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let ([n, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        let mut y = Vec::new();
        for at in 0..n * ho * wo * c {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let mut sum = 0.0;
            for (yy, xx) in (0..h).flat_map(|yy| (0..w).map(move |xx| (yy, xx))) {
                sum += self.weight(i, yy, h, ho)
                    * self.weight(j, xx, w, wo)
                    * x[((b * h + yy) * w + xx) * c + ch];
            }
            y.push(sum);
        }
        Tensor::from_vec([n, ho, wo, c], y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let gy = gy.data::<f64>()?;
        let ([_, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        let mut gx = vec![0.0; inputs[0].elems()];
        for (at, g) in gx.iter_mut().enumerate() {
            let (b, y, x, ch) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
            for i in 0..ho {
                let down = self.weight(i, y, h, ho);
                let row = &gy[(b * ho + i) * wo * c..][..wo * c];
                *g += (0..wo).map(|j| down * self.weight(j, x, w, wo) * row[j * c + ch]).sum::<f64>();
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let per_element = if self.mode == ResizeMode::Nearest { 0 } else { 9 };
        let [n, _, _, c] = dims(inputs[0]);
        (n * self.out[0] * self.out[1] * c * per_element) as u64
    }
}

/// All modes up, down, to and from one pixel, and the doubling of a feature pyramid.
pub fn cases() -> Vec<Case> {
    let modes = ["nearest", "half-pixel", "corners"].into_iter().zip(MODES);
    let sizes: [([usize; 4], [usize; 2]); 11] = [
        ([1, 1, 1, 1], [1, 1]),
        ([2, 1, 1, 3], [4, 5]),
        ([1, 5, 6, 2], [1, 1]),
        ([2, 3, 5, 9], [6, 10]),
        ([1, 4, 3, 5], [7, 11]),
        ([1, 7, 9, 3], [3, 4]),
        ([1, 5, 4, 1], [3, 9]),
        ([1, 6, 5, 4], [6, 5]),
        ([1, 9, 10, 24], [18, 20]),
        ([1, 12, 9, 8], [5, 20]),
        ([1, 40, 39, 40], [1, 2]),
    ];
    let mut cases = Vec::new();
    for (name, mode) in modes {
        for (from, to) in sizes {
            cases.push(Case::new(
                format!("{name} {}x{} to {}x{}", from[1], from[2], to[0], to[1]),
                Resize { mode, out: to },
                vec![Input::normal("x", from)],
            ));
        }
        cases.push(Case::bench(
            format!("{name} doubling"),
            Resize { mode, out: [64, 64] },
            vec![Input::normal("x", [8, 32, 32, 64])],
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn known_rows() {
        let x = Tensor::from_vec([1, 1, 2, 1], vec![0.0f32, 4.0]).unwrap();
        let row = |mode, out| {
            let y = run(&Resize { mode, out: [1, out] }, &[&x]).unwrap().y;
            y.f32s().unwrap().to_vec()
        };
        assert_eq!(row(ResizeMode::Nearest, 5), [0.0, 0.0, 0.0, 4.0, 4.0]);
        assert_eq!(row(ResizeMode::Bilinear { align_corners: false }, 4), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(row(ResizeMode::Bilinear { align_corners: true }, 5), [0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_kernels_find_the_taps_of_the_host() {
        for mode in MODES {
            for (len, out) in [(1, 1), (1, 7), (5, 1), (3, 6), (7, 3), (9, 10), (10, 9), (4, 4), (17, 51)] {
                for (i, tap) in mode.taps(len, out).into_iter().enumerate() {
                    let (lo, hi) = mode.ends(i, len, out);
                    // A place within rounding of a pixel may be left or right of it.
                    assert!(
                        lo == tap.lo || tap.weight < 1e-6 || tap.weight > 1.0 - 1e-6,
                        "{mode:?} {len} {out} {i}"
                    );
                    assert!(lo <= hi && hi < len);
                }
                for a in 0..len {
                    let reads =
                        |i: &usize| (mode.ends(*i, len, out).0..=mode.ends(*i, len, out).1).contains(&a);
                    let direct: Vec<usize> = (0..out).filter(reads).collect();
                    assert_eq!(
                        mode.results(a, a, len, out).collect::<Vec<_>>(),
                        direct,
                        "{mode:?} {len} {out} {a}"
                    );
                }
            }
        }
    }

    #[test]
    fn wrong_uses_are_errors() {
        let op = Resize { mode: ResizeMode::Nearest, out: [0, 3] };
        assert!(op.output_shape(&[[1, 2, 2, 1].into()]).unwrap_err().is_shape());
        let op = Resize { mode: ResizeMode::Nearest, out: [2, 3] };
        assert!(op.output_shape(&[[2, 2, 1].into()]).unwrap_err().is_shape());
        assert!(op.output_shape(&[[1, 2, 0, 1].into()]).unwrap_err().is_shape());
    }

    #[test]
    fn resize_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
