//! The mass of a pixel value's bin under a normal distribution.

use std::f64::consts::{FRAC_2_PI, LN_2};

/// Factor of the cube in the tanh approximation of the normal distribution.
const CUBE: f64 = 0.044_715;
/// Probabilities are at least this.
const LEAST: f64 = 1e-12;

/// Which ends the bin of a pixel value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Black: everything below belongs to it.
    Upper,
    /// White: everything above belongs to it.
    Lower,
    Both,
}

impl Ends {
    /// Those of a pixel in -1..1.
    pub(super) fn of(x: f32) -> Ends {
        match x {
            x if x < -0.999 => Ends::Upper,
            x if x > 0.999 => Ends::Lower,
            _ => Ends::Both,
        }
    }
}

/// `-log P` of the bin from `shift - half` to `shift + half` under a normal distribution of mean 0 and variance `exp(l)`, and
/// its derivative with respect to `l`.
///
/// The normal distribution is `(1 + tanh u(z)) / 2` with `u(z) = sqrt(2 / pi) (z + 0.044715 z^3)`. A difference of two tanh is
/// `sinh(u - w) / (cosh u cosh w)`, of which every factor has a logarithm without cancellation.
pub(super) fn surprise(shift: f64, half: f64, l: f64, ends: Ends) -> [f64; 2] {
    let k = FRAC_2_PI.sqrt();
    let scale = (-0.5 * l).exp();
    let (upper, lower) = ((shift + half) * scale, (shift - half) * scale);
    let u = |z: f64| k * (z + CUBE * z * z * z);
    // du/dl, as dz/dl = -z / 2.
    let du = |z: f64| -0.5 * k * (z + 3.0 * CUBE * z * z * z);
    let [log, slope] = match ends {
        Ends::Upper => log_sigmoid(2.0 * u(upper), 2.0 * du(upper)),
        Ends::Lower => log_sigmoid(-2.0 * u(lower), -2.0 * du(lower)),
        Ends::Both => {
            let (width, squares) = (2.0 * half * scale, upper * upper + upper * lower + lower * lower);
            let apart = k * width * (1.0 + CUBE * squares);
            let d_apart = -0.5 * k * width * (1.0 + 3.0 * CUBE * squares);
            let (a, b) = (u(upper), u(lower));
            let log_sinh = apart + (-(-2.0 * apart).exp_m1()).ln();
            let log_cosh = |x: f64| x.abs() + (-2.0 * x.abs()).exp().ln_1p();
            // The three halves of sinh and cosh, and that of the distribution, cancel.
            let log = log_sinh - log_cosh(a) - log_cosh(b);
            [log, d_apart / apart.tanh() - a.tanh() * du(upper) - b.tanh() * du(lower)]
        }
    };
    let least = LEAST.ln();
    if log < least { [-least, 0.0] } else { [-log, -slope] }
}

/// `log(1 / (1 + exp(-y)))` and its derivative for the derivative `dy`.
fn log_sigmoid(y: f64, dy: f64) -> [f64; 2] {
    let tail = (-y.abs()).exp();
    let log = y.min(0.0) - tail.ln_1p();
    let other = if y > 0.0 { tail / (1.0 + tail) } else { 1.0 / (1.0 + tail) };
    [log, other * dy]
}

/// Nats in bits.
pub(super) fn bits(nats: f64) -> f64 {
    nats / LN_2
}
