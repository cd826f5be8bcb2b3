//! Dropout: every element (or every channel of a sample) is kept with probability `1 - rate` and then scaled by
//! `1 / (1 - rate)`, or set to 0; the gradient goes the same way. Srivastava et al., JMLR 15, 2014.

use super::device_key::KeyParams;
use super::elementwise::rows::{RowMapParams, Rows, is_wide, map_call, map_variants};
use super::elementwise::{DTYPES, MapParams};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::*;
use crate::base::Philox;
use crate::cpu::for_each_chunk;
use crate::error::Error;
use bytemuck::{Pod, Zeroable};

/// Drops elements or channels. Input: `x [N, .., C]` (any shape unless `channels`).
///
/// Element `i` is kept if the 32-bit word `i` of the stream `rng` is at least `rate * 2^32`; with `channels`, word
/// `n * C + c` decides for channel `c` of sample `n`. The mask is drawn again in the backward pass. Rate 0 is the
/// identity.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of dropping, in `[0, 1)`.
    pub rate: f32,
    /// The stream the decisions come from.
    pub rng: Philox,
    /// Drop whole channels of a sample (PyTorch's `Dropout2d`).
    pub channels: bool,
    /// Where the words of the stream lie on the device, if they change under a captured graph. A device then reads them
    /// there, and `rng` only on the host.
    pub key: Option<DeviceKey>,
}

/// `DropoutParams<MapParams>` of `kernels/dropout.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ElementParams {
    key: KeyParams,
    threshold: u32,
    factor: f32,
    at: MapParams,
    pad: u64,
}

/// `DropoutParams<RowMapParams>` of `kernels/dropout.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ChannelParams {
    key: KeyParams,
    threshold: u32,
    factor: f32,
    at: RowMapParams,
    pad: u64,
}

fn elements() -> Call {
    Call::new("dropout.cu", "dropout_fwd").set("PASS", 0)
}

fn whole_channels() -> Call {
    Call::new("dropout.cu", "dropout_channels").set("PASS", 1)
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut all = map_variants::<ChannelParams>(&whole_channels());
    all.extend(DTYPES.map(|dtype| elements().dtype(dtype).variant::<ElementParams>()));
    all
}

/// Elements whose mask is drawn at a time, a multiple of the generator's block of four.
const CHUNK: usize = 4096;

