//! `ptxsim conformance`

use super::{FOUND, Outcome, say};
use crate::conformance::backend::{Backend, Simulator, check};
use crate::conformance::card::Card;
use crate::conformance::recording::{Answer, Header, Recording};
use crate::conformance::replay::replay;
use crate::conformance::{Case, FAMILIES, table};
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs the conformance suite: in the simulator, on a card, or against what a card answered. Exit code 0: all pass, 1: some
/// do not, 2: it could not be run
#[derive(Debug, Args)]
pub(super) struct Conformance {
    /// Only this family; may be given several times
    #[arg(long, value_name = "NAME")]
    family: Vec<String>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Lists the cases and runs none
    #[arg(long)]
    list: bool,
    /// Writes the PTX of the cases into a folder and runs none
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
    /// Prints the table of the README, with the recordings of --replay
    #[arg(long)]
    table: bool,
    /// Runs on the first card and writes its answers into a folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["replay", "table"])]
    record: Option<PathBuf>,
    /// Compares the simulator with every recording of a folder
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// Runs through this CUDA driver library instead of the interpreter itself, the simulator's own for instance
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    driver: Option<PathBuf>,
    /// Failures that are printed
    #[arg(long, value_name = "N", default_value_t = 20)]
    failures: usize,
}

impl Conformance {
    pub(super) fn run(self) -> Outcome {
        for name in &self.family {
            if !FAMILIES.iter().any(|f| f.name == name) {
                let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
                return Err(format!("there is no family {name}; there are {}", names.join(", ")).into());
            }
        }
        if self.table {
            let recordings = match &self.replay {
                Some(dir) => Recording::read_all(dir)?,
                None => Vec::new(),
            };
            say(format_args!("{}\n{}{}", table::BEGIN, table::markdown(&recordings), table::END));
            return Ok(ExitCode::SUCCESS);
        }
        let cases = self.cases();
        if cases.is_empty() {
            return Err("no case of that name".into());
        }
        if self.list {
            cases.iter().for_each(|c| say(format_args!("{} [{}]", c.title(), c.target.name())));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(dir) = &self.ptx {
            return write(dir, &cases);
        }
        if let Some(dir) = &self.replay {
            return self.replay(dir, &cases);
        }
        if let Some(dir) = &self.record {
            return self.record(dir, &cases);
        }
        match &self.driver {
            None => {
                let results = simulate(&cases);
                self.report(&cases, &results)
            }
            Some(library) => {
                let card = Card::open(Some(library))?;
                say(format_args!("{} ({}.{})", card.name, card.capability.0, card.capability.1));
                let cases: Vec<Case> =
                    cases.into_iter().filter(|c| c.target.runs_on(card.capability)).collect();
                let results: Vec<Option<String>> = cases.iter().map(|c| check(&card, c)).collect();
                self.report(&cases, &results)
            }
        }
    }

    fn cases(&self) -> Vec<Case> {
        FAMILIES
            .iter()
            .filter(|f| self.family.is_empty() || self.family.iter().any(|n| n == f.name))
            .flat_map(|f| f.cases())
            .filter(|c| self.filter.as_ref().is_none_or(|t| c.name.contains(t.as_str())))
            .collect()
    }

    /// A line for each family, then the failures.
    fn report(&self, cases: &[Case], results: &[Option<String>]) -> Outcome {
        say(format_args!("{:<12} {:>6} {:>7}", "family", "cases", "passed"));
        for family in FAMILIES {
            let of = || cases.iter().zip(results).filter(|(c, _)| c.family == family.name);
            let (all, passed) = (of().count(), of().filter(|(_, r)| r.is_none()).count());
            if all > 0 {
                say(format_args!("{:<12} {all:>6} {passed:>7}", family.name));
            }
        }
        let failed: Vec<String> = cases
            .iter()
            .zip(results)
            .filter_map(|(c, r)| r.as_ref().map(|why| format!("{}\n    {why}", c.title())))
            .collect();
        failed.iter().take(self.failures).for_each(say);
        if failed.len() > self.failures {
            say(format_args!("and {} more", failed.len() - self.failures));
        }
        Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }

    fn record(&self, dir: &Path, cases: &[Case]) -> Outcome {
        let card = Card::open(self.driver.as_deref())?;
        if card.simulated {
            return Err(format!(
                "the driver found is this simulator ({}): a recording would only repeat what is to be checked. Take its \
                 folder out of LD_LIBRARY_PATH, on a machine with a card.",
                card.name
            )
            .into());
        }
        if !self.family.is_empty() || self.filter.is_some() {
            return Err("a recording holds the whole suite: without --family and --filter".into());
        }
        let mut answers = Vec::new();
        let mut results = Vec::new();
        let able: Vec<Case> = cases.iter().filter(|c| c.target.runs_on(card.capability)).cloned().collect();
        for case in &able {
            let outcome = card.run(case);
            let answer = Answer::new(case, &outcome);
            results.push(answer.disagrees.clone());
            answers.push(answer);
        }
        let header = Header {
            card: card.name.clone(),
            capability: format!("{}.{}", card.capability.0, card.capability.1),
            driver: format!("{}.{}", card.driver.0, card.driver.1),
            date: today(),
        };
        let path = Recording { header, answers }.write(dir)?;
        say(format_args!("{} cases of {} recorded in {}", able.len(), cases.len(), path.display()));
        self.report(&able, &results)
    }

    fn replay(&self, dir: &Path, cases: &[Case]) -> Outcome {
        let recordings = Recording::read_all(dir)?;
        if recordings.is_empty() {
            say(format_args!("{} has no recording: no card yet", dir.display()));
            return Ok(ExitCode::SUCCESS);
        }
        let families: Vec<&str> = self.family.iter().map(String::as_str).collect();
        let mut passed = true;
        for recording in &recordings {
            let mut result = replay(recording, cases, &families);
            if self.filter.is_some() {
                // Answers to the cases that were filtered out are not stale.
                result.stale.clear();
            }
            let h = &recording.header;
            say(format_args!(
                "{} ({}), {}: {} the same, {} different, {} stale, {} not recorded",
                h.card,
                h.capability,
                h.date,
                result.same,
                result.different.len(),
                result.stale.len(),
                result.missing.len()
            ));
            result.different.iter().take(self.failures).for_each(say);
            result.stale.iter().take(self.failures).for_each(|t| say(format_args!("stale: {t}")));
            passed &= result.passed();
        }
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

/// All cases in the interpreter, on all host threads.
fn simulate(cases: &[Case]) -> Vec<Option<String>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; cases.len()]);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(i) else { break };
                    let result = check(&Simulator, case);
                    results.lock().unwrap_or_else(|e| e.into_inner())[i] = result;
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(|e| e.into_inner())
}

/// One file for each case, named by its family and number, with its name in the first line.
fn write(dir: &Path, cases: &[Case]) -> Outcome {
    let told = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(told)?;
    for (i, case) in cases.iter().enumerate() {
        let path = dir.join(format!("{}-{i:04}.{}.ptx", case.family, case.target.name()));
        std::fs::write(&path, format!("// {}\n{}", case.title(), case.ptx)).map_err(told)?;
    }
    say(format_args!("{} files in {}", cases.len(), dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// The date in UTC, by the days-to-civil formula of the proleptic Gregorian calendar.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let days = (seconds / 86400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
