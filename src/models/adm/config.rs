//! What an ADM U-Net looks like.

use super::layout::Layout;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Groups of every group normalisation (guided-diffusion fixes them).
pub(super) const GROUPS: usize = 32;
/// Classes of the class-conditional ImageNet models.
const IMAGENET_CLASSES: usize = 1000;

/// The architecture of an ADM U-Net. The fields are the constructor arguments of guided-diffusion's `UNetModel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmConfig {
    /// Channels of the noisy image.
    #[serde(default = "default_in_channels")]
    pub in_channels: usize,
    /// Width that `channel_mult` multiplies; also the width of the sinusoidal time embedding.
    pub model_channels: usize,
    /// Whether the network also predicts the variance, which doubles its output channels.
    pub learn_sigma: bool,
    /// ResBlocks per encoder level; the decoder has one more.
    pub num_res_blocks: usize,
    /// Width of every level, finest first, as a multiple of `model_channels`. Each further level halves height and
    /// width.
    pub channel_mult: Vec<f64>,
    /// Down-sampling factors at which ResBlocks are followed by attention. Factors that no level has are ignored.
    pub attention_ds: Vec<usize>,
    /// Attention heads where `num_head_channels` is absent.
    #[serde(default = "default_num_heads")]
    pub num_heads: usize,
    /// Channels per attention head; takes precedence over `num_heads`.
    #[serde(default)]
    pub num_head_channels: Option<usize>,
    /// Attention heads of the decoder where `num_head_channels` is absent; `num_heads` if absent too.
    #[serde(default)]
    pub num_heads_upsample: Option<usize>,
    /// Whether the time embedding scales and shifts after the second norm of a ResBlock, rather than being added
    /// before it.
    pub use_scale_shift_norm: bool,
    /// Whether ResBlocks resample, rather than `Downsample` and `Upsample` layers.
    pub resblock_updown: bool,
    /// Whether `Downsample` and `Upsample` layers convolve. Has no effect with `resblock_updown`.
    #[serde(default = "default_true")]
    pub conv_resample: bool,
    /// Whether the channels of queries, keys and values are split before the heads (new) or after them (legacy).
    #[serde(default)]
    pub use_new_attention_order: bool,
    /// Number of classes of a class-conditional network.
    #[serde(default)]
    pub num_classes: Option<usize>,
    /// Dropout rate inside ResBlocks, in training.
    #[serde(default)]
    pub dropout: f32,
}

fn default_in_channels() -> usize {
    3
}
fn default_num_heads() -> usize {
    4
}
fn default_true() -> bool {
    true
}

/// Makes a configuration.
type Constructor = fn() -> AdmConfig;