impl Dropout {
    /// Words below it drop.
    fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 4_294_967_296.0) as u32
    }

    /// As [`Dropout::apply`], on a device.
    fn apply_on(&self, gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
        let dtype = operand_dtype("dropout", &[x])?;
        if self.rate == 0.0 || x.elems() == 0 {
            return Ok(x.clone());
        }
        let shape = x.shape();
        let y = Tensor::empty_gpu(shape, dtype, gpu, "dropout")?;
        let key = KeyParams::new(self.key.as_ref(), &self.rng)?;
        let (threshold, factor) = (self.threshold(), 1.0 / (1.0 - self.rate));
        if self.channels {
            let rows = Rows { segments: shape[0], rows: shape.rows() / shape[0], columns: shape.last() };
            let (at, grid) = rows.layout_for(gpu, "dropout", dtype)?;
            let at = RowMapParams { input: x.cuda_ptr()?, row: 0, output: y.cuda_ptr()?, at };
            let p = ChannelParams { key, threshold, factor, at, pad: 0 };
            map_call(whole_channels(), dtype, is_wide(dtype, rows.columns)).launch(gpu, grid, &p)?;
        } else {
            let (at, grid) = MapParams::new(&[x], &y)?;
            elements().dtype(dtype).launch(
                gpu,
                grid,
                &ElementParams { key, threshold, factor, at, pad: 0 },
            )?;
        }
        Ok(y)
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if self.rate == 0.0 || x.elems() == 0 {
            return Ok(x.clone());
        }
        let (v, shape) = (x.f32s()?, x.shape());
        let (factor, threshold) = (1.0 / (1.0 - self.rate), self.threshold());
        let mut y = vec![0.0; v.len()];
        if self.channels {
            let (width, count) = (shape.last(), shape.rows() / shape[0]);
            let words = (0..(shape[0] * width).div_ceil(4)).flat_map(|i| self.rng.block(i as u64));
            let mask: Vec<f32> = words.map(|w| if w < threshold { 0.0 } else { factor }).collect();
            for_each_chunk(&mut y, width, |r, y| {
                let mask = &mask[r / count * width..];
                for ((y, &x), &m) in y.iter_mut().zip(&v[r * width..]).zip(mask) {
                    *y = if m == 0.0 { 0.0 } else { x * m };
                }
            });
        } else {
            for_each_chunk(&mut y, CHUNK, |i, y| {
                for (j, (y, x)) in y.chunks_mut(4).zip(v[i * CHUNK..].chunks(4)).enumerate() {
                    let words = self.rng.block((i * (CHUNK / 4) + j) as u64);
                    for ((y, &x), w) in y.iter_mut().zip(x).zip(words) {
                        *y = if w < threshold { 0.0 } else { x * factor };
                    }
                }
            });
        }
        Tensor::from_vec(shape, y)
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        if !(0.0..1.0).contains(&self.rate) {
            return Err(Error::usage(format!("the rate must lie in [0, 1), got {}", self.rate))
                .with_op("dropout")
                .with_remedy("set a dropout rate of at least 0 and below 1"));
        }
        match inputs {
            [x] if !self.channels || x.len() >= 2 => Ok(*x),
            [x] => Err(Error::shape("dropout", format!("channels are dropped in [N, .., C], got {x}"))),
            _ => Err(Error::shape("dropout", format!("takes one input (x), got {}", inputs.len()))),
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
        let keep = 1.0 - f64::from(self.rate);
        let y = inputs[0].data::<f64>()?.iter().enumerate().map(|(i, x)| {
            let c = shape.last();
            let at = if self.channels { i / (shape.elems() / shape[0]) * c + i % c } else { i };
            let word = self.rng.block(at as u64 / 4)[at % 4];
            if f64::from(word) >= (f64::from(self.rate) * 2f64.powi(32)).floor() { x / keep } else { 0.0 }
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

/// Elements and channels, odd sizes, more than one chunk.
pub fn cases() -> Vec<Case> {
    let op = |rate, channels| Dropout { rate, rng: Philox::new(6).fold_str("dropout"), channels, key: None };
    vec![
        Case::new("rate 0", op(0.0, false), vec![Input::normal("x", [2, 3])]),
        Case::new("one element", op(0.5, false), vec![Input::normal("x", [1])]),
        Case::new("odd", op(0.3, false), vec![Input::normal("x", [3, 5, 7, 11])]),
        Case::new("several chunks", op(0.1, false), vec![Input::normal("x", [3, CHUNK + 5])]),
        Case::new("channels", op(0.4, true), vec![Input::normal("x", [3, 5, 2, 13])]),
        Case::new("channels in chunks", op(0.4, true), vec![Input::normal("x", [3, 5, 4, 24])]),
        Case::new("channels of vectors", op(0.4, true), vec![Input::normal("x", [4, 9])]),
        Case::bench("elements", op(0.1, false), vec![Input::normal("x", [8, 64, 64, 64])]),
        Case::bench("whole channels", op(0.1, true), vec![Input::normal("x", [8, 64, 64, 64])]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_expectation_and_drops_for_good() {
        let op = Dropout { rate: 0.2, rng: Philox::new(1), channels: false, key: None };
        let n = 100_000;
        let y = run(&op, &[&Tensor::full([n], 1.0)]).unwrap().y;
        let dropped = y.f32s().unwrap().iter().filter(|&&v| v == 0.0).count() as f64 / n as f64;
        assert!((dropped - 0.2).abs() < 0.01, "{dropped}");
        let y = run(&op, &[&Tensor::full([n], f32::INFINITY)]).unwrap().y;
        assert!(y.f32s().unwrap().iter().all(|&v| v == 0.0 || v == f32::INFINITY), "0 * inf is not 0");
    }

    #[test]
    fn refuses_other_rates_and_shapes() {
        for rate in [1.0, -0.1, f32::NAN] {
            let op = Dropout { rate, rng: Philox::new(1), channels: false, key: None };
            let e = run(&op, &[&Tensor::zeros([2, 2])]).err().unwrap();
            assert!(e.is_usage() && e.to_string().contains("dropout"), "{e}");
        }
        let op = Dropout { rate: 0.5, rng: Philox::new(1), channels: true, key: None };
        assert!(run(&op, &[&Tensor::zeros([4])]).err().unwrap().is_shape());
    }
}
