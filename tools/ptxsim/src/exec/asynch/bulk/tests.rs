use super::pieces;
use crate::check::Kind;
use crate::exec::inst::{Class, Flow};
use crate::exec::program::SHARED_BASE;
use crate::exec::test_bench::Bench;
use half::{bf16, f16};

const ALL: u32 = u32::MAX;

fn source(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8 + 1).collect()
}

/// `%r1` is an mbarrier at the start of 8 KiB of shared memory, `%r2` 1024 bytes behind it, `%rd1` 4 KiB of global memory.
fn bench(text: &str) -> Result<(Bench, u64), String> {
    let text = format!(
        "mbarrier.init.shared.b64 [%r1], 1; mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;
         ld.shared.b32 %r9, [%r2+4]; st.shared.b32 [%r2+4], %r9;
         prefetch.global.L2 [%rd1]; {text}"
    );
    let mut b = Bench::block(&text, 64, 8192)?;
    let address = b.buffers[0];
    b.memory().write(address, &source(4096)).map_err(|e| e.to_string())?;
    for warp in 0..2 {
        b.cx.enter(warp);
        b.set("%rd1", [address; 32]);
        b.set("%r1", [SHARED_BASE; 32]);
        b.set("%r2", [SHARED_BASE + 1024; 32]);
    }
    b.line_in(0, 0, 1);
    b.barrier();
    Ok((b, address))
}

const WAIT: usize = 1;
const READ: usize = 2;
const WRITE: usize = 3;

const IN: &str = "mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 1552;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1+16], %r3, [%r1];";

fn copied_in(line: &str) -> Result<Bench, String> {
    let (mut b, _) = bench(line)?;
    b.set("%r3", [1552u32; 32]);
    b.line(5, 1);
    assert_eq!((b.line(WAIT, ALL), b.pred("%p1")), (Flow::Park, 0));
    b.line(6, 1);
    Ok(b)
}

#[test]
fn into_shared_memory() -> Result<(), String> {
    let mut b = copied_in(IN)?;
    assert!(b.shared(1024, 1552) == source(4096)[16..16 + 1552]);
    let t = b.traffic(4 + 1);
    assert_eq!((t.requests, t.lanes, t.bytes, t.unique_bytes), (1, 1, 1552, 1552));
    assert_eq!(b.class().0, Class::AsyncCopy);
    assert_eq!((b.line_in(1, WAIT, ALL), b.pred("%p1")), (Flow::Next, ALL));
    b.line_in(1, READ, ALL);
    assert_eq!(b.kinds(), []);
    Ok(())
}

#[test]
fn must_be_waited_for() -> Result<(), String> {
    for (warp, waits, kind) in
        [(0, false, Kind::AsyncInFlight), (1, false, Kind::AsyncInFlight), (1, true, Kind::SharedRace)]
    {
        let mut b = copied_in(IN)?;
        if waits {
            // Warp 0 waits, and warp 1 reads.
            b.line(WAIT, ALL);
        }
        b.line_in(warp, READ, ALL);
        assert_eq!(b.kinds(), [kind]);
    }
    Ok(())
}

#[test]
fn a_wrong_expectation_never_completes() -> Result<(), String> {
    let mut b = copied_in(&IN.replace("1552", "1536"))?;
    assert_eq!((b.line(WAIT, ALL), b.pred("%p1")), (Flow::Park, 0));
    Ok(())
}

#[test]
fn across_shared_memory() -> Result<(), String> {
    let (mut b, _) = bench(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r2+2048], [%r2], 64, [%r1];",
    )?;
    b.fill_shared(1024, &source(64));
    b.line(5, 1);
    assert_eq!((b.shared(3072, 64), b.kinds()), (source(64), vec![]));
    Ok(())
}

const OUT: &str = "cp.async.bulk.global.shared::cta.bulk_group [%rd1+32], [%r2], 1040;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 1;";

fn copied_out() -> Result<(Bench, u64), String> {
    let (mut b, address) = bench(OUT)?;
    b.fill_shared(1024, &[9; 1040]);
    b.line(5, 2);
    b.line(6, 2);
    Ok((b, address))
}

#[test]
fn into_global_memory() -> Result<(), String> {
    let (mut b, address) = copied_out()?;
    b.line(7, 2);
    b.line(WRITE, 2);
    b.cx.exiting(2);
    let mut got = vec![0; 1104];
    b.memory().read(address, &mut got).map_err(|e| e.to_string())?;
    let mut expected = source(4096)[..1104].to_vec();
    expected[32..1072].fill(9);
    assert!(got == expected);
    assert_eq!(b.kinds(), []);
    Ok(())
}

#[test]
fn the_source_must_stay_until_the_wait() -> Result<(), String> {
    let (mut b, _) = copied_out()?;
    b.line(WRITE, 2);
    b.line(7, 2);
    assert_eq!(b.kinds(), [Kind::AsyncInFlight]);
    let (mut b, _) = copied_out()?;
    // One group may go on: nothing was waited for.
    b.line(8, 2);
    b.cx.exiting(2);
    assert_eq!(b.kinds(), [Kind::ExitWithPendingCopies]);
    Ok(())
}

