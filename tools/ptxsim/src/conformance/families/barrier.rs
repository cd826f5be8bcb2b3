//! Barriers: `bar`, `barrier`, `bar.warp.sync`, fences, `mbarrier` with its phases and transaction counts. PTX ISA 9.7.13.

use super::super::case::Target;
use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};

/// Family `barrier`.
pub fn cases(s: &mut Suite) {
    for sync in [
        "bar.sync 0",
        "bar.cta.sync 0",
        "barrier.sync 0",
        "barrier.sync.aligned 3",
        "barrier.cta.sync 15, 128",
    ] {
        exchange(s, sync);
    }
    register_operand(s);
    pipeline(s);
    counts(s);
    warps(s);
    fences(s);
    phases(s);
    pending(s);
    dropped(s);
    s.target(Target::Sm90);
    transactions(s);
    parity(s);
    s.target(Target::Sm80);
}

fn kernel(s: &mut Suite, name: &str, threads: u32, body: String, expected: Vec<u32>) {
    Kernel { name: name.into(), body, launch: (2, threads), expected: words(expected), ..Kernel::default() }
        .add(s);
}

const STORE: &str = "mad.wide.u32 to, %i, 4, out;\nst.global.b32 [to], d;\n";
const DECLARE: &str =
    ".reg .b64 at, to, state;\n.reg .b32 d, n, x;\n.reg .pred p, q;\n.shared .align 8 .b32 cells[128];\n";

/// Every thread reads what the one opposite wrote.
fn exchange(s: &mut Suite, sync: &str) {
    let body = format!(
        "{DECLARE}mov.u64 at, cells;\nmad.wide.u32 at, %t, 4, at;\nmul.lo.u32 x, %i, 3;\nst.shared.b32 [at], x;\n{sync};\n\
         xor.b32 n, %t, 127;\nmov.u64 at, cells;\nmad.wide.u32 at, n, 4, at;\nld.shared.b32 d, [at];\n{STORE}"
    );
    let expected = (0..256u32).map(|i| 3 * (i / 128 * 128 + ((i % 128) ^ 127))).collect();
    kernel(s, &format!("{sync} between threads of a block"), 128, body, expected);
}

/// Barrier number and thread count in registers; each half of the block has its own barrier.
fn register_operand(s: &mut Suite) {
    let body = format!(
        "{DECLARE}mov.u64 at, cells;\nmad.wide.u32 at, %t, 4, at;\nst.shared.b32 [at], %i;\nshr.u32 n, %t, 6;\n\
         add.u32 n, n, 5;\nmov.u32 x, 64;\nbarrier.sync n, x;\nxor.b32 n, %t, 63;\nmov.u64 at, cells;\n\
         mad.wide.u32 at, n, 4, at;\nld.shared.b32 d, [at];\n{STORE}"
    );
    let expected = (0..256u32).map(|i| i ^ 63).collect();
    kernel(s, "barrier.sync by registers, two halves of a block", 128, body, expected);
}

/// Producers arrive, consumers wait.
fn pipeline(s: &mut Suite) {
    let body = format!(
        "{DECLARE}mov.u64 at, cells;\nsetp.ge.u32 p, %t, 64;\n@p bra consume;\nmad.wide.u32 at, %t, 4, at;\n\
         add.u32 x, %i, 1000;\nst.shared.b32 [at], x;\nbar.arrive 1, 128;\nmov.b32 d, 7;\nbra end;\nconsume:\n\
         bar.sync 1, 128;\nsub.u32 n, %t, 64;\nmad.wide.u32 at, n, 4, at;\nld.shared.b32 d, [at];\nend:\n{STORE}"
    );
    let expected = (0..256u32).map(|i| if i % 128 < 64 { 7 } else { i - 64 + 1000 }).collect();
    kernel(s, "bar.arrive and bar.sync", 128, body, expected);
}

