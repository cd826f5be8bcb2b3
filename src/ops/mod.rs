//! Operations: one op, one name.
//!
//! An op is a small parameter struct (`Conv2d { stride, .. }`) in a file named after it, which reads top to bottom:
//! formula, parameters, shape rule, CPU forward, gradient under the forward, f64 reference, case list. The device
//! kernel of op `x` is `kernels/x.cu`, its test, bench and golden tensors are called `x` too.
//!
//! [`for_each_op!`](crate::for_each_op) is the one list from which registry, tests and benches are made.

mod case;
mod cast;
pub mod check;
mod device_key;
mod elementwise;
pub mod implicit_gemm;
mod kernel;
mod norm;
mod offload;
mod run;
mod support;
pub mod untaped;
mod variants;

pub use case::{Case, Fill, Input};
pub use cast::cast;
pub use device_key::{DeviceKey, KEY_BYTES};
pub use offload::{Offload, Offloaded};
pub use run::{backward, run};
pub use variants::{Variant, kernel_variants};

use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;
use std::fmt::Debug;

/// Calls `$then!` with the snake_case names of all ops, comma separated.
#[macro_export]
macro_rules! for_each_op {
    ($then:ident) => {
        $then! {
            adaptive_avg_pool, add, attention, attention_transfer, avg_pool, batch_norm, concat, conv2d,
            cross_entropy, dice, diffusion_loss, drop_path, dropout, embedding, feature_loss, gelu, global_avg_pool, group_norm,
            layer_norm, linear, max_pool, relu, resize, scale, silu, softmax, weighted_sum, whiten_mse,
        }
    };
}

macro_rules! modules {
    ($($op:ident,)*) => {
        $(pub mod $op;)*
        /// Every op, sorted by name.
        pub const REGISTRY: &[Entry] = &[$(Entry { name: stringify!($op), cases: $op::cases },)*];
    };
}
for_each_op!(modules);

/// One line of the registry.
pub struct Entry {
    /// The op's name.
    pub name: &'static str,
    /// Its test and benchmark cases.
    pub cases: fn() -> Vec<Case>,
}

/// What an op's forward pass makes.
pub struct Forward {
    /// The result.
    pub y: Tensor,
    /// Small tensors that only the backward pass needs (row statistics, say), appended to [`Op::save`].
    pub extra: Vec<Tensor>,
    /// Results without a gradient for the caller (batch statistics).
    pub aux: Vec<Tensor>,
}

impl From<Tensor> for Forward {
    fn from(y: Tensor) -> Self {
        Forward { y, extra: Vec::new(), aux: Vec::new() }
    }
}

/// What an op's backward pass gets.
pub struct Backward<'a> {
    /// Gradient of the loss with respect to the op's result.
    pub gy: &'a Tensor,
    /// The tensors of [`Op::save`], then those of [`Forward::extra`].
    pub saved: &'a [Tensor],
    /// Shapes of the inputs.
    pub inputs: &'a [Shape],
    /// Which inputs want a gradient; at least one does.
    pub needs: &'a [bool],
}

/// A differentiable operation with one result.
///
/// The parameters live in the implementing struct; tensors come in as `inputs`. [`run`] checks the shapes and
/// picks the device, so an implementation may rely on [`Op::output_shape`] having succeeded.
pub trait Op: Debug + Send + Sync {
    /// The op's name, equal to its file's.
    fn name(&self) -> &'static str;

    /// Shape rule: the result's shape, or an error that names op and shapes.
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape>;

    /// Forward pass on the CPU in f32.
    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward>;

    /// The tensors, out of the inputs and the result, that the backward pass needs. Whatever is not returned here
    /// can be freed as soon as nobody else uses it.
    fn save(&self, inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor>;

    /// Gradients with respect to the inputs on the CPU in f32: `None` where none is wanted or none exists.
    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>>;

    /// Whether the op has CUDA kernels: [`Op::launch`] and [`Op::launch_backward`] work.
    fn has_kernel(&self) -> bool {
        false
    }

    /// Forward pass on a CUDA device. All inputs lie there; what it enqueues is ordered on [`Gpu::stream`].
    ///
    /// # Errors
    /// The op has no kernel, none takes these dtypes or sizes, memory runs out, or the launch fails.
    fn launch(&self, _gpu: &Gpu, _inputs: &[&Tensor]) -> Result<Forward> {
        Err(no_kernel(self.name()))
    }

    /// Gradients with respect to the inputs on a CUDA device: `None` where none is wanted or none exists. The upstream
    /// gradient has the dtype of the result.
    ///
    /// # Errors
    /// As [`Op::launch`].
    fn launch_backward(&self, _gpu: &Gpu, _ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        Err(no_kernel(self.name()))
    }

    /// Whether an input is an operand: an activation or the weight of a product, which a device holds in bf16 when it
    /// computes in bf16. Other inputs (biases, gains and shifts of norms, statistics) stay f32 there.
    fn is_operand(&self, input: usize) -> bool {
        input == 0
    }

    /// The definition in f64, written for clarity: `inputs` are f64 tensors (labels i64).
    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor>;

    /// The definition where the gradient counts parts of the inputs as constants: those are taken from `held`. Central
    /// differences move `inputs` alone. By default nothing is held.
    ///
    /// # Errors
    /// As [`Op::reference`].
    fn reference_near(&self, inputs: &[&Tensor], _held: &[&Tensor]) -> Result<Tensor> {
        self.reference(inputs)
    }

    /// The gradients of the definition in f64, one for every input, for the gradient `gy` of the result. `None`, the
    /// default, where checks take central differences of [`Op::reference`] instead; kernels deserve a comparison of every
    /// element.
    ///
    /// # Errors
    /// As [`Op::reference`].
    fn reference_gradients(&self, _inputs: &[&Tensor], _gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        Ok(None)
    }

    /// What the kernels lose by rounding results between two products to `dtype`, the type of their operands, as a share of
    /// the largest magnitude of the end result. 0, the default, where all that lies between operands and results is f32.
    fn inner_rounding(&self, _dtype: DType) -> f64 {
        0.0
    }

    /// Floating-point operations of the forward pass (a multiply-add counts two).
    fn flops(&self, inputs: &[Shape]) -> u64;

    /// The convolution that the op amounts to, if it does (a linear layer is one of 1x1): what traces, benchmarks and
    /// the choice of tiles need to know.
    fn convolution(&self, _inputs: &[Shape]) -> Option<conv2d::Geometry> {
        None
    }

    /// Whether the op is made of others (recomputation of a block). Its backward pass then runs on planning tensors too.
    fn is_composite(&self) -> bool {
        false
    }

    /// Bytes of scratch memory the CPU forward pass allocates beside its result.
    fn scratch_bytes(&self, _inputs: &[Shape]) -> usize {
        0
    }
}

fn no_kernel(op: &str) -> Error {
    Error::device(format!("{op} has no CUDA kernel yet"))
        .with_remedy("compute on the host with `--device cpu`")
}
