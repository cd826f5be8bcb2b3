//! Configurations from the flags of guided-diffusion's scripts.

use super::AdmConfig;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::str::FromStr;

/// Flags of the scripts that say nothing about the network: diffusion process, precision, memory.
const OTHER_FLAGS: &[&str] = &[
    "diffusion_steps",
    "noise_schedule",
    "predict_xstart",
    "rescale_learned_sigmas",
    "rescale_timesteps",
    "timestep_respacing",
    "use_checkpoint",
    "use_fp16",
    "use_kl",
];

/// The flags about the network, with the defaults of `model_and_diffusion_defaults`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Flags {
    image_size: usize,
    num_channels: usize,
    num_res_blocks: usize,
    num_heads: usize,
    num_heads_upsample: i64,
    num_head_channels: i64,
    attention_resolutions: String,
    channel_mult: String,
    dropout: f32,
    class_cond: bool,
    learn_sigma: bool,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
    use_new_attention_order: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Flags {
            image_size: 64,
            num_channels: 128,
            num_res_blocks: 2,
            num_heads: 4,
            num_heads_upsample: -1,
            num_head_channels: -1,
            attention_resolutions: "16,8".into(),
            channel_mult: String::new(),
            dropout: 0.0,
            class_cond: false,
            learn_sigma: false,
            use_scale_shift_norm: true,
            resblock_updown: false,
            use_new_attention_order: false,
        }
    }
}

impl AdmConfig {
    /// The configuration that guided-diffusion's `create_model` builds from these flags, e.g.
    /// `{"image_size": 256, "attention_resolutions": "32,16,8", ..}`. Absent flags have the scripts' defaults;
    /// -1 means "not set"; flags of the diffusion process are accepted and have no effect here.
    ///
    /// # Errors
    /// An unknown flag or a wrong value, or a network that cannot be built ([`AdmConfig::validate`]).
    pub fn from_flags(flags: &serde_json::Value) -> Result<Self> {
        let mut flags = flags.clone();
        if let Some(map) = flags.as_object_mut() {
            map.retain(|k, _| !OTHER_FLAGS.contains(&k.as_str()));
        }
        let f = Flags::deserialize(flags).map_err(|e| {
            Error::usage("these are not guided-diffusion's model flags")
                .with_source(e)
                .with_remedy("give the flags of its scripts with their names, e.g. `num_channels`")
        })?;
        let channel_mult = match &*f.channel_mult {
            "" => default_channel_mult(f.image_size)?,
            text => numbers("channel_mult", text)?,
        };
        let mut attention_ds = Vec::new();
        for resolution in numbers::<usize>("attention_resolutions", &f.attention_resolutions)? {
            attention_ds.push(f.image_size.checked_div(resolution).ok_or_else(|| {
                Error::usage("a resolution is 0")
                    .with_key("attention_resolutions")
                    .with_remedy("leave it out")
            })?);
        }
        attention_ds.sort_unstable();
        attention_ds.dedup();
        // A resolution above the image size belongs to no level.
        attention_ds.retain(|&ds| ds > 0);
        let config = AdmConfig {
            in_channels: 3,
            model_channels: f.num_channels,
            learn_sigma: f.learn_sigma,
            num_res_blocks: f.num_res_blocks,
            channel_mult,
            attention_ds,
            num_heads: f.num_heads,
            num_head_channels: unless_minus_one("num_head_channels", f.num_head_channels)?,
            num_heads_upsample: unless_minus_one("num_heads_upsample", f.num_heads_upsample)?,
            use_scale_shift_norm: f.use_scale_shift_norm,
            resblock_updown: f.resblock_updown,
            conv_resample: true,
            use_new_attention_order: f.use_new_attention_order,
            num_classes: f.class_cond.then_some(1000),
            dropout: f.dropout,
        };
        config.validate()?;
        Ok(config)
    }
}

/// `create_model`'s widths for an empty `channel_mult`.
fn default_channel_mult(image_size: usize) -> Result<Vec<f64>> {
    Ok(match image_size {
        512 => vec![0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        256 => vec![1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        128 => vec![1.0, 1.0, 2.0, 3.0, 4.0],
        64 => vec![1.0, 2.0, 3.0, 4.0],
        other => {
            return Err(Error::usage(format!("there is no default for image_size {other}"))
                .with_key("channel_mult")
                .with_remedy("give the widths, e.g. \"1,2,4\", or an image_size of 64, 128, 256 or 512"));
        }
    })
}

fn numbers<T: FromStr>(key: &str, text: &str) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let parsed: Result<Vec<T>, _> = text.split(',').map(|s| s.trim().parse()).collect();
    parsed.map_err(|e| {
        Error::usage(format!("\"{text}\" is no list of numbers"))
            .with_key(key)
            .with_source(e)
            .with_remedy("separate numbers by commas, e.g. \"32,16,8\"")
    })
}

fn unless_minus_one(key: &str, value: i64) -> Result<Option<usize>> {
    match value {
        -1 => Ok(None),
        v => usize::try_from(v).map(Some).map_err(|_| {
            Error::usage(format!("{v} is negative"))
                .with_key(key)
                .with_remedy("set it to -1 to leave it unset")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn released_flags_give_the_named_configurations() {
        let imagenet = json!({
            "image_size": 256, "num_channels": 256, "num_res_blocks": 2, "num_head_channels": 64,
            "attention_resolutions": "32,16,8", "learn_sigma": true, "resblock_updown": true, "use_fp16": true,
            "use_scale_shift_norm": true, "class_cond": false, "diffusion_steps": 1000, "noise_schedule": "linear",
        });
        assert_eq!(AdmConfig::from_flags(&imagenet).unwrap(), AdmConfig::imagenet256());
        let mut cond = imagenet;
        cond["class_cond"] = json!(true);
        assert_eq!(AdmConfig::from_flags(&cond).unwrap(), AdmConfig::imagenet256_cond());
        let bdd = json!({
            "image_size": 256, "num_channels": 128, "channel_mult": "1,1,2,2,3,4", "num_head_channels": 32,
            "attention_resolutions": "16, 8", "learn_sigma": true, "resblock_updown": true,
        });
        assert_eq!(AdmConfig::from_flags(&bdd).unwrap(), AdmConfig::bdd100k_128x256());
        let defaults = AdmConfig::from_flags(&json!({})).unwrap();
        assert_eq!((defaults.channel_mult.len(), &defaults.attention_ds[..]), (4, &[4, 8][..]));
        assert_eq!((defaults.num_head_channels, defaults.out_channels()), (None, 3));
    }

    #[test]
    fn wrong_flags_are_refused() {
        for flags in [
            json!({"num_chanels": 3}),
            json!({"image_size": 100}),
            json!({"channel_mult": "1,x"}),
            json!({"attention_resolutions": "0"}),
            json!({"attention_resolutions": ""}),
            json!({"num_head_channels": -2}),
            json!({"num_channels": 20}),
            json!([1]),
        ] {
            let e = AdmConfig::from_flags(&flags).unwrap_err();
            assert!(e.is_usage() && e.remedy().is_some(), "{flags}: {e}");
        }
    }
}
