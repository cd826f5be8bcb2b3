//! Cases of instructions that work on each thread's own registers: one line each.
//!
//! Every case runs its instruction on every row of operands in two places, the second rotated so that other lanes have the
//! values, and once more under a guard that lets only odd lanes through: the others must keep what was in `d`.

use super::case::{Case, Comparison, Part, Target};
use super::softfloat::Format;
use super::values::{Rng, Values, Width, combinations, ones};
use std::fmt::Write;

/// Rows by which the second copy of the operands is rotated: odd, and not a divisor of 32.
const ROTATION: usize = 13;
/// Threads of a block.
const BLOCK: usize = 128;
/// What `d` holds where the guard is false.
const OLD: u64 = 0xdead_beef_0bad_cafe;

/// A result's register and how it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Bit by bit.
    Bits(Width),
    /// NaNs alike.
    Float(Format),
    /// Two 16-bit values in a `.b32`, NaNs alike.
    Packed(Format),
}

impl Out {
    fn width(self) -> Width {
        match self {
            Out::Bits(width) => width,
            Out::Float(f) => Width::of_bits(f.bits()),
            Out::Packed(_) => Width::B32,
        }
    }

    fn part(self, count: usize) -> Part {
        let bytes = self.width().bytes() * count;
        match self {
            Out::Bits(width) => Part { bytes, element: width.bytes(), comparison: Comparison::Bits },
            Out::Float(f) | Out::Packed(f) => {
                Part { bytes, element: f.bytes(), comparison: Comparison::Float(f) }
            }
        }
    }
}

/// Fills in the results of one thread from its sources.
type Expectation<'e> = dyn Fn(&[u64], &mut [Option<u64>]) + 'e;

/// Cases of a family as they are made.
pub struct Suite {
    family: &'static str,
    target: Target,
    room: usize,
    cases: Vec<Case>,
}

impl Suite {
    /// None yet, for compute capability 8.0.
    pub fn new(family: &'static str) -> Suite {
        Suite { family, target: Target::Sm80, room: 512, cases: Vec::new() }
    }

    /// The family's name.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Cards that the cases from here on need.
    pub fn target(&mut self, target: Target) {
        self.target = target;
    }

    /// The one set last.
    pub fn current_target(&self) -> Target {
        self.target
    }

    /// Combinations of special values that the cases from here on take.
    pub fn room(&mut self, room: usize) {
        self.room = room;
    }

    /// Adds one made elsewhere.
    pub fn push(&mut self, case: Case) {
        self.cases.push(case);
    }

    /// All of them.
    pub fn finish(self) -> Vec<Case> {
        self.cases
    }

    /// One instruction (or a few, each ended by `;` but the last): sources `a b c e f` in the order of `inputs`, result
    /// `d`. `expect` has the sources of one thread.
    pub fn op(&mut self, text: &str, out: Out, inputs: &[Values], expect: impl Fn(&[u64]) -> u64) {
        self.add(text, &[out], inputs, &|v, d| d[0] = Some(expect(v)));
    }

    /// As [`Suite::op`]; `None` where the manual leaves the result open.
    pub fn partial(
        &mut self,
        text: &str,
        out: Out,
        inputs: &[Values],
        expect: impl Fn(&[u64]) -> Option<u64>,
    ) {
        self.add(text, &[out], inputs, &|v, d| d[0] = expect(v));
    }

    /// As [`Suite::op`] with the results `d` and `g`.
    pub fn ops(
        &mut self,
        text: &str,
        outs: &[Out],
        inputs: &[Values],
        expect: impl Fn(&[u64], &mut [Option<u64>]),
    ) {
        self.add(text, outs, inputs, &expect);
    }

    /// Not generic, so that the thousands of lines that end here are compiled in bearable time.
    fn add(&mut self, text: &str, outs: &[Out], inputs: &[Values], expect: &Expectation<'_>) {
        let rows = self.rows(text, inputs);
        let results: Vec<Vec<Option<u64>>> = rows
            .iter()
            .map(|row| {
                let mut d = vec![None; outs.len()];
                expect(row, &mut d);
                d
            })
            .collect();
        let case = self.assemble(text, outs, inputs, &rows, &results);
        self.cases.push(case);
    }

