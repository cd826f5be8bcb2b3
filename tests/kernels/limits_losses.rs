//! The passes of losses over maps and logits that fill their tiles: every byte moves once, 16 at a time.

use crate::cases::{DTYPES, Ran, run, with_device};
use dtk::gpu::Gpu;
use dtk::ops::attention_transfer::{AtDistance, AttentionTransfer};
use dtk::ops::cross_entropy::CrossEntropy;
use dtk::ops::dice::Dice;
use dtk::ops::feature_loss::FeatureLoss;
use dtk::ops::whiten_mse::{Whiten, WhitenMse};
use dtk::ops::{Backward, Case, Input, Op};
use dtk::tensor::Tensor;

/// Most bytes moved, of those that have to.
const MOVED: f64 = 1.15;
/// Bytes of a warp that reads or writes 16 bytes a lane.
const WIDE: u64 = 512;

fn cases() -> Vec<(&'static str, Case)> {
    let maps = |shapes: &[[usize; 4]]| -> Vec<Input> {
        let students = shapes.iter().map(|&s| Input::normal("student", s));
        students.chain(shapes.iter().map(|&s| Input::normal("teacher", s).fixed())).collect()
    };
    let mut all = Vec::new();
    for whiten in [Whiten::Sample, Whiten::Channel, Whiten::None] {
        let op = FeatureLoss { whiten, ..FeatureLoss::default() };
        let levels = maps(&[[2, 8, 16, 512], [2, 8, 8, 1024]]);
        all.push(("feature_loss", Case::new(format!("tiles: {whiten:?}"), op, levels)));
        let op = WhitenMse { whiten, eps: 1e-5 };
        let level = maps(&[[2, 16, 16, 256]]);
        all.push(("whiten_mse", Case::new(format!("tiles: {whiten:?}"), op, level)));
    }
    for (p, distance) in [(2.0, AtDistance::L2), (1.0, AtDistance::MeanSquare)] {
        let level = vec![
            Input::normal("student", [2, 8, 16, 256]),
            Input::normal("teacher", [2, 8, 16, 512]).fixed(),
        ];
        let case = Case::new(format!("tiles: p = {p}"), AttentionTransfer { p, distance }, level);
        all.push(("attention_transfer", case));
    }
    let logits = |k: usize| Input::normal("logits", [2, 8, 16, k]);
    let labels = |k: usize| Input::labels("labels", [2, 8, 16], k as u32, 0);
    for k in [256, 1024] {
        let hard = Case::new(format!("tiles: hard {k}"), CrossEntropy::hard(), vec![logits(k), labels(k)]);
        let teacher = Input::normal("teacher", [2, 8, 16, k]).fixed();
        let soft = Case::new(format!("tiles: soft {k}"), CrossEntropy::soft(4.0), vec![logits(k), teacher]);
        all.extend([("cross_entropy", hard), ("cross_entropy", soft)]);
    }
    let op = Dice { generalized: false, per_sample: false, ignore_index: None };
    let wide = vec![Input::normal("logits", [1, 16, 32, 256]), Input::labels("labels", [1, 16, 32], 256, 0)];
    all.push(("dice", Case::new("tiles", op, wide)));
    all
}

/// Bytes of maps, logits and their gradients that a pass has to move, and of labels. The teacher of attention transfer has
/// no part in the backward pass.
fn needed(op: &str, case: &Case, element: usize, entry: &str) -> Option<(u64, u64)> {
    let total = |of: &dyn Fn(&Input) -> bool, size: usize| {
        case.inputs.iter().filter(|i| of(i)).map(|i| (i.shape.elems() * size) as u64).sum::<u64>()
    };
    let labels = total(&|i| !i.dtype().is_float(), size_of::<i64>());
    if entry.ends_with("_fwd") {
        return Some((total(&|i| i.dtype().is_float(), element), labels));
    }
    let read = total(&|i| i.dtype().is_float() && (i.grad || op != "attention_transfer"), element);
    entry.ends_with("_bwd").then(|| (read + total(&|i| i.grad, element), labels))
}

/// What is wrong with a launch that had to move bytes of maps and of labels.
fn violations(r: &Ran, (maps, labels): (u64, u64)) -> Vec<String> {
    let Some(c) = &r.counters else { return Vec::new() };
    let mut wrong = Vec::new();
    let moved = (c.loads.moved + c.stores.moved) as f64 / (maps + labels) as f64;
    if moved > MOVED {
        wrong.push(format!("{moved:.3} bytes moved for 1"));
    }
    let wide: u64 = c.widths.iter().filter(|w| w.0 == 16).map(|w| WIDE * w.1).sum();
    if wide < maps {
        wrong.push(format!("{wide} of {maps} bytes at most move 16 at a time: {:?}", c.widths));
    }
    wrong.into_iter().map(|w| format!("{}, {}: {w}", r.case, r.kernel.entry)).collect()
}

