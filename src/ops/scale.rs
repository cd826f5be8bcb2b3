//! Per-channel scale (ConvNeXt's layer scale): `y = x gamma`; gradients `gx = gy gamma`, `ggamma = sum gy x` over all
//! rows.

use super::elementwise::rows::{RowMapParams, RowSumParams, Rows, is_wide, map_variants, sum_call};
use super::elementwise::{DTYPES, THREADS};
use super::implicit_gemm::{int, operand_dtype};
use super::kernel::Call;
use super::*;
use crate::base::DType;
use crate::cpu::{for_each_chunk, rows};
use crate::error::Error;
use crate::gpu::Grid;
use bytemuck::{Pod, Zeroable};

/// `y[.., c] = x[.., c] * gamma[c]`. Inputs: `x [.., C]`, `gamma [C]`.
#[derive(Clone, Debug, Default)]
pub struct Scale {}

/// `ScaleBwdParams` of `kernels/scale.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdParams {
    gy: u64,
    x: u64,
    gamma: u64,
    gx: u64,
    out: u64,
    rows: i32,
    columns: i32,
}

fn call(entry: &'static str, pass: u8) -> Call {
    Call::new("scale.cu", entry).set("PASS", pass)
}

fn fwd() -> Call {
    call("scale_fwd", 0)
}

fn bwd(dtype: DType, wide: bool, gx: bool) -> Call {
    call("scale_bwd", 1).dtype(dtype).set("VEC", u8::from(wide)).set("GX", u8::from(gx))
}

fn sum() -> Call {
    call("scale_sum", 2)
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut all = map_variants::<RowMapParams>(&fwd());
    for wide in [false, true] {
        all.push(sum_call(sum(), DType::F32, DType::F32, wide).variant::<RowSumParams>());
        for dtype in DTYPES {
            all.extend([false, true].map(|gx| bwd(dtype, wide, gx).variant::<BwdParams>()));
        }
    }
    all
}

/// Rows and channels of `x`.
fn rows_of(x: Shape) -> Rows {
    Rows { segments: 1, rows: x.rows(), columns: x.last() }
}

/// `x` and `gamma` as the kernels take them.
fn check_dtypes(x: &[&Tensor], gamma: &Tensor) -> Result<DType> {
    if gamma.dtype() != DType::F32 {
        return Err(Error::dtype("scale", format!("gamma stays f32 on a device, got {gamma:?}")));
    }
    operand_dtype("scale", x)
}

/// `ggamma`, and `gx` in the same pass where it is wanted: `gx` is `None` where it is not.
fn gradients(gpu: &Gpu, gy: &Tensor, x: &Tensor, gamma: &Tensor, gx: Option<&Tensor>) -> Result<Tensor> {
    let (dtype, rows) = (gy.dtype(), rows_of(x.shape()));
    let ggamma = Tensor::empty_gpu([rows.columns], DType::F32, gpu, "gradient of scale")?;
    let (across, parts) = rows.sum_blocks(dtype, gpu.info().multiprocessors as usize);
    let partial = match parts {
        1 => ggamma.clone(),
        _ => Tensor::empty_gpu([1, parts, rows.columns], DType::F32, gpu, "gradient of scale")?,
    };
    let p = BwdParams {
        gy: gy.cuda_ptr()?,
        x: x.cuda_ptr()?,
        gamma: gamma.cuda_ptr()?,
        gx: gx.map_or(Ok(0), Tensor::cuda_ptr)?,
        out: partial.cuda_ptr()?,
        rows: int("scale", "rows", rows.rows)?,
        columns: int("scale", "channels", rows.columns)?,
    };
    let grid = Grid { grid: [across as u32, parts as u32, 1], block: THREADS as u32, shared_bytes: 0 };
    bwd(dtype, is_wide(dtype, rows.columns), gx.is_some()).launch(gpu, grid, &p)?;
    if parts > 1 {
        rows.sum_parts(gpu, "scale", sum(), &partial, &ggamma, 1.0)?;
    }
    Ok(ggamma)
}

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

    fn has_kernel(&self) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        check_dtypes(&inputs[..1], inputs[1])?;
        Ok(rows_of(inputs[0].shape()).map(gpu, "scale", fwd(), inputs[0], inputs[1])?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let (gy, x, gamma) = (ctx.gy, &ctx.saved[0], &ctx.saved[1]);
        let dtype = check_dtypes(&[gy, x], gamma)?;
        if !ctx.needs[1] {
            let gx = rows_of(ctx.inputs[0]).map(gpu, "gradient of scale", fwd(), gy, gamma)?;
            return Ok(vec![Some(gx), None]);
        }
        let wanted = ctx.needs[0];
        let gx =
            wanted.then(|| Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "gradient of scale")).transpose()?;
        let ggamma = gradients(gpu, gy, x, gamma, gx.as_ref())?;
        Ok(vec![gx, Some(ggamma)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, gamma) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?);
        let y = x.iter().enumerate().map(|(i, x)| x * gamma[i % gamma.len()]).collect();
        Tensor::from_vec(inputs[0].shape(), y)
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (x, gamma, gy) = (inputs[0].data::<f64>()?, inputs[1].data::<f64>()?, gy.data::<f64>()?);
        let c = gamma.len();
        let gx = gy.iter().enumerate().map(|(i, g)| g * gamma[i % c]).collect();
        let mut ggamma = vec![0.0; c];
        for (i, (g, x)) in gy.iter().zip(x).enumerate() {
            ggamma[i % c] += g * x;
        }
        let (gx, ggamma) = (Tensor::from_vec(inputs[0].shape(), gx)?, Tensor::from_vec([c], ggamma)?);
        Ok(Some(vec![Some(gx), Some(ggamma)]))
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
        case("several parts", &[3, 10, 24, 24], false),
        case("several parts, odd", &[3, 10, 24, 9], false),
        Case::new(
            "gamma only, odd",
            Scale {},
            vec![Input::normal("x", [37, 19]).fixed(), Input::normal("gamma", [19])],
        ),
        Case::new(
            "x only",
            Scale {},
            vec![Input::normal("x", [37, 16]), Input::normal("gamma", [16]).fixed()],
        ),
        Case::new(
            "gamma only",
            Scale {},
            vec![Input::normal("x", [37, 16]).fixed(), Input::normal("gamma", [16])],
        ),
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
