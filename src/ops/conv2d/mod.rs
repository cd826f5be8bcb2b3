//! 2-D convolution (cross-correlation, as in PyTorch) on NHWC images.
//!
//! ```text
//! y[n, i, j, o]  = b[o] + sum over r, s, c of x[n, i*stride + r*dilation - pad, j*.. , c] * w[o, r, s, c]
//! dx             = the same sum transposed: every input collects gy * w from the outputs that read it
//! dw[o, r, s, c] = sum over n, i, j of gy[n, i, j, o] * x[n, i*stride + r*dilation - pad, .., c]
//! db[o]          = sum over n, i, j of gy[n, i, j, o]
//! ```
//! With `groups`, output channels of group g read only the input channels of group g.
//!
//! On the CPU the way is picked by shape: 1x1 is one matrix product; stride 1 is a matrix product per tap over a padded
//! frame (`shift`); depthwise is direct loops; few pixels with many channels are arranged so that the weight is read
//! once; everything else gathers panels (`im2col`).

mod adjoint;
mod bias_grad;
mod cuda;
mod depthwise;
mod depthwise_cuda;
mod geometry;
mod im2col;
mod shift;
mod stats;

pub use geometry::Geometry;
pub use stats::ConvStats;

use super::{Backward, Case, Forward, Input, Op};
use crate::base::Shape;
use crate::cpu::{MatMut, MatRef, column_sums, for_each_chunk, gemm, map_ordered};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

pub use bias_grad::ColumnSum;
pub(super) use bias_grad::{bias_gradient, variants as bias_grad_variants};
pub use cuda::{Activation, FusedConv, FusedOutput, Part, fold_doubled};
pub(super) use depthwise_cuda::variants as depthwise_variants;
pub use depthwise_cuda::{DepthwiseAt, DepthwiseLaunch, DepthwisePass};

/// Inputs: `x [n, h, w, ci]`, `w [co, kh, kw, ci/groups]`, optionally `b [co]`. Result: `[n, ho, wo, co]` with
/// `ho = (h + 2*pad - dilation*(kh-1) - 1) / stride + 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between outputs: vertical, horizontal.
    pub stride: [usize; 2],
    /// Zeros added on each side: vertical, horizontal.
    pub pad: [usize; 2],
    /// Distance between taps: vertical, horizontal.
    pub dilation: [usize; 2],
    /// Number of channel groups.
    pub groups: usize,
}

impl Conv2d {
    /// A convolution with the same stride and padding in both directions, no dilation and one group.
    pub fn square(stride: usize, pad: usize) -> Self {
        Conv2d { stride: [stride; 2], pad: [pad; 2], dilation: [1; 2], groups: 1 }
    }
}

/// How many parts the pixels are cut into for the weight gradient: more parts keep more threads busy, but each needs
/// a copy of the weight. A function of the sizes alone.
fn weight_gradient_parts(units: usize, weight_len: usize) -> usize {
    const MAX_FLOATS: usize = 8 << 20;
    units.min(16).min((MAX_FLOATS / weight_len.max(1)).max(2)).max(1)
}

/// `sum = partial[0] + partial[1] + ..`, element by element in that order.
fn add_in_order(sum: &mut [f32], partial: &[Vec<f32>]) {
    const CHUNK: usize = 4096;
    for_each_chunk(sum, CHUNK, |i, to| {
        to.fill(0.0);
        for p in partial {
            to.iter_mut().zip(&p[i * CHUNK..]).for_each(|(t, p)| *t += p);
        }
    });
}

fn forward(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    if im2col::has_few_pixels(g) {
        im2col::forward_few(g, x, w, bias, y);
    } else if g.is_pointwise() {
        let m = g.n * g.h * g.w;
        product_with_bias(y, x, w, bias, m, g.ci, g.co);
    } else if g.is_depthwise() {
        depthwise::forward(g, x, w, bias, y);
    } else if shift::suits(g) {
        shift::forward(g, x, w, bias, y);
    } else {
        im2col::forward(g, x, w, bias, y);
    }
}

/// `y [m, co] = x [m, ci] * w [co, ci]^T + b`.
pub(super) fn product_with_bias(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    m: usize,
    ci: usize,
    co: usize,
) {
    if let Some(b) = bias {
        for_each_chunk(y, co, |_, row| row.copy_from_slice(b));
    }
    let c = MatMut::row_major(y, m, co);
    gemm(c, MatRef::row_major(x, m, ci), MatRef::row_major(w, co, ci).t(), bias.is_some(), true);
}

