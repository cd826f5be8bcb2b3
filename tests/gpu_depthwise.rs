//! The depthwise convolution kernels and the bias gradient on the device of the tests, against f64: all passes, f32 and bf16,
//! with poisoned outputs and guards around every buffer.

#[path = "common/gpu.rs"]
mod device;

use dtk::base::{DType, Shape};
use dtk::gpu::{Buffer, Gpu};
use dtk::ops::conv2d::{ColumnSum, Conv2d, DepthwiseAt, DepthwiseLaunch, DepthwisePass};
use dtk::ops::{self, Backward, Op};
use dtk::tensor::Tensor;
use half::bf16;
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One convolution, and for how many multiprocessors it is planned: few make blocks take many tasks each.
#[derive(Clone, Copy, Debug)]
struct Case {
    x: [usize; 4],
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    dilation: [usize; 2],
    multiprocessors: usize,
}

fn seven(x: [usize; 4], pad: usize, multiprocessors: usize) -> Case {
    Case { x, kernel: [7; 2], stride: [1; 2], pad: [pad; 2], dilation: [1; 2], multiprocessors }
}

fn plain(x: [usize; 4], kernel: [usize; 2], stride: usize, pad: usize) -> Case {
    Case { x, kernel, stride: [stride; 2], pad: [pad; 2], dilation: [1; 2], multiprocessors: 4 }
}

impl Case {
    fn op(&self) -> Conv2d {
        Conv2d { stride: self.stride, pad: self.pad, dilation: self.dilation, groups: self.x[3] }
    }

    fn shapes(&self) -> [Shape; 2] {
        [self.x.into(), [self.x[3], self.kernel[0], self.kernel[1], 1].into()]
    }

    /// Height and width of the result.
    fn map(&self) -> [usize; 2] {
        [0, 1].map(|i| {
            (self.x[1 + i] + 2 * self.pad[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) / self.stride[i]
                + 1
        })
    }
}

/// Numbers in [-1, 1), the same for the same seed; for bf16 already rounded.
fn numbers(seed: u64, len: usize, dtype: DType) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let v = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        if dtype == DType::Bf16 { f64::from(bf16::from_f32(v)) } else { f64::from(v) }
    };
    (0..len).map(|_| next()).collect()
}

fn bytes_of(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
    }
}

fn values_of(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
    }
}

/// Most multiply-adds of the f32 kernels, of those needed: a task multiplies rows above and below its own too, and tasks are
/// short where there would be too few for all multiprocessors.
const ROW_TASKS: f64 = 1.5;

/// Tests share a context, and its list of launches and findings: one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device memory between two guards. Guards and outputs are NaN in either type: what reads them shows in the results.
struct Guarded {
    buffer: Buffer,
    len: usize,
}

const GUARD: usize = 512;
const POISON: u8 = 0xff;

impl Guarded {
    fn new(gpu: &Gpu, content: Option<&[u8]>, len: usize) -> Self {
        let mut all = vec![POISON; len + 2 * GUARD];
        if let Some(content) = content {
            all[GUARD..GUARD + len].copy_from_slice(content);
        }
        let buffer = gpu.alloc(all.len(), "test").unwrap();
        gpu.upload(&all, &buffer).unwrap();
        Guarded { buffer, len }
    }

    fn input(gpu: &Gpu, values: &[f64], dtype: DType) -> Self {
        let bytes = bytes_of(values, dtype);
        Self::new(gpu, Some(&bytes), bytes.len())
    }

    fn output(gpu: &Gpu, elems: usize, dtype: DType) -> Self {
        Self::new(gpu, None, elems * dtype.size())
    }

    fn at(&self) -> u64 {
        self.buffer.ptr() + GUARD as u64
    }

    /// The content, once the guards have been found untouched.
    fn read(&self, gpu: &Gpu, what: &str) -> Vec<u8> {
        let mut all = vec![0; self.len + 2 * GUARD];
        gpu.download(&self.buffer, &mut all).unwrap();
        let inside = all.drain(GUARD..GUARD + self.len).collect();
        assert!(all.iter().all(|&b| b == POISON), "{what} was written outside its memory");
        inside
    }
}

/// Inputs of a case in f64: x, weight, bias, gradient of y.
struct Data {
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    gy: Vec<f64>,
}

