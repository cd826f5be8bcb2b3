//! Every `mma` against the manual's formulas for the row and column of each element.

use crate::check::Kind;
use crate::exec::inst::Class;
use crate::exec::test_bench::Bench;
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng};

/// Where the manual has element `i` of a lane: row and column.
type Layout = fn(usize, usize) -> (usize, usize);

fn group(lane: usize) -> usize {
    lane >> 2
}
fn thread(lane: usize) -> usize {
    lane % 4
}

// Accumulators.
const C8: Layout = |l, i| (group(l), thread(l) * 2 + i);
const C16: Layout = |l, i| (if i < 2 { group(l) } else { group(l) + 8 }, thread(l) * 2 + (i & 1));

// .f16 and .bf16
const A_H8: Layout = |l, i| (if i < 2 { group(l) } else { group(l) + 8 }, thread(l) * 2 + (i & 1));
const B_H8: Layout = |l, i| (thread(l) * 2 + i, group(l));
const A_H16: Layout = |l, i| {
    let row = if i < 2 || (4..6).contains(&i) { group(l) } else { group(l) + 8 };
    (row, if i < 4 { thread(l) * 2 + (i & 1) } else { thread(l) * 2 + (i & 1) + 8 })
};
const B_H16: Layout =
    |l, i| (if i < 2 { thread(l) * 2 + (i & 1) } else { thread(l) * 2 + (i & 1) + 8 }, group(l));

// .tf32 and .f64
const A_T4: Layout = |l, i| (if i == 0 { group(l) } else { group(l) + 8 }, thread(l));
const B_T4: Layout = |l, _| (thread(l), group(l));
const A_T8: Layout = |l, i| {
    (if i == 0 || i == 2 { group(l) } else { group(l) + 8 }, if i < 2 { thread(l) } else { thread(l) + 4 })
};
const B_T8: Layout = |l, i| (if i == 0 { thread(l) } else { thread(l) + 4 }, group(l));
const A_D4: Layout = |l, _| (group(l), thread(l));
const A_D16: Layout = |l, i| {
    if i % 2 == 0 { (group(l), i * 2 + thread(l)) } else { (group(l) + 8, i * 2 - 2 + thread(l)) }
};
const B_D16: Layout = |l, i| (thread(l) + i * 4, group(l));

// 8-bit types
const A_B8: Layout = |l, i| (group(l), thread(l) * 4 + i);
const B_B8: Layout = |l, i| (thread(l) * 4 + i, group(l));
const A_B16: Layout = |l, i| (if i < 4 { group(l) } else { group(l) + 8 }, thread(l) * 4 + (i & 3));
const A_B32: Layout = |l, i| {
    let row = if i < 4 || (8..12).contains(&i) { group(l) } else { group(l) + 8 };
    (row, if i < 8 { thread(l) * 4 + (i & 3) } else { thread(l) * 4 + (i & 3) + 16 })
};
const B_B32: Layout =
    |l, i| (if i < 4 { thread(l) * 4 + (i & 3) } else { thread(l) * 4 + (i & 3) + 16 }, group(l));

// 4-bit types
const A_N8: Layout = |l, i| (group(l), thread(l) * 8 + i);
const B_N: Layout = |l, i| (thread(l) * 8 + i, group(l));
const A_N32: Layout = |l, i| (if i < 8 { group(l) } else { group(l) + 8 }, thread(l) * 8 + (i & 7));
const A_N64: Layout = |l, i| {
    let row = if i < 8 || (16..24).contains(&i) { group(l) } else { group(l) + 8 };
    (row, if i < 16 { thread(l) * 8 + (i & 7) } else { thread(l) * 8 + (i & 7) + 32 })
};
const B_N64: Layout =
    |l, i| (if i < 8 { thread(l) * 8 + (i & 7) } else { thread(l) * 8 + (i & 7) + 32 }, group(l));

