//! Comparing the simulator with what cards answered.

use super::backend::{Backend, Simulator};
use super::case::Case;
use super::recording::Recording;
use std::collections::HashSet;

/// What came of one recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Cases whose simulated output is the card's.
    pub same: usize,
    /// Title and difference of the others.
    pub different: Vec<String>,
    /// Titles of answers whose case is no longer in the suite.
    pub stale: Vec<String>,
    /// Titles of cases that the card can run and has not.
    pub missing: Vec<String>,
}

impl Replay {
    /// Nothing differs, nothing is stale.
    pub fn passed(&self) -> bool {
        self.different.is_empty() && self.stale.is_empty()
    }
}

/// Runs every recorded case in the simulator. Answers to cases outside of `families` are left out; no names: all.
pub fn replay(recording: &Recording, cases: &[Case], families: &[&str]) -> Replay {
    let answers = recording.by_hash();
    let mut result = Replay::default();
    let mut known = HashSet::new();
    for case in cases {
        let hash = case.hash();
        let Some(answer) = answers.get(hash.as_str()) else {
            result.missing.push(case.title());
            continue;
        };
        known.insert(hash.clone());
        let outcome = answer.output(case).and_then(|card| {
            let output = Simulator.run(case)?;
            case.compare_with_card(&output, &card).map_or(Ok(()), |d| Err(d.to_string()))
        });
        match outcome {
            Ok(()) => result.same += 1,
            Err(why) => result.different.push(format!("{}\n    {why}", case.title())),
        }
    }
    let ours =
        |title: &str| families.is_empty() || families.iter().any(|f| title.starts_with(&format!("{f}: ")));
    result.stale = recording
        .answers
        .iter()
        .filter(|a| !known.contains(&a.hash) && ours(&a.case))
        .map(|a| a.case.clone())
        .collect();
    result
}
