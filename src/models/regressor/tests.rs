use super::*;
use crate::base::Philox;
use crate::models::backbone::Family;
use crate::nn::{ParamStore, Role};
use crate::tensor::Tensor;

const KINDS: [RegressorKind; 4] =
    [RegressorKind::FpnPpm, RegressorKind::Fpn, RegressorKind::FpnAttention, RegressorKind::Pafpn];

fn small(kind: RegressorKind) -> RegressorConfig {
    RegressorConfig { kind, channels: 8, attention_heads: 2, ..RegressorConfig::default() }
}

fn build(config: &RegressorConfig, ins: &[usize], outs: &[usize]) -> Result<(ParamStore, Regressor)> {
    let mut store = ParamStore::new();
    let model = Regressor::new(&mut store.builder(), config, ins, outs)?;
    store.init(1)?;
    Ok((store, model))
}

fn inputs(ctx: &Ctx<'_>, ins: &[usize], sizes: &[[usize; 2]]) -> Vec<Var> {
    let make = |(i, (&c, &[h, w])): (usize, (&usize, &[usize; 2]))| {
        let mut v = vec![0.0; 2 * h * w * c];
        Philox::new(7).fold(i as u64).fill_normal(&mut v);
        ctx.constant(Tensor::from_vec([2, h, w, c], v).unwrap())
    };
    ins.iter().zip(sizes).enumerate().map(make).collect()
}

/// For every kind and subset of levels: the announced shapes, and a gradient for every parameter (none is dead).
#[test]
fn every_subset_of_levels() {
    let (ins, sizes) = ([3, 5, 6, 7], [[12, 9], [6, 5], [3, 3], [2, 1]]);
    for kind in KINDS {
        for subset in 1u32..16 {
            for norm in [false, true] {
                let outs: Vec<usize> = (0..4).map(|i| if subset >> i & 1 == 1 { 4 + i } else { 0 }).collect();
                let config = RegressorConfig { input_norm: Some(norm), ..small(kind) };
                let (store, model) = build(&config, &ins, &outs).unwrap();
                let mut ctx = Ctx::training(&store, Philox::new(1));
                let x = inputs(&ctx, &ins, &sizes);
                let maps = model.forward(&mut ctx, &x).unwrap();
                let wanted: Vec<usize> = (0..4).filter(|&i| outs[i] > 0).collect();
                assert_eq!(model.outputs(), wanted);
                assert_eq!(maps.len(), wanted.len());
                for (map, &i) in maps.iter().zip(&wanted) {
                    assert_eq!(&*map.shape(), &[2, sizes[i][0], sizes[i][1], outs[i]], "{kind:?} {outs:?}");
                }
                let seeds = maps.into_iter().map(|m| (m.clone(), Tensor::full(m.shape(), 1.0))).collect();
                let mut grads = ctx.backward_from(seeds).unwrap();
                for (id, p) in store.iter().filter(|(_, p)| p.role() == Role::Parameter) {
                    assert!(grads.take_param(id).is_some(), "{kind:?} {outs:?}: {} is dead", p.name());
                }
            }
        }
    }
}

#[test]
fn parameter_counts() {
    let count = |kind, ins: &[usize]| {
        let config = RegressorConfig { kind, ..RegressorConfig::default() };
        let mut store = ParamStore::new();
        Regressor::new(&mut store.builder(), &config, ins, &[512, 512, 1024, 1024]).unwrap();
        store.parameter_count()
    };
    let resnet50 = [256, 512, 1024, 2048];
    // 12.20 M and 8.56 M by independent counts, rounded.
    assert_eq!((count(RegressorKind::FpnPpm, &resnet50) + 5000) / 10_000, 1220);
    assert_eq!((count(RegressorKind::FpnPpm, &[128, 256, 512, 1024]) + 5000) / 10_000, 856);
    // A lateral and an output convolution on the coarsest level in place of the pyramid pooling.
    let fpn = count(RegressorKind::Fpn, &resnet50);
    let (module, bn) = (|c_in: usize, k: usize| c_in * 256 * k * k + 512, 512);
    let ppm = 4 * module(2048, 1) + module(2048 + 4 * 256, 3);
    assert_eq!(count(RegressorKind::FpnPpm, &resnet50) - ppm, fpn - module(2048, 1) - module(256, 3));
    let attention = 512 + (256 + 1) * 768 + (256 + 1) * 256;
    assert_eq!(count(RegressorKind::FpnAttention, &resnet50), fpn + attention);
    assert_eq!(count(RegressorKind::Pafpn, &resnet50), fpn + 6 * (256 * 256 * 9 + bn));
}