// 1-bit types
const A_1: Layout = |l, i| (group(l), thread(l) * 32 + i);
const B_1: Layout = |l, i| (thread(l) * 32 + i, group(l));
const A_1_128: Layout = |l, i| (if i < 32 { group(l) } else { group(l) + 8 }, thread(l) * 32 + (i & 31));
const A_1_256: Layout = |l, i| {
    let row = if i < 32 || (64..96).contains(&i) { group(l) } else { group(l) + 8 };
    (row, if i < 64 { thread(l) * 32 + (i & 31) } else { thread(l) * 32 + (i & 31) + 128 })
};
const B_1_256: Layout =
    |l, i| (if i < 32 { thread(l) * 32 + (i & 31) } else { thread(l) * 32 + (i & 31) + 128 }, group(l));

struct Case {
    mods: &'static str,
    size: [usize; 3],
    layouts: [Layout; 3],
    /// Element types of D, A, B, C.
    types: [&'static str; 4],
}

const fn case(mods: &'static str, size: [usize; 3], layouts: [Layout; 3], types: [&'static str; 4]) -> Case {
    Case { mods, size, layouts, types }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for acc in ["f16", "f32"] {
        all.push(case("", [16, 8, 8], [A_H8, B_H8, C16], [acc, "f16", "f16", acc]));
        all.push(case("", [16, 8, 16], [A_H16, B_H16, C16], [acc, "f16", "f16", acc]));
        for a in ["e4m3", "e5m2"] {
            for b in ["e4m3", "e5m2"] {
                all.push(case("", [16, 8, 16], [A_B16, B_B8, C16], [acc, a, b, acc]));
                all.push(case("", [16, 8, 32], [A_B32, B_B32, C16], [acc, a, b, acc]));
            }
        }
    }
    let f32s = |t| ["f32", t, t, "f32"];
    all.push(case("", [16, 8, 8], [A_H8, B_H8, C16], f32s("bf16")));
    all.push(case("", [16, 8, 16], [A_H16, B_H16, C16], f32s("bf16")));
    all.push(case("", [16, 8, 4], [A_T4, B_T4, C16], f32s("tf32")));
    all.push(case("", [16, 8, 8], [A_T8, B_T8, C16], f32s("tf32")));
    all.push(case("", [8, 8, 4], [A_D4, B_T4, C8], ["f64"; 4]));
    all.push(case("", [16, 8, 4], [A_T4, B_T4, C16], ["f64"; 4]));
    all.push(case("", [16, 8, 8], [A_T8, B_T8, C16], ["f64"; 4]));
    all.push(case("", [16, 8, 16], [A_D16, B_D16, C16], ["f64"; 4]));
    for before in ["", "satfinite"] {
        for a in ["s8", "u8"] {
            for b in ["s8", "u8"] {
                all.push(case(before, [8, 8, 16], [A_B8, B_B8, C8], ["s32", a, b, "s32"]));
                all.push(case(before, [16, 8, 16], [A_B16, B_B8, C16], ["s32", a, b, "s32"]));
                all.push(case(before, [16, 8, 32], [A_B32, B_B32, C16], ["s32", a, b, "s32"]));
            }
        }
        for a in ["s4", "u4"] {
            for b in ["s4", "u4"] {
                all.push(case(before, [8, 8, 32], [A_N8, B_N, C8], ["s32", a, b, "s32"]));
                all.push(case(before, [16, 8, 32], [A_N32, B_N, C16], ["s32", a, b, "s32"]));
                all.push(case(before, [16, 8, 64], [A_N64, B_N64, C16], ["s32", a, b, "s32"]));
            }
        }
    }
    for op in ["xor.popc", "and.popc"] {
        all.push(case(op, [8, 8, 128], [A_1, B_1, C8], ["s32", "b1", "b1", "s32"]));
        all.push(case(op, [16, 8, 128], [A_1_128, B_1, C16], ["s32", "b1", "b1", "s32"]));
        all.push(case(op, [16, 8, 256], [A_1_256, B_1_256, C16], ["s32", "b1", "b1", "s32"]));
    }
    all
}

