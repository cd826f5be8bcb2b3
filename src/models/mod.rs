//! Networks under their public state-dict names: one file or folder per network or part.

pub mod adm;
pub mod backbone;
pub mod convnext;
pub mod heads;
pub mod regressor;
pub mod resnet;
pub mod zoo;
