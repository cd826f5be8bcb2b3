//! Average pooling of an image batch with a square window.
//!
//! ```text
//! y[n,i,j,c]  = 1/k^2 sum of x[n, i s - p + u, j s - p + v, c] over 0 <= u, v < k, 0 outside the image
//! gx[n,h,w,c] = 1/k^2 sum of gy over the windows that cover (h, w)
//! ```
//! The divisor is `k^2` at the border too: `torch.nn.AvgPool2d` with `count_include_pad=True`, `ceil_mode=False`.

use super::elementwise::window::{self, Gather, WindowParams};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::support::{Window, dims};
use super::*;
use crate::cpu;

/// Average pooling: `x [N, H, W, C] -> [N, H', W', C]` with `H' = floor((H + 2 pad - kernel) / stride) + 1`.
#[derive(Clone, Debug)]
pub struct AvgPool {
    /// Side of the window in pixels.
    pub kernel: usize,
    /// Distance between windows in pixels.
    pub stride: usize,
    /// Pixels of zero around the image, at most `kernel / 2`; they count in the mean.
    pub pad: usize,
}

impl AvgPool {
    fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad }
    }

    fn out_dims(&self, x: Shape) -> Result<[usize; 4]> {
        Ok(dims(self.output_shape(&[x])?))
    }

    fn inverse_area(&self) -> f32 {
        (1.0 / (self.kernel as f64 * self.kernel as f64)) as f32
    }
}

fn fwd() -> Call {
    Call::new("avg_pool.cu", "avg_pool_fwd")
}

fn bwd() -> Call {
    Call::new("avg_pool.cu", "avg_pool_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    window::variants(&[fwd(), bwd()])
}

impl Op for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        self.window().output_shape(self.name(), inputs)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shape = self.output_shape(&[inputs[0].shape()])?;
        let [_, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = dims(shape);
        let (x, win, scale) = (inputs[0].f32s()?, self.window(), self.inverse_area());
        let mut y = vec![0.0f32; shape.elems()];
        cpu::for_each_chunk(&mut y, wo * c, |row, y| {
            for (j, y) in y.chunks_exact_mut(c).enumerate() {
                for (_, at) in win.pixels([row / ho, row % ho, j], [h, w]) {
                    y.iter_mut().zip(&x[at * c..][..c]).for_each(|(y, &v)| *y += v);
                }
                y.iter_mut().for_each(|y| *y *= scale);
            }
        });
        Ok(Tensor::from_vec(shape, y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let [_, h, w, c] = dims(ctx.inputs[0]);
        let [_, ho, wo, _] = self.out_dims(ctx.inputs[0])?;
        let (gy, win, scale) = (ctx.gy.f32s()?, self.window(), self.inverse_area());
        let mut gx = vec![0.0f32; ctx.inputs[0].elems()];
        cpu::for_each_chunk(&mut gx, w * c, |row, gx| {
            for (x, gx) in gx.chunks_exact_mut(c).enumerate() {
                for i in win.covering(row % h, ho) {
                    for j in win.covering(x, wo) {
                        let gy = &gy[((row / h * ho + i) * wo + j) * c..][..c];
                        gx.iter_mut().zip(gy).for_each(|(gx, &g)| *gx += g);
                    }
                }
                gx.iter_mut().for_each(|g| *g *= scale);
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let dtype = operand_dtype("avg_pool", inputs)?;
        let (shape, win) = (self.output_shape(&[inputs[0].shape()])?, self.window());
        let ([_, h, w, _], [_, ho, wo, _]) = (dims(inputs[0].shape()), dims(shape));
        let y = Tensor::empty_gpu(shape, dtype, gpu, "avg_pool")?;
        let gather = Gather {
            op: "avg_pool",
            from: dims(inputs[0].shape()),
            to: [ho, wo],
            down: &|first, last| win.all_covered(first, last, h),
            right: &|first, last| win.all_covered(first, last, w),
            positions: false,
        };
        let set = |p| WindowParams { scale: self.inverse_area(), ..win.set(p) };
        gather.launch(gpu, fwd(), inputs[0], None, &y, set)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("avg_pool", &[ctx.gy])?;
        let gx = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of avg_pool")?;
        let (from, win) = (self.out_dims(ctx.inputs[0])?, self.window());
        let ([_, h, w, _], [_, ho, wo, _]) = (dims(ctx.inputs[0]), from);
        let gather = Gather {
            op: "avg_pool",
            from,
            to: [h, w],
            down: &|first, last| win.all_covering(first, last, ho),
            right: &|first, last| win.all_covering(first, last, wo),
            positions: false,
        };
        let set = |p| WindowParams { scale: self.inverse_area(), ..win.set(p) };
        gather.launch(gpu, bwd(), ctx.gy, None, &gx, set)?;
        Ok(vec![Some(gx)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let [n, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = self.out_dims(inputs[0].shape())?;
        let mut y = Vec::new();
        for at in 0..n * ho * wo * c {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let mut sum = 0.0;
            for (u, v) in (0..self.kernel).flat_map(|u| (0..self.kernel).map(move |v| (u, v))) {
                let (yy, xx) = (
                    (i * self.stride + u).wrapping_sub(self.pad),
                    (j * self.stride + v).wrapping_sub(self.pad),
                );
                if yy < h && xx < w {
                    sum += x[((b * h + yy) * w + xx) * c + ch];
                }
            }
            y.push(sum / (self.kernel * self.kernel) as f64);
        }
        Tensor::from_vec([n, ho, wo, c], y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let gy = gy.data::<f64>()?;
        let [_, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = self.out_dims(inputs[0].shape())?;
        let mut gx = vec![0.0; inputs[0].elems()];
        for (at, g) in gy.iter().enumerate() {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            for (_, pixel) in self.window().pixels([b, i, j], [h, w]) {
                gx[pixel * c + ch] += g / (self.kernel * self.kernel) as f64;
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        self.out_dims(inputs[0])
            .map_or(0, |d| (d.iter().product::<usize>() * self.kernel * self.kernel) as u64)
    }
}

/// Corners, the 2x2 halving of the ADM down-sampler and its realistic size.
pub fn cases() -> Vec<Case> {
    let case = |label, [kernel, stride, pad]: [usize; 3], shape: [usize; 4]| {
        Case::new(label, AvgPool { kernel, stride, pad }, vec![Input::normal("x", shape)])
    };
    vec![
        case("one pixel", [1, 1, 0], [1, 1, 1, 1]),
        case("one pixel, padded", [3, 2, 1], [2, 1, 1, 5]),
        case("halving", [2, 2, 0], [2, 6, 4, 9]),
        case("halving, odd", [2, 2, 0], [1, 5, 7, 3]),
        case("overlapping", [3, 1, 1], [1, 4, 6, 11]),
        case("gaps between windows", [2, 3, 1], [1, 8, 7, 2]),
        case("chunks of channels", [3, 2, 1], [1, 18, 21, 24]),
        case("windows that fill no shared memory", [37, 1, 0], [1, 37, 38, 16]),
        Case::bench(
            "halving",
            AvgPool { kernel: 2, stride: 2, pad: 0 },
            vec![Input::normal("x", [8, 64, 64, 64])],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn padding_counts() {
        let x = Tensor::full([1, 2, 2, 1], 9.0);
        let y = run(&AvgPool { kernel: 3, stride: 2, pad: 1 }, &[&x]).unwrap().y;
        assert_eq!(y.f32s().unwrap(), &[4.0]);
    }

    #[test]
    fn avg_pool_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
