//! Runs CUDA kernels, as the PTX that NVRTC emits, on a machine without a GPU, and checks them while they run.

pub mod card;
pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod conformance;
pub mod counters;
pub mod exec;
pub mod mem;
#[cfg(feature = "nvrtc")]
pub mod nvrtc;
pub mod ptx;
#[cfg(feature = "nvrtc")]
pub mod static_view;
pub mod tensormap;
