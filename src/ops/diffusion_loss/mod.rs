//! The training loss of a diffusion network: squared error of the predicted noise, and for networks that also predict a
//! variance the variational bound in bits per dimension.
//!
//! With `d = prediction - noise`, the variance channel `s` of each prediction, and `range`, `gain` of the sample's step:
//! ```text
//! y = mean over n, h, w, c of d^2 + vlb_weight v / ln 2
//! l = range (s + 1) / 2                                     log of the variance over that of the posterior
//! step > 0:  v = (l - 1 + (1 + (gain d)^2) exp(-l)) / 2     KL(posterior || prediction)
//! step = 0:  v = -log P(pixel)                              P is the mass of the pixel's bin under the prediction:
//!            between (gain d - half_bin) exp(-l/2) and (gain d + half_bin) exp(-l/2); black and white pixels
//!            have bins without a lower or an upper end
//! ```
//! Everything in `v` is measured in standard deviations of the posterior `q(x_{t-1} | x_t, x_0)`, which makes two numbers of
//! all that a step's schedule says. `d` counts as a constant in `v`: the bound trains the variance and leaves the
//! prediction alone. That is the hybrid loss of Nichol and Dhariwal ("Improved denoising diffusion probabilistic models",
//! 2021) with the variance between the posterior's and beta, as guided-diffusion trains; the normal distribution is its
//! tanh approximation, and probabilities end at 1e-12.
//!
//! Gradients: `2 d` for the noise; for the variance `range / 2` times `dv/dl`, which is `(1 - (1 + (gain d)^2) exp(-l)) / 2`
//! at steps above 0.

mod bin;
mod cuda;
mod reference;

use super::support::{dims, expect_inputs, images};
use super::*;
use crate::cpu::{self, math};
use crate::error::Error;

/// Diffusion loss. Inputs of a network that predicts noise alone: `prediction [N, H, W, C], noise [N, H, W, C]`. Of one that
/// predicts a variance too: `prediction [N, H, W, 2C], noise [N, H, W, C], images [N, H, W, C]` (clean, in -1..1),
/// `steps [N]` (i64, `0..T`), `tables [T, 2]` (range and gain of every step). The result is a scalar; beside it come the
/// two parts of every sample, `[N, 2]`: squared error, bound in bits per dimension (0 without a variance).
#[derive(Clone, Debug)]
pub struct DiffusionLoss {
    /// Factor of the bound.
    pub vlb_weight: f32,
    /// Half the distance of two pixel values, in standard deviations of the posterior of step 0.
    pub half_bin: f32,
}

/// Inputs of a network with a variance.
const NAMES: [&str; 5] = ["prediction", "noise", "images", "steps", "tables"];

impl DiffusionLoss {
    /// The rows of the table that the samples' steps name.
    fn rows(&self, steps: &[i64], tables: &[f32]) -> Result<Vec<Row>> {
        let count = tables.len() / 2;
        let row = |&step: &i64| match usize::try_from(step) {
            Ok(t) if t < count => Ok(Row {
                range: tables[2 * t],
                gain: tables[2 * t + 1],
                first: t == 0,
                half_bin: self.half_bin,
            }),
            _ => Err(Error::data(format!("step {step} is not one of the {count} steps 0..{count}"))
                .with_op(self.name())
                .with_remedy("draw steps below the number of the schedule's steps")),
        };
        steps.iter().map(row).collect()
    }

    /// The sums over every sample of squared error and bound (nats).
    fn sums(&self, inputs: &[&Tensor]) -> Result<Vec<[f64; 2]>> {
        let [n, _, _, c] = dims(inputs[1].shape());
        let (p, e) = (inputs[0].f32s()?, inputs[1].f32s()?);
        let size = e.len() / n;
        if inputs.len() == 2 {
            let one = |i: usize| {
                let range = i * size..(i + 1) * size;
                [super::support::sum2(&p[range.clone()], &e[range], |p, e| (p - e) * (p - e)), 0.0]
            };
            return Ok(cpu::map_ordered(n, one));
        }
        let rows = self.rows(inputs[3].data()?, inputs[4].f32s()?)?;
        let x = inputs[2].f32s()?;
        Ok(cpu::map_ordered(n, |i| {
            let range = i * size..(i + 1) * size;
            let pixels = p[2 * range.start..2 * range.end].chunks_exact(2 * c);
            let others = e[range.clone()].chunks_exact(c).zip(x[range].chunks_exact(c));
            let mut sum = [0.0f64; 2];
            for (p, (e, x)) in pixels.zip(others) {
                let (p, s) = p.split_at(c);
                for (((&p, &s), &e), &x) in p.iter().zip(s).zip(e).zip(x) {
                    let d = p - e;
                    sum[0] += f64::from(d) * f64::from(d);
                    sum[1] += rows[i].bound(d, s, x)[0];
                }
            }
            sum
        }))
    }
}

