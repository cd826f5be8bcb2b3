//! Control flow and special registers: `bra`, `brx.idx`, `call`, `ret`, `exit`; `%tid` and its like. PTX ISA 9.7.12, 10.

use super::super::case::Target;
use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};
use super::super::values::Rng;

/// Family `control`.
pub fn cases(s: &mut Suite) {
    branches(s);
    loops(s);
    nested(s);
    tables(s);
    exits(s);
    calls(s);
    indirect(s);
    special(s);
    ragged(s);
    hints(s);
}

const THREADS: u32 = 96;
const DECLARE: &str = ".reg .b64 at, to;\n.reg .b32 a, d, n, x, y;\n.reg .pred p, q, r;\n\
                       mad.wide.u32 at, %i, 4, in0;\nld.global.b32 a, [at];\nmov.b32 d, 0;\n";
const STORE: &str = "mad.wide.u32 to, %i, 4, out;\nst.global.b32 [to], d;\n";

/// A kernel of two blocks: each thread's word of the input in `a`, its result in `d`.
fn kernel(s: &mut Suite, name: &str, module: &str, body: &str, range: u64, expect: impl Fn(u32, u32) -> u32) {
    let mut rng = Rng::new(name);
    let data: Vec<u32> = (0..2 * THREADS).map(|_| rng.below(range) as u32).collect();
    let expected = data.iter().enumerate().map(|(i, &a)| expect(i as u32, a));
    let expected = words(expected);
    Kernel {
        name: name.into(),
        module: module.into(),
        body: format!("{DECLARE}{body}{STORE}"),
        launch: (2, THREADS),
        inputs: vec![words(data)],
        expected,
        ..Kernel::default()
    }
    .add(s);
}

fn branches(s: &mut Suite) {
    kernel(
        s,
        "bra in both senses",
        "",
        "setp.lt.u32 p, a, 50;\n@p bra low;\nadd.u32 d, a, 1000;\nbra end;\nlow:\nmul.lo.u32 d, a, 3;\nend:\nadd.u32 d, d, 7;\n",
        100,
        |_, a| if a < 50 { 3 * a + 7 } else { a + 1007 },
    );
    kernel(
        s,
        "bra.uni, bra under a negated guard, guards on predicates",
        "",
        "bra.uni over;\nmov.b32 d, 99;\nover:\nsetp.ge.u32 p, a, 10;\n@!p bra end;\n@p add.u32 d, d, 5;\n\
         setp.eq.u32 q, a, 12;\n@q add.u32 d, d, 100;\n@!q setp.eq.u32 r, a, 13;\n@q setp.ne.u32 r, a, a;\n\
         @r add.u32 d, d, 200;\nend:\n",
        16,
        |_, a| if a < 10 { 0 } else { 5 + if a == 12 { 100 } else { 0 } + if a == 13 { 200 } else { 0 } },
    );
    kernel(
        s,
        "a switch by a chain of branches",
        "",
        "setp.eq.u32 p, a, 0;\n@p bra zero;\nsetp.eq.u32 p, a, 1;\n@p bra one;\nsetp.eq.u32 p, a, 2;\n@p bra two;\n\
         mov.b32 d, 40;\nbra end;\ntwo:\nadd.u32 d, d, 30;\none:\nadd.u32 d, d, 20;\nzero:\nadd.u32 d, d, 10;\nend:\n",
        5,
        |_, a| [10, 30, 60, 40, 40][a as usize],
    );
}

