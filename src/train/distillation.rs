//! The main loop: images, teacher, student, optimiser.

use super::device::{DeviceEngine, DevicePlan};
use super::engine::{Engine, HostEngine, Job, Outcome};
use super::log::{EventWriter, JsonLines, metrics, scalars};
use super::run_dir::{Checkpoint, RunDir, read_tensors};
use super::source::open_images;
use super::weights::{fill_backbone, fill_teacher, load_params, save_params};
use crate::checkpoint::{KeyReport, StateDict, Tolerance};
use crate::data::{ImageSource, Loader, LoaderConfig, Pixels, Skipped};
use crate::distill::{Distiller, LevelMetrics, Plan, Student, Teacher};
use crate::error::{Error, Result};
use crate::eval::OnlineKnn;
use crate::gpu::{DeviceInfo, Gpu};
use crate::optim::Schedule;
use crate::recipe::Recipe;
use crate::tensor::write_safetensors;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// What is known before the first step.
#[derive(Debug)]
pub struct Setup {
    /// Images in the set.
    pub images: usize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps already done.
    pub start_step: u64,
    /// How the teacher's checkpoint fitted; `None` for random weights.
    pub teacher_keys: Option<KeyReport>,
    /// How the backbone's checkpoint fitted; `None` for random weights.
    pub student_keys: Option<KeyReport>,
    /// Parameters of the teacher.
    pub teacher_parameters: usize,
    /// Parameters of backbone and regressor.
    pub student_parameters: usize,
}

/// One finished step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Passes over the images begun so far.
    pub epoch: f64,
    /// The loss.
    pub loss: f32,
    /// Its MSE part.
    pub mse: f32,
    /// Its attention-transfer part.
    pub at: f32,
    /// Every level, fine to coarse.
    pub levels: Vec<LevelMetrics>,
    /// Learning rate used.
    pub lr: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Time of the whole step.
    pub time: Duration,
    /// Time spent waiting for images.
    pub data_wait: Duration,
    /// Time spent in the teacher.
    pub teacher_time: Duration,
    /// Time spent in the student, forward and backward.
    pub student_time: Duration,
    /// Images of the step.
    pub images: usize,
    /// Accuracy of nearest neighbours on held-out images after the step, from 0 to 1, where it was measured.
    pub knn_top1: Option<f64>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps done.
    pub step: u64,
    /// The last step, if any was done now.
    pub last: Option<StepReport>,
    /// The trained backbone under timm's names.
    pub backbone: PathBuf,
    /// Unreadable images that were replaced.
    pub skipped: Vec<Skipped>,
}

/// Sees what a run does. All methods may be left out.
pub trait Observer {
    /// Everything is loaded.
    fn on_setup(&mut self, _: &Setup) {}
    /// A step is done.
    fn on_step(&mut self, _: &StepReport) {}
    /// An image could not be read and was replaced.
    fn on_skip(&mut self, _: &Skipped) {}
    /// A checkpoint is complete.
    fn on_checkpoint(&mut self, _: &Path) {}
}

impl Observer for () {}

/// Plans a recipe's step without loading or computing anything. Also gives the bytes of the optimiser's state and
/// gradients as copies of the student's parameters.
///
/// # Errors
/// A recipe whose parts do not fit.
pub fn plan(recipe: &Recipe) -> Result<(Plan, usize)> {
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, recipe.seed, |_| Ok(()))?;
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let student = Student::new(&recipe.student, teacher.taps(), hw, |_| Ok(()))?;
    let micro = recipe.train.batch / recipe.train.accumulate;
    let plan = Plan::new(&teacher, &student, &recipe.loss, micro, hw)?;
    // Gradients are in the plan's peak for one part of a batch; accumulating keeps a further copy.
    let slots = recipe.optimizer.state_copies()
        + usize::from(recipe.train.accumulate > 1)
        + usize::from(recipe.train.ema.is_some());
    Ok((plan, slots))
}

/// Plans a recipe's step on a CUDA device, without the device and without loading anything.
///
/// # Errors
/// A recipe whose parts do not fit.
pub fn plan_device(recipe: &Recipe, device: &DeviceInfo) -> Result<DevicePlan> {
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, recipe.seed, |_| Ok(()))?;
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let student = Student::new(&recipe.student, teacher.taps(), hw, |_| Ok(()))?;
    DevicePlan::new(recipe, &Distiller::new(teacher, student, recipe.loss.clone(), recipe.seed)?, device)
}

/// A distillation run.
pub struct Trainer {
    recipe: Recipe,
    source: Arc<dyn ImageSource>,
    distiller: Distiller,
    engine: Box<dyn Engine>,
    on_device: bool,
    schedule: Schedule,
    total_steps: u64,
    step: u64,
    dir: RunDir,
    stop: Arc<AtomicBool>,
    setup: Setup,
    knn: Option<OnlineKnn>,
}

