//! Tiles: how a product is cut into blocks, warps and steps of k, and which cut a problem gets.

use crate::base::DType;
use serde::{Deserialize, Serialize};

/// One way to cut a product: `kernels/tile/gemm_mainloop.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Rows of a block's part of the result.
    pub bm: usize,
    /// Columns of it.
    pub bn: usize,
    /// k of a step.
    pub bk: usize,
    /// Rows of a warp's part.
    pub wm: usize,
    /// Columns of it.
    pub wn: usize,
    /// Steps in shared memory at a time.
    pub stages: usize,
    /// Blocks that a multiprocessor is to hold; bounds the registers.
    pub blocks: usize,
}

const fn tile(bm: usize, bn: usize, bk: usize, wm: usize, wn: usize, stages: usize, blocks: usize) -> Tile {
    Tile { bm, bn, bk, wm, wn, stages, blocks }
}

/// For copies of 16 bytes, with the share of the largest tile's speed that the model of [`choose`] gives each: larger
/// tiles read less shared and global memory for a product. Estimates until a card has run them.
const BF16: [(Tile, f64); 5] = [
    (tile(128, 256, 64, 64, 64, 3, 1), 1.0),
    (tile(128, 128, 64, 64, 32, 3, 1), 0.9),
    (tile(128, 64, 64, 32, 32, 3, 2), 0.75),
    (tile(64, 64, 64, 32, 32, 3, 3), 0.6),
    (tile(64, 32, 64, 32, 16, 3, 4), 0.4),
];
/// As [`BF16`], for narrower copies.
const BF16_NARROW: [(Tile, f64); 1] = [(tile(64, 64, 32, 32, 32, 3, 2), 0.2)];
const F32: [(Tile, f64); 2] =
    [(tile(128, 128, 16, 64, 32, 3, 1), 1.0), (tile(64, 64, 16, 32, 32, 3, 2), 0.8)];
const F32_NARROW: [(Tile, f64); 1] = [(tile(64, 64, 16, 32, 32, 3, 2), 0.4)];

/// Multiply-adds of a block that take as long as starting and ending it, and as one more launch.
const BLOCK_COST: f64 = 128.0 * 128.0 * 128.0;
/// The fewest steps of k of a split.
const SPLIT_STEPS: usize = 4;

/// What a product computes, and with it how its operands lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The forward pass: rows of both operands run along k.
    Forward,
    /// The input gradient: rows of the weight run along n.
    InputGradient,
    /// The weight gradient: rows of both run along m and n.
    WeightGradient,
}

/// A product as far as the choice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// What it computes.
    pub kind: Kind,
    /// Element type of the operands.
    pub dtype: DType,
    /// Elements of a copy.
    pub width: usize,
    /// Rows that may share a tile.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Terms of a sum, as those of every segment on its own.
    pub k: usize,
    /// Independent products of this size.
    pub count: usize,
    /// Multiprocessors of the device.
    pub multiprocessors: usize,
}

/// The tiles that fit a product, best first by size.
pub fn candidates(p: &Product) -> &'static [(Tile, f64)] {
    let whole = p.width * p.dtype.size() == 16;
    match (p.dtype, whole) {
        (DType::Bf16, true) => &BF16,
        (DType::Bf16, false) => &BF16_NARROW,
        (_, true) => &F32,
        (_, false) => &F32_NARROW,
    }
}

/// The tile for a product, and into how many parts k is cut: the pair for which the model's time is least: that of
/// the multiprocessor with the most blocks, each of which costs its padded multiply-adds over the tile's speed, and something
/// to begin.
pub fn choose(p: &Product) -> (Tile, usize) {
    choose_among(p, candidates(p))
}

/// As [`choose`], among some of the candidates; there is at least one.
pub(super) fn choose_among(p: &Product, all: &[(Tile, f64)]) -> (Tile, usize) {
    let mut best = (f64::INFINITY, all[0].0, 1);
    for &(t, speed) in all {
        let steps = p.k.div_ceil(t.bk);
        let tiles = p.m.div_ceil(t.bm) * p.n.div_ceil(t.bn) * p.count;
        let slots = p.multiprocessors * t.blocks;
        let most = (steps / SPLIT_STEPS).min(slots.div_ceil(tiles)).clamp(1, 32);
        for splits in 1..=most {
            let turns = (tiles * splits).div_ceil(p.multiprocessors) as f64;
            let block = (t.bm * t.bn * steps.div_ceil(splits) * t.bk) as f64 / speed;
            // The sums of the splits are written and read once more.
            let again =
                if splits == 1 { 0.0 } else { BLOCK_COST + (splits * p.m * p.n * p.count) as f64 / 16.0 };
            let time = turns * (block + BLOCK_COST) + again;
            if time < best.0 {
                best = (time, t, splits);
            }
        }
    }
    (best.1, best.2)
}

impl Tile {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.bm / self.wm * (self.bn / self.wn) * 32
    }

    /// Dynamic shared memory: the stages, whose place the epilogue's strips and the statistics take over.
    pub fn shared_bytes(&self, dtype: DType) -> usize {
        let stages = (self.bm + self.bn) * self.bk * dtype.size() * self.stages;
        let strip = if dtype == DType::Bf16 { 16 } else { 32 };
        let strips = self.threads() / 32 * strip * (self.wn + 8) * 4;
        let statistics = self.bm / self.wm * self.bn * 3 * 4;
        stages.max(strips).max(statistics)
    }

    /// Every tile for operands of a type and copies of a width.
    pub fn all(dtype: DType, width: usize) -> impl Iterator<Item = Tile> {
        let kind = Kind::Forward;
        let p = Product { kind, dtype, width, m: 1, n: 1, k: 1, count: 1, multiprocessors: 1 };
        candidates(&p).iter().map(|(t, _)| *t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize, n: usize, k: usize) -> Product {
        let kind = Kind::Forward;
        Product { kind, dtype: DType::Bf16, width: 8, m, n, k, count: 1, multiprocessors: 132 }
    }

    #[test]
    fn large_products_take_the_largest_tile_and_no_split() {
        for (m, n, k) in [(64 * 65_536, 256, 2304), (64 * 4096, 512, 4608), (64 * 256, 1024, 9216)] {
            assert_eq!(choose(&product(m, n, k)), (BF16[0].0, 1), "{m} {n} {k}");
        }
    }

    #[test]
    fn small_products_split_k() {
        let (t, splits) = choose(&product(64, 1024, 9216));
        assert!(splits > 1 && t.bm <= 64, "{t:?} {splits}");
        let (_, splits) = choose(&product(64, 1024, 64));
        assert_eq!(splits, 1, "one step of k has no parts");
    }

    #[test]
    fn tiles_fit_every_card() {
        // 163 KiB of an sm_80 block.
        for (dtype, width) in [(DType::Bf16, 8), (DType::Bf16, 1), (DType::F32, 4), (DType::F32, 1)] {
            for t in Tile::all(dtype, width) {
                assert!(t.shared_bytes(dtype) * t.blocks <= 163 * 1024, "{t:?}");
                assert!(t.threads() <= 1024 && t.threads() >= 32);
            }
        }
    }
}
