//! Bytes that the operations without a tape move on sizes that fill their chunks, held against those that they need.

use crate::cases::{Ran, launched, with_device};
use crate::counters::Counters;
use dtk::base::{DType, Philox};
use dtk::gpu::Gpu;
use dtk::ops::untaped::encode_images::EncodeImages;
use dtk::ops::untaped::q_sample::QSample;
use dtk::optim::device::{DeviceOptimizer, DeviceParam};
use dtk::optim::{EmaConfig, LambConfig, LarsConfig, OptimizerConfig, SgdConfig};
use dtk::tensor::Tensor;

/// Most bytes moved, of those needed.
const MOVED: f64 = 1.15;
/// Least share of the accesses that are 16 bytes wide: the others read a block's tables, and weigh most where there is little
/// else to read.
const WIDE: f64 = 0.7;
/// Elements of the parameter: eight whole chunks.
const ELEMENTS: usize = 8 * 8192;

/// Holds the launches of an entry against `needed` bytes each.
fn hold(ran: &[Ran], entry: &str, needed: usize) {
    let of_entry: Vec<&Counters> =
        ran.iter().filter(|r| r.kernel.entry == entry).filter_map(|r| r.counters.as_ref()).collect();
    for c in of_entry {
        let moved = (c.loads.moved + c.stores.moved) as f64 / needed as f64;
        assert!(moved <= MOVED, "{entry}: {moved:.3} bytes moved for 1");
        let all: u64 = c.widths.iter().map(|(_, n)| n).sum();
        let wide: u64 = c.widths.iter().filter(|(w, _)| *w >= 16).map(|(_, n)| n).sum();
        let share = wide as f64 / all as f64;
        assert!(
            share >= WIDE || ["encode_images_fwd", "q_sample_fwd"].contains(&entry),
            "{entry}: {share:.2} of the accesses are wide"
        );
    }
    assert!(ran.iter().any(|r| r.kernel.entry == entry), "{entry} was not launched");
}

/// What one step of an optimiser launches.
fn step(gpu: &Gpu, config: &OptimizerConfig) -> Vec<Ran> {
    let param = DeviceParam {
        name: "w".into(),
        value: Tensor::full([ELEMENTS], 0.5).to_gpu(gpu).unwrap(),
        shadow: Some(Tensor::empty_gpu([ELEMENTS], DType::Bf16, gpu, "shadow").unwrap()),
        decay: true,
        lr_scale: 1.0,
    };
    let ema = Some(EmaConfig::default());
    let mut optimizer = DeviceOptimizer::new(config, gpu, vec![param], Some(1.0), ema).unwrap();
    let scalars = optimizer.scalars(0.1).unwrap();
    optimizer.upload_scalars(&scalars).unwrap();
    let grad = Tensor::full([ELEMENTS], 0.25).to_gpu(gpu).unwrap();
    launched(gpu, "one step", || {
        optimizer.enqueue_accumulate(gpu, &[Some(&grad)], true)?;
        optimizer.enqueue_update(gpu, 1, None)
    })
}

#[test]
fn updates_move_the_bytes_they_need() {
    let config = |name: &str| match name {
        "adamw" => OptimizerConfig::default(),
        "lamb" => OptimizerConfig::Lamb(LambConfig::default()),
        "lars" => OptimizerConfig::Lars(LarsConfig { weight_decay: 0.1, ..LarsConfig::default() }),
        _ => OptimizerConfig::Sgd(SgdConfig::default()),
    };
    // Bytes for an element.
    let entries: [(&str, &[(&str, usize)]); 4] = [
        ("adamw", &[("adamw_update", 30), ("accumulate_add", 8), ("ema_update", 12)]),
        ("lamb", &[("lamb_moments", 24), ("lamb_update", 18)]),
        ("lars", &[("lars_norms", 4), ("lars_update", 22)]),
        ("sgd", &[("sgd_update", 22)]),
    ];
    for (name, entries) in entries {
        let Some(ran) = with_device(|gpu| step(gpu, &config(name))) else { return };
        entries.iter().for_each(|(entry, bytes)| hold(&ran, entry, bytes * ELEMENTS));
    }
}

#[test]
fn inputs_move_the_bytes_they_need() {
    for dtype in [DType::F32, DType::Bf16] {
        let (n, side) = (2, 32);
        let op = EncodeImages {
            height: side,
            width: side,
            dtype,
            mean: [0.5; 3],
            std: [0.25; 3],
            signal: 0.8,
            noise: 0.6,
        };
        let bytes: Vec<u8> = (0..n * side * side * 3).map(|i| i as u8).collect();
        let keys: Vec<u32> = (0..n as u64).flat_map(|i| Philox::new(i).words()).collect();
        let ran = with_device(|gpu| {
            let pixels = Tensor::from_vec([n, side, side, 3], bytes).unwrap().to_gpu(gpu).unwrap();
            let keys: Vec<u8> = keys.iter().flat_map(|w| w.to_le_bytes()).collect();
            let keys = Tensor::from_vec([n, 16], keys).unwrap().to_gpu(gpu).unwrap();
            let levels = Tensor::full([n, 2], 0.5).to_gpu(gpu).unwrap();
            let mut ran = launched(gpu, "inputs", || op.run(gpu, &pixels, None, Some(&keys)));
            let sample = QSample { dtype, images: true };
            ran.extend(launched(gpu, "noisy inputs", || sample.run(gpu, &pixels, &keys, &levels)));
            ran
        });
        let Some(ran) = ran else { return };
        hold(&ran, "encode_images_fwd", n * side * side * 3 * (1 + 2 * dtype.size()));
        hold(&ran, "q_sample_fwd", n * side * side * 3 * (9 + dtype.size()));
    }
}