fn input_gradient(g: &Geometry, gy: &[f32], w: &[f32], dx: &mut [f32]) {
    if im2col::has_few_pixels(g) {
        im2col::input_gradient_few(g, gy, w, dx);
    } else if g.is_pointwise() {
        let m = g.n * g.h * g.w;
        let c = MatMut::row_major(dx, m, g.ci);
        gemm(c, MatRef::row_major(gy, m, g.co), MatRef::row_major(w, g.co, g.ci), false, true);
    } else if g.is_depthwise() {
        depthwise::input_gradient(g, gy, w, dx);
    } else if let Some(t) = g.transposed().filter(|_| g.groups == 1) {
        forward(&t, gy, &shift::flipped(g, w), None, dx);
    } else {
        im2col::input_gradient(g, gy, w, dx);
    }
}

fn weight_gradient(g: &Geometry, x: &[f32], gy: &[f32], dw: &mut [f32]) {
    if im2col::has_few_pixels(g) {
        im2col::weight_gradient_few(g, x, gy, dw);
    } else if g.is_pointwise() {
        let m = g.n * g.h * g.w;
        product_weight_gradient(dw, x, gy, m, g.ci, g.co);
    } else if g.is_depthwise() {
        depthwise::weight_gradient(g, x, gy, dw);
    } else if shift::suits(g) {
        shift::weight_gradient(g, x, gy, dw);
    } else {
        im2col::weight_gradient(g, x, gy, dw);
    }
}

