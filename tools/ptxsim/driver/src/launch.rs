//! Launches of kernels.

use crate::context::{Context, initialised};
use crate::device::{BLOCK, GRID};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::{Handle, In, KernelNodeParams, LaunchAttribute, LaunchConfigC};
use crate::function::{Function, function};
use crate::handles;
use crate::op::{self, Op};
use crate::order::Moment;
use crate::state::{Driver, lock};
use crate::stream;
use ptxsim::check::Kind;
use ptxsim::exec::launch::{LaunchConfig, Report, launch as run};
use ptxsim::mem::touched::{Touched, Use};
use std::ops::Range;
use std::sync::Arc;

/// `CU_LAUNCH_PARAM_…` of the `extra` form.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_SIZE: usize = 2;

/// What a launch asks for besides the kernel and its parameters.
#[derive(Clone, Copy)]
pub struct Options {
    /// `gridDim`
    pub grid: [u32; 3],
    /// `blockDim`
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared: u32,
    /// All blocks resident at once, with grid barriers.
    pub cooperative: bool,
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
}

impl Default for Options {
    fn default() -> Self {
        Self { grid: [1; 3], block: [1; 3], shared: 0, cooperative: false, cluster: [1; 3] }
    }
}

/// A launch with its parameters, checked and copied.
pub struct KernelLaunch {
    /// The kernel.
    pub function: Arc<Function>,
    handle: Handle,
    options: Options,
    params: Vec<u8>,
    /// Addresses of the parameters in `params`, for those who ask a node for them.
    pointers: Vec<usize>,
}

