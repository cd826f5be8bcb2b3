//! Addresses in shared memory of instructions that work on nothing else.

use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{Inst, Slot};
use crate::exec::lanes::LANES;
use crate::exec::lower::Lower;
use crate::exec::program::SHARED_WINDOW;
use crate::mem::access::{offsets32, offsets64};
use crate::mem::pattern::Offsets;
use crate::ptx::ast::Operand;

/// Bit of `Inst::aux`: the address has 64 bits.
pub(crate) const WIDE: u32 = 1 << 31;
/// Bit of `Inst::aux`: it is a generic address.
const GENERIC: u32 = 1 << 30;

/// An operand that names a place in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedAddress {
    pub(crate) base: Slot,
    pub(crate) offset: i64,
    /// Upper bits of `Inst::aux`.
    pub(crate) flags: u32,
}

impl SharedAddress {
    /// `shared`: the instruction names the space; otherwise the address is generic, and must lead there.
    pub(crate) fn decode(
        operand: &Operand,
        shared: bool,
        lower: &mut Lower<'_>,
    ) -> Result<SharedAddress, String> {
        let named =
            matches!(operand, Operand::Address { base: Some(name), .. } if lower.place(name).is_some());
        let address = lower.address(operand)?;
        let wide = if address.rows == 2 { WIDE } else { 0 };
        // The name of a variable gives its address in its own space.
        let generic = if shared || named { 0 } else { GENERIC };
        Ok(SharedAddress { base: address.base, offset: address.offset, flags: wide | generic })
    }

    /// The base into `r[1]`, the offset into `imm`, the flags into `aux`.
    pub(crate) fn place(self, inst: &mut Inst) {
        inst.r[1] = self.base;
        inst.imm = self.offset;
        inst.aux |= self.flags;
    }
}

/// The address in `r[1]`: that of the lowest lane of the mask in the shared window, and the distances of the others.
/// `None` after a fault: one of them is not in that window.
#[inline(always)]
pub(crate) fn shared_address(cx: &mut Cx<'_>, i: &Inst, mask: u32, width: u32) -> Option<(u64, Offsets)> {
    address_of(cx, i.r[1], i.imm, i.aux, mask, width)
}

/// As [`shared_address`], with the offset and the flags from elsewhere.
#[inline(always)]
pub(crate) fn address_of(
    cx: &mut Cx<'_>,
    base: Slot,
    offset: i64,
    flags: u32,
    mask: u32,
    width: u32,
) -> Option<(u64, Offsets)> {
    if flags & (WIDE | GENERIC) == 0 {
        let (first, offsets) = offsets32(&cx.get(base), mask);
        return Some((u64::from(first.wrapping_add_signed(offset as i32)), offsets));
    }
    let addresses = wide_addresses(cx, base, offset, flags);
    for lane in crate::mem::order::bits(mask) {
        if addresses[lane] > u64::from(u32::MAX) {
            cx.fault(Kind::OutOfBounds, lane as u32, Some(addresses[lane]), || {
                format!("{width} bytes at an address that is not in shared memory")
            });
            return None;
        }
    }
    let (first, offsets, _) = offsets64(&addresses, mask);
    Some((first, offsets))
}

/// Every lane's address in the shared window; too large where it is not there.
pub(crate) fn wide_addresses(cx: &Cx<'_>, base: Slot, offset: i64, flags: u32) -> [u64; LANES] {
    let mut addresses =
        if flags & WIDE != 0 { cx.get::<u64>(base) } else { cx.get::<u32>(base).map(u64::from) };
    for address in &mut addresses {
        *address = address.wrapping_add_signed(offset);
        if flags & GENERIC != 0 {
            *address = address.wrapping_sub(SHARED_WINDOW);
        }
    }
    addresses
}
