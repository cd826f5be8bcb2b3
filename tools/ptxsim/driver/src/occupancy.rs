//! Occupancy: how many blocks of a kernel a multiprocessor holds.

use crate::context::current;
use crate::error::{Error, Result};
use crate::ffi::{BlockToShared, Handle, In, LaunchConfigC, Out};
use crate::function::{Function, function};
use ptxsim::card::Card;
use std::sync::Arc;

/// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE`
const FLAGS: u32 = 1;

fn card(function: &Function) -> Result<&'static Card> {
    Ok(&function.context()?.device()?.card)
}

fn blocks(function: &Function, card: &Card, threads: u32, dynamic: usize) -> Result<u32> {
    let kernel = function.kernel()?;
    if threads > function.max_threads(card)? {
        return Ok(0);
    }
    let shared = u32::try_from(dynamic).unwrap_or(u32::MAX).saturating_add(kernel.static_shared_bytes());
    if shared > card.shared_per_block_optin_bytes {
        return Ok(0);
    }
    Ok(card.occupancy(threads, function.registers(card)?, shared).blocks)
}

/// `cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags`.
pub fn max_blocks(out: Out<i32>, handle: Handle, threads: i32, dynamic: usize, flags: u32) -> Result {
    current()?;
    let function = function(handle)?;
    out.needed()?;
    let threads = u32::try_from(threads).ok().filter(|&n| n > 0).ok_or(Error::INVALID_VALUE)?;
    if flags & !FLAGS != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let card = card(&function)?;
    if threads > card.threads_per_block {
        return Err(Error::INVALID_VALUE);
    }
    out.set(blocks(&function, card, threads, dynamic)? as i32)
}

/// `cuOccupancyMaxPotentialBlockSizeWithFlags`: the largest block among those that keep most threads resident.
pub fn potential_block(
    grid: Out<i32>,
    block: Out<i32>,
    handle: Handle,
    to_shared: Option<BlockToShared>,
    dynamic: usize,
    limit: i32,
    flags: u32,
) -> Result {
    current()?;
    let function: Arc<Function> = function(handle)?;
    grid.needed()?;
    block.needed()?;
    if flags & !FLAGS != 0 || limit < 0 {
        return Err(Error::INVALID_VALUE);
    }
    let card = card(&function)?;
    let most = function.max_threads(card)?;
    let most = if limit == 0 { most } else { most.min(limit as u32) };
    let mut best = (0, 0, 0);
    let mut threads = most;
    while threads > 0 {
        let shared = match to_shared {
            // SAFETY: the program gave this function to be asked about sizes of blocks.
            Some(f) => unsafe { f(threads as i32) },
            None => dynamic,
        };
        let resident = blocks(&function, card, threads, shared)?;
        if resident * threads > best.0 {
            best = (resident * threads, threads, resident);
        }
        threads = if threads % 32 == 0 { threads - 32 } else { threads / 32 * 32 };
    }
    if best.0 == 0 {
        return Err(Error::INVALID_VALUE);
    }
    grid.set((best.2 * card.multiprocessors) as i32)?;
    block.set(best.1 as i32)
}

/// `cuOccupancyAvailableDynamicSMemPerBlock`.
pub fn available_shared(out: Out<usize>, handle: Handle, wanted: i32, threads: i32) -> Result {
    current()?;
    let function = function(handle)?;
    out.needed()?;
    if wanted <= 0 || threads <= 0 {
        return Err(Error::INVALID_VALUE);
    }
    let card = card(&function)?;
    if wanted as u32 > blocks(&function, card, threads as u32, 0)? {
        return Err(Error::INVALID_VALUE);
    }
    let share = card.shared_per_multiprocessor_bytes / wanted as u32 / 128 * 128;
    let fixed = function.kernel()?.static_shared_bytes() + card.reserved_shared_per_block_bytes;
    let most = card.shared_per_block_optin_bytes.saturating_sub(function.kernel()?.static_shared_bytes());
    out.set(share.saturating_sub(fixed).min(most) as usize)
}

fn cluster_of(config: &LaunchConfigC) -> Result<u32> {
    let attributes = config.attributes.list(config.attribute_count as usize)?;
    let cluster = attributes.iter().find(|a| a.id == 4);
    Ok(cluster.map_or(1, |a| (a.value[0] as u32) * ((a.value[0] >> 32) as u32) * (a.value[1] as u32)))
}

/// `cuOccupancyMaxPotentialClusterSize`.
pub fn potential_cluster(out: Out<i32>, handle: Handle, config: In<LaunchConfigC>) -> Result {
    current()?;
    let function = function(handle)?;
    let config = config.get()?;
    let card = card(&function)?;
    let threads: u32 = config.block.iter().product();
    if blocks(&function, card, threads, config.shared as usize)? == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let most = if function.non_portable() { card.cluster_blocks_non_portable } else { card.cluster_blocks };
    out.set(most as i32)
}

/// `cuOccupancyMaxActiveClusters`: as if clusters could be placed without regard to the grouping of multiprocessors.
pub fn active_clusters(out: Out<i32>, handle: Handle, config: In<LaunchConfigC>) -> Result {
    current()?;
    let function = function(handle)?;
    let config = config.get()?;
    let card = card(&function)?;
    let cluster = cluster_of(&config)?;
    let most = if function.non_portable() { card.cluster_blocks_non_portable } else { card.cluster_blocks };
    if cluster == 0 || cluster > most {
        return Err(Error::INVALID_CLUSTER_SIZE);
    }
    let threads: u32 = config.block.iter().product();
    let resident = blocks(&function, card, threads, config.shared as usize)? * card.multiprocessors;
    out.set((resident / cluster) as i32)
}
