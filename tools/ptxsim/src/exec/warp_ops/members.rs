//! Member masks.

use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::Slot;
use crate::exec::lanes::{FULL, lane_mask};

/// Whether lanes that a member mask names are still to come: they wait in a loop, and these ones were let go first.
/// Hardware would wait for them here; the instruction has to be executed again (`Cx::again`).
#[inline(always)]
pub(crate) fn still_to_come(cx: &Cx<'_>, members: Slot, mask: u32) -> bool {
    mask != FULL && absent_come_later(cx, members, mask)
}

#[cold]
fn absent_come_later(cx: &Cx<'_>, members: Slot, mask: u32) -> bool {
    let wanted = cx.get::<u32>(members);
    let named = (0..32).filter(|l| mask >> l & 1 != 0).fold(0, |m, l| m | wanted[l]);
    cx.come_later(named & cx.live() & !mask)
}

/// Calls `f` once for each set of lanes that execute the instruction with the same member mask, and tells who is missing.
#[inline(always)]
pub(crate) fn groups(cx: &mut Cx<'_>, members: Slot, mask: u32, mut f: impl FnMut(&mut Cx<'_>, u32)) {
    let wanted = cx.get::<u32>(members);
    if mask == FULL && wanted.iter().fold(FULL, |m, w| m & w) == FULL {
        return f(cx, FULL);
    }
    let mut left = mask;
    while left != 0 {
        let group = next(cx, &wanted, left);
        f(cx, group);
        left &= !group;
    }
}

/// The lanes among `left` that have the same member mask as the first of them.
#[cold]
fn next(cx: &mut Cx<'_>, wanted: &[u32; 32], left: u32) -> u32 {
    let first = left.trailing_zeros();
    let named = wanted[first as usize];
    let group = left & lane_mask(|l| wanted[l] == named);
    let absent = named & cx.live() & !group;
    if absent != 0 {
        cx.find(Kind::AbsentLane, absent.trailing_zeros(), None, || {
            format!(
                "the member mask {named:#010x} names lanes {absent:#010x}, which live but do not execute this \
                 instruction with that mask together with lanes {group:#010x}"
            )
        });
    }
    let strangers = group & !named;
    if strangers != 0 {
        cx.find(Kind::AbsentLane, strangers.trailing_zeros(), None, || {
            format!("lanes {strangers:#010x} execute this instruction with member mask {named:#010x}, which lacks them")
        });
    }
    group
}
