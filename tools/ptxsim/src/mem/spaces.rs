//! Local memory and parameters, generic addresses, and flags of the running warp.

use super::access::{Miss, Place, Request, Window};
use super::fence::Flag;
use super::order::bits;
use super::pattern::{Offsets, Shape};
use super::report::bytes;
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::Flow;
use crate::exec::lanes::LANES;

impl Cx<'_> {
    /// Checks and counts an access to the lanes' own memory; `addresses` are offsets into it. Gives the warp's local memory
    /// and where in it each lane's bytes are.
    pub fn local_access(
        &mut self,
        site: u32,
        width: u32,
        mask: u32,
        addresses: &[u64; LANES],
    ) -> Result<(*mut u8, Offsets), Miss> {
        let size = u64::from(self.code.local_bytes);
        let first = mask.trailing_zeros() as usize;
        let mut offsets = [0; LANES];
        for (lane, offset) in offsets.iter_mut().enumerate() {
            // Inactive lanes get the address of an active one.
            let from = if mask >> lane & 1 != 0 { lane } else { first };
            let address = addresses[from];
            if address >= size || size - address < u64::from(width) {
                self.fault(Kind::OutOfBounds, from as u32, Some(address), || {
                    format!(
                        "{} at {address:#x} of the thread's {size} bytes of local memory",
                        bytes(u64::from(width))
                    )
                });
                return Err(Miss::Fault);
            }
            if !address.is_multiple_of(u64::from(width)) {
                self.fault(Kind::Misaligned, from as u32, Some(address), || {
                    format!("address {address:#x} in local memory is not a multiple of {width}")
                });
                return Err(Miss::Fault);
            }
            *offset = (from as u64 * size + address) as i32;
        }
        let traffic = self.mem.site_mut(site);
        traffic.requests += 1;
        traffic.lanes += u64::from(mask.count_ones());
        traffic.bytes += u64::from(mask.count_ones() * width);
        traffic.unique_bytes += u64::from(mask.count_ones() * width);
        traffic.sectors += local_sectors(width, mask, addresses);
        Ok((self.block.warps[self.warp].local.as_mut_ptr(), offsets))
    }

    /// Checks and counts a read of the kernel's parameters; addresses are offsets among them.
    #[inline(always)]
    pub fn param_access(&mut self, request: &Request<'_>, near: bool) -> Result<Place, Miss> {
        let size = u64::from(self.launch.kernel.param_bytes());
        let width = u64::from(request.width);
        for lane in bits(request.mask) {
            let address = request.address(lane);
            if !near || address >= size || size - address < width || address & (width - 1) != 0 {
                self.fault(Kind::OutOfBounds, lane as u32, Some(address), || {
                    format!("{} at {address:#x} of the kernel's {size} bytes of parameters", bytes(width))
                });
                return Err(Miss::Fault);
            }
        }
        let lanes = u64::from(request.mask.count_ones());
        let traffic = self.mem.site_mut(request.site);
        traffic.requests += 1;
        traffic.lanes += lanes;
        traffic.bytes += lanes * width;
        let uniform = request.offsets.iter().all(|&o| o == 0);
        Ok(Place {
            pointer: self.launch.params.as_ptr().wrapping_add(request.base as usize).cast_mut(),
            shape: if uniform { Shape::Broadcast } else { Shape::Scattered },
        })
    }

    /// Whether all active lanes' generic addresses are in one window.
    pub fn all_in(&self, window: Window, mask: u32, addresses: &[u64; LANES]) -> bool {
        bits(mask).all(|lane| Window::of(addresses[lane]) == window)
    }

    /// An address of shared memory that has more than 32 bits.
    #[cold]
    pub fn far_from_shared(&mut self, request: &Request<'_>) -> Flow {
        let (lane, address) = (request.mask.trailing_zeros(), request.base);
        self.fault(Kind::OutOfBounds, lane, Some(address), || {
            format!("{address:#x}, or another lane's address, is far outside of shared memory")
        })
    }

    /// A store to the window of parameters.
    #[cold]
    pub fn param_written(&mut self, mask: u32, address: u64) -> Flow {
        self.fault(Kind::OutOfBounds, mask.trailing_zeros(), Some(address), || {
            format!("writes {address:#x}, among the kernel's parameters, which cannot be written")
        })
    }

    /// An atomic on memory that is one thread's own.
    #[cold]
    pub fn no_atomics(&mut self, mask: u32, address: u64) -> Flow {
        self.fault(Kind::OutOfBounds, mask.trailing_zeros(), Some(address), || {
            format!("an atomic at {address:#x}, which is neither global nor shared memory")
        })
    }

    /// A fence by the running warp, at device scope or beyond if `device`.
    pub fn release(&mut self, device: bool) {
        self.block.fences.fence(&mut self.block.order, self.warp, device);
    }

    /// What a fence does for flags that were read.
    pub fn acquire(&mut self, _device: bool) {
        self.block.fences.acquire(&mut self.block.order, self.warp);
    }

    /// The running warp read what may be flags.
    #[inline(never)]
    pub fn flags_read(&mut self, request: &Request<'_>, window: Window) {
        for flag in flags(request, window) {
            let block = &mut self.block;
            block.fences.read(&self.launch.published, &block.order, self.warp, flag);
        }
    }

    /// The running warp wrote what may be flags.
    #[inline(never)]
    pub fn flags_written(&mut self, request: &Request<'_>, window: Window) {
        for flag in flags(request, window) {
            let block = &mut self.block;
            block.fences.write(&self.launch.published, &block.order, self.warp, block.linear, flag);
        }
    }
}

/// Each address once, if neighbouring lanes share it.
fn flags<'a>(request: &'a Request<'_>, window: Window) -> impl Iterator<Item = Flag> + 'a {
    let mut last = None;
    bits(request.mask).filter_map(move |lane| {
        let address = request.address(lane);
        if last == Some(address) {
            return None;
        }
        last = Some(address);
        Some(if window == Window::Shared { Flag::Shared(address as u32) } else { Flag::Global(address) })
    })
}

/// Local memory is interleaved: word by word, the 32 lanes' words lie side by side. The 32-byte sectors touched are the
/// distinct pairs of a word and a group of eight lanes.
fn local_sectors(width: u32, mask: u32, addresses: &[u64; LANES]) -> u64 {
    let words = u64::from(width.div_ceil(4));
    (0..4)
        .map(|group| {
            let mut seen: [u64; 8] = [u64::MAX; 8];
            for (n, lane) in bits(mask >> (8 * group) & 0xFF).enumerate() {
                let word = addresses[8 * group + lane] / 4;
                if !seen[..n].contains(&word) {
                    seen[n] = word;
                }
            }
            words * seen.iter().filter(|&&s| s != u64::MAX).count() as u64
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_words_of_eight_lanes_share_a_sector() {
        assert_eq!(local_sectors(4, u32::MAX, &[16; 32]), 4);
        assert_eq!(local_sectors(16, u32::MAX, &[16; 32]), 16);
        assert_eq!(local_sectors(1, 0xFF, &[17; 32]), 1);
        let each: [u64; 32] = std::array::from_fn(|l| 4 * l as u64);
        assert_eq!(local_sectors(4, 0xFF, &each), 8);
        assert_eq!(local_sectors(4, 0, &each), 0);
    }
}
