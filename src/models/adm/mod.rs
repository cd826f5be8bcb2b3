//! The ADM U-Net of guided-diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"), the
//! teacher of DreamTeacher.
//!
//! Parameters carry the public state-dict keys, so released checkpoints load as they are. Besides the prediction the
//! network gives the feature maps of any decoder blocks ([`Taps`]), and it can stop after the last of them.
//!
//! ```
//! use dtk::models::adm::{AdmConfig, AdmUnet, Taps, Time};
//! use dtk::nn::{Ctx, ParamStore};
//! use dtk::tensor::Tensor;
//!
//! let config = AdmConfig::tiny();
//! let mut store = ParamStore::new();
//! let net = AdmUnet::new(&mut store.builder(), &config)?;
//! store.init(0)?;
//! let mut ctx = Ctx::inference(&store);
//! let noisy = ctx.constant(Tensor::zeros([1, 32, 64, 3]));
//! let time = net.fold_time(&store, 150.0, None)?;
//! let taps = Taps::dreamteacher(&config)?;
//! let features = net.features(&mut ctx, &noisy, &Time::Folded(&time), None, &taps, true)?;
//! assert_eq!(*features[3].shape(), [1, 8, 16, 32]);
//! # Ok::<(), dtk::Error>(())
//! ```

mod blocks;
mod config;
mod device;
mod flags;
mod layout;
mod taps;
mod time;
mod unet;

pub use config::AdmConfig;
pub use device::{DeviceTime, DeviceUnet};
pub use layout::DecoderBlock;
pub use taps::{Tap, TapInfo, TapPosition, Taps};
pub use time::{FoldedTime, Time, timestep_embedding};
pub use unet::{AdmUnet, Site};
