//! Attention on a CUDA device: sizes to tiles, tiles to launches.

use super::{Attention, Sizes};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::{int, operand_dtype};
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::ops::{Backward, Forward};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// `AttentionParams` of `kernels/tile/attention_mainloop.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    qkv: u64,
    y: u64,
    lse: u64,
    gy: u64,
    delta: u64,
    gqkv: u64,
    tokens: i32,
    heads: i32,
    dim: i32,
    padded: i32,
    which_step: i32,
    head_step: i32,
    scale: f32,
    reserved: i32,
}

/// What a launch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// y and the logarithms of the sums from qkv.
    Fwd,
    /// Gradient of the queries, and the sums of gy y of their rows.
    Dq,
    /// Gradients of keys and values.
    Dkv,
}

/// The widest head that the kernels take.
const WIDEST: usize = 128;
/// Rows of statistics are padded to a multiple of this, the largest number of rows or columns that are read together.
const PADDING: usize = 64;

/// What makes a variant: see `kernels/tile/attention_mainloop.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    dtype: DType,
    /// Channels of a row in shared memory.
    head: usize,
    /// Whether rows travel 16 bytes at a time.
    wide: bool,
    warps: usize,
    /// Rows that stay in a block.
    rows: usize,
    /// Rows of a step of the stream.
    columns: usize,
}

impl Tile {
    /// For heads of `dim` channels and `tokens` tokens.
    fn new(pass: Pass, dtype: DType, dim: usize, tokens: usize) -> Tile {
        let wide = dim.is_multiple_of(16 / dtype.size());
        let head = match (dim, wide) {
            (..=32, _) => 32,
            (..=64, true) => 64,
            _ => WIDEST,
        };
        let (widest, narrow) = (head == WIDEST, dtype == DType::Bf16);
        // Two bands of 16 rows to a warp of tensor cores read shared memory half as often; more sums would leave no registers for
        // them.
        let bands = if pass == Pass::Fwd && narrow && !widest { 2 } else { 1 };
        let warps = if bands == 2 && wide && tokens <= 64 { 2 } else { 4 };
        let columns = match (narrow, pass) {
            (true, Pass::Dq | Pass::Dkv) if widest => 32,
            (true, _) => 64,
            (false, Pass::Dkv) if widest => 16,
            (false, _) => 32,
        };
        Tile { dtype, head, wide, warps, rows: 16 * bands * warps, columns }
    }

    fn call(self, pass: Pass) -> Call {
        let call = match pass {
            Pass::Fwd => Call::new("attention.cu", "attention_fwd"),
            Pass::Dq => Call::new("attention_dq.cu", "attention_dq"),
            Pass::Dkv => Call::new("attention_dkv.cu", "attention_dkv"),
        };
        let call = call.dtype(self.dtype).set("HEAD", self.head).set("VEC", u8::from(self.wide));
        call.set("WARPS", self.warps).set("BM", self.rows).set("BN", self.columns)
    }

    /// Dynamic shared memory: the tiles of the rows that stay, two stages of two tiles, and the statistics of rows (columns, in
    /// every stage, where queries are the stream).
    fn shared_bytes(self, pass: Pass) -> usize {
        let row = self.head * self.dtype.size();
        let stages = 4 * self.columns * row;
        match pass {
            Pass::Fwd => self.rows * row + stages + 4 * self.rows,
            Pass::Dq => 2 * self.rows * row + stages + 8 * self.rows,
            Pass::Dkv => 2 * self.rows * row + stages + 16 * self.columns,
        }
    }
}

/// Every variant that may be launched.
pub(in crate::ops) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for pass in [Pass::Fwd, Pass::Dq, Pass::Dkv] {
        for dtype in [DType::F32, DType::Bf16] {
            // Of the least and the most channels and tokens of every choice.
            for (dim, tokens) in [(32, 64), (32, 65), (64, 64), (64, 65), (128, 65), (31, 65), (127, 65)] {
                let variant = Tile::new(pass, dtype, dim, tokens).call(pass).variant::<Params>();
                if !all.contains(&variant) {
                    all.push(variant);
                }
            }
        }
    }
    all
}

