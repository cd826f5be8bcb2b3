//! The ADM U-Net: public keys and parameter counts, cost and memory of the published models, training.

mod common;

use common::{assert_close, max_abs};
use dtk::base::{DType, Philox};
use dtk::models::adm::{AdmConfig, AdmUnet, Tap, Taps, Time, timestep_embedding};
use dtk::nn::{Ctx, Init, ParamStore};
use dtk::tensor::{Ledger, Tensor};
use std::collections::BTreeSet;

fn build(config: &AdmConfig) -> (AdmUnet, ParamStore) {
    let mut store = ParamStore::new();
    let net = AdmUnet::new(&mut store.builder(), config).unwrap();
    (net, store)
}

/// A network whose parameters are all random: the layers that start at zero would hide everything behind them.
fn randomised(config: &AdmConfig) -> (AdmUnet, ParamStore) {
    let (net, mut store) = build(config);
    store.init(3).unwrap();
    let ids: Vec<_> = store.iter().map(|(id, p)| (id, p.name().to_string(), p.value().shape())).collect();
    for (id, name, shape) in ids {
        let gain =
            name.ends_with("norm.weight") || name.ends_with("layers.0.weight") || name == "out.0.weight";
        let noise = Init::Normal(0.05).make(shape, DType::F32, Philox::new(4).fold_str(&name));
        let value = noise.f32s().unwrap().iter().map(|v| if gain { 1.0 + v } else { *v }).collect();
        store.set(id, Tensor::from_vec(shape, value).unwrap()).unwrap();
    }
    (net, store)
}

fn image(shape: [usize; 4]) -> Tensor {
    Init::Normal(0.7).make(shape.into(), DType::F32, Philox::new(8))
}

fn assert_keys(config: &AdmConfig, list: &str) {
    let (_, store) = build(config);
    let mut lines = list.lines();
    let header = format!("params {} keys {}", store.parameter_count(), store.len());
    assert_eq!(lines.next(), Some(&*header));
    for ((_, p), line) in store.iter().zip(lines) {
        assert_eq!(format!("{} {}", p.name(), p.file_shape()), line);
    }
}

#[test]
fn adm_keys_are_the_public_ones() {
    assert_keys(&AdmConfig::imagenet256(), include_str!("fixtures/keys/adm256.txt"));
    assert_keys(&AdmConfig::bdd100k_128x256(), include_str!("fixtures/keys/bdd.txt"));
    let conditional = build(&AdmConfig::imagenet256_cond()).1;
    assert_eq!(conditional.parameter_count(), 552_814_086 + 1000 * 1024);
    let label = conditional.find("label_emb.weight").unwrap();
    assert_eq!(&*conditional.get(label).file_shape(), &[1000, 1024]);
    let other_reading = AdmConfig { attention_ds: vec![8, 16], ..AdmConfig::bdd100k_128x256() };
    assert_eq!(build(&other_reading).1.parameter_count(), 112_212_230);
}

#[test]
fn adm_starts_as_guided_diffusion_does() {
    let (_, mut store) = build(&AdmConfig { attention_ds: vec![1], ..AdmConfig::tiny() });
    store.init(1).unwrap();
    for (_, p) in store.iter() {
        let n = p.name();
        let v = p.value().f32s().unwrap();
        let zero = ["out_layers.3.", "proj_out.", "out.2."].iter().any(|z| n.contains(z));
        let norm = ["in_layers.0.", "out_layers.0.", "norm.", "out.0."].iter().any(|z| n.contains(z));
        let bias = n.ends_with("bias");
        match (zero, norm) {
            (true, _) => assert!(v.iter().all(|&x| x == 0.0), "{n}"),
            (_, true) => assert!(v.iter().all(|&x| x == if bias { 0.0 } else { 1.0 }), "{n}"),
            _ => {
                let fan_in = if bias { continue } else { p.file_shape()[1..].iter().product::<usize>() };
                let bound = 1.0 / (fan_in as f32).sqrt();
                assert!(v.iter().all(|x| x.abs() <= bound) && max_abs(v) > f64::from(0.9 * bound), "{n}");
            }
        }
    }
}

