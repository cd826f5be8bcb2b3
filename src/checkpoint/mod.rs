//! Checkpoints of other programs: reading them, comparing their keys with a model, and translating names.
//!
//! [`StateDict`] opens safetensors files, sharded safetensors folders and PyTorch's zip files ([`PtFile`]) behind one
//! interface; [`compare`] says which keys fit a model; [`keymap`] knows the layouts of ResNet and ConvNeXt in the
//! libraries that dtk exchanges weights with.

mod flatten;
pub mod keymap;
mod node;
mod opcodes;
mod pickle;
mod pt;
#[cfg(test)]
mod pt_tests;
mod report;
mod state_dict;
#[cfg(test)]
mod state_dict_tests;
#[cfg(test)]
mod testing;
mod view;

pub use flatten::Scalar;
pub use pt::PtFile;
pub use report::{KeyReport, Tolerance, compare};
pub use state_dict::StateDict;