/// What the schedule says about the step of a sample.
#[derive(Clone, Copy)]
struct Row {
    range: f32,
    gain: f32,
    first: bool,
    half_bin: f32,
}

impl Row {
    /// The bound of one element in nats, and its derivative with respect to the variance channel `s`.
    fn bound(self, d: f32, s: f32, x: f32) -> [f64; 2] {
        let l = self.range * (s + 1.0) * 0.5;
        let shift = self.gain * d;
        let [v, slope] = if self.first {
            bin::surprise(f64::from(shift), f64::from(self.half_bin), f64::from(l), bin::Ends::of(x))
        } else {
            let ratio = (1.0 + shift * shift) * math::exp(-l);
            [f64::from(0.5 * (l - 1.0 + ratio)), f64::from(0.5 * (1.0 - ratio))]
        };
        [v, slope * 0.5 * f64::from(self.range)]
    }
}

impl Op for DiffusionLoss {
    fn name(&self) -> &'static str {
        "diffusion_loss"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        if inputs.len() != 2 {
            expect_inputs(self.name(), inputs, &NAMES)?;
        }
        let refuse = |text: String, remedy: &str| Err(Error::shape(self.name(), text).with_remedy(remedy));
        let (n, h, w, c) = images(self.name(), inputs[1])?;
        let channels = if inputs.len() == 2 { c } else { 2 * c };
        if *inputs[0] != [n, h, w, channels] {
            return refuse(
                format!(
                    "noise {} needs a prediction [{n}, {h}, {w}, {channels}], got {}",
                    inputs[1], inputs[0]
                ),
                "give images, steps and tables with networks that predict a variance, and only with them",
            );
        }
        let Some(&[images, steps, tables]) = inputs.get(2..5).and_then(|i| i.first_chunk()) else {
            return Ok(Shape::SCALAR);
        };
        if images != inputs[1] || *steps != [n] {
            return refuse(
                format!(
                    "noise {} needs images of its shape and steps [{n}], got {images} and {steps}",
                    inputs[1]
                ),
                "give the images that the noise was added to, and the step of each",
            );
        }
        match *tables {
            [t, 2] if t > 0 => Ok(Shape::SCALAR),
            _ => refuse(format!("expects tables [T, 2], got {tables}"), "give range and gain of every step"),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let sums = self.sums(inputs)?;
        let elements = inputs[1].elems() as f64;
        let per_sample = elements / sums.len() as f64;
        let total: f64 = sums.iter().map(|[e, v]| e + f64::from(self.vlb_weight) * bin::bits(*v)).sum();
        let parts =
            sums.iter().flat_map(|[e, v]| [e / per_sample, bin::bits(*v) / per_sample].map(|v| v as f32));
        let parts = Tensor::from_vec([sums.len(), 2], parts.collect())?;
        Ok(Forward { y: Tensor::scalar((total / elements) as f32), extra: vec![], aux: vec![parts] })
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        inputs.iter().map(|&t| t.clone()).collect()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let mut grads = vec![None; ctx.inputs.len()];
        if !ctx.needs[0] {
            return Ok(grads);
        }
        let [_, h, w, c] = dims(ctx.inputs[1]);
        let (p, e) = (ctx.saved[0].f32s()?, ctx.saved[1].f32s()?);
        let scale = f64::from(ctx.gy.item()?) / e.len() as f64;
        let error = (2.0 * scale) as f32;
        let mut g = vec![0.0f32; p.len()];
        if ctx.inputs.len() == 2 {
            cpu::for_each_chunk(&mut g, h * w * c, |i, g| {
                let at = i * h * w * c;
                let pairs = p[at..].iter().zip(&e[at..]);
                g.iter_mut().zip(pairs).for_each(|(g, (p, e))| *g = error * (p - e));
            });
        } else {
            let rows = self.rows(ctx.saved[3].data()?, ctx.saved[4].f32s()?)?;
            let x = ctx.saved[2].f32s()?;
            let bound = bin::bits(scale * f64::from(self.vlb_weight));
            cpu::for_each_chunk(&mut g, h * w * 2 * c, |i, g| {
                let at = i * h * w * c;
                let pixels = g.chunks_exact_mut(2 * c).zip(p[2 * at..].chunks_exact(2 * c));
                let others = e[at..].chunks_exact(c).zip(x[at..].chunks_exact(c));
                for ((g, p), (e, x)) in pixels.zip(others) {
                    for k in 0..c {
                        let d = p[k] - e[k];
                        g[k] = error * d;
                        g[c + k] = (bound * rows[i].bound(d, p[c + k], x[k])[1]) as f32;
                    }
                }
            });
        }
        grads[0] = Some(Tensor::from_vec(ctx.inputs[0], g)?);
        Ok(grads)
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        cuda::forward(self, gpu, inputs)
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let mut grads = vec![None; ctx.inputs.len()];
        if ctx.needs[0] {
            grads[0] = Some(cuda::backward(self, gpu, ctx)?);
        }
        Ok(grads)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.reference_near(inputs, inputs)
    }

