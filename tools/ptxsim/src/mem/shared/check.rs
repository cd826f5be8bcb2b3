//! The slow path: words whose last accesses are not known to be in order.

use super::{IN_FLIGHT, Plane, SharedMemory};
use crate::check::Kind;
use crate::mem::lanes::{self, Touch};
use crate::mem::order::OrderState;
use crate::mem::pattern::Pattern;
use crate::mem::report::{Access, Reporter, bytes};
use crate::mem::who;

impl SharedMemory {
    #[inline(never)]
    pub(super) fn check_read(
        &self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        reporter: &mut Reporter<'_>,
    ) {
        self.check_initialised(access, base, pattern, reporter);
        self.each_word(base, access, pattern, |k, info| {
            let touch = Touch { info, writes: false };
            if self.init[k] & IN_FLIGHT == 0 {
                self.against_write(order, access, k, touch, &|_| false, reporter);
            }
        });
    }

    #[inline(never)]
    pub(super) fn check_initialised(
        &self,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        reporter: &mut Reporter<'_>,
    ) {
        self.each_word(base, access, pattern, |k, info| {
            if self.init[k] & IN_FLIGHT != 0 {
                self.told_in_flight(access, k, info, "reads", reporter);
                return;
            }
            let missing = info & 15 & !u32::from(self.init[k]);
            if missing != 0 {
                let (lane, address) = (lanes::name_lane(info, missing), address(k, missing));
                let n = u64::from(missing.count_ones());
                reporter.add(Kind::UninitialisedShared, access, lane, address, |_| {
                    format!(
                        "reads {} at shared address {address:#x} that nobody wrote in this block",
                        bytes(n)
                    )
                });
            }
        });
    }

    #[inline(never)]
    pub(super) fn check_write(
        &self,
        order: &OrderState,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        value: &dyn Fn(usize, usize) -> Option<u8>,
        reporter: &mut Reporter<'_>,
    ) {
        self.each_word(base, access, pattern, |k, info| {
            let same = |common| self.repeats(base, pattern, k, common, value);
            self.check_write_word(order, access, k, info, &same, reporter);
        });
    }

    pub(super) fn check_write_word(
        &self,
        order: &OrderState,
        access: &Access,
        k: usize,
        info: u32,
        same: &dyn Fn(u32) -> bool,
        reporter: &mut Reporter<'_>,
    ) {
        if self.init[k] & IN_FLIGHT != 0 {
            self.told_in_flight(access, k, info, "writes", reporter);
            return;
        }
        let touch = Touch { info, writes: true };
        self.against_write(order, access, k, touch, same, reporter);
        self.against_reads(order, access, k, touch, reporter);
    }

    /// Two lanes of one store with one address and different values.
    #[inline(never)]
    pub(super) fn check_overlap(
        &self,
        access: &Access,
        base: u32,
        pattern: &Pattern,
        value: &dyn Fn(usize, usize) -> Option<u8>,
        reporter: &mut Reporter<'_>,
    ) {
        if let Some((a, b)) = pattern.disagreement(value) {
            let address = i64::from(base) + i64::from(pattern.offsets()[b]);
            reporter.add(Kind::LaneHazard, access, b, address as u64, |_| {
                format!(
                    "lanes {a} and {b} of one store write different values to shared address {address:#x}"
                )
            });
        }
    }

    fn each_word(&self, base: u32, access: &Access, pattern: &Pattern, mut f: impl FnMut(usize, u32)) {
        let flags = access.info();
        for &range in pattern.ranges() {
            let at = ((base >> 2) as i32 + range.word) as usize;
            for (k, who) in pattern.who_of(range).iter().enumerate() {
                f(at + k, flags | u32::from(*who));
            }
        }
    }

    /// Whether the store leaves the common bytes of word `k` as they are.
    fn repeats(
        &self,
        base: u32,
        pattern: &Pattern,
        k: usize,
        common: u32,
        value: &dyn Fn(usize, usize) -> Option<u8>,
    ) -> bool {
        let data: &[u128] = &self.data;
        pattern
            .bytes_of_word((base & 3) as i32, k as i32 - (base >> 2) as i32)
            .filter(|&(_, _, b)| common >> b & 1 == 1)
            .all(|(lane, byte, b)| {
                let old = data[k / 4].to_le_bytes()[(k % 4) * 4 + b];
                value(lane, byte) == Some(old)
            })
    }

