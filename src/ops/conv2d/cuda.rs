//! The convolution on a CUDA device: sizes to kernel parameters.

use super::Conv2d;
use super::depthwise_cuda;
use super::geometry::Geometry;
use crate::base::Shape;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid, Work};
use crate::ops::Backward;
use crate::ops::implicit_gemm::gather::{Finish, Gather, Gathered, Segment};
use crate::ops::implicit_gemm::params::{Axis, Fold};
use crate::ops::implicit_gemm::pixels::Pixels;
use crate::ops::implicit_gemm::{Class, Family, Pass, int, operand_dtype};
use crate::tensor::Tensor;

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// One axis of the forward pass.
fn forward_axis(g: &Geometry, i: usize) -> Result<Axis> {
    let count = |what: &str, v: usize| int("conv2d", what, v);
    Ok(Axis {
        size: count("image side", [g.h, g.w][i])?,
        kernel: count("kernel side", [g.kh, g.kw][i])?,
        step: count("stride", g.stride[i])?,
        pad: count("padding", g.pad[i])?,
        dilation: count("dilation", g.dilation[i])?,
        tap_step: count("dilation", g.dilation[i])?,
        weight_step: 1,
        phases: 1,
    })
}

/// One axis of the input gradient: the taps that reach one residue of the coordinate are `stride / gcd` apart.
fn gradient_axis(g: &Geometry, i: usize) -> Result<Axis> {
    let common = greatest_common_divisor(g.dilation[i], g.stride[i]);
    let forward = forward_axis(g, i)?;
    Ok(Axis {
        size: int("conv2d", "map side", [g.ho, g.wo][i])?,
        step: 1,
        tap_step: -((g.dilation[i] / common) as i32),
        weight_step: (g.stride[i] / common) as i32,
        phases: forward.step,
        ..forward
    })
}

/// A bias, scale or other vector of `len` f32 on the device; 0 for none.
fn vector(name: &str, t: Option<&Tensor>, len: usize) -> Result<u64> {
    let Some(t) = t else { return Ok(0) };
    if t.elems() != len || t.dtype() != crate::base::DType::F32 {
        return Err(Error::shape("conv2d", format!("{name} must be f32 [{len}]")).with_tensor(name, t));
    }
    t.cuda_ptr()
}

/// `y = conv2d(x, w) + b`, and the statistics of y if they are wanted and there is one group.
pub(super) fn forward(g: &Geometry, gpu: &Gpu, inputs: &[&Tensor], stats: bool) -> Result<FusedOutput> {
    let (x, w) = (inputs[0], inputs[1]);
    if g.is_depthwise() {
        let y = depthwise_cuda::forward(g, gpu, x, w, inputs.get(2).copied())?;
        return Ok(FusedOutput { y, stats: None });
    }
    let dtype = operand_dtype("conv2d", &[x, w])?;
    let (per_group, columns) = g.per_group();
    let segment = Segment {
        x: x.cuda_ptr()?,
        w: w.cuda_ptr()?,
        axis: [forward_axis(g, 0)?, forward_axis(g, 1)?],
        channels: per_group,
        pixel: g.ci,
        w_row: g.k(),
        w_tap: per_group,
        w_phase: 0,
    };
    let bias = vector("bias", inputs.get(2).copied(), g.co)?;
    let gather = Gather {
        family: Family::Conv2d,
        pass: Pass::Fwd,
        dtype,
        segments: vec![segment],
        images: g.n,
        size: [g.ho, g.wo],
        phases: [1; 2],
        columns,
        groups: g.groups,
        doubled: false,
        stats: stats && g.groups == 1,
        finish: Finish { bias, ..Finish::default() },
    };
    let Gathered { y, stats } = gather.run(gpu)?;
    Ok(FusedOutput { y, stats })
}

