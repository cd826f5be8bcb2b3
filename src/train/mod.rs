//! The loops: distillation and feature extraction, with resume, metrics and atomic checkpoints. Nothing is printed
//! here; an [`Observer`] sees what happens.

mod device;
mod distillation;
mod engine;
mod features;
mod log;
mod run_dir;
mod source;
mod weights;

pub use device::{
    CapturedPhase, DeviceConfig, DeviceDistiller, DeviceOutcome, DevicePlan, DeviceStep, DirectDistiller,
    DirectOutcome, LEVEL_NUMBERS, Phase, PhaseCost, PlannedWork, StepPhases,
};
pub use distillation::{Observer, Options, Resume, Setup, StepReport, Summary, Trainer, plan, plan_device};
pub use engine::apply_gradients;
pub use features::{FeatureJob, FeatureReport, extract_features};
pub use log::EventWriter;
pub use run_dir::{Checkpoint, RunDir};
pub use source::open_images;
pub use weights::{fill_backbone, fill_teacher, load_params, save_params};
