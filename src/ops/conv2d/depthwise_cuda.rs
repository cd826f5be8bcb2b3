//! Depthwise convolutions on a CUDA device: which kernel, how many blocks, and the launches.
//!
//! 7x7 with stride 1, the one that ConvNeXt has, goes to kernels of its own: bf16 to tensor cores, f32 to streamed rows. All
//! else goes to the general kernel.

use super::geometry::Geometry;
use super::{Conv2d, bias_grad};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Defines, Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// `DepthwiseParams` of `kernels/tile/depthwise.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    n: i32,
    size: [i32; 2],
    channels: i32,
    map: [i32; 2],
    kernel: [i32; 2],
    stride: [i32; 2],
    pad: [i32; 2],
    dilation: [i32; 2],
    segment: i32,
    reserved: i32,
}

/// What a [`DepthwiseLaunch`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepthwisePass {
    /// y from x, weight and bias.
    Fwd,
    /// Gradient of x from the gradient of y and the weight.
    Dgrad,
    /// Parts of the gradient of the weight, from x and the gradient of y.
    Wgrad,
}

use DepthwisePass as Pass;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `conv2d_depthwise.cu`; `wide`: 16 bytes at a time.
    General { dtype: DType, wide: bool },
    /// `conv2d_depthwise_7x7.cu` with strips of so many columns.
    Rows { strip: usize },
    /// `conv2d_depthwise_mma.cu` with squares of this edge.
    Tensor { span: usize },
}

/// A kernel and its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    way: Way,
    pass: Pass,
    grid: Grid,
    /// Rows of a task of [`Way::Rows`].
    segment: usize,
}

/// Channels of a block, in every kernel.
const CHANNELS: usize = 32;
/// Edge of the kernel that the fast ways are for.
const EDGE: usize = 7;
const GENERAL_THREADS: usize = 256;
/// Pixels of a thread of the general kernel.
const PIXELS: usize = 4;
/// Threads of a block of the fast ways: four warps.
const THREADS: usize = 128;
const WARPS: usize = 4;
/// The most blocks in y.
const MOST_BLOCKS: usize = 65_535;

impl Way {
    fn variant(self, pass: Pass) -> Variant {
        let name = match pass {
            Pass::Fwd => "PASS_FWD",
            Pass::Dgrad => "PASS_DGRAD",
            Pass::Wgrad => "PASS_WGRAD",
        };
        let defines = Defines::new().set(name, 1).set("PARAMS_BYTES", size_of::<Params>());
        let (source, [fwd, dgrad, wgrad], defines) = match self {
            Way::General { dtype, wide } => (
                "conv2d_depthwise.cu",
                ["conv2d_depthwise_fwd", "conv2d_depthwise_dgrad", "conv2d_depthwise_wgrad"],
                defines.set("T_BF16", u8::from(dtype == DType::Bf16)).set("VEC", u8::from(wide)),
            ),
            Way::Rows { strip } => (
                "conv2d_depthwise_7x7.cu",
                ["conv2d_depthwise_7x7_fwd", "conv2d_depthwise_7x7_dgrad", "conv2d_depthwise_7x7_wgrad"],
                defines.set("STRIP", strip),
            ),
            Way::Tensor { span } => (
                "conv2d_depthwise_mma.cu",
                ["conv2d_depthwise_mma_fwd", "conv2d_depthwise_mma_dgrad", "conv2d_depthwise_mma_wgrad"],
                defines.set("T_BF16", 1).set("SPAN", span),
            ),
        };
        let entry = match pass {
            Pass::Fwd => fwd,
            Pass::Dgrad => dgrad,
            Pass::Wgrad => wgrad,
        };
        Variant { source, entry, defines }
    }

    /// The way for a convolution whose results, or gradients, lie on a map of `map` pixels.
    fn choose(g: &Geometry, dtype: DType, map: [usize; 2]) -> Way {
        let wide = g.ci.is_multiple_of(16 / dtype.size());
        let fast = [g.kh, g.kw] == [EDGE; 2] && g.stride == [1; 2] && g.dilation == [1; 2];
        if !(fast && wide && g.pad.iter().all(|&p| p < EDGE)) {
            return Way::General { dtype, wide };
        }
        if dtype == DType::Bf16 {
            // A pixel of a small square costs half as much again: more halo, less reuse of weights.
            let cost = |span: usize, each: usize| {
                map.iter().map(|m| m.next_multiple_of(span)).product::<usize>() * each
            };
            Way::Tensor { span: if cost(8, 3) < cost(16, 2) { 8 } else { 16 } }
        } else {
            let covered = |strip: usize| map[1].next_multiple_of(strip);
            Way::Rows { strip: if covered(7) < covered(8) { 7 } else { 8 } }
        }
    }

