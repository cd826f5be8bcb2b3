//! PLACEHOLDER conv2d
use super::*;

/// placeholder
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Conv2d { pub stride: [usize; 2], pub pad: [usize; 2], pub dilation: [usize; 2], pub groups: usize }
impl Op for Conv2d {
    fn name(&self) -> &'static str { "conv2d" }
    fn output_shape(&self, _: &[Shape]) -> Result<Shape> { unimplemented!() }
    fn forward(&self, _: &[&Tensor]) -> Result<Forward> { unimplemented!() }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> { unimplemented!() }
    fn backward(&self, _: &Backward<'_>) -> Result<Vec<Option<Tensor>>> { unimplemented!() }
    fn reference(&self, _: &[&Tensor]) -> Result<Tensor> { unimplemented!() }
    fn flops(&self, _: &[Shape]) -> u64 { 0 }
}
/// cases
pub fn cases() -> Vec<Case> { Vec::new() }