    /// An approximate instruction: `expect` gives the exact value and the error allowed, absolute. A NaN is expected as
    /// any NaN; an error of 0 asks for the value itself.
    pub fn near(&mut self, text: &str, out: Out, input: &[Values], expect: impl Fn(&[u64]) -> (f64, f64)) {
        self.add_near(text, out, input, &expect);
    }

    /// Half by half where `out` is a pair: `expect` then has the halves of the sources.
    fn add_near(&mut self, text: &str, out: Out, input: &[Values], expect: &dyn Fn(&[u64]) -> (f64, f64)) {
        let (format, lanes) = match out {
            Out::Packed(f) => (f, 2),
            Out::Float(f) => (f, 1),
            Out::Bits(_) => return,
        };
        let bits = format.bits();
        let rows = self.rows(text, input);
        let lane = |row: &[u64], l: u32| -> Vec<u64> {
            if lanes == 1 { row.to_vec() } else { row.iter().map(|v| v >> (bits * l) & ones(bits)).collect() }
        };
        let ranges: Vec<Vec<(f64, f64)>> =
            rows.iter().map(|row| (0..lanes).map(|l| expect(&lane(row, l))).collect()).collect();
        let joined = |r: &Vec<(f64, f64)>| {
            let value = |(l, (exact, _)): (usize, &(f64, f64))| format.from_f64(*exact) << (bits * l as u32);
            vec![Some(r.iter().enumerate().map(value).fold(0, |d, v| d | v))]
        };
        let results: Vec<Vec<Option<u64>>> = ranges.iter().map(joined).collect();
        let mut case = self.assemble(text, &[out], input, &rows, &results);
        for (p, part) in case.parts.iter_mut().enumerate() {
            let (mut low, mut high) = (Vec::new(), Vec::new());
            for i in 0..2 * rows.len() {
                for (l, (exact, error)) in ranges[source(i, rows.len())].iter().enumerate() {
                    let kept = p == 1 && i.is_multiple_of(2);
                    let old = format.to_f64(OLD >> (bits * l as u32) & ones(bits));
                    let (exact, error) = if kept { (old, 0.0) } else { (*exact, *error) };
                    low.push(exact - error);
                    high.push(exact + error);
                }
            }
            part.comparison = Comparison::Within { format, low, high };
        }
        self.cases.push(case);
    }

    fn rows(&self, text: &str, inputs: &[Values]) -> Vec<Vec<u64>> {
        combinations(inputs, &mut Rng::new(text), self.room)
    }

