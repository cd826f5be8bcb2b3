//! Occupancy queries, on an H100.

use crate::support::*;
use cudarc::driver::sys::*;

#[test]
fn blocks_of_a_multiprocessor() {
    let _context = Context::new();
    let module = module();
    let (small, bounded, shared) =
        (function(module, "scale"), function(module, "bounded"), function(module, "shared_both"));
    let blocks = |f, threads, dynamic| {
        let (mut one, mut two) = (0, 0);
        ok!(
            cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut one, f, threads, dynamic),
            cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&mut two, f, threads, dynamic, 0)
        );
        assert_eq!(one, two);
        one
    };
    assert_eq!(blocks(small, 32, 0), 32);
    assert_eq!(blocks(small, 256, 0), 8);
    assert_eq!(blocks(small, 1024, 0), 2);
    assert_eq!(blocks(small, 128, 100 * 1024), 2);
    assert_eq!(blocks(small, 128, 233_000), 0);
    assert_eq!(blocks(shared, 128, 48 * 1024), 4);
    assert_eq!(blocks(bounded, 129, 0), 0);
    let mut out = 0;
    for threads in [0, -1, 1025] {
        fails!(
            cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut out, small, threads, 0),
            CUDA_ERROR_INVALID_VALUE
        );
    }
    fails!(
        cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut out, 0x60 as CUfunction, 32, 0),
        CUDA_ERROR_INVALID_HANDLE
    );
}

unsafe extern "C" fn a_kibibyte_for_each_warp(threads: i32) -> usize {
    threads as usize * 32
}

#[test]
fn the_best_block() {
    let _context = Context::new();
    let module = module();
    let f = function(module, "scale");
    let (mut grid, mut block) = (0, 0);
    ok!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, f, None, 0, 0));
    assert_eq!((grid, block), (2 * 132, 1024));
    ok!(cuOccupancyMaxPotentialBlockSizeWithFlags(&mut grid, &mut block, f, None, 0, 300, 0));
    assert_eq!((grid, block), (8 * 132, 256));
    ok!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, f, Some(a_kibibyte_for_each_warp), 0, 0));
    assert_eq!((grid, block), (2 * 132, 1024));
    ok!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, function(module, "bounded"), None, 0, 0));
    assert_eq!(block, 128);
    let mut room = 0;
    ok!(cuOccupancyAvailableDynamicSMemPerBlock(&mut room, f, 2, 256));
    assert_eq!(room, 233_472 / 2 - 1024);
    ok!(cuOccupancyAvailableDynamicSMemPerBlock(&mut room, f, 1, 256));
    assert_eq!(room, 232_448);
    fails!(cuOccupancyAvailableDynamicSMemPerBlock(&mut room, f, 9, 256), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn clusters() {
    let _context = Context::new();
    let f = function(module(), "scale");
    // SAFETY: plain numbers and pointers.
    let mut config: CUlaunchConfig = unsafe { std::mem::zeroed() };
    (config.blockDimX, config.blockDimY, config.blockDimZ) = (256, 1, 1);
    (config.gridDimX, config.gridDimY, config.gridDimZ) = (16, 1, 1);
    // SAFETY: plain numbers and pointers.
    let mut cluster: CUlaunchAttribute = unsafe { std::mem::zeroed() };
    cluster.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    (cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z) = (4, 1, 1);
    (config.attrs, config.numAttrs) = (&mut cluster, 1);
    let mut n = 0;
    ok!(cuOccupancyMaxPotentialClusterSize(&mut n, f, &config));
    assert_eq!(n, 8);
    ok!(cuOccupancyMaxActiveClusters(&mut n, f, &config));
    assert_eq!(n, 8 * 132 / 4);
    cluster.value.clusterDim.x = 16;
    config.attrs = &mut cluster;
    fails!(cuOccupancyMaxActiveClusters(&mut n, f, &config), CUDA_ERROR_INVALID_CLUSTER_SIZE);
    ok!(cuFuncSetAttribute(f, CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
    ok!(
        cuOccupancyMaxPotentialClusterSize(&mut n, f, &config),
        cuOccupancyMaxActiveClusters(&mut n, f, &config)
    );
    assert_eq!(n, 8 * 132 / 16);
}