/// Gradient with respect to x, in the type of gy.
pub(super) fn input_gradient(g: &Geometry, gpu: &Gpu, gy: &Tensor, w: &Tensor) -> Result<Tensor> {
    if g.is_depthwise() {
        return depthwise_cuda::input_gradient(g, gpu, gy, w);
    }
    let dtype = operand_dtype("conv2d", &[gy, w])?;
    let (columns, per_group) = g.per_group();
    let segment = Segment {
        x: gy.cuda_ptr()?,
        w: w.cuda_ptr()?,
        axis: [gradient_axis(g, 0)?, gradient_axis(g, 1)?],
        channels: per_group,
        pixel: g.co,
        w_row: g.k(),
        w_tap: columns,
        w_phase: 0,
    };
    let gather = Gather {
        family: Family::Conv2d,
        pass: Pass::Dgrad,
        dtype,
        segments: vec![segment],
        images: g.n,
        size: [g.h, g.w],
        phases: g.stride,
        columns,
        groups: g.groups,
        doubled: false,
        stats: false,
        finish: Finish::default(),
    };
    Ok(gather.run(gpu)?.y)
}

/// Gradient with respect to w, f32.
pub(super) fn weight_gradient(
    g: &Geometry,
    gpu: &Gpu,
    x: &Tensor,
    gy: &Tensor,
    shape: Shape,
) -> Result<Tensor> {
    if g.is_depthwise() {
        return depthwise_cuda::weight_gradient(g, gpu, x, gy, shape);
    }
    let (channels, rows) = g.per_group();
    let pixels = Pixels {
        family: Family::Conv2d,
        dtype: operand_dtype("conv2d", &[x, gy])?,
        images: g.n,
        size: [g.h, g.w],
        map: [g.ho, g.wo],
        kernel: [g.kh, g.kw],
        stride: g.stride,
        pad: g.pad,
        dilation: g.dilation,
        groups: g.groups,
        channels,
        rows,
    };
    pixels.run(gpu, x, gy, shape)
}

/// What follows a sum in [`FusedConv`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(v, 0)`.
    Relu,
    /// `v / (1 + exp(-v))`.
    Silu,
    /// `v * Phi(v)`, by the error function.
    Gelu,
}

/// One convolution of a [`FusedConv`]: of the channels of all `inputs`, one after the other, as if they were concatenated.
#[derive(Clone)]
pub struct Part<'a> {
    /// `[n, h, w, c_i]` each.
    pub inputs: Vec<&'a Tensor>,
    /// `[co, kh, kw, sum of c_i]`; for [`FusedConv::doubled`] what [`fold_doubled`] made.
    pub weight: &'a Tensor,
    /// Geometry; one group.
    pub conv: Conv2d,
}

/// A sum of convolutions and what follows it, in one kernel: nothing between is written to memory.
///
/// ```text
/// y = activation(scale * (bias + sum over parts of conv2d(concat(inputs), weight)) + residual)
/// ```
/// The 1x1 skip of a residual block is a second part; so a whole block ends in one launch. All tensors lie on the device;
/// inputs, weights and residual are all bf16 or all f32, bias and scale f32.
#[derive(Clone)]
pub struct FusedConv<'a> {
    /// Convolutions that are added; their results have the same shape. At most four inputs in all.
    pub parts: Vec<Part<'a>>,
    /// `[co]`.
    pub bias: Option<&'a Tensor>,
    /// `[co]`: LayerScale.
    pub scale: Option<&'a Tensor>,
    /// `[n, ho, wo, co]`, or `[n, ho/2, wo/2, co]`, which is doubled by nearest neighbour.
    pub residual: Option<&'a Tensor>,
    /// Applied last.
    pub activation: Activation,
    /// Whether to give mean and sum of squared deviations of every image and channel of y, for the norm that follows.
    pub stats: bool,
    /// Convolves the nearest-neighbour doubling of its input: 3x3, stride 1, padding 1, one part, weight folded.
    pub doubled: bool,
}

/// Result of a [`FusedConv`].
pub struct FusedOutput {
    /// `[n, ho, wo, co]`, of the operands' type.
    pub y: Tensor,
    /// `[n, co, 2]` f32: mean, and sum of squared deviations from it.
    pub stats: Option<Tensor>,
}

