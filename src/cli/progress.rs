//! Progress of a training run: a bar on a terminal, plain lines elsewhere.

use crate::data::Skipped;
use crate::train::{Observer, Setup, StepReport, TeacherObserver, TeacherReport, TeacherSetup};
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

    /// Begins the bar, where there is a terminal.
    fn begin(&mut self, start: u64, total: u64) {
        if std::io::stdout().is_terminal() {
            let bar = ProgressBar::new(total).with_position(start);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}<{eta} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
    }

    /// Shows a step out of `total`: what is special to the run, then speed, and how much of the time `[whole, waiting]` went
    /// into waiting for `images` images.
    fn show(&mut self, [step, total]: [u64; 2], images: usize, [time, wait]: [Duration; 2], text: &str) {
        self.recent.push_back((images, time, wait));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let sum = |f: fn(&(usize, Duration, Duration)) -> f64| self.recent.iter().map(f).sum::<f64>();
        let time = sum(|r| r.1.as_secs_f64()).max(1e-9);
        let (rate, wait) = (sum(|r| r.0 as f64) / time, 100.0 * sum(|r| r.2.as_secs_f64()) / time);
        let text = format!("{text}  {rate:.1} img/s  wait {wait:.0} %");
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(text);
                if step == total {
                    bar.finish();
                }
            }
            None if step.is_multiple_of(self.every) || step == total || step == 1 => {
                let per_step = time / self.recent.len() as f64;
                let eta = Duration::from_secs((per_step * (total - step) as f64) as u64);
                println!("step {step}/{total}  {text}  eta {}", indicatif::HumanDuration(eta));
            }
            None => {}
        }
    }

    fn skipped(&self, s: &Skipped) {
        self.say(&format!("skipped unreadable image {}: {}", s.name, s.error));
    }

    fn saved(&self, path: &Path) {
        self.say(&format!("saved {}", path.display()));
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
        self.begin(s.start_step, s.total_steps);
    }

    fn on_step(&mut self, r: &StepReport) {
        let cosines: Vec<String> = r.levels.iter().map(|l| format!("{:.3}", l.cosine)).collect();
        let (loss, mse, at, cosines) = (r.loss, r.mse, r.at, cosines.join(" "));
        let knn = r.knn_top1.map_or(String::new(), |k| format!("  knn {:.1} %", 100.0 * k));
        let text =
            format!("loss {loss:.4} (mse {mse:.4}, at {at:.4})  cosine {cosines}  lr {:.2e}{knn}", r.lr);
        self.show([r.step, r.total_steps], r.images, [r.time, r.data_wait], &text);
    }

    fn on_skip(&mut self, s: &Skipped) {
        self.skipped(s);
    }

    fn on_checkpoint(&mut self, path: &Path) {
        self.saved(path);
    }
}

impl TeacherObserver for Progress {
    fn on_setup(&mut self, s: &TeacherSetup) {
        let parameters = super::count(s.parameters as u64);
        println!("{parameters} parameters; {} images; steps {} to {}", s.images, s.start_step, s.total_steps);
        self.begin(s.start_step, s.total_steps);
    }

    fn on_step(&mut self, r: &TeacherReport) {
        let (loss, mse, vlb) = (r.loss, r.mse, r.vlb);
        let text = format!("loss {loss:.4} (mse {mse:.4}, bound {vlb:.5})  lr {:.2e}", r.lr);
        self.show([r.step, r.total_steps], r.images, [r.time, r.data_wait], &text);
    }

    fn on_skip(&mut self, s: &Skipped) {
        self.skipped(s);
    }

    fn on_checkpoint(&mut self, path: &Path) {
        self.saved(path);
    }

    fn on_samples(&mut self, path: &Path) {
        self.say(&format!("wrote {}", path.display()));
    }
}
