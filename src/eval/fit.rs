//! Training of heads and of whole networks.

use super::config::FitConfig;
use super::place::{Place, Trained};
use super::progress::Watch;
use crate::base::Philox;
use crate::error::{Error, Result};
use crate::nn::{Ctx, ParamStore};
use crate::tape::Var;

/// Images of one step.
pub(super) struct Batch {
    /// Positions in the list of training images.
    pub at: Vec<usize>,
    /// Random numbers for augmentation.
    pub rng: Philox,
}

impl Batch {
    /// Which images are mirrored: each with probability 1/2 if `flip`.
    pub fn mirrored(&self, flip: bool) -> Vec<bool> {
        let mut draws = self.rng.fold_str("flip").sequence();
        self.at.iter().map(|_| flip && draws.next_u32() >> 31 == 1).collect()
    }
}

/// Trains the trainable parameters of `store` on `images` images, whose order is shuffled anew in every pass; images that do
/// not fill a batch at its end wait for the next one. `loss` gives the loss of a batch.
pub(super) fn fit(
    store: &mut ParamStore,
    config: &FitConfig,
    images: usize,
    (seed, place): (u64, &Place),
    watch: &mut Watch<'_>,
    loss: &mut dyn for<'a> FnMut(&mut Ctx<'a>, &Batch) -> Result<Var>,
) -> Result<()> {
    if images == 0 {
        return Err(Error::data("there are no labelled images to train on"));
    }
    let rng = Philox::new(seed).fold_str("fit");
    let batch = config.batch.min(images);
    let per_epoch = images / batch;
    let total = config.length.steps(per_epoch as u64);
    let schedule = config.schedule.build(config.lr.resolve(batch)?, total, per_epoch as u64)?;
    let mut trained = Trained::new(store, &config.optimizer, place)?;
    let mut order: Vec<usize> = (0..images).collect();
    for step in 0..total {
        watch.tick(step as usize, total as usize)?;
        let at = (step % per_epoch as u64) as usize;
        if at == 0 {
            rng.fold_str("order").fold(step).sequence().shuffle(&mut order);
        }
        let step_rng = rng.fold(step);
        let part = Batch { at: order[at * batch..][..batch].to_vec(), rng: step_rng };
        let mut ctx = Ctx::training(trained.store(), step_rng.fold_str("network"));
        let value = loss(&mut ctx, &part)?;
        let grads = ctx.backward(&value)?;
        trained.update(grads, value.tensor(), schedule.lr_at(step))?;
    }
    trained.finish()?;
    watch.tick(total as usize, total as usize)
}

#[cfg(test)]
mod tests {
    use super::super::progress::tests::watching;
    use super::*;
    use crate::nn::Linear;
    use crate::ops::cross_entropy::CrossEntropy;
    use crate::optim::{LrConfig, OptimizerConfig, ScheduleConfig, SgdConfig, Span};
    use crate::tensor::Tensor;

    /// Two classes that one feature tells apart are learnt; the order visits every image, and a run repeats bit by bit.
    #[test]
    fn learns_visits_and_repeats() {
        let config = FitConfig {
            optimizer: OptimizerConfig::Sgd(SgdConfig::default()),
            lr: LrConfig::Value(0.5),
            schedule: ScheduleConfig::Constant { warmup: Span::Steps(0), warmup_lr_init: 0.0 },
            batch: 3,
            length: Span::Epochs(9.0),
        };
        let run = |seed: u64| {
            let mut store = ParamStore::new();
            let linear = Linear::new(&mut store.builder(), 1, 2);
            store.init(0).unwrap();
            let (mut seen, mut last) = ([0; 10], f32::NAN);
            let mut loss = |ctx: &mut Ctx<'_>, b: &Batch| {
                b.at.iter().for_each(|&i| seen[i] += 1);
                let x: Vec<f32> = b.at.iter().map(|&i| i as f32 - 4.5).collect();
                let y: Vec<i64> = b.at.iter().map(|&i| i64::from(i > 4)).collect();
                let x = ctx.constant(Tensor::from_vec([x.len(), 1], x)?);
                let y = ctx.constant(Tensor::from_vec([y.len()], y)?);
                let z = linear.forward(ctx, &x)?;
                let value = ctx.apply(CrossEntropy::hard(), &[&z, &y])?;
                last = value.tensor().item()?;
                Ok(value)
            };
            watching(|w| fit(&mut store, &config, 10, (seed, &Place::default()), w, &mut loss)).unwrap();
            let weights = store.get(store.find("weight").unwrap()).value().f32s().unwrap().to_vec();
            (seen, last, weights)
        };
        let (seen, last, weights) = run(1);
        assert!(last < 0.1, "{last}");
        // 27 steps of 3 images in passes of 9 of 10 images.
        assert_eq!(seen.iter().sum::<i32>(), 81);
        assert!(seen.iter().all(|n| (5..=9).contains(n)), "{seen:?}");
        assert_eq!(weights, run(1).2);
        assert_ne!(weights, run(2).2);
    }
}
