//! `--dry-run` with a CUDA device: the step as it will be captured, operation by operation.

use super::bench::Peaks;
use super::{bytes, count};
use crate::gpu::Place;
use crate::recipe::Precision;
use crate::train::{DevicePlan, PlannedWork};
use std::collections::BTreeMap;

/// What products reach of a card's peak arithmetic, and passes over memory of its peak bandwidth: what good kernels reach
/// on an H100. A model, not a measurement of dtk.
const PRODUCT_SHARE: f64 = 0.75;
const MEMORY_SHARE: f64 = 0.85;

/// Prints the plan of a training step on a device. `there` says whether the device is at hand or only imagined, `remedy` what to
/// do where the step does not fit its memory.
pub fn print(plan: &DevicePlan, precision: Precision, there: bool, remedy: &str) {
    let device = &plan.device;
    let peaks = Peaks::of_device(device);
    let imagined = if there { "" } else { ", which is not here" };
    println!("# plan of one step on {}{imagined} ({} operands)", device.name, precision.dtype());
    let n = plan.images;
    println!("# part of a batch: {n} images, {} times", plan.parts);
    println!(
        "#  no.  {:24} {:22} {:>9} {:>10} {:>7}  {:>15}  kernels",
        "operation", "result", "bytes", "FLOPs", "us", "at"
    );
    rows(&plan.part, &peaks, 0);
    println!("# update of the parameters: once");
    rows(&plan.update, &peaks, plan.part.len());
    summary(plan, &peaks, remedy);
}

fn rows(works: &[PlannedWork], peaks: &Peaks, first: usize) {
    for (i, PlannedWork { work: w, result }) in works.iter().enumerate() {
        let name = [w.op.as_str(), w.pass].join(" ");
        let shape = format!("{} {}", w.dtype, w.shape);
        let us = time(peaks, &works[i]).map_or("-".into(), |t| format!("{:.1}", t.0 * 1e6));
        let at = result.map_or("-".into(), |p: Place| {
            format!("{}+{:#x}", if p.small { "small" } else { "large" }, p.offset)
        });
        let kernels: Vec<String> = w
            .launches
            .iter()
            .map(|l| {
                let tile = |name: &str| l.kernel.defines.get(name).map(str::to_string);
                let [x, y, z] = l.grid.grid;
                let blocks = u64::from(x) * u64::from(y) * u64::from(z);
                match (tile("BM"), tile("BN")) {
                    (Some(m), Some(n)) => format!("{} {m}x{n} ({blocks})", l.kernel.entry),
                    _ => format!("{} ({blocks})", l.kernel.entry),
                }
            })
            .collect();
        println!(
            "{:6}  {:24} {:22} {:>9} {:>10} {:>7}  {:>15}  {}",
            first + i + 1,
            name.trim_end(),
            shape,
            bytes(w.bytes as usize),
            count(w.flops),
            us,
            at,
            kernels.join(", ")
        );
    }
}

/// Least time of some work in seconds, and whether arithmetic limits it.
fn time(peaks: &Peaks, w: &PlannedWork) -> Option<(f64, bool)> {
    // Statistics and norms of f32 results read operands of another type; only products run on tensor cores.
    let floor = peaks.floor(&w.work.dtype.to_string(), w.work.flops, w.work.bytes)?;
    Some((floor.ms / 1e3, floor.bound == super::bench::Bound::Compute))
}

fn summary(plan: &DevicePlan, peaks: &Peaks, remedy: &str) {
    let device = &plan.device;
    let mut ops: BTreeMap<String, [f64; 4]> = BTreeMap::new();
    let (mut floor, mut predicted) = (0.0, 0.0);
    for (works, times) in [(&plan.part, plan.parts), (&plan.update, 1)] {
        for w in works {
            let (t, compute) = time(peaks, w).unwrap_or((0.0, false));
            let share = if compute { PRODUCT_SHARE } else { MEMORY_SHARE };
            floor += t * times as f64;
            predicted += t / share * times as f64;
            let name = [w.work.op.as_str(), w.work.pass].join(" ");
            let row = ops.entry(name.trim_end().to_string()).or_default();
            let launches = w.work.launches.len() * times;
            for (sum, v) in row.iter_mut().zip([
                launches as f64,
                w.work.bytes as f64 * times as f64,
                w.work.flops as f64 * times as f64,
                t * times as f64,
            ]) {
                *sum += v;
            }
        }
    }
    println!("# by operation: launches, bytes, FLOPs, least time");
    let mut ops: Vec<_> = ops.into_iter().collect();
    ops.sort_by(|a, b| b.1[3].total_cmp(&a.1[3]));
    for (name, [launches, moved, flops, t]) in ops {
        println!(
            "  {name:26} {launches:6}  {:>10}  {:>9}  {:9.3} ms",
            bytes(moved as usize),
            count(flops as u64),
            t * 1e3
        );
    }
    println!("# memory, largest peak first (peaks of different uses fall on different times)");
    for tag in &plan.tags {
        println!("  {:26} {:>15} bytes at its peak", tag.tag, tag.peak_bytes);
    }
    let total = plan.extent.bytes();
    println!(
        "arena                 {total} bytes ({}): {} for large blocks, {} for small ones; the device has {}",
        bytes(total as usize),
        plan.extent.large_bytes,
        plan.extent.small_bytes,
        bytes(device.total_memory_bytes as usize)
    );
    if total > device.total_memory_bytes {
        println!("                      it does not fit: {remedy}");
    }
    println!("kernels               {} variants", plan.kernels().len());
    println!("FLOPs                 {}", count(plan.flops()));
    println!(
        "time (a model)        {:.1} ms at the card's peaks ({}); {:.1} ms at {:.0} % of its arithmetic and {:.0} % of its \
         memory bandwidth",
        floor * 1e3,
        peaks.source,
        predicted * 1e3,
        PRODUCT_SHARE * 100.0,
        MEMORY_SHARE * 100.0
    );
}
