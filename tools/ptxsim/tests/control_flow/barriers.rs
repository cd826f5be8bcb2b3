//! Barriers of the block and of the warp.

use crate::harness::{each, only, run, run_with, shape, told};
use ptxsim::check::Kind;

const SHARED: &str = ".shared .align 4 .b8 box[4096];";

#[test]
fn everybody_sees_what_was_written_before_a_barrier() {
    let body = "
    mov.u32 %r10, box;
    shl.b32 %r11, %r2, 2;
    add.u32 %r11, %r10, %r11;
    mul.lo.u32 %r12, %r2, 3;
    st.shared.u32 [%r11], %r12;
    bar.sync 0;
    sub.u32 %r13, 127, %r2;
    shl.b32 %r13, %r13, 2;
    add.u32 %r13, %r10, %r13;
    ld.shared.u32 %r14, [%r13];
    give %r14;
    ret;";
    assert_eq!(run(SHARED, body, &shape(3, 128)), each(384, |t| 3 * (127 - t % 128)));
    let (report, _) = run_with(SHARED, &body.replace("bar.sync 0;", ""), &shape(1, 128), &[]);
    assert!(report.findings.iter().any(|f| f.kind == Kind::SharedRace), "{}", told(&report));
}

/// Warps 0 and 1 produce, warps 2 and 3 consume: `bar.arrive` and `bar.sync` with two barriers.
const PIPELINE: &str = "
    mov.u32 %r10, box;
    and.b32 %r11, %r2, 63;
    shl.b32 %r12, %r11, 2;
    add.u32 %r10, %r10, %r12;
    mov.u32 %r13, 0;
    mov.u32 %r14, 0;
    setp.ge.u32 %p1, %r2, 64;
    @%p1 bra $consume;
$produce:
    mad.lo.u32 %r15, %r13, 100, %r11;
    st.shared.u32 [%r10], %r15;
    bar.arrive 1, 128;
    bar.sync 2, 128;
    add.u32 %r13, %r13, 1;
    setp.lt.u32 %p2, %r13, 5;
    @%p2 bra $produce;
    ret;
$consume:
    bar.sync 1, 128;
    ld.shared.u32 %r16, [%r10];
    bar.arrive 2, 128;
    add.u32 %r14, %r14, %r16;
    add.u32 %r13, %r13, 1;
    setp.lt.u32 %p2, %r13, 5;
    @%p2 bra $consume;
    give %r14;
    ret;";

#[test]
fn producers_and_consumers() {
    let want = each(128, |t| if t < 64 { 0 } else { 1000 + 5 * (t - 64) });
    assert_eq!(run(SHARED, PIPELINE, &shape(1, 128)), want);
    // Without the way back the producers run ahead.
    let racing = PIPELINE.replace("bar.sync 2, 128;", "").replace("bar.arrive 2, 128;", "");
    let (report, _) = run_with(SHARED, &racing, &shape(1, 128), &[]);
    assert!(report.findings.iter().any(|f| f.kind == Kind::SharedRace), "{}", told(&report));
}

#[test]
fn two_halves_with_barriers_of_their_own() {
    // Each pair of warps has its own barrier, taken from a register.
    let body = "
    mov.u32 %r10, box;
    shr.u32 %r11, %r2, 6;
    add.u32 %r12, %r11, 1;
    shl.b32 %r13, %r2, 2;
    add.u32 %r14, %r10, %r13;
    st.shared.u32 [%r14], %r2;
    barrier.sync %r12, 64;
    xor.b32 %r13, %r13, 128;
    add.u32 %r14, %r10, %r13;
    ld.shared.u32 %r15, [%r14];
    give %r15;
    ret;";
    assert_eq!(run(SHARED, body, &shape(1, 128)), each(128, |t| t ^ 32));
    // Reading from the other pair is not ordered.
    let body = body.replace("xor.b32 %r13, %r13, 128", "xor.b32 %r13, %r13, 256");
    let (report, _) = run_with(SHARED, &body, &shape(1, 128), &[]);
    assert!(report.findings.iter().any(|f| f.kind == Kind::SharedRace), "{}", told(&report));
}

