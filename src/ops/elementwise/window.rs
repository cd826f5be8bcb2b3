//! Pixels that gather from a window of other pixels: pooling and resizing, and their gradients.

use super::rows::is_wide;
use super::{THREADS, chunk};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Grid};
use crate::ops::implicit_gemm::int;
use crate::ops::kernel::Call;
use crate::ops::variants::Variant;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::OnceLock;

/// `WindowParams` of `kernels/tile/window.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(in crate::ops) struct WindowParams {
    pub from: u64,
    pub positions: u64,
    pub to: u64,
    pub from_h: i32,
    pub from_w: i32,
    pub to_h: i32,
    pub to_w: i32,
    pub channels: i32,
    pub lanes: i32,
    pub tile_h: i32,
    pub tile_w: i32,
    pub down: i32,
    pub right: i32,
    pub across: i32,
    pub room: i32,
    pub kernel: i32,
    pub stride: i32,
    pub pad: i32,
    pub scale: f32,
}

/// Most bytes of a region in shared memory, so that several blocks share a multiprocessor.
const MOST_BYTES: usize = 40 * 1024;
/// Tiles of the result, the largest that fits first; the last is taken where none does.
const TILES: [[usize; 2]; 8] = [[16, 16], [8, 16], [8, 8], [4, 8], [4, 4], [2, 4], [1, 2], [1, 1]];
/// The tile where threads read from memory themselves.
const UNSTAGED: [usize; 2] = [8, 8];
/// Sides of images are smaller, so that products of two sides, and twice that, fit in 31 bits.
const MOST_SIDE: usize = 1 << 15;

/// Which pixels of the source the results `first ..= last` of an axis read.
pub(in crate::ops) type Span<'a> = &'a dyn Fn(usize, usize) -> Range<usize>;

/// One gathering: sizes and what reads what.
pub(in crate::ops) struct Gather<'a> {
    /// Op in error texts, and tag of memory.
    pub op: &'static str,
    /// `[n, h, w, c]` of what is read.
    pub from: [usize; 4],
    /// Height and width of what is written.
    pub to: [usize; 2],
    /// Along the height.
    pub down: Span<'a>,
    /// Along the width.
    pub right: Span<'a>,
    /// Whether positions are read with the source.
    pub positions: bool,
}

/// The largest span of a tile of `tile` results, of `results`.
fn largest(span: Span<'_>, results: usize, tile: usize) -> usize {
    (0..results).step_by(tile).map(|i| span(i, (i + tile).min(results) - 1).len()).max().unwrap_or(0)
}

/// `value`, if the kernels count to it as a side of an image.
pub(in crate::ops) fn side(op: &str, value: usize) -> Result<i32> {
    match i32::try_from(value) {
        Ok(v) if value < MOST_SIDE => Ok(v),
        _ => Err(Error::shape(op, format!("a side of {value} pixels is more than the kernels count to"))
            .with_remedy(format!("keep sides below {MOST_SIDE}, or compute on the host"))),
    }
}

impl Gather<'_> {
    /// Tiles and shared memory for elements of `dtype`: the parameter without addresses, the grid, and whether regions are staged.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to.
    pub fn plan(&self, dtype: DType) -> Result<(WindowParams, Grid, bool)> {
        let ([n, h, w, c], [to_h, to_w]) = (self.from, self.to);
        let wide = is_wide(dtype, c);
        let (each, most_lanes) = if wide { (chunk(dtype), 8) } else { (1, 32) };
        let chunks = c.div_ceil(each);
        let lanes = chunks.next_power_of_two().min(most_lanes);
        let across = chunks.div_ceil(lanes);
        let bytes = each * (dtype.size() + usize::from(self.positions));
        let fitted =
            TILES.iter().map(|t| [t[0].min(to_h.next_power_of_two()), t[1].min(to_w.next_power_of_two())]);
        let found = fitted
            .filter(|_| !unstaged())
            .map(|t| (t, lanes * largest(self.down, to_h, t[0]) * largest(self.right, to_w, t[1])))
            .find(|(_, room)| room * bytes <= MOST_BYTES);
        let staged = found.is_some();
        let (tile, room) = found.unwrap_or((UNSTAGED, 0));
        let (down, right) = (to_h.div_ceil(tile[0]), to_w.div_ceil(tile[1]));
        let op = self.op;
        let blocks = int(op, "tiles", n * down * right * across)?;
        let p = WindowParams {
            from_h: side(op, h)?,
            from_w: side(op, w)?,
            to_h: side(op, to_h)?,
            to_w: side(op, to_w)?,
            channels: int(op, "channels", c)?,
            lanes: lanes as i32,
            tile_h: tile[0] as i32,
            tile_w: tile[1] as i32,
            down: down as i32,
            right: right as i32,
            across: across as i32,
            room: room as i32,
            ..WindowParams::zeroed()
        };
        let grid = Grid {
            grid: [blocks as u32, 1, 1],
            block: THREADS as u32,
            // A kernel with an unused region still has one.
            shared_bytes: (room * bytes).next_multiple_of(16) as u32,
        };
        Ok((p, grid, staged))
    }

    /// Launches `call` from `from` to `to`; `set` fills in what belongs to the op. `positions` are read or written.
    ///
    /// # Errors
    /// Sizes that the kernels do not count to, or a failed compilation or launch.
    pub fn launch(
        &self,
        gpu: &Gpu,
        call: Call,
        from: &Tensor,
        positions: Option<&Tensor>,
        to: &Tensor,
        set: impl FnOnce(WindowParams) -> WindowParams,
    ) -> Result<()> {
        let (p, grid, staged) = self.plan(from.dtype())?;
        let p = WindowParams {
            from: from.cuda_ptr()?,
            positions: positions.map_or(Ok(0), Tensor::cuda_ptr)?,
            to: to.cuda_ptr()?,
            ..p
        };
        variant_of(call, from.dtype(), is_wide(from.dtype(), self.from[3]), staged).launch(gpu, grid, &set(p))
    }
}

