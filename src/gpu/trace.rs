//! Which kernels were launched, and for what: for tests, and for plans and reports that tell how many ran, and where.

use super::defines::Defines;
use super::device::Gpu;
use super::launch::Grid;
use super::nvrtc::Resources;
use crate::base::{DType, Shape};
use crate::error::Result;
use std::sync::{Mutex, PoisonError};

/// One variant of a kernel: what it is compiled from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The source's name: `conv2d.cu`.
    pub source: String,
    /// The kernel: `conv2d_fwd`.
    pub entry: String,
    /// What it is compiled with.
    pub defines: Defines,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { source, entry, defines } = self;
        f.write_str(format!("{source}: {entry} {defines}").trim_end())
    }
}

/// One launch that the device accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub kernel: Identity,
    /// Its blocks.
    pub grid: Grid,
    /// What one of them takes.
    pub resources: Resources,
}

/// What a few launches were for.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The operation's name; of launches that belong to none, the kernel's file.
    pub op: String,
    /// `fwd` or `bwd`; empty for what has no direction.
    pub pass: &'static str,
    /// Shape of the result.
    pub shape: Shape,
    /// Element type of the operands.
    pub dtype: DType,
    /// Floating-point operations of the definition; a multiply-add counts two.
    pub flops: u64,
    /// Bytes of what is read and written, each tensor once.
    pub bytes: u64,
    /// Address of the result; 0 if there is none.
    pub result: u64,
    /// The launches, in order.
    pub launches: Vec<Launch>,
}

impl Work {
    /// Launches that nobody has said anything of.
    fn unknown(launches: Vec<Launch>) -> Work {
        let source = launches.first().map_or("", |l| &l.kernel.source);
        let op = source.trim_end_matches(".cu").to_string();
        let (shape, dtype) = (Shape::SCALAR, DType::F32);
        Work { op, pass: "", shape, dtype, flops: 0, bytes: 0, result: 0, launches }
    }
}

/// The launches of a device since recording began; nothing while it is off.
#[derive(Default)]
pub(super) struct Trace(Mutex<Log>);

#[derive(Default)]
struct Log {
    launches: Option<Vec<Launch>>,
    work: Option<WorkLog>,
}

#[derive(Default)]
struct WorkLog {
    done: Vec<Work>,
    /// Launches since the last entry.
    open: Vec<Launch>,
    /// Whether some work is under way.
    busy: bool,
}

impl WorkLog {
    /// Makes an entry of launches that belong to no operation.
    fn settle(&mut self) {
        if !self.open.is_empty() {
            self.done.push(Work::unknown(std::mem::take(&mut self.open)));
        }
    }
}

impl Trace {
    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        // A list is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a launch.
    pub fn note(&self, kernel: &Identity, grid: Grid, resources: &Resources) {
        let log = &mut *self.lock();
        let launch = || Launch { kernel: kernel.clone(), grid, resources: resources.clone() };
        log.launches.iter_mut().for_each(|l| l.push(launch()));
        log.work.iter_mut().for_each(|w| w.open.push(launch()));
    }
}

impl Gpu {
    /// Begins to record launches, of every stream and thread, in the order in which they were given to the device. Costs some
    /// memory for each; off by default.
    pub fn record_launches(&self) {
        self.context().trace().lock().launches = Some(Vec::new());
    }

    /// The launches since recording began or the last call; recording goes on. Nothing where it never began.
    pub fn take_launches(&self) -> Vec<Launch> {
        self.context().trace().lock().launches.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Begins to record which operations launch what; what was recorded before is forgotten. Off by default.
    pub fn record_work(&self) {
        self.context().trace().lock().work = Some(WorkLog::default());
    }

    /// The work since recording began or the last call; recording goes on. Nothing where it never began.
    pub fn take_work(&self) -> Vec<Work> {
        let log = &mut *self.context().trace().lock();
        let Some(work) = &mut log.work else { return Vec::new() };
        work.settle();
        std::mem::take(&mut work.done)
    }

    /// Does something that launches kernels, and notes what for if that is recorded. Work within work is not noted apart.
    /// `describe` leaves the launches empty.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn traced<R>(
        &self,
        work: impl FnOnce() -> Result<R>,
        describe: impl FnOnce(&R) -> Work,
    ) -> Result<R> {
        let trace = self.context().trace();
        let outermost = match &mut trace.lock().work {
            Some(log) if !log.busy => {
                log.settle();
                log.busy = true;
                true
            }
            _ => false,
        };
        if !outermost {
            return work();
        }
        let result = work();
        let described = result.as_ref().map(describe);
        if let Some(log) = &mut trace.lock().work {
            log.busy = false;
            let launches = std::mem::take(&mut log.open);
            if let Ok(work) = described
                && !launches.is_empty()
            {
                log.done.push(Work { launches, ..work });
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Defines, DeviceInfo};
    use super::*;
    use crate::error::Error;

    #[test]
    fn work_takes_its_launches_and_those_of_work_within() {
        let gpu = Gpu::planning(DeviceInfo::h100()).unwrap();
        let launch = || {
            let grid = Grid { grid: [1; 3], block: 32, shared_bytes: 0 };
            gpu.kernel("conv2d_bias_grad.cu", "conv2d_bias_grad_sum", &Defines::new())?.launch(
                gpu.stream(),
                grid,
                &0u32,
            )
        };
        let named = |op: &str| {
            let work = Work { op: op.into(), ..Work::unknown(vec![]) };
            move |(): &()| work
        };
        gpu.traced(launch, named("unrecorded")).unwrap();
        gpu.record_work();
        launch().unwrap();
        let nested = || {
            launch()?;
            gpu.traced(launch, named("inner"))
        };
        gpu.traced(nested, named("outer")).unwrap();
        assert!(gpu.traced(|| Err::<(), _>(Error::device("no")), named("failed")).is_err());
        gpu.traced(|| Ok(()), named("nothing")).unwrap();
        gpu.traced(launch, named("last")).unwrap();
        let seen: Vec<(String, usize)> =
            gpu.take_work().into_iter().map(|w| (w.op, w.launches.len())).collect();
        let want = [("conv2d_bias_grad", 1), ("outer", 2), ("last", 1)];
        assert_eq!(seen, want.map(|(op, n)| (op.to_string(), n)));
        assert!(gpu.take_work().is_empty());
    }
}
