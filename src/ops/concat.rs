//! Concatenation along the last axis (channels).
//!
//! ```text
//! y[.., o_i + c] = x_i[.., c],   o_i = sum of the last dimensions before input i
//! gx_i           = that part of gy
//! ```

use super::*;
use crate::cpu;
use crate::error::Error;

/// Concatenation: `x_i [.., C_i] -> [.., C_1 + .. + C_k]` for any number of inputs that agree in all axes but the last.
#[derive(Clone, Debug)]
pub struct Concat {}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let first = inputs.first().ok_or_else(|| Error::shape(self.name(), "takes at least one input"))?;
        let mut channels = 0usize;
        for (i, s) in inputs.iter().enumerate() {
            if s.is_empty() || s.elems() == 0 {
                return Err(Error::shape(self.name(), format!("input {i} is empty or has no axis: {s}")));
            }
            if s.len() != first.len() || s[..s.len() - 1] != first[..first.len() - 1] {
                return Err(Error::shape(
                    self.name(),
                    format!("input {i} is {s}, which differs from {first} in more than the last axis"),
                ));
            }
            channels = channels.saturating_add(s.last());
        }
        let mut out = first.to_vec();
        out[first.len() - 1] = channels;
        Shape::from_slice(&out)
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let shape = self.output_shape(&shapes)?;
        let parts = inputs.iter().map(|t| Ok((t.f32s()?, t.shape().last()))).collect::<Result<Vec<_>>>()?;
        let mut y = vec![0.0f32; shape.elems()];
        cpu::for_each_chunk(&mut y, shape.last(), |row, mut y| {
            for &(x, c) in &parts {
                let (part, rest) = y.split_at_mut(c);
                part.copy_from_slice(&x[row * c..][..c]);
                y = rest;
            }
        });
        Ok(Tensor::from_vec(shape, y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, total) = (ctx.gy.f32s()?, ctx.gy.shape().last());
        let mut start = 0;
        let mut grads = Vec::with_capacity(ctx.inputs.len());
        for (&shape, &need) in ctx.inputs.iter().zip(ctx.needs) {
            let c = shape.last();
            grads.push(if need {
                let mut gx = vec![0.0f32; shape.elems()];
                cpu::for_each_chunk(&mut gx, c, |row, gx| {
                    gx.copy_from_slice(&gy[row * total + start..][..c])
                });
                Some(Tensor::from_vec(shape, gx)?)
            } else {
                None
            });
            start += c;
        }
        Ok(grads)
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let shape = self.output_shape(&shapes)?;
        let mut y = Vec::new();
        for row in 0..shape.rows() {
            for t in inputs {
                let c = t.shape().last();
                y.extend_from_slice(&t.data::<f64>()?[row * c..(row + 1) * c]);
            }
        }
        Tensor::from_vec(shape, y)
    }

    fn flops(&self, _inputs: &[Shape]) -> u64 {
        0
    }
}

/// One to five inputs of several ranks, and a skip connection.
pub fn cases() -> Vec<Case> {
    let case = |label, shapes: &[&[usize]]| {
        let inputs =
            shapes.iter().map(|s| Input::normal("x", Shape::from_slice(s).expect("a small shape"))).collect();
        Case::new(label, Concat {}, inputs)
    };
    vec![
        case("one input", &[&[2, 3]]),
        case("single elements", &[&[1], &[1]]),
        case("skip connection", &[&[2, 3, 5, 7], &[2, 3, 5, 4]]),
        case("pyramid", &[&[1, 3, 3, 9], &[1, 3, 3, 2], &[1, 3, 3, 2], &[1, 3, 3, 1], &[1, 3, 3, 2]]),
        Case::new(
            "gradient for one of two",
            Concat {},
            vec![Input::normal("a", [4, 3]).fixed(), Input::normal("b", [4, 5])],
        ),
        Case::bench(
            "skip connection",
            Concat {},
            vec![Input::normal("a", [8, 64, 64, 64]), Input::normal("b", [8, 64, 64, 32])],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::support::testing;
    use super::*;

    #[test]
    fn wrong_uses_are_errors() {
        let bad: [&[Shape]; 5] = [
            &[],
            &[Shape::SCALAR],
            &[[2, 3].into(), [3, 3].into()],
            &[[2, 3].into(), [1, 2, 3].into()],
            &[[2, 3].into(), [2, 0].into()],
        ];
        for shapes in bad {
            assert!(Concat {}.output_shape(shapes).unwrap_err().is_shape(), "{shapes:?}");
        }
    }

    #[test]
    fn concat_is_thread_independent() {
        testing::assert_thread_independent(cases());
    }
}
