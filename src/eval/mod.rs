//! What a backbone is worth: nearest neighbours and a linear classifier on frozen features, a segmentation readout on frozen
//! maps, fine-tuning for segmentation and classification; with few labels and many, over several seeds, beside the same from
//! scratch.
//!
//! [`evaluate`] measures one backbone; [`Evaluation`] keeps the images for the next one. A seed decides which images are
//! labelled, the initial values of heads and the order of batches, the same for all backbones. Top-1 accuracy is the share
//! of the test images whose class is found; [`ConfusionMatrix`] states the rules of mean intersection over union.

mod config;
mod features;
mod finetune;
mod fit;
mod knn;
mod linear;
mod metrics;
mod online;
mod place;
mod progress;
mod report;
mod samples;
mod seg;
mod session;
mod supervised;

pub use config::{
    EvalConfig, EvalData, FinetuneConfig, FitConfig, KnnConfig, Levels, LinearConfig, Protocol,
    SegFinetuneConfig, SegFrozenConfig, SegHead,
};
pub use metrics::{ConfusionMatrix, argmax, mean_per_class};
pub use online::OnlineKnn;
pub use progress::EvalProgress;
pub use report::{Report, Row};
pub use session::{Evaluation, Picture, Weights, evaluate};
pub use supervised::supervise;
