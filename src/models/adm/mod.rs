//! The ADM U-Net of guided-diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"), the
//! teacher of DreamTeacher.
//!
//! Parameters carry the public state-dict keys, so released checkpoints load as they are. Besides the prediction the
//! network gives the feature maps of any decoder blocks ([`Taps`]), and it can stop after the last of them.

mod blocks;
mod config;
mod flags;
mod layout;
mod taps;
mod time;
mod unet;

pub use config::AdmConfig;
pub use layout::DecoderBlock;
pub use taps::{Tap, TapInfo, TapPosition, Taps};
pub use time::{FoldedTime, Time, timestep_embedding};
pub use unet::{AdmUnet, Site};
