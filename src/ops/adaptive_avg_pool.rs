//! Average pooling of an image batch to a fixed size, whatever the size of the image.
//!
//! ```text
//! bin i of h' over H pixels = floor(i H / h') .. ceil((i + 1) H / h')    (bins may overlap)
//! y[n,i,j,c]  = mean of x[n,:,:,c] over bin i times bin j
//! gx[n,h,w,c] = sum of gy[n,i,j,c] / (pixels of bin i times bin j) over the bins that hold (h, w)
//! ```
//! Same as `torch.nn.AdaptiveAvgPool2d`; used by the pyramid pooling module (Zhao et al., "Pyramid Scene Parsing
//! Network", CVPR 2017).

use super::elementwise::rows::{Rows, is_wide};
use super::elementwise::window::{self, Gather, WindowParams};
use super::elementwise::{DTYPES, blocks};
use super::implicit_gemm::{int, operand_dtype};
use super::kernel::Call;
use super::support::{dims, expect_inputs, images};
use super::*;
use crate::base::DType;
use crate::cpu;
use crate::error::Error;
use bytemuck::Zeroable;
use std::ops::Range;

/// Adaptive average pooling: `x [N, H, W, C] -> [N, h', w', C]`.
#[derive(Clone, Debug)]
pub struct AdaptiveAvgPool {
    /// Height and width of the result.
    pub out: [usize; 2],
}

/// The pixels of bin `i` of `bins` over an axis of `len`.
fn bin(i: usize, bins: usize, len: usize) -> Range<usize> {
    i * len / bins..((i + 1) * len).div_ceil(bins)
}

/// The bins, out of `bins` over an axis of `len`, that hold one of the pixels `first ..= last`.
fn holders(first: usize, last: usize, bins: usize, len: usize) -> Range<usize> {
    first * bins / len..((last + 1) * bins).div_ceil(len)
}

fn fwd(dtype: DType, wide: bool) -> Call {
    Call::new("adaptive_avg_pool.cu", "adaptive_avg_pool_fwd").dtype(dtype).set("VEC", u8::from(wide))
}

