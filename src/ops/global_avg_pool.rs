//! Mean over all pixels of each image and channel.
//!
//! ```text
//! y[n,c]      = 1/(H W) sum over h, w of x[n,h,w,c]
//! gx[n,h,w,c] = gy[n,c] / (H W)
//! ```

use super::adaptive_avg_pool::{bin_means, bin_means_backward};
use super::support::{dims, expect_inputs, images};
use super::*;

/// Global average pooling: `x [N, H, W, C] -> [N, C]`.
#[derive(Clone, Debug)]
pub struct GlobalAvgPool {}

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

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0].data::<f64>()?;
        let [n, h, w, c] = dims(inputs[0].shape());
        let mut y = vec![0.0; n * c];
        for (at, v) in x.iter().enumerate() {
            y[at / (h * w * c) * c + at % c] += v / (h * w) as f64;
        }
        Tensor::from_vec([n, c], y)
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
