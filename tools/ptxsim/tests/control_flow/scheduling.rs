//! Blocks over host threads, warps and lanes that wait for each other in loops, launches that do not end.

use crate::harness::{each, only, run, run_with, shape};
use ptxsim::check::Kind;
use ptxsim::exec::launch::LaunchConfig;

#[test]
fn any_number_of_host_threads_does_the_same() {
    let body = "
    mul.lo.u32 %r10, %r1, %r1;
    mov.u32 %r11, 0;
$more:
    add.u32 %r10, %r10, 7;
    add.u32 %r11, %r11, 1;
    setp.lt.u32 %p1, %r11, %r3;
    @%p1 bra $more;
    bar.sync 0;
    give %r10;
    ret;";
    let want = each(200 * 64, |t| t * t + 7 * (t / 64).max(1));
    let mut reports = Vec::new();
    for host_threads in [1, 2, 3] {
        let (report, out) = run_with("", body, &LaunchConfig { host_threads, ..shape(200, 64) }, &[]);
        assert_eq!(out, want, "{host_threads} host threads");
        reports.push(report.to_json().to_string());
    }
    assert!(reports.iter().all(|r| *r == reports[0]));
}

#[test]
fn a_barrier_of_the_grid() {
    // Each block adds to a counter and waits until all have; then reads its neighbour's value. Twice.
    let body = "
    mov.u32 %r10, %nctaid.x;
    mov.u32 %r20, 0;
    mov.u32 %r21, %r1;
$round:
    st.global.u32 [%rd2], %r21;
    add.u32 %r20, %r20, 1;
    membar.gl;
    bar.sync 0;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra $arrived;
    atom.global.add.u32 %r11, [%rd3], 1;
    mul.lo.u32 %r12, %r10, %r20;
$spin:
    ld.volatile.global.u32 %r13, [%rd3];
    setp.lt.u32 %p2, %r13, %r12;
    @%p2 bra $spin;
    membar.gl;
$arrived:
    bar.sync 0;
    mul.lo.u32 %r14, %r10, %r4;
    add.u32 %r15, %r1, %r4;
    rem.u32 %r15, %r15, %r14;
    mul.wide.u32 %rd10, %r15, 4;
    add.u64 %rd10, %rd1, %rd10;
    ld.volatile.global.u32 %r21, [%rd10];
    membar.gl;
    bar.sync 0;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra $next;
    add.u32 %r20, %r20, 1;
    atom.global.add.u32 %r11, [%rd3], 1;
    mul.lo.u32 %r12, %r10, %r20;
$spin2:
    ld.volatile.global.u32 %r13, [%rd3];
    setp.lt.u32 %p2, %r13, %r12;
    @%p2 bra $spin2;
    membar.gl;
    sub.u32 %r20, %r20, 1;
$next:
    add.u32 %r20, %r20, 1;
    bar.sync 0;
    setp.lt.u32 %p3, %r20, 4;
    @%p3 bra $round;
    give %r21;
    ret;";
    let want = each(64 * 64, |t| (t + 2 * 64) % (64 * 64));
    for host_threads in [1, 3] {
        let config = LaunchConfig { host_threads, cooperative: true, ..shape(64, 64) };
        let (report, out) = run_with("", body, &config, &[]);
        assert_eq!(report.faulted(), None);
        assert_eq!(out, want, "{host_threads} host threads");
        let executed = report.counters.warp_instructions;
        assert!(executed < 4_000_000, "{executed} warp instructions, most of them spent polling");
    }
}

#[test]
fn a_lock_that_lanes_of_one_warp_take() {
    // The holder stands behind the loop in which the others wait.
    let body = "
$wait:
    atom.global.cas.b32 %r10, [%rd3], 0, 1;
    setp.ne.u32 %p1, %r10, 0;
    @%p1 bra $wait;
    ld.volatile.global.u32 %r11, [%rd3+4];
    add.u32 %r12, %r11, 1;
    st.volatile.global.u32 [%rd3+4], %r12;
    membar.gl;
    atom.global.exch.b32 %r13, [%rd3], 0;
    give %r12;
    ret;";
    let (report, mut out) = run_with("", body, &shape(2, 64), &[]);
    assert_eq!(report.faulted(), None);
    out.sort_unstable();
    assert_eq!(out, each(128, |t| t + 1), "each got the lock once");
}

