//! Encoding of tensor maps; layout and requirements are [`ptxsim::tensormap`]'s.

use crate::context::current;
use crate::error::{Error, Result};
use crate::ffi::{self, In, Out};
use crate::state;
use ptxsim::tensormap::{MAX_RANK, TensorMap, Walk};

/// Addresses of maps are multiples of this.
const ALIGN: usize = 64;

/// What both forms have in common.
pub struct Tensor {
    /// `tensorDataType`
    pub data_type: u32,
    /// `tensorRank`
    pub rank: u32,
    /// `globalAddress`
    pub address: u64,
    /// `globalDim`
    pub extents: In<u64>,
    /// `globalStrides`
    pub strides: In<u64>,
    /// `elementStrides`
    pub traversal: In<u32>,
}

/// The four codes at the end of the argument lists.
pub struct Layout {
    /// `interleave`
    pub interleave: u32,
    /// `swizzle`
    pub swizzle: u32,
    /// `l2Promotion`
    pub l2_promotion: u32,
    /// `oobFill`
    pub fill: u32,
}

/// An array of the caller's, filled up with ones.
fn padded<T: Copy + Default, const N: usize>(list: In<T>, count: usize, fill: T) -> Result<[T; N]> {
    let given = list.list(count)?;
    Ok(std::array::from_fn(|i| given.get(i).copied().unwrap_or(fill)))
}

fn rank(rank: u32) -> Result<usize> {
    usize::try_from(rank).ok().filter(|n| (1..=MAX_RANK).contains(n)).ok_or(Error::INVALID_VALUE)
}

fn capability() -> Result<u32> {
    Ok(current()?.device()?.card.compute_capability.0)
}

fn finish(out: Out<ffi::TensorMap>, map: &TensorMap) -> Result {
    out.needed()?;
    let checked = if out.address().is_multiple_of(ALIGN) {
        map.check()
    } else {
        Err("the map is not aligned to 64 bytes".to_string())
    };
    if let Err(why) = checked {
        if !state::quiet() {
            eprintln!("ptxsim: tensor map refused: {why}");
        }
        return Err(Error::INVALID_VALUE);
    }
    out.set(ffi::TensorMap(map.encode()))
}

fn encode(out: Out<ffi::TensorMap>, tensor: &Tensor, walk: Walk, layout: &Layout) -> Result {
    let n = rank(tensor.rank)?;
    let map = TensorMap {
        data_type: tensor.data_type,
        rank: tensor.rank,
        address: tensor.address,
        extents: padded(tensor.extents, n, 1)?,
        strides: padded(tensor.strides, n - 1, 0)?,
        walk,
        traversal: padded(tensor.traversal, n, 1)?,
        interleave: layout.interleave,
        swizzle: layout.swizzle,
        l2_promotion: layout.l2_promotion,
        fill: layout.fill,
    };
    finish(out, &map)
}

/// `cuTensorMapEncodeTiled`.
pub fn tiled(out: Out<ffi::TensorMap>, tensor: &Tensor, extent: In<u32>, layout: &Layout) -> Result {
    if capability()? < 9 {
        return Err(Error::NOT_SUPPORTED);
    }
    let extent = padded(extent, rank(tensor.rank)?, 1)?;
    encode(out, tensor, Walk::Tiled { extent }, layout)
}

/// `cuTensorMapEncodeIm2col`. The corners are given outermost dimension first.
pub fn im2col(
    out: Out<ffi::TensorMap>,
    tensor: &Tensor,
    corners: (In<i32>, In<i32>),
    channels: u32,
    pixels: u32,
    layout: &Layout,
) -> Result {
    if capability()? < 9 {
        return Err(Error::NOT_SUPPORTED);
    }
    let spatial = rank(tensor.rank)?.checked_sub(2).filter(|&n| n > 0).ok_or(Error::INVALID_VALUE)?;
    let corner = |list: In<i32>| -> Result<[i32; 3]> {
        let given = list.list(spatial)?;
        Ok(std::array::from_fn(|i| if i < spatial { given[spatial - 1 - i] } else { 0 }))
    };
    let walk = Walk::Im2col { lower: corner(corners.0)?, upper: corner(corners.1)?, channels, pixels };
    encode(out, tensor, walk, layout)
}

/// `cuTensorMapEncodeIm2colWide`: of compute capability 10, which no card here has.
pub fn im2col_wide() -> Result {
    capability()?;
    Err(Error::NOT_SUPPORTED)
}

/// `cuTensorMapReplaceAddress`.
pub fn replace_address(out: Out<ffi::TensorMap>, address: u64) -> Result {
    if capability()? < 9 {
        return Err(Error::NOT_SUPPORTED);
    }
    let mut map = TensorMap::decode(&out.get()?.0).ok_or(Error::INVALID_VALUE)?;
    map.address = address;
    finish(out, &map)
}
