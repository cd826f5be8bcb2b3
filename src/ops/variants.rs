//! The kernel variants that operations launch on a device.

use crate::gpu::Defines;

/// One variant of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// File in `kernels/`.
    pub source: &'static str,
    /// Entry in it.
    pub entry: &'static str,
    /// What makes the variant.
    pub defines: Defines,
}

/// Every variant that an operation may ask for. `dtk warm` compiles them; the tests compile, snapshot and simulate them.
pub fn kernel_variants() -> Vec<Variant> {
    let mut all = super::implicit_gemm::variants();
    all.extend(super::conv2d::bias_grad_variants());
    all.extend(super::conv2d::depthwise_variants());
    all
}
