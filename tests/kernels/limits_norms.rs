//! The norms on shapes that fill their blocks: what moves through global memory, and the parts that ops do not show.

use crate::cases::{DTYPES, Ran, launched, run, with_device};
use dtk::base::{DType, Shape};
use dtk::gpu::Gpu;
use dtk::ops::batch_norm::{BatchNorm, BatchNormMode};
use dtk::ops::check::{FORWARD_TOLERANCE, Limit, compare};
use dtk::ops::conv2d::{Conv2d, ConvStats};
use dtk::ops::group_norm::GroupNorm;
use dtk::ops::group_norm::cuda::{StatsPart, apply, channel_stats, coefficients};
use dtk::ops::layer_norm::LayerNorm;
use dtk::ops::{self, Case, Input, Op};
use dtk::tensor::Tensor;
use std::sync::OnceLock;

/// Most bytes moved, of those of the maps that a pass reads and writes.
const MOVED: f64 = 1.15;

/// How often a pass reads or writes a map of the size of x: the entry without its op.
fn maps(entry: &str, residual: bool) -> Option<u64> {
    let residual = u64::from(residual);
    let of = |op: &str, pass: &str| entry.strip_prefix(op).is_some_and(|rest| rest == pass);
    match () {
        () if entry.ends_with("_norm_stats") => Some(1),
        () if of("batch_norm", "_fwd") => Some(2 + residual),
        () if of("batch_norm", "_bwd_sums") => Some(2 + 2 * residual),
        () if of("group_norm", "_apply") || of("group_norm", "_bwd_sums") || of("layer_norm", "_fwd") => {
            Some(2)
        }
        () if entry.ends_with("_norm_bwd_apply") || of("layer_norm", "_bwd") => Some(3),
        () => None,
    }
}

fn cases() -> Vec<(&'static str, Case)> {
    let affine = |x: &[usize]| {
        let x = Shape::from_slice(x).expect("a small shape");
        vec![Input::normal("x", x), Input::normal("w", [x.last()]), Input::normal("b", [x.last()])]
    };
    let layer = |x: [usize; 2]| {
        ("layer_norm", Case::new(format!("tiles: {x:?}"), LayerNorm { eps: 1e-6 }, affine(&x)))
    };
    let batch = |x: [usize; 4], residual: bool| {
        let mut inputs = affine(&x);
        inputs.extend(residual.then(|| Input::normal("residual", x)));
        let op = BatchNorm { residual, ..BatchNorm::new(BatchNormMode::Train, 1e-5, true) };
        ("batch_norm", Case::new(format!("tiles: {x:?}, residual {residual}"), op, inputs))
    };
    let group = GroupNorm { silu: true, ..GroupNorm::new(32, 1e-5) };
    vec![
        ("group_norm", Case::new("tiles", group, affine(&[2, 16, 16, 256]))),
        batch([2, 16, 16, 256], false),
        batch([2, 16, 16, 256], true),
        batch([2, 24, 24, 96], false),
        layer([512, 96]),
        layer([256, 768]),
        layer([128, 2048]),
    ]
}

/// What is wrong with a launch.
fn violations(case: &Case, dtype: DType, ran: &Ran) -> Vec<String> {
    let entry = ran.kernel.entry.as_str();
    let residual = case.inputs.iter().any(|i| i.name == "residual");
    let (Some(maps), Some(counted)) = (maps(entry, residual), &ran.counters) else { return Vec::new() };
    let needed = maps * (case.inputs[0].shape.elems() * dtype.size()) as u64;
    let share = (counted.loads.moved + counted.stores.moved) as f64 / needed as f64;
    let mut wrong = Vec::new();
    if !(0.999..=MOVED).contains(&share) {
        wrong.push(format!("{entry}: {share:.3} bytes moved for 1"));
    }
    if !counted.narrow.is_empty() {
        wrong.push(format!("{entry}: accesses of less than 16 bytes: {:?}", counted.narrow));
    }
    wrong.into_iter().map(|w| format!("`{}` {dtype}, {w}", case.label)).collect()
}

