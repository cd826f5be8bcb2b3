//! The card of the benches.

use dtk::gpu::Gpu;
use dtk::gpu::nvrtc::Nvrtc;
use std::time::Duration;

/// The first card that can be opened, if there is NVRTC to compile for it. The simulator is none: it has no speed.
pub fn card() -> Option<Gpu> {
    Nvrtc::find().ok()?;
    Gpu::open(0).ok().filter(|gpu| !gpu.info().simulated)
}

/// How long a card takes for some work `n` times.
pub fn timed(gpu: &Gpu, n: u64, mut work: impl FnMut()) -> Duration {
    let mark = || gpu.stream().record_timed().expect("an event is recorded");
    let start = mark();
    (0..n).for_each(|_| work());
    let ms = mark().elapsed_ms(&start).expect("the work succeeds");
    Duration::from_secs_f64(f64::from(ms) / 1e3)
}
