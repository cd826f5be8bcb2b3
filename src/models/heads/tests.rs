use super::*;
use crate::base::Philox;
use crate::nn::{ParamStore, Role};
use crate::ops::resize::{Resize, ResizeMode};
use crate::tensor::Tensor;

const INS: [usize; 3] = [3, 5, 4];
const SIZES: [[usize; 2]; 3] = [[8, 6], [4, 3], [2, 2]];

fn maps(ctx: &Ctx<'_>, levels: std::ops::Range<usize>) -> Vec<Var> {
    let make = |i: usize| {
        let [h, w] = SIZES[i];
        let mut v = vec![0.0; 2 * h * w * INS[i]];
        Philox::new(7).fold(i as u64).fill_normal(&mut v);
        ctx.constant(Tensor::from_vec([2, h, w, INS[i]], v).unwrap())
    };
    levels.map(make).collect()
}

fn names(store: &ParamStore) -> Vec<&str> {
    store.iter().filter(|(_, p)| p.role() == Role::Parameter).map(|(_, p)| p.name()).collect()
}

fn fcn(config: &FcnConfig, ins: &[usize]) -> Result<(ParamStore, FcnHead)> {
    let mut store = ParamStore::new();
    let head = FcnHead::new(&mut store.builder().pp("decode_head"), config, ins, 7)?;
    store.init(1)?;
    Ok((store, head))
}

fn small() -> FcnConfig {
    FcnConfig { channels: 6, convs: 1, kernel: 1, concat_input: false, dropout: 0.0 }
}

#[test]
fn keys_are_mmsegmentations() {
    let (store, _) = fcn(&FcnConfig { channels: 8, ..FcnConfig::default() }, &[5]).unwrap();
    let module = |n: &str| ["conv.weight", "bn.weight", "bn.bias"].map(|k| format!("decode_head.{n}.{k}"));
    let mut want: Vec<String> = ["convs.0", "convs.1", "conv_cat"].iter().flat_map(|n| module(n)).collect();
    want.extend(["weight", "bias"].map(|k| format!("decode_head.conv_seg.{k}")));
    assert_eq!(names(&store), want);
    let shape = |n: &str| store.get(store.find(&format!("decode_head.{n}.weight")).unwrap()).file_shape();
    assert_eq!((&*shape("convs.0.conv"), &*shape("conv_cat.conv")), (&[8, 5, 3, 3][..], &[8, 13, 3, 3][..]));

    let mut store = ParamStore::new();
    let config = UperConfig { channels: 8, ..UperConfig::default() };
    UperHead::new(&mut store.builder(), &config, &[3, 4, 5, 6], 7).unwrap();
    let mut got: Vec<&str> = names(&store);
    got.sort_unstable();
    let mut want: Vec<String> = ["bottleneck", "fpn_bottleneck"].map(String::from).to_vec();
    want.extend((0..3).flat_map(|i| [format!("lateral_convs.{i}"), format!("fpn_convs.{i}")]));
    want.extend((0..4).map(|s| format!("psp_modules.{s}.1")));
    let mut want: Vec<String> = want
        .iter()
        .flat_map(|n| ["conv.weight", "bn.weight", "bn.bias"].map(|k| format!("{n}.{k}")))
        .chain(["conv_seg.weight".into(), "conv_seg.bias".into()])
        .collect();
    want.sort_unstable();
    assert_eq!(got, want);
}

/// The widths of UPerNet on ResNet-50: 512 channels, 150 classes.
#[test]
fn parameter_count() {
    let mut store = ParamStore::new();
    UperHead::new(&mut store.builder(), &UperConfig::default(), &[256, 512, 1024, 2048], 150).unwrap();
    let module = |c_in: usize, k: usize| c_in * 512 * k * k + 2 * 512;
    let want = 4 * module(2048, 1)
        + module(2048 + 4 * 512, 3)
        + module(256, 1)
        + module(512, 1)
        + module(1024, 1)
        + 3 * module(512, 3)
        + module(4 * 512, 3)
        + 512 * 150
        + 150;
    assert_eq!(store.parameter_count(), want);
}

