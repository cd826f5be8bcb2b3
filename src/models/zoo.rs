//! The networks that dtk knows by name, with the facts a user needs to choose one and to get its weights.

use super::adm::{AdmConfig, AdmUnet};
use super::backbone::{Backbone, BackboneConfig};
use crate::error::Result;
use crate::nn::Builder;

/// What a network is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A frozen generative network whose features are distilled.
    Teacher,
    /// A backbone that learns from them.
    Student,
}

/// How a network's configuration is made.
#[derive(Clone, Copy, Debug)]
pub enum Config {
    /// The name of an [`AdmConfig`].
    Adm(&'static str),
    /// The name of a [`BackboneConfig`]; in the table with a classifier for ImageNet's 1000 classes, as published.
    Backbone(&'static str),
}

/// A feature level: what a teacher's tap gives, or a student's stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Input pixels per feature pixel.
    pub stride: usize,
    /// Channels.
    pub channels: usize,
    /// Where the map comes from.
    pub from: &'static str,
}

/// One network of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name on the command line and in recipes.
    pub name: &'static str,
    /// What it is used as.
    pub kind: Kind,
    /// How its configuration is made.
    pub config: Config,
    /// Number of learned parameters (buffers not counted; students with their classifier).
    pub parameters: usize,
    /// Name of the recipe it is used in by default, or `"none"`.
    pub recipe: &'static str,
    /// Licence of the public weights.
    pub licence: &'static str,
    /// Where the public weights are.
    pub weights: &'static str,
    /// The feature levels that distillation pairs, fine to coarse.
    pub levels: [Level; 4],
}

impl Entry {
    /// Registers the network's parameters below `b`'s path.
    ///
    /// # Errors
    /// Never for entries of [`ZOO`].
    pub fn register(&self, b: &mut Builder<'_>) -> Result<()> {
        match self.config {
            Config::Adm(name) => AdmUnet::new(b, &AdmConfig::named(name)?).map(drop),
            Config::Backbone(name) => {
                Backbone::new(b, &BackboneConfig::named(name)?.with_classes(1000)).map(drop)
            }
        }
    }
}

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ZOO.iter().find(|e| e.name == name)
}

