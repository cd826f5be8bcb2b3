//! Batches in a reproducible order, prepared ahead by threads.

mod plan;
#[cfg(test)]
mod tests;

use super::{Crop, ImageSource};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use plan::{Assembled, Plan, Sample};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How pixels are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pixels {
    /// f32 in -1..=1, as networks on the CPU take them.
    #[default]
    Signed,
    /// u8 in 0..=255, a quarter of the bytes: a device makes numbers of them by itself.
    Bytes,
}

/// What a [`Loader`] delivers, and how.
///
/// Only `workers` and `prefetch` have no influence on the batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Images per batch and process.
    pub batch: usize,
    /// Height of the images, pixels.
    pub height: u32,
    /// Width of the images, pixels.
    pub width: u32,
    /// How pixels are delivered; their values do not depend on it.
    pub pixels: Pixels,
    /// Mirror every image left to right with probability 1/2.
    pub flip: bool,
    /// How the wanted size is reached.
    pub crop: Crop,
    /// The colour behind transparent parts, RGB.
    pub background: [u8; 3],
    /// Seed of the order, the crops and the flips.
    pub seed: u64,
    /// How many different unreadable images are tolerated (and replaced) before the run ends with an error.
    pub max_bad: usize,
    /// Threads that prepare images; 0 prepares them in the calling thread.
    pub workers: usize,
    /// How many batches may be under way or waiting at a time; at least 1 is used.
    pub prefetch: usize,
    /// This process among `world`, which share a global batch of `batch * world` images.
    pub rank: usize,
    /// Number of processes; 1 for a single one.
    pub world: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            batch: 32,
            height: 256,
            width: 256,
            pixels: Pixels::Signed,
            flip: true,
            crop: Crop::Center,
            background: [255; 3],
            seed: 0,
            max_bad: 16,
            workers: 2,
            prefetch: 2,
            rank: 0,
            world: 1,
        }
    }
}

impl LoaderConfig {
    fn validate(&self) -> Result<()> {
        let side = 1..=super::decode::MAX_SIDE;
        let usage = |m: String, remedy: &str| Err(Error::usage(m).with_remedy(remedy));
        if self.batch == 0 {
            return usage("a batch of 0 images".into(), "set the batch size to at least 1");
        }
        if !side.contains(&self.height) || !side.contains(&self.width) {
            return usage(
                format!("images of {}x{} pixels", self.width, self.height),
                "set sides of 1 to 16384",
            );
        }
        if self.rank >= self.world {
            let m = format!("process {} of {} does not exist", self.rank, self.world);
            return usage(m, "number the processes from 0");
        }
        self.crop.validate()
    }
}

/// One step's images.
#[derive(Debug)]
pub struct Batch {
    /// `[batch, height, width, 3]`: f32 in -1..=1, or u8, as [`LoaderConfig::pixels`] says.
    pub images: Tensor,
    /// Which image of the source each one is.
    pub indices: Vec<usize>,
    /// The class of each, if the source has labels.
    pub labels: Vec<Option<u32>>,
    /// The step these images belong to.
    pub step: u64,
    /// How long the caller was kept waiting for them.
    pub wait: Duration,
}

/// An image that could not be read and was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its index in the source.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why it could not be used.
    pub error: String,
}

/// An endless stream of batches.
///
/// The epochs, each a permutation of its own, follow one another without a gap; step `s` takes the stream positions
/// `s * B .. (s + 1) * B`, where `B` is the global batch, so a batch may span epochs, a set smaller than a batch
/// works, and no image is left out. What a position shows, and its crop and flip, depends on the seed, the step and
/// the position only: a loader started at step `s` continues exactly like one that came there, whatever the number
/// of threads, and `world` processes see together what one process with the global batch would see.
///
/// An unreadable image is replaced by one drawn from seed, step, position and attempt. Nothing is printed; see
/// [`Loader::skipped`].
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    skipped: Vec<Skipped>,
    step: u64,
}

/// What the caller and the worker threads share.
struct Shared {
    plan: Plan,
    queue: Mutex<Queue>,
    /// Signals workers: there may be work, or it is time to stop.
    work: Condvar,
    /// Signals the caller: the next batch may be ready.
    ready: Condvar,
}

struct Queue {
    /// The step of `slots[0]`, which the caller gets next.
    first: u64,
    /// The next sample to hand to a worker.
    task: (u64, usize),
    slots: VecDeque<Slot>,
    stop: bool,
    /// A worker panicked outside of decoding, so the queue will never fill.
    broken: bool,
}

struct Slot {
    samples: Vec<Option<Sample>>,
    missing: usize,
    ready: Option<Result<Assembled>>,
}