/// Whether `DTK_UNSTAGED=1` asks that no region is staged: what large windows do, for testing it on small ones.
fn unstaged() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var("DTK_UNSTAGED").is_ok_and(|v| v == "1"))
}

fn variant_of(call: Call, dtype: DType, wide: bool, staged: bool) -> Call {
    call.dtype(dtype).set("VEC", u8::from(wide)).set("STAGED", u8::from(staged))
}

/// Every variant of kernels that gather.
pub(in crate::ops) fn variants(calls: &[Call]) -> Vec<Variant> {
    let mut all = Vec::new();
    for call in calls {
        for dtype in super::DTYPES {
            for (wide, staged) in [(true, true), (true, false), (false, true), (false, false)] {
                all.push(variant_of(call.clone(), dtype, wide, staged).variant::<WindowParams>());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from: [usize; 4], to: [usize; 2], reach: usize) -> (WindowParams, Grid, bool) {
        let step = [from[1] / to[0], from[2] / to[1]];
        let span = |step: usize, len: usize| {
            move |a: usize, b: usize| (a * step).saturating_sub(reach)..((b + 1) * step + reach).min(len)
        };
        let (down, right) = (span(step[0], from[1]), span(step[1], from[2]));
        Gather { op: "t", from, to, down: &down, right: &right, positions: false }.plan(DType::Bf16).unwrap()
    }

    #[test]
    fn tiles_cover_the_result_and_fit_in_shared_memory() {
        for (from, to) in [
            ([1, 1, 1, 1], [1, 1]),
            ([2, 112, 112, 64], [56, 56]),
            ([1, 9, 7, 5], [3, 7]),
            ([3, 64, 64, 8], [8, 8]),
        ] {
            let (p, grid, staged) = plan(from, to, 1);
            assert!(staged && grid.shared_bytes as usize <= MOST_BYTES, "{p:?}");
            assert!((p.down * p.tile_h) as usize >= to[0] && (p.right * p.tile_w) as usize >= to[1], "{p:?}");
            assert!(p.lanes.count_ones() == 1 && p.lanes <= THREADS as i32);
        }
        let (p, ..) = plan([64, 112, 112, 64], [56, 56], 1);
        assert_eq!([p.tile_h, p.tile_w, p.lanes, p.across], [4, 8, 8, 1]);
    }

    #[test]
    fn an_image_that_becomes_a_pixel_is_not_staged() {
        let (p, grid, staged) = plan([1, 256, 256, 64], [1, 1], 0);
        assert!(!staged && grid.shared_bytes == 0 && p.room == 0);
    }

    #[test]
    fn sides_that_products_do_not_hold_are_errors() {
        let span = |a: usize, b: usize| a..b + 1;
        let g = Gather {
            op: "t",
            from: [1, MOST_SIDE, 1, 1],
            to: [MOST_SIDE, 1],
            down: &span,
            right: &span,
            positions: false,
        };
        assert!(g.plan(DType::F32).unwrap_err().is_shape());
    }
}
