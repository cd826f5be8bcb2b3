//! Learning-rate schedules. One step is one update of the parameters.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The learning rate per 256 samples that the main text of the DreamTeacher paper and SparK's recipe start from.
pub const SCALED_BASE_LR: f64 = 2e-4;

/// The linear scaling rule: `base_lr * batch / 256`.
pub fn scaled_lr(base_lr: f64, batch: usize) -> f64 {
    base_lr * batch as f64 / 256.0
}

/// A peak learning rate: a number, `"scaled"` ([`SCALED_BASE_LR`]` * batch / 256`) or `{ per_256 = x }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a learning rate: a number, \"scaled\" or { per_256 = number }"
)]
pub enum LrConfig {
    /// This learning rate, whatever the batch.
    Value(f64),
    /// The linear scaling rule with its usual base.
    Scaled(ScaledWord),
    /// The linear scaling rule with another base.
    Per256 {
        /// Learning rate of a batch of 256.
        per_256: f64,
    },
}

/// The word `"scaled"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaledWord {
    /// See [`LrConfig`].
    Scaled,
}

impl LrConfig {
    /// The learning rate for a batch of `batch` samples (all devices together).
    ///
    /// # Errors
    /// It is negative or not finite.
    pub fn resolve(&self, batch: usize) -> Result<f64> {
        let lr = match *self {
            LrConfig::Value(v) => v,
            LrConfig::Scaled(ScaledWord::Scaled) => scaled_lr(SCALED_BASE_LR, batch),
            LrConfig::Per256 { per_256 } => scaled_lr(per_256, batch),
        };
        check_lr("lr", lr)?;
        Ok(lr)
    }
}

/// A length of training: a number of steps, or in a recipe also `"30 epochs"` or `"500 steps"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SpanText", into = "SpanText")]
pub enum Span {
    /// Updates of the parameters.
    Steps(u64),
    /// Passes over the data; fractions are allowed.
    Epochs(f64),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "a length: a number of steps, \"30 epochs\" or \"500 steps\"")]
enum SpanText {
    Steps(u64),
    Text(String),
}

impl TryFrom<SpanText> for Span {
    type Error = Error;
    fn try_from(text: SpanText) -> Result<Self> {
        let text = match text {
            SpanText::Steps(n) => return Ok(Span::Steps(n)),
            SpanText::Text(t) => t,
        };
        let parsed = text.trim().split_once(' ').and_then(|(number, unit)| match unit.trim() {
            "step" | "steps" => number.parse().ok().map(Span::Steps),
            "epoch" | "epochs" => {
                number.parse().ok().filter(|e: &f64| e.is_finite() && *e >= 0.0).map(Span::Epochs)
            }
            _ => None,
        });
        parsed.ok_or_else(|| {
            Error::usage(format!("\"{text}\" is no length of training"))
                .with_remedy("write a number of steps, \"30 epochs\" or \"500 steps\"")
        })
    }
}

impl From<Span> for SpanText {
    fn from(span: Span) -> Self {
        match span {
            Span::Steps(n) => SpanText::Steps(n),
            Span::Epochs(e) => SpanText::Text(format!("{e} epochs")),
        }
    }
}

impl Span {
    /// The length in steps, rounded to the nearest one.
    pub fn steps(self, steps_per_epoch: u64) -> u64 {
        match self {
            Span::Steps(n) => n,
            Span::Epochs(e) => (e * steps_per_epoch as f64).round() as u64,
        }
    }
}

/// Which schedule, with its parameters. In a recipe the field `name` selects it. Rates named `*_lr*`, `lr_*` and
/// `eta_*` are absolute, factors multiply the peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// The peak, after an optional linear warm-up.
    Constant {
        /// Length of the warm-up.
        #[serde(default = "none")]
        warmup: Span,
        /// Where the warm-up starts.
        #[serde(default)]
        warmup_lr_init: f64,
    },
    /// timm's `CosineLRScheduler`, one cycle: during the warm-up `w0 + t (peak - w0) / warmup`, then
    /// `lr_min + (peak - lr_min) (1 + cos(pi u / T)) / 2`.
    Cosine {
        /// Length of the warm-up.
        #[serde(default = "none")]
        warmup: Span,
        /// Where the warm-up starts (`w0`).
        #[serde(default)]
        warmup_lr_init: f64,
        /// Where the cosine ends.
        #[serde(default)]
        lr_min: f64,
        /// Begin the cosine after the warm-up: `u = t - warmup`, `T = total - warmup`. Otherwise the warm-up replaces
        /// the cosine's beginning: `u = t`, `T = total`.
        #[serde(default)]
        warmup_prefix: bool,
    },
    /// SparK's: linear from `start_factor` to 1 times the peak, then cosine to `end_factor` times the peak, which the
    /// last step reaches.
    Spark {
        /// Length of the warm-up.
        #[serde(default = "none")]
        warmup: Span,
        /// First factor of the warm-up.
        #[serde(default = "spark_start")]
        start_factor: f64,
        /// Factor of the last step.
        #[serde(default = "spark_end")]
        end_factor: f64,
    },
    /// After the warm-up `eta_min + (peak - eta_min) (1 - u / T)^power`, with `u = t - warmup`, `T = total - warmup`.
    Polynomial {
        /// Length of the warm-up.
        #[serde(default = "none")]
        warmup: Span,
        /// Where the warm-up starts.
        #[serde(default)]
        warmup_lr_init: f64,
        /// Exponent.
        #[serde(default = "one")]
        power: f64,
        /// Where the schedule ends.
        #[serde(default)]
        eta_min: f64,
    },
    /// The peak, multiplied by `gamma` at every milestone.
    Step {
        /// Length of the warm-up.
        #[serde(default = "none")]
        warmup: Span,
        /// Where the warm-up starts.
        #[serde(default)]
        warmup_lr_init: f64,
        /// When to decay, counted from the beginning, in ascending order.
        milestones: Vec<Span>,
        /// Factor of each decay.
        #[serde(default = "tenth")]
        gamma: f64,
    },
}

