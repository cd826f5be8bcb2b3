//! Exponential moving average of weights.

use super::state::{buffer, step_tensor, step_value, unfit};
use super::{check_range, kernel};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hyper-parameters of [`Ema`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// Share of the average that stays at every update.
    pub decay: f64,
    /// Cap the decay of update n (from 0) at `(1 + n) / (10 + n)`, so that early weights are forgotten.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        EmaConfig { decay: 0.9999, warmup: false }
    }
}

impl EmaConfig {
    /// The decay of the update behind `updates` others.
    pub fn decay_at(&self, updates: u64) -> f64 {
        let n = updates as f64;
        if self.warmup { self.decay.min((1.0 + n) / (10.0 + n)) } else { self.decay }
    }
}

/// The average of named tensors: `average += (1 - decay) (value - average)`.
///
/// Tensors that are not f32 (integer counters) are copied, not averaged.
pub struct Ema {
    config: EmaConfig,
    updates: u64,
    average: BTreeMap<String, Tensor>,
}

impl Ema {
    /// An average that starts at `values`.
    ///
    /// # Errors
    /// A decay outside [0, 1).
    pub fn new<'a>(
        config: EmaConfig,
        values: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    ) -> Result<Self> {
        check_range("decay", config.decay, 1.0)?;
        let average = values.into_iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        Ok(Ema { config, updates: 0, average })
    }

    /// The decay that the next update uses.
    pub fn next_decay(&self) -> f64 {
        self.config.decay_at(self.updates)
    }

    /// Moves the average towards `values`, which must name every averaged tensor.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor; nothing is changed then.
    pub fn update<'a>(&mut self, values: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
        let values: BTreeMap<&str, &Tensor> = values.into_iter().collect();
        for (name, average) in &self.average {
            let fits = |v: &&&Tensor| v.shape() == average.shape() && v.dtype() == average.dtype();
            let value = values.get(name.as_str()).filter(fits);
            value.ok_or_else(|| {
                Error::shape("ema", "the tensor is missing or has another shape or dtype than the average")
                    .with_key(name)
                    .with_tensor("average", average)
            })?;
            if average.dtype() == DType::F32 {
                average.f32s()?;
            }
        }
        if let Some(name) = values.keys().find(|n| !self.average.contains_key(**n)) {
            return Err(Error::usage("the average does not hold this tensor").with_op("ema").with_key(*name));
        }
        let rate = (1.0 - self.next_decay()) as f32;
        for (name, average) in &mut self.average {
            let value = values[name.as_str()];
            if average.dtype() != DType::F32 {
                *average = value.clone();
                continue;
            }
            let value = value.f32s()?.par_chunks(kernel::CHUNK);
            average.data_mut::<f32>()?.par_chunks_mut(kernel::CHUNK).zip(value).for_each(|(a, v)| {
                a.iter_mut().zip(v).for_each(|(a, v)| *a += (v - *a) * rate);
            });
        }
        self.updates += 1;
        Ok(())
    }

    /// The averaged tensors by name.
    pub fn average(&self) -> &BTreeMap<String, Tensor> {
        &self.average
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The state as tensors: `average.<name>`, and the number of updates as `step` (i64 scalar).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut out: BTreeMap<_, _> =
            self.average.iter().map(|(n, t)| (format!("average.{n}"), t.clone())).collect();
        out.insert("step".into(), step_tensor(self.updates));
        out
    }

    /// Replaces the average by one that [`Ema::state`] returned.
    ///
    /// # Errors
    /// [`Error::checkpoint`] naming the key that is missing, unexpected or misshapen; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let updates = step_value(state)?;
        let mut average = BTreeMap::new();
        for (name, old) in &self.average {
            let key = format!("average.{name}");
            let new = match (old.dtype(), state.get(&key)) {
                (DType::F32, _) => buffer(state, &key, old.shape())?,
                (d, Some(t)) if t.dtype() == d && t.shape() == old.shape() => t,
                (d, _) => return Err(unfit(format!("the average asks for {d} {}", old.shape()), &key)),
            };
            average.insert(name.clone(), new.clone());
        }
        let known =
            |k: &str| k == "step" || k.strip_prefix("average.").is_some_and(|n| average.contains_key(n));
        if let Some(key) = state.keys().find(|k| !known(k)) {
            return Err(unfit("the saved average has a tensor that the model lacks", key));
        }
        (self.updates, self.average) = (updates, average);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(v: f32) -> Tensor {
        Tensor::full([2], v)
    }

    #[test]
    fn averages_and_resumes() {
        let (zero, one) = (t(0.0), t(1.0));
        let count = Tensor::from_vec([1], vec![3i64]).unwrap();
        let mut ema =
            Ema::new(EmaConfig { decay: 0.75, warmup: false }, [("w", &zero), ("n", &zero)]).unwrap();
        ema.update([("w", &one), ("n", &one)]).unwrap();
        ema.update([("w", &one), ("n", &one)]).unwrap();
        assert_eq!(ema.average()["w"].f32s().unwrap(), [0.4375; 2]);
        let mut other =
            Ema::new(EmaConfig { decay: 0.75, warmup: false }, [("w", &one), ("n", &one)]).unwrap();
        other.load_state(&ema.state()).unwrap();
        assert_eq!((other.updates(), other.average()["w"].f32s().unwrap()), (2, &[0.4375f32; 2][..]));

        let mut ints = Ema::new(EmaConfig::default(), [("n", &count)]).unwrap();
        let next = Tensor::from_vec([1], vec![9i64]).unwrap();
        ints.update([("n", &next)]).unwrap();
        assert_eq!(ints.average()["n"].data::<i64>().unwrap(), [9]);
    }

    #[test]
    fn warmup_caps_the_decay() {
        let mut ema = Ema::new(EmaConfig { decay: 0.5, warmup: true }, [("w", &t(0.0))]).unwrap();
        assert_eq!(ema.next_decay(), 0.1);
        ema.update([("w", &t(1.0))]).unwrap();
        assert_eq!((ema.next_decay(), ema.average()["w"].f32s().unwrap()[0]), (2.0 / 11.0, 0.9));
        (0..20).for_each(|_| ema.update([("w", &t(1.0))]).unwrap());
        assert_eq!(ema.next_decay(), 0.5);
    }

    #[test]
    fn wrong_uses_are_errors() {
        assert!(Ema::new(EmaConfig { decay: 1.0, warmup: false }, []).err().unwrap().is_usage());
        let mut ema = Ema::new(EmaConfig::default(), [("w", &t(0.0))]).unwrap();
        assert!(ema.update([]).unwrap_err().is_shape());
        assert!(ema.update([("w", &Tensor::zeros([3]))]).unwrap_err().is_shape());
        assert!(ema.update([("w", &t(1.0)), ("x", &t(1.0))]).unwrap_err().is_usage());
        assert_eq!(ema.load_state(&BTreeMap::new()).unwrap_err().key(), Some("step"));
        let mut state = ema.state();
        state.insert("average.w".into(), Tensor::zeros([3]));
        assert_eq!(ema.load_state(&state).unwrap_err().key(), Some("average.w"));
    }
}
