//! `--dry-run`: what a run will cost.

use super::{bytes, count};
use crate::distill::Part;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::train;

/// Memory of the process before any tensor: program, thread stacks, and what the allocator keeps back.
const PROCESS_BYTES: usize = 96 << 20;

/// Prints the resolved recipe and the plan of one training step.
pub fn print_training(recipe: &Recipe) -> Result<()> {
    println!("# resolved recipe\n{}", recipe.to_toml());
    let (plan, slots) = train::plan(recipe)?;
    let micro = recipe.train.batch / recipe.train.accumulate;
    println!("# plan of one step ({micro} images of {}x{} at a time)", recipe.data.height, recipe.data.width);
    part("teacher, forward", &plan.teacher);
    part("student, forward (backward costs about twice as much)", &plan.student);
    let per_image = (plan.teacher.flops + 3 * plan.student.flops) / micro as u64;
    println!("per image             {}FLOP (teacher + 3 x student)", count(per_image));
    println!("optimiser and copies  {}", bytes(slots * plan.student.parameter_bytes));
    println!("memory at the peak    {}", bytes(plan.total_bytes(slots) + PROCESS_BYTES));
    Ok(())
}

/// Prints the plan of one pass of the teacher, and what it is expected to take.
pub fn print_teacher(recipe: &Recipe, batch: usize, gflops: f64) -> Result<()> {
    let (teacher, maps) = train::plan_teacher(recipe, batch)?;
    let (h, w) = (recipe.data.height, recipe.data.width);
    println!("# plan of one pass of the teacher ({batch} images of {h}x{w})");
    part("teacher, forward", &teacher);
    println!("maps                  {}", bytes(maps));
    // The images beside their noisy copy, and the maps once more while they are put in file order.
    let images = 2 * 12 * batch * h as usize * w as usize;
    let total = teacher.parameter_bytes + teacher.peak_bytes + maps + images + PROCESS_BYTES;
    println!("memory at the peak    {}", bytes(total));
    let seconds = teacher.flops as f64 / gflops / 1e9;
    println!(
        "time                  about {seconds:.1} s at {gflops:.0} GFLOP/s, measured on this machine just now"
    );
    Ok(())
}

fn part(title: &str, p: &Part) {
    println!("{title}");
    println!("  parameters          {} ({})", count(p.parameters as u64), bytes(p.parameter_bytes));
    println!("  operations          {}FLOP", count(p.flops));
    println!("  memory at its peak  {}", bytes(p.peak_bytes));
    let mut ops: Vec<_> = p.ops.iter().collect();
    ops.sort_by(|a, b| b.1.1.cmp(&a.1.1).then(a.0.cmp(b.0)));
    for (op, (n, flops)) in ops {
        let share = *flops as f64 / p.flops.max(1) as f64 * 100.0;
        println!("    {op:20} {n:5} x  {:>9}FLOP  {share:5.1} %", count(*flops));
    }
}
