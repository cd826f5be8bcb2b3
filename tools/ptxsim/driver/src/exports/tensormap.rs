//! Tensor maps.

use super::entries;
use crate::ffi::{In, Out, TensorMap};
use crate::tensormap::{self, Layout, Tensor};
use std::ffi::{c_int, c_uint};

entries! {
    cuTensorMapEncodeTiled(
        out: Out<TensorMap>, data_type: c_uint, rank: u32, address: u64, extents: In<u64>, strides: In<u64>,
        extent: In<u32>, traversal: In<u32>, interleave: c_uint, swizzle: c_uint, l2_promotion: c_uint, fill: c_uint,
    ) => tensormap::tiled(
        out,
        &Tensor { data_type, rank, address, extents, strides, traversal },
        extent,
        &Layout { interleave, swizzle, l2_promotion, fill },
    );
    cuTensorMapEncodeIm2col(
        out: Out<TensorMap>, data_type: c_uint, rank: u32, address: u64, extents: In<u64>, strides: In<u64>,
        lower: In<c_int>, upper: In<c_int>, channels: u32, pixels: u32, traversal: In<u32>, interleave: c_uint,
        swizzle: c_uint, l2_promotion: c_uint, fill: c_uint,
    ) => tensormap::im2col(
        out,
        &Tensor { data_type, rank, address, extents, strides, traversal },
        (lower, upper),
        channels,
        pixels,
        &Layout { interleave, swizzle, l2_promotion, fill },
    );
    cuTensorMapEncodeIm2colWide() => tensormap::im2col_wide();
    cuTensorMapReplaceAddress(map: Out<TensorMap>, address: u64) => tensormap::replace_address(map, address);
}
