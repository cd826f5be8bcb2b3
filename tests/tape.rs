//! The tape and recomputation: gradients of whole networks against central differences of the f64 references, what is
//! kept in memory and when it goes, and what recomputing must not change.

use dtk::base::{DType, Philox, Shape};
use dtk::error::Result;
use dtk::nn::{BatchNorm2d, Conv2d, Ctx, ParamId, ParamStore};
use dtk::ops::batch_norm::{BatchNorm, BatchNormMode};
use dtk::ops::{self, Backward, Forward, Op};
use dtk::tape::{Tape, Var};
use dtk::tensor::{Ledger, Tensor};
use std::sync::{Arc, Mutex};

fn normal(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut v = vec![0.0; shape.elems()];
    Philox::new(seed).fill_normal(&mut v);
    Tensor::from_vec(shape, v).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.f32s().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// A tape without anything borrowed.
fn recording() -> Tape<'static> {
    Tape::new()
}

// ---- gradients of a network ----

/// Convolution, batch norm, ReLU, max pooling, a residual sum, global pooling, linear layer, cross-entropy.
struct Net {
    conv: ops::conv2d::Conv2d,
    norm: BatchNorm,
    pool: ops::max_pool::MaxPool,
    loss: ops::cross_entropy::CrossEntropy,
    labels: Tensor,
}

impl Net {
    fn new() -> Self {
        Net {
            conv: ops::conv2d::Conv2d { stride: [1; 2], pad: [1; 2], dilation: [1; 2], groups: 1 },
            norm: BatchNorm::new(BatchNormMode::Train, 1e-5, false),
            pool: ops::max_pool::MaxPool { kernel: 2, stride: 2, pad: 0 },
            loss: ops::cross_entropy::CrossEntropy::hard(),
            labels: Tensor::from_vec([3], vec![1i64, 0, 4]).unwrap(),
        }
    }

    /// x, both convolutions' weights and biases, gain and shift, the linear layer's weight and bias.
    fn inputs(&self) -> Vec<Tensor> {
        let shapes: [&[usize]; 9] =
            [&[3, 6, 5, 3], &[4, 3, 3, 3], &[4], &[4], &[4], &[4, 3, 3, 4], &[4], &[5, 4], &[5]];
        shapes.iter().enumerate().map(|(i, s)| normal(Shape::from_slice(s).unwrap(), 10 + i as u64)).collect()
    }

    fn on_tape(&self, tape: &mut Tape<'static>, v: &[Var]) -> Var {
        let labels = tape.constant(self.labels.clone());
        let y = tape.apply(self.conv.clone(), &[&v[0], &v[1], &v[2]]).unwrap();
        let y = tape.apply(self.norm.clone(), &[&y, &v[3], &v[4]]).unwrap();
        let y = tape.apply(ops::relu::Relu {}, &[&y]).unwrap();
        let y = tape.apply(self.pool.clone(), &[&y]).unwrap();
        let z = tape.apply(self.conv.clone(), &[&y, &v[5], &v[6]]).unwrap();
        let y = tape.apply(ops::add::Add { relu: false }, &[&z, &y]).unwrap();
        let y = tape.apply(ops::global_avg_pool::GlobalAvgPool {}, &[&y]).unwrap();
        let y = tape.apply(ops::linear::Linear {}, &[&y, &v[7], &v[8]]).unwrap();
        tape.apply(self.loss.clone(), &[&y, &labels]).unwrap()
    }

    fn in_f64(&self, v: &[Tensor]) -> f64 {
        let y = self.conv.reference(&[&v[0], &v[1], &v[2]]).unwrap();
        let y = self.norm.reference(&[&y, &v[3], &v[4]]).unwrap();
        let y = ops::relu::Relu {}.reference(&[&y]).unwrap();
        let y = self.pool.reference(&[&y]).unwrap();
        let z = self.conv.reference(&[&y, &v[5], &v[6]]).unwrap();
        let y = ops::add::Add { relu: false }.reference(&[&z, &y]).unwrap();
        let y = ops::global_avg_pool::GlobalAvgPool {}.reference(&[&y]).unwrap();
        let y = ops::linear::Linear {}.reference(&[&y, &v[7], &v[8]]).unwrap();
        self.loss.reference(&[&y, &self.labels]).unwrap().data::<f64>().unwrap()[0]
    }

