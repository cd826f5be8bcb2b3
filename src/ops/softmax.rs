//! Softmax over the last axis: `y = exp(x - max x) / sum exp(x - max x)`; gradient `gx = y (gy - sum gy y)`.

use super::implicit_gemm::{int, operand_dtype};
use super::kernel::Call;
use super::*;
use crate::base::DType;
use crate::cpu::{for_each_chunk, math, rows};
use crate::error::Error;
use crate::gpu::Grid;
use bytemuck::{Pod, Zeroable};

/// Softmax over the last axis. Input: `x` with at least one axis.
#[derive(Clone, Debug, Default)]
pub struct Softmax {}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        match inputs {
            [x] if !x.is_empty() && x.last() > 0 => Ok(*x),
            [x] => {
                Err(Error::shape("softmax", format!("needs a last axis with at least one element, got {x}")))
            }
            _ => Err(Error::shape("softmax", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let (x, width) = (inputs[0].f32s()?, inputs[0].shape().last());
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, width, |r, y| {
            let x = &x[r * width..(r + 1) * width];
            let max = rows::max(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = math::exp(x - max);
            }
            let scale = (1.0 / rows::dot_by(y, y, |v, _| f64::from(v))) as f32;
            y.iter_mut().for_each(|y| *y *= scale);
        });
        Ok(Tensor::from_vec(inputs[0].shape(), y)?.into())
    }

    /// The result; on a device the input, since a result that was rounded to bf16 is too coarse to take gradients from.
    fn save(&self, inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        vec![if y.gpu().is_some() { inputs[0].clone() } else { y.clone() }]
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, y, width) = (ctx.gy.f32s()?, ctx.saved[0].f32s()?, ctx.inputs[0].last());
        let mut gx = vec![0.0; y.len()];
        for_each_chunk(&mut gx, width, |r, gx| {
            let at = r * width..(r + 1) * width;
            let (gy, y) = (&gy[at.clone()], &y[at]);
            let dot = rows::dot_by(gy, y, |g, y| f64::from(g) * f64::from(y)) as f32;
            for ((gx, &gy), &y) in gx.iter_mut().zip(gy).zip(y) {
                *gx = y * (gy - dot);
            }
        });
        Ok(vec![Some(Tensor::from_vec(ctx.inputs[0], gx)?)])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        let x = inputs[0];
        let dtype = operand_dtype("softmax", &[x])?;
        let y = Tensor::empty_gpu(x.shape(), dtype, gpu, "softmax")?;
        let p = Params { x: x.cuda_ptr()?, out: y.cuda_ptr()?, ..Params::zeroed() };
        launch_pass(gpu, "softmax_fwd", dtype, x.shape(), p)?;
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let x = &ctx.saved[0];
        let dtype = operand_dtype("softmax", &[x, ctx.gy])?;
        let gx = Tensor::empty_gpu(x.shape(), dtype, gpu, "softmax gradient")?;
        let p = Params { x: x.cuda_ptr()?, gy: ctx.gy.cuda_ptr()?, out: gx.cuda_ptr()?, ..Params::zeroed() };
        launch_pass(gpu, "softmax_bwd", dtype, x.shape(), p)?;
        Ok(vec![Some(gx)])
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (mut g, width) = (self.reference(inputs)?, inputs[0].shape().last());
        let rows = g.data_mut::<f64>()?.chunks_exact_mut(width).zip(gy.data::<f64>()?.chunks_exact(width));
        for (y, gy) in rows {
            let dot: f64 = y.iter().zip(gy).map(|(y, g)| y * g).sum();
            y.iter_mut().zip(gy).for_each(|(y, g)| *y *= g - dot);
        }
        Ok(Some(vec![Some(g)]))
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].data::<f64>()?.to_vec();
        for row in y.chunks_mut(inputs[0].shape().last()) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        Tensor::from_vec(inputs[0].shape(), y)
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        4 * inputs[0].elems() as u64
    }
}

