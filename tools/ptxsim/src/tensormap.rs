//! Tensor maps: what `cuTensorMapEncode…` makes and the bulk tensor copies read.
//!
//! A real map is opaque; its layout is the driver's secret. This one is ours, as 16 words of 64 bits, low byte first:
//!
//! | word | contents |
//! |---|---|
//! | 0 | `TENSORMP` in ASCII |
//! | 1 | bytes: kind, rank, data type, interleave, swizzle, L2 promotion, out-of-bounds fill, wide mode |
//! | 2 | global address |
//! | 3–5 | extents less one, 32 bits each: five, and the pixels of a column |
//! | 6–9 | strides of dimensions 1 to 4 in bytes |
//! | 10 | box less one, a byte for each dimension (tiled); channels of a pixel (im2col) |
//! | 11 | traversal strides, a byte for each dimension |
//! | 12–13 | lower corner, then upper corner of the pixel box, 16 bits each: three and three |
//! | 14–15 | zero |

use serde::Serialize;

/// First word of every map.
const MAGIC: u64 = u64::from_le_bytes(*b"TENSORMP");
/// Most dimensions.
pub const MAX_RANK: usize = 5;

/// How a map is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Walk {
    /// A box of elements.
    Tiled {
        /// Elements of the box in each dimension.
        extent: [u32; MAX_RANK],
    },
    /// Columns of pixels, as a convolution reads them.
    Im2col {
        /// Corner of the bounding box nearest the origin: offsets of W, H, D (as many as there are).
        lower: [i32; 3],
        /// The corner opposite.
        upper: [i32; 3],
        /// Channels taken of a pixel.
        channels: u32,
        /// Pixels taken.
        pixels: u32,
    },
}

/// A tensor in global memory and how boxes of it come to shared memory. The codes are those of the driver's enums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TensorMap {
    /// `CUtensorMapDataType`
    pub data_type: u32,
    /// Dimensions, innermost first.
    pub rank: u32,
    /// First byte.
    pub address: u64,
    /// Elements in each dimension.
    pub extents: [u64; MAX_RANK],
    /// Bytes from one index to the next, of dimensions 1 and up.
    pub strides: [u64; MAX_RANK - 1],
    /// Boxes or columns.
    pub walk: Walk,
    /// Every so many elements are taken.
    pub traversal: [u32; MAX_RANK],
    /// `CUtensorMapInterleave`
    pub interleave: u32,
    /// `CUtensorMapSwizzle`
    pub swizzle: u32,
    /// `CUtensorMapL2promotion`
    pub l2_promotion: u32,
    /// `CUtensorMapFloatOOBfill`
    pub fill: u32,
}

/// `16U4_ALIGN8B`, `16U4_ALIGN16B`, `16U6_ALIGN16B`: packed types of less than a byte.
const U4_ALIGN8: u32 = 13;
const U4_ALIGN16: u32 = 14;
const U6_ALIGN16: u32 = 15;
/// Codes of floating-point types.
const FLOATS: std::ops::RangeInclusive<u32> = 6..=12;

/// Bits of an element of a `CUtensorMapDataType`; `None` for a code that is none.
pub fn element_bits(data_type: u32) -> Option<u64> {
    Some(match data_type {
        0 => 8,
        1 | 6 | 9 => 16,
        2 | 3 | 7 | 10 | 11 | 12 => 32,
        4 | 5 | 8 => 64,
        U4_ALIGN8 | U4_ALIGN16 => 4,
        U6_ALIGN16 => 6,
        _ => return None,
    })
}

/// Bytes over which a swizzle works; `None` without one.
fn swizzle_span(swizzle: u32) -> Option<u64> {
    match swizzle {
        0 => None,
        1 => Some(32),
        2 => Some(64),
        _ => Some(128),
    }
}

/// Refuses with a sentence, unless the condition holds.
fn require(condition: bool, otherwise: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.to_string()) }
}

