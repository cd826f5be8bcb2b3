//! Fused convolutions (several inputs, a skip, an epilogue, statistics, a doubled image) against f64, in every width of
//! copies and every element type.

use crate::cases::{DTYPES, Ran, launched, with_device};
use dtk::base::{DType, Philox};
use dtk::gpu::Gpu;
use dtk::ops::Op;
use dtk::ops::check::{FORWARD_TOLERANCE, Limit, compare};
use dtk::ops::conv2d::{Activation, Conv2d, FusedConv, FusedOutput, Part, fold_doubled};
use dtk::tensor::Tensor;
use std::sync::OnceLock;

/// Tolerance of statistics, of their largest value: means of f32 numbers, and their squares.
const STATISTICS_TOLERANCE: f64 = 1e-4;

/// What a fused convolution does beside convolving.
#[derive(Clone, Debug)]
pub struct Fused {
    label: &'static str,
    /// Batch, height, width of the inputs.
    size: [usize; 3],
    /// Channels of the inputs, which are concatenated.
    channels: Vec<usize>,
    conv: Conv2d,
    kernel: usize,
    /// Channels of a second input that a 1x1 convolution adds.
    skip: Option<usize>,
    co: usize,
    bias: bool,
    scale: bool,
    /// 1 of the result's size, 2 of half of it.
    residual: Option<usize>,
    activation: Activation,
    stats: bool,
    doubled: bool,
}

fn plain(label: &'static str, size: [usize; 3], channels: usize, co: usize) -> Fused {
    Fused {
        label,
        size,
        channels: vec![channels],
        conv: Conv2d::square(1, 1),
        kernel: 3,
        skip: None,
        co,
        bias: false,
        scale: false,
        residual: None,
        activation: Activation::None,
        stats: false,
        doubled: false,
    }
}

/// Every part of the epilogue and of the sum; every width of copies with and without statistics and doubling.
fn cases() -> Vec<Fused> {
    let mut all = vec![
        Fused { channels: vec![48, 16, 8], ..plain("three inputs", [2, 9, 7], 0, 40) },
        Fused { channels: vec![5, 3], bias: true, ..plain("two odd inputs", [1, 6, 7], 0, 9) },
        Fused { skip: Some(24), bias: true, ..plain("skip", [1, 9, 8], 32, 48) },
        Fused {
            channels: vec![16, 32],
            skip: Some(16),
            stats: true,
            ..plain("two inputs, skip", [2, 8, 8], 0, 64)
        },
        Fused {
            bias: true,
            scale: true,
            residual: Some(1),
            ..plain("scale and residual", [2, 7, 9], 24, 32)
        },
        Fused {
            residual: Some(2),
            activation: Activation::Relu,
            ..plain("half residual, ReLU", [1, 8, 6], 16, 24)
        },
        Fused { bias: true, activation: Activation::Silu, stats: true, ..plain("SiLU", [2, 8, 8], 16, 16) },
        Fused { scale: true, activation: Activation::Gelu, ..plain("GELU", [1, 5, 11], 16, 17) },
        Fused { residual: Some(1), bias: true, stats: true, ..plain("split sums", [2, 8, 8], 256, 64) },
        Fused {
            conv: Conv2d::square(2, 1),
            bias: true,
            stats: true,
            ..plain("stride 2", [2, 9, 11], 32, 24)
        },
        Fused { conv: Conv2d::square(1, 0), kernel: 1, bias: true, ..plain("pointwise", [2, 5, 9], 64, 72) },
        Fused {
            doubled: true,
            residual: Some(2),
            bias: true,
            ..plain("doubled, half residual", [2, 5, 6], 32, 40)
        },
        Fused { doubled: true, channels: vec![16, 16], ..plain("doubled, two inputs", [1, 4, 5], 0, 16) },
    ];
    // Sums too short to be split: the product itself writes the statistics.
    all.push(Fused { doubled: true, stats: true, ..plain("doubled, short sums", [1, 8, 8], 16, 16) });
    for (label, channels) in [("64 channels", 64), ("12 channels", 12), ("6 channels", 6), ("3 channels", 3)]
    {
        for (stats, doubled) in [(false, false), (true, false), (false, true), (true, true)] {
            all.push(Fused { stats, doubled, bias: true, ..plain(label, [2, 6, 5], channels, channels) });
        }
    }
    all
}