#[test]
fn norms_move_every_byte_once() {
    let all = with_device(|gpu| {
        let jobs = DTYPES.iter().flat_map(|&d| cases().into_iter().map(move |(op, case)| (op, case, d)));
        jobs.map(|(op, case, dtype)| (run(gpu, op, &case, dtype), case, dtype)).collect::<Vec<_>>()
    });
    let Some(all) = all else { return };
    let seen =
        all.iter().flat_map(|(ran, ..)| ran).filter(|r| maps(&r.kernel.entry, false).is_some()).count();
    assert!(seen >= 60, "{seen} passes over maps");
    let found = |(ran, case, dtype): &(Vec<Ran>, Case, DType)| {
        ran.iter().flat_map(|r| violations(case, *dtype, r)).collect::<Vec<_>>()
    };
    let wrong: Vec<String> = all.iter().flat_map(found).collect();
    assert!(wrong.is_empty(), "{} limits do not hold:\n{}", wrong.len(), wrong.join("\n"));
}

/// Numbers that are no pattern and need no generator.
fn filled(shape: impl Into<Shape>, scale: f32, shift: f32) -> Tensor {
    let shape = shape.into();
    let value = |i: usize| shift + scale * ((i as f32 * 12.9898).sin() * 43_758.547).fract();
    Tensor::from_vec(shape, (0..shape.elems()).map(value).collect()).unwrap()
}

fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// The channels of two maps, one after the other.
fn concatenated(a: &Tensor, b: &Tensor) -> Tensor {
    let (ca, cb) = (a.shape().last(), b.shape().last());
    let (wa, wb) = (wide(a), wide(b));
    let rows = wa.data::<f64>().unwrap().chunks(ca).zip(wb.data::<f64>().unwrap().chunks(cb));
    let data: Vec<f64> = rows.flat_map(|(a, b)| a.iter().chain(b).copied().collect::<Vec<_>>()).collect();
    let mut shape = a.shape().to_vec();
    shape[3] = ca + cb;
    Tensor::from_vec(Shape::from_slice(&shape).unwrap(), data).unwrap()
}

/// The means of 2x2 pixels.
fn pooled(t: &Tensor) -> Vec<f64> {
    let (n, h, w, c) = t.shape().nhwc("test").unwrap();
    let v = t.data::<f64>().unwrap();
    let at = |b: usize, y: usize, x: usize, k: usize| v[((b * h + y) * w + x) * c + k];
    let mut out = Vec::new();
    for i in 0..n * (h / 2) * (w / 2) * c {
        let (k, x, y, b) =
            (i % c, i / c % (w / 2) * 2, i / c / (w / 2) % (h / 2) * 2, i / c / (w / 2) / (h / 2));
        out.push((at(b, y, x, k) + at(b, y, x + 1, k) + at(b, y + 1, x, k) + at(b, y + 1, x + 1, k)) / 4.0);
    }
    out
}

fn two_maps(gpu: &Gpu, channels: [usize; 2], dtype: DType, silu: bool, pool: bool) -> dtk::Result<()> {
    let [a, b] = channels.map(|c| filled([2, 4, 6, c], 2.0, c as f32 / 10.0).to_dtype(dtype).unwrap());
    let c = channels[0] + channels[1];
    let (w, shift, modulation) = (filled([c], 1.0, 1.0), filled([c], 0.5, 0.1), filled([2, 2 * c], 0.3, 0.0));
    let [ga, gb] = [a.to_gpu(gpu)?, b.to_gpu(gpu)?];
    let stats = [channel_stats(gpu, &ga)?, channel_stats(gpu, &gb)?];
    let parts = [&stats[0], &stats[1]].map(|stats| StatsPart { stats, pixels: 24 });
    let table = coefficients(
        gpu,
        &parts,
        4,
        1e-5,
        &w.to_gpu(gpu)?,
        &shift.to_gpu(gpu)?,
        Some(&modulation.to_gpu(gpu)?),
    )?;
    let y = apply(gpu, &[&ga, &gb], &table, silu, pool)?.to_cpu()?;
    let op = GroupNorm { silu, ..GroupNorm::new(4, 1e-5) };
    let want = op.reference(&[&concatenated(&a, &b), &wide(&w), &wide(&shift), &wide(&modulation)])?;
    let want = if pool { pooled(&want) } else { want.data::<f64>()?.to_vec() };
    let got = wide(&y);
    let limit = Limit::new(FORWARD_TOLERANCE, dtype);
    compare(got.data::<f64>()?, &want, limit).map_err(|e| dtk::Error::numeric("group_norm", e))?;
    Ok(())
}

