//! `cp.async`: sizes, zero fill, groups; completion by an `mbarrier`. PTX ISA 9.7.9.25.3, 9.7.13.15.15.

use super::super::elementwise::Suite;
use super::super::kernel::Kernel;
use super::super::values::Rng;

/// Threads of a case.
const THREADS: usize = 64;

/// Family `copy`.
pub fn cases(s: &mut Suite) {
    for (text, size) in [
        ("cp.async.ca.shared.global", 4),
        ("cp.async.ca.shared.global", 8),
        ("cp.async.ca.shared.global", 16),
        ("cp.async.cg.shared.global", 16),
        ("cp.async.ca.shared::cta.global", 8),
        ("cp.async.cg.shared.global.L2::64B", 16),
        ("cp.async.cg.shared.global.L2::128B", 16),
        ("cp.async.cg.shared.global.L2::256B", 16),
        ("cp.async.ca.shared.global.L2::128B", 4),
    ] {
        whole(s, text, size);
        if !text.contains("L2") {
            zero_fill(s, text, size);
            ignored(s, text, size);
        }
    }
    groups(s);
    barrier(s, false);
    barrier(s, true);
}

const DECLARE: &str =
    ".shared .align 16 .b8 buffer[4096];\n.reg .b64 from, at, to;\n.reg .b32 x, n;\n.reg .pred p;\n";

fn contents(name: &str, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(name);
    (0..bytes).map(|_| rng.bits() as u8).collect()
}

/// Addresses of the thread's part in the input and in shared memory, which is filled with 0xee before.
fn begin(size: usize) -> String {
    let mut text = format!(
        "{DECLARE}mad.wide.u32 from, %t, {size}, in0;\nmov.u64 at, buffer;\nmad.wide.u32 at, %t, {size}, at;\n"
    );
    for i in 0..size / 4 {
        text += &format!("st.shared.b32 [at+{}], 0xeeeeeeee;\n", 4 * i);
    }
    text
}

/// Stores what the thread after this one copied.
fn end(size: usize) -> String {
    let mut text = format!(
        "bar.sync 0;\nadd.u32 n, %t, 1;\nand.b32 n, n, {};\nmov.u64 at, buffer;\nmad.wide.u32 at, n, {size}, at;\n\
         mad.wide.u32 to, %t, {size}, out;\n",
        THREADS - 1
    );
    for i in 0..size / 4 {
        text += &format!("ld.shared.b32 x, [at+{0}];\nst.global.b32 [to+{0}], x;\n", 4 * i);
    }
    text
}

fn finish(s: &mut Suite, name: String, size: usize, copy: &str, data: Vec<u8>, copied: Vec<u8>) {
    let mut expected = copied[size..].to_vec();
    expected.extend(&copied[..size]);
    Kernel {
        name,
        body: begin(size) + copy + &end(size),
        launch: (1, THREADS as u32),
        inputs: vec![data],
        expected,
        element: 1,
        ..Kernel::default()
    }
    .add(s);
}

fn whole(s: &mut Suite, text: &str, size: usize) {
    let name = format!("{text} of {size}");
    let data = contents(&name, size * THREADS);
    let copy = format!("{text} [at], [from], {size};\ncp.async.wait_all;\n");
    finish(s, name, size, &copy, data.clone(), data);
}

/// A source size of 0 to all bytes, by threads; the rest becomes zero.
fn zero_fill(s: &mut Suite, text: &str, size: usize) {
    let name = format!("{text} of {size}, fewer read");
    let data = contents(&name, size * THREADS);
    let copy = format!(
        "rem.u32 n, %t, {};\n{text} [at], [from], {size}, n;\ncp.async.commit_group;\ncp.async.wait_group 0;\n",
        size + 1
    );
    let copied =
        data.iter().enumerate().map(|(i, &b)| if i % size < i / size % (size + 1) { b } else { 0 }).collect();
    finish(s, name, size, &copy, data, copied);
}

/// `ignore-src` on every third thread.
fn ignored(s: &mut Suite, text: &str, size: usize) {
    let name = format!("{text} of {size}, ignoring the source");
    let data = contents(&name, size * THREADS);
    let copy = format!(
        "rem.u32 n, %t, 3;\nsetp.eq.u32 p, n, 0;\n{text} [at], [from], {size}, p;\ncp.async.wait_all;\n"
    );
    let copied =
        data.iter().enumerate().map(|(i, &b)| if (i / size).is_multiple_of(3) { 0 } else { b }).collect();
    finish(s, name, size, &copy, data, copied);
}

/// Three groups, one of them empty; what the waits promise is read after each.
fn groups(s: &mut Suite) {
    let data = contents("groups", 16 * THREADS);
    let mut body = begin(16);
    body += "cp.async.ca.shared.global [at], [from], 4;\ncp.async.commit_group;\n\
             cp.async.ca.shared.global [at+4], [from+4], 4;\ncp.async.commit_group;\ncp.async.commit_group;\n\
             cp.async.ca.shared.global [at+8], [from+8], 8;\ncp.async.commit_group;\n\
             mad.wide.u32 to, %t, 16, out;\n\
             cp.async.wait_group 3;\nld.shared.b32 x, [at];\nst.global.b32 [to], x;\n\
             cp.async.wait_group 2;\nld.shared.b32 x, [at+4];\nst.global.b32 [to+4], x;\n\
             cp.async.wait_group 0;\nld.shared.b32 x, [at+8];\nst.global.b32 [to+8], x;\n\
             ld.shared.b32 x, [at+12];\nst.global.b32 [to+12], x;\n";
    Kernel {
        name: "cp.async.commit_group, wait_group 3, 2, 0".into(),
        body,
        launch: (1, THREADS as u32),
        expected: data.clone(),
        inputs: vec![data],
        ..Kernel::default()
    }
    .add(s);
}

/// `cp.async.mbarrier.arrive`: the barrier counts the threads' own arrivals, and with `.noinc` those of the copies too.
fn barrier(s: &mut Suite, noinc: bool) {
    let word = if noinc { ".noinc" } else { "" };
    let name = format!("cp.async.mbarrier.arrive{word}.shared.b64");
    let data = contents(&name, 16 * THREADS);
    let count = if noinc { 2 * THREADS } else { THREADS };
    let mut body =
        begin(16).replace(".reg .pred p;", ".reg .pred p;\n.reg .b64 state;\n.shared .align 8 .b64 bar;");
    body += &format!(
        "setp.ne.u32 p, %t, 0;\n@p bra ready;\nmbarrier.init.shared.b64 [bar], {count};\nready:\nbar.sync 0;\n\
         cp.async.cg.shared.global [at], [from], 16;\ncp.async.mbarrier.arrive{word}.shared.b64 [bar];\n\
         mbarrier.arrive.shared.b64 state, [bar];\nwait:\nmbarrier.test_wait.shared.b64 p, [bar], state;\n\
         @!p bra wait;\n"
    );
    let tail = end(16).replace("bar.sync 0;\n", "");
    let mut expected = data[16..].to_vec();
    expected.extend(&data[..16]);
    Kernel {
        name,
        body: body + &tail,
        launch: (1, THREADS as u32),
        inputs: vec![data],
        expected,
        element: 1,
        ..Kernel::default()
    }
    .add(s);
}