/// GMAC of all steps, and the peak of live activations in bytes.
fn plan(config: &AdmConfig, size: [usize; 2], early_exit: Option<&Taps>, folded: bool) -> (f64, usize) {
    let (net, store) = build(config);
    let ledger = Ledger::new();
    let mut ctx = Ctx::inference(&store).trace().planning(&ledger);
    let x = ctx.input(&Tensor::meta([1, size[0], size[1], 3], DType::F32, Some(&ledger)));
    let constants = folded.then(|| net.fold_time(&store, 150.0, None).unwrap());
    let time = constants.as_ref().map_or(Time::Steps(&[150.0]), Time::Folded);
    match early_exit {
        Some(taps) => {
            let maps = net.features(&mut ctx, &x, &time, None, taps, true).unwrap();
            for (info, map) in taps.describe(config).unwrap().iter().zip(&maps) {
                let want = [1, size[0] / info.stride, size[1] / info.stride, info.channels];
                assert_eq!(*map.shape(), want, "{}", info.tap);
            }
        }
        None => {
            let y = net.forward(&mut ctx, &x, &time, None).unwrap();
            assert_eq!(*y.shape(), [1, size[0], size[1], config.out_channels()]);
        }
    }
    let heavy = ctx.steps().iter().filter(|s| ["conv2d", "linear", "attention"].contains(&s.op));
    (heavy.map(|s| s.flops as f64).sum::<f64>() / 2e9, ledger.peak_bytes())
}

#[test]
fn adm_costs_what_the_published_models_cost() {
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.01, "{got} GMAC, expected {want}");
    let c = AdmConfig::imagenet256();
    let taps = Taps::dreamteacher(&c).unwrap();
    let (gmac, peak) = plan(&c, [256, 256], Some(&taps), false);
    println!("ADM-256, early exit: {gmac:.2} GMAC, {:.1} MiB of activations", peak as f64 / (1 << 20) as f64);
    near(gmac, 486.44);
    // Three maps of 64 MiB at full resolution and the scratch of a convolution.
    assert!(peak < 384 << 20, "{peak} bytes");
    let (folded, folded_peak) = plan(&c, [256, 256], Some(&taps), true);
    near(folded, 486.44);
    assert!(folded < gmac && folded_peak <= peak + (1 << 20));
    let (full, full_peak) = plan(&c, [256, 256], None, false);
    println!("ADM-256, full: {full:.2} GMAC, {:.1} MiB of activations", full_peak as f64 / (1 << 20) as f64);
    near(full, 1119.83);
    assert!(full_peak > peak);
    for (taps, want) in [(Taps::paper_post_up(), 563.8), (Taps::paper_zero_based(), 605.67)] {
        near(plan(&c, [256, 256], Some(&taps), false).0, want);
    }
    let bdd = AdmConfig::bdd100k_128x256();
    near(plan(&bdd, [128, 256], None, false).0, 135.63);
    near(plan(&bdd, [128, 256], Some(&Taps::dreamteacher(&bdd).unwrap()), false).0, 56.34);
}

/// Small, with everything that has two forms in the form that `AdmConfig::tiny` does not use.
fn other_forms() -> AdmConfig {
    AdmConfig {
        channel_mult: vec![1.0, 2.0],
        attention_ds: vec![2],
        num_head_channels: None,
        num_heads: 2,
        num_heads_upsample: Some(4),
        use_scale_shift_norm: false,
        resblock_updown: false,
        use_new_attention_order: true,
        num_classes: Some(5),
        learn_sigma: false,
        ..AdmConfig::tiny()
    }
}

fn shallow() -> AdmConfig {
    AdmConfig { channel_mult: vec![1.0, 2.0], attention_ds: vec![2], dropout: 0.2, ..AdmConfig::tiny() }
}

fn labels(config: &AdmConfig, ctx: &Ctx<'_>) -> Option<dtk::tape::Var> {
    config.num_classes.map(|_| ctx.constant(Tensor::from_vec([2], vec![4i64, 1]).unwrap()))
}

#[test]
fn adm_folded_time_is_the_same_network() {
    for config in [other_forms(), shallow(), AdmConfig { conv_resample: false, ..other_forms() }] {
        let (net, store) = randomised(&config);
        let mut ctx = Ctx::inference(&store);
        let x = ctx.constant(image([1, 6, 10, 3]));
        let label = config.num_classes.map(|_| 3);
        let index = label.map(|l| ctx.constant(Tensor::from_vec([1], vec![l as i64]).unwrap()));
        let plain = net.forward(&mut ctx, &x, &Time::Steps(&[150.0]), index.as_ref()).unwrap();
        let folded = net.fold_time(&store, 150.0, label).unwrap();
        assert_eq!((folded.step(), folded.label()), (150.0, label));
        let got = net.forward(&mut ctx, &x, &Time::Folded(&folded), None).unwrap();
        let want = plain.tensor().f32s().unwrap();
        assert_close("folded", got.tensor().f32s().unwrap(), want, 1e-5, 1e-5 * max_abs(want));
        let other = net.forward(&mut ctx, &x, &Time::Steps(&[151.0]), index.as_ref()).unwrap();
        assert_ne!(other.tensor().f32s().unwrap(), want, "the time has an effect");
    }
}

