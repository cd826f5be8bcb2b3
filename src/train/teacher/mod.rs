//! The training of a diffusion network: images, noise, prediction, optimiser.

mod device;
mod engine;
mod sample;

pub use device::{TeacherOutcome, TeacherStep};
pub use sample::{Conversion, Drawing, TeacherFile, parse_size, write_png};

use super::course::{
    Course, Log, Options, Outline, Reported, Resumable, Training, averaged, read_states, write_states,
};
use super::device::DevicePlan;
use super::engine::{Engine, Job, Outcome};
use super::log::{milliseconds, short};
use super::weights::{load_params, save_params_as};
use crate::checkpoint::{StateDict, Tolerance};
use crate::data::{Batch, ImageSource, Skipped};
use crate::diffusion::{Denoiser, DenoiserStep};
use crate::error::{Error, Result};
use crate::gpu::DeviceInfo;
use crate::models::adm::{AdmConfig, AdmUnet};
use crate::nn::ParamStore;
use crate::recipe::TeacherRecipe;
use crate::tensor::Tensor;
use device::DeviceEngine;
use engine::HostEngine;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is known before the first step.
#[derive(Clone, Debug)]
pub struct TeacherSetup {
    /// Images in the set.
    pub images: usize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps already done.
    pub start_step: u64,
    /// Parameters of the network.
    pub parameters: usize,
}

/// One finished step.
#[derive(Clone, Debug)]
pub struct TeacherReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Passes over the images begun so far.
    pub epoch: f64,
    /// The loss.
    pub loss: f32,
    /// Mean squared error of the predicted noise.
    pub mse: f32,
    /// The variational bound in bits per dimension; 0 where no variance is predicted.
    pub vlb: f32,
    /// Mean loss of the samples whose time lies in each quarter of the schedule, from little noise to much; `None` where
    /// there was none.
    pub quarters: [Option<f32>; 4],
    /// Learning rate used.
    pub lr: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Time of the whole step.
    pub time: Duration,
    /// Time spent waiting for images.
    pub data_wait: Duration,
    /// Images of the step.
    pub images: usize,
}

impl Reported for TeacherReport {
    fn scalars(&self) -> Vec<(String, f32)> {
        let mut v = vec![
            ("loss".to_string(), self.loss),
            ("mse".to_string(), self.mse),
            ("vlb".to_string(), self.vlb),
            ("lr".to_string(), self.lr as f32),
            ("grad_norm".to_string(), self.grad_norm as f32),
            ("images_per_s".to_string(), self.images as f32 / self.time.as_secs_f32().max(1e-9)),
        ];
        let quarters = self.quarters.iter().enumerate();
        v.extend(quarters.filter_map(|(q, loss)| Some((format!("loss/quarter{q}"), (*loss)?))));
        v
    }

