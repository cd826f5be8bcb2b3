//! Names of the student backbones in other libraries.
//!
//! dtk names its backbones as timm does. [`to_dtk`] and [`from_dtk`] translate single keys, [`detect`] finds out the
//! layout of a list of keys, [`translate`] does it for a whole checkpoint. Where the same weight has another shape
//! elsewhere (`[C, 1, 1]` for `[C]`, a 1x1 convolution for a linear layer), the key comes with a [`Reshape`].

mod convnext;
mod resnet;

use super::state_dict::StateDict;
use crate::base::Shape;
use crate::error::{Error, Result};
pub use crate::models::backbone::Family;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// timm; also dtk's own names, and SparK's for ResNet.
    Timm,
    /// torchvision. The same as timm for ResNet, `features.N` for ConvNeXt.
    Torchvision,
    /// The official ConvNeXt repository; also SparK's for ConvNeXt.
    Facebook,
    /// Detectron2's ResNet: `stem.conv1.norm`, `res2.0.shortcut`.
    Detectron2,
    /// OpenMMLab (mmsegmentation, mmdetection, mmpretrain): everything under `backbone.`.
    Mmseg,
}

impl Layout {
    /// All layouts, in the order in which [`detect`] prefers them.
    pub const ALL: [Layout; 5] =
        [Layout::Timm, Layout::Torchvision, Layout::Facebook, Layout::Detectron2, Layout::Mmseg];
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Timm => "timm",
            Layout::Torchvision => "torchvision",
            Layout::Facebook => "facebook",
            Layout::Detectron2 => "detectron2",
            Layout::Mmseg => "mmseg",
        })
    }
}

impl FromStr for Layout {
    type Err = Error;

    /// Reads the name that `Display` writes.
    fn from_str(s: &str) -> Result<Self> {
        Layout::ALL.into_iter().find(|l| l.to_string() == s).ok_or_else(|| {
            let all: Vec<_> = Layout::ALL.iter().map(Layout::to_string).collect();
            Error::usage(format!("there is no layout {s:?}"))
                .with_remedy(format!("choose one of {}", all.join(", ")))
        })
    }
}

/// How a tensor's shape changes along with its name. The data stays in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reshape {
    /// Not at all.
    Keep,
    /// Unit dimensions at the end are dropped down to this rank: `[C, 1, 1]` to `[C]`, a 1x1 convolution
    /// `[out, in, 1, 1]` to a linear layer `[out, in]`. A tensor that has the rank already stays as it is.
    DropOnes(usize),
    /// Unit dimensions are added at the end up to this rank.
    AddOnes(usize),
}

impl Reshape {
    /// The new shape.
    ///
    /// # Errors
    /// A dimension that would be dropped is not 1, or the rank lies on the wrong side.
    pub fn shape(self, shape: Shape) -> Result<Shape> {
        let bad = |what: &str| Error::shape("keymap", format!("{shape} {what}"));
        match self {
            Reshape::Keep => Ok(shape),
            Reshape::DropOnes(rank) => match shape.split_at_checked(rank) {
                Some((kept, rest)) if rest.iter().all(|&d| d == 1) => Shape::from_slice(kept),
                _ => Err(bad(&format!("does not reduce to {rank} dimensions"))),
            },
            Reshape::AddOnes(rank) => {
                let mut dims = shape.to_vec();
                if dims.len() > rank {
                    return Err(bad(&format!("has more than {rank} dimensions")));
                }
                dims.resize(rank, 1);
                Shape::from_slice(&dims)
            }
        }
    }

    /// The tensor under its new shape; the data is shared.
    ///
    /// # Errors
    /// As [`Reshape::shape`].
    pub fn apply(self, t: &Tensor) -> Result<Tensor> {
        t.reshape(self.shape(t.shape())?)
    }
}

/// A key in the other layout, and what happens to the shape on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The new key.
    pub name: String,
    /// The change of shape.
    pub reshape: Reshape,
}

impl Mapped {
    fn keep(name: String) -> Self {
        Mapped { name, reshape: Reshape::Keep }
    }
}

/// dtk's name for `key` of a checkpoint in `layout`. `None` for keys that are no part of the backbone there, and for
/// layouts that the family does not have (facebook for ResNet, detectron2 for ConvNeXt).
pub fn to_dtk(family: Family, layout: Layout, key: &str) -> Option<Mapped> {
    match family {
        Family::ResNet => resnet::to_dtk(layout, key).map(Mapped::keep),
        Family::ConvNext => convnext::to_dtk(layout, key),
    }
}

/// The name of dtk's `key` in `layout`. `None` for keys that dtk's backbone does not have, for heads where the layout
/// holds only backbones (detectron2, mmseg), and for layouts that the family does not have.
pub fn from_dtk(family: Family, layout: Layout, key: &str) -> Option<Mapped> {
    match family {
        Family::ResNet => resnet::from_dtk(layout, key).map(Mapped::keep),
        Family::ConvNext => convnext::from_dtk(layout, key),
    }
}

/// The layout that explains most of `names`, or `None` if no layout explains any. timm's and torchvision's ResNet
/// names are the same, they are called [`Layout::Timm`].
pub fn detect<'a>(family: Family, names: impl IntoIterator<Item = &'a str>) -> Option<Layout> {
    let mut hits = [0usize; Layout::ALL.len()];
    for name in names {
        for (hit, layout) in hits.iter_mut().zip(Layout::ALL) {
            *hit += usize::from(to_dtk(family, layout, name).is_some());
        }
    }
    let best = *hits.iter().max()?;
    let first = hits.iter().position(|&h| h == best)?;
    (best > 0).then(|| Layout::ALL[first])
}

/// Reads the backbone of `family` from a checkpoint in `layout`, under dtk's names and shapes. Keys of other parts
/// (heads, optimisers) are left out.
///
/// # Errors
/// A tensor that cannot be read or reshaped; two keys with the same dtk name.
pub fn translate(family: Family, layout: Layout, from: &StateDict) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for name in from.names() {
        let Some(m) = to_dtk(family, layout, name) else { continue };
        let t = m.reshape.apply(&from.get(name)?).map_err(|e| e.with_file(from.path()).with_key(name))?;
        if out.insert(m.name.clone(), t).is_some() {
            return Err(Error::checkpoint(format!("two keys of the {layout} layout mean `{}`", m.name))
                .with_file(from.path())
                .with_key(name)
                .with_remedy("narrow the checkpoint to one model by its prefix"));
        }
    }
    Ok(out)
}

/// Renames and reshapes dtk's backbone for `layout`. Keys without a name there (heads in backbone-only layouts) are
/// left out.
///
/// # Errors
/// No key has a name in `layout`, e.g. because the family does not exist there; a tensor cannot be reshaped.
pub fn export(
    family: Family,
    layout: Layout,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for (name, t) in tensors {
        if let Some(m) = from_dtk(family, layout, name) {
            out.insert(m.name, m.reshape.apply(t).map_err(|e| e.with_key(name))?);
        }
    }
    if out.is_empty() && !tensors.is_empty() {
        return Err(Error::usage(format!("the {layout} layout has no names for this model ({family:?})"))
            .with_remedy("export to timm, or to a layout that has this family"));
    }
    Ok(out)
}

/// Whether `s` is an index as PyTorch writes it: decimal digits without leading zeros.
fn is_index(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 4
        && s.bytes().all(|b| b.is_ascii_digit())
        && (s == "0" || !s.starts_with('0'))
}

fn is_affine(leaf: &str) -> bool {
    matches!(leaf, "weight" | "bias")
}

#[cfg(test)]
mod tests;
