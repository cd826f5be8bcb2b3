//! Max pooling of an image batch with a square window.
//!
//! ```text
//! y[n,i,j,c] = max of x[n, i s - p + u, j s - p + v, c] over 0 <= u, v < k inside the image
//! gx         = gy, added at the first maximum of its window in row-major order
//! ```
//! Padding counts as minus infinity, and a window that holds a NaN gives NaN. Same as `torch.nn.MaxPool2d` with
//! `ceil_mode=False`, ties included (after a ReLU windows of zeros are common).

use super::elementwise::window::{self, Gather};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::support::{Window, dims};
use super::*;
use crate::base::DType;
use crate::cpu;
use crate::error::Error;

/// Max pooling: `x [N, H, W, C] -> [N, H', W', C]` with `H' = floor((H + 2 pad - kernel) / stride) + 1`.
#[derive(Clone, Debug)]
pub struct MaxPool {
    /// Side of the window in pixels.
    pub kernel: usize,
    /// Distance between windows in pixels.
    pub stride: usize,
    /// Pixels of minus infinity around the image, at most `kernel / 2`.
    pub pad: usize,
}

impl MaxPool {
    fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, pad: self.pad }
    }

    fn out_dims(&self, x: Shape) -> Result<[usize; 4]> {
        Ok(dims(self.output_shape(&[x])?))
    }

    /// For every result element, which position of its window holds the first maximum.
    fn argmax(&self, x: &[f32], [_, h, w, c]: [usize; 4], [n, ho, wo, _]: [usize; 4]) -> Vec<u32> {
        let win = self.window();
        let mut arg = vec![0u32; n * ho * wo * c];
        cpu::for_each_chunk(&mut arg, wo * c, |row, arg| {
            let mut best = vec![0.0f32; c];
            for (j, arg) in arg.chunks_exact_mut(c).enumerate() {
                let mut first = true;
                for (id, at) in win.pixels([row / ho, row % ho, j], [h, w]) {
                    let px = &x[at * c..][..c];
                    let id = id as u32;
                    if std::mem::take(&mut first) {
                        best.copy_from_slice(px);
                        arg.fill(id);
                        continue;
                    }
                    // Bit masks instead of branches: on random data a branch is mispredicted half of the time.
                    for ((best, arg), &v) in best.iter_mut().zip(arg.iter_mut()).zip(px) {
                        let take = (v > *best) | v.is_nan();
                        let mask = u32::from(take).wrapping_neg();
                        *best = if take { v } else { *best };
                        *arg = (id & mask) | (*arg & !mask);
                    }
                }
            }
        });
        arg
    }
}

/// Largest side of a window on a device: a position in it is one byte.
const MOST_KERNEL: usize = 16;

fn fwd() -> Call {
    Call::new("max_pool.cu", "max_pool_fwd")
}

