//! Mean over all pixels of each image and channel.
//!
//! ```text
//! y[n,c]      = 1/(H W) sum over h, w of x[n,h,w,c]
//! gx[n,h,w,c] = gy[n,c] / (H W)
//! ```

use super::adaptive_avg_pool::{bin_means, bin_means_backward};
use super::elementwise::DTYPES;
use super::elementwise::rows::{Layout, RowSumParams, Rows, is_wide, map_call, map_variants, sum_call};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::support::{dims, expect_inputs, images};
use super::*;
use bytemuck::{Pod, Zeroable};

/// Global average pooling: `x [N, H, W, C] -> [N, C]`.
#[derive(Clone, Debug)]
pub struct GlobalAvgPool {}

/// `GlobalAvgPoolBwdParams` of `kernels/global_avg_pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdParams {
    gy: u64,
    gx: u64,
    at: Layout,
    scale: f32,
    pad: i32,
}

fn fwd() -> Call {
    Call::new("global_avg_pool.cu", "global_avg_pool_fwd").set("PASS", 0)
}

fn bwd() -> Call {
    Call::new("global_avg_pool.cu", "global_avg_pool_bwd").set("PASS", 1)
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut all = map_variants::<BwdParams>(&bwd());
    for (dtype, out) in DTYPES.into_iter().flat_map(|d| DTYPES.map(|out| (d, out))) {
        all.extend([false, true].map(|wide| sum_call(fwd(), dtype, out, wide).variant::<RowSumParams>()));
    }
    all
}

/// The images as segments, their pixels as rows; and one over the pixels of an image.
fn rows_of(x: Shape) -> (Rows, f32) {
    let [n, h, w, c] = dims(x);
    (Rows { segments: n, rows: h * w, columns: c }, (1.0 / (h * w) as f64) as f32)
}

impl Op for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        expect_inputs(self.name(), inputs, &["x"])?;
        let (n, _, _, c) = images(self.name(), inputs[0])?;
        Ok([n, c].into())
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let [n, h, w, c] = dims(inputs[0].shape());
        Ok(Tensor::from_vec([n, c], bin_means(inputs[0].f32s()?, [n, h, w, c], [1, 1]))?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let gx = bin_means_backward(ctx.gy.f32s()?, dims(ctx.inputs[0]), [1, 1]);
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let dtype = operand_dtype("global_avg_pool", inputs)?;
        let (rows, scale) = rows_of(inputs[0].shape());
        let y = Tensor::empty_gpu([rows.segments, rows.columns], dtype, gpu, "global_avg_pool")?;
        rows.sum(gpu, "global_avg_pool", fwd(), inputs[0], &y, scale)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("global_avg_pool", &[ctx.gy])?;
        let (rows, scale) = rows_of(ctx.inputs[0]);
        let gx = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of global_avg_pool")?;
        let (at, grid) = rows.layout_for(gpu, "global_avg_pool", dtype)?;
        let p = BwdParams { gy: ctx.gy.cuda_ptr()?, gx: gx.cuda_ptr()?, at, scale, pad: 0 };
        map_call(bwd(), dtype, is_wide(dtype, rows.columns)).launch(gpu, grid, &p)?;
        Ok(vec![Some(gx)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let [n, h, w, c] = dims(inputs[0].shape());
        let mut y = vec![0.0; n * c];
        for (at, v) in x.iter().enumerate() {
            y[at / (h * w * c) * c + at % c] += v / (h * w) as f64;
        }
        Tensor::from_vec([n, c], y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let gy = gy.data::<f64>()?;
        let [_, h, w, c] = dims(inputs[0].shape());
        let gx =
            (0..inputs[0].elems()).map(|at| gy[at / (h * w * c) * c + at % c] / (h * w) as f64).collect();
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), gx)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64
    }
}

/// Corners and the end of a ResNet-50.
pub fn cases() -> Vec<Case> {
    let case = |label, shape: [usize; 4]| Case::new(label, GlobalAvgPool {}, vec![Input::normal("x", shape)]);
    vec![
        case("one pixel", [1, 1, 1, 1]),
        case("one pixel, channels", [3, 1, 1, 7]),
        case("odd", [2, 7, 5, 13]),
        case("whole chunks", [2, 7, 5, 16]),
        case("several parts", [1, 24, 23, 16]),
        Case::new(
            "large mean",
            GlobalAvgPool {},
            vec![Input::filled("x", [1, 32, 32, 3], Fill::Normal(1e3, 1.0))],
        ),
        Case::bench("resnet-50", GlobalAvgPool {}, vec![Input::normal("x", [32, 7, 7, 2048])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn wrong_uses_are_errors() {
        assert!(GlobalAvgPool {}.output_shape(&[[2, 3].into()]).unwrap_err().is_shape());
        assert!(GlobalAvgPool {}.output_shape(&[[2, 3, 0, 4].into()]).unwrap_err().is_shape());
    }

    #[test]
    fn global_avg_pool_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
