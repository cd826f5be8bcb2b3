//! Self-attention over one tensor of queries, keys and values. Per sample and head, with `t` tokens and `d` channels:
//! `S = Q K' / sqrt d`, `P = softmax(S)` over the keys, `Y = P V`. guided-diffusion writes the factor as `d^-1/4` on
//! `Q` and on `K`, for the range of f16; the product is the same.
//!
//! Gradients: `gV = P' gY`, `gP = gY V'`, `gS = P (gP - rowsum(P gP))`, `gQ = gS K / sqrt d`, `gK = gS' Q / sqrt d`.
//! The backward pass computes `P` again from the saved input and the logarithm of each row's sum, a block of queries
//! at a time, as in Dao et al., arXiv:2205.14135, so nothing of size `t x t` is ever stored.

mod cuda;

pub(in crate::ops) use cuda::variants;

use super::*;
use crate::base::DType;
use crate::cpu::{MatMut, MatRef, gemm, map_ordered, math, rows};
use crate::error::Error;
use crate::ops::check::Limit;

/// The order of the `3C` channels of the input, with `which` out of (query, key, value). The names are those of
/// guided-diffusion's option `use_new_attention_order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvOrder {
    /// `head * 3d + which * d + channel` (`QKVAttentionLegacy`).
    Legacy,
    /// `which * C + head * d + channel` (`QKVAttention`).
    New,
}

/// Multi-head self-attention. Input: `qkv [N, T, 3C]` or `[N, H, W, 3C]`; result `[N, T, C]` or `[N, H, W, C]` with
/// channel `head * d + channel`, `d = C / heads`. Saves the input and one number per token and head.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Number of heads; divides `C`.
    pub heads: usize,
    /// Order of the input's channels.
    pub order: QkvOrder,
}

/// Queries that are computed at a time: their rows of `S` fit in the second-level cache.
const BLOCK: usize = 64;

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    /// Tokens.
    t: usize,
    /// Channels per head.
    d: usize,
    heads: usize,
}

impl Sizes {
    /// Channels of the result.
    fn c(self) -> usize {
        self.heads * self.d
    }

    /// The factor on `Q K'`.
    fn scale(self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// All samples and heads.
    fn all(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.n).flat_map(move |n| (0..self.heads).map(move |head| (n, head)))
    }

    /// First element of sample `n` of the input.
    fn sample(self, n: usize) -> usize {
        n * self.t * 3 * self.c()
    }
}

impl Attention {
    fn sizes(&self, qkv: &Shape) -> Sizes {
        let d = qkv.last() / 3 / self.heads;
        Sizes { n: qkv[0], t: qkv.rows() / qkv[0], d, heads: self.heads }
    }

    /// First channel of query, key or value (`which` 0, 1, 2) of a head.
    fn channel(&self, s: Sizes, head: usize, which: usize) -> usize {
        match self.order {
            QkvOrder::Legacy => (3 * head + which) * s.d,
            QkvOrder::New => which * s.c() + head * s.d,
        }
    }

