//! The convolution that leaves the statistics of its result for the norm that follows.

use super::{Conv2d, Geometry, cuda};
use crate::base::Shape;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::{Backward, Forward, Op};
use crate::tensor::Tensor;

/// A [`Conv2d`] that on a device with one group also gives as `aux` mean and sum of squared deviations of every image and
/// channel of the result, f32 `[n, co, 2]`, from the sums before they are written: a batch norm in training takes them as its
/// `stats`. Elsewhere it gives no `aux`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvStats(pub Conv2d);

impl Op for ConvStats {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        self.0.output_shape(inputs)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        self.0.forward(inputs)
    }

    fn save(&self, inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        self.0.save(inputs, y)
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.0.backward(ctx)
    }

    fn has_kernel(&self) -> bool {
        self.0.has_kernel()
    }

    fn is_operand(&self, input: usize) -> bool {
        self.0.is_operand(input)
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let out = cuda::forward(&Geometry::new(&self.0, &shapes)?, gpu, inputs, true)?;
        Ok(Forward { y: out.y, extra: Vec::new(), aux: out.stats.into_iter().collect() })
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.0.launch_backward(gpu, ctx)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.0.reference(inputs)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        self.0.reference_gradients(inputs, gy)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        self.0.flops(inputs)
    }

    fn convolution(&self, inputs: &[Shape]) -> Option<Geometry> {
        self.0.convolution(inputs)
    }

    fn scratch_bytes(&self, inputs: &[Shape]) -> usize {
        self.0.scratch_bytes(inputs)
    }
}
