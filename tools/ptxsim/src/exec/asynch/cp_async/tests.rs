use crate::check::Kind;
use crate::exec::inst::{Class, Flow};
use crate::exec::program::SHARED_BASE;
use crate::exec::test_bench::Bench;
use proptest::prelude::*;

/// Bytes of the source: different ones, and none of them 0.
fn source(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8 + 1).collect()
}

/// `%rd1` leads to a source of 4 KiB, `%r1` to the start of 2 KiB of shared memory; both by `stride` a lane.
fn bench(text: &str, stride: u32, threads: u32) -> Result<(Bench, u64), String> {
    let mut b = Bench::block(text, threads, 2048)?;
    let address = b.buffers[0];
    b.memory().write(address, &source(4096)).map_err(|e| e.to_string())?;
    for warp in 0..threads as usize / 32 {
        b.cx.enter(warp);
        b.set("%rd1", std::array::from_fn::<u64, 32, _>(|l| address + u64::from(stride) * l as u64));
        b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + stride * l as u32));
    }
    b.cx.enter(0);
    Ok((b, address))
}

#[test]
fn copies_each_width() -> Result<(), String> {
    for (cache, width) in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)] {
        let text = format!("cp.async.{cache}.shared.global [%r1+32], [%rd1+64], {width}; cp.async.wait_all;");
        let (mut b, _) = bench(&text, width, 32)?;
        assert_eq!(b.run(u32::MAX), Flow::Next);
        let bytes = 32 * width as usize;
        assert_eq!(b.shared(32, bytes), source(4096)[64..64 + bytes]);
        let t = b.traffic(0);
        assert_eq!((t.requests, t.lanes, t.bytes), (1, 32, bytes as u64));
        assert_eq!(
            (t.sectors, t.wavefronts, t.ideal_wavefronts),
            (width as u64, width as u64 / 4, width as u64 / 4)
        );
        assert_eq!((b.kinds(), b.class().0), (vec![], Class::AsyncCopy));
    }
    Ok(())
}

proptest! {
    #[test]
    fn fills_up_with_zeros(sizes in prop::array::uniform32(0u32..=16), mask in 1..=u32::MAX) {
        let text = "cp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16, %r2; cp.async.wait_all;";
        let (mut b, address) = bench(text, 32, 32).map_err(TestCaseError::fail)?;
        b.fill_shared(0, &[0xEE; 1024]);
        b.set("%r2", sizes);
        // A lane that reads nothing may have any address.
        b.set("%rd1", std::array::from_fn::<u64, 32, _>(|l| {
            if sizes[l] == 0 { 16 } else { address + 32 * l as u64 }
        }));
        let before = b.traffic(0);
        prop_assert_eq!(b.run(mask), Flow::Next, "{:?}", b.findings());
        for (lane, &size) in sizes.iter().enumerate() {
            let mut expected = vec![0xEE; 32];
            if mask >> lane & 1 != 0 {
                expected[..16].fill(0);
                let size = size as usize;
                expected[..size].copy_from_slice(&source(4096)[32 * lane..][..size]);
            }
            prop_assert_eq!(b.shared(32 * lane as u32, 32), expected, "lane {}", lane);
        }
        prop_assert_eq!(b.kinds(), vec![]);
        let t = b.traffic(0);
        let asked: u32 = (0..32).filter(|l| mask >> l & 1 != 0).map(|l| sizes[l]).sum();
        prop_assert_eq!(t.bytes - before.bytes, u64::from(asked));
    }
}

#[test]
fn ignores_the_source() -> Result<(), String> {
    for (p, ignored) in [("%p1", 0xFFFFu32), ("!%p1", 0xFFFF_0000)] {
        let (mut b, _) =
            bench(&format!("cp.async.ca.shared.global [%r1], [%rd1], 4, {p}; cp.async.wait_all;"), 4, 32)?;
        b.set_pred("%p1", 0xFFFF);
        b.run(u32::MAX);
        for lane in 0..32usize {
            let expected =
                if ignored >> lane & 1 != 0 { vec![0; 4] } else { source(128)[4 * lane..][..4].to_vec() };
            assert_eq!(b.shared(4 * lane as u32, 4), expected);
        }
    }
    Ok(())
}

#[test]
fn a_cache_policy_is_accepted() -> Result<(), String> {
    let text = "cp.async.cg.shared.global.L2::cache_hint [%r1], [%rd1], 16, %rd7;
                cp.async.cg.shared::cta.global.L2::cache_hint.L2::256B [%r1+1024], [%rd1], 16, %r2, %rd7;";
    let (mut b, _) = bench(text, 16, 32)?;
    b.set("%r2", [16u32; 32]);
    assert_eq!(b.run(u32::MAX), Flow::Next);
    assert_eq!(b.shared(1024, 512), source(512));
    Ok(())
}

/// Two stages, and a wait that lets `keep` groups go on.
fn pipeline(keep: u32) -> Result<Bench, String> {
    let text = format!(
        "cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.commit_group;
         cp.async.cg.shared.global [%r1+512], [%rd1+512], 16; cp.async.commit_group;
         cp.async.wait_group {keep}; ld.shared.b32 %r3, [%r1]; ld.shared.b32 %r3, [%r1+512];"
    );
    let (mut b, _) = bench(&text, 16, 64)?;
    for line in 0..5 {
        b.line(line, u32::MAX);
    }
    Ok(b)
}

