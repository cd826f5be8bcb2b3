//! Which parameters weight decay applies to.

/// Whether weight decay applies to the parameter `name` that has `rank` dimensions in its file (PyTorch) shape.
///
/// SparK's rule: not to vectors and scalars (norm gains, biases), nor to names that end in `.bias` or contain `gamma`
/// (ConvNeXt's layer scale).
pub fn weight_decays(name: &str, rank: usize) -> bool {
    rank > 1 && !name.ends_with(".bias") && !name.contains("gamma")
}

#[cfg(test)]
mod tests {
    use super::weight_decays;

    #[test]
    fn rule() {
        assert!(weight_decays("layer1.0.conv1.weight", 4));
        assert!(weight_decays("fc.weight", 2));
        assert!(!weight_decays("bn1.weight", 1));
        assert!(!weight_decays("fc.bias", 1));
        assert!(!weight_decays("head.bias", 2));
        assert!(!weight_decays("stages.0.blocks.1.gamma", 4));
        assert!(!weight_decays("scale", 0));
    }
}
