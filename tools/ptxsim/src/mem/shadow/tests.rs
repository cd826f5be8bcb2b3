use super::*;
use crate::check::Findings;
use crate::mem::allocation::{AllocInfo, AllocKind};
use crate::mem::fence::{Flag, Published};
use crate::mem::model::{Model, Part};
use crate::mem::pattern::{By, Class, Key};
use proptest::prelude::*;

const FULL: u32 = u32::MAX;
const BASE: u64 = 0x1000;

struct Sim {
    a: Allocation,
    published: Published,
    findings: Findings,
    epoch: u64,
    fenced: bool,
}

struct Block {
    number: u64,
    order: OrderState,
    fences: Fences,
}

#[derive(Clone, Copy)]
struct Touch {
    mask: u32,
    width: u32,
    at: u64,
    stride: u64,
    strong: bool,
    value: u8,
}

/// 32 words one after the other.
const WORDS: Touch = Touch { mask: FULL, width: 4, at: BASE, stride: 4, strong: false, value: 0 };
/// One word by lane 0.
const WORD: Touch = Touch { mask: 1, ..WORDS };

impl Sim {
    fn new(fenced: bool) -> Sim {
        let info = AllocInfo { base: BASE, bytes: 4096, kind: AllocKind::Device };
        let a = Allocation::device(info).expect("host memory");
        Sim { a, published: Published::default(), findings: Findings::default(), epoch: 1, fenced }
    }

    fn block(&self, number: u64) -> Block {
        let mut order = OrderState::new();
        order.new_block(4);
        let mut fences = Fences::default();
        fences.new_block(4, self.fenced);
        Block { number, order, fences }
    }

    fn run(&mut self, b: &mut Block, warp: u32, t: Touch, writes: bool) {
        b.fences.settle(&mut b.order);
        let first = t.at + t.stride * u64::from(t.mask.trailing_zeros());
        let offset =
            |l: u32| if t.mask >> l & 1 == 1 { (t.at + t.stride * u64::from(l) - first) as i32 } else { 0 };
        let offsets = std::array::from_fn(|l| offset(l as u32));
        let pattern = Pattern::new(Key::new(Class::Global, By::Lane, first, t.width, t.mask), &offsets);
        let access = Access { site: 1, pc: 1, warp, strong: t.strong };
        let place = |_: u32| String::new();
        let reporter = &mut Reporter {
            findings: &mut self.findings,
            block: b.number,
            index: [b.number as u32, 0, 0],
            grid: [100, 1, 1],
            places: &place,
        };
        let stamp = Stamp::new(self.epoch, b.number);
        let scene = Scene { stamp, order: &b.order, fences: &b.fences };
        let word0 = self.a.word_of(first);
        if !writes {
            return read(&scene, &self.a, &access, word0, &pattern, reporter);
        }
        let value =
            |lane: usize, byte: usize| Some(if byte == 0 { t.value.wrapping_add(lane as u8) } else { 0 });
        let known: &dyn Fn(usize, usize) -> Option<u8> = if t.strong { &|_, _| None } else { &value };
        write(&scene, &self.a, &access, word0, &pattern, known, reporter);
        for lane in crate::mem::order::bits(t.mask) {
            for byte in 0..t.width as usize {
                let at = first.wrapping_add_signed(i64::from(offsets[lane])) + byte as u64;
                // SAFETY: the tests stay inside the allocation.
                unsafe { *self.a.pointer(at) = value(lane, byte).unwrap_or(0) };
            }
        }
    }

    fn read(&mut self, b: &mut Block, warp: u32, t: Touch) {
        self.run(b, warp, t, false);
    }

    fn write(&mut self, b: &mut Block, warp: u32, t: Touch) {
        self.run(b, warp, t, true);
    }

    fn found(&mut self) -> Vec<(Kind, String)> {
        let place = |pc: u32| (Default::default(), String::new(), pc, String::new());
        std::mem::take(&mut self.findings)
            .resolve("k", place)
            .into_iter()
            .map(|f| (f.kind, f.message))
            .collect()
    }

    fn kinds(&mut self) -> Vec<Kind> {
        self.found().into_iter().map(|f| f.0).collect()
    }
}

#[test]
fn blocks_of_a_launch_race() {
    let mut s = Sim::new(false);
    let (mut x, mut y) = (s.block(3), s.block(7));
    s.write(&mut x, 2, WORDS);
    s.read(&mut y, 0, WORDS);
    let found = s.found();
    assert_eq!(found[0].0, Kind::GlobalRace);
    assert!(
        found[0].1.contains("reads global address 0x1000, written by block (3, 0, 0) warp 2 lane 0"),
        "{}",
        found[0].1
    );
    // The next launch may read it.
    s.epoch = 2;
    s.read(&mut y, 0, WORDS);
    s.read(&mut x, 0, WORDS);
    assert_eq!(s.kinds(), []);
    s.write(&mut y, 0, Touch { value: 1, ..WORDS });
    let found = s.found();
    assert_eq!(found[0].0, Kind::GlobalRace);
    assert!(found[0].1.contains("read by other blocks"), "{}", found[0].1);
}

