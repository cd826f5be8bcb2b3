//! Products whose rows are pixels: forward passes and input gradients.

use super::params::{self, Axis, Epilogue, MAX_SEGMENTS};
use super::table::choose;
use super::tile::{Kind, Product};
use super::{Class, Family, Pass, common_width, int};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::tensor::Tensor;

/// Rows of a block, and threads, of `kernels/tile/split_sum.cuh`.
const SUM_ROWS: usize = 64;
const SUM_THREADS: usize = 256;
/// Threads of a block of `kernels/tile/statistics.cuh`.
const STATISTICS_THREADS: usize = 128;
/// Coordinates of pixels, padding and taps included, travel in 16 bits.
const MAX_COORDINATE: usize = 16 * 1024;

/// One input of the sum.
pub struct Segment {
    /// Address of its first element.
    pub x: u64,
    /// Address of the weight's first element for it.
    pub w: u64,
    /// Vertical and horizontal geometry.
    pub axis: [Axis; 2],
    /// Channels of a group that are summed over.
    pub channels: usize,
    /// Elements from pixel to pixel.
    pub pixel: usize,
    /// Elements from row to row of the weight, from tap to tap, and from phase to phase.
    pub w_row: usize,
    pub w_tap: usize,
    pub w_phase: usize,
}

/// What is added to the sums and made of them. Addresses as in [`Epilogue`].
#[derive(Clone, Copy, Default)]
pub struct Finish {
    pub bias: u64,
    pub scale: u64,
    pub residual: u64,
    pub residual_shift: i32,
    pub activation: i32,
}

/// A forward pass or an input gradient.
pub struct Gather {
    pub family: Family,
    pub pass: Pass,
    pub dtype: DType,
    pub segments: Vec<Segment>,
    pub images: usize,
    /// Height and width of the result.
    pub size: [usize; 2],
    /// Residues of rows and columns that are computed apart.
    pub phases: [usize; 2],
    /// Columns of a group.
    pub columns: usize,
    pub groups: usize,
    pub doubled: bool,
    /// Whether to compute mean and squared deviations of every image and channel.
    pub stats: bool,
    pub finish: Finish,
}

/// What [`Gather::run`] makes.
pub struct Gathered {
    /// `[images, height, width, groups * columns]`.
    pub y: Tensor,
    /// `[images, groups * columns, 2]` f32.
    pub stats: Option<Tensor>,
}

