//! How operations name the variants of their kernels and launch them.

use super::variants::Variant;
use crate::base::DType;
use crate::error::Result;
use crate::gpu::{Defines, Gpu, Grid};
use bytemuck::Pod;

/// A kernel with the defines that make a variant of it.
///
/// ```text
/// Call::new("relu.cu", "relu_fwd").dtype(x.dtype()).set("VEC", 8).launch(gpu, grid, &params)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Call {
    source: &'static str,
    entry: &'static str,
    defines: Defines,
}

impl Call {
    /// The entry of a file in `kernels/`.
    pub fn new(source: &'static str, entry: &'static str) -> Call {
        Call { source, entry, defines: Defines::new() }
    }

    /// Sets a define.
    pub fn set(self, name: &str, value: impl std::fmt::Display) -> Call {
        Call { defines: self.defines.set(name, value), ..self }
    }

    /// Sets `T_BF16`: whether the elements are bf16 instead of f32.
    pub fn dtype(self, dtype: DType) -> Call {
        self.set("T_BF16", u8::from(dtype == DType::Bf16))
    }

    /// The variant for a parameter of type `P`.
    pub fn variant<P: Pod>(&self) -> Variant {
        let defines = self.defines.clone().set("PARAMS_BYTES", size_of::<P>());
        Variant { source: self.source, entry: self.entry, defines }
    }

    /// Compiles or finds the kernel and launches it on the compute stream.
    ///
    /// # Errors
    /// It does not compile, or the launch fails.
    pub fn launch<P: Pod>(&self, gpu: &Gpu, grid: Grid, params: &P) -> Result<()> {
        let v = self.variant::<P>();
        gpu.kernel(v.source, v.entry, &v.defines)?.launch(gpu.stream(), grid, params)
    }
}