    fn gradients(&self) -> (f32, Vec<Tensor>) {
        let mut tape = recording();
        let leaves: Vec<Var> = self.inputs().into_iter().map(|t| tape.leaf(t)).collect();
        let loss = self.on_tape(&mut tape, &leaves);
        let value = loss.tensor().item().unwrap();
        let mut grads = tape.backward(&loss).unwrap();
        (value, leaves.iter().map(|l| grads.take(l).expect("a gradient")).collect())
    }
}

#[test]
fn a_network_against_central_differences() {
    const STEP: f64 = 1e-6;
    let net = Net::new();
    let (value, grads) = net.gradients();
    let wide: Vec<Tensor> = net.inputs().iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
    let want = net.in_f64(&wide);
    assert!((f64::from(value) - want).abs() <= 1e-5 * want.abs(), "loss {value}, reference {want}");
    for (i, g) in grads.iter().enumerate() {
        assert_eq!(g.shape(), wide[i].shape());
        let g = g.f32s().unwrap();
        // The first bias is taken away by the norm: its gradient is zero up to rounding.
        let scale = g.iter().fold(1e-2, |m: f64, v| m.max(f64::from(v.abs())));
        for j in (0..g.len()).step_by((g.len() / 40).max(1)) {
            let at = |h: f64| {
                let mut moved = wide.clone();
                moved[i].data_mut::<f64>().unwrap()[j] += h;
                net.in_f64(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let error = (f64::from(g[j]) - slope).abs();
            assert!(error <= 1e-4 * scale, "input {i}, element {j}: {} against {slope}", g[j]);
        }
    }
    assert!(grads[1].f32s().unwrap().iter().any(|g| g.abs() > 1e-3), "the gradient is not all zero");
}

#[test]
fn two_tapes_double_the_sum() {
    let net = Net::new();
    let ((_, a), (_, b)) = (net.gradients(), net.gradients());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(bits(a), bits(b));
        let sum: Vec<f32> = a.f32s().unwrap().iter().zip(b.f32s().unwrap()).map(|(a, b)| a + b).collect();
        assert!(sum.iter().zip(a.f32s().unwrap()).all(|(s, a)| *s == 2.0 * a));
    }
    // The same within one tape: a seed given twice counts twice.
    let x = normal([3, 7], 1);
    let grad = |times: usize| {
        let mut tape = recording();
        let leaf = tape.leaf(x.clone());
        let y = tape.apply(ops::silu::Silu {}, &[&leaf]).unwrap();
        let seed = normal([3, 7], 2);
        tape.backward_from(vec![(y, seed); times]).unwrap().take(&leaf).unwrap()
    };
    let (one, two) = (grad(1), grad(2));
    assert!(one.f32s().unwrap().iter().zip(two.f32s().unwrap()).all(|(a, b)| 2.0 * a == *b));
}

#[test]
fn a_value_used_several_times_gets_the_sum() {
    let (x, seed) = (normal([2, 5], 3), normal([2, 5], 4));
    let grad = |build: &dyn Fn(&mut Tape<'static>, &Var) -> Var| {
        let mut tape = recording();
        let leaf = tape.leaf(x.clone());
        let y = build(&mut tape, &leaf);
        tape.backward_from(vec![(y, seed.clone())]).unwrap().take(&leaf).unwrap().into_vec::<f32>().unwrap()
    };
    let add = || ops::add::Add { relu: false };
    let g = seed.f32s().unwrap();
    let twice = grad(&|t, x| t.apply(add(), &[x, x]).unwrap());
    assert!(twice.iter().zip(g).all(|(a, g)| *a == 2.0 * g), "x + x");
    let silu = grad(&|t, x| t.apply(ops::silu::Silu {}, &[x]).unwrap());
    let thrice = grad(&|t, x| {
        let a = t.apply(ops::silu::Silu {}, &[x]).unwrap();
        let b = t.apply(add(), &[&a, x]).unwrap();
        t.apply(add(), &[&b, &x.clone()]).unwrap()
    });
    for ((t, s), g) in thrice.iter().zip(&silu).zip(g) {
        assert!((t - (s + 2.0 * g)).abs() <= 1e-6 * (1.0 + t.abs()), "silu(x) + x + x: {t}");
    }
}

#[test]
fn gradients_reach_only_what_they_should() {
    let mut tape = recording();
    let (a, unused) = (tape.leaf(normal([4], 1)), tape.leaf(normal([4], 2)));
    let fixed = tape.constant(normal([4], 3));
    let y = tape.apply(ops::add::Add { relu: false }, &[&a, &fixed]).unwrap();
    let side = tape.apply(ops::relu::Relu {}, &[&unused]).unwrap();
    let cut = tape.apply(ops::relu::Relu {}, &[&y.detach()]).unwrap();
    assert!(y.tracked() && side.tracked() && !cut.tracked() && !fixed.tracked());
    let mut g = tape.backward_from(vec![(y, normal([4], 4))]).unwrap();
    assert!(g.take(&unused).is_none() && g.take(&fixed).is_none());
    assert_eq!(bits(&g.take(&a).unwrap()), bits(&normal([4], 4)));
    assert!(g.take(&a).is_none(), "a gradient is taken once");
}

#[test]
fn errors() {
    let mut tape = recording();
    let x = tape.leaf(normal([2, 3], 1));
    let e = tape.backward(&x).err().unwrap();
    assert!(e.is_shape() && e.to_string().contains("[2, 3]"), "{e}");
    let tape = recording();
    let c = tape.constant(Tensor::scalar(1.0));
    let e = tape.backward(&c).err().unwrap();
    assert!(e.is_usage() && e.to_string().contains("tracked") && e.remedy().is_some(), "{e}");
    let mut tape = Tape::frozen();
    let x = tape.leaf(Tensor::scalar(1.0));
    assert!(!tape.is_recording() && tape.backward(&x).err().unwrap().is_usage());
    let mut tape = recording();
    let x = tape.leaf(normal([2, 3], 1));
    let e = tape.backward_from(vec![(x, Tensor::zeros([3, 2]))]).err().unwrap();
    assert!(e.is_shape() && e.to_string().contains("[3, 2]") && e.to_string().contains("[2, 3]"), "{e}");
    let mut tape = recording();
    let (x, meta) = (tape.leaf(normal([2], 1)), tape.leaf(Tensor::meta([2], DType::F32, None)));
    let e = tape.apply(ops::add::Add { relu: false }, &[&x, &meta]).err().unwrap();
    assert!(e.is_device() && e.to_string().contains("add"), "{e}");
    let y = tape.leaf(normal([3, 3, 3], 1));
    let e = tape.apply(ops::add::Add { relu: false }, &[&x, &y]).err().unwrap();
    assert!(e.is_shape() && e.to_string().contains("add") && e.to_string().contains("[3, 3, 3]"), "{e}");
}

// ---- memory ----

const DEPTH: usize = 40;
const SHAPE: [usize; 4] = [2, 8, 8, 4];
const BYTES: usize = 2 * 8 * 8 * 4 * 4;

/// Peak of a chain of SiLUs, which save their inputs, on planning tensors.
fn chain_peak(mut tape: Tape<'static>, tracked: bool) -> usize {
    let ledger = Ledger::new();
    let x = Tensor::meta(SHAPE, DType::F32, Some(&ledger));
    let mut y = if tracked { tape.leaf(x) } else { tape.constant(x) };
    for _ in 0..DEPTH {
        y = tape.apply(ops::silu::Silu {}, &[&y]).unwrap();
    }
    assert_eq!(y.tracked(), tracked && tape.is_recording());
    ledger.peak_bytes()
}

#[test]
fn only_a_tracked_chain_keeps_its_activations() {
    let frozen = chain_peak(Tape::frozen(), true);
    assert!((2 * BYTES..=3 * BYTES).contains(&frozen), "frozen: {frozen}");
    assert_eq!(chain_peak(Tape::new(), false), frozen, "constants on a recording tape");
    let recorded = chain_peak(Tape::new(), true);
    assert!(recorded >= (DEPTH + 1) * BYTES, "recorded: {recorded}");
    let mut tape = recording().trace();
    let (c, l) = (tape.constant(normal([3], 1)), tape.leaf(normal([3], 1)));
    tape.apply(ops::relu::Relu {}, &[&c]).unwrap();
    tape.apply(ops::relu::Relu {}, &[&l]).unwrap();
    let steps: Vec<_> = tape.steps().iter().map(|s| (s.op, s.flops, s.recorded)).collect();
    assert_eq!(steps, [("relu", 3, false), ("relu", 3, true)]);
}

/// The identity; its backward notes how many bytes are alive.
#[derive(Debug)]
struct Probe(Arc<Ledger>, Arc<Mutex<Vec<usize>>>);

impl Op for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        Ok(inputs[0])
    }
    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        Ok(inputs[0].clone().into())
    }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }
    fn backward(&self, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.1.lock().unwrap().push(self.0.live_bytes());
        Ok(vec![Some(b.gy.clone())])
    }
    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        Ok(inputs[0].clone())
    }
    fn flops(&self, _: &[Shape]) -> u64 {
        0
    }
    fn is_composite(&self) -> bool {
        true
    }
}

