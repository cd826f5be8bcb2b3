//! What the layouts ask for: names, families, file formats.

use crate::checkpoint::keymap::{self, Family};
use crate::error::{Error, Result};
use crate::models::backbone::{Architecture, BackboneConfig};
use crate::models::resnet::Stem;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Whose models an export is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExportLayout {
    /// timm: a folder that `timm.create_model("local-dir:...")` opens.
    Timm,
    /// torchvision.
    Torchvision,
    /// The official ConvNeXt repository: `{"model": state dict}`.
    ConvNext,
    /// Detectron2's ResNet, with the configuration that the weights need.
    Detectron2,
    /// OpenMMLab (mmsegmentation, mmdetection, mmpretrain): `{"state_dict": ...}` below `backbone.`.
    Mmseg,
    /// dtk's own names: timm's without anything added.
    Dtk,
}

/// The file format of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExportFormat {
    /// safetensors.
    Safetensors,
    /// PyTorch's zip format.
    Pth,
}

impl ExportLayout {
    /// All layouts.
    pub const ALL: [ExportLayout; 6] = [
        ExportLayout::Timm,
        ExportLayout::Torchvision,
        ExportLayout::ConvNext,
        ExportLayout::Detectron2,
        ExportLayout::Mmseg,
        ExportLayout::Dtk,
    ];

    /// Its names in the key map.
    pub(super) fn names(self) -> keymap::Layout {
        match self {
            ExportLayout::Timm | ExportLayout::Dtk => keymap::Layout::Timm,
            ExportLayout::Torchvision => keymap::Layout::Torchvision,
            ExportLayout::ConvNext => keymap::Layout::Facebook,
            ExportLayout::Detectron2 => keymap::Layout::Detectron2,
            ExportLayout::Mmseg => keymap::Layout::Mmseg,
        }
    }

    /// The key of the outermost dict under which the state dict lies in a `.pth` file.
    pub(super) fn wrapper(self) -> Option<&'static str> {
        match self {
            ExportLayout::ConvNext | ExportLayout::Detectron2 => Some("model"),
            ExportLayout::Mmseg => Some("state_dict"),
            ExportLayout::Timm | ExportLayout::Torchvision | ExportLayout::Dtk => None,
        }
    }

    /// The format it is written in if none is asked for.
    pub(super) fn usual_format(self) -> ExportFormat {
        match self {
            ExportLayout::Timm | ExportLayout::Dtk => ExportFormat::Safetensors,
            _ => ExportFormat::Pth,
        }
    }

    /// Refuses formats that the library does not read.
    ///
    /// # Errors
    /// Detectron2 and OpenMMLab read `.pth` files only.
    pub(super) fn check_format(self, format: ExportFormat) -> Result<()> {
        match (self, format) {
            (ExportLayout::Detectron2 | ExportLayout::Mmseg, ExportFormat::Safetensors) => Err(Error::usage(
                format!("the {self} layout cannot be written as safetensors: its libraries read .pth files"),
            )
            .with_remedy("use --format pth")),
            _ => Ok(()),
        }
    }

    /// The name of the weights' file in an export folder.
    pub(super) fn file_name(self, model: &str, format: ExportFormat) -> String {
        match (self, format) {
            // The names that timm looks for.
            (ExportLayout::Timm, ExportFormat::Safetensors) => "model.safetensors".into(),
            (ExportLayout::Timm, ExportFormat::Pth) => "pytorch_model.bin".into(),
            (_, ExportFormat::Safetensors) => format!("{model}.safetensors"),
            (_, ExportFormat::Pth) => format!("{model}.pth"),
        }
    }
}

impl fmt::Display for ExportLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExportLayout::Timm => "timm",
            ExportLayout::Torchvision => "torchvision",
            ExportLayout::ConvNext => "convnext",
            ExportLayout::Detectron2 => "detectron2",
            ExportLayout::Mmseg => "mmseg",
            ExportLayout::Dtk => "dtk",
        })
    }
}

