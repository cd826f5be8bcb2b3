//! Launches and occupancy.

use super::entries;
use crate::ffi::{BlockToShared, Handle, In, LaunchConfigC, Out};
use crate::{launch, occupancy};
use std::ffi::{c_int, c_uint};

entries! {
    cuLaunchKernel(
        function: Handle, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: Handle, params: usize, extra: usize,
    ) => launch::launch(function, [gx, gy, gz], [bx, by, bz], shared, stream, params, extra);
    cuLaunchCooperativeKernel(
        function: Handle, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: Handle, params: usize,
    ) => launch::launch_cooperative(function, [gx, gy, gz], [bx, by, bz], shared, stream, params);
    cuLaunchKernelEx(config: In<LaunchConfigC>, function: Handle, params: usize, extra: usize) =>
        launch::launch_ex(config, function, params, extra);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        out: Out<c_int>, function: Handle, threads: c_int, shared: usize,
    ) => occupancy::max_blocks(out, function, threads, shared, 0);
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<c_int>, function: Handle, threads: c_int, shared: usize, flags: c_uint,
    ) => occupancy::max_blocks(out, function, threads, shared, flags);
    cuOccupancyMaxPotentialBlockSize(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, to_shared: Option<BlockToShared>, shared: usize,
        limit: c_int,
    ) => occupancy::potential_block(grid, block, function, to_shared, shared, limit, 0);
    cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<c_int>, block: Out<c_int>, function: Handle, to_shared: Option<BlockToShared>, shared: usize,
        limit: c_int, flags: c_uint,
    ) => occupancy::potential_block(grid, block, function, to_shared, shared, limit, flags);
    cuOccupancyAvailableDynamicSMemPerBlock(
        out: Out<usize>, function: Handle, blocks: c_int, threads: c_int,
    ) => occupancy::available_shared(out, function, blocks, threads);
    cuOccupancyMaxPotentialClusterSize(out: Out<c_int>, function: Handle, config: In<LaunchConfigC>) =>
        occupancy::potential_cluster(out, function, config);
    cuOccupancyMaxActiveClusters(out: Out<c_int>, function: Handle, config: In<LaunchConfigC>) =>
        occupancy::active_clusters(out, function, config);
}
