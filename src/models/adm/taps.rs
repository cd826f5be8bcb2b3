//! Which feature maps of the decoder are taken.

use super::AdmConfig;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// On which side of a block's up-sampler its feature map is taken. Without an up-sampler both are the block's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapPosition {
    /// Before the up-sampler.
    PreUp,
    /// After it: the output of the block.
    PostUp,
}

/// A feature map of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    /// Index in `output_blocks`, from 0.
    pub block: usize,
    /// Before or after the up-sampler.
    pub position: TapPosition,
}

impl Tap {
    /// Before the up-sampler of `block`.
    pub fn pre_up(block: usize) -> Self {
        Tap { block, position: TapPosition::PreUp }
    }

    /// The output of `block`.
    pub fn post_up(block: usize) -> Self {
        Tap { block, position: TapPosition::PostUp }
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            TapPosition::PreUp => write!(f, "output_blocks.{}.pre_up", self.block),
            TapPosition::PostUp => write!(f, "output_blocks.{}", self.block),
        }
    }
}

/// A tap with the shape of what comes out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapInfo {
    /// Which feature map.
    pub tap: Tap,
    /// Image height over feature height.
    pub stride: usize,
    /// Channels.
    pub channels: usize,
}

/// An ordered list of taps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Names that [`Taps::preset`] knows.
    pub const PRESETS: &'static [&'static str] =
        &["dreamteacher", "ddpmseg", "paper_post_up", "paper_zero_based"];

    /// Any list, in the order in which the features are wanted.
    pub fn new(taps: impl Into<Vec<Tap>>) -> Self {
        Taps(taps.into())
    }

    /// A preset by its name.
    ///
    /// # Errors
    /// The name is unknown, or the network lacks one of the blocks.
    pub fn preset(name: &str, config: &AdmConfig) -> Result<Self> {
        let taps = match name {
            "dreamteacher" => return Self::dreamteacher(config),
            "ddpmseg" => Self::ddpmseg(),
            "paper_post_up" => Self::paper_post_up(),
            "paper_zero_based" => Self::paper_zero_based(),
            _ => {
                return Err(Error::usage(format!("there is no tap preset `{name}`"))
                    .with_remedy(format!("choose one of {}", Self::PRESETS.join(", "))));
            }
        };
        taps.describe(config)?;
        Ok(taps)
    }

    /// DreamTeacher's "decoder blocks 3, 6, 9, 12", read as the last block of every level before it is up-sampled:
    /// the only reading that has the strides 32, 16, 8 and 4 of the paper. Networks that lack one of these strides
    /// give all levels but the full resolution. Coarse to fine.
    ///
    /// # Errors
    /// The network has a single level.
    pub fn dreamteacher(config: &AdmConfig) -> Result<Self> {
        config.validate()?;
        let decoder = config.decoder();
        let last = |strides: &dyn Fn(usize) -> bool| -> Vec<Tap> {
            let of_level = |&(_, b): &(usize, &super::DecoderBlock)| b.up && strides(b.stride);
            decoder.iter().enumerate().filter(of_level).map(|(i, _)| Tap::pre_up(i)).collect()
        };
        let paper = last(&|s| [32, 16, 8, 4].contains(&s));
        let taps = if paper.len() == 4 { paper } else { last(&|_| true) };
        if taps.is_empty() {
            return Err(Error::usage("a network with a single level has no map below full resolution")
                .with_key("channel_mult")
                .with_remedy("give the network more levels, or list the taps"));
        }
        Ok(Taps(taps))
    }

    /// The outputs of blocks 5, 6, 7, 8 and 12 (from 0), as ddpm-segmentation hooks them.
    pub fn ddpmseg() -> Self {
        Taps([5, 6, 7, 8, 12].map(Tap::post_up).to_vec())
    }

    /// The paper's "3, 6, 9, 12" counted from 1, after the up-samplers: strides 16, 8, 4 and 2.
    pub fn paper_post_up() -> Self {
        Taps([2, 5, 8, 11].map(Tap::post_up).to_vec())
    }

    /// The paper's "3, 6, 9, 12" counted from 0, as ddpm-segmentation counts: strides 16, 8, 4 and 2.
    pub fn paper_zero_based() -> Self {
        Taps([3, 6, 9, 12].map(Tap::post_up).to_vec())
    }

    /// The taps in order.
    pub fn as_slice(&self) -> &[Tap] {
        &self.0
    }

    /// Strides and channels, in order.
    ///
    /// # Errors
    /// There is no tap, or a block that the network does not have.
    pub fn describe(&self, config: &AdmConfig) -> Result<Vec<TapInfo>> {
        if self.0.is_empty() {
            return Err(Error::usage("no tap is given")
                .with_key("taps")
                .with_remedy("list at least one block"));
        }
        config.validate()?;
        let decoder = config.decoder();
        let describe = |&tap: &Tap| {
            let b = decoder.get(tap.block).ok_or_else(|| {
                Error::usage(format!(
                    "{tap} does not exist: the network has {} decoder blocks",
                    decoder.len()
                ))
                .with_key("taps")
                .with_remedy(format!("choose blocks from 0 to {}", decoder.len() - 1))
            })?;
            let doubled = b.up && tap.position == TapPosition::PostUp;
            Ok(TapInfo { tap, stride: if doubled { b.stride / 2 } else { b.stride }, channels: b.channels })
        };
        self.0.iter().map(describe).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strides_and_channels(taps: &Taps, config: &AdmConfig) -> Vec<(usize, usize)> {
        taps.describe(config).unwrap().iter().map(|i| (i.stride, i.channels)).collect()
    }

    #[test]
    fn presets_of_the_256_model() {
        let c = AdmConfig::imagenet256();
        let taps = Taps::dreamteacher(&c).unwrap();
        assert_eq!(taps, Taps::new([2, 5, 8, 11].map(Tap::pre_up)));
        assert_eq!(strides_and_channels(&taps, &c), [(32, 1024), (16, 1024), (8, 512), (4, 512)]);
        assert_eq!(
            strides_and_channels(&Taps::ddpmseg(), &c),
            [(8, 1024), (8, 512), (8, 512), (4, 512), (2, 256)]
        );
        assert_eq!(
            strides_and_channels(&Taps::paper_post_up(), &c),
            [(16, 1024), (8, 1024), (4, 512), (2, 512)]
        );
        assert_eq!(
            strides_and_channels(&Taps::paper_zero_based(), &c),
            [(16, 1024), (8, 512), (4, 512), (2, 256)]
        );
        for name in Taps::PRESETS {
            Taps::preset(name, &c).unwrap();
        }
    }

    #[test]
    fn shallower_networks_give_what_they_have() {
        let levels = |n| AdmConfig { channel_mult: vec![1.0; n], ..AdmConfig::tiny() };
        let strides = |n| -> Vec<usize> {
            let c = levels(n);
            let taps = Taps::dreamteacher(&c).unwrap();
            taps.describe(&c).unwrap().iter().map(|i| i.stride).collect()
        };
        assert_eq!(strides(7), [32, 16, 8, 4]);
        assert_eq!(strides(6), [32, 16, 8, 4]);
        assert_eq!(strides(5), [16, 8, 4, 2]);
        assert_eq!(strides(2), [2]);
        assert!(Taps::dreamteacher(&levels(1)).is_err());
    }

    #[test]
    fn impossible_taps_are_refused() {
        let c = AdmConfig::tiny();
        let e = Taps::new([Tap::pre_up(12)]).describe(&c).unwrap_err();
        assert!(e.to_string().contains("12 decoder blocks"), "{e}");
        assert!(Taps::new([]).describe(&c).is_err());
        assert!(Taps::preset("ddpmseg", &c).is_err(), "the tiny network has blocks 0 to 11");
        assert!(Taps::preset("x", &c).unwrap_err().remedy().unwrap().contains("ddpmseg"));
        let json = r#"[{"block": 2, "position": "pre_up"}]"#;
        assert_eq!(serde_json::from_str::<Taps>(json).unwrap(), Taps::new([Tap::pre_up(2)]));
    }
}