fn bits(ty: &str) -> usize {
    match ty {
        "b1" => 1,
        "s4" | "u4" => 4,
        "s8" | "u8" | "e4m3" | "e5m2" => 8,
        "f16" | "bf16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

fn encode(ty: &str, x: f64) -> u64 {
    match ty {
        "f64" => x.to_bits(),
        "f32" | "tf32" => u64::from((x as f32).to_bits()),
        "f16" => u64::from(f16::from_f64(x).to_bits()),
        "bf16" => u64::from(bf16::from_f64(x).to_bits()),
        "e5m2" => u64::from(f16::from_f64(x).to_bits() >> 8),
        "e4m3" if x == 0.0 => 0,
        "e4m3" => {
            let (exponent, sign) = (x.abs().log2().floor(), u64::from(x < 0.0) << 7);
            sign | ((exponent as i64 + 7) as u64) << 3 | (x.abs() / exponent.exp2() * 8.0) as u64 & 7
        }
        _ => x as i64 as u64 & (u64::MAX >> (64 - bits(ty))),
    }
}

fn decode(ty: &str, bits: u64) -> f64 {
    match ty {
        "f64" => f64::from_bits(bits),
        "f32" => f64::from(f32::from_bits(bits as u32)),
        "f16" => f16::from_bits(bits as u16).to_f64(),
        _ => f64::from(bits as u32 as i32),
    }
}

/// An integer that the type can hold.
fn small(ty: &str, rng: &mut TestRng) -> f64 {
    let n = f64::from(rng.next_u32() % 16);
    match ty {
        "b1" => n % 2.0,
        "u4" => n,
        "u8" => 17.0 * n,
        "s4" => n - 8.0,
        "s8" => 17.0 * n - 128.0,
        _ => (n - 8.0).clamp(-7.0, 7.0),
    }
}

type Matrix = Vec<Vec<f64>>;

fn matrix(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> f64) -> Matrix {
    (0..rows).map(|r| (0..cols).map(|c| f(r, c)).collect()).collect()
}

impl Case {
    fn count(&self, of: usize) -> usize {
        let [m, n, k] = self.size;
        [m * n, m * k, k * n, m * n][of] / 32
    }

    fn name(&self, of: usize, register: usize) -> String {
        let prefix = if self.types[of] == "f64" { "fd" } else { "x" };
        format!("%{prefix}{}{register}", ["d", "a", "b", "c"][of])
    }

    fn per(&self, of: usize) -> usize {
        if self.types[of] == "f64" { 1 } else { 32 / bits(self.types[of]) }
    }

    fn text(&self) -> String {
        let [m, n, k] = self.size;
        let [d, a, b, c] = self.types;
        let operands: Vec<String> = (0..4)
            .map(|of| {
                let registers = self.count(of).div_ceil(self.per(of));
                let names: Vec<String> = (0..registers).map(|r| self.name(of, r)).collect();
                format!("{{{}}}", names.join(", "))
            })
            .collect();
        let (before, after) = match self.mods {
            "" => (String::new(), String::new()),
            "satfinite" => (".satfinite".to_string(), String::new()),
            op => (String::new(), format!(".{op}")),
        };
        format!(
            "mma.sync.aligned.m{m}n{n}k{k}.row.col{before}.{d}.{a}.{b}.{c}{after} {};",
            operands.join(", ")
        )
    }

    /// Distributes a matrix: A, B or C are 1, 2, 3.
    fn load(&self, bench: &mut Bench, of: usize, matrix: &Matrix) {
        let (ty, per, layout) = (self.types[of], self.per(of), self.layouts[of - 1]);
        for register in 0..self.count(of).div_ceil(per) {
            let lanes: [u64; 32] = std::array::from_fn(|lane| {
                (0..per).fold(0, |word, e| {
                    let (r, c) = layout(lane, register * per + e);
                    word | encode(ty, matrix[r][c]) << (e * bits(ty) % 64)
                })
            });
            if ty == "f64" {
                bench.set(&self.name(of, register), lanes);
            } else {
                bench.set(&self.name(of, register), lanes.map(|x| x as u32));
            }
        }
    }

    fn result(&self, bench: &Bench) -> Matrix {
        let (ty, per) = (self.types[0], self.per(0));
        let mut out = matrix(self.size[0], self.size[1], |_, _| f64::NAN);
        for i in 0..self.count(0) {
            let name = self.name(0, i / per);
            let words: [u64; 32] = if ty == "f64" {
                bench.get::<u64>(&name)
            } else {
                bench.get::<u32>(&name).map(|x| u64::from(x) >> (i % per * bits(ty) % 32))
            };
            for (lane, word) in words.into_iter().enumerate() {
                let (r, c) = self.layouts[2](lane, i);
                out[r][c] = decode(ty, word);
            }
        }
        out
    }

    fn expected(&self, a: &Matrix, b: &Matrix, c: &Matrix) -> Matrix {
        let [m, n, k] = self.size;
        matrix(m, n, |r, col| {
            let term = |x: usize| match self.mods {
                "xor.popc" => f64::from(a[r][x] != b[x][col]),
                _ => a[r][x] * b[x][col],
            };
            (0..k).map(term).sum::<f64>() + c[r][col]
        })
    }
}

fn rng() -> TestRng {
    TestRng::deterministic_rng(Config::default().rng_algorithm)
}

#[test]
fn every_element_of_every_shape() -> Result<(), String> {
    let mut rng = rng();
    for case in cases() {
        let [m, n, k] = case.size;
        let mut bench = Bench::new(&case.text()).map_err(|e| format!("{}: {e}", case.text()))?;
        assert_eq!(bench.class(), (Class::Matrix, 2 * (m * n * k) as u32));
        let mut check = |a: Matrix, b: Matrix, c: Matrix| {
            case.load(&mut bench, 1, &a);
            case.load(&mut bench, 2, &b);
            case.load(&mut bench, 3, &c);
            bench.run(u32::MAX);
            assert_eq!(case.result(&bench), case.expected(&a, &b, &c), "{}", case.text());
            assert!(bench.kinds().is_empty());
        };
        let [_, ta, tb, tc] = case.types;
        // One element of A or B at a time, and whole matrices of integers, whose sums are exact.
        for (row, col) in (0..m).flat_map(|r| (0..k).map(move |c| (r, c))) {
            let a = matrix(m, k, |r, c| f64::from((r, c) == (row, col)));
            check(a, matrix(k, n, |_, _| small(tb, &mut rng)), matrix(m, n, |_, _| 0.0));
        }
        for (row, col) in (0..k).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let b = matrix(k, n, |r, c| f64::from((r, c) == (row, col)));
            check(matrix(m, k, |_, _| small(ta, &mut rng)), b, matrix(m, n, |_, _| 0.0));
        }
        for (row, col) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
            let c = matrix(m, n, |r, c| if (r, c) == (row, col) { small(tc, &mut rng) } else { 0.0 });
            check(matrix(m, k, |_, _| 0.0), matrix(k, n, |_, _| 0.0), c);
        }
        for _ in 0..10 {
            let (a, b) = (matrix(m, k, |_, _| small(ta, &mut rng)), matrix(k, n, |_, _| small(tb, &mut rng)));
            check(a, b, matrix(m, n, |_, _| small(tc, &mut rng)));
        }
    }
    Ok(())
}

