//! The losses against the golden reference values: every tensor of `losses_feat` and `losses_label` is an input or is
//! checked.

mod common;

use common::golden::{assert_close, golden_dir, manifest, open};
use dtk::ops::attention_transfer::{AtDistance, AttentionTransfer, attention_map};
use dtk::ops::cross_entropy::CrossEntropy;
use dtk::ops::dice::Dice;
use dtk::ops::weighted_sum::WeightedSum;
use dtk::ops::whiten_mse::{Whiten, WhitenMse, whiten};
use dtk::tape::{Tape, Var};
use dtk::tensor::{SafetensorsFile, Tensor};
use std::collections::BTreeMap;

const RTOL: f32 = 1e-4;
const ATOL: f32 = 1e-5;

/// The settings of one file in the manifest.
struct Settings(serde_json::Value);

impl Settings {
    fn of(manifest: &serde_json::Value, file: &str) -> Self {
        Settings(manifest["files"][file].clone())
    }

    fn number(&self, key: &str) -> f32 {
        self.0[key].as_f64().unwrap_or_else(|| panic!("the manifest has no number `{key}`")) as f32
    }
}

/// A tensor in dtk's layout: images as NHWC, everything else as it is.
fn load(file: &SafetensorsFile, name: &str) -> Tensor {
    let t = file.get(name).unwrap_or_else(|e| panic!("{e}"));
    if t.shape().len() == 4 { t.nchw_to_nhwc().unwrap() } else { t }
}

/// The values of a result in the layout of the files.
fn stored(t: &Tensor) -> Vec<f32> {
    let t = if t.shape().len() == 4 { t.nhwc_to_nchw().unwrap() } else { t.clone() };
    t.into_vec::<f32>().unwrap()
}

/// The tolerance of the golden set, and beside it one that follows the size of the tensor: many gradients are not
/// much larger than the absolute tolerance.
fn compare(name: &str, got: &[f32], file: &SafetensorsFile) {
    let want = file.get(name).unwrap().into_vec::<f32>().unwrap();
    assert_close(name, got, &want, RTOL, ATOL);
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_close(name, got, &want, 0.0, RTOL * largest + 1e-7);
}

/// A loss of one feature or one batch of logits, with its gradient.
fn loss_and_grad<'a>(x: &Tensor, loss: impl FnOnce(&mut Tape<'a>, &Var) -> Var) -> (f32, Tensor) {
    let mut tape = Tape::new();
    let x = tape.leaf(x.clone());
    let y = loss(&mut tape, &x);
    let value = y.tensor().item().unwrap();
    let mut grads = tape.backward(&y).unwrap();
    (value, grads.take(&x).expect("a gradient"))
}

fn sample(x: &Tensor, n: usize) -> Tensor {
    let [_, h, w, c] = *x.shape() else { panic!("not an image batch") };
    Tensor::from_vec([1, h, w, c], x.f32s().unwrap()[n * h * w * c..(n + 1) * h * w * c].to_vec()).unwrap()
}

/// Everything `losses_feat` can hold about one level.
fn level(results: &mut BTreeMap<String, Vec<f32>>, l: &str, s: &Tensor, t: &Tensor, eps: f32) {
    let mut put = |name: &str, v: Vec<f32>| assert!(results.insert(format!("{name}.{l}"), v).is_none());
    let [n, h, w, c] = *s.shape() else { panic!("student.{l} is not an image batch") };
    for (tag, mode) in [("c", Whiten::Channel), ("chw", Whiten::Sample)] {
        put(&format!("white_{tag}"), stored(&whiten(t, mode, eps).unwrap()));
        let (y, g) = loss_and_grad(s, |tape, s| {
            let t = tape.constant(t.clone());
            tape.apply(WhitenMse { whiten: mode, eps }, &[s, &t]).unwrap()
        });
        put(&format!("mse_{tag}.level"), vec![y]);
        put(&format!("mse_{tag}.level_sumC_meanNHW"), vec![y * c as f32]);
        put(&format!("mse_{tag}.level_sumCHW_meanN"), vec![y * (c * h * w) as f32]);
        put(&format!("mse_{tag}.grad_level"), stored(&g));
    }
    put("at.q_student", stored(&attention_map(s, 2.0).unwrap()));
    put("at.q_teacher", stored(&attention_map(t, 2.0).unwrap()));
    let transfer = |distance, s: &Tensor, t: &Tensor| {
        loss_and_grad(s, |tape, s| {
            let t = tape.constant(t.clone());
            tape.apply(AttentionTransfer { p: 2.0, distance }, &[s, &t]).unwrap()
        })
    };
    let one = |i: usize| transfer(AtDistance::L2, &sample(s, i), &sample(t, i)).0;
    put("at.per_sample", (0..n).map(one).collect());
    put("at.grad_level_mean", stored(&transfer(AtDistance::L2, s, t).1));
    let (y, g) = transfer(AtDistance::MeanSquare, s, t);
    put("at_zagoruyko.level", vec![y]);
    put("at_zagoruyko.grad_level", stored(&g));
}

