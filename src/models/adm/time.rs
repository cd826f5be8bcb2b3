//! The time condition: computed for every sample, or folded once for a fixed time step.

use super::AdmConfig;
use crate::error::{Error, Result};
use crate::tape::Var;
use crate::tensor::{Device, Tensor};

/// Slowest wavelength of the embedding, divided by 2 pi.
const MAX_PERIOD: f64 = 10_000.0;

/// At which time the network is evaluated.
#[derive(Clone, Copy, Debug)]
pub enum Time<'t> {
    /// Time steps as the network was trained on (indices 0..1000 for the released models): one per sample, or a
    /// single one for all.
    Steps(&'t [f32]),
    /// The [`timestep_embedding`] `[N, model_channels]` of one time step per sample, where the network computes: on a device
    /// of its operands' type. What a captured graph reads anew in every step.
    Embedded(&'t Var),
    /// A time step, and perhaps a label, that was folded into the norms by [`super::AdmUnet::fold_time`].
    Folded(&'t FoldedTime),
}

/// The sinusoidal embedding `[N, dim]` of time steps: cosines first, then sines, of `t * exp(-ln(10000) i / half)`.
/// An odd `dim` ends in a zero.
///
/// Angles are rounded to f32 as in guided-diffusion, where at large `t` the rounding shows: the embedding has to be
/// the one the network was trained on, not a more exact one.
pub fn timestep_embedding(steps: &[f32], dim: usize) -> Tensor {
    let half = dim / 2;
    let frequency = |i: usize| {
        let exponent = -MAX_PERIOD.ln() as f32 * i as f32 / half as f32;
        libm::exp(f64::from(exponent)) as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut values = vec![0.0; steps.len() * dim];
    if half > 0 {
        for (row, t) in values.chunks_exact_mut(dim).zip(steps) {
            let (cosines, sines) = row.split_at_mut(half);
            for ((c, s), f) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let angle = f64::from(t * f);
                (*c, *s) = (libm::cos(angle) as f32, libm::sin(angle) as f32);
            }
        }
    }
    Tensor::from_vec([steps.len(), dim], values).expect("one row per step")
}

/// What a fixed time step (and label) amounts to in every ResBlock. It replaces the time embedding and the linear
/// layers behind it, which for a frozen teacher at a fixed time are constants.
#[derive(Clone, Debug)]
pub struct FoldedTime {
    pub(super) config: AdmConfig,
    pub(super) step: f32,
    pub(super) label: Option<usize>,
    pub(super) blocks: Vec<FoldedBlock>,
}

impl FoldedTime {
    /// The time step.
    pub fn step(&self) -> f32 {
        self.step
    }

    /// The label, if the network is class-conditional.
    pub fn label(&self) -> Option<usize> {
        self.label
    }
}

/// The time condition of one ResBlock.
#[derive(Clone, Debug)]
pub(super) enum FoldedBlock {
    /// Weight and bias of the second norm, with scale and shift folded in.
    Norm { weight: Tensor, bias: Tensor },
    /// Bias of the first convolution, with the embedding added.
    Bias(Tensor),
}

impl FoldedBlock {
    /// `gamma (1 + scale)` and `beta (1 + scale) + shift`, where `scale_shift` holds scale, then shift.
    pub(super) fn norm(gamma: &Tensor, beta: &Tensor, scale_shift: &Tensor) -> Result<Self> {
        if gamma.device() == Device::Meta {
            return Ok(FoldedBlock::Norm { weight: gamma.clone(), bias: beta.clone() });
        }
        let (scale, shift) = scale_shift.f32s()?.split_at(gamma.elems());
        let fold = |v: &Tensor, shift: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let at = |(i, &v): (usize, &f32)| (f64::from(v) * (1.0 + f64::from(scale[i])) + shift(i)) as f32;
            Tensor::from_vec(v.shape(), v.f32s()?.iter().enumerate().map(at).collect())
        };
        Ok(FoldedBlock::Norm { weight: fold(gamma, &|_| 0.0)?, bias: fold(beta, &|i| f64::from(shift[i]))? })
    }

    /// `bias + embedding`.
    pub(super) fn bias(bias: &Tensor, embedding: &Tensor) -> Result<Self> {
        if bias.device() == Device::Meta {
            return Ok(FoldedBlock::Bias(bias.clone()));
        }
        let sum = bias.f32s()?.iter().zip(embedding.f32s()?).map(|(b, e)| b + e).collect();
        Ok(FoldedBlock::Bias(Tensor::from_vec(bias.shape(), sum)?))
    }
}

/// The embedding of `steps` for a batch of `n`, repeated if there is a single step.
pub(super) fn embed_batch(steps: &[f32], n: usize, dim: usize) -> Result<Tensor> {
    if let Some(t) = steps.iter().find(|t| !t.is_finite()) {
        return Err(Error::usage(format!("time step {t} is not finite")));
    }
    match steps {
        [t] => Ok(timestep_embedding(&vec![*t; n], dim)),
        _ if steps.len() == n => Ok(timestep_embedding(steps, dim)),
        _ => Err(Error::shape("adm", format!("{} time steps for {n} samples", steps.len()))
            .with_remedy("give one time step per sample, or a single one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedding_has_the_recorded_values() {
        let t = timestep_embedding(&[150.0], 256);
        let v = t.f32s().unwrap();
        let cos: [(usize, f64); 5] =
            [(0, 0.69925081), (1, 0.21341283), (2, -0.46306184), (64, 0.0707372), (127, 0.99987009)];
        let sin: [(usize, f64); 5] =
            [(0, -0.71487643), (1, 0.97696211), (2, -0.88632598), (64, 0.99749499), (127, 0.01611842)];
        // Computed without rounding the angle, which is off by up to half a unit in the last place of 150.
        for (i, want) in cos.into_iter().chain(sin.map(|(i, s)| (i + 128, s))) {
            assert!((f64::from(v[i]) - want).abs() <= 1.2e-5, "{i}: {} {want}", v[i]);
        }
        let odd = timestep_embedding(&[3.0, 4.0], 5);
        assert_eq!((&*odd.shape(), odd.f32s().unwrap()[4], odd.f32s().unwrap()[9]), (&[2, 5][..], 0.0, 0.0));
        assert_eq!(odd.f32s().unwrap()[0], 3f32.cos());
    }

    #[test]
    fn angles_are_rounded_as_in_the_original() {
        // Values that guided-diffusion computes for t = 777 and 32 channels; with exact angles cosine 2 is 0.7870727.
        let t = timestep_embedding(&[777.0], 32);
        let v = t.f32s().unwrap();
        let want: [(usize, f64); 4] = [
            (2, 0.7870758771896362),
            (5, 0.9587056040763855),
            (18, 0.6168562173843384),
            (20, 0.7445225715637207),
        ];
        for (i, want) in want {
            assert!((f64::from(v[i]) - want).abs() <= 2e-7, "{i}: {} {want}", v[i]);
        }
    }

    #[test]
    fn steps_must_fit_the_batch() {
        assert_eq!(&*embed_batch(&[1.0], 3, 4).unwrap().shape(), &[3, 4]);
        assert_eq!(&*embed_batch(&[1.0, 2.0], 2, 4).unwrap().shape(), &[2, 4]);
        assert!(embed_batch(&[1.0, 2.0], 3, 4).unwrap_err().is_shape());
        assert!(embed_batch(&[f32::NAN], 3, 4).unwrap_err().is_usage());
    }
}
