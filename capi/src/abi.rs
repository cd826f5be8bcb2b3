//! What `include/dtk.h` declares, as Rust sees it.

use std::ffi::{c_char, c_void};

/// `DTK_ABI_VERSION`
pub const VERSION: u32 = 1;
/// `DTK_MAX_LEVELS`
pub const MAX_LEVELS: usize = 8;

/// `DTK_U8`
pub const U8: i32 = 0;
/// `DTK_F32`
pub const F32: i32 = 1;
/// `DTK_BF16`
pub const BF16: i32 = 2;

/// `DTK_HOST`
pub const HOST: i32 = 0;
/// `DTK_DEVICE`
pub const DEVICE: i32 = 1;

/// `DTK_TEACHER`
pub const TEACHER: i32 = 0;
/// `DTK_STUDENT`
pub const STUDENT: i32 = 1;

/// `dtk_options`
#[repr(C)]
pub struct Options {
    /// `VERSION`.
    pub abi_version: u32,
    /// Name or path.
    pub recipe: *const c_char,
    /// `key.path=value` each.
    pub overrides: *const *const c_char,
    /// How many.
    pub override_count: usize,
    /// `cpu`, `cuda`, `cuda:N` or NULL.
    pub device: *const c_char,
    /// A `CUcontext` or NULL.
    pub cuda_context: *mut c_void,
    /// A `CUstream` or NULL.
    pub cuda_stream: *mut c_void,
    /// A folder or NULL.
    pub cache_dir: *const c_char,
    /// Bytes; 0 for no limit.
    pub memory_limit_bytes: u64,
    /// Images of an epoch, or 0.
    pub epoch_images: u64,
}

/// `dtk_images`
#[repr(C)]
pub struct Images {
    /// The first value.
    pub data: *const c_void,
    /// `U8` or `F32`.
    pub dtype: i32,
    /// `HOST` or `DEVICE`.
    pub memory: i32,
    /// Images.
    pub n: u64,
    /// Pixels.
    pub height: u64,
    /// Pixels.
    pub width: u64,
    /// Place of the first image.
    pub first: u64,
}

/// `dtk_map`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// The first value.
    pub data: *const c_void,
    /// `F32` or `BF16`.
    pub dtype: i32,
    /// `HOST` or `DEVICE`.
    pub memory: i32,
    /// `[n, height, width, channels]`
    pub shape: [u64; 4],
    /// In elements.
    pub strides: [u64; 4],
    /// Pixels of the image to one of the map, along each side.
    pub pixels: u64,
}

/// `dtk_level`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    /// As in [`Map`].
    pub pixels: u64,
    /// Whitened MSE.
    pub mse: f32,
    /// Attention-transfer distance.
    pub at: f32,
    /// Cosine between student and whitened teacher.
    pub cosine: f32,
}

/// `dtk_step_result`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StepResult {
    /// Steps done.
    pub step: u64,
    /// Learning rate used.
    pub lr: f64,
    /// Of the gradient, before clipping.
    pub grad_norm: f64,
    /// The loss.
    pub loss: f32,
    /// Valid entries of `levels`.
    pub level_count: u32,
    /// Fine to coarse.
    pub levels: [Level; MAX_LEVELS],
}
