//! A captured step that is launched again and again, two of them under way.
//!
//! ```text
//!  host     inputs -> pinned       inputs -> pinned       ..     takes what is there of earlier steps
//!  copies        '--- batch s           '--- batch s+1
//!  device             '- [ the graph of a step ]  '- [ .. ]
//!  host <- copies                          results of s '
//! ```
//! Nothing waits for a step but the one that is two steps behind. What changes from step to step lies in memory that the host
//! writes, never in a kernel's parameters.

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Gpu, Graph, PinnedBuffer, Prefetch, Readback};
use crate::optim::device::DeviceOptimizer;
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Steps that may be under way.
const DEPTH: usize = 2;

/// The graphs of a step, and what travels to and from them.
pub(in crate::train) struct Pipeline {
    gpu: Gpu,
    part: Graph,
    update: Option<Graph>,
    prefetch: Prefetch,
    scalars: [PinnedBuffer; DEPTH],
    pending: VecDeque<Pending>,
    /// Page-locked memory of steps that were taken.
    free: Vec<Pending>,
    launched: u64,
    finished_at: Instant,
}

/// A step that is being launched, or was and is not taken.
pub(in crate::train) struct Pending {
    step: u64,
    /// The results of all parts, one behind the other: so many copies are begun.
    results: Vec<Readback>,
    begun: usize,
    norms: Readback,
}

/// What came back of a step.
pub(in crate::train) struct Finished {
    /// Counted from 0.
    pub step: u64,
    /// The results of all parts in the order of their launch.
    pub results: Vec<Vec<f32>>,
    /// Time from the step before to this one, as the host saw them finish.
    pub time: Duration,
    /// [`DeviceOptimizer::norms`].
    norms: Vec<f32>,
}

impl Pipeline {
    /// For a graph of a part of a batch, which is a whole step where there is no second one for the update. The inputs of a
    /// part are `input_bytes`.
    pub fn new(
        gpu: &Gpu,
        (part, update): (Graph, Option<Graph>),
        input_bytes: usize,
        optimizer: &DeviceOptimizer,
    ) -> Result<Self> {
        let pinned = || gpu.pinned(optimizer.scalars_memory().bytes());
        Ok(Pipeline {
            gpu: gpu.clone(),
            part,
            update,
            prefetch: Prefetch::new(gpu, input_bytes, "input")?,
            scalars: [pinned()?, pinned()?],
            pending: VecDeque::new(),
            free: Vec::new(),
            launched: 0,
            finished_at: Instant::now(),
        })
    }

    /// Begins a step with a learning rate. Its parts are fed and launched next, then comes [`Pipeline::finish`].
    pub fn begin(&mut self, step: u64, lr: f64, optimizer: &mut DeviceOptimizer) -> Result<Pending> {
        debug_assert!(self.has_room(), "the caller takes what is finished");
        let pending = match self.free.pop() {
            Some(free) => Pending { step, begun: 0, ..free },
            None => {
                let norms = Readback::new(&self.gpu, optimizer.norms().bytes())?;
                Pending { step, results: Vec::new(), begun: 0, norms }
            }
        };
        let numbers = optimizer.scalars(lr)?;
        let scalars = &mut self.scalars[(self.launched % DEPTH as u64) as usize];
        scalars.as_mut_slice()?.copy_from_slice(numbers.as_bytes());
        scalars.upload(self.gpu.stream(), optimizer.scalars_memory().cuda_buffer()?)?;
        Ok(pending)
    }

    /// Brings the inputs of a part: `fill` writes them, `unpack` enqueues the copies from where they arrive.
    pub fn feed(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
        unpack: impl FnOnce(&Buffer) -> Result<()>,
    ) -> Result<()> {
        self.prefetch.push(fill)?;
        self.prefetch.consume(unpack)
    }

    /// Launches a part and begins to copy its `results`, f32 on the device.
    pub fn launch_part(&mut self, pending: &mut Pending, results: &[&Tensor]) -> Result<()> {
        self.part.launch(self.gpu.stream())?;
        for from in results {
            if pending.begun == pending.results.len() {
                pending.results.push(Readback::new(&self.gpu, from.bytes())?);
            }
            pending.results[pending.begun].begin(self.gpu.stream(), from.cuda_buffer()?)?;
            pending.begun += 1;
        }
        Ok(())
    }

    /// Launches the update, where it is a graph of its own: the step is under way.
    pub fn finish(&mut self, mut pending: Pending, optimizer: &DeviceOptimizer) -> Result<()> {
        if let Some(update) = &mut self.update {
            update.launch(self.gpu.stream())?;
        }
        pending.norms.begin(self.gpu.stream(), optimizer.norms().cuda_buffer()?)?;
        self.pending.push_back(pending);
        self.launched += 1;
        Ok(())
    }

    /// Steps that were launched since the last [`Pipeline::restart`].
    pub fn launched(&self) -> u64 {
        self.launched
    }

    /// Counts launches from 0 again.
    pub fn restart(&mut self) {
        self.launched = 0;
    }

    /// Steps that were launched and not taken.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Whether another step may be launched before the oldest is taken.
    pub fn has_room(&self) -> bool {
        self.pending.len() < DEPTH
    }

    /// The oldest step that was launched and not taken; waits for it. `None` if there is none.
    pub fn take(&mut self) -> Result<Option<Finished>> {
        let Some(mut pending) = self.pending.pop_front() else { return Ok(None) };
        let norms = floats(pending.norms.take()?);
        let results = pending.results[..pending.begun].iter_mut();
        let results = results.map(|r| r.take().map(floats)).collect::<Result<_>>()?;
        let step = pending.step;
        self.free.push(pending);
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.finished_at, now));
        Ok(Some(Finished { step, results, time, norms }))
    }
}

impl Finished {
    /// The L2 norm of the gradient before clipping, of a step with this loss. If that or the gradient is not finite, an error:
    /// the step has changed no parameter.
    pub fn grad_norm(&self, loss: f32) -> Result<f64> {
        let step = self.step;
        if !loss.is_finite() {
            return Err(Error::numeric(
                "loss",
                format!("is {loss} at step {step}; that step changed no parameter"),
            )
            .with_remedy(
                "lower the learning rate, clip the gradient, or look for bad weights or input data",
            ));
        }
        let norm = f64::from(self.norms[0]);
        if self.norms[3] == 0.0 || !norm.is_finite() {
            return Err(Error::numeric(
                "gradient",
                format!("is not finite at step {step}; that step changed no parameter"),
            )
            .with_remedy("lower the learning rate, clip the gradient, or look for bad input data"));
        }
        Ok(norm)
    }
}

/// The f32 numbers of bytes from the device.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}
