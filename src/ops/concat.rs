//! Concatenation along the last axis (channels).
//!
//! ```text
//! y[.., o_i + c] = x_i[.., c],   o_i = sum of the last dimensions before input i
//! gx_i           = that part of gy
//! ```

use super::elementwise::chunk;
use super::elementwise::rows::{Layout, Rows, map_call, map_variants};
use super::implicit_gemm::{int, operand_dtype};
use super::kernel::Call;
use super::*;
use crate::cpu;
use crate::error::Error;
use bytemuck::{Pod, Zeroable};

/// Concatenation: `x_i [.., C_i] -> [.., C_1 + .. + C_k]` for any number of inputs that agree in all axes but the last.
#[derive(Clone, Debug)]
pub struct Concat {}

/// Inputs of one launch.
const MOST: usize = 8;

/// `ConcatParams` of `kernels/concat.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    whole: u64,
    part: [u64; MOST],
    first: [i32; MOST + 1],
    total: i32,
    start: i32,
    pad: i32,
    at: Layout,
}

fn join() -> Call {
    Call::new("concat.cu", "concat_join")
}

fn split() -> Call {
    Call::new("concat.cu", "concat_split")
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    [join(), split()].iter().flat_map(map_variants::<Params>).collect()
}

/// Copies between `whole` and the parts along its columns, each with its width; a part that is `None` is left out.
fn copy(gpu: &Gpu, call: &Call, whole: &Tensor, parts: &[(Option<&Tensor>, usize)]) -> Result<()> {
    let (dtype, total) = (whole.dtype(), whole.shape().last());
    let wide = parts.iter().all(|(_, c)| c.is_multiple_of(chunk(dtype)));
    let mut start = 0;
    for some in parts.chunks(MOST) {
        let columns: usize = some.iter().map(|(_, c)| c).sum();
        let rows = Rows { segments: 1, rows: whole.shape().rows(), columns };
        let each = if wide { chunk(dtype) } else { 1 };
        let (at, grid) = rows.layout("concat", each, gpu.info().multiprocessors as usize)?;
        let mut p = Params {
            whole: whole.cuda_ptr()?,
            total: int("concat", "channels", total)?,
            start: start as i32,
            at,
            ..Params::zeroed()
        };
        for (k, (part, c)) in some.iter().enumerate() {
            p.part[k] = part.map_or(Ok(0), Tensor::cuda_ptr)?;
            p.first[k + 1] = p.first[k] + *c as i32;
        }
        p.first[some.len()..].fill(columns as i32);
        if some.iter().any(|(part, _)| part.is_some()) {
            map_call(call.clone(), dtype, wide).launch(gpu, grid, &p)?;
        }
        start += columns;
    }
    Ok(())
}

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

    fn has_kernel(&self) -> bool {
        true
    }

    fn is_operand(&self, _input: usize) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let dtype = operand_dtype("concat", inputs)?;
        let shapes: Vec<Shape> = inputs.iter().map(|t| t.shape()).collect();
        let y = Tensor::empty_gpu(self.output_shape(&shapes)?, dtype, gpu, "concat")?;
        let parts: Vec<_> = inputs.iter().map(|&t| (Some(t), t.shape().last())).collect();
        copy(gpu, &join(), &y, &parts)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let dtype = operand_dtype("concat", &[ctx.gy])?;
        let make = |(&shape, &need): (&Shape, &bool)| {
            need.then(|| Tensor::empty_gpu(shape, dtype, gpu, "gradient of concat")).transpose()
        };
        let grads = ctx.inputs.iter().zip(ctx.needs).map(make).collect::<Result<Vec<_>>>()?;
        let parts: Vec<_> = grads.iter().zip(ctx.inputs).map(|(g, s)| (g.as_ref(), s.last())).collect();
        copy(gpu, &split(), ctx.gy, &parts)?;
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

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let mut grads: Vec<Vec<f64>> = vec![Vec::new(); inputs.len()];
        let mut rest = gy.data::<f64>()?;
        while !rest.is_empty() {
            for (grad, t) in grads.iter_mut().zip(inputs) {
                let (part, after) = rest.split_at(t.shape().last());
                grad.extend_from_slice(part);
                rest = after;
            }
        }
        let tensor = |(g, t): (Vec<f64>, &&Tensor)| Tensor::from_vec(t.shape(), g).map(Some);
        Ok(Some(grads.into_iter().zip(inputs).map(tensor).collect::<Result<_>>()?))
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
        case("chunks", &[&[2, 3, 5, 16], &[2, 3, 5, 8], &[2, 3, 5, 40]]),
        case("more than one launch takes", &[[5, 8].as_slice(); 11]),
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
