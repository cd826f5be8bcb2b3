//! PLACEHOLDER attention_transfer
use super::*;
/// d
#[derive(Clone,Copy,Debug,PartialEq,Eq)]
pub enum AtDistance { /// l2
L2, /// ms
MeanSquare }
/// placeholder
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct AttentionTransfer { pub p: f32, pub distance: AtDistance }
impl Op for AttentionTransfer {
    fn name(&self) -> &'static str { "attention_transfer" }
    fn output_shape(&self, _: &[Shape]) -> Result<Shape> { unimplemented!() }
    fn forward(&self, _: &[&Tensor]) -> Result<Forward> { unimplemented!() }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> { unimplemented!() }
    fn backward(&self, _: &Backward<'_>) -> Result<Vec<Option<Tensor>>> { unimplemented!() }
    fn reference(&self, _: &[&Tensor]) -> Result<Tensor> { unimplemented!() }
    fn flops(&self, _: &[Shape]) -> u64 { 0 }
}
/// cases
pub fn cases() -> Vec<Case> { Vec::new() }
