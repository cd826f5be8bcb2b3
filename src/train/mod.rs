//! The loops: distillation and feature extraction, with resume, metrics and atomic checkpoints. Nothing is printed
//! here; an [`Observer`] sees what happens.

mod course;
mod device;
mod distillation;
mod engine;
mod evaluation;
mod features;
mod log;
mod pictures;
mod predictions;
pub mod report;
mod run_dir;
mod source;
mod teacher;
mod weights;

pub use course::{Options, Resume};
pub use device::{
    CapturedPhase, DeviceConfig, DeviceDistiller, DeviceOutcome, DevicePlan, DeviceStep, DirectDistiller,
    DirectOutcome, LEVEL_NUMBERS, Phase, PhaseCost, PlannedWork, StepPhases,
};
pub use distillation::{Observer, Setup, StepReport, Summary, Trainer, plan, plan_device};
pub use engine::apply_gradients;
pub use evaluation::{evaluate_run, illustrate_run};
pub use features::{FeatureJob, FeatureReport, extract_features};
pub use log::EventWriter;
pub use pictures::{Looks, StudentFrom, View};
pub use predictions::predictions;
pub use run_dir::{Checkpoint, RunDir};
pub use source::open_images;
pub use teacher::{
    Conversion, Drawing, TeacherFile, TeacherObserver, TeacherOutcome, TeacherReport, TeacherSetup,
    TeacherStep, TeacherSummary, TeacherTrainer, parse_size, plan_teacher, write_png,
};
pub use weights::{fill_backbone, fill_teacher, load_params, save_params, save_params_as};
