use super::*;
use crate::mem::who::Toucher;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn make(class: Class, base: u64, width: u32, mask: u32, address: impl Fn(u32) -> u64) -> Pattern {
    let mut offsets = [0; 32];
    for lane in 0..32 {
        if mask >> lane & 1 != 0 {
            offsets[lane as usize] = address(lane).wrapping_sub(base) as i32;
        }
    }
    Pattern::new(Key::new(class, By::Lane, base, width, mask), &offsets)
}

fn full(class: Class, width: u32, address: impl Fn(u32) -> u64) -> Pattern {
    make(class, address(0), width, u32::MAX, address)
}

#[test]
fn a_contiguous_warp() {
    let p = full(Class::Shared, 4, |l| 4096 + 4 * u64::from(l));
    assert_eq!(p.shape, Shape::Contiguous);
    assert_eq!(p.ranges(), [Range { word: 0, first: 0, count: 32 }]);
    assert_eq!((p.counts.wavefronts, p.counts.ideal_wavefronts), (1, 1));
    assert_eq!((p.min, p.end), (0, 128));
    let p = full(Class::Global, 4, |l| 4096 + 4 * u64::from(l));
    assert_eq!((p.counts.sectors, p.counts.bytes), (4, 128));
    let p = full(Class::Global, 4, |l| 4100 + 4 * u64::from(l));
    assert_eq!(p.counts.sectors, 5, "shifted by a word it touches a fifth sector");
}

#[test]
fn strides_conflict() {
    let wavefronts = |stride: u64| full(Class::Shared, 4, |l| stride * 4 * u64::from(l)).counts.wavefronts;
    assert_eq!([1, 2, 4, 32, 33].map(wavefronts), [1, 2, 4, 32, 1]);
}

#[test]
fn broadcast_is_free() {
    let p = full(Class::Shared, 4, |_| 64);
    assert_eq!((p.shape, p.counts.wavefronts, p.counts.ideal_wavefronts), (Shape::Broadcast, 1, 1));
    assert!(p.overlap);
    assert_eq!(who::toucher(u32::from(p.who()[0]), 0), Toucher::Many);
}

#[test]
fn wide_accesses_go_in_parts_of_the_warp() {
    let contiguous = |width: u32| full(Class::Shared, width, |l| u64::from(l * width)).counts;
    for width in [4, 8, 16, 32] {
        let c = contiguous(width);
        assert_eq!((c.wavefronts, c.ideal_wavefronts), (width / 4, width / 4), "width {width}");
    }
    // 128-bit loads at a stride of 128 bytes: a quarter warp's eight lanes share four banks.
    let c = full(Class::Shared, 16, |l| u64::from(l * 128)).counts;
    assert_eq!((c.wavefronts, c.ideal_wavefronts), (32, 4));
}

#[test]
fn halves_of_words_are_packed() {
    let p = full(Class::Shared, 2, |l| 2 * u64::from(l));
    assert!(p.whole_words && !p.overlap);
    assert_eq!(p.ranges(), [Range { word: 0, first: 0, count: 16 }]);
    assert_eq!(who::toucher(u32::from(p.who()[3]), 2), Toucher::Lane(7));
    let p = full(Class::Shared, 2, |l| 4 * u64::from(l));
    assert!(!p.whole_words);
}

#[test]
fn patterns_are_found_again() {
    let mut patterns = Patterns::new();
    let mut ways = Ways::default();
    for round in 0..3 {
        for stride in 0..CAPACITY as i32 + 10 {
            let offsets = std::array::from_fn(|l| l as i32 * 4 * stride);
            let key = Key::new(Class::Global, By::Lane, 4096, 4, u32::MAX);
            let index = match patterns.find(&mut ways, key, &offsets) {
                Some(index) => index,
                None => {
                    let index = patterns.insert(&mut ways, key, &offsets);
                    assert_eq!(patterns.find(&mut ways, key, &offsets), Some(index));
                    index
                }
            };
            assert_eq!(patterns.get(index).offsets(), &offsets, "round {round}");
        }
    }
    let offsets = [0; 32];
    let mut fresh = Ways::default();
    let key = |base| Key::new(Class::Global, By::Lane, base, 4, u32::MAX);
    let a = patterns.insert(&mut fresh, key(4), &offsets);
    assert_eq!(patterns.find(&mut Ways::default(), key(4), &offsets), Some(a));
    assert_ne!(patterns.find(&mut fresh, key(8), &offsets), Some(a), "another place in the sector");
}

