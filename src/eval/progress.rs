//! Telling how far an evaluation is, and being stopped.

use super::config::Protocol;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// What an evaluation is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalProgress {
    /// Whose backbone.
    pub backbone: String,
    /// The protocol; `None` while features of a frozen backbone are computed, which all of them share.
    pub protocol: Option<Protocol>,
    /// Labelled images.
    pub labels: usize,
    /// The seed.
    pub seed: u64,
    /// Images or training steps done in this part.
    pub done: usize,
    /// Of so many.
    pub total: usize,
    /// The metric, once the part is complete.
    pub value: Option<f64>,
}

/// Shows progress to whoever asked, and ends the work when asked to.
pub(super) struct Watch<'a> {
    pub state: EvalProgress,
    progress: &'a mut dyn FnMut(&EvalProgress),
    stop: &'a AtomicBool,
}

impl<'a> Watch<'a> {
    pub fn new(backbone: &str, progress: &'a mut dyn FnMut(&EvalProgress), stop: &'a AtomicBool) -> Self {
        let state = EvalProgress {
            backbone: backbone.to_string(),
            protocol: None,
            labels: 0,
            seed: 0,
            done: 0,
            total: 0,
            value: None,
        };
        Watch { state, progress, stop }
    }

    /// Begins a part.
    pub fn part(&mut self, protocol: Option<Protocol>, labels: usize, seed: u64) {
        self.state = EvalProgress {
            backbone: std::mem::take(&mut self.state.backbone),
            protocol,
            labels,
            seed,
            done: 0,
            total: 0,
            value: None,
        };
    }

    /// Some of the part is done.
    ///
    /// # Errors
    /// [`Error::interrupted`] if a stop was asked for.
    pub fn tick(&mut self, done: usize, total: usize) -> Result<()> {
        (self.state.done, self.state.total) = (done, total);
        (self.progress)(&self.state);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted("the evaluation was stopped").with_remedy("start it again"));
        }
        Ok(())
    }

    /// The part is complete.
    pub fn complete(&mut self, value: f64) {
        self.state.value = Some(value);
        (self.progress)(&self.state);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs something that nobody watches.
    pub fn watching<R>(f: impl FnOnce(&mut Watch<'_>) -> R) -> R {
        f(&mut Watch::new("test", &mut |_| {}, &AtomicBool::new(false)))
    }

    #[test]
    fn stops_when_asked() {
        let stop = AtomicBool::new(false);
        let mut seen = Vec::new();
        let mut note = |p: &EvalProgress| seen.push((p.done, p.value));
        let mut watch = Watch::new("x", &mut note, &stop);
        watch.part(Some(Protocol::Knn), 3, 1);
        watch.tick(1, 2).unwrap();
        watch.complete(0.5);
        assert_eq!((watch.state.backbone.as_str(), watch.state.labels), ("x", 3));
        stop.store(true, Ordering::Relaxed);
        assert!(watch.tick(2, 2).unwrap_err().is_interrupted());
        assert_eq!(seen, [(1, None), (1, Some(0.5)), (2, Some(0.5))]);
    }
}
