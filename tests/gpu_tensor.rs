//! Tensors on the simulated device, or on a card, and operations that are sent there.

#[path = "common/gpu.rs"]
mod gpu;

use dtk::base::{DType, Philox, Shape};
use dtk::nn::{BatchNorm2d, Conv2d, DeviceParams, ParamStore};
use dtk::ops::{self, Backward, Forward, Offload, Op, linear::Linear, silu::Silu};
use dtk::tape::Tape;
use dtk::tensor::{Device, Tensor};

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let shape = dtk::base::Shape::from_slice(shape).unwrap();
    let mut v = vec![0.0; shape.elems()];
    Philox::new(seed).fill_normal(&mut v);
    Tensor::from_vec(shape, v).unwrap()
}

#[test]
fn tensors_go_there_and_come_back() {
    let Some(device) = gpu::device() else { return };
    let x = normal(&[2, 3, 5, 7], 1);
    for dtype in [DType::F32, DType::F64, DType::F16, DType::Bf16] {
        let host = x.to_dtype(dtype).unwrap();
        let there = host.to_gpu(&device).unwrap();
        assert_eq!((there.device(), there.dtype(), there.shape()), (Device::Cuda(0), dtype, x.shape()));
        assert!(there.gpu().is_some() && there.cuda_ptr().unwrap() != 0);
        // No copy: the same memory under another shape.
        let flat = there.reshape([210]).unwrap();
        assert_eq!(flat.cuda_ptr().unwrap(), there.cuda_ptr().unwrap());
        assert_eq!(there.to_gpu(&device).unwrap().cuda_ptr().unwrap(), there.cuda_ptr().unwrap());
        let back = flat.to_cpu().unwrap().to_dtype(DType::F64).unwrap();
        let want = host.to_dtype(DType::F64).unwrap();
        assert_eq!(back.data::<f64>().unwrap(), want.data::<f64>().unwrap(), "{dtype}");
        let refused = there.data::<f32>().unwrap_err().to_string();
        assert!(refused.contains("to_cpu"), "{refused}");
    }
    assert!(x.cuda_ptr().unwrap_err().to_string().contains("to_gpu"));
}

/// An op without a kernel.
#[derive(Debug)]
struct Silent;

impl Op for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }
    fn output_shape(&self, inputs: &[Shape]) -> dtk::Result<Shape> {
        Ok(inputs[0])
    }
    fn forward(&self, inputs: &[&Tensor]) -> dtk::Result<Forward> {
        Ok(inputs[0].clone().into())
    }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }
    fn backward(&self, ctx: &Backward<'_>) -> dtk::Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(ctx.gy.clone())])
    }
    fn reference(&self, inputs: &[&Tensor]) -> dtk::Result<Tensor> {
        Ok(inputs[0].clone())
    }
    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }
}

#[test]
fn operations_say_what_they_lack() {
    let Some(device) = gpu::device() else { return };
    let x = normal(&[4, 8], 1).to_gpu(&device).unwrap();
    let e = ops::run(&Silent {}, &[&x]).err().expect("there is no kernel");
    assert!(e.is_device() && e.to_string().contains("silent has no CUDA kernel yet"), "{e}");
    let w = normal(&[3, 8], 2);
    let e = ops::run(&Linear {}, &[&x, &w]).err().expect("w is on the host");
    assert!(e.to_string().contains("different devices"), "{e}");
    let w = w.to_dtype(DType::Bf16).unwrap().to_gpu(&device).unwrap();
    let e = ops::run(&Linear {}, &[&x, &w]).err().expect("x is f32");
    assert!(e.is_dtype() && e.to_string().contains("all bf16 or all f32"), "{e}");
}

/// `y = silu(x w^T + b)`, its value and the gradients of x, w and b.
fn network(offload: Option<Offload>) -> Vec<Tensor> {
    let mut tape = Tape::new();
    if let Some(offload) = offload {
        tape = tape.offload(offload);
    }
    let leaves = [normal(&[6, 24], 1), normal(&[16, 24], 2), normal(&[16], 3)].map(|t| tape.leaf(t));
    let h = tape.apply(Linear {}, &[&leaves[0], &leaves[1], &leaves[2]]).unwrap();
    let y = tape.apply(Silu {}, &[&h]).unwrap();
    let seed = normal(&[6, 16], 4);
    let value = y.tensor().clone();
    let mut grads = tape.backward_from(vec![(y, seed)]).unwrap();
    let mut all = vec![value];
    all.extend(leaves.iter().map(|l| grads.take(l).expect("a gradient")));
    all
}

