//! Products whose terms are pixels: weight gradients.

use super::params;
use super::table::choose;
use super::tile::{Kind, Product};
use super::{Class, Family, Pass, common_width, int};
use crate::base::{DType, Shape};
use crate::error::Result;
use crate::gpu::{Gpu, Grid};
use crate::tensor::Tensor;

/// Threads of a block of `kernels/tile/split_sum.cuh`.
const SUM_THREADS: usize = 256;

/// A weight gradient: `x [images, size, channels of all groups]`, `gy [images, map, rows of all groups]`.
pub struct Pixels {
    pub family: Family,
    pub dtype: DType,
    pub images: usize,
    pub size: [usize; 2],
    pub map: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub pad: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
    /// Input and output channels of a group.
    pub channels: usize,
    pub rows: usize,
}

impl Pixels {
    /// Launches the product and the sum of its splits; the result is f32 with shape `shape`.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to, no memory, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu, x: &Tensor, gy: &Tensor, shape: Shape) -> Result<Tensor> {
        let op = match self.family {
            Family::Conv2d => "conv2d",
            Family::Linear => "linear",
        };
        let count = |what: &str, v: usize| int(op, what, v);
        let columns = self.kernel[0] * self.kernel[1] * self.channels;
        let pixels = self.images * self.map[0] * self.map[1];
        let (x_pixel, gy_pixel) = (self.groups * self.channels, self.groups * self.rows);
        let class = Class {
            width: common_width(self.dtype, [self.channels, self.rows]),
            ..Class::new(self.family, Pass::Wgrad, self.dtype)
        };
        let (tile, splits) = choose(&Product {
            kind: Kind::WeightGradient,
            dtype: self.dtype,
            width: class.width,
            m: self.rows,
            n: columns,
            k: pixels,
            count: self.groups,
            multiprocessors: gpu.info().multiprocessors as usize,
        })?;
        let per_split = pixels.div_ceil(splits).next_multiple_of(tile.bk);
        let splits = pixels.div_ceil(per_split);
        let all_rows = self.groups * self.rows;
        let dw = Tensor::empty_gpu(shape, DType::F32, gpu, op)?;
        let sums = match splits {
            1 => dw.clone(),
            _ => Tensor::empty_gpu([splits, all_rows, columns], DType::F32, gpu, "split sums")?,
        };
        count("elements of an image", self.size[0] * self.size[1] * x_pixel)?;
        let pair =
            |what: &str, v: [usize; 2]| -> Result<[i32; 2]> { Ok([count(what, v[0])?, count(what, v[1])?]) };
        let p = params::Pixels {
            x: x.cuda_ptr()?,
            gy: gy.cuda_ptr()?,
            sums: sums.cuda_ptr()?,
            size: pair("image side", self.size)?,
            kernel: pair("kernel side", self.kernel)?,
            stride: pair("stride", self.stride)?,
            pad: pair("padding", self.pad)?,
            dilation: pair("dilation", self.dilation)?,
            images: count("images", self.images)?,
            map: pair("map side", self.map)?,
            x_pixel: count("channels", x_pixel)?,
            gy_pixel: count("channels", gy_pixel)?,
            rows: count("output channels", self.rows)?,
            channels: count("input channels", self.channels)?,
            tiles_n: count("tiles", columns.div_ceil(tile.bn))?,
            splits: splits as i32,
            pixels_per_split: count("pixels of a split", per_split)?,
        };
        let tiles = self.rows.div_ceil(tile.bm) * columns.div_ceil(tile.bn);
        let grid = Grid {
            grid: [count("blocks", tiles)? as u32, self.groups as u32, splits as u32],
            block: tile.threads() as u32,
            shared_bytes: tile.shared_bytes(self.dtype) as u32,
        };
        class.launch(gpu, Some(tile), grid, &p)?;
        if splits > 1 {
            let chunk = if self.channels.is_multiple_of(4) { 4 } else { 1 };
            let blocks = columns.div_ceil(chunk * SUM_THREADS);
            let p = params::SplitWeight {
                sums: sums.cuda_ptr()?,
                dw: dw.cuda_ptr()?,
                splits: splits as i32,
                rows: count("output channels", all_rows)?,
                columns: count("weights of an output", columns)?,
                dw_row: columns as i32,
                dw_tap: self.channels as i32,
                blocks: blocks as i32,
                channels: params::FastDiv::new(self.channels),
                pad: 0,
            };
            let blocks = count("blocks", blocks * all_rows)?;
            let grid = Grid { grid: [blocks as u32, 1, 1], block: SUM_THREADS as u32, shared_bytes: 0 };
            Class::new(self.family, Pass::SplitWeight, DType::F32).launch(gpu, None, grid, &p)?;
        }
        Ok(dw)
    }
}