impl Trainer {
    /// Opens the images, builds and loads teacher and student, and resumes if asked.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or checkpoints, a run folder that is in use, a checkpoint of another run.
    pub fn new(recipe: Recipe, options: Options) -> Result<Self> {
        recipe.validate()?;
        let dir = RunDir::new(&options.out);
        let from = dir.start(&options.resume)?;
        let source = open_images(&recipe.data)?;
        let (seed, batch) = (recipe.seed, recipe.train.batch);
        let mut teacher_keys = None;
        let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |store| {
            teacher_keys = fill_teacher(store, &recipe.teacher, seed)?;
            Ok(())
        })?;
        let hw = [recipe.data.height as usize, recipe.data.width as usize];
        let mut student_keys = None;
        let student = Student::new(&recipe.student, teacher.taps(), hw, |store| {
            student_keys = fill_backbone(store, &recipe.student, seed)?;
            Ok(())
        })?;
        let steps_per_epoch = (source.len() as u64 / batch as u64).max(1);
        let total_steps = recipe.train.length.steps(steps_per_epoch);
        let schedule =
            recipe.lr.schedule.build(recipe.lr.peak.resolve(batch)?, total_steps, steps_per_epoch)?;
        let setup = Setup {
            images: source.len(),
            total_steps,
            start_step: 0,
            teacher_keys,
            student_keys,
            teacher_parameters: teacher.params().parameter_count(),
            student_parameters: student.params().parameter_count(),
        };
        let knn = recipe.eval.as_ref().filter(|e| e.online_knn_every > 0).map(OnlineKnn::new).transpose()?;
        let distiller = Distiller::new(teacher, student, recipe.loss.clone(), seed)?;
        let engine: Box<dyn Engine> = match &options.device {
            None => Box::new(HostEngine::new(&recipe, distiller.student())?),
            Some(gpu) => Box::new(DeviceEngine::new(&recipe, &distiller, gpu)?),
        };
        let mut trainer = Trainer {
            engine,
            on_device: options.device.is_some(),
            distiller,
            recipe,
            source,
            schedule,
            total_steps,
            step: 0,
            dir,
            stop: options.stop,
            setup,
            knn,
        };
        if let Some(path) = from {
            trainer.load(&path)?;
            trainer.setup.start_step = trainer.step;
        }
        if options.resume == Resume::Overwrite {
            trainer.dir.clear()?;
        }
        let (images, fingerprint) = (trainer.source.fingerprint(), trainer.recipe.fingerprint());
        trainer.dir.begin(&trainer.recipe.to_toml(), options.device.as_ref(), &images, &fingerprint)?;
        Ok(trainer)
    }

    /// What is known before the first step.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Teacher and student.
    pub fn distiller(&self) -> &Distiller {
        &self.distiller
    }

    /// Runs to the end, or until a stop is asked for.
    ///
    /// # Errors
    /// [`Error::interrupted`] after a stop, when everything is saved; a loss or gradient that is not finite; too many
    /// unreadable images; a file that cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Summary> {
        observer.on_setup(&self.setup);
        let accumulate = self.recipe.train.accumulate;
        let data = &self.recipe.data;
        let config = LoaderConfig {
            batch: self.recipe.train.batch / accumulate,
            height: data.height,
            width: data.width,
            pixels: if self.on_device { Pixels::Bytes } else { Pixels::Signed },
            flip: data.flip,
            crop: data.crop,
            background: data.background,
            seed: self.recipe.seed,
            max_bad: data.max_bad,
            workers: data.workers,
            prefetch: data.prefetch,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(Arc::clone(&self.source), config, self.step * accumulate as u64)?;
        let mut lines = JsonLines::open(&self.dir.file("metrics.jsonl"), self.step)?;
        let mut events = match self.recipe.run.tensorboard {
            true => Some(EventWriter::create(self.dir.path(), wall_time(), self.step)?),
            false => None,
        };
        let (mut last, mut known_bad, mut saved) = (None, 0, None);
        let mut epochs = VecDeque::new();
        while self.step < self.total_steps {
            let job = Job {
                step: self.step,
                lr: self.schedule.lr_at(self.step),
                batch: &mut || loader.next_batch(),
            };
            self.engine.step(&mut self.distiller, job)?;
            self.step += 1;
            epochs.push_back(loader.epoch());
            for bad in &loader.skipped()[known_bad..] {
                observer.on_skip(bad);
            }
            known_bad = loader.skipped().len();
            let (end, every) = (self.step == self.total_steps, self.recipe.run.save_every);
            let due = self.step.is_multiple_of(every) || end;
            let measures = self.measures(end);
            let mut done = self.engine.finished(&self.distiller, due || measures)?;
            let measured = if measures { self.online_knn()? } else { None };
            // Whoever watches may ask for a stop: then what is still under way is waited for, and saved.
            let stop = loop {
                for out in std::mem::take(&mut done) {
                    let mut report = self.report(out, epochs.pop_front().unwrap_or_default());
                    report.knn_top1 = measured.filter(|_| report.step == self.step);
                    let last_step = report.step == self.total_steps;
                    let log_every = self.recipe.run.log_every;
                    let first = report.step == 1;
                    if report.step.is_multiple_of(log_every)
                        || last_step
                        || first
                        || report.knn_top1.is_some()
                    {
                        lines.write(&metrics(&report))?;
                        if let Some(events) = &mut events {
                            events.scalars(wall_time(), report.step, &scalars(&report))?;
                        }
                    }
                    observer.on_step(&report);
                    last = Some(report);
                }
                let stop = self.stop.load(Ordering::Relaxed);
                if stop {
                    done = self.engine.finished(&self.distiller, true)?;
                }
                if done.is_empty() {
                    break stop;
                }
            };
            let save = due || stop;
            if save {
                let path = self.save()?;
                observer.on_checkpoint(&path);
                saved = Some(self.step);
            }
            if stop && !end {
                return Err(Error::interrupted(format!(
                    "stopped after step {} of {}",
                    self.step, self.total_steps
                ))
                .with_file(self.dir.path())
                .with_remedy("continue with the same command and --resume auto"));
            }
        }
        if saved.is_none() && self.setup.start_step < self.total_steps {
            observer.on_checkpoint(&self.save()?);
        }
        let backbone = self.dir.file("backbone.safetensors");
        let metadata = self.metadata();
        save_params(self.distiller.student().params(), "backbone.", &backbone, &metadata)?;
        if let Some(average) = self.engine.average_state()? {
            let store = self.distiller.student().params();
            let mut averaged = store.clone();
            for (id, p) in store.iter() {
                if let Some(t) = average.get(&format!("average.{}", p.name())) {
                    averaged.set(id, t.clone())?;
                }
            }
            save_params(&averaged, "backbone.", &self.dir.file("backbone_ema.safetensors"), &metadata)?;
        }
        Ok(Summary { step: self.step, last, backbone, skipped: loader.skipped().to_vec() })
    }

    /// Whether it is time for nearest neighbours: after every so many steps, and at the end.
    fn measures(&self, end: bool) -> bool {
        let every = self.recipe.eval.as_ref().map_or(0, |e| e.online_knn_every);
        self.knn.is_some() && (end || self.step.is_multiple_of(every))
    }

    /// Nearest neighbours with the student as it is. No step may be under way.
    fn online_knn(&mut self) -> Result<Option<f64>> {
        let Some(knn) = &self.knn else { return Ok(None) };
        self.engine.synchronize(&mut self.distiller)?;
        knn.top1(&self.recipe.student.backbone, self.distiller.student().params()).map(Some)
    }

    /// What became of a step, for whoever watches.
    fn report(&self, out: Outcome, epoch: f64) -> StepReport {
        StepReport {
            step: out.step + 1,
            total_steps: self.total_steps,
            epoch,
            loss: out.loss,
            mse: out.mse,
            at: out.at,
            levels: out.levels,
            lr: out.lr,
            grad_norm: out.grad_norm,
            time: out.time,
            data_wait: out.data_wait,
            teacher_time: out.teacher_time,
            student_time: out.student_time,
            images: self.recipe.train.batch,
            knn_top1: None,
        }
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        [
            ("format", "pt".to_string()),
            ("dtk", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", self.recipe.name.clone()),
            ("recipe_fingerprint", self.recipe.fingerprint()),
            ("data_fingerprint", self.source.fingerprint()),
            ("backbone", self.recipe.student.backbone.name().to_string()),
            (
                "backbone_config",
                serde_json::to_string(&self.recipe.student.backbone).expect("numbers and names"),
            ),
            ("image_size", format!("{}x{}", self.recipe.data.height, self.recipe.data.width)),
            ("step", self.step.to_string()),
            ("seed", self.recipe.seed.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into()
    }

    fn save(&mut self) -> Result<PathBuf> {
        self.engine.synchronize(&mut self.distiller)?;
        let state = Checkpoint {
            step: self.step,
            recipe: self.recipe.fingerprint(),
            data: self.source.fingerprint(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        let none = BTreeMap::new();
        self.dir.save(&state, self.recipe.run.keep, |dir| {
            save_params(
                self.distiller.student().params(),
                "",
                &dir.join("student.safetensors"),
                &self.metadata(),
            )?;
            write_safetensors(dir.join("optimizer.safetensors"), &self.engine.optimizer_state()?, &none)?;
            if let Some(average) = self.engine.average_state()? {
                write_safetensors(dir.join("ema.safetensors"), &average, &none)?;
            }
            Ok(())
        })
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let state = RunDir::read_state(path)?;
        let ours = [self.recipe.fingerprint(), self.source.fingerprint()];
        state.expect(path, &ours, self.total_steps, ", or start a new run from it with student.weights")?;
        let student = StateDict::open(path.join("student.safetensors"))?;
        let store = self.distiller.student_mut().params_mut();
        load_params(store, "", &student, Tolerance::default())?;
        let optimizer = read_tensors(&path.join("optimizer.safetensors"))?;
        let average = match &self.recipe.train.ema {
            Some(_) => Some(read_tensors(&path.join("ema.safetensors"))?),
            None => None,
        };
        self.engine.load(&self.distiller, &optimizer, average.as_ref())?;
        self.step = state.step;
        Ok(())
    }
}

pub(super) fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
