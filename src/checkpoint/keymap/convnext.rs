//! ConvNeXt names: timm (= dtk), the official repository, torchvision and mmpretrain.

use super::{Layout, Mapped, Reshape, is_affine, is_index};

/// A parameter, whatever its name. Stages are 0 to 3; the blocks' and leaves' names stay text.
enum Part<'a> {
    /// The stem: convolution, then LayerNorm.
    Stem {
        norm: bool,
        leaf: &'a str,
    },
    /// What leads to stage 1 to 3: LayerNorm, then convolution.
    Downsample {
        stage: u8,
        norm: bool,
        leaf: &'a str,
    },
    Block {
        stage: u8,
        block: &'a str,
        part: Inner,
        leaf: &'a str,
    },
    /// The LayerNorm behind the global pooling.
    Norm {
        leaf: &'a str,
    },
    /// The classifier.
    Head {
        leaf: &'a str,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    Depthwise,
    Norm,
    Expand,
    Project,
    /// Layer scale. It is a bare parameter, so its leaf is its own name.
    Scale,
}

fn digit(s: &str, range: std::ops::RangeInclusive<u8>) -> Option<u8> {
    let [d] = s.as_bytes() else { return None };
    d.checked_sub(b'0').filter(|v| range.contains(v))
}

/// `0` or `1` in a Sequential of two: whether it is the norm, given which of them is.
fn is_norm(s: &str, norm: &str) -> Option<bool> {
    matches!(s, "0" | "1").then_some(s == norm)
}

fn parse(layout: Layout, key: &str) -> Option<Part<'_>> {
    let key = if layout == Layout::Mmseg { key.strip_prefix("backbone.")? } else { key };
    let parts: Vec<&str> = key.split('.').collect();
    let (last, path) = parts.split_last()?;
    let part = match layout {
        Layout::Timm => match path {
            ["stem", i] => Part::Stem { norm: is_norm(i, "1")?, leaf: last },
            ["stages", s, "downsample", i] => {
                Part::Downsample { stage: digit(s, 1..=3)?, norm: is_norm(i, "0")?, leaf: last }
            }
            ["stages", s, "blocks", b, inner @ ..] => {
                let part = match inner {
                    ["conv_dw"] => Inner::Depthwise,
                    ["norm"] => Inner::Norm,
                    ["mlp", "fc1"] => Inner::Expand,
                    ["mlp", "fc2"] => Inner::Project,
                    [] if *last == "gamma" => Inner::Scale,
                    _ => return None,
                };
                Part::Block { stage: digit(s, 0..=3)?, block: b, part, leaf: last }
            }
            ["head", "norm"] => Part::Norm { leaf: last },
            ["head", "fc"] => Part::Head { leaf: last },
            _ => return None,
        },
        Layout::Torchvision => match path {
            ["features", "0", i] => Part::Stem { norm: is_norm(i, "1")?, leaf: last },
            ["features", n @ ("2" | "4" | "6"), i] => {
                Part::Downsample { stage: digit(n, 2..=6)? / 2, norm: is_norm(i, "0")?, leaf: last }
            }
            ["features", n @ ("1" | "3" | "5" | "7"), b, inner @ ..] => {
                let part = match inner {
                    ["block", "0"] => Inner::Depthwise,
                    ["block", "2"] => Inner::Norm,
                    ["block", "3"] => Inner::Expand,
                    ["block", "5"] => Inner::Project,
                    [] if *last == "layer_scale" => Inner::Scale,
                    _ => return None,
                };
                Part::Block { stage: digit(n, 1..=7)? / 2, block: b, part, leaf: last }
            }
            ["classifier", "0"] => Part::Norm { leaf: last },
            ["classifier", "2"] => Part::Head { leaf: last },
            _ => return None,
        },
        Layout::Facebook | Layout::Mmseg => match path {
            ["downsample_layers", "0", i] => Part::Stem { norm: is_norm(i, "1")?, leaf: last },
            ["downsample_layers", s, i] => {
                Part::Downsample { stage: digit(s, 1..=3)?, norm: is_norm(i, "0")?, leaf: last }
            }
            ["stages", s, b, inner @ ..] => {
                let part = match (layout, inner) {
                    (Layout::Facebook, ["dwconv"]) | (Layout::Mmseg, ["depthwise_conv"]) => Inner::Depthwise,
                    (_, ["norm"]) => Inner::Norm,
                    (Layout::Facebook, ["pwconv1"]) | (Layout::Mmseg, ["pointwise_conv1"]) => Inner::Expand,
                    (Layout::Facebook, ["pwconv2"]) | (Layout::Mmseg, ["pointwise_conv2"]) => Inner::Project,
                    (_, []) if *last == "gamma" => Inner::Scale,
                    _ => return None,
                };
                Part::Block { stage: digit(s, 0..=3)?, block: b, part, leaf: last }
            }
            ["norm"] if layout == Layout::Facebook => Part::Norm { leaf: last },
            // mmpretrain norms the output of stage 3 under this name; norm0 to norm2 belong to dense heads.
            ["norm3"] if layout == Layout::Mmseg => Part::Norm { leaf: last },
            ["head"] if layout == Layout::Facebook => Part::Head { leaf: last },
            _ => return None,
        },
        Layout::Detectron2 => return None,
    };
    let valid = match &part {
        Part::Block { block, part, leaf, .. } => {
            is_index(block) && (*part == Inner::Scale || is_affine(leaf))
        }
        Part::Stem { leaf, .. }
        | Part::Downsample { leaf, .. }
        | Part::Norm { leaf }
        | Part::Head { leaf } => is_affine(leaf),
    };
    valid.then_some(part)
}

