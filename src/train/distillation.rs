//! The main loop: images, teacher, student, optimiser.

use super::log::{EventWriter, JsonLines, metrics, scalars};
use super::run_dir::{Checkpoint, RunDir};
use super::source::open_images;
use super::weights::{fill_backbone, fill_teacher, load_params, save_params};
use crate::checkpoint::{KeyReport, StateDict, Tolerance};
use crate::data::{ImageSource, Loader, LoaderConfig, Skipped};
use crate::distill::{Distiller, LevelMetrics, Plan, StepOutput, Student, Teacher};
use crate::error::{Error, Result};
use crate::nn::ParamId;
use crate::optim::{Ema, Optimizer, Schedule, Slot, StepStats, clip_grad_norm, weight_decays};
use crate::recipe::Recipe;
use crate::tensor::{SafetensorsFile, Tensor, write_atomically, write_safetensors};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
#[derive(Clone, Debug)]
pub struct Options {
    /// The run folder.
    pub out: PathBuf,
    /// Where to start.
    pub resume: Resume,
    /// Set from outside (Ctrl-C) to save and stop after the current step.
    pub stop: Arc<AtomicBool>,
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

/// A distillation run.
pub struct Trainer {
    recipe: Recipe,
    source: Arc<dyn ImageSource>,
    distiller: Distiller,
    optimizer: Box<dyn Optimizer>,
    ema: Option<Ema>,
    schedule: Schedule,
    total_steps: u64,
    step: u64,
    dir: RunDir,
    stop: Arc<AtomicBool>,
    setup: Setup,
}

impl Trainer {
    /// Opens the images, builds and loads teacher and student, and resumes if asked.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or checkpoints, a run folder that is in use, a checkpoint of another run.
    pub fn new(recipe: Recipe, options: Options) -> Result<Self> {
        recipe.validate()?;
        let dir = RunDir::new(&options.out);
        let from = match &options.resume {
            Resume::From(path) if dir.has_run() && !dir.contains(path) => {
                return Err(Error::usage("there is already another run in this folder")
                    .with_file(dir.path())
                    .with_remedy("give the folder of the checkpoint's own run, or choose another --out"));
            }
            Resume::No if dir.has_run() => {
                return Err(Error::usage("there is already a run in this folder").with_file(dir.path()).with_remedy(
                    "continue it with --resume auto, start again with --overwrite, or choose another --out",
                ));
            }
            Resume::No | Resume::Overwrite => None,
            Resume::Auto => dir.checkpoints()?.pop().map(|(_, path)| path),
            Resume::From(path) => Some(path.clone()),
        };
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
        let ema = recipe.train.ema.clone();
        let values = student.params().iter().map(|(_, p)| (p.name(), p.value()));
        let ema = ema.map(|config| Ema::new(config, values)).transpose()?;
        let mut trainer = Trainer {
            optimizer: recipe.optimizer.build()?,
            distiller: Distiller::new(teacher, student, recipe.loss.clone(), seed)?,
            recipe,
            source,
            ema,
            schedule,
            total_steps,
            step: 0,
            dir,
            stop: options.stop,
            setup,
        };
        if let Some(path) = from {
            trainer.load(&path)?;
            trainer.setup.start_step = trainer.step;
        }
        if options.resume == Resume::Overwrite {
            trainer.dir.clear()?;
        }
        trainer.dir.create()?;
        let text = trainer.recipe.to_toml();
        write_atomically(trainer.dir.file("recipe.toml"), |f| f.write_all(text.as_bytes()))?;
        let environment = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "threads": crate::cpu::threads(),
            "images": trainer.source.fingerprint(),
            "recipe": trainer.recipe.fingerprint(),
        });
        let text = format!("{environment:#}\n");
        write_atomically(trainer.dir.file("environment.json"), |f| f.write_all(text.as_bytes()))?;
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
        while self.step < self.total_steps {
            let report = self.step_once(&mut loader)?;
            for bad in &loader.skipped()[known_bad..] {
                observer.on_skip(bad);
            }
            known_bad = loader.skipped().len();
            let run = &self.recipe.run;
            let end = self.step == self.total_steps;
            if self.step.is_multiple_of(run.log_every) || end || report.step == 1 {
                lines.write(&metrics(&report))?;
                if let Some(events) = &mut events {
                    events.scalars(wall_time(), report.step, &scalars(&report))?;
                }
            }
            observer.on_step(&report);
            last = Some(report);
            let stop = self.stop.load(Ordering::Relaxed);
            if self.step.is_multiple_of(run.save_every) || end || stop {
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
        if let Some(ema) = &self.ema {
            let store = self.distiller.student().params();
            let mut averaged = store.clone();
            for (id, p) in store.iter() {
                if let Some(t) = ema.average().get(p.name()) {
                    averaged.set(id, t.clone())?;
                }
            }
            save_params(&averaged, "backbone.", &self.dir.file("backbone_ema.safetensors"), &metadata)?;
        }
        Ok(Summary { step: self.step, last, backbone, skipped: loader.skipped().to_vec() })
    }

    /// One update of the parameters.
    fn step_once(&mut self, loader: &mut Loader) -> Result<StepReport> {
        let start = Instant::now();
        let parts = self.recipe.train.accumulate;
        let micro = self.recipe.train.batch / parts;
        let mut sum: Option<Sum> = None;
        for part in 0..parts {
            let batch = loader.next_batch()?;
            let positions: Vec<u64> = (part * micro..(part + 1) * micro).map(|p| p as u64).collect();
            let out = self.distiller.step(&batch.images, self.step, &positions)?;
            let store = self.distiller.student_mut().params_mut();
            for (id, value) in &out.buffers {
                store.set(*id, value.clone())?;
            }
            match &mut sum {
                None => sum = Some(Sum { out, data_wait: batch.wait }),
                Some(sum) => sum.add(out, batch.wait)?,
            }
        }
        let Some(mut sum) = sum else { return Err(Error::usage("a step has at least one part")) };
        sum.divide(parts)?;
        let Sum { mut out, data_wait } = sum;
        let lr = self.schedule.lr_at(self.step);
        let clipped = self.recipe.train.clip_grad;
        let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
        let norm = clipped.map(|max| clip_grad_norm(&mut grads, max)).transpose()?;
        let stats = apply_gradients(&mut *self.optimizer, self.distiller.student_mut(), &out.grads, lr)?;
        self.step += 1;
        if let Some(ema) = &mut self.ema {
            ema.update(self.distiller.student().params().iter().map(|(_, p)| (p.name(), p.value())))?;
        }
        Ok(StepReport {
            step: self.step,
            total_steps: self.total_steps,
            epoch: loader.epoch(),
            loss: out.loss,
            mse: out.mse,
            at: out.at,
            levels: out.levels,
            lr,
            grad_norm: norm.unwrap_or(stats.grad_norm),
            time: start.elapsed(),
            data_wait,
            teacher_time: out.teacher_time,
            student_time: out.student_time,
            images: self.recipe.train.batch,
        })
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        [
            ("format", "pt".to_string()),
            ("dtk", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", self.recipe.name.clone()),
            ("recipe_fingerprint", self.recipe.fingerprint()),
            ("data_fingerprint", self.source.fingerprint()),
            ("backbone", self.recipe.student.backbone.name().to_string()),
            ("step", self.step.to_string()),
            ("seed", self.recipe.seed.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into()
    }

    fn save(&self) -> Result<PathBuf> {
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
            write_safetensors(dir.join("optimizer.safetensors"), &self.optimizer.state(), &none)?;
            if let Some(ema) = &self.ema {
                write_safetensors(dir.join("ema.safetensors"), &ema.state(), &none)?;
            }
            Ok(())
        })
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let state = RunDir::read_state(path)?;
        let refuse = |what: &str, remedy: &str| {
            Err(Error::checkpoint(format!("the checkpoint is of {what}")).with_file(path).with_remedy(remedy))
        };
        if state.recipe != self.recipe.fingerprint() {
            return refuse(
                "another recipe",
                "resume with the recipe.toml of its run folder, or start a new run from it with student.weights",
            );
        }
        if state.data != self.source.fingerprint() {
            return refuse(
                "a run on other images",
                "give the same images, or start a new run with student.weights",
            );
        }
        if state.step > self.total_steps {
            return refuse("a longer run", "give the same length");
        }
        let student = StateDict::open(path.join("student.safetensors"))?;
        let store = self.distiller.student_mut().params_mut();
        load_params(store, "", &student, Tolerance::default())?;
        let read = |name: &str| -> Result<BTreeMap<String, Tensor>> {
            let f = SafetensorsFile::open(path.join(name))?;
            f.names().map(|n| Ok((n.to_string(), f.get(n)?))).collect()
        };
        let store = self.distiller.student().params();
        let shapes: Vec<_> =
            store.iter().filter(|(_, p)| p.trainable()).map(|(_, p)| (p.name(), p.value().shape())).collect();
        self.optimizer.load_state(&shapes, &read("optimizer.safetensors")?)?;
        if let Some(ema) = &mut self.ema {
            ema.load_state(&read("ema.safetensors")?)?;
        }
        self.step = state.step;
        Ok(())
    }
}

/// Updates a student with the gradients of a [`StepOutput`], which are in the order of its parameters. Weight decay
/// follows [`weight_decays`].
///
/// # Errors
/// As [`Optimizer::step`].
pub fn apply_gradients(
    optimizer: &mut dyn Optimizer,
    student: &mut Student,
    grads: &[(ParamId, Tensor)],
    lr: f64,
) -> Result<StepStats> {
    // Gradients come in the store's order, so one pass over both pairs them.
    let mut grads = grads.iter().peekable();
    let mut slots = Vec::with_capacity(grads.len());
    for (i, (name, _, rank, value)) in student.params_mut().values_mut().enumerate() {
        if let Some((_, grad)) = grads.next_if(|(id, _)| id.index() == i) {
            slots.push(Slot { name, value, grad, decay: weight_decays(name, rank), lr_scale: 1.0 });
        }
    }
    optimizer.step(lr, &mut slots)
}

/// The sum over the parts of a batch.
struct Sum {
    out: StepOutput,
    data_wait: Duration,
}

impl Sum {
    fn add(&mut self, part: StepOutput, wait: Duration) -> Result<()> {
        let sum = &mut self.out;
        self.data_wait += wait;
        sum.loss += part.loss;
        sum.mse += part.mse;
        sum.at += part.at;
        for (a, b) in sum.levels.iter_mut().zip(&part.levels) {
            (a.mse, a.at, a.cosine) = (a.mse + b.mse, a.at + b.at, a.cosine + b.cosine);
        }
        for ((_, a), (_, b)) in sum.grads.iter_mut().zip(&part.grads) {
            a.data_mut::<f32>()?.iter_mut().zip(b.f32s()?).for_each(|(a, b)| *a += b);
        }
        sum.teacher_time += part.teacher_time;
        sum.student_time += part.student_time;
        Ok(())
    }

    fn divide(&mut self, parts: usize) -> Result<()> {
        if parts == 1 {
            return Ok(());
        }
        let f = 1.0 / parts as f32;
        let out = &mut self.out;
        for v in [&mut out.loss, &mut out.mse, &mut out.at] {
            *v *= f;
        }
        for l in &mut out.levels {
            (l.mse, l.at, l.cosine) = (l.mse * f, l.at * f, l.cosine * f);
        }
        for (_, g) in &mut out.grads {
            g.data_mut::<f32>()?.iter_mut().for_each(|g| *g *= f);
        }
        Ok(())
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
