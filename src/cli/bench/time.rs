//! Measures one case.

use super::cases::{self, Problem};
use super::format::Pass;
use crate::base::{DType, Philox, Shape};
use crate::error::Result;
use crate::ops::{Backward, run};
use crate::tensor::Tensor;
use std::time::Instant;

/// Least and most times taken of a case, whatever it costs.
const SAMPLES: std::ops::RangeInclusive<usize> = 3..=50;

/// Milliseconds as they are kept: four digits say all that a clock knows.
pub(super) fn rounded(ms: f64) -> f64 {
    format!("{ms:.3e}").parse().unwrap_or(ms)
}

/// Calls `sample`, which gives milliseconds, until `seconds` have passed on the clock of the wall.
pub(super) fn repeat(seconds: f64, mut sample: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    let (start, mut ms) = (Instant::now(), Vec::new());
    while ms.len() < *SAMPLES.start()
        || (ms.len() < *SAMPLES.end() && start.elapsed().as_secs_f64() < seconds)
    {
        ms.push(rounded(sample()?));
    }
    Ok(ms)
}

/// FLOPs of a pass, and the bytes it must move at least: inputs (or the gradient of the result and what the forward
/// pass kept) read once, results (or gradients) written once. A backward pass counts twice the forward FLOPs.
pub fn cost(problem: &Problem, pass: Pass, dtype: DType) -> Result<(u64, u64)> {
    let case = &problem.case;
    let shapes = case.shapes();
    let flops = case.op.flops(&shapes);
    let meta: Vec<Tensor> = case.inputs.iter().map(|i| Tensor::meta(i.shape, i.dtype(), None)).collect();
    let refs: Vec<&Tensor> = meta.iter().collect();
    let y = run(&*case.op, &refs)?.y;
    let bytes =
        |t: &Tensor| (t.elems() * if t.dtype() == DType::F32 { dtype } else { t.dtype() }.size()) as u64;
    Ok(match pass {
        Pass::Forward => (flops, meta.iter().map(bytes).sum::<u64>() + bytes(&y)),
        // Of what is not the forward pass alone.
        Pass::Backward | Pass::Whole => {
            let read: u64 = case.op.save(&refs, &y).iter().map(bytes).sum();
            let wanted = meta.iter().zip(&case.inputs).filter(|(_, i)| i.grad);
            (2 * flops, bytes(&y) + read + wanted.map(|(t, _)| bytes(t)).sum::<u64>())
        }
    })
}

/// Times a pass on the CPU: one call to warm up, then the clock around every call. What fits a cache stays there.
///
/// # Errors
/// The op fails.
pub fn on_cpu(problem: &Problem, pass: Pass, seconds: f64) -> Result<Vec<f64>> {
    let case = &problem.case;
    let inputs = cases::inputs(case, DType::F32, 0)?;
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let timed = |work: &dyn Fn() -> Result<()>| {
        work()?;
        repeat(seconds, || {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        })
    };
    if pass == Pass::Forward {
        return timed(&|| run(&*case.op, &refs).map(drop));
    }
    let out = run(&*case.op, &refs)?;
    let gy = cases::normal(out.y.shape(), 0.0, 1.0, DType::F32, Philox::new(0).fold_str("gy"))?;
    let mut saved = case.op.save(&refs, &out.y);
    saved.extend(out.extra);
    let shapes: Vec<Shape> = case.shapes();
    let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
    let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs };
    timed(&|| case.op.backward(&ctx).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::format::Suite;

    #[test]
    fn bytes_and_flops_are_those_of_the_formula() {
        // Five inputs of 8 x 64 x 64 x 64 channels in, 64 out, 3x3, no bias.
        let p = &cases::problems(Suite::Ops, "conv2d/bench [8, 64, 64, 64]", &[]).unwrap()[0];
        let (x, w) = (8u64 * 64 * 64 * 64, 64u64 * 9 * 64);
        let flops = 2 * x * 9 * 64;
        assert_eq!(cost(p, Pass::Forward, DType::Bf16).unwrap(), (flops, 2 * (x + w + x)));
        assert_eq!(cost(p, Pass::Backward, DType::F32).unwrap(), (2 * flops, 4 * (x + x + w + x + w)));
        // Labels are 64 bits wide whatever the element type.
        let p = &cases::problems(Suite::Ops, "cross_entropy", &[]).unwrap()[0];
        let of = |dtype| cost(p, Pass::Forward, dtype).unwrap().1;
        let labels: u64 =
            p.case.inputs.iter().filter(|i| i.dtype() == DType::I64).map(|i| i.shape.elems() as u64).sum();
        assert!(labels > 0);
        assert_eq!(of(DType::F32) - 8 * labels, 2 * (of(DType::Bf16) - 8 * labels));
    }

    #[test]
    fn repetitions_have_bounds() {
        let count = |seconds| repeat(seconds, || Ok(1.234_567)).unwrap();
        assert_eq!(count(0.0), [1.235; 3]);
        assert_eq!(count(1e9).len(), 50);
    }
}
