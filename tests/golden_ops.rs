//! Every op against recorded reference values, forward and backward. The cases, their sizes and attributes come from
//! the manifest entries of section `ops`; images are NCHW there and NHWC here.

mod common;

use common::{Golden, GoldenSet, Tolerance};
use dtk::ops::{self, Backward, Op};
use dtk::tensor::Tensor;
use serde_json::Value;

/// Inputs and gradients that come in are of the order of 1, so an absolute error counts too.
const TOLERANCE: Tolerance = Tolerance { relative: 1e-4, of_max: 1e-5, absolute: 1e-5 };

/// How a tensor of the set is laid out.
#[derive(Clone, Copy)]
enum Layout {
    /// As here.
    Same,
    /// Channels second: `[N, C, H, W]` (also convolution weights) or `[N, C, T]`.
    ChannelsSecond,
}

/// A case as an op: which tensors make up each input, and where the channels are.
struct Plan {
    op: Box<dyn Op>,
    /// Several names are joined along the last axis.
    inputs: Vec<(Vec<&'static str>, Layout)>,
    y: Layout,
}

use Layout::{ChannelsSecond, Same};

impl Plan {
    fn new(op: impl Op + 'static, inputs: &[(&'static str, Layout)], y: Layout) -> Self {
        Plan { op: Box::new(op), inputs: inputs.iter().map(|&(name, l)| (vec![name], l)).collect(), y }
    }

    /// An op with one image in and one out.
    fn image(op: impl Op + 'static) -> Self {
        Plan::new(op, &[("x", ChannelsSecond)], ChannelsSecond)
    }

    /// An op on the last axis or on single elements.
    fn plain(op: impl Op + 'static) -> Self {
        Plan::new(op, &[("x", Same)], Same)
    }
}

/// Exchanges the place of the channels, `[N, C, ..]` to `[N, .., C]` or back; vectors and matrices stay.
fn swap(t: &Tensor, to_here: bool) -> Tensor {
    match (&*t.shape(), to_here) {
        (&[_, _, _, _], true) => t.nchw_to_nhwc().unwrap(),
        (&[_, _, _, _], false) => t.nhwc_to_nchw().unwrap(),
        // With three axes both ways are the same exchange.
        (&[n, a, b], _) => {
            t.reshape([n, a, b, 1]).unwrap().nchw_to_nhwc().unwrap().reshape([n, b, a]).unwrap()
        }
        _ => t.clone(),
    }
}

fn enter(t: &Tensor, layout: Layout) -> Tensor {
    match layout {
        Same => t.clone(),
        ChannelsSecond => swap(t, true),
    }
}

fn leave(t: &Tensor, layout: Layout) -> Tensor {
    match layout {
        Same => t.clone(),
        ChannelsSecond => swap(t, false),
    }
}

fn number(v: &Value, what: &str) -> usize {
    v.as_u64().unwrap_or_else(|| panic!("attribute {what} is {v}, not a count")) as usize
}

/// One count for both axes, or one for each.
fn pair(attrs: &Value, name: &str) -> [usize; 2] {
    match &attrs[name] {
        Value::Array(v) if v.len() == 2 => [number(&v[0], name), number(&v[1], name)],
        v => [number(v, name); 2],
    }
}

fn eps(attrs: &Value) -> f32 {
    attrs["eps"].as_f64().expect("attribute eps") as f32
}