fn counts(s: &mut Suite) {
    let body = |op: &str, condition: &str| {
        let (target, tail) = match op {
            "popc.u32" => ("d", ""),
            _ => ("q", "selp.b32 d, 1, 0, q;\n"),
        };
        format!(
            "{DECLARE}{condition}bar.red.{op} {target}, 0, p;\n{tail}bar.sync 0;\nbarrier.red.{op} {target}, 2, 128, !p;\n\
             {}shl.b32 x, d, 16;\n{tail}bar.sync 0;\nbar.red.{op} {target}, 1, p;\n{tail}or.b32 d, d, x;\n{STORE}",
            tail
        )
    };
    // The block's number decides how many threads vote yes: 37, then all.
    let some = "add.u32 n, %block, 0;\nmad.lo.u32 n, n, 91, 37;\nsetp.lt.u32 p, %t, n;\n";
    let each = |first: [u32; 2], not: [u32; 2]| -> Vec<u32> {
        (0..256).map(|i| first[i / 128] | not[i / 128] << 16).collect()
    };
    kernel(s, "bar.red.popc", 128, body("popc.u32", some), each([37, 128], [91, 0]));
    kernel(s, "bar.red.and", 128, body("and.pred", some), each([0, 1], [0, 0]));
    kernel(s, "bar.red.or", 128, body("or.pred", some), each([1, 1], [1, 0]));
}

/// `bar.warp.sync` orders memory between the lanes of a warp, also those of a mask.
fn warps(s: &mut Suite) {
    let body = format!(
        "{DECLARE}mov.u64 at, cells;\nmad.wide.u32 at, %t, 4, at;\nst.shared.b32 [at], %i;\nbar.warp.sync 0xffffffff;\n\
         xor.b32 n, %t, 9;\nmov.u64 at, cells;\nmad.wide.u32 at, n, 4, at;\nld.shared.b32 d, [at];\n{STORE}"
    );
    kernel(s, "bar.warp.sync", 128, body, (0..256u32).map(|i| i ^ 9).collect());
    let body = format!(
        "{DECLARE}mov.u64 at, cells;\nmad.wide.u32 at, %t, 4, at;\nst.shared.b32 [at], %i;\nmov.b32 d, %i;\n\
         setp.ge.u32 p, %lane, 8;\n@p bra end;\nbar.warp.sync 0xff;\nxor.b32 n, %t, 5;\nmov.u64 at, cells;\n\
         mad.wide.u32 at, n, 4, at;\nld.shared.b32 d, [at];\nend:\n{STORE}"
    );
    let expected = (0..256u32).map(|i| if i % 32 < 8 { i ^ 5 } else { i }).collect();
    kernel(s, "bar.warp.sync among eight lanes", 128, body, expected);
}

/// A flag in global memory, passed from one block to the other.
fn fences(s: &mut Suite) {
    for fence in ["membar.gl", "membar.sys", "fence.acq_rel.gpu", "fence.sc.gpu", "fence.sc.sys"] {
        let body = format!(
            "{DECLARE}setp.ne.u32 q, %t, 0;\n@q ret;\nsetp.eq.u32 p, %block, 1;\n@p bra second;\n\
             st.relaxed.gpu.global.b32 [out], 41;\n{fence};\nst.relaxed.gpu.global.b32 [out+4], 1;\nret;\nsecond:\n\
             ld.relaxed.gpu.global.b32 d, [out+4];\nsetp.ne.u32 p, d, 1;\n@p bra second;\n{fence};\n\
             ld.relaxed.gpu.global.b32 d, [out];\nadd.u32 d, d, 1;\nst.global.b32 [out+8], d;\n"
        );
        kernel(s, &format!("{fence} between blocks"), 32, body, vec![41, 1, 42]);
    }
    let body = format!(
        "{DECLARE}setp.ne.u32 q, %t, 0;\n@q ret;\nsetp.eq.u32 p, %block, 1;\n@p bra second;\nst.global.b32 [out], 41;\n\
         st.release.gpu.global.b32 [out+4], 1;\nret;\nsecond:\nld.acquire.gpu.global.b32 d, [out+4];\n\
         setp.ne.u32 p, d, 1;\n@p bra second;\nld.global.b32 d, [out];\nadd.u32 d, d, 1;\nst.global.b32 [out+8], d;\n"
    );
    kernel(s, "st.release and ld.acquire between blocks", 32, body, vec![41, 1, 42]);
}