/// What the functions of the norms launch that no op does; computed once. `None` without a device.
pub fn functions() -> Option<&'static [Ran]> {
    static RAN: OnceLock<Option<Vec<Ran>>> = OnceLock::new();
    let compute = || {
        with_device(|gpu| {
            let mut all = Vec::new();
            for dtype in DTYPES {
                // Ten channels a group: the third group has channels of both. Whole chunks, and not.
                for channels in [[24, 16], [25, 15]] {
                    for (silu, pool) in [(true, false), (true, true), (false, false), (false, true)] {
                        let what = format!("group_norm: {channels:?} {dtype} silu {silu} pool {pool}");
                        all.extend(launched(gpu, &what, || two_maps(gpu, channels, dtype, silu, pool)));
                    }
                }
                all.extend(statistics_of_a_convolution(gpu, dtype));
            }
            all
        })
    };
    RAN.get_or_init(compute).as_deref()
}

#[test]
fn two_maps_are_normalised_as_their_concatenation() {
    let Some(ran) = functions() else { return };
    assert!(ran.iter().any(|r| r.kernel.entry == "group_norm_apply"));
}

fn statistics_of_a_convolution(gpu: &Gpu, dtype: DType) -> Vec<Ran> {
    let send = |t: &Tensor| t.to_dtype(dtype).unwrap().to_gpu(gpu).unwrap();
    let (x, w) = (send(&filled([3, 9, 7, 16], 1.0, 0.2)), send(&filled([24, 3, 3, 16], 0.2, 0.05)));
    let affine = [filled([24], 1.0, 1.0), filled([24], 1.0, 0.0)].map(|t| t.to_gpu(gpu).unwrap());
    let mut results = Vec::new();
    let ran = launched(gpu, &format!("batch_norm: statistics of a convolution, {dtype}"), || {
        let conv = ops::run(&ConvStats(Conv2d::square(1, 1)), &[&x, &w])?;
        assert_eq!(conv.aux.len(), 1);
        for stats in [conv.aux.first().cloned(), None] {
            let op = BatchNorm { stats, ..BatchNorm::new(BatchNormMode::Train, 1e-5, false) };
            let out = ops::run(&op, &[&conv.y, &affine[0], &affine[1]])?;
            for t in [&out.y, &out.aux[0], &out.aux[1]] {
                results.push(wide(&t.to_cpu()?).data::<f64>()?.to_vec());
            }
        }
        Ok(())
    });
    let own = ran.iter().filter(|r| r.kernel.entry == "batch_norm_stats").count();
    assert_eq!(own, 1, "only the second norm reads x for its statistics");
    for i in 0..3 {
        let limit = Limit::new(FORWARD_TOLERANCE, if i == 0 { dtype } else { DType::F32 });
        compare(&results[i], &results[i + 3], limit).unwrap();
    }
    ran
}

#[test]
fn a_convolution_leaves_the_statistics_of_its_batch_norm() {
    let Some(ran) = functions() else { return };
    assert!(ran.iter().any(|r| r.kernel.entry == "batch_norm_moments"));
}
