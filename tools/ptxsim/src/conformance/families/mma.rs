//! `mma.sync`: every shape and type of compute capability 8.0 to 9.0, with the fragment formulas of PTX ISA 9.7.14.5.
//!
//! The matrices hold small integers, so that the result is exact whatever the order and precision of the accumulation,
//! and the expectation is a plain triple loop. One warp of the launch works on one set of matrices: first all those with
//! a single 1 in A (which shows where each element of A and D lives and which of B it meets), then all with a single 1 in
//! B, then random ones.

use super::super::case::{Comparison, Target};
use super::super::elementwise::Suite;
use super::super::kernel::Kernel;
use super::super::softfloat::Format;
use super::super::values::Rng;
use rustc_apfloat::Float;
use rustc_apfloat::ieee::{Float8E4M3FN, Float8E5M2};

/// Columns of B.
const N: usize = 8;

/// Row and column of element `i` of a lane's fragment; `g` is groupID, `t` threadID_in_group.
type Place = fn(g: usize, t: usize, i: usize) -> (usize, usize);

/// Element type of a multiplicand.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    F16,
    Bf16,
    Tf32,
    F64,
    E4m3,
    E5m2,
    U8,
    S8,
    U4,
    S4,
    B1,
}

impl Element {
    fn name(self) -> &'static str {
        match self {
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::Tf32 => "tf32",
            Element::F64 => "f64",
            Element::E4m3 => "e4m3",
            Element::E5m2 => "e5m2",
            Element::U8 => "u8",
            Element::S8 => "s8",
            Element::U4 => "u4",
            Element::S4 => "s4",
            Element::B1 => "b1",
        }
    }

    fn bits(self) -> usize {
        match self {
            Element::F64 => 64,
            Element::Tf32 => 32,
            Element::F16 | Element::Bf16 => 16,
            Element::E4m3 | Element::E5m2 | Element::U8 | Element::S8 => 8,
            Element::U4 | Element::S4 => 4,
            Element::B1 => 1,
        }
    }

    fn encode(self, v: i64) -> u64 {
        match self {
            Element::F16 => Format::F16.from_f64(real(v)),
            Element::Bf16 => Format::Bf16.from_f64(real(v)),
            Element::Tf32 => u64::from((real(v) as f32).to_bits()),
            Element::F64 => real(v).to_bits(),
            Element::E4m3 => Float8E4M3FN::from_i128(v.into()).value.to_bits() as u64,
            Element::E5m2 => Float8E5M2::from_i128(v.into()).value.to_bits() as u64,
            _ => v as u64 & ((1 << self.bits()) - 1),
        }
    }

    /// Integers that the type holds and whose products, summed, stay exact in an f16 accumulator.
    fn values(self) -> (i64, i64) {
        match self {
            Element::F16 | Element::Bf16 | Element::Tf32 | Element::F64 => (-9, 9),
            Element::E4m3 | Element::E5m2 => (-4, 4),
            Element::U8 => (0, 255),
            Element::S8 => (-128, 127),
            Element::U4 => (0, 15),
            Element::S4 => (-8, 7),
            Element::B1 => (0, 1),
        }
    }
}

/// Stand-ins for what is no integer.
const INFINITY: i64 = i64::MAX;
const NAN: i64 = i64::MIN;

/// The number that an entry of a matrix stands for.
fn real(v: i64) -> f64 {
    match v {
        INFINITY => f64::INFINITY,
        NAN => f64::NAN,
        v if v == -INFINITY => f64::NEG_INFINITY,
        v => v as f64,
    }
}

/// Type of C and D.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    F16,
    F32,
    F64,
    S32,
}

