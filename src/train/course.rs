//! What every training does around its steps: images in order, learning rate, reports, checkpoints, resume, stop.

use super::engine::{Engine, Job, State};
use super::log::{EventWriter, JsonLines};
use super::run_dir::{Checkpoint, RunDir, read_tensors};
use super::source::open_images;
use crate::data::{ImageSource, Loader, LoaderConfig, Pixels, Skipped};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::ParamStore;
use crate::optim::{Schedule, Span};
use crate::recipe::{DataConfig, LearningRate, RunConfig};
use crate::tensor::write_safetensors;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a run starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From the beginning; an existing run is an error.
    #[default]
    No,
    /// From the last checkpoint of the run folder; from the beginning if there is none.
    Auto,
    /// From this checkpoint's folder.
    From(PathBuf),
    /// From the beginning, and what an earlier run left is removed.
    Overwrite,
}

/// How a run is carried out.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The run folder.
    pub out: PathBuf,
    /// Where to start.
    pub resume: Resume,
    /// Set from outside (Ctrl-C) to save and stop after the current step.
    pub stop: Arc<AtomicBool>,
    /// The CUDA device to compute on; the CPU if absent.
    pub device: Option<Gpu>,
}

/// What a course has to know of a recipe.
pub(super) struct Outline<'a> {
    pub data: &'a DataConfig,
    pub lr: &'a LearningRate,
    pub run: &'a RunConfig,
    pub length: &'a Span,
    pub seed: u64,
    /// Images per update of the parameters.
    pub batch: usize,
    /// Equal parts that a batch is cut into.
    pub accumulate: usize,
    /// The recipe's fingerprint.
    pub fingerprint: String,
}

/// A run without what is trained in it.
pub(super) struct Course {
    source: Arc<dyn ImageSource>,
    loader: LoaderConfig,
    accumulate: u64,
    schedule: Schedule,
    total_steps: u64,
    /// Steps done.
    step: u64,
    run: RunConfig,
    /// Fingerprints of recipe and images.
    fingerprints: [String; 2],
    dir: RunDir,
    stop: Arc<AtomicBool>,
}

/// What is trained and kept: parameters, optimiser, average.
pub(super) trait Resumable {
    /// Brings the parameters on the host up to date.
    fn synchronize(&mut self) -> Result<()>;
    /// Writes everything that going on from `step` needs into a folder.
    fn write(&self, dir: &Path, step: u64) -> Result<()>;
    /// Reads what [`Resumable::write`] has written.
    fn read(&mut self, dir: &Path) -> Result<()>;
}

/// What a [`Course`] drives.
pub(super) trait Training {
    /// What is trained.
    type Kept: Resumable;
    /// A step that was made.
    type Outcome;
    /// What is trained.
    fn trained(&mut self) -> &mut Self::Kept;
    /// Makes a step, or begins it.
    fn step(&mut self, job: Job<'_>) -> Result<()>;
    /// As [`Engine::finished`].
    fn finished(&mut self, all: bool) -> Result<Vec<Self::Outcome>>;
    /// Whether something is looked at after this many steps, for which no step may be under way.
    fn looks(&self, step: u64, end: bool) -> bool;
    /// Looks at it before the step is reported.
    fn measure(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }
    /// Looks at it when the step is reported, and saved if that was due.
    fn draw(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }
    /// Tells of a step, `epoch` passes over the images into the run.
    fn report(&mut self, outcome: Self::Outcome, epoch: f64, log: &mut Log) -> Result<()>;
    /// Tells of an image that was replaced.
    fn skipped(&mut self, bad: &Skipped);
    /// Tells of a checkpoint.
    fn saved(&mut self, path: &Path);
}

/// A report of a step that can be written down.
pub(super) trait Reported {
    /// The line of `metrics.jsonl`.
    fn line(&self) -> Map<String, Value>;
    /// The curves.
    fn scalars(&self) -> Vec<(String, f32)>;
}

/// `metrics.jsonl`, and the same for TensorBoard.
pub(super) struct Log {
    lines: JsonLines,
    events: Option<EventWriter>,
    every: u64,
    total_steps: u64,
}

impl Log {
    /// Writes the report of a step, if it is one of those that are written or `always`.
    pub fn write(&mut self, step: u64, always: bool, report: &impl Reported) -> Result<()> {
        if !always && !step.is_multiple_of(self.every) && step != 1 && step != self.total_steps {
            return Ok(());
        }
        self.lines.write(&report.line())?;
        match &mut self.events {
            Some(events) => events.scalars(wall_time(), step, &report.scalars()),
            None => Ok(()),
        }
    }
}

impl Course {
    /// Opens the images and looks where the run starts: the checkpoint's folder, or `None` for the beginning. Nothing is
    /// written yet.
    ///
    /// # Errors
    /// Unreadable images, a run folder that is in use, a length or a schedule that is none.
    pub fn open(outline: &Outline<'_>, options: &Options) -> Result<(Self, Option<PathBuf>)> {
        let dir = RunDir::new(&options.out);
        let from = dir.start(&options.resume)?;
        let data = outline.data;
        let source = open_images(data)?;
        let steps_per_epoch = (source.len() as u64 / outline.batch as u64).max(1);
        let total_steps = outline.length.steps(steps_per_epoch);
        let peak = outline.lr.peak.resolve(outline.batch)?;
        let loader = LoaderConfig {
            batch: outline.batch / outline.accumulate,
            height: data.height,
            width: data.width,
            // A device makes floats of the bytes itself.
            pixels: if options.device.is_some() { Pixels::Bytes } else { Pixels::Signed },
            flip: data.flip,
            crop: data.crop,
            background: data.background,
            seed: outline.seed,
            max_bad: data.max_bad,
            workers: data.workers,
            prefetch: data.prefetch,
            ..LoaderConfig::default()
        };
        let course = Course {
            loader,
            accumulate: outline.accumulate as u64,
            schedule: outline.lr.schedule.build(peak, total_steps, steps_per_epoch)?,
            total_steps,
            step: 0,
            run: outline.run.clone(),
            fingerprints: [outline.fingerprint.clone(), source.fingerprint()],
            source,
            dir,
            stop: Arc::clone(&options.stop),
        };
        Ok((course, from))
    }

