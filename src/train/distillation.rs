//! The main loop: images, teacher, student, optimiser.

use super::course::{
    Course, Log, Options, Outline, Resumable, Training, averaged, read_states, write_states,
};
use super::device::{DeviceEngine, DevicePlan};
use super::engine::{Engine, HostEngine, Job, Numbers, Outcome};
use super::weights::{fill_backbone, fill_teacher, load_params, save_params};
use crate::checkpoint::{KeyReport, StateDict, Tolerance};
use crate::data::Skipped;
use crate::distill::{Distiller, LevelMetrics, Plan, Student, Teacher};
use crate::error::Result;
use crate::eval::OnlineKnn;
use crate::gpu::DeviceInfo;
use crate::recipe::Recipe;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    course: Course,
    work: Work,
    setup: Setup,
}

/// What a run trains and measures.
struct Work {
    recipe: Recipe,
    data_fingerprint: String,
    distiller: Distiller,
    engine: Box<dyn Engine<Distiller, Numbers = Numbers>>,
    knn: Option<OnlineKnn>,
}

impl Trainer {
    /// Opens the images, builds and loads teacher and student, and resumes if asked.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or checkpoints, a run folder that is in use, a checkpoint of another run.
    pub fn new(recipe: Recipe, options: Options) -> Result<Self> {
        recipe.validate()?;
        let outline = Outline {
            data: &recipe.data,
            lr: &recipe.lr,
            run: &recipe.run,
            length: &recipe.train.length,
            seed: recipe.seed,
            batch: recipe.train.batch,
            accumulate: recipe.train.accumulate,
            fingerprint: recipe.fingerprint(),
        };
        let (mut course, from) = Course::open(&outline, &options)?;
        let seed = recipe.seed;
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
        let mut setup = Setup {
            images: course.source().len(),
            total_steps: course.total_steps(),
            start_step: 0,
            teacher_keys,
            student_keys,
            teacher_parameters: teacher.params().parameter_count(),
            student_parameters: student.params().parameter_count(),
        };
        let online = recipe.eval.as_ref().is_some_and(|e| e.online_knn_every > 0);
        let knn = online.then(|| OnlineKnn::new(&recipe.evaluation())).transpose()?;
        let distiller = Distiller::new(teacher, student, recipe.loss.clone(), seed)?;
        let engine: Box<dyn Engine<Distiller, Numbers = Numbers>> = match &options.device {
            None => Box::new(HostEngine::new(&recipe, distiller.student())?),
            Some(gpu) => Box::new(DeviceEngine::new(&recipe, &distiller, gpu)?),
        };
        let data_fingerprint = course.data_fingerprint().to_string();
        let mut work = Work { recipe, data_fingerprint, distiller, engine, knn };
        let texts = (&work.recipe.to_toml()[..], ", or start a new run from it with student.weights");
        course.begin(from.as_deref(), &mut work, texts, &options)?;
        setup.start_step = course.step();
        Ok(Trainer { course, work, setup })
    }

    /// What is known before the first step.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Teacher and student.
    pub fn distiller(&self) -> &Distiller {
        &self.work.distiller
    }

    /// Runs to the end, or until a stop is asked for.
    ///
    /// # Errors
    /// [`Error::interrupted`](crate::Error::interrupted) after a stop, when everything is saved; a loss or gradient that is not
    /// finite; too many unreadable images; a file that cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Summary> {
        observer.on_setup(&self.setup);
        let total_steps = self.course.total_steps();
        let mut watched = Watched { work: &mut self.work, observer, total_steps, measured: None, last: None };
        let skipped = self.course.drive(&mut watched)?;
        let last = watched.last;
        let (step, work) = (self.course.step(), &self.work);
        let backbone = self.course.dir().file("backbone.safetensors");
        let (store, metadata) = (work.distiller.student().params(), work.metadata(step));
        save_params(store, "backbone.", &backbone, &metadata)?;
        if let Some(average) = work.engine.average_state()? {
            let file = self.course.dir().file("backbone_ema.safetensors");
            save_params(&averaged(store, &average)?, "backbone.", &file, &metadata)?;
        }
        Ok(Summary { step, last, backbone, skipped })
    }
}