impl Sum {
    fn name(self) -> &'static str {
        match self {
            Sum::F16 => "f16",
            Sum::F32 => "f32",
            Sum::F64 => "f64",
            Sum::S32 => "s32",
        }
    }

    fn bits(self) -> usize {
        match self {
            Sum::F16 => 16,
            Sum::F32 | Sum::S32 => 32,
            Sum::F64 => 64,
        }
    }

    fn encode(self, v: i64) -> u64 {
        match self {
            Sum::F16 => Format::F16.from_f64(real(v)),
            Sum::F32 => u64::from((real(v) as f32).to_bits()),
            Sum::F64 => real(v).to_bits(),
            Sum::S32 => v as u64 & 0xffff_ffff,
        }
    }
}

/// One shape with its fragments.
struct Shape {
    m: usize,
    k: usize,
    a: Place,
    b: Place,
}

/// Accumulators of every shape with n8: c0, c1 in row groupID, c2, c3 eight rows below.
fn accumulator(g: usize, t: usize, i: usize) -> (usize, usize) {
    (g + 8 * (i / 2), 2 * t + i % 2)
}

/// Multiplicands of 16 bits, of whole 32-bit registers and of 8, 4 and 1 bit.
fn shapes(e: Element) -> Vec<Shape> {
    match e {
        Element::F16 | Element::Bf16 => vec![
            Shape {
                m: 16,
                k: 8,
                a: |g, t, i| (if i < 2 { g } else { g + 8 }, 2 * t + (i & 1)),
                b: |g, t, i| (2 * t + i, g),
            },
            Shape {
                m: 16,
                k: 16,
                a: |g, t, i| {
                    let row = if i < 2 || (4..6).contains(&i) { g } else { g + 8 };
                    (row, 2 * t + (i & 1) + if i < 4 { 0 } else { 8 })
                },
                b: |g, t, i| (2 * t + (i & 1) + if i < 2 { 0 } else { 8 }, g),
            },
        ],
        Element::Tf32 => vec![k4(), k8()],
        Element::F64 => vec![
            Shape { m: 8, k: 4, a: |g, t, _| (g, t), b: |g, t, _| (t, g) },
            k4(),
            k8(),
            Shape {
                m: 16,
                k: 16,
                a: |g, t, i| match i % 2 {
                    0 => (g, 2 * i + t),
                    _ => (g + 8, 2 * i - 2 + t),
                },
                b: |g, t, i| (t + 4 * i, g),
            },
        ],
        Element::E4m3 | Element::E5m2 => bytes().split_off(1),
        Element::U8 | Element::S8 => bytes(),
        Element::U4 | Element::S4 => vec![
            Shape { m: 8, k: 32, a: |g, t, i| (g, 8 * t + i), b: |g, t, i| (8 * t + i, g) },
            Shape {
                m: 16,
                k: 32,
                a: |g, t, i| (if i < 8 { g } else { g + 8 }, 8 * t + (i & 7)),
                b: |g, t, i| (8 * t + (i & 7), g),
            },
            Shape {
                m: 16,
                k: 64,
                a: |g, t, i| {
                    let row = if i < 8 || (16..24).contains(&i) { g } else { g + 8 };
                    (row, 8 * t + (i & 7) + if i < 16 { 0 } else { 32 })
                },
                b: |g, t, i| (8 * t + (i & 7) + if i < 8 { 0 } else { 32 }, g),
            },
        ],
        Element::B1 => vec![
            Shape { m: 8, k: 128, a: |g, t, i| (g, 32 * t + i), b: |g, t, i| (32 * t + i, g) },
            Shape {
                m: 16,
                k: 128,
                a: |g, t, i| (if i < 32 { g } else { g + 8 }, 32 * t + (i & 31)),
                b: |g, t, i| (32 * t + i, g),
            },
            Shape {
                m: 16,
                k: 256,
                a: |g, t, i| {
                    let row = if i < 32 || (64..96).contains(&i) { g } else { g + 8 };
                    (row, 32 * t + (i & 31) + if i < 64 { 0 } else { 128 })
                },
                b: |g, t, i| (32 * t + (i & 31) + if i < 32 { 0 } else { 128 }, g),
            },
        ],
    }
}

