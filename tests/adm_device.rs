//! The ADM U-Net on the simulated device, or on a card: every kind of block, early exit, deterministic encoding.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{assert_close, assert_rel_l2, max_abs};
use dtk::base::{DType, Philox};
use dtk::diffusion::{DiffusionConfig, Encoding, Respacing};
use dtk::distill::{DeviceTeacher, TapsConfig, Teacher, TeacherConfig, TeacherModel};
use dtk::gpu::Gpu;
use dtk::models::adm::{AdmConfig, AdmUnet, DeviceUnet, Tap, Taps, Time};
use dtk::nn::{Ctx, Init, ParamStore};
use dtk::tensor::Tensor;

/// Two levels, attention at both.
fn small() -> AdmConfig {
    AdmConfig {
        model_channels: 32,
        num_res_blocks: 1,
        channel_mult: vec![1.0, 2.0],
        attention_ds: vec![2],
        num_head_channels: Some(32),
        ..AdmConfig::imagenet256()
    }
}

/// Gives every parameter a random value: the layers that start at zero would hide everything behind them.
fn fill(store: &mut ParamStore) -> dtk::Result<()> {
    store.init(3)?;
    let ids: Vec<_> = store.iter().map(|(id, p)| (id, p.name().to_string(), p.value().shape())).collect();
    for (id, name, shape) in ids {
        let noise = Init::Normal(0.05).make(shape, DType::F32, Philox::new(4).fold_str(&name));
        let is_gain = shape.len() == 1 && name.ends_with("weight");
        let value = noise.f32s()?.iter().map(|v| if is_gain { 1.0 + v } else { *v }).collect();
        store.set(id, Tensor::from_vec(shape, value)?)?;
    }
    Ok(())
}

fn network(config: &AdmConfig) -> (AdmUnet, ParamStore) {
    let mut store = ParamStore::new();
    let net = AdmUnet::new(&mut store.builder(), config).unwrap();
    fill(&mut store).unwrap();
    (net, store)
}

fn images(shape: [usize; 4]) -> Tensor {
    Init::Normal(0.7).make(shape.into(), DType::F32, Philox::new(8))
}

/// Every map of the decoder, not in the order of computation, and one of them twice.
fn all_taps(config: &AdmConfig) -> Taps {
    let blocks = 0..config.decoder().len();
    let mut taps: Vec<Tap> = blocks.flat_map(|j| [Tap::post_up(j), Tap::pre_up(j)]).collect();
    taps.reverse();
    taps.push(taps[0]);
    Taps::new(taps)
}

fn home(t: &Tensor) -> Tensor {
    t.to_cpu().unwrap().to_dtype(DType::F32).unwrap()
}

fn assert_same(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (home(got), want.f32s().unwrap());
    assert_close(what, got.f32s().unwrap(), want, 1e-4, 2e-5 * max_abs(want));
}

/// Maps and prediction of a network there and here.
fn compare(gpu: &Gpu, what: &str, config: &AdmConfig, label: Option<usize>) {
    let (net, store) = network(config);
    let folded = net.fold_time(&store, 150.0, label).unwrap();
    let x = images([2, 8, 12, config.in_channels]);
    let taps = all_taps(config);
    let mut ctx = Ctx::inference(&store);
    let input = ctx.constant(x.clone());
    let time = Time::Folded(&folded);
    let maps = net.features(&mut ctx, &input, &time, None, &taps, false).unwrap();
    let prediction = net.forward(&mut ctx, &input, &time, None).unwrap();

    let there = net_on(gpu, &net, &store, DType::F32, &taps, false);
    let time = there.fold(&folded).unwrap();
    let x = x.to_gpu(gpu).unwrap();
    let got = there.features(&x, &time).unwrap();
    assert_eq!(got.len(), maps.len());
    for ((tap, got), want) in taps.as_slice().iter().zip(&got).zip(&maps) {
        assert_same(&format!("{what}: {tap}"), got, want.tensor());
    }
    assert_same(what, &there.forward(&x, &time).unwrap(), prediction.tensor());
    // Again the same bits.
    let again = there.features(&x, &time).unwrap();
    assert!(got.iter().zip(&again).all(|(a, b)| home(a).f32s().unwrap() == home(b).f32s().unwrap()));
    gpu::clean_after_launches(gpu);
}

fn net_on(
    gpu: &Gpu,
    net: &AdmUnet,
    store: &ParamStore,
    dtype: DType,
    taps: &Taps,
    early_exit: bool,
) -> DeviceUnet {
    DeviceUnet::new(net, store, gpu, dtype, taps, early_exit).unwrap()
}

#[test]
fn adm_device_resblock_updown() {
    let Some(gpu) = gpu::device() else { return };
    compare(&gpu, "scale and shift", &small(), None);
    compare(&gpu, "added embedding", &AdmConfig { use_scale_shift_norm: false, ..small() }, None);
}

#[test]
fn adm_device_resampling_layers() {
    let Some(gpu) = gpu::device() else { return };
    let layers = || AdmConfig { resblock_updown: false, use_new_attention_order: true, ..small() };
    compare(&gpu, "convolutions", &layers(), None);
    compare(&gpu, "plain", &AdmConfig { conv_resample: false, learn_sigma: false, ..layers() }, None);
}

#[test]
fn adm_device_other_networks() {
    let Some(gpu) = gpu::device() else { return };
    let conditional = AdmConfig { num_classes: Some(5), dropout: 0.3, in_channels: 4, ..small() };
    compare(&gpu, "class", &conditional, Some(3));
    // The decoder gets wider where the image does, and attends with other heads.
    let narrow = AdmConfig {
        channel_mult: vec![2.0, 1.0],
        attention_ds: vec![1],
        num_head_channels: None,
        num_heads: 2,
        num_heads_upsample: Some(4),
        ..small()
    };
    compare(&gpu, "wider above", &narrow, None);
}