#[test]
fn real_numbers_against_f64() -> Result<(), String> {
    let mut rng = rng();
    for case in cases() {
        let [m, n, k] = case.size;
        let precision = match case.types[0] {
            "f64" => 1e-15,
            "f32" => 1e-6,
            "f16" => 1e-3,
            _ => continue,
        };
        let [_, ta, tb, _] = case.types;
        let mut bench = Bench::new(&case.text())?;
        // Values that the multiplicands' types hold exactly.
        let mut value = |ty: &str| {
            let x = f64::from(rng.next_u32()) / f64::from(1u32 << 31) - 1.0;
            match ty {
                "f16" => f16::from_f64(x).to_f64(),
                "bf16" => bf16::from_f64(x).to_f64(),
                "tf32" => f64::from(f32::from_bits((x as f32).to_bits() & !0x1FFF)),
                "e4m3" | "e5m2" => (x * 4.0).round() / 4.0,
                _ => x,
            }
        };
        let (a, b) = (matrix(m, k, |_, _| value(ta)), matrix(k, n, |_, _| value(tb)));
        let c = matrix(m, n, |_, _| value("f16"));
        case.load(&mut bench, 1, &a);
        case.load(&mut bench, 2, &b);
        case.load(&mut bench, 3, &c);
        bench.run(u32::MAX);
        let (got, expected) = (case.result(&bench), case.expected(&a, &b, &c));
        for (g, e) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!((g - e).abs() <= precision * (k as f64).sqrt() * 2.0, "{g} is not {e}: {}", case.text());
        }
    }
    Ok(())
}