fn none() -> Span {
    Span::Steps(0)
}
fn spark_start() -> f64 {
    0.005
}
fn spark_end() -> f64 {
    0.001
}
fn one() -> f64 {
    1.0
}
fn tenth() -> f64 {
    0.1
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig::Spark { warmup: none(), start_factor: spark_start(), end_factor: spark_end() }
    }
}

/// A schedule with all lengths known.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    total: u64,
    warmup: u64,
    warmup_from: f64,
    shape: Shape,
}

/// What follows the warm-up.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Constant,
    Cosine { lr_min: f64, prefix: bool },
    Spark { lr_min: f64 },
    Polynomial { power: f64, eta_min: f64 },
    Step { milestones: Vec<u64>, gamma: f64 },
}

fn check_lr(key: &str, lr: f64) -> Result<()> {
    super::check_range(key, lr, f64::INFINITY)
}

impl ScheduleConfig {
    /// The schedule of a run of `total_steps` steps that peaks at `peak`.
    ///
    /// # Errors
    /// A rate or factor that is negative or not finite, a warm-up longer than the run, milestones out of order.
    pub fn build(&self, peak: f64, total_steps: u64, steps_per_epoch: u64) -> Result<Schedule> {
        check_lr("lr", peak)?;
        let (warmup, warmup_from, shape) = match self {
            ScheduleConfig::Constant { warmup, warmup_lr_init } => {
                (*warmup, *warmup_lr_init, Shape::Constant)
            }
            ScheduleConfig::Cosine { warmup, warmup_lr_init, lr_min, warmup_prefix } => {
                check_lr("lr_min", *lr_min)?;
                (*warmup, *warmup_lr_init, Shape::Cosine { lr_min: *lr_min, prefix: *warmup_prefix })
            }
            ScheduleConfig::Spark { warmup, start_factor, end_factor } => {
                check_lr("start_factor", *start_factor)?;
                check_lr("end_factor", *end_factor)?;
                (*warmup, start_factor * peak, Shape::Spark { lr_min: end_factor * peak })
            }
            ScheduleConfig::Polynomial { warmup, warmup_lr_init, power, eta_min } => {
                check_lr("power", *power)?;
                check_lr("eta_min", *eta_min)?;
                (*warmup, *warmup_lr_init, Shape::Polynomial { power: *power, eta_min: *eta_min })
            }
            ScheduleConfig::Step { warmup, warmup_lr_init, milestones, gamma } => {
                check_lr("gamma", *gamma)?;
                let milestones: Vec<u64> = milestones.iter().map(|m| m.steps(steps_per_epoch)).collect();
                if !milestones.is_sorted() {
                    return Err(Error::usage(format!(
                        "the milestones {milestones:?} are not in ascending order"
                    ))
                    .with_key("milestones")
                    .with_remedy("sort them"));
                }
                (*warmup, *warmup_lr_init, Shape::Step { milestones, gamma: *gamma })
            }
        };
        check_lr("warmup_lr_init", warmup_from)?;
        let warmup = warmup.steps(steps_per_epoch);
        if warmup > total_steps {
            return Err(Error::usage(format!(
                "a warm-up of {warmup} steps is longer than the {total_steps} of the run"
            ))
            .with_key("warmup")
            .with_remedy("shorten the warm-up or train longer"));
        }
        Ok(Schedule { peak, total: total_steps, warmup, warmup_from, shape })
    }
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0. Steps past the end get the value that the schedule ends at.
    pub fn lr_at(&self, step: u64) -> f64 {
        let (peak, warmup) = (self.peak, self.warmup);
        if step < warmup {
            return self.warmup_from + step as f64 * (peak - self.warmup_from) / warmup as f64;
        }
        let past = (step - warmup) as f64;
        let after_warmup = self.total - warmup;
        let cosine = |low: f64, u: f64| low + 0.5 * (peak - low) * (1.0 + (PI * u).cos());
        match &self.shape {
            Shape::Constant => peak,
            Shape::Cosine { lr_min, prefix } => {
                let (u, t) = if *prefix { (step - warmup, after_warmup) } else { (step, self.total) };
                if u < t { cosine(*lr_min, u as f64 / t as f64) } else { *lr_min }
            }
            Shape::Spark { lr_min } => {
                // The last step, not the one after it, reaches the end. A run of one step stays at the peak.
                let span = after_warmup.saturating_sub(1);
                if span == 0 { peak } else { cosine(*lr_min, (past / span as f64).min(1.0)) }
            }
            Shape::Polynomial { power, eta_min } => {
                let left = if after_warmup == 0 { 0.0 } else { (1.0 - past / after_warmup as f64).max(0.0) };
                eta_min + (peak - eta_min) * left.powf(*power)
            }
            Shape::Step { milestones, gamma } => {
                let passed = milestones.partition_point(|&m| m <= step);
                peak * gamma.powf(passed as f64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml: &str) -> Result<ScheduleConfig, toml::de::Error> {
        toml::from_str(toml)
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-3), "{a} is not {b}");
    }

    #[test]
    fn spark_meets_its_corners() {
        let s = parse("name = \"spark\"\nwarmup = \"2 epochs\"").unwrap().build(1e-3, 30, 5).unwrap();
        close(s.lr_at(0), 0.005e-3);
        close(s.lr_at(5), (0.005 + 0.995 * 0.5) * 1e-3);
        close(s.lr_at(10), 1e-3);
        close(s.lr_at(29), 1e-6);
        close(s.lr_at(1000), 1e-6);
        let one = ScheduleConfig::default().build(1e-3, 1, 1).unwrap();
        close(one.lr_at(0), 1e-3);
    }

    #[test]
    fn polynomial_constant_and_step() {
        let p = parse("name = \"polynomial\"\nwarmup = 4\npower = 2.0\neta_min = 0.1").unwrap();
        let p = p.build(1.1, 14, 1).unwrap();
        close(p.lr_at(0), 0.0);
        close(p.lr_at(2), 0.55);
        close(p.lr_at(4), 1.1);
        close(p.lr_at(9), 0.1 + 0.25);
        close(p.lr_at(14), 0.1);
        let c =
            parse("name = \"constant\"\nwarmup = 2\nwarmup_lr_init = 0.5").unwrap().build(1.0, 9, 1).unwrap();
        assert_eq!([0, 1, 2, 8].map(|t| c.lr_at(t)), [0.5, 0.75, 1.0, 1.0]);
        let s = parse("name = \"step\"\nmilestones = [3, \"2 epochs\"]\ngamma = 0.5").unwrap();
        let s = s.build(1.0, 9, 3).unwrap();
        assert_eq!([0, 2, 3, 5, 6, 8].map(|t| s.lr_at(t)), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn configs_round_trip_and_refuse_unknown_keys() {
        for text in [
            "name = \"cosine\"\nwarmup = \"1.5 epochs\"\nlr_min = 1e-6",
            "name = \"step\"\nmilestones = [3, \"2 epochs\"]",
        ] {
            let c = parse(text).unwrap();
            assert_eq!(parse(&toml::to_string(&c).unwrap()).unwrap(), c);
        }
        assert!(parse("name = \"cosine\"\nwarmpu = 3").unwrap_err().to_string().contains("warmpu"));
        assert!(
            parse("name = \"cosine\"\nwarmup = \"3 weeks\"").unwrap_err().to_string().contains("3 weeks")
        );
        assert!(parse("name = \"cosine\"\nwarmup = -3").unwrap_err().to_string().contains("number of steps"));
        let long = parse("name = \"cosine\"\nwarmup = 30").unwrap();
        assert_eq!(long.build(1.0, 29, 1).unwrap_err().key(), Some("warmup"));
        assert!(long.build(f64::NAN, 100, 1).unwrap_err().is_usage());
        let order = parse("name = \"step\"\nmilestones = [3, 2]").unwrap();
        assert_eq!(order.build(1.0, 9, 1).unwrap_err().key(), Some("milestones"));
    }

    #[test]
    fn peak_rules() {
        #[derive(Deserialize)]
        struct Recipe {
            lr: LrConfig,
        }
        let lr = |text: &str| toml::from_str::<Recipe>(text).unwrap().lr.resolve(2048).unwrap();
        close(lr("lr = 4e-3"), 4e-3);
        close(lr("lr = \"scaled\""), 1.6e-3);
        close(lr("lr = { per_256 = 0.1 }"), 0.8);
        assert!(toml::from_str::<Recipe>("lr = \"sacled\"").is_err());
        assert!(LrConfig::Value(-1.0).resolve(1).unwrap_err().is_usage());
    }
}
