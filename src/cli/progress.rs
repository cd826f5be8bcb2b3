//! Progress of a training run: a bar on a terminal, plain lines elsewhere.

use crate::data::Skipped;
use crate::train::{Observer, Setup, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// Steps over which speed is averaged.
const WINDOW: usize = 20;

/// Prints what a run does.
pub struct Progress {
    bar: Option<ProgressBar>,
    every: u64,
    recent: VecDeque<(usize, Duration, Duration)>,
}

impl Progress {
    /// Prints a line every `every` steps where there is no terminal.
    pub fn new(every: u64) -> Self {
        Progress { bar: None, every, recent: VecDeque::new() }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }
}

impl Observer for Progress {
    fn on_setup(&mut self, s: &Setup) {
        println!(
            "teacher {} parameters, student {}; {} images; steps {} to {}",
            super::count(s.teacher_parameters as u64),
            super::count(s.student_parameters as u64),
            s.images,
            s.start_step,
            s.total_steps
        );
        for (what, keys) in [("teacher", &s.teacher_keys), ("student", &s.student_keys)] {
            if let Some(k) = keys {
                println!("{what}: {}: {k}", k.file.display());
            }
        }
        if s.teacher_keys.is_none() {
            println!("teacher: random weights: this shows the machinery, a trained teacher teaches more");
        }
        if std::io::stdout().is_terminal() {
            let bar = ProgressBar::new(s.total_steps).with_position(s.start_step);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}<{eta} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
    }

    fn on_step(&mut self, r: &StepReport) {
        self.recent.push_back((r.images, r.time, r.data_wait));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let sum = |f: fn(&(usize, Duration, Duration)) -> f64| self.recent.iter().map(f).sum::<f64>();
        let time = sum(|r| r.1.as_secs_f64()).max(1e-9);
        let (rate, wait) = (sum(|r| r.0 as f64) / time, 100.0 * sum(|r| r.2.as_secs_f64()) / time);
        let cosines: Vec<String> = r.levels.iter().map(|l| format!("{:.3}", l.cosine)).collect();
        let text = format!(
            "loss {:.4} (mse {:.4}, at {:.4})  cosine {}  lr {:.2e}  {rate:.1} img/s  wait {wait:.0} %",
            r.loss,
            r.mse,
            r.at,
            cosines.join(" "),
            r.lr
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(r.step);
                bar.set_message(text);
                if r.step == r.total_steps {
                    bar.finish();
                }
            }
            None if r.step.is_multiple_of(self.every) || r.step == r.total_steps || r.step == 1 => {
                let per_step = time / self.recent.len() as f64;
                let eta = Duration::from_secs((per_step * (r.total_steps - r.step) as f64) as u64);
                println!("step {}/{}  {text}  eta {}", r.step, r.total_steps, indicatif::HumanDuration(eta));
            }
            None => {}
        }
    }

    fn on_skip(&mut self, s: &Skipped) {
        self.say(&format!("skipped unreadable image {}: {}", s.name, s.error));
    }

    fn on_checkpoint(&mut self, path: &Path) {
        self.say(&format!("saved {}", path.display()));
    }
}
