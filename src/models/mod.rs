//! Networks: one file per network, with its configuration, named constructors and public state-dict keys.

pub mod backbone;
pub mod convnext;
pub mod regressor;
pub mod resnet;
pub mod zoo;
