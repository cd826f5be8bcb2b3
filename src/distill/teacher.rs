//! The frozen generative network as a giver of features.

use crate::base::Philox;
use crate::diffusion::{DiffusionConfig, Encoding, EpsModel, Schedule, ddim_encode};
use crate::error::{Error, Result};
use crate::models::adm::{AdmConfig, AdmUnet, FoldedTime, Tap, TapInfo, Taps, Time};
use crate::nn::{Ctx, ParamStore};
use crate::ops::Offload;
use crate::tape::{Step, Var};
use crate::tensor::{Device, Ledger, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The teacher's part of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// The architecture: a name of the zoo, or a table of [`AdmConfig`]'s fields.
    pub model: TeacherModel,
    /// A checkpoint file (safetensors or PyTorch, guided-diffusion's keys), or `"random"` for an untrained network
    /// with random weights, which shows the machinery but teaches little.
    pub weights: String,
    /// Which feature maps to distil: a preset's name, or a list such as `[{ block = 2, position = "pre_up" }]`.
    pub taps: TapsConfig,
    /// Compute nothing behind the last tap.
    pub early_exit: bool,
    /// Accept keys in the checkpoint that the network does not have.
    pub allow_unexpected: bool,
    /// The class a class-conditional network is conditioned on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<usize>,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        TeacherConfig {
            model: TeacherModel::Name("tiny".into()),
            weights: "random".into(),
            taps: TapsConfig::Preset("dreamteacher".into()),
            early_exit: true,
            allow_unexpected: false,
            label: None,
        }
    }
}

/// A named architecture or a complete configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TeacherModel {
    /// One of [`AdmConfig::NAMED`].
    Name(String),
    /// Every field.
    Config(Box<AdmConfig>),
}

impl TeacherModel {
    /// The configuration.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn resolve(&self) -> Result<AdmConfig> {
        match self {
            TeacherModel::Name(name) => AdmConfig::named(name).map_err(|e| e.with_key("teacher.model")),
            TeacherModel::Config(c) => Ok((**c).clone()),
        }
    }
}

/// A preset or a list of taps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TapsConfig {
    /// One of [`Taps::PRESETS`].
    Preset(String),
    /// Any list.
    List(Vec<Tap>),
}

impl TapsConfig {
    /// The taps of a network.
    ///
    /// # Errors
    /// The preset is unknown, or the network lacks a block.
    pub fn resolve(&self, config: &AdmConfig) -> Result<Taps> {
        match self {
            TapsConfig::Preset(name) => Taps::preset(name, config),
            TapsConfig::List(taps) => Ok(Taps::new(taps.clone())),
        }
    }
}

/// How much of image and noise is in the input of stochastic encoding: `signal * image + noise * z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Factor of the image in -1..1.
    pub signal: f32,
    /// Factor of the standard normal noise.
    pub noise: f32,
}

/// How clean images become the noisy input of the network.
#[derive(Clone)]
pub(super) struct Encoder {
    diffusion: DiffusionConfig,
    schedule: Schedule,
    ddim: Option<(Schedule, usize)>,
    noise: Philox,
}

impl Encoder {
    /// `seed` is the root of the noise.
    fn new(diffusion: &DiffusionConfig, seed: u64) -> Result<Self> {
        let ddim = (diffusion.encoding == Encoding::Ddim).then(|| diffusion.build_ddim()).transpose()?;
        Ok(Encoder {
            diffusion: diffusion.clone(),
            schedule: diffusion.build()?,
            ddim,
            noise: Philox::new(seed).fold_str("diffusion noise"),
        })
    }

    /// The times at which deterministic encoding asks the network for its prediction, in order; none without it.
    pub(super) fn times(&self) -> &[usize] {
        self.ddim.as_ref().map_or(&[], |(schedule, steps)| &schedule.timestep_map[..*steps])
    }

    /// As [`Teacher::encode`], with the network that deterministic encoding needs.
    pub(super) fn encode(
        &self,
        images: &Tensor,
        step: u64,
        positions: &[u64],
        model: &mut EpsModel<'_>,
    ) -> Result<Tensor> {
        let (n, h, w, c) = images.shape().nhwc("encode")?;
        if positions.len() != n {
            return Err(Error::shape("encode", format!("{} positions for {n} images", positions.len())));
        }
        if let Some((schedule, steps)) = &self.ddim {
            let clip = self.diffusion.clip_denoised;
            return ddim_encode(schedule, images, *steps, clip, model, &mut |_, _| Ok(()));
        }
        let noise = self.diffusion.noise.draw(self.noise, step, positions, [h, w, c])?;
        self.schedule.q_sample(images, &vec![self.diffusion.t; n], &noise)
    }
}

/// A frozen ADM U-Net, its taps, and how images are encoded for it.
pub struct Teacher {
    pub(super) net: AdmUnet,
    pub(super) store: ParamStore,
    pub(super) taps: Taps,
    info: Vec<TapInfo>,
    pub(super) early_exit: bool,
    pub(super) label: Option<usize>,
    pub(super) encoder: Encoder,
    pub(super) folded: FoldedTime,
}

