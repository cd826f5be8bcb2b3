use super::*;
use crate::check::{Findings, Kind};
use crate::mem::pattern::{By, Class, Key};

const FULL: u32 = u32::MAX;

/// A block whose warps make accesses by hand.
pub(crate) struct Sim {
    pub order: OrderState,
    pub shared: SharedMemory,
    pub findings: Findings,
    site: u32,
}

/// Lanes' byte addresses, width and values of an access.
#[derive(Clone)]
pub(crate) struct Touch {
    pub mask: u32,
    pub width: u32,
    pub address: [u32; 32],
    pub strong: bool,
    pub value: u32,
}

impl Touch {
    pub fn new(mask: u32, width: u32, address: impl Fn(u32) -> u32) -> Touch {
        let address = std::array::from_fn(|l| address(l as u32));
        Touch { mask, width, address, strong: false, value: 0 }
    }

    fn base(&self) -> u32 {
        self.address[self.mask.trailing_zeros() as usize]
    }

    fn pattern(&self) -> Pattern {
        let base = self.base();
        let offset = |l: usize| self.address[l].wrapping_sub(base) as i32;
        let offsets = std::array::from_fn(|l| if self.mask >> l & 1 == 1 { offset(l) } else { 0 });
        Pattern::new(Key::new(Class::Shared, By::Lane, u64::from(base), self.width, self.mask), &offsets)
    }
}

impl Sim {
    pub fn new(warps: usize, precise: bool) -> Sim {
        let mut order = OrderState::new();
        order.new_block(warps);
        let mut shared = SharedMemory::new(4096, warps, precise);
        shared.new_block(false);
        Sim { order, shared, findings: Findings::default(), site: 0 }
    }

    fn run(&mut self, warp: usize, t: &Touch, kind: u32) {
        self.site += 1;
        let access = Access { site: self.site, pc: self.site, warp: warp as u32, strong: t.strong };
        let place = |site: u32| format!("site {site}");
        let reporter = &mut Reporter {
            findings: &mut self.findings,
            block: 0,
            index: [0; 3],
            grid: [1; 3],
            places: &place,
        };
        let (p, base) = (t.pattern(), t.base());
        assert!(self.shared.contains(base, &p));
        let value =
            |lane: usize, byte: usize| Some(if byte == 0 { (t.value + lane as u32) as u8 } else { 0 });
        match kind {
            0 => self.shared.read(&self.order, &access, base, &p, reporter),
            1 => {
                self.shared.write(&self.order, &access, base, &p, &value, reporter);
                for lane in crate::mem::order::bits(t.mask) {
                    for byte in 0..t.width as usize {
                        let at = t.address[lane] as usize + byte;
                        // SAFETY: `contains` was asserted.
                        unsafe { *self.shared.data_mut().add(at) = value(lane, byte).unwrap_or(0) };
                    }
                }
            }
            _ => self.shared.atomic(&self.order, &access, base, &p, reporter),
        }
    }

    pub fn read(&mut self, warp: usize, t: &Touch) {
        self.run(warp, t, 0);
    }

    pub fn write(&mut self, warp: usize, t: &Touch) {
        self.run(warp, t, 1);
    }

    pub fn atomic(&mut self, warp: usize, t: &Touch) {
        self.run(warp, &Touch { strong: true, ..t.clone() }, 2);
    }

    /// Kinds found so far, and forgets them.
    pub fn found(&mut self) -> Vec<(Kind, String)> {
        let place = |pc: u32| (Default::default(), String::new(), pc, String::new());
        std::mem::take(&mut self.findings)
            .resolve("k", place)
            .into_iter()
            .map(|f| (f.kind, f.message))
            .collect()
    }

    pub fn kinds(&mut self) -> Vec<Kind> {
        self.found().into_iter().map(|f| f.0).collect()
    }
}

fn words(at: u32) -> Touch {
    Touch::new(FULL, 4, |l| at + 4 * l)
}

fn one(lane: u32, at: u32) -> Touch {
    Touch::new(1 << lane, 4, |_| at)
}

fn both(f: impl Fn(&mut Sim)) {
    for precise in [false, true] {
        f(&mut Sim::new(4, precise));
    }
}

#[test]
fn unwritten_words_are_told_and_written_ones_not() {
    both(|s| {
        s.read(0, &words(0));
        let found = s.found();
        assert_eq!(found[0].0, Kind::UninitialisedShared);
        assert!(found[0].1.contains("4 bytes at shared address 0x0"), "{}", found[0].1);
        s.write(0, &words(0));
        s.read(0, &words(0));
        assert_eq!(s.kinds(), []);
        s.shared.new_block(false);
        s.order.new_block(4);
        s.read(0, &words(0));
        assert_eq!(s.kinds(), [Kind::UninitialisedShared]);
    });
}