impl Data {
    fn new(case: &Case, dtype: DType) -> Self {
        let [n, h, w, c] = case.x;
        let [ho, wo] = case.map();
        Data {
            x: numbers(1, n * h * w * c, dtype),
            weight: numbers(2, c * case.kernel[0] * case.kernel[1], dtype),
            bias: numbers(3, c, DType::F32),
            gy: numbers(4, n * ho * wo * c, dtype),
        }
    }
}

/// Forward, dgrad, wgrad and bias gradient on the device, as bytes.
fn run(gpu: &Gpu, case: &Case, dtype: DType, data: &Data) -> [Vec<u8>; 4] {
    let (c, taps) = (case.x[3], case.kernel[0] * case.kernel[1]);
    let plan =
        |pass| DepthwiseLaunch::new(&case.op(), case.shapes(), dtype, pass, case.multiprocessors).unwrap();
    let x = Guarded::input(gpu, &data.x, dtype);
    let weight = Guarded::input(gpu, &data.weight, dtype);
    let bias = Guarded::input(gpu, &data.bias, DType::F32);
    let gy = Guarded::input(gpu, &data.gy, dtype);
    let at = DepthwiseAt { x: x.at(), weight: weight.at(), bias: bias.at(), y: gy.at() };

    let y = Guarded::output(gpu, data.gy.len(), dtype);
    plan(DepthwisePass::Fwd).run(gpu, DepthwiseAt { y: y.at(), ..at }).unwrap();
    let dx = Guarded::output(gpu, data.x.len(), dtype);
    plan(DepthwisePass::Dgrad).run(gpu, DepthwiseAt { x: dx.at(), ..at }).unwrap();
    let wgrad = plan(DepthwisePass::Wgrad);
    let partial = Guarded::output(gpu, wgrad.parts() * c * taps, DType::F32);
    wgrad.run(gpu, DepthwiseAt { weight: partial.at(), ..at }).unwrap();
    let dw = Guarded::output(gpu, c * taps, DType::F32);
    wgrad.reduce(gpu, partial.at(), dw.at()).unwrap();
    let sum = ColumnSum::new(dtype, data.gy.len() / c, c, case.multiprocessors);
    let sums = Guarded::output(gpu, sum.parts() * c, DType::F32);
    let db = Guarded::output(gpu, c, DType::F32);
    sum.run(gpu, gy.at(), sums.at(), db.at()).unwrap();

    for (what, input) in [("x", &x), ("weight", &weight), ("bias", &bias), ("gy", &gy)] {
        input.read(gpu, what);
    }
    partial.read(gpu, "parts of dw");
    sums.read(gpu, "parts of db");
    [y.read(gpu, "y"), dx.read(gpu, "dx"), dw.read(gpu, "dw"), db.read(gpu, "db")]
}

/// y by the op's f64 reference; the gradients by their definition, output by output.
fn truth(case: &Case, data: &Data) -> [Vec<f64>; 4] {
    let [_, h, w, c] = case.x;
    let [ho, wo] = case.map();
    let [x_shape, w_shape] = case.shapes();
    let tensors = [
        Tensor::from_vec(x_shape, data.x.clone()).unwrap(),
        Tensor::from_vec(w_shape, data.weight.clone()).unwrap(),
        Tensor::from_vec([c], data.bias.clone()).unwrap(),
    ];
    let y = case.op().reference(&tensors.each_ref()).unwrap();
    let mut dx = vec![0.0; data.x.len()];
    let mut dw = vec![0.0; data.weight.len()];
    let mut db = vec![0.0; c];
    let input = |axis: usize, size: usize, o: usize, k: usize| {
        (o * case.stride[axis] + k * case.dilation[axis]).checked_sub(case.pad[axis]).filter(|&i| i < size)
    };
    for (i, g) in data.gy.iter().enumerate() {
        let (channel, column, row, image) = (i % c, i / c % wo, i / c / wo % ho, i / c / wo / ho);
        db[channel] += g;
        for r in 0..case.kernel[0] {
            for s in 0..case.kernel[1] {
                let (Some(a), Some(b)) = (input(0, h, row, r), input(1, w, column, s)) else { continue };
                let at = ((image * h + a) * w + b) * c + channel;
                let tap = (channel * case.kernel[0] + r) * case.kernel[1] + s;
                dx[at] += g * data.weight[tap];
                dw[tap] += g * data.x[at];
            }
        }
    }
    [y.data::<f64>().unwrap().to_vec(), dx, dw, db]
}

