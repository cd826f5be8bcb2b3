use crate::exec::test_bench::Bench;
use half::f16;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng};

// The manual's formulas for element `i` of a lane: row and column.
fn a_row(l: usize, i: usize) -> (usize, usize) {
    (if l < 16 { l % 4 } else { l % 4 + 4 }, i)
}
fn a_col(l: usize, i: usize) -> (usize, usize) {
    (if l < 16 { i % 4 } else { i % 4 + 4 }, l % 4)
}
fn b_row(l: usize, i: usize) -> (usize, usize) {
    (l % 4, if l < 16 { i } else { i + 4 })
}
fn b_col(l: usize, i: usize) -> (usize, usize) {
    (i, if l < 16 { l % 4 } else { l % 4 + 4 })
}
fn c_half(l: usize, i: usize) -> (usize, usize) {
    (if l < 16 { l % 4 } else { l % 4 + 4 }, i)
}
fn c_float(l: usize, i: usize) -> (usize, usize) {
    let x = (l & 0b1) + (i & 0b10);
    (if l < 16 { x } else { x + 4 }, (i & 0b100) + (l & 0b10) + (i & 0b1))
}

/// Lanes of each of the four multiplications.
fn computation(l: usize) -> usize {
    match l {
        0..=3 | 16..=19 => 0,
        4..=7 | 20..=23 => 1,
        8..=11 | 24..=27 => 2,
        _ => 3,
    }
}

type Layout = fn(usize, usize) -> (usize, usize);
type Four = [[[f32; 8]; 8]; 4];

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("%{prefix}{n}")).collect()
}

fn load(bench: &mut Bench, prefix: &str, half: bool, elements: usize, layout: Layout, matrices: &Four) {
    let at = |lane: usize, i: usize| {
        let (r, c) = layout(lane, i);
        matrices[computation(lane)][r][c]
    };
    let bits = |x: f32| u32::from(f16::from_f32(x).to_bits());
    for (n, name) in names(prefix, if half { elements / 2 } else { elements }).iter().enumerate() {
        let lanes: [u32; 32] = std::array::from_fn(|l| {
            if half { bits(at(l, 2 * n)) | bits(at(l, 2 * n + 1)) << 16 } else { at(l, n).to_bits() }
        });
        bench.set(name, lanes);
    }
}

#[test]
fn every_layout() -> Result<(), String> {
    let mut rng = TestRng::deterministic_rng(Config::default().rng_algorithm);
    let layouts_a: [(&str, Layout); 2] = [("row", a_row), ("col", a_col)];
    let layouts_b: [(&str, Layout); 2] = [("row", b_row), ("col", b_col)];
    for (la, fa) in layouts_a {
        for (lb, fb) in layouts_b {
            for (td, tc) in [("f16", "f16"), ("f16", "f32"), ("f32", "f32")] {
                let half = |t: &str| t == "f16";
                let list = |prefix: &str, n: usize| format!("{{{}}}", names(prefix, n).join(", "));
                let count = |t: &str| if half(t) { 4 } else { 8 };
                let text = format!(
                    "mma.sync.aligned.m8n8k4.{la}.{lb}.{td}.f16.f16.{tc} {}, {}, {}, {};",
                    list("d", count(td)),
                    list("a", 2),
                    list("b", 2),
                    list("c", count(tc)),
                );
                let mut bench = Bench::new(&text).map_err(|e| format!("{text}: {e}"))?;
                assert_eq!(bench.class().1, 4 * 2 * 8 * 8 * 4);
                for _ in 0..100 {
                    let mut random = || {
                        let mut four: Four = [[[0.0; 8]; 8]; 4];
                        for x in four.as_flattened_mut().as_flattened_mut() {
                            *x = (rng.next_u32() % 17) as f32 - 8.0;
                        }
                        four
                    };
                    let (a, b, c) = (random(), random(), random());
                    load(&mut bench, "a", true, 4, fa, &a);
                    load(&mut bench, "b", true, 4, fb, &b);
                    load(&mut bench, "c", half(tc), 8, if half(tc) { c_half } else { c_float }, &c);
                    bench.run(u32::MAX);
                    let layout = if half(td) { c_half } else { c_float };
                    for lane in 0..32 {
                        for i in 0..8 {
                            let got = if half(td) {
                                let word = bench.get::<u32>(&format!("%d{}", i / 2))[lane];
                                f16::from_bits((word >> (16 * (i % 2))) as u16).to_f32()
                            } else {
                                bench.get::<f32>(&format!("%d{i}"))[lane]
                            };
                            let (m, n) = layout(lane, i);
                            let q = computation(lane);
                            let expected = (0..4).map(|k| a[q][m][k] * b[q][k][n]).sum::<f32>() + c[q][m][n];
                            assert_eq!(got, expected, "{text}: lane {lane}, element {i}");
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