/// `SoftmaxParams` of `kernels/softmax.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    x: u64,
    gy: u64,
    out: u64,
    rows: i32,
    width: i32,
}

/// Threads of a block.
const THREADS: usize = 256;
/// Turns of a row that a thread keeps in registers.
const HELD: usize = 4;

fn call(entry: &'static str, dtype: DType, wide: bool, row_threads: usize) -> Call {
    let call = Call::new("softmax.cu", entry).dtype(dtype);
    call.set("VEC", u8::from(wide)).set("ROW_THREADS", row_threads)
}

fn launch_pass(gpu: &Gpu, entry: &'static str, dtype: DType, shape: Shape, p: Params) -> Result<()> {
    let (rows, width) = (shape.elems() / shape.last(), shape.last());
    if rows == 0 {
        return Ok(());
    }
    let each = 16 / dtype.size();
    let wide = width.is_multiple_of(each);
    // A warp takes what it can keep.
    let fits = width <= 32 * HELD * if wide { each } else { 1 };
    let row_threads = if fits { 32 } else { THREADS };
    // Columns are counted up to a turn beyond the last.
    int("softmax", "elements of a row", width + 2 * HELD * THREADS * each)?;
    let p = Params { rows: int("softmax", "rows", rows)?, width: width as i32, ..p };
    let blocks = rows.div_ceil(THREADS / row_threads) as u32;
    let grid = Grid { grid: [blocks, 1, 1], block: THREADS as u32, shared_bytes: 0 };
    call(entry, dtype, wide, row_threads).launch(gpu, grid, &p)
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for entry in ["softmax_fwd", "softmax_bwd"] {
        for dtype in [DType::F32, DType::Bf16] {
            for (wide, row_threads) in [(true, 32), (true, THREADS), (false, 32), (false, THREADS)] {
                all.push(call(entry, dtype, wide, row_threads).variant::<Params>());
            }
        }
    }
    all
}

/// Narrow, odd, wide and saturated rows, and what exceeds the registers of a warp and of a block.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("chunks", Softmax {}, vec![Input::normal("x", [11, 64])]),
        Case::new("chunks of a block", Softmax {}, vec![Input::normal("x", [2, 1032])]),
        Case::new("beyond a block's registers", Softmax {}, vec![Input::normal("x", [1, 8 * 1025])]),
        Case::new("odd, of a block", Softmax {}, vec![Input::normal("x", [2, 301])]),
        Case::new("odd, beyond a block's registers", Softmax {}, vec![Input::normal("x", [1, 1101])]),
        Case::new("one class", Softmax {}, vec![Input::normal("x", [3, 1])]),
        Case::new("a vector", Softmax {}, vec![Input::normal("x", [7])]),
        Case::new("odd", Softmax {}, vec![Input::normal("x", [2, 3, 5, 19])]),
        Case::new("large", Softmax {}, vec![Input::filled("x", [5, 64], Fill::Normal(300.0, 10.0))]),
        Case::bench("classes", Softmax {}, vec![Input::normal("x", [256, 1000])]),
        Case::bench("attention rows", Softmax {}, vec![Input::normal("x", [8, 1024, 1024])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_extremes() {
        let x = Tensor::from_vec([2, 3], vec![1e30, -1e30, 0.0, f32::NEG_INFINITY, 2.0, 2.0]).unwrap();
        let y = run(&Softmax {}, &[&x]).unwrap().y;
        assert_eq!(y.f32s().unwrap(), &[1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
    }

    #[test]
    fn nan_shows_in_its_row_only() {
        let x = Tensor::from_vec([2, 2], vec![f32::NAN, 0.0, 1.0, 1.0]).unwrap();
        let y = run(&Softmax {}, &[&x]).unwrap().y;
        let y = y.f32s().unwrap();
        assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 0.5);
    }

    #[test]
    fn refuses_empty_rows_and_scalars() {
        for x in [Tensor::zeros([2, 0]), Tensor::scalar(1.0)] {
            assert!(run(&Softmax {}, &[&x]).err().unwrap().is_shape());
        }
    }
}