    /// Query, key or value of tokens `from..from + count` of a head, `count` x `d`.
    fn matrix<'a>(
        &self,
        qkv: &'a [f32],
        s: Sizes,
        (n, head, which): (usize, usize, usize),
        (from, count): (usize, usize),
    ) -> MatRef<'a> {
        let width = 3 * s.c();
        let at = s.sample(n) + from * width + self.channel(s, head, which);
        MatRef::new(&qkv[at..], count, s.d, width, 1)
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let fail = |what: String| Err(Error::shape("attention", what));
        let [x] = inputs else {
            return fail(format!("takes one input (qkv), got {}", inputs.len()));
        };
        if !matches!(x.len(), 3 | 4) || x.elems() == 0 {
            return fail(format!(
                "expects qkv [N, T, 3C] or [N, H, W, 3C] with at least one element, got {x}"
            ));
        }
        if self.heads == 0 || !x.last().is_multiple_of(3 * self.heads) {
            return fail(format!(
                "the {} channels of qkv {x} are not 3 x {} heads x channels per head",
                x.last(),
                self.heads
            ));
        }
        let mut dims = x.to_vec();
        dims[x.len() - 1] /= 3;
        Shape::from_slice(&dims)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let qkv = inputs[0].f32s()?;
        let s = self.sizes(&inputs[0].shape());
        let blocks = s.t.div_ceil(BLOCK);
        // Heads lie side by side in the result, so every task returns its part and the parts are copied in.
        let parts = map_ordered(s.n * s.heads * blocks, |i| {
            let (n, head, from) = (i / blocks / s.heads, i / blocks % s.heads, i % blocks * BLOCK);
            let count = BLOCK.min(s.t - from);
            let [k, v] = [1, 2].map(|which| self.matrix(qkv, s, (n, head, which), (0, s.t)));
            let mut p = vec![0.0; count * s.t];
            let q = self.matrix(qkv, s, (n, head, 0), (from, count));
            gemm(MatMut::row_major(&mut p, count, s.t), q, k.t(), false, false);
            let mut scales = Vec::with_capacity(count);
            let mut lse = Vec::with_capacity(count);
            for row in p.chunks_exact_mut(s.t) {
                let max = rows::max(row) * s.scale();
                row.iter_mut().for_each(|p| *p = math::exp(*p * s.scale() - max));
                let sum = rows::dot_by(row, row, |p, _| f64::from(p));
                scales.push((1.0 / sum) as f32);
                lse.push((f64::from(max) + sum.ln()) as f32);
            }
            let mut y = vec![0.0; count * s.d];
            gemm(MatMut::row_major(&mut y, count, s.d), MatRef::row_major(&p, count, s.t), v, false, false);
            for (y, scale) in y.chunks_exact_mut(s.d).zip(scales) {
                y.iter_mut().for_each(|y| *y *= scale);
            }
            (y, lse)
        });
        let mut y = vec![0.0; s.n * s.t * s.c()];
        let mut lse = Vec::with_capacity(s.n * s.heads * s.t);
        for (i, (part, part_lse)) in parts.into_iter().enumerate() {
            let (n, head, from) = (i / blocks / s.heads, i / blocks % s.heads, i % blocks * BLOCK);
            let rows = y[(n * s.t + from) * s.c()..].chunks_exact_mut(s.c());
            for (row, part) in rows.zip(part.chunks_exact(s.d)) {
                row[head * s.d..(head + 1) * s.d].copy_from_slice(part);
            }
            lse.extend(part_lse);
        }
        let shape = self.output_shape(&[inputs[0].shape()])?;
        let lse = Tensor::from_vec([s.n, s.heads, s.t], lse)?;
        Ok(Forward { y: Tensor::from_vec(shape, y)?, extra: vec![lse], aux: Vec::new() })
    }

    /// The input. The kernels take row sums of `P gP` from the result, so that is kept on a device.
    fn save(&self, inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        let on_device = y.gpu().is_some();
        std::iter::once(inputs[0]).chain(on_device.then_some(y)).cloned().collect()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, qkv, lse) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?, ctx.saved[1].f32s()?);
        let s = self.sizes(&ctx.inputs[0]);
        let parts = map_ordered(s.n * s.heads, |i| self.head_gradient(qkv, gy, lse, s, i));
        let mut g = vec![0.0; qkv.len()];
        for (i, part) in parts.into_iter().enumerate() {
            let (n, head) = (i / s.heads, i % s.heads);
            for (which, part) in part.iter().enumerate() {
                let first = self.channel(s, head, which);
                let rows = g[s.sample(n)..].chunks_exact_mut(3 * s.c());
                for (row, part) in rows.zip(part.chunks_exact(s.d)) {
                    row[first..first + s.d].copy_from_slice(part);
                }
            }
        }
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], g)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        self.forward_on(gpu, inputs[0])
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.backward_on(gpu, ctx)?)])
    }

    fn inner_rounding(&self, dtype: DType) -> f64 {
        // P and gS are operands too.
        Limit::new(0.0, dtype).of_value
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shape = self.output_shape(&[inputs[0].shape()])?;
        let (x, s) = (inputs[0].data::<f64>()?, self.sizes(&inputs[0].shape()));
        let mut y = vec![0.0f64; s.n * s.t * s.c()];
        for (n, head) in s.all() {
            let p = self.reference_weights(x, s, n, head);
            let v = self.reference_rows(x, s, n, head, 2);
            for (i, p) in p.chunks_exact(s.t).enumerate() {
                let y = &mut y[(n * s.t + i) * s.c() + head * s.d..][..s.d];
                for (&p, v) in p.iter().zip(v.chunks_exact(s.d)) {
                    y.iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
                }
            }
        }
        Tensor::from_vec(shape, y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (x, gy, s) = (inputs[0].data::<f64>()?, gy.data::<f64>()?, self.sizes(&inputs[0].shape()));
        let scale = 1.0 / (s.d as f64).sqrt();
        let mut g = vec![0.0f64; x.len()];
        for (n, head) in s.all() {
            let p = self.reference_weights(x, s, n, head);
            let [q, k, v] = [0, 1, 2].map(|which| self.reference_rows(x, s, n, head, which));
            let row = |m: &[f64], i: usize, j: usize| m[i * s.d + j];
            let at = |which, token, j| self.reference_element(s, n, head, which, token) + j;
            for i in 0..s.t {
                let (p, gy) = (&p[i * s.t..][..s.t], &gy[(n * s.t + i) * s.c() + head * s.d..][..s.d]);
                let dot = |k: usize| -> f64 { gy.iter().enumerate().map(|(j, g)| g * row(&v, k, j)).sum() };
                let gp: Vec<f64> = (0..s.t).map(dot).collect();
                let mean: f64 = p.iter().zip(&gp).map(|(p, g)| p * g).sum();
                for token in 0..s.t {
                    let gs = p[token] * (gp[token] - mean) * scale;
                    for j in 0..s.d {
                        g[at(0, i, j)] += gs * row(&k, token, j);
                        g[at(1, token, j)] += gs * row(&q, i, j);
                        g[at(2, token, j)] += p[token] * gy[j];
                    }
                }
            }
        }
        Ok(Some(vec![Some(Tensor::from_vec(inputs[0].shape(), g)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        let s = self.sizes(&inputs[0]);
        (s.n * s.heads * s.t * s.t * (4 * s.d + 5)) as u64
    }

    fn scratch_bytes(&self, inputs: &[Shape]) -> usize {
        let s = self.sizes(&inputs[0]);
        let result = s.n * s.t * s.c();
        4 * (result + crate::cpu::threads() * BLOCK.min(s.t) * s.t)
    }
}

/// The definition in f64, written apart from the code above.
impl Attention {
    /// The first element of query, key or value of a token.
    fn reference_element(&self, s: Sizes, n: usize, head: usize, which: usize, token: usize) -> usize {
        let channel = match self.order {
            QkvOrder::Legacy => head * 3 * s.d + which * s.d,
            QkvOrder::New => which * s.heads * s.d + head * s.d,
        };
        (n * s.t + token) * 3 * s.heads * s.d + channel
    }

    /// Queries, keys or values of a head, `t` x `d`.
    fn reference_rows(&self, x: &[f64], s: Sizes, n: usize, head: usize, which: usize) -> Vec<f64> {
        let row = |token| &x[self.reference_element(s, n, head, which, token)..][..s.d];
        (0..s.t).flat_map(row).copied().collect()
    }

    /// `P` of a head, `t` x `t`.
    fn reference_weights(&self, x: &[f64], s: Sizes, n: usize, head: usize) -> Vec<f64> {
        let quarter = (s.d as f64).powf(-0.25);
        let [q, k] = [0, 1].map(|which| self.reference_rows(x, s, n, head, which));
        let weights = q.chunks_exact(s.d).flat_map(|q| {
            let logit = |k: &[f64]| q.iter().zip(k).map(|(q, k)| (q * quarter) * (k * quarter)).sum();
            let logits: Vec<f64> = k.chunks_exact(s.d).map(logit).collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|l| (l - max).exp()).sum();
            logits.into_iter().map(move |l| (l - max).exp() / total)
        });
        weights.collect()
    }
}

impl Attention {
    /// Gradients of the query, key and value of sample `i / heads`, head `i % heads`, `t` x `d` each.
    fn head_gradient(&self, qkv: &[f32], gy: &[f32], lse: &[f32], s: Sizes, i: usize) -> [Vec<f32>; 3] {
        let (n, head) = (i / s.heads, i % s.heads);
        let [k, v] = [1, 2].map(|which| self.matrix(qkv, s, (n, head, which), (0, s.t)));
        let mut grads = [0, 1, 2].map(|_| vec![0.0; s.t * s.d]);
        let [gq, gk, gv] = &mut grads;
        let (mut p, mut gs) = (vec![0.0; BLOCK.min(s.t) * s.t], vec![0.0; BLOCK.min(s.t) * s.t]);
        for from in (0..s.t).step_by(BLOCK) {
            let count = BLOCK.min(s.t - from);
            let (p, gs) = (&mut p[..count * s.t], &mut gs[..count * s.t]);
            let q = self.matrix(qkv, s, (n, head, 0), (from, count));
            let g = MatRef::new(&gy[(n * s.t + from) * s.c() + head * s.d..], count, s.d, s.c(), 1);
            gemm(MatMut::row_major(p, count, s.t), q, k.t(), false, false);
            gemm(MatMut::row_major(gs, count, s.t), g, v.t(), false, false);
            let rows = p.chunks_exact_mut(s.t).zip(gs.chunks_exact_mut(s.t));
            for ((p, gs), &lse) in rows.zip(&lse[i * s.t + from..]) {
                p.iter_mut().for_each(|p| *p = math::exp(*p * s.scale() - lse));
                let dot = rows::dot_by(p, gs, |p, g| f64::from(p * g)) as f32;
                gs.iter_mut().zip(p).for_each(|(g, p)| *g = *p * (*g - dot) * s.scale());
            }
            let (p, gs) = (MatRef::row_major(p, count, s.t), MatRef::row_major(gs, count, s.t));
            let block = from * s.d..(from + count) * s.d;
            gemm(MatMut::row_major(&mut gq[block], count, s.d), gs, k, false, false);
            gemm(MatMut::row_major(gk, s.t, s.d), gs.t(), q, true, false);
            gemm(MatMut::row_major(gv, s.t, s.d), p.t(), g, true, false);
        }
        grads
    }
}

/// Both orders, one token, one channel, odd sizes, images, more than one block of queries.
pub fn cases() -> Vec<Case> {
    use QkvOrder::{Legacy, New};
    let case = |label: &str, x: &[usize], heads: usize, order: QkvOrder| {
        let x = Shape::from_slice(x).expect("a small shape");
        Case::new(label, Attention { heads, order }, vec![Input::normal("qkv", x)])
    };
    vec![
        case("one of each", &[1, 1, 3], 1, Legacy),
        case("one token", &[2, 1, 12], 2, New),
        case("legacy", &[2, 7, 18], 2, Legacy),
        case("new", &[2, 7, 18], 2, New),
        case("image", &[1, 3, 5, 45], 3, Legacy),
        case("image, new", &[2, 3, 2, 33], 1, New),
        case("several blocks", &[1, 2 * BLOCK + 3, 6], 1, Legacy),
        // Tiles of the kernels: heads of up to 32, 64 and 128 channels, filled and not, and tokens about multiples of 64.
        case("17 tokens", &[1, 17, 3 * 40], 1, New),
        case("64 tokens", &[1, 8, 8, 3 * 48], 2, Legacy),
        case("100 tokens", &[1, 10, 10, 3 * 64], 1, Legacy),
        case("256 tokens", &[1, 256, 3 * 64], 2, New),
        case("narrow", &[1, 70, 3 * 8], 1, Legacy),
        case("wide", &[1, 65, 3 * 128], 1, Legacy),
        case("wide and odd", &[1, 66, 3 * 35], 1, New),
        Case { bench: true, ..case("teacher 32", &[1, 32, 32, 3 * 512], 8, Legacy) },
        Case { bench: true, ..case("teacher 16", &[4, 16, 16, 3 * 1024], 16, Legacy) },
        Case { bench: true, ..case("teacher 8", &[16, 8, 8, 3 * 1024], 16, Legacy) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let op = Attention { heads: 2, order: QkvOrder::New };
        for shape in [[1, 4, 9], [1, 4, 4], [1, 0, 12], [0, 4, 12]] {
            let e = run(&op, &[&Tensor::zeros(shape)]).err().unwrap();
            assert!(e.is_shape() && e.to_string().contains("attention"), "{e}");
        }
        assert!(run(&op, &[&Tensor::zeros([4, 12])]).err().unwrap().is_shape());
        assert!(run(&op, &[]).err().unwrap().is_shape());
        let none = Attention { heads: 0, order: QkvOrder::New };
        assert!(run(&none, &[&Tensor::zeros([1, 4, 12])]).err().unwrap().is_shape());
    }

    #[test]
    fn large_logits_stay_finite() {
        let mut v = vec![0.0; 2 * 5 * 12];
        crate::base::Philox::new(1).fill_normal(&mut v);
        v.iter_mut().for_each(|v| *v *= 100.0);
        let x = Tensor::from_vec([2, 5, 12], v).unwrap();
        let op = Attention { heads: 2, order: QkvOrder::Legacy };
        let out = run(&op, &[&x]).unwrap();
        assert!(out.y.all_finite().unwrap());
        let saved = [x.clone(), out.extra[0].clone()];
        let ctx = Backward { gy: &out.y, saved: &saved, inputs: &[x.shape()], needs: &[true] };
        assert!(op.backward(&ctx).unwrap()[0].as_ref().unwrap().all_finite().unwrap());
    }

    #[test]
    fn threads_change_nothing() {
        let cases = cases();
        let case = cases.iter().find(|c| c.label == "several blocks").expect("is in the list");
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let x = &case.tensors(3)[0];
                let out = run(&*case.op, &[x]).unwrap();
                let saved = [x.clone(), out.extra[0].clone()];
                let ctx = Backward { gy: &out.y, saved: &saved, inputs: &[x.shape()], needs: &[true] };
                let g = case.op.backward(&ctx).unwrap()[0].clone().unwrap();
                [out.y, g].map(|t| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            })
        };
        assert_eq!(bits(1), bits(3));
    }
}