    fn general_slots(dtype: DType, wide: bool) -> usize {
        let each = if wide { 16 / dtype.size() } else { 1 };
        GENERAL_THREADS / (CHANNELS / each)
    }
}

/// Dynamic shared memory of the tensor-core kernel: two stages of planes of 16-byte pixels, one for each of four octets of
/// channels; forward and dgrad also the weights, framed by zeros, and the bias.
fn tensor_shared(span: usize, pass: Pass) -> usize {
    let (octets, stages) = (4, 2);
    let units = if span == 16 { 1 } else { 2 };
    if pass == Pass::Wgrad {
        let x = units * span * (span + EDGE) + 2;
        let y = units * (span + EDGE - 1) * span + 2;
        return stages * octets * (x + y) * 16;
    }
    let plane = if span == 16 { 490 } else { 394 };
    let weights = (EDGE + 1) * (MARGINS + EDGE);
    octets * (stages * plane + weights) * 16 + CHANNELS * 4
}

/// Zeros before and after a row of weights.
const MARGINS: usize = 16;

/// Dynamic shared memory of the kernel that streams rows: each warp has a ring of rows and a row of results, or rings of two
/// kinds of rows.
fn rows_shared(strip: usize, pass: Pass) -> usize {
    let reach = strip + EDGE - 1;
    let pixels = if pass == Pass::Wgrad { 4 * reach + 10 * strip } else { 4 * reach + strip };
    WARPS * pixels * CHANNELS * 4
}

/// Rows of a task: all, or fewer where else there would be too few tasks for the device. `columns` tasks lie side by side,
/// counting images and channels. A task of `s` rows takes `s + 6` steps, and a multiprocessor runs 12 at a time.
fn rows_of_task(rows: usize, columns: usize, multiprocessors: usize) -> usize {
    let time = |segment: usize| {
        let tasks = columns * rows.div_ceil(segment);
        tasks.div_ceil(12 * multiprocessors) * (segment + EDGE - 1)
    };
    (1..=rows.div_ceil(4)).map(|k| rows.div_ceil(k)).min_by_key(|&s| (time(s), rows - s)).unwrap_or(rows)
}

/// The kernel and its launch: a function of sizes, type and number of multiprocessors alone.
fn plan(g: &Geometry, dtype: DType, pass: Pass, multiprocessors: usize) -> Plan {
    // What the threads are spread over: results; for wgrad the gradients, of the tensor-core and streaming kernels rows of x.
    let map = match pass {
        Pass::Fwd => [g.ho, g.wo],
        Pass::Dgrad => [g.h, g.w],
        Pass::Wgrad => [g.h, g.wo],
    };
    let way = Way::choose(g, dtype, map);
    let across = g.ci.div_ceil(CHANNELS);
    // Blocks that the device holds at once, for each 32 channels.
    let resident = |per_multiprocessor: usize| (per_multiprocessor * multiprocessors / across).max(1);
    let grid = |y: usize, z: usize, block: usize, shared: usize| Grid {
        grid: [across as u32, y.clamp(1, MOST_BLOCKS) as u32, z as u32],
        block: block as u32,
        shared_bytes: shared as u32,
    };
    match way {
        Way::General { dtype, wide } => {
            let (slots, taps) = (Way::general_slots(dtype, wide), g.kh * g.kw);
            let grid = if pass == Pass::Wgrad {
                let (pixels, groups) = (g.n * g.ho * g.wo, taps.div_ceil(slots));
                let parts = (resident(8) / groups).clamp(1, pixels.div_ceil(64).max(1));
                grid(parts, groups, GENERAL_THREADS, 0)
            } else {
                let blocks = (g.n * map[0] * map[1]).div_ceil(slots * PIXELS);
                grid(blocks, 1, GENERAL_THREADS, taps * CHANNELS * 4)
            };
            Plan { way, pass, grid, segment: 0 }
        }
        Way::Rows { strip } => {
            let strips = g.n * map[1].div_ceil(strip);
            let segment = rows_of_task(map[0], strips * across, multiprocessors);
            let tasks = (strips * map[0].div_ceil(segment)).div_ceil(WARPS);
            let workers = if pass == Pass::Wgrad { tasks.min(resident(3)) } else { tasks };
            Plan { way, pass, grid: grid(workers, 1, THREADS, rows_shared(strip, pass)), segment }
        }
        Way::Tensor { span } => {
            let units = g.n * map[0].div_ceil(span) * map[1].div_ceil(span);
            let tiles = units.div_ceil(if span == 16 { 1 } else { 2 });
            let held = if span == 16 || pass == Pass::Wgrad { 2 } else { 3 };
            let workers = tiles.min(resident(held));
            Plan { way, pass, grid: grid(workers, 1, THREADS, tensor_shared(span, pass)), segment: 0 }
        }
    }
}

