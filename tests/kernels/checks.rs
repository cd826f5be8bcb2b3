//! The check itself, on a kernel that can be told to be wrong.

use crate::cases::with_device;
use bytemuck::{Pod, Zeroable};
use dtk::base::{DType, Shape};
use dtk::gpu::{Defines, Gpu, Grid, Source};
use dtk::ops::check::{Deviation, check_on};
use dtk::ops::{Backward, Case, Forward, Input, Op};
use dtk::tensor::Tensor;

const SOURCE: &str = r#"
struct Params { const float *x; float *y; unsigned n; unsigned scratch; };
static_assert(sizeof(Params) == PARAMS_BYTES, "host and device agree");
extern "C" __global__ void triple_fwd(const __grid_constant__ Params p) {
    unsigned i = threadIdx.x;
#if FAULT == 1
    if (i == 5) return;
#endif
    if (i >= p.n) return;
    p.y[i] = 3.0f * p.x[i] + (FAULT == 2 && i == p.n - 1 ? 0.01f : 0.0f);
#if FAULT == 3
    if (i == 0) p.y[p.n] = 1.0f;
#endif
}
"#;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    y: u64,
    n: u32,
    pad: u32,
}

/// `y = 3 x`, on a device with a fault in the pass that is named.
#[derive(Clone, Debug)]
struct Triple {
    fault: u32,
    forward: bool,
}

impl Triple {
    fn on(&self, gpu: &Gpu, x: &Tensor, fault: u32) -> dtk::Result<Tensor> {
        let source = Source::from_text("triple.cu", SOURCE, &[])?;
        let defines = Defines::new().set("FAULT", fault).set("PARAMS_BYTES", size_of::<Params>());
        let y = Tensor::empty_gpu(x.shape(), DType::F32, gpu, "triple")?;
        let params = Params { x: x.cuda_ptr()?, y: y.cuda_ptr()?, n: x.elems() as u32, pad: 0 };
        let grid = Grid { grid: [1; 3], block: 64, shared_bytes: 0 };
        gpu.kernel_of(&source, "triple_fwd", &defines)?.launch(gpu.stream(), grid, &params)?;
        Ok(y)
    }
}

impl Op for Triple {
    fn name(&self) -> &'static str {
        "triple"
    }
    fn output_shape(&self, inputs: &[Shape]) -> dtk::Result<Shape> {
        Ok(inputs[0])
    }
    fn forward(&self, _: &[&Tensor]) -> dtk::Result<Forward> {
        unreachable!("it is checked on a device")
    }
    fn save(&self, _: &[&Tensor], _: &Tensor) -> Vec<Tensor> {
        Vec::new()
    }
    fn backward(&self, _: &Backward<'_>) -> dtk::Result<Vec<Option<Tensor>>> {
        unreachable!("it is checked on a device")
    }
    fn has_kernel(&self) -> bool {
        true
    }
    fn is_operand(&self, _: usize) -> bool {
        false
    }
    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> dtk::Result<Forward> {
        Ok(self.on(gpu, inputs[0], if self.forward { self.fault } else { 0 })?.into())
    }
    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> dtk::Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.on(gpu, ctx.gy, if self.forward { 0 } else { self.fault })?)])
    }
    fn reference(&self, inputs: &[&Tensor]) -> dtk::Result<Tensor> {
        Tensor::from_vec(
            inputs[0].shape(),
            inputs[0].data::<f64>()?.iter().map(|v| 3.0 * v).collect::<Vec<f64>>(),
        )
    }
    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64
    }
}

fn checked(fault: u32, forward: bool) -> Option<dtk::Result<Deviation>> {
    with_device(|gpu| {
        let case = Case::new("faults", Triple { fault, forward }, vec![Input::normal("x", [37])]);
        let seen = check_on(gpu, &case, DType::F32, 1);
        gpu.take_launches();
        gpu.report_clear();
        seen
    })
}

#[test]
fn right_kernels_pass_and_wrong_elements_are_named() {
    let Some(seen) = checked(0, true) else { return };
    let seen = seen.unwrap();
    assert!(seen.forward < 1e-6 && seen.gradient < 1e-3, "{seen:?}");
    for (fault, needle) in [(1, "element 5"), (2, "element 36")] {
        for (forward, what) in [(true, "the result"), (false, "gradient of `x`")] {
            let text = checked(fault, forward).unwrap().unwrap_err().to_string();
            assert!(text.contains(what), "fault {fault}: {text}");
            assert!(!forward || text.contains(needle), "fault {fault}: {text}");
        }
    }
}

#[test]
fn what_the_simulator_finds_fails_the_check() {
    let Some(seen) = with_device(|gpu| gpu.info().simulated) else { return };
    if !seen {
        println!("skipped: a card does not tell of a write beyond the end");
        return;
    }
    let text = checked(3, true).unwrap().unwrap_err().to_string();
    assert!(text.contains("out_of_bounds") || text.contains("beyond"), "{text}");
}