#[test]
fn blocks_on_their_own_words_do_not_race() {
    let mut s = Sim::new(false);
    for number in 0..8 {
        let mut b = s.block(number);
        let own = Touch { at: BASE + 128 * number, ..WORDS };
        s.write(&mut b, 0, own);
        s.read(&mut b, 0, own);
        s.write(&mut b, 0, own);
    }
    let mut b = s.block(9);
    let even = Touch { at: BASE + 2048, width: 2, stride: 4, ..WORDS };
    s.write(&mut b, 0, even);
    let mut c = s.block(10);
    s.write(&mut c, 0, Touch { at: BASE + 2050, ..even });
    s.read(&mut c, 0, Touch { at: BASE + 2050, ..even });
    assert_eq!(s.kinds(), []);
    s.read(&mut c, 0, Touch { at: BASE + 2048, ..even });
    assert_eq!(s.kinds(), [], "only the last writer of a word is remembered");
    s.read(&mut b, 0, Touch { at: BASE + 2050, ..even });
    assert_eq!(s.kinds(), [Kind::GlobalRace]);
}

#[test]
fn equal_values_do_not_race() {
    let mut s = Sim::new(false);
    let (mut x, mut y) = (s.block(0), s.block(1));
    s.write(&mut x, 0, Touch { value: 4, ..WORD });
    s.write(&mut y, 0, Touch { value: 4, ..WORD });
    assert_eq!(s.kinds(), []);
    s.write(&mut x, 0, Touch { value: 5, ..WORD });
    assert_eq!(s.kinds(), [Kind::GlobalRace]);
}

#[test]
fn atomics_of_blocks_do_not_race() {
    let mut s = Sim::new(false);
    let atomic = Touch { strong: true, ..WORD };
    let (mut x, mut y) = (s.block(0), s.block(1));
    s.write(&mut x, 0, atomic);
    s.write(&mut y, 0, atomic);
    s.read(&mut y, 0, atomic);
    assert_eq!(s.kinds(), []);
    s.read(&mut x, 0, WORD);
    assert_eq!(s.kinds(), [Kind::GlobalRace]);
}

#[test]
fn warps_of_a_block_need_a_barrier() {
    let mut s = Sim::new(false);
    let mut b = s.block(5);
    s.write(&mut b, 0, WORDS);
    s.read(&mut b, 1, WORDS);
    let found = s.found();
    assert_eq!(found[0].0, Kind::GlobalRace);
    assert!(found[0].1.contains("warp 0 lane 0 of the block"), "{}", found[0].1);
    b.order.full_barrier();
    s.read(&mut b, 1, WORDS);
    assert_eq!(s.kinds(), []);
    s.write(&mut b, 0, Touch { value: 1, ..WORDS });
    assert_eq!(s.kinds(), [Kind::GlobalRace], "write after read");
    b.order.full_barrier();
    s.write(&mut b, 2, Touch { value: 2, ..WORDS });
    assert_eq!(s.kinds(), []);
}

#[test]
fn lanes_of_a_warp_need_a_syncwarp() {
    let mut s = Sim::new(false);
    let mut b = s.block(5);
    let next = Touch { at: BASE + 4, ..WORDS };
    s.write(&mut b, 0, WORDS);
    s.read(&mut b, 0, WORDS);
    assert_eq!(s.kinds(), []);
    s.read(&mut b, 0, Touch { mask: FULL >> 1, ..next });
    assert_eq!(s.kinds(), [Kind::LaneHazard]);
    b.order.syncwarp(0, FULL);
    s.read(&mut b, 0, Touch { mask: FULL >> 1, ..next });
    assert_eq!(s.kinds(), []);
    s.write(&mut b, 0, Touch { stride: 0, ..WORDS });
    assert!(s.kinds().contains(&Kind::LaneHazard), "different values in one store");
}

#[test]
fn many_barriers_do_not_confuse_the_clock() {
    let mut s = Sim::new(false);
    let mut b = s.block(5);
    for round in 0..80_000u32 {
        s.write(&mut b, round % 4, Touch { value: round as u8, ..WORD });
        b.order.full_barrier();
    }
    assert_eq!(s.kinds(), []);
}

