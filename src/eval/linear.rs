//! A linear classifier on pooled features.

use super::config::LinearConfig;
use super::features::Scale;
use super::fit::{Batch, fit};
use super::metrics::argmax;
use super::place::Place;
use super::progress::Watch;
use crate::error::Result;
use crate::nn::{Ctx, Init, Layout, Linear, ParamStore};
use crate::ops::cross_entropy::CrossEntropy;
use crate::tensor::Tensor;

/// Trains on `train [n, width]` with `labels` and gives the classes of `test [m, width]`.
pub(super) fn classify(
    config: &LinearConfig,
    (mut train, labels): (Vec<f32>, &[u16]),
    mut test: Vec<f32>,
    width: usize,
    classes: usize,
    (seed, place): (u64, &Place),
    watch: &mut Watch<'_>,
) -> Result<Vec<u16>> {
    if config.standardize {
        let scale = Scale::of_vectors(&train, width);
        scale.apply(&mut train);
        scale.apply(&mut test);
    }
    let mut store = ParamStore::new();
    let linear =
        Linear::with(&mut store.builder().pp("fc"), width, classes, Layout::Plain, Init::Normal(0.01), true);
    store.init(seed)?;
    let mut loss = |ctx: &mut Ctx<'_>, batch: &Batch| {
        let mut x = Vec::with_capacity(batch.at.len() * width);
        batch.at.iter().for_each(|&i| x.extend_from_slice(&train[i * width..][..width]));
        let y: Vec<i64> = batch.at.iter().map(|&i| i64::from(labels[i])).collect();
        let x = place.values(ctx, Tensor::from_vec([y.len(), width], x)?)?;
        let y = place.classes(ctx, Tensor::from_vec([y.len()], y)?)?;
        let z = linear.forward(ctx, &x)?;
        ctx.apply(CrossEntropy::hard(), &[&z, &y])
    };
    fit(&mut store, &config.fit, labels.len(), (seed, place), watch, &mut loss)?;
    let store = place.network(&store)?;
    let mut ctx = Ctx::inference(&store);
    let x = place.values(&ctx, Tensor::from_vec([test.len() / width, width], test)?)?;
    let z = linear.forward(&mut ctx, &x)?;
    Ok(argmax(place.to_host(z)?.f32s()?, classes))
}

#[cfg(test)]
mod tests {
    use super::super::config::EvalConfig;
    use super::super::progress::tests::watching;
    use super::*;
    use crate::base::Philox;

    /// Three noisy directions, one of them on a scale a thousand times larger: separated, and the same for the same seed.
    #[test]
    fn separates_classes_of_any_scale() {
        let make = |n: usize, stream: u64| {
            let mut noise = vec![0.0; 4 * n];
            Philox::new(5).fold(stream).fill_normal(&mut noise);
            let labels: Vec<u16> = (0..n).map(|i| (i % 3) as u16).collect();
            let mut x: Vec<f32> = noise.iter().map(|v| 0.3 * v).collect();
            for (row, l) in x.chunks_exact_mut(4).zip(&labels) {
                row[usize::from(*l)] += 2.0;
                row[2] *= 1000.0;
            }
            (x, labels)
        };
        let ((x, y), (tx, ty)) = (make(60, 1), make(90, 2));
        let config = EvalConfig::default().linear;
        let run = |seed| {
            watching(|w| classify(&config, (x.clone(), &y), tx.clone(), 4, 3, (seed, &Place::default()), w))
                .unwrap()
        };
        let got = run(0);
        let right = got.iter().zip(&ty).filter(|(a, b)| a == b).count();
        assert!(right >= 86, "{right} of 90");
        assert_eq!(got, run(0));
    }
}
