//! Group normalisation, optionally modulated and followed by SiLU. Per sample and group, with mean `m`, biased
//! variance and `r = 1 / sqrt(var + eps)`:
//!
//! ```text
//! xh = (x - m) r      z = (xh w + b) (1 + scale) + shift = xh u + v      y = z  or  z s(z)
//! ```
//!
//! Gradients, with `gz` the gradient at `z`, `A = sum gz` and `B = sum gz xh` per sample and channel, and means over
//! the group: `gx = r (gz u - mean(gz u) - xh mean(gz u xh))`, `gw = sum_n (1 + scale) B`, `gb = sum_n (1 + scale) A`,
//! `gscale = w B + b A`, `gshift = A`. Wu, He, arXiv:1803.08494; the modulation is guided-diffusion's
//! `use_scale_shift_norm`.

mod adjoint;
pub mod cuda;

use super::*;
use crate::cpu::{for_each_chunk, math, rows};
use crate::error::Error;

/// Normalises every group of channels of every sample.
///
/// Inputs: `x [N, .., C]` (`[N, H, W, C]` or `[N, T, C]`), `w [C]`, `b [C]`, and optionally `scale_shift [N, 2C]`, whose
/// first half is the scale; on a device `w` and `b` are f32, and `scale_shift` is f32 or bf16. Saves the inputs and three
/// numbers per group; everything else is computed again.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Number of groups; divides the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether a SiLU follows.
    pub silu: bool,
}

impl GroupNorm {
    /// The usual form: no modulation, no SiLU.
    pub fn new(groups: usize, eps: f32) -> Self {
        GroupNorm { groups, eps, silu: false }
    }

    /// Per sample and group: the mean in two parts and `1 / sqrt(var + eps)`, as `[N, G, 3]`.
    fn stats(&self, x: &[f32], size @ [n, pixels, c]: [usize; 3]) -> Vec<f32> {
        let sums = rows::column_moments(x, size);
        let per_group = c / self.groups;
        let count = (pixels * per_group) as f64;
        let mut stats = Vec::with_capacity(n * self.groups * 3);
        for sample in sums.chunks_exact(2 * c) {
            let (s, q) = sample.split_at(c);
            for (s, q) in s.chunks_exact(per_group).zip(q.chunks_exact(per_group)) {
                let mean = s.iter().sum::<f64>() / count;
                // In f64 the difference of squares keeps the variance of any f32 input whose own rounding leaves one.
                let var = (q.iter().sum::<f64>() / count - mean * mean).max(0.0);
                let (high, low) = rows::split(mean);
                stats.extend([high, low, (1.0 / (var + f64::from(self.eps)).sqrt()) as f32]);
            }
        }
        stats
    }
}

/// Dimensions of `x` as samples, pixels, channels.
fn size(x: &Shape) -> [usize; 3] {
    [x[0], x.rows() / x[0], x.last()]
}

/// Everything beside `x` that the formula needs.
struct Terms<'a> {
    groups: usize,
    w: &'a [f32],
    b: &'a [f32],
    scale_shift: Option<&'a [f32]>,
    stats: &'a [f32],
}

/// The terms of one sample and channel, in f64.
struct Term {
    /// The part of the mean that is subtracted from `x`.
    high: f64,
    /// The rest of the mean.
    low: f64,
    /// `1 / sqrt(var + eps)`.
    r: f64,
    w: f64,
    b: f64,
    /// `1 + scale`.
    scale: f64,
    shift: f64,
}

impl<'a> Terms<'a> {
    /// From the inputs after `x`, and the statistics.
    fn new(groups: usize, rest: &'a [&Tensor], stats: &'a [f32]) -> Result<Self> {
        let scale_shift = rest.get(2).map(|s| s.f32s()).transpose()?;
        Ok(Terms { groups, w: rest[0].f32s()?, b: rest[1].f32s()?, scale_shift, stats })
    }

    fn at(&self, n: usize, j: usize) -> Term {
        let c = self.w.len();
        let group = n * self.groups + j / (c / self.groups);
        let [high, low, r] = [0, 1, 2].map(|i| f64::from(self.stats[3 * group + i]));
        let (scale, shift) = self
            .scale_shift
            .map_or((1.0, 0.0), |s| (1.0 + f64::from(s[2 * n * c + j]), f64::from(s[2 * n * c + c + j])));
        Term { high, low, r, w: f64::from(self.w[j]), b: f64::from(self.b[j]), scale, shift }
    }

    /// `z = (x - mean) * slope + offset`: per sample the rows mean, slope, offset.
    fn affine(&self, n: usize) -> Vec<f32> {
        table(n, self.w.len(), |n, j| {
            let t = self.at(n, j);
            let slope = t.r * t.w * t.scale;
            [t.high, slope, t.b * t.scale + t.shift - t.low * slope]
        })
    }
}