#[test]
fn single_operations_of_a_network_run_there() {
    let Some(device) = gpu::device() else { return };
    let host = network(None);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::Bf16, 3e-2)] {
        let there = network(Some(Offload::to(&device, dtype)));
        assert!(!device.take_launches().is_empty(), "nothing was launched");
        for (i, (got, want)) in there.iter().zip(&host).enumerate() {
            assert_eq!((got.device(), got.dtype(), got.shape()), (Device::Cpu, DType::F32, want.shape()));
            let (got, want) = (got.f32s().unwrap(), want.f32s().unwrap());
            let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let close = got.iter().zip(want).all(|(g, w)| (g - w).abs() <= tolerance * scale);
            assert!(close, "{dtype}: result {i} differs");
        }
    }
    gpu::clean(&device);
}

#[test]
fn parameters_go_there_and_come_back() {
    let Some(device) = gpu::device() else { return };
    let mut store = ParamStore::new();
    let mut b = store.builder();
    let conv = Conv2d::new(&mut b.pp("conv"), 4, 8, 3, 1, 1);
    BatchNorm2d::new(&mut b.pp("norm"), 8, 1.0);
    assert!(DeviceParams::new(&store, &device, DType::Bf16).is_err(), "there are no values yet");
    store.init(5).unwrap();
    let values = |s: &ParamStore| -> Vec<Vec<f64>> {
        let wide = |t: &Tensor| t.to_cpu().unwrap().to_dtype(DType::F64).unwrap().into_vec().unwrap();
        s.iter().map(|(_, p)| wide(p.value())).collect()
    };
    assert!(DeviceParams::new(&store, &device, DType::F16).err().unwrap().is_dtype());
    for dtype in [DType::F32, DType::Bf16] {
        let mut there = DeviceParams::new(&store, &device, dtype).unwrap();
        for (_, p) in there.store.iter() {
            let operand = p.name() == "conv.weight";
            let counter = p.name().ends_with("num_batches_tracked");
            assert_eq!(p.value().gpu().is_none(), counter, "{}", p.name());
            let want = if operand {
                dtype
            } else if counter {
                DType::I64
            } else {
                DType::F32
            };
            assert_eq!(p.value().dtype(), want, "{}", p.name());
        }
        let names: Vec<&str> = there.masters.iter().map(|(id, _)| store.get(*id).name()).collect();
        assert_eq!(names, ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]);
        let mut back = store.clone();
        back.init(0).unwrap();
        back.values_mut()
            .filter(|v| v.3.dtype() == DType::F32)
            .for_each(|v| *v.3 = Tensor::full(v.3.shape(), 9.0));
        there.download(&mut back).unwrap();
        assert_eq!(values(&back), values(&store), "masters are not rounded");

        // New values go to the same places.
        let places = |p: &DeviceParams| -> Vec<u64> {
            let kept = p.store.iter().filter_map(|(_, p)| p.value().cuda_ptr().ok());
            kept.chain(p.masters.iter().map(|(_, t)| t.cuda_ptr().unwrap())).collect()
        };
        let before = places(&there);
        let mut other = store.clone();
        other.values_mut().for_each(|v| {
            *v.3 = match v.3.dtype() {
                DType::F32 => normal(&v.3.shape(), 3),
                _ => Tensor::from_vec([0; 0], vec![7i64]).unwrap(),
            }
        });
        there.refresh_from(&other).unwrap();
        assert_eq!(places(&there), before);
        there.download(&mut back).unwrap();
        assert_eq!(values(&back), values(&other));
        let rounded = other.get(conv.weight()).value().to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
        assert_eq!(values(&there.store)[conv.weight().index()], rounded.data::<f64>().unwrap());
    }
    let mut small = ParamStore::new();
    Conv2d::new(&mut small.builder().pp("conv"), 4, 8, 3, 1, 1);
    let there = DeviceParams::new(&store, &device, DType::F32).unwrap();
    assert!(there.download(&mut small).unwrap_err().is_usage());
}