fn bwd() -> Call {
    Call::new("adaptive_avg_pool.cu", "adaptive_avg_pool_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let of = |dtype| [false, true].map(|wide| fwd(dtype, wide).variant::<WindowParams>());
    DTYPES.into_iter().flat_map(of).chain(window::variants(&[bwd()])).collect()
}

impl AdaptiveAvgPool {
    /// The gradient's gathering: pixels of an image `[n, h, w, c]` read the bins that hold them.
    fn gradient(&self, gpu: &Gpu, gy: &Tensor, gx: &Tensor) -> Result<()> {
        let ([n, h, w, c], [ho, wo]) = (dims(gx.shape()), self.out);
        let gather = Gather {
            op: "adaptive_avg_pool",
            from: [n, ho, wo, c],
            to: [h, w],
            down: &|first, last| holders(first, last, ho, h),
            right: &|first, last| holders(first, last, wo, w),
            positions: false,
        };
        gather.launch(gpu, bwd(), gy, None, gx, |p| p)
    }
}

/// Bin means of `x` of shape `[n, h, w, c]`, accumulated in f64.
pub(super) fn bin_means(x: &[f32], [n, h, w, c]: [usize; 4], out: [usize; 2]) -> Vec<f32> {
    // One task per row of results: a result can be tiny while the image is large.
    let rows = cpu::map_ordered(n * out[0], |row| {
        let (b, i) = (row / out[0], row % out[0]);
        let mut y = Vec::with_capacity(out[1] * c);
        let mut sum = vec![0.0f64; c];
        for j in 0..out[1] {
            let (ys, xs) = (bin(i, out[0], h), bin(j, out[1], w));
            let scale = 1.0 / (ys.len() * xs.len()) as f64;
            sum.fill(0.0);
            for yy in ys {
                let at = (b * h + yy) * w;
                for px in x[(at + xs.start) * c..(at + xs.end) * c].chunks_exact(c) {
                    sum.iter_mut().zip(px).for_each(|(s, &v)| *s += f64::from(v));
                }
            }
            y.extend(sum.iter().map(|s| (s * scale) as f32));
        }
        y
    });
    rows.concat()
}

/// Gradient of [`bin_means`].
pub(super) fn bin_means_backward(gy: &[f32], [n, h, w, c]: [usize; 4], out: [usize; 2]) -> Vec<f32> {
    let mut gx = vec![0.0f32; n * h * w * c];
    cpu::for_each_chunk(&mut gx, w * c, |row, gx| {
        let (b, yy) = (row / h, row % h);
        for i in (0..out[0]).filter(|&i| bin(i, out[0], h).contains(&yy)) {
            for j in 0..out[1] {
                let xs = bin(j, out[1], w);
                let scale = (1.0 / (bin(i, out[0], h).len() * xs.len()) as f64) as f32;
                let gy = &gy[((b * out[0] + i) * out[1] + j) * c..][..c];
                for gx in gx[xs.start * c..xs.end * c].chunks_exact_mut(c) {
                    gx.iter_mut().zip(gy).for_each(|(gx, &g)| *gx += scale * g);
                }
            }
        }
    });
    gx
}

impl Op for AdaptiveAvgPool {
    fn name(&self) -> &'static str {
        "adaptive_avg_pool"
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
        let [n, h, w, c] = dims(inputs[0].shape());
        let y = bin_means(inputs[0].f32s()?, [n, h, w, c], self.out);
        Ok(Tensor::from_vec([n, self.out[0], self.out[1], c], y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gx = bin_means_backward(ctx.gy.f32s()?, dims(ctx.inputs[0]), self.out);
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let op = "adaptive_avg_pool";
        let dtype = operand_dtype(op, inputs)?;
        let ([n, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        let y = Tensor::empty_gpu([n, ho, wo, c], dtype, gpu, op)?;
        let side = window::side;
        let (across, _) = Rows { segments: 1, rows: 1, columns: c }.sum_blocks(dtype, 1);
        let p = WindowParams {
            from: inputs[0].cuda_ptr()?,
            to: y.cuda_ptr()?,
            from_h: side(op, h)?,
            from_w: side(op, w)?,
            to_h: side(op, ho)?,
            to_w: side(op, wo)?,
            channels: int(op, "channels", c)?,
            across: int(op, "blocks of a row", across)?,
            ..WindowParams::zeroed()
        };
        int(op, "blocks", n * ho * wo * across)?;
        fwd(dtype, is_wide(dtype, c)).launch(gpu, blocks(n * ho * wo * across), &p)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("adaptive_avg_pool", &[ctx.gy])?;
        let gx = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of adaptive_avg_pool")?;
        self.gradient(gpu, ctx.gy, &gx)?;
        Ok(vec![Some(gx)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let ([n, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        // A pixel belongs to a bin if it overlaps the real interval [i H / h', (i + 1) H / h').
        let inside = |p: usize, i: usize, len: usize, bins: usize| {
            (p + 1) * bins > i * len && p * bins < (i + 1) * len
        };
        let mut y = Vec::new();
        for at in 0..n * ho * wo * c {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let (mut sum, mut count) = (0.0, 0.0);
            for (yy, xx) in (0..h).flat_map(|yy| (0..w).map(move |xx| (yy, xx))) {
                if inside(yy, i, h, ho) && inside(xx, j, w, wo) {
                    sum += x[((b * h + yy) * w + xx) * c + ch];
                    count += 1.0;
                }
            }
            y.push(sum / count);
        }
        Tensor::from_vec([n, ho, wo, c], y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let gy = gy.data::<f64>()?;
        let ([_, h, w, c], [ho, wo]) = (dims(inputs[0].shape()), self.out);
        let mut gx = vec![0.0; inputs[0].elems()];
        for (at, g) in gy.iter().enumerate() {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let (ys, xs) = (bin(i, ho, h), bin(j, wo, w));
            let share = g / (ys.len() * xs.len()) as f64;
            for (yy, xx) in ys.flat_map(|yy| xs.clone().map(move |xx| (yy, xx))) {
                gx[((b * h + yy) * w + xx) * c + ch] += share;
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let [n, h, w, c] = dims(inputs[0]);
        let rows: usize = (0..self.out[0]).map(|i| bin(i, self.out[0], h).len()).sum();
        let cols: usize = (0..self.out[1]).map(|j| bin(j, self.out[1], w).len()).sum();
        (n * rows * cols * c) as u64
    }
}

/// Corners and the sizes of the pyramid pooling module.
pub fn cases() -> Vec<Case> {
    let case = |label, out, shape: [usize; 4]| {
        Case::new(label, AdaptiveAvgPool { out }, vec![Input::normal("x", shape)])
    };
    vec![
        case("one pixel", [1, 1], [1, 1, 1, 1]),
        case("to one pixel", [1, 1], [2, 5, 3, 9]),
        case("overlapping bins", [3, 3], [2, 7, 8, 5]),
        case("6 of 7", [6, 6], [1, 7, 7, 3]),
        case("not square", [2, 5], [1, 9, 11, 2]),
        case("larger than the image", [6, 3], [1, 2, 2, 4]),
        case("chunks of channels", [3, 2], [2, 18, 20, 24]),
        Case::bench(
            "pyramid level 1",
            AdaptiveAvgPool { out: [1, 1] },
            vec![Input::normal("x", [8, 32, 32, 512])],
        ),
        Case::bench(
            "pyramid level 6",
            AdaptiveAvgPool { out: [6, 6] },
            vec![Input::normal("x", [8, 64, 64, 64])],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn bins_are_those_of_pytorch() {
        let bins: Vec<_> = (0..3).map(|i| bin(i, 3, 7)).collect();
        assert_eq!(bins, [0..3, 2..5, 4..7]);
        assert_eq!((bin(0, 4, 2), bin(1, 4, 2), bin(3, 4, 2)), (0..1, 0..1, 1..2));
    }

    #[test]
    fn holders_are_the_bins_that_hold() {
        for (bins, len) in [(1, 1), (3, 7), (6, 7), (4, 2), (5, 5), (2, 9)] {
            for pixel in 0..len {
                let direct: Vec<usize> = (0..bins).filter(|&i| bin(i, bins, len).contains(&pixel)).collect();
                assert_eq!(
                    holders(pixel, pixel, bins, len).collect::<Vec<_>>(),
                    direct,
                    "{bins} {len} {pixel}"
                );
            }
        }
    }

    #[test]
    fn wrong_uses_are_errors() {
        let op = AdaptiveAvgPool { out: [0, 1] };
        assert!(op.output_shape(&[[1, 2, 2, 1].into()]).unwrap_err().is_shape());
        let op = AdaptiveAvgPool { out: [1, 1] };
        assert!(op.output_shape(&[[1, 0, 2, 1].into()]).is_err());
        assert!(op.output_shape(&[[2, 2].into()]).is_err());
        assert!(op.output_shape(&[]).is_err());
    }

    #[test]
    fn adaptive_avg_pool_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