/// Makes `bar` for a count, by the first thread, after the block's barrier usable by all.
fn init(count: u32) -> String {
    format!(
        "{DECLARE}.shared .align 8 .b64 bar;\nsetp.ne.u32 p, %t, 0;\n@p bra ready;\nmbarrier.init.shared.b64 [bar], {count};\n\
         ready:\nbar.sync 0;\n"
    )
}

/// Three phases: all threads arrive, wait, and read what the opposite thread wrote in this phase.
fn phases(s: &mut Suite) {
    let mut body = init(128);
    body += "mov.b32 d, 0;\n";
    for phase in 0..3 {
        body += &format!(
            "mov.u64 at, cells;\nmad.wide.u32 at, %t, 4, at;\nadd.u32 x, %t, {};\nst.shared.b32 [at], x;\n\
             mbarrier.arrive.shared.b64 state, [bar];\nwait{phase}:\nmbarrier.test_wait.shared.b64 p, [bar], state;\n\
             @!p bra wait{phase};\nxor.b32 n, %t, 127;\nmov.u64 at, cells;\nmad.wide.u32 at, n, 4, at;\n\
             ld.shared.b32 x, [at];\nmad.lo.u32 d, d, 1000, x;\nbar.sync 0;\n",
            phase * 200
        );
    }
    body += STORE;
    let expected = (0..256u32)
        .map(|i| (0..3u32).fold(0, |d, phase| d * 1000 + ((i % 128) ^ 127) + phase * 200))
        .collect();
    kernel(s, "mbarrier.arrive and test_wait over three phases", 128, body, expected);
}

/// `.noComplete` with a count, and what `pending_count` says of the state before it.
fn pending(s: &mut Suite) {
    let mut body = init(20);
    body += "setp.ne.u32 p, %t, 0;\nmov.b32 d, 0;\n@p bra end;\n\
             mbarrier.arrive.noComplete.shared.b64 state, [bar], 3;\nmbarrier.pending_count.b64 d, state;\n\
             mbarrier.arrive.noComplete.shared.b64 state, [bar], 10;\nmbarrier.pending_count.b64 x, state;\n\
             mad.lo.u32 d, d, 100, x;\nmbarrier.arrive.noComplete.shared.b64 state, [bar], 6;\n\
             mbarrier.pending_count.b64 x, state;\nmad.lo.u32 d, d, 100, x;\n\
             mbarrier.test_wait.shared.b64 q, [bar], state;\nselp.b32 x, 1, 0, q;\nmad.lo.u32 d, d, 10, x;\n\
             mbarrier.arrive.shared.b64 state, [bar];\nmbarrier.test_wait.shared.b64 q, [bar], state;\n\
             selp.b32 x, 1, 0, q;\nmad.lo.u32 d, d, 10, x;\nmbarrier.inval.shared.b64 [bar];\nend:\n";
    body += STORE;
    // 20, then 17, then 7 pending; incomplete before the last arrival, complete after it.
    let expected =
        (0..64).map(|i| if i % 32 == 0 { ((20 * 100 + 17) * 100 + 7) * 100 + 1 } else { 0 }).collect();
    kernel(s, "mbarrier.arrive.noComplete, pending_count, inval", 32, body, expected);
}

/// A dropped arrival is missing in every later phase.
fn dropped(s: &mut Suite) {
    let mut body = init(2);
    body += "setp.ne.u32 p, %t, 0;\nmov.b32 d, 0;\n@p bra end;\n\
             mbarrier.arrive_drop.shared.b64 state, [bar];\nmbarrier.test_wait.shared.b64 q, [bar], state;\n\
             selp.b32 d, 1, 0, q;\nmbarrier.arrive.shared.b64 state, [bar];\n\
             mbarrier.test_wait.shared.b64 q, [bar], state;\nselp.b32 x, 2, 0, q;\nor.b32 d, d, x;\n\
             mbarrier.arrive.shared.b64 state, [bar];\nmbarrier.test_wait.shared.b64 q, [bar], state;\n\
             selp.b32 x, 4, 0, q;\nor.b32 d, d, x;\nend:\n";
    body += STORE;
    let expected = (0..64).map(|i| if i % 32 == 0 { 2 | 4 } else { 0 }).collect();
    kernel(s, "mbarrier.arrive_drop", 32, body, expected);
}