/// Convolving every level at its own size and adding is the convolution of the resized and concatenated maps.
#[test]
fn levels_are_a_concatenation() {
    for convs in [0, 1] {
        let (store, head) = fcn(&FcnConfig { convs, ..small() }, &INS).unwrap();
        let mut ctx = Ctx::inference(&store);
        let x = maps(&ctx, 0..3);
        let got = head.forward(&mut ctx, &x).unwrap();

        let mode = ResizeMode::Bilinear { align_corners: false };
        let resized: Vec<Var> =
            x.iter().map(|m| ctx.apply(Resize { mode, out: SIZES[0] }, &[m]).unwrap()).collect();
        let all = ctx.apply(ops::concat::Concat {}, &resized.iter().collect::<Vec<_>>()).unwrap();
        let key = |i: usize| match convs {
            0 => format!("decode_head.conv_seg.{i}.weight"),
            _ => format!("decode_head.convs.0.conv.{i}.weight"),
        };
        let parts: Vec<Tensor> =
            (0..3).map(|i| store.get(store.find(&key(i)).unwrap()).value().clone()).collect();
        let out = parts[0].shape()[0];
        let mut weight = Vec::new();
        for row in 0..out {
            for (p, c) in parts.iter().zip(INS) {
                weight.extend_from_slice(&p.f32s().unwrap()[row * c..(row + 1) * c]);
            }
        }
        let weight = ctx.constant(Tensor::from_vec([out, INS.iter().sum()], weight).unwrap());
        let mut y = ctx.apply(ops::linear::Linear {}, &[&all, &weight]).unwrap();
        if convs == 1 {
            // The batch norm has its initial statistics: a division by sqrt(1 + 1e-5).
            let v =
                y.tensor().f32s().unwrap().iter().map(|v| (v / (1.0f32 + 1e-5).sqrt()).max(0.0)).collect();
            y = ctx.constant(Tensor::from_vec(y.shape(), v).unwrap());
            let seg = |k: &str| {
                store.get(store.find(&format!("decode_head.conv_seg.{k}")).unwrap()).value().clone()
            };
            let w = ctx.constant(seg("weight").reshape([7, 6]).unwrap());
            let b = ctx.constant(seg("bias"));
            y = ctx.apply(ops::linear::Linear {}, &[&y, &w, &b]).unwrap();
        }
        assert_eq!(got.shape(), y.shape());
        for (a, b) in got.tensor().f32s().unwrap().iter().zip(y.tensor().f32s().unwrap()) {
            approx::assert_abs_diff_eq!(a, b, epsilon = 1e-5);
        }
    }
}

/// Every parameter of every form gets a gradient, and logits have the size of the finest map.
#[test]
fn nothing_is_dead() {
    let one = FcnConfig { kernel: 3, convs: 2, concat_input: true, dropout: 0.5, ..small() };
    let cases: [(FcnConfig, std::ops::Range<usize>); 5] = [
        (one.clone(), 2..3),
        (FcnConfig { convs: 0, concat_input: false, ..one.clone() }, 2..3),
        (FcnConfig { convs: 0, ..one }, 1..2),
        (FcnConfig { dropout: 0.3, ..small() }, 0..3),
        (FcnConfig { convs: 2, ..small() }, 0..3),
    ];
    for (config, levels) in cases {
        let (store, head) = fcn(&config, &INS[levels.clone()]).unwrap();
        let mut ctx = Ctx::training(&store, Philox::new(1));
        let x = maps(&ctx, levels.clone());
        let y = head.forward(&mut ctx, &x).unwrap();
        let [h, w] = SIZES[levels.start];
        assert_eq!(&*y.shape(), &[2, h, w, 7], "{config:?}");
        let seed = Tensor::full(y.shape(), 1.0);
        let mut grads = ctx.backward_from(vec![(y, seed)]).unwrap();
        for (id, p) in store.iter().filter(|(_, p)| p.trainable()) {
            assert!(grads.take_param(id).is_some(), "{config:?}: {} is dead", p.name());
        }
    }
    for input_norm in [false, true] {
        let config = UperConfig { channels: 4, input_norm, ..UperConfig::default() };
        let mut store = ParamStore::new();
        let head = UperHead::new(&mut store.builder(), &config, &INS, 7).unwrap();
        store.init(1).unwrap();
        let mut ctx = Ctx::training(&store, Philox::new(1));
        let x = maps(&ctx, 0..3);
        let y = head.forward(&mut ctx, &x).unwrap();
        assert_eq!(&*y.shape(), &[2, 8, 6, 7]);
        let seed = Tensor::full(y.shape(), 1.0);
        let mut grads = ctx.backward_from(vec![(y, seed)]).unwrap();
        for (id, p) in store.iter().filter(|(_, p)| p.trainable()) {
            assert!(grads.take_param(id).is_some(), "{} is dead", p.name());
        }
    }
}

#[test]
fn wrong_uses_are_errors() {
    let bad = |c: FcnConfig, ins: &[usize]| {
        assert!(fcn(&c, ins).err().is_some_and(|e| e.is_usage()), "{c:?} {ins:?}");
    };
    bad(small(), &[]);
    bad(small(), &[0]);
    bad(FcnConfig { channels: 0, ..small() }, &[3]);
    bad(FcnConfig { kernel: 2, ..small() }, &[3]);
    bad(FcnConfig { kernel: 3, ..small() }, &INS);
    bad(FcnConfig { concat_input: true, ..small() }, &INS);
    bad(FcnConfig { dropout: 1.0, ..small() }, &[3]);
    let (store, head) = fcn(&small(), &INS).unwrap();
    let mut ctx = Ctx::inference(&store);
    let x = maps(&ctx, 0..2);
    assert!(head.forward(&mut ctx, &x).unwrap_err().is_shape());
    let mut store = ParamStore::new();
    let config = UperConfig { pool_scales: vec![], ..UperConfig::default() };
    assert!(UperHead::new(&mut store.builder(), &config, &INS, 7).unwrap_err().is_usage());
}
