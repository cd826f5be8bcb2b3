//! Tensor maps. What each requirement is, the library's own tests say; here it is that they are asked.

use crate::support::*;
use cudarc::driver::sys::*;
use ptxsim::tensormap::{TensorMap, Walk};

struct Tiled {
    rank: u32,
    address: u64,
    extents: [u64; 2],
    strides: [u64; 1],
    extent: [u32; 2],
}

impl Default for Tiled {
    fn default() -> Self {
        Tiled { rank: 2, address: 0x10_0000, extents: [256, 100], strides: [512], extent: [64, 32] }
    }
}

fn encode(map: *mut CUtensorMap, t: &Tiled) -> R {
    // SAFETY: the map and the arrays are there, with as many values as the rank says.
    unsafe {
        cuTensorMapEncodeTiled(
            map,
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            t.rank,
            t.address as *mut _,
            t.extents.as_ptr(),
            t.strides.as_ptr(),
            t.extent.as_ptr(),
            [1u32, 1].as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
}

fn decoded(map: &CUtensorMap) -> TensorMap {
    TensorMap::decode(&map.opaque).expect("ours")
}

#[test]
fn tiled() {
    let _context = Context::new();
    let mut map = CUtensorMap { opaque: [0; 16] };
    assert_eq!(encode(&mut map, &Tiled::default()), R::CUDA_SUCCESS);
    let found = decoded(&map);
    assert_eq!((found.rank, found.data_type, found.swizzle, found.l2_promotion), (2, 9, 3, 2));
    assert_eq!(
        (found.address, found.extents[..2].to_vec(), found.strides[0]),
        (0x10_0000, vec![256, 100], 512)
    );
    assert_eq!(found.walk, Walk::Tiled { extent: [64, 32, 1, 1, 1] });
    let bad = R::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(encode(std::ptr::null_mut(), &Tiled::default()), bad);
    assert_eq!(encode(&mut map, &Tiled { rank: 6, ..Tiled::default() }), bad);
    assert_eq!(encode(&mut map, &Tiled { rank: 0, ..Tiled::default() }), bad);
    assert_eq!(encode(&mut map, &Tiled { address: 0x10_0008, ..Tiled::default() }), bad);
    assert_eq!(encode(&mut map, &Tiled { strides: [520], ..Tiled::default() }), bad);
    assert_eq!(encode(&mut map, &Tiled { extent: [128, 32], ..Tiled::default() }), bad);
    assert_eq!(decoded(&map), found, "a map that was refused is not written");
    ok!(cuTensorMapReplaceAddress(&mut map, 0x20_0000 as *mut _));
    assert_eq!(decoded(&map), TensorMap { address: 0x20_0000, ..found });
    fails!(cuTensorMapReplaceAddress(&mut map, 0x20_0008 as *mut _), CUDA_ERROR_INVALID_VALUE);
    let mut none = CUtensorMap { opaque: [0; 16] };
    fails!(cuTensorMapReplaceAddress(&mut none, 0x20_0000 as *mut _), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn im2col() {
    let _context = Context::new();
    let mut map = CUtensorMap { opaque: [0; 16] };
    let mut encode = |pixels: u32, corner: i32| {
        // SAFETY: the map and the arrays are there, with as many values as the rank says.
        unsafe {
            cuTensorMapEncodeIm2col(
                &mut map,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                4,
                0x10_0000 as *mut _,
                [64u64, 28, 30, 2].as_ptr(),
                [128u64, 3584, 107_520].as_ptr(),
                [-1, corner].as_ptr(),
                [1, 2].as_ptr(),
                64,
                pixels,
                [1u32; 4].as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
    };
    assert_eq!(encode(1025, -2), R::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(encode(128, -129), R::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(encode(128, -2), R::CUDA_SUCCESS);
    // Given H before W, kept W before H, as the extents are.
    let walk = Walk::Im2col { lower: [-2, -1, 0], upper: [2, 1, 0], channels: 64, pixels: 128 };
    assert_eq!(decoded(&map).walk, walk);
}
