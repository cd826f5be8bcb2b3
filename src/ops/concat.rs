//! PLACEHOLDER concat
use super::*;

/// placeholder
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Concat {  }
impl Op for Concat {
    fn name(&self) -> &'static str { "concat" }
    fn output_shape(&self, _: &[Shape]) -> Result<Shape> { unimplemented!() }
    fn forward(&self, _: &[&Tensor]) -> Result<Forward> { unimplemented!() }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> { unimplemented!() }
    fn backward(&self, _: &Backward<'_>) -> Result<Vec<Option<Tensor>>> { unimplemented!() }
    fn reference(&self, _: &[&Tensor]) -> Result<Tensor> { unimplemented!() }
    fn flops(&self, _: &[Shape]) -> u64 { 0 }
}
/// cases
pub fn cases() -> Vec<Case> { Vec::new() }