/// The embedding of the times, made elsewhere, is as good as the times.
#[test]
fn a_time_embedding_is_a_time() {
    let config = shallow();
    let (net, store) = randomised(&config);
    let steps = [7.0, 300.0];
    let mut ctx = Ctx::inference(&store);
    let x = ctx.constant(image([2, 4, 6, 3]));
    let plain = net.forward(&mut ctx, &x, &Time::Steps(&steps), None).unwrap();
    let embedding = ctx.constant(timestep_embedding(&steps, config.model_channels));
    let embedded = net.forward(&mut ctx, &x, &Time::Embedded(&embedding), None).unwrap();
    assert_eq!(plain.tensor().f32s().unwrap(), embedded.tensor().f32s().unwrap());
}

/// Loss and gradients of every parameter after one training pass.
fn gradients(config: &AdmConfig, recompute: bool) -> (f32, Vec<(String, Tensor)>) {
    let (net, store) = randomised(config);
    let net = net.with_recompute(recompute);
    let mut ctx = Ctx::training(&store, Philox::new(5));
    let x = ctx.constant(image([2, 4, 6, 3]));
    let labels = labels(config, &ctx);
    let y = net.forward(&mut ctx, &x, &Time::Steps(&[7.0, 300.0]), labels.as_ref()).unwrap();
    let target = image(y.shape()[..].try_into().unwrap());
    let loss: f64 =
        y.tensor().f32s().unwrap().iter().zip(target.f32s().unwrap()).map(|(a, b)| f64::from(a * b)).sum();
    let mut g = ctx.backward_from(vec![(y, target)]).unwrap();
    let grads = store.iter().map(|(id, p)| {
        let grad = g.take_param(id).unwrap_or_else(|| panic!("no gradient reached {}", p.name()));
        (p.name().to_string(), grad)
    });
    (loss as f32, grads.collect())
}

#[test]
fn adm_recomputation_changes_nothing() {
    for config in [other_forms(), shallow()] {
        let (a, b) = (gradients(&config, false), gradients(&config, true));
        assert_eq!(a.0, b.0, "dropout draws the same numbers");
        // Gradients of a value that is used twice are added in another order.
        let largest = a.1.iter().map(|(_, g)| max_abs(g.f32s().unwrap())).fold(0.0, f64::max);
        for ((name, x), (_, y)) in a.1.iter().zip(&b.1) {
            assert_close(name, y.f32s().unwrap(), x.f32s().unwrap(), 1e-4, 1e-6 * largest);
        }
    }
}

#[test]
fn adm_recomputation_saves_memory() {
    let peak = |recompute: bool| {
        let (net, store) = build(&AdmConfig::small());
        let net = net.with_recompute(recompute);
        let ledger = Ledger::new();
        let mut ctx = Ctx::training(&store, Philox::new(5)).planning(&ledger);
        let x = ctx.input(&Tensor::meta([4, 128, 128, 3], DType::F32, Some(&ledger)));
        let y = net.forward(&mut ctx, &x, &Time::Steps(&[7.0]), None).unwrap();
        let seed = Tensor::meta(y.shape(), DType::F32, Some(&ledger));
        drop(ctx.backward_from(vec![(y, seed)]).unwrap());
        ledger.peak_bytes()
    };
    let (kept, recomputed) = (peak(false), peak(true));
    println!("activations and gradients: {kept} bytes, {recomputed} with recomputation");
    assert!(2 * recomputed < kept, "{recomputed} bytes against {kept}");
}

