//! The training of a diffusion network on a CUDA device: the whole step captured once and launched as a graph.
//!
//! ```text
//!  [ q_sample | network | loss | backward | update ]      launched and awaited as those of a distillation
//! ```
//! The host draws the time steps, as everywhere, and sends what follows from them: factors of image and noise, the embedding
//! of the time, and the keys of the random streams. The batch goes through the network as a whole.

use super::labels;
use crate::base::{DType, Philox, Shape};
use crate::diffusion::{Bound, Denoiser, DenoiserStep, NoisyBatch};
use crate::error::{Error, Result};
use crate::gpu::{Buffer, DeviceInfo, Gpu, Graph};
use crate::models::adm::{Time, timestep_embedding};
use crate::nn::{Ctx, ParamStore};
use crate::ops::untaped::q_sample::QSample;
use crate::ops::{DeviceKey, KEY_BYTES};
use crate::recipe::TeacherRecipe;
use crate::tensor::{Ledger, Storage, Tensor};
use crate::train::device::{DevicePlan, Pipeline, Stage, Trained, copy, unpack};
use crate::train::engine::{Engine, Job, Outcome, State};
use std::collections::VecDeque;
use std::time::Duration;

/// What a finished step of a [`TeacherStep`] tells.
pub struct TeacherOutcome {
    /// The step, counted from 0.
    pub step: u64,
    /// Loss, its parts and quarters; without gradients, which stay on the device.
    pub numbers: DenoiserStep,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Time from the step before to this one, as the host saw them finish.
    pub time: Duration,
}

/// Training steps of a diffusion network on a CUDA device.
pub struct TeacherStep {
    // Graphs end before what their work uses.
    pipeline: Pipeline,
    there: There,
    plan: DevicePlan,
}

impl TeacherStep {
    /// Puts network and optimiser on a device and captures a step of the recipe. Takes the memory that the plan says, in one
    /// piece, and compiles the kernels that it names.
    ///
    /// # Errors
    /// The device has not enough memory, a kernel does not compile, or shapes do not fit.
    pub fn new(recipe: &TeacherRecipe, denoiser: &Denoiser, gpu: &Gpu) -> Result<Self> {
        let plan = Self::planned(recipe, denoiser, gpu.info())?;
        plan.prepare(gpu)?;
        let there = There::new(recipe, denoiser, gpu)?;
        let graph = there.capture(denoiser, &mut |_| ())?;
        let pipeline = Pipeline::new(gpu, (graph, None), there.inputs.bytes(), &there.trained.optimizer)?;
        Ok(TeacherStep { pipeline, there, plan })
    }

    /// Plans the steps of a recipe, without the device. The network needs no values.
    ///
    /// # Errors
    /// Shapes that do not fit, or sizes that no kernel takes.
    pub fn planned(recipe: &TeacherRecipe, denoiser: &Denoiser, device: &DeviceInfo) -> Result<DevicePlan> {
        DevicePlan::of(
            device,
            [recipe.train.batch, 1],
            |gpu| There::new(recipe, denoiser, gpu),
            |there, after| Ok((there.capture(denoiser, after)?, None)),
        )
    }

    /// What a step launches, and what it takes.
    pub fn plan(&self) -> &DevicePlan {
        &self.plan
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.there.trained.gpu
    }

    /// Launches a step on u8 images `[N, H, W, 3]`, with their classes, i64 `[N]`, for a class-conditional network. The host
    /// waits for the step that is two behind at most; results come from [`TeacherStep::finished`], before a third is launched.
    ///
    /// # Errors
    /// Images or classes of other sizes than the recipe's, a learning rate that is none, or earlier work on the device has
    /// failed.
    pub fn launch(
        &mut self,
        denoiser: &Denoiser,
        step: u64,
        lr: f64,
        pixels: &Tensor,
        labels: Option<&Tensor>,
    ) -> Result<()> {
        let There { inputs, trained, .. } = &mut self.there;
        let values = inputs.values(denoiser, step, pixels, labels)?;
        let gpu = trained.gpu.clone();
        self.pipeline.feed(|to| inputs.write(to, &values), |arrived| inputs.unpack(&gpu, arrived))?;
        let mut pending = self.pipeline.begin(step, lr, &mut trained.optimizer)?;
        self.pipeline.launch_part(&mut pending, &[&self.there.loss, &self.there.samples])?;
        self.pipeline.finish(pending, &self.there.trained.optimizer)
    }

    /// Steps that were launched and not taken.
    pub fn under_way(&self) -> usize {
        self.pipeline.under_way()
    }

