//! Every instruction against arithmetic of another kind: 128-bit integers, the loops of the manual, `rustc_apfloat`.
//! Lanes outside the mask keep what they had.

mod bits;
mod compare;
mod convert;
mod float;
mod halves;
mod integer;
mod moves;
mod video;

use crate::exec::lanes::{FULL, LANES};
use crate::exec::test_bench::Bench;

/// Values in the order of the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: &str) -> Random {
        // FNV-1a; never zero.
        Random(
            seed.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
                | 1,
        )
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// An integer: of any size, small, or at an end of its range.
    pub(super) fn integer(&mut self) -> u64 {
        let x = self.next();
        match self.below(6) {
            0 => x,
            1 => x >> self.below(64),
            2 => !(x >> self.below(64)),
            3 => self.below(70),
            4 => [0, 1, u64::MAX, 1 << 63, 1 << 31, 1 << 15, i64::MAX as u64, i32::MAX as u64]
                [self.below(8) as usize],
            _ => 0u64.wrapping_sub(self.below(70)),
        }
    }

    /// The bits of a floating-point number with so many bits, so many of them significand: any, ordinary, subnormal,
    /// huge, special.
    pub(super) fn number(&mut self, bits: u32, fraction: u32) -> u64 {
        let sign = (self.next() >> 63) << (bits - 1);
        let significand = match self.below(4) {
            0 => 0,
            1 => (1 << fraction) - 1 - self.below(3),
            _ => self.next() & ((1 << fraction) - 1),
        };
        let top = (1u64 << (bits - 1 - fraction)) - 1;
        let bias = top / 2;
        let exponent = match self.below(8) {
            0 => self.below(top + 1),
            1 => 0,
            2 => top - self.below(3),
            3 => 1 + self.below(3),
            _ => bias - 8 + self.below(16),
        };
        sign | exponent << fraction | significand
    }
}

/// Rounds of 32 lanes for each instruction.
const ROUNDS: usize = 60;

/// Executes the instruction on many values. Its result is `%p0`, `%rd0` or `%r0`, of which `bits` bits count; its sources
/// are `%r1`, `%rd1` and so on to 4, whichever it names. `make` gives the sources of a lane, `expect` the result.
pub(super) fn verify<const N: usize>(
    text: &str,
    bits: u32,
    mut make: impl FnMut(&mut Random) -> [u64; N],
    expect: impl Fn([u64; N]) -> u64,
) {
    let mut bench = Bench::new(&format!("{text};")).unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut random = Random::new(text);
    let named = |name: &str| text.split([' ', ',', '{', '}', '|', '!', '.']).any(|word| word == name);
    let part = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    for round in 0..ROUNDS {
        let mask = if round == 0 { FULL } else { random.next() as u32 };
        let sources: [[u64; N]; LANES] = std::array::from_fn(|_| make(&mut random));
        for n in 0..N {
            let lanes = sources.map(|s| s[n]);
            if named(&format!("%r{}", n + 1)) {
                bench.set(&format!("%r{}", n + 1), lanes.map(|x| x as u32));
            } else {
                bench.set(&format!("%rd{}", n + 1), lanes);
            }
        }
        let old: [u64; LANES] = std::array::from_fn(|_| random.next());
        let (before, after) = if named("%p0") {
            let bits = old[0] as u32;
            bench.set_pred("%p0", bits);
            bench.run(mask);
            let now = bench.pred("%p0");
            let lanes = |p: u32| std::array::from_fn(|l| u64::from(p >> l & 1));
            (lanes(bits), lanes(now))
        } else if named("%rd0") {
            bench.set("%rd0", old);
            bench.run(mask);
            (old, bench.get::<u64>("%rd0"))
        } else {
            bench.set("%r0", old.map(|x| x as u32));
            bench.run(mask);
            (old.map(|x| x & 0xffff_ffff), bench.get::<u32>("%r0").map(u64::from))
        };
        for lane in 0..LANES {
            if mask >> lane & 1 == 0 {
                assert_eq!(after[lane], before[lane], "{text}: lane {lane} was not to be written");
                continue;
            }
            let (have, want) = (after[lane] & part, expect(sources[lane]) & part);
            assert_eq!(have, want, "{text} of {:#x?}: {have:#x}, not {want:#x}", sources[lane]);
        }
    }
}

/// The instruction is refused, for a reason that has the words.
pub(super) fn refused(text: &str, words: &str) {
    match Bench::new(&format!("{text};")) {
        Ok(_) => panic!("{text} is taken"),
        Err(reason) => assert!(reason.contains(words), "{text}: {reason}"),
    }
}

/// The low bits as a number, with or without a sign.
pub(super) fn number(x: u64, bits: u32, signed: bool) -> i128 {
    let cut = u128::from(x) << (128 - bits);
    if signed { cut as i128 >> (128 - bits) } else { (cut >> (128 - bits)) as i128 }
}