fn k4() -> Shape {
    Shape { m: 16, k: 4, a: |g, t, i| (g + 8 * i, t), b: |g, t, _| (t, g) }
}

fn k8() -> Shape {
    Shape {
        m: 16,
        k: 8,
        a: |g, t, i| (if i % 2 == 0 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
        b: |g, t, i| (if i == 0 { t } else { t + 4 }, g),
    }
}

fn bytes() -> Vec<Shape> {
    vec![
        Shape { m: 8, k: 16, a: |g, t, i| (g, 4 * t + i), b: |g, t, i| (4 * t + i, g) },
        Shape {
            m: 16,
            k: 16,
            a: |g, t, i| (if i < 4 { g } else { g + 8 }, 4 * t + (i & 3)),
            b: |g, t, i| (4 * t + i, g),
        },
        Shape {
            m: 16,
            k: 32,
            a: |g, t, i| {
                let row = if i < 4 || (8..12).contains(&i) { g } else { g + 8 };
                (row, 4 * t + (i & 3) + if i < 8 { 0 } else { 16 })
            },
            b: |g, t, i| (4 * t + (i & 3) + if i < 4 { 0 } else { 16 }, g),
        },
    ]
}

/// Family `mma`.
pub fn cases(s: &mut Suite) {
    for e in [Element::F16, Element::Bf16, Element::Tf32, Element::F64, Element::E4m3, Element::E5m2] {
        let sums = match e {
            Element::F16 => &[Sum::F16, Sum::F32][..],
            Element::F64 => &[Sum::F64],
            _ => &[Sum::F32],
        };
        for shape in shapes(e) {
            s.target(match (e, shape.m, shape.k) {
                (Element::E4m3 | Element::E5m2, ..) => Target::Sm89,
                (Element::F64, 16, _) => Target::Sm90,
                _ => Target::Sm80,
            });
            for &sum in sums {
                one(s, &shape, (e, e), sum, "");
                if e.bits() >= 16 {
                    specials(s, &shape, e, sum);
                }
            }
        }
    }
    s.target(Target::Sm89);
    for (a, b) in [(Element::E4m3, Element::E5m2), (Element::E5m2, Element::E4m3)] {
        for shape in shapes(a) {
            one(s, &shape, (a, b), Sum::F32, "");
            one(s, &shape, (a, b), Sum::F16, "");
        }
    }
    s.target(Target::Sm80);
    for pair in [[Element::U8, Element::S8], [Element::U4, Element::S4]] {
        for a in pair {
            for b in pair {
                for shape in shapes(a) {
                    one(s, &shape, (a, b), Sum::S32, "");
                    one(s, &shape, (a, b), Sum::S32, ".satfinite");
                }
            }
        }
    }
    for shape in shapes(Element::B1) {
        one(s, &shape, (Element::B1, Element::B1), Sum::S32, ".and.popc");
        one(s, &shape, (Element::B1, Element::B1), Sum::S32, ".xor.popc");
    }
}

/// A matrix by rows.
struct Matrix {
    columns: usize,
    v: Vec<i64>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, mut f: impl FnMut(usize, usize) -> i64) -> Matrix {
        let v = (0..rows * columns).map(|i| f(i / columns, i % columns)).collect();
        Matrix { columns, v }
    }

    fn at(&self, (row, column): (usize, usize)) -> i64 {
        self.v[row * self.columns + column]
    }
}

/// The fragments of a matrix, lane after lane, each packed into 32-bit words.
fn fragments(m: &Matrix, per_lane: usize, bits: usize, place: Place, encode: impl Fn(i64) -> u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for lane in 0..32 {
        let mut packed = vec![0u8; per_lane * bits / 8];
        for i in 0..per_lane {
            let v = encode(m.at(place(lane / 4, lane % 4, i)));
            for bit in 0..bits {
                packed[(i * bits + bit) / 8] |= ((v >> bit & 1) as u8) << ((i * bits + bit) % 8);
            }
        }
        bytes.extend(packed);
    }
    bytes
}