/// `K` rows of `c` coefficients for each of `n` samples.
fn table<const K: usize>(n: usize, c: usize, f: impl Fn(usize, usize) -> [f64; K]) -> Vec<f32> {
    let mut out = vec![0.0; n * K * c];
    for (n, sample) in out.chunks_exact_mut(K * c).enumerate() {
        for j in 0..c {
            for (k, v) in f(n, j).into_iter().enumerate() {
                sample[k * c + j] = v as f32;
            }
        }
    }
    out
}

/// The `K` coefficient rows of sample `n`.
fn coefficients<const K: usize>(table: &[f32], n: usize, c: usize) -> [&[f32]; K] {
    std::array::from_fn(|k| &table[(n * K + k) * c..(n * K + k + 1) * c])
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let fail = |what: String| Err(Error::shape("group_norm", what));
        let (x, w, b, scale_shift) = match inputs {
            [x, w, b] => (x, w, b, None),
            [x, w, b, s] => (x, w, b, Some(s)),
            _ => {
                let n = inputs.len();
                return fail(format!("takes three or four inputs (x, w, b, scale_shift), got {n}"));
            }
        };
        if x.len() < 2 || x.elems() == 0 {
            return fail(format!("expects x [N, .., C] with at least one element, got {x}"));
        }
        let c = x.last();
        if self.groups == 0 || !c.is_multiple_of(self.groups) {
            return fail(format!("{} groups do not divide the {c} channels of {x}", self.groups));
        }
        if **w != [c] || **b != [c] {
            return fail(format!("x {x} needs w and b [{c}], got {w} and {b}"));
        }
        match scale_shift {
            Some(s) if **s != [x[0], 2 * c] => {
                fail(format!("x {x} needs scale_shift [{}, {}], got {s}", x[0], 2 * c))
            }
            _ => Ok(*x),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (shape, x) = (inputs[0].shape(), inputs[0].f32s()?);
        let [n, pixels, c] = size(&shape);
        let stats = self.stats(x, [n, pixels, c]);
        let affine = Terms::new(self.groups, &inputs[1..], &stats)?.affine(n);
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, c, |i, y| {
            let [mean, slope, offset] = coefficients(&affine, i / pixels, c);
            let row = y.iter_mut().zip(&x[i * c..]).zip(mean).zip(slope).zip(offset);
            if self.silu {
                for ((((y, &x), &mean), &slope), &offset) in row {
                    let z = (x - mean) * slope + offset;
                    *y = z * math::sigmoid(z);
                }
            } else {
                for ((((y, &x), &mean), &slope), &offset) in row {
                    *y = (x - mean) * slope + offset;
                }
            }
        });
        let stats = Tensor::from_vec([n, self.groups, 3], stats)?;
        Ok(Forward { y: Tensor::from_vec(shape, y)?, extra: vec![stats], aux: Vec::new() })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        inputs.iter().map(|&t| t.clone()).collect()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let size @ [n, pixels, c] = size(&ctx.inputs[0]);
        let (gy, x) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?);
        let count = ctx.inputs.len();
        let rest: Vec<&Tensor> = ctx.saved[1..count].iter().collect();
        let terms = Terms::new(self.groups, &rest, ctx.saved[count].f32s()?)?;
        let affine = terms.affine(n);
        // First pass: `gx` holds gz; its column sums, plain and times (x - high).
        let mut gx = vec![0.0; x.len()];
        let mut sums = rows::fill_and_sum_rows(&mut gx, size, 2 * c, |n, range, gx, sums| {
            let [mean, slope, offset] = coefficients(&affine, n, c);
            let (sa, sb) = sums.split_at_mut(c);
            let at = (n * pixels + range.start) * c..(n * pixels + range.end) * c;
            let rows = x[at.clone()].chunks_exact(c).zip(gy[at].chunks_exact(c));
            for (gx, (x, gy)) in gx.chunks_exact_mut(c).zip(rows) {
                if self.silu {
                    let row = gx.iter_mut().zip(x).zip(gy).zip(mean).zip(slope).zip(offset);
                    for (((((gz, &x), &gy), &mean), &slope), &offset) in row {
                        let z = (x - mean) * slope + offset;
                        let s = math::sigmoid(z);
                        *gz = gy * (s * (1.0 + z * (1.0 - s)));
                    }
                } else {
                    gx.copy_from_slice(gy);
                }
                let row = gx.iter().zip(x).zip(mean).zip(sa.iter_mut()).zip(sb.iter_mut());
                for ((((&gz, &x), &mean), sa), sb) in row {
                    *sa += f64::from(gz);
                    *sb += f64::from(gz * (x - mean));
                }
            }
        });
        // The second sum becomes B.
        for (n, sample) in sums.chunks_exact_mut(2 * c).enumerate() {
            let (a, b) = sample.split_at_mut(c);
            for (j, (a, b)) in a.iter().zip(b).enumerate() {
                let t = terms.at(n, j);
                *b = t.r * (*b - t.low * a);
            }
        }
        let sum = |n: usize, j: usize| (sums[2 * n * c + j], sums[2 * n * c + c + j]);

        let gx = if ctx.needs[0] {
            self.input_gradient(&mut gx, x, &terms, size, &sum);
            Some(Tensor::from_vec(ctx.inputs[0], gx)?)
        } else {
            None
        };
        let over_samples = |f: &dyn Fn(Term, (f64, f64)) -> f64| {
            let total = |j| (0..n).map(|n| f(terms.at(n, j), sum(n, j))).sum::<f64>() as f32;
            Tensor::from_vec([c], (0..c).map(total).collect())
        };
        let mut grads = vec![
            gx,
            ctx.needs[1].then(|| over_samples(&|t, (_, b)| t.scale * b)).transpose()?,
            ctx.needs[2].then(|| over_samples(&|t, (a, _)| t.scale * a)).transpose()?,
        ];
        if count == 4 {
            let both = |n, j| {
                let (t, (a, b)) = (terms.at(n, j), sum(n, j));
                [t.w * b + t.b * a, a]
            };
            let g = ctx.needs[3].then(|| Tensor::from_vec([n, 2 * c], table(n, c, both)));
            grads.push(g.transpose()?);
        }
        Ok(grads)
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        self.forward_cuda(gpu, inputs)
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.backward_cuda(gpu, ctx)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shape = inputs[0].shape();
        let [_, pixels, c] = size(&shape);
        let (w, b) = (inputs[1].data::<f64>()?, inputs[2].data::<f64>()?);
        let scale_shift = inputs.get(3).map(|s| s.data::<f64>()).transpose()?;
        let per_group = c / self.groups;
        let mut y = inputs[0].data::<f64>()?.to_vec();
        for (n, y) in y.chunks_mut(pixels * c).enumerate() {
            for group in 0..self.groups {
                let at: Vec<usize> = (0..pixels * c).filter(|i| i % c / per_group == group).collect();
                let count = at.len() as f64;
                let mean = at.iter().map(|&i| y[i]).sum::<f64>() / count;
                let var = at.iter().map(|&i| (y[i] - mean).powi(2)).sum::<f64>() / count;
                for i in at {
                    let j = i % c;
                    let mut z = (y[i] - mean) / (var + f64::from(self.eps)).sqrt() * w[j] + b[j];
                    if let Some(s) = scale_shift {
                        z = z * (1.0 + s[n * 2 * c + j]) + s[n * 2 * c + c + j];
                    }
                    y[i] = if self.silu { z / (1.0 + (-z).exp()) } else { z };
                }
            }
        }
        Tensor::from_vec(shape, y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        adjoint::gradients(self, inputs, gy).map(Some)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64 * if self.silu { 10 } else { 6 }
    }
}

