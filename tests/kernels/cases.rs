//! The cases of every op that has kernels, on the device: each against f64, forward and backward, in every element type.

use crate::counters::{self, Counters};
use crate::gpu;
use dtk::base::DType;
use dtk::gpu::{Gpu, Identity, Launch};
use dtk::ops::{Case, REGISTRY, check};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The element types of operands.
pub const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// One variant of a kernel, as `Identity`, but as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// `conv2d.cu`
    pub source: String,
    /// `conv2d_fwd`
    pub entry: String,
    /// `-DBM=128 -DBN=64`
    pub defines: String,
}

/// One launch of one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// Op, label of the case, dtype of its operands.
    pub case: String,
    /// The kernel.
    pub kernel: Name,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// What the simulator counted; `None` on a card.
    pub counters: Option<Counters>,
}

impl Ran {
    fn of(case: &str, launch: &Launch, counters: Option<Counters>) -> Ran {
        let Identity { source, entry, defines } = launch.kernel.clone();
        Ran {
            case: case.to_string(),
            kernel: Name { source, entry, defines: defines.to_string() },
            threads: launch.grid.block,
            registers: launch.resources.registers,
            counters,
        }
    }
}

/// The device, one test at a time: the simulator reports by context, and a process has one.
static DEVICE: Mutex<Option<Gpu>> = Mutex::new(None);

/// Uses the device; `None`, with the reason printed, where there is none.
pub fn with_device<R>(f: impl FnOnce(&Gpu) -> R) -> Option<R> {
    let mut device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if device.is_none() {
        let gpu = gpu::device()?;
        gpu.record_launches();
        *device = Some(gpu);
    }
    // Taken out, so that a device whose context a failure broke is not used again, whether or not that ended the test.
    let gpu = device.take()?;
    let result = f(&gpu);
    if gpu.stream().synchronize().is_ok() {
        *device = Some(gpu);
    }
    Some(result)
}

/// Checks a case and gives what it launched.
///
/// Panics if a result is wrong or the simulator found something.
pub fn run(gpu: &Gpu, op: &'static str, case: &Case, dtype: DType) -> Vec<Ran> {
    let what = format!("{op}: {} {dtype}", case.label);
    launched(gpu, &what, || check::check_on(gpu, case, dtype, 1))
}

/// What `check` launches. `what` names the case.
///
/// Panics if it fails or the simulator found something.
pub fn launched<R>(gpu: &Gpu, what: &str, check: impl FnOnce() -> dtk::Result<R>) -> Vec<Ran> {
    gpu.take_launches();
    gpu.report_clear();
    if let Err(e) = check() {
        panic!("{what}: {e}");
    }
    let launches = gpu.take_launches();
    assert!(!launches.is_empty(), "{what}: nothing was launched");
    let counted = counters::take(gpu, what);
    if let Some(counted) = &counted {
        let names = |l: &Launch| l.kernel.entry.clone();
        assert_eq!(
            counted.iter().map(|c| c.kernel.clone()).collect::<Vec<_>>(),
            launches.iter().map(names).collect::<Vec<_>>(),
            "{what}: the simulator's launches (left) and ours"
        );
    }
    let counted = |i: usize| counted.as_ref().map(|c| c[i].clone());
    launches.iter().enumerate().map(|(i, launch)| Ran::of(what, launch, counted(i))).collect()
}

/// All that the test cases of an op launch; computed once. Empty for an op without kernels, `None` without a device.
pub fn of_op(name: &'static str) -> Option<&'static [Ran]> {
    static RESULTS: [OnceLock<Option<Vec<Ran>>>; REGISTRY.len()] =
        [const { OnceLock::new() }; REGISTRY.len()];
    let index = REGISTRY.iter().position(|e| e.name == name).expect("in the registry");
    let compute = || -> Option<Vec<Ran>> {
        let cases = (REGISTRY[index].cases)();
        let small = cases.iter().filter(|c| !c.bench && c.op.has_kernel());
        let jobs: Vec<(&Case, DType)> = small.flat_map(|c| DTYPES.map(|d| (c, d))).collect();
        if jobs.is_empty() {
            return Some(Vec::new());
        }
        with_device(|gpu| jobs.iter().flat_map(|(case, dtype)| run(gpu, name, case, *dtype)).collect())
    };
    RESULTS[index].get_or_init(compute).as_deref()
}

/// All that all ops launch.
pub fn all() -> Option<Vec<&'static Ran>> {
    let ops: Option<Vec<&'static [Ran]>> = REGISTRY.iter().map(|e| of_op(e.name)).collect();
    Some(ops?.into_iter().flatten().collect())
}

macro_rules! tests {
    ($($op:ident,)*) => {
        $(#[test]
        fn $op() {
            let Some(ran) = of_op(stringify!($op)) else { return };
            let has_kernel = (dtk::ops::$op::cases)().iter().any(|c| c.op.has_kernel());
            assert_eq!(has_kernel, !ran.is_empty());
        })*
    };
}
dtk::for_each_op!(tests);
