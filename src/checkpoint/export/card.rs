//! What lies beside exported weights: configuration, model card, Detectron2's settings.

use super::layout::{ExportFormat, ExportLayout, Model};
use crate::models::backbone::{Architecture, BackboneConfig, IMAGENET_MEAN, IMAGENET_STD};
use crate::models::resnet::Block;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The side of the images that public models of these families were measured with.
const USUAL_SIZE: [usize; 2] = [224, 224];

/// Everything that the texts tell.
pub(super) struct Facts<'a> {
    pub layout: ExportLayout,
    pub format: ExportFormat,
    pub model: &'a Model,
    pub config: &'a BackboneConfig,
    /// The weights.
    pub file: &'a Path,
    /// Whether the export has a folder of its own.
    pub folder: bool,
    /// Keys with neutral values.
    pub added: &'a [String],
    /// What the source says of itself.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Facts<'_> {
    fn is_resnet(&self) -> bool {
        matches!(self.config.arch, Architecture::ResNet(_))
    }

    fn file_name(&self) -> String {
        self.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Height and width of the images it learned from, if the source says so.
    fn image_size(&self) -> [usize; 2] {
        let pair = self.metadata.get("image_size").and_then(|s| s.split_once('x'));
        let size = pair.and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
        size.unwrap_or(USUAL_SIZE)
    }

    /// What has to be known to use the weights.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.model.without_pooling {
            notes.push(format!(
                "the stem has no pooling: set `model.maxpool = torch.nn.Identity()` after making {}",
                self.model.name
            ));
        }
        let norm = self.added.iter().find(|k| !k.ends_with("num_batches_tracked"));
        if let Some(path) = norm.and_then(|k| k.rsplit_once('.')).map(|(path, _)| path) {
            notes.push(format!("`{path}`, the norm before the classifier, is not trained: weight 1, bias 0"));
        }
        notes
    }

    /// timm's `config.json`; other libraries do not read it.
    pub(super) fn config(&self) -> String {
        let [h, w] = self.image_size();
        let stride = self.config.strides()[3];
        let [first, last] = if self.is_resnet() { ["conv1", "fc"] } else { ["stem.0", "head.fc"] };
        let rounded = |v: [f32; 3]| v.map(|x| (f64::from(x) * 1e6).round() / 1e6);
        let mut source = serde_json::Map::new();
        for (key, value) in self.metadata {
            source.insert(key.clone(), json!(value));
        }
        let config = json!({
            "architecture": self.model.name,
            "num_classes": 0,
            "num_features": self.config.channels()[3],
            "global_pool": "avg",
            "pretrained_cfg": {
                "tag": "dreamteacher",
                "custom_load": false,
                "input_size": [3, h, w],
                "fixed_input_size": false,
                "interpolation": "bilinear",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": rounded(IMAGENET_MEAN),
                "std": rounded(IMAGENET_STD),
                "num_classes": 0,
                "pool_size": [(h / stride).max(1), (w / stride).max(1)],
                "first_conv": first,
                "classifier": last,
            },
            "dtk": { "layout": self.layout.to_string(), "backbone": self.config, "source": source },
        });
        format!("{config:#}\n")
    }

    /// The model card.
    pub(super) fn card(&self) -> String {
        let mut s = String::from("---\ntags:\n- image-feature-extraction\n- dreamteacher\n");
        if self.layout == ExportLayout::Timm {
            s.push_str("- timm\nlibrary_name: timm\n");
        }
        let name = &self.model.name;
        let origin = match self.metadata.get("dtk") {
            Some(version) => format!(
                "pretrained without labels: it learned the features of a frozen diffusion model (distilled with dtk {version})"
            ),
            None => "converted from another checkpoint".into(),
        };
        let title = if self.metadata.contains_key("dtk") { ", pretrained with DreamTeacher" } else { "" };
        let library = self.library();
        write!(
            s,
            "---\n\n# {name}{title}\n\nA {name} without classifier, {origin}. The keys are those of {library}.\n\n"
        )
        .ok();
        let rows = [
            ("Recipe", "recipe"),
            ("Recipe's fingerprint", "recipe_fingerprint"),
            ("Fingerprint of the images", "data_fingerprint"),
            ("Steps", "step"),
            ("Seed", "seed"),
        ];
        let known: Vec<_> = rows.iter().filter_map(|(n, k)| Some((n, self.metadata.get(*k)?))).collect();
        if !known.is_empty() {
            s.push_str("| training | |\n|---|---|\n");
            for (name, value) in known {
                writeln!(s, "| {name} | {} |", value.replace('|', "\\|")).ok();
            }
            s.push('\n');
        }
        let numbers = |v: [f32; 3]| v.map(|x| x.to_string()).join(", ");
        let channels = self.config.channels().map(|c| c.to_string()).join(", ");
        let strides = self.config.strides().map(|c| c.to_string()).join(", ");
        write!(
            s,
            "Input: RGB in 0..1, normalised with mean ({}) and standard deviation ({}). Features of the four stages have \
             {channels} channels at strides {strides}.\n\n## Loading\n\n{}\n",
            numbers(IMAGENET_MEAN),
            numbers(IMAGENET_STD),
            self.loading()
        )
        .ok();
        let notes = self.notes();
        if !notes.is_empty() {
            s.push_str("## To know\n\n");
            notes.iter().for_each(|n| s.push_str(&format!("- {n}\n")));
            s.push('\n');
        }
        s.push_str(
            "## Licence\n\nThe licence of these weights is for their owner to state; the licences of the training images and \
             of the teacher may bind it.\n",
        );
        s
    }

    fn library(&self) -> &'static str {
        match self.layout {
            ExportLayout::Timm => "timm",
            ExportLayout::Torchvision => "torchvision",
            ExportLayout::ConvNext => "the official ConvNeXt repository",
            ExportLayout::Detectron2 => "Detectron2",
            ExportLayout::Mmseg => "OpenMMLab (mmsegmentation, mmdetection, mmpretrain)",
            ExportLayout::Dtk => "dtk",
        }
    }

    /// How the library loads the weights.
    fn loading(&self) -> String {
        let (model, file) = (&self.model.name, self.file_name());
        let read = match self.format {
            ExportFormat::Safetensors => format!("safetensors.torch.load_file(\"{file}\")"),
            ExportFormat::Pth => format!("torch.load(\"{file}\", weights_only=True)"),
        };
        let import = match self.format {
            ExportFormat::Safetensors => "safetensors.torch",
            ExportFormat::Pth => "torch",
        };
        let python = |code: String| format!("```python\n{code}\n```\n");
        match self.layout {
            ExportLayout::Timm if self.folder => python(
                "import timm\n\nmodel = timm.create_model(\"local-dir:this/folder\", pretrained=True, num_classes=0)"
                    .to_string(),
            ),
            ExportLayout::Timm => python(format!(
                "import timm, {import}\n\nmodel = timm.create_model(\"{model}\", num_classes=0)\nmodel.load_state_dict({read})"
            )),
            ExportLayout::Torchvision => {
                let head = if self.is_resnet() { "fc" } else { "classifier[2]" };
                python(format!(
                    "import torch, torchvision, {import}\n\nmodel = torchvision.models.{model}()\n\
                     model.{head} = torch.nn.Identity()\nmodel.load_state_dict({read})"
                ))
            }
            ExportLayout::ConvNext => {
                let part = if self.format == ExportFormat::Pth { "[\"model\"]" } else { "" };
                python(format!(
                    "import torch, {import}\nfrom models.convnext import {model}\n\nmodel = {model}()\n\
                     model.head = torch.nn.Identity()\nmodel.load_state_dict({read}{part})"
                ))
            }
            ExportLayout::Detectron2 => format!(
                "The settings that these weights need, also in the YAML file beside them:\n\n```yaml\n{}```\n",
                self.detectron2()
            ),
            ExportLayout::Mmseg => python(self.mmseg()),
            ExportLayout::Dtk => format!("```sh\ndtk train --set student.weights={file}\n```\n"),
        }
    }

    /// The part of an OpenMMLab configuration that concerns the backbone.
    fn mmseg(&self) -> String {
        let scaled = |v: [f32; 3]| v.map(|x| format!("{:.3}", x * 255.0)).join(", ");
        let backbone = match &self.config.arch {
            Architecture::ResNet(_) => format!(
                "    type=\"ResNet\",\n    depth={},\n    style=\"pytorch\",\n    out_indices=(0, 1, 2, 3),",
                self.model.name.trim_start_matches("resnet")
            ),
            Architecture::ConvNext(_) => format!(
                "    type=\"mmpretrain.ConvNeXt\",\n    arch=\"{}\",\n    out_indices=[0, 1, 2, 3],\n    \
                 gap_before_final_norm=False,",
                self.model.name.trim_start_matches("convnext_")
            ),
        };
        let imports = if self.is_resnet() {
            ""
        } else {
            "custom_imports = dict(imports=\"mmpretrain.models\", allow_failed_imports=False)\n"
        };
        format!(
            "{imports}data_preprocessor = dict(mean=[{}], std=[{}], bgr_to_rgb=True)\nbackbone = dict(\n{backbone}\n    \
             init_cfg=dict(type=\"Pretrained\", checkpoint=\"{}\", prefix=\"backbone.\"),\n)",
            scaled(IMAGENET_MEAN),
            scaled(IMAGENET_STD),
            self.file_name()
        )
    }

    /// Detectron2's settings.
    pub(super) fn detectron2(&self) -> String {
        let scaled = |v: [f32; 3]| v.map(|x| format!("{:.3}", x * 255.0)).join(", ");
        let mut s = format!(
            "MODEL:\n  WEIGHTS: \"{}\"\n  PIXEL_MEAN: [{}]\n  PIXEL_STD: [{}]\n  RESNETS:\n    DEPTH: {}\n    \
             # The stride lies on the 3x3 convolutions.\n    STRIDE_IN_1X1: False\n",
            self.file_name(),
            scaled(IMAGENET_MEAN),
            scaled(IMAGENET_STD),
            self.model.name.trim_start_matches("resnet")
        );
        if matches!(&self.config.arch, Architecture::ResNet(c) if c.block == Block::Basic) {
            s.push_str("    RES2_OUT_CHANNELS: 64\n");
        }
        s.push_str("INPUT:\n  FORMAT: \"RGB\"\n");
        s
    }
}
