//! Deterministic encoding with the reversed DDIM update (Song et al., "Denoising diffusion implicit models", 2021).

use super::Schedule;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Elements per task; the work is elementwise, so the number does not show in results.
const CHUNK: usize = 1 << 14;

/// The frozen network: `(x, t) -> eps`, with `x` `[N, H, W, C]` and `t` the index that the network was trained with.
/// The output has C channels, or 2 C where the network also learned the variance; the first C are the noise.
pub type EpsModel<'a> = dyn FnMut(&Tensor, usize) -> Result<Tensor> + 'a;

/// The result of one step of deterministic encoding.
#[derive(Clone, Debug)]
pub struct DdimStep {
    /// The next, noisier image.
    pub sample: Tensor,
    /// The clean image that the network predicts.
    pub pred_xstart: Tensor,
}

impl Schedule {
    /// The clean image that `model_output` at step `index` implies:
    /// `sqrt(1 / abar) x - sqrt(1 / abar - 1) eps`, clamped to [-1, 1] if asked.
    ///
    /// # Errors
    /// Shapes that do not fit, an index outside the schedule.
    pub fn predict_xstart(
        &self,
        x: &Tensor,
        model_output: &Tensor,
        index: usize,
        clip: bool,
    ) -> Result<Tensor> {
        const OP: &str = "predict_xstart";
        self.check_index(OP, index)?;
        let (n, h, w, c) = x.shape().nhwc(OP)?;
        let (on, oh, ow, oc) = model_output.shape().nhwc(OP)?;
        if (on, oh, ow) != (n, h, w) || (oc != c && oc != 2 * c) {
            return Err(Error::shape(
                OP,
                format!("the network must return {c} or {} channels per pixel", 2 * c),
            )
            .with_tensor("x", x)
            .with_tensor("model output", model_output)
            .with_remedy("check that this teacher predicts noise for images of this size"));
        }
        let (recip, recipm1) =
            (self.sqrt_recip_alphas_cumprod[index], self.sqrt_recipm1_alphas_cumprod[index]);
        let (xs, out) = (x.f32s()?, model_output.f32s()?);
        let mut pred = vec![0.0f32; xs.len()];
        if c > 0 {
            let rows = xs.par_chunks(c).zip(out.par_chunks(oc));
            pred.par_chunks_mut(c).zip(rows).with_min_len(CHUNK / c + 1).for_each(|(p, (x, eps))| {
                for ((p, x), e) in p.iter_mut().zip(x).zip(eps) {
                    let v = recip * f64::from(*x) - recipm1 * f64::from(*e);
                    *p = if clip { v.clamp(-1.0, 1.0) } else { v } as f32;
                }
            });
        }
        Tensor::from_vec(x.shape(), pred)
    }

    /// The step from `x` at `index` to the next index, given the predicted clean image:
    /// `eps = (sqrt(1 / abar) x - pred) / sqrt(1 / abar - 1)`, `sqrt(abar_next) pred + sqrt(1 - abar_next) eps`.
    ///
    /// The noise is taken from the prediction, which may have been clamped, not from the network. At the last index
    /// `abar_next` is 0 and the result is the noise.
    ///
    /// # Errors
    /// Shapes that differ, an index outside the schedule.
    pub fn ddim_reverse_from(&self, x: &Tensor, pred_xstart: &Tensor, index: usize) -> Result<Tensor> {
        const OP: &str = "ddim_reverse";
        self.check_index(OP, index)?;
        if x.shape() != pred_xstart.shape() {
            return Err(Error::shape(OP, "the image and its prediction must have one shape")
                .with_tensor("x", x)
                .with_tensor("pred_xstart", pred_xstart));
        }
        let (recip, recipm1) =
            (self.sqrt_recip_alphas_cumprod[index], self.sqrt_recipm1_alphas_cumprod[index]);
        let next = self.alphas_cumprod_next[index];
        let (keep, add) = (next.sqrt(), (1.0 - next).sqrt());
        let mut out = vec![0.0f32; x.elems()];
        let inputs = x.f32s()?.par_chunks(CHUNK).zip(pred_xstart.f32s()?.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, p))| {
            for ((o, x), p) in out.iter_mut().zip(x).zip(p) {
                // In f64: at small t the difference of two close numbers is divided by a small one.
                let p = f64::from(*p);
                let eps = (recip * f64::from(*x) - p) / recipm1;
                *o = (keep * p + add * eps) as f32;
            }
        });
        Tensor::from_vec(x.shape(), out)
    }

    /// One step of deterministic encoding: from `x` at `index` to the next index.
    ///
    /// # Errors
    /// As [`Schedule::predict_xstart`].
    pub fn ddim_reverse_sample(
        &self,
        x: &Tensor,
        model_output: &Tensor,
        index: usize,
        clip_denoised: bool,
    ) -> Result<DdimStep> {
        let pred_xstart = self.predict_xstart(x, model_output, index, clip_denoised)?;
        let sample = self.ddim_reverse_from(x, &pred_xstart, index)?;
        Ok(DdimStep { sample, pred_xstart })
    }
}

/// Carries clean images `x0` through the first `steps` steps of `schedule`; the result is the input of the network at
/// index `steps` (the original index `timestep_map[steps]`). `on_step` sees every step, counted from 0.
///
/// # Errors
/// More steps than the schedule has, shapes that do not fit, or an error of `model` or `on_step`.
pub fn ddim_encode(
    schedule: &Schedule,
    x0: &Tensor,
    steps: usize,
    clip_denoised: bool,
    model: &mut EpsModel<'_>,
    on_step: &mut dyn FnMut(usize, &DdimStep) -> Result<()>,
) -> Result<Tensor> {
    x0.shape().nhwc("ddim_encode")?;
    if steps > schedule.steps() {
        return Err(Error::usage(format!("{steps} steps are more than the schedule's {}", schedule.steps()))
            .with_op("ddim_encode")
            .with_remedy("encode fewer steps or keep more of them when respacing"));
    }
    let mut x = x0.clone();
    for index in 0..steps {
        let output = model(&x, schedule.timestep_map[index])?;
        let step = schedule.ddim_reverse_sample(&x, &output, index, clip_denoised)?;
        on_step(index, &step)?;
        x = step.sample;
    }
    Ok(x)
}