impl Loader {
    /// Starts the threads; the first batch is that of `start_step`.
    ///
    /// # Errors
    /// [`Error::usage`]: a configuration that makes no sense. [`Error::data`]: an empty source, or one with more than
    /// 2^32 - 1 images. [`Error::device`]: the system refuses to start a thread.
    pub fn new(source: Arc<dyn ImageSource>, config: LoaderConfig, start_step: u64) -> Result<Self> {
        config.validate()?;
        let (workers, batch) = (config.workers, config.batch);
        let plan = Plan::new(source, config, start_step)?;
        let queue = Queue {
            first: start_step,
            task: (start_step, 0),
            slots: VecDeque::new(),
            stop: false,
            broken: false,
        };
        let shared =
            Arc::new(Shared { plan, queue: Mutex::new(queue), work: Condvar::new(), ready: Condvar::new() });
        let mut loader = Loader { shared, threads: Vec::new(), skipped: Vec::new(), step: start_step };
        for i in 0..workers {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new().name(format!("dtk-loader-{i}"));
            // On failure, dropping `loader` ends those already started.
            let handle = thread.spawn(move || shared.run(batch)).map_err(|e| {
                Error::device("cannot start a loader thread").with_source(e).with_remedy("use fewer workers")
            })?;
            loader.threads.push(handle);
        }
        Ok(loader)
    }

    /// The next batch, in the order of steps. Blocks until it is prepared.
    ///
    /// # Errors
    /// [`Error::data`]: more than `max_bad` different images, or all of them, are unreadable; the first ones are
    /// listed. The error stays: later calls return it again.
    pub fn next_batch(&mut self) -> Result<Batch> {
        self.check_skipped()?;
        let start = Instant::now();
        let assembled = if self.threads.is_empty() {
            let plan = &self.shared.plan;
            let samples = (0..plan.config.batch).map(|i| plan.sample(self.step, i)).collect();
            plan.assemble(samples)?
        } else {
            self.shared.take()??
        };
        let wait = start.elapsed();
        for bad in assembled.skipped {
            if !self.skipped.iter().any(|s| s.index == bad.index) {
                self.skipped.push(bad);
            }
        }
        self.check_skipped()?;
        let step = self.step;
        self.step += 1;
        Ok(Batch {
            images: assembled.images,
            indices: assembled.indices,
            labels: assembled.labels,
            step,
            wait,
        })
    }

    /// The different unreadable images met so far, in the order of the batches delivered.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The step of the next batch.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How many epochs are complete or begun when the next batch starts, e.g. 1.5 in the middle of the second.
    pub fn epoch(&self) -> f64 {
        let plan = &self.shared.plan;
        self.step as f64 * (plan.config.batch * plan.config.world) as f64 / plan.source.len() as f64
    }

    fn check_skipped(&self) -> Result<()> {
        let plan = &self.shared.plan;
        if !plan.too_many(self.skipped.len()) {
            return Ok(());
        }
        let list: Vec<String> =
            self.skipped.iter().take(5).map(|s| format!("\n  {}: {}", s.name, one_line(&s.error))).collect();
        let more = if self.skipped.len() > list.len() { "\n  ..." } else { "" };
        Err(Error::data(format!(
            "{} of {} images are unreadable, with max_bad = {}:{}{more}",
            self.skipped.len(),
            plan.source.len(),
            plan.config.max_bad,
            list.concat()
        ))
        .with_remedy("repair or remove these images, or raise `max_bad`"))
    }
}

/// The message of an error without its remedy.
fn one_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for t in self.threads.drain(..) {
            // A panic of a worker was reported through `broken`.
            let _ = t.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a worker: prepare one sample after another; whoever completes a batch assembles it.
    fn run(&self, batch: usize) {
        let _alarm = Alarm(self);
        while let Some((step, i)) = self.next_task(batch) {
            let sample = self.plan.sample(step, i);
            let complete = {
                let mut q = self.lock();
                let slot = q.slot(step);
                slot.samples[i] = Some(sample);
                slot.missing -= 1;
                (slot.missing == 0).then(|| std::mem::take(&mut slot.samples))
            };
            if let Some(samples) = complete {
                let assembled = self.plan.assemble(samples.into_iter().flatten().collect());
                self.lock().slot(step).ready = Some(assembled);
                self.ready.notify_one();
            }
        }
    }

    /// Waits for room ahead of the caller; `None` when it is time to stop.
    fn next_task(&self, batch: usize) -> Option<(u64, usize)> {
        let mut q = self.lock();
        loop {
            if q.stop {
                return None;
            }
            let (step, i) = q.task;
            let ahead = (step - q.first) as usize;
            if ahead < self.plan.config.prefetch.max(1) {
                if i == 0 {
                    let samples = (0..batch).map(|_| None).collect();
                    q.slots.push_back(Slot { samples, missing: batch, ready: None });
                }
                q.task = if i + 1 == batch { (step + 1, 0) } else { (step, i + 1) };
                return Some((step, i));
            }
            q = self.work.wait(q).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the next batch off the queue.
    fn take(&self) -> Result<Result<Assembled>> {
        let mut q = self.lock();
        loop {
            if let Some(done) = q.slots.front_mut().and_then(|s| s.ready.take()) {
                q.slots.pop_front();
                q.first += 1;
                self.work.notify_all();
                return Ok(done);
            }
            if q.broken {
                return Err(Error::data("a loader thread panicked").with_remedy("report this as a bug"));
            }
            q = self.ready.wait(q).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    /// The slot of a step under way. It exists: a step leaves the queue only when nothing of it is missing.
    fn slot(&mut self, step: u64) -> &mut Slot {
        let at = (step - self.first) as usize;
        &mut self.slots[at]
    }
}

/// Wakes the caller if its worker panics, instead of letting it wait for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().broken = true;
            self.0.ready.notify_all();
        }
    }
}