#[test]
fn feature_losses() {
    let Some(dir) = golden_dir() else { return };
    let name = "losses_feat.safetensors";
    let (file, settings) = (open(&dir, name), Settings::of(&manifest(&dir), name));
    let (eps, lambda) = (settings.number("layernorm_eps"), settings.number("lambda_at"));
    let levels: Vec<&str> = file.names().filter_map(|n| n.strip_prefix("student.")).collect();
    assert!(!levels.is_empty(), "no `student.<level>` in {name}");
    let pairs: Vec<(Tensor, Tensor)> = levels
        .iter()
        .map(|l| (load(&file, &format!("student.{l}")), load(&file, &format!("teacher.{l}"))))
        .collect();

    let mut results = BTreeMap::new();
    for (l, (s, t)) in levels.iter().zip(&pairs) {
        level(&mut results, l, s, t, eps);
    }
    for (tag, whiten) in [("c", Whiten::Channel), ("chw", Whiten::Sample)] {
        let mut tape = Tape::new();
        let students: Vec<Var> = pairs.iter().map(|(s, _)| tape.leaf(s.clone())).collect();
        let (mut mse, mut at) = (Vec::new(), Vec::new());
        for (s, (_, t)) in students.iter().zip(&pairs) {
            let t = tape.constant(t.clone());
            mse.push(tape.apply(WhitenMse { whiten, eps }, &[s, &t]).unwrap());
            at.push(tape.apply(AttentionTransfer::default(), &[s, &t]).unwrap());
        }
        let mut mean =
            |v: &[Var]| tape.apply(WeightedSum::mean(v.len()), &v.iter().collect::<Vec<_>>()).unwrap();
        let (mse, at) = (mean(&mse), mean(&at));
        let total = tape.apply(WeightedSum { weights: vec![1.0, lambda] }, &[&mse, &at]).unwrap();
        for (what, v) in [("mse", &mse), ("at", &at), ("total", &total)] {
            results.insert(format!("feat_{tag}.{what}"), stored(v.tensor()));
        }
        let batch = pairs[0].0.shape()[0] as f32;
        results.insert("at.sum_over_batch_literal_eq2".into(), vec![batch * at.tensor().item().unwrap()]);
        let mut grads = tape.backward(&total).unwrap();
        for (l, s) in levels.iter().zip(&students) {
            results.insert(format!("feat_{tag}.grad.{l}"), stored(&grads.take(s).expect("a gradient")));
        }
    }

    let mut checked = 0;
    for name in file.names() {
        if name.starts_with("student.") || name.starts_with("teacher.") {
            continue;
        }
        let got = results.get(name).unwrap_or_else(|| panic!("`{name}`: nothing checks this tensor"));
        compare(name, got, &file);
        checked += 1;
    }
    println!("losses_feat: {checked} tensors checked");
    assert!(checked > 0);
}

/// Whether a name of `losses_label` is an input: `<set>.logits`, `<set>.teacher_logits`, `<set>.y`, `<set>.y_<variant>`.
fn is_label_input(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(_, n)| n == "logits" || n == "teacher_logits" || n == "y" || n.starts_with("y_"))
}