/// A phase is complete when both the arrivals and the transactions are.
fn transactions(s: &mut Suite) {
    let mut body = init(1);
    body += "setp.ne.u32 p, %t, 0;\nmov.b32 d, 0;\n@p bra end;\n";
    let mut bit = 0;
    let mut test = |body: &mut String| {
        *body += &format!(
            "mbarrier.try_wait.shared::cta.b64 q, [bar], state, 0;\nselp.b32 x, {}, 0, q;\nor.b32 d, d, x;\n",
            1 << bit
        );
        bit += 1;
    };
    body += "mbarrier.arrive.expect_tx.shared::cta.b64 state, [bar], 48;\n";
    test(&mut body);
    body += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 16;\n";
    test(&mut body);
    body += "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 8;\n";
    body += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 32;\n";
    test(&mut body);
    body += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 8;\n";
    test(&mut body);
    // The next phase: the transactions first, then the arrival.
    body += "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 100;\n";
    body += "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 100;\n";
    body +=
        "mbarrier.test_wait.parity.shared::cta.b64 q, [bar], 1;\nselp.b32 x, 16, 0, q;\nor.b32 d, d, x;\n";
    body += "mbarrier.arrive.release.cta.shared::cta.b64 state, [bar], 1;\n";
    body += "mbarrier.test_wait.parity.shared::cta.b64 q, [bar], 1;\nselp.b32 x, 32, 0, q;\nor.b32 d, d, x;\nend:\n";
    body += STORE;
    let expected = (0..64).map(|i| if i % 32 == 0 { 8 | 32 } else { 0 }).collect();
    kernel(s, "mbarrier.expect_tx, complete_tx, try_wait", 32, body, expected);
}

/// `try_wait.parity` over four phases, threads of two warps in turn: one fills, the other reads.
fn parity(s: &mut Suite) {
    let mut body = format!(
        "{DECLARE}.shared .align 8 .b64 full, empty;\nsetp.ne.u32 p, %t, 0;\n@p bra ready;\n\
         mbarrier.init.shared::cta.b64 [full], 32;\nmbarrier.init.shared::cta.b64 [empty], 32;\nready:\nbar.sync 0;\n\
         mov.b32 d, 0;\nmov.b32 n, 0;\nmov.u64 at, cells;\nmad.wide.u32 at, %lane, 4, at;\n\
         setp.ge.u32 p, %t, 32;\n@p bra consume;\n"
    );
    body += "produce:\nand.b32 x, n, 1;\nxor.b32 x, x, 1;\nfree:\n\
             mbarrier.try_wait.parity.shared::cta.b64 q, [empty], x;\n@!q bra free;\nmad.lo.u32 x, n, 10, %lane;\n\
             st.shared.b32 [at], x;\nmbarrier.arrive.shared::cta.b64 _, [full];\nadd.u32 n, n, 1;\n\
             setp.lt.u32 q, n, 4;\n@q bra produce;\nbra end;\n";
    body += "consume:\nand.b32 x, n, 1;\nfilled:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 q, [full], x;\n\
             @!q bra filled;\nld.shared.b32 x, [at];\nmad.lo.u32 d, d, 100, x;\n\
             mbarrier.arrive.shared::cta.b64 _, [empty];\nadd.u32 n, n, 1;\nsetp.lt.u32 q, n, 4;\n@q bra consume;\nend:\n";
    body += STORE;
    let expected = (0..128u32)
        .map(|i| match i % 64 {
            0..32 => 0,
            t => (0..4).fold(0u32, |d, n| d.wrapping_mul(100).wrapping_add(n * 10 + t % 32)),
        })
        .collect();
    kernel(s, "mbarrier.try_wait.parity between two warps", 64, body, expected);
}