const fn stages(from: [&'static str; 4], strides: [usize; 4], channels: [usize; 4]) -> [Level; 4] {
    [
        Level { stride: strides[0], channels: channels[0], from: from[0] },
        Level { stride: strides[1], channels: channels[1], from: from[1] },
        Level { stride: strides[2], channels: channels[2], from: from[2] },
        Level { stride: strides[3], channels: channels[3], from: from[3] },
    ]
}

const fn resnet(
    name: &'static str,
    parameters: usize,
    weights: &'static str,
    strides: [usize; 4],
    channels: [usize; 4],
) -> Entry {
    Entry {
        name,
        kind: Kind::Student,
        config: Config::Backbone(name),
        parameters,
        recipe: if strides[0] == 2 { "none" } else { "imagenet" },
        licence: if strides[0] == 2 {
            "no public weights"
        } else {
            "BSD-3-Clause (torchvision), Apache-2.0 (timm)"
        },
        weights,
        levels: stages(["layer1", "layer2", "layer3", "layer4"], strides, channels),
    }
}

const fn convnext(name: &'static str, parameters: usize, weights: &'static str, width: usize) -> Entry {
    Entry {
        name,
        kind: Kind::Student,
        config: Config::Backbone(name),
        parameters,
        recipe: "imagenet_convnext",
        licence: "MIT (official repository), Apache-2.0 (timm)",
        weights,
        levels: stages(
            ["stages.0", "stages.1", "stages.2", "stages.3"],
            [4, 8, 16, 32],
            [width, 2 * width, 4 * width, 8 * width],
        ),
    }
}

/// Strides of networks for images of 224 pixels and more.
const COARSE: [usize; 4] = [4, 8, 16, 32];
const BASIC: [usize; 4] = [64, 128, 256, 512];
const BOTTLENECK: [usize; 4] = [256, 512, 1024, 2048];

/// A 256x256 ADM, or one with its blocks, and DreamTeacher's taps.
const fn adm(
    names: [&'static str; 2],
    parameters: usize,
    recipe: &'static str,
    weights: [&'static str; 2],
    channels: [usize; 4],
) -> Entry {
    Entry {
        name: names[0],
        kind: Kind::Teacher,
        config: Config::Adm(names[1]),
        parameters,
        recipe,
        licence: weights[0],
        weights: weights[1],
        levels: stages(
            [
                "output_blocks.11.pre_up",
                "output_blocks.8.pre_up",
                "output_blocks.5.pre_up",
                "output_blocks.2.pre_up",
            ],
            COARSE,
            channels,
        ),
    }
}

const ADM_256: usize = 552_814_086;
const ADM_256_TAPS: [usize; 4] = [512, 512, 1024, 1024];
const MIT: &str = "MIT (repository)";

/// Every network, teachers first.
pub const ZOO: &[Entry] = &[
    adm(
        ["adm_imagenet256", "imagenet256"],
        ADM_256,
        "imagenet",
        [MIT, "guided-diffusion release: 256x256_diffusion_uncond.pt"],
        ADM_256_TAPS,
    ),
    adm(
        ["adm_lsun256", "lsun256"],
        ADM_256,
        "lsun",
        [MIT, "guided-diffusion release: lsun_bedroom.pt, lsun_cat.pt, lsun_horse.pt"],
        ADM_256_TAPS,
    ),
    adm(
        ["adm_ffhq256", "ffhq256"],
        ADM_256,
        "ffhq",
        [MIT, "ddpm-segmentation release: ffhq.pt"],
        ADM_256_TAPS,
    ),
    adm(
        ["adm_bdd100k", "bdd100k_128x256"],
        116_152_070,
        "bdd100k",
        ["no public weights", "none: train it with dtk"],
        [256, 256, 384, 512],
    ),
    resnet(
        "resnet_small",
        3_055_880,
        "none: a small network for small images, trained by dtk",
        [2, 4, 8, 16],
        [32, 64, 128, 256],
    ),
    resnet("resnet18", 11_689_512, "torchvision resnet18, timm resnet18", COARSE, BASIC),
    resnet("resnet34", 21_797_672, "torchvision resnet34, timm resnet34", COARSE, BASIC),
    resnet("resnet50", 25_557_032, "torchvision resnet50, timm resnet50", COARSE, BOTTLENECK),
    resnet("resnet101", 44_549_160, "torchvision resnet101, timm resnet101", COARSE, BOTTLENECK),
    convnext("convnext_tiny", 28_589_128, "timm convnext_tiny.fb_in1k", 96),
    convnext("convnext_small", 50_223_688, "timm convnext_small.fb_in1k", 96),
    convnext("convnext_base", 88_591_464, "timm convnext_base.fb_in1k", 128),
    convnext("convnext_large", 197_767_336, "timm convnext_large.fb_in1k", 192),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::adm::Taps;
    use crate::models::backbone::NAMES;
    use crate::nn::ParamStore;

    #[test]
    fn parameter_counts_and_levels() {
        for e in ZOO {
            let mut store = ParamStore::new();
            e.register(&mut store.builder()).unwrap();
            assert_eq!(store.parameter_count(), e.parameters, "{}", e.name);
            let built: Vec<(usize, usize)> = match e.config {
                Config::Adm(name) => {
                    let c = AdmConfig::named(name).unwrap();
                    let taps = Taps::dreamteacher(&c).unwrap();
                    let described = taps.describe(&c).unwrap();
                    let listed = e.levels.iter().rev().map(|l| l.from.to_string());
                    assert!(listed.eq(described.iter().map(|t| t.tap.to_string())), "{}", e.name);
                    described.iter().rev().map(|t| (t.stride, t.channels)).collect()
                }
                Config::Backbone(name) => {
                    let c = BackboneConfig::named(name).unwrap();
                    c.strides().into_iter().zip(c.channels()).collect()
                }
            };
            let listed: Vec<_> = e.levels.iter().map(|l| (l.stride, l.channels)).collect();
            assert_eq!(listed, built, "{}", e.name);
        }
    }

    #[test]
    fn names_are_unique_and_complete() {
        for (i, e) in ZOO.iter().enumerate() {
            assert!(ZOO[..i].iter().all(|f| f.name != e.name), "{} is listed twice", e.name);
            assert_eq!(find(e.name).map(|f| f.parameters), Some(e.parameters));
        }
        for name in NAMES {
            assert!(find(name).is_some_and(|e| e.kind == Kind::Student), "{name} is missing");
        }
        assert!(find("resnet51").is_none());
    }
}
