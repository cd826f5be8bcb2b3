//! ResNet names. torchvision's and timm's are the same; detectron2 and OpenMMLab rename.

use super::{Layout, is_affine, is_index};

/// The leaves of a BatchNorm.
fn is_bn(leaf: &str) -> bool {
    is_affine(leaf) || matches!(leaf, "running_mean" | "running_var" | "num_batches_tracked")
}

/// `conv1` to `conv3` or `bn1` to `bn3`: the number behind `what`.
fn numbered<'a>(part: &'a str, what: &str) -> Option<&'a str> {
    part.strip_prefix(what).filter(|n| matches!(*n, "1" | "2" | "3"))
}

/// The stage 1 to 4 of `layerN`, or of `resN` with `shift` 1.
fn stage(part: &str, what: &str, shift: u8) -> Option<u8> {
    let [digit] = part.strip_prefix(what)?.as_bytes() else { return None };
    digit.checked_sub(b'0' + shift).filter(|s| (1..=4).contains(s))
}

/// Whether `key` is one that dtk's ResNet can have.
fn is_dtk(key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["conv1", "weight"] => true,
        ["bn1", leaf] => is_bn(leaf),
        ["fc", leaf] => is_affine(leaf),
        [l, b, rest @ ..] if stage(l, "layer", 0).is_some() && is_index(b) => match rest {
            [conv, "weight"] if numbered(conv, "conv").is_some() => true,
            [bn, leaf] if numbered(bn, "bn").is_some() => is_bn(leaf),
            ["downsample", "0", "weight"] => true,
            ["downsample", "1", leaf] => is_bn(leaf),
            _ => false,
        },
        _ => false,
    }
}

pub(super) fn to_dtk(layout: Layout, key: &str) -> Option<String> {
    match layout {
        Layout::Timm | Layout::Torchvision => is_dtk(key).then(|| key.to_string()),
        Layout::Mmseg => {
            key.strip_prefix("backbone.").filter(|k| is_dtk(k) && !k.starts_with("fc.")).map(str::to_string)
        }
        Layout::Detectron2 => from_detectron2(key),
        Layout::Facebook => None,
    }
}

pub(super) fn from_dtk(layout: Layout, key: &str) -> Option<String> {
    if !is_dtk(key) {
        return None;
    }
    match layout {
        Layout::Timm | Layout::Torchvision => Some(key.to_string()),
        Layout::Mmseg => (!key.starts_with("fc.")).then(|| format!("backbone.{key}")),
        Layout::Detectron2 => to_detectron2(key),
        Layout::Facebook => None,
    }
}

fn from_detectron2(key: &str) -> Option<String> {
    // A detector holds its backbone below `backbone.bottom_up.` (FPN) or `backbone.`.
    let key = key.strip_prefix("backbone.").unwrap_or(key);
    let key = key.strip_prefix("bottom_up.").unwrap_or(key);
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["stem", "conv1", "weight"] => Some("conv1.weight".into()),
        ["stem", "conv1", "norm", leaf] if is_bn(leaf) => Some(format!("bn1.{leaf}")),
        [r, b, rest @ ..] if is_index(b) => {
            let s = stage(r, "res", 1)?;
            let tail = match rest {
                ["shortcut", "weight"] => "downsample.0.weight".to_string(),
                ["shortcut", "norm", leaf] if is_bn(leaf) => format!("downsample.1.{leaf}"),
                [conv, "weight"] => format!("conv{}.weight", numbered(conv, "conv")?),
                [conv, "norm", leaf] if is_bn(leaf) => format!("bn{}.{leaf}", numbered(conv, "conv")?),
                _ => return None,
            };
            Some(format!("layer{s}.{b}.{tail}"))
        }
        _ => None,
    }
}

fn to_detectron2(key: &str) -> Option<String> {
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["conv1", leaf] => Some(format!("stem.conv1.{leaf}")),
        ["bn1", leaf] => Some(format!("stem.conv1.norm.{leaf}")),
        [l, b, rest @ ..] => {
            let r = stage(l, "layer", 0)? + 1;
            let tail = match rest {
                ["downsample", "0", leaf] => format!("shortcut.{leaf}"),
                ["downsample", "1", leaf] => format!("shortcut.norm.{leaf}"),
                [part, leaf] => match numbered(part, "bn") {
                    Some(n) => format!("conv{n}.norm.{leaf}"),
                    None => format!("{part}.{leaf}"),
                },
                _ => return None,
            };
            Some(format!("res{r}.{b}.{tail}"))
        }
        _ => None,
    }
}
