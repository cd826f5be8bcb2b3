//! Random programs, with registers packed by their lifetimes, against one that runs each thread by itself.

use crate::harness::{run_with, shape, told};
use proptest::prelude::*;
use std::fmt::Write as _;

const NARROW: usize = 14;
const WIDE: usize = 7;
const PREDICATES: usize = 4;

/// One instruction; numbers are registers.
#[derive(Clone, Debug)]
enum Op {
    Constant(usize, u32),
    Lane(usize),
    Add(usize, usize, usize),
    Xor(usize, usize, usize),
    Multiply(usize, usize, usize),
    WideMultiply(usize, usize, usize),
    WideAdd(usize, usize, usize),
    Low(usize, usize),
    High(usize, usize),
    Join(usize, usize, usize),
    Compare(usize, usize, usize),
    Select(usize, usize, usize, usize),
    Shuffle(usize, usize),
}

/// An instruction with or without a guard (predicate, negated).
#[derive(Clone, Debug)]
struct Step {
    op: Op,
    guard: Option<(usize, bool)>,
}

/// How a block ends.
#[derive(Clone, Debug)]
enum End {
    Next,
    Jump(usize),
    Branch(usize, bool, usize),
    Exit,
}

/// Blocks; each entered at most so often by a thread before it ends.
#[derive(Clone, Debug)]
struct Program {
    blocks: Vec<(Vec<Step>, End)>,
    fuel: u32,
}

#[derive(Clone, Debug, Default)]
struct Thread {
    narrow: [u32; NARROW],
    wide: [u64; WIDE],
    predicates: [bool; PREDICATES],
    result: u32,
}