    /// The images.
    pub fn source(&self) -> &dyn ImageSource {
        &*self.source
    }

    /// The images' fingerprint.
    pub fn data_fingerprint(&self) -> &str {
        &self.fingerprints[1]
    }

    /// The run folder.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Goes on from a checkpoint, if there is one, and begins the run folder with the `recipe`'s text. `instead` is what else
    /// can be done with a checkpoint of another run.
    ///
    /// # Errors
    /// A checkpoint of another run or a damaged one, or a folder that cannot be written.
    pub fn begin(
        &mut self,
        from: Option<&Path>,
        trained: &mut impl Resumable,
        (recipe, instead): (&str, &str),
        options: &Options,
    ) -> Result<()> {
        if let Some(path) = from {
            let state = RunDir::read_state(path)?;
            state.expect(path, &self.fingerprints, self.total_steps, instead)?;
            trained.read(path)?;
            self.step = state.step;
        }
        if options.resume == Resume::Overwrite {
            self.dir.clear()?;
        }
        let [fingerprint, images] = &self.fingerprints;
        self.dir.begin(recipe, options.device.as_ref(), images, fingerprint)
    }

    /// Runs to the end, or until a stop is asked for. Returns the images that were replaced.
    ///
    /// # Errors
    /// [`Error::interrupted`] after a stop, when everything is saved; what the training's steps refuse; too many unreadable
    /// images; a file that cannot be written.
    pub fn drive(&mut self, training: &mut impl Training) -> Result<Vec<Skipped>> {
        let first = self.step * self.accumulate;
        let mut loader = Loader::new(Arc::clone(&self.source), self.loader.clone(), first)?;
        let mut log = Log {
            lines: JsonLines::open(&self.dir.file("metrics.jsonl"), self.step)?,
            events: match self.run.tensorboard {
                true => Some(EventWriter::create(self.dir.path(), wall_time(), self.step)?),
                false => None,
            },
            every: self.run.log_every,
            total_steps: self.total_steps,
        };
        let mut known_bad = 0;
        let mut epochs = VecDeque::new();
        while self.step < self.total_steps {
            let lr = self.schedule.lr_at(self.step);
            training.step(Job { step: self.step, lr, batch: &mut || loader.next_batch() })?;
            self.step += 1;
            epochs.push_back(loader.epoch());
            loader.skipped()[known_bad..].iter().for_each(|bad| training.skipped(bad));
            known_bad = loader.skipped().len();
            let end = self.step == self.total_steps;
            let due = self.step.is_multiple_of(self.run.save_every) || end;
            let looks = training.looks(self.step, end);
            let mut done = training.finished(due || looks)?;
            if looks {
                training.measure(self.step)?;
            }
            // Whoever watches may ask for a stop: then what is still under way is waited for, and saved.
            let stop = loop {
                for outcome in std::mem::take(&mut done) {
                    training.report(outcome, epochs.pop_front().unwrap_or_default(), &mut log)?;
                }
                let stop = self.stop.load(Ordering::Relaxed);
                if stop {
                    done = training.finished(true)?;
                }
                if done.is_empty() {
                    break stop;
                }
            };
            if due || stop {
                self.save(training)?;
            }
            if looks {
                training.draw(self.step)?;
            }
            if stop && !end {
                let what = format!("stopped after step {} of {}", self.step, self.total_steps);
                return Err(Error::interrupted(what)
                    .with_file(self.dir.path())
                    .with_remedy("continue with the same command and --resume auto"));
            }
        }
        Ok(loader.skipped().to_vec())
    }

    fn save(&self, training: &mut impl Training) -> Result<()> {
        let trained = training.trained();
        trained.synchronize()?;
        let [recipe, data] = self.fingerprints.clone();
        let version = env!("CARGO_PKG_VERSION").to_string();
        let state = Checkpoint { step: self.step, recipe, data, version };
        let path = self.dir.save(&state, self.run.keep, |dir| trained.write(dir, self.step))?;
        training.saved(&path);
        Ok(())
    }
}

/// Writes the states of an engine beside its parameters.
pub(super) fn write_states<M, N>(engine: &dyn Engine<M, Numbers = N>, dir: &Path) -> Result<()> {
    let none = BTreeMap::new();
    write_safetensors(dir.join("optimizer.safetensors"), &engine.optimizer_state()?, &none)?;
    match engine.average_state()? {
        Some(average) => write_safetensors(dir.join("ema.safetensors"), &average, &none),
        None => Ok(()),
    }
}

/// Reads the states of an optimiser and, if the run keeps one, of an average.
pub(super) fn read_states(dir: &Path, averages: bool) -> Result<(State, Option<State>)> {
    let optimizer = read_tensors(&dir.join("optimizer.safetensors"))?;
    let average = averages.then(|| read_tensors(&dir.join("ema.safetensors"))).transpose()?;
    Ok((optimizer, average))
}

/// The parameters with those values replaced that an average has.
pub(super) fn averaged(store: &ParamStore, average: &State) -> Result<ParamStore> {
    let mut result = store.clone();
    for (id, p) in store.iter() {
        if let Some(t) = average.get(&format!("average.{}", p.name())) {
            result.set(id, t.clone())?;
        }
    }
    Ok(result)
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