impl<'a> FusedConv<'a> {
    /// A convolution followed by nothing.
    pub fn new(inputs: Vec<&'a Tensor>, weight: &'a Tensor, conv: Conv2d) -> Self {
        FusedConv {
            parts: vec![Part { inputs, weight, conv }],
            bias: None,
            scale: None,
            residual: None,
            activation: Activation::None,
            stats: false,
            doubled: false,
        }
    }

    /// Launches it on the compute stream.
    ///
    /// # Errors
    /// Shapes or types that do not fit, more than four inputs, no memory, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu) -> Result<FusedOutput> {
        let refuse = |what: String| Err(Error::shape("conv2d", what));
        let mut operands: Vec<&Tensor> = Vec::new();
        let mut segments = Vec::new();
        let mut result: Option<[usize; 4]> = None;
        for part in &self.parts {
            let (g, axes) = self.geometry(part)?;
            let shape = if self.doubled { [g.n, 2 * g.h, 2 * g.w, g.co] } else { [g.n, g.ho, g.wo, g.co] };
            if *result.get_or_insert(shape) != shape {
                return refuse(format!(
                    "parts of a sum have different results: {:?} and {shape:?}",
                    result.expect("set")
                ));
            }
            let element = part.weight.dtype().size();
            let mut first = 0;
            for x in &part.inputs {
                let channels = x.shape()[3];
                segments.push(Segment {
                    x: x.cuda_ptr()?,
                    w: part.weight.cuda_ptr()? + (first * element) as u64,
                    axis: axes,
                    channels,
                    pixel: channels,
                    w_row: g.k(),
                    w_tap: g.ci,
                    w_phase: if self.doubled { g.co * g.k() } else { 0 },
                });
                first += channels;
            }
            operands.extend(part.inputs.iter().copied().chain([part.weight]));
        }
        operands.extend(self.residual);
        let Some([n, height, width, co]) = result else { return refuse("a sum of no convolutions".into()) };
        let dtype = operand_dtype("conv2d", &operands)?;
        let (residual, residual_shift) = match self.residual {
            None => (0, 0),
            Some(r) if *r.shape() == [n, height, width, co] => (r.cuda_ptr()?, 0),
            Some(r) if height % 2 == 0 && width % 2 == 0 && *r.shape() == [n, height / 2, width / 2, co] => {
                (r.cuda_ptr()?, 1)
            }
            Some(r) => {
                return refuse(format!(
                    "the residual {} does not fit a result [{n}, {height}, {width}, {co}]",
                    r.shape()
                ));
            }
        };
        let gather = Gather {
            family: Family::Conv2d,
            pass: Pass::Fwd,
            dtype,
            segments,
            images: n,
            size: [height, width],
            phases: if self.doubled { [2; 2] } else { [1; 2] },
            columns: co,
            groups: 1,
            doubled: self.doubled,
            stats: self.stats,
            finish: Finish {
                bias: vector("bias", self.bias, co)?,
                scale: vector("scale", self.scale, co)?,
                residual,
                residual_shift,
                activation: self.activation as i32,
            },
        };
        let flops = self.parts.iter().map(|p| 2 * p.weight.elems() as u64).sum::<u64>()
            * (n * height * width) as u64
            / if self.doubled { 4 } else { 1 };
        let read: usize = operands.iter().map(|t| t.bytes()).sum();
        let Gathered { y, stats } = gpu.traced(
            || gather.run(gpu),
            |out| Work {
                op: "conv2d".into(),
                pass: "fwd",
                shape: out.y.shape(),
                dtype,
                flops,
                bytes: (read + out.y.bytes() + out.stats.as_ref().map_or(0, Tensor::bytes)) as u64,
                result: out.y.cuda_ptr().unwrap_or(0),
                launches: Vec::new(),
            },
        )?;
        Ok(FusedOutput { y, stats })
    }

    /// Sizes of a part, as if its inputs were one, and what its axes are for the kernel.
    fn geometry(&self, part: &Part<'_>) -> Result<(Geometry, [Axis; 2])> {
        let Some(first) = part.inputs.first() else {
            return Err(Error::shape("conv2d", "a convolution of no inputs"));
        };
        let (n, h, w, _) = first.shape().nhwc("conv2d")?;
        let mut channels = 0;
        for x in &part.inputs {
            let (xn, xh, xw, c) = x.shape().nhwc("conv2d")?;
            if [xn, xh, xw] != [n, h, w] {
                return Err(Error::shape("conv2d", "inputs that are concatenated differ in size")
                    .with_tensor("first", first)
                    .with_tensor("other", x));
            }
            channels += c;
        }
        if part.conv.groups != 1 {
            return Err(Error::shape("conv2d", "a fused convolution has one group"));
        }
        let x = Shape::from([n, h, w, channels]);
        if !self.doubled {
            let g = Geometry::new(&part.conv, &[x, part.weight.shape()])?;
            return Ok((g, [forward_axis(&g, 0)?, forward_axis(&g, 1)?]));
        }
        let folded = part.weight.shape();
        let fits = self.parts.len() == 1
            && part.conv == Conv2d::square(1, 1)
            && folded.len() == 4
            && folded[0].is_multiple_of(4)
            && folded[1..] == [2, 2, channels];
        if !fits {
            return Err(Error::shape(
                "conv2d",
                "a doubled image is convolved alone, 3x3 with stride 1 and padding 1",
            )
            .with_tensor("weight", part.weight)
            .with_remedy("fold the weight with `fold_doubled` first"));
        }
        let g = Geometry::new(&Conv2d::square(1, 1), &[x, Shape::from([folded[0] / 4, 2, 2, channels])])?;
        let axis = |i: usize| forward_axis(&g, i).map(|a| Axis { pad: 1, phases: 2, ..a });
        Ok((g, [axis(0)?, axis(1)?]))
    }
}