/// Normal random numbers, rounded to the type.
fn random(shape: &[usize], rng: Philox, dtype: DType) -> Tensor {
    let shape = dtk::base::Shape::from_slice(shape).unwrap();
    let mut v = vec![0.0; shape.elems()];
    rng.fill_normal(&mut v);
    Tensor::from_vec(shape, v).unwrap().to_dtype(dtype).unwrap()
}

fn f64s(t: &Tensor) -> Vec<f64> {
    t.to_cpu().unwrap().to_dtype(DType::F64).unwrap().into_vec().unwrap()
}

/// Channels side by side, f64.
fn concat(parts: &[Tensor]) -> Tensor {
    let [n, h, w, _] = *parts[0].shape() else { panic!("images") };
    let widths: Vec<usize> = parts.iter().map(|t| t.shape()[3]).collect();
    let values: Vec<Vec<f64>> = parts.iter().map(f64s).collect();
    let mut all = Vec::new();
    for pixel in 0..n * h * w {
        for (v, c) in values.iter().zip(&widths) {
            all.extend_from_slice(&v[pixel * c..(pixel + 1) * c]);
        }
    }
    Tensor::from_vec([n, h, w, widths.iter().sum()], all).unwrap()
}

/// Nearest-neighbour doubling, f64.
fn double(t: &Tensor) -> Tensor {
    let [n, h, w, c] = *t.shape() else { panic!("an image") };
    let v = f64s(t);
    let at = |i: usize| {
        let (ch, x, y, b) = (i % c, i / c % (2 * w), i / c / (2 * w) % (2 * h), i / c / (4 * w * h));
        v[((b * h + y / 2) * w + x / 2) * c + ch]
    };
    Tensor::from_vec([n, 2 * h, 2 * w, c], (0..4 * n * h * w * c).map(at).collect::<Vec<f64>>()).unwrap()
}

/// The four 2x2 kernels of a 3x3 one over a doubled image, `[4 co, 2, 2, ci]`: along an axis, the first pixel of a pair sees
/// tap 0 of its left neighbour and taps 1 and 2 of itself, the second one taps 0 and 1 of itself and tap 2 of its right one.
fn folded(w: &Tensor) -> Vec<f64> {
    let [co, _, _, ci] = *w.shape() else { panic!("a weight") };
    let v = f64s(w);
    let taps = |phase: usize, r: usize| -> &[usize] {
        match (phase, r) {
            (0, 0) => &[0],
            (0, _) => &[1, 2],
            (_, 0) => &[0, 1],
            _ => &[2],
        }
    };
    let mut all = Vec::new();
    for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for o in 0..co {
            for (r, s) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for c in 0..ci {
                    let sum = taps(a, r).iter().flat_map(|y| taps(b, s).iter().map(move |x| (y, x)));
                    all.push(sum.map(|(y, x)| v[((o * 3 + y) * 3 + x) * ci + c]).sum());
                }
            }
        }
    }
    all
}

/// A 3x3 convolution of a doubled image with folded weights, as the definition of folding has it.
fn convolve_folded(x: &Tensor, folded: &[f64], co: usize) -> Vec<f64> {
    let [n, h, w, ci] = *x.shape() else { panic!("an image") };
    let v = f64s(x);
    let mut y = vec![0.0; n * 4 * h * w * co];
    for (i, out) in y.iter_mut().enumerate() {
        let (o, ox, oy, b) = (i % co, i / co % (2 * w), i / co / (2 * w) % (2 * h), i / co / (4 * w * h));
        let phase = oy % 2 * 2 + ox % 2;
        for (r, s) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (iy, ix) = (oy / 2 + oy % 2 + r, ox / 2 + ox % 2 + s);
            // One less: the first pixel of a pair begins with its left neighbour.
            if iy == 0 || ix == 0 || iy > h || ix > w {
                continue;
            }
            let from = ((b * h + iy - 1) * w + ix - 1) * ci;
            let to = (((phase * co + o) * 2 + r) * 2 + s) * ci;
            *out += (0..ci).map(|c| v[from + c] * folded[to + c]).sum::<f64>();
        }
    }
    y
}

fn activate(v: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => v,
        Activation::Relu => v.max(0.0),
        Activation::Silu => v / (1.0 + (-v).exp()),
        Activation::Gelu => 0.5 * v * (1.0 + libm::erf(v / std::f64::consts::SQRT_2)),
    }
}

/// The tensors of a case, in the host's memory.
struct Inputs {
    x: Vec<Tensor>,
    w: Tensor,
    skip: Option<(Tensor, Tensor)>,
    bias: Option<Tensor>,
    scale: Option<Tensor>,
    residual: Option<Tensor>,
}

