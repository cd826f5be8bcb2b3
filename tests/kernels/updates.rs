//! The optimisers on the device against those on the CPU: trajectories, states that go over from one to the other, steps that
//! are not finite, graphs.

use crate::cases::with_device;
use crate::counters;
use dtk::base::{DType, Philox};
use dtk::gpu::Gpu;
use dtk::ops::check::{Limit, compare};
use dtk::optim::device::{DeviceOptimizer, DeviceParam};
use dtk::optim::{
    AdamWConfig, Ema, EmaConfig, LambConfig, LarsConfig, Optimizer, OptimizerConfig, SgdConfig, Slot,
    StepStats, clip_grad_norm,
};
use dtk::tensor::Tensor;
use std::collections::BTreeMap;

/// Sizes around the length of a chunk: less, exactly, several and a rest, one, none.
const SIZES: [usize; 5] = [7, 8192, 2 * 8192 + 5, 1, 0];
const LR: f64 = 0.01;
/// Off the CPU's values by so much of the largest: the same f32 arithmetic, with fused multiplications.
const TOLERANCE: f64 = 2e-6;

fn configs() -> Vec<OptimizerConfig> {
    vec![
        OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.05, ..AdamWConfig::default() }),
        OptimizerConfig::Lamb(LambConfig { weight_decay: 0.05, ..LambConfig::default() }),
        OptimizerConfig::Lamb(LambConfig {
            bias_correction: false,
            max_grad_norm: None,
            trust_clip: true,
            always_adapt: true,
            ..LambConfig::default()
        }),
        OptimizerConfig::Lars(LarsConfig { weight_decay: 0.05, nesterov: true, ..LarsConfig::default() }),
        OptimizerConfig::Lars(LarsConfig { apex: true, trust_clip: true, ..LarsConfig::default() }),
        OptimizerConfig::Sgd(SgdConfig { weight_decay: 0.05, dampening: 0.1, ..SgdConfig::default() }),
        OptimizerConfig::Sgd(SgdConfig { nesterov: true, ..SgdConfig::default() }),
    ]
}

fn random(seed: u64, i: usize) -> Tensor {
    let mut v = vec![0.0; SIZES[i]];
    Philox::new(seed).fold(i as u64).fill_normal(&mut v);
    Tensor::from_vec([SIZES[i]], v).unwrap()
}

/// Tensors of all sizes.
fn all(seed: u64) -> Vec<Tensor> {
    (0..SIZES.len()).map(|i| random(seed, i)).collect()
}

fn name(i: usize) -> String {
    format!("p{i}")
}

fn decays(i: usize) -> bool {
    i != 1
}

fn lr_scale(i: usize) -> f32 {
    if i == 2 { 0.5 } else { 1.0 }
}

/// The CPU's way.
struct Host {
    optimizer: Box<dyn Optimizer>,
    values: Vec<Tensor>,
    clip: Option<f64>,
    ema: Option<Ema>,
}

impl Host {
    fn new(config: &OptimizerConfig, clip: Option<f64>, ema: Option<EmaConfig>) -> Host {
        let values = all(1);
        let named: Vec<(String, Tensor)> = (0..SIZES.len()).map(|i| (name(i), values[i].clone())).collect();
        let ema = ema.map(|c| Ema::new(c, named.iter().map(|(n, t)| (n.as_str(), t))).unwrap());
        Host { optimizer: config.build().unwrap(), values, clip, ema }
    }

    fn step(&mut self, mut grads: Vec<Tensor>) -> StepStats {
        let mut of_clip: Vec<&mut Tensor> = grads.iter_mut().collect();
        let norm = self.clip.map(|max| clip_grad_norm(&mut of_clip, max).unwrap());
        let names: Vec<String> = (0..SIZES.len()).map(name).collect();
        let mut slots: Vec<Slot<'_>> = Vec::new();
        for (i, (value, grad)) in self.values.iter_mut().zip(&grads).enumerate() {
            slots.push(Slot { name: &names[i], value, grad, decay: decays(i), lr_scale: lr_scale(i) });
        }
        let stats = self.optimizer.step(LR, &mut slots).unwrap();
        if let Some(ema) = &mut self.ema {
            ema.update(names.iter().map(String::as_str).zip(&self.values)).unwrap();
        }
        StepStats { grad_norm: norm.unwrap_or(stats.grad_norm), ..stats }
    }
}

/// The device's way.
struct There {
    gpu: Gpu,
    optimizer: DeviceOptimizer,
    params: Vec<DeviceParam>,
}

impl There {
    fn new(gpu: &Gpu, config: &OptimizerConfig, clip: Option<f64>, ema: Option<EmaConfig>) -> There {
        Self::of(gpu, config, clip, ema, all(1))
    }