fn bwd() -> Call {
    Call::new("max_pool.cu", "max_pool_bwd")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    window::variants(&[fwd(), bwd()])
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        self.window().output_shape(self.name(), inputs)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shape = self.output_shape(&[inputs[0].shape()])?;
        let [_, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = dims(shape);
        let (x, win) = (inputs[0].f32s()?, self.window());
        let mut y = vec![0.0f32; shape.elems()];
        cpu::for_each_chunk(&mut y, wo * c, |row, y| {
            for (j, y) in y.chunks_exact_mut(c).enumerate() {
                let mut first = true;
                for (_, at) in win.pixels([row / ho, row % ho, j], [h, w]) {
                    let px = &x[at * c..][..c];
                    if std::mem::take(&mut first) {
                        y.copy_from_slice(px);
                        continue;
                    }
                    for (y, &v) in y.iter_mut().zip(px) {
                        *y = if (v > *y) | v.is_nan() { v } else { *y };
                    }
                }
            }
        });
        Ok(Tensor::from_vec(shape, y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        // A device keeps where the maxima were, one byte each, and lets go of the image.
        if inputs[0].gpu().is_some() { Vec::new() } else { vec![inputs[0].clone()] }
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let out = self.out_dims(ctx.inputs[0])?;
        let (input, win) = (dims(ctx.inputs[0]), self.window());
        let ([_, h, w, c], [_, ho, wo, _]) = (input, out);
        let arg = self.argmax(ctx.saved[0].f32s()?, input, out);
        let gy = ctx.gy.f32s()?;
        // Gathered per input row: no two tasks write to the same element, and the order of additions is fixed.
        let mut gx = vec![0.0f32; ctx.inputs[0].elems()];
        cpu::for_each_chunk(&mut gx, w * c, |row, gx| {
            let (b, y) = (row / h, row % h);
            for (x, gx) in gx.chunks_exact_mut(c).enumerate() {
                for i in win.covering(y, ho) {
                    for j in win.covering(x, wo) {
                        let id = (y + win.pad - i * win.stride) * win.kernel + x + win.pad - j * win.stride;
                        let at = ((b * ho + i) * wo + j) * c;
                        let (gy, arg) = (&gy[at..][..c], &arg[at..][..c]);
                        for ((gx, &g), &a) in gx.iter_mut().zip(gy).zip(arg) {
                            let mask = u32::from(a == id as u32).wrapping_neg();
                            *gx += f32::from_bits(g.to_bits() & mask);
                        }
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
        let dtype = operand_dtype("max_pool", inputs)?;
        if self.kernel > MOST_KERNEL {
            let what = format!(
                "a window of {0}x{0} is more than the kernel's {MOST_KERNEL}x{MOST_KERNEL}",
                self.kernel
            );
            return Err(Error::shape("max_pool", what).with_remedy("compute on the host with `--device cpu`"));
        }
        let (shape, win) = (self.output_shape(&[inputs[0].shape()])?, self.window());
        let ([_, h, w, _], [_, ho, wo, _]) = (dims(inputs[0].shape()), dims(shape));
        let y = Tensor::empty_gpu(shape, dtype, gpu, "max_pool")?;
        let positions = Tensor::empty_gpu(shape, DType::U8, gpu, "max_pool positions")?;
        let gather = Gather {
            op: "max_pool",
            from: dims(inputs[0].shape()),
            to: [ho, wo],
            down: &|first, last| win.all_covered(first, last, h),
            right: &|first, last| win.all_covered(first, last, w),
            positions: false,
        };
        gather.launch(gpu, fwd(), inputs[0], Some(&positions), &y, |p| win.set(p))?;
        Ok(Forward { y, extra: vec![positions], aux: Vec::new() })
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("max_pool", &[ctx.gy])?;
        let gx = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of max_pool")?;
        let (from, win) = (self.out_dims(ctx.inputs[0])?, self.window());
        let ([_, h, w, _], [_, ho, wo, _]) = (dims(ctx.inputs[0]), from);
        let gather = Gather {
            op: "max_pool",
            from,
            to: [h, w],
            down: &|first, last| win.all_covering(first, last, ho),
            right: &|first, last| win.all_covering(first, last, wo),
            positions: true,
        };
        gather.launch(gpu, bwd(), ctx.gy, Some(&ctx.saved[0]), &gx, |p| win.set(p))?;
        Ok(vec![Some(gx)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let [n, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = self.out_dims(inputs[0].shape())?;
        let mut y = Vec::new();
        for at in 0..n * ho * wo * c {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let mut best = f64::NEG_INFINITY;
            for (u, v) in (0..self.kernel).flat_map(|u| (0..self.kernel).map(move |v| (u, v))) {
                let (yy, xx) = (
                    (i * self.stride + u).wrapping_sub(self.pad),
                    (j * self.stride + v).wrapping_sub(self.pad),
                );
                if yy < h && xx < w {
                    best = best.max(x[((b * h + yy) * w + xx) * c + ch]);
                }
            }
            y.push(best);
        }
        Tensor::from_vec([n, ho, wo, c], y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (x, gy) = (inputs[0].data::<f64>()?, gy.data::<f64>()?);
        let [_, h, w, c] = dims(inputs[0].shape());
        let [_, ho, wo, _] = self.out_dims(inputs[0].shape())?;
        let mut gx = vec![0.0; x.len()];
        for (at, g) in gy.iter().enumerate() {
            let (b, i, j, ch) = (at / (ho * wo * c), at / (wo * c) % ho, at / c % wo, at % c);
            let pixels = self.window().pixels([b, i, j], [h, w]).map(|(_, pixel)| pixel * c + ch);
            let best = pixels.reduce(|best, here| if x[here] > x[best] { here } else { best });
            gx[best.expect("a window meets the image")] += g;
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        self.out_dims(inputs[0])
            .map_or(0, |d| (d.iter().product::<usize>() * self.kernel * self.kernel) as u64)
    }
}

/// Corners, the ResNet stem and its realistic size.
pub fn cases() -> Vec<Case> {
    let case = |label, [kernel, stride, pad]: [usize; 3], shape: [usize; 4]| {
        Case::new(label, MaxPool { kernel, stride, pad }, vec![Input::filled("x", shape, Fill::Distinct)])
    };
    vec![
        case("one pixel", [1, 1, 0], [1, 1, 1, 1]),
        case("one pixel, padded", [3, 2, 1], [2, 1, 1, 5]),
        case("resnet stem, odd", [3, 2, 1], [2, 9, 7, 5]),
        case("2x2", [2, 2, 0], [1, 5, 8, 3]),
        case("overlapping", [3, 1, 1], [1, 4, 6, 9]),
        case("gaps between windows", [2, 3, 1], [1, 8, 7, 2]),
        case("large window", [5, 2, 2], [1, 11, 6, 1]),
        case("chunks of channels", [3, 2, 1], [1, 18, 21, 24]),
        Case::new(
            "ties",
            MaxPool { kernel: 3, stride: 2, pad: 1 },
            vec![Input::filled("x", [1, 9, 8, 8], Fill::Uniform(0.0, 0.0)).fixed()],
        ),
        case("windows that fill no shared memory", [15, 15, 0], [1, 31, 30, 32]),
        Case::bench(
            "resnet stem",
            MaxPool { kernel: 3, stride: 2, pad: 1 },
            vec![Input::normal("x", [8, 112, 112, 64])],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn ties_go_to_the_first_maximum() {
        let x = Tensor::zeros([1, 3, 3, 1]);
        let op = MaxPool { kernel: 2, stride: 1, pad: 0 };
        let gy = Tensor::from_vec([1, 2, 2, 1], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let (_, g) = testing::both(&op, &[&x], &[true], Some(gy));
        assert_eq!(g[0].as_ref().unwrap().f32s().unwrap(), &[1.0, 2.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn padding_is_minus_infinity_and_nan_stays() {
        let x = Tensor::full([1, 2, 2, 1], -3.0);
        let op = MaxPool { kernel: 3, stride: 2, pad: 1 };
        assert_eq!(run(&op, &[&x]).unwrap().y.f32s().unwrap(), &[-3.0]);
        let x = Tensor::from_vec([1, 2, 2, 1], vec![1.0, f32::NAN, 5.0, 2.0]).unwrap();
        assert!(run(&op, &[&x]).unwrap().y.f32s().unwrap()[0].is_nan());
    }

    #[test]
    fn max_pool_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
