//! What a step of the paper's ImageNet run costs, worked out on shapes alone: nothing is loaded or computed.
//!
//! ```text
//! cargo run --release --example plan_memory -- 8        # images per step; 2 if left out
//! ```

use dtk::error::{Error, Result};
use dtk::{recipe, train};

fn main() -> Result<()> {
    let batch = match std::env::args().nth(1) {
        None => 2,
        Some(n) => n.parse::<usize>().ok().filter(|n| *n > 1).ok_or_else(|| {
            Error::usage(format!("`{n}` is no number of images"))
                .with_remedy("give a number of at least 2: batch norm needs more than one value")
        })?,
    };
    let recipe = recipe::resolve("imagenet", &[format!("train.batch={batch}")])?;
    let (plan, optimizer_copies) = train::plan(&recipe)?;
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    println!("ADM 256x256 into {}, {batch} images per step", recipe.student.backbone.name());
    for (name, part) in [("teacher", &plan.teacher), ("student", &plan.student)] {
        println!(
            "{name}: {:.1} M parameters, {:.0} GFLOP forward, {:.2} GiB of parameters, {:.2} GiB at the peak beside them",
            part.parameters as f64 / 1e6,
            part.flops as f64 / 1e9,
            gib(part.parameter_bytes),
            gib(part.peak_bytes)
        );
    }
    println!("teacher maps: {:.3} GiB", gib(plan.target_bytes));
    println!("whole step: {:.2} GiB", gib(plan.total_bytes(optimizer_copies)));
    Ok(())
}
