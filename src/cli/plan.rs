//! `--dry-run`: what a run will cost.

use super::{bytes, count};
use crate::distill::{Part, Teacher};
use crate::error::Result;
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use crate::train;

/// Memory of the process before any tensor: program, thread stacks, and what the allocator keeps back.
const PROCESS_BYTES: usize = 96 << 20;

/// Speed of a whole network as a share of that of its largest convolutions: norms, small maps and fresh memory take
/// the rest. Measured on the early exit of ADM-256 (0.65), and rounded down.
const NETWORK_SHARE: f64 = 0.6;

/// Prints the resolved recipe and the plan of one training step.
pub fn print_training(recipe: &Recipe) -> Result<()> {
    println!("# resolved recipe\n{}", recipe.to_toml());
    let (plan, slots) = train::plan(recipe)?;
    let micro = recipe.train.batch / recipe.train.accumulate;
    println!("# plan of one step ({micro} images of {}x{} at a time)", recipe.data.height, recipe.data.width);
    part("teacher, forward", &plan.teacher);
    part("student, forward (backward costs about twice as much)", &plan.student);
    let per_image = (plan.teacher.flops + 3 * plan.student.flops) / micro as u64;
    println!("per image             {} (teacher + 3 x student)", flop(per_image));
    println!("optimiser and copies  {}", bytes(slots * plan.student.parameter_bytes));
    println!("memory at the peak    {}", bytes(plan.total_bytes(slots) + PROCESS_BYTES));
    Ok(())
}

/// Prints the plan of one pass of the teacher, and what it is expected to take.
pub fn print_teacher(recipe: &Recipe, batch: usize, gflops: f64) -> Result<()> {
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, recipe.seed, |_| Ok(()))?;
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let (plan, maps) = Part::of_teacher(&teacher, batch, hw)?;
    let map_bytes: usize = maps.iter().map(Tensor::bytes).sum();
    let image_bytes = batch * hw[0] * hw[1] * 3 * size_of::<f32>();
    // Parameters, and what loading the largest of them needs and the allocator keeps (the file's tensor and its copy in
    // memory layout); activations; the maps and their copies for the file; the images.
    let peak = plan.parameter_bytes
        + 2 * plan.largest_parameter_bytes
        + plan.peak_bytes
        + 2 * map_bytes
        + image_bytes
        + PROCESS_BYTES;
    println!(
        "# plan of one pass of the teacher ({batch} images of {}x{})",
        recipe.data.height, recipe.data.width
    );
    part("teacher, forward", &plan);
    println!("maps                  {}", bytes(map_bytes));
    println!("memory at the peak    {}", bytes(peak));
    let seconds = plan.flops as f64 / (gflops * NETWORK_SHARE) / 1e9;
    println!(
        "time                  about {seconds:.1} s per pass (a large convolution runs at {gflops:.0} GFLOP/s here now)"
    );
    Ok(())
}

/// FLOPs for people: 6.3 GFLOP.
fn flop(n: u64) -> String {
    // From a thousand on, the count ends in a prefix of the unit.
    format!("{}{}FLOP", count(n), if n < 1000 { " " } else { "" })
}

fn part(title: &str, p: &Part) {
    println!("{title}");
    println!("  parameters          {} ({})", count(p.parameters as u64), bytes(p.parameter_bytes));
    println!("  operations          {}", flop(p.flops));
    println!("  memory at its peak  {}", bytes(p.peak_bytes));
    let mut ops: Vec<_> = p.ops.iter().collect();
    ops.sort_by(|a, b| b.1.1.cmp(&a.1.1).then(a.0.cmp(b.0)));
    for (op, (n, flops)) in ops {
        let share = *flops as f64 / p.flops.max(1) as f64 * 100.0;
        println!("    {op:20} {n:5} x  {:>13}  {share:5.1} %", flop(*flops));
    }
}
