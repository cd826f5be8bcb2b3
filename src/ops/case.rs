//! Cases: the inputs an op is tested, checked and benchmarked on.

use super::Op;
use crate::base::{DType, Philox, Shape};
use crate::tensor::Tensor;

/// One set of parameters and inputs of an op. Tests compare forward with the f64 reference and the gradient with
/// central differences on every case; benches time those with `bench` set.
pub struct Case {
    /// What is special about it, in a few words.
    pub label: String,
    /// The op with its parameters.
    pub op: Box<dyn Op>,
    /// The inputs, in the op's order.
    pub inputs: Vec<Input>,
    /// A realistic size, for benchmarks only: too large for the f64 reference.
    pub bench: bool,
}

impl Case {
    /// A case for tests: small, with all its corners.
    pub fn new(label: impl Into<String>, op: impl Op + 'static, inputs: Vec<Input>) -> Self {
        Case { label: label.into(), op: Box::new(op), inputs, bench: false }
    }

    /// A case for benchmarks.
    pub fn bench(label: impl Into<String>, op: impl Op + 'static, inputs: Vec<Input>) -> Self {
        Case { label: label.into(), op: Box::new(op), inputs, bench: true }
    }

    /// The input tensors (f32, labels i64), the same for the same `seed`.
    pub fn tensors(&self, seed: u64) -> Vec<Tensor> {
        self.inputs
            .iter()
            .enumerate()
            .map(|(i, input)| input.make(Philox::new(seed).fold(i as u64)))
            .collect()
    }

    /// The shapes of the inputs.
    pub fn shapes(&self) -> Vec<Shape> {
        self.inputs.iter().map(|i| i.shape).collect()
    }
}

/// One input of a [`Case`].
pub struct Input {
    /// Its letter in the op's formula.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// What it is filled with.
    pub fill: Fill,
    /// Whether the op has a gradient for it.
    pub grad: bool,
}

/// What an [`Input`] is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal numbers with this mean and standard deviation.
    Normal(f32, f32),
    /// Uniform numbers between two bounds.
    Uniform(f32, f32),
    /// Pairwise distinct numbers in random order, a step of 0.05 apart: no ties and no kinks near a value.
    Distinct,
    /// Class labels `0..classes` as i64, where every `ignore_every`-th is 255 if that is not 0.
    Labels {
        /// Number of classes.
        classes: u32,
        /// Distance between ignored labels, or 0 for none.
        ignore_every: u32,
    },
}

impl Input {
    /// A normal input with a gradient.
    pub fn normal(name: &'static str, shape: impl Into<Shape>) -> Self {
        Input { name, shape: shape.into(), fill: Fill::Normal(0.0, 1.0), grad: true }
    }

    /// A differentiable input with another filling.
    pub fn filled(name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        Input { name, shape: shape.into(), fill, grad: true }
    }

    /// The same input without a gradient.
    pub fn fixed(mut self) -> Self {
        self.grad = false;
        self
    }

    /// Class labels.
    pub fn labels(name: &'static str, shape: impl Into<Shape>, classes: u32, ignore_every: u32) -> Self {
        Input { name, shape: shape.into(), fill: Fill::Labels { classes, ignore_every }, grad: false }
    }

    /// The element type: f32, or i64 for labels.
    pub fn dtype(&self) -> DType {
        if matches!(self.fill, Fill::Labels { .. }) { DType::I64 } else { DType::F32 }
    }

    fn make(&self, rng: Philox) -> Tensor {
        let n = self.shape.elems();
        let mut v = vec![0.0f32; n];
        match self.fill {
            Fill::Normal(mean, sd) => {
                rng.fill_normal(&mut v);
                v.iter_mut().for_each(|x| *x = mean + sd * *x);
            }
            Fill::Uniform(lo, hi) => {
                rng.fill_uniform(&mut v);
                v.iter_mut().for_each(|x| *x = lo + (hi - lo) * *x);
            }
            Fill::Distinct => {
                let half = n as f32 / 2.0;
                v = (0..n).map(|i| (i as f32 - half + 0.25) * 0.05).collect();
                rng.sequence().shuffle(&mut v);
            }
            Fill::Labels { classes, ignore_every } => {
                let mut s = rng.sequence();
                let label = |i: usize| match ignore_every {
                    k if k > 0 && i.is_multiple_of(k as usize) => 255,
                    _ => i64::from(s.below(classes)),
                };
                return Tensor::from_vec(self.shape, (0..n).map(label).collect::<Vec<i64>>())
                    .expect("as many labels as elements");
            }
        }
        Tensor::from_vec(self.shape, v).expect("as many values as elements")
    }
}
