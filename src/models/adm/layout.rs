//! Which blocks a configuration has. Building the network and describing its taps both start here.

use super::AdmConfig;

/// A block of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EncoderBlock {
    /// The first convolution.
    Stem { c_out: usize },
    /// A ResBlock, followed by attention with this many heads.
    Res { c_in: usize, c_out: usize, heads: Option<usize> },
    /// Halves height and width.
    Down { channels: usize },
}

/// A block of the decoder: a ResBlock on the concatenation of the previous value and a skip, perhaps attention,
/// and perhaps an up-sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderBlock {
    /// Channels that come in, the skip's included.
    pub c_in: usize,
    /// Channels that go out.
    pub channels: usize,
    /// Heads of the attention, if there is one.
    pub heads: Option<usize>,
    /// Image height over feature height, before the up-sampler.
    pub stride: usize,
    /// Whether the block ends by doubling height and width: it is the last one of its level.
    pub up: bool,
}

/// All blocks of a network.
pub(super) struct Layout {
    pub(super) encoder: Vec<EncoderBlock>,
    /// Channels and heads of the middle block.
    pub(super) middle: (usize, usize),
    pub(super) decoder: Vec<DecoderBlock>,
}

impl Layout {
    /// Follows the constructor of guided-diffusion's `UNetModel`.
    pub(super) fn new(config: &AdmConfig) -> Self {
        let attends = |stride: usize| config.attention_ds.contains(&stride);
        let mut ch = config.channels(0);
        let mut encoder = vec![EncoderBlock::Stem { c_out: ch }];
        let mut skips = vec![ch];
        for level in 0..config.levels() {
            for _ in 0..config.num_res_blocks {
                let c_out = config.channels(level);
                let heads = attends(1 << level).then(|| config.heads(c_out, false));
                encoder.push(EncoderBlock::Res { c_in: ch, c_out, heads });
                skips.push(c_out);
                ch = c_out;
            }
            if level + 1 < config.levels() {
                encoder.push(EncoderBlock::Down { channels: ch });
                skips.push(ch);
            }
        }
        let middle = (ch, config.heads(ch, false));
        let mut decoder = Vec::with_capacity(skips.len());
        for level in (0..config.levels()).rev() {
            for i in 0..=config.num_res_blocks {
                let c_in = ch + skips.pop().expect("the decoder has as many blocks as the encoder");
                ch = config.channels(level);
                let heads = attends(1 << level).then(|| config.heads(ch, true));
                let up = level > 0 && i == config.num_res_blocks;
                decoder.push(DecoderBlock { c_in, channels: ch, heads, stride: 1 << level, up });
            }
        }
        Layout { encoder, middle, decoder }
    }

    /// Channels and heads of every attention block.
    pub(super) fn attentions(&self) -> impl Iterator<Item = (usize, usize)> {
        let encoder = self.encoder.iter().filter_map(|b| match *b {
            EncoderBlock::Res { c_out, heads, .. } => Some((c_out, heads?)),
            _ => None,
        });
        let decoder = self.decoder.iter().filter_map(|b| Some((b.channels, b.heads?)));
        encoder.chain([self.middle]).chain(decoder)
    }
}

impl AdmConfig {
    /// The blocks of the decoder in order (`output_blocks.0` first).
    pub fn decoder(&self) -> Vec<DecoderBlock> {
        Layout::new(self).decoder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet256_has_the_published_decoder() {
        let config = AdmConfig::imagenet256();
        let l = Layout::new(&config);
        assert_eq!((l.encoder.len(), l.middle, l.decoder.len()), (18, (1024, 16), 18));
        let c_in: Vec<usize> = l.decoder.iter().map(|b| b.c_in).collect();
        assert_eq!(
            c_in,
            [
                2048, 2048, 2048, 2048, 2048, 1536, 1536, 1024, 1024, 1024, 1024, 768, 768, 512, 512, 512,
                512, 512
            ]
        );
        let ups: Vec<usize> = (0..18).filter(|&i| l.decoder[i].up).collect();
        assert_eq!(ups, [2, 5, 8, 11, 14]);
        assert_eq!((l.decoder[11].stride, l.decoder[11].channels, l.decoder[11].heads), (4, 512, None));
        assert_eq!((l.decoder[17].stride, l.decoder[8].heads), (1, Some(8)));
        assert_eq!(l.attentions().count(), 16);
    }
}
