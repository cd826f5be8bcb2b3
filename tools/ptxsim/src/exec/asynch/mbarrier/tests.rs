use crate::check::Kind;
use crate::exec::asynch::phase::Phase;
use crate::exec::inst::Flow;
use crate::exec::program::SHARED_BASE;
use crate::exec::test_bench::Bench;

const ALL: u32 = u32::MAX;

/// Instructions on an object at the start of shared memory (`%r1`), initialised for `count` arrivals; `%r9` is 64 bytes
/// behind it. Line 0 is the initialisation.
fn bench(count: u32, warps: u32, text: &str) -> Result<Bench, String> {
    let text = format!(
        "mbarrier.init.shared.b64 [%r1], {count}; st.shared.b32 [%r9], %r8; ld.shared.b32 %r8, [%r9]; {text}"
    );
    let mut b = Bench::block(&text, 32 * warps, 1024)?;
    for warp in 0..warps as usize {
        b.cx.enter(warp);
        b.set("%r1", [SHARED_BASE; 32]);
        b.set("%r9", [SHARED_BASE + 64; 32]);
    }
    b.line_in(0, 0, 1);
    b.barrier();
    Ok(b)
}

const WRITE: usize = 1;
const READ: usize = 2;

#[test]
fn arrivals_and_waits() -> Result<(), String> {
    let mut b = bench(
        64,
        2,
        "mbarrier.arrive.shared.b64 %rd1, [%r1];
         mbarrier.test_wait.shared.b64 %p1, [%r1], %rd1;
         mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], %r2;
         mbarrier.pending_count.b64 %r3, %rd1;
         mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r1], %r2, %r4;",
    )?;
    let progress = b.cx.block.progress;
    b.line(3, ALL);
    // Lane 31 found the arrivals of 31 others.
    b.line(6, ALL);
    assert_eq!((b.get::<u32>("%r3")[0], b.get::<u32>("%r3")[31]), (64, 33));
    assert_eq!((b.line(4, ALL), b.pred("%p1")), (Flow::Park, 0));
    assert_eq!((b.line(5, ALL), b.pred("%p2")), (Flow::Park, 0));
    b.line_in(1, 3, ALL);
    assert!(b.cx.block.progress > progress);
    assert_eq!((b.line_in(0, 4, ALL), b.pred("%p1")), (Flow::Next, ALL));
    b.set("%r2", std::array::from_fn::<u32, 32, _>(|l| l as u32 & 1));
    // Phase 0 is over, phase 1 is not.
    assert_eq!((b.line(5, ALL), b.pred("%p2")), (Flow::Park, 0x5555_5555));
    assert_eq!((b.line(7, 0x5555_5555), b.kinds()), (Flow::Next, vec![]));
    Ok(())
}

#[test]
fn the_word_lies_in_memory() -> Result<(), String> {
    let mut b = bench(5, 1, "mbarrier.arrive.shared.b64 _, [%r1], %r2; mbarrier.inval.shared.b64 [%r1];")?;
    b.set("%r2", [2u32; 32]);
    b.line(3, 1);
    let word = |b: &Bench| u64::from_le_bytes(b.shared(0, 8).try_into().expect("8 bytes"));
    assert_eq!(Phase::of(word(&b)), Some(Phase { expected: 5, pending: 3, bytes: 0, odd: false }));
    b.line(4, 1);
    assert_eq!((Phase::of(word(&b)), b.kinds()), (None, vec![]));
    Ok(())
}