    fn line(&self) -> Map<String, Value> {
        let mut m = Map::new();
        m.insert("step".into(), json!(self.step));
        m.insert("epoch".into(), json!(self.epoch));
        m.extend(self.scalars().into_iter().map(|(tag, v)| (tag, short(v))));
        m.insert("lr".into(), json!(self.lr));
        for (key, time) in [("step_ms", self.time), ("data_wait_ms", self.data_wait)] {
            m.insert(key.into(), milliseconds(time));
        }
        m
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct TeacherSummary {
    /// Steps done.
    pub step: u64,
    /// The last step, if any was done now.
    pub last: Option<TeacherReport>,
    /// The network under guided-diffusion's names: the averaged weights if there is an average.
    pub teacher: PathBuf,
    /// Unreadable images that were replaced.
    pub skipped: Vec<Skipped>,
}

/// Sees what a run does. All methods may be left out.
pub trait TeacherObserver {
    /// Everything is loaded.
    fn on_setup(&mut self, _: &TeacherSetup) {}
    /// A step is done.
    fn on_step(&mut self, _: &TeacherReport) {}
    /// An image could not be read and was replaced.
    fn on_skip(&mut self, _: &Skipped) {}
    /// A checkpoint is complete.
    fn on_checkpoint(&mut self, _: &Path) {}
    /// A grid of pictures was written.
    fn on_samples(&mut self, _: &Path) {}
}

impl TeacherObserver for () {}

/// Plans a recipe's step on a CUDA device, without the device and without loading anything.
///
/// # Errors
/// A recipe whose parts do not fit.
pub fn plan_teacher(recipe: &TeacherRecipe, device: &DeviceInfo) -> Result<DevicePlan> {
    let mut store = ParamStore::new();
    let net = AdmUnet::new(&mut store.builder(), &recipe.model()?)?;
    let denoiser = Denoiser::new(net, store, &recipe.diffusion, recipe.seed)?;
    TeacherStep::planned(recipe, &denoiser, device)
}

/// A training of a diffusion network.
pub struct TeacherTrainer {
    course: Course,
    work: Work,
    setup: TeacherSetup,
}

/// What a run trains and draws.
struct Work {
    recipe: TeacherRecipe,
    data_fingerprint: String,
    samples: PathBuf,
    denoiser: Denoiser,
    engine: Box<dyn Engine<Denoiser, Numbers = DenoiserStep>>,
}

impl TeacherTrainer {
    /// Opens the images, builds the network, and resumes if asked.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or checkpoints, a run folder that is in use, a checkpoint of another run.
    pub fn new(recipe: TeacherRecipe, options: Options) -> Result<Self> {
        recipe.validate()?;
        let outline = Outline {
            data: &recipe.data,
            lr: &recipe.lr,
            run: &recipe.run,
            length: &recipe.train.length,
            seed: recipe.seed,
            batch: recipe.train.batch,
            accumulate: 1,
            fingerprint: recipe.fingerprint(),
        };
        let model = recipe.model()?;
        let (mut course, from) = Course::open(&outline, &options)?;
        check_labels(course.source(), &model)?;
        let mut store = ParamStore::new();
        let net = AdmUnet::new(&mut store.builder(), &model)?;
        store.init(recipe.seed)?;
        let mut setup = TeacherSetup {
            images: course.source().len(),
            total_steps: course.total_steps(),
            start_step: 0,
            parameters: store.parameter_count(),
        };
        let denoiser = Denoiser::new(net, store, &recipe.diffusion, recipe.seed)?;
        let engine: Box<dyn Engine<Denoiser, Numbers = DenoiserStep>> = match &options.device {
            None => Box::new(HostEngine::new(&recipe, &denoiser)?),
            Some(gpu) => Box::new(DeviceEngine::new(&recipe, &denoiser, gpu)?),
        };
        let data_fingerprint = course.data_fingerprint().to_string();
        let samples = course.dir().file("samples");
        let mut work = Work { recipe, data_fingerprint, samples, denoiser, engine };
        let text = work.recipe.to_toml();
        course.begin(from.as_deref(), &mut work, (&text, ""), &options)?;
        setup.start_step = course.step();
        Ok(TeacherTrainer { course, work, setup })
    }

    /// What is known before the first step.
    pub fn setup(&self) -> &TeacherSetup {
        &self.setup
    }

    /// Network and process.
    pub fn denoiser(&self) -> &Denoiser {
        &self.work.denoiser
    }

    /// Runs to the end, or until a stop is asked for.
    ///
    /// # Errors
    /// [`Error::interrupted`] after a stop, when everything is saved; a loss or gradient that is not finite; too many
    /// unreadable images; a file that cannot be written.
    pub fn run(&mut self, observer: &mut dyn TeacherObserver) -> Result<TeacherSummary> {
        observer.on_setup(&self.setup);
        let total_steps = self.course.total_steps();
        let mut watched = Watched { work: &mut self.work, observer, total_steps, last: None };
        let skipped = self.course.drive(&mut watched)?;
        let last = watched.last;
        let (step, work) = (self.course.step(), &self.work);
        let teacher = self.course.dir().file("teacher.safetensors");
        let dtype = work.recipe.output.dtype.dtype();
        save_params_as(&work.result()?, "", &teacher, &work.metadata(step), Some(dtype))?;
        Ok(TeacherSummary { step, last, teacher, skipped })
    }
}

impl Work {
    /// Draws a grid with the result so far. The noise is the same every time, so that the pictures can be followed.
    fn draw(&mut self, step: u64) -> Result<PathBuf> {
        self.synchronize()?;
        let drawing = Drawing {
            count: self.recipe.sample.count,
            steps: self.recipe.sample.steps,
            sampler: self.recipe.sample.kind,
            seed: self.recipe.seed,
            size: [self.recipe.data.height, self.recipe.data.width],
            label: None,
        };
        let (net, schedule) = (self.denoiser.net(), self.denoiser.schedule());
        let grid = sample::draw(net, &self.result()?, schedule, &drawing, &mut |_| Ok(()))?;
        let path = self.samples.join(format!("step_{step:08}.png"));
        write_png(&grid, &path)?;
        Ok(path)
    }

    /// The parameters that are the result so far: the average if there is one.
    fn result(&self) -> Result<ParamStore> {
        let store = self.denoiser.params();
        self.engine.average_state()?.map_or_else(|| Ok(store.clone()), |average| averaged(store, &average))
    }

    fn metadata(&self, step: u64) -> BTreeMap<String, String> {
        let text = |v: serde_json::Result<String>| v.expect("a configuration is plain data");
        let model = text(serde_json::to_string(self.denoiser.net().config()));
        let schedule = text(serde_json::to_string(&self.recipe.diffusion.schedule));
        let mut all = vec![
            ("format", "pt".to_string()),
            ("dtk", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", self.recipe.name.clone()),
            ("recipe_fingerprint", self.recipe.fingerprint()),
            ("data_fingerprint", self.data_fingerprint.clone()),
            (sample::MODEL_KEY, model),
            (sample::STEPS_KEY, self.recipe.diffusion.steps.to_string()),
            (sample::SCHEDULE_KEY, schedule),
            (sample::SIZE_KEY, format!("{}x{}", self.recipe.data.height, self.recipe.data.width)),
            ("step", step.to_string()),
            ("seed", self.recipe.seed.to_string()),
        ];
        all.extend(option_env!("DTK_COMMIT").map(|c| ("commit", c.to_string())));
        all.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }
}

impl Resumable for Work {
    fn synchronize(&mut self) -> Result<()> {
        self.engine.synchronize(&mut self.denoiser)
    }

    fn write(&self, dir: &Path, step: u64) -> Result<()> {
        let network = dir.join("network.safetensors");
        save_params_as(self.denoiser.params(), "", &network, &self.metadata(step), None)?;
        write_states(&*self.engine, dir)
    }

    fn read(&mut self, dir: &Path) -> Result<()> {
        let network = StateDict::open(dir.join("network.safetensors"))?;
        load_params(self.denoiser.params_mut(), "", &network, Tolerance::default())?;
        let (optimizer, average) = read_states(dir, self.recipe.train.ema.is_some())?;
        self.engine.load(&self.denoiser, &optimizer, average.as_ref())
    }
}

/// A run with somebody who watches.
struct Watched<'a> {
    work: &'a mut Work,
    observer: &'a mut dyn TeacherObserver,
    total_steps: u64,
    last: Option<TeacherReport>,
}

impl Training for Watched<'_> {
    type Kept = Work;
    type Outcome = Outcome<DenoiserStep>;

    fn trained(&mut self) -> &mut Work {
        self.work
    }

    fn step(&mut self, job: Job<'_>) -> Result<()> {
        self.work.engine.step(&mut self.work.denoiser, job)
    }

    fn finished(&mut self, all: bool) -> Result<Vec<Self::Outcome>> {
        self.work.engine.finished(&self.work.denoiser, all)
    }

    /// Pictures are drawn after every so many steps, and at the end.
    fn looks(&self, step: u64, end: bool) -> bool {
        let every = self.work.recipe.sample.every;
        every > 0 && (end || step.is_multiple_of(every))
    }

    fn draw(&mut self, step: u64) -> Result<()> {
        self.observer.on_samples(&self.work.draw(step)?);
        Ok(())
    }

    fn report(&mut self, outcome: Self::Outcome, epoch: f64, log: &mut Log) -> Result<()> {
        let Outcome { step, numbers, lr, grad_norm, time, data_wait } = outcome;
        let report = TeacherReport {
            step: step + 1,
            total_steps: self.total_steps,
            epoch,
            loss: numbers.loss,
            mse: numbers.mse,
            vlb: numbers.vlb,
            quarters: numbers.quarters,
            lr,
            grad_norm,
            time,
            data_wait,
            images: self.work.recipe.train.batch,
        };
        log.write(report.step, false, &report)?;
        self.observer.on_step(&report);
        self.last = Some(report);
        Ok(())
    }

    fn skipped(&mut self, bad: &Skipped) {
        self.observer.on_skip(bad);
    }

    fn saved(&mut self, path: &Path) {
        self.observer.on_checkpoint(path);
    }
}

/// Refuses a class-conditional network over images without labels.
fn check_labels(source: &dyn ImageSource, model: &AdmConfig) -> Result<()> {
    let Some(classes) = model.num_classes else { return Ok(()) };
    let have = source.classes().len();
    if (1..=classes).contains(&have) {
        return Ok(());
    }
    Err(Error::data(format!("the network is conditioned on {classes} classes, and the images have {have}"))
        .with_key("model.num_classes")
        .with_remedy("give images with labels and num_classes as many, or leave num_classes out"))
}

/// The classes of a batch, i64 `[N]`, for a class-conditional network.
fn labels(model: &AdmConfig, batch: &Batch) -> Result<Option<Tensor>> {
    let Some(classes) = model.num_classes else { return Ok(None) };
    let class = |l: &Option<u32>| match l {
        Some(l) if (*l as usize) < classes => Ok(i64::from(*l)),
        other => {
            Err(Error::data(format!("an image has the label {other:?}, which is none of {classes} classes"))
                .with_remedy("give every image a label below model.num_classes"))
        }
    };
    let values = batch.labels.iter().map(class).collect::<Result<Vec<i64>>>()?;
    Tensor::from_vec([values.len()], values).map(Some)
}