#[test]
fn waits_for_groups() -> Result<(), String> {
    for (keep, first, second) in [(2, false, false), (1, true, false), (0, true, true)] {
        for (line, fine) in [(5, first), (6, second)] {
            let mut b = pipeline(keep)?;
            b.line(line, u32::MAX);
            assert_eq!(b.kinds(), if fine { vec![] } else { vec![Kind::AsyncInFlight] });
        }
    }
    Ok(())
}

#[test]
fn another_warp_needs_a_barrier_too() -> Result<(), String> {
    let mut b = pipeline(0)?;
    b.line_in(1, 5, u32::MAX);
    assert_eq!(b.kinds(), [Kind::SharedRace]);
    let mut b = pipeline(0)?;
    b.barrier();
    b.line_in(1, 5, u32::MAX);
    assert_eq!(b.kinds(), []);
    let mut b = pipeline(1)?;
    b.barrier();
    b.line_in(1, 6, u32::MAX);
    assert_eq!(b.kinds(), [Kind::AsyncInFlight], "a barrier is no wait");
    Ok(())
}

#[test]
fn lanes_share_after_a_syncwarp() -> Result<(), String> {
    let text = "cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.wait_all; bar.warp.sync -1;
                ld.shared.b32 %r3, [%r2];";
    for synchronised in [false, true] {
        let (mut b, _) = bench(text, 16, 32)?;
        b.set("%r2", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 16 * (31 - l as u32)));
        b.line(0, u32::MAX);
        b.line(1, u32::MAX);
        if synchronised {
            b.line(2, u32::MAX);
        }
        b.line(3, u32::MAX);
        assert_eq!(b.kinds(), if synchronised { vec![] } else { vec![Kind::LaneHazard] });
    }
    Ok(())
}

#[test]
fn an_exit_without_a_wait_is_told() -> Result<(), String> {
    let text = "cp.async.ca.shared.global [%r1], [%rd1], 4; cp.async.wait_group 0; cp.async.commit_group;";
    let (mut b, _) = bench(text, 4, 32)?;
    b.line(0, 0xFF);
    // Group 0 is still open: nothing is waited for.
    b.line(1, u32::MAX);
    b.cx.exiting(0xF0);
    let found = b.findings();
    assert_eq!((found.len(), found[0].kind, found[0].who.lane), (1, Kind::ExitWithPendingCopies, 4));
    assert!(found[0].message.contains("0x000000f0"), "{}", found[0].message);
    b.line(2, 0x0F);
    b.line(1, 0x0F);
    b.cx.exiting(0x0F);
    assert_eq!(b.findings()[0].count, 1, "the others have waited");
    Ok(())
}

#[test]
fn mistakes_are_told() -> Result<(), String> {
    let text = "cp.async.cg.shared.global [%r1], [%rd1], 16;";
    type Wrong = fn(&mut Bench, u64);
    let cases: [(Kind, Wrong); 5] = [
        (Kind::Misaligned, |b, a| b.set("%rd1", [a + 8; 32])),
        (Kind::Misaligned, |b, _| {
            b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 8 + 16 * l as u32))
        }),
        (Kind::OutOfBounds, |b, _| b.set("%rd1", [16u64; 32])),
        (Kind::OutOfBounds, |b, a| {
            b.set("%rd1", std::array::from_fn::<u64, 32, _>(|l| a + 4096 - 16 * 31 + 16 * l as u64))
        }),
        (Kind::OutOfBounds, |b, _| {
            b.set("%r1", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 2048 - 16 * l as u32))
        }),
    ];
    for (kind, wrong) in cases {
        let (mut b, address) = bench(text, 16, 32)?;
        wrong(&mut b, address);
        assert_eq!((b.run(u32::MAX), b.kinds()), (Flow::Stop, vec![kind]));
    }
    let (mut b, _) = bench(text, 16, 32)?;
    let fresh = b.buffers[1];
    b.set("%rd1", std::array::from_fn::<u64, 32, _>(|l| fresh + 16 * l as u64));
    assert_eq!((b.run(u32::MAX), b.kinds()), (Flow::Next, vec![Kind::UninitialisedGlobal]));
    let (mut b, _) = bench("cp.async.ca.shared.global [%r1], [%rd1], 8, %r2;", 8, 32)?;
    b.set("%r2", [9u32; 32]);
    assert_eq!((b.run(u32::MAX), b.kinds()), (Flow::Stop, vec![Kind::Unsupported]));
    Ok(())
}

#[test]
fn lanes_may_read_several_allocations() -> Result<(), String> {
    let (mut b, address) = bench("cp.async.cg.shared.global [%r1], [%rd1], 16; cp.async.wait_all;", 16, 32)?;
    let other = b.buffers[1];
    b.memory().write(other, &[7; 4096]).map_err(|e| e.to_string())?;
    b.set(
        "%rd1",
        std::array::from_fn::<u64, 32, _>(|l| if l % 2 == 0 { address } else { other } + 16 * l as u64),
    );
    assert_eq!(b.run(u32::MAX), Flow::Next);
    for lane in 0..32usize {
        let expected = if lane % 2 == 0 { source(512)[16 * lane..][..16].to_vec() } else { vec![7; 16] };
        assert_eq!(b.shared(16 * lane as u32, 16), expected);
    }
    assert_eq!((b.traffic(0).requests, b.kinds()), (1, vec![]));
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in [
        "cp.async.cg.shared.global [%r1], [%rd1], 8;",
        "cp.async.ca.shared.global [%r1], [%rd1], 12;",
        "cp.async.ca.global.shared [%rd1], [%r1], 4;",
        "cp.async.wait_group %r1;",
        "cp.async.ca.shared.global [%r1], [%r2], 4;",
    ] {
        assert!(Bench::block(text, 32, 64).is_err(), "{text}");
    }
}
