//! Matrix products on a CUDA device whose rows may be pixels under the taps of a kernel: what conv2d and linear launch.
//!
//! `gather` is the forward pass and the input gradient, `pixels` the weight gradient; both pick a [`tile`] for the product
//! ([`table`] holds those that were measured), fill the kernel's parameters (`params`) and launch it on the compute stream.
//! The maths is in `kernels/conv2d.cu` and `kernels/linear.cu`, whose entries are named after the op; what they share lies
//! in `kernels/tile`.

pub(super) mod gather;
pub(super) mod params;
pub(super) mod pixels;
pub mod table;
pub mod tile;

use super::variants::Variant;
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Defines, Gpu, Grid, Kernel};
use crate::tensor::Tensor;
use bytemuck::Pod;
use tile::Tile;

/// Whose kernels are launched: those of `kernels/conv2d.cu` or of `kernels/linear.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `kernels/conv2d.cu`.
    Conv2d,
    /// `kernels/linear.cu`.
    Linear,
}

/// A kernel of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Fwd,
    Dgrad,
    Wgrad,
    SplitOutput,
    SplitWeight,
    Statistics,
    FoldDoubled,
}

impl Family {
    fn source(self) -> &'static str {
        match self {
            Family::Conv2d => "conv2d.cu",
            Family::Linear => "linear.cu",
        }
    }

    fn entry(self, pass: Pass) -> &'static str {
        match (self, pass) {
            (Family::Conv2d, Pass::Fwd) => "conv2d_fwd",
            (Family::Conv2d, Pass::Dgrad) => "conv2d_dgrad",
            (Family::Conv2d, Pass::Wgrad) => "conv2d_wgrad",
            (Family::Conv2d, Pass::SplitOutput) => "conv2d_split_output",
            (Family::Conv2d, Pass::SplitWeight) => "conv2d_split_weight",
            (_, Pass::Statistics) => "conv2d_statistics",
            (_, Pass::FoldDoubled) => "conv2d_fold_doubled",
            (Family::Linear, Pass::Fwd) => "linear_fwd",
            (Family::Linear, Pass::Dgrad) => "linear_dgrad",
            (Family::Linear, Pass::Wgrad) => "linear_wgrad",
            (Family::Linear, Pass::SplitOutput) => "linear_split_output",
            (Family::Linear, Pass::SplitWeight) => "linear_split_weight",
        }
    }
}

/// What distinguishes the variants of a kernel beside its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub family: Family,
    pub pass: Pass,
    /// Element type of the operands: bf16 or f32.
    pub dtype: DType,
    /// Elements of a copy from global memory.
    pub width: usize,
    /// Whether the forward pass writes statistics.
    pub stats: bool,
    /// Whether it convolves a doubled image.
    pub doubled: bool,
}

impl Class {
    pub fn new(family: Family, pass: Pass, dtype: DType) -> Self {
        Class { family, pass, dtype, width: 1, stats: false, doubled: false }
    }

    /// The variant for parameters of type `P`; products also have a tile.
    fn variant<P: Pod>(&self, tile: Option<Tile>) -> Variant {
        let pass = match self.pass {
            Pass::Fwd => "PASS_FWD",
            Pass::Dgrad => "PASS_DGRAD",
            Pass::Wgrad => "PASS_WGRAD",
            Pass::SplitOutput => "PASS_SPLIT_OUTPUT",
            Pass::SplitWeight => "PASS_SPLIT_WEIGHT",
            Pass::Statistics => "PASS_STATISTICS",
            Pass::FoldDoubled => "PASS_FOLD_DOUBLED",
        };
        let mut d = Defines::new().set(pass, 1).set("PARAMS_BYTES", size_of::<P>());
        d = d.set("T_BF16", u8::from(self.dtype == DType::Bf16));
        if matches!(self.pass, Pass::Fwd | Pass::SplitOutput) {
            d = d.set("STATS", u8::from(self.stats));
        }
        if self.pass == Pass::Fwd {
            d = d.set("DOUBLED", u8::from(self.doubled));
        }
        if let Some(t) = tile {
            for (name, value) in [
                ("BM", t.bm),
                ("BN", t.bn),
                ("BK", t.bk),
                ("WM", t.wm),
                ("WN", t.wn),
                ("STAGES", t.stages),
                ("BLOCKS", t.blocks),
                ("WIDTH", self.width),
            ] {
                d = d.set(name, value);
            }
        }
        Variant { source: self.family.source(), entry: self.family.entry(self.pass), defines: d }
    }