/// A bottom-up path carries the finest input to the coarsest output; a top-down path alone does not.
#[test]
fn only_pafpn_goes_bottom_up() {
    let (ins, sizes) = ([3, 3], [[4, 4], [2, 2]]);
    for kind in KINDS {
        let (store, model) = build(&small(kind), &ins, &[2, 2]).unwrap();
        let coarse = |scale: f32| {
            let mut ctx = Ctx::inference(&store);
            let mut x = inputs(&ctx, &ins, &sizes);
            let scaled = x[0].tensor().f32s().unwrap().iter().map(|v| v * scale).collect();
            x[0] = ctx.constant(Tensor::from_vec(x[0].shape(), scaled).unwrap());
            model.forward(&mut ctx, &x).unwrap()[1].tensor().f32s().unwrap().to_vec()
        };
        assert_eq!(coarse(1.0) != coarse(2.0), kind == RegressorKind::Pafpn, "{kind:?}");
    }
}

/// Attention carries a change across the map, to where the convolutions do not reach, and not to other samples.
#[test]
fn attention_mixes_positions() {
    let ins = [3];
    let (store, model) = build(&small(RegressorKind::FpnAttention), &ins, &[2]).unwrap();
    let (plain, _) = build(&small(RegressorKind::Fpn), &ins, &[2]).unwrap();
    assert!(plain.find("attention.qkv.weight").is_none());
    let top = |change: f32| {
        let mut ctx = Ctx::inference(&store);
        let mut x = inputs(&ctx, &ins, &[[9, 9]]);
        let mut t = x[0].tensor().clone();
        t.data_mut::<f32>().unwrap()[0] += change;
        x[0] = ctx.constant(t);
        model.forward(&mut ctx, &x).unwrap()[0].tensor().f32s().unwrap().to_vec()
    };
    let (a, b) = (top(0.0), top(5.0));
    let sample = a.len() / 2;
    let far_corner = sample - 2..sample;
    assert!(a[far_corner.clone()].iter().zip(&b[far_corner]).all(|(a, b)| a != b));
    assert_eq!(a[sample..], b[sample..]);
}

#[test]
fn wrong_uses_are_errors() {
    let c = small(RegressorKind::FpnPpm);
    let bad = |c: &RegressorConfig, ins: &[usize], outs: &[usize]| {
        assert!(build(c, ins, outs).err().is_some_and(|e| e.is_usage()), "{c:?} {ins:?} {outs:?}");
    };
    bad(&c, &[], &[]);
    bad(&c, &[3, 4], &[2]);
    bad(&c, &[3, 4], &[0, 0]);
    bad(&c, &[3, 0], &[2, 2]);
    bad(&RegressorConfig { channels: 0, ..c.clone() }, &[3], &[2]);
    bad(&RegressorConfig { pool_scales: vec![], ..c.clone() }, &[3], &[2]);
    bad(&RegressorConfig { pool_scales: vec![1, 0], ..c.clone() }, &[3], &[2]);
    for attention_heads in [0, 3] {
        bad(&RegressorConfig { attention_heads, ..small(RegressorKind::FpnAttention) }, &[3], &[2]);
    }
    let (store, model) = build(&c, &[3, 4], &[2, 2]).unwrap();
    let mut ctx = Ctx::inference(&store);
    let x = inputs(&ctx, &[3, 5], &[[4, 4], [2, 2]]);
    assert!(model.forward(&mut ctx, &x).unwrap_err().is_shape());
    assert!(model.forward(&mut ctx, &x[..1]).unwrap_err().is_shape());
    assert!(toml::from_str::<RegressorConfig>("kind = \"bifpn\"").is_err());
    assert!(toml::from_str::<RegressorConfig>("chanels = 3").is_err());
}

#[test]
fn configuration() {
    let c: RegressorConfig = toml::from_str("kind = \"pafpn\"\nchannels = 64").unwrap();
    assert_eq!((c.kind, c.channels, c.pool_scales.len()), (RegressorKind::Pafpn, 64, 4));
    assert_eq!(toml::from_str::<RegressorConfig>(&toml::to_string(&c).unwrap()).unwrap(), c);
    assert_eq!(c.clone().for_family(Family::ResNet).input_norm, Some(false));
    assert_eq!(c.clone().for_family(Family::ConvNext).input_norm, Some(true));
    let off = RegressorConfig { input_norm: Some(false), ..c };
    assert_eq!(off.for_family(Family::ConvNext).input_norm, Some(false));
}

#[test]
fn levels_pair_by_size() {
    let student = [[64, 64], [32, 32], [16, 16], [8, 8]];
    assert_eq!(
        pair_levels(&student, &[[8, 8], [16, 16], [32, 32], [64, 64]]).unwrap(),
        [Some(3), Some(2), Some(1), Some(0)]
    );
    assert_eq!(pair_levels(&student, &[[16, 16]]).unwrap(), [None, None, Some(0), None]);
    for teacher in [vec![[16, 8]], vec![[8, 8], [8, 8]]] {
        assert!(pair_levels(&student, &teacher).unwrap_err().to_string().contains("64x64"));
    }
}