fn loops(s: &mut Suite) {
    kernel(
        s,
        "a loop with a trip count for each lane",
        "",
        "mov.b32 n, 0;\nloop:\nsetp.ge.u32 p, n, a;\n@p bra end;\nadd.u32 n, n, 1;\nmad.lo.u32 d, d, 3, n;\nbra loop;\nend:\n",
        40,
        |_, a| (1..=a).fold(0u32, |d, n| d.wrapping_mul(3).wrapping_add(n)),
    );
    kernel(
        s,
        "a loop that is left in two places",
        "",
        "mov.b32 n, 0;\nloop:\nadd.u32 n, n, 1;\nsetp.gt.u32 p, n, 20;\n@p bra late;\nmul.lo.u32 x, n, n;\n\
         setp.ne.u32 q, x, a;\n@q bra loop;\nmov.b32 d, n;\nbra end;\nlate:\nmov.b32 d, 1000;\nend:\nadd.u32 d, d, n;\n",
        100,
        |_, a| match (1..=20u32).find(|n| n * n == a) {
            Some(n) => 2 * n,
            None => 1000 + 21,
        },
    );
    kernel(
        s,
        "Collatz steps",
        "",
        "add.u32 n, a, 1;\nloop:\nsetp.eq.u32 p, n, 1;\n@p bra end;\nadd.u32 d, d, 1;\nand.b32 x, n, 1;\n\
         setp.eq.u32 q, x, 0;\n@q bra even;\nmad.lo.u32 n, n, 3, 1;\nbra loop;\neven:\nshr.u32 n, n, 1;\nbra loop;\nend:\n",
        1000,
        |_, a| {
            let (mut n, mut steps) = (a + 1, 0);
            while n != 1 {
                n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
                steps += 1;
            }
            steps
        },
    );
}

fn nested(s: &mut Suite) {
    kernel(
        s,
        "branches in loops in branches",
        "",
        "and.b32 x, a, 1;\nsetp.eq.u32 p, x, 0;\n@p bra even;\nmov.b32 n, 0;\nouter:\nmov.b32 y, 0;\ninner:\n\
         add.u32 x, n, y;\nand.b32 x, x, 3;\nsetp.eq.u32 q, x, 2;\n@q bra skip;\nmad.lo.u32 d, d, 5, x;\nskip:\n\
         add.u32 y, y, 1;\nsetp.lt.u32 q, y, n;\n@q bra inner;\nadd.u32 n, n, 1;\nsetp.lt.u32 q, n, a;\n@q bra outer;\n\
         bra end;\neven:\nsetp.lt.u32 q, a, 6;\n@q bra small;\nadd.u32 d, a, 500;\nbra end;\nsmall:\nsub.u32 d, 600, a;\nend:\n",
        12,
        |_, a| {
            if a % 2 == 0 {
                return if a < 6 { 600 - a } else { a + 500 };
            }
            let (mut d, mut n) = (0u32, 0);
            loop {
                let mut y = 0;
                loop {
                    let x = (n + y) & 3;
                    if x != 2 {
                        d = d.wrapping_mul(5).wrapping_add(x);
                    }
                    y += 1;
                    if y >= n {
                        break;
                    }
                }
                n += 1;
                if n >= a {
                    return d;
                }
            }
        },
    );
}

fn tables(s: &mut Suite) {
    let body = "targets: .branchtargets L0, L1, L2, L3, L1;\nbrx.idx a, targets;\nL0:\nadd.u32 d, d, 1;\nbra end;\nL1:\n\
                add.u32 d, d, 10;\nL2:\nadd.u32 d, d, 100;\nbra end;\nL3:\nmov.b32 d, 5000;\nend:\n";
    kernel(s, "brx.idx", "", body, 5, |_, a| [1, 110, 100, 5000, 110][a as usize]);
    let body = "targets: .branchtargets L0, L1;\nand.b32 x, %block, 1;\nbrx.idx.uni x, targets;\nL1:\nadd.u32 d, a, 1;\n\
                bra end;\nL0:\nadd.u32 d, a, 2;\nend:\n";
    kernel(s, "brx.idx.uni", "", body, 5, |i, a| if i / THREADS == 1 { a + 1 } else { a + 2 });
}

/// Lanes that end early, at the top level and by `ret`; the rest go on, also over a barrier.
fn exits(s: &mut Suite) {
    let store = "mad.wide.u32 to, %i, 4, out;\nst.global.b32 [to], 77;\n";
    kernel(
        s,
        "exit of some lanes",
        "",
        &format!("{store}setp.lt.u32 p, a, 3;\n@p exit;\nmov.b32 d, a;\n"),
        8,
        |_, a| {
            if a < 3 { 77 } else { a }
        },
    );
    kernel(
        s,
        "ret of some lanes, then shfl among the rest",
        "",
        &format!("{store}setp.lt.u32 p, %lane, 16;\n@p ret;\nshfl.sync.bfly.b32 d, a, 1, 31, 0xffff0000;\n"),
        1 << 20,
        // The value of the neighbour is not known here; it is compared below.
        |i, _| if i % 32 < 16 { 77 } else { neighbour(i) },
    );
    kernel(
        s,
        "exit of a warp before a barrier",
        "",
        &format!("{store}setp.ge.u32 p, %t, 64;\n@p exit;\nbar.sync 0;\nadd.u32 d, a, 1;\n"),
        100,
        |i, a| if i % THREADS >= 64 { 77 } else { a + 1 },
    );
}