#[test]
fn an_arrival_publishes_and_a_wait_acquires() -> Result<(), String> {
    for (arrive, wait, fine) in [("", "", true), (".relaxed.cta", "", false), ("", ".relaxed.cta", false)] {
        let text = format!(
            "mbarrier.arrive{arrive}.shared::cta.b64 _, [%r1];
             mbarrier.test_wait.parity{wait}.shared::cta.b64 %p1, [%r1], 0;"
        );
        let mut b = bench(1, 2, &text)?;
        b.line(WRITE, 1);
        b.line(3, 1);
        b.line_in(1, 4, ALL);
        b.line_in(1, READ, ALL);
        assert_eq!((b.pred("%p1"), b.kinds().is_empty()), (ALL, fine), "{:?}", b.findings());
    }
    let mut b = bench(1, 2, "mbarrier.arrive.shared::cta.b64 _, [%r1];")?;
    b.line(WRITE, 1);
    b.line(3, 1);
    b.line_in(1, READ, ALL);
    assert_eq!(b.kinds(), [Kind::SharedRace], "nobody waited");
    Ok(())
}

#[test]
fn what_comes_after_the_arrival_is_not_published() -> Result<(), String> {
    let mut b = bench(
        1,
        2,
        "mbarrier.arrive.shared::cta.b64 _, [%r1]; mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r1], 0;",
    )?;
    b.line(3, 1);
    b.line(WRITE, 1);
    b.line_in(1, 4, ALL);
    b.line_in(1, READ, ALL);
    assert_eq!(b.kinds(), [Kind::SharedRace]);
    Ok(())
}

#[test]
fn bytes_are_waited_for() -> Result<(), String> {
    let mut b = bench(
        1,
        1,
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 128;
         mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], %r2;
         mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0, 1000;
         mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 16;",
    )?;
    b.set("%r2", [64u32; 32]);
    b.line(3, 1);
    b.line(4, 1);
    assert_eq!((b.line(5, ALL), b.pred("%p1")), (Flow::Park, 0));
    b.line(6, 1);
    b.set("%r2", [80u32; 32]);
    b.line(4, 1);
    assert_eq!((b.line(5, ALL), b.pred("%p1"), b.kinds()), (Flow::Next, ALL, vec![]));
    Ok(())
}

#[test]
fn dropped_arrivals_are_not_expected_again() -> Result<(), String> {
    let mut b = bench(
        2,
        1,
        "mbarrier.arrive_drop.shared.b64 _, [%r1]; mbarrier.arrive.shared.b64 _, [%r1];
         mbarrier.test_wait.parity.shared.b64 %p1, [%r1], %r2;",
    )?;
    b.line(3, 1);
    b.line(4, 2);
    assert_eq!((b.line(5, ALL), b.pred("%p1")), (Flow::Next, ALL));
    b.line(4, 2);
    b.set("%r2", [1u32; 32]);
    assert_eq!((b.line(5, ALL), b.pred("%p1"), b.kinds()), (Flow::Next, ALL, vec![]));
    Ok(())
}

#[test]
fn misuse_is_told() -> Result<(), String> {
    let misuse = |setup: u32, text: &str, message: &str| -> Result<(), String> {
        let mut b = bench(setup, 1, text)?;
        let lines = text.matches(';').count();
        for line in 3..3 + lines {
            b.line(line, 1);
        }
        let found = b.findings();
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].kind, Kind::MbarrierMisuse);
        assert!(found[0].message.contains(message), "{}", found[0].message);
        Ok(())
    };
    misuse(1, "mbarrier.arrive.shared.b64 _, [%r9];", "not initialised")?;
    misuse(1, "mbarrier.test_wait.parity.shared.b64 %p1, [%r9], 0;", "not initialised")?;
    misuse(1, "mbarrier.init.shared.b64 [%r1], 3;", "initialised again")?;
    misuse(1, "mbarrier.inval.shared.b64 [%r1]; mbarrier.arrive.shared.b64 _, [%r1];", "not initialised")?;
    misuse(1, "mbarrier.arrive.shared.b64 _, [%r1], 2;", "2 arrivals at an mbarrier that waits for 1 more")?;
    misuse(1, "mbarrier.inval.shared.b64 [%r1]; mbarrier.init.shared.b64 [%r1], 0;", "not 0")?;
    misuse(1, "mbarrier.arrive.noComplete.shared.b64 %rd1, [%r1], 1;", "completes the phase")?;
    misuse(2, "mbarrier.expect_tx.relaxed.cta.shared.b64 [%r1], 1048576;", "byte count")?;
    misuse(2, "st.shared.b32 [%r1], 5; mbarrier.arrive.shared.b64 _, [%r1];", "overwritten")?;
    Ok(())
}