#[test]
fn integers_are_clamped_or_wrap() -> Result<(), String> {
    for (mods, low, high) in [("", i32::MAX - 5, i32::MIN + 6), (".satfinite", i32::MIN, i32::MAX)] {
        let text = format!(
            "mma.sync.aligned.m8n8k16.row.col{mods}.s32.s8.s8.s32 {{%r1, %r2}}, {{%r3}}, {{%r4}}, {{%r5, %r6}};"
        );
        let mut b = Bench::new(&text)?;
        // Row 0 of A is -1, all others 1; each sum is -16 or 16.
        b.set("%r3", std::array::from_fn::<u32, 32, _>(|l| if l < 4 { u32::MAX } else { 0x0101_0101 }));
        b.set("%r4", [0x0101_0101u32; 32]);
        b.set("%r5", std::array::from_fn::<i32, 32, _>(|l| if l < 4 { i32::MIN + 10 } else { i32::MAX - 9 }));
        b.run(u32::MAX);
        assert_eq!((b.get::<i32>("%r1")[0], b.get::<i32>("%r1")[31]), (low, high));
    }
    Ok(())
}

#[test]
fn tf32_loses_its_low_bits() -> Result<(), String> {
    let mut b = Bench::new(
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%r7}, {%r1, %r2, %r3, %r4};",
    )?;
    b.set("%r5", [1.0f32.to_bits() | 0x1FFF; 32]);
    b.set("%r7", [3.0f32.to_bits() | 0x1FFF; 32]);
    b.run(u32::MAX);
    assert_eq!(b.get::<f32>("%r1"), [12.0; 32]);
    Ok(())
}

#[test]
fn half_accumulators_are_rounded_once() -> Result<(), String> {
    let mut b = Bench::new(
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r3, %r4}, {%r5}, {%r1, %r2};",
    )?;
    // 2048 + 8 x 1/2: each single sum would be rounded back to 2048.
    let both = |x: f32| u32::from(f16::from_f32(x).to_bits()) * 0x1_0001;
    b.set("%r1", [both(2048.0); 32]);
    b.set("%r3", [both(0.5); 32]);
    b.set("%r5", [both(1.0); 32]);
    b.run(u32::MAX);
    assert_eq!(b.get::<u32>("%r1"), [both(2052.0); 32]);
    Ok(())
}

#[test]
fn a_part_of_the_warp_is_told() -> Result<(), String> {
    let mut b = Bench::new(
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1, %fd2}, {%fd3}, {%fd4}, {%fd1, %fd2};",
    )?;
    b.set("%fd3", [1.0f64; 32]);
    b.set("%fd4", [1.0f64; 32]);
    b.run(0xFFFF);
    assert_eq!(b.kinds(), [Kind::PartialWarp]);
    assert_eq!(b.findings()[0].who.lane, 16);
    assert_eq!((b.get::<f64>("%fd1")[0], b.get::<f64>("%fd1")[16]), (4.0, 0.0));
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    let registers = "{%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%r1, %r2, %r3, %r4}";
    for mods in [
        "sync.aligned.m16n8k16.col.row.f32.bf16.bf16.f32",
        "sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "sync.aligned.m16n8k16.row.col.f16.f16.f16.f32",
        "sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32",
        "sync.aligned.m16n8k256.row.col.satfinite.s32.b1.b1.s32.xor.popc",
        "sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
    ] {
        assert!(Bench::new(&format!("mma.{mods} {registers};")).is_err(), "{mods}");
    }
}