/// The input word of a thread's neighbour in the case above.
fn neighbour(i: u32) -> u32 {
    let mut rng = Rng::new("ret of some lanes, then shfl among the rest");
    let data: Vec<u32> = (0..2 * THREADS).map(|_| rng.below(1 << 20) as u32).collect();
    data[i as usize ^ 1]
}

const FUNCTIONS: &str = "\
.func (.param .b32 r) twice(.param .b32 v)
{
  .reg .b32 %x;
  ld.param.b32 %x, [v];
  shl.b32 %x, %x, 1;
  st.param.b32 [r], %x;
  ret;
}
.func (.param .b32 r) pick(.param .b32 v, .param .b64 w)
{
  .reg .b32 %x, %y, %z;
  .reg .b64 %w;
  .reg .pred %p;
  ld.param.b32 %x, [v];
  ld.param.b64 %w, [w];
  mov.b64 {%y, %z}, %w;
  setp.lt.u32 %p, %x, 50;
  @%p bra low;
  st.param.b32 [r], %y;
  ret;
low:
  add.u32 %z, %z, %x;
  st.param.b32 [r], %z;
  ret;
}
.func (.param .align 8 .b8 r[16]) pair(.param .align 8 .b8 v[16])
{
  .reg .b64 %a, %b;
  ld.param.v2.b64 {%a, %b}, [v];
  add.u64 %a, %a, %b;
  st.param.b64 [r], %b;
  st.param.b64 [r+8], %a;
  ret;
}";

fn calls(s: &mut Suite) {
    let call = "{\n.param .b32 v;\n.param .b32 r;\nst.param.b32 [v], a;\ncall.uni (r), twice, (v);\nld.param.b32 d, [r];\n}\n";
    kernel(s, "call.uni of a function", FUNCTIONS, call, 1000, |_, a| 2 * a);
    let call = "setp.gt.u32 p, a, 30;\n@!p bra end;\n{\n.param .b32 v;\n.param .b64 w;\n.param .b32 r;\n.reg .b64 wide;\n\
                mov.b64 wide, {%i, %t};\nst.param.b32 [v], a;\nst.param.b64 [w], wide;\ncall (r), pick, (v, w);\n\
                ld.param.b32 d, [r];\n}\nend:\n";
    kernel(s, "call from a branch, returns from a branch", FUNCTIONS, call, 80, |i, a| match a {
        0..=30 => 0,
        31..50 => i % THREADS + a,
        _ => i,
    });
    let call = "{\n.param .align 8 .b8 v[16];\n.param .align 8 .b8 r[16];\n.reg .b64 w, z;\nmov.b64 w, {a, a};\n\
                st.param.b64 [v], w;\nst.param.b64 [v+8], 5;\ncall (r), pair, (v);\nld.param.b64 w, [r];\n\
                ld.param.b64 z, [r+8];\nmov.b64 {x, y}, z;\nadd.u32 d, x, y;\nmov.b64 {x, y}, w;\nmad.lo.u32 d, x, 1000, d;\n}\n";
    kernel(s, "call with a structure each way", FUNCTIONS, call, 100, |_, a| 5000 + 2 * a + 5);
}

