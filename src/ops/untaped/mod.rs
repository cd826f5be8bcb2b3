//! Operations that no tape records: what makes a step's input, and what updates the parameters.
//!
//! As with ops, one operation is one name: `ema` is `ema.rs` here, `kernels/ema.cu`, the test `ema`. They run on a device
//! only; their counterparts on the CPU are elsewhere (`data`, `diffusion`, `optim`).
//!
//! [`for_each_untaped!`](crate::for_each_untaped) is the one list from which registry and tests are made.

mod check;
pub mod multi_tensor;

use super::variants::Variant;
use crate::error::Result;
use crate::gpu::Gpu;

/// Calls `$then!` with the snake_case names of all operations without a tape, comma separated.
#[macro_export]
macro_rules! for_each_untaped {
    ($then:ident) => {
        $then! {
            accumulate, adamw, ema, encode_images, grad_norm, lamb, lars, q_sample, running_average, sgd,
        }
    };
}

macro_rules! modules {
    ($($name:ident,)*) => {
        $(pub mod $name;)*
        /// Every operation without a tape, sorted by name.
        pub const UNTAPED: &[Entry] = &[$(Entry {
            name: stringify!($name),
            variants: $name::variants,
            check: $name::check,
        },)*];
    };
}
for_each_untaped!(modules);

/// One operation without a tape.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Every variant of its kernels that may be launched.
    pub variants: fn() -> Vec<Variant>,
    /// Runs all of them on a device, compares every element with the definition in f64, and runs again for the same bits.
    /// Gives the largest error, relative to the largest magnitude.
    pub check: fn(&Gpu) -> Result<f64>,
}