/// Checks a launch as the driver would, and copies its parameters.
pub fn prepare(handle: Handle, mut options: Options, params: usize, extra: usize) -> Result<KernelLaunch> {
    let driver = initialised()?;
    let function = function(handle)?;
    let kernel = function.kernel()?;
    let card = &driver.devices[function.context()?.ordinal].card;
    let product = |v: [u32; 3]| v.iter().fold(1u64, |n, &x| n.saturating_mul(u64::from(x)));
    let outside = |v: [u32; 3], most: [u32; 3]| v.iter().zip(most).any(|(&x, most)| x == 0 || x > most);
    if outside(options.grid, GRID) || outside(options.block, BLOCK) {
        return Err(Error::INVALID_VALUE);
    }
    let threads = product(options.block);
    if threads > u64::from(card.threads_per_block) {
        return Err(Error::INVALID_VALUE);
    }
    if kernel.reqntid().is_some_and(|required| required != options.block) {
        return Err(Error::INVALID_VALUE);
    }
    if options.shared > function.max_dynamic_shared(card)?
        || options.shared + kernel.static_shared_bytes() > card.shared_per_block_optin_bytes
    {
        return Err(Error::INVALID_VALUE);
    }
    if threads > u64::from(function.max_threads(card)?) {
        return Err(Error::LAUNCH_OUT_OF_RESOURCES);
    }
    let required = function.required_cluster();
    if required != [0; 3] {
        if options.cluster == [1; 3] {
            options.cluster = required.map(|n| n.max(1));
        } else if options.cluster != required.map(|n| n.max(1)) {
            return Err(Error::INVALID_VALUE);
        }
    }
    if options.cluster != [1; 3] {
        let most =
            if function.non_portable() { card.cluster_blocks_non_portable } else { card.cluster_blocks };
        let whole = options.grid.iter().zip(options.cluster).all(|(&g, c)| c > 0 && g.is_multiple_of(c));
        if !whole || product(options.cluster) > u64::from(most) {
            return Err(Error::INVALID_CLUSTER_SIZE);
        }
    }
    if options.cooperative {
        let shared = options.shared + kernel.static_shared_bytes();
        let resident = card.occupancy(threads as u32, function.registers(card)?, shared).blocks;
        if product(options.grid) > u64::from(resident) * u64::from(card.multiprocessors) {
            return Err(Error::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
    }
    let places: Vec<(usize, usize)> =
        kernel.params().iter().map(|p| (p.offset as usize, p.bytes as usize)).collect();
    let params = read_params(&places, kernel.param_bytes() as usize, params, extra)?;
    let pointers = places.iter().map(|&(offset, _)| params.as_ptr() as usize + offset).collect();
    Ok(KernelLaunch { function, handle, options, params, pointers })
}

/// Copies the parameters: from an array of pointers, one for each, or from a buffer laid out as the kernel wants it.
fn read_params(places: &[(usize, usize)], total: usize, params: usize, extra: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; total];
    if params != 0 && extra != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if extra != 0 {
        let (mut buffer, mut size) = (None, None);
        // SAFETY: the list is made of pairs and ends with `CU_LAUNCH_PARAM_END`; nothing behind that is read.
        let word = |i: usize| -> Result<usize> { unsafe { In::<usize>::at(extra + i * 8) }.get() };
        for i in (0..).step_by(2) {
            match word(i)? {
                EXTRA_END => break,
                EXTRA_BUFFER => buffer = Some(word(i + 1)?),
                // SAFETY: the value of this entry points to the size.
                EXTRA_SIZE => size = Some(unsafe { In::<usize>::at(word(i + 1)?) }.get()?),
                _ => return Err(Error::INVALID_VALUE),
            }
        }
        let (Some(buffer), Some(size)) = (buffer, size) else { return Err(Error::INVALID_VALUE) };
        let needed = places.iter().map(|&(offset, n)| offset + n).max().unwrap_or(0);
        if size < needed || (needed > 0 && buffer == 0) {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the program says that the buffer holds `size` bytes.
        unsafe { crate::ffi::read_host(buffer, &mut bytes[..needed]) };
        return Ok(bytes);
    }
    // SAFETY: the program hands one pointer over for each parameter of the kernel.
    let pointers = unsafe { In::<usize>::at(params) }.list(places.len())?;
    for (&(offset, n), pointer) in places.iter().zip(pointers) {
        if pointer == 0 {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the pointer is to a value of this parameter's size.
        unsafe { crate::ffi::read_host(pointer, &mut bytes[offset..offset + n]) };
    }
    Ok(bytes)
}

/// The result that hardware would give for a fault.
fn result_of(kind: Kind, message: &str) -> Error {
    match kind {
        Kind::OutOfBounds | Kind::UseAfterFree => Error::ILLEGAL_ADDRESS,
        Kind::Misaligned => Error::MISALIGNED_ADDRESS,
        Kind::Deadlock | Kind::Timeout => Error::LAUNCH_TIMEOUT,
        Kind::Trap if message.contains("assert") => Error::ASSERT,
        Kind::Unsupported => Error::ILLEGAL_INSTRUCTION,
        _ => Error::LAUNCH_FAILED,
    }
}

impl KernelLaunch {
    /// What `cuGraphKernelNodeGetParams` answers.
    pub fn node_params(&self) -> KernelNodeParams {
        let Options { grid, block, shared, .. } = self.options;
        let params = self.pointers.as_ptr() as usize;
        KernelNodeParams { function: self.handle, grid, block, shared, params, extra: 0 }
    }

    /// Does it.
    pub fn perform(&self, driver: &'static Driver, context: &Arc<Context>, moment: &Moment) -> Result {
        let kernel = self.function.kernel()?;
        let card = &context.device()?.card;
        let config = LaunchConfig {
            grid: self.options.grid,
            block: self.options.block,
            dynamic_shared_bytes: self.options.shared,
            cooperative: self.options.cooperative,
            cluster: self.options.cluster,
            host_threads: driver.settings.host_threads,
            max_instructions: driver.settings.max_instructions,
            multiprocessors: card.multiprocessors,
        };
        let mut report = match run(&driver.memory, kernel, &config, &self.params) {
            Ok(report) => report,
            Err(error) => {
                lock(&context.report).note(&driver.settings, &format!("{}: {error}", self.function.name));
                return Err(context.fail(Error::LAUNCH_FAILED));
            }
        };
        report.estimate_occupancy(card, None);
        if !report.printf.is_empty() {
            print!("{}", report.printf);
        }
        let fault = report.faulted().map(|f| result_of(f.kind, &f.message));
        let fails = lock(&context.report).add_launch(&driver.settings, &report);
        if let Some(error) = fault {
            return Err(context.fail(error));
        }
        op::uses(driver, context, moment, &used(driver, &report))?;
        if fails { Err(context.fail(Error::LAUNCH_FAILED)) } else { Ok(()) }
    }
}

/// The memory that a launch used. To the word where another stream might use the words between; else from the first to
/// the last.
fn used(driver: &Driver, report: &Report) -> Vec<(Range<u64>, Use)> {
    let exact = lock(&driver.order).has_company();
    let mut all = Vec::new();
    for touched in &report.touched {
        let words = if exact { driver.memory.words_of(report.launch, touched) } else { None };
        let Touched { reads, writes, strong, .. } = touched.clone();
        match words {
            Some(words) => {
                all.extend(words.reads.into_iter().map(|r| (r, Use::Read)));
                all.extend(words.writes.into_iter().map(|r| (r, Use::Write)));
                all.extend(words.strong.into_iter().map(|r| (r, Use::Strong)));
            }
            None => all.extend([(reads, Use::Read), (strong, Use::Strong), (writes, Use::Write)]),
        }
    }
    all
}

fn submit(handle: Handle, options: Options, stream: Handle, params: usize, extra: usize) -> Result {
    let stream = stream::resolve(stream)?;
    let launch = prepare(handle, options, params, extra)?;
    if launch.function.context_handle() != stream.context()?.handle {
        return Err(Error::INVALID_HANDLE);
    }
    op::enqueue(&stream, Op::Kernel(Arc::new(launch))).map(|_| ())
}

/// `cuLaunchKernel`.
pub fn launch(
    handle: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    params: usize,
    extra: usize,
) -> Result {
    submit(handle, Options { grid, block, shared, ..Options::default() }, stream, params, extra)
}

/// `cuLaunchCooperativeKernel`.
pub fn launch_cooperative(
    handle: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    params: usize,
) -> Result {
    submit(
        handle,
        Options { grid, block, shared, cooperative: true, ..Options::default() },
        stream,
        params,
        0,
    )
}

/// Attributes that change where or how fast a kernel runs, but not what it does: access policy window, scheduling policy,
/// programmatic serialisation (which allows an overlap and never demands it), priority, memory domains, preferred
/// cluster, shared-memory carve-out and their like.
const WITHOUT_CONSEQUENCE: [u32; 10] = [0, 1, 5, 6, 8, 9, 10, 11, 14, 16];
const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;
const PROGRAMMATIC_EVENT: u32 = 7;
const COMPLETION_EVENT: u32 = 12;

/// Two 32-bit numbers of a 64-bit word, low one first.
fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Applies attributes; returns events to record after the kernel.
fn apply(options: &mut Options, attributes: &[LaunchAttribute]) -> Result<Vec<Arc<Event>>> {
    let mut events = Vec::new();
    for attribute in attributes {
        match attribute.id {
            COOPERATIVE => options.cooperative = halves(attribute.value[0]).0 != 0,
            CLUSTER => {
                let ((x, y), (z, _)) = (halves(attribute.value[0]), halves(attribute.value[1]));
                if x == 0 || y == 0 || z == 0 {
                    return Err(Error::INVALID_VALUE);
                }
                options.cluster = [x, y, z];
            }
            // Recorded when the kernel is done, which is later than it might be and never too early.
            PROGRAMMATIC_EVENT | COMPLETION_EVENT => {
                events.push(handles::get::<Event>(Handle(attribute.value[0] as usize))?);
            }
            id if WITHOUT_CONSEQUENCE.contains(&id) => {}
            3 | 13 => return Err(Error::INVALID_VALUE),
            _ => return Err(Error::NOT_SUPPORTED),
        }
    }
    Ok(events)
}

/// `cuLaunchKernelEx`.
pub fn launch_ex(config: In<LaunchConfigC>, handle: Handle, params: usize, extra: usize) -> Result {
    initialised()?;
    let config = config.get()?;
    let attributes = config.attributes.list(config.attribute_count as usize)?;
    let mut options =
        Options { grid: config.grid, block: config.block, shared: config.shared, ..Options::default() };
    let events = apply(&mut options, &attributes)?;
    submit(handle, options, config.stream, params, extra)?;
    let stream = stream::resolve(config.stream)?;
    for event in events {
        op::enqueue(&stream, Op::RecordEvent(event))?;
    }
    Ok(())
}
