//! Checkpoints of other programs: reading them, comparing their keys with a model, translating names, and writing them.
//!
//! [`StateDict`] opens safetensors files, sharded safetensors folders and PyTorch's zip files ([`PtFile`]) behind one
//! interface; [`compare`] says which keys fit a model; [`keymap`] knows the layouts of ResNet and ConvNeXt in the
//! libraries that dtk exchanges weights with; [`write_pth`] writes what `torch.load` reads, and [`export()`](export::export)
//! whole backbones with what belongs beside them.

mod backbone;
mod builtin;
pub mod export;
mod flatten;
pub mod keymap;
mod node;
mod opcodes;
mod params;
mod pickle;
mod pt;
#[cfg(test)]
mod pt_tests;
mod pth;
mod report;
mod state_dict;
#[cfg(test)]
mod state_dict_tests;
#[cfg(test)]
mod testing;
mod view;

pub use backbone::{is_head, read_backbone};
pub use builtin::PREFIX as BUILTIN_PREFIX;
pub use flatten::Scalar;
pub use params::{load_backbone, load_params, save_params, save_params_as};
pub use pt::PtFile;
pub use pth::{PthValue, write_pth};
pub use report::{KeyReport, Tolerance, compare};
pub use state_dict::StateDict;