impl Gather {
    fn op(&self) -> &'static str {
        match self.family {
            Family::Conv2d => "conv2d",
            Family::Linear => "linear",
        }
    }

    fn channels(&self) -> usize {
        self.groups * self.columns
    }

    /// Elements of a copy: what all strides and counts along a copied row are multiples of.
    fn width(&self) -> usize {
        let along = self.segments.iter().flat_map(|s| {
            let n = if self.pass == Pass::Dgrad { self.columns } else { 0 };
            // The address in elements: parts of a concatenation begin anywhere.
            let at = (s.x / self.dtype.size() as u64) | (s.w / self.dtype.size() as u64);
            [s.channels, s.pixel, s.w_row, s.w_tap, s.w_phase, n, at as usize]
        });
        common_width(self.dtype, along)
    }

    /// The largest number of taps of a segment over all phases, vertical times horizontal.
    fn taps(&self, s: &Segment) -> usize {
        if self.doubled {
            return 4;
        }
        s.axis.iter().map(|a| (a.kernel as usize).div_ceil(a.weight_step.max(1) as usize)).product()
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::shape(self.op(), what));
        if self.segments.is_empty() || self.segments.len() > MAX_SEGMENTS {
            return refuse(format!(
                "{} inputs; the kernels sum over 1 to {MAX_SEGMENTS}",
                self.segments.len()
            ));
        }
        for s in &self.segments {
            for a in &s.axis {
                let reach = (a.kernel - 1) as usize * a.dilation as usize + a.pad as usize;
                if a.size as usize + reach >= MAX_COORDINATE {
                    let size = a.size;
                    return refuse(format!(
                        "an image side of {size} with taps {reach} beyond is too large for the kernels"
                    ));
                }
            }
            let per_image = s.axis[0].size as usize * s.axis[1].size as usize * s.pixel;
            let images = 256 / (self.size[0] * self.size[1]).max(1) + 2;
            int(self.op(), "elements of the images under a tile", per_image * images.min(self.images + 1))?;
            int(self.op(), "elements of the weight", s.w_row * self.columns.max(s.channels) * self.groups)?;
        }
        Ok(())
    }

    /// Launches the product, the sum of its splits and the merging of its statistics.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to, no memory, or a failed compilation or launch.
    pub fn run(&self, gpu: &Gpu) -> Result<Gathered> {
        self.check()?;
        let class = Class {
            family: self.family,
            pass: self.pass,
            dtype: self.dtype,
            width: self.width(),
            stats: self.stats,
            doubled: self.doubled,
        };
        let [height, width] = self.size;
        let phases = self.phases[0] * self.phases[1];
        // Pixels of the first phase, which has the most.
        let pixels = height.div_ceil(self.phases[0]) * width.div_ceil(self.phases[1]);
        let unit_images = if self.stats { 1 } else { self.images };
        let units = self.images / unit_images;
        let m = unit_images * pixels;
        let k: usize = self.segments.iter().map(|s| self.taps(s) * s.channels).sum();
        let product = Product {
            kind: if self.pass == Pass::Fwd { Kind::Forward } else { Kind::InputGradient },
            dtype: self.dtype,
            width: class.width,
            m,
            n: self.columns,
            k,
            count: units * self.groups * phases,
            multiprocessors: gpu.info().multiprocessors as usize,
        };
        let (tile, splits) = choose(&product)?;
        let steps: usize = self.segments.iter().map(|s| (self.taps(s) * s.channels).div_ceil(tile.bk)).sum();
        let steps_per_split = steps.div_ceil(splits).max(1);
        let splits = steps.div_ceil(steps_per_split).max(1);
        let (tiles_m, tiles_n) = (m.div_ceil(tile.bm), self.columns.div_ceil(tile.bn));

        let op = self.op();
        let shape = [self.images, height, width, self.channels()];
        let y = Tensor::empty_gpu(shape, self.dtype, gpu, op)?;
        let partial = (splits > 1)
            .then(|| {
                Tensor::empty_gpu(
                    [splits * self.images, height, width, self.channels()],
                    DType::F32,
                    gpu,
                    "split sums",
                )
            })
            .transpose()?;
        // Tiles of an image whose statistics are written apart, and their pixels.
        let (stat_tiles, stat_rows) =
            if splits > 1 { ((height * width).div_ceil(SUM_ROWS), SUM_ROWS) } else { (tiles_m, tile.bm) };
        let stat_phases = if splits > 1 { 1 } else { phases };
        let tile_stats = self
            .stats
            .then(|| {
                let tiles = self.images * stat_phases * stat_tiles;
                Tensor::empty_gpu([tiles, self.channels(), 2], DType::F32, gpu, "statistics of tiles")
            })
            .transpose()?;
        let address = |t: &Option<Tensor>| t.as_ref().map_or(Ok(0), Tensor::cuda_ptr);

        let count = |what: &str, v: usize| int(op, what, v);
        let finish = &self.finish;
        let out = Epilogue {
            y: y.cuda_ptr()?,
            bias: finish.bias,
            scale: finish.scale,
            residual: finish.residual,
            stats: address(&tile_stats)?,
            partial: address(&partial)?,
            channels: count("channels", self.channels())?,
            activation: finish.activation,
            residual_shift: finish.residual_shift,
            pad: 0,
        };
        let mut p = params::Gather { out, ..Default::default() };
        for (to, s) in p.segment.iter_mut().zip(&self.segments) {
            *to = params::Segment {
                x: s.x,
                w: s.w,
                axis: s.axis,
                channels: params::FastDiv::new(s.channels),
                pixel: count("channels", s.pixel)?,
                w_row: count("weights of an output", s.w_row)?,
                w_tap: count("weights of a tap", s.w_tap)?,
                w_phase: count("weights of a phase", s.w_phase)?,
                pad: 0,
            };
        }
        p.segments = self.segments.len() as i32;
        p.images = count("images", self.images)?;
        p.size = [count("height", height)?, count("width", width)?];
        p.phases = self.phases.map(|n| n as i32);
        p.columns = count("columns", self.columns)?;
        p.groups = count("groups", self.groups)?;
        p.tiles_m = count("tiles", tiles_m)?;
        p.tiles_n = tiles_n as i32;
        p.unit_images = unit_images as i32;
        p.splits = splits as i32;
        p.steps_per_split = steps_per_split as i32;
        count("pixels of a unit", m)?;
        let grid = Grid {
            grid: [
                count("blocks", tiles_m * tiles_n * units)? as u32,
                (phases * self.groups) as u32,
                splits as u32,
            ],
            block: tile.threads() as u32,
            shared_bytes: tile.shared_bytes(self.dtype) as u32,
        };
        // Splits write f32 sums: the epilogue, and the statistics with it, come afterwards.
        let first = Class { stats: self.stats && splits == 1, ..class };
        first.launch(gpu, Some(tile), grid, &p)?;
        if splits > 1 {
            self.sum_splits(gpu, class, out, splits, unit_images)?;
        }
        let stats = tile_stats.map(|tiles| {
            let per_phase = height * width / stat_phases;
            self.merge_statistics(gpu, &tiles, [stat_tiles, stat_phases, stat_rows, per_phase])
        });
        Ok(Gathered { y, stats: stats.transpose()? })
    }

    fn sum_splits(
        &self,
        gpu: &Gpu,
        class: Class,
        out: Epilogue,
        splits: usize,
        unit_images: usize,
    ) -> Result<()> {
        let [height, width] = self.size;
        let chunks = self.channels().div_ceil(16 / self.dtype.size());
        let columns = chunks.next_power_of_two().min(32);
        let tiles = (unit_images * height * width).div_ceil(SUM_ROWS);
        let p = params::SplitOutput {
            out,
            splits: splits as i32,
            images: self.images as i32,
            size: [height as i32, width as i32],
            columns: columns as i32,
            unit_images: unit_images as i32,
            tiles: int(self.op(), "blocks", tiles)?,
            pad: 0,
        };
        let blocks = int(self.op(), "blocks", tiles * (self.images / unit_images))?;
        let grid = Grid {
            grid: [blocks as u32, chunks.div_ceil(columns) as u32, 1],
            block: SUM_THREADS as u32,
            shared_bytes: 0,
        };
        Class { pass: Pass::SplitOutput, ..class }.launch(gpu, None, grid, &p)
    }

    fn merge_statistics(
        &self,
        gpu: &Gpu,
        tiles: &Tensor,
        [per_phase, phases, rows, pixels]: [usize; 4],
    ) -> Result<Tensor> {
        let stats = Tensor::empty_gpu([self.images, self.channels(), 2], DType::F32, gpu, "statistics")?;
        let blocks = self.channels().div_ceil(STATISTICS_THREADS);
        let p = params::Statistics {
            tiles: tiles.cuda_ptr()?,
            images: stats.cuda_ptr()?,
            channels: self.channels() as i32,
            tiles_per_phase: per_phase as i32,
            phases: phases as i32,
            pixels_per_tile: rows as i32,
            pixels_per_phase: pixels as i32,
            blocks: blocks as i32,
        };
        let grid = Grid {
            grid: [int(self.op(), "blocks", blocks * self.images)? as u32, 1, 1],
            block: STATISTICS_THREADS as u32,
            shared_bytes: 0,
        };
        Class::new(Family::Conv2d, Pass::Statistics, DType::F32).launch(gpu, None, grid, &p)?;
        Ok(stats)
    }
}