impl GroupNorm {
    /// Second pass: turns gz in `g` into the gradient of `x`.
    fn input_gradient(
        &self,
        g: &mut [f32],
        x: &[f32],
        terms: &Terms<'_>,
        [n, pixels, c]: [usize; 3],
        sum: &impl Fn(usize, usize) -> (f64, f64),
    ) {
        let per_group = c / self.groups;
        let count = (pixels * per_group) as f64;
        // Per sample and group: the means of gz u and gz u xh.
        let means: Vec<(f64, f64)> = (0..n * self.groups)
            .map(|i| {
                let (n, group) = (i / self.groups, i % self.groups);
                let add = |(p, q): (f64, f64), j: usize| {
                    let (t, (a, b)) = (terms.at(n, j), sum(n, j));
                    (p + t.w * t.scale * a, q + t.w * t.scale * b)
                };
                let (p, q) = (group * per_group..(group + 1) * per_group).fold((0.0, 0.0), add);
                (p / count, q / count)
            })
            .collect();
        let coeffs = table(n, c, |n, j| {
            let (t, (p, q)) = (terms.at(n, j), means[n * self.groups + j / per_group]);
            let slope = t.r * t.r * q;
            [t.high, t.r * t.w * t.scale, slope, t.low * slope - t.r * p]
        });
        for_each_chunk(g, c, |i, g| {
            let [mean, own, slope, offset] = coefficients(&coeffs, i / pixels, c);
            let row = g.iter_mut().zip(&x[i * c..]).zip(mean).zip(own).zip(slope).zip(offset);
            for (((((g, &x), &mean), &own), &slope), &offset) in row {
                *g = *g * own - (x - mean) * slope + offset;
            }
        });
    }
}