    fn assemble(
        &self,
        text: &str,
        outs: &[Out],
        inputs: &[Values],
        rows: &[Vec<u64>],
        results: &[Vec<Option<u64>>],
    ) -> Case {
        let n = rows.len();
        let count = 2 * n;
        let put = |to: &mut Vec<u8>, v: u64, bytes: usize| to.extend_from_slice(&v.to_le_bytes()[..bytes]);
        let mut buffers = vec![Vec::new(); inputs.len()];
        for i in 0..count {
            for (k, buffer) in buffers.iter_mut().enumerate() {
                put(buffer, rows[source(i, n)][k], inputs[k].width.bytes());
            }
        }
        let guarded = guardable(text);
        let (mut expected, mut defined, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (j, out) in outs.iter().enumerate() {
            let bytes = out.width().bytes();
            for pass in 0..1 + usize::from(guarded) {
                for i in 0..count {
                    let old = if *out == Out::Bits(Width::Pred) { 0 } else { OLD };
                    let kept = pass == 1 && i.is_multiple_of(2);
                    let value = if kept { Some(old) } else { results[source(i, n)][j] };
                    put(&mut expected, value.unwrap_or(0), bytes);
                    put(&mut defined, if value.is_some() { u64::MAX } else { 0 }, bytes);
                }
                parts.push(out.part(count));
            }
        }
        if defined.iter().all(|&b| b == 0xff) {
            defined.clear();
        }
        Case {
            family: self.family,
            name: text.to_string(),
            target: self.target,
            ptx: kernel(text, self.target, outs, inputs, count, guarded),
            grid: (count / BLOCK) as u32,
            block: BLOCK as u32,
            dynamic_shared: 0,
            inputs: buffers,
            before: vec![0; expected.len()],
            expected,
            defined,
            parts,
            operands: inputs.iter().map(|o| o.width.bytes()).collect(),
        }
    }
}

/// Row of operands of a thread: the rows in order, then rotated.
fn source(thread: usize, rows: usize) -> usize {
    if thread < rows { thread } else { (thread + ROTATION) % rows }
}

/// Whether a guard can stand before every instruction of the text.
fn guardable(text: &str) -> bool {
    text.split(';').all(|s| !s.trim_start().starts_with(['@', '{', '.', '}']))
}

/// Names of the sources.
const SOURCES: [&str; 5] = ["a", "b", "c", "e", "f"];
/// Names of the results.
const RESULTS: [&str; 2] = ["d", "g"];

fn kernel(
    text: &str,
    target: Target,
    outs: &[Out],
    inputs: &[Values],
    count: usize,
    guarded: bool,
) -> String {
    let mut s = String::new();
    let mut line = |l: String| {
        s.push_str(&l);
        s.push('\n');
    };
    let sources = &SOURCES[..inputs.len()];
    let results = &RESULTS[..outs.len()];
    line(super::kernel::header(target, inputs.len()));
    line("  .reg .pred %odd;\n  .reg .b16 %h;\n  .reg .b32 %i, %n, %c;\n  .reg .b64 %at, %out;".into());
    for (name, o) in sources.iter().zip(inputs) {
        line(format!("  .reg .{} {name};", o.width.name()));
    }
    for (name, o) in results.iter().zip(outs) {
        line(format!("  .reg .{} {name};", o.width().name()));
    }
    line("  mov.u32 %i, %tid.x;\n  mov.u32 %n, %ntid.x;\n  mov.u32 %c, %ctaid.x;".into());
    line("  mad.lo.u32 %i, %c, %n, %i;".into());
    for (k, (name, o)) in sources.iter().zip(inputs).enumerate() {
        line(format!("  ld.param.u64 %at, [p{k}];\n  mad.wide.u32 %at, %i, {}, %at;", o.width.bytes()));
        match o.width {
            Width::Pred => line(format!("  ld.global.u8 %h, [%at];\n  setp.ne.u16 {name}, %h, 0;")),
            width => line(format!("  ld.global.{} {name}, [%at];", width.name())),
        }
    }
    line(format!("  ld.param.u64 %out, [p{}];", inputs.len()));
    line("  and.b32 %c, %i, 1;\n  setp.ne.u32 %odd, %c, 0;".into());
    // Results go to the parts in the order of `assemble`.
    let mut bases = Vec::new();
    let mut at = 0;
    for out in outs {
        let mut passes = Vec::new();
        for _ in 0..1 + usize::from(guarded) {
            passes.push(at);
            at += out.width().bytes() * count;
        }
        bases.push(passes);
    }
    for pass in 0..1 + usize::from(guarded) {
        for (name, out) in results.iter().zip(outs) {
            match out.width() {
                Width::Pred => line(format!("  setp.ne.u32 {name}, %c, %c;")),
                width => {
                    let old = OLD & ones(8 * width.bytes() as u32);
                    line(format!("  mov.{} {name}, {old:#x};", width.name()));
                }
            }
        }
        for statement in text.split(';') {
            let guard = if pass == 1 { "@%odd " } else { "" };
            line(format!("  {guard}{};", statement.trim()));
        }
        for ((name, out), passes) in results.iter().zip(outs).zip(&bases) {
            let bytes = out.width().bytes();
            line(format!("  mad.wide.u32 %at, %i, {bytes}, %out;"));
            match out.width() {
                Width::Pred => {
                    line(format!("  selp.u16 %h, 1, 0, {name};\n  st.global.u8 [%at+{}], %h;", passes[pass]))
                }
                width => line(format!("  st.global.{} [%at+{}], {name};", width.name(), passes[pass])),
            }
        }
    }
    let _ = write!(s, "  ret;\n}}\n");
    s
}