impl Fused {
    /// Height and width of the result.
    fn out(&self) -> [usize; 2] {
        let [_, h, w] = self.size;
        let one = |n: usize| (n + 2 * self.conv.pad[0] - self.kernel) / self.conv.stride[0] + 1;
        if self.doubled { [2 * h, 2 * w] } else { [one(h), one(w)] }
    }

    fn inputs(&self, dtype: DType) -> Inputs {
        let [n, h, w] = self.size;
        let [ho, wo] = self.out();
        let rng = |name: &str| Philox::new(7).fold_str(name);
        let ci = self.channels.iter().sum();
        let x = |(i, &c): (usize, &usize)| random(&[n, h, w, c], rng("x").fold(i as u64), dtype);
        Inputs {
            x: self.channels.iter().enumerate().map(x).collect(),
            w: random(&[self.co, self.kernel, self.kernel, ci], rng("w"), dtype),
            skip: self.skip.map(|c| {
                (
                    random(&[n, ho, wo, c], rng("skip"), dtype),
                    random(&[self.co, 1, 1, c], rng("skip w"), dtype),
                )
            }),
            bias: self.bias.then(|| random(&[self.co], rng("bias"), DType::F32)),
            scale: self.scale.then(|| random(&[self.co], rng("scale"), DType::F32)),
            residual: self.residual.map(|k| random(&[n, ho / k, wo / k, self.co], rng("residual"), dtype)),
        }
    }

    /// Runs it; gives the folded weight too.
    fn run(&self, gpu: &Gpu, inputs: &Inputs) -> dtk::Result<(FusedOutput, Option<Tensor>)> {
        let there = |t: &Tensor| t.to_gpu(gpu);
        let optional = |t: &Option<Tensor>| t.as_ref().map(there).transpose();
        let x = inputs.x.iter().map(there).collect::<dtk::Result<Vec<Tensor>>>()?;
        let w = there(&inputs.w)?;
        let folded = self.doubled.then(|| fold_doubled(gpu, &w)).transpose()?;
        let mut fused = FusedConv::new(x.iter().collect(), folded.as_ref().unwrap_or(&w), self.conv.clone());
        let skip =
            inputs.skip.as_ref().map(|(x, w)| Ok::<_, dtk::Error>((there(x)?, there(w)?))).transpose()?;
        if let Some((x, w)) = &skip {
            fused.parts.push(Part { inputs: vec![x], weight: w, conv: Conv2d::square(1, 0) });
        }
        let (bias, scale, residual) =
            (optional(&inputs.bias)?, optional(&inputs.scale)?, optional(&inputs.residual)?);
        fused.bias = bias.as_ref();
        fused.scale = scale.as_ref();
        fused.residual = residual.as_ref();
        fused.activation = self.activation;
        fused.stats = self.stats;
        fused.doubled = self.doubled;
        let FusedOutput { y, stats } = fused.run(gpu)?;
        let folded = folded.map(|t| t.to_cpu()).transpose()?;
        Ok((FusedOutput { y: y.to_cpu()?, stats: stats.map(|t| t.to_cpu()).transpose()? }, folded))
    }

    /// The definition, with the folded weight that the device has.
    fn reference(&self, inputs: &Inputs, device_folded: Option<&Tensor>) -> Vec<f64> {
        let x = concat(&inputs.x);
        let conv = |op: &Conv2d, x: &Tensor, w: &Tensor| -> Vec<f64> {
            let w = w.to_dtype(DType::F64).unwrap();
            op.reference(&[x, &w]).unwrap().into_vec().unwrap()
        };
        let mut y = match device_folded {
            Some(w) => convolve_folded(&x, &f64s(w), self.co),
            None => conv(&self.conv, &x, &inputs.w),
        };
        if let Some((x, w)) = &inputs.skip {
            let more = conv(&Conv2d::square(1, 0), &x.to_dtype(DType::F64).unwrap(), w);
            y.iter_mut().zip(more).for_each(|(y, m)| *y += m);
        }
        let vector = |t: &Option<Tensor>, none: f64| t.as_ref().map_or(vec![none; self.co], f64s);
        let (bias, scale) = (vector(&inputs.bias, 0.0), vector(&inputs.scale, 1.0));
        let residual = inputs
            .residual
            .as_ref()
            .map(|r| if self.residual == Some(2) { f64s(&double(r)) } else { f64s(r) });
        for (i, v) in y.iter_mut().enumerate() {
            let c = i % self.co;
            *v = activate(
                scale[c] * (*v + bias[c]) + residual.as_ref().map_or(0.0, |r| r[i]),
                self.activation,
            );
        }
        y
    }