impl Attention {
    /// Sizes as the kernels take them, addresses left out, and the number of heads in all samples.
    fn params(&self, s: Sizes) -> Result<(Params, usize)> {
        let count = |what: &str, v: usize| int("attention", what, v);
        if s.d > WIDEST {
            let text = format!("the CUDA kernels take heads of up to {WIDEST} channels, not {}", s.d);
            return Err(Error::shape("attention", text)
                .with_remedy("use more heads, or compute on the host with `--device cpu`"));
        }
        // The kernels count tokens up to a tile beyond the last.
        count("tokens", s.t + 2 * WIDEST)?;
        let params = Params {
            tokens: count("tokens", s.t)?,
            heads: count("heads", s.heads)?,
            dim: count("channels of a head", s.d)?,
            padded: count("tokens", s.t.next_multiple_of(PADDING))?,
            which_step: count("channels", self.channel(s, 0, 1))?,
            head_step: count("channels", self.channel(s, 1, 0))?,
            scale: s.scale(),
            ..Params::zeroed()
        };
        Ok((params, s.n * s.heads))
    }

    fn launch_pass(gpu: &Gpu, pass: Pass, dtype: DType, p: &Params, heads: usize) -> Result<()> {
        let (dim, tokens) = (p.dim as usize, p.tokens as usize);
        let tile = Tile::new(pass, dtype, dim, tokens);
        let blocks = int("attention", "tiles of all heads", heads * tokens.div_ceil(tile.rows))?;
        let shared_bytes = tile.shared_bytes(pass) as u32;
        let grid = Grid { grid: [blocks as u32, 1, 1], block: 32 * tile.warps as u32, shared_bytes };
        tile.call(pass).launch(gpu, grid, p)
    }

    /// The result, and of every row the logarithm of the sum of exponentials, f32 `[n, heads, tokens]` with tokens rounded up
    /// to a multiple of 64.
    pub(super) fn forward_on(&self, gpu: &Gpu, qkv: &Tensor) -> Result<Forward> {
        let dtype = operand_dtype("attention", &[qkv])?;
        let s = self.sizes(&qkv.shape());
        let (params, heads) = self.params(s)?;
        let shape = crate::ops::Op::output_shape(self, &[qkv.shape()])?;
        let y = Tensor::empty_gpu(shape, dtype, gpu, "attention")?;
        let padded = params.padded as usize;
        let lse = Tensor::empty_gpu([s.n, s.heads, padded], DType::F32, gpu, "attention row sums")?;
        let p = Params { qkv: qkv.cuda_ptr()?, y: y.cuda_ptr()?, lse: lse.cuda_ptr()?, ..params };
        Self::launch_pass(gpu, Pass::Fwd, dtype, &p, heads)?;
        Ok(Forward { y, extra: vec![lse], aux: Vec::new() })
    }

    /// The gradient of qkv, in the order of its channels. `saved`: qkv, the result, and what [`Self::forward_on`] gives beside
    /// it.
    pub(super) fn backward_on(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Tensor> {
        let (qkv, y, lse) = (&ctx.saved[0], &ctx.saved[1], &ctx.saved[2]);
        let dtype = operand_dtype("attention", &[qkv, y, ctx.gy])?;
        let (params, heads) = self.params(self.sizes(&ctx.inputs[0]))?;
        let delta = Tensor::empty_gpu(lse.shape(), DType::F32, gpu, "attention row sums")?;
        let gqkv = Tensor::empty_gpu(ctx.inputs[0], dtype, gpu, "attention gradient")?;
        let p = Params {
            qkv: qkv.cuda_ptr()?,
            y: y.cuda_ptr()?,
            lse: lse.cuda_ptr()?,
            gy: ctx.gy.cuda_ptr()?,
            delta: delta.cuda_ptr()?,
            gqkv: gqkv.cuda_ptr()?,
            ..params
        };
        Self::launch_pass(gpu, Pass::Dq, dtype, &p, heads)?;
        Self::launch_pass(gpu, Pass::Dkv, dtype, &p, heads)?;
        Ok(gqkv)
    }
}