#[test]
fn adm_device_early_exit_needs_less() {
    if gpu::device().is_none() {
        return;
    }
    let config = small();
    let (net, store) = network(&config);
    let folded = net.fold_time(&store, 20.0, None).unwrap();
    let taps = Taps::dreamteacher(&config).unwrap();
    let x = images([1, 16, 16, 3]);
    // Bytes of the weights, bytes at the peak, and the maps.
    let run = |early_exit: bool, keeps: bool| -> (u64, u64, Vec<Tensor>) {
        let gpu = gpu::device().unwrap();
        let mut there = net_on(&gpu, &net, &store, DType::Bf16, &taps, early_exit && !keeps);
        if keeps {
            there = there.exit_early();
        }
        let time = there.fold(&folded).unwrap();
        let x = x.to_dtype(DType::Bf16).unwrap().to_gpu(&gpu).unwrap();
        let maps = there.features(&x, &time).unwrap().iter().map(home).collect();
        assert_eq!(there.forward(&x, &time).is_err(), early_exit && !keeps);
        let memory = gpu.memory();
        (memory.tag("teacher weight").unwrap().live_bytes, memory.peak_bytes, maps)
    };
    let (weights, peak, maps) = run(true, false);
    let (all_weights, whole_peak, same) = run(false, false);
    let (kept_weights, _, again) = run(true, true);
    assert!(weights < all_weights && kept_weights == all_weights, "{weights} {all_weights}");
    assert!(peak - weights < whole_peak - all_weights, "{peak} {whole_peak}");
    for other in [same, again] {
        assert!(maps.iter().zip(&other).all(|(a, b)| a.f32s().unwrap() == b.f32s().unwrap()));
    }
}

#[test]
fn adm_device_encodes_deterministically() {
    let Some(gpu) = gpu::device() else { return };
    let config = TeacherConfig {
        model: TeacherModel::Config(Box::new(small())),
        taps: TapsConfig::Preset("dreamteacher".into()),
        ..TeacherConfig::default()
    };
    let clean = {
        let mut x = images([2, 8, 8, 3]);
        x.data_mut::<f32>().unwrap().iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
        x
    };
    let stochastic = DiffusionConfig::default();
    let kept = vec![0, 60, stochastic.t, 400];
    let ddim = DiffusionConfig {
        encoding: Encoding::Ddim,
        ddim_steps: Respacing::Steps(kept),
        ..stochastic.clone()
    };
    for diffusion in [stochastic, ddim] {
        let teacher = Teacher::new(&config, &diffusion, 11, fill).unwrap();
        let want = teacher.features(&clean, 4, &[5, 9]).unwrap();
        let f32s = DeviceTeacher::new(&teacher, &gpu, DType::F32).unwrap();
        let bf16 = DeviceTeacher::new(&teacher, &gpu, DType::Bf16).unwrap();
        assert_eq!(f32s.taps(), teacher.taps());
        let (close, rounded) =
            (f32s.features(&clean, 4, &[5, 9]).unwrap(), bf16.features(&clean, 4, &[5, 9]).unwrap());
        for ((close, rounded), want) in close.iter().zip(&rounded).zip(&want) {
            let what = format!("{:?}", diffusion.encoding);
            assert_eq!((close.dtype(), rounded.dtype()), (DType::F32, DType::Bf16));
            assert_rel_l2(&what, home(close).f32s().unwrap(), want.f32s().unwrap(), 1e-4);
            assert_rel_l2(&what, home(rounded).f32s().unwrap(), want.f32s().unwrap(), 5e-2);
        }
        assert!(f32s.encode(&clean, 4, &[5]).unwrap_err().is_shape());
    }
    gpu::clean_after_launches(&gpu);
}

#[test]
fn adm_device_refuses_what_does_not_fit() {
    let Some(gpu) = gpu::device() else { return };
    let config = small();
    let (net, store) = network(&config);
    let taps = Taps::dreamteacher(&config).unwrap();
    let make = |dtype| DeviceUnet::new(&net, &store, &gpu, dtype, &taps, true);
    assert!(make(DType::F16).err().unwrap().is_dtype());
    let there = make(DType::F32).unwrap();
    let time = there.fold(&net.fold_time(&store, 1.0, None).unwrap()).unwrap();
    let x = images([1, 8, 8, 3]);
    assert!(there.features(&x, &time).unwrap_err().remedy().unwrap().contains("to_gpu"));
    let narrow = x.to_dtype(DType::Bf16).unwrap().to_gpu(&gpu).unwrap();
    assert!(there.features(&narrow, &time).unwrap_err().to_string().contains("f32"));
    let odd = images([1, 8, 7, 3]).to_gpu(&gpu).unwrap();
    assert!(there.features(&odd, &time).unwrap_err().is_shape());
    let other = AdmConfig { use_scale_shift_norm: false, ..small() };
    let (other, other_store) = network(&other);
    let elsewhere = other.fold_time(&other_store, 1.0, None).unwrap();
    assert!(there.fold(&elsewhere).err().unwrap().is_usage());
    let empty = {
        let mut store = ParamStore::new();
        AdmUnet::new(&mut store.builder(), &config).unwrap();
        store
    };
    assert!(DeviceUnet::new(&net, &empty, &gpu, DType::F32, &taps, true).is_err());
}
