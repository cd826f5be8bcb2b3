//! Operand values: the ones at which instructions go wrong, and seeded random ones.

use super::softfloat::Format;

/// SplitMix64: the same sequence everywhere, forever, because recordings name inputs by their hash.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each name.
    pub fn new(name: &str) -> Rng {
        Rng(name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
}

/// Size of a register that holds an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// A predicate; one byte in memory.
    Pred,
    /// `.b16`
    B16,
    /// `.b32`
    B32,
    /// `.b64`
    B64,
}

impl Width {
    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        match self {
            Width::Pred => 1,
            Width::B16 => 2,
            Width::B32 => 4,
            Width::B64 => 8,
        }
    }

    /// The register of so many bits.
    pub fn of_bits(bits: u32) -> Width {
        match bits {
            ..=16 => Width::B16,
            17..=32 => Width::B32,
            _ => Width::B64,
        }
    }

    /// The untyped PTX type.
    pub fn name(self) -> &'static str {
        match self {
            Width::Pred => "pred",
            Width::B16 => "b16",
            Width::B32 => "b32",
            Width::B64 => "b64",
        }
    }
}

/// The values that an operand takes.
#[derive(Clone)]
pub struct Values {
    /// Its register.
    pub width: Width,
    /// Tried in all combinations with the other operands', as far as there is room.
    pub special: Vec<u64>,
    /// One more; `None` if there are no others.
    pub random: Option<fn(&mut Rng) -> u64>,
}

