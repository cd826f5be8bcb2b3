use crate::check::Kind;
use crate::exec::test_bench::Bench;
use proptest::prelude::*;

/// The manual's text, one thread at a time, with its five-bit fields. `None` where the source lane has no value.
fn manual(mode: &str, lane: i32, b: u32, c: u32, active: u32, a: &[u32; 32]) -> (Option<u32>, bool) {
    let bval = (b & 0x1f) as i32;
    let cval = (c & 0x1f) as i32;
    let mask = ((c >> 8) & 0x1f) as i32;
    let max_lane = (lane & mask) | (cval & !mask & 0x1f);
    let min_lane = lane & mask;
    let (mut j, pval);
    match mode {
        "up" => {
            j = lane - bval;
            pval = j >= max_lane;
        }
        "down" => {
            j = lane + bval;
            pval = j <= max_lane;
        }
        "bfly" => {
            j = lane ^ bval;
            pval = j <= max_lane;
        }
        _ => {
            j = min_lane | (bval & !mask & 0x1f);
            pval = j <= max_lane;
        }
    }
    if !pval {
        j = lane;
    }
    ((active >> j & 1 != 0).then(|| a[j as usize]), pval)
}

fn check(mode: &str, a: [u32; 32], b: [u32; 32], c: [u32; 32], lanes: u32) -> Result<(), TestCaseError> {
    let text = format!("shfl.sync.{mode}.b32 %r1|%p1, %r2, %r3, %r4, {lanes};");
    let mut bench = Bench::new(&text).map_err(TestCaseError::fail)?;
    bench.set("%r1", [77u32; 32]);
    bench.set("%r2", a);
    bench.set("%r3", b);
    bench.set("%r4", c);
    bench.set_live(lanes);
    bench.run(lanes);
    let got = bench.get::<u32>("%r1");
    let mut absent = false;
    for lane in 0..32 {
        if lanes >> lane & 1 == 0 {
            prop_assert_eq!(got[lane], 77, "lane {} was written", lane);
            continue;
        }
        let (value, pval) = manual(mode, lane as i32, b[lane], c[lane], lanes, &a);
        absent |= value.is_none();
        prop_assert_eq!(got[lane], value.unwrap_or(a[lane]), "lane {}", lane);
        prop_assert_eq!(bench.pred("%p1") >> lane & 1 != 0, pval, "lane {}", lane);
    }
    prop_assert_eq!(bench.kinds().contains(&Kind::AbsentLane), absent);
    Ok(())
}

fn mode() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["up", "down", "bfly", "idx"])
}

proptest! {
    #[test]
    fn as_the_manual_has_it(mode in mode(), a: [u32; 32], b: [u32; 32], c: [u32; 32]) {
        check(mode, a, b, c, u32::MAX)?;
    }

    #[test]
    fn a_part_of_the_warp(mode in mode(), a: [u32; 32], b: [u32; 32], c: [u32; 32], lanes in 1..=u32::MAX) {
        check(mode, a, b, c, lanes)?;
    }

    /// Clamps as the `__shfl` functions make them from a width.
    #[test]
    fn widths(mode in mode(), a: [u32; 32], delta in 0u32..32, log in 0u32..6) {
        let width = 1 << log;
        let c = ((32 - width) << 8) | if mode == "up" { 0 } else { 31 };
        check(mode, a, [delta; 32], [c; 32], u32::MAX)?;
    }
}

#[test]
fn every_bit_of_the_segment_and_clamp() -> Result<(), TestCaseError> {
    let a = std::array::from_fn(|l| 100 + l as u32);
    for mode in ["up", "down", "bfly", "idx"] {
        for c in (0..32 * 32).map(|n: u32| (n & 31) | (n >> 5 << 8)) {
            check(mode, a, std::array::from_fn(|l| (l as u32 * 7 + c) % 32), [c; 32], u32::MAX)?;
        }
    }
    Ok(())
}

#[test]
fn writes_onto_its_own_source() -> Result<(), String> {
    let mut b = Bench::new("shfl.sync.down.b32 %r1, %r1, 1, 31, -1;")?;
    b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| l as u32));
    b.run(u32::MAX);
    assert_eq!(b.get::<u32>("%r1"), std::array::from_fn(|l| (l as u32 + 1).min(31)));
    assert!(b.kinds().is_empty());
    Ok(())
}

#[test]
fn a_full_mask_with_a_lane_elsewhere() -> Result<(), String> {
    let mut b = Bench::new("shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;")?;
    b.run(0xFFFF_FFF0);
    let found = b.findings();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].who.lane), (Kind::AbsentLane, 0));
    assert!(found[0].message.contains("0x0000000f"), "{}", found[0].message);
    Ok(())
}

#[test]
fn a_full_mask_after_lanes_exited() -> Result<(), String> {
    let mut b = Bench::new("shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;")?;
    b.set_live(0x0000_FFFF);
    b.run(0x0000_FFFF);
    assert!(b.kinds().is_empty(), "{:?}", b.findings());
    let mut b = Bench::new("shfl.sync.down.b32 %r1, %r2, 16, 31, -1;")?;
    b.set_live(0x0000_FFFF);
    b.run(0x0000_FFFF);
    assert_eq!(b.kinds(), [Kind::AbsentLane], "lanes 16 to 31 are gone");
    Ok(())
}

#[test]
fn two_groups_at_one_time() -> Result<(), String> {
    let mut b = Bench::new("shfl.sync.idx.b32 %r1, %r2, 0, 0x101f, %r3;")?;
    b.set("%r2", std::array::from_fn::<u32, 32, _>(|l| l as u32));
    b.set("%r3", std::array::from_fn::<u32, 32, _>(|l| if l < 16 { 0xFFFF } else { 0xFFFF_0000 }));
    b.run(u32::MAX);
    assert_eq!(b.get::<u32>("%r1"), std::array::from_fn(|l| l as u32 & 16));
    assert!(b.kinds().is_empty(), "{:?}", b.findings());
    Ok(())
}

#[test]
fn a_lane_outside_its_own_mask() -> Result<(), String> {
    let mut b = Bench::new("shfl.sync.idx.b32 %r1, %r2, 1, 31, 0xFFFE;")?;
    b.run(0xFFFF);
    assert_eq!(b.kinds(), [Kind::AbsentLane]);
    Ok(())
}

#[test]
fn the_guard_counts() -> Result<(), String> {
    let mut b = Bench::new("@%p2 shfl.sync.idx.b32 %r1, %r2, 1, 31, -1;")?;
    b.set_pred("%p2", 0xFFFF_FFFE);
    b.run(u32::MAX);
    assert_eq!(b.kinds(), [Kind::AbsentLane]);
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in ["shfl.up.b32 %r1, %r2, 1, 0;", "shfl.sync.up.b64 %r1, %r2, 1, 0, -1;"] {
        assert!(Bench::new(text).is_err(), "{text}");
    }
}
