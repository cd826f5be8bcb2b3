//! Embedding: `y[n] = weight[index[n]]`; gradient `gweight[k] = sum of gy[n] over index[n] = k`, added in the order of
//! `n`.

use super::implicit_gemm::int;
use super::kernel::Call;
use super::*;
use crate::base::DType;
use crate::error::Error;
use crate::gpu::Grid;
use bytemuck::{Pod, Zeroable};

/// Rows of a table. Inputs: `weight [K, D]`, `index [N]` (i64, `0..K`); result `[N, D]`.
///
/// On a device the table is f32, and an index outside of it, which nobody there can refuse, gives a row of NaN.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Element type of the result on a device: f32, or bf16, to which rows are rounded. On the host it is f32.
    pub dtype: DType,
}

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

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let ((rows, dim), count) = (inputs[0].shape().matrix("embedding")?, inputs[1].elems());
        let y = Tensor::empty_gpu([count, dim], DType::F32, gpu, "embedding")?;
        let (p, wide) = params(inputs[0], inputs[1], &y, [rows, dim, count])?;
        if y.elems() > 0 {
            let threads = y.elems() / if wide { 4 } else { 1 };
            let blocks = int("embedding", "elements of the result", threads.div_ceil(THREADS))? as u32;
            let grid = Grid { grid: [blocks, 1, 1], block: THREADS as u32, shared_bytes: 0 };
            call("embedding_fwd", wide).launch(gpu, grid, &p)?;
        }
        Ok(cast(gpu, &y, self.dtype)?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        if !ctx.needs[0] {
            return Ok(vec![None, None]);
        }
        let (index, (rows, dim)) = (&ctx.saved[0], ctx.inputs[0].matrix("embedding")?);
        let gw = Tensor::empty_gpu([rows, dim], DType::F32, gpu, "embedding gradient")?;
        let gy = cast(gpu, ctx.gy, DType::F32)?;
        let (p, wide) = params(&gy, index, &gw, [rows, dim, index.elems()])?;
        if gw.elems() > 0 {
            let across = dim.div_ceil(32 * if wide { 4 } else { 1 });
            let blocks = [rows.div_ceil(THREADS / 32) as u32, across as u32, 1];
            let grid = Grid { grid: blocks, block: THREADS as u32, shared_bytes: 0 };
            call("embedding_bwd", wide).launch(gpu, grid, &p)?;
        }
        Ok(vec![Some(gw), None])
    }

    fn is_operand(&self, _input: usize) -> bool {
        false
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (k, d) = inputs[0].shape().matrix("embedding")?;
        let mut g = vec![0.0f64; k * d];
        for (&k, gy) in inputs[1].data::<i64>()?.iter().zip(gy.data::<f64>()?.chunks_exact(d)) {
            g[k as usize * d..][..d].iter_mut().zip(gy).for_each(|(g, gy)| *g += gy);
        }
        Ok(Some(vec![Some(Tensor::from_vec([k, d], g)?), None]))
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

/// `EmbeddingParams` of `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    from: u64,
    index: u64,
    to: u64,
    rows: i32,
    dim: i32,
    count: i32,
    reserved: i32,
}

/// Threads of a block.
const THREADS: usize = 256;

/// Parameters for a table of `rows` x `dim` and `count` indices, and whether columns travel four at a time.
fn params(from: &Tensor, index: &Tensor, to: &Tensor, sizes: [usize; 3]) -> Result<(Params, bool)> {
    if from.dtype() != DType::F32 || index.dtype() != DType::I64 {
        let text = format!("takes f32 rows and i64 indices on a device, not {from:?} and {index:?}");
        return Err(Error::dtype("embedding", text));
    }
    let count = |what: &str, v: usize| int("embedding", what, v);
    // Columns and indices are counted up to a block beyond the last.
    count("columns", sizes[1] + 4 * THREADS)?;
    count("indices", sizes[2] + THREADS)?;
    let p = Params {
        from: from.cuda_ptr()?,
        index: index.cuda_ptr()?,
        to: to.cuda_ptr()?,
        rows: count("rows", sizes[0])?,
        dim: count("columns", sizes[1])?,
        count: count("indices", sizes[2])?,
        reserved: 0,
    };
    Ok((p, sizes[1].is_multiple_of(4)))
}

fn call(entry: &'static str, wide: bool) -> Call {
    Call::new("embedding.cu", entry).dtype(DType::F32).set("VEC", u8::from(wide))
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let all =
        ["embedding_fwd", "embedding_bwd"].map(|e| [true, false].map(|w| call(e, w).variant::<Params>()));
    all.into_iter().flatten().collect()
}

/// More rows than indices, repeated indices, one of each, more than a warp compares at a time.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, k: usize, d: usize, n: usize, bench: bool| {
        let inputs = vec![Input::normal("weight", [k, d]), Input::labels("index", [n], k as u32, 0)];
        Case { bench, ..Case::new(label, Embedding { dtype: DType::F32 }, inputs) }
    };
    vec![
        case("one of each", 1, 1, 1, false),
        case("repeated", 3, 5, 17, false),
        case("sparse", 31, 7, 4, false),
        case("chunks", 9, 132, 70, false),
        case("classes", 1000, 512, 256, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bad_indices_and_shapes() {
        let op = Embedding { dtype: DType::F32 };
        let weight = Tensor::zeros([3, 2]);
        for bad in [3i64, -1, i64::MAX] {
            let index = Tensor::from_vec([2], vec![0, bad]).unwrap();
            let e = run(&op, &[&weight, &index]).err().unwrap();
            assert!(e.is_data() && e.to_string().contains(&bad.to_string()), "{e}");
            assert!(e.to_string().contains("embedding"), "{e}");
        }
        let index = Tensor::zeros([2]);
        assert!(run(&op, &[&weight, &index]).err().unwrap().is_dtype());
        assert!(run(&op, &[&index, &index]).err().unwrap().is_shape());
        assert!(run(&op, &[&weight]).err().unwrap().is_shape());
    }
}