    /// Mean and sum of squared deviations by image and channel.
    fn statistics(&self, y: &[f64]) -> Vec<f64> {
        let pixels = self.out()[0] * self.out()[1];
        let mut all = Vec::new();
        for image in y.chunks(pixels * self.co) {
            for c in 0..self.co {
                let of = || image.iter().skip(c).step_by(self.co);
                let mean = of().sum::<f64>() / pixels as f64;
                all.extend([mean, of().map(|v| (v - mean) * (v - mean)).sum::<f64>()]);
            }
        }
        all
    }
}

fn check(gpu: &Gpu, case: &Fused, dtype: DType) -> Vec<Ran> {
    let what = format!("fused: {}, statistics {}, doubled {}, {dtype}", case.label, case.stats, case.doubled);
    let inputs = case.inputs(dtype);
    let expect = |part: &str, got: &[f64], want: &[f64], limit: Limit| {
        if let Err(e) = compare(got, want, limit) {
            panic!("{what}: {part}: {e}");
        }
    };
    launched(gpu, &what, || {
        let (FusedOutput { y, stats }, weight) = case.run(gpu, &inputs)?;
        if let Some(weight) = &weight {
            expect("folded weight", &f64s(weight), &folded(&inputs.w), Limit::new(1e-6, dtype));
        }
        assert_eq!(y.dtype(), dtype, "{what}");
        let y64 = f64s(&y);
        expect("y", &y64, &case.reference(&inputs, weight.as_ref()), Limit::new(FORWARD_TOLERANCE, dtype));
        assert_eq!(stats.is_some(), case.stats, "{what}");
        if let Some(stats) = &stats {
            let (got, want) = (f64s(stats), case.statistics(&y64));
            // Means and sums differ in size.
            for (part, first) in [("means", 0), ("squared deviations", 1)] {
                let half = |v: &[f64]| v.iter().skip(first).step_by(2).copied().collect::<Vec<f64>>();
                expect(
                    part,
                    &half(&got),
                    &half(&want),
                    Limit { of_max: STATISTICS_TOLERANCE, of_value: 0.0 },
                );
            }
        }
        let (again, _) = case.run(gpu, &inputs)?;
        assert!(f64s(&again.y) == y64, "{what}: two runs differ");
        assert!(again.stats.as_ref().map(f64s) == stats.as_ref().map(f64s), "{what}: two runs differ");
        Ok(())
    })
}

/// Whether all copies of a case are of 16 bytes, so that it has a choice of tiles.
pub fn fills_copies(case: &Fused) -> bool {
    case.channels.iter().chain(&case.skip).chain([&case.co]).all(|c| c.is_multiple_of(8))
}

/// What some cases launch; `None` without a device.
pub fn compute(wanted: impl Fn(&Fused) -> bool) -> Option<Vec<Ran>> {
    with_device(|gpu| {
        let jobs = DTYPES.iter().flat_map(|&d| cases().into_iter().map(move |c| (c, d)));
        jobs.filter(|(c, _)| wanted(c)).flat_map(|(case, dtype)| check(gpu, &case, dtype)).collect()
    })
}

/// What all cases launch, computed once.
pub fn ran() -> Option<&'static [Ran]> {
    static RAN: OnceLock<Option<Vec<Ran>>> = OnceLock::new();
    RAN.get_or_init(|| compute(|_| true)).as_deref()
}

#[test]
fn conv2d_fused() {
    let Some(ran) = ran() else { return };
    assert!(!ran.is_empty());
}

#[test]
fn folding_a_kernel_is_doubling_the_image() {
    let case = Fused { doubled: true, ..plain("", [1, 3, 4], 2, 3) };
    let inputs = case.inputs(DType::F32);
    let w = inputs.w.to_dtype(DType::F64).unwrap();
    let want = Conv2d::square(1, 1).reference(&[&double(&inputs.x[0]), &w]).unwrap();
    let got = convolve_folded(&inputs.x[0], &folded(&inputs.w), 3);
    compare(&got, want.data::<f64>().unwrap(), Limit { of_max: 1e-12, of_value: 0.0 }).unwrap();
}