/// The op of a case family, or `None` for a family that is not known.
fn plan(family: &str, case: &Value) -> Option<Plan> {
    let (attrs, inputs) = (&case["attrs"], &case["inputs"]);
    let size = |axis: usize| number(&inputs["x"][axis], "x");
    let attention = |order| {
        let op = ops::attention::Attention { heads: number(&attrs["heads"], "heads"), order };
        Plan::new(op, &[("qkv", ChannelsSecond)], ChannelsSecond)
    };
    let group_norm = |silu| {
        let op =
            ops::group_norm::GroupNorm { groups: number(&attrs["groups"], "groups"), eps: eps(attrs), silu };
        Plan::new(op, &[("x", ChannelsSecond), ("w", Same), ("b", Same)], ChannelsSecond)
    };
    let batch_norm = |mode, relu| {
        use ops::batch_norm::BatchNormMode::Eval;
        let mut names = vec![("x", ChannelsSecond), ("w", Same), ("b", Same)];
        if mode == Eval {
            names.extend([("rm", Same), ("rv", Same)]);
        }
        Plan::new(ops::batch_norm::BatchNorm::new(mode, eps(attrs), relu), &names, ChannelsSecond)
    };
    Some(match family_of(family)? {
        "conv2d" => {
            let op = ops::conv2d::Conv2d {
                stride: pair(attrs, "stride"),
                pad: pair(attrs, "pad"),
                dilation: pair(attrs, "dilation"),
                groups: number(&attrs["groups"], "groups"),
            };
            let mut names = vec![("x", ChannelsSecond), ("w", ChannelsSecond)];
            if inputs.get("b").is_some() {
                names.push(("b", Same));
            }
            Plan::new(op, &names, ChannelsSecond)
        }
        "linear" => {
            let mut names = vec![("x", Same), ("w", Same)];
            if inputs.get("b").is_some() {
                names.push(("b", Same));
            }
            Plan::new(ops::linear::Linear {}, &names, Same)
        }
        "group_norm32" => group_norm(false),
        "group_norm32_silu" => group_norm(true),
        "group_norm32_scale_shift_silu" => {
            let mut plan = group_norm(true);
            plan.inputs.push((vec!["scale", "shift"], Same));
            plan
        }
        "layer_norm" | "layer_norm_nchw_c" => {
            let layout = if family == "layer_norm" { Same } else { ChannelsSecond };
            let op = ops::layer_norm::LayerNorm { eps: eps(attrs) };
            Plan::new(op, &[("x", layout), ("w", Same), ("b", Same)], layout)
        }
        "attention_legacy" => attention(ops::attention::QkvOrder::Legacy),
        "attention_new" => attention(ops::attention::QkvOrder::New),
        "batch_norm_train" => batch_norm(ops::batch_norm::BatchNormMode::Train, false),
        "batch_norm_train_relu" => batch_norm(ops::batch_norm::BatchNormMode::Train, true),
        "batch_norm_eval" => batch_norm(ops::batch_norm::BatchNormMode::Eval, false),
        "batch_norm_eval_relu" => batch_norm(ops::batch_norm::BatchNormMode::Eval, true),
        "bilinear_ac0" | "bilinear_ac1" => {
            let align_corners = attrs["align_corners"].as_bool().expect("attribute align_corners");
            let mode = ops::resize::ResizeMode::Bilinear { align_corners };
            Plan::image(ops::resize::Resize { mode, out: pair(attrs, "out") })
        }
        "nearest_up2x" => {
            let out = [2 * size(2), 2 * size(3)];
            Plan::image(ops::resize::Resize { mode: ops::resize::ResizeMode::Nearest, out })
        }
        "adaptive_avg_pool" => {
            Plan::image(ops::adaptive_avg_pool::AdaptiveAvgPool { out: pair(attrs, "out") })
        }
        "max_pool_3x3_s2_p1" => Plan::image(ops::max_pool::MaxPool { kernel: 3, stride: 2, pad: 1 }),
        "avg_pool2x2" => Plan::image(ops::avg_pool::AvgPool { kernel: 2, stride: 2, pad: 0 }),
        "global_avg_pool" => {
            Plan::new(ops::global_avg_pool::GlobalAvgPool {}, &[("x", ChannelsSecond)], Same)
        }
        "gelu_erf" => Plan::plain(ops::gelu::Gelu {}),
        "silu" => Plan::plain(ops::silu::Silu {}),
        "relu" => Plan::plain(ops::relu::Relu {}),
        "softmax" => Plan::plain(ops::softmax::Softmax {}),
        _ => return None,
    })
}

macro_rules! families {
    ($($family:ident,)*) => {
        const FAMILIES: &[&str] = &[$(stringify!($family)),*];
        /// One test per family.
        mod golden {
            $(#[test]
            fn $family() {
                super::run_family(stringify!($family));
            })*
        }
    };
}
families! {
    conv2d, linear, group_norm32, group_norm32_silu, group_norm32_scale_shift_silu, layer_norm, layer_norm_nchw_c,
    attention_legacy, attention_new, batch_norm_train, batch_norm_train_relu, batch_norm_eval, batch_norm_eval_relu,
    bilinear_ac0, bilinear_ac1, adaptive_avg_pool, max_pool_3x3_s2_p1, avg_pool2x2, nearest_up2x, gelu_erf, silu, relu,
    softmax, global_avg_pool,
}

/// The family's entry in [`FAMILIES`]: its own name, without what only repeats an attribute (`adaptive_avg_pool3`,
/// `conv2d_depthwise`).
fn family_of(family: &str) -> Option<&'static str> {
    FAMILIES
        .iter()
        .copied()
        .find(|&f| f == family || matches!(f, "conv2d" | "adaptive_avg_pool") && family.starts_with(f))
}

/// Case names with their entries; the family is what stands before the last dot.
fn cases(golden: &Golden) -> Vec<(&str, &str, &Value)> {
    let cases = golden.entry["cases"].as_object().expect("the manifest lists cases");
    cases
        .iter()
        .map(|(name, case)| {
            (name.rsplit_once('.').map_or(name.as_str(), |(family, _)| family), name.as_str(), case)
        })
        .collect()
}

#[test]
fn golden_ops_every_family_and_tensor_is_known() {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("ops") {
        let cases = cases(&golden);
        for (family, name, case) in &cases {
            assert!(plan(family, case).is_some(), "case `{name}` is of the unknown family `{family}`");
        }
        for tensor in golden.names() {
            let case = tensor.rsplit_once('.').map_or(tensor, |(case, _)| case);
            assert!(cases.iter().any(|(_, name, _)| *name == case), "`{tensor}` belongs to no case");
        }
    }
}