#[test]
fn adm_gradients_are_the_slopes_of_the_loss() {
    let mut checked = BTreeSet::new();
    for config in [other_forms(), AdmConfig { dropout: 0.0, ..shallow() }] {
        let (_, grads) = gradients(&config, false);
        let (net, mut store) = randomised(&config);
        let loss = |store: &ParamStore| -> f64 {
            let mut ctx = Ctx::inference(store);
            let x = ctx.constant(image([2, 4, 6, 3]));
            let labels = labels(&config, &ctx);
            let y = net.forward(&mut ctx, &x, &Time::Steps(&[7.0, 300.0]), labels.as_ref()).unwrap();
            let target = image(y.shape()[..].try_into().unwrap());
            let pairs = y.tensor().f32s().unwrap().iter().zip(target.f32s().unwrap());
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        // One parameter of every kind, moved along its own gradient.
        for key in [
            "time_embed.0.weight",
            "input_blocks.0.0.weight",
            "input_blocks.2.0.emb_layers.1.weight",
            "input_blocks.3.1.qkv.weight",
            "middle_block.1.proj_out.weight",
            "output_blocks.0.0.in_layers.0.weight",
            "output_blocks.1.0.skip_connection.weight",
            "output_blocks.3.0.out_layers.3.weight",
            "out.0.bias",
            "label_emb.weight",
            "output_blocks.1.2.conv.weight",
        ] {
            let Some(id) = store.find(key) else { continue };
            checked.insert(key);
            let gradient = &grads.iter().find(|(n, _)| n == key).unwrap().1;
            let g = gradient.f32s().unwrap();
            let norm = g.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
            let start = store.get(id).value().clone();
            let mut at = |h: f64| {
                let moved = start.f32s().unwrap().iter().zip(g);
                let moved = moved.map(|(v, g)| (f64::from(*v) + h * f64::from(*g) / norm) as f32).collect();
                store.set(id, Tensor::from_vec(start.shape(), moved).unwrap()).unwrap();
                loss(&store)
            };
            // Central differences of two widths, which cancels the error of third order.
            let h = 2e-3;
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            at(0.0);
            assert!((slope / norm - 1.0).abs() < 5e-3, "{key}: slope {slope}, gradient {norm}");
        }
    }
    assert_eq!(checked.len(), 11, "every key is one of a network's");
}

#[test]
fn adm_refuses_what_does_not_fit() {
    let (net, store) = randomised(&shallow());
    let (classes, class_store) = randomised(&other_forms());
    let run =
        |net: &AdmUnet, store: &ParamStore, shape: [usize; 4], time: &Time<'_>, label: Option<Tensor>| {
            // The network outlives the context: both are borrowed for the call.
            let mut ctx = Ctx::inference(store);
            let x = ctx.constant(image(shape));
            let label = label.map(|l| ctx.constant(l));
            net.forward(&mut ctx, &x, time, label.as_ref()).map(|v| v.shape())
        };
    let t = Time::Steps(&[3.0]);
    let e = run(&net, &store, [1, 4, 5, 3], &t, None).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("multiples of 2"), "{e}");
    let e = run(&net, &store, [1, 4, 4, 4], &t, None).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("4 channels"), "{e}");
    assert!(run(&net, &store, [3, 4, 4, 3], &Time::Steps(&[1.0, 2.0]), None).unwrap_err().is_shape());
    let label = |l: Vec<i64>| Some(Tensor::from_vec([l.len()], l).unwrap());
    assert!(run(&net, &store, [1, 4, 4, 3], &t, label(vec![0])).unwrap_err().is_usage());
    assert!(run(&classes, &class_store, [1, 4, 4, 3], &t, None).unwrap_err().is_usage());
    assert!(run(&classes, &class_store, [1, 4, 4, 3], &t, label(vec![0, 1])).unwrap_err().is_shape());
    assert!(run(&classes, &class_store, [1, 4, 4, 3], &t, label(vec![5])).unwrap_err().is_data());
    assert!(classes.fold_time(&class_store, 3.0, None).unwrap_err().is_usage());
    assert!(classes.fold_time(&class_store, 3.0, Some(5)).unwrap_err().is_data());
    let folded = net.fold_time(&store, 3.0, None).unwrap();
    let e = run(&classes, &class_store, [1, 4, 4, 3], &Time::Folded(&folded), None).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("another configuration"), "{e}");
    assert_eq!(*run(&net, &store, [1, 2, 4, 3], &Time::Folded(&folded), None).unwrap(), [1, 2, 4, 6]);
    let mut ctx = Ctx::inference(&store);
    let wrong = ctx.constant(Tensor::zeros([1, 5]));
    let e = run(&net, &store, [1, 4, 4, 3], &Time::Embedded(&wrong), None).unwrap_err();
    assert!(e.is_shape() && e.to_string().contains("time embedding"), "{e}");
    let x = ctx.constant(image([1, 4, 4, 3]));
    let taps = Taps::new([Tap::pre_up(99)]);
    assert!(net.features(&mut ctx, &x, &t, None, &taps, true).unwrap_err().is_usage());
}