impl FromStr for ExportLayout {
    type Err = Error;

    /// Reads the name that `Display` writes.
    fn from_str(s: &str) -> Result<Self> {
        ExportLayout::ALL.into_iter().find(|l| l.to_string() == s).ok_or_else(|| {
            let all: Vec<_> = ExportLayout::ALL.iter().map(ExportLayout::to_string).collect();
            Error::usage(format!("there is no layout {s:?}"))
                .with_remedy(format!("choose one of {}", all.join(", ")))
        })
    }
}

impl ExportFormat {
    /// The format that a file's extension stands for.
    pub(super) fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "safetensors" => Some(ExportFormat::Safetensors),
            "pth" | "pt" | "bin" => Some(ExportFormat::Pth),
            _ => None,
        }
    }
}

impl FromStr for ExportFormat {
    type Err = Error;

    /// Reads `safetensors` or `pth`.
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "safetensors" => Ok(ExportFormat::Safetensors),
            "pth" => Ok(ExportFormat::Pth),
            _ => {
                Err(Error::usage(format!("there is no format {s:?}"))
                    .with_remedy("choose safetensors or pth"))
            }
        }
    }
}

/// The model of the target that a backbone is.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Its public name, or for dtk's own layout the name in the configuration.
    pub name: String,
    /// Whether the pooling after the stem has to be taken out of the public model.
    pub without_pooling: bool,
}

impl Model {
    /// Finds the public model that has the structure of `config`.
    ///
    /// # Errors
    /// The layout does not have the family, or there is no public model of that structure.
    pub fn find(layout: ExportLayout, config: &BackboneConfig) -> Result<Self> {
        if layout == ExportLayout::Dtk {
            return Ok(Model { name: config.name().into(), without_pooling: false });
        }
        let family = config.family();
        let others = match (layout, family) {
            (ExportLayout::ConvNext, Family::ResNet) => {
                Some("the official ConvNeXt repository has no ResNet")
            }
            (ExportLayout::Detectron2, Family::ConvNext) => Some("Detectron2 has no ConvNeXt"),
            _ => None,
        };
        if let Some(why) = others {
            return Err(Error::usage(format!("{} has no {layout} layout: {why}", config.name()))
                .with_remedy("choose timm, torchvision, mmseg or dtk"));
        }
        let Some(name) = public_name(config) else {
            return Err(Error::usage(format!(
                "no public model has the structure of this backbone (`{}` with its own sizes)",
                config.name()
            ))
            .with_remedy("use --layout dtk, whose keys a model of your own can load"));
        };
        let without_pooling = matches!(&config.arch, Architecture::ResNet(c) if c.stem == Stem::NoMaxpool);
        if without_pooling && matches!(layout, ExportLayout::Detectron2 | ExportLayout::Mmseg) {
            return Err(Error::usage(format!(
                "{layout} has no {name} without the pooling after the stem, as `stem = \"no_maxpool\"` asks for"
            ))
            .with_remedy("choose timm, torchvision or dtk"));
        }
        Ok(Model { name: name.into(), without_pooling })
    }
}

/// The name under which timm and torchvision have this structure. What concerns training alone does not count.
fn public_name(config: &BackboneConfig) -> Option<&'static str> {
    const PUBLIC: [&str; 8] = [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "convnext_tiny",
        "convnext_small",
        "convnext_base",
        "convnext_large",
    ];
    PUBLIC.into_iter().find(|name| {
        let public = BackboneConfig::named(name).map(|c| c.arch);
        match (&config.arch, public) {
            (Architecture::ResNet(a), Ok(Architecture::ResNet(b))) => {
                (a.block, a.layers, a.channels, a.stem_width) == (b.block, b.layers, b.channels, b.stem_width)
            }
            (Architecture::ConvNext(a), Ok(Architecture::ConvNext(b))) => {
                (a.depths, a.dims) == (b.depths, b.dims)
            }
            _ => false,
        }
    })
}