#[test]
fn single_bytes_are_known() {
    both(|s| {
        s.write(0, &Touch::new(1, 2, |_| 64));
        s.read(0, &Touch::new(1, 2, |_| 64));
        assert_eq!(s.kinds(), []);
        s.read(0, &Touch::new(1, 2, |_| 66));
        assert_eq!(s.kinds(), [Kind::UninitialisedShared]);
        s.read(0, &Touch::new(1, 4, |_| 64));
        assert!(s.found()[0].1.contains("2 bytes at shared address 0x42"));
    });
}

#[test]
fn a_read_of_another_warps_write_needs_a_barrier() {
    both(|s| {
        s.write(0, &words(0));
        s.read(1, &words(0));
        let found = s.found();
        assert_eq!(found[0].0, Kind::SharedRace);
        assert!(found[0].1.contains("written by warp 0 lane 0 at site 1"), "{}", found[0].1);
    });
    both(|s| {
        s.write(0, &words(0));
        s.order.full_barrier();
        s.read(1, &words(0));
        assert_eq!(s.kinds(), []);
    });
}

#[test]
fn a_write_after_another_warps_read_needs_a_barrier() {
    both(|s| {
        s.write(0, &words(0));
        s.order.full_barrier();
        s.read(1, &words(0));
        // A later reader does not hide the earlier one.
        s.read(0, &words(0));
        s.write(0, &Touch { value: 7, ..words(0) });
        assert_eq!(s.kinds(), [Kind::SharedRace]);
    });
    both(|s| {
        s.write(0, &words(0));
        s.order.full_barrier();
        s.read(1, &words(0));
        s.read(0, &words(0));
        s.order.full_barrier();
        s.write(0, &Touch { value: 7, ..words(0) });
        assert_eq!(s.kinds(), []);
    });
}

#[test]
fn two_warps_may_write_the_same_value_only() {
    both(|s| {
        s.write(0, &Touch { value: 5, ..one(3, 0) });
        s.write(1, &Touch { value: 5, ..one(3, 0) });
        assert_eq!(s.kinds(), []);
        s.write(1, &Touch { value: 6, ..one(3, 0) });
        assert_eq!(s.kinds(), [], "the writer before was the same thread");
        s.write(0, &Touch { value: 5, ..one(3, 0) });
        assert_eq!(s.kinds(), [Kind::SharedRace]);
    });
}

#[test]
fn two_lanes_of_one_store() {
    both(|s| {
        s.write(0, &Touch::new(0b11, 4, |_| 0));
        assert_eq!(s.kinds(), [Kind::LaneHazard], "lanes write their own numbers");
        s.write(0, &Touch::new(0b100, 4, |_| 4));
        assert_eq!(s.kinds(), []);
    });
}

#[test]
fn lanes_of_a_warp_need_a_syncwarp() {
    let reversed = || Touch::new(FULL, 4, |l| 4 * (31 - l));
    both(|s| {
        s.write(0, &words(0));
        s.read(0, &words(0));
        assert_eq!(s.kinds(), [], "each lane reads its own");
        s.read(0, &reversed());
        let found = s.found();
        assert_eq!(found[0].0, Kind::LaneHazard);
        assert!(found[0].1.contains("0x0, written by lane 0 of the same warp at site 1"), "{}", found[0].1);
    });
    both(|s| {
        s.write(0, &words(0));
        s.order.syncwarp(0, FULL);
        s.read(0, &reversed());
        s.order.syncwarp(0, FULL);
        s.write(0, &words(0));
        assert_eq!(s.kinds(), []);
    });
    both(|s| {
        s.write(0, &words(0));
        s.order.syncwarp(0, FULL);
        s.read(0, &reversed());
        s.write(0, &words(0));
        assert_eq!(s.kinds(), [Kind::LaneHazard], "write after read");
    });
}

#[test]
fn a_broadcast_needs_a_syncwarp_too() {
    both(|s| {
        s.write(0, &one(0, 0));
        s.read(0, &Touch::new(FULL, 4, |_| 0));
        assert_eq!(s.kinds(), [Kind::LaneHazard]);
        s.order.syncwarp(0, FULL);
        s.read(0, &Touch::new(FULL, 4, |_| 0));
        assert_eq!(s.kinds(), []);
        s.write(0, &Touch { value: 9, ..one(0, 0) });
        assert_eq!(s.kinds(), [Kind::LaneHazard]);
    });
}

