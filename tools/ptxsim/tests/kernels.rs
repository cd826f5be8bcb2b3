//! Kernels as one writes them, through NVRTC, against references in f64, on ragged sizes; nothing may be found in them.
#![cfg(feature = "nvrtc")]

mod common;

use common::device::{ARCHS, Device, Params, assert_near, compiled, random};
use half::bf16;

/// Row-major product in f64 with the sum of the absolute products, which bounds the rounding error.
fn product(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<(f64, f64)> {
    let mut all = vec![(0.0, 0.0); m * n];
    for i in 0..m {
        for l in 0..k {
            let x = f64::from(a[i * k + l]);
            for j in 0..n {
                let p = x * f64::from(b[l * n + j]);
                all[i * n + j].0 += p;
                all[i * n + j].1 += p.abs();
            }
        }
    }
    all
}

#[test]
fn sgemm() {
    for (arch, ptx) in compiled("sgemm.cu", &ARCHS, &[]) {
        for (m, n, k, alpha, beta) in [
            (128, 128, 64, 1.0, 0.0),
            (100, 70, 33, 1.5, 0.5),
            (257, 132, 20, -1.0, 1.0),
            (129, 131, 7, 1.0, 0.0),
            (1, 1, 1, 2.0, 0.0),
        ] {
            let what = format!("sgemm {m}x{n}x{k} {arch}");
            let (a, b, c) = (random(1, m * k), random(2, k * n), random(3, m * n));
            let device = Device::new(&ptx);
            let (pa, pb) = (device.upload(&a), device.upload(&b));
            let pc = if beta == 0.0 { device.uninitialised::<f32>(m * n) } else { device.upload(&c) };
            let params = Params::default().with(m as i32).with(n as i32).with(k as i32).with(alpha as f32);
            let params = params.with(pa).with(pb).with(beta as f32).with(pc);
            let grid = [n.div_ceil(128) as u32, m.div_ceil(128) as u32, 1];
            device.run_clean("sgemm", grid, 256, 0, &params);
            let wanted = product(m, n, k, &a, &b).into_iter().zip(&c).map(|((sum, bound), &old)| {
                let old = beta * f64::from(old);
                (alpha * sum + old, 2e-6 * (alpha.abs() * bound + old.abs()))
            });
            assert_near(&what, &device.download(pc, m * n), wanted);
        }
    }
}

#[test]
fn group_norm_silu() {
    for (arch, ptx) in compiled("group_norm_silu.cu", &ARCHS, &[]) {
        for (n, c, hw, g, threads) in [
            (2, 32, 64, 8, 256),
            (1, 6, 35, 3, 96),
            (3, 10, 63, 5, 32),
            (1, 4, 1, 2, 64),
            (1, 8, 1000, 1, 1024),
        ] {
            for channels_last in [false, true] {
                let kernel = if channels_last { "group_norm_silu_nhwc" } else { "group_norm_silu_nchw" };
                let what = format!("{kernel} {n}x{c}x{hw}/{g} {arch}");
                let at = |b: usize, ch: usize, p: usize| {
                    if channels_last { (b * hw + p) * c + ch } else { (b * c + ch) * hw + p }
                };
                // A mean that is not zero tells a one-pass formula from a good one.
                let x: Vec<f32> = random(1, n * c * hw).iter().map(|v| 3.0 + 2.0 * v).collect();
                let (gamma, beta) = (random(2, c), random(3, c));
                let device = Device::new(&ptx);
                let y = device.uninitialised::<f32>(x.len());
                let params = Params::default().with(device.upload(&x)).with(device.upload(&gamma));
                let params = params.with(device.upload(&beta)).with(y);
                let params = params.with(c as i32).with(hw as i32).with(g as i32).with(1e-5f32);
                device.run_clean(kernel, [(n * g) as u32, 1, 1], threads, 0, &params);

                let per = c / g;
                let mut wanted = vec![(0.0, 0.0); x.len()];
                for b in 0..n {
                    for group in 0..g {
                        let channels = || group * per..(group + 1) * per;
                        let all = || channels().flat_map(|ch| (0..hw).map(move |p| (ch, p)));
                        let size = (per * hw) as f64;
                        let value = |(ch, p)| f64::from(x[at(b, ch, p)]);
                        let mean = all().map(value).sum::<f64>() / size;
                        let variance = all().map(|i| (value(i) - mean).powi(2)).sum::<f64>() / size;
                        for (ch, p) in all() {
                            let normal = (value((ch, p)) - mean) / (variance + 1e-5).sqrt();
                            let v = normal * f64::from(gamma[ch]) + f64::from(beta[ch]);
                            // With a single value the variance is 0 and 1/sqrt(eps) magnifies the mean's rounding.
                            let tolerance = 1e-5 + 3e-6 / (variance + 1e-5).sqrt();
                            wanted[at(b, ch, p)] = (v / (1.0 + (-v).exp()), tolerance);
                        }
                    }
                }
                assert_near(&what, &device.download(y, x.len()), wanted.into_iter());
            }
        }
    }
}

#[test]
fn conv3x3() {
    for (arch, ptx) in compiled("conv3x3.cu", &ARCHS, &[]) {
        for (n, h, w, ic, oc) in [(1, 8, 16, 8, 64), (2, 7, 13, 5, 10), (1, 17, 20, 9, 70), (1, 1, 1, 1, 1)] {
            let what = format!("conv3x3 {n}x{ic}x{h}x{w}->{oc} {arch}");
            let (x, k, bias) = (random(1, n * ic * h * w), random(2, oc * ic * 9), random(3, oc));
            let device = Device::new(&ptx);
            let count = n * oc * h * w;
            let y = device.uninitialised::<f32>(count);
            let params = Params::default().with(device.upload(&x)).with(device.upload(&k));
            let params = params.with(device.upload(&bias)).with(y);
            let params = params.with(h as i32).with(w as i32).with(ic as i32).with(oc as i32);
            let grid = [(w.div_ceil(16) * h.div_ceil(8)) as u32, oc.div_ceil(64) as u32, n as u32];
            device.run_clean("conv3x3", grid, 256, 0, &params);
            let wanted = (0..count).map(|i| {
                let (col, row, o, b) = (i % w, i / w % h, i / (w * h) % oc, i / (w * h * oc));
                let (mut sum, mut bound) = (f64::from(bias[o]), f64::from(bias[o]).abs());
                for c in 0..ic {
                    for (ky, kx) in (0..9).map(|t| (t / 3, t % 3)) {
                        let (r, q) = ((row + ky).wrapping_sub(1), (col + kx).wrapping_sub(1));
                        if r < h && q < w {
                            let p = f64::from(x[((b * ic + c) * h + r) * w + q])
                                * f64::from(k[(o * ic + c) * 9 + ky * 3 + kx]);
                            sum += p;
                            bound += p.abs();
                        }
                    }
                }
                (sum, 2e-6 * bound)
            });
            assert_near(&what, &device.download(y, count), wanted);
        }
    }
}

/// Runs the bf16 GEMM and compares; `STAGES` buffers of 16 KiB.
fn gemm_bf16(
    ptx: &str,
    stages: u32,
    (m, n, k): (usize, usize, usize),
    what: &str,
) -> ptxsim::exec::launch::Report {
    let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (round(random(1, m * k)), round(random(2, k * n)));
    let device = Device::new(ptx);
    let c = device.uninitialised::<f32>(m * n);
    let params = Params::default().with(m as i32).with(n as i32).with(k as i32);
    let params = params.with(device.upload(&a)).with(device.upload(&b)).with(c);
    let grid = [n.div_ceil(128) as u32, m.div_ceil(128) as u32, 1];
    let report = device.run_clean("gemm_bf16", grid, 256, stages * 16384, &params);
    let wide = |v: &[bf16]| v.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let wanted = product(m, n, k, &wide(&a), &wide(&b)).into_iter().map(|(v, bound)| (v, 2e-6 * bound));
    assert_near(what, &device.download(c, m * n), wanted);
    report
}

#[test]
fn gemm_bf16_with_cp_async_and_ldmatrix() {
    for (arch, ptx) in compiled("gemm_bf16.cu", &ARCHS, &[]) {
        for size in [
            (128, 128, 256),
            // Multiples of 8: copies of 16 bytes, some of them cut off.
            (200, 136, 72),
            // None: plain loads.
            (33, 17, 9),
            // One of each.
            (130, 120, 50),
            (1, 1, 1),
        ] {
            gemm_bf16(&ptx, 3, size, &format!("gemm_bf16 {size:?} {arch}"));
        }
    }
    for (arch, ptx) in compiled("gemm_bf16.cu", &ARCHS, &["STAGES=2"]) {
        gemm_bf16(&ptx, 2, (64, 200, 160), &format!("gemm_bf16 of two stages {arch}"));
    }
}

#[test]
fn a_removed_swizzle_changes_a_counter_alone() {
    let size = (128, 256, 96);
    let plain = compiled("gemm_bf16.cu", &ARCHS, &["NO_SWIZZLE"]);
    for ((arch, swizzled), (_, plain)) in compiled("gemm_bf16.cu", &ARCHS, &[]).into_iter().zip(plain) {
        let waves = |ptx: &str| {
            let traffic = gemm_bf16(ptx, 3, size, arch).counters.memory.shared_load;
            (traffic.requests, traffic.ideal_wavefronts, traffic.wavefronts)
        };
        // Two blocks, three tiles of K, two steps, eight warps, six ldmatrix.x4 of four waves each.
        let requests = 2 * 3 * 2 * 8 * 6;
        assert_eq!(waves(&swizzled), (requests, 4 * requests, 4 * requests), "{arch}");
        // A's rows are 64 bytes apart: every second one meets the same banks. B's are 256: all eight do.
        let (a, b) = (requests / 6 * 4, requests / 6 * 2);
        assert_eq!(waves(&plain), (requests, 4 * requests, 4 * 4 * a + 8 * 4 * b), "{arch}");
    }
}

#[test]
fn attention() {
    const D: usize = 64;
    for (arch, ptx) in compiled("attention.cu", &ARCHS, &[]) {
        for (heads, queries, keys) in [(2, 64, 64), (1, 100, 77), (3, 1, 1), (1, 65, 200), (1, 17, 129)] {
            let what = format!("attention {heads}x{queries}x{keys} {arch}");
            let round =
                |seed, n, by: f32| random(seed, n).iter().map(|v| bf16::from_f32(by * v)).collect::<Vec<_>>();
            // Scores of some size, so that the maximum moves from tile to tile.
            let q = round(1, heads * queries * D, 4.0);
            let k = round(2, heads * keys * D, 1.0);
            let v = round(3, heads * keys * D, 1.0);
            let scale = 1.0 / (D as f32).sqrt();
            let device = Device::new(&ptx);
            let o = device.uninitialised::<f32>(q.len());
            let params = Params::default().with(device.upload(&q)).with(device.upload(&k));
            let params = params.with(device.upload(&v)).with(o);
            let params = params.with(queries as i32).with(keys as i32).with(scale);
            device.run_clean("attention", [queries.div_ceil(64) as u32, heads as u32, 1], 128, 0, &params);

            let mut wanted = Vec::new();
            for h in 0..heads {
                for i in 0..queries {
                    let q = &q[(h * queries + i) * D..][..D];
                    let row = |all: &[bf16], j: usize| -> Vec<f64> {
                        all[(h * keys + j) * D..][..D].iter().map(|x| x.to_f64()).collect()
                    };
                    let scores: Vec<f64> = (0..keys)
                        .map(|j| row(&k, j).iter().zip(q).map(|(a, b)| a * b.to_f64()).sum::<f64>())
                        .map(|s| s * f64::from(scale))
                        .collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let (mut sum, mut bound) = ([0.0; D], [0.0; D]);
                    for (j, weight) in weights.iter().enumerate() {
                        for (d, x) in row(&v, j).into_iter().enumerate() {
                            sum[d] += weight / total * x;
                            bound[d] += (weight / total * x).abs();
                        }
                    }
                    // Weights are rounded to bf16 for the second product: half a unit in the ninth bit each.
                    wanted.extend(sum.into_iter().zip(bound).map(|(s, b)| (s, 2.1e-3 * b + 1e-6)));
                }
            }
            assert_near(&what, &device.download(o, q.len()), wanted.into_iter());
        }
    }
}
