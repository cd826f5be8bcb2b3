//! `atom` and `red`: PTX ISA 9.7.13.5 and 6, every operation and type, on global, shared and generic addresses.

use super::super::case::{Comparison, Target};
use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};
use super::super::softfloat::Format;
use super::super::values::{Rng, Values, Width, combinations, floats, integers, ones, packed_floats};
use rustc_apfloat::Round;

const RN: Round = Round::NearestTiesToEven;

/// Operation on what is there, with `b` (and `c` for `cas`).
type Op = Box<dyn Fn(u64, u64, u64) -> u64>;

/// An instruction's operation and type with its meaning.
struct Atomic {
    text: String,
    bits: u32,
    /// `red` has it too.
    reduces: bool,
    format: Option<Format>,
    values: Values,
    target: Target,
    op: Op,
}

/// Family `atomic`.
pub fn cases(s: &mut Suite) {
    for place in [Place::Global, Place::Shared, Place::GenericGlobal, Place::GenericShared] {
        for atomic in operations(place) {
            separate(s, place, &atomic, false);
            if atomic.reduces {
                separate(s, place, &atomic, true);
            }
        }
        contended(s, place);
    }
    orders(s);
    vectors(s);
    s.target(Target::Sm80);
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Global,
    Shared,
    GenericGlobal,
    GenericShared,
}

impl Place {
    fn word(self) -> &'static str {
        match self {
            Place::Global => ".global",
            Place::Shared => ".shared",
            _ => "",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Place::GenericGlobal => " generic to global",
            Place::GenericShared => " generic to shared",
            _ => "",
        }
    }

    fn shared(self) -> bool {
        matches!(self, Place::Shared | Place::GenericShared)
    }
}

fn signed(bits: u32, v: u64) -> i64 {
    ((v << (64 - bits)) as i64) >> (64 - bits)
}

fn operations(place: Place) -> Vec<Atomic> {
    let mut all = Vec::new();
    let mut add = |text: &str, bits: u32, reduces: bool, op: Op| {
        let atomic = Atomic {
            text: text.to_string(),
            bits,
            reduces,
            format: None,
            values: integers(bits),
            target: Target::Sm80,
            op,
        };
        all.push(atomic);
    };
    for n in [32, 64] {
        add(&format!("and.b{n}"), n, true, Box::new(|r, b, _| r & b));
        add(&format!("or.b{n}"), n, true, Box::new(|r, b, _| r | b));
        add(&format!("xor.b{n}"), n, true, Box::new(|r, b, _| r ^ b));
        add(&format!("exch.b{n}"), n, false, Box::new(|_, b, _| b));
        add(&format!("cas.b{n}"), n, false, Box::new(|r, b, c| if r == b { c } else { r }));
        add(&format!("add.u{n}"), n, true, Box::new(move |r, b, _| r.wrapping_add(b) & ones(n)));
        add(&format!("min.u{n}"), n, true, Box::new(|r, b, _| r.min(b)));
        add(&format!("max.u{n}"), n, true, Box::new(|r, b, _| r.max(b)));
        add(
            &format!("min.s{n}"),
            n,
            true,
            Box::new(move |r, b, _| if signed(n, r) < signed(n, b) { r } else { b }),
        );
        add(
            &format!("max.s{n}"),
            n,
            true,
            Box::new(move |r, b, _| if signed(n, r) > signed(n, b) { r } else { b }),
        );
    }
    add("add.s32", 32, true, Box::new(|r, b, _| r.wrapping_add(b) & ones(32)));
    add("inc.u32", 32, true, Box::new(|r, b, _| if r >= b { 0 } else { r + 1 }));
    add("dec.u32", 32, true, Box::new(|r, b, _| if r == 0 || r > b { b } else { r - 1 }));
    add("cas.b16", 16, false, Box::new(|r, b, c| if r == b { c } else { r }));
    let mut add = |text: &str, f: Format, packed: bool, target: Target, op: Op| {
        let (bits, values) = if packed { (32, packed_floats(f)) } else { (f.bits(), floats(f)) };
        all.push(Atomic { text: text.to_string(), bits, reduces: true, format: Some(f), values, target, op });
    };
    // On global memory the card flushes subnormals, on shared memory it does not.
    let f = Format::F32;
    let flush = move |v: u64| if place.shared() { v } else { f.flush(v) };
    let sum = move |r: u64, b: u64, _: u64| flush(f.add(RN, flush(r), flush(b)));
    add("add.f32", f, false, Target::Sm80, Box::new(sum));
    add("add.f64", Format::F64, false, Target::Sm80, Box::new(|r, b, _| Format::F64.add(RN, r, b)));
    for (f, target) in [(Format::F16, Target::Sm80), (Format::Bf16, Target::Sm90)] {
        let name = f.name();
        add(&format!("add.noftz.{name}"), f, false, target, Box::new(move |r, b, _| f.add(RN, r, b)));
        let pair = move |r: u64, b: u64, _: u64| {
            f.add(RN, r & 0xffff, b & 0xffff) | f.add(RN, r >> 16, b >> 16) << 16
        };
        add(&format!("add.noftz.{name}x2"), f, true, target, Box::new(pair));
    }
    all
}

