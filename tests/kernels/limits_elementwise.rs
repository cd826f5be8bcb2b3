//! Kernels that are bound by memory, on shapes that fill their tiles: what they move is held against what they must. And what
//! no case of an op shows: casts, random keys in memory, what is no number.

use crate::cases::{DTYPES, Ran, launched, run, with_device};
use bytemuck::{Pod, Zeroable};
use dtk::base::{DType, Philox, Shape};
use dtk::gpu::{Defines, Gpu, Grid, Source};
use dtk::ops::adaptive_avg_pool::AdaptiveAvgPool;
use dtk::ops::add::Add;
use dtk::ops::avg_pool::AvgPool;
use dtk::ops::concat::Concat;
use dtk::ops::drop_path::DropPath;
use dtk::ops::dropout::Dropout;
use dtk::ops::gelu::Gelu;
use dtk::ops::global_avg_pool::GlobalAvgPool;
use dtk::ops::max_pool::MaxPool;
use dtk::ops::relu::Relu;
use dtk::ops::resize::{Resize, ResizeMode};
use dtk::ops::scale::Scale;
use dtk::ops::silu::Silu;
use dtk::ops::{Case, DeviceKey, Input, Op, cast};
use dtk::tensor::Tensor;
use std::sync::OnceLock;

/// Most bytes moved, of those that inputs and results have.
const MOVED: f64 = 1.15;
/// Bytes of a maximum's position.
const POSITION: f64 = 1.0;