/// One channel per group, odd sizes, tokens, a large mean, with and without modulation and SiLU.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, x: &[usize], groups: usize, silu: bool, modulated: bool, fill: Fill| {
        let x = Shape::from_slice(x).expect("a small shape");
        let (n, c) = (x[0], x.last());
        let mut inputs = vec![
            Input::filled("x", x, fill),
            Input::filled("w", [c], Fill::Normal(1.0, 0.5)),
            Input::normal("b", [c]),
        ];
        if modulated {
            inputs.push(Input::filled("scale_shift", [n, 2 * c], Fill::Normal(0.0, 0.5)));
        }
        Case::new(label, GroupNorm { groups, eps: 1e-5, silu }, inputs)
    };
    let normal = Fill::Normal(0.5, 2.0);
    vec![
        // A large epsilon: with a small one the gradient of x is a difference that vanishes but for rounding.
        Case {
            op: Box::new(GroupNorm { groups: 1, eps: 0.5, silu: false }),
            ..case("two elements", &[1, 2, 1, 1], 1, false, false, normal)
        },
        case("one channel per group", &[2, 3, 5, 8], 8, false, false, normal),
        case("one group", &[3, 5, 2, 7], 1, true, false, normal),
        case("odd, modulated", &[2, 5, 3, 33], 11, false, true, normal),
        case("odd, modulated, silu", &[3, 3, 5, 36], 12, true, true, normal),
        case("tokens", &[2, 17, 12], 3, true, true, normal),
        case("no pixels", &[3, 12], 4, false, true, normal),
        case("large mean", &[1, 7, 9, 8], 2, false, false, Fill::Normal(1e3, 1.0)),
        case("several blocks", &[2, 31, 33, 32], 8, true, true, normal),
        case("whole chunks", &[2, 6, 5, 40], 5, true, true, normal),
        case("several runs of channels", &[2, 5, 3, 528], 33, true, false, normal),
        case("many odd channels", &[1, 3, 3, 75], 3, false, true, normal),
        Case { bench: true, ..case("teacher 64", &[1, 64, 64, 512], 32, true, true, normal) },
        Case { bench: true, ..case("teacher 256", &[1, 256, 256, 256], 32, true, false, normal) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let op = GroupNorm::new(2, 1e-5);
        let (x, w) = (Tensor::zeros([2, 3, 3, 4]), Tensor::zeros([4]));
        let fails = |op: &GroupNorm, t: &[&Tensor]| {
            let e = run(op, t).err().expect("must be refused");
            assert!(e.is_shape() && e.to_string().contains("group_norm"), "{e}");
        };
        fails(&GroupNorm::new(3, 1e-5), &[&x, &w, &w]);
        fails(&GroupNorm::new(0, 1e-5), &[&x, &w, &w]);
        fails(&op, &[&x, &w]);
        fails(&op, &[&x, &Tensor::zeros([3]), &w]);
        fails(&op, &[&x, &w, &w, &Tensor::zeros([2, 4])]);
        fails(&op, &[&x, &w, &w, &Tensor::zeros([1, 8])]);
        fails(&op, &[&Tensor::zeros([0, 3, 3, 4]), &w, &w]);
        fails(&op, &[&w, &w, &w]);
    }

    #[test]
    fn threads_change_nothing() {
        let cases = cases();
        let case = cases.iter().find(|c| c.label == "several blocks").expect("is in the list");
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let inputs = case.tensors(3);
                let refs: Vec<&Tensor> = inputs.iter().collect();
                let out = run(&*case.op, &refs).unwrap();
                let mut saved = case.op.save(&refs, &out.y);
                saved.extend(out.extra);
                let ctx = Backward { gy: &out.y, saved: &saved, inputs: &case.shapes(), needs: &[true; 4] };
                let mut all = vec![out.y.clone()];
                all.extend(case.op.backward(&ctx).unwrap().into_iter().flatten());
                all.iter().flat_map(|t| t.f32s().unwrap().iter().map(|v| v.to_bits())).collect::<Vec<_>>()
            })
        };
        assert_eq!(bits(1), bits(3));
    }

    /// The first half is the scale: guided-diffusion chunks the projected embedding into (scale, shift).
    #[test]
    fn scale_comes_first() {
        let x = Tensor::from_vec([1, 2, 1], vec![-1.0f32, 1.0]).unwrap();
        let (w, b) = (Tensor::full([1], 1.0), Tensor::zeros([1]));
        let s = Tensor::from_vec([1, 2], vec![1.0f32, 10.0]).unwrap();
        let y = run(&GroupNorm::new(1, 0.0), &[&x, &w, &b, &s]).unwrap().y;
        assert_eq!(y.f32s().unwrap(), &[8.0, 12.0]);
    }
}