/// Every thread on a cell of its own: what was there is returned, what is there afterwards read back.
fn separate(s: &mut Suite, place: Place, atomic: &Atomic, red: bool) {
    let Atomic { text, bits, op, .. } = atomic;
    let opcode = if red { "red" } else { "atom" };
    let name = format!("{opcode}{}.{text}{}", place.word(), place.name());
    let cas = text.starts_with("cas");
    let mut sources = [atomic.values.clone(), atomic.values.clone(), atomic.values.clone()];
    if cas {
        // Few values, so that the comparison often succeeds.
        for source in &mut sources[..2] {
            *source = Values { special: source.special[..4].to_vec(), random: None, ..source.clone() };
        }
    }
    let rows = combinations(&sources[..if cas { 3 } else { 2 }], &mut Rng::new(&name), 1600);
    let n = rows.len();
    let bytes = *bits as usize / 8;
    let width = Width::of_bits(*bits).name();
    let column = |k: usize| -> Vec<u8> {
        rows.iter().flat_map(|r| r.get(k).unwrap_or(&0).to_le_bytes()[..bytes].to_vec()).collect()
    };
    let mut body = format!(".reg .b64 at, cell;\n.reg .{width} a, b, c, d;\n");
    for (k, r) in ["a", "b", "c"].iter().enumerate() {
        body += &format!("mad.wide.u32 at, %i, {bytes}, in{k};\nld.global.b{bits} {r}, [at];\n");
    }
    if place.shared() {
        body += &format!(".shared .align 16 .b8 cells[{}];\n", 128 * bytes);
        body += &format!(
            "mov.u64 cell, cells;\nmad.wide.u32 cell, %t, {bytes}, cell;\nst.shared.b{bits} [cell], a;\n"
        );
        if place == Place::GenericShared {
            body += "cvta.shared.u64 cell, cell;\n";
        }
    } else {
        body += &format!("mad.wide.u32 cell, %i, {bytes}, out;\nst.global.b{bits} [cell], a;\n");
    }
    let third = if cas { ", c" } else { "" };
    body += &match red {
        true => format!("mov.{width} d, a;\nred{}.{text} [cell], b;\n", place.word()),
        false => format!("atom{}.{text} d, [cell], b{third};\n", place.word()),
    };
    body += &format!("ld{}.b{bits} a, [cell];\nmad.wide.u32 at, %i, {bytes}, out;\n", place.word());
    body += &format!("st.global.b{bits} [at], a;\nst.global.b{bits} [at+{}], d;\n", n * bytes);
    let mut after = Vec::new();
    for r in &rows {
        let v = op(r[0], r[1], r.get(2).copied().unwrap_or(0));
        after.extend_from_slice(&v.to_le_bytes()[..bytes]);
    }
    after.extend(column(0));
    s.target(atomic.target);
    Kernel {
        name,
        body,
        launch: ((n / 128) as u32, 128),
        inputs: vec![column(0), column(1), column(2)],
        expected: after,
        element: atomic.format.map_or(bytes, Format::bytes),
        comparison: atomic.format.map_or(Comparison::Bits, Comparison::Float),
        ..Kernel::default()
    }
    .add(s);
    s.target(Target::Sm80);
}