fn indirect(s: &mut Suite) {
    let module = "\
.func (.param .b32 r) f0(.param .b32 v)
{
  .reg .b32 %x;
  ld.param.b32 %x, [v];
  add.u32 %x, %x, 100;
  st.param.b32 [r], %x;
  ret;
}
.func (.param .b32 r) f1(.param .b32 v)
{
  .reg .b32 %x;
  ld.param.b32 %x, [v];
  mul.lo.u32 %x, %x, 7;
  st.param.b32 [r], %x;
  ret;
}
.global .align 8 .u64 functions[2] = {f0, f1};";
    let call = "proto: .callprototype (.param .b32 _) _ (.param .b32 _);\n.reg .b64 f;\nand.b32 x, a, 1;\nmov.u64 at, functions;\n\
                mad.wide.u32 at, x, 8, at;\nld.global.u64 f, [at];\n{\n.param .b32 v;\n.param .b32 r;\nst.param.b32 [v], a;\n\
                call (r), f, (v), proto;\nld.param.b32 d, [r];\n}\n";
    kernel(s, "call through a table of functions", module, call, 100, |_, a| {
        if a % 2 == 0 { a + 100 } else { 7 * a }
    });
}

/// `%tid`, `%ntid`, `%ctaid`, `%nctaid` and what follows from them.
fn special(s: &mut Suite) {
    type Value = fn(u32) -> u32;
    let registers: [(&str, Value); 13] = [
        ("tid.x", |i| i % THREADS),
        ("tid.y", |_| 0),
        ("tid.z", |_| 0),
        ("ntid.x", |_| THREADS),
        ("ntid.y", |_| 1),
        ("ntid.z", |_| 1),
        ("ctaid.x", |i| i / THREADS),
        ("ctaid.y", |_| 0),
        ("ctaid.z", |_| 0),
        ("nctaid.x", |_| 2),
        ("nctaid.y", |_| 1),
        ("nctaid.z", |_| 1),
        ("laneid", |i| i % 32),
    ];
    for (name, value) in registers {
        kernel(s, &format!("mov.u32 d, %{name}"), "", &format!("mov.u32 d, %{name};\n"), 2, |i, _| value(i));
    }
    // Time goes on; how fast is left open.
    let body = ".reg .b64 w, z;\nmov.u64 w, %clock64;\nmov.u64 z, %clock64;\nsetp.le.u64 p, w, z;\nselp.b32 d, 1, 0, p;\n";
    kernel(s, "%clock64 does not go back", "", body, 2, |_, _| 1);
}

/// A block that is no multiple of a warp: its last warp has fewer lanes.
fn ragged(s: &mut Suite) {
    let threads = 45u32;
    let data: Vec<u32> = (0..3 * threads).map(|i| i * i + 1).collect();
    let body = format!(
        "{DECLARE}.shared .align 4 .b32 cells[64];\nactivemask.b32 x;\nsetp.ge.u32 p, %t, 32;\n\
         mov.b32 n, 0xffffffff;\n@p mov.b32 n, 0x1fff;\nsetp.eq.u32 q, x, n;\nselp.b32 d, 1, 0, q;\n\
         shfl.sync.up.b32 x, a, 1, 0, n;\n\
         setp.eq.u32 q, %lane, 0;\n@q mov.b32 x, 0;\nadd.u32 d, d, x;\nmov.u64 at, cells;\n\
         mad.wide.u32 at, %t, 4, at;\nst.shared.b32 [at], a;\nbar.sync 0;\nsub.u32 y, {last}, %t;\n\
         mov.u64 at, cells;\nmad.wide.u32 at, y, 4, at;\nld.shared.b32 x, [at];\nadd.u32 d, d, x;\n{STORE}",
        last = threads - 1
    );
    let expected = (0..3 * threads).map(|i| {
        let t = i % threads;
        let before = if t.is_multiple_of(32) { 0 } else { data[i as usize - 1] };
        1 + before + data[(i / threads * threads + threads - 1 - t) as usize]
    });
    let expected = words(expected);
    Kernel {
        name: "blocks of 45 threads".into(),
        body,
        launch: (3, threads),
        inputs: vec![words(data)],
        expected,
        ..Kernel::default()
    }
    .add(s);
}

/// Instructions that change nothing a program can see.
fn hints(s: &mut Suite) {
    kernel(s, "nanosleep, pmevent", "", "nanosleep.u32 20;\npmevent 3;\nmov.b32 d, a;\n", 9, |_, a| a);
    s.target(Target::Sm90);
    let body = "griddepcontrol.wait;\nmov.b32 d, a;\ngriddepcontrol.launch_dependents;\n";
    kernel(s, "griddepcontrol", "", body, 9, |_, a| a);
    s.target(Target::Sm80);
}