fn write(layout: Layout, part: &Part<'_>) -> Option<String> {
    let first = |is_first: bool| if is_first { "0" } else { "1" };
    Some(match (layout, part) {
        (Layout::Detectron2, _) | (Layout::Mmseg, Part::Head { .. }) => return None,
        (Layout::Timm, Part::Stem { norm, leaf }) => format!("stem.{}.{leaf}", first(!norm)),
        (Layout::Torchvision, Part::Stem { norm, leaf }) => format!("features.0.{}.{leaf}", first(!norm)),
        (Layout::Facebook, Part::Stem { norm, leaf }) => {
            format!("downsample_layers.0.{}.{leaf}", first(!norm))
        }
        (Layout::Mmseg, Part::Stem { norm, leaf }) => {
            format!("backbone.downsample_layers.0.{}.{leaf}", first(!norm))
        }
        (_, Part::Downsample { stage, norm, leaf }) => {
            let i = first(*norm);
            match layout {
                Layout::Timm => format!("stages.{stage}.downsample.{i}.{leaf}"),
                Layout::Torchvision => format!("features.{}.{i}.{leaf}", 2 * stage),
                Layout::Mmseg => format!("backbone.downsample_layers.{stage}.{i}.{leaf}"),
                _ => format!("downsample_layers.{stage}.{i}.{leaf}"),
            }
        }
        (_, Part::Block { stage, block, part, leaf }) => {
            let (before, names) = match layout {
                Layout::Timm => (
                    format!("stages.{stage}.blocks.{block}"),
                    ["conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"],
                ),
                Layout::Torchvision => (
                    format!("features.{}.{block}", 2 * stage + 1),
                    ["block.0", "block.2", "block.3", "block.5", "layer_scale"],
                ),
                Layout::Mmseg => (
                    format!("backbone.stages.{stage}.{block}"),
                    ["depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2", "gamma"],
                ),
                _ => (format!("stages.{stage}.{block}"), ["dwconv", "norm", "pwconv1", "pwconv2", "gamma"]),
            };
            match part {
                Inner::Depthwise => format!("{before}.{}.{leaf}", names[0]),
                Inner::Norm => format!("{before}.{}.{leaf}", names[1]),
                Inner::Expand => format!("{before}.{}.{leaf}", names[2]),
                Inner::Project => format!("{before}.{}.{leaf}", names[3]),
                Inner::Scale => format!("{before}.{}", names[4]),
            }
        }
        (Layout::Timm, Part::Norm { leaf }) => format!("head.norm.{leaf}"),
        (Layout::Torchvision, Part::Norm { leaf }) => format!("classifier.0.{leaf}"),
        (Layout::Facebook, Part::Norm { leaf }) => format!("norm.{leaf}"),
        (Layout::Mmseg, Part::Norm { leaf }) => format!("backbone.norm3.{leaf}"),
        (Layout::Timm, Part::Head { leaf }) => format!("head.fc.{leaf}"),
        (Layout::Torchvision, Part::Head { leaf }) => format!("classifier.2.{leaf}"),
        (Layout::Facebook, Part::Head { leaf }) => format!("head.{leaf}"),
    })
}

pub(super) fn to_dtk(layout: Layout, key: &str) -> Option<Mapped> {
    let part = parse(layout, key)?;
    let reshape = match &part {
        Part::Block { part: Inner::Scale, .. } => Reshape::DropOnes(1),
        // mmpretrain and timm can be built with 1x1 convolutions (`linear_pw_conv=False`, `conv_mlp=True`).
        Part::Block { part: Inner::Expand | Inner::Project, leaf: "weight", .. } => Reshape::DropOnes(2),
        _ => Reshape::Keep,
    };
    Some(Mapped { name: write(Layout::Timm, &part)?, reshape })
}

pub(super) fn from_dtk(layout: Layout, key: &str) -> Option<Mapped> {
    let part = parse(Layout::Timm, key)?;
    let reshape = match (layout, &part) {
        (Layout::Torchvision, Part::Block { part: Inner::Scale, .. }) => Reshape::AddOnes(3),
        _ => Reshape::Keep,
    };
    Some(Mapped { name: write(layout, &part)?, reshape })
}