#[test]
fn backward_frees_as_it_goes() {
    let (ledger, seen) = (Ledger::new(), Arc::new(Mutex::new(Vec::new())));
    let mut tape = recording();
    let x = tape.leaf(Tensor::meta(SHAPE, DType::F32, Some(&ledger)));
    let mut y = x.clone();
    for _ in 0..DEPTH {
        y = tape.apply(ops::silu::Silu {}, &[&y]).unwrap();
        y = tape.apply(Probe(Arc::clone(&ledger), Arc::clone(&seen)), &[&y]).unwrap();
    }
    let before = ledger.live_bytes();
    assert!(before >= (DEPTH + 1) * BYTES);
    let seed = Tensor::meta(SHAPE, DType::F32, Some(&ledger));
    let mut grads = tape.backward_from(vec![(y, seed)]).unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), DEPTH);
    for (i, w) in seen.windows(2).enumerate() {
        assert_eq!(w[0] - w[1], BYTES, "one activation goes with every layer: {i}: {seen:?}");
    }
    assert_eq!(ledger.live_bytes(), 2 * BYTES, "the leaf and its gradient");
    assert!(ledger.peak_bytes() <= before + 3 * BYTES, "peak {} of {before}", ledger.peak_bytes());
    drop((grads.take(&x), x));
    drop(grads);
    assert_eq!(ledger.live_bytes(), 0);
}

