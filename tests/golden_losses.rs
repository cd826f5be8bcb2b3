//! The losses against the golden reference values: every tensor of section `losses` is an input or is checked.

mod common;

use common::{Golden, Tolerance, for_section_where};
use dtk::ops::attention_transfer::{AtDistance, AttentionTransfer, attention_map};
use dtk::ops::cross_entropy::CrossEntropy;
use dtk::ops::dice::Dice;
use dtk::ops::weighted_sum::WeightedSum;
use dtk::ops::whiten_mse::{Whiten, WhitenMse, whiten};
use dtk::tape::{Tape, Var};
use dtk::tensor::Tensor;
use std::collections::BTreeMap;

/// A number of the file's entry in the manifest.
fn number(golden: &Golden, key: &str) -> f32 {
    golden.entry[key].as_f64().unwrap_or_else(|| panic!("{}: no number `{key}`", golden.name)) as f32
}

fn scalar(v: f32) -> Tensor {
    Tensor::full([1], v)
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

/// Everything that files of feature losses can hold about one level.
fn level(results: &mut BTreeMap<String, Tensor>, l: &str, s: &Tensor, t: &Tensor, eps: f32) {
    let mut put = |name: &str, v: Tensor| assert!(results.insert(format!("{name}.{l}"), v).is_none());
    let [n, h, w, c] = *s.shape() else { panic!("student.{l} is not an image batch") };
    for (tag, mode) in [("c", Whiten::Channel), ("chw", Whiten::Sample)] {
        put(&format!("white_{tag}"), whiten(t, mode, eps).unwrap());
        let (y, g) = loss_and_grad(s, |tape, s| {
            let t = tape.constant(t.clone());
            tape.apply(WhitenMse { whiten: mode, eps }, &[s, &t]).unwrap()
        });
        put(&format!("mse_{tag}.level"), scalar(y));
        put(&format!("mse_{tag}.level_sumC_meanNHW"), scalar(y * c as f32));
        put(&format!("mse_{tag}.level_sumCHW_meanN"), scalar(y * (c * h * w) as f32));
        put(&format!("mse_{tag}.grad_level"), g);
    }
    put("at.q_student", attention_map(s, 2.0).unwrap());
    put("at.q_teacher", attention_map(t, 2.0).unwrap());
    let transfer = |distance, s: &Tensor, t: &Tensor| {
        loss_and_grad(s, |tape, s| {
            let t = tape.constant(t.clone());
            tape.apply(AttentionTransfer { p: 2.0, distance }, &[s, &t]).unwrap()
        })
    };
    let one = |i: usize| transfer(AtDistance::L2, &sample(s, i), &sample(t, i)).0;
    put("at.per_sample", Tensor::from_vec([n], (0..n).map(one).collect::<Vec<f32>>()).unwrap());
    put("at.grad_level_mean", transfer(AtDistance::L2, s, t).1);
    let (y, g) = transfer(AtDistance::MeanSquare, s, t);
    put("at_zagoruyko.level", scalar(y));
    put("at_zagoruyko.grad_level", g);
}

#[test]
fn golden_losses_of_features() {
    for_section_where("losses", |g| !g.suffixes("student.").is_empty(), feature_losses);
}

fn feature_losses(golden: &Golden) {
    let (eps, lambda) = (number(golden, "layernorm_eps"), number(golden, "lambda_at"));
    let both = |l: &String| golden.expect(&format!("teacher.{l}"));
    let levels: Vec<String> = golden.suffixes("student.").into_iter().filter(both).collect();
    let pairs: Vec<(Tensor, Tensor)> = levels
        .iter()
        .map(|l| (golden.memory(&format!("student.{l}")), golden.memory(&format!("teacher.{l}"))))
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
            results.insert(format!("feat_{tag}.{what}"), v.tensor().clone());
        }
        let batch = pairs[0].0.shape()[0] as f32;
        results.insert("at.sum_over_batch_literal_eq2".into(), scalar(batch * at.tensor().item().unwrap()));
        let mut grads = tape.backward(&total).unwrap();
        for (l, s) in levels.iter().zip(&students) {
            results.insert(format!("feat_{tag}.grad.{l}"), grads.take(s).expect("a gradient"));
        }
    }

    for name in golden.names().filter(|n| !n.starts_with("student.") && !n.starts_with("teacher.")) {
        let got = results.get(name).unwrap_or_else(|| panic!("`{name}`: nothing checks this tensor"));
        golden.check(name, got, Tolerance::default());
    }
}

