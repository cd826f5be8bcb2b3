//! Change of the element type on a CUDA device.

use super::elementwise::{THREADS, blocks};
use super::kernel::Call;
use super::variants::Variant;
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// `CastParams` of `kernels/cast.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    input: u64,
    output: u64,
    elems: i64,
}

/// Elements of a thread.
const EACH: usize = 8;

fn call(to: DType) -> Call {
    Call::new("cast.cu", if to == DType::Bf16 { "cast_to_bf16" } else { "cast_to_f32" })
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    [DType::Bf16, DType::F32].map(|to| call(to).variant::<Params>()).into()
}

/// A tensor on the device with its elements as `dtype`, rounded to nearest even; itself if they are. It changes between f32 and
/// bf16; nothing is read back, so that the launch can be captured.
///
/// # Errors
/// Another pair of types, a tensor that is not on the device, no memory, or a failed compilation or launch.
pub fn cast(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    if !matches!((x.dtype(), dtype), (DType::F32, DType::Bf16) | (DType::Bf16, DType::F32)) {
        return Err(Error::dtype("cast", format!("{x:?} cannot become {dtype} on a device"))
            .with_remedy("change between f32 and bf16, or convert on the host with `to_dtype`"));
    }
    let y = Tensor::empty_gpu(x.shape(), dtype, gpu, "cast")?;
    if x.elems() > 0 {
        let p = Params { input: x.cuda_ptr()?, output: y.cuda_ptr()?, elems: x.elems() as i64 };
        call(dtype).launch(gpu, blocks(x.elems().div_ceil(THREADS * EACH)), &p)?;
    }
    Ok(y)
}