    /// Compiles or finds the kernel and launches it.
    pub fn launch<P: Pod>(&self, gpu: &Gpu, tile: Option<Tile>, grid: Grid, params: &P) -> Result<()> {
        let v = self.variant::<P>(tile);
        let kernel: Kernel = gpu.kernel(v.source, v.entry, &v.defines)?;
        kernel.launch(gpu.stream(), grid, params)
    }
}

/// Every variant that conv2d and linear may launch.
pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for family in [Family::Conv2d, Family::Linear] {
        for dtype in [DType::Bf16, DType::F32] {
            let class = |pass| Class::new(family, pass, dtype);
            let widths: Vec<usize> = (0..4).map(|i| 1 << i).filter(|w| w * dtype.size() <= 16).collect();
            for &width in &widths {
                for tile in Tile::all(dtype, width) {
                    let mut push = |c: Class| match c.pass {
                        Pass::Wgrad => all.push(c.variant::<params::Pixels>(Some(tile))),
                        _ => all.push(c.variant::<params::Gather>(Some(tile))),
                    };
                    push(Class { width, ..class(Pass::Fwd) });
                    push(Class { width, ..class(Pass::Dgrad) });
                    push(Class { width, ..class(Pass::Wgrad) });
                    if family == Family::Conv2d {
                        push(Class { width, stats: true, ..class(Pass::Fwd) });
                        push(Class { width, doubled: true, ..class(Pass::Fwd) });
                        push(Class { width, stats: true, doubled: true, ..class(Pass::Fwd) });
                    }
                }
            }
            all.push(class(Pass::SplitOutput).variant::<params::SplitOutput>(None));
            if family == Family::Conv2d {
                all.push(
                    Class { stats: true, ..class(Pass::SplitOutput) }.variant::<params::SplitOutput>(None),
                );
                all.push(class(Pass::FoldDoubled).variant::<params::Fold>(None));
            }
        }
        all.push(Class::new(family, Pass::SplitWeight, DType::F32).variant::<params::SplitWeight>(None));
    }
    all.push(Class::new(Family::Conv2d, Pass::Statistics, DType::F32).variant::<params::Statistics>(None));
    all
}

/// The type of the operands: bf16 or f32, the same for all.
pub(super) fn operand_dtype(op: &str, tensors: &[&Tensor]) -> Result<DType> {
    let dtype = tensors[0].dtype();
    if matches!(dtype, DType::Bf16 | DType::F32) && tensors.iter().all(|t| t.dtype() == dtype) {
        return Ok(dtype);
    }
    let list: Vec<String> = tensors.iter().map(|t| format!("{t:?}")).collect();
    Err(Error::dtype(op, format!("operands on a device are all bf16 or all f32, not {}", list.join(", "))))
}

/// A count as the kernels take it.
pub(super) fn int(op: &str, what: &str, value: usize) -> Result<i32> {
    i32::try_from(value)
        .map_err(|_| Error::shape(op, format!("{what} = {value} is more than the kernels count to")))
}

/// The largest power of two that divides all of `counts`, at most 16 bytes of elements.
fn common_width(dtype: DType, counts: impl IntoIterator<Item = usize>) -> usize {
    let all = counts.into_iter().fold(16 / dtype.size(), |a, b| a | b);
    1 << all.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_divide_everything() {
        let w = |counts: &[usize]| common_width(DType::Bf16, counts.iter().copied());
        assert_eq!((w(&[64, 48]), w(&[64, 12]), w(&[6, 64]), w(&[3, 64])), (8, 4, 2, 1));
        assert_eq!(common_width(DType::F32, [64, 8]), 4);
    }

    #[test]
    fn variants_are_distinct() {
        let all = variants();
        let mut seen = std::collections::BTreeSet::new();
        assert!(all.iter().all(|v| seen.insert((v.entry, v.defines.to_string()))));
        assert!(all.len() > 50);
    }
}
