//! dtk pretrains image backbones by DreamTeacher (Li et al., "DreamTeacher: Pretraining Image Backbones with Deep
//! Generative Models", ICCV 2023): a frozen diffusion network looks at unlabelled images, and a convolutional backbone
//! with a feature regressor learns to give the same features. Operations, autograd and networks are the crate's own;
//! there is no machine-learning framework underneath. This version computes in f32 on the CPU.
//!
//! The program `dtk` is one user of this library. Another one looks like this:
//!
//! ```
//! use dtk::optim::AdamWConfig;
//! use dtk::prelude::*;
//! use dtk::train::{apply_gradients, fill_backbone, fill_teacher};
//!
//! # fn main() -> Result<()> {
//! // The small ADM U-Net with random weights; `weights: "file.pt".into()` loads a checkpoint.
//! let config = TeacherConfig::default();
//! let teacher = Teacher::new(&config, &DiffusionConfig::default(), 0, |p| {
//!     fill_teacher(p, &config, 0).map(drop)
//! })?;
//! let config = StudentConfig {
//!     backbone: BackboneConfig::named("resnet18")?,
//!     regressor: RegressorConfig { channels: 32, ..Default::default() },
//!     weights: None,
//! };
//! let student = Student::new(&config, teacher.taps(), [32, 32], |p| fill_backbone(p, &config, 0).map(drop))?;
//! let mut distiller = Distiller::new(teacher, student, LossConfig::default(), 0)?;
//!
//! // Two images of 32 x 32 pixels in -1..1, the first step, and their places in the batch.
//! let out = distiller.step(&Tensor::zeros([2, 32, 32, 3]), 0, &[0, 1])?;
//! assert!(out.loss.is_finite());
//! assert_eq!(out.levels.len(), 4);
//! let mut optimizer = OptimizerConfig::AdamW(AdamWConfig::default()).build()?;
//! apply_gradients(&mut *optimizer, distiller.student_mut(), &out.grads, 1e-3)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! A module uses only modules of the lines above it.
//!
//! | modules | what they hold |
//! |---|---|
//! | [`error`], [`base`] | the error type; shapes, element types, the counter-based random generator |
//! | [`cpu`] | loops over threads with fixed results, matrix products; slices in, slices out |
//! | [`gpu`] | CUDA devices, streams, memory, kernels compiled at run time |
//! | [`tensor`] | shape and storage, images as NHWC; planning tensors without data; safetensors |
//! | [`ops`] | one file per operation: formula, forward, gradient, f64 reference, cases |
//! | [`tape`] | records operations, runs them backward, frees early |
//! | [`nn`] | parameters by dotted path (the public state-dict keys), layers, recomputation |
//! | [`models`] | ADM U-Net, ResNet, ConvNeXt, feature regressors, the table of known networks |
//! | [`diffusion`] | noise schedules, the forward process, DDIM encoding |
//! | [`distill`], [`optim`], [`data`], [`checkpoint`] | teacher, student and loss; optimisers and schedules; images; foreign checkpoints |
//! | [`viz`] | feature maps as pictures, segments, charts |
//! | [`eval`] | what a backbone is worth: nearest neighbours, linear probe, segmentation, fine-tuning |
//! | [`recipe`] | a whole run as TOML |
//! | [`train`] | the loop with resume and metrics; feature extraction; the report |
#![cfg_attr(feature = "cli", doc = "| [`cli`] | the program's subcommands; the only layer that prints |")]
//!
//! # Features
//!
//! * `cli` (default): the command line and what only it needs. Programs that embed the library turn it off with
//!   `default-features = false`.
//!
//! The C interface is a crate of its own, `dtk-capi`, with the header `include/dtk.h`; `docs/embedding.md` tells more.
//!
//! # Promises
//!
//! * Results do not depend on the number of threads; the same seed and recipe on the same machine give the same bytes.
//! * The library keeps no global state, prints nothing and never ends the process. Wrong input is an [`Error`] that
//!   names file, key or operation, and the next step.

/// The README's example, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub mod base;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cpu;
pub mod data;
pub mod diffusion;
pub mod distill;
pub mod error;
pub mod eval;
pub mod gpu;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recipe;
pub mod tape;
pub mod tensor;
pub mod train;
pub mod viz;

pub use error::{Error, Result};

/// What a program that embeds dtk usually needs.
pub mod prelude {
    pub use crate::diffusion::DiffusionConfig;
    pub use crate::distill::{
        Distiller, LossConfig, Plan, StepOutput, Student, StudentConfig, Teacher, TeacherConfig,
    };
    pub use crate::error::{Error, Result};
    pub use crate::models::backbone::BackboneConfig;
    pub use crate::models::regressor::RegressorConfig;
    pub use crate::nn::{Ctx, ParamStore};
    pub use crate::optim::{Optimizer, OptimizerConfig};
    pub use crate::recipe::Recipe;
    pub use crate::tensor::{Device, Tensor};
}