    /// Whether another step may be launched before the oldest is taken.
    pub fn has_room(&self) -> bool {
        self.pipeline.has_room()
    }

    /// The oldest step that was launched and not taken; waits for it. `None` if there is none.
    ///
    /// # Errors
    /// The loss or a gradient of that step is not finite: it changed no parameter. Or work on the device has failed.
    pub fn finished(&mut self, denoiser: &Denoiser) -> Result<Option<TeacherOutcome>> {
        let Some(out) = self.pipeline.take()? else { return Ok(None) };
        let (loss, samples) = (out.results[0][0], &out.results[1]);
        let grad_norm = out.grad_norm(loss);
        if grad_norm.is_err() {
            self.there.trained.optimizer.take_back();
        }
        let times = denoiser.times(out.step, &self.there.inputs.positions());
        let numbers = denoiser.numbers(loss, samples, &times);
        Ok(Some(TeacherOutcome { step: out.step, numbers, grad_norm: grad_norm?, time: out.time }))
    }

    /// Copies the parameters to the host; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn download(&self, store: &mut ParamStore) -> Result<()> {
        self.there.trained.download(store, self.pipeline.launched() as i64)
    }

    /// The optimiser's state, as [`crate::optim::Optimizer::state`]; waits for the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn optimizer_state(&self) -> Result<State> {
        self.there.trained.optimizer.state()
    }

    /// The state of the average of the network, as [`crate::optim::Ema::state`]; `None` if the recipe keeps none. Waits for
    /// the device.
    ///
    /// # Errors
    /// Work on the device has failed.
    pub fn average_state(&self) -> Result<Option<State>> {
        self.there.trained.average_state(self.pipeline.launched() as i64)
    }

    /// Goes on from a checkpoint: the network's parameters, the states of optimiser and average.
    ///
    /// # Errors
    /// A state that does not fit the recipe.
    pub fn load(&mut self, network: &ParamStore, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.pipeline.restart();
        self.there.trained.load(network, optimizer, average)
    }
}

/// What lies on the device from the first step of a run to the last.
struct There {
    trained: Trained,
    inputs: Inputs,
    dtype: DType,
    /// Those of the denoiser, for a network that predicts a variance.
    tables: Option<Tensor>,
    /// f32 `[1]`.
    loss: Tensor,
    /// f32 `[N, 2]`: the two parts of the loss of every sample.
    samples: Tensor,
}

impl There {
    fn new(recipe: &TeacherRecipe, denoiser: &Denoiser, gpu: &Gpu) -> Result<Self> {
        let dtype = recipe.train.precision.dtype();
        let size = [recipe.train.batch, recipe.data.height as usize, recipe.data.width as usize];
        let sigma = denoiser.net().config().learn_sigma;
        Ok(There {
            trained: Trained::new(recipe.into(), denoiser.params(), gpu)?,
            inputs: Inputs::new(denoiser, size, dtype, gpu)?,
            dtype,
            tables: sigma.then(|| denoiser.tables().to_gpu_tagged(gpu, "schedule")).transpose()?,
            loss: Tensor::empty_gpu([1], DType::F32, gpu, "metrics")?,
            samples: Tensor::empty_gpu([size[0], 2], DType::F32, gpu, "metrics")?,
        })
    }

    /// Captures a step; `after` hears what has just been enqueued.
    fn capture(&self, denoiser: &Denoiser, after: &mut dyn FnMut(Stage)) -> Result<Graph> {
        let Trained { gpu, optimizer, .. } = &self.trained;
        gpu.stream().capture(|| {
            self.enqueue_gradients(denoiser)?;
            after(Stage::Part);
            optimizer.enqueue_update(gpu, 1, Some(&self.loss))?;
            after(Stage::Update);
            Ok(())
        })
    }