fn one(s: &mut Suite, shape: &Shape, (a, b): (Element, Element), sum: Sum, extra: &str) {
    let Shape { m, k, .. } = *shape;
    let bit = a == Element::B1;
    let text = match bit {
        true => format!("mma.sync.aligned.m{m}n8k{k}.row.col.s32.b1.b1.s32{extra}"),
        false => format!(
            "mma.sync.aligned.m{m}n8k{k}.row.col{extra}.{2}.{0}.{1}.{2}",
            a.name(),
            b.name(),
            sum.name()
        ),
    };
    let mut rng = Rng::new(&text);
    let mut random = |(low, high): (i64, i64)| low + rng.below((high - low + 1) as u64) as i64;
    // Random values that differ along rows and columns make every displacement visible.
    let mut sets: Vec<(Matrix, Matrix, Matrix)> = Vec::new();
    let step = if m * k > 512 { 7 } else { 1 };
    for hot in (0..m * k).step_by(step) {
        sets.push((
            Matrix::new(m, k, |r, c| i64::from(r * k + c == hot)),
            Matrix::new(k, N, |_, _| random(b.values())),
            Matrix::new(m, N, |_, _| 0),
        ));
    }
    for hot in (0..k * N).step_by(step) {
        sets.push((
            Matrix::new(m, k, |_, _| random(a.values())),
            Matrix::new(k, N, |r, c| i64::from(r * N + c == hot)),
            Matrix::new(m, N, |r, c| (r * N + c) as i64),
        ));
    }
    // Accumulators near the end of the range, with products of one sign so that the order does not matter.
    let edge = sum == Sum::S32 && !bit;
    for round in 0..16 {
        let positive = round % 2 == 0;
        let sign = |v: i64| if edge { v.abs() } else { v };
        let ma = Matrix::new(m, k, |_, _| sign(random(a.values())).min(a.values().1));
        let mb = Matrix::new(k, N, |_, _| match (edge, positive, b.values()) {
            (true, false, (low, _)) if low < 0 => -random((0, -low)),
            (_, _, values) => sign(random(values)).min(values.1),
        });
        let mc = Matrix::new(m, N, |_, _| match (sum, edge) {
            (Sum::S32, true) if positive => i64::from(i32::MAX) - random((0, 20_000)),
            (Sum::S32, true) => i64::from(i32::MIN) + random((0, 20_000)),
            _ => random((-100, 100)),
        });
        sets.push((ma, mb, mc));
    }
    let bitwise = extra.starts_with(".xor");
    let multiply = |(ma, mb, mc): &(Matrix, Matrix, Matrix)| {
        Matrix::new(m, N, |r, c| {
            let product = |i: usize| {
                let (x, y) = (ma.at((r, i)), mb.at((i, c)));
                if bitwise { x ^ y } else { x * y }
            };
            let total = mc.at((r, c)) + (0..k).map(product).sum::<i64>();
            let clamp = extra == ".satfinite";
            if clamp { total.clamp(i32::MIN.into(), i32::MAX.into()) } else { total }
        })
    };
    let results = sets.iter().map(multiply).collect();
    launch(s, shape, (a, b), sum, (&text, &text), &sets, results);
}

