//! PLACEHOLDER batch_norm
use super::*;
/// m
#[derive(Clone,Copy,Debug,PartialEq,Eq)]
pub enum BatchNormMode { /// t
Train, /// e
Eval }
/// placeholder
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct BatchNorm { pub mode: BatchNormMode, pub eps: f32, pub relu: bool }
impl Op for BatchNorm {
    fn name(&self) -> &'static str { "batch_norm" }
    fn output_shape(&self, _: &[Shape]) -> Result<Shape> { unimplemented!() }
    fn forward(&self, _: &[&Tensor]) -> Result<Forward> { unimplemented!() }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> { unimplemented!() }
    fn backward(&self, _: &Backward<'_>) -> Result<Vec<Option<Tensor>>> { unimplemented!() }
    fn reference(&self, _: &[&Tensor]) -> Result<Tensor> { unimplemented!() }
    fn flops(&self, _: &[Shape]) -> u64 { 0 }
}
/// cases
pub fn cases() -> Vec<Case> { Vec::new() }
