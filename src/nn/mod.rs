//! Networks' building blocks: parameters under their public state-dict names, layers, initialisation.

mod ctx;
mod device;
pub mod init;
mod layers;
mod params;
mod recompute;

pub use ctx::{Ctx, Gradients, RunningAverage};
pub use device::DeviceParams;
pub use init::Init;
pub use layers::{BatchNorm2d, Conv2d, Embedding, GroupNorm, LayerNorm, Linear};
pub use params::{Builder, Layout, Param, ParamId, ParamStore, Role};