// ---- recomputation ----

/// Convolution, batch norm, ReLU, dropout, convolution, and the shortcut around them.
struct Block {
    conv1: Conv2d,
    norm: BatchNorm2d,
    conv2: Conv2d,
}

impl Block {
    fn forward(&self, ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
        let y = self.conv1.forward(ctx, x)?;
        let y = self.norm.forward(ctx, &y, true)?;
        let y = dropout(ctx, &y)?;
        let y = self.conv2.forward(ctx, &y)?;
        ctx.apply(ops::add::Add { relu: false }, &[&y, x])
    }
}

fn dropout(ctx: &mut Ctx<'_>, x: &Var) -> Result<Var> {
    let rng = ctx.next_rng();
    ctx.apply(ops::dropout::Dropout { rate: 0.3, rng, channels: false, key: ctx.last_key() }, &[x])
}

fn network(depth: usize, channels: usize) -> (ParamStore, Vec<Block>) {
    let mut store = ParamStore::new();
    let mut b = store.builder();
    let blocks = (0..depth)
        .map(|i| {
            let mut b = b.pp(i);
            Block {
                conv1: Conv2d::new(&mut b.pp("conv1"), channels, channels, 3, 1, 1),
                norm: BatchNorm2d::new(&mut b.pp("norm"), channels, 1.0),
                conv2: Conv2d::new(&mut b.pp("conv2"), channels, channels, 3, 1, 1),
            }
        })
        .collect();
    store.init(7).unwrap();
    (store, blocks)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    Recompute,
    Nested,
}

fn forward<'a>(ctx: &mut Ctx<'a>, blocks: &'a [Block], x: &Var, mode: Mode) -> Var {
    let mut y = x.clone();
    for pair in blocks.chunks(2) {
        y = match mode {
            Mode::Plain => pair.iter().fold(y, |y, b| b.forward(ctx, &y).unwrap()),
            Mode::Recompute => {
                pair.iter().fold(y, |y, b| ctx.recompute(&[&y], move |ctx, x| b.forward(ctx, &x[0])).unwrap())
            }
            Mode::Nested => ctx
                .recompute(&[&y], move |ctx, x| {
                    let y = pair[0].forward(ctx, &x[0])?;
                    let inner = pair.len() > 1;
                    if inner {
                        ctx.recompute(&[&y], move |ctx, x| pair[1].forward(ctx, &x[0]))
                    } else {
                        Ok(y)
                    }
                })
                .unwrap(),
        };
    }
    dropout(ctx, &y).unwrap()
}

