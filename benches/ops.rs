//! Every operation's benchmark cases, forward and backward: `cargo bench --bench ops -- conv2d`.
//!
//! Throughput is in FLOPs ("elem/s" in criterion's words) where a case does at least [`INTENSITY`] of them per byte it
//! moves, and in bytes of inputs and result elsewhere. A backward pass counts twice the FLOPs or bytes.
//!
//! On the CPU in f32, and on a card where there is one (not on the simulator) with operands in bf16.

#[path = "common/card.rs"]
mod card;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dtk::base::{DType, Shape};
use dtk::gpu::Gpu;
use dtk::ops::{Backward, Case, REGISTRY, backward, run};
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

/// Both passes of a case on a card, single launches one behind the other.
fn on_card(group: &mut BenchmarkGroup<'_, WallTime>, gpu: &Gpu, case: &Case) {
    let to = |(i, t): (usize, Tensor)| {
        let narrow = case.op.is_operand(i) && t.dtype() == DType::F32;
        let t = if narrow { t.to_dtype(DType::Bf16).expect("f32 is narrowed") } else { t };
        t.to_gpu(gpu).expect("the card has room")
    };
    let inputs: Vec<Tensor> = case.tensors(0).into_iter().enumerate().map(to).collect();
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let out = run(&*case.op, &refs).expect("a bench case runs");
    group.throughput(throughput(case, &out.y, 1));
    group.bench_function(BenchmarkId::new("forward, card", &case.label), |b| {
        b.iter_custom(|n| card::timed(gpu, n, || drop(run(&*case.op, &refs).expect("a bench case runs"))));
    });
    let needs: Vec<bool> = case.inputs.iter().map(|i| i.grad).collect();
    if !needs.contains(&true) {
        return;
    }
    let gy = Tensor::full(out.y.shape(), 1.0).to_dtype(out.y.dtype()).and_then(|t| t.to_gpu(gpu));
    let gy = gy.expect("the card has room");
    let mut saved = case.op.save(&refs, &out.y);
    saved.extend(out.extra);
    let shapes: Vec<Shape> = case.shapes();
    let ctx = Backward { gy: &gy, saved: &saved, inputs: &shapes, needs: &needs };
    group.throughput(throughput(case, &out.y, 2));
    group.bench_function(BenchmarkId::new("backward, card", &case.label), |b| {
        let work = || drop(backward(&*case.op, &ctx).expect("a bench case differentiates"));
        b.iter_custom(|n| card::timed(gpu, n, work));
    });
}

fn ops(c: &mut Criterion) {
    let card = card::card();
    for entry in REGISTRY {
        let mut group = c.benchmark_group(entry.name);
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
        for case in (entry.cases)().iter().filter(|c| c.bench) {
            if let Some(gpu) = card.as_ref().filter(|_| case.op.has_kernel()) {
                on_card(&mut group, gpu, case);
            }
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
