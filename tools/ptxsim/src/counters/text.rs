//! Counters for people: a table of launches, and one launch in detail.

use super::memory::ratio;
use super::{Counters, GlobalTraffic, SharedTraffic};
use crate::exec::launch::Report;
use std::fmt::Write as _;

/// `1 234 567` is easier to read than `1234567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// With so many digits after the point, or a dash.
fn decimal(x: Option<f64>, digits: usize) -> String {
    x.map_or_else(|| "-".to_string(), |x| format!("{x:.digits$}"))
}

fn percent(x: Option<f64>) -> String {
    x.map_or_else(|| "-".to_string(), |x| format!("{:.0}%", 100.0 * x))
}

/// `4x4x1` without trailing ones: `4x4`.
fn shape(n: [u32; 3]) -> String {
    match n {
        [x, 1, 1] => format!("{x}"),
        [x, y, 1] => format!("{x}x{y}"),
        [x, y, z] => format!("{x}x{y}x{z}"),
    }
}

/// The word that stands for a value in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}

/// Columns as wide as their widest cell; the first is aligned to the left.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            match c {
                0 => line.extend([cell.as_str(), &pad]),
                _ => line.extend(["  ", &pad, cell.as_str()]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Sums of what both directions did.
fn conflict_factor(loads: &SharedTraffic, stores: &SharedTraffic) -> Option<f64> {
    ratio(loads.wavefronts + stores.wavefronts, loads.ideal_wavefronts + stores.ideal_wavefronts)
}

const HEADER: [&str; 16] = [
    "kernel",
    "grid",
    "block",
    "warp instr",
    "lanes",
    "diverged",
    "FLOP",
    "tensor FLOP",
    "ld sect/req",
    "ld eff",
    "st eff",
    "shared waves",
    "conflicts",
    "local B",
    "barriers",
    "occupancy",
];

fn row(report: &Report) -> Vec<String> {
    let c = &report.counters;
    let m = &c.memory;
    vec![
        report.kernel.clone(),
        shape(report.grid),
        shape(report.block),
        grouped(c.warp_instructions),
        format!("{:.1}", c.divergence.mean_active_lanes),
        format!("{:.1}%", c.divergence.percent),
        grouped(c.flops.f32 + c.flops.f64 + c.flops.half),
        grouped(c.flops.tensor),
        decimal(m.global_load.sectors_per_request, 2),
        percent(m.global_load.efficiency),
        percent(m.global_store.efficiency),
        grouped(m.shared_load.wavefronts + m.shared_store.wavefronts + m.async_copy.wavefronts),
        decimal(conflict_factor(&m.shared_load, &m.shared_store), 2),
        grouped(m.local_load.bytes + m.local_store.bytes),
        grouped(c.barriers.block),
        c.occupancy.as_ref().map_or_else(|| "-".to_string(), |o| format!("{:.0}%", o.percent)),
    ]
}

/// One row for each launch.
pub fn table(reports: &[Report]) -> String {
    let mut rows = vec![HEADER.map(String::from).to_vec()];
    rows.extend(reports.iter().map(row));
    aligned(&rows)
}

fn global_line(name: &str, t: &GlobalTraffic) -> Vec<String> {
    vec![
        format!("  {name}"),
        grouped(t.requests),
        "requests".into(),
        grouped(t.bytes),
        "bytes".into(),
        grouped(t.sectors),
        "sectors".into(),
        decimal(t.sectors_per_request, 2),
        "a request,".into(),
        percent(t.efficiency),
        "used".into(),
    ]
}

fn shared_line(name: &str, t: &SharedTraffic) -> Vec<String> {
    vec![
        format!("  {name}"),
        grouped(t.requests),
        "requests".into(),
        grouped(t.bytes),
        "bytes".into(),
        grouped(t.wavefronts),
        "waves".into(),
        decimal(t.conflict_factor, 2),
        "of ideal".into(),
    ]
}

fn memory_lines(c: &Counters) -> Vec<Vec<String>> {
    let m = &c.memory;
    let mut rows = Vec::new();
    for (name, t) in [("global load", &m.global_load), ("global store", &m.global_store)] {
        if t.requests != 0 {
            rows.push(global_line(name, t));
        }
    }
    for (name, t) in [("shared load", &m.shared_load), ("shared store", &m.shared_store)] {
        if t.requests != 0 {
            rows.push(shared_line(name, t));
        }
    }
    let plain =
        [("local load", m.local_load), ("local store", m.local_store), ("constant load", m.constant_load)];
    for (name, t) in plain.iter().filter(|(_, t)| t.requests != 0) {
        let cells = [&format!("  {name}"), &grouped(t.requests), "requests", &grouped(t.bytes), "bytes"];
        rows.push(cells.map(String::from).to_vec());
    }
    for (name, t) in [("global atomics", m.global_atomic), ("shared atomics", m.shared_atomic)] {
        if t.requests != 0 {
            let cells =
                [&format!("  {name}"), &grouped(t.requests), "requests", &grouped(t.operations), "lanes"];
            let mut row = cells.map(String::from).to_vec();
            row.extend([grouped(t.most_collisions), "at one address".into()]);
            rows.push(row);
        }
    }
    let a = &m.async_copy;
    if a.requests != 0 {
        rows.push(vec![
            "  async copy".into(),
            grouped(a.requests),
            "requests".into(),
            grouped(a.bytes),
            "bytes".into(),
            grouped(a.sectors),
            "sectors".into(),
            grouped(a.wavefronts),
            "waves,".into(),
            decimal(ratio(a.wavefronts, a.ideal_wavefronts), 2),
            "of ideal".into(),
        ]);
    }
    rows
}

/// One launch in detail, with its `hottest` source lines.
pub fn details(report: &Report, hottest: usize) -> String {
    let c = &report.counters;
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = header(&mut out, report);
    let all = c.warp_instructions.max(1) as f64;
    let mut classes: Vec<_> = c.classes.iter().collect();
    classes.sort_by_key(|(class, n)| (std::cmp::Reverse(n.warp), **class));
    let mut rows = vec![["class", "warp instr", "share", "lane instr"].map(String::from).to_vec()];
    for (class, n) in classes {
        let share = format!("{:.1}%", 100.0 * n.warp as f64 / all);
        rows.push(vec![word(class), grouped(n.warp), share, grouped(n.lanes)]);
    }
    out.push_str(&aligned(&rows));
    let memory = memory_lines(c);
    if !memory.is_empty() {
        out.push_str("memory\n");
        out.push_str(&aligned(&memory));
    }
    let accesses: u64 = c.memory.global_widths.values().sum();
    if accesses != 0 {
        let share = |(bytes, n): (&u64, &u64)| format!("{bytes} B {}", percent(ratio(*n, accesses)));
        let shares: Vec<String> = c.memory.global_widths.iter().map(share).collect();
        let _ = writeln!(out, "global accesses by bytes of a lane: {}", shares.join(", "));
    }
    let mut hot: Vec<_> = c.lines.iter().collect();
    hot.sort_by_key(|l| std::cmp::Reverse(l.warp_instructions));
    let names = ["line", "warp instr", "share", "divergent", "sectors", "waves", "ideal waves"];
    let mut rows = vec![names.map(String::from).to_vec()];
    for l in hot.iter().take(hottest) {
        let file = if l.file.is_empty() { "PTX" } else { &l.file };
        rows.push(vec![
            format!("{file}:{}", l.line),
            grouped(l.warp_instructions),
            format!("{:.1}%", 100.0 * l.warp_instructions as f64 / all),
            grouped(l.divergent_branches),
            grouped(l.sectors),
            grouped(l.wavefronts),
            grouped(l.ideal_wavefronts),
        ]);
    }
    out.push_str(&aligned(&rows));
    out
}

fn header(out: &mut String, report: &Report) -> std::fmt::Result {
    let c = &report.counters;
    writeln!(out, "{}  grid {}  block {}", report.kernel, shape(report.grid), shape(report.block))?;
    writeln!(
        out,
        "{} warp instructions, {} lane instructions, {:.1} lanes active on average, {:.1}% diverged",
        grouped(c.warp_instructions),
        grouped(c.lane_instructions),
        c.divergence.mean_active_lanes,
        c.divergence.percent
    )?;
    writeln!(
        out,
        "{} branches, {} divergent; {} arrivals at barriers of the block, {} of warps",
        grouped(c.branches.executed),
        grouped(c.branches.divergent),
        grouped(c.barriers.block),
        grouped(c.barriers.warp)
    )?;
    let f = &c.flops;
    writeln!(
        out,
        "FLOP: {} single, {} double, {} half, {} in {} matrix instructions",
        grouped(f.f32),
        grouped(f.f64),
        grouped(f.half),
        grouped(f.tensor),
        grouped(f.tensor_instructions)
    )?;
    let r = &c.resources;
    writeln!(
        out,
        "a block: {} threads, about {} registers each, {} + {} bytes of shared memory, {} bytes of local memory a thread",
        r.threads, r.estimated_registers, r.static_shared_bytes, r.dynamic_shared_bytes, r.local_bytes
    )?;
    if let Some(o) = &c.occupancy {
        writeln!(
            out,
            "occupancy on {}: {} blocks, {} warps ({:.0}%), limited by {} ({} registers, {}); {} waves",
            o.card,
            o.blocks,
            o.warps,
            o.percent,
            word(&o.limit),
            o.registers,
            if o.registers_estimated { "estimated" } else { "by ptxas" },
            decimal(o.waves, 2)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1 000");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["kernel", "n"], ["a", "12 345"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(aligned(&rows), "kernel       n\na       12 345\n");
    }
}