    /// Enqueues everything from the inputs to the gradients.
    fn enqueue_gradients(&self, denoiser: &Denoiser) -> Result<()> {
        let There { trained, inputs, tables, .. } = self;
        let gpu = &trained.gpu;
        let sample = QSample { dtype: self.dtype, images: tables.is_some() };
        let made = sample.run(gpu, &inputs.pixels, &inputs.noise, &inputs.levels)?;
        let bound = match (made.images, &inputs.index, tables) {
            (Some(images), Some(index), Some(tables)) => {
                Some(Bound { images, index: index.clone(), tables: tables.clone() })
            }
            _ => None,
        };
        let labels = inputs.labels.clone();
        let batch = NoisyBatch { noisy: made.noisy, noise: made.noise, labels, bound };
        // The keys lie on the device where something is drawn; what is drawn from here is of no use.
        let mut ctx = Ctx::training(&trained.params.store, Philox::new(0));
        if let Some(keys) = &inputs.draws {
            ctx = ctx.with_keys(keys.clone());
        }
        let time = ctx.constant(inputs.time.clone());
        let (loss, samples) = denoiser.objective(&mut ctx, &Time::Embedded(&time), batch)?;
        copy(gpu, &loss.tensor().reshape([1])?, &self.loss)?;
        copy(gpu, &samples, &self.samples)?;
        drop(samples);
        trained.enqueue_gradients(ctx.backward(&loss)?, true)
    }
}

/// What a batch brings to the device, at addresses that do not change. It comes in one piece, in the order of the fields.
struct Inputs {
    /// u8 `[N, H, W, 3]`.
    pixels: Tensor,
    /// u8 `[N, 16]`: the stream of each sample's noise.
    noise: Tensor,
    /// f32 `[N, 2]`: the factors of each sample's image and noise.
    levels: Tensor,
    /// The embedding of the time of each sample, `[N, model_channels]`, of the operands' type.
    time: Tensor,
    /// i64 `[N]`: the time step of each sample, for a network that predicts a variance.
    index: Option<Tensor>,
    /// i64 `[N]`: the classes, for a class-conditional network.
    labels: Option<Tensor>,
    /// u8 `[draws, 16]`: the streams of dropout; `None` without.
    draws: Option<Tensor>,
}

impl Inputs {
    fn new(denoiser: &Denoiser, [n, h, w]: [usize; 3], dtype: DType, gpu: &Gpu) -> Result<Self> {
        let config = denoiser.net().config();
        let input =
            |shape: &[usize], dtype| Tensor::empty_gpu(Shape::from_slice(shape)?, dtype, gpu, "input");
        let draws = draws(denoiser, [n, h, w])?;
        let of = |wanted: bool, shape: &[usize], dtype| wanted.then(|| input(shape, dtype)).transpose();
        Ok(Inputs {
            pixels: input(&[n, h, w, 3], DType::U8)?,
            noise: input(&[n, KEY_BYTES], DType::U8)?,
            levels: input(&[n, 2], DType::F32)?,
            time: input(&[n, config.model_channels], dtype)?,
            index: of(config.learn_sigma, &[n], DType::I64)?,
            labels: of(config.num_classes.is_some(), &[n], DType::I64)?,
            draws: of(draws > 0, &[draws, KEY_BYTES], DType::U8)?,
        })
    }

    fn fields(&self) -> impl Iterator<Item = &Tensor> {
        let always = [&self.pixels, &self.noise, &self.levels, &self.time];
        always.into_iter().chain(&self.index).chain(&self.labels).chain(&self.draws)
    }

    /// Bytes of all.
    fn bytes(&self) -> usize {
        self.fields().map(Tensor::bytes).sum()
    }

    /// The places of the samples in the batch.
    fn positions(&self) -> Vec<u64> {
        (0..self.noise.shape()[0] as u64).collect()
    }

