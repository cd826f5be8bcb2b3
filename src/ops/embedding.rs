//! Embedding: `y[n] = weight[index[n]]`; gradient `gweight[k] = sum of gy[n] over index[n] = k`, added in the order of
//! `n`.

use super::*;
use crate::error::Error;

/// Rows of a table. Inputs: `weight [K, D]`, `index [N]` (i64, `0..K`); result `[N, D]`.
#[derive(Clone, Debug, Default)]
pub struct Embedding {}

/// The row numbers, or an error that names the first one outside `0..count`.
fn checked(index: &[i64], count: usize) -> Result<impl Iterator<Item = usize>> {
    match index.iter().find(|&&k| usize::try_from(k).map_or(true, |k| k >= count)) {
        Some(k) => Err(Error::data(format!("index {k} lies outside the table of {count} rows, 0..{count}"))
            .with_op("embedding")
            .with_remedy("check the number of classes that the table was made for")),
        None => Ok(index.iter().map(|&k| k as usize)),
    }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let [weight, index] = inputs else {
            let n = inputs.len();
            return Err(Error::shape("embedding", format!("takes two inputs (weight, index), got {n}")));
        };
        match (&**weight, &**index) {
            (&[_, d], &[n]) => Shape::from_slice(&[n, d]),
            _ => Err(Error::shape(
                "embedding",
                format!("expects weight [K, D] and index [N], got {weight} and {index}"),
            )),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (k, d) = inputs[0].shape().matrix("embedding")?;
        let (weight, index) = (inputs[0].f32s()?, inputs[1].data::<i64>()?);
        let mut y = Vec::with_capacity(index.len() * d);
        checked(index, k)?.for_each(|i| y.extend_from_slice(&weight[i * d..(i + 1) * d]));
        Ok(Tensor::from_vec([index.len(), d], y)?.into())
    }

    fn save(&self, inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        vec![inputs[1].clone()]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let (k, d) = ctx.inputs[0].matrix("embedding")?;
        let gy = ctx.gy.f32s()?;
        let mut gw = vec![0.0; k * d];
        for (n, i) in checked(ctx.saved[0].data::<i64>()?, k)?.enumerate() {
            for (w, &g) in gw[i * d..(i + 1) * d].iter_mut().zip(&gy[n * d..]) {
                *w += g;
            }
        }
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gw)?), None])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (_, d) = inputs[0].shape().matrix("embedding")?;
        let (weight, index) = (inputs[0].data::<f64>()?, inputs[1].data::<i64>()?);
        let y = index.iter().flat_map(|&k| (0..d).map(move |j| weight[k as usize * d + j])).collect();
        Tensor::from_vec([index.len(), d], y)
    }

    fn flops(&self, _inputs: &[Shape]) -> u64 {
        0
    }
}

/// More rows than indices, repeated indices, one of each.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, k: usize, d: usize, n: usize, bench: bool| {
        let inputs = vec![Input::normal("weight", [k, d]), Input::labels("index", [n], k as u32, 0)];
        Case { bench, ..Case::new(label, Embedding {}, inputs) }
    };
    vec![
        case("one of each", 1, 1, 1, false),
        case("repeated", 3, 5, 17, false),
        case("sparse", 31, 7, 4, false),
        case("classes", 1000, 512, 256, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bad_indices_and_shapes() {
        let weight = Tensor::zeros([3, 2]);
        for bad in [3i64, -1, i64::MAX] {
            let index = Tensor::from_vec([2], vec![0, bad]).unwrap();
            let e = run(&Embedding {}, &[&weight, &index]).err().unwrap();
            assert!(e.is_data() && e.to_string().contains(&bad.to_string()), "{e}");
            assert!(e.to_string().contains("embedding"), "{e}");
        }
        let index = Tensor::zeros([2]);
        assert!(run(&Embedding {}, &[&weight, &index]).err().unwrap().is_dtype());
        assert!(run(&Embedding {}, &[&index, &index]).err().unwrap().is_shape());
        assert!(run(&Embedding {}, &[&weight]).err().unwrap().is_shape());
    }
}
