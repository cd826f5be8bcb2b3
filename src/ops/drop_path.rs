//! Stochastic depth: every sample is kept with probability `1 - rate` and then scaled by `1 / (1 - rate)`, or set to
//! 0; the gradient goes the same way. Huang et al., arXiv:1603.09382, in the per-sample form.

use super::device_key::KeyParams;
use super::elementwise::rows::is_wide;
use super::elementwise::{DTYPES, THREADS, TURNS, blocks, blocks_of};
use super::implicit_gemm::{int, operand_dtype};
use super::kernel::Call;
use super::*;
use crate::base::{DType, Philox};
use crate::cpu::for_each_chunk;
use crate::error::Error;
use bytemuck::{Pod, Zeroable};

/// Drops whole samples. Input: `x [N, ..]`. Sample `n` is kept if element `n` of the stream `rng` is at least `rate`;
/// rate 0 is the identity.
#[derive(Clone, Debug)]
pub struct DropPath {
    /// Probability of dropping a sample, in `[0, 1)`.
    pub rate: f32,
    /// The stream the decisions come from.
    pub rng: Philox,
    /// Where the words of the stream lie on the device, if they change under a captured graph. A device then reads them
    /// there, and `rng` only on the host.
    pub key: Option<DeviceKey>,
}

/// `DropPathParams` of `kernels/drop_path.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    key: KeyParams,
    input: u64,
    output: u64,
    count: i64,
    blocks: i32,
    rate: f32,
    factor: f32,
    pad: [i32; 3],
}

fn call(dtype: DType, wide: bool) -> Call {
    Call::new("drop_path.cu", "drop_path_fwd").dtype(dtype).set("VEC", u8::from(wide))
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let of = |dtype| [false, true].map(|wide| call(dtype, wide).variant::<Params>());
    DTYPES.into_iter().flat_map(of).collect()
}

impl DropPath {
    /// The factor of sample `n`.
    fn factor(&self, n: usize) -> f32 {
        if self.rng.uniform_at(n as u64) < self.rate { 0.0 } else { 1.0 / (1.0 - self.rate) }
    }

    /// As [`DropPath::apply`], on a device.
    fn apply_on(&self, gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
        let dtype = operand_dtype("drop_path", &[x])?;
        if self.rate == 0.0 || x.elems() == 0 {
            return Ok(x.clone());
        }
        let (samples, count) = (x.shape()[0], x.elems() / x.shape()[0]);
        let wide = is_wide(dtype, count);
        let each = if wide { blocks_of(dtype, count) } else { count.div_ceil(THREADS * TURNS) };
        int("drop_path", "blocks", samples * each)?;
        let y = Tensor::empty_gpu(x.shape(), dtype, gpu, "drop_path")?;
        let p = Params {
            key: KeyParams::new(self.key.as_ref(), &self.rng)?,
            input: x.cuda_ptr()?,
            output: y.cuda_ptr()?,
            count: count as i64,
            blocks: each as i32,
            rate: self.rate,
            factor: 1.0 / (1.0 - self.rate),
            pad: [0; 3],
        };
        call(dtype, wide).launch(gpu, blocks(samples * each), &p)?;
        Ok(y)
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if self.rate == 0.0 || x.elems() == 0 {
            return Ok(x.clone());
        }
        const CHUNK: usize = 4096;
        let (v, count) = (x.f32s()?, x.elems() / x.shape()[0]);
        let mut y = vec![0.0; v.len()];
        for (n, y) in y.chunks_mut(count).enumerate() {
            let factor = self.factor(n);
            if factor != 0.0 {
                let x = &v[n * count..];
                for_each_chunk(y, CHUNK, |i, y| {
                    y.iter_mut().zip(&x[i * CHUNK..]).for_each(|(y, &x)| *y = x * factor);
                });
            }
        }
        Tensor::from_vec(x.shape(), y)
    }
}

impl Op for DropPath {
    fn name(&self) -> &'static str {
        "drop_path"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        if !(0.0..1.0).contains(&self.rate) {
            return Err(Error::usage(format!("the rate must lie in [0, 1), got {}", self.rate))
                .with_op("drop_path")
                .with_remedy("set a drop path rate of at least 0 and below 1"));
        }
        match inputs {
            [x] if !x.is_empty() => Ok(*x),
            [x] => Err(Error::shape("drop_path", format!("expects samples [N, ..], got {x}"))),
            _ => Err(Error::shape("drop_path", format!("takes one input (x), got {}", inputs.len()))),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        inputs[0].f32s()?;
        Ok(self.apply(inputs[0])?.into())
    }

    fn save(&self, _inputs: &[&Tensor], _y: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.apply(ctx.gy)?)])
    }

    /// With rate 0 the result is the input itself: there is nothing to launch.
    fn has_kernel(&self) -> bool {
        self.rate > 0.0
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        Ok(self.apply_on(gpu, inputs[0])?.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.apply_on(gpu, ctx.gy)?)])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let shape = inputs[0].shape();
        let count = shape.elems() / shape[0];
        let keep = 1.0 - f64::from(self.rate);
        let y =
            inputs[0].data::<f64>()?.iter().enumerate().map(|(i, x)| {
                if self.rng.uniform_at((i / count) as u64) >= self.rate { x / keep } else { 0.0 }
            });
        Tensor::from_vec(shape, y.collect())
    }

    fn reference_gradients(&self, _inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        Ok(Some(vec![Some(self.reference(&[gy])?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64
    }
}

/// No dropping, some, most, and a single sample.
pub fn cases() -> Vec<Case> {
    let op = |rate| DropPath { rate, rng: Philox::new(5).fold_str("drop_path"), key: None };
    vec![
        Case::new("rate 0", op(0.0), vec![Input::normal("x", [2, 3])]),
        Case::new("one sample", op(0.3), vec![Input::normal("x", [1, 3, 5, 7])]),
        Case::new("some", op(0.3), vec![Input::normal("x", [11, 3, 1, 5])]),
        Case::new("most", op(0.9), vec![Input::normal("x", [30, 2])]),
        Case::new("samples of chunks", op(0.4), vec![Input::normal("x", [5, 3, 2, 24])]),
        Case::new("more than a block", op(0.5), vec![Input::normal("x", [3, 8208])]),
        Case::bench("block", op(0.1), vec![Input::normal("x", [8, 56, 56, 96])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_expectation() {
        let op = DropPath { rate: 0.25, rng: Philox::new(1), key: None };
        let n = 20_000;
        let y = run(&op, &[&Tensor::full([n, 2], 1.0)]).unwrap().y;
        let y = y.f32s().unwrap();
        assert!(y.chunks(2).all(|s| s[0] == s[1] && (s[0] == 0.0 || s[0] == 1.0 / 0.75)));
        let mean = y.iter().sum::<f32>() / (2 * n) as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn refuses_other_rates() {
        for rate in [1.0, -0.1, f32::NAN] {
            let op = DropPath { rate, rng: Philox::new(1), key: None };
            let e = run(&op, &[&Tensor::zeros([2, 2])]).err().unwrap();
            assert!(e.is_usage() && e.to_string().contains("drop_path"), "{e}");
        }
        let op = DropPath { rate: 0.5, rng: Philox::new(1), key: None };
        assert!(run(&op, &[&Tensor::scalar(1.0)]).err().unwrap().is_shape());
    }
}