    fn reference_near(&self, inputs: &[&Tensor], held: &[&Tensor]) -> Result<Tensor> {
        Tensor::from_vec(Shape::SCALAR, vec![reference::loss(self, inputs, held)?])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let mut grads = vec![None; inputs.len()];
        grads[0] = Some(Tensor::from_vec(
            inputs[0].shape(),
            reference::gradient(self, inputs, gy.data::<f64>()?[0])?,
        )?);
        Ok(Some(grads))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[1].elems() as u64 * if inputs.len() == 2 { 3 } else { 12 }
    }
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    cuda::variants()
}

/// Both forms; the first step with pixels inside, at and beyond the ends, predictions far off and clamped, one pixel, odd
/// sizes, and a training batch.
pub fn cases() -> Vec<Case> {
    let plain = |label: &str, shape: [usize; 4]| {
        let inputs = vec![Input::normal("prediction", shape), Input::normal("noise", shape).fixed()];
        Case::new(format!("noise alone, {label}"), DiffusionLoss { vlb_weight: 1.0, half_bin: 0.5 }, inputs)
    };
    let learned = |label: &str, [n, h, w, c]: [usize; 4], steps: u32, spread: f32, pixels: f32| {
        let inputs = vec![
            Input::filled("prediction", [n, h, w, 2 * c], Fill::Normal(0.0, spread)),
            Input::normal("noise", [n, h, w, c]).fixed(),
            Input::filled("images", [n, h, w, c], Fill::Uniform(-pixels, pixels)).fixed(),
            Input::labels("steps", [n], steps, 0),
            Input::filled("tables", [steps as usize, 2], Fill::Uniform(0.1, 1.4)).fixed(),
        ];
        Case::new(label, DiffusionLoss { vlb_weight: 0.7, half_bin: 0.5 }, inputs)
    };
    let batch = learned("training batch", [32, 64, 64, 3], 1000, 1.0, 1.0);
    vec![
        plain("one element", [1, 1, 1, 1]),
        plain("odd", [2, 3, 5, 7]),
        plain("several tasks", [3, 31, 29, 4]),
        learned("one pixel", [1, 1, 1, 1], 2, 1.0, 1.0),
        learned("odd", [5, 3, 7, 3], 4, 1.0, 1.0),
        learned("first step", [2, 5, 3, 3], 1, 1.0, 0.9),
        learned("first step, far off", [2, 3, 3, 3], 1, 12.0, 0.9),
        learned("first step, only ends", [3, 4, 5, 2], 1, 1.0, 40.0),
        learned("many steps, four channels", [3, 5, 4, 4], 9, 2.0, 1.0),
        learned("several tasks", [3, 31, 29, 3], 3, 1.0, 1.0),
        Case { bench: true, ..batch },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    const OP: DiffusionLoss = DiffusionLoss { vlb_weight: 1.0, half_bin: 0.5 };

    fn learned(prediction: [f32; 2], image: f32, step: i64) -> Vec<Tensor> {
        vec![
            Tensor::from_vec([1, 1, 1, 2], prediction.to_vec()).unwrap(),
            Tensor::from_vec([1, 1, 1, 1], vec![0.25f32]).unwrap(),
            Tensor::from_vec([1, 1, 1, 1], vec![image]).unwrap(),
            Tensor::from_vec([1], vec![step]).unwrap(),
            Tensor::from_vec([2, 2], vec![0.8f32, 1.3, 0.6, 1.1]).unwrap(),
        ]
    }

    fn both(inputs: &[Tensor]) -> (f32, Vec<f32>) {
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let (y, g) = testing::both(&OP, &refs, &vec![true; refs.len()], None);
        assert!(g[1..].iter().all(Option::is_none));
        (y.item().unwrap(), g[0].as_ref().unwrap().f32s().unwrap().to_vec())
    }

    #[test]
    fn the_posterior_itself_costs_nothing_above_step_0() {
        // The right noise, and s = -1: the variance of the posterior.
        let (y, g) = both(&learned([0.25, -1.0], 0.0, 1));
        assert!(y.abs() <= 1e-7 && g.iter().all(|g| g.abs() <= 1e-7), "{y} {g:?}");
    }

    #[test]
    fn the_bound_leaves_the_prediction_alone() {
        for step in [0, 1] {
            let (_, g) = both(&learned([0.25, 0.5], 0.0, step));
            assert!(g[0] == 0.0 && g[1] != 0.0, "{g:?}");
        }
    }

    #[test]
    fn the_variance_settles_where_it_is_likeliest() {
        // d^2 / ln of the variance: the KL's slope in l vanishes at exp(l) = 1 + (gain d)^2.
        let l = (1.0f32 + (1.1 * 0.5) * (1.1 * 0.5)).ln();
        let (_, g) = both(&learned([0.75, 2.0 * l / 0.6 - 1.0], 0.0, 1));
        assert!(g[1].abs() <= 1e-7, "{g:?}");
    }

    #[test]
    fn the_bins_of_all_pixel_values_have_all_the_mass() {
        // One image value after another, with a prediction that stays: what is exp(-v) sums to 1.
        let (mean, deviation, l) = (0.1f64, 0.3f64, 0.4f64);
        let mass: f64 = (0..256)
            .map(|i| {
                let x = i as f64 / 127.5 - 1.0;
                let shift = (x - mean) / deviation;
                let v = bin::surprise(shift, 1.0 / 255.0 / deviation, l, bin::Ends::of(x as f32));
                (-v[0]).exp()
            })
            .sum();
        assert!((mass - 1.0).abs() <= 1e-6, "{mass}");
    }

    #[test]
    fn parts_are_those_of_the_samples() {
        let inputs = learned([0.75, 0.5], 0.0, 1);
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let out = run(&OP, &refs).unwrap();
        let parts = out.aux[0].f32s().unwrap().to_vec();
        assert!((parts[0] - 0.25).abs() <= 1e-6 && parts[1] > 0.0, "{parts:?}");
        assert!((out.y.item().unwrap() - parts[0] - parts[1]).abs() <= 1e-6);
        let plain = Tensor::from_vec([1, 1, 1, 1], vec![0.75f32]).unwrap();
        let out = run(&OP, &[&plain, &inputs[1]]).unwrap();
        assert_eq!(out.aux[0].f32s().unwrap(), &[0.25, 0.0]);
    }

    #[test]
    fn wrong_uses_are_errors() {
        for step in [-1i64, 2, i64::MAX] {
            let inputs = learned([0.0; 2], 0.0, step);
            let e = run(&OP, &inputs.iter().collect::<Vec<_>>()).err().expect("must be refused");
            assert!(e.is_data() && e.to_string().contains(&step.to_string()), "{e}");
        }
        let [x, wide, n, t] = [[2, 3, 3, 1], [2, 3, 3, 2], [1, 3, 3, 1], [3, 3, 3, 1]].map(Shape::from);
        let (steps, tables) = (Shape::from([2]), Shape::from([5, 2]));
        assert!(OP.output_shape(&[wide, x, x, steps, tables]).is_ok());
        for wrong in [
            vec![wide, x],
            vec![x],
            vec![x, x, x],
            vec![x, x, x, steps, tables],
            vec![wide, x, n, steps, tables],
            vec![wide, x, x, [3].into(), tables],
            vec![wide, x, x, steps, [5, 3].into()],
            vec![wide, x, x, steps, [0, 2].into()],
            vec![t, x],
        ] {
            assert!(OP.output_shape(&wrong).unwrap_err().is_shape(), "{wrong:?}");
        }
    }

    #[test]
    fn diffusion_loss_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