#[test]
fn packed_halves_belong_to_their_lanes() {
    let halves = |shift: u32| Touch::new(FULL, 2, move |l| 2 * (l ^ shift));
    both(|s| {
        s.write(0, &halves(0));
        s.read(0, &halves(0));
        assert_eq!(s.kinds(), []);
        s.read(0, &halves(1));
        // Crossed lanes are not recorded, but single ones are checked.
        s.read(0, &Touch::new(1, 2, |_| 2));
        assert_eq!(s.kinds(), [Kind::LaneHazard]);
        s.read(1, &halves(0));
        assert_eq!(s.kinds(), [Kind::SharedRace]);
    });
    both(|s| {
        // Two warps share words, but no byte.
        for round in 0..3 {
            s.write(0, &Touch { value: round, ..Touch::new(FULL, 2, |l| 4 * l) });
            s.write(1, &Touch { value: round, ..Touch::new(FULL, 2, |l| 4 * l + 2) });
            s.read(1, &Touch::new(FULL, 2, |l| 4 * l + 2));
            s.read(0, &Touch::new(FULL, 2, |l| 4 * l));
        }
        assert_eq!(s.kinds(), []);
    });
}

#[test]
fn atomics_do_not_race_with_atomics() {
    both(|s| {
        s.write(0, &one(0, 0));
        s.order.full_barrier();
        for warp in 0..4 {
            s.atomic(warp, &Touch::new(FULL, 4, |_| 0));
        }
        assert_eq!(s.kinds(), []);
        s.read(1, &one(0, 0));
        assert_eq!(s.kinds(), [Kind::SharedRace]);
        s.order.full_barrier();
        s.read(1, &one(0, 0));
        s.atomic(2, &one(0, 0));
        assert_eq!(s.kinds(), [Kind::SharedRace], "a plain read and an atomic");
        s.atomic(2, &one(0, 8));
        assert_eq!(s.kinds(), [Kind::UninitialisedShared]);
    });
}

#[test]
fn named_barriers_order_their_warps() {
    let mut s = Sim::new(4, true);
    s.write(0, &words(0));
    s.order.barrier_among(0b0011);
    s.read(1, &words(0));
    assert_eq!(s.kinds(), []);
    s.read(2, &words(0));
    assert_eq!(s.kinds(), [Kind::SharedRace]);
    s.order.full_barrier();
    s.read(1, &words(0));
    s.read(2, &words(0));
    s.order.barrier_among(0b0101);
    s.write(0, &Touch { value: 8, ..words(0) });
    let found = s.found();
    assert_eq!(found[0].0, Kind::SharedRace, "warp 1 read and was not at the barrier");
    assert!(found[0].1.contains("warp 1 has read"), "{}", found[0].1);
    s.order.full_barrier();
    s.read(1, &words(0));
    let token = s.order.release(1);
    s.order.acquire(0, &token);
    s.write(0, &words(0));
    assert_eq!(s.kinds(), []);
}

#[test]
fn copies_in_flight_are_off_limits() {
    both(|s| {
        let t = words(256);
        let access = Access { site: 77, pc: 77, warp: 0, ..Access::default() };
        let place = |site: u32| format!("site {site}");
        let reporter = &mut Reporter {
            findings: &mut s.findings,
            block: 0,
            index: [0; 3],
            grid: [1; 3],
            places: &place,
        };
        s.shared.async_write(&s.order, &access, t.base(), &t.pattern(), reporter);
        let flights = [Flight { word: 64, count: 32 }];
        s.read(0, &t);
        let found = s.found();
        assert_eq!(found[0].0, Kind::AsyncInFlight);
        assert!(found[0].1.contains("copy of site 77 by warp 0"), "{}", found[0].1);
        s.shared.async_complete(s.order.now(), &flights);
        s.read(0, &t);
        assert_eq!(s.kinds(), []);
        s.read(1, &t);
        assert_eq!(s.kinds(), [Kind::SharedRace], "complete for the warp that issued it only");
        s.order.full_barrier();
        s.read(1, &t);
        assert_eq!(s.kinds(), []);
    });
    both(|s| {
        let (t, access) = (words(256), Access::default());
        let place = |site: u32| format!("site {site}");
        let reporter = &mut Reporter {
            findings: &mut s.findings,
            block: 0,
            index: [0; 3],
            grid: [1; 3],
            places: &place,
        };
        s.shared.async_write(&s.order, &access, t.base(), &t.pattern(), reporter);
        s.write(1, &t);
        assert_eq!(s.kinds(), [Kind::AsyncInFlight]);
    });
    both(|s| {
        let t = words(256);
        let access = Access { warp: 2, ..Access::default() };
        let place = |site: u32| format!("site {site}");
        let reporter = &mut Reporter {
            findings: &mut s.findings,
            block: 0,
            index: [0; 3],
            grid: [1; 3],
            places: &place,
        };
        let flight = Flight { word: 64, count: 32 };
        s.shared.async_write(&s.order, &access, t.base(), &t.pattern(), reporter);
        s.shared.async_complete(s.order.now(), &[flight]);
        let token = s.order.release(2);
        s.read(1, &t);
        assert_eq!(s.kinds(), [Kind::SharedRace], "nobody waited");
        s.order.acquire(1, &token);
        s.read(1, &t);
        assert_eq!(s.kinds(), []);
    });
}
