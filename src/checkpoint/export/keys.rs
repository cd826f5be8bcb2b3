//! The keys of the models that exports are for, written down from the structure of these models.
//!
//! They are what a written file is held to, so they take nothing from the key map that renamed its tensors.

use super::layout::ExportLayout;
use crate::base::{DType, Shape};
use crate::models::backbone::Architecture;
use crate::models::convnext::ConvNextConfig;
use crate::models::resnet::{Block, ResNetConfig};

/// A tensor that a model wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetKey {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Its element type: f32, but for i64 step counters.
    pub dtype: DType,
}

/// All keys of a model without its classifier in `layout`; the norm before the classifier of a ConvNeXt counts as part of
/// the backbone, as in timm, but not in dtk's own layout.
pub fn target_keys(layout: ExportLayout, arch: &Architecture) -> Vec<TargetKey> {
    let mut keys =
        Keys { prefix: if layout == ExportLayout::Mmseg { "backbone." } else { "" }, list: Vec::new() };
    match arch {
        Architecture::ResNet(c) => resnet(&mut keys, layout, c),
        Architecture::ConvNext(c) => convnext(&mut keys, layout, c),
    }
    keys.list
}

struct Keys {
    prefix: &'static str,
    list: Vec<TargetKey>,
}

impl Keys {
    fn add(&mut self, name: String, shape: impl Into<Shape>, dtype: DType) {
        self.list.push(TargetKey { name: format!("{}{name}", self.prefix), shape: shape.into(), dtype });
    }

    /// A weight and a bias.
    fn affine(&mut self, name: &str, weight: impl Into<Shape>, outputs: usize) {
        self.add(format!("{name}.weight"), weight, DType::F32);
        self.add(format!("{name}.bias"), [outputs], DType::F32);
    }

    /// A convolution without bias, and its batch norm.
    fn unit(&mut self, conv: &str, norm: &str, [outputs, inputs, size]: [usize; 3]) {
        self.add(format!("{conv}.weight"), [outputs, inputs, size, size], DType::F32);
        self.affine(norm, [outputs], outputs);
        self.add(format!("{norm}.running_mean"), [outputs], DType::F32);
        self.add(format!("{norm}.running_var"), [outputs], DType::F32);
        self.add(format!("{norm}.num_batches_tracked"), Shape::SCALAR, DType::I64);
    }
}

fn resnet(keys: &mut Keys, layout: ExportLayout, c: &ResNetConfig) {
    let detectron2 = layout == ExportLayout::Detectron2;
    let [stem, norm] = if detectron2 { ["stem.conv1", "stem.conv1.norm"] } else { ["conv1", "bn1"] };
    keys.unit(stem, norm, [c.stem_width, 3, 7]);
    let mut inputs = c.stem_width;
    for stage in 0..4 {
        let width = c.channels[stage];
        let outputs = width * c.block.expansion();
        for block in 0..c.layers[stage] {
            let path = if detectron2 {
                format!("res{}.{block}", stage + 2)
            } else {
                format!("layer{}.{block}", stage + 1)
            };
            let convs = match c.block {
                Block::Basic => vec![[width, inputs, 3], [width, width, 3]],
                Block::Bottleneck => vec![[width, inputs, 1], [width, width, 3], [outputs, width, 1]],
            };
            for (n, conv) in (1..).zip(convs) {
                let norm = if detectron2 { format!("{path}.conv{n}.norm") } else { format!("{path}.bn{n}") };
                keys.unit(&format!("{path}.conv{n}"), &norm, conv);
            }
            // The first block of a stage has a shortcut of its own where it changes resolution or width.
            if block == 0 && (stage > 0 || inputs != outputs) {
                let [conv, norm] =
                    if detectron2 { ["shortcut", "shortcut.norm"] } else { ["downsample.0", "downsample.1"] };
                keys.unit(&format!("{path}.{conv}"), &format!("{path}.{norm}"), [outputs, inputs, 1]);
            }
            inputs = outputs;
        }
    }
}

fn convnext(keys: &mut Keys, layout: ExportLayout, c: &ConvNextConfig) {
    let torchvision = layout == ExportLayout::Torchvision;
    let timm = matches!(layout, ExportLayout::Timm | ExportLayout::Dtk);
    // Depthwise convolution, norm, two linear layers, layer scale.
    let parts = match layout {
        ExportLayout::Timm | ExportLayout::Dtk => ["conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"],
        ExportLayout::Torchvision => ["block.0", "block.2", "block.3", "block.5", "layer_scale"],
        ExportLayout::Mmseg => ["depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2", "gamma"],
        ExportLayout::ConvNext | ExportLayout::Detectron2 => {
            ["dwconv", "norm", "pwconv1", "pwconv2", "gamma"]
        }
    };
    let stem = if timm {
        "stem"
    } else if torchvision {
        "features.0"
    } else {
        "downsample_layers.0"
    };
    for stage in 0..4 {
        let dim = c.dims[stage];
        if stage == 0 {
            keys.affine(&format!("{stem}.0"), [dim, 3, 4, 4], dim);
            keys.affine(&format!("{stem}.1"), [dim], dim);
        } else {
            let path = if timm {
                format!("stages.{stage}.downsample")
            } else if torchvision {
                format!("features.{}", 2 * stage)
            } else {
                format!("downsample_layers.{stage}")
            };
            let before = c.dims[stage - 1];
            keys.affine(&format!("{path}.0"), [before], before);
            keys.affine(&format!("{path}.1"), [dim, before, 2, 2], dim);
        }
        for block in 0..c.depths[stage] {
            let path = if timm {
                format!("stages.{stage}.blocks.{block}")
            } else if torchvision {
                format!("features.{}.{block}", 2 * stage + 1)
            } else {
                format!("stages.{stage}.{block}")
            };
            let [depthwise, norm, expand, project, scale] = parts.map(|p| format!("{path}.{p}"));
            keys.affine(&depthwise, [dim, 1, 7, 7], dim);
            keys.affine(&norm, [dim], dim);
            keys.affine(&expand, [4 * dim, dim], 4 * dim);
            keys.affine(&project, [dim, 4 * dim], dim);
            let shape: Shape = if torchvision { [dim, 1, 1].into() } else { [dim].into() };
            keys.add(scale, shape, DType::F32);
        }
    }
    let last = match layout {
        ExportLayout::Timm => "head.norm",
        ExportLayout::Torchvision => "classifier.0",
        ExportLayout::Mmseg => "norm3",
        ExportLayout::ConvNext | ExportLayout::Detectron2 => "norm",
        ExportLayout::Dtk => return,
    };
    keys.affine(last, [c.dims[3]], c.dims[3]);
}