/// All bits below `n` set.
pub fn ones(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// Random bits of random length, so that small and large magnitudes both occur, of either sign.
fn random_integer(rng: &mut Rng) -> u64 {
    let v = rng.bits() >> rng.below(64);
    if rng.bits() & 1 == 0 { v } else { v.wrapping_neg() }
}

/// Integers of 8 to 64 bits: the ends of both ranges, powers of two, patterns. 8-bit ones come in a 16-bit register whose
/// upper half holds rubbish.
pub fn integers(bits: u32) -> Values {
    let mut special = vec![0, 1, 2, 3, 7, 0x55, 0x80, 0xff, 100];
    special.extend([u64::MAX, u64::MAX - 1, 10u64.wrapping_neg()]);
    special.extend([
        ones(bits) >> 1,
        1 << (bits - 1),
        (1 << (bits - 1)) + 1,
        1 << (bits / 2),
        ones(bits / 2),
    ]);
    special.extend([0x1234_5678_9abc_def0, 0xaaaa_aaaa_aaaa_aaaa, 0xf0f0_0f0f_8001_7ffe]);
    let width = Width::of_bits(bits);
    special.iter_mut().for_each(|v| *v &= ones(8 * width.bytes() as u32));
    Values { width, special, random: Some(random_integer) }
}

/// 32-bit shift amounts, bit positions, lengths.
pub fn amounts() -> Values {
    let special = vec![
        0,
        1,
        5,
        8,
        15,
        16,
        17,
        31,
        32,
        33,
        47,
        63,
        64,
        65,
        127,
        255,
        256,
        257,
        0x8000_0001,
        0xffff_ffff,
    ];
    Values { width: Width::B32, special, random: Some(|rng| rng.below(72)) }
}

/// Two or four lanes of small integers in 32 bits.
pub fn packed_integers() -> Values {
    let special = vec![
        0,
        0xffff_ffff,
        0x7f7f_7f7f,
        0x8080_8080,
        0x7fff_8000,
        0x8000_7fff,
        0x0001_ffff,
        0xffff_0001,
        0x0102_0304,
        0xfffe_0002,
        0x80ff_017f,
        0x8000_8000,
        0x7fff_7fff,
    ];
    Values { width: Width::B32, special, random: Some(Rng::bits) }
}

/// Both values of a predicate.
pub fn predicates() -> Values {
    Values { width: Width::Pred, special: vec![0, 1], random: None }
}

/// Special values of a floating-point format: zeros, ones, subnormals, the ends of the range, halves (for rounding to
/// integers), infinities, quiet and signalling NaNs.
pub fn special_floats(f: Format) -> Vec<u64> {
    let m = f.mantissa_bits();
    let one = f.one();
    let mut v = vec![
        0,
        1,
        f.smallest_normal() - 1,
        f.smallest_normal(),
        f.smallest_normal() + 1,
        one,
        one + 1,
        one - 1,
        f.from_f64(0.5),
        f.from_f64(1.5),
        f.from_f64(2.5),
        f.from_f64(3.0),
        f.from_f64(0.3),
        f.from_f64(100.75),
        // The first power of two whose neighbours are one apart.
        one + (u64::from(m) << m) + 1,
        f.largest(),
        f.largest() - 1,
        f.infinity(),
        f.nan(),
        f.infinity() + 1,
    ];
    let negative: Vec<u64> = v.iter().map(|x| x | f.sign()).collect();
    v.extend(negative);
    v
}

/// Random bits with the exponent near that of 1.0 most of the time, so that sums do not lose one operand.
fn random_float(f: Format, rng: &mut Rng) -> u64 {
    let bits = rng.bits();
    if bits & 7 == 0 {
        return rng.bits() & ones(f.bits());
    }
    let near = (f.one() >> f.mantissa_bits()) + rng.below(12) - 6;
    (rng.bits() & (f.sign() | ones(f.mantissa_bits()))) | near << f.mantissa_bits()
}

/// Values of a floating-point format.
pub fn floats(f: Format) -> Values {
    let random: fn(&mut Rng) -> u64 = match f {
        Format::F16 => |rng| random_float(Format::F16, rng),
        Format::Bf16 => |rng| random_float(Format::Bf16, rng),
        Format::F32 => |rng| random_float(Format::F32, rng),
        Format::F64 => |rng| random_float(Format::F64, rng),
    };
    Values { width: Width::of_bits(f.bits()), special: special_floats(f), random: Some(random) }
}

/// Two values of a 16-bit format in 32 bits; every special value occurs in both halves.
pub fn packed_floats(f: Format) -> Values {
    let s = special_floats(f);
    let n = s.len();
    let special = (0..n).map(|i| s[i] | s[(i * 7 + 3) % n] << 16).collect();
    let random: fn(&mut Rng) -> u64 = match f {
        Format::F16 => |rng| random_float(Format::F16, rng) | random_float(Format::F16, rng) << 16,
        _ => |rng| random_float(Format::Bf16, rng) | random_float(Format::Bf16, rng) << 16,
    };
    Values { width: Width::B32, special, random: Some(random) }
}

impl Values {
    /// Only these, no random ones beside.
    pub fn only(width: Width, values: &[u64]) -> Values {
        Values { width, special: values.to_vec(), random: None }
    }
}

/// Rows of operands: all combinations of special values if there are at most `room`, else as many picked at random; then
/// a quarter of `room` with random values. The count is a multiple of 128.
pub fn combinations(operands: &[Values], rng: &mut Rng, room: usize) -> Vec<Vec<u64>> {
    let total: usize = operands.iter().map(|o| o.special.len()).product();
    let mut rows = Vec::new();
    let pick = |mut index: usize| -> Vec<u64> {
        let mut row = Vec::new();
        for o in operands {
            row.push(o.special[index % o.special.len()]);
            index /= o.special.len();
        }
        row
    };
    if total <= room {
        rows.extend((0..total).map(pick));
    } else {
        rows.extend((0..room).map(|_| pick((rng.bits() % total as u64) as usize)));
    }
    let wanted = (rows.len() + room / 4).next_multiple_of(128);
    while rows.len() < wanted {
        let row = operands.iter().map(|o| {
            // One operand in eight is special among random ones.
            match o.random {
                Some(random) if rng.below(8) > 0 => random(rng) & ones(8 * o.width.bytes() as u32),
                _ => o.special[rng.below(o.special.len() as u64) as usize],
            }
        });
        let row = row.collect();
        rows.push(row);
    }
    rows
}