#[test]
fn reductions_at_barriers() {
    let body = "
    rem.u32 %r10, %r2, 3;
    setp.eq.u32 %p1, %r10, 0;
    setp.lt.u32 %p2, %r2, 96;
    setp.eq.u32 %p3, %r2, 77;
    bar.red.popc.u32 %r11, 0, %p1;
    barrier.cta.red.and.pred %p4, 1, %p2;
    bar.red.or.pred %p5, 2, %p3;
    bar.cta.red.popc.u32 %r12, 0, !%p1;
    bar.red.and.pred %p6, 0, !%p4;
    shl.b32 %r12, %r12, 8;
    or.b32 %r11, %r11, %r12;
    @%p4 or.b32 %r11, %r11, 0x10000;
    @%p5 or.b32 %r11, %r11, 0x20000;
    @%p6 or.b32 %r11, %r11, 0x40000;
    give %r11;
    ret;";
    let value = |threads: u32, flags: u32| {
        let thirds = threads.div_ceil(3);
        flags << 16 | (threads - thirds) << 8 | thirds
    };
    assert_eq!(run("", body, &shape(2, 128)), vec![value(128, 0b110); 256]);
    // A block whose last warp is not full: 96 < 77 is nobody's, all are below 96.
    assert_eq!(run("", body, &shape(1, 72)), vec![value(72, 0b001); 72]);
}

#[test]
fn ended_warps_are_not_waited_for() {
    let body = "
    setp.ge.u32 %p1, %r2, 40;
    @%p1 bra $end;
    bar.sync 0;
    give %r2;
$end:
    ret;";
    let (report, out) = run_with("", body, &shape(1, 128), &[]);
    // Warp 1 comes with a part of its lanes.
    let text = only(&report, Kind::BarrierDivergence);
    assert!(text.contains("0x000000ff") && text.contains("0xffffff00"), "{text}");
    assert_eq!(out, each(128, |t| if t < 40 { t } else { 0 }));
    assert_eq!(
        run("", &body.replace(", 40", ", 64"), &shape(1, 128)),
        each(128, |t| if t < 64 { t } else { 0 })
    );
}

#[test]
fn a_barrier_that_lanes_reach_one_after_the_other() {
    // `barrier.sync` without `.aligned` may be executed by parts of a warp, at different places.
    let body = "
    setp.lt.u32 %p1, %r2, 11;
    @%p1 bra $few;
    barrier.sync 0;
    mov.u32 %r10, 2;
    bra $join;
$few:
    barrier.sync 0;
    mov.u32 %r10, 1;
$join:
    give %r10;
    ret;";
    assert_eq!(run("", body, &shape(1, 64)), each(64, |t| if t < 11 { 1 } else { 2 }));
    let (report, _) = run_with("", &body.replace("barrier.sync", "barrier.sync.aligned"), &shape(1, 64), &[]);
    assert!(report.findings.iter().all(|f| f.kind == Kind::BarrierDivergence));
    assert_eq!(report.findings.len(), 2, "{}", told(&report));
}

#[test]
fn parts_of_a_warp_arrive_once_together() {
    // Warp 0 arrives in two parts; that is one warp, not two, so warp 1 has to come before warp 2 goes on.
    let body = "
    mov.u32 %r10, box;
    shr.u32 %r11, %r2, 5;
    setp.eq.u32 %p1, %r11, 2;
    @%p1 bra $wait;
    shl.b32 %r12, %r2, 2;
    add.u32 %r12, %r10, %r12;
    st.shared.u32 [%r12], %r2;
    and.b32 %r13, %r2, 1;
    setp.eq.u32 %p2, %r13, 0;
    @%p2 bra $even;
    barrier.arrive 3, 96;
    ret;
$even:
    barrier.arrive 3, 96;
    ret;
$wait:
    barrier.sync 3, 96;
    sub.u32 %r12, %r2, 64;
    shl.b32 %r12, %r12, 2;
    add.u32 %r12, %r10, %r12;
    ld.shared.u32 %r14, [%r12];
    ld.shared.u32 %r15, [%r12+128];
    add.u32 %r14, %r14, %r15;
    give %r14;
    ret;";
    assert_eq!(run(SHARED, body, &shape(1, 96)), each(96, |t| if t < 64 { 0 } else { 2 * t - 96 }));
}

