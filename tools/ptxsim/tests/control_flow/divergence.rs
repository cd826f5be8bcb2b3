//! Lanes of a warp that go different ways.

use crate::harness::{each, run, run_with, shape};
use ptxsim::check::Kind;

#[test]
fn nested_branches() {
    let body = "
    and.b32 %r10, %r1, 1;
    setp.eq.u32 %p1, %r10, 0;
    @%p1 bra $even;
    and.b32 %r11, %r1, 2;
    setp.ne.u32 %p2, %r11, 0;
    mov.u32 %r20, 300;
    @!%p2 bra $join;
    mov.u32 %r20, 301;
    bra $join;
$even:
    setp.lt.u32 %p3, %r1, 10;
    mov.u32 %r20, 200;
    @!%p3 bra $join;
    mov.u32 %r20, 100;
$join:
    vote.sync.ballot.b32 %r21, 1, 0xffffffff;
    popc.b32 %r21, %r21;
    mad.lo.u32 %r20, %r21, 1000, %r20;
    give %r20;
    ret;";
    let want = each(64, |t| {
        32_000
            + match (t % 2, t & 2, t < 10) {
                (0, _, true) => 100,
                (0, _, false) => 200,
                (_, 0, _) => 300,
                _ => 301,
            }
    });
    assert_eq!(run("", body, &shape(1, 64)), want);
}

#[test]
fn loops_of_different_length_with_break_and_continue() {
    // for (i = 0; i < t; i++) { if (i % 3 == 1) continue; if (sum > 40) break; sum += i; }
    let body = "
    mov.u32 %r10, 0;
    mov.u32 %r11, 0;
$head:
    setp.ge.u32 %p1, %r10, %r2;
    @%p1 bra $done;
    rem.u32 %r12, %r10, 3;
    setp.eq.u32 %p2, %r12, 1;
    @%p2 bra $next;
    setp.gt.u32 %p3, %r11, 40;
    @%p3 bra $done;
    add.u32 %r11, %r11, %r10;
$next:
    add.u32 %r10, %r10, 1;
    bra $head;
$done:
    activemask.b32 %r13;
    setp.ne.u32 %p4, %r13, 0xffffffff;
    @%p4 add.u32 %r11, %r11, 1000;
    give %r11;
    ret;";
    let want = each(96, |t| {
        let mut sum = 0;
        for i in (0..t).filter(|i| i % 3 != 1) {
            if sum > 40 {
                break;
            }
            sum += i;
        }
        sum
    });
    assert_eq!(run("", body, &shape(1, 96)), want, "all lanes meet again behind the loop");
}

#[test]
fn a_loop_in_a_loop_with_the_inner_one_laid_out_behind() {
    // The body of the outer loop stands behind the end: lanes run by place, not by structure.
    let body = "
    mov.u32 %r10, 0;
    mov.u32 %r11, 0;
$outer:
    setp.lt.u32 %p1, %r10, %r2;
    @%p1 bra $body;
    give %r11;
    ret;
$body:
    mov.u32 %r12, 0;
$inner:
    add.u32 %r12, %r12, 1;
    add.u32 %r11, %r11, %r12;
    setp.le.u32 %p2, %r12, %r10;
    @%p2 bra $inner;
    add.u32 %r10, %r10, 1;
    bra $outer;";
    let want = each(32, |t| (0..t).map(|i| (1..=i + 1).sum::<u32>()).sum());
    assert_eq!(run("", body, &shape(1, 32)), want);
}

#[test]
fn early_exits_leave_the_others() {
    let body = "
    and.b32 %r10, %r2, 3;
    setp.eq.u32 %p1, %r10, 1;
    @%p1 exit;
    setp.eq.u32 %p2, %r10, 2;
    @%p2 bra $leave;
    // Lanes that ended may be named.
    vote.sync.ballot.b32 %r11, 1, 0xffffffff;
    give %r11;
    ret;
$leave:
    ret;";
    let (report, out) = run_with("", body, &shape(1, 32), &[]);
    // Lanes 2, 6, .. still live at the vote: they end at a later place.
    assert_eq!(report.findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::AbsentLane]);
    assert_eq!(out, each(32, |t| if t % 4 == 0 || t % 4 == 3 { 0x9999_9999 } else { 0 }));
    let body = body.replace("@%p2 bra $leave", "@%p2 exit");
    assert_eq!(run("", &body, &shape(1, 32)), out);
}

#[test]
fn a_switch_through_a_table() {
    let body = "
    and.b32 %r10, %r2, 3;
    mov.u32 %r11, 7;
$table: .branchtargets $zero, $one, $two, $one;
    brx.idx %r10, $table;
$two:
    add.u32 %r11, %r11, 100;
$one:
    add.u32 %r11, %r11, 10;
$zero:
    add.u32 %r11, %r11, 1;
    activemask.b32 %r12;
    setp.eq.u32 %p1, %r12, 0xffffffff;
    @!%p1 mov.u32 %r11, 0;
    give %r11;
    ret;";
    assert_eq!(run("", body, &shape(1, 32)), each(32, |t| [8, 18, 118, 18][t as usize % 4]));
    let guarded = body.replace("    brx.idx", "    setp.lt.u32 %p2, %r2, 16;\n    @%p2 brx.idx");
    let want = each(32, |t| if t < 16 { [8, 18, 118, 18][t as usize % 4] } else { 118 });
    assert_eq!(run("", &guarded, &shape(1, 32)), want, "lanes whose guard is false go on");
}

#[test]
fn a_table_is_not_left() {
    let body = "
$table: .branchtargets $a, $b;
    brx.idx %r2, $table;
$a:
$b:
    ret;";
    let (report, _) = run_with("", body, &shape(1, 32), &[]);
    let fault = report.faulted().expect("a fault");
    assert_eq!((fault.kind, fault.who.lane), (Kind::OutOfBounds, 2));
    assert!(fault.message.contains("branch index 2 is outside the table of 2 targets"), "{fault}");
}

#[test]
fn predicates_keep_the_values_of_lanes_that_were_elsewhere() {
    let body = "
    setp.lt.u32 %p1, %r2, 16;
    setp.eq.u32 %p2, %r2, %r2;
    @!%p1 bra $join;
    and.b32 %r10, %r2, 1;
    setp.eq.u32 %p2, %r10, 0;
$join:
    selp.u32 %r11, 1, 0, %p2;
    give %r11;
    ret;";
    assert_eq!(run("", body, &shape(1, 32)), each(32, |t| u32::from(t >= 16 || t % 2 == 0)));
}

#[test]
fn a_warp_that_is_not_full() {
    let body = "
    activemask.b32 %r10;
    popc.b32 %r10, %r10;
    give %r10;
    ret;";
    assert_eq!(run("", body, &shape(2, 40)), each(80, |t| if t % 40 < 32 { 32 } else { 8 }));
}
