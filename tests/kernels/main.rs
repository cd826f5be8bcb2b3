//! Every kernel, on a machine without a card: compiled by NVRTC for the architectures that dtk supports, run by the simulator
//! over the case lists of the ops, compared with f64, counted.
//!
//! `snapshot` compiles, `cases` runs and compares, `limits` holds counters against limits, `page` makes `docs/kernels.md`.
//! With `DTK_TEST_DEVICE=cuda` the same cases run on a card.

#[path = "../common/gpu.rs"]
mod gpu;

mod blessed;
mod cases;
mod checks;
mod counters;
mod fused;
mod limits;
mod limits_attention;
mod limits_elementwise;
mod limits_losses;
mod limits_norms;
mod limits_updates;
mod page;
mod snapshot;
mod tiles;
mod untaped;
mod updates;
