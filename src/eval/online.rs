//! Nearest neighbours during pretraining.

use super::config::{EvalConfig, Protocol};
use super::session::{Evaluation, Weights};
use crate::data::Amount;
use crate::error::Result;
use crate::models::backbone::BackboneConfig;
use crate::nn::ParamStore;
use std::sync::atomic::AtomicBool;

/// The most labelled images that vote, and the most test images.
const MOST: usize = 400;

/// Top-1 accuracy of nearest neighbours on a part of the held-out images: a number that moves while the loss says little.
/// At most 400 labelled images vote on the first 400 test images.
pub struct OnlineKnn(Evaluation);

impl OnlineKnn {
    /// Opens the images of an evaluation.
    ///
    /// # Errors
    /// As [`Evaluation::new`].
    pub fn new(config: &EvalConfig) -> Result<Self> {
        let mut config = EvalConfig {
            protocols: vec![Protocol::Knn],
            labels: vec![Amount::Percent(100.0)],
            seeds: 1,
            ..config.clone()
        };
        config.data.test_limit = match config.data.test_limit {
            0 => MOST,
            n => n.min(MOST),
        };
        let mut evaluation = Evaluation::new(&config)?;
        evaluation.limit_labels(MOST);
        Ok(OnlineKnn(evaluation))
    }

    /// The accuracy of a student's backbone, from 0 to 1.
    ///
    /// # Errors
    /// As [`Evaluation::run`]; also features that are not finite.
    pub fn top1(&self, backbone: &BackboneConfig, student: &ParamStore) -> Result<f64> {
        let weights = Weights::Params(student.clone());
        let report = self.0.run("student", backbone, &weights, &mut |_| {}, &AtomicBool::new(false))?;
        Ok(report.rows[0].mean())
    }
}
