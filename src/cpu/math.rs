//! Elementary functions in f32 that LLVM turns into vector code: polynomials without branches, calls or fused
//! multiply-adds, so that every instruction set gives the same bits. NaN stays NaN.

use std::f32::consts::LOG2_E;

/// Adding and subtracting it rounds a small f32 to the nearest integer, which then sits in the lowest bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` with a relative error below 2e-7; 0 and infinity where f32 ends.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-104.0, 89.0);
    let t = x * LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Minimax polynomial of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2.
    let p = 1.381_467_8e-3;
    let p = p * r + 8.368_716e-3;
    let p = p * r + 4.166_838_7e-2;
    let p = p * r + 0.166_665_2;
    let p = p * r + 0.499_999_93;
    let p = p * (r * r) + r + 1.0;
    // 2^n as a product of two powers, since n itself may lie outside the exponents of normal numbers.
    let n = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The standard normal distribution at `x`: the cumulative probability (absolute error below 1.5e-7; relative error
/// below 2e-5 in the lower tail) and the density.
///
/// `P(-|x|) = density(x) * sqrt(2 pi) * g(|x|)` where `g` is half the scaled complementary error function of
/// `x / sqrt 2`, here a polynomial in `1 / (1 + 0.24 |x|)` fitted to it.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.24 * x.abs());
    let g = -4.930_252e-2;
    let g = g * t + 0.137_752_54;
    let g = g * t - 4.107_118_8e-2;
    let g = g * t + 9.775_746_6e-2;
    let g = g * t + 7.269_934e-2;
    let g = g * t + 9.066_461e-2;
    let g = g * t + 9.575_42e-2;
    let g = g * t + 9.574_552e-2;
    let tail = bell * (g * t);
    (if x > 0.0 { 1.0 - tail } else { tail }, bell * INV_SQRT_TAU)
}

/// `max(x, 0)` that keeps NaN, so that a diverging run shows.
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(lo: f64, hi: f64, n: usize) -> impl Iterator<Item = f32> {
        (0..=n).map(move |i| (lo + (hi - lo) * i as f64 / n as f64) as f32)
    }

    #[test]
    fn exp_is_accurate_everywhere() {
        for x in grid(-87.0, 88.7, 200_001).chain(grid(-1.0, 1.0, 100_001)) {
            let want = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error <= 2e-7, "exp({x}) = {} is off by {error:.1e}", exp(x));
        }
        for x in grid(-104.0, -87.0, 10_001) {
            let error = (f64::from(exp(x)) - libm::exp(f64::from(x))).abs();
            assert!(error <= 1e-44 + 2e-7 * libm::exp(f64::from(x)), "exp({x}) = {:e}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-200.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp(90.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_accurate_everywhere() {
        for x in grid(-85.0, 85.0, 100_003) {
            let want = 1.0 / (1.0 + libm::exp(-f64::from(x)));
            let error = (f64::from(sigmoid(x)) - want).abs() / want;
            assert!(error <= 4e-7, "sigmoid({x}) is off by {error:.1e}");
        }
        assert_eq!((sigmoid(-1e30), sigmoid(1e30), sigmoid(0.0)), (0.0, 1.0, 0.5));
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn normal_matches_erfc() {
        for x in grid(-30.0, 30.0, 300_007).chain(grid(-1.0, 1.0, 10_001)) {
            let z = f64::from(x);
            let want = 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2);
            let (p, d) = normal(x);
            let error = (f64::from(p) - want).abs();
            assert!(error <= 1.5e-7, "P({x}) = {p} is off by {error:.1e}");
            assert!(z < -8.0 || error <= 2e-5 * want, "P({x}) = {p:e}, not {want:e}");
            let density = (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(d) - density).abs() <= 1e-7, "density({x}) = {d}");
        }
        assert_eq!((normal(f32::INFINITY), normal(f32::NEG_INFINITY)), ((1.0, 0.0), (0.0, 0.0)));
        assert!(normal(f32::NAN).0.is_nan() && normal(f32::NAN).1.is_nan());
    }

    #[test]
    fn relu_keeps_nan() {
        assert_eq!((relu(-1.0), relu(2.0)), (0.0, 2.0));
        assert!(relu(f32::NAN).is_nan());
    }
}