impl Teacher {
    /// Builds the network; `fill` gives its parameters their values (loading or [`ParamStore::init`]). Without
    /// values it can only be planned. `seed` is the root of the noise.
    ///
    /// # Errors
    /// An invalid configuration, a tap that does not exist, or an error of `fill`.
    pub fn new(
        config: &TeacherConfig,
        diffusion: &DiffusionConfig,
        seed: u64,
        fill: impl FnOnce(&mut ParamStore) -> Result<()>,
    ) -> Result<Self> {
        let model = config.model.resolve()?;
        let mut store = ParamStore::new();
        let net = AdmUnet::new(&mut store.builder(), &model)?;
        let taps = config.taps.resolve(&model)?;
        let info = taps.describe(&model)?;
        let encoder = Encoder::new(diffusion, seed)?;
        fill(&mut store)?;
        store.set_trainable(false, |_| true);
        let folded = net.fold_time(&store, diffusion.t as f32, config.label)?;
        Ok(Teacher {
            net,
            store,
            taps,
            info,
            early_exit: config.early_exit,
            label: config.label,
            encoder,
            folded,
        })
    }

    /// Stride and channels of every feature map, in the order of the taps.
    pub fn taps(&self) -> &[TapInfo] {
        &self.info
    }

    /// The mix of image and noise in the network's input; `None` with deterministic encoding, which asks the network.
    pub fn noise_level(&self) -> Option<NoiseLevel> {
        let Encoder { diffusion, schedule, ddim, .. } = &self.encoder;
        let level = |factors: &[f64]| factors[diffusion.t] as f32;
        ddim.is_none().then(|| NoiseLevel {
            signal: level(&schedule.sqrt_alphas_cumprod),
            noise: level(&schedule.sqrt_one_minus_alphas_cumprod),
        })
    }

    /// The random stream of the noise of a sample: of a step, and the sample's place in its batch.
    pub fn noise_stream(&self, step: u64, position: u64) -> Philox {
        self.encoder.diffusion.noise.stream(self.encoder.noise, step, position)
    }

    /// The network's parameters.
    pub fn params(&self) -> &ParamStore {
        &self.store
    }

    /// What height and width of images must be divisible by.
    pub fn max_stride(&self) -> usize {
        self.net.config().max_stride()
    }

    /// The noisy input of the network for clean images `[N, H, W, 3]` in -1..1. The noise of a sample depends on the
    /// seed, `step` and its entry in `positions` alone.
    ///
    /// # Errors
    /// Wrong shapes; deterministic encoding also fails where the network does.
    pub fn encode(&self, images: &Tensor, step: u64, positions: &[u64]) -> Result<Tensor> {
        let n = images.shape().first().copied().unwrap_or(0);
        let labels = self.label.map(|l| Tensor::from_vec([n], vec![l as i64; n])).transpose()?;
        // Every step of deterministic encoding needs the prediction at its own time, so nothing is folded.
        self.encoder.encode(images, step, positions, &mut |x, t| {
            let mut ctx = Ctx::inference(&self.store);
            let x = ctx.constant(x.clone());
            let labels = labels.as_ref().map(|l| ctx.constant(l.clone()));
            let time = [t as f32];
            Ok(self.net.forward(&mut ctx, &x, &Time::Steps(&time), labels.as_ref())?.into_tensor())
        })
    }

    /// The raw feature maps `[N, H/stride, W/stride, channels]` of clean images in -1..1, in the order of the taps.
    ///
    /// # Errors
    /// As [`Teacher::encode`]; a height or width that [`Teacher::max_stride`] does not divide.
    pub fn features(&self, images: &Tensor, step: u64, positions: &[u64]) -> Result<Vec<Tensor>> {
        let x = self.encode(images, step, positions)?;
        self.features_of_noisy(&x)
    }

    /// The raw feature maps of images that already carry the noise of the time step.
    ///
    /// # Errors
    /// As [`Teacher::features`].
    pub fn features_of_noisy(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let mut ctx = Ctx::inference(&self.store);
        let x = ctx.constant(x.clone());
        self.run(&mut ctx, &x)
    }

    /// Like [`Teacher::features_of_noisy`], with single operations on a device or rounded as there.
    ///
    /// # Errors
    /// As [`Teacher::features`], and those of the device.
    pub fn features_offloaded(&self, x: &Tensor, offload: Offload) -> Result<Vec<Tensor>> {
        let mut ctx = Ctx::inference(&self.store).offload(offload);
        let x = ctx.constant(x.clone());
        self.run(&mut ctx, &x)
    }

    fn run<'a>(&'a self, ctx: &mut Ctx<'a>, x: &Var) -> Result<Vec<Tensor>> {
        let time = Time::Folded(&self.folded);
        let maps = self.net.features(ctx, x, &time, None, &self.taps, self.early_exit)?;
        Ok(maps.into_iter().map(Var::into_tensor).collect())
    }

    /// Works out one pass over `images` of this shape without computing it: the maps' shapes, the operations, and in
    /// `ledger` the memory of the activations.
    ///
    /// # Errors
    /// As [`Teacher::features`].
    pub fn plan(&self, images: &Tensor, ledger: &Arc<Ledger>) -> Result<(Vec<Tensor>, Vec<Step>)> {
        debug_assert_eq!(images.device(), Device::Meta);
        let mut ctx = Ctx::inference(&self.store).planning(ledger).trace();
        let x = ctx.input(images);
        let maps = self.run(&mut ctx, &x)?;
        Ok((maps, ctx.steps().to_vec()))
    }
}