/// Everything again, byte by byte.
fn naive(p: &Pattern, class: Class, width: u32, addresses: &BTreeMap<u32, u64>) -> Result<(), TestCaseError> {
    let base = *addresses.values().next().expect("a lane");
    let word0 = base / 4;
    let mut bytes: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for (&lane, &a) in addresses {
        for b in 0..u64::from(width) {
            bytes.entry(a + b).or_default().insert(lane);
        }
    }
    let words: BTreeSet<u64> = bytes.keys().map(|b| b / 4).collect();
    let told: Vec<u64> = p
        .ranges()
        .iter()
        .flat_map(|r| (0..i64::from(r.count)).map(move |k| (word0 as i64 + i64::from(r.word) + k) as u64))
        .collect();
    prop_assert_eq!(&told, &words.iter().copied().collect::<Vec<_>>());
    let mut cut: Vec<(i32, u16)> = (0..RUNS.len())
        .flat_map(|c| {
            p.runs(c)
                .iter()
                .flat_map(move |r| (0..RUNS[c]).map(move |k| (r.word + i32::from(k), r.first + k)))
        })
        .collect();
    cut.sort();
    let whole =
        p.ranges().iter().flat_map(|r| (0..r.count).map(move |k| (r.word + i32::from(k), r.first + k)));
    prop_assert_eq!(cut, whole.collect::<Vec<_>>());
    for pair in p.ranges().windows(2) {
        prop_assert!(pair[0].word + i32::from(pair[0].count) < pair[1].word);
    }
    for (index, word) in told.iter().enumerate() {
        let info = u32::from(p.who()[index]);
        for b in 0..4 {
            let lanes = bytes.get(&(word * 4 + b));
            prop_assert_eq!(lanes.is_some(), who::mask(info) >> b & 1 == 1);
            let Some(lanes) = lanes else { continue };
            match who::toucher(info, b as usize) {
                Toucher::Lane(l) => prop_assert_eq!(lanes, &BTreeSet::from([l as u32])),
                Toucher::Many => prop_assert!(lanes.len() > 1),
                Toucher::Unknown => prop_assert!(width < 4),
            }
        }
    }
    prop_assert_eq!(p.counts.unique_bytes as usize, bytes.len());
    prop_assert_eq!(p.overlap, bytes.values().any(|l| l.len() > 1));
    prop_assert_eq!(p.counts.collisions as usize, bytes.values().map(BTreeSet::len).max().unwrap_or(0));
    match class {
        Class::Global => {
            let sectors: BTreeSet<u64> = bytes.keys().map(|b| b / 32).collect();
            prop_assert_eq!(p.counts.sectors as usize, sectors.len());
        }
        Class::Shared => {
            let per_group = if width <= 4 { 32 } else { 128 / width };
            let (mut wavefronts, mut ideal) = (0, 0);
            for group in 0..32 / per_group {
                let mine = |lanes: &BTreeSet<u32>| lanes.iter().any(|l| l / per_group == group);
                let words: BTreeSet<u64> =
                    bytes.iter().filter(|(_, l)| mine(l)).map(|(b, _)| b / 4).collect();
                let needed = bytes.values().filter(|l| mine(l)).count();
                wavefronts +=
                    (0..32).map(|bank| words.iter().filter(|w| *w % 32 == bank).count()).max().unwrap_or(0);
                ideal += needed.div_ceil(128);
            }
            prop_assert_eq!(
                (p.counts.wavefronts as usize, p.counts.ideal_wavefronts as usize),
                (wavefronts, ideal)
            );
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn equals_the_naive_count(
        shared: bool,
        log_width in 0u32..6,
        mask in prop_oneof![Just(u32::MAX), 1u32..],
        base in 0u64..4096,
        stride in 0u64..40,
        noise in prop::collection::vec(0u64..64, 32),
        noisy in 0u64..3,
    ) {
        let class = if shared { Class::Shared } else { Class::Global };
        let width = 1 << log_width;
        let address = |l: u32| {
            (65536 + base + u64::from(l) * stride + noisy * noise[l as usize]) * u64::from(width)
        };
        let first = mask.trailing_zeros();
        let p = make(class, address(first), width, mask, address);
        let addresses = (0..32).filter(|l| mask >> l & 1 == 1).map(|l| (l, address(l))).collect();
        naive(&p, class, width, &addresses)?;
    }
}