/// Result, gradients of the input and of all parameters, buffer updates.
type Trained = (Tensor, Tensor, Vec<Option<Tensor>>, Vec<(ParamId, Tensor)>);

fn train(store: &ParamStore, blocks: &[Block], mode: Mode) -> Trained {
    let mut ctx = Ctx::training(store, Philox::new(5));
    let x = ctx.leaf(normal([2, 5, 4, 3], 1));
    let y = forward(&mut ctx, blocks, &x, mode);
    let seed = normal(y.shape(), 2);
    let mut g = ctx.backward_from(vec![(y.clone(), seed)]).unwrap();
    let params = store.iter().map(|(id, _)| g.take_param(id)).collect();
    (y.into_tensor(), g.take(&x).unwrap(), params, g.buffers().to_vec())
}

#[test]
fn recomputing_changes_nothing() {
    let (store, blocks) = network(3, 3);
    let plain = train(&store, &blocks, Mode::Plain);
    assert_eq!(plain.3.len(), 9, "three buffers of three norms, once each");
    for mode in [Mode::Recompute, Mode::Nested] {
        let other = train(&store, &blocks, mode);
        assert_eq!(bits(&plain.0), bits(&other.0), "{mode:?}: result");
        assert_eq!(bits(&plain.1), bits(&other.1), "{mode:?}: gradient of the input");
        for ((_, p), (a, b)) in store.iter().zip(plain.2.iter().zip(&other.2)) {
            assert_eq!(a.as_ref().map(bits), b.as_ref().map(bits), "{mode:?}: gradient of {}", p.name());
            assert_eq!(a.is_some(), p.trainable(), "{}", p.name());
        }
        assert_eq!(plain.3.len(), other.3.len(), "{mode:?}: buffers are updated once");
        for ((i, a), (j, b)) in plain.3.iter().zip(&other.3) {
            let name = store.get(*i).name();
            assert_eq!(i, j);
            match a.dtype() {
                DType::F32 => assert_eq!(bits(a), bits(b), "{mode:?}: {name}"),
                _ => assert_eq!((a.data::<i64>().unwrap(), b.data::<i64>().unwrap()), (&[1][..], &[1][..])),
            }
        }
    }
}

#[test]
fn recomputing_saves_memory() {
    let (store, blocks) = network(16, 4);
    let peak = |mode| {
        let ledger = Ledger::new();
        let mut ctx = Ctx::training(&store, Philox::new(5)).planning(&ledger).trace();
        let x = ctx.leaf(Tensor::meta([2, 32, 32, 4], DType::F32, Some(&ledger)));
        let y = forward(&mut ctx, &blocks, &x, mode);
        let steps = ctx.steps().len();
        let seed = Tensor::meta(y.shape(), DType::F32, Some(&ledger));
        let mut g = ctx.backward_from(vec![(y, seed)]).unwrap();
        let grads: usize = store.iter().filter_map(|(id, _)| g.take_param(id)).map(|t| t.bytes()).sum();
        let trainable = store.iter().filter(|(_, p)| p.trainable());
        assert_eq!(grads, trainable.map(|(_, p)| p.value().bytes()).sum::<usize>());
        (ledger.peak_bytes(), steps)
    };
    let (plain, plain_steps) = peak(Mode::Plain);
    let (saved, saved_steps) = peak(Mode::Recompute);
    assert_eq!(plain_steps, saved_steps, "the forward pass has the same operations");
    assert!(saved * 4 < plain * 3, "peak {saved} with and {plain} without recomputation");
}

#[test]
fn masks_repeat_under_recomputation() {
    let store = ParamStore::new();
    let mut ctx = Ctx::training(&store, Philox::new(9));
    let x = ctx.leaf(Tensor::full([500], 1.0));
    let a = ctx.recompute(&[&x], |ctx, x| dropout(ctx, &x[0])).unwrap();
    let b = ctx.recompute(&[&x], |ctx, x| dropout(ctx, &x[0])).unwrap();
    assert_ne!(bits(a.tensor()), bits(b.tensor()), "every use draws a mask of its own");
    let value = a.tensor().clone();
    let g = ctx.backward_from(vec![(a, Tensor::full([500], 1.0))]).unwrap().take(&x).unwrap();
    assert_eq!(bits(&g), bits(&value), "the gradient of a mask on ones is the mask");
    let dropped = value.f32s().unwrap().iter().filter(|v| **v == 0.0).count();
    assert!((100..200).contains(&dropped), "{dropped} of 500");
}