impl AdmConfig {
    /// Every named configuration.
    pub const NAMED: &'static [(&'static str, Constructor)] = &[
        ("imagenet256", Self::imagenet256),
        ("imagenet256_cond", Self::imagenet256_cond),
        ("lsun256", Self::lsun256),
        ("ffhq256", Self::ffhq256),
        ("bdd100k_128x256", Self::bdd100k_128x256),
        ("small", Self::small),
        ("tiny", Self::tiny),
        ("scenes32", Self::scenes32),
    ];

    /// The configuration of a name in [`AdmConfig::NAMED`].
    ///
    /// # Errors
    /// There is no such name.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::NAMED.iter().find(|(n, _)| *n == name);
        found.map(|(_, make)| make()).ok_or_else(|| {
            let known: Vec<&str> = Self::NAMED.iter().map(|(n, _)| *n).collect();
            Error::usage(format!("there is no ADM configuration `{name}`"))
                .with_remedy(format!("choose one of {}", known.join(", ")))
        })
    }

    /// guided-diffusion's unconditional ImageNet 256x256 model (`256x256_diffusion_uncond.pt`), 552.8 M parameters.
    pub fn imagenet256() -> Self {
        AdmConfig {
            in_channels: 3,
            model_channels: 256,
            learn_sigma: true,
            num_res_blocks: 2,
            channel_mult: vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            attention_ds: vec![8, 16, 32],
            num_heads: 4,
            num_head_channels: Some(64),
            num_heads_upsample: None,
            use_scale_shift_norm: true,
            resblock_updown: true,
            conv_resample: true,
            use_new_attention_order: false,
            num_classes: None,
            dropout: 0.0,
        }
    }

    /// guided-diffusion's class-conditional ImageNet 256x256 model (`256x256_diffusion.pt`).
    pub fn imagenet256_cond() -> Self {
        AdmConfig { num_classes: Some(IMAGENET_CLASSES), ..Self::imagenet256() }
    }

    /// guided-diffusion's LSUN 256x256 models (`lsun_bedroom.pt`, `lsun_cat.pt`, `lsun_horse.pt`).
    pub fn lsun256() -> Self {
        AdmConfig { dropout: 0.1, ..Self::imagenet256() }
    }

    /// The FFHQ 256x256 model of ddpm-segmentation (`ffhq.pt`).
    pub fn ffhq256() -> Self {
        Self::lsun256()
    }

    /// The BDD100K 128x256 teacher of DreamTeacher (Table 16). The table's attention resolutions 16 and 8 are read
    /// relative to the width 256, i.e. at factors 16 and 32.
    pub fn bdd100k_128x256() -> Self {
        AdmConfig {
            model_channels: 128,
            channel_mult: vec![1.0, 1.0, 2.0, 2.0, 3.0, 4.0],
            attention_ds: vec![16, 32],
            num_head_channels: Some(32),
            ..Self::imagenet256()
        }
    }

    /// A network for experiments on one GPU, with the six levels of the 256x256 model.
    pub fn small() -> Self {
        AdmConfig { model_channels: 64, num_head_channels: Some(32), ..Self::imagenet256() }
    }

    /// A network for a CPU: six levels, so that it has the strides 4, 8, 16 and 32, with one ResBlock each.
    pub fn tiny() -> Self {
        AdmConfig {
            model_channels: 32,
            num_res_blocks: 1,
            channel_mult: vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0],
            attention_ds: vec![16, 32],
            num_head_channels: Some(32),
            ..Self::imagenet256()
        }
    }

    /// The teacher that dtk brings along, for images of 32 pixels: four levels with strides 1, 2, 4 and 8, 1.5 M parameters.
    pub fn scenes32() -> Self {
        AdmConfig {
            model_channels: 32,
            num_res_blocks: 1,
            channel_mult: vec![1.0, 2.0, 2.0, 2.0],
            attention_ds: vec![4, 8],
            num_head_channels: Some(32),
            resblock_updown: false,
            conv_resample: false,
            ..Self::imagenet256()
        }
    }

    /// Channels of the prediction: noise, and with `learn_sigma` as many for the variance.
    pub fn out_channels(&self) -> usize {
        self.in_channels * if self.learn_sigma { 2 } else { 1 }
    }

    /// Channels of the time embedding.
    pub fn embedding_channels(&self) -> usize {
        4 * self.model_channels
    }

    /// Number of resolutions.
    pub fn levels(&self) -> usize {
        self.channel_mult.len()
    }

    /// What height and width must be divisible by.
    pub fn max_stride(&self) -> usize {
        1 << (self.levels() - 1)
    }

    /// Channels of a level, truncated as guided-diffusion does.
    pub(super) fn channels(&self, level: usize) -> usize {
        (self.channel_mult[level] * self.model_channels as f64) as usize
    }

    /// Heads of attention over `channels` channels.
    pub(super) fn heads(&self, channels: usize, decoder: bool) -> usize {
        match self.num_head_channels {
            Some(per_head) => channels / per_head,
            None if decoder => self.num_heads_upsample.unwrap_or(self.num_heads),
            None => self.num_heads,
        }
    }

    /// Checks that a network of this configuration can be built.
    ///
    /// # Errors
    /// A field is zero or out of range, a level's channels are no multiple of 32 (the groups of every norm), or
    /// attention heads do not divide the channels.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, message: String, remedy: &str| {
            Err(Error::usage(message).with_key(key).with_remedy(remedy))
        };
        for (key, value) in [
            ("in_channels", self.in_channels),
            ("model_channels", self.model_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("num_heads", self.num_heads),
            ("num_head_channels", self.num_head_channels.unwrap_or(1)),
            ("num_heads_upsample", self.num_heads_upsample.unwrap_or(1)),
            ("num_classes", self.num_classes.unwrap_or(1)),
        ] {
            if value == 0 {
                return refuse(key, "must not be 0".into(), "set it to 1 or more");
            }
        }
        if !(1..=16).contains(&self.levels()) {
            return refuse(
                "channel_mult",
                format!("has {} levels, which is not 1 to 16", self.levels()),
                "give one factor per resolution, finest first",
            );
        }
        for (level, mult) in self.channel_mult.iter().enumerate() {
            let c = self.channels(level);
            if c == 0 || !c.is_multiple_of(GROUPS) {
                return refuse(
                    "channel_mult",
                    format!("level {level} has {mult} x {} = {c} channels", self.model_channels),
                    "make the channels of every level a multiple of 32, the number of groups of the norms",
                );
            }
        }
        if !self.model_channels.is_multiple_of(2) {
            return refuse(
                "model_channels",
                format!("{} is odd", self.model_channels),
                "make it even: the time embedding has as many cosines as sines",
            );
        }
        if let Some(ds) = self.attention_ds.iter().find(|ds| !ds.is_power_of_two()) {
            return refuse(
                "attention_ds",
                format!("{ds} is no power of two"),
                "give down-sampling factors (image size divided by resolution), not resolutions",
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse(
                "dropout",
                format!("{} is no rate", self.dropout),
                "set it to 0 or more and less than 1",
            );
        }
        for (channels, heads) in Layout::new(self).attentions() {
            let divides = match self.num_head_channels {
                Some(per_head) => channels.is_multiple_of(per_head),
                None => channels.is_multiple_of(heads),
            };
            if !divides {
                let (key, n) = match self.num_head_channels {
                    Some(n) => ("num_head_channels", n),
                    None => ("num_heads", heads),
                };
                return refuse(
                    key,
                    format!("{n} does not divide the {channels} channels of an attention block"),
                    "choose a divisor of the channels of every level with attention and of the last level",
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_configurations_are_valid_and_survive_serialisation() {
        for (name, make) in AdmConfig::NAMED {
            let c = AdmConfig::named(name).unwrap();
            assert_eq!(c, make());
            c.validate().unwrap();
            let text = toml::to_string(&c).unwrap();
            assert_eq!(toml::from_str::<AdmConfig>(&text).unwrap(), c, "{name}");
        }
        assert!(AdmConfig::named("imagenet257").unwrap_err().remedy().unwrap().contains("imagenet256"));
        let unknown = toml::to_string(&AdmConfig::tiny()).unwrap() + "\nchanels = 3\n";
        assert!(toml::from_str::<AdmConfig>(&unknown).is_err());
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let base = AdmConfig::tiny;
        let bad = [
            ("in_channels", AdmConfig { in_channels: 0, ..base() }),
            ("num_res_blocks", AdmConfig { num_res_blocks: 0, ..base() }),
            ("channel_mult", AdmConfig { channel_mult: vec![], ..base() }),
            ("channel_mult", AdmConfig { channel_mult: vec![1.0; 17], ..base() }),
            ("channel_mult", AdmConfig { channel_mult: vec![1.0, 1.5], ..base() }),
            ("channel_mult", AdmConfig { channel_mult: vec![1.0, -1.0], ..base() }),
            ("channel_mult", AdmConfig { channel_mult: vec![1.0, f64::NAN], ..base() }),
            ("attention_ds", AdmConfig { attention_ds: vec![8, 24], ..base() }),
            ("attention_ds", AdmConfig { attention_ds: vec![0], ..base() }),
            ("dropout", AdmConfig { dropout: 1.0, ..base() }),
            ("dropout", AdmConfig { dropout: f32::NAN, ..base() }),
            ("num_head_channels", AdmConfig { num_head_channels: Some(48), ..base() }),
            ("num_heads", AdmConfig { num_head_channels: None, num_heads: 3, ..base() }),
            ("num_classes", AdmConfig { num_classes: Some(0), ..base() }),
        ];
        for (key, config) in bad {
            let e = config.validate().unwrap_err();
            assert!(e.is_usage() && e.key() == Some(key) && e.remedy().is_some(), "{key}: {e}");
        }
        // Attention of the middle block has to fit even where no level has attention.
        let middle = AdmConfig { attention_ds: vec![], num_head_channels: Some(48), ..base() };
        assert!(middle.validate().is_err());
    }
}
