//! Every operation's benchmark cases, forward and backward: `cargo bench --bench ops -- conv2d`.
//!
//! Throughput is in FLOPs ("elem/s" in criterion's words) where a case does at least [`INTENSITY`] of them per byte it
//! moves, and in bytes of inputs and result elsewhere. A backward pass counts twice the FLOPs or bytes.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dtk::base::Shape;
use dtk::ops::{Backward, Case, REGISTRY, run};
use dtk::tensor::Tensor;
use std::time::Duration;

/// FLOPs per byte from which a case counts as limited by arithmetic.
const INTENSITY: u64 = 8;

fn throughput(case: &Case, y: &Tensor, passes: u64) -> Throughput {
    let flops = case.op.flops(&case.shapes());
    let bytes = case.tensors(0).iter().map(|t| t.bytes() as u64).sum::<u64>() + y.bytes() as u64;
    if flops >= INTENSITY * bytes {
        Throughput::Elements(passes * flops)
    } else {
        Throughput::Bytes(passes * bytes)
    }
}

fn ops(c: &mut Criterion) {
    for entry in REGISTRY {
        let mut group = c.benchmark_group(entry.name);
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
        for case in (entry.cases)().iter().filter(|c| c.bench) {
            let inputs = case.tensors(0);
            let refs: Vec<&Tensor> = inputs.iter().collect();
            let shapes: Vec<Shape> = case.shapes();
            let out = run(&*case.op, &refs).expect("a bench case runs");
            group.throughput(throughput(case, &out.y, 1));
            group.bench_function(BenchmarkId::new("forward", &case.label), |b| {
                b.iter(|| run(&*case.op, &refs).expect("a bench case runs").y);
            });
            let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
            if !needs.contains(&true) {
                continue;
            }
            let gy = Tensor::full(out.y.shape(), 1.0);
            let mut saved = case.op.save(&refs, &out.y);
            saved.extend(out.extra);
            let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs };
            group.throughput(throughput(case, &out.y, 2));
            group.bench_function(BenchmarkId::new("backward", &case.label), |b| {
                b.iter(|| case.op.backward(&ctx).expect("a bench case differentiates"));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