/// `dw [co, ci] = gy [m, co]^T * x [m, ci]`, summed over fixed parts of the rows in order.
pub(super) fn product_weight_gradient(dw: &mut [f32], x: &[f32], gy: &[f32], m: usize, ci: usize, co: usize) {
    let parts = weight_gradient_parts(m.div_ceil(256), co * ci);
    let partial = map_ordered(parts, |p| {
        let (a, b) = (p * m / parts, (p + 1) * m / parts);
        let mut dw = vec![0.0; co * ci];
        let (gy, x) =
            (MatRef::row_major(&gy[a * co..], b - a, co), MatRef::row_major(&x[a * ci..], b - a, ci));
        gemm(MatMut::row_major(&mut dw, co, ci), gy.t(), x, false, parts == 1);
        dw
    });
    add_in_order(dw, &partial);
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        Ok(Geometry::new(self, inputs)?.y_shape())
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let g = Geometry::new(self, &shapes)?;
        let bias = inputs.get(2).map(|b| b.f32s()).transpose()?;
        let mut y = vec![0.0; g.y_len()];
        forward(&g, inputs[0].f32s()?, inputs[1].f32s()?, bias, &mut y);
        Ok(Tensor::from_vec(g.y_shape(), y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = Geometry::new(self, b.inputs)?;
        let (gy, x, w) = (b.gy.f32s()?, b.saved[0].f32s()?, b.saved[1].f32s()?);
        let make = |need: bool, len: usize, shape: Shape, fill: &dyn Fn(&mut [f32])| {
            need.then(|| {
                let mut v = vec![0.0; len];
                fill(&mut v);
                Tensor::from_vec(shape, v)
            })
            .transpose()
        };
        let mut out = vec![
            make(b.needs[0], g.x_len(), b.inputs[0], &|dx| input_gradient(&g, gy, w, dx))?,
            make(b.needs[1], g.w_len(), b.inputs[1], &|dw| weight_gradient(&g, x, gy, dw))?,
        ];
        if let Some(&need) = b.needs.get(2) {
            out.push(need.then(|| Tensor::from_vec([g.co], column_sums(gy, g.co))).transpose()?);
        }
        Ok(out)
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn is_operand(&self, input: usize) -> bool {
        input < 2
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        Ok(cuda::forward(&Geometry::new(self, &shapes)?, gpu, inputs, false)?.y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        cuda::backward(&Geometry::new(self, ctx.inputs)?, gpu, ctx)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let g = Geometry::new(self, &shapes)?;
        let (x, w) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?);
        let (cig, cog) = g.per_group();
        let mut y = Vec::with_capacity(g.y_len());
        for (n, oy, ox, o) in indices([g.n, g.ho, g.wo, g.co]) {
            let mut sum = inputs.get(2).map_or(Ok(0.0), |b| b.data::<f64>().map(|b| b[o]))?;
            for (r, s, c, _) in indices([g.kh, g.kw, cig, 1]) {
                if let (Some(iy), Some(ix)) = (g.input_index(0, oy, r), g.input_index(1, ox, s)) {
                    sum += x[((n * g.h + iy) * g.w + ix) * g.ci + o / cog * cig + c]
                        * w[((o * g.kh + r) * g.kw + s) * cig + c];
                }
            }
            y.push(sum);
        }
        Tensor::from_vec(g.y_shape(), y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        adjoint::gradients(&Geometry::new(self, &shapes)?, inputs, gy).map(Some)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        Geometry::new(self, inputs).map_or(0, |g| 2 * g.y_len() as u64 * g.k() as u64)
    }

    fn convolution(&self, inputs: &[Shape]) -> Option<Geometry> {
        Geometry::new(self, inputs).ok()
    }

    fn scratch_bytes(&self, inputs: &[Shape]) -> usize {
        Geometry::new(self, inputs).map_or(0, |g| {
            let floats = if im2col::has_few_pixels(&g) {
                g.n * g.ho * g.wo * (g.k() + g.co)
            } else if g.is_pointwise() || g.is_depthwise() {
                0
            } else if shift::suits(&g) {
                shift::scratch(&g) + g.w_len()
            } else {
                crate::cpu::threads() * im2col::scratch(&g)
            };
            4 * floats
        })
    }
}

/// All index tuples of a 4-dimensional box, last axis fastest.
fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

/// Every way through the code, each with odd sizes; the benchmarks are shapes of the teacher and of ResNet.
pub fn cases() -> Vec<Case> {
    let make = |label: &str, op: Conv2d, x: [usize; 4], co: usize, k: [usize; 2], bias: bool, bench: bool| {
        let mut inputs = vec![Input::normal("x", x), Input::normal("w", [co, k[0], k[1], x[3] / op.groups])];
        if bias {
            inputs.push(Input::normal("b", [co]));
        }
        let name = format!("{label} {x:?} -> {co}, {}x{}", k[0], k[1]);
        if bench { Case::bench(name, op, inputs) } else { Case::new(name, op, inputs) }
    };
    let sq = Conv2d::square;
    let full = |stride, pad, dilation, groups| Conv2d { stride, pad, dilation, groups };
    let mut cases = vec![
        make("pointwise", sq(1, 0), [2, 3, 5, 7], 9, [1, 1], true, false),
        make("few pixels", sq(1, 1), [2, 3, 2, 128], 256, [3, 3], true, false),
        make("few pixels, pointwise", sq(1, 0), [1, 3, 2, 130], 259, [1, 1], true, false),
        make("pointwise, stride 2", sq(2, 0), [2, 8, 7, 6], 10, [1, 1], false, false),
        make("one pixel", sq(1, 1), [2, 1, 1, 9], 7, [3, 3], true, false),
        make("one channel", sq(1, 1), [3, 5, 5, 1], 1, [3, 3], true, false),
        make("wide rows", sq(1, 1), [1, 4, 40, 5], 6, [3, 3], true, false),
        make("many blocks", sq(1, 1), [3, 20, 33, 4], 3, [3, 3], true, false),
        make("narrow rows", sq(1, 1), [2, 7, 4, 6], 64, [3, 3], true, false),
        make("no padding", sq(1, 0), [1, 9, 30, 5], 8, [3, 3], false, false),
        make("padding beyond the kernel", sq(1, 3), [1, 4, 5, 3], 4, [3, 3], true, false),
        make("stride 2", sq(2, 1), [2, 9, 7, 6], 8, [3, 3], false, false),
        make("stem", sq(2, 3), [1, 15, 17, 3], 10, [7, 7], false, false),
        make("patches", sq(4, 0), [1, 16, 19, 3], 8, [4, 4], true, false),
        make("even kernel", sq(1, 1), [2, 5, 6, 3], 4, [2, 4], true, false),
        make("oblong stride", full([2, 1], [0, 2], [1, 1], 1), [1, 7, 9, 4], 5, [3, 5], true, false),
        make("dilation", full([1, 1], [2, 2], [2, 2], 1), [1, 7, 27, 5], 6, [3, 3], true, false),
        make("dilation and stride", full([2, 2], [2, 2], [2, 2], 1), [1, 11, 9, 5], 6, [3, 3], true, false),
        make("groups", full([1, 1], [1, 1], [1, 1], 4), [2, 6, 6, 8], 16, [3, 3], true, false),
        make("groups and stride", full([2, 2], [1, 1], [1, 1], 3), [2, 6, 7, 9], 6, [3, 3], false, false),
        make("depthwise", full([1, 1], [3, 3], [1, 1], 37), [2, 8, 9, 37], 37, [7, 7], true, false),
        make(
            "depthwise, stride and dilation",
            full([2, 2], [2, 2], [2, 1], 5),
            [1, 9, 8, 5],
            5,
            [3, 3],
            false,
            false,
        ),
        make("copies of four elements", sq(1, 1), [1, 6, 5, 12], 20, [3, 3], true, false),
        make(
            "depthwise, whole chunks",
            full([1, 1], [1, 1], [1, 1], 16),
            [1, 6, 5, 16],
            16,
            [3, 3],
            true,
            false,
        ),
        make(
            "depthwise 7x7, small map",
            full([1, 1], [3, 3], [1, 1], 16),
            [2, 7, 7, 16],
            16,
            [7, 7],
            true,
            false,
        ),
        make("channel multiplier", full([1, 1], [1, 1], [1, 1], 3), [1, 5, 5, 3], 6, [3, 3], true, false),
    ];
    for (n, hw, ci, co, k, stride) in [
        (8, 64, 64, 64, 3, 1),
        (8, 32, 128, 128, 3, 1),
        (1, 64, 256, 256, 3, 1),
        (1, 16, 1024, 1024, 3, 1),
        (4, 8, 1024, 1024, 3, 1),
        (8, 56, 256, 64, 1, 1),
        (8, 224, 3, 64, 7, 2),
    ] {
        cases.push(make("bench", sq(stride, k / 2), [n, hw, hw, ci], co, [k, k], false, true));
    }
    cases.push(make("bench", full([1, 1], [3, 3], [1, 1], 128), [4, 32, 32, 128], 128, [7, 7], true, true));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::run;

    #[test]
    fn misfits_are_named() {
        let op = Conv2d::square(1, 1);
        let err = |x: &[usize], w: &[usize], b: Option<usize>| {
            let mut inputs = vec![
                Tensor::zeros(Shape::from_slice(x).unwrap()),
                Tensor::zeros(Shape::from_slice(w).unwrap()),
            ];
            inputs.extend(b.map(|b| Tensor::zeros([b])));
            let e = run(&op, &inputs.iter().collect::<Vec<_>>()).err().expect("must be refused");
            assert!(e.is_shape() && e.to_string().starts_with("conv2d: "), "{e}");
            e.to_string()
        };
        assert!(err(&[1, 4, 4, 3], &[8, 3, 3, 4], None).contains("input 0 = f32 [1, 4, 4, 3]"));
        err(&[4, 4, 3], &[8, 3, 3, 3], None);
        err(&[1, 4, 4, 3], &[8, 3, 3, 3], Some(7));
        err(&[1, 1, 1, 3], &[8, 7, 7, 3], None);
        err(&[1, 4, 4, 3], &[8, 3, 3], None);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let pool = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        for case in cases().iter().filter(|c| !c.bench) {
            let inputs = case.tensors(3);
            let shapes = case.shapes();
            let all = || {
                let refs: Vec<&Tensor> = inputs.iter().collect();
                let y = case.op.forward(&refs).unwrap().y;
                let saved = case.op.save(&refs, &y);
                let ctx = Backward { gy: &y, saved: &saved, inputs: &shapes, needs: &vec![true; refs.len()] };
                let mut out: Vec<Tensor> = case.op.backward(&ctx).unwrap().into_iter().flatten().collect();
                out.push(y.clone());
                out.iter().flat_map(|t| t.f32s().unwrap().iter().map(|v| v.to_bits())).collect::<Vec<_>>()
            };
            assert_eq!(pool(1).install(all), pool(3).install(all), "{}", case.label);
        }
    }
}
