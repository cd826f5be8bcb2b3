//! What a handle holds: teacher, student, optimiser, and the maps that were given out last.

use crate::abi::{Level, MAX_LEVELS, StepResult};
use dtk::base::DType;
use dtk::distill::{Distiller, LevelMetrics, Student, Teacher};
use dtk::error::{Error, Result};
use dtk::gpu::Gpu;
use dtk::nn::Ctx;
use dtk::optim::{Optimizer, Schedule, Span, clip_grad_norm};
use dtk::recipe::Recipe;
use dtk::tape::Var;
use dtk::tensor::Tensor;
use dtk::train::{DirectDistiller, apply_gradients, fill_backbone, fill_teacher, save_params};
use std::collections::BTreeMap;
use std::path::Path;

/// A map and the pixels of the image to one of it.
pub type Map = (Tensor, usize);

/// A teacher, a student and its optimiser.
pub struct Session {
    // Dropped first: it may lie on the device.
    maps: Vec<Map>,
    engine: Engine,
    recipe: Recipe,
    schedule: Schedule,
    step: u64,
}

/// Where it computes.
enum Engine {
    Host { distiller: Box<Distiller>, optimizer: Box<dyn Optimizer> },
    Device(Box<DirectDistiller>),
}

/// The schedule of a run whose epochs have so many images; 0 where nobody knows.
fn schedule(recipe: &Recipe, epoch_images: u64) -> Result<Schedule> {
    let length = recipe.train.length;
    if matches!(length, Span::Epochs(_)) && epoch_images == 0 {
        return Err(Error::usage("the recipe counts in epochs, and nobody said how many images one has")
            .with_key("train.length")
            .with_remedy("set epoch_images, or override train.length with a number of steps"));
    }
    let batch = recipe.train.batch;
    let per_epoch = (epoch_images / batch as u64).max(1);
    recipe.lr.schedule.build(recipe.lr.peak.resolve(batch)?, length.steps(per_epoch), per_epoch)
}