impl TensorMap {
    /// Checks every requirement that the driver's manual states; says which is not met.
    pub fn check(&self) -> Result<(), String> {
        let bits = element_bits(self.data_type).ok_or("the data type is none")?;
        let rank = self.rank as usize;
        let least = if self.interleave != 0 || matches!(self.walk, Walk::Im2col { .. }) { 3 } else { 1 };
        require((least..=MAX_RANK).contains(&rank), "the rank is outside what the layout allows")?;
        require(self.interleave <= 2 && self.swizzle <= 6, "the interleave or the swizzle is none")?;
        require(self.l2_promotion <= 3 && self.fill <= 1, "the L2 promotion or the fill is none")?;
        let wide = matches!(self.data_type, U4_ALIGN16 | U6_ALIGN16);
        let unit = if self.interleave == 2 || wide { 32 } else { 16 };
        require(self.address.is_multiple_of(unit), "the global address is not aligned")?;
        for &extent in &self.extents[..rank] {
            require((1..=1 << 32).contains(&extent), "an extent is 0 or above 2^32")?;
        }
        require(!wide || self.extents[0].is_multiple_of(128), "the innermost extent is no multiple of 128")?;
        require(
            self.data_type != U4_ALIGN8 || self.extents[0].is_multiple_of(2),
            "the innermost extent is odd",
        )?;
        let strides_unit = if self.interleave == 2 || wide { 32 } else { 16 };
        for &stride in &self.strides[..rank - 1] {
            require(stride.is_multiple_of(strides_unit), "a stride is not aligned")?;
            require(stride < 1 << 40, "a stride is 2^40 bytes or more")?;
        }
        for (dimension, &step) in self.traversal[..rank].iter().enumerate() {
            let ignored = dimension == 0 && self.interleave == 0;
            require(ignored || (1..=8).contains(&step), "a traversal stride is 0 or above 8")?;
        }
        require(self.interleave != 2 || self.swizzle == 1, "32-byte interleave needs the 32-byte swizzle")?;
        require(self.fill == 0 || FLOATS.contains(&self.data_type), "NaN fill of a type that has no NaN")?;
        match self.data_type {
            U6_ALIGN16 => {
                require(self.interleave == 0, "this packed type cannot be interleaved")?;
                require(matches!(self.swizzle, 0 | 3 | 4 | 6), "this packed type cannot be swizzled so")?;
            }
            U4_ALIGN16 => {
                require(matches!(self.swizzle, 0 | 3 | 4), "this packed type cannot be swizzled so")?
            }
            _ => {}
        }
        let inner = self.check_walk(bits, wide)?;
        let span = if self.interleave == 0 { swizzle_span(self.swizzle) } else { None };
        require(span.is_none_or(|span| inner <= span), "the box's innermost extent exceeds the swizzle")
    }

    /// The part of [`check`](Self::check) about boxes and columns; returns the bytes of a row in shared memory.
    fn check_walk(&self, bits: u64, wide: bool) -> Result<u64, String> {
        let rank = self.rank as usize;
        // Packed types come to shared memory in units of 16 bytes for 16 elements.
        let bytes = |elements: u32| u64::from(elements) * if wide { 8 } else { bits } / 8;
        match self.walk {
            Walk::Tiled { extent } => {
                for &n in &extent[..rank] {
                    require((1..=256).contains(&n), "a box extent is 0 or above 256")?;
                }
                require(!wide || extent[0] == 128, "the innermost box extent must be 128")?;
                let aligned = (u64::from(extent[0]) * bits).is_multiple_of(128);
                require(self.interleave != 0 || aligned, "a row of the box is no multiple of 16 bytes")?;
                Ok(bytes(extent[0]))
            }
            Walk::Im2col { lower, upper, channels, pixels } => {
                let (least, most) = match rank {
                    3 => (-32_768, 32_767),
                    4 => (-128, 127),
                    _ => (-16, 15),
                };
                for (&l, &u) in lower.iter().zip(&upper).take(rank - 2) {
                    let fits = (least..=most).contains(&l) && (least..=most).contains(&u);
                    require(fits, "a corner of the pixel box is out of range")?;
                }
                // The box spans the tensor, moved in by the corners; it must hold something.
                for i in 0..rank - 2 {
                    let span = self.extents[1 + i] as i64 + i64::from(upper[i]) - i64::from(lower[i]);
                    require(span > 0, "the pixel box is empty")?;
                }
                require((1..=256).contains(&channels), "the channels of a pixel are 0 or above 256")?;
                require(!wide || channels == 128, "the channels of a pixel must be 128")?;
                require((1..=1024).contains(&pixels), "the pixels of a column are 0 or above 1024")?;
                Ok(bytes(channels))
            }
        }
    }

    /// The 128 bytes; of a map that was checked.
    pub fn encode(&self) -> [u64; 16] {
        let mut words = [0u64; 16];
        let (kind, pixels) = match self.walk {
            Walk::Tiled { .. } => (0, 1),
            Walk::Im2col { pixels, .. } => (1, pixels),
        };
        words[0] = MAGIC;
        let codes =
            [kind, self.rank, self.data_type, self.interleave, self.swizzle, self.l2_promotion, self.fill, 0];
        words[1] = u64::from_le_bytes(codes.map(|c| c as u8));
        words[2] = self.address;
        let mut counts = self.extents.map(|n| n.saturating_sub(1)).to_vec();
        counts.push(u64::from(pixels.saturating_sub(1)));
        for (i, count) in counts.into_iter().enumerate() {
            words[3 + i / 2] |= count << (32 * (i % 2));
        }
        words[6..10].copy_from_slice(&self.strides);
        let byte = |i: usize, value: u32| u64::from(value as u8) << (8 * i);
        match self.walk {
            Walk::Tiled { extent } => {
                words[10] = (0..MAX_RANK).map(|i| byte(i, extent[i].saturating_sub(1))).sum();
            }
            Walk::Im2col { lower, upper, channels, .. } => {
                words[10] = u64::from(channels);
                for (i, corner) in lower.into_iter().chain(upper).enumerate() {
                    words[12 + i / 3] |= u64::from(corner as u16) << (16 * (i % 3));
                }
            }
        }
        words[11] = (0..MAX_RANK).map(|i| byte(i, self.traversal[i])).sum();
        words
    }

