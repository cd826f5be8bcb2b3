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
    for variants in [
        super::adaptive_avg_pool::variants,
        super::add::variants,
        super::attention::variants,
        super::attention_transfer::variants,
        super::avg_pool::variants,
        super::batch_norm::cuda::variants,
        super::cast::variants,
        super::concat::variants,
        super::conv2d::bias_grad_variants,
        super::conv2d::depthwise_variants,
        super::cross_entropy::variants,
        super::dice::variants,
        super::diffusion_loss::variants,
        super::drop_path::variants,
        super::dropout::variants,
        super::embedding::variants,
        super::feature_loss::variants,
        super::gelu::variants,
        super::global_avg_pool::variants,
        super::group_norm::cuda::variants,
        super::layer_norm::cuda::variants,
        super::max_pool::variants,
        super::relu::variants,
        super::resize::variants,
        super::scale::variants,
        super::silu::variants,
        super::softmax::variants,
        super::weighted_sum::variants,
        super::whiten_mse::variants,
    ] {
        all.extend(variants());
    }
    all.extend(super::untaped::UNTAPED.iter().flat_map(|e| (e.variants)()));
    all
}