fn reduce_variant(wide: bool) -> Variant {
    Variant {
        source: "conv2d_depthwise.cu",
        entry: "conv2d_depthwise_wgrad_reduce",
        defines: Defines::new()
            .set("PASS_WGRAD_REDUCE", 1)
            .set("PARAMS_BYTES", size_of::<Params>())
            .set("T_BF16", 0)
            .set("VEC", u8::from(wide)),
    }
}

/// Every variant that a depthwise convolution may launch.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut ways = Vec::new();
    for dtype in [DType::F32, DType::Bf16] {
        ways.extend([true, false].map(|wide| Way::General { dtype, wide }));
    }
    ways.extend([7, 8].map(|strip| Way::Rows { strip }));
    ways.extend([16, 8].map(|span| Way::Tensor { span }));
    let mut all: Vec<Variant> =
        ways.iter().flat_map(|w| [Pass::Fwd, Pass::Dgrad, Pass::Wgrad].map(|p| w.variant(p))).collect();
    all.extend([true, false].map(reduce_variant));
    all
}

/// Device addresses of a [`DepthwiseLaunch`], aligned to 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseAt {
    /// `[n, h, w, c]`; written by [`DepthwisePass::Dgrad`].
    pub x: u64,
    /// `[c, kh, kw]`; [`DepthwisePass::Wgrad`] writes f32 `[parts, c, kh, kw]`.
    pub weight: u64,
    /// f32 `[c]`, read by [`DepthwisePass::Fwd`]; 0 for none.
    pub bias: u64,
    /// `[n, ho, wo, c]`; written by [`DepthwisePass::Fwd`], else the gradient.
    pub y: u64,
}

/// One launch of a depthwise convolution on memory of the caller's. Which kernel and how many blocks is a function of sizes,
/// type and number of multiprocessors.
#[derive(Clone, Debug)]
pub struct DepthwiseLaunch {
    plan: Plan,
    params: Params,
    weights: usize,
}

impl DepthwiseLaunch {
    /// For inputs of these shapes (x and weight), of dtype bf16 or f32.
    ///
    /// # Errors
    /// Shapes that do not fit, a convolution that is not depthwise, or sizes that the kernels do not count to.
    pub fn new(
        op: &Conv2d,
        inputs: [Shape; 2],
        dtype: DType,
        pass: Pass,
        multiprocessors: usize,
    ) -> Result<Self> {
        let g = Geometry::new(op, &inputs)?;
        if g.ci != g.co || g.groups != g.ci || !matches!(dtype, DType::F32 | DType::Bf16) {
            return Err(Error::shape("conv2d", "not a depthwise convolution of bf16 or f32")
                .with_tensor("x", format!("{dtype} {}", inputs[0]))
                .with_tensor("w", format!("{dtype} {}", inputs[1])));
        }
        Self::of(&g, dtype, pass, multiprocessors)
    }

    fn of(g: &Geometry, dtype: DType, pass: Pass, multiprocessors: usize) -> Result<Self> {
        let plan = plan(g, dtype, pass, multiprocessors);
        let count = |what: &str, v: usize| int("conv2d", what, v);
        let pair =
            |what: &str, v: [usize; 2]| -> Result<[i32; 2]> { Ok([count(what, v[0])?, count(what, v[1])?]) };
        // The kernels count pixels, up to a turn of all blocks beyond the last, and elements of a row.
        let turn = MOST_BLOCKS * GENERAL_THREADS * PIXELS;
        count("pixels of the input", g.n * g.h * g.w + turn)?;
        count("pixels of the result", g.n * g.ho * g.wo + turn)?;
        count("elements of a row", (g.w.max(g.wo) + 2 * g.pad[1]) * g.ci)?;
        let params = Params {
            x: 0,
            weight: 0,
            bias: 0,
            y: 0,
            n: count("images", g.n)?,
            size: pair("image side", [g.h, g.w])?,
            channels: count("channels", g.ci)?,
            map: pair("map side", [g.ho, g.wo])?,
            kernel: pair("kernel side", [g.kh, g.kw])?,
            stride: pair("stride", g.stride)?,
            pad: pair("padding", g.pad)?,
            dilation: pair("dilation", g.dilation)?,
            segment: plan.segment as i32,
            reserved: 0,
        };
        Ok(DepthwiseLaunch { plan, params, weights: g.w_len() })
    }

    /// Source, entry and defines of the kernel.
    pub fn variant(&self) -> Variant {
        self.plan.way.variant(self.plan.pass)
    }

    /// Blocks and threads.
    pub fn grid(&self) -> Grid {
        self.plan.grid
    }

    /// How many sums [`DepthwisePass::Wgrad`] writes, one for each row of blocks.
    pub fn parts(&self) -> usize {
        self.plan.grid.grid[1] as usize
    }

