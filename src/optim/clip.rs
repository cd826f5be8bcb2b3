//! Gradient-norm clipping over all parameters.

use super::kernel;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// The L2 norm of all gradients together, summed in f64.
///
/// # Errors
/// A gradient that is not f32 on the CPU.
pub fn grad_norm(grads: &[&Tensor]) -> Result<f64> {
    let squares: Vec<f64> =
        grads.par_iter().map(|g| g.f32s().map(kernel::sum_squares)).collect::<Result<_>>()?;
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// Checks a norm to clip to.
pub(super) fn check_max_norm(max_norm: f64) -> Result<()> {
    if max_norm > 0.0 {
        return Ok(());
    }
    Err(Error::usage(format!("{max_norm} is no gradient norm to clip to"))
        .with_op("clip_grad_norm")
        .with_remedy("choose a positive number, or turn clipping off"))
}

/// Scales all gradients by one factor so that their common L2 norm is at most `max_norm`, and returns the norm before.
/// The factor is `max_norm / (norm + 1e-6)`, as in `torch.nn.utils.clip_grad_norm_`.
///
/// # Errors
/// `max_norm` is not positive, a gradient is not f32 on the CPU, or the norm is not finite (nothing is changed then).
pub fn clip_grad_norm(grads: &mut [&mut Tensor], max_norm: f64) -> Result<f64> {
    check_max_norm(max_norm)?;
    let norm = grad_norm(&grads.iter().map(|g| &**g).collect::<Vec<_>>())?;
    if !norm.is_finite() {
        return Err(Error::numeric(
            "clip_grad_norm",
            format!("the gradient norm is {norm}; nothing was clipped"),
        )
        .with_remedy("lower the learning rate, or look for bad input data"));
    }
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        let factor = factor as f32;
        for g in grads.iter_mut() {
            g.data_mut::<f32>()?
                .par_chunks_mut(kernel::CHUNK)
                .for_each(|c| c.iter_mut().for_each(|v| *v *= factor));
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_only_what_is_too_long() {
        let mut a = Tensor::from_vec([1], vec![3.0f32]).unwrap();
        let mut b = Tensor::from_vec([2], vec![0.0f32, 4.0]).unwrap();
        assert_eq!(clip_grad_norm(&mut [&mut a, &mut b], 10.0).unwrap(), 5.0);
        assert_eq!((a.f32s().unwrap()[0], b.f32s().unwrap()[1]), (3.0, 4.0));
        assert_eq!(clip_grad_norm(&mut [&mut a, &mut b], 1.0).unwrap(), 5.0);
        let after = grad_norm(&[&a, &b]).unwrap();
        assert!((after - 1.0).abs() <= 1e-6 && after < 1.0, "{after}");
    }

    #[test]
    fn refuses_nonsense() {
        let mut a = Tensor::from_vec([2], vec![1.0f32, f32::NAN]).unwrap();
        assert!(clip_grad_norm(&mut [&mut a], 1.0).unwrap_err().is_numeric());
        let mut b = Tensor::zeros([2]);
        assert!(clip_grad_norm(&mut [&mut b], 0.0).unwrap_err().is_usage());
        assert!(clip_grad_norm(&mut [&mut b], f64::NAN).unwrap_err().is_usage());
        assert_eq!(clip_grad_norm(&mut [], 1.0).unwrap(), 0.0);
    }
}
