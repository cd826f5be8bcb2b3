//! The training of a diffusion network: images, noise, prediction, optimiser.

mod engine;
mod sample;

pub use sample::{Conversion, Drawing, TeacherFile, parse_size, write_png};

use super::distillation::{Options, Resume, wall_time};
use super::log::{EventWriter, JsonLines, short};
use super::run_dir::{Checkpoint, RunDir};
use super::source::open_images;
use super::weights::{load_params, save_params_as};
use crate::checkpoint::{StateDict, Tolerance};
use crate::data::{ImageSource, Loader, LoaderConfig, Pixels, Skipped};
use crate::diffusion::Denoiser;
use crate::error::{Error, Result};
use crate::models::adm::{AdmConfig, AdmUnet};
use crate::nn::ParamStore;
use crate::optim::Schedule;
use crate::recipe::TeacherRecipe;
use crate::tensor::write_safetensors;
use engine::{Engine, HostEngine, Job};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

impl TeacherReport {
    /// The curves of a step.
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

    /// The line of `metrics.jsonl`.
    fn line(&self) -> Map<String, Value> {
        let mut m = Map::new();
        m.insert("step".into(), json!(self.step));
        m.insert("epoch".into(), json!(self.epoch));
        m.extend(self.scalars().into_iter().map(|(tag, v)| (tag, short(v))));
        m.insert("lr".into(), json!(self.lr));
        for (key, time) in [("step_ms", self.time), ("data_wait_ms", self.data_wait)] {
            m.insert(key.into(), super::log::milliseconds(time));
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

/// A training of a diffusion network.
pub struct TeacherTrainer {
    recipe: TeacherRecipe,
    model: AdmConfig,
    source: Arc<dyn ImageSource>,
    denoiser: Denoiser,
    engine: Box<dyn Engine>,
    schedule: Schedule,
    total_steps: u64,
    step: u64,
    dir: RunDir,
    stop: Arc<AtomicBool>,
    setup: TeacherSetup,
}

impl TeacherTrainer {
    /// Opens the images, builds the network, and resumes if asked.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or checkpoints, a run folder that is in use, a checkpoint of another run.
    pub fn new(recipe: TeacherRecipe, options: Options) -> Result<Self> {
        recipe.validate()?;
        let model = recipe.model()?;
        let dir = RunDir::new(&options.out);
        let from = dir.start(&options.resume)?;
        let source = open_images(&recipe.data)?;
        check_labels(&*source, &model)?;
        let mut store = ParamStore::new();
        let net = AdmUnet::new(&mut store.builder(), &model)?;
        store.init(recipe.seed)?;
        let steps_per_epoch = (source.len() as u64 / recipe.train.batch as u64).max(1);
        let total_steps = recipe.train.length.steps(steps_per_epoch);
        let peak = recipe.lr.peak.resolve(recipe.train.batch)?;
        let schedule = recipe.lr.schedule.build(peak, total_steps, steps_per_epoch)?;
        let setup = TeacherSetup {
            images: source.len(),
            total_steps,
            start_step: 0,
            parameters: store.parameter_count(),
        };
        let denoiser = Denoiser::new(net, store, &recipe.diffusion, recipe.seed)?;
        let engine: Box<dyn Engine> = match &options.device {
            None => Box::new(HostEngine::new(&recipe, &denoiser)?),
            Some(_) => {
                return Err(Error::usage("teachers are trained on the CPU")
                    .with_key("--device")
                    .with_remedy("use --device cpu"));
            }
        };
        let mut trainer = TeacherTrainer {
            recipe,
            model,
            source,
            denoiser,
            engine,
            schedule,
            total_steps,
            step: 0,
            stop: options.stop,
            setup,
            dir,
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
    pub fn setup(&self) -> &TeacherSetup {
        &self.setup
    }

    /// Network and process.
    pub fn denoiser(&self) -> &Denoiser {
        &self.denoiser
    }

    /// Runs to the end, or until a stop is asked for.
    ///
    /// # Errors
    /// [`Error::interrupted`] after a stop, when everything is saved; a loss or gradient that is not finite; too many
    /// unreadable images; a file that cannot be written.
    pub fn run(&mut self, observer: &mut dyn TeacherObserver) -> Result<TeacherSummary> {
        observer.on_setup(&self.setup);
        let data = &self.recipe.data;
        let config = LoaderConfig {
            batch: self.recipe.train.batch,
            height: data.height,
            width: data.width,
            pixels: Pixels::Signed,
            flip: data.flip,
            crop: data.crop,
            background: data.background,
            seed: self.recipe.seed,
            max_bad: data.max_bad,
            workers: data.workers,
            prefetch: data.prefetch,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(Arc::clone(&self.source), config, self.step)?;
        let mut lines = JsonLines::open(&self.dir.file("metrics.jsonl"), self.step)?;
        let mut events = match self.recipe.run.tensorboard {
            true => Some(EventWriter::create(self.dir.path(), wall_time(), self.step)?),
            false => None,
        };
        let (mut last, mut known_bad, mut saved) = (None, 0, None);
        while self.step < self.total_steps {
            let batch = loader.next_batch()?;
            let labels = self.model.num_classes.map(|k| labels(&batch.labels, k)).transpose()?;
            let job = Job { step: self.step, lr: self.schedule.lr_at(self.step), labels, batch };
            let out = self.engine.step(&mut self.denoiser, job)?;
            self.step += 1;
            for bad in &loader.skipped()[known_bad..] {
                observer.on_skip(bad);
            }
            known_bad = loader.skipped().len();
            let report = TeacherReport {
                step: self.step,
                total_steps: self.total_steps,
                epoch: loader.epoch(),
                images: self.recipe.train.batch,
                ..out
            };
            let end = self.step == self.total_steps;
            if self.step.is_multiple_of(self.recipe.run.log_every) || end || self.step == 1 {
                lines.write(&report.line())?;
                if let Some(events) = &mut events {
                    events.scalars(wall_time(), report.step, &report.scalars())?;
                }
            }
            observer.on_step(&report);
            last = Some(report);
            let stop = self.stop.load(Ordering::Relaxed);
            if self.step.is_multiple_of(self.recipe.run.save_every) || end || stop {
                observer.on_checkpoint(&self.save()?);
                saved = Some(self.step);
            }
            let every = self.recipe.sample.every;
            if every > 0 && (self.step.is_multiple_of(every) || end) {
                observer.on_samples(&self.draw()?);
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
        let teacher = self.dir.file("teacher.safetensors");
        let dtype = self.recipe.output.dtype.dtype();
        save_params_as(&self.result()?, "", &teacher, &self.metadata(), Some(dtype))?;
        Ok(TeacherSummary { step: self.step, last, teacher, skipped: loader.skipped().to_vec() })
    }

    /// Draws a grid with the result so far. The noise is the same every time, so that the pictures can be followed.
    fn draw(&mut self) -> Result<PathBuf> {
        self.engine.synchronize(&mut self.denoiser)?;
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
        let path = self.dir.file("samples").join(format!("step_{:08}.png", self.step));
        write_png(&grid, &path)?;
        Ok(path)
    }

    /// The parameters that are the result so far: the average if there is one.
    fn result(&self) -> Result<ParamStore> {
        let store = self.denoiser.params();
        let mut result = store.clone();
        if let Some(average) = self.engine.average_state()? {
            for (id, p) in store.iter() {
                if let Some(t) = average.get(&format!("average.{}", p.name())) {
                    result.set(id, t.clone())?;
                }
            }
        }
        Ok(result)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let text = |v: serde_json::Result<String>| v.expect("a configuration is plain data");
        let model = text(serde_json::to_string(&self.model));
        let schedule = text(serde_json::to_string(&self.recipe.diffusion.schedule));
        let mut all = vec![
            ("format", "pt".to_string()),
            ("dtk", env!("CARGO_PKG_VERSION").to_string()),
            ("recipe", self.recipe.name.clone()),
            ("recipe_fingerprint", self.recipe.fingerprint()),
            ("data_fingerprint", self.source.fingerprint()),
            (sample::MODEL_KEY, model),
            (sample::STEPS_KEY, self.recipe.diffusion.steps.to_string()),
            (sample::SCHEDULE_KEY, schedule),
            (sample::SIZE_KEY, format!("{}x{}", self.recipe.data.height, self.recipe.data.width)),
            ("step", self.step.to_string()),
            ("seed", self.recipe.seed.to_string()),
        ];
        all.extend(option_env!("DTK_COMMIT").map(|c| ("commit", c.to_string())));
        all.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    fn save(&mut self) -> Result<PathBuf> {
        self.engine.synchronize(&mut self.denoiser)?;
        let state = Checkpoint {
            step: self.step,
            recipe: self.recipe.fingerprint(),
            data: self.source.fingerprint(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        let none = BTreeMap::new();
        self.dir.save(&state, self.recipe.run.keep, |dir| {
            let network = dir.join("network.safetensors");
            save_params_as(self.denoiser.params(), "", &network, &self.metadata(), None)?;
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
        state.expect(path, &ours, self.total_steps, "")?;
        let network = StateDict::open(path.join("network.safetensors"))?;
        load_params(self.denoiser.params_mut(), "", &network, Tolerance::default())?;
        let optimizer = super::run_dir::read_tensors(&path.join("optimizer.safetensors"))?;
        let average = match &self.recipe.train.ema {
            Some(_) => Some(super::run_dir::read_tensors(&path.join("ema.safetensors"))?),
            None => None,
        };
        self.engine.load(&self.denoiser, &optimizer, average.as_ref())?;
        self.step = state.step;
        Ok(())
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

/// The classes of a batch for a network of `classes`.
fn labels(labels: &[Option<u32>], classes: usize) -> Result<crate::tensor::Tensor> {
    let class = |l: &Option<u32>| match l {
        Some(l) if (*l as usize) < classes => Ok(i64::from(*l)),
        other => {
            Err(Error::data(format!("an image has the label {other:?}, which is none of {classes} classes"))
                .with_remedy("give every image a label below model.num_classes"))
        }
    };
    let values = labels.iter().map(class).collect::<Result<Vec<i64>>>()?;
    crate::tensor::Tensor::from_vec([values.len()], values)
}