/// Weights of the four 2x2 convolutions that a 3x3 convolution of a doubled image comes to: `w [co, 3, 3, ci]` to
/// `[4 co, 2, 2, ci]` of the same type. Taps that fall on the same pixel are added in f32 and rounded once.
///
/// # Errors
/// Another shape, or a failed launch.
pub fn fold_doubled(gpu: &Gpu, w: &Tensor) -> Result<Tensor> {
    let [co, 3, 3, ci] = *w.shape() else {
        return Err(Error::shape("conv2d", "only 3x3 weights are folded").with_tensor("weight", w));
    };
    let dtype = operand_dtype("conv2d", &[w])?;
    let folded = Tensor::empty_gpu([4 * co, 2, 2, ci], dtype, gpu, "folded weight")?;
    let count = |what: &str, v: usize| int("conv2d", what, v);
    let p = Fold {
        w: w.cuda_ptr()?,
        folded: folded.cuda_ptr()?,
        rows: count("output channels", co)?,
        channels: count("input channels", ci)?,
    };
    const THREADS: usize = 256;
    let blocks = count("blocks", folded.elems().div_ceil(THREADS))?;
    let grid = Grid { grid: [blocks as u32, 1, 1], block: THREADS as u32, shared_bytes: 0 };
    Class::new(Family::Conv2d, Pass::FoldDoubled, dtype).launch(gpu, None, grid, &p)?;
    Ok(folded)
}

/// The backward pass: as many of the gradients of x, w and b as are wanted.
pub(super) fn backward(g: &Geometry, gpu: &Gpu, b: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
    let (gy, x, w) = (b.gy, &b.saved[0], &b.saved[1]);
    let mut out = vec![
        b.needs[0].then(|| input_gradient(g, gpu, gy, w)).transpose()?,
        b.needs[1].then(|| weight_gradient(g, gpu, x, gy, b.inputs[1])).transpose()?,
    ];
    if let Some(&need) = b.needs.get(2) {
        out.push(need.then(|| super::bias_grad::bias_gradient(gpu, gy)).transpose()?);
    }
    Ok(out)
}