/// Passes only for finite values: f32 within 2e-5 of the largest, bf16 within twice the rounding of the exact value, plus
/// that for the f32 sums.
fn compare(what: &str, got: &[f64], exact: &[f64], dtype: DType) {
    assert_eq!(got.len(), exact.len(), "{what}");
    let slack = 2e-5 * exact.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (i, (&a, &e)) in got.iter().zip(exact).enumerate() {
        let rounding = if dtype == DType::Bf16 { (bf16::from_f64(e).to_f64() - e).abs() } else { 0.0 };
        let fits = a.is_finite() && (a - e).abs() <= 2.0 * rounding + slack;
        assert!(fits, "{what}: element {i} is {a}, not {e}");
    }
}

fn check(gpu: &Gpu, case: &Case) {
    for dtype in [DType::F32, DType::Bf16] {
        let data = Data::new(case, dtype);
        let got = run(gpu, case, dtype, &data);
        let again = run(gpu, case, dtype, &data);
        let types = [dtype, dtype, DType::F32, DType::F32];
        for (i, (exact, of)) in truth(case, &data).iter().zip(types).enumerate() {
            let what = format!("{} of {case:?} in {dtype}", ["y", "dx", "dw", "db"][i]);
            compare(&what, &values_of(&got[i], of), exact, of);
            assert!(got[i] == again[i], "{what}: another run gives other bits");
        }
        device::clean(gpu);
    }
}

#[test]
fn seven_by_seven() {
    let _turn = turn();
    let Some(gpu) = device::device() else { return };
    for case in [
        seven([1, 1, 1, 8], 3, 132),
        seven([2, 7, 7, 96], 3, 132),
        seven([3, 7, 7, 40], 3, 1),
        seven([2, 8, 9, 40], 3, 1),
        seven([3, 14, 14, 32], 3, 1),
        seven([1, 14, 14, 8], 3, 132),
        seven([1, 17, 20, 40], 3, 1),
        seven([1, 28, 9, 32], 3, 4),
        seven([1, 9, 33, 8], 2, 1),
        seven([2, 9, 10, 8], 0, 1),
        seven([1, 5, 6, 16], 6, 1),
    ] {
        check(&gpu, &case);
    }
}

#[test]
fn channels_that_fill_no_chunk() {
    let _turn = turn();
    let Some(gpu) = device::device() else { return };
    for c in [1, 5, 37, 36] {
        check(&gpu, &seven([2, 8, 9, c], 3, 2));
    }
}

#[test]
fn other_kernels() {
    let _turn = turn();
    let Some(gpu) = device::device() else { return };
    let all =
        |x, kernel, stride, pad, dilation| Case { x, kernel, stride, pad, dilation, multiprocessors: 2 };
    for case in [
        plain([1, 1, 1, 1], [1, 1], 1, 0),
        plain([3, 7, 7, 96], [1, 1], 1, 0),
        plain([2, 7, 7, 40], [3, 3], 1, 1),
        plain([1, 8, 9, 5], [3, 3], 2, 1),
        plain([2, 14, 14, 8], [5, 5], 1, 2),
        plain([1, 14, 13, 37], [7, 7], 2, 3),
        plain([1, 6, 5, 8], [2, 4], 1, 2),
        plain([1, 20, 21, 8], [13, 11], 1, 6),
        all([1, 9, 8, 40], [5, 3], [2, 1], [2, 0], [1, 2]),
        all([2, 11, 9, 5], [3, 3], [2, 2], [2, 2], [2, 1]),
        all([1, 16, 15, 8], [7, 7], [1, 1], [6, 6], [2, 2]),
        all([1, 9, 10, 8], [7, 7], [1, 1], [7, 3], [1, 1]),
    ] {
        check(&gpu, &case);
    }
}