#[test]
fn lanes_that_ran_ahead_of_a_lock_wait_for_the_others() {
    // A shuffle of the whole warp behind the lock, without a `bar.warp.sync`: hardware brings the lanes together.
    let body = "
$wait:
    atom.global.cas.b32 %r10, [%rd3], 0, 1;
    setp.ne.u32 %p1, %r10, 0;
    @%p1 bra $wait;
    membar.gl;
    atom.global.exch.b32 %r13, [%rd3], 0;
    shfl.sync.bfly.b32 %r14, %r2, 1, 31, 0xffffffff;
    give %r14;
    ret;";
    assert_eq!(run("", body, &shape(1, 64)), each(64, |t| t ^ 1));
}

#[test]
fn warps_of_a_block_that_wait_by_polling() {
    // Warp 0 waits for a flag that warp 1 sets after warp 2 set its own.
    let body = "
    shr.u32 %r10, %r2, 5;
    setp.eq.u32 %p1, %r10, 2;
    @%p1 bra $set;
$wait:
    nanosleep.u32 100;
    add.u32 %r11, %r10, 1;
    mul.wide.u32 %rd10, %r11, 4;
    add.u64 %rd10, %rd3, %rd10;
    ld.acquire.gpu.global.u32 %r12, [%rd10];
    setp.eq.u32 %p2, %r12, 0;
    @%p2 bra $wait;
$set:
    membar.gl;
    mul.wide.u32 %rd11, %r10, 4;
    add.u64 %rd11, %rd3, %rd11;
    mov.u32 %r13, 1;
    st.release.gpu.global.u32 [%rd11], %r13;
    give %r10;
    ret;";
    assert_eq!(run_with("", body, &shape(1, 96), &[]).1, each(96, |t| t / 32));
}

#[test]
fn long_work_does_not_count_as_waiting() {
    // Two blocks, each far longer than a turn: the first ends before the second begins, so the order is plain.
    let body = "
    mov.u32 %r10, 0;
$work:
    add.u32 %r10, %r10, 1;
    setp.lt.u32 %p1, %r10, 300000;
    @%p1 bra $work;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra $end;
    atom.global.add.u32 %r11, [%rd3], 1;
    atom.global.exch.b32 %r12, [%rd3+8], %r3;
    add.u32 %r12, %r12, 10;
    give %r12;
$end:
    ret;";
    let (report, out) = run_with("", body, &shape(3, 32), &[]);
    assert_eq!(report.faulted(), None);
    assert_eq!([out[0], out[32], out[64]], [10, 10, 11]);
}

#[test]
fn a_launch_that_does_not_end() {
    let body = "
$for_ever:
    bra $for_ever;";
    let config = LaunchConfig { max_instructions: 1_000_000, ..shape(2, 64) };
    let (report, _) = run_with("", body, &config, &[]);
    let text = only(&report, Kind::Timeout);
    assert!(text.contains("more than 1000000 warp instructions"), "{text}");
    assert!(report.counters.warp_instructions < 1_500_000);
}

#[test]
fn a_trap_ends_the_launch() {
    let body = "
    setp.eq.u32 %p1, %r1, 70;
    @%p1 trap;
    give %r1;
    ret;";
    let (report, _) = run_with("", body, &shape(4, 64), &[]);
    only(&report, Kind::Trap);
    let fault = report.faulted().expect("a fault");
    assert_eq!((fault.who.block, fault.who.warp, fault.who.lane), ([1, 0, 0], 0, 6));
    assert_eq!(fault.instruction, "@%p1 trap;");
}