/// Infinities, NaNs and zeros among small integers: what is infinite and what is not a number does not depend on the
/// order of the sum either.
fn specials(s: &mut Suite, shape: &Shape, e: Element, sum: Sum) {
    let Shape { m, k, .. } = *shape;
    let text = format!("mma.sync.aligned.m{m}n8k{k}.row.col.{1}.{0}.{0}.{1}", e.name(), sum.name());
    let name = format!("{text} of infinities and NaNs");
    let mut rng = Rng::new(&name);
    let mut draw = |rare: u64| match rng.below(rare) {
        0 => INFINITY,
        1 => -INFINITY,
        2 => NAN,
        v => (v % 3) as i64 - 1,
    };
    let sets: Vec<(Matrix, Matrix, Matrix)> = (0..16)
        .map(|_| {
            let rare = 40 * k as u64;
            (
                Matrix::new(m, k, |_, _| draw(rare)),
                Matrix::new(k, N, |_, _| draw(rare)),
                Matrix::new(m, N, |_, _| draw(60)),
            )
        })
        .collect();
    let multiply = |(ma, mb, mc): &(Matrix, Matrix, Matrix)| {
        Matrix::new(m, N, |r, c| {
            let product = |i: usize| real(ma.at((r, i))) * real(mb.at((i, c)));
            match (0..k).map(product).sum::<f64>() + real(mc.at((r, c))) {
                v if v.is_nan() => NAN,
                v if v.is_infinite() => {
                    if v > 0.0 {
                        INFINITY
                    } else {
                        -INFINITY
                    }
                }
                v => v as i64,
            }
        })
    };
    let results = sets.iter().map(multiply).collect();
    launch(s, shape, (e, e), sum, (&text, &name), &sets, results);
}

/// The kernel: a warp for each set of A, B and C. `text` is the instruction and the case's name.
fn launch(
    s: &mut Suite,
    shape: &Shape,
    (a, b): (Element, Element),
    sum: Sum,
    (text, name): (&str, &str),
    sets: &[(Matrix, Matrix, Matrix)],
    results: Vec<Matrix>,
) {
    let Shape { m, k, .. } = *shape;
    let (na, nb, nc) = (m * k / 32, k * N / 32, m * N / 32);
    let (mut fa, mut fb, mut fc, mut fd) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for ((ma, mb, mc), md) in sets.iter().zip(&results) {
        fa.extend(fragments(ma, na, a.bits(), shape.a, |v| a.encode(v)));
        fb.extend(fragments(mb, nb, b.bits(), shape.b, |v| b.encode(v)));
        fc.extend(fragments(mc, nc, sum.bits(), accumulator, |v| sum.encode(v)));
        fd.extend(fragments(md, nc, sum.bits(), accumulator, |v| sum.encode(v)));
    }
    let double = a == Element::F64;
    let size = if double { 8 } else { 4 };
    let registers = |n: usize, bits: usize| n * bits / (8 * size);
    let (ra, rb, rc) = (registers(na, a.bits()), registers(nb, b.bits()), registers(nc, sum.bits()));
    let mut body = String::new();
    let kind = if double { "b64" } else { "b32" };
    body += ".reg .b64 at;\n";
    let list = |r: &str, n: usize| -> String {
        let names: Vec<String> = (0..n).map(|i| format!("{r}{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    for (r, n) in [("a", ra), ("b", rb), ("c", rc), ("d", rc)] {
        body += &format!(".reg .{kind} {r}<{n}>;\n");
    }
    for (input, (r, n)) in [("a", ra), ("b", rb), ("c", rc)].into_iter().enumerate() {
        body += &format!("mad.wide.u32 at, %i, {}, in{input};\n", n * size);
        for i in 0..n {
            body += &format!("ld.global.{kind} {r}{i}, [at+{}];\n", i * size);
        }
    }
    body += &format!("{text} {}, {}, {}, {};\n", list("d", rc), list("a", ra), list("b", rb), list("c", rc));
    body += &format!("mad.wide.u32 at, %i, {}, out;\n", rc * size);
    for i in 0..rc {
        body += &format!("st.global.{kind} [at+{}], d{i};\n", i * size);
    }
    Kernel {
        name: name.to_string(),
        body,
        launch: (sets.len() as u32, 32),
        inputs: vec![fa, fb, fc],
        expected: fd,
        element: sum.bits() / 8,
        comparison: match sum {
            Sum::F16 => Comparison::Float(Format::F16),
            Sum::F32 => Comparison::Float(Format::F32),
            Sum::F64 => Comparison::Float(Format::F64),
            Sum::S32 => Comparison::Bits,
        },
        ..Kernel::default()
    }
    .add(s);
}