/// The op on tensors of the device: results and all three gradients.
#[test]
fn the_op_runs_on_the_device() {
    let _turn = turn();
    let Some(gpu) = device::device() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let case = seven([2, 9, 8, 40], 3, 0);
        let data = Data::new(&case, dtype);
        let [x_shape, w_shape] = case.shapes();
        let [ho, wo] = case.map();
        let tensor = |shape: Shape, v: &[f64], dtype: DType| {
            let f32s: Vec<f32> = v.iter().map(|&v| v as f32).collect();
            Tensor::from_vec(shape, f32s).unwrap().to_dtype(dtype).unwrap().to_gpu(&gpu).unwrap()
        };
        let x = tensor(x_shape, &data.x, dtype);
        let w = tensor(w_shape, &data.weight, dtype);
        let b = tensor([40].into(), &data.bias, DType::F32);
        let gy = tensor([2, ho, wo, 40].into(), &data.gy, dtype);
        let op = case.op();
        let y = ops::run(&op, &[&x, &w, &b]).unwrap().y;
        let saved = op.save(&[&x, &w, &b], &y);
        let shapes = [x_shape, w_shape, [40].into()];
        let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &[true; 3] };
        let gradients = ops::backward(&op, &ctx).unwrap();
        let results = [Some(y)].into_iter().chain(gradients);
        for (i, (got, exact)) in results.zip(truth(&case, &data)).enumerate() {
            let got = got.unwrap();
            assert_eq!(got.shape(), [Shape::from([2, ho, wo, 40]), shapes[0], shapes[1], shapes[2]][i]);
            let of = got.dtype();
            let host = got.to_cpu().unwrap().to_dtype(DType::F32).unwrap();
            let got: Vec<f64> = host.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
            compare(["y", "dx", "dw", "db"][i], &got, &exact, of);
        }
        device::clean(&gpu);
    }
}

/// What a launch may cost on a shape that fits the tiles: `tensor` is how many products the tensor cores make for a useful one.
fn hold_to_limits(launch: &Value, tensor: f64, useful: f64) {
    let name = launch["kernel"].as_str().unwrap();
    let (memory, flops) = (&launch["counters"]["memory"], &launch["counters"]["flops"]);
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{name}: {v}"));
    for access in ["global_load", "global_store"] {
        let m = &memory[access];
        assert!(number(&m["requests"]) == 0.0 || number(&m["efficiency"]) >= 0.99, "{name}: {access} {m}");
    }
    let widths: Vec<&String> = memory["global_widths"].as_object().unwrap().keys().collect();
    assert_eq!(widths, ["16"], "{name}: bytes of a global access");
    let sum = |field: &str| -> f64 {
        ["shared_load", "shared_store", "async_copy"].iter().map(|a| number(&memory[a][field])).sum()
    };
    let (wavefronts, ideal) = (sum("wavefronts"), sum("ideal_wavefronts"));
    assert!(wavefronts <= 1.1 * ideal, "{name}: {wavefronts} wavefronts, {ideal} are ideal");
    let loads = &memory["shared_load"];
    assert!(number(&loads["conflict_factor"]) <= 1.0, "{name}: {loads}");
    assert_eq!(number(&memory["local_load"]["requests"]), 0.0, "{name} spills");
    let made = number(&flops["tensor"]);
    if tensor > 0.0 {
        assert!(made > 0.0 && made <= tensor * useful, "{name}: {flops} for {useful}");
    } else {
        assert!(made == 0.0 && number(&flops["f32"]) <= ROW_TASKS * useful, "{name}: {flops} for {useful}");
    }
}

#[test]
fn counters_of_shapes_that_fit_the_tiles() {
    let _turn = turn();
    let Some(gpu) = device::device() else { return };
    let case = seven([1, 32, 32, 64], 3, 1);
    let useful = (2 * 49 * 32 * 32 * 64) as f64;
    for (dtype, limits) in [(DType::F32, [0.0; 3]), (DType::Bf16, [2.62, 2.62, 1.31])] {
        gpu.report_clear();
        run(&gpu, &case, dtype, &Data::new(&case, dtype));
        let Some(text) = gpu.report_json() else { return };
        let report: Value = serde_json::from_str(&text).unwrap();
        let launches = report["launches"].as_array().unwrap();
        for (pass, limit) in ["_fwd", "_dgrad", "_wgrad"].into_iter().zip(limits) {
            let of_pass = |l: &&Value| l["kernel"].as_str().is_some_and(|k| k.ends_with(pass));
            hold_to_limits(launches.iter().find(of_pass).unwrap(), limit, useful);
        }
        device::clean(&gpu);
    }
}
