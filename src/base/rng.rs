//! Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). A number depends only on key and position, so any thread, on any device, can make any part of a stream:
//! the CPU and the kernels produce the same words.

/// A random stream: a 64-bit key, addressed by a 64-bit block index and a 64-bit stream number.
///
/// [`Philox::fold`] derives an independent stream, so that every use (weight init, noise of step 17, flip of image 3)
/// has its own numbers whatever else was drawn before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn philox4x32_10(mut ctr: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(ctr[0]);
        let p1 = u64::from(M1) * u64::from(ctr[2]);
        ctr =
            [(p1 >> 32) as u32 ^ ctr[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ ctr[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
    }
    ctr
}

/// Maps 32 random bits to the open interval (0, 1) with 24 bits, so that neither 0 nor 1 can occur.
fn unit(bits: u32) -> f32 {
    ((bits >> 8) as f32 + 0.5) * (1.0 / (1 << 24) as f32)
}

impl Philox {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Philox { key: split(seed), stream: [0; 2] }
    }

    /// An independent stream derived from this one and `data` (a step, an image index, a purpose).
    pub fn fold(self, data: u64) -> Self {
        let d = split(data);
        // The high counter words differ from those of any block drawn from `self` with a small stream number.
        let b = philox4x32_10([d[0], d[1], self.stream[0] ^ 0x5EED_F01D, self.stream[1]], self.key);
        Philox { key: [b[0], b[1]], stream: [b[2], b[3]] }
    }

    /// An independent stream derived from a name, e.g. a parameter's path (FNV-1a of its bytes).
    pub fn fold_str(self, name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        self.fold(hash)
    }

    /// What names the stream: the key, then the stream number, two words each. What kernels are given.
    pub fn words(&self) -> [u32; 4] {
        [self.key[0], self.key[1], self.stream[0], self.stream[1]]
    }

    /// The `index`-th block of four 32-bit words.
    pub fn block(&self, index: u64) -> [u32; 4] {
        let i = split(index);
        philox4x32_10([i[0], i[1], self.stream[0], self.stream[1]], self.key)
    }

    /// Element `index` of the stream as a uniform number in (0, 1).
    pub fn uniform_at(&self, index: u64) -> f32 {
        unit(self.block(index / 4)[(index % 4) as usize])
    }

    /// Fills `out` with the uniform numbers in (0, 1) at positions `0..out.len()`.
    pub fn fill_uniform(&self, out: &mut [f32]) {
        for (i, four) in out.chunks_mut(4).enumerate() {
            for (o, w) in four.iter_mut().zip(self.block(i as u64)) {
                *o = unit(w);
            }
        }
    }

    /// Fills `out` with standard normal numbers: Box-Muller on each pair of a block, in f32.
    pub fn fill_normal(&self, out: &mut [f32]) {
        self.fill_normal_at(0, out);
    }

    /// Like [`Philox::fill_normal`], but starting at block `first_block`: element `i` of `out` is element
    /// `4 * first_block + i` of the stream. Threads fill disjoint parts of one stream with it.
    pub fn fill_normal_at(&self, first_block: u64, out: &mut [f32]) {
        for (i, four) in out.chunks_mut(4).enumerate() {
            let b = self.block(first_block + i as u64);
            let pair = |u: u32, v: u32| {
                let r = (-2.0 * unit(u).ln()).sqrt();
                let (s, c) = (std::f32::consts::TAU * unit(v)).sin_cos();
                [r * c, r * s]
            };
            let ([a, b0], [c, d]) = (pair(b[0], b[1]), pair(b[2], b[3]));
            for (o, z) in four.iter_mut().zip([a, b0, c, d]) {
                *o = z;
            }
        }
    }

    /// Numbers one after another, for code that draws an unknown number of them (shuffles, rejection).
    pub fn sequence(self) -> Sequence {
        Sequence { philox: self, next: 0 }
    }
}

/// Draws from a [`Philox`] stream one after another.
#[derive(Clone, Debug)]
pub struct Sequence {
    philox: Philox,
    next: u64,
}

impl Sequence {
    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let w = self.philox.block(self.next / 4)[(self.next % 4) as usize];
        self.next += 1;
        w
    }

    /// The next uniform number in (0, 1).
    pub fn uniform(&mut self) -> f32 {
        unit(self.next_u32())
    }

    /// The next standard normal number (Box-Muller; two uniforms each).
    pub fn normal(&mut self) -> f32 {
        let r = (-2.0 * self.uniform().ln()).sqrt();
        r * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// A uniform integer in `0..n` without modulo bias (Lemire's method). `n` must be positive.
    pub fn below(&mut self, n: u32) -> u32 {
        assert!(n > 0, "below(0) has no value");
        let threshold = n.wrapping_neg() % n;
        loop {
            let p = u64::from(self.next_u32()) * u64::from(n);
            if p as u32 >= threshold {
                return (p >> 32) as u32;
            }
        }
    }

    /// Shuffles a slice (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32_10([0xffff_ffff; 4], [0xffff_ffff; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn normal_moments_and_parts() {
        let p = Philox::new(7).fold(3);
        let mut z = vec![0.0; 40_000];
        p.fill_normal(&mut z);
        let mean = z.iter().sum::<f32>() / z.len() as f32;
        let var = z.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / z.len() as f32;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "{mean} {var}");
        let mut part = vec![0.0; 10];
        p.fill_normal_at(5, &mut part);
        assert_eq!(part, z[20..30]);
    }

    #[test]
    fn folds_differ_and_repeat() {
        let p = Philox::new(1);
        assert_eq!(p.fold(2).block(0), Philox::new(1).fold(2).block(0));
        assert_ne!(p.fold(2).block(0), p.fold(3).block(0));
        assert_ne!(p.fold_str("a").block(0), p.fold_str("b").block(0));
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut v: Vec<u32> = (0..100).collect();
        Philox::new(9).sequence().shuffle(&mut v);
        let mut s = v.clone();
        s.sort_unstable();
        assert_eq!(s, (0..100).collect::<Vec<_>>());
        assert_ne!(v, s);
    }
}