#[test]
fn mistakes_are_told() -> Result<(), String> {
    let text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], %r3, [%r1];";
    type Wrong = fn(&mut Bench, u64);
    let cases: [(Kind, Wrong); 6] = [
        (Kind::Misaligned, |b, _| b.set("%r3", [24u32; 32])),
        (Kind::Misaligned, |b, a| b.set("%rd1", [a + 8; 32])),
        (Kind::Misaligned, |b, _| b.set("%r2", [SHARED_BASE + 1032; 32])),
        (Kind::OutOfBounds, |b, _| b.set("%r3", [4112u32; 32])),
        (Kind::OutOfBounds, |b, _| b.set("%r2", [SHARED_BASE + 8192; 32])),
        (Kind::MbarrierMisuse, |b, _| b.set("%r1", [SHARED_BASE + 8; 32])),
    ];
    for (kind, wrong) in cases {
        let (mut b, address) = bench(text)?;
        b.set("%r3", [64u32; 32]);
        wrong(&mut b, address);
        b.line(5, 1);
        assert!(b.kinds().contains(&kind), "{kind:?} {:?}", b.findings());
    }
    Ok(())
}

#[test]
fn pieces_cover_the_copy() {
    assert_eq!(pieces(0).count(), 0);
    assert_eq!(pieces(16).collect::<Vec<_>>(), [(0, 1)]);
    assert_eq!(pieces(512 + 48).collect::<Vec<_>>(), [(0, ALL), (512, 7)]);
}

fn reduced(form: &str, old: &[u8], new: &[u8]) -> Result<Vec<u8>, String> {
    let text =
        format!("cp.reduce.async.bulk.global.shared::cta.bulk_group.{form} [%rd1], [%r2], {};", new.len());
    let (mut b, address) = bench(&text)?;
    b.memory().write(address, old).map_err(|e| e.to_string())?;
    b.fill_shared(1024, new);
    assert_eq!(b.line(5, 1), Flow::Next, "{:?}", b.findings());
    assert_eq!(b.kinds(), []);
    let mut got = vec![0; new.len()];
    b.memory().read(address, &mut got).map_err(|e| e.to_string())?;
    Ok(got)
}

#[test]
fn reductions() -> Result<(), String> {
    let words = |f: fn(u32) -> u32| (0..12).flat_map(|n| f(n).to_le_bytes()).collect::<Vec<u8>>();
    let (old, new) = (words(|n| n), words(|n| 100 + 7 * n));
    assert_eq!(reduced("add.u32", &old, &new)?, words(|n| 100 + 8 * n));
    assert_eq!(
        reduced("max.s32", &old, &words(|n| (5 - n as i32) as u32))?,
        words(|n| n.max(5u32.saturating_sub(n)))
    );
    assert_eq!(reduced("xor.b32", &old, &new)?, words(|n| n ^ (100 + 7 * n)));
    let floats = |f: fn(f32) -> f32| (0..12).flat_map(|n| f(n as f32).to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(reduced("add.f32", &floats(|n| n), &floats(|n| 0.5 * n))?, floats(|n| 1.5 * n));
    let halves = |f: fn(f32) -> f32| {
        (0..8).flat_map(|n| f16::from_f32(f(n as f32)).to_le_bytes()).collect::<Vec<u8>>()
    };
    assert_eq!(reduced("add.noftz.f16", &halves(|n| n), &halves(|n| 2.0 * n))?, halves(|n| 3.0 * n));
    let brain = |f: fn(f32) -> f32| {
        (0..8).flat_map(|n| bf16::from_f32(f(n as f32)).to_le_bytes()).collect::<Vec<u8>>()
    };
    assert_eq!(reduced("add.noftz.bf16", &brain(|n| n), &brain(|n| 2.0 * n))?, brain(|n| 3.0 * n));
    let wide = |f: fn(u64) -> u64| (0..4).flat_map(|n| f(n).to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(reduced("add.u64", &wide(|n| n << 40), &wide(|n| n))?, wide(|n| (n << 40) + n));
    Ok(())
}

#[test]
fn reductions_into_shared_memory() -> Result<(), String> {
    let (mut b, _) = bench(
        "mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 16;
         cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.inc.u32 [%r2+64], [%r2], 16, [%r1];",
    )?;
    b.fill_shared(1024, &[3, 0, 0, 0].repeat(4));
    b.fill_shared(1088, &[1u32, 2, 3, 4].map(u32::to_le_bytes).concat());
    b.line(5, 1);
    b.line(6, 1);
    assert_eq!((b.line(WAIT, ALL), b.pred("%p1")), (Flow::Next, ALL));
    assert_eq!(b.shared(1088, 16), [2u32, 3, 0, 0].map(u32::to_le_bytes).concat());
    assert_eq!(b.kinds(), []);
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in [
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], [%r2];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd1], 16, [%r2], %r4;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%rd1], [%r1], 16;",
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.f32 [%r1], [%r2], 16, [%r3];",
        "setmaxnreg.inc.sync.aligned.u32 240;",
        "mapa.shared::cluster.u32 %r1, %r2, 0;",
        "wgmma.fence.sync.aligned;",
    ] {
        assert!(Bench::block(text, 32, 64).is_err(), "{text}");
    }
}

#[test]
fn orderings_between_launches_do_nothing() -> Result<(), String> {
    let mut b = Bench::new("griddepcontrol.wait; griddepcontrol.launch_dependents;")?;
    assert_eq!((b.run(ALL), b.kinds()), (Flow::Next, vec![]));
    Ok(())
}