impl Session {
    /// Builds and loads what the recipe says; on a device where one is given.
    pub fn new(recipe: Recipe, epoch_images: u64, gpu: Option<&Gpu>) -> Result<Session> {
        let unsupported = |key: &str, what: &str| {
            Err(Error::usage(what).with_key(key).with_remedy("leave the key out, or use `dtk train`"))
        };
        if recipe.train.accumulate != 1 {
            return unsupported("train.accumulate", "steps of a host program take a batch in one part");
        }
        if recipe.train.ema.is_some() {
            return unsupported("train.ema", "steps of a host program keep no average of the student");
        }
        let seed = recipe.seed;
        let schedule = schedule(&recipe, epoch_images)?;
        let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |p| {
            fill_teacher(p, &recipe.teacher, seed).map(drop)
        })?;
        let [h, w] = [recipe.data.height as usize, recipe.data.width as usize];
        let student = Student::new(&recipe.student, teacher.taps(), [h, w], |p| {
            fill_backbone(p, &recipe.student, seed).map(drop)
        })?;
        let distiller = Distiller::new(teacher, student, recipe.loss.clone(), seed)?;
        let engine = match gpu {
            None => {
                let optimizer = recipe.optimizer.build()?;
                Engine::Host { distiller: Box::new(distiller), optimizer }
            }
            Some(gpu) => {
                let size = [recipe.train.batch, h, w];
                let there = DirectDistiller::new((&recipe).into(), distiller, gpu, size)?;
                Engine::Device(Box::new(there))
            }
        };
        Ok(Session { maps: Vec::new(), engine, recipe, schedule, step: 0 })
    }

    fn distiller(&self) -> &Distiller {
        match &self.engine {
            Engine::Host { distiller, .. } => distiller,
            Engine::Device(there) => there.distiller(),
        }
    }

    /// The device, if it is on one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.engine {
            Engine::Host { .. } => None,
            Engine::Device(there) => Some(there.gpu()),
        }
    }

    /// Pixels of the image to one of each map.
    fn pixels(&self, student: bool) -> Vec<usize> {
        match student {
            true => self.distiller().student().backbone().strides().to_vec(),
            false => self.distiller().teacher().taps().iter().map(|t| t.stride).collect(),
        }
    }

    /// How many maps there are.
    pub fn count(&self, student: bool) -> usize {
        self.pixels(student).len()
    }

    /// What was given out last is no longer valid.
    pub fn forget(&mut self) {
        self.maps.clear();
    }

    /// Maps of images `[n, h, w, 3]`, u8 or on the host f32 in -1..1; `first` is the place of the first one. They stay until
    /// [`Session::forget`].
    pub fn features(&mut self, student: bool, images: Tensor, first: u64) -> Result<&[Map]> {
        let maps = match &self.engine {
            Engine::Device(there) => {
                let images = bytes_on(there.gpu(), images)?;
                match student {
                    true => there.backbone_features(&images)?,
                    false => there.teacher_features(&images, 0, first)?,
                }
            }
            Engine::Host { distiller, .. } if student => {
                let student = distiller.student();
                let mut ctx = Ctx::inference(student.params());
                let maps = student.backbone_features(&mut ctx, &signed(images)?)?;
                maps.into_iter().map(Var::into_tensor).collect()
            }
            Engine::Host { distiller, .. } => {
                let images = signed(images)?;
                distiller.teacher().features(&images, 0, &positions(&images, first))?
            }
        };
        self.maps = maps.into_iter().zip(self.pixels(student)).collect();
        Ok(&self.maps)
    }

    /// One step and update.
    pub fn step(&mut self, images: Tensor, first: u64) -> Result<StepResult> {
        let [h, w] = [self.recipe.data.height as usize, self.recipe.data.width as usize];
        let wanted = [self.recipe.train.batch, h, w, 3];
        if *images.shape() != wanted {
            return Err(Error::shape("dtk_step", format!("the recipe's step takes images {wanted:?}"))
                .with_tensor("images", &images)
                .with_remedy("give such images, or override train.batch, data.height and data.width"));
        }
        let (step, lr) = (self.step, self.schedule.lr_at(self.step));
        let (grad_norm, loss, levels) = match &mut self.engine {
            Engine::Device(there) => {
                let images = bytes_on(there.gpu(), images)?;
                there.step(&images, step, first, lr)?;
                let out = there.outcome()?;
                (out.grad_norm, out.loss, out.levels)
            }
            Engine::Host { distiller, optimizer } => {
                let images = signed(images)?;
                let mut out = distiller.step(&images, step, &positions(&images, first))?;
                let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
                let clip = self.recipe.train.clip_grad;
                let norm = clip.map(|max| clip_grad_norm(&mut grads, max)).transpose()?;
                let stats = apply_gradients(&mut **optimizer, distiller.student_mut(), &out.grads, lr)?;
                let store = distiller.student_mut().params_mut();
                for (id, value) in out.buffers {
                    store.set(id, value)?;
                }
                (norm.unwrap_or(stats.grad_norm), out.loss, out.levels)
            }
        };
        self.step += 1;
        Ok(result(self.step, lr, grad_norm, loss, &levels))
    }

    /// Writes the backbone.
    pub fn save_backbone(&mut self, path: &Path) -> Result<()> {
        if let Engine::Device(there) = &mut self.engine {
            there.download()?;
        }
        let metadata = BTreeMap::from([
            ("format".to_string(), "pt".to_string()),
            ("dtk".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("recipe".to_string(), self.recipe.name.clone()),
            ("recipe_fingerprint".to_string(), self.recipe.fingerprint()),
            ("backbone".to_string(), self.recipe.student.backbone.name().to_string()),
            ("step".to_string(), self.step.to_string()),
        ]);
        save_params(self.distiller().student().params(), "backbone.", path, &metadata)
    }
}

/// Places of the images in their batch or set.
fn positions(images: &Tensor, first: u64) -> Vec<u64> {
    (0..images.shape()[0] as u64).map(|i| first.wrapping_add(i)).collect()
}

fn result(step: u64, lr: f64, grad_norm: f64, loss: f32, levels: &[LevelMetrics]) -> StepResult {
    let mut all = [Level::default(); MAX_LEVELS];
    for (to, l) in all.iter_mut().zip(levels) {
        *to = Level { pixels: l.stride as u64, mse: l.mse, at: l.at, cosine: l.cosine };
    }
    let level_count = levels.len().min(MAX_LEVELS) as u32;
    StepResult { step, lr, grad_norm, loss, level_count, levels: all }
}

/// Bytes on a device; those that lie there already are not copied.
fn bytes_on(gpu: &Gpu, images: Tensor) -> Result<Tensor> {
    if images.dtype() != DType::U8 {
        return Err(Error::usage(format!("a handle on a device takes bytes, not {}", images.dtype()))
            .with_key("images.dtype")
            .with_remedy("give DTK_U8"));
    }
    images.to_gpu_tagged(gpu, "images")
}

/// Images on the host as its networks take them, f32 in -1..1.
fn signed(images: Tensor) -> Result<Tensor> {
    if images.dtype() != DType::U8 {
        return Ok(images);
    }
    let values = images.data::<u8>()?.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
    Tensor::from_vec::<f32>(images.shape(), values)
}