    fn told_in_flight(&self, access: &Access, k: usize, info: u32, verb: &str, reporter: &mut Reporter<'_>) {
        let other = self.plane(Plane::WriteInfo, k);
        let address = address(k, info & 15);
        reporter.add(Kind::AsyncInFlight, access, lanes::name_lane(info, 15 & info), address, |places| {
            format!(
                "{verb} shared address {address:#x} while the asynchronous copy of {} by warp {} may still be writing it",
                places.place(other >> who::SITE_SHIFT),
                who::warp(other),
            )
        });
    }

    fn against_write(
        &self,
        order: &OrderState,
        access: &Access,
        k: usize,
        now: Touch,
        same: &dyn Fn(u32) -> bool,
        reporter: &mut Reporter<'_>,
    ) {
        let (stamp, info) = (self.plane(Plane::WriteTime, k), self.plane(Plane::WriteInfo, k));
        if stamp < order.start() || !lanes::meet(info, now.info) {
            return;
        }
        let (verb, did) = (if now.writes { "writes" } else { "reads" }, "written");
        self.against(order, access, k, now, Touch { info, writes: true }, stamp, (verb, did), same, reporter);
    }

    fn against_reads(
        &self,
        order: &OrderState,
        access: &Access,
        k: usize,
        now: Touch,
        reporter: &mut Reporter<'_>,
    ) {
        let (w, stamp, info) =
            (access.warp as usize, self.plane(Plane::ReadTime, k), self.plane(Plane::ReadInfo, k));
        if stamp < order.start() {
            return;
        }
        let words = ("writes", "read");
        if lanes::meet(info, now.info)
            && self.against(
                order,
                access,
                k,
                now,
                Touch { info, writes: false },
                stamp,
                words,
                &|_| false,
                reporter,
            )
        {
            return;
        }
        // The warps that read the word before the last reader.
        let other = if self.rows.is_empty() {
            let others = self.plane(Plane::Readers, k) & !(1 << w);
            (stamp > order.last_full_barrier() && others != 0).then(|| others.trailing_zeros() as usize)
        } else {
            (0..order.warps()).find(|&u| u != w && self.rows[u * self.words + k] > order.seen(w, u))
        };
        if let Some(u) = other {
            let address = address(k, now.info);
            reporter.add(Kind::SharedRace, access, lanes::name_lane(now.info, now.info), address, |_| {
                format!(
                    "writes shared address {address:#x}, which warp {u} has read with no barrier in between"
                )
            });
        }
    }

    /// One earlier access against the present one; true if it was told.
    #[allow(clippy::too_many_arguments)]
    fn against(
        &self,
        order: &OrderState,
        access: &Access,
        k: usize,
        now: Touch,
        before: Touch,
        stamp: u32,
        (verb, did): (&str, &str),
        same: &dyn Fn(u32) -> bool,
        reporter: &mut Reporter<'_>,
    ) -> bool {
        let (w, u) = (access.warp as usize, who::warp(before.info));
        let common = now.info & before.info & 15;
        let site = before.info >> who::SITE_SHIFT;
        let address = address(k, common);
        if u != w {
            if stamp <= order.seen(w, u) || (before.writes && now.writes && same(common)) {
                return false;
            }
            let lane = lanes::name_lane(before.info, common);
            reporter.add(Kind::SharedRace, access, lanes::name_lane(now.info, common), address, |places| {
                format!(
                    "{verb} shared address {address:#x}, {did} by warp {u} lane {lane} at {} with no barrier in between",
                    places.place(site)
                )
            });
            return true;
        }
        let Some((i, j)) = lanes::conflict(order, w, before, stamp, now) else { return false };
        if before.writes && now.writes && same(common) {
            return false;
        }
        reporter.add(Kind::LaneHazard, access, j, address, |places| {
            format!(
                "{verb} shared address {address:#x}, {did} by lane {i} of the same warp at {} with no __syncwarp in between",
                places.place(site)
            )
        });
        true
    }
}

/// Address of the first byte of the mask in word `k`.
fn address(k: usize, mask: u32) -> u64 {
    4 * k as u64 + u64::from((mask & 15).trailing_zeros() & 3)
}