/// All threads of two blocks on one cell. `atom.add` hands out every number once; the sums do not depend on the order.
fn contended(s: &mut Suite, place: Place) {
    let threads = 256u32;
    let (setup, cells) = match place {
        Place::Global | Place::GenericGlobal => ("add.u64 cell, out, 2048;\n", 1),
        Place::Shared => (
            ".shared .align 8 .b32 counter[4];\nmov.u64 cell, counter;\nsetp.eq.u32 p, %t, 0;\n\
             @p st.shared.v4.b32 [cell], {0, 0, 0, 0};\nbar.sync 0;\n",
            2,
        ),
        Place::GenericShared => (
            ".shared .align 8 .b32 counter[4];\nmov.u64 cell, counter;\ncvta.shared.u64 cell, cell;\n\
             setp.eq.u32 p, %t, 0;\n@p st.v4.b32 [cell], {0, 0, 0, 0};\nbar.sync 0;\n",
            2,
        ),
    };
    // Each ticket is marked once; blocks with counters of their own mark their own half.
    let half = if cells == 2 { "mad.lo.u32 d, %block, 256, d;\n" } else { "" };
    let word = place.word();
    let body = format!(
        ".reg .b64 at, cell;\n.reg .b32 d, e;\n.reg .pred p;\n{setup}\
         atom{word}.add.u32 d, [cell], 1;\n{half}mad.wide.u32 at, d, 4, out;\nst.global.b32 [at], 1;\n\
         red{word}.add.u32 [cell+4], %t;\nred{word}.max.s32 [cell+8], %i;\nred{word}.xor.b32 [cell+12], %i;\n\
         bar.sync 0;\n"
    );
    let mut expected = vec![1; 512];
    let (body, tail) = match cells {
        2 => {
            // The sums of each block, by its first thread.
            let mut text = body + "setp.ne.u32 p, %t, 0;\n@p ret;\nmad.wide.u32 at, %block, 16, out;\n";
            for i in 0..4 {
                text +=
                    &format!("ld{word}.b32 e, [cell+{}];\nst.global.b32 [at+{}], e;\n", 4 * i, 2048 + 4 * i);
            }
            let block = |b: u32| {
                let ids = b * threads..(b + 1) * threads;
                [threads, (0..threads).sum(), ids.end - 1, ids.fold(0, |x, i| x ^ i)]
            };
            (text, [block(0), block(1)].concat())
        }
        _ => (
            body,
            vec![
                2 * threads,
                2 * (0..threads).sum::<u32>(),
                2 * threads - 1,
                (0..2 * threads).fold(0, |x, i| x ^ i),
            ],
        ),
    };
    expected.extend(tail);
    Kernel {
        name: format!("atom, red{word} of all threads on one cell{}", place.name()),
        body,
        launch: (2, threads),
        expected: words(expected),
        ..Kernel::default()
    }
    .add(s);
}

/// Orders and scopes change no value here.
fn orders(s: &mut Suite) {
    for sem in ["", ".relaxed", ".acquire", ".release", ".acq_rel"] {
        for scope in ["", ".cta", ".gpu", ".sys"] {
            if sem.is_empty() != scope.is_empty() {
                continue;
            }
            let data: Vec<u32> = (0..32).map(|i| i * 77).collect();
            let text = format!("atom{sem}{scope}.global.add.u32 d, [cell], 5;");
            let body = format!(
                ".reg .b64 cell;\n.reg .b32 d;\nmad.wide.u32 cell, %t, 4, in0;\n{text}\n\
                 mad.wide.u32 cell, %t, 4, out;\nst.global.b32 [cell], d;\n"
            );
            let expected = words(data.iter().copied());
            Kernel { name: text, body, inputs: vec![words(data)], expected, ..Kernel::default() }.add(s);
        }
    }
}

/// Vectors of f32, compute capability 9.0.
fn vectors(s: &mut Suite) {
    s.target(Target::Sm90);
    for n in [2usize, 4] {
        let threads = 32;
        let f = Format::F32;
        let mut rng = Rng::new("vectors");
        let mut value = || u64::from(((rng.below(2000) as f32) - 1000.0).to_bits());
        let a: Vec<u64> = (0..threads * n).map(|_| value()).collect();
        let b: Vec<u64> = (0..threads * n).map(|_| value()).collect();
        let bytes = |v: &[u64]| words(v.iter().map(|&x| x as u32));
        let list = |r: &str| (0..n).map(|i| format!("{r}{i}")).collect::<Vec<_>>().join(", ");
        let size = 4 * n;
        let sums: Vec<u64> = a.iter().zip(&b).map(|(&x, &y)| f.add(RN, x, y)).collect();
        for red in [false, true] {
            let text = match red {
                true => format!("red.global.add.v{n}.f32 [cell], {{{}}};", list("b")),
                false => format!("atom.global.add.v{n}.f32 {{{}}}, [cell], {{{}}};", list("a"), list("b")),
            };
            let body = format!(
                ".reg .b64 cell, at;\n.reg .b32 a<{n}>, b<{n}>;\nmad.wide.u32 at, %t, {size}, in0;\n\
                 ld.global.v{n}.b32 {{{0}}}, [at];\nmad.wide.u32 cell, %t, {size}, out;\n\
                 st.global.v{n}.b32 [cell], {{{0}}};\nmad.wide.u32 at, %t, {size}, in1;\n\
                 ld.global.v{n}.b32 {{{1}}}, [at];\n{text}\n\
                 st.global.v{n}.b32 [cell+{2}], {{{0}}};\n",
                list("a"),
                list("b"),
                threads * size
            );
            let expected = [bytes(&sums), bytes(&a)].concat();
            Kernel { name: text, body, inputs: vec![bytes(&a), bytes(&b)], expected, ..Kernel::default() }
                .add(s);
        }
    }
}
