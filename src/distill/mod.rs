//! DreamTeacher's distillation: a frozen generative network looks at images, and a backbone with a feature regressor
//! learns to give the same features.
//!
//! ```text
//!            noise ----+
//! images -+- q_sample -+-> teacher (frozen, early exit) -> taps f_g[5], f_g[4], f_g[3], f_g[2]
//!         |                                                   | whitening        |
//!         +- normalise --> backbone -> regressor -> f_r[2..5] -+-> MSE (Eq. 1) -+-> + lambda AT (Eq. 2)
//! ```
//!
//! [`Teacher`], [`Student`] and [`Distiller`] are the parts; optimiser, data and checkpoints are composed with them by
//! [`crate::train`] or by a host program.

mod device_teacher;
mod distiller;
mod label;
mod loss;
mod plan;
mod precision;
mod student;
mod teacher;

pub use crate::models::backbone::{IMAGENET_MEAN, IMAGENET_STD};
pub use device_teacher::DeviceTeacher;
pub use distiller::{Distiller, LevelMetrics, StepOutput};
pub use label::{LabelLossConfig, mixed_loss};
pub use loss::{FeatureLoss, LevelLoss, LossConfig, feature_loss, mean_of_levels};
pub use plan::{Part, Plan};
pub use precision::MapError;
pub use student::{Student, StudentConfig, normalize_imagenet};
pub use teacher::{NoiseLevel, TapsConfig, Teacher, TeacherConfig, TeacherModel};