#[test]
fn thread_counts_that_differ() {
    let body = "
    setp.lt.u32 %p1, %r2, 32;
    @%p1 bra $first;
    bar.sync 1, 96;
    ret;
$first:
    bar.sync 1, 64;
    ret;";
    let (report, _) = run_with("", body, &shape(1, 96), &[]);
    let all = told(&report);
    assert!(report.findings[0].kind == Kind::BarrierDivergence || report.faulted().is_some(), "{all}");
    assert!(all.contains("is waited for with 96 threads here and with 64 threads elsewhere"), "{all}");
}

#[test]
fn barriers_that_do_not_exist_or_count_half_warps() {
    for (text, message) in [
        ("mov.u32 %r10, 16; bar.sync %r10;", "barrier 16 does not exist"),
        ("mov.u32 %r10, 48; bar.sync 1, %r10;", "must be a multiple of 32"),
    ] {
        let (report, _) = run_with("", &format!("{text} ret;"), &shape(1, 64), &[]);
        let told = only(&report, Kind::BarrierDivergence);
        assert!(told.contains(message), "{told}");
    }
}

#[test]
fn lanes_wait_for_each_other() {
    // Lane 0 writes behind a branch, the others read after `bar.warp.sync` at another place.
    let body = "
    mov.u32 %r10, box;
    setp.eq.u32 %p1, %r2, 0;
    @!%p1 bra $others;
    mov.u32 %r11, 42;
    st.shared.u32 [%r10], %r11;
    bar.warp.sync 0xffffffff;
    bra $join;
$others:
    bar.warp.sync 0xffffffff;
$join:
    ld.shared.u32 %r12, [%r10];
    give %r12;
    ret;";
    assert_eq!(run(SHARED, body, &shape(1, 32)), vec![42; 32]);
    let (report, _) = run_with(SHARED, &body.replace("bar.warp.sync 0xffffffff;", ""), &shape(1, 32), &[]);
    only(&report, Kind::LaneHazard);
}

#[test]
fn groups_of_lanes_that_synchronise_apart() {
    // Each half names itself; halves are in different branches.
    let body = "
    mov.u32 %r10, box;
    shl.b32 %r11, %r2, 2;
    add.u32 %r11, %r10, %r11;
    st.shared.u32 [%r11], %r2;
    setp.lt.u32 %p1, %r2, 16;
    @%p1 bra $low;
    bar.warp.sync 0xffff0000;
    bra $join;
$low:
    bar.warp.sync 0x0000ffff;
$join:
    xor.b32 %r12, %r2, 5;
    shl.b32 %r12, %r12, 2;
    add.u32 %r12, %r10, %r12;
    ld.shared.u32 %r13, [%r12];
    give %r13;
    ret;";
    assert_eq!(run(SHARED, body, &shape(1, 32)), each(32, |t| t ^ 5));
    let (report, _) = run_with(SHARED, &body.replace("0x0000ffff", "0x0000fff0"), &shape(1, 32), &[]);
    assert!(report.findings.iter().any(|f| f.kind == Kind::AbsentLane), "{}", told(&report));
}

#[test]
fn nobody_can_go_on() {
    let body = "
    setp.lt.u32 %p1, %r2, 32;
    @%p1 bra $first;
    bar.sync 1, 64;
    ret;
$first:
    bar.sync 2, 64;
    ret;";
    let (report, _) = run_with("", body, &shape(1, 64), &[]);
    let text = only(&report, Kind::Deadlock);
    assert!(text.contains("warps [0] wait at") && text.contains("warps [1] wait at"), "{text}");
    assert!(text.contains("bar.sync 1, 64;") && text.contains("bar.sync 2, 64;"), "{text}");
    // A warp barrier that names a lane which waits elsewhere.
    let body = "
    setp.lt.u32 %p1, %r2, 16;
    @%p1 bra $low;
    bar.warp.sync 0xffffffff;
    ret;
$low:
    barrier.sync 0;
    ret;";
    let (report, _) = run_with("", body, &shape(1, 32), &[]);
    only(&report, Kind::Deadlock);
}