    /// The inputs of a step on the host, in the order of the fields. As on the CPU they follow from the seed, the step and the
    /// places in the batch.
    fn values(
        &self,
        denoiser: &Denoiser,
        step: u64,
        pixels: &Tensor,
        labels: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let (positions, schedule) = (self.positions(), denoiser.schedule());
        let n = positions.len();
        let times = denoiser.times(step, &positions);
        let keys =
            |streams: &[Philox]| Tensor::from_vec([streams.len(), KEY_BYTES], DeviceKey::bytes(streams));
        let noise: Vec<Philox> = positions.iter().map(|&p| denoiser.noise_stream(step, p)).collect();
        let levels = times.iter().flat_map(|&t| {
            [schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]].map(|v| v as f32)
        });
        let time = timestep_embedding(&denoiser.network_times(&times), self.time.shape()[1]);
        let mut values = vec![
            pixels.clone(),
            keys(&noise)?,
            Tensor::from_vec([n, 2], levels.collect())?,
            time.to_dtype(self.time.dtype())?,
        ];
        if self.index.is_some() {
            values.push(Tensor::from_vec([n], times.iter().map(|&t| t as i64).collect())?);
        }
        values.extend(labels.cloned());
        if let Some(draws) = &self.draws {
            let stream = denoiser.dropout_stream(step, 0);
            // As `Ctx::next_rng` numbers them.
            let streams: Vec<Philox> = (1..=draws.shape()[0] as u64).map(|i| stream.fold(i)).collect();
            values.push(keys(&streams)?);
        }
        Ok(values)
    }

    /// Writes the inputs as they travel.
    fn write(&self, to: &mut [u8], values: &[Tensor]) -> Result<()> {
        let fits = |(field, value): (&Tensor, &Tensor)| {
            field.shape() == value.shape() && field.dtype() == value.dtype()
        };
        if values.len() != self.fields().count() || !self.fields().zip(values).all(fits) {
            let mut e = Error::shape("teacher step", format!("the step takes pixels {:?}", self.pixels))
                .with_remedy(
                    "give u8 images as many as the batch has, of the recipe's size, and labels with a \
                     class-conditional network alone",
                );
            if let Some(pixels) = values.first() {
                e = e.with_tensor("pixels", pixels);
            }
            return Err(e);
        }
        let mut rest = to;
        for value in values {
            let Storage::Cpu(host) = value.storage() else {
                return Err(Error::device("the step takes images in host memory").with_op("teacher step"));
            };
            let (here, behind) = rest.split_at_mut(value.bytes());
            here.copy_from_slice(host.as_bytes());
            rest = behind;
        }
        Ok(())
    }

    /// Enqueues the copies from where they arrived.
    fn unpack(&self, gpu: &Gpu, from: &Buffer) -> Result<()> {
        unpack(gpu, from, self.fields())
    }
}

/// How many random streams a pass uses, for dropout: counted on shapes.
fn draws(denoiser: &Denoiser, [n, h, w]: [usize; 3]) -> Result<usize> {
    let ledger = Ledger::new();
    let mut ctx = Ctx::training(denoiser.params(), Philox::new(0)).planning(&ledger);
    let planned = |shape: &[usize], dtype| {
        Ok::<_, Error>(Tensor::meta(Shape::from_slice(shape)?, dtype, Some(&ledger)))
    };
    let x = ctx.constant(planned(&[n, h, w, 3], DType::F32)?);
    let labels = denoiser.net().config().num_classes.map(|_| planned(&[n], DType::I64)).transpose()?;
    let labels = labels.map(|l| ctx.constant(l));
    denoiser.net().forward(&mut ctx, &x, &Time::Steps(&[0.0]), labels.as_ref())?;
    Ok(ctx.draws() as usize)
}

/// [`TeacherStep`] as a run drives it.
pub(super) struct DeviceEngine {
    step: TeacherStep,
    /// Learning rate and wait for images of the steps under way.
    launched: VecDeque<(f64, Duration)>,
}

impl DeviceEngine {
    pub fn new(recipe: &TeacherRecipe, denoiser: &Denoiser, gpu: &Gpu) -> Result<Self> {
        Ok(DeviceEngine { step: TeacherStep::new(recipe, denoiser, gpu)?, launched: VecDeque::new() })
    }
}

impl Engine<Denoiser> for DeviceEngine {
    type Numbers = DenoiserStep;

    fn step(&mut self, denoiser: &mut Denoiser, job: Job<'_>) -> Result<()> {
        let batch = (job.batch)()?;
        let labels = labels(denoiser.net().config(), &batch)?;
        self.step.launch(denoiser, job.step, job.lr, &batch.images, labels.as_ref())?;
        self.launched.push_back((job.lr, batch.wait));
        Ok(())
    }

    fn finished(&mut self, denoiser: &Denoiser, all: bool) -> Result<Vec<Outcome<DenoiserStep>>> {
        let mut done = Vec::new();
        while self.step.under_way() > 0 && (all || !self.step.has_room()) {
            let Some(out) = self.step.finished(denoiser)? else { break };
            let (lr, data_wait) = self.launched.pop_front().unwrap_or_default();
            let TeacherOutcome { step, numbers, grad_norm, time } = out;
            done.push(Outcome { step, numbers, lr, grad_norm, time, data_wait });
        }
        Ok(done)
    }

    fn synchronize(&mut self, denoiser: &mut Denoiser) -> Result<()> {
        self.step.download(denoiser.params_mut())
    }

    fn optimizer_state(&self) -> Result<State> {
        self.step.optimizer_state()
    }

    fn average_state(&self) -> Result<Option<State>> {
        self.step.average_state()
    }

    fn load(&mut self, denoiser: &Denoiser, optimizer: &State, average: Option<&State>) -> Result<()> {
        self.step.load(denoiser.params(), optimizer, average)
    }
}