/// What a pass has to read and write: its entry, elements of the operands' type, and other bytes.
type Pass = (&'static str, f64, f64);

/// A case of an op, and its passes.
struct Tiled {
    case: Case,
    passes: Vec<Pass>,
}

/// An op on inputs of these shapes.
fn tiled(op: impl Op + 'static, shapes: &[&[usize]], passes: &[Pass]) -> Tiled {
    let input = |(i, s): (usize, &&[usize])| {
        Input::normal(["x", "w"][i], Shape::from_slice(s).expect("a small shape"))
    };
    let label = format!("tiles: {op:?}");
    Tiled {
        case: Case::new(label, op, shapes.iter().enumerate().map(input).collect()),
        passes: passes.to_vec(),
    }
}

/// Sizes are multiples of every tile.
fn cases() -> Vec<Tiled> {
    let x: [usize; 4] = [2, 16, 16, 64];
    let large: [usize; 4] = [1, 32, 32, 64];
    let n = x.iter().product::<usize>() as f64;
    let m = large.iter().product::<usize>() as f64;
    let channels = 64.0;
    let rng = Philox::new(4);
    let kept = (0..2).filter(|&i| rng.uniform_at(i) >= 0.5).count() as f64 / 2.0;
    let dropout = |channels| Dropout { rate: 0.3, rng, channels, key: None };
    let resize = |mode| {
        let (from, to) = (32.0 * 32.0 * 16.0, 64.0 * 64.0 * 16.0);
        let passes = [("resize_fwd", from + to, 0.0), ("resize_bwd", from + to, 0.0)];
        tiled(Resize { mode, out: [64, 64] }, &[&[1, 32, 32, 16]], &passes)
    };
    vec![
        tiled(Add { relu: true }, &[&x, &x], &[("add_fwd", 3.0 * n, 0.0), ("add_gate", 3.0 * n, 0.0)]),
        tiled(
            Add { relu: false },
            &[&x, &[2, 64]],
            &[("add_rows", 2.0 * n + 2.0 * channels, 0.0), ("add_sum", n + 2.0 * channels, 0.0)],
        ),
        tiled(Relu {}, &[&x], &[("relu_fwd", 2.0 * n, 0.0), ("relu_bwd", 3.0 * n, 0.0)]),
        tiled(Silu {}, &[&x], &[("silu_fwd", 2.0 * n, 0.0), ("silu_bwd", 3.0 * n, 0.0)]),
        tiled(Gelu {}, &[&x], &[("gelu_fwd", 2.0 * n, 0.0), ("gelu_bwd", 3.0 * n, 0.0)]),
        tiled(
            Scale {},
            &[&x, &[64]],
            &[("scale_fwd", 2.0 * n, 4.0 * channels), ("scale_bwd", 3.0 * n, 8.0 * channels)],
        ),
        tiled(dropout(false), &[&x], &[("dropout_fwd", 4.0 * n, 0.0)]),
        tiled(dropout(true), &[&x], &[("dropout_channels", 4.0 * n, 0.0)]),
        tiled(
            DropPath { rate: 0.5, rng, key: None },
            &[&x],
            &[("drop_path_fwd", 2.0 * n * (1.0 + kept), 0.0)],
        ),
        tiled(Concat {}, &[&x, &x], &[("concat_join", 4.0 * n, 0.0), ("concat_split", 4.0 * n, 0.0)]),
        tiled(
            MaxPool { kernel: 3, stride: 2, pad: 1 },
            &[&large],
            &[
                ("max_pool_fwd", 1.25 * m, 0.25 * m * POSITION),
                ("max_pool_bwd", 1.25 * m, 0.25 * m * POSITION),
            ],
        ),
        tiled(
            AvgPool { kernel: 2, stride: 2, pad: 0 },
            &[&large],
            &[("avg_pool_fwd", 1.25 * m, 0.0), ("avg_pool_bwd", 1.25 * m, 0.0)],
        ),
        tiled(
            AdaptiveAvgPool { out: [4, 4] },
            &[&large],
            &[
                ("adaptive_avg_pool_fwd", m + 16.0 * channels, 0.0),
                ("adaptive_avg_pool_bwd", m + 16.0 * channels, 0.0),
            ],
        ),
        tiled(
            GlobalAvgPool {},
            &[&x],
            &[
                ("global_avg_pool_fwd", n + 2.0 * channels, 0.0),
                ("global_avg_pool_bwd", n + 2.0 * channels, 0.0),
            ],
        ),
        resize(ResizeMode::Nearest),
        resize(ResizeMode::Bilinear { align_corners: false }),
        resize(ResizeMode::Bilinear { align_corners: true }),
    ]
}

/// Bytes moved by the launches of an entry. Every case runs twice.
fn moved(ran: &[Ran], entry: &str) -> f64 {
    let counters = ran.iter().filter(|r| r.kernel.entry == entry).filter_map(|r| r.counters.as_ref());
    counters.map(|c| (c.loads.moved + c.stores.moved) as f64).sum::<f64>() / 2.0
}

/// What is wrong with the launches of a case.
fn violations(tiled: &Tiled, dtype: DType, ran: &[Ran]) -> Vec<String> {
    let what = format!("{} {dtype}", tiled.case.label);
    let mut wrong = Vec::new();
    for &(entry, elements, bytes) in &tiled.passes {
        let factor = moved(ran, entry) / (elements * dtype.size() as f64 + bytes);
        if !(0.95..=MOVED).contains(&factor) {
            wrong.push(format!("{what}, {entry}: {factor:.3} bytes moved for 1"));
        }
    }
    // Positions are bytes, which lie beside one another all the same.
    let wide = |r: &&Ran| !r.kernel.entry.starts_with("max_pool");
    for r in ran.iter().filter(wide) {
        let narrow = r.counters.as_ref().map(|c| c.narrow.as_slice()).unwrap_or_default();
        if !narrow.is_empty() {
            wrong.push(format!("{what}, {}: accesses of less than 16 bytes: {narrow:?}", r.kernel.entry));
        }
    }
    wrong
}

#[test]
fn every_byte_is_moved_once() {
    let wrong = with_device(|gpu| {
        let mut wrong = Vec::new();
        for dtype in DTYPES {
            for tiled in cases() {
                let ran = run(gpu, tiled.case.op.name(), &tiled.case, dtype);
                if ran.iter().any(|r| r.counters.is_some()) {
                    wrong.extend(violations(&tiled, dtype, &ran));
                }
            }
        }
        wrong
    });
    let wrong = wrong.unwrap_or_default();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Forward pass on the device, and the result in f32.
fn on_device(gpu: &dtk::gpu::Gpu, op: &dyn Op, x: &Tensor) -> dtk::Result<Vec<f32>> {
    let y = dtk::ops::run(op, &[&x.to_gpu(gpu)?])?.y.to_cpu()?;
    y.to_dtype(DType::F32)?.into_vec::<f32>()
}

#[test]
fn random_keys_come_from_the_table() {
    with_device(|gpu| {
        let streams = [Philox::new(1), Philox::new(2).fold(3), Philox::new(4)];
        let table = Tensor::from_vec([3, 16], DeviceKey::bytes(&streams)).unwrap().to_gpu(gpu).unwrap();
        let mut x = vec![0.0f32; 6 * 40 * 16];
        Philox::new(5).fill_normal(&mut x);
        let x = Tensor::from_vec([6, 40, 16], x).unwrap();
        for (index, rng) in streams.into_iter().enumerate() {
            let key = Some(DeviceKey { table: table.clone(), index });
            // The stream of the op itself is one that must not be used.
            let other = Philox::new(99);
            let ops: [[Box<dyn Op>; 2]; 3] = [
                [
                    Box::new(Dropout { rate: 0.4, rng: other, channels: false, key: key.clone() }),
                    Box::new(Dropout { rate: 0.4, rng, channels: false, key: None }),
                ],
                [
                    Box::new(Dropout { rate: 0.4, rng: other, channels: true, key: key.clone() }),
                    Box::new(Dropout { rate: 0.4, rng, channels: true, key: None }),
                ],
                [
                    Box::new(DropPath { rate: 0.5, rng: other, key }),
                    Box::new(DropPath { rate: 0.5, rng, key: None }),
                ],
            ];
            for [device, host] in &ops {
                launched(gpu, &format!("{device:?}"), || {
                    let want = dtk::ops::run(&**host, &[&x])?.y;
                    assert_eq!(on_device(gpu, &**device, &x)?, want.f32s()?, "{device:?}");
                    Ok(())
                });
            }
        }
    });
}

#[test]
fn what_is_no_number_stays_and_what_is_dropped_is_zero() {
    with_device(|gpu| {
        let mut v: Vec<f32> = (0..64 * 8).map(|i| (i % 7) as f32 - 3.0).collect();
        (v[3], v[200], v[201]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let x = Tensor::from_vec([1, 8, 8, 8], v).unwrap();
        let pool = MaxPool { kernel: 3, stride: 2, pad: 1 };
        let ops: [Box<dyn Op>; 4] = [
            Box::new(Relu {}),
            Box::new(pool),
            Box::new(AvgPool { kernel: 2, stride: 2, pad: 0 }),
            Box::new(Dropout { rate: 0.9, rng: Philox::new(7), channels: false, key: None }),
        ];
        for op in &ops {
            launched(gpu, &format!("{op:?} of NaN"), || {
                let want = dtk::ops::run(&**op, &[&x])?.y;
                for (i, (got, want)) in on_device(gpu, &**op, &x)?.iter().zip(want.f32s()?).enumerate() {
                    assert!(got == want || got.is_nan() && want.is_nan(), "{op:?} {i}: {got} is not {want}");
                }
                Ok(())
            });
        }
    });
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RandomParams {
    words: u64,
    normals: u64,
    key: [u32; 4],
    first: u64,
}

const RANDOM: &str = r#"
#include "tile/philox.cuh"
struct Params { uint4 *words; float4 *normals; u32 key[4]; u64 first; };
static_assert(sizeof(Params) == PARAMS_BYTES, "host and device agree");
extern "C" __global__ void random_fill(const __grid_constant__ Params p) {
    const philox::Stream stream(make_uint4(p.key[0], p.key[1], p.key[2], p.key[3]));
    const uint4 block = stream.block(p.first + threadIdx.x);
    p.words[threadIdx.x] = block;
    p.normals[threadIdx.x] = philox::normals(block);
    if (stream.word(4 * (p.first + threadIdx.x) + 2) != block.z) p.words[threadIdx.x].x = 0;
}
"#;

#[test]
fn random_numbers_are_those_of_the_host() {
    with_device(|gpu| {
        let headers = [
            ("tile/philox.cuh", include_str!("../../kernels/tile/philox.cuh")),
            ("ptx/memory.cuh", include_str!("../../kernels/ptx/memory.cuh")),
        ];
        let source = Source::from_text("random.cu", RANDOM, &headers).unwrap();
        let defines = Defines::new().set("PARAMS_BYTES", size_of::<RandomParams>());
        let stream = Philox::new(0x1234_5678_9abc_def0).fold(17);
        // Also where the counter passes 32 bits.
        for first in [0u64, (1 << 32) - 20] {
            launched(gpu, "random numbers", || {
                let words = Tensor::empty_gpu([64 * 16], DType::U8, gpu, "words")?;
                let normals = Tensor::empty_gpu([64 * 4], DType::F32, gpu, "normals")?;
                let p = RandomParams {
                    words: words.cuda_ptr()?,
                    normals: normals.cuda_ptr()?,
                    key: stream.words(),
                    first,
                };
                let grid = Grid { grid: [1; 3], block: 64, shared_bytes: 0 };
                gpu.kernel_of(&source, "random_fill", &defines)?.launch(gpu.stream(), grid, &p)?;
                let want: Vec<u32> = (0..64).flat_map(|i| stream.block(first + i)).collect();
                assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(words.to_cpu()?.data::<u8>()?), want);
                let mut want = vec![0.0f32; 64 * 4];
                stream.fill_normal_at(first, &mut want);
                for (got, want) in normals.to_cpu()?.f32s()?.iter().zip(&want) {
                    assert!((got - want).abs() <= 3e-6 * want.abs().max(1.0), "{got} is not {want}");
                }
                Ok(())
            });
        }
    });
}

/// What casts launch; computed once. `None` without a device.
pub fn casts() -> Option<&'static [Ran]> {
    static RAN: OnceLock<Option<Vec<Ran>>> = OnceLock::new();
    RAN.get_or_init(|| with_device(check_casts)).as_deref()
}

#[test]
fn casts_round_as_the_host_does_and_keep_what_is_no_number() {
    assert!(casts().is_none_or(|ran| !ran.is_empty()));
}

fn check_casts(gpu: &Gpu) -> Vec<Ran> {
    let mut all = Vec::new();
    for n in [1usize, 7, 8, 15, 16, 17, 4096, 4099] {
        let mut v = vec![0.0f32; n];
        Philox::new(3).fill_normal(&mut v);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, 1e-40];
        v.iter_mut().rev().zip(odd).for_each(|(v, odd)| *v = odd);
        let x = Tensor::from_vec([n], v).unwrap();
        let ran = launched(gpu, &format!("cast of {n}"), || {
            let narrow = cast(gpu, &x.to_gpu(gpu)?, DType::Bf16)?;
            let wide = cast(gpu, &narrow, DType::F32)?.to_cpu()?;
            let want = x.to_dtype(DType::Bf16)?;
            for (got, want) in [(narrow.to_cpu()?, want.clone()), (wide, want.to_dtype(DType::F32)?)] {
                assert_eq!(got.dtype(), want.dtype());
                let f64s = |t: &Tensor| t.to_dtype(DType::F64)?.into_vec::<f64>();
                for (i, (a, b)) in f64s(&got)?.into_iter().zip(f64s(&want)?).enumerate() {
                    assert!(
                        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                        "{n}, {i}: {a} is not {b}"
                    );
                }
            }
            Ok(())
        });
        let counters = ran.iter().filter_map(|r| r.counters.as_ref());
        for c in counters.filter(|_| n == 4096) {
            assert!(c.narrow.is_empty(), "{:?}", c.narrow);
            let factor = (c.loads.moved + c.stores.moved) as f64 / (6 * n) as f64;
            assert!(factor < 1.01, "{}: {factor:.3} bytes moved for 1", c.kernel);
        }
        all.extend(ran);
    }
    let pixels = Tensor::from_vec([2], vec![1u8, 2]).unwrap().to_gpu(gpu).unwrap();
    assert!(cast(gpu, &pixels, DType::F32).unwrap_err().remedy().is_some());
    all
}