fn op() -> impl Strategy<Value = Op> {
    let (n, w, p) = (0..NARROW, 0..WIDE, 0..PREDICATES);
    let n = || n.clone();
    let w = || w.clone();
    let p = || p.clone();
    prop_oneof![
        (n(), any::<u32>()).prop_map(|(d, x)| Op::Constant(d, x)),
        n().prop_map(Op::Lane),
        (n(), n(), n()).prop_map(|(d, a, b)| Op::Add(d, a, b)),
        (n(), n(), n()).prop_map(|(d, a, b)| Op::Xor(d, a, b)),
        (n(), n(), n()).prop_map(|(d, a, b)| Op::Multiply(d, a, b)),
        (w(), n(), n()).prop_map(|(d, a, b)| Op::WideMultiply(d, a, b)),
        (w(), w(), w()).prop_map(|(d, a, b)| Op::WideAdd(d, a, b)),
        (n(), w()).prop_map(|(d, a)| Op::Low(d, a)),
        (n(), w()).prop_map(|(d, a)| Op::High(d, a)),
        (w(), n(), n()).prop_map(|(d, a, b)| Op::Join(d, a, b)),
        (p(), n(), n()).prop_map(|(d, a, b)| Op::Compare(d, a, b)),
        (n(), n(), n(), p()).prop_map(|(d, a, b, c)| Op::Select(d, a, b, c)),
        (n(), n()).prop_map(|(d, a)| Op::Shuffle(d, a)),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let guard = proptest::option::weighted(0.25, (0..PREDICATES, any::<bool>()));
    let step = (op(), guard).prop_map(|(op, guard)| Step { op, guard }).boxed();
    (1..9usize).prop_flat_map(move |blocks| {
        let end = prop_oneof![
            3 => Just(End::Next),
            1 => (0..blocks).prop_map(End::Jump),
            4 => (0..PREDICATES, any::<bool>(), 0..blocks).prop_map(|(p, n, to)| End::Branch(p, n, to)),
            1 => Just(End::Exit),
        ];
        let block = (proptest::collection::vec(step.clone(), 1..10), end);
        (proptest::collection::vec(block, blocks), 1..12u32)
            .prop_map(|(blocks, fuel)| Program { blocks, fuel })
    })
}

/// The program as a kernel's body.
fn text(program: &Program) -> String {
    let mut out =
        format!(".reg .b32 %n<{NARROW}>;\n.reg .b64 %w<{WIDE}>;\n.reg .b32 %fuel;\n.reg .b32 %sum;\n");
    let _ = writeln!(out, ".reg .pred %q<{PREDICATES}>;\nmov.u32 %fuel, {};\nmov.u32 %sum, 0;", program.fuel);
    for (b, (steps, end)) in program.blocks.iter().enumerate() {
        let _ =
            writeln!(out, "$block{b}:\nsetp.eq.u32 %p1, %fuel, 0;\n@%p1 bra $end;\nsub.u32 %fuel, %fuel, 1;");
        for step in steps {
            if let Some((p, negated)) = step.guard {
                let _ = write!(out, "@{}%q{p} ", if negated { "!" } else { "" });
            }
            let _ = match step.op {
                Op::Constant(d, x) => writeln!(out, "mov.u32 %n{d}, {x};"),
                Op::Lane(d) => writeln!(out, "mov.u32 %n{d}, %laneid;"),
                Op::Add(d, a, b) => writeln!(out, "add.u32 %n{d}, %n{a}, %n{b};"),
                Op::Xor(d, a, b) => writeln!(out, "xor.b32 %n{d}, %n{a}, %n{b};"),
                Op::Multiply(d, a, b) => writeln!(out, "mul.lo.u32 %n{d}, %n{a}, %n{b};"),
                Op::WideMultiply(d, a, b) => writeln!(out, "mul.wide.u32 %w{d}, %n{a}, %n{b};"),
                Op::WideAdd(d, a, b) => writeln!(out, "add.u64 %w{d}, %w{a}, %w{b};"),
                Op::Low(d, a) => writeln!(out, "cvt.u32.u64 %n{d}, %w{a};"),
                Op::High(d, a) => writeln!(out, "mov.b64 {{_, %n{d}}}, %w{a};"),
                Op::Join(d, a, b) => writeln!(out, "mov.b64 %w{d}, {{%n{a}, %n{b}}};"),
                Op::Compare(d, a, b) => writeln!(out, "setp.lt.u32 %q{d}, %n{a}, %n{b};"),
                Op::Select(d, a, b, c) => writeln!(out, "selp.b32 %n{d}, %n{a}, %n{b}, %q{c};"),
                // Each lane names itself: the value is its own, but the instruction reads another lane's row.
                Op::Shuffle(d, a) => writeln!(out, "shfl.sync.idx.b32 %n{d}, %n{a}, %r50, 31, %r51;"),
            };
        }
        // What was worked out last counts; the rest need not be kept.
        let _ = writeln!(out, "mad.lo.u32 %sum, %sum, 31, %n{};", b % NARROW);
        let _ = match end {
            End::Next => writeln!(out),
            End::Jump(to) => writeln!(out, "bra $block{to};"),
            End::Branch(p, negated, to) => {
                writeln!(out, "@{}%q{p} bra $block{to};", if *negated { "!" } else { "" })
            }
            End::Exit => writeln!(out, "bra $end;"),
        };
    }
    format!("mov.u32 %r50, %laneid;\nmov.u32 %r51, %lanemask_eq;\n{out}$end:\ngive %sum;\nret;\n")
}

/// Runs one thread by itself. Registers that were never written are 0.
fn naive(program: &Program, lane: u32) -> u32 {
    let mut t = Thread::default();
    let mut at = 0;
    for _ in 0..program.fuel {
        let Some((steps, end)) = program.blocks.get(at) else { break };
        for step in steps {
            if step.guard.is_some_and(|(p, negated)| t.predicates[p] == negated) {
                continue;
            }
            let n = t.narrow;
            match step.op {
                Op::Constant(d, x) => t.narrow[d] = x,
                Op::Lane(d) => t.narrow[d] = lane,
                Op::Add(d, a, b) => t.narrow[d] = n[a].wrapping_add(n[b]),
                Op::Xor(d, a, b) => t.narrow[d] = n[a] ^ n[b],
                Op::Multiply(d, a, b) => t.narrow[d] = n[a].wrapping_mul(n[b]),
                Op::WideMultiply(d, a, b) => t.wide[d] = u64::from(n[a]) * u64::from(n[b]),
                Op::WideAdd(d, a, b) => t.wide[d] = t.wide[a].wrapping_add(t.wide[b]),
                Op::Low(d, a) => t.narrow[d] = t.wide[a] as u32,
                Op::High(d, a) => t.narrow[d] = (t.wide[a] >> 32) as u32,
                Op::Join(d, a, b) => t.wide[d] = u64::from(n[b]) << 32 | u64::from(n[a]),
                Op::Compare(d, a, b) => t.predicates[d] = n[a] < n[b],
                Op::Select(d, a, b, c) => t.narrow[d] = if t.predicates[c] { n[a] } else { n[b] },
                Op::Shuffle(d, a) => t.narrow[d] = n[a],
            }
        }
        t.result = t.result.wrapping_mul(31).wrapping_add(t.narrow[at % NARROW]);
        at = match *end {
            End::Next => at + 1,
            End::Jump(to) => to,
            End::Branch(p, negated, to) => {
                if t.predicates[p] != negated {
                    to
                } else {
                    at + 1
                }
            }
            End::Exit => break,
        };
    }
    t.result
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packed_registers_hold_what_registers_of_their_own_would(program in program()) {
        // Two blocks on one host thread: the second finds what the first left.
        let (report, out) = run_with("", &text(&program), &shape(2, 40), &[]);
        prop_assert!(report.clean(), "{}", told(&report));
        let want: Vec<u32> = (0..80).map(|t| naive(&program, t % 40 % 32)).collect();
        prop_assert_eq!(out, want, "{}", text(&program));
    }
}