fn run_family(family: &str) {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("ops") {
        let mut count = 0;
        for (_, name, case) in cases(&golden).into_iter().filter(|(f, ..)| family_of(f) == Some(family)) {
            count += usize::from(run_case(&golden, name, case, &plan(family, case).expect("a known family")));
        }
        if count > 0 {
            golden.finish();
        } else {
            println!("skipped: {} has no case of `{family}`", golden.name);
        }
    }
}

/// Checks one case; false if a subset does not have all its inputs.
fn run_case(golden: &Golden, name: &str, case: &Value, plan: &Plan) -> bool {
    let get = |part: &str| golden.get(&format!("{name}.{part}"));
    let mut parts = plan.inputs.iter().flat_map(|(names, _)| names).copied().chain(["gy"]);
    if !parts.all(|part| golden.expect(&format!("{name}.{part}"))) {
        return false;
    }
    let inputs: Vec<Tensor> = plan
        .inputs
        .iter()
        .map(|(names, layout)| enter(&join(&names.iter().map(|n| get(n)).collect::<Vec<_>>()), *layout))
        .collect();
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let out = ops::run(&*plan.op, &refs).unwrap_or_else(|e| panic!("{name}: {e}"));
    golden.check_stored(&format!("{name}.y"), &leave(&out.y, plan.y), TOLERANCE);
    check_running_statistics(golden, name, case, &out.aux);

    let wanted: Vec<&str> =
        case["grads"].as_array().expect("a list of gradients").iter().filter_map(Value::as_str).collect();
    let known = |g: &&str| plan.inputs.iter().any(|(names, _)| names.contains(g));
    assert!(!wanted.is_empty() && wanted.iter().all(known), "{name}: gradients {wanted:?}");
    let needs: Vec<bool> =
        plan.inputs.iter().map(|(names, _)| names.iter().any(|n| wanted.contains(n))).collect();
    let gy = enter(&get("gy"), plan.y);
    let shapes: Vec<_> = inputs.iter().map(Tensor::shape).collect();
    let mut saved = plan.op.save(&refs, &out.y);
    saved.extend(out.extra);
    let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs };
    let grads = plan.op.backward(&ctx).unwrap_or_else(|e| panic!("{name}: {e}"));
    for ((names, layout), g) in plan.inputs.iter().zip(&grads) {
        if !names.iter().any(|n| wanted.contains(n)) {
            continue;
        }
        let g = g.as_ref().unwrap_or_else(|| panic!("{name}: no gradient for {names:?}"));
        for (part, g) in names.iter().zip(split(&leave(g, *layout), names.len())) {
            golden.check_stored(&format!("{name}.g_{part}"), &g, TOLERANCE);
        }
    }
    true
}

/// The inverse of [`join`] for parts of equal width.
fn split(t: &Tensor, parts: usize) -> Vec<Tensor> {
    if parts == 1 {
        return vec![t.clone()];
    }
    let (rows, width) = t.shape().matrix("split").unwrap();
    let c = width / parts;
    let part = |i: usize| -> Vec<f32> {
        t.f32s().unwrap().chunks_exact(width).flat_map(|row| &row[i * c..(i + 1) * c]).copied().collect()
    };
    (0..parts).map(|i| Tensor::from_vec([rows, c], part(i)).unwrap()).collect()
}

/// Matrices side by side; a single tensor of any shape as it is.
fn join(parts: &[Tensor]) -> Tensor {
    let [first, rest @ ..] = parts else { panic!("nothing to join") };
    if rest.is_empty() {
        return first.clone();
    }
    let rows = first.shape()[0];
    let mut all = Vec::new();
    for r in 0..rows {
        for t in parts {
            let c = t.shape().matrix("join").unwrap().1;
            all.extend_from_slice(&t.f32s().unwrap()[r * c..(r + 1) * c]);
        }
    }
    Tensor::from_vec([rows, all.len() / rows], all).unwrap()
}

/// Running statistics after one step from mean 0 and variance 1. The set has them for the plain training cases; the
/// fused ones are checked where it does.
fn check_running_statistics(golden: &Golden, name: &str, case: &Value, aux: &[Tensor]) {
    let Some(momentum) = case["attrs"]["momentum"].as_f64() else { return };
    let plain = name.starts_with("batch_norm_train.");
    for (i, (stat, start)) in [("mean", 0.0f64), ("var", 1.0)].into_iter().enumerate() {
        let key = format!("{name}.running_{stat}_after");
        if !(if plain { golden.expect(&key) } else { golden.has(&key) }) {
            continue;
        }
        let step = |&batch: &f32| ((1.0 - momentum) * start + momentum * f64::from(batch)) as f32;
        let got =
            Tensor::from_vec(aux[i].shape(), aux[i].f32s().unwrap().iter().map(step).collect()).unwrap();
        golden.check_stored(&key, &got, TOLERANCE);
    }
}