    fn of(
        gpu: &Gpu,
        config: &OptimizerConfig,
        clip: Option<f64>,
        ema: Option<EmaConfig>,
        values: Vec<Tensor>,
    ) -> There {
        let param = |(i, value): (usize, Tensor)| DeviceParam {
            name: name(i),
            value: value.to_gpu(gpu).unwrap(),
            shadow: (i % 2 == 0).then(|| value.to_dtype(DType::Bf16).unwrap().to_gpu(gpu).unwrap()),
            decay: decays(i),
            lr_scale: lr_scale(i),
        };
        let params: Vec<DeviceParam> = values.into_iter().enumerate().map(param).collect();
        let optimizer = DeviceOptimizer::new(config, gpu, params.clone(), clip, ema).unwrap();
        There { gpu: gpu.clone(), optimizer, params }
    }

    fn begin(&mut self) {
        let scalars = self.optimizer.scalars(LR).unwrap();
        self.optimizer.upload_scalars(&scalars).unwrap();
    }

    fn upload(&self, grads: &[Tensor]) -> Vec<Tensor> {
        grads.iter().map(|g| g.to_gpu(&self.gpu).unwrap()).collect()
    }

    fn step(&mut self, grads: &[Tensor], loss: f32) {
        self.begin();
        let (grads, loss) = (self.upload(grads), Tensor::scalar(loss).to_gpu(&self.gpu).unwrap());
        let grads: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
        self.optimizer.enqueue(&self.gpu, &grads, Some(&loss)).unwrap();
    }

    fn values(&self) -> Vec<Tensor> {
        self.params.iter().map(|p| p.value.to_cpu().unwrap()).collect()
    }

    fn norms(&self) -> Vec<f32> {
        self.optimizer.norms().to_cpu().unwrap().into_vec().unwrap()
    }

    /// Everything that a step changes, as bits.
    fn bits(&self) -> Vec<Vec<u64>> {
        let bits = |t: &Tensor| -> Vec<u64> {
            t.to_dtype(DType::F64).unwrap().data::<f64>().unwrap().iter().map(|v| v.to_bits()).collect()
        };
        let shadows =
            self.params.iter().filter_map(|p| p.shadow.as_ref()).map(|s| bits(&s.to_cpu().unwrap()));
        let state = self.optimizer.state().unwrap();
        let average = self.optimizer.ema_state().unwrap().unwrap_or_default();
        let tensors = state.iter().chain(&average).filter(|(k, _)| *k != "step").map(|(_, t)| bits(t));
        self.values().iter().map(bits).chain(shadows).chain(tensors).collect()
    }
}

fn wide(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().data::<f64>().unwrap().to_vec()
}