    /// Reads 128 bytes; `None` if they are no map of ours.
    pub fn decode(words: &[u64; 16]) -> Option<Self> {
        if words[0] != MAGIC {
            return None;
        }
        let codes = words[1].to_le_bytes().map(u32::from);
        let count = |i: usize| (words[3 + i / 2] >> (32 * (i % 2)) & 0xffff_ffff) + 1;
        let bytes = |word: u64| std::array::from_fn(|i| (word >> (8 * i) & 0xff) as u32);
        let walk = if codes[0] == 0 {
            let less_one: [u32; MAX_RANK] = bytes(words[10]);
            Walk::Tiled { extent: less_one.map(|n| n + 1) }
        } else {
            let corner = |word: u64| std::array::from_fn(|i| i32::from((word >> (16 * i)) as u16 as i16));
            let channels = words[10] as u32;
            Walk::Im2col {
                lower: corner(words[12]),
                upper: corner(words[13]),
                channels,
                pixels: count(5) as u32,
            }
        };
        Some(Self {
            data_type: codes[2],
            rank: codes[1],
            address: words[2],
            extents: std::array::from_fn(count),
            strides: std::array::from_fn(|i| words[6 + i]),
            walk,
            traversal: bytes(words[11]),
            interleave: codes[3],
            swizzle: codes[4],
            l2_promotion: codes[5],
            fill: codes[6],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile() -> TensorMap {
        TensorMap {
            data_type: 9,
            rank: 2,
            address: 0x1000,
            extents: [1024, 1 << 32, 1, 1, 1],
            strides: [2048, 0, 0, 0],
            walk: Walk::Tiled { extent: [64, 256, 1, 1, 1] },
            traversal: [1, 8, 1, 1, 1],
            interleave: 0,
            swizzle: 3,
            l2_promotion: 2,
            fill: 1,
        }
    }

    fn column() -> TensorMap {
        TensorMap {
            rank: 4,
            extents: [64, 32, 32, 2, 1],
            strides: [128, 4096, 131_072, 0],
            walk: Walk::Im2col { lower: [-1, -1, 0], upper: [1, -128, 0], channels: 64, pixels: 1024 },
            traversal: [1, 1, 2, 1, 1],
            ..tile()
        }
    }

    #[test]
    fn there_and_back() {
        for map in [tile(), column()] {
            assert_eq!(TensorMap::decode(&map.encode()), Some(map));
        }
        assert_eq!(TensorMap::decode(&[0; 16]), None);
    }

    #[test]
    fn each_requirement() {
        assert_eq!(tile().check(), Ok(()));
        let mut good = column();
        good.walk = Walk::Im2col { lower: [-1, -1, 0], upper: [1, 1, 0], channels: 64, pixels: 1024 };
        assert_eq!(good.check(), Ok(()));
        let mut count = 0;
        let mut bad = |base: TensorMap, change: fn(&mut TensorMap)| {
            let mut map = base;
            change(&mut map);
            count += 1;
            assert!(map.check().is_err(), "change {count} was accepted");
        };
        bad(tile(), |m| m.data_type = 16);
        bad(tile(), |m| m.rank = 0);
        bad(tile(), |m| m.rank = 6);
        bad(tile(), |m| (m.interleave, m.swizzle) = (1, 0));
        bad(tile(), |m| m.swizzle = 7);
        bad(tile(), |m| m.address = 0x1008);
        bad(tile(), |m| m.extents[0] = 0);
        bad(tile(), |m| m.extents[1] = (1 << 32) + 1);
        bad(tile(), |m| m.strides[0] = 2056);
        bad(tile(), |m| m.strides[0] = 1 << 40);
        bad(tile(), |m| m.walk = Walk::Tiled { extent: [128, 1, 1, 1, 1] });
        bad(tile(), |m| m.walk = Walk::Tiled { extent: [64, 257, 1, 1, 1] });
        bad(tile(), |m| m.walk = Walk::Tiled { extent: [4, 1, 1, 1, 1] });
        bad(tile(), |m| m.traversal[1] = 9);
        bad(tile(), |m| m.traversal[1] = 0);
        bad(tile(), |m| (m.data_type, m.fill) = (1, 1));
        bad(tile(), |m| m.fill = 2);
        bad(tile(), |m| m.l2_promotion = 4);
        bad(good, |m| (m.interleave, m.swizzle) = (2, 3));
        bad(good, |m| m.rank = 2);
        bad(column(), |_| ()); // the box is empty
        bad(good, |m| m.walk = Walk::Im2col { lower: [-129, 0, 0], upper: [0; 3], channels: 64, pixels: 1 });
        bad(good, |m| m.walk = Walk::Im2col { lower: [0; 3], upper: [0; 3], channels: 257, pixels: 1 });
        bad(good, |m| m.walk = Walk::Im2col { lower: [0; 3], upper: [0; 3], channels: 64, pixels: 1025 });
        assert_eq!(count, 24);
    }
}