/// CUDA's threadFenceReduction: every block writes a partial result and counts itself; the last one reads them all.
fn last_block_done(fence: bool, barrier: bool) -> Vec<Kind> {
    let mut s = Sim::new(true);
    let counter = BASE + 2048;
    let blocks = 6;
    for number in 0..blocks {
        let mut b = s.block(number);
        // Warp 1 has the result; thread 0 counts.
        s.write(&mut b, 1, Touch { at: BASE + 4 * number, value: 1 + number as u8, ..WORD });
        if barrier {
            b.order.full_barrier();
        }
        if fence {
            b.fences.fence(&mut b.order, 0, true);
        }
        s.write(&mut b, 0, Touch { at: counter, strong: true, ..WORD });
        b.fences.read(&s.published, &b.order, 0, Flag::Global(counter));
        b.fences.write(&s.published, &b.order, 0, number, Flag::Global(counter));
        b.order.full_barrier();
        if number == blocks - 1 {
            s.read(&mut b, 2, Touch { mask: (1 << blocks) - 1, ..WORDS });
        }
    }
    s.kinds()
}

#[test]
fn the_last_block_may_read_what_fences_published() {
    assert_eq!(last_block_done(true, true), []);
    assert_eq!(last_block_done(false, true), [Kind::GlobalRace]);
    assert_eq!(last_block_done(true, false), [Kind::GlobalRace]);
}

#[test]
fn words_read_by_several_blocks_are_not_told_where_flags_order_them() {
    let mut s = Sim::new(true);
    let (mut x, mut y, mut z) = (s.block(0), s.block(1), s.block(2));
    s.read(&mut x, 0, WORD);
    s.read(&mut y, 0, WORD);
    s.write(&mut z, 0, WORD);
    assert_eq!(s.kinds(), []);
}

const BLOCKS: usize = 3;
const WARPS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Access { block: usize, warp: usize, at: u64, stride: u64, mask: u32, writes: bool },
    Barrier(usize),
    Fence(usize, usize),
    Flag(usize, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let mask = prop_oneof![Just(FULL), Just(1u32), 1u32..=FULL];
    let stride = prop_oneof![Just(0u64), Just(4), Just(8)];
    prop_oneof![
        8 => (0..BLOCKS, 0..WARPS, 0u64..6, stride, mask, any::<bool>()).prop_map(
            |(block, warp, at, stride, mask, writes)| Step::Access { block, warp, at: BASE + 4 * at, stride, mask, writes }
        ),
        3 => (0..BLOCKS).prop_map(Step::Barrier),
        3 => (0..BLOCKS, 0..WARPS).prop_map(|(b, w)| Step::Fence(b, w)),
        4 => (0..BLOCKS, 0..WARPS, 0u64..2).prop_map(|(b, w, f)| Step::Flag(b, w, BASE + 2048 + 4 * f)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is told is there in the naive model, in which a flag orders only what fences on both sides cover.
    #[test]
    fn nothing_is_made_up(steps in prop::collection::vec(step(), 1..60), fenced: bool) {
        let mut s = Sim::new(fenced);
        let mut blocks: Vec<Block> = (0..BLOCKS as u64).map(|n| s.block(n)).collect();
        let mut model = Model::new(32 * WARPS * BLOCKS);
        let threads = |b: usize, w: usize, mask: u32| -> Vec<usize> {
            crate::mem::order::bits(mask).map(|l| 32 * (WARPS * b + w) + l).collect()
        };
        for (n, step) in steps.iter().enumerate() {
            match *step {
                Step::Access { block, warp, at, stride, mask, writes } => {
                    let t = Touch { mask, at, stride, value: (4 * n) as u8, ..WORDS };
                    let parts: Vec<Part> = crate::mem::order::bits(mask)
                        .map(|l| Part {
                            thread: 32 * (WARPS * block + warp) + l,
                            address: at + stride * l as u64,
                            bytes: vec![t.value.wrapping_add(l as u8), 0, 0, 0],
                        })
                        .collect();
                    let conflicts = model.access(&parts, writes, false);
                    s.run(&mut blocks[block], warp as u32, t, writes);
                    for (kind, message) in s.found() {
                        let same_warp = kind == Kind::LaneHazard;
                        prop_assert!(
                            conflicts.iter().any(|&(a, b)| (a / 32 == b / 32) == same_warp),
                            "step {}: {}; {:?}", n, message, conflicts
                        );
                    }
                }
                Step::Barrier(b) => {
                    blocks[b].order.full_barrier();
                    model.meet(&(0..WARPS).flat_map(|w| threads(b, w, FULL)).collect::<Vec<_>>());
                }
                Step::Fence(b, w) if fenced => {
                    let block = &mut blocks[b];
                    block.fences.fence(&mut block.order, w, true);
                    model.fence(&threads(b, w, FULL));
                }
                Step::Flag(b, w, at) if fenced => {
                    let block = &mut blocks[b];
                    block.fences.read(&s.published, &block.order, w, Flag::Global(at));
                    block.fences.write(&s.published, &block.order, w, b as u64, Flag::Global(at));
                    model.flag(&threads(b, w, FULL), at);
                }
                _ => {}
            }
        }
    }
}