fn near(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    if want.elems() > 0 {
        compare(&wide(got), &wide(want), Limit { of_max: tolerance, of_value: 0.0 })
            .unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

/// States have the same names, shapes, types, and about the same values.
fn same_state(what: &str, got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>) {
    assert!(got.keys().eq(want.keys()), "{what}: {:?} and {:?}", got.keys(), want.keys());
    for (key, t) in want {
        assert_eq!(got[key].dtype(), t.dtype(), "{what}: {key}");
        near(&format!("{what}: {key}"), &got[key], t, TOLERANCE);
    }
}

/// Uses the device; panics if the simulator finds anything.
fn on_device(what: &str, f: impl FnOnce(&Gpu)) {
    with_device(|gpu| {
        gpu.take_launches();
        gpu.report_clear();
        f(gpu);
        gpu.take_launches();
        counters::take(gpu, what);
    });
}

#[test]
fn trajectories_are_those_of_the_cpu() {
    for (i, config) in configs().iter().enumerate() {
        // Clipped and not; with an average and without.
        let clip = (i % 2 == 0).then_some(50.0);
        let ema = (i < 4).then_some(EmaConfig { decay: 0.9, warmup: i % 2 == 1 });
        on_device("trajectories", |gpu| {
            let mut host = Host::new(config, clip, ema.clone());
            let mut there = There::new(gpu, config, clip, ema.clone());
            assert_eq!(there.optimizer.state().unwrap().len(), 1, "there is no state before the first step");
            for step in 0..3 {
                let stats = host.step(all(10 + step));
                there.step(&all(10 + step), 1.0);
                for (k, (got, want)) in there.values().iter().zip(&host.values).enumerate() {
                    near(&format!("{config:?}, step {step}, {}", name(k)), got, want, TOLERANCE);
                }
                let norms = there.norms();
                for (got, want) in
                    norms.iter().zip([stats.grad_norm, stats.update_norm, stats.param_norm, 1.0])
                {
                    assert!((f64::from(*got) - want).abs() <= 1e-4 * want, "{config:?}: {norms:?} {stats:?}");
                }
            }
            for p in &there.params {
                let Some(shadow) = &p.shadow else { continue };
                let want = p.value.to_cpu().unwrap().to_dtype(DType::Bf16).unwrap();
                let got = shadow.to_cpu().unwrap();
                assert!(wide(&got) == wide(&want), "{config:?}: shadow of {}", p.name);
            }
            same_state("state", &there.optimizer.state().unwrap(), &host.optimizer.state());
            let average = there.optimizer.ema_state().unwrap();
            assert_eq!(average.is_some(), ema.is_some());
            if let (Some(got), Some(want)) = (average, &host.ema) {
                same_state("average", &got, &want.state());
            }
        });
    }
}

#[test]
fn parts_of_a_batch_are_averaged() {
    on_device("parts", |gpu| {
        let config = &configs()[0];
        let (mut host, mut there) =
            (Host::new(config, Some(1.0), None), There::new(gpu, config, Some(1.0), None));
        for step in 0..2 {
            let parts = [all(20 + step), all(30 + step), all(40 + step)];
            let mean = (0..SIZES.len()).map(|i| {
                let mut sum = parts[0][i].f32s().unwrap().to_vec();
                for part in &parts[1..] {
                    sum.iter_mut().zip(part[i].f32s().unwrap()).for_each(|(s, g)| *s += g);
                }
                Tensor::from_vec([SIZES[i]], sum.iter().map(|s| s * (1.0 / 3.0)).collect()).unwrap()
            });
            host.step(mean.collect());
            there.begin();
            for (i, part) in parts.iter().enumerate() {
                let grads = there.upload(part);
                let grads: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
                there.optimizer.enqueue_accumulate(gpu, &grads, i == 0).unwrap();
            }
            there.optimizer.enqueue_update(gpu, 3, None).unwrap();
        }
        for (got, want) in there.values().iter().zip(&host.values) {
            near("mean of three parts", got, want, TOLERANCE);
        }
    });
}

#[test]
fn states_go_over_to_the_device_and_back() {
    for config in configs() {
        let ema = Some(EmaConfig { decay: 0.9, warmup: true });
        on_device("states", |gpu| {
            let mut host = Host::new(&config, None, ema.clone());
            for step in 0..2 {
                host.step(all(10 + step));
            }
            let mut there = There::of(gpu, &config, None, ema.clone(), host.values.clone());
            there.optimizer.load_state(&host.optimizer.state()).unwrap();
            there.optimizer.load_ema_state(&host.ema.as_ref().unwrap().state()).unwrap();
            assert_eq!(there.optimizer.step_count(), 2);
            same_state("carried over", &there.optimizer.state().unwrap(), &host.optimizer.state());

            // On to step 3 on both, then back to the CPU.
            host.step(all(12));
            there.step(&all(12), 1.0);
            let mut back = Host::new(&config, None, ema.clone());
            back.values = there.values();
            let shapes: Vec<(String, _)> =
                back.values.iter().enumerate().map(|(i, t)| (name(i), t.shape())).collect();
            let shapes: Vec<_> = shapes.iter().map(|(n, s)| (n.as_str(), *s)).collect();
            back.optimizer.load_state(&shapes, &there.optimizer.state().unwrap()).unwrap();
            let average = back.ema.as_mut().unwrap();
            average.load_state(&there.optimizer.ema_state().unwrap().unwrap()).unwrap();
            host.step(all(13));
            back.step(all(13));
            for (got, want) in back.values.iter().zip(&host.values) {
                near(&format!("{config:?}"), got, want, TOLERANCE);
            }
            same_state("average", &back.ema.unwrap().state(), &host.ema.as_ref().unwrap().state());
        });
    }
}

#[test]
fn resume_is_bitwise() {
    for config in configs() {
        let ema = Some(EmaConfig { decay: 0.9, warmup: true });
        on_device("resume", |gpu| {
            let mut whole = There::new(gpu, &config, Some(1.0), ema.clone());
            (0..2).for_each(|s| whole.step(&all(10 + s), 1.0));
            let mut second = There::of(gpu, &config, Some(1.0), ema.clone(), whole.values());
            second.optimizer.load_state(&whole.optimizer.state().unwrap()).unwrap();
            second.optimizer.load_ema_state(&whole.optimizer.ema_state().unwrap().unwrap()).unwrap();
            whole.step(&all(12), 1.0);
            second.step(&all(12), 1.0);
            assert_eq!(whole.bits(), second.bits(), "{config:?}");
        });
    }
}

#[test]
fn what_is_not_finite_changes_nothing() {
    for config in configs() {
        let ema = Some(EmaConfig { decay: 0.9, warmup: false });
        on_device("not finite", |gpu| {
            let mut there = There::new(gpu, &config, Some(1.0), ema.clone());
            there.step(&all(10), 1.0);
            let before = there.bits();
            let spoilt = |value: f32| {
                let mut grads = all(11);
                grads[2].data_mut::<f32>().unwrap()[8192 + 3] = value;
                grads
            };
            let bad = [(spoilt(f32::NAN), 1.0), (spoilt(f32::NEG_INFINITY), 1.0), (all(11), f32::NAN)];
            for (grads, loss) in bad {
                there.step(&grads, loss);
                assert_eq!(before, there.bits(), "{config:?}");
                let norms = there.norms();
                assert!(norms[1] == 0.0 && norms[2].is_nan() && norms[3] == 0.0, "{norms:?}");
                there.optimizer.take_back();
            }
            assert_eq!(there.optimizer.step_count(), 1);
            // Gradients whose squares are beyond f32 are finite all the same.
            there.step(&spoilt(1e30), 1.0);
            assert_ne!(before, there.bits(), "{config:?}");
            assert_eq!(there.norms()[3], 1.0);
        });
    }
}

#[test]
fn a_parameter_without_a_gradient_stays() {
    for config in configs() {
        on_device("absent", |gpu| {
            let mut there = There::new(gpu, &config, None, None);
            let before = there.values();
            there.begin();
            let grads = there.upload(&all(10));
            let mut some: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
            some[1] = None;
            there.optimizer.enqueue(gpu, &some, None).unwrap();
            for (i, (old, new)) in before.iter().zip(there.values()).enumerate() {
                let same = wide(old) == wide(&new);
                assert_eq!(same, i == 1 || SIZES[i] == 0, "{config:?}: {}", name(i));
            }
        });
    }
}

#[test]
fn others_are_averaged_too() {
    on_device("others", |gpu| {
        let config = OptimizerConfig::default();
        let There { optimizer, params, gpu } =
            There::new(gpu, &config, None, Some(EmaConfig { decay: 0.75, warmup: false }));
        let statistics = Tensor::full([3], 1.0).to_gpu(&gpu).unwrap();
        let optimizer = optimizer.averaging(vec![("bn.running_mean".into(), statistics.clone())]).unwrap();
        let mut there = There { optimizer, params, gpu: gpu.clone() };
        let new = Tensor::full([3], 5.0).to_gpu(&gpu).unwrap();
        let (dtk::tensor::Storage::Cuda(from), dtk::tensor::Storage::Cuda(to)) =
            (new.storage(), statistics.storage())
        else {
            panic!("both are on the device")
        };
        gpu.copy(from.buffer(), to.buffer()).unwrap();
        there.step(&all(10), 1.0);
        let state = there.optimizer.ema_state().unwrap().unwrap();
        assert_eq!(state["average.bn.running_mean"].f32s().unwrap(), [2.0; 3]);
        assert_eq!(state.len(), SIZES.len() + 2);
    });
}

#[test]
fn a_captured_step_takes_new_scalars_and_gradients() {
    for config in [&configs()[0], &configs()[3]] {
        on_device("captured", |gpu| {
            let ema = Some(EmaConfig { decay: 0.9, warmup: true });
            let mut plain = There::new(gpu, config, Some(1.0), ema.clone());
            plain.step(&all(10), 1.0);
            let mut captured = There::new(gpu, config, Some(1.0), ema.clone());
            let (grads, loss) = (captured.upload(&all(10)), Tensor::scalar(1.0).to_gpu(gpu).unwrap());
            captured.step(&all(10), 1.0);
            let some: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
            let mut graph =
                gpu.stream().capture(|| captured.optimizer.enqueue(gpu, &some, Some(&loss))).unwrap();
            for step in 1..3 {
                plain.step(&all(10 + step), 1.0);
                let new = captured.upload(&all(10 + step));
                for (from, to) in new.iter().zip(&grads) {
                    let (dtk::tensor::Storage::Cuda(from), dtk::tensor::Storage::Cuda(to)) =
                        (from.storage(), to.storage())
                    else {
                        panic!("both are on the device")
                    };
                    gpu.copy(from.buffer(), to.buffer()).unwrap();
                }
                captured.begin();
                graph.launch(gpu.stream()).unwrap();
            }
            assert_eq!(plain.bits(), captured.bits(), "{config:?}");
        });
    }
}
