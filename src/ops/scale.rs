//! Per-channel scale (ConvNeXt's layer scale): `y = x gamma`; gradients `gx = gy gamma`, `ggamma = sum gy x` over all
//! rows.

use super::*;
use crate::cpu::{for_each_chunk, rows};
use crate::error::Error;

/// `y[.., c] = x[.., c] * gamma[c]`. Inputs: `x [.., C]`, `gamma [C]`.
#[derive(Clone, Debug, Default)]
pub struct Scale {}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x, gamma] if !x.is_empty() && **gamma == [x.last()] => Ok(*x),
            [x, gamma] => {
                Err(Error::shape("scale", format!("x {x} needs gamma [{}], got {gamma}", x.last())))
            }
            _ => Err(Error::shape("scale", format!("takes two inputs (x, gamma), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let y = scaled(inputs[0].f32s()?, inputs[1].f32s()?);
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, x, gamma) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?, ctx.saved[1].f32s()?);
        let (count, width) = (ctx.inputs[0].rows(), ctx.inputs[0].last());
        let gx = ctx.needs[0].then(|| Tensor::from_vec(ctx.inputs[0], scaled(gy, gamma))).transpose()?;
        let ggamma = ctx.needs[1].then(|| {
            let sums = rows::sum_rows([1, count, width], width, |_, range, sums| {
                let at = range.start * width..range.end * width;
                for (gy, x) in gy[at.clone()].chunks_exact(width).zip(x[at].chunks_exact(width)) {
                    for ((s, &g), &x) in sums.iter_mut().zip(gy).zip(x) {
                        *s += f64::from(g * x);
                    }
                }
            });
            Tensor::from_vec([width], sums.into_iter().map(|v| v as f32).collect())
        });
        Ok(vec![gx, ggamma.transpose()?])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, gamma) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?);
        let y = x.iter().enumerate().map(|(i, x)| x * gamma[i % gamma.len()]).collect();
        Tensor::from_vec(inputs[0].shape(), y)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64
    }
}

fn scaled(x: &[f32], gamma: &[f32]) -> Vec<f32> {
    let width = gamma.len();
    let mut y = vec![0.0; x.len()];
    for_each_chunk(&mut y, width, |r, y| {
        for ((y, &x), &g) in y.iter_mut().zip(&x[r * width..]).zip(gamma) {
            *y = x * g;
        }
    });
    y
}

/// One channel, odd sizes, and a block of ConvNeXt.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], bench: bool| {
        let shape = Shape::from_slice(shape).expect("a small shape");
        let inputs = vec![Input::normal("x", shape), Input::normal("gamma", [shape.last()])];
        Case { bench, ..Case::new(label, Scale {}, inputs) }
    };
    vec![
        case("one channel", &[3, 1], false),
        case("a vector", &[5], false),
        case("odd", &[2, 3, 5, 19], false),
        case("block", &[8, 56, 56, 96], true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_other_channels() {
        let x = Tensor::zeros([2, 3]);
        for gamma in [Tensor::zeros([2]), Tensor::zeros([1, 3]), Tensor::scalar(1.0)] {
            let e = run(&Scale {}, &[&x, &gamma]).err().unwrap();
            assert!(e.is_shape() && e.to_string().contains("[2, 3]"), "{e}");
        }
        assert!(run(&Scale {}, &[&x]).err().unwrap().is_shape());
    }
}