#[test]
fn addresses_are_checked() -> Result<(), String> {
    for (address, kind) in [(SHARED_BASE + 4, Kind::Misaligned), (SHARED_BASE + 1024, Kind::OutOfBounds)] {
        let mut b = bench(1, 1, "mbarrier.arrive.shared.b64 _, [%r1];")?;
        b.set("%r1", [address; 32]);
        assert_eq!((b.line(3, 1), b.kinds()), (Flow::Stop, vec![kind]));
    }
    Ok(())
}

#[test]
fn an_initialisation_needs_a_barrier() -> Result<(), String> {
    let text = "mbarrier.init.shared.b64 [%r1], 1; mbarrier.arrive.shared.b64 _, [%r1];";
    for ordered in [false, true] {
        let mut b = Bench::block(text, 64, 1024)?;
        for warp in 0..2 {
            b.cx.enter(warp);
            b.set("%r1", [SHARED_BASE; 32]);
        }
        b.line_in(0, 0, 1);
        if ordered {
            b.barrier();
        }
        b.line_in(1, 1, 1);
        assert_eq!(b.kinds(), if ordered { vec![] } else { vec![Kind::SharedRace] });
    }
    Ok(())
}

/// Lane 0 of warp 0 copies 4 bytes with `cp.async` and lets the object track them.
fn tracked(arrive: &str, count: u32) -> Result<Bench, String> {
    let text = format!(
        "cp.async.ca.shared.global [%r9], [%rd7], 4; {arrive} [%r1];
         mbarrier.arrive.shared.b64 _, [%r1]; mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;"
    );
    let mut b = bench(count, 2, &text)?;
    let source = b.buffers[0];
    b.memory().write(source, &[1, 2, 3, 4]).map_err(|e| e.to_string())?;
    b.set("%rd7", [0u64; 32]);
    b.cx.enter(0);
    b.set("%rd7", [source; 32]);
    b.line(3, 1);
    b.line(4, 1);
    Ok(b)
}

#[test]
fn an_object_tracks_cp_async() -> Result<(), String> {
    let mut b = tracked("cp.async.mbarrier.arrive.noinc.shared.b64", 1)?;
    b.line_in(1, READ, ALL);
    assert_eq!(b.kinds(), [Kind::AsyncInFlight], "nobody waited");
    let mut b = tracked("cp.async.mbarrier.arrive.noinc.shared.b64", 1)?;
    assert_eq!((b.line_in(1, 6, ALL), b.pred("%p1")), (Flow::Next, ALL));
    b.line_in(1, READ, ALL);
    assert_eq!((b.kinds(), b.get::<u32>("%r8")), (vec![], [0x0403_0201; 32]));
    // Without .noinc the arrival is one that nobody counted on.
    let mut b = tracked("cp.async.mbarrier.arrive.shared::cta.b64", 1)?;
    assert_eq!((b.line_in(1, 6, ALL), b.pred("%p1")), (Flow::Park, 0));
    b.line_in(0, 5, 1);
    assert_eq!((b.line_in(1, 6, ALL), b.pred("%p1")), (Flow::Next, ALL));
    b.cx.enter(0);
    b.cx.exiting(ALL);
    assert_eq!(b.kinds(), []);
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in [
        "mbarrier.init.shared.b32 [%r1], 1;",
        "mbarrier.init.parity.shared.b64 [%r1], 1;",
        "mbarrier.test_wait.parity.shared.b64 %p1, [%r1], 0, 5;",
        "mbarrier.arrive.expect_tx.shared.b64 _, [%r1];",
        "mbarrier.arrive.acquire.shared.b64 _, [%r1];",
        "cp.async.mbarrier.arrive.shared.b32 [%r1];",
    ] {
        assert!(Bench::block(text, 32, 64).is_err(), "{text}");
    }
}
