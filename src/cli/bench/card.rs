//! Times one case on a card.

use super::cases::{self, Problem};
use super::format::Pass;
use super::time::{cost, repeat};
use crate::base::{DType, Philox, Shape};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::{self, Backward, Case};
use crate::tensor::Tensor;

/// One sample covers about this many milliseconds of calls: far more than the resolution of an event.
const SAMPLE_MS: f64 = 2.0;
/// Most calls in a sample.
const MOST_CALLS: usize = 256;
/// Most sets of arguments.
const MOST_SETS: u64 = 8;

/// A pass of a case, ready to run on a device.
pub struct OnCard<'a> {
    gpu: &'a Gpu,
    case: &'a Case,
    shapes: Vec<Shape>,
    needs: Vec<bool>,
    sets: Vec<Set>,
}

/// One set of arguments on the device.
struct Set {
    inputs: Vec<Tensor>,
    /// For the backward pass: the gradient of the result, and what the forward pass kept.
    backward: Option<(Tensor, Vec<Tensor>)>,
}

impl Set {
    fn new(gpu: &Gpu, case: &Case, pass: Pass, dtype: DType, seed: u64) -> Result<Set> {
        // What is no operand (a bias, say) stays f32 on a device.
        let operand = |i: usize| case.op.is_operand(i);
        let narrow = cases::inputs(case, dtype, seed)?;
        let wide = match (0..narrow.len()).all(operand) {
            true => Vec::new(),
            false => cases::inputs(case, DType::F32, seed)?,
        };
        let pick = |i: usize| if operand(i) { &narrow[i] } else { &wide[i] };
        let inputs = (0..narrow.len()).map(|i| pick(i).to_gpu_tagged(gpu, "bench")).collect::<Result<_>>()?;
        let mut set = Set { inputs, backward: None };
        if pass == Pass::Backward {
            let refs = set.refs();
            let out = ops::run(&*case.op, &refs)?;
            let mut saved = case.op.save(&refs, &out.y);
            saved.extend(out.extra);
            let gy = cases::normal(out.y.shape(), 0.0, 1.0, out.y.dtype(), Philox::new(seed).fold_str("gy"))?;
            set.backward = Some((gy.to_gpu_tagged(gpu, "bench")?, saved));
        }
        Ok(set)
    }

    fn refs(&self) -> Vec<&Tensor> {
        self.inputs.iter().collect()
    }
}

impl<'a> OnCard<'a> {
    /// Brings arguments to the device: several sets where one would stay in its second-level cache.
    ///
    /// # Errors
    /// Memory runs out, or the forward pass, whose values the backward pass takes, fails.
    pub fn new(gpu: &'a Gpu, problem: &'a Problem, pass: Pass, dtype: DType) -> Result<Self> {
        let case = &problem.case;
        let (_, bytes) = cost(problem, pass, dtype)?;
        let sets = (3 * u64::from(gpu.info().l2_bytes)).div_ceil(bytes.max(1)).clamp(1, MOST_SETS);
        Ok(OnCard {
            gpu,
            case,
            shapes: case.shapes(),
            needs: case.inputs.iter().map(|i| i.grad).collect(),
            sets: (0..sets).map(|seed| Set::new(gpu, case, pass, dtype, seed)).collect::<Result<_>>()?,
        })
    }

    /// Enqueues the pass `n` times, on the sets of arguments in turn.
    ///
    /// # Errors
    /// A launch fails.
    pub fn enqueue(&self, n: usize) -> Result<()> {
        self.sets.iter().cycle().take(n).try_for_each(|set| match &set.backward {
            None => ops::run(&*self.case.op, &set.refs()).map(drop),
            Some((gy, saved)) => {
                let ctx = Backward { gy, saved, inputs: &self.shapes, needs: &self.needs };
                ops::backward(&*self.case.op, &ctx).map(drop)
            }
        })
    }

    /// Milliseconds between events around some work.
    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = self.gpu.stream().record_timed()?;
        work()?;
        Ok(f64::from(self.gpu.stream().record_timed()?.elapsed_ms(&start)?))
    }

    /// Times of one call: events around some milliseconds of calls, divided by their number. Short calls go into a
    /// graph, so that gaps between launches do not count.
    ///
    /// # Errors
    /// The op has no kernel, memory runs out, or a launch fails.
    pub fn times(&self, seconds: f64) -> Result<Vec<f64>> {
        // Twice, so that kernels are compiled and loaded and memory is there.
        self.enqueue(2 * self.sets.len())?;
        self.gpu.stream().synchronize()?;
        let mut call = || self.enqueue(1);
        let once = self.timed(&mut call)?.min(self.timed(&mut call)?);
        let enough = (SAMPLE_MS / once.max(1e-4)).ceil() as usize;
        let calls = enough.clamp(self.sets.len(), MOST_CALLS);
        // A call that fills a sample needs no graph. Where capturing fails, single launches are timed.
        let mut graph = match enough {
            1 => None,
            _ => self.gpu.stream().capture(|| self.enqueue(calls)).ok(),
        };
        let mut work = || match &mut graph {
            Some(graph) => graph.launch(self.gpu.stream()),
            None => self.enqueue(calls),
        };
        self.timed(&mut work)?;
        repeat(seconds, || Ok(self.timed(&mut work)? / calls as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::cases::Problem;
    use crate::gpu::Options;
    use crate::ops::conv2d::Conv2d;
    use crate::ops::{Input, check};

    /// The simulator stands in for a card: what it says of time means nothing, but everything on the way must work.
    fn simulated() -> Option<Gpu> {
        let executable = std::env::current_exe().unwrap();
        let driver = executable.with_file_name("libptxsim_driver.so");
        if !driver.is_file() || crate::gpu::nvrtc::Nvrtc::find().is_err() {
            println!("skipped: no simulator or no NVRTC");
            return None;
        }
        // Below the target folder, as the integration tests' (cargo tells only those where that is).
        let cache_dir = executable.ancestors().nth(3)?.join("tmp/kernel_cache");
        let options = Options { driver: Some(driver), cache_dir: Some(cache_dir), ..Options::default() };
        Some(Gpu::open_with(0, options).unwrap())
    }

    #[test]
    fn passes_run_with_events_and_graphs_and_compute_what_they_should() {
        let Some(gpu) = simulated() else { return };
        let inputs = || {
            vec![Input::normal("x", [1, 4, 4, 8]), Input::normal("w", [8, 3, 3, 8]), Input::normal("b", [8])]
        };
        let case = Case::bench("small", Conv2d::square(1, 1), inputs());
        let problem = Problem { case, convolution: None };
        for pass in [Pass::Forward, Pass::Backward] {
            for dtype in [DType::F32, DType::Bf16] {
                let ready = OnCard::new(&gpu, &problem, pass, dtype).unwrap();
                let kinds: Vec<DType> = ready.sets[0].inputs.iter().map(Tensor::dtype).collect();
                assert_eq!(kinds, [dtype, dtype, DType::F32]);
                assert_eq!(ready.times(0.0).unwrap().len(), 3);
            }
        }
        let report = gpu.report_json().unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["findings"], 0, "{report}");
        assert!(check::check_on(&gpu, &problem.case, DType::Bf16, 0).is_ok());
    }
}