#[test]
fn losses_move_every_byte_once() {
    let found = with_device(|gpu| {
        let (mut wrong, mut passes) = (Vec::new(), 0);
        for (op, case) in cases() {
            for dtype in DTYPES {
                for r in run(gpu, op, &case, dtype) {
                    if let Some(needed) = needed(op, &case, dtype.size(), &r.kernel.entry) {
                        passes += 1;
                        wrong.extend(violations(&r, needed));
                    }
                }
            }
        }
        // Forward and backward, twice each.
        assert_eq!(passes, 4 * cases().len() * DTYPES.len());
        wrong
    });
    let wrong = found.unwrap_or_default();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs an op on the device; gives the loss and the gradient of its first input.
fn on_device(gpu: &Gpu, op: &dyn Op, inputs: &[&Tensor]) -> dtk::Result<(f32, Vec<f32>)> {
    let inputs = inputs.iter().map(|t| t.to_gpu(gpu)).collect::<dtk::Result<Vec<Tensor>>>()?;
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let out = dtk::ops::run(op, &refs)?;
    let mut saved = op.save(&refs, &out.y);
    saved.extend(out.extra);
    let shapes: Vec<_> = refs.iter().map(|t| t.shape()).collect();
    let needs: Vec<bool> = (0..refs.len()).map(|i| i == 0).collect();
    let gy = Tensor::full(out.y.shape(), 1.0).to_gpu(gpu)?;
    let grads = dtk::ops::backward(op, &Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs })?;
    let gradient = grads[0].as_ref().expect("it is wanted").to_cpu()?;
    let seen = (out.y.to_cpu()?.item()?, gradient.f32s()?.to_vec());
    gpu.take_launches();
    gpu.report_clear();
    Ok(seen)
}

#[test]
fn what_is_no_number_and_what_is_no_class_come_out_as_nan() {
    with_device(|gpu| {
        let logits = Tensor::from_vec([1, 1, 2, 3], vec![0.5f32, -1.0, 2.0, 0.0, 1.0, 0.25]).unwrap();
        let dice = Dice { generalized: true, per_sample: false, ignore_index: None };
        let ops: [&dyn Op; 2] = [&CrossEntropy::hard(), &dice];
        for (op, wrong) in ops.into_iter().zip([7i64, -1]) {
            let labels = |second: i64| Tensor::from_vec([1, 1, 2], vec![1, second]).unwrap();
            let (y, g) = on_device(gpu, op, &[&logits, &labels(2)]).unwrap();
            assert!(y.is_finite() && g.iter().all(|g| g.is_finite()), "{}: {y} {g:?}", op.name());
            let (y, g) = on_device(gpu, op, &[&logits, &labels(wrong)]).unwrap();
            assert!(y.is_nan() && g[3..].iter().all(|g| g.is_nan()), "{}: {y} {g:?}", op.name());
        }
        let map = |v: f32| Tensor::from_vec([1, 1, 2, 2], vec![1.0, -2.0, v, 0.5]).unwrap();
        for op in [FeatureLoss::default(), FeatureLoss { p: 3.0, mse_weight: 0.0, ..FeatureLoss::default() }]
        {
            let (y, g) = on_device(gpu, &op, &[&map(3.0), &map(-1.0)]).unwrap();
            assert!(y.is_finite() && g.iter().all(|g| g.is_finite()), "{y} {g:?}");
            for (s, t) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (3.0, f32::NAN), (3.0, f32::INFINITY)] {
                let (y, g) = on_device(gpu, &op, &[&map(s), &map(t)]).unwrap();
                assert!(!y.is_finite() && g.iter().any(|g| !g.is_finite()), "{s} {t}: {y} {g:?}");
            }
        }
    });
}

#[test]
fn what_moves_too_much_is_told() {
    use crate::cases::Name;
    use crate::counters::{Bytes, Counters};
    let ran = |moved: u64, widths: Vec<(u64, u64)>| Ran {
        case: String::new(),
        kernel: Name { source: String::new(), entry: String::new(), defines: String::new() },
        threads: 32,
        registers: 32,
        counters: Some(Counters { loads: Bytes { useful: moved, moved }, widths, ..Counters::default() }),
    };
    let of = |moved, widths| violations(&ran(moved, widths), (1000, 24)).len();
    assert_eq!(of(1100, vec![(4, 9), (16, 2)]), 0);
    assert_eq!(of(1200, vec![(4, 9), (16, 2)]), 1);
    assert_eq!(of(1100, vec![(4, 9), (16, 1)]), 1);
}
