//! The parameters of the kernels, field for field as in `kernels/tile/`. Pointers are device addresses, 0 for none.

use bytemuck::{Pod, Zeroable};

/// Division of numbers below 2^31 by `divisor`: `tile/fast_div.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct FastDiv {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl FastDiv {
    /// For a divisor from 1 to 2^31 - 1.
    pub fn new(divisor: usize) -> Self {
        let d = divisor as u32;
        debug_assert!(d >= 1 && d <= i32::MAX as u32);
        // The smallest power of two not below d; a multiplier of 32 bits is then exact for numerators of 31.
        let log = d.next_power_of_two().trailing_zeros();
        let multiplier = ((1u64 << (31 + log)).div_ceil(u64::from(d))) as u32;
        FastDiv { divisor: d, multiplier, shift: log.saturating_sub(1) }
    }
}

/// One axis of a segment: `tile/gather_gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Axis {
    pub size: i32,
    pub kernel: i32,
    pub step: i32,
    pub pad: i32,
    pub dilation: i32,
    pub tap_step: i32,
    pub weight_step: i32,
    pub phases: i32,
}

/// One input of the K loop: `tile/gather_gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Segment {
    pub x: u64,
    pub w: u64,
    pub axis: [Axis; 2],
    pub channels: FastDiv,
    pub pixel: i32,
    pub w_row: i32,
    pub w_tap: i32,
    pub w_phase: i32,
    pub pad: i32,
}

/// What becomes of a sum: `tile/output.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Epilogue {
    pub y: u64,
    pub bias: u64,
    pub scale: u64,
    pub residual: u64,
    pub stats: u64,
    pub partial: u64,
    pub channels: i32,
    pub activation: i32,
    pub residual_shift: i32,
    pub pad: i32,
}

/// The most inputs of a K loop.
pub const MAX_SEGMENTS: usize = 4;

/// Forward pass and input gradient: `tile/gather_gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Gather {
    pub segment: [Segment; MAX_SEGMENTS],
    pub out: Epilogue,
    pub segments: i32,
    pub images: i32,
    pub size: [i32; 2],
    pub phases: [i32; 2],
    pub columns: i32,
    pub groups: i32,
    pub tiles_m: i32,
    pub tiles_n: i32,
    pub unit_images: i32,
    pub splits: i32,
    pub steps_per_split: i32,
    pub pad: i32,
}

/// Weight gradient: `tile/pixel_gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Pixels {
    pub x: u64,
    pub gy: u64,
    pub sums: u64,
    pub size: [i32; 2],
    pub kernel: [i32; 2],
    pub stride: [i32; 2],
    pub pad: [i32; 2],
    pub dilation: [i32; 2],
    pub images: i32,
    pub map: [i32; 2],
    pub x_pixel: i32,
    pub gy_pixel: i32,
    pub rows: i32,
    pub channels: i32,
    pub tiles_n: i32,
    pub splits: i32,
    pub pixels_per_split: i32,
}

/// Sum of the splits of an output: `tile/split_sum.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SplitOutput {
    pub out: Epilogue,
    pub splits: i32,
    pub images: i32,
    pub size: [i32; 2],
    pub columns: i32,
    pub unit_images: i32,
    pub tiles: i32,
    pub pad: i32,
}

/// Sum of the splits of a weight gradient: `tile/split_sum.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SplitWeight {
    pub sums: u64,
    pub dw: u64,
    pub splits: i32,
    pub rows: i32,
    pub columns: i32,
    pub dw_row: i32,
    pub dw_tap: i32,
    pub blocks: i32,
    pub channels: FastDiv,
    pub pad: i32,
}

/// Statistics of images from those of tiles: `tile/statistics.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Statistics {
    pub tiles: u64,
    pub images: u64,
    pub channels: i32,
    pub tiles_per_phase: i32,
    pub phases: i32,
    pub pixels_per_tile: i32,
    pub pixels_per_phase: i32,
    pub blocks: i32,
}

/// Weights of the phases of a doubled image: `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Fold {
    pub w: u64,
    pub folded: u64,
    pub rows: i32,
    pub channels: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_division_is_division() {
        let by = |f: FastDiv, n: u32| {
            if f.divisor == 1 {
                n
            } else {
                ((u64::from(n) * u64::from(f.multiplier)) >> 32) as u32 >> f.shift
            }
        };
        let near = |x: u64| [x.saturating_sub(2), x.saturating_sub(1), x, x + 1];
        for d in
            (1u32..300).chain([511, 512, 513, 2048, 3072, 18_432, 65_535, 65_536, 1 << 30, (1 << 31) - 1])
        {
            let f = FastDiv::new(d as usize);
            let multiples =
                (0..40).map(|k| k * u64::from(d)).chain((0..31).map(|k| 1u64 << k)).flat_map(near);
            let top = u64::from(i32::MAX as u32);
            for n in multiples.chain([top - 1, top, top / u64::from(d) * u64::from(d)]).filter(|n| *n <= top)
            {
                assert_eq!(u64::from(by(f, n as u32)), n / u64::from(d), "{n} / {d}");
            }
        }
    }
}