    /// Launches it on the compute stream.
    ///
    /// # Errors
    /// More taps than shared memory holds, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu, at: DepthwiseAt) -> Result<()> {
        let most = gpu.info().shared_per_block_optin_bytes as usize;
        if self.plan.grid.shared_bytes as usize > most {
            let [kh, kw] = self.params.kernel;
            return Err(Error::shape(
                "conv2d",
                format!("a depthwise kernel of {kh}x{kw} has more weights than shared memory holds"),
            )
            .with_remedy(format!("this device takes up to {} taps", most / (CHANNELS * 4))));
        }
        let params = Params { x: at.x, weight: at.weight, bias: at.bias, y: at.y, ..self.params };
        let v = self.variant();
        gpu.kernel(v.source, v.entry, &v.defines)?.launch(gpu.stream(), self.plan.grid, &params)
    }

    /// Adds the parts that [`DepthwisePass::Wgrad`] left at `partial`, in order, into `weight`, f32 `[c, kh, kw]`.
    ///
    /// # Errors
    /// A failed compilation or launch.
    pub fn reduce(&self, gpu: &Gpu, partial: u64, weight: u64) -> Result<()> {
        let columns = self.weights;
        let params = bias_grad::Params {
            input: partial,
            output: weight,
            rows: self.parts() as i32,
            columns: int("conv2d", "weights", columns)?,
        };
        let v = reduce_variant(bias_grad::is_wide(DType::F32, columns));
        let grid = Grid {
            grid: [bias_grad::blocks(DType::F32, columns) as u32, 1, 1],
            block: bias_grad::THREADS as u32,
            shared_bytes: 0,
        };
        gpu.kernel(v.source, v.entry, &v.defines)?.launch(gpu.stream(), grid, &params)
    }
}

fn launch_of(g: &Geometry, gpu: &Gpu, dtype: DType, pass: Pass) -> Result<DepthwiseLaunch> {
    DepthwiseLaunch::of(g, dtype, pass, gpu.info().multiprocessors as usize)
}

/// `y = conv2d(x, w) + bias`, of the type of x and w: bf16 or f32. The bias is f32 `[c]`.
///
/// # Errors
/// Types or sizes that the kernels do not take, no memory, or a failed compilation or launch.
pub(super) fn forward(
    g: &Geometry,
    gpu: &Gpu,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let dtype = operand_dtype("conv2d", &[x, w])?;
    let bias = match bias {
        None => 0,
        Some(b) if b.dtype() == DType::F32 => b.cuda_ptr()?,
        Some(b) => return Err(Error::dtype("conv2d", "a bias on a device is f32").with_tensor("bias", b)),
    };
    let y = Tensor::empty_gpu(g.y_shape(), dtype, gpu, "conv2d")?;
    let at = DepthwiseAt { x: x.cuda_ptr()?, weight: w.cuda_ptr()?, bias, y: y.cuda_ptr()? };
    launch_of(g, gpu, dtype, Pass::Fwd)?.run(gpu, at)?;
    Ok(y)
}

/// Gradient with respect to x, of the type of gy and w.
///
/// # Errors
/// As [`forward`].
pub(super) fn input_gradient(g: &Geometry, gpu: &Gpu, gy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let dtype = operand_dtype("conv2d", &[gy, w])?;
    let dx = Tensor::empty_gpu([g.n, g.h, g.w, g.ci], dtype, gpu, "conv2d")?;
    let at = DepthwiseAt { x: dx.cuda_ptr()?, weight: w.cuda_ptr()?, bias: 0, y: gy.cuda_ptr()? };
    launch_of(g, gpu, dtype, Pass::Dgrad)?.run(gpu, at)?;
    Ok(dx)
}

/// Gradient with respect to w, f32 in the shape given, which is that of w.
///
/// # Errors
/// As [`forward`].
pub(super) fn weight_gradient(
    g: &Geometry,
    gpu: &Gpu,
    x: &Tensor,
    gy: &Tensor,
    shape: Shape,
) -> Result<Tensor> {
    let launch = launch_of(g, gpu, operand_dtype("conv2d", &[x, gy])?, Pass::Wgrad)?;
    let dw = Tensor::empty_gpu(shape, DType::F32, gpu, "conv2d")?;
    let sums = match launch.parts() {
        1 => dw.clone(),
        parts => Tensor::empty_gpu([parts, g.w_len()], DType::F32, gpu, "weight gradient parts")?,
    };
    let at = DepthwiseAt { x: x.cuda_ptr()?, weight: sums.cuda_ptr()?, bias: 0, y: gy.cuda_ptr()? };
    launch.run(gpu, at)?;
    if launch.parts() > 1 {
        launch.reduce(gpu, sums.cuda_ptr()?, dw.cuda_ptr()?)?;
    }
    Ok(dw)
}

#[cfg(test)]
mod tests;