impl Work {
    fn metadata(&self, step: u64) -> BTreeMap<String, String> {
        [
            ("format", "pt".to_string()),
            ("dtk", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", self.recipe.name.clone()),
            ("recipe_fingerprint", self.recipe.fingerprint()),
            ("data_fingerprint", self.data_fingerprint.clone()),
            ("backbone", self.recipe.student.backbone.name().to_string()),
            (
                "backbone_config",
                serde_json::to_string(&self.recipe.student.backbone).expect("numbers and names"),
            ),
            ("image_size", format!("{}x{}", self.recipe.data.height, self.recipe.data.width)),
            ("step", step.to_string()),
            ("seed", self.recipe.seed.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into()
    }
}

impl Resumable for Work {
    fn synchronize(&mut self) -> Result<()> {
        self.engine.synchronize(&mut self.distiller)
    }

    fn write(&self, dir: &Path, step: u64) -> Result<()> {
        let store = self.distiller.student().params();
        save_params(store, "", &dir.join("student.safetensors"), &self.metadata(step))?;
        write_states(&*self.engine, dir)
    }

    fn read(&mut self, dir: &Path) -> Result<()> {
        let student = StateDict::open(dir.join("student.safetensors"))?;
        load_params(self.distiller.student_mut().params_mut(), "", &student, Tolerance::default())?;
        let (optimizer, average) = read_states(dir, self.recipe.train.ema.is_some())?;
        self.engine.load(&self.distiller, &optimizer, average.as_ref())
    }
}

/// A run with somebody who watches.
struct Watched<'a> {
    work: &'a mut Work,
    observer: &'a mut dyn Observer,
    total_steps: u64,
    /// Step and accuracy of the last measurement of nearest neighbours.
    measured: Option<(u64, f64)>,
    last: Option<StepReport>,
}

impl Training for Watched<'_> {
    type Kept = Work;
    type Outcome = Outcome<Numbers>;

    fn trained(&mut self) -> &mut Work {
        self.work
    }

    fn step(&mut self, job: Job<'_>) -> Result<()> {
        self.work.engine.step(&mut self.work.distiller, job)
    }

    fn finished(&mut self, all: bool) -> Result<Vec<Self::Outcome>> {
        self.work.engine.finished(&self.work.distiller, all)
    }

    /// Nearest neighbours are measured after every so many steps, and at the end.
    fn looks(&self, step: u64, end: bool) -> bool {
        let every = self.work.recipe.eval.as_ref().map_or(0, |e| e.online_knn_every);
        self.work.knn.is_some() && (end || step.is_multiple_of(every))
    }

    fn measure(&mut self, step: u64) -> Result<()> {
        self.work.synchronize()?;
        let (backbone, student) = (&self.work.recipe.student.backbone, self.work.distiller.student());
        if let Some(knn) = &self.work.knn {
            self.measured = Some((step, knn.top1(backbone, student.params())?));
        }
        Ok(())
    }

    fn report(&mut self, outcome: Self::Outcome, epoch: f64, log: &mut Log) -> Result<()> {
        let Outcome { step, numbers, lr, grad_norm, time, data_wait } = outcome;
        let step = step + 1;
        let report = StepReport {
            step,
            total_steps: self.total_steps,
            epoch,
            loss: numbers.loss,
            mse: numbers.mse,
            at: numbers.at,
            levels: numbers.levels,
            lr,
            grad_norm,
            time,
            data_wait,
            teacher_time: numbers.teacher_time,
            student_time: numbers.student_time,
            images: self.work.recipe.train.batch,
            knn_top1: self.measured.filter(|(at, _)| *at == step).map(|(_, top1)| top1),
        };
        log.write(step, report.knn_top1.is_some(), &report)?;
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