/// Whether a name of a file of label losses is an input: `<set>.logits`, `<set>.teacher_logits`, `<set>.y`, `<set>.y_<variant>`.
fn is_label_input(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(_, n)| n == "logits" || n == "teacher_logits" || n == "y" || n.starts_with("y_"))
}

/// The set a family belongs to (`seg` for `seg_absent`), and its labels: those of the same variant. Digits after the
/// variant's name are the ignored label (`y_ignore255` for `seg_ignore`).
fn labels_of(golden: &Golden, family: &str) -> (String, Tensor, Option<i64>) {
    let sets = golden.names().filter_map(|n| n.strip_suffix(".logits"));
    let (set, variant) = sets
        .filter_map(|s| Some((s, family.strip_prefix(s)?)))
        .find(|(_, v)| v.is_empty() || v.starts_with('_'))
        .unwrap_or_else(|| panic!("`{family}`: no logits"));
    let plain = format!("{set}.y{variant}");
    if golden.has(&plain) {
        return (set.into(), golden.get(&plain), None);
    }
    let numbered = golden.names().find_map(|n| Some((n, n.strip_prefix(&plain)?.parse::<i64>().ok()?)));
    let (name, ignore) = numbered.unwrap_or_else(|| panic!("`{family}`: no labels"));
    (set.into(), golden.get(name), Some(ignore))
}

/// Parses `dice_batch`, `dice_sample`, `gdice_batch`, `gdice_sample`.
fn dice(loss: &str, ignore_index: Option<i64>) -> Option<Dice> {
    let (kind, sums) = loss.split_once('_')?;
    let generalized = ["dice", "gdice"].iter().position(|k| *k == kind)? == 1;
    let per_sample = ["batch", "sample"].iter().position(|s| *s == sums)? == 1;
    Some(Dice { generalized, per_sample, ignore_index })
}

/// Loss and gradient of `<family>.<loss>` or `ld.<set>.tau<tau>`; `None` for a name of another form.
fn label_loss(golden: &Golden, name: &str) -> Option<(f32, Tensor)> {
    if let Some(rest) = name.strip_prefix("ld.") {
        let (set, tau) = rest.split_once(".tau")?;
        let (logits, teacher) =
            (golden.memory(&format!("{set}.logits")), golden.memory(&format!("{set}.teacher_logits")));
        let tau: f32 = tau.parse().ok()?;
        return Some(loss_and_grad(&logits, |tape, z| {
            let teacher = tape.constant(teacher);
            tape.apply(CrossEntropy::soft(tau), &[z, &teacher]).unwrap()
        }));
    }
    let (family, loss) = name.split_once('.')?;
    let (set, labels, ignore_index) = labels_of(golden, family);
    let logits = golden.memory(&format!("{set}.logits"));
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
                let weights = vec![1.0, number(golden, "lambda_dice")];
                tape.apply(WeightedSum { weights }, &[&ce, &overlap]).unwrap()
            }
            (ce, overlap) => ce.or(overlap).expect("one of the two"),
        }
    }))
}

#[test]
fn golden_losses_of_labels() {
    let has_logits = |g: &Golden| g.names().any(|n| n.ends_with(".logits"));
    for_section_where("losses", has_logits, |golden| {
        for name in golden.names().filter(|n| !is_label_input(n)) {
            let (base, is_grad) = name.strip_suffix(".grad").map_or((name, false), |base| (base, true));
            let (y, g) =
                label_loss(golden, base).unwrap_or_else(|| panic!("`{name}`: nothing checks this tensor"));
            golden.check(name, &if is_grad { g } else { scalar(y) }, Tolerance::default());
        }
    });
}

#[test]
fn golden_losses_are_all_of_a_known_kind() {
    let unknown =
        |g: &Golden| g.suffixes("student.").is_empty() && !g.names().any(|n| n.ends_with(".logits"));
    for_section_where("losses", unknown, |golden| {
        panic!("{}: neither features (`student.*`) nor logits (`*.logits`)", golden.name);
    });
}