/// The set a family belongs to (`seg` for `seg_absent`), and its labels: those of the same variant. Digits after the
/// variant's name are the ignored label (`y_ignore255` for `seg_ignore`).
fn labels_of(file: &SafetensorsFile, family: &str) -> (String, Tensor, Option<i64>) {
    let sets = file.names().filter_map(|n| n.strip_suffix(".logits"));
    let (set, variant) = sets
        .filter_map(|s| Some((s, family.strip_prefix(s)?)))
        .find(|(_, v)| v.is_empty() || v.starts_with('_'))
        .unwrap_or_else(|| panic!("`{family}`: no logits"));
    let plain = format!("{set}.y{variant}");
    if file.info(&plain).is_some() {
        return (set.into(), load(file, &plain), None);
    }
    let numbered = file.names().find_map(|n| Some((n, n.strip_prefix(&plain)?.parse::<i64>().ok()?)));
    let (name, ignore) = numbered.unwrap_or_else(|| panic!("`{family}`: no labels"));
    (set.into(), load(file, name), Some(ignore))
}

/// Parses `dice_batch`, `dice_sample`, `gdice_batch`, `gdice_sample`.
fn dice(loss: &str, ignore_index: Option<i64>) -> Option<Dice> {
    let (kind, sums) = loss.split_once('_')?;
    let generalized = ["dice", "gdice"].iter().position(|k| *k == kind)? == 1;
    let per_sample = ["batch", "sample"].iter().position(|s| *s == sums)? == 1;
    Some(Dice { generalized, per_sample, ignore_index })
}

/// Loss and gradient of `<family>.<loss>` or `ld.<set>.tau<tau>`; `None` for a name of another form.
fn label_loss(file: &SafetensorsFile, settings: &Settings, name: &str) -> Option<(f32, Tensor)> {
    if let Some(rest) = name.strip_prefix("ld.") {
        let (set, tau) = rest.split_once(".tau")?;
        let (logits, teacher) =
            (load(file, &format!("{set}.logits")), load(file, &format!("{set}.teacher_logits")));
        let tau: f32 = tau.parse().ok()?;
        return Some(loss_and_grad(&logits, |tape, z| {
            let teacher = tape.constant(teacher);
            tape.apply(CrossEntropy::soft(tau), &[z, &teacher]).unwrap()
        }));
    }
    let (family, loss) = name.split_once('.')?;
    let (set, labels, ignore_index) = labels_of(file, family);
    let logits = load(file, &format!("{set}.logits"));
    let ce = CrossEntropy { ignore_index, ..CrossEntropy::hard() };
    let smoothing = loss.strip_prefix("ce_label_smoothing_").map(|v| v.parse::<f32>().ok());
    let plus = loss.strip_prefix("ce_plus_").and_then(|v| v.split_once('_'));
    let (ce, overlap) = match (loss, smoothing, plus) {
        ("ce", ..) => (Some(ce), None),
        (_, Some(value), _) => (Some(CrossEntropy { label_smoothing: value?, ..ce }), None),
        (_, _, Some((_, kind))) => (Some(ce), Some(dice(kind, ignore_index)?)),
        _ => (None, Some(dice(loss, ignore_index)?)),
    };
    Some(loss_and_grad(&logits, |tape, z| {
        let labels = tape.constant(labels);
        let ce = ce.map(|op| tape.apply(op, &[z, &labels]).unwrap());
        let overlap = overlap.map(|op| tape.apply(op, &[z, &labels]).unwrap());
        match (ce, overlap) {
            (Some(ce), Some(overlap)) => {
                let weights = vec![1.0, settings.number("lambda_dice")];
                tape.apply(WeightedSum { weights }, &[&ce, &overlap]).unwrap()
            }
            (ce, overlap) => ce.or(overlap).expect("one of the two"),
        }
    }))
}

#[test]
fn label_losses() {
    let Some(dir) = golden_dir() else { return };
    let name = "losses_label.safetensors";
    let (file, settings) = (open(&dir, name), Settings::of(&manifest(&dir), name));
    let mut checked = 0;
    for name in file.names().filter(|n| !is_label_input(n)) {
        let (base, is_grad) = name.strip_suffix(".grad").map_or((name, false), |base| (base, true));
        let (y, g) = label_loss(&file, &settings, base)
            .unwrap_or_else(|| panic!("`{name}`: nothing checks this tensor"));
        compare(name, &if is_grad { stored(&g) } else { vec![y] }, &file);
        checked += 1;
    }
    println!("losses_label: {checked} tensors checked");
    assert!(checked > 0);
}
